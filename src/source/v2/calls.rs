//! The calls that feeds do not answer, over a cluster with v2 data: a `Range` of a directory or a key is read directly,
//! and everything else is refused with the reason.
//!
//! etcd 3.0 to 3.5 with v2 data speaks v3 too, but for another store, which is empty: nothing is ever sent there.
//! Always holds: a refusal is `Unimplemented`, since a client that gets `Unavailable` retries forever. An answer counts
//! for its client until that client has read it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, FutureExt as _, Ready, ready};
use hashbrown::HashMap;
use http::{Request, Response};
use http_body::Frame;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tonic::{Status, async_trait, body::Body, service::Routes};
use tower::Service;

use super::{MANY, NO_PLACE, V2Upstream, aside};
use crate::{
    hub::{
        room::{Full, Place, Room},
        upstream::{Upstream as _, UpstreamError},
    },
    pb::etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
        RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
        kv_server::{Kv, KvServer},
    },
    ranges::{self, InvalidSort},
    rpc::{Caller, GrpcService},
    types::{ClientKey, KeyRange, KeyValueFields, Revision},
};

/// The only method that is served.
const RANGE: &str = "/etcdserverpb.KV/Range";
/// The largest message that is accepted, as by an etcd member.
const MAX_MESSAGE_BYTES: usize = 2 << 20;
/// How many listings are read for clients at the same time.
const READS: usize = 8;
/// The most reads of one client that are under way or wait for their turn.
pub(super) const CLIENT_READS: usize = 256;
/// Memory for the answers that clients have not read yet.
pub(super) const ROOM: usize = 512 << 20;
/// How much of an answer is passed on at once.
const PIECE: usize = 64 << 10;
/// No store reaches this revision. A client that reads it only wants to know whether it may read.
const NEVER: i64 = i64::MAX;

/// The service, with memory of `room` bytes for answers that clients have not read yet.
pub(super) fn service(upstream: Arc<V2Upstream>, room: usize) -> GrpcService {
    let kv = KvServer::new(Reads::of(upstream, room)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    GrpcService::new(ServedOnly { routes: Routes::new(kv).prepare() })
}

/// Lets only `Range` through.
#[derive(Clone)]
struct ServedOnly {
    routes: Routes,
}

impl Service<Request<Body>> for ServedOnly {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        Either<Ready<Result<Response<Body>, Infallible>>, BoxFuture<'static, Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        <Routes as Service<Request<Body>>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path() == RANGE {
            Either::Right(self.routes.call(request).map(|response| response.map(held)).boxed())
        } else {
            Either::Left(ready(Ok(refusal().into_http())))
        }
    }
}

fn refusal() -> Status {
    Status::unimplemented(
        "etcd-relay: the upstream speaks etcd v2 only: keys can be read and watched through this relay, and written through \
         etcd's /v2/keys",
    )
}

/// An answer that keeps its place until its client has read it.
struct Unread {
    body: Body,
    /// What was taken from the body and not passed on yet.
    rest: Bytes,
    place: Arc<Place>,
}

/// A part of an answer.
struct Counted {
    bytes: Bytes,
    _place: Arc<Place>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Makes the answer keep the place that came with it.
fn held(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<Arc<Place>>() {
        Some(place) => response.map(|body| Body::new(Unread { body, rest: Bytes::new(), place })),
        None => response,
    }
}

impl http_body::Body for Unread {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = Bytes::from_owner(Counted { bytes, _place: self.place.clone() }),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let len = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}

/// Reads outside every feed. Each is a listing, which is held in memory as a whole.
#[derive(Debug)]
struct Reads {
    upstream: Arc<V2Upstream>,
    turns: Semaphore,
    /// Memory for answers.
    room: Room,
    /// For each client, how many of its reads are running or waiting, and its own turns.
    clients: Mutex<HashMap<ClientKey, (usize, Arc<Semaphore>)>>,
}

/// A client's running read.
struct UnderWay<'a> {
    reads: &'a Reads,
    client: ClientKey,
    /// The client's own turns.
    own: Arc<Semaphore>,
    turns: Option<(OwnedSemaphorePermit, SemaphorePermit<'a>)>,
}

impl Reads {
    fn of(upstream: Arc<V2Upstream>, room: usize) -> Self {
        let room = Room::new(room, "etcd-relay: too many answers are not read yet; read them, then try again");
        Self { upstream, turns: Semaphore::new(READS), room, clients: Mutex::default() }
    }

    /// Counts a read of this client, if it may have one more: each may need a connection to a member.
    fn enter(&self, client: ClientKey) -> Result<UnderWay<'_>, Status> {
        let mut clients = self.clients.lock();
        let (count, own) = clients.entry(client).or_insert_with(|| (0, Arc::new(Semaphore::new(READS / 2))));
        if *count == CLIENT_READS {
            return Err(Status::resource_exhausted(format!(
                "etcd-relay: {CLIENT_READS} reads of this client outside the relay's feeds are under way; wait for one to \
                 end, or name what you read with --prefix"
            )));
        }
        *count += 1;
        Ok(UnderWay { reads: self, client, own: own.clone(), turns: None })
    }
}

impl UnderWay<'_> {
    /// Waits for the turn of a listing: first among the client's own, so that a client has no more than half of all
    /// turns.
    async fn turn(&mut self) -> Result<(), Status> {
        let closed = |closed: AcquireError| Status::internal(closed.to_string());
        let own = self.own.clone().acquire_owned().await.map_err(closed)?;
        self.turns = Some((own, self.reads.turns.acquire().await.map_err(closed)?));
        Ok(())
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut clients = self.reads.clients.lock();
        if let Some((count, _)) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

#[async_trait]
impl Kv for Reads {
    async fn range(&self, request: tonic::Request<RangeRequest>) -> Result<tonic::Response<RangeResponse>, Status> {
        let client = Caller::client_of(request.extensions());
        let request = request.into_inner();
        if request.key.is_empty() {
            return Err(Status::invalid_argument("etcdserver: key is not provided"));
        }
        let mut under_way = self.enter(client)?;
        if self.upstream.is_auth_on().await.map_err(|error| unavailable(&error))? {
            // v3 clients have no v2 users. Their permissions are not known, and unknown means no.
            return Err(Status::invalid_argument("etcdserver: user name is empty"));
        }
        if request.revision > 0 {
            let current = match request.revision {
                NEVER => Revision::ZERO,
                _ => self.upstream.confirm(None).await.map_err(|error| unavailable(&error))?.header.revision,
            };
            return Err(Status::out_of_range(if request.revision > current.get() { FUTURE } else { COMPACTED }));
        }
        let empty = RangeResponse::default();
        let Ok(range) = KeyRange::from_wire(request.key.clone(), request.range_end.clone()) else {
            let header = self.upstream.confirm(None).await.map_err(|error| unavailable(&error))?.header;
            return Ok(tonic::Response::new(RangeResponse { header: Some(wire_header(&header)), ..empty }));
        };
        if !V2Upstream::is_place(&range) {
            return Err(Status::unimplemented(format!("etcd-relay: {NO_PLACE}")));
        }
        under_way.turn().await?;
        let page = self.upstream.read(&range).await.map_err(|error| unavailable(&error))?;
        let header = wire_header(&page.header);
        let mut answer = aside(page.kvs.len() >= MANY, move || answer(&request, page.kvs))
            .await
            .map_err(|error| unavailable(&error))??;
        answer.header = Some(header);
        let mut place = self.room.place(client);
        // The buffer into which it is encoded may be twice as large.
        place.grow(2 * answer.encoded_len()).await.map_err(|Full(why)| Status::resource_exhausted(why))?;
        let mut response = tonic::Response::new(answer);
        response.extensions_mut().insert(Arc::new(place));
        Ok(response)
    }

    async fn put(&self, _: tonic::Request<PutRequest>) -> Result<tonic::Response<PutResponse>, Status> {
        Err(refusal())
    }

    async fn delete_range(
        &self,
        _: tonic::Request<DeleteRangeRequest>,
    ) -> Result<tonic::Response<DeleteRangeResponse>, Status> {
        Err(refusal())
    }

    async fn txn(&self, _: tonic::Request<TxnRequest>) -> Result<tonic::Response<TxnResponse>, Status> {
        Err(refusal())
    }

    async fn compact(
        &self,
        _: tonic::Request<CompactionRequest>,
    ) -> Result<tonic::Response<CompactionResponse>, Status> {
        Err(refusal())
    }
}

const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

fn unavailable(error: &UpstreamError) -> Status {
    if let UpstreamError::TooLarge(most) = error {
        return Status::resource_exhausted(format!(
            "etcd-relay: the listing has more than {most} bytes; read a smaller directory, or name this one with --prefix"
        ));
    }
    Status::unavailable(format!("etcd-relay cannot read etcd's v2 store: {error}"))
}

fn wire_header(header: &crate::types::Header) -> ResponseHeader {
    ResponseHeader {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision.get(),
        raft_term: header.raft_term,
    }
}

/// The answer to a request, from the keys of its range.
fn answer(request: &RangeRequest, mut kvs: Vec<KeyValueFields>) -> Result<RangeResponse, Status> {
    kvs.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    ranges::answer(request, kvs.iter()).map_err(|error: InvalidSort| Status::invalid_argument(error.to_string()))
}
