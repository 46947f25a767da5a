//! Which series exist from the start, at zero: those that can change in a relay with this configuration.
//!
//! Not here: the series that every relay has, see [`super::describe`]. Called once, when the configuration is known.
//! Always holds: the series of a service exist from its first call on, since most services are never called.

use metrics::{counter, gauge};

use super::*;

/// The parts that a relay has. They decide which of the optional series can ever change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Its ports, each with whether it uses TLS.
    pub ports: Vec<(Port, bool)>,
    /// Why it may ask clients to leave while it runs on.
    pub leaves: Vec<LeaveReason>,
    /// It follows etcd's v3 API.
    pub etcd: bool,
    /// It reaches etcd over TLS.
    pub etcd_tls: bool,
    /// It follows etcd's v2 API.
    pub etcd_v2: bool,
    /// It serves etcd's v2 API.
    pub facade: bool,
    /// It may join sends to clients by io_uring.
    pub batches: bool,
    /// It serves Lainlet's views.
    pub views: bool,
}

/// Starts the series of the parts that a relay has at zero. The other series would never be anything else.
pub fn begin(present: &Present) {
    for (port, tls) in &present.ports {
        for name in [CONNECTIONS, CONNECTIONS_LIMIT] {
            gauge!(name, Port::LABEL => port.as_str()).set(0.0);
        }
        for name in [CONNECTIONS_ACCEPTED, ACCEPT_ERRORS] {
            counter!(name, Port::LABEL => port.as_str()).absolute(0);
        }
        for reason in present.leaves.iter().chain([&LeaveReason::Stopping]) {
            counter!(CONNECTIONS_ASKED_TO_LEAVE, Port::LABEL => port.as_str(), LeaveReason::LABEL => reason.as_str())
                .absolute(0);
        }
        for reason in Turned::ALL {
            counter!(CONNECTIONS_TURNED_AWAY, Port::LABEL => port.as_str(), Turned::LABEL => reason.as_str())
                .absolute(0);
        }
        for outcome in Handshake::ALL.iter().filter(|_| *tls) {
            counter!(TLS_HANDSHAKES, Port::LABEL => port.as_str(), Handshake::LABEL => outcome.as_str()).absolute(0);
        }
    }
    gauge!(TURNS_WAITING).set(0.0);
    gauge!(SEND_RINGS).set(0.0);
    if present.batches {
        counter!(SEND_BATCHES).absolute(0);
        counter!(BATCHED_SENDS).absolute(0);
    }
    let sides = [(TlsSide::Port, present.ports.iter().any(|(_, tls)| *tls)), (TlsSide::Upstream, present.etcd_tls)];
    for (side, certificates) in [
        (sides[0], [TlsCertificate::Port, TlsCertificate::PortCa]),
        (sides[1], [TlsCertificate::Upstream, TlsCertificate::UpstreamCa]),
    ] {
        let (side, true) = side else { continue };
        for certificate in certificates {
            gauge!(TLS_CERTIFICATE_NOT_AFTER, TlsCertificate::LABEL => certificate.as_str()).set(0.0);
        }
        for outcome in Reload::ALL {
            counter!(TLS_RELOADS, TlsSide::LABEL => side.as_str(), Reload::LABEL => outcome.as_str()).absolute(0);
        }
    }
    if present.etcd_tls {
        zero!(TLS_UPSTREAM_HANDSHAKES by Connect);
    }
    if present.etcd {
        zero!(UPSTREAM_CONNECTS by Connect, MEMBER_LEFT by Leave, AUDITS by Audited);
        gauge!(MEMBER_HEALTHY, MEMBER => "1").set(0.0);
        for lane in Lane::ALL {
            gauge!(UPSTREAM_CONNECTIONS, Lane::LABEL => lane.as_str()).set(0.0);
            gauge!(UPSTREAM_WAITING, Lane::LABEL => lane.as_str()).set(0.0);
        }
        for name in [AUDIT_MISMATCHES, AUDITED_KEYS, FORWARD_RETRIES] {
            counter!(name).absolute(0);
        }
        for name in [FORWARDS_HELD, UPSTREAM_LEADERLESS, AUDIT_COMPLETED] {
            gauge!(name).set(0.0);
        }
    }
    if present.etcd_v2 {
        zero!(V2_LISTINGS by V2Listing, V2_WAITS by V2WaitEnd);
        counter!(V2_REPAIRED).absolute(0);
    }
    if present.facade {
        zero!(FACADE_REQUESTS by FacadeRequest, FACADE_PASTS by FacadePast);
        gauge!(FACADE_WAITS).set(0.0);
        counter!(FACADE_EXPIRED).absolute(0);
        counter!(FACADE_JOINED).absolute(0);
    }
    if present.ports.iter().any(|(port, _)| *port == Port::Http) {
        begin_keys();
    }
    if present.views {
        begin_views();
    }
}

fn begin_keys() {
    for path in KeysPath::ALL {
        for answer in KeysAnswer::ALL {
            counter!(KEYS_REQUESTS, KeysPath::LABEL => path.as_str(), KeysAnswer::LABEL => answer.as_str()).absolute(0);
        }
    }
    for why in KeysSnapshot::ALL {
        counter!(KEYS_SNAPSHOTS, KeysSnapshot::LABEL => why.as_str()).absolute(0);
    }
    gauge!(KEYS_STREAMS).set(0.0);
    counter!(KEYS_MESSAGES).absolute(0);
    counter!(KEYS_MESSAGE_BYTES).absolute(0);
}

fn begin_views() {
    for transport in Transport::ALL {
        gauge!(VIEW_STREAMS, Transport::LABEL => transport.as_str()).set(0.0);
        counter!(VIEW_MESSAGES, Transport::LABEL => transport.as_str()).absolute(0);
        counter!(VIEW_MESSAGE_BYTES, Transport::LABEL => transport.as_str()).absolute(0);
        for answer in Answer::ALL {
            counter!(VIEW_REQUESTS, Transport::LABEL => transport.as_str(), Answer::LABEL => answer.as_str())
                .absolute(0);
        }
    }
    for directory in Directory::ALL {
        counter!(VIEW_VERSIONS, Directory::LABEL => directory.as_str()).absolute(0);
        for name in [VIEW_TARGETS, VIEW_BYTES, VIEW_UNREADABLE] {
            gauge!(name, Directory::LABEL => directory.as_str()).set(0.0);
        }
        for effect in Effect::ALL {
            counter!(VIEW_CHANGES, Directory::LABEL => directory.as_str(), Effect::LABEL => effect.as_str())
                .absolute(0);
        }
    }
}

/// Starts the series of a service at zero, at its first call. Most services are never called. A series that has begun
/// keeps its count.
pub fn begin_forwarding(service: Service) {
    for outcome in Outcome::ALL {
        counter!(FORWARDED, Service::LABEL => service.as_str(), Outcome::LABEL => outcome.as_str()).absolute(0);
    }
}
