//! An upstream for tests: a plain HTTP/2 server that does what each test says.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;

use super::Endpoint;

pub(super) type UpstreamBody = BoxBody<Bytes, h2::Error>;

/// An upstream, and the task that serves it.
pub(super) struct Server {
    pub(super) endpoint: Endpoint,
    pub(super) task: JoinHandle<()>,
    leave: Arc<Notify>,
}

impl Server {
    pub(super) async fn new<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<UpstreamBody>> + Send + 'static,
    {
        Self::with_streams(None, answer).await
    }

    /// A server that accepts at most this many calls at once on a connection.
    pub(super) async fn with_streams<F, R>(most: Option<u32>, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<UpstreamBody>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = endpoint(listener.local_addr().expect("an address"));
        let leave = Arc::new(Notify::new());
        let leaves = leave.clone();
        let task = tokio::spawn(async move {
            // Connections end with this task, so aborting it is the death of the server.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (answer, leaves) = (answer.clone(), leaves.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let mut builder = http2::Builder::new(TokioExecutor::new());
                    let serving = builder.max_concurrent_streams(most).serve_connection(TokioIo::new(stream), service);
                    let mut serving = pin!(serving);
                    tokio::select! {
                        _ = &mut serving => {}
                        () = leaves.notified() => {
                            serving.as_mut().graceful_shutdown();
                            let _ = serving.await;
                        }
                    }
                });
            }
        });
        Self { endpoint, task, leave }
    }

    /// Asks the clients of all connections to leave: calls that are under way are answered, and no others.
    pub(super) fn leave(&self) {
        self.leave.notify_waiters();
    }
}

pub(super) fn endpoint(addr: SocketAddr) -> Endpoint {
    format!("http://{addr}").parse().expect("an endpoint")
}

/// An endpoint where nobody listens.
pub(super) async fn nowhere() -> Endpoint {
    endpoint(TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address"))
}

pub(super) fn full(bytes: &'static [u8]) -> UpstreamBody {
    Full::new(Bytes::from_static(bytes)).map_err(|never| match never {}).boxed()
}

/// A body of the frames that are sent to it.
pub(super) fn fed() -> (mpsc::Sender<Result<Frame<Bytes>, h2::Error>>, UpstreamBody) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, BoxBody::new(StreamBody::new(ReceiverStream::new(receiver))))
}
