//! [`Forward`]: passes any gRPC call to etcd byte for byte, including streams, metadata, trailers and errors.
//!
//! Except for lease keep-alives (`keepalive`), it does not look into messages. It never repeats a write that etcd may
//! have seen, and sets no deadline of its own: a `grpc-timeout` goes to etcd, which ends the call, and a client that
//! gives up resets its stream here and so the one upstream. Which member a call goes to, and what happens if that one
//! does not answer, is in `send`. The gRPC port calls this for everything that the relay does not answer itself.
//! Always holds, except for keep-alives: one call here is one call upstream at a time; a call that ends here, for
//! whatever reason, ends upstream; no client's calls keep another client waiting; no call acts as the relay's user.
//! Calls that wait for something (a lock, an election, an event) use other connections than calls that end at once, and
//! so do the relay's own requests. Each client has a bounded number of calls, and a fair part of the connections
//! (`pool`).
//!
//! tonic's `Channel` is not used: it would add to `user-agent`, enforce `grpc-timeout` itself, and not report whether a
//! failed call had been sent, which decides whether the next endpoint may be tried.

mod body;
mod clients;
mod counts;
mod keepalive;
mod method;
mod overdue;
mod send;
mod status;

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{self, HeaderName},
    request,
};
use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use self::{
    body::{Call, ResponseBody},
    clients::Clients,
    method::Method,
    overdue::Overdue,
    send::{Sending, Sent},
};
pub use super::pool::Keepalive;
use super::{
    Dialler, Members,
    pool::{Head, Kind, Pool, Settings, WIDE},
};
use crate::{
    critical::Tasks,
    rpc::{Caller, GrpcAnswer, GrpcService},
    telemetry::names,
    types::ClientKey,
};

/// The client for which a call of the relay's own takes its place on a connection.
#[derive(Clone, Copy, Debug)]
struct OnBehalfOf(ClientKey);

/// Headers that concern a single connection (RFC 9110, section 7.6.1), and `host`, which becomes `:authority`.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::HOST,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// The header that etcd's own HTTP gateway adds to the calls that it passes on. With it etcd ignores the name in the
/// connection's certificate (its `AuthInfoFromTLS`, since 3.2.26 and 3.3.11). So a call without a token has no user,
/// and is never taken for one of the relay's, whatever its certificate says and whenever authentication is turned on.
const DISOWNED: HeaderName = HeaderName::from_static("grpcgateway-accept");
/// Names the relays that a call has passed. A call that came back to one of them would go round for ever.
const VIA: HeaderName = HeaderName::from_static("etcd-relay-via");
/// The most relays that a call may pass.
const MOST_TIERS: usize = 8;

/// How calls reach etcd.
#[derive(Clone, Debug)]
pub struct ForwardConfig {
    /// Opens connections to members.
    pub dialler: Dialler,
    /// Longest wait for a connection to one member, before the next one is tried.
    pub connect_timeout: Duration,
    /// Pings on connections upstream. With `None`, only TCP notices that a member has vanished.
    pub keepalive: Option<Keepalive>,
    /// The most bytes of one call's answer on their way through the relay, when the client reads slower than etcd
    /// writes. A larger window takes more memory for a stalled call; a smaller one limits throughput to window ÷ round
    /// trip.
    pub stream_window: NonZeroU32,
    /// The most calls of one client that are under way; one more is refused.
    pub max_per_client: NonZeroUsize,
    /// How long a call that was not sent yet waits until a member can be reached; with zero it is refused at once. A
    /// write also waits for an election, but no longer than this.
    pub wait: Duration,
}

impl ForwardConfig {
    /// Longest wait for a connection. The default of etcd's own clients is 5 s; a member in the same network takes
    /// milliseconds.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
    /// Detects a vanished member within 15 s; etcd accepts one ping every 5 s.
    pub const KEEPALIVE: Keepalive =
        Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(5), while_idle: true };
    /// 1 MiB allows 10 Gbit/s at a round trip of 0.8 ms.
    pub const STREAM_WINDOW: NonZeroU32 = NonZeroU32::new(1 << 20).expect("not zero");
    /// Only a large host keeps this many leases alive, and only a large relay behind this one has this many clients. A
    /// call costs some ten KiB.
    pub const MAX_PER_CLIENT: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
    /// etcd's clients wait for a member as long as their calls may last. A cluster of one member takes some five
    /// seconds to restart.
    pub const WAIT: Duration = Duration::from_secs(10);
}

/// Forwards calls. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Forward {
    shared: Arc<ForwardInner>,
}

#[derive(Debug)]
struct ForwardInner {
    members: Members,
    settings: Settings,
    /// In the members' order; a link is made when its member is first called.
    links: RwLock<Vec<Arc<Link>>>,
    wait: Duration,
    clients: Arc<Clients>,
    overdue: Overdue,
    /// Whether calls could be taken for the relay's own because of its certificate.
    disowns: bool,
    drain: CancellationToken,
    /// This relay's name in [`VIA`].
    name: HeaderValue,
}

/// The connections to one member, by their use.
#[derive(Debug)]
struct Link {
    calls: Pool,
    waiting: Pool,
    own: Pool,
}

impl Link {
    fn pool(&self, lane: names::Lane) -> &Pool {
        match lane {
            names::Lane::Waiting => &self.waiting,
            names::Lane::Own => &self.own,
            _ => &self.calls,
        }
    }
}

impl Forward {
    /// Makes a forwarder to these members, which connects when it is first used. When `drain` is cancelled, calls that
    /// would never end by themselves (watches, keep-alives, observers) end with etcd's own `server stopped`; the others
    /// may finish.
    #[must_use]
    pub fn new(config: &ForwardConfig, members: Members, drain: CancellationToken) -> Self {
        let settings = Settings {
            dialler: config.dialler.clone(),
            connect_timeout: config.connect_timeout,
            keepalive: config.keepalive,
            stream_window: config.stream_window,
            connection_window: WIDE,
        };
        let clients = Clients::new(config.max_per_client);
        let disowns = config.dialler.shows_certificate();
        let links = RwLock::default();
        let (wait, name) = (config.wait, name());
        let overdue = Overdue::default();
        Self {
            shared: Arc::new(ForwardInner { members, settings, links, wait, clients, overdue, disowns, drain, name }),
        }
    }

    /// A type-erased service for the relay's own calls, over connections that clients' calls do not use.
    #[must_use]
    pub fn own(&self) -> GrpcService {
        let forward = self.clone();
        GrpcService::passing(move |request| {
            let forward = forward.clone();
            let (mut head, body) = request.into_parts();
            Box::pin(async move { Ok(forward.pass(&mut head, body, Some(names::Lane::Own)).await) })
        })
    }

    /// The same, type-erased.
    #[must_use]
    pub fn boxed(self) -> GrpcService {
        GrpcService::passing(move |request| self.answer(request))
    }

    /// The same, with lease keep-alives over a few streams that clients share.
    #[must_use]
    pub fn sharing_keepalives(self, tasks: Tasks) -> GrpcService {
        keepalive::over(self, tasks)
    }

    /// Forwards one call of the [`Caller`] in the request's extensions. It never fails: if etcd cannot be reached, the
    /// answer is a gRPC status that says so.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        self.pass(&mut head, body, None).await
    }

    /// The same as a future of its own.
    fn answer(&self, request: Request<Body>) -> GrpcAnswer {
        let forward = self.clone();
        let (mut head, body) = request.into_parts();
        Box::pin(async move { Ok(forward.pass(&mut head, body, None).await) })
    }

    /// The same over the connections of `lane`, or of the method's lane. The head is borrowed, because otherwise each
    /// call would have room for it twice.
    async fn pass(&self, head: &mut request::Parts, body: Body, lane: Option<names::Lane>) -> Response<Body> {
        let Some(path) = head.uri.path_and_query() else {
            return status::malformed("the request has no path").into_http();
        };
        let method = Method::of(path.path());
        // The client for short calls sends nothing but POST. No other method is gRPC; etcd may say so.
        let is_call = head.method == http::Method::POST;
        let lane = lane.unwrap_or(if is_call { method.lane } else { names::Lane::Waiting });
        let client = Caller::client_of(&head.extensions);
        // The relay's own requests have metrics of their own, and some of them expect to be refused.
        let service = (lane != names::Lane::Own).then_some(method.service);
        let Some(counted) = self.shared.clients.enter(client) else {
            self.shared.clients.counts.refuse(service, names::Outcome::Refused);
            return status::too_many(self.shared.clients.most()).into_http();
        };
        let client = head.extensions.get().map_or(client, |OnBehalfOf(client)| *client);
        let mut call = Call::start(service, counted);
        let via = head.headers.get_all(VIA);
        if via.iter().any(|relay| relay == self.shared.name) || via.iter().count() >= MOST_TIERS {
            let status = status::goes_round();
            call.finish(status.code());
            return status.into_http();
        }
        let headers = &mut head.headers;
        headers.append(VIA, self.shared.name.clone());
        strip_hop_by_hop(headers);
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if self.shared.disowns {
            headers.insert(DISOWNED, HeaderValue::from_static("etcd-relay"));
        }
        // Ready when the call's connection is asked to leave, or the relay stops.
        let drain = method.endless.then(|| Caller::leave_of(&head.extensions, &self.shared.drain));

        let head = Head { method: &head.method, path, headers: &head.headers };
        let until = Instant::now() + self.shared.patience(head.headers, lane);
        let sending = Sending { shared: &self.shared, method, lane, client, head, until };
        match sending.send(body).await {
            Ok(Sent { head, body, member }) => {
                call.note(&head.headers);
                let left = method.leaves.then(|| (self.shared.members.clone(), member));
                let body = Body::new(ResponseBody::new(body, call, drain, left));
                Response::from_parts(head, body)
            }
            Err(status) => {
                call.finish(status.code());
                status.into_http()
            }
        }
    }
}

impl ForwardInner {
    fn link(&self, member: usize) -> Arc<Link> {
        if let Some(link) = self.links.read().get(member) {
            return link.clone();
        }
        let mut links = self.links.write();
        while links.len() <= member {
            let endpoint = self.members.endpoint(links.len());
            let pool = |lane, kind| Pool::new(endpoint.clone(), self.settings.clone(), lane, kind);
            links.push(Arc::new(Link {
                calls: pool(names::Lane::Calls, Kind::Short),
                waiting: pool(names::Lane::Waiting, Kind::Streams),
                own: pool(names::Lane::Own, Kind::Streams),
            }));
        }
        links[member].clone()
    }

    /// How long a call may wait to be sent.
    fn patience(&self, headers: &HeaderMap, lane: names::Lane) -> Duration {
        if lane == names::Lane::Own {
            // The caller of such a request repeats it.
            return Duration::ZERO;
        }
        method::timeout_in(headers).map_or(self.wait, |timeout| timeout.min(self.wait))
    }
}

/// A name that no other relay has.
fn name() -> HeaderValue {
    HeaderValue::from(rand::random::<u64>())
}

/// Drops headers that concern only the client's connection, as named by the standard or by the `connection` header
/// itself.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests;
