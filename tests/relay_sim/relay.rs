//! [`Relay`]: a whole relay over a simulated cluster, with in-memory connections instead of ports.
//!
//! The relay's own composition code wires it; only sockets, etcd's client and views are missing. Always holds: its
//! limits are tiny, so that watches are parked, filled and spliced, and feeds on demand open and close, all the time.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use etcd_relay::{
    batch::Io,
    critical::Tasks,
    front::{
        gateway::Gateway,
        grpc::{GrpcPort, LainletApi, Locals},
        http::{audience::Audience, keys::Cors},
        listen::{self, Connections, Server, Stop},
    },
    http2::TurnQueue,
    relay::{self, Embedded, Feeds, LainletFeeds, OnDemand, RelayConfig, Upstream, Views, Watches},
    rpc::GrpcService,
    shutdown::Phases,
    telemetry::{ReadyBoard, names::Port},
};
use http::{Request, Response};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use tokio::io::DuplexStream;
use tonic::{Status, body::Body};
use tower::service_fn;

use crate::cluster::{Cluster, OwnUpstream};

/// How long the relay waits for an answer of the cluster.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// Short enough that audits meet everything that happens to the cluster.
const AUDIT_INTERVAL: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(crate) struct Relay {
    server: Server<GrpcPort<Locals>>,
    phases: Phases,
    clients: std::sync::atomic::AtomicU16,
}

/// The address of a client. The relay gives each address its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host(pub(crate) u8);

/// The parameters of a relay.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) prefixes: Vec<&'static str>,
    pub(crate) history: (usize, usize),
    pub(crate) on_demand: Option<usize>,
    pub(crate) stream_buffer: usize,
}

impl Terms {
    pub(crate) fn random(rng: &mut StdRng) -> Self {
        let entries = *[4, 12, 80, 1_000].choose(rng).expect("some");
        let prefixes: &[&[&'static str]] = &[&["a/"], &["a/", "b/"], &[""], &[]];
        Self {
            prefixes: prefixes.choose(rng).expect("some").to_vec(),
            history: (rng.random_range(300..500 * entries), entries),
            on_demand: Some(rng.random_range(1..6)),
            stream_buffer: rng.random_range(40..4_000),
        }
    }
}

impl Relay {
    pub(crate) fn new(cluster: &Arc<Cluster>, terms: &Terms) -> Self {
        let size = |size: usize| NonZeroUsize::new(size).expect("not zero");
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 2379));
        let grpc = listen::PortConfig {
            stream_buffer: size(terms.stream_buffer),
            turns: Some(TurnQueue::new(1, |_| ())),
            ..listen::PortConfig::new(Port::Grpc, addr)
        };
        let on_demand = match terms.on_demand {
            Some(max) => OnDemand::Allow { idle: Duration::from_secs(10), max: size(max), bytes: OnDemand::BYTES },
            None => OnDemand::Deny,
        };
        let config = RelayConfig {
            // Not used, because the cluster replaces it.
            upstream: Upstream::Embedded(Embedded { seeded: false, changes_every: None }),
            feeds: Feeds {
                prefixes: terms.prefixes.iter().map(|prefix| Bytes::from_static(prefix.as_bytes())).collect(),
                on_demand,
                history_bytes: size(terms.history.0),
                history_entries: size(terms.history.1),
                audit_interval: Some(AUDIT_INTERVAL),
            },
            watches: Watches { progress_notify_interval: Duration::from_secs(2), ..Watches::default() },
            views: Views { feeds: LainletFeeds::Off, ..Views::default() },
            grpc: grpc.clone(),
            http: None,
            v2: None,
            metrics: Vec::new(),
            debug_from: Audience::Nobody,
            keys_from: Audience::Nobody,
            cors: Cors::Off,
            metrics_from: Audience::Nobody,
            advertise: None,
            io: Io::Epoll,
            drain_time: Duration::from_secs(1),
        };
        let (mut phases, ready) = (Phases::new(), ReadyBoard::new());
        phases.upkeep = Tasks::on_one_thread();
        let upstream = Arc::new(OwnUpstream(cluster.clone()));
        let (forward, questions) = (cluster.service(), cluster.service());
        let core = relay::wire(&config, upstream, REQUEST_PATIENCE, forward, questions, &phases, &ready);
        let local = Locals { etcd: core.api, lainlet: LainletApi::new(None, phases.streams.clone()) };
        let port = GrpcPort {
            local,
            forward: core.forward,
            health: unserved(),
            reflection: unserved(),
            gateway: Gateway::new(etcd_relay::pb::FILE_DESCRIPTOR_SET).expect("descriptors"),
            member: axum::Router::new(),
        };
        let stop = Stop { leave: phases.leave.clone(), accept: phases.accept.clone(), abort: phases.abort.clone() };
        let server = Server::new(port, grpc, Arc::new(Connections::default()), stop);
        Self { server, phases, clients: 0.into() }
    }

    /// Serves a client of this host at the other end of the returned connection, which may have this many bytes under
    /// way in each direction.
    pub(crate) fn connect(&self, host: Host, bytes: usize) -> DuplexStream {
        let (client, server) = tokio::io::duplex(bytes);
        let port = self.clients.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let peer = SocketAddr::from(([10, 0, 0, host.0], 10_000 + port % 50_000));
        // If it is refused, the client finds the connection closed, like a socket.
        let _ = self.server.serve(server, peer);
        client
    }

    /// Ends everything at once.
    pub(crate) fn stop(&self) {
        let Phases { accept, streams, abort, upstream, .. } = &self.phases;
        [accept, streams, abort, upstream].into_iter().for_each(|token| token.cancel());
    }
}

fn unserved() -> GrpcService {
    GrpcService::new(service_fn(|_: Request<Body>| async {
        Ok::<Response<Body>, Infallible>(Status::unimplemented("not here").into_http())
    }))
}
