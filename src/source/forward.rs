//! [`Forward`]: passes any gRPC call to etcd byte for byte, streams, metadata, trailers and errors included.
//!
//! But for keep-alives of leases (`keepalive`), it does not look into messages, sends no write again that etcd may have seen, and bounds no call's time: a
//! `grpc-timeout` goes to etcd, which ends the call, and a client that gives up resets the stream here and so upstream.
//! Which member a call goes to, and what happens to it when that one does not answer, is in `send`.
//! Called by the gRPC port for all that the relay does not answer itself.
//! Always holds: one call here is one call upstream at a time, but for those; a call that ends here, for whatever reason, ends upstream; no client's calls
//! keep another's waiting; no call acts as the relay. Calls that wait for something (a lock, an election, an event) have connections apart from those that end at
//! once, and so have the relay's own questions; a client has a bounded number of calls, and a fair part of the connections (`pool`).
//!
//! Not tonic's `Channel`: it would add to `user-agent`, answer `grpc-timeout` itself, and not say whether a call that failed
//! had been sent, which is what decides whether the next endpoint may be tried.

mod body;
mod clients;
mod keepalive;
mod method;
mod send;
mod status;

use std::{
    convert::Infallible,
    future::Future,
    num::{NonZeroU32, NonZeroUsize},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Request, Response, Version,
    header::{self, HeaderName},
};
use metrics::{counter, gauge};
use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{service_fn, util::BoxCloneSyncService};

use self::{
    body::{Call, ResponseBody},
    clients::Clients,
    method::Method,
    send::{Sending, Sent},
};
pub use super::pool::Keepalive;
use super::{
    Dialler, Members,
    pool::{Pool, Settings, WIDE},
};
use crate::{critical::Tasks, telemetry::names, types::ClientKey};

/// In whose name a call of the relay's own takes its place on a connection.
#[derive(Clone, Copy, Debug)]
struct OnBehalfOf(ClientKey);

/// Forwards calls, with the type hidden, for fronts.
pub type ForwardService = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// Headers that belong to one connection (RFC 9110, section 7.6.1), with `host`, which becomes `:authority`.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::HOST,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What etcd's own HTTP gateway puts into the calls that it passes on: with it etcd takes the name of the connection's certificate for
/// nobody's (its `AuthInfoFromTLS`, since 3.2.26 and 3.3.11). So a call without a token is one without a user, and never one of the relay,
/// whatever its certificate says and whenever authentication is turned on.
const DISOWNED: HeaderName = HeaderName::from_static("grpcgateway-accept");
/// Names the relays that a call has passed, one after the other: a call that comes back to one of them would go round for ever.
const VIA: HeaderName = HeaderName::from_static("etcd-relay-via");
/// Most relays that a call passes.
const MOST_TIERS: usize = 8;

/// How calls reach etcd.
#[derive(Clone, Debug)]
pub struct ForwardConfig {
    /// What opens connections to members.
    pub dialler: Dialler,
    /// Longest wait for a connection to one member, before the next is tried.
    pub connect_timeout: Duration,
    /// Pings on connections upstream; `None` sends none, and a member that vanishes is then noticed by TCP alone.
    pub keepalive: Option<Keepalive>,
    /// Largest number of bytes of one call's answer on its way through the relay, when the client reads slower than etcd
    /// writes. More memory a stalled call; less limits throughput to window ÷ round trip.
    pub stream_window: NonZeroU32,
    /// Most calls of one client that are under way at a time; one more is refused.
    pub max_per_client: NonZeroUsize,
    /// Longest wait of a call that was not sent until a member can be reached; zero refuses it at once.
    pub wait: Duration,
}

impl ForwardConfig {
    /// Longest wait for a connection: etcd's own clients' default is 5 s; a member in the same network takes milliseconds.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
    /// Finds a vanished member in 15 s at the most; etcd accepts a ping each 5 s.
    pub const KEEPALIVE: Keepalive =
        Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(5), while_idle: true };
    /// 1 MiB: 10 Gbit/s at a round trip of 0.8 ms.
    pub const STREAM_WINDOW: NonZeroU32 = NonZeroU32::new(1 << 20).expect("not zero");
    /// A host with as many leases to keep alive, or a relay behind this one with as many clients, is a large one. A call costs some ten
    /// KiB.
    pub const MAX_PER_CLIENT: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
    /// etcd's clients wait for a member as long as their calls may last. A cluster of one that is restarted takes some five seconds.
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
    /// In the members' order; made when one is first called.
    links: RwLock<Vec<Arc<Link>>>,
    wait: Duration,
    clients: Arc<Clients>,
    /// Whether calls could be taken for the relay's own, by its certificate.
    disowns: bool,
    drain: CancellationToken,
    /// This relay's name in [`VIA`].
    name: HeaderValue,
}

/// The connections to one member, by what goes over them.
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
    /// Makes a forwarder to these members that connects when first used. When `drain` is cancelled, calls that would never end by themselves
    /// (watches, keep-alives, observers) end with etcd's own `server stopped`; the others may finish.
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
        Self { shared: Arc::new(ForwardInner { members, settings, links, wait, clients, disowns, drain, name }) }
    }

    /// For the relay's own calls, with the type hidden: over connections that no client's call takes.
    #[must_use]
    pub fn own(&self) -> ForwardService {
        let forward = self.clone();
        BoxCloneSyncService::new(service_fn(move |request| {
            let forward = forward.clone();
            async move { Ok(forward.pass(request, Some(names::Lane::Own)).await) }
        }))
    }

    /// The same with its type hidden.
    #[must_use]
    pub fn boxed(self) -> ForwardService {
        BoxCloneSyncService::new(self)
    }

    /// The same, with keep-alives of leases over a few streams that clients share.
    #[must_use]
    pub fn sharing_keepalives(self, tasks: Tasks) -> ForwardService {
        keepalive::over(self, tasks)
    }

    /// Forwards one call of the client whose [`ClientKey`] is in the request's extensions. Never fails: where etcd cannot be reached, the
    /// answer is a gRPC status that says so.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        self.pass(request, None).await
    }

    async fn pass(&self, request: Request<Body>, lane: Option<names::Lane>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let Some(path) = head.uri.path_and_query().cloned() else {
            return status::malformed("the request has no path").into_http();
        };
        let method = Method::of(path.path());
        let lane = lane.unwrap_or(method.lane);
        // Requests without a key come from the relay itself.
        let client = head.extensions.get().copied().unwrap_or(ClientKey::RELAY);
        // The relay's own questions have metrics of their own, and etcd's refusals are what some of them ask for.
        let service = (lane != names::Lane::Own).then_some(method.service);
        let Some(counted) = self.shared.clients.enter(client) else {
            count(service, names::Outcome::Refused);
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
        head.headers.append(VIA, self.shared.name.clone());
        strip_hop_by_hop(&mut head.headers);
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        if self.shared.disowns {
            head.headers.insert(DISOWNED, HeaderValue::from_static("etcd-relay"));
        }
        head.version = Version::HTTP_2;
        // Its connection is asked to leave, or the relay stops.
        let drain = method.endless.then(|| head.extensions.get().unwrap_or(&self.shared.drain).clone());
        head.extensions.clear();

        let until = Instant::now() + self.shared.patience(&head.headers, lane);
        let sending = Sending { shared: &self.shared, method, lane, client, path, until };
        match sending.send(head, body).await {
            Ok(Sent { head, body, member }) => {
                call.note(&head.headers);
                let left = method.leaves.then(|| self.shared.left(member));
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

impl tower::Service<Request<Body>> for Forward {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let forward = self.clone();
        Box::pin(async move { Ok(Self::call(&forward, request).await) })
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
            let pool = |lane| Pool::new(endpoint.clone(), self.settings.clone(), lane);
            let (calls, waiting, own) = (pool(names::Lane::Calls), pool(names::Lane::Waiting), pool(names::Lane::Own));
            links.push(Arc::new(Link { calls, waiting, own }));
        }
        links[member].clone()
    }

    /// How long a call may wait to be sent.
    fn patience(&self, headers: &HeaderMap, lane: names::Lane) -> Duration {
        if lane == names::Lane::Own {
            // Whoever asks for the relay asks again.
            return Duration::ZERO;
        }
        let timeout = headers.get("grpc-timeout").and_then(|value| method::timeout(value.to_str().ok()?));
        timeout.map_or(self.wait, |timeout| timeout.min(self.wait))
    }

    /// Done when calls that wait for this member had better be ended.
    fn left(&self, member: usize) -> BoxFuture<'static, ()> {
        let members = self.members.clone();
        Box::pin(async move { members.left(member).await })
    }
}

/// A name that no other relay has.
fn name() -> HeaderValue {
    HeaderValue::from(rand::random::<u64>())
}

/// Drops what belongs to the client's connection, named by the standard or by the `connection` header itself.
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

/// Counts a client's call that is running; dropped, it is over.
#[derive(Debug)]
struct Running;

impl Running {
    fn start() -> Self {
        gauge!(names::FORWARDS).increment(1.0);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        gauge!(names::FORWARDS).decrement(1.0);
    }
}

/// A call of a client ended. The relay's own are for no service that clients ask for, and are not counted.
fn count(service: Option<names::Service>, outcome: names::Outcome) {
    let Some(service) = service else { return };
    counter!(
        names::FORWARDED,
        names::Service::LABEL => service.as_str(),
        names::Outcome::LABEL => outcome.as_str()
    )
    .increment(1);
}

#[cfg(test)]
mod tests;
