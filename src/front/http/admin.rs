//! The operator's port.
//!
//! | path | answer |
//! |---|---|
//! | GET /metrics | Prometheus text |
//! | GET /live | 200 as long as the process answers |
//! | GET /ready | 200, or 503 with a line for each thing that is not ready |
//! | GET /debug/state | feeds, watches and connections as JSON |
//! | GET /debug/state?watch=1s | the same every second, as server-sent events |
//!
//! Not here: `/v2/…`, `/appname`, `/debug` and `/version` belong to Lainlet's API, which [`HttpPort`] asks first.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Query, State},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use futures_util::{StreamExt as _, TryFutureExt as _, future::BoxFuture};
use http::{Request, StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_stream::wrappers::IntervalStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::ServiceExt as _;

use super::{
    lainlet::{self, Answering, LainletBody, LainletHttp},
    not_found,
};
use crate::front::{
    Inspect,
    body::{PortBody, RequestBody},
    grpc::is_grpc,
    listen::{Connections, Lasting},
};

/// Connections that `/debug/state` lists; an answer of some hundred KiB.
const LISTED_CONNECTIONS: usize = 1_000;
/// Shortest time between states: each walks over all feeds and the listed connections.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// What the operator's port needs to know.
#[derive(Clone)]
pub struct Admin {
    /// The process as a whole.
    pub inspect: Arc<dyn Inspect>,
    /// The connections of all ports.
    pub connections: Arc<Connections>,
    /// Where etcd's API is, for those who come to the wrong port.
    pub grpc_addr: SocketAddr,
    /// When the process began.
    pub started: Instant,
    /// Ends what never ends by itself.
    pub stop: CancellationToken,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("grpc_addr", &self.grpc_addr).finish_non_exhaustive()
    }
}

impl Admin {
    /// The routes, without an answer for paths that are not there.
    pub fn router(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/live", get(async || "live\n"))
            .route("/ready", get(ready))
            .route("/debug/state", get(state))
            .with_state(self)
    }
}

/// Serves a router on a port, before it perhaps Lainlet's API, and tells those who bring gRPC here where to go.
#[derive(Clone, Debug)]
pub struct HttpPort {
    router: Router,
    lainlet: Option<LainletHttp>,
    grpc_addr: SocketAddr,
}

impl HttpPort {
    /// Adds the answer for paths that are not there. `grpc_addr` is where etcd's API is.
    #[must_use]
    pub fn new(router: Router, grpc_addr: SocketAddr) -> Self {
        let router = router.fallback(move |uri: Uri| async move { other(&uri, grpc_addr) });
        Self { router, lainlet: None, grpc_addr }
    }

    /// A port where Lainlet's API is, whose answer it then is that a path is not there.
    #[must_use]
    pub fn with_lainlet(router: Router, lainlet: LainletHttp, grpc_addr: SocketAddr) -> Self {
        let router = router.fallback(async || (StatusCode::NOT_FOUND, lainlet::NO_SUCH_PATH));
        Self { router, lainlet: Some(lainlet), grpc_addr }
    }

    fn wrong_port(&self) -> Response<PortBody<LainletBody>> {
        let status = Status::unimplemented(format!(
            "this is etcd-relay's HTTP port; etcd's v3 API over gRPC is at {}",
            self.grpc_addr
        ));
        status.into_http::<tonic::body::Body>().map(PortBody::Plain)
    }
}

impl hyper::service::Service<Request<RequestBody>> for HttpPort {
    type Response = Response<PortBody<LainletBody>>;
    type Error = Infallible;
    type Future = HttpAnswer;

    fn call(&self, request: Request<RequestBody>) -> HttpAnswer {
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

/// What a port answers, boxed only where it must be waited for.
#[expect(clippy::large_enum_variant, reason = "a box for the small variant's sake is what is to be spared")]
pub enum HttpAnswer {
    /// An answer of Lainlet's API.
    Lainlet(Answering),
    /// Any other.
    Other(BoxFuture<'static, Result<Response<PortBody<LainletBody>>, Infallible>>),
}

impl fmt::Debug for HttpAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpAnswer")
    }
}

impl Future for HttpAnswer {
    type Output = Result<Response<PortBody<LainletBody>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Lainlet(answering) => Pin::new(answering).poll(cx).map(|response| Ok(response.map(PortBody::Local))),
            Self::Other(answer) => answer.as_mut().poll(cx),
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    super::metrics(&*admin.inspect)
}

async fn ready(State(admin): State<Admin>) -> Response {
    let reasons = admin.inspect.not_ready();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready:\n{}\n", reasons.join("\n"))).into_response()
}

/// What of the state is asked for.
#[derive(Debug, Deserialize)]
struct StateQuery {
    /// Time between answers; one answer without it.
    watch: Option<String>,
}

async fn state(State(admin): State<Admin>, Query(query): Query<StateQuery>) -> Response {
    let Some(every) = query.watch else { return Json(describe(&admin)).into_response() };
    let every = match humantime::parse_duration(&every) {
        Ok(every) if every >= LEAST_INTERVAL => every,
        _ => {
            let text = format!("watch={every} is no time from {LEAST_INTERVAL:?} on, such as 1s\n");
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    };
    let stop = admin.stop.clone().cancelled_owned();
    let states = IntervalStream::new(tokio::time::interval(every))
        .map(move |_| Event::default().event("state").json_data(describe(&admin)))
        .take_until(stop);
    let mut response = Sse::new(states).into_response();
    response.extensions_mut().insert(Lasting);
    response
}

fn describe(admin: &Admin) -> Map<String, Value> {
    let mut state = Map::new();
    state.insert(
        "relay".to_owned(),
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": admin.started.elapsed().as_secs(),
            "not_ready": admin.inspect.not_ready(),
            "upstream": admin.inspect.version().as_deref(),
        }),
    );
    state.extend(admin.inspect.state());
    state.insert("connections_open".to_owned(), admin.connections.len().into());
    let connections = admin.connections.describe(LISTED_CONNECTIONS, |id| admin.inspect.connection(id));
    state.insert("connections".to_owned(), connections.into());
    state
}

fn other(uri: &Uri, grpc_addr: SocketAddr) -> Response {
    not_found(format!(
        "No {} here. This is etcd-relay's HTTP port: /metrics, /live, /ready, /debug/state. \
         etcd's v3 API over gRPC is at {grpc_addr}.\n",
        uri.path()
    ))
}
