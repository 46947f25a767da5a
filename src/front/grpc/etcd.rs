//! [`EtcdApi`]: the calls of etcd's API that the relay answers from memory: `Watch.Watch`, `KV.Range`,
//! `KV.RangeStream`, and `Cluster.MemberList` if the relay names itself.
//!
//! The answers are made in `front::session`, `watch_body` and `range`. The port forwards all other calls, some of them
//! after a check (`guard`).

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound::{Excluded, Unbounded},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::TryStreamExt as _;
use http::{Request, Response, request::Parts};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use metrics::{Counter, counter};
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming, body::Body, codec::BufferSettings};
use tonic_prost::ProstCodec;

use super::{
    Local,
    guard::{self, RANGE},
    members::Members,
    pieces::{MAX_REQUEST, Pieces},
    range::{self, Answer, Form},
    reply::{Reply, read, refuse, refuse_compressed, respond},
    service::mark_client,
    watch_body::WatchBody,
};
use crate::{
    front::{
        body::{BoxError, RequestBody},
        client::Client,
        gateway::Lines,
        listen::{self, ConnectionId},
        order,
        session::Sessions,
    },
    hub::{StreamEnd, WatchStats, WatchStream, WatchStreamStats},
    pb::etcdserverpb::WatchRequest,
    rpc::GrpcService,
    telemetry::names::{self, Read},
};

/// Buffer of a stream for its requests, in bytes. A request has about fifty.
const REQUEST_BUFFER: usize = 256;

pub(in crate::front) const WATCH: &str = "/etcdserverpb.Watch/Watch";
const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EtcdApi {
    shared: Arc<ServiceInner>,
}

#[derive(Debug)]
struct ServiceInner {
    sessions: Sessions,
    forward: GrpcService,
    streams: Streams,
    tasks: TaskTracker,
    reads: Reads,
    range_streams: Reads,
    members: Option<Members>,
}

/// The counters of reads, looked up once instead of at each read.
struct Reads(Vec<Counter>);

impl Reads {
    fn new(metric: &'static str) -> Self {
        Self(Read::ALL.iter().map(|how| counter!(metric, Read::LABEL => how.as_str())).collect())
    }

    fn count(&self, how: Read) {
        // In the order of the enum.
        if let Some(counter) = self.0.get(how as usize) {
            counter.increment(1);
        }
    }
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").finish_non_exhaustive()
    }
}

impl EtcdApi {
    /// Answers watches by `sessions` and reads from their hub, and lists `members` if there are any. Everything else
    /// goes to `forward`. `tasks` finish soon after the sessions were stopped.
    #[must_use]
    pub fn new(
        sessions: Sessions,
        forward: GrpcService,
        streams: Streams,
        tasks: TaskTracker,
        members: Option<Members>,
    ) -> Self {
        let (reads, range_streams) = (Reads::new(names::READS), Reads::new(names::RANGE_STREAMS));
        let shared = ServiceInner { sessions, forward, streams, tasks, reads, range_streams, members };
        Self { shared: Arc::new(shared) }
    }

    fn watch(&self, request: Request<RequestBody>) -> Response<EtcdBody> {
        if let Err(status) = refuse_compressed(request.headers(), "watch requests") {
            return refuse(&status).map(EtcdBody::Reply);
        }
        let shared = &*self.shared;
        let requires_leader = request.headers().get("hasleader").is_some_and(|value| value == "true");
        let client = Client::of(request.headers(), request.extensions());
        let connection = client.connection;
        let stop = listen::leave(request.extensions(), &shared.sessions.stop);
        let session = shared.sessions.open(client, requires_leader, stop);
        let listed = connection.map(|connection| shared.streams.list(connection, session.stream()));
        let lines = request.extensions().get::<Lines>().cloned();
        let body = WatchBody::new(session.stream().clone(), lines.clone(), listed);
        let buffer = BufferSettings::new(REQUEST_BUFFER, usize::MAX);
        let decoder = ProstCodec::<WatchRequest, WatchRequest>::raw_decoder(buffer);
        let (mut parts, incoming) = request.into_parts();
        let (arrivals, incoming) = order::note(&mut parts.extensions, incoming);
        let requests = Streaming::new_request(decoder, Body::new(incoming), None, Some(MAX_REQUEST));
        shared.tasks.spawn(session.keeping(arrivals).run(requests.map_err(|status| ended_by(&status))));
        let mut response = respond(EtcdBody::Watch(body));
        if let Some(lines) = lines {
            // Tells the gateway that the body consists of lines.
            response.extensions_mut().insert(lines);
        }
        response
    }

    async fn range(&self, request: Request<RequestBody>, form: Form) -> Response<EtcdBody> {
        let shared = &*self.shared;
        let reads = if form == Form::Whole { &shared.reads } else { &shared.range_streams };
        let (parts, body) = request.into_parts();
        let body = match read(body, MAX_REQUEST).await {
            Ok(body) => body,
            Err(status) => return refuse(&status).map(EtcdBody::Reply),
        };
        match range::answer(&shared.sessions.hub, &shared.sessions.access, &parts, &body, form).await {
            Answer::Local(reply, how) => {
                reads.count(how);
                respond(EtcdBody::Reply(reply))
            }
            Answer::Forward(how) => {
                reads.count(how);
                // Boxed, because otherwise the calls that are answered here would be as large.
                Box::pin(self.forward(parts, body)).await
            }
            Answer::Refuse(status, how) => {
                reads.count(how);
                refuse(&status).map(EtcdBody::Reply)
            }
        }
    }

    /// Forwards the call if it is harmless to etcd.
    async fn guarded(&self, request: Request<RequestBody>) -> Response<EtcdBody> {
        let (parts, body) = request.into_parts();
        let checked = read(body, guard::MAX_REQUEST).await.and_then(|body| {
            guard::check(parts.uri.path(), &parts.headers, &body)?;
            Ok(body)
        });
        match checked {
            Ok(body) => {
                if order::writes(parts.uri.path()) && guard::may_write(&body) {
                    order::hold_whole(&parts.extensions).await;
                }
                self.forward(parts, body).await
            }
            Err(status) => refuse(&status).map(EtcdBody::Reply),
        }
    }

    async fn forward(&self, mut parts: Parts, body: Bytes) -> Response<EtcdBody> {
        mark_client(&mut parts.extensions);
        let request = Request::from_parts(parts, Body::new(Full::new(body)));
        let Ok(response) = self.shared.forward.answer(request).await;
        response.map(EtcdBody::Forwarded)
    }
}

/// The client's side of the stream failed. A request that is too large or invalid gets etcd's codes. If the connection
/// broke, nobody receives the answer.
fn ended_by(status: &Status) -> StreamEnd {
    let text = format!("etcd-relay: the watch request cannot be read: {}", status.message());
    // tonic's code for a message over its limit.
    if status.code() == tonic::Code::OutOfRange { StreamEnd::TooLarge(text) } else { StreamEnd::Malformed(text) }
}

impl Local for EtcdApi {
    type Body = EtcdBody;

    fn answers(&self, path: &str) -> bool {
        path == RANGE
            || path == WATCH
            || path == RANGE_STREAM
            || guard::answers_for(path)
            || self.shared.members.is_some() && path == MEMBER_LIST
    }

    async fn call(&self, request: Request<RequestBody>) -> Response<EtcdBody> {
        match request.uri().path() {
            WATCH => self.watch(request),
            RANGE => self.range(request, Form::Whole).await,
            RANGE_STREAM => Box::pin(self.range(request, Form::Stream)).await,
            // The content of the request only matters to etcd's members.
            MEMBER_LIST if let Some(members) = &self.shared.members => {
                respond(EtcdBody::Reply(Reply::ok(members.list())))
            }
            // Boxed, because otherwise the calls that are answered here would be as large.
            _ => Box::pin(self.guarded(request)).await,
        }
    }
}

/// The bodies of the calls that the relay answers.
#[derive(Debug)]
pub enum EtcdBody {
    /// A watch stream.
    Watch(WatchBody),
    /// One message, or an error.
    Reply(Reply),
    /// The answer from upstream.
    Forwarded(Body),
}

impl http_body::Body for EtcdBody {
    type Data = Pieces;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, BoxError>>> {
        match self.get_mut() {
            Self::Watch(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Reply(reply) => Pin::new(reply).poll_frame(cx).map_err(|never| match never {}),
            Self::Forwarded(body) => {
                Pin::new(body).poll_frame(cx).map_ok(|frame| frame.map_data(Pieces::from)).map_err(Into::into)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Watch(body) => body.is_end_stream(),
            Self::Reply(reply) => reply.is_end_stream(),
            Self::Forwarded(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Watch(body) => body.size_hint(),
            Self::Reply(reply) => reply.size_hint(),
            Self::Forwarded(body) => body.size_hint(),
        }
    }
}

/// The open watch streams of each connection. A connection may have a hundred thousand that all end with it, so each is
/// found by its number.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    last: Arc<AtomicU64>,
    open: Arc<DashMap<ConnectionId, BTreeMap<u64, Arc<WatchStream>>>>,
}

/// Keeps a stream in the list while it exists.
#[derive(Debug)]
pub(in crate::front) struct Listed {
    streams: Streams,
    connection: ConnectionId,
    number: u64,
}

impl Streams {
    /// Adds a stream of a connection to the list.
    pub(in crate::front) fn list(&self, connection: ConnectionId, stream: &Arc<WatchStream>) -> Listed {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.entry(connection).or_default().insert(number, stream.clone());
        Listed { streams: self.clone(), connection, number }
    }

    /// How many watch streams a connection has.
    #[must_use]
    pub fn of(&self, connection: ConnectionId) -> usize {
        self.open.get(&connection).map_or(0, |open| open.len())
    }

    /// For `/debug/state`: the first `most` watch streams of a connection with a number above `after`, with their
    /// watches and how far they are behind.
    #[must_use]
    pub fn after(&self, connection: ConnectionId, after: u64, most: usize) -> Vec<(u64, WatchStreamStats)> {
        let page: Vec<(u64, Arc<WatchStream>)> = match self.open.get(&connection) {
            Some(open) => {
                let rest = open.range((Excluded(after), Unbounded));
                rest.take(most).map(|(number, stream)| (*number, stream.clone())).collect()
            }
            None => Vec::new(),
        };
        page.into_iter().map(|(number, stream)| (number, stream.stats())).collect()
    }
}

impl Streams {
    /// The same for the watches of one stream; `None` if the connection has no such stream.
    #[must_use]
    pub fn watches_after(
        &self,
        connection: ConnectionId,
        stream: u64,
        after: u64,
        most: usize,
    ) -> Option<Vec<WatchStats>> {
        let stream = self.open.get(&connection)?.get(&stream)?.clone();
        Some(stream.watches_after(after, most))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let Some(mut open) = self.streams.open.get_mut(&self.connection) else { return };
        let stream = open.remove(&self.number);
        let empty = open.is_empty();
        drop(open);
        // The stream's resources are freed outside the list's lock.
        drop(stream);
        if empty {
            self.streams.open.remove_if(&self.connection, |_, open| open.is_empty());
        }
    }
}
