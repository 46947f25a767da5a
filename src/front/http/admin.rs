//! The operator's port.
//!
//! | path | answer |
//! |---|---|
//! | GET /metrics | Prometheus text |
//! | GET /live | 200 as long as the process answers |
//! | GET /ready | 200, or 503 with a line for each thing that is not ready |
//! | GET /debug/state, /debug/state/… | feeds, connections and what they watch, as JSON; see `state` |
//! | GET /, /page/… | a page that shows this state; see `page` |
//!
//! The paths under `/debug/state` show which keys clients watch and where they come from, so they are open only to an
//! [`Audience`](super::audience::Audience). `/metrics` can be limited in the same way. All other paths are open to
//! everyone: the page contains nothing but what it reads from `/debug/state`.
//!
//! Not here: `/v2/…`, `/appname`, `/debug` and `/version`, which belong to Lainlet's API, and `/v1/keys` and
//! `/v1/watch`, which belong to [`KeysHttp`]. [`HttpPort`] tries these first.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use axum::{Router, extract::State, response::Response, routing::get};
use futures_util::{TryFutureExt as _, future::BoxFuture};
use http::{Request, StatusCode, Uri};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::ServiceExt as _;

use super::{
    HttpBody, LIVE,
    audience::Gate,
    keys::{KeysBody, KeysHttp},
    lainlet::{self, Answering, LainletHttp},
    not_found, page, ready, scrape, state,
};
use crate::{
    front::{
        Inspect,
        body::{PortBody, RequestBody},
        grpc::{is_grpc, spell},
        listen::Connections,
        users::Users,
    },
    view,
};

/// The description of the port in answers to requests for unknown paths.
pub const ABOUT: &str = "This is etcd-relay's HTTP port: / (a page to look at), /metrics, /live, /ready, /debug/state, /v1/keys, /v1/watch.";

/// Everything that the operator's port shows.
#[derive(Clone)]
pub struct Admin {
    /// The process as a whole.
    pub inspect: Arc<dyn Inspect>,
    /// The connections of all ports.
    pub connections: Arc<Connections>,
    /// The users of the tokens that clients send.
    pub users: Users,
    /// Lainlet's views, if they are on.
    pub views: Option<view::Lainlet>,
    /// The address of etcd's API, for clients that use the wrong port.
    pub grpc_addr: SocketAddr,
    /// Who may read `/debug/state`.
    pub debug: Gate,
    /// Who may read `/metrics`.
    pub metrics: Gate,
    /// When the process started.
    pub started: Instant,
    /// Ends streams that do not end by themselves.
    pub stop: CancellationToken,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("grpc_addr", &self.grpc_addr).finish_non_exhaustive()
    }
}

impl Admin {
    /// The routes, without the answer for unknown paths.
    pub fn router(self) -> Router {
        let metrics = Router::new().route("/metrics", get(async |State(admin): State<Self>| scrape(&*admin.inspect)));
        Router::new()
            .route("/live", get(async || LIVE))
            .route("/ready", get(async |State(admin): State<Self>| ready(&*admin.inspect)))
            .merge(page::router())
            .merge(self.debug.clone().before(state::router()))
            .merge(self.metrics.clone().before(metrics))
            .with_state(self)
    }
}

/// Serves a router on a port, possibly after Lainlet's API and the keys, and tells gRPC clients which port to use.
#[derive(Clone, Debug)]
pub struct HttpPort {
    router: Router,
    lainlet: Option<LainletHttp>,
    keys: Option<KeysHttp>,
    grpc_addr: SocketAddr,
}

impl HttpPort {
    /// Adds the answer for unknown paths, in which `about` describes the port. `grpc_addr` is the address of etcd's
    /// API.
    #[must_use]
    pub fn new(router: Router, about: &'static str, grpc_addr: SocketAddr) -> Self {
        let router = router.fallback(move |uri: Uri| async move { other(&uri, about, grpc_addr) });
        Self { router, lainlet: None, keys: None, grpc_addr }
    }

    /// A port with Lainlet's API and the keys. Lainlet's API then answers requests for unknown paths.
    #[must_use]
    pub fn with_keys(router: Router, lainlet: LainletHttp, keys: KeysHttp, grpc_addr: SocketAddr) -> Self {
        let router = router.fallback(async || (StatusCode::NOT_FOUND, lainlet::NO_SUCH_PATH));
        Self { router, lainlet: Some(lainlet), keys: Some(keys), grpc_addr }
    }

    fn wrong_port(&self) -> Response<PortBody<HttpBody>> {
        let status = Status::unimplemented(format!(
            "this is etcd-relay's HTTP port; etcd's v3 API over gRPC is at {}",
            self.grpc_addr
        ));
        let mut response = status.clone().into_http::<tonic::body::Body>().map(PortBody::Plain);
        // A client that came here by mistake may not read it as gRPC.
        spell(response.headers_mut(), status.message());
        response
    }
}

impl hyper::service::Service<Request<RequestBody>> for HttpPort {
    type Response = Response<PortBody<HttpBody>>;
    type Error = Infallible;
    type Future = HttpAnswer;

    fn call(&self, request: Request<RequestBody>) -> HttpAnswer {
        if let Some(keys) = &self.keys
            && let Some(path) = KeysHttp::route(request.uri().path())
        {
            return HttpAnswer::Keys(keys.call(path, request));
        }
        if let Some(lainlet) = &self.lainlet
            && let Some(route) = lainlet.route(request.uri().path())
        {
            return HttpAnswer::Lainlet(lainlet.call(route, request));
        }
        if is_grpc(request.headers()) {
            let refused = self.wrong_port();
            return HttpAnswer::Other(Box::pin(async move { Ok(refused) }));
        }
        let answer = self.router.clone().oneshot(request);
        HttpAnswer::Other(Box::pin(
            answer.map_ok(|response| response.map(|body| PortBody::Plain(tonic::body::Body::new(body)))),
        ))
    }
}

/// The answer of a port, boxed only if it must be awaited.
#[expect(clippy::large_enum_variant, reason = "boxing the large variant would cost an allocation per answer")]
pub enum HttpAnswer {
    /// An answer of Lainlet's API.
    Lainlet(Answering),
    /// The keys.
    Keys(BoxFuture<'static, Response<KeysBody>>),
    /// Any other answer.
    Other(BoxFuture<'static, Result<Response<PortBody<HttpBody>>, Infallible>>),
}

impl fmt::Debug for HttpAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpAnswer")
    }
}

impl Future for HttpAnswer {
    type Output = Result<Response<PortBody<HttpBody>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Lainlet(answering) => {
                let local = |body| PortBody::Local(HttpBody::Lainlet(body));
                Pin::new(answering).poll(cx).map(|response| Ok(response.map(local)))
            }
            Self::Keys(answer) => {
                let local = |body| PortBody::Local(HttpBody::Keys(body));
                answer.as_mut().poll(cx).map(|response| Ok(response.map(local)))
            }
            Self::Other(answer) => answer.as_mut().poll(cx),
        }
    }
}

fn other(uri: &Uri, about: &str, grpc_addr: SocketAddr) -> Response {
    not_found(format!("No {} here. {about} etcd's v3 API over gRPC is at {grpc_addr}.\n", uri.path()))
}
