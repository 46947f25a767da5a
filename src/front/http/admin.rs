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
//! Not here: `/v2/…`, `/appname`, `/debug` and `/version` belong to Lainlet's API, which is merged into this router.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use futures_util::StreamExt as _;
use http::{Request, StatusCode, Uri};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_stream::wrappers::IntervalStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::ServiceExt as _;

use super::not_found;
use crate::front::{
    Inspect,
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

/// Serves a router on a port, and tells those who bring gRPC here where to go.
#[derive(Clone, Debug)]
pub struct HttpPort {
    router: Router,
    grpc_addr: SocketAddr,
}

impl HttpPort {
    /// Adds the answer for paths that are not there. `grpc_addr` is where etcd's API is.
    #[must_use]
    pub fn new(router: Router, grpc_addr: SocketAddr) -> Self {
        let router = router.fallback(move |uri: Uri| async move { other(&uri, grpc_addr) });
        Self { router, grpc_addr }
    }
}

impl hyper::service::Service<Request<Incoming>> for HttpPort {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if is_grpc(request.headers()) {
            let status = Status::unimplemented(format!(
                "this is etcd-relay's HTTP port; etcd's v3 API over gRPC is at {}",
                self.grpc_addr
            ));
            return Box::pin(async move { Ok(status.into_http::<tonic::body::Body>().map(Body::new)) });
        }
        let answer = self.router.clone().oneshot(request.map(Body::new));
        Box::pin(answer)
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
