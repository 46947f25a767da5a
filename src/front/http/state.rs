//! `/debug/state`: the process, its feeds, its connections and what they watch, as JSON. The format is in
//! `docs/debug-state.schema.json`.
//!
//! | path | answer |
//! |---|---|
//! | GET /debug/state | the process, its first feeds and connections |
//! | GET /debug/state?watch=1s | the same every second, as server-sent events |
//! | GET /debug/state/feeds, /debug/state/connections | a page of the feeds or connections, in the order in which they
//! were opened |
//! | GET /debug/state/connections/ID/streams | a page of the watch streams of a connection |
//! | GET /debug/state/connections/ID/streams/NUMBER/watches | a page of the watches of a stream |
//! | GET /debug/state/views | the paths of Lainlet's views, if they are on |
//!
//! Pages take `limit` and `after`; if more rows follow, an answer contains the path of the next page. For the lists of
//! `/debug/state` itself, these are called `feeds`, `feeds_after`, `connections` and `connections_after`. Connections
//! can be searched (`find`, `behind`). Who may read it is decided in `audience`; the content of rows is in [`rows`].
//! Called by `admin`. Always holds: an answer has a bounded length and reads a bounded number of rows, and no lock is
//! held for more than a few of them. A slow reader gets the newest state when it reads again, and nothing of what it
//! missed.

mod rows;

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    extract::{Path, Query, State},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use futures_util::StreamExt as _;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::IntervalStream;
use tokio_util::sync::CancellationToken;

use self::rows::Sought;
use super::{
    admin::Admin,
    not_found,
    pages::{Asked, Page},
};
use crate::{
    front::listen::{ConnectionId, Lasting},
    telemetry::{delivered::Delivered, process::Usage},
};

/// Most reasons for not being ready that are shown; `/ready` has all of them.
const SHOWN_REASONS: usize = 100;
/// Shortest time between two states, since each one reads feeds and connections.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

const FEEDS: &str = "/debug/state/feeds";
const CONNECTIONS: &str = "/debug/state/connections";

/// The routes.
pub(super) fn router() -> Router<Admin> {
    Router::new()
        .route("/debug/state", get(state))
        .route("/debug/state/views", get(views))
        .route(FEEDS, get(feeds))
        .route(CONNECTIONS, get(connections))
        .route(&format!("{CONNECTIONS}/{{id}}/streams"), get(streams))
        .route(&format!("{CONNECTIONS}/{{id}}/streams/{{number}}/watches"), get(watches))
}

/// The requested part of the state.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StateQuery {
    /// Time between answers; without it there is a single answer.
    watch: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
    /// Most rows of the list.
    feeds: Option<usize>,
    feeds_after: u64,
    connections: Option<usize>,
    connections_after: u64,
    find: Option<String>,
    behind: bool,
}

/// The requested part of each list.
#[derive(Clone, Debug)]
struct Parts {
    feeds: Asked,
    connections: Asked,
    sought: Sought,
}

impl StateQuery {
    fn parts(&mut self) -> Result<Parts, String> {
        if self.after.is_some() || self.limit.is_some() {
            return Err(format!(
                "/debug/state has two lists: feeds=, feeds_after=, connections= and connections_after= select the part \
                 of each; {FEEDS} \
                 and {CONNECTIONS} take after= and limit=\n"
            ));
        }
        let feeds = Asked { after: self.feeds_after, limit: self.feeds };
        feeds.check("feeds", 0)?;
        let connections = Asked { after: self.connections_after, limit: self.connections };
        connections.check("connections", 0)?;
        Ok(Parts { feeds, connections, sought: Sought::new(self.find.take(), self.behind)? })
    }
}

async fn state(
    State(admin): State<Admin>,
    leave: Option<Extension<CancellationToken>>,
    Query(mut query): Query<StateQuery>,
) -> Response {
    let parts = match query.parts() {
        Ok(parts) => parts,
        Err(text) => return refused(text),
    };
    let Some(every) = query.watch else { return Json(describe(&admin, &parts).await).into_response() };
    let every = match humantime::parse_duration(&every) {
        Ok(every) if every >= LEAST_INTERVAL => every,
        _ => {
            return refused(format!(
                "watch={every} is not valid; use a time of at least {LEAST_INTERVAL:?}, such as \
            1s\n"
            ));
        }
    };
    let stop = admin.stop.clone();
    let leave = leave.map_or_else(CancellationToken::new, |Extension(leave)| leave);
    let stop = async move {
        // Both branches are cancel safe.
        tokio::select! {
            () = stop.cancelled() => {}
            () = leave.cancelled() => {}
        }
    };
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let states = IntervalStream::new(ticks)
        .then(move |_| {
            let (admin, parts) = (admin.clone(), parts.clone());
            async move { Event::default().event("state").json_data(describe(&admin, &parts).await) }
        })
        .take_until(stop);
    let mut response = Sse::new(states).into_response();
    response.extensions_mut().insert(Lasting);
    response
}

async fn describe(admin: &Admin, parts: &Parts) -> Map<String, Value> {
    let mut reasons = admin.inspect.not_ready();
    let more = reasons.len().saturating_sub(SHOWN_REASONS);
    if more > 0 {
        reasons.truncate(SHOWN_REASONS);
        reasons.push(format!("and {more} more, see /ready"));
    }
    let (usage, running) = (Usage::now(), admin.started.elapsed());
    let mut state = Map::new();
    state.insert(
        "relay".to_owned(),
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": running.as_secs(),
            "not_ready": reasons,
            "upstream": admin.inspect.version().as_deref(),
            "at": running.as_secs_f64(),
            "cores": usage.cores,
            "cpu_seconds": usage.cpu_seconds,
            "memory_bytes": usage.memory_bytes,
            "delivered": Delivered::now(),
        }),
    );
    state.extend(admin.inspect.state());
    state.insert("feeds_open".to_owned(), admin.inspect.feeds().into());
    state.extend(page_of_feeds(admin, parts.feeds).await.fields("feeds", "feeds_next", FEEDS, ""));
    state.insert("connections_open".to_owned(), admin.connections.len().into());
    let connections = page_of_connections(admin, parts.connections, &parts.sought).await;
    state.extend(connections.fields("connections", "connections_next", CONNECTIONS, &parts.sought.query()));
    state
}

async fn feeds(State(admin): State<Admin>, Query(asked): Query<Asked>) -> Response {
    answer(asked, page_of_feeds(&admin, asked), "feeds", FEEDS, "").await
}

/// A page of connections, possibly of a search.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConnectionsQuery {
    after: u64,
    limit: Option<usize>,
    find: Option<String>,
    behind: bool,
}

async fn connections(State(admin): State<Admin>, Query(query): Query<ConnectionsQuery>) -> Response {
    let asked = Asked { after: query.after, limit: query.limit };
    let sought = match Sought::new(query.find, query.behind) {
        Ok(sought) => sought,
        Err(text) => return refused(text),
    };
    let more = sought.query();
    answer(asked, page_of_connections(&admin, asked, &sought), "connections", CONNECTIONS, &more).await
}

async fn streams(State(admin): State<Admin>, Path(id): Path<u64>, Query(asked): Query<Asked>) -> Response {
    let id = ConnectionId(id);
    if !admin.connections.contains(id) {
        return not_found(format!("Connection {} is not open; {CONNECTIONS} lists those that are.\n", id.0));
    }
    let rows = |after, most| {
        let streams = rows::streams(&*admin.inspect, id, after, most).into_iter();
        streams.map(|stream| (stream.number, Some(json!(stream)))).collect()
    };
    answer(asked, asked.read(rows), "streams", &streams_of(id), "").await
}

async fn watches(
    State(admin): State<Admin>,
    Path((id, number)): Path<(u64, u64)>,
    Query(asked): Query<Asked>,
) -> Response {
    let id = ConnectionId(id);
    if admin.inspect.watches_after(id, number, 0, 0).is_none() {
        return not_found(format!(
            "Connection {} has no open watch stream {number}; {} lists its open streams.\n",
            id.0,
            streams_of(id)
        ));
    }
    let rows = |after, most| {
        // A stream that has ended meanwhile has no watches left.
        let watches = admin.inspect.watches_after(id, number, after, most).unwrap_or_default().into_iter();
        watches.map(|watch| (watch.number, Some(json!(watch)))).collect()
    };
    answer(asked, asked.read(rows), "watches", &watches_of(id, number), "").await
}

async fn views(State(admin): State<Admin>) -> Response {
    let views = admin.views.as_ref().map(|views| views.views()).unwrap_or_default();
    let views: Vec<Value> = views
        .into_iter()
        .map(|(path, spec)| json!({ "path": path, "parameter": spec.parameter, "watch": spec.watch }))
        .collect();
    Json(json!({ "views": views })).into_response()
}

async fn answer(asked: Asked, page: impl Future<Output = Page>, name: &str, path: &str, more: &str) -> Response {
    match asked.check("limit", 1) {
        Ok(()) => Json(Map::from_iter(page.await.fields(name, "next", path, more))).into_response(),
        Err(text) => refused(text),
    }
}

fn refused(text: String) -> Response {
    (StatusCode::BAD_REQUEST, text).into_response()
}

async fn page_of_feeds(admin: &Admin, asked: Asked) -> Page {
    let rows = |after, most| {
        let feeds = admin.inspect.feeds_after(after, most).into_iter();
        feeds.map(|feed| (feed.number, Some(json!(feed)))).collect()
    };
    asked.read(rows).await
}

async fn page_of_connections(admin: &Admin, asked: Asked, sought: &Sought) -> Page {
    let rows = |after, most| {
        let connections = admin.connections.after(ConnectionId(after), most).into_iter();
        connections
            .map(|connection| (connection.id.0, rows::connection(admin, &connection, sought).map(|row| json!(row))))
            .collect()
    };
    asked.read(rows).await
}

fn streams_of(id: ConnectionId) -> String {
    format!("{CONNECTIONS}/{}/streams", id.0)
}

fn watches_of(id: ConnectionId, stream: u64) -> String {
    format!("{}/{stream}/watches", streams_of(id))
}
