//! The cluster for forwarded calls: `KV` over gRPC with etcd's permission check.
//!
//! The relay's permission questions come here too, because they carry the client's token. All other methods are
//! Unimplemented. Always holds: permission is checked first, as in etcd.

use std::{convert::Infallible, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use etcd_relay::{
    hub::upstream::UpstreamError,
    pb::etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
        RangeRequest, RangeResponse, ResponseHeader, range_request::SortOrder,
    },
    rpc::GrpcService,
    types::{Header, KeyRange},
};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message;
use tonic::{Status, body::Body};
use tower::service_fn;

use super::{Changes, Cluster, message};

impl Cluster {
    /// The service for forwarded calls.
    pub(crate) fn service(self: &Arc<Self>) -> GrpcService {
        let cluster = self.clone();
        GrpcService::new(service_fn(move |request: Request<Body>| {
            let cluster = cluster.clone();
            async move { Ok::<_, Infallible>(cluster.call(request).await.unwrap_or_else(Status::into_http)) }
        }))
    }

    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let token = request.headers().get("token").or_else(|| request.headers().get("authorization"));
        let token = token.and_then(|token| token.to_str().ok()).map(str::to_owned);
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await?.to_bytes();
        self.log(format!("  call {path} {token:?} {body:?}"));
        let message = body.get(5..).unwrap_or_default();
        let token = token.as_deref();
        let answer = match path.as_str() {
            "/etcdserverpb.KV/Range" => reply(&self.range(token, decode(message)?).await?),
            "/etcdserverpb.KV/Put" => reply(&self.put(token, decode(message)?).await?),
            "/etcdserverpb.KV/DeleteRange" => reply(&self.delete(token, decode(message)?).await?),
            "/etcdserverpb.KV/Compact" => reply(&self.compact_at(decode(message)?).await?),
            _ => return Err(Status::unimplemented(path)),
        };
        self.travel().await;
        Ok(answer)
    }

    /// Waits for the call's arrival and checks the client's permission.
    async fn admit(&self, token: Option<&str>, range: &KeyRange, needs_leader: bool) -> Result<(), Status> {
        self.arrive(needs_leader).await.map_err(|error| match error {
            UpstreamError::NoLeader => Status::unavailable("etcdserver: no leader"),
            error => Status::unavailable(error.to_string()),
        })?;
        self.wait_until(|faults| !faults.deaf).await;
        let rights = self.rights();
        if !rights.on {
            return Ok(());
        }
        let Some(token) = token else { return Err(Status::invalid_argument("etcdserver: user name is empty")) };
        if !rights.granted.contains_key(token) {
            return Err(Status::unauthenticated("etcdserver: invalid auth token"));
        }
        if rights.permit(Some(token), range) {
            Ok(())
        } else {
            Err(Status::permission_denied("etcdserver: permission denied"))
        }
    }

    async fn range(&self, token: Option<&str>, request: RangeRequest) -> Result<RangeResponse, Status> {
        let range = key_range(&request.key, &request.range_end)?;
        self.admit(token, &range, !request.serializable).await?;
        let inner = self.inner.lock();
        let epoch = inner.epoch();
        let at = if request.revision > 0 { request.revision } else { epoch.revision() };
        if at > epoch.revision() {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision is a future revision"));
        }
        let state = epoch.state(at).filter(|_| at >= epoch.compact_revision);
        let Some(state) = state else {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted"));
        };
        let mut kvs: Vec<_> = state.values().filter(|kv| range.contains(&kv.key)).map(message).collect();
        let count = kvs.len();
        if request.sort_order == SortOrder::Descend as i32 {
            kvs.reverse();
        }
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let more = limit > 0 && count > limit;
        if more {
            kvs.truncate(limit);
        }
        if request.count_only {
            kvs.clear();
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeResponse { header: Some(header(epoch.header())), kvs, more, count: count as i64 })
    }

    async fn put(&self, token: Option<&str>, request: PutRequest) -> Result<PutResponse, Status> {
        self.admit(token, &key_range(&request.key, &Bytes::new())?, true).await?;
        self.write(&Changes::from([(request.key, Some(request.value))]));
        Ok(PutResponse { header: Some(self.own_header()), ..PutResponse::default() })
    }

    async fn delete(&self, token: Option<&str>, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        self.admit(token, &key_range(&request.key, &request.range_end)?, true).await?;
        self.write(&Changes::from([(request.key, None)]));
        Ok(DeleteRangeResponse { header: Some(self.own_header()), ..DeleteRangeResponse::default() })
    }

    async fn compact_at(&self, request: CompactionRequest) -> Result<CompactionResponse, Status> {
        self.arrive(true).await.map_err(|error| Status::unavailable(error.to_string()))?;
        self.change(|inner| inner.compact(request.revision));
        Ok(CompactionResponse { header: Some(self.own_header()) })
    }

    fn own_header(&self) -> ResponseHeader {
        header(self.inner.lock().epoch().header())
    }
}

fn key_range(key: &Bytes, end: &Bytes) -> Result<KeyRange, Status> {
    KeyRange::from_wire(key.clone(), end.clone())
        .map_err(|_| Status::invalid_argument("etcdserver: key is not provided"))
}

fn header(header: Header) -> ResponseHeader {
    ResponseHeader {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision.get(),
        raft_term: header.raft_term,
    }
}

fn decode<M: Message + Default>(message: &[u8]) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::internal(error.to_string()))
}

fn reply(message: &impl Message) -> Response<Body> {
    let mut data = BytesMut::new();
    data.put_u8(0);
    data.put_u32(message.encoded_len() as u32);
    data.put_slice(&message.encode_to_vec());
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let frames = [Ok::<_, Status>(Frame::data(data.freeze())), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(Body::new(StreamBody::new(tokio_stream::iter(frames))));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    response
}
