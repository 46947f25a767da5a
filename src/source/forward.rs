//! [`Forward`]: passes any gRPC call to etcd byte for byte, streams, metadata, trailers and errors included.
//!
//! It does not look into messages, buffers none, retries no call that etcd may have seen, and bounds no call's time: a
//! `grpc-timeout` goes to etcd, which ends the call, and a client that gives up resets the stream here and so upstream.
//! Called by the gRPC port for all that the relay does not answer itself.
//! Always holds: one call here is one call upstream; a call that ends here, for whatever reason, ends upstream.
//!
//! Not tonic's `Channel`: it would add to `user-agent`, answer `grpc-timeout` itself, and not say whether a call that failed
//! had been sent, which is what decides whether the next endpoint may be tried.

mod body;
mod link;
mod status;

use std::{
    convert::Infallible,
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderValue, Request, Response, Version,
    header::{self, HeaderName},
    uri::{PathAndQuery, Scheme, Uri},
};
use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;

use self::{
    body::{Call, RequestBody, ResponseBody},
    link::{Link, Settings},
};
use super::Endpoint;
use crate::telemetry::names;

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

/// How calls reach etcd.
#[derive(Clone, Debug)]
pub struct Config {
    /// The members, in the order in which they are tried; not empty.
    pub endpoints: Vec<Endpoint>,
    /// Longest wait for a connection to one member, before the next is tried.
    pub connect_timeout: Duration,
    /// Pings on connections upstream; `None` sends none, and a member that vanishes is then noticed by TCP alone.
    pub keepalive: Option<Keepalive>,
    /// Largest number of bytes of one call's answer on its way through the relay, when the client reads slower than etcd
    /// writes. More memory a stalled call; less limits throughput to window ÷ round trip.
    pub stream_window: NonZeroU32,
}

/// Pings that find out whether the other side is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Time between pings.
    pub interval: Duration,
    /// A connection without an answer for this long is closed.
    pub timeout: Duration,
    /// Whether to ping while no call is running.
    pub while_idle: bool,
}

impl Config {
    /// Longest wait for a connection: etcd's own clients' default is 5 s; a member in the same network takes milliseconds.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
    /// Finds a vanished member in 15 s at the most; etcd accepts a ping each 5 s.
    pub const KEEPALIVE: Keepalive =
        Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(5), while_idle: true };
    /// 1 MiB: 10 Gbit/s at a round trip of 0.8 ms.
    pub const STREAM_WINDOW: NonZeroU32 = NonZeroU32::new(1 << 20).expect("not zero");
}

/// Forwards calls. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Forward {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    members: Vec<Member>,
    /// Which member answered last: calls stay with it until it cannot be reached.
    current: AtomicUsize,
    drain: CancellationToken,
}

/// One member with two connections, so that answers nobody reads (streams) cannot use up the flow control that calls need.
#[derive(Debug)]
struct Member {
    endpoint: Endpoint,
    calls: Link,
    streams: Link,
}

impl Forward {
    /// Makes a forwarder that connects when first used. When `drain` is cancelled, calls that would never end by themselves
    /// (watches, keep-alives, observers) end with etcd's own `server stopped`; the others may finish.
    #[must_use]
    pub fn new(config: &Config, drain: CancellationToken) -> Self {
        let settings = Settings {
            connect_timeout: config.connect_timeout,
            keepalive: config.keepalive,
            stream_window: config.stream_window,
        };
        let members = config
            .endpoints
            .iter()
            .map(|endpoint| Member {
                endpoint: endpoint.clone(),
                calls: Link::new(endpoint.clone(), settings),
                streams: Link::new(endpoint.clone(), settings),
            })
            .collect();
        Self { shared: Arc::new(Shared { members, current: AtomicUsize::new(0), drain }) }
    }

    /// The same with its type hidden.
    #[must_use]
    pub fn boxed(self) -> ForwardService {
        BoxCloneSyncService::new(self)
    }

    /// Forwards one call. Never fails: where etcd cannot be reached, the answer is a gRPC status that says so.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let Some(path) = head.uri.path_and_query().cloned() else {
            return status::malformed("the request has no path").into_http();
        };
        let method = Method::of(path.path());
        strip_hop_by_hop(&mut head.headers);
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        head.version = Version::HTTP_2;
        head.extensions.clear();

        let (body, guard) = RequestBody::new(body);
        let call = Call::start(method.service, guard);
        let mut request = Request::from_parts(head, body);
        let members = &self.shared.members;
        let first = self.shared.current.load(Ordering::Relaxed);
        let asked = Instant::now();
        let mut failures = Vec::new();
        // Each member twice: a connection that turns out to be closed says nothing about the member.
        let attempts = (0..members.len()).flat_map(|step| [(first + step) % members.len(); 2]);
        let mut unreachable = None;
        for index in attempts {
            if unreachable == Some(index) {
                continue;
            }
            let member = &members[index];
            let link = if method.long { &member.streams } else { &member.calls };
            let mut sender = match link.sender(asked).await {
                Ok(sender) => sender,
                Err(error) => {
                    failures.push(error);
                    unreachable = Some(index);
                    continue;
                }
            };
            *request.uri_mut() = upstream_uri(&member.endpoint, path.clone());
            match sender.try_send_request(request).await {
                Ok(response) => {
                    if index != first {
                        // Lost races only mean that another call chose another member that works.
                        self.shared.current.store(index, Ordering::Relaxed);
                    }
                    let drain = method.endless.then(|| self.shared.drain.clone());
                    let (head, body) = response.into_parts();
                    let body = Body::new(ResponseBody::new(&head.headers, body, call, drain));
                    return Response::from_parts(head, body);
                }
                Err(mut error) => match error.take_message() {
                    // Not sent: the connection closed before.
                    Some(unsent) => {
                        request = unsent;
                        failures.push(link.broken(error.error()));
                        link.forget();
                    }
                    None => {
                        let status = status::broken(&member.endpoint, error.error());
                        call.finish(status.code());
                        return status.into_http();
                    }
                },
            }
        }
        let status = status::unreachable(&failures);
        call.finish(status.code());
        status.into_http()
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

/// What a call's path says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Method {
    service: names::Service,
    /// Whether its answer may be long or slow, and so goes over the connection for streams.
    long: bool,
    /// Whether it ends only when one side goes away.
    endless: bool,
}

impl Method {
    fn of(path: &str) -> Self {
        let service = match path.strip_prefix('/').and_then(|path| path.split('/').next()) {
            Some("etcdserverpb.KV") => names::Service::Kv,
            Some("etcdserverpb.Watch") => names::Service::Watch,
            Some("etcdserverpb.Lease") => names::Service::Lease,
            Some("etcdserverpb.Cluster") => names::Service::Cluster,
            Some("etcdserverpb.Maintenance") => names::Service::Maintenance,
            Some("etcdserverpb.Auth") => names::Service::Auth,
            Some("v3lockpb.Lock") => names::Service::Lock,
            Some("v3electionpb.Election") => names::Service::Election,
            _ => names::Service::Other,
        };
        let endless = matches!(
            path,
            "/etcdserverpb.Watch/Watch" | "/etcdserverpb.Lease/LeaseKeepAlive" | "/v3electionpb.Election/Observe"
        );
        let long = endless
            || matches!(path, "/etcdserverpb.Maintenance/Snapshot" | "/etcdserverpb.KV/RangeStream")
            || service == names::Service::Other;
        Self { service, long, endless }
    }
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

fn upstream_uri(endpoint: &Endpoint, path: PathAndQuery) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(endpoint.authority().clone());
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).expect("scheme, authority and path make a URI")
}

/// Counts a running call; dropped, it is over.
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

fn count(service: names::Service, outcome: names::Outcome) {
    counter!(
        names::FORWARDED,
        names::Service::LABEL => service.as_str(),
        names::Outcome::LABEL => outcome.as_str()
    )
    .increment(1);
}

#[cfg(test)]
mod tests;
