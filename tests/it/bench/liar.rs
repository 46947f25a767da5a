//! [`Liar`]: a server that passes watches and reads on to another server and falsifies one answer.
//!
//! It supports only `Watch` and `Range`; loads write elsewhere. Always holds: it falsifies only the tenth response with
//! events, or lists, or watches that begin at a revision.

use etcd_relay::pb::{
    etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
        RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchRequest, WatchResponse,
        kv_client::KvClient,
        kv_server::{Kv, KvServer},
        watch_client::WatchClient,
        watch_request::RequestUnion,
        watch_server::{Watch, WatchServer},
    },
    mvccpb::Event,
};
use futures_util::{StreamExt as _, stream};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// The response that is falsified.
pub const LIED_ABOUT: usize = 10;

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    None,
    /// It leaves a response out.
    Forget,
    /// It sends one twice.
    Repeat,
    /// It sends one after the next.
    Swap,
    /// It changes a value.
    Alter,
    /// It cancels the watch.
    Cancel,
    /// It ends the stream.
    End,
    /// It leaves a key out of a list.
    LeaveOut,
    /// It starts a watch one revision too late.
    Late,
    /// It gives an event the id of another revision. Only of server-sent events.
    WrongId,
    /// It leaves an id out. Only of server-sent events.
    NoId,
}

/// A running one.
#[derive(Debug)]
pub struct Liar {
    endpoint: String,
    task: JoinHandle<()>,
}

impl Liar {
    /// A server that passes on the answers of this endpoint.
    pub async fn over(endpoint: &str, lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let teller = Teller { upstream: endpoint.to_owned(), lie };
        let services =
            Server::builder().add_service(WatchServer::new(teller.clone())).add_service(KvServer::new(teller));
        let serving = services.serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { serving.await.expect("it serves") });
        Self { endpoint: format!("http://{addr}"), task }
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Teller {
    upstream: String,
    lie: Lie,
}

type Responses = stream::BoxStream<'static, Result<WatchResponse, Status>>;

#[tonic::async_trait]
impl Watch for Teller {
    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Responses>, Status> {
        let connected = WatchClient::connect(self.upstream.clone()).await;
        let mut upstream = connected.map_err(|error| Status::unavailable(error.to_string()))?;
        let lie = self.lie;
        let requests = tokio_stream::StreamExt::filter_map(request.into_inner(), Result::ok).map(move |mut request| {
            if let (Lie::Late, Some(RequestUnion::CreateRequest(create))) = (lie, &mut request.request_union) {
                create.start_revision += i64::from(create.start_revision > 0);
            }
            request
        });
        let responses = upstream.watch(requests).await?.into_inner();
        let mut seen = 0;
        let mut held: Option<WatchResponse> = None;
        let told = responses.flat_map(move |response| {
            let mut told = Vec::new();
            match response {
                Ok(mut response) if !response.events.is_empty() => {
                    seen += 1;
                    if seen != LIED_ABOUT {
                        told.push(Ok(response));
                        told.extend(held.take().map(Ok));
                        return stream::iter(told);
                    }
                    match lie {
                        Lie::None | Lie::LeaveOut | Lie::Late | Lie::WrongId | Lie::NoId => {}
                        Lie::Forget => return stream::iter(told),
                        Lie::Repeat => told.push(Ok(response.clone())),
                        Lie::Swap => {
                            held = Some(response);
                            return stream::iter(told);
                        }
                        Lie::Alter => response.events.iter_mut().for_each(alter),
                        Lie::Cancel => {
                            response.events.clear();
                            response.canceled = true;
                        }
                        Lie::End => {
                            told.push(Err(Status::unavailable("no more")));
                            return stream::iter(told);
                        }
                    }
                    told.push(Ok(response));
                }
                other => told.push(other),
            }
            stream::iter(told)
        });
        Ok(Response::new(told.boxed()))
    }
}

#[tonic::async_trait]
impl Kv for Teller {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let connected = KvClient::connect(self.upstream.clone()).await;
        let mut upstream = connected.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut response = upstream.range(request.into_inner()).await?.into_inner();
        if self.lie == Lie::LeaveOut {
            response.kvs.remove(response.kvs.len() / 2);
            response.count -= 1;
        }
        Ok(Response::new(response))
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Err(Status::unimplemented("loads write elsewhere"))
    }

    async fn delete_range(&self, _: Request<DeleteRangeRequest>) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("loads write elsewhere"))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Err(Status::unimplemented("loads write elsewhere"))
    }

    async fn compact(&self, _: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Err(Status::unimplemented("loads write elsewhere"))
    }
}

/// Changes the last byte of the value.
fn alter(event: &mut Event) {
    if let Some(kv) = &mut event.kv {
        let mut value = kv.value.to_vec();
        *value.last_mut().expect("values are not empty") ^= 1;
        kv.value = value.into();
    }
}
