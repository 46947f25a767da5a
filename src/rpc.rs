//! [`GrpcService`]: whatever answers gRPC calls that are addressed by path: etcd behind a connection, the embedded
//! store, or a service of the relay.
//!
//! Fronts call it, and what answers is below them. Always holds: it is ready for a call at any time, and a clone costs
//! a reference. tower's `BoxCloneSyncService` would allocate for each clone and for each call, once for each service
//! that passes calls on to the next. The client that a call is charged to is in `caller`.

mod caller;

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

pub use self::caller::Caller;

/// The answer to a call. Errors are gRPC statuses in the response.
pub type GrpcAnswer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// See the module.
#[derive(Clone)]
pub struct GrpcService(Arc<dyn Fn(Request<Body>) -> GrpcAnswer + Send + Sync>);

impl GrpcService {
    /// Each call is answered by a clone of `service`.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self::passing(move |request| Box::pin(service.clone().oneshot(request)))
    }

    /// Each call is answered as `answer` says. It runs before the future is polled, where a panic would end the whole
    /// connection, so what can fail belongs into the future.
    pub fn passing(answer: impl Fn(Request<Body>) -> GrpcAnswer + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }

    /// Answers a call.
    #[must_use]
    pub fn answer(&self, request: Request<Body>) -> GrpcAnswer {
        self.0(request)
    }
}

impl Service<Request<Body>> for GrpcService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = GrpcAnswer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> GrpcAnswer {
        self.answer(request)
    }
}

impl fmt::Debug for GrpcService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcService").finish_non_exhaustive()
    }
}
