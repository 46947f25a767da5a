//! The operator's port.
//!
//! | path | answer |
//! |---|---|
//! | GET /metrics | Prometheus text |
//! | GET /live | 200 as long as the process answers |
//! | GET /ready | 200, or 503 with a line for each thing that is not ready |
//! | GET /debug/state | the process, its first feeds and connections, as JSON |
//! | GET /debug/state?watch=1s | the same every second, as server-sent events |
//! | GET /debug/state/feeds, /debug/state/connections | a page of these, in the order in which they were opened |
//! | GET /debug/state/connections/ID/streams | a page of the watch streams of a connection |
//!
//! Pages take `limit` and `after`; where more follows, an answer has the path of the next one. What is below `/debug/state` tells which keys others
//! watch and where from, so it is for an [`Audience`](super::audience::Audience); `/metrics` may be, `/live` and `/ready` are for everyone.
//! Always holds: an answer has a bounded length, and no lock is held for longer than a few rows of it, whatever clients do.
//!
//! Not here: `/v2/…`, `/appname`, `/debug` and `/version` belong to Lainlet's API, `/v1/keys` and `/v1/watch` to [`KeysHttp`]. [`HttpPort`] asks these first.

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
    Extension, Json, Router,
    extract::{Path, Query, State},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use futures_util::{StreamExt as _, TryFutureExt as _, future::BoxFuture};
use http::{Request, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio_stream::wrappers::IntervalStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::ServiceExt as _;

use super::{
    HttpBody, LIVE,
    audience::Gate,
    keys::{KeysBody, KeysHttp},
    lainlet::{self, Answering, LainletHttp},
    not_found,
    pages::{Asked, Page},
    ready, scrape,
};
use crate::{
    front::{
        Inspect,
        body::{PortBody, RequestBody},
        grpc::is_grpc,
        listen::{ConnectionId, Connections, Lasting},
    },
    hub::WatchStreamStats,
};

/// Watch streams that are shown with their connection; the others have a page of their own. Most clients have one to three.
const SHOWN_STREAMS: usize = 8;
/// Reasons for not being ready that `/debug/state` shows; `/ready` has all of them.
const SHOWN_REASONS: usize = 100;
/// Shortest time between states: each walks over the first feeds and connections.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

const FEEDS: &str = "/debug/state/feeds";
const CONNECTIONS: &str = "/debug/state/connections";

/// What the port is, for those who ask it for anything else.
pub const ABOUT: &str = "This is etcd-relay's HTTP port: /metrics, /live, /ready, /debug/state, /v1/keys, /v1/watch.";

/// What the operator's port needs to know.
#[derive(Clone)]
pub struct Admin {
    /// The process as a whole.
    pub inspect: Arc<dyn Inspect>,
    /// The connections of all ports.
    pub connections: Arc<Connections>,
    /// Where etcd's API is, for those who come to the wrong port.
    pub grpc_addr: SocketAddr,
    /// Who may read `/debug/state`.
    pub debug: Gate,
    /// Who may read `/metrics`.
    pub metrics: Gate,
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
        let debug = Router::new()
            .route("/debug/state", get(state))
            .route(FEEDS, get(feeds))
            .route(CONNECTIONS, get(connections))
            .route(&format!("{CONNECTIONS}/{{id}}/streams"), get(streams));
        let metrics = Router::new().route("/metrics", get(async |State(admin): State<Self>| scrape(&*admin.inspect)));
        Router::new()
            .route("/live", get(async || LIVE))
            .route("/ready", get(async |State(admin): State<Self>| ready(&*admin.inspect)))
            .merge(self.debug.clone().before(debug))
            .merge(self.metrics.clone().before(metrics))
            .with_state(self)
    }
}

/// Serves a router on a port, before it perhaps Lainlet's API and the keys, and tells those who bring gRPC here where to go.
#[derive(Clone, Debug)]
pub struct HttpPort {
    router: Router,
    lainlet: Option<LainletHttp>,
    keys: Option<KeysHttp>,
    grpc_addr: SocketAddr,
}

impl HttpPort {
    /// Adds the answer for paths that are not there: `about` says what is. `grpc_addr` is where etcd's API is.
    #[must_use]
    pub fn new(router: Router, about: &'static str, grpc_addr: SocketAddr) -> Self {
        let router = router.fallback(move |uri: Uri| async move { other(&uri, about, grpc_addr) });
        Self { router, lainlet: None, keys: None, grpc_addr }
    }

    /// A port where Lainlet's API and the keys are. It is the former's answer then that a path is not there.
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
        status.into_http::<tonic::body::Body>().map(PortBody::Plain)
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

/// What a port answers, boxed only where it must be waited for.
#[expect(clippy::large_enum_variant, reason = "a box for the small variant's sake is what is to be spared")]
pub enum HttpAnswer {
    /// An answer of Lainlet's API.
    Lainlet(Answering),
    /// Keys.
    Keys(BoxFuture<'static, Response<KeysBody>>),
    /// Any other.
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

/// What of the state is asked for.
#[derive(Debug, Deserialize)]
struct StateQuery {
    /// Time between answers; one answer without it.
    watch: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
}

async fn state(
    State(admin): State<Admin>,
    leave: Option<Extension<CancellationToken>>,
    Query(query): Query<StateQuery>,
) -> Response {
    if query.after.is_some() || query.limit.is_some() {
        let text = format!("/debug/state begins each list; {FEEDS} and {CONNECTIONS} take after= and limit=\n");
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    let Some(every) = query.watch else { return Json(describe(&admin).await).into_response() };
    let every = match humantime::parse_duration(&every) {
        Ok(every) if every >= LEAST_INTERVAL => every,
        _ => {
            let text = format!("watch={every} is not a time of at least {LEAST_INTERVAL:?}, such as 1s\n");
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    };
    let stop = admin.stop.clone();
    let leave = leave.map_or_else(CancellationToken::new, |Extension(leave)| leave);
    let stop = async move {
        // Cancel safe, both.
        tokio::select! {
            () = stop.cancelled() => {}
            () = leave.cancelled() => {}
        }
    };
    let states = IntervalStream::new(tokio::time::interval(every))
        .then(move |_| {
            let admin = admin.clone();
            async move { Event::default().event("state").json_data(describe(&admin).await) }
        })
        .take_until(stop);
    let mut response = Sse::new(states).into_response();
    response.extensions_mut().insert(Lasting);
    response
}

async fn describe(admin: &Admin) -> Map<String, Value> {
    let mut reasons = admin.inspect.not_ready();
    let more = reasons.len().saturating_sub(SHOWN_REASONS);
    if more > 0 {
        reasons.truncate(SHOWN_REASONS);
        reasons.push(format!("and {more} more, see /ready"));
    }
    let mut state = Map::new();
    state.insert(
        "relay".to_owned(),
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": admin.started.elapsed().as_secs(),
            "not_ready": reasons,
            "upstream": admin.inspect.version().as_deref(),
        }),
    );
    state.extend(admin.inspect.state());
    state.insert("feeds_open".to_owned(), admin.inspect.feeds().into());
    state.extend(page_of_feeds(admin, Asked::default()).await.fields("feeds", "feeds_next", FEEDS));
    state.insert("connections_open".to_owned(), admin.connections.len().into());
    let connections = page_of_connections(admin, Asked::default()).await;
    state.extend(connections.fields("connections", "connections_next", CONNECTIONS));
    state
}

async fn feeds(State(admin): State<Admin>, Query(asked): Query<Asked>) -> Response {
    answer(asked, page_of_feeds(&admin, asked), "feeds", FEEDS).await
}

async fn connections(State(admin): State<Admin>, Query(asked): Query<Asked>) -> Response {
    answer(asked, page_of_connections(&admin, asked), "connections", CONNECTIONS).await
}

async fn streams(State(admin): State<Admin>, Path(id): Path<u64>, Query(asked): Query<Asked>) -> Response {
    let id = ConnectionId(id);
    if !admin.connections.contains(id) {
        return not_found(format!("Connection {} is not open; {CONNECTIONS} lists those that are.\n", id.0));
    }
    let rows = |after, most| {
        let streams = admin.inspect.streams_after(id, after, most).into_iter();
        streams.map(|(number, stats)| (number, json!(Stream { number, stats }))).collect()
    };
    answer(asked, asked.read(rows), "streams", &streams_of(id)).await
}

async fn answer(asked: Asked, page: impl Future<Output = Page>, name: &str, path: &str) -> Response {
    if let Err(text) = asked.check() {
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    Json(Map::from_iter(page.await.fields(name, "next", path))).into_response()
}

async fn page_of_feeds(admin: &Admin, asked: Asked) -> Page {
    let rows = |after, most| {
        let feeds = admin.inspect.feeds_after(after, most).into_iter();
        feeds.map(|feed| (feed.number, json!(feed))).collect()
    };
    asked.read(rows).await
}

async fn page_of_connections(admin: &Admin, asked: Asked) -> Page {
    let rows = |after, most| {
        let connections = admin.connections.after(ConnectionId(after), most).into_iter();
        connections
            .map(|(id, mut connection)| {
                connection.extend(with_streams(admin, id));
                (id.0, Value::Object(connection))
            })
            .collect()
    };
    asked.read(rows).await
}

/// What a connection's row has of its watch streams: the first of them, and where all of them are if these are not all.
fn with_streams(admin: &Admin, id: ConnectionId) -> Map<String, Value> {
    let open = admin.inspect.streams(id);
    let shown = admin.inspect.streams_after(id, 0, SHOWN_STREAMS);
    let mut fields = Map::from_iter([("watch_streams_open".to_owned(), open.into())]);
    if open > SHOWN_STREAMS {
        fields.insert("watch_streams_next".to_owned(), streams_of(id).into());
    } else {
        let watches: usize = shown.iter().map(|(_, stream)| stream.watches).sum();
        fields.insert("watches".to_owned(), watches.into());
    }
    let shown = shown.into_iter().map(|(number, stats)| json!(Stream { number, stats })).collect();
    fields.insert("watch_streams".to_owned(), Value::Array(shown));
    fields
}

/// A watch stream's row.
#[derive(Debug, Serialize)]
struct Stream {
    number: u64,
    #[serde(flatten)]
    stats: WatchStreamStats,
}

fn streams_of(id: ConnectionId) -> String {
    format!("{CONNECTIONS}/{}/streams", id.0)
}

fn other(uri: &Uri, about: &str, grpc_addr: SocketAddr) -> Response {
    not_found(format!("No {} here. {about} etcd's v3 API over gRPC is at {grpc_addr}.\n", uri.path()))
}
