//! Tests of both ports from a client's view: which service answers, and the errors for requests to the wrong port.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body};
use tower::service_fn;

use super::{
    Inspect,
    body::RequestBody,
    gateway::Gateway,
    grpc::{self, GrpcPort, Local},
    http::{
        admin::{self, Admin, HttpPort},
        audience::{Audience, Gate},
        member, metrics_only,
    },
    listen::{self, Bound, ConnectionId, Connections, Stop},
    users::Users,
};
use crate::{
    hub::{FeedStats, WatchStats, WatchStreamStats},
    rpc::GrpcService,
    telemetry::{ReadyBoard, names::Port},
    types::{MemberVersion, Revision},
};

/// A process whose state the test sets.
#[derive(Default)]
struct Told {
    ready: ReadyBoard,
    version: Mutex<Option<Arc<MemberVersion>>>,
    /// The watch streams of each connection.
    streams: Mutex<usize>,
}

impl Inspect for Told {
    fn not_ready(&self) -> Vec<String> {
        self.ready.reasons()
    }

    fn version(&self) -> Option<Arc<MemberVersion>> {
        self.version.lock().clone()
    }

    fn state(&self) -> Map<String, Value> {
        Map::from_iter([("auth".to_owned(), json!("off"))])
    }

    fn feeds(&self) -> usize {
        0
    }

    fn feeds_after(&self, _: u64, _: usize) -> Vec<FeedStats> {
        Vec::new()
    }

    fn streams(&self, _: ConnectionId) -> usize {
        *self.streams.lock()
    }

    fn streams_after(&self, _: ConnectionId, after: u64, most: usize) -> Vec<(u64, WatchStreamStats)> {
        let stats = WatchStreamStats { watches: 2, ..WatchStreamStats::default() };
        (after + 1..=self.streams(ConnectionId(0)) as u64).take(most).map(|number| (number, stats)).collect()
    }

    fn watches_after(&self, _: ConnectionId, stream: u64, after: u64, most: usize) -> Option<Vec<WatchStats>> {
        let watch = |number: u64| WatchStats {
            number,
            watch_id: number as i64,
            range: Some(format!("\"/key/{stream}/{number}\"")),
            feed: 1,
            phase: "live",
            next: Revision::new(7),
            lag_revisions: 0,
        };
        let watches = (after + 1..=2).take(most).map(watch);
        (stream <= self.streams(ConnectionId(0)) as u64).then(|| watches.collect())
    }

    fn metrics(&self) -> String {
        "etcd_relay_up 1\n".to_owned()
    }
}

/// Answers a single path, by its name.
#[derive(Clone)]
struct OnlyWatch;

impl Local for OnlyWatch {
    type Body = Full<Bytes>;

    fn answers(&self, path: &str) -> bool {
        path == "/etcdserverpb.Watch/Watch"
    }

    async fn call(&self, _: Request<RequestBody>) -> Response<Self::Body> {
        Response::new(Full::from("local"))
    }
}

struct Ports {
    told: Arc<Told>,
    grpc: SocketAddr,
    http: SocketAddr,
    /// Ends streams that do not end by themselves.
    streams: CancellationToken,
}

fn named(name: &'static str) -> GrpcService {
    GrpcService::new(service_fn(move |_: Request<Body>| async move {
        Ok::<_, Infallible>(Response::new(Body::new(Full::<Bytes>::from(name))))
    }))
}

fn gate(audience: Audience) -> Gate {
    Gate { audience, trust: Arc::default(), flag: "--some-from" }
}

fn serve() -> Ports {
    let told = Arc::new(Told::default());
    let connections = Arc::new(Connections::default());
    let bind = |port| {
        let config = listen::PortConfig::new(port, SocketAddr::from(([127, 0, 0, 1], 0)));
        Bound::bind(config, connections.clone()).expect("bound")
    };
    let (grpc, http) = (bind(Port::Grpc), bind(Port::Http));
    let (grpc_addr, http_addr) = (grpc.addr(), http.addr());
    let stop = Stop::default();
    let (health, keep) = grpc::health(told.ready.clone());
    tokio::spawn(keep);
    let port = GrpcPort {
        local: OnlyWatch,
        forward: named("forwarded"),
        health,
        reflection: grpc::reflection(crate::pb::FILE_DESCRIPTOR_SET).expect("descriptors"),
        gateway: Gateway::new(crate::pb::FILE_DESCRIPTOR_SET).expect("descriptors"),
        member: member::router(told.clone(), gate(Audience::Any)),
    };
    tokio::spawn(grpc.serve(port, stop.clone()));
    let streams = CancellationToken::new();
    let admin = Admin {
        inspect: told.clone(),
        connections: connections.clone(),
        users: Users::default(),
        views: None,
        grpc_addr,
        debug: gate(Audience::Trusted),
        metrics: gate(Audience::Any),
        started: Instant::now(),
        stop: streams.clone(),
    };
    tokio::spawn(http.serve(HttpPort::new(admin.router(), admin::ABOUT, grpc_addr), stop));
    Ports { told, grpc: grpc_addr, http: http_addr, streams }
}

async fn get(addr: SocketAddr, path: &str) -> (StatusCode, String) {
    let stream = TcpStream::connect(addr).await.expect("connected");
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let request =
        Request::get(path).header(header::HOST, "127.0.0.1").body(Full::<Bytes>::default()).expect("a request");
    read(sender.send_request(request).await.expect("an answer")).await
}

async fn call(addr: SocketAddr, path: &str, message: &'static [u8]) -> Response<Incoming> {
    let stream = TcpStream::connect(addr).await.expect("connected");
    let (mut sender, connection) =
        conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::post(format!("http://{addr}{path}"))
        .header(header::CONTENT_TYPE, "application/grpc+proto")
        .header(header::TE, "trailers")
        .body(Full::new(Bytes::from_static(message)))
        .expect("a request");
    sender.send_request(request).await.expect("an answer")
}

async fn read(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn calls_are_answered_by_path() {
    let ports = serve();
    let answer = async |path| read(call(ports.grpc, path, b"").await).await.1;
    assert_eq!(answer("/etcdserverpb.Watch/Watch").await, "local");
    assert_eq!(answer("/etcdserverpb.Watch/Watch2").await, "forwarded");
    assert_eq!(answer("/etcdserverpb.KV/Put").await, "forwarded");
    assert_eq!(answer("/later.Service/New").await, "forwarded");
    assert_eq!(answer("/grpc.health.v1.HealthX/Check").await, "forwarded");
}

#[tokio::test]
async fn grpc_health_follows_readiness() {
    let ports = serve();
    // HealthCheckResponse { status: SERVING } and { status: NOT_SERVING }.
    let serving = "\0\0\0\0\u{2}\u{8}\u{1}";
    let not_serving = "\0\0\0\0\u{2}\u{8}\u{2}";
    let check = async || read(call(ports.grpc, "/grpc.health.v1.Health/Check", b"\0\0\0\0\0").await).await.1;
    let hold = ports.told.ready.hold("a feed");
    while check().await != not_serving {}
    drop(hold);
    while check().await != serving {}
}

#[tokio::test]
async fn reflection_lists_etcds_services() {
    let ports = serve();
    // ServerReflectionRequest { list_services: "*" }.
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let (_, text) = read(call(ports.grpc, path, b"\0\0\0\0\x03\x3a\x01*").await).await;
    for service in ["etcdserverpb.KV", "etcdserverpb.Watch", "etcdserverpb.Lease", "grpc.health.v1.Health"] {
        assert!(text.contains(service), "{service} is not in {text:?}");
    }
}

#[tokio::test]
async fn the_grpc_port_answers_plain_http_as_a_member_does() {
    let ports = serve();
    assert_eq!(get(ports.grpc, "/health").await, (StatusCode::OK, r#"{"health":"true","reason":""}"#.to_owned()));
    let hold = ports.told.ready.hold("no leader");
    let unhealthy = (StatusCode::SERVICE_UNAVAILABLE, r#"{"health":"false","reason":"no leader"}"#.to_owned());
    assert_eq!(get(ports.grpc, "/health").await, unhealthy);
    drop(hold);
    assert_eq!(get(ports.grpc, "/version").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let version = MemberVersion { etcdserver: "3.5.16".to_owned(), etcdcluster: "3.5.0".to_owned() };
    *ports.told.version.lock() = Some(Arc::new(version));
    let (status, text) = get(ports.grpc, "/version").await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, r#"{"etcdserver":"3.5.16","etcdcluster":"3.5.0"}"#));
    for path in ["/metrics", "/proxy/metrics"] {
        assert_eq!(get(ports.grpc, path).await.1, "etcd_relay_up 1\n");
    }
    let (status, text) = get(ports.grpc, "/v2/keys").await;
    assert!(status == StatusCode::NOT_FOUND && text.contains("/v2/keys") && text.contains("gRPC"), "{text}");
}

#[tokio::test]
async fn the_operators_port_tells_how_it_is() {
    let ports = serve();
    assert_eq!(get(ports.http, "/live").await.0, StatusCode::OK);
    assert_eq!(get(ports.http, "/ready").await.0, StatusCode::OK);
    let _hold = ports.told.ready.hold("feed /a: no leader");
    let (status, text) = get(ports.http, "/ready").await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains("feed /a: no leader"), "{text}");
    assert_eq!(get(ports.http, "/live").await.0, StatusCode::OK, "a process that waits is alive");
    assert_eq!(get(ports.http, "/metrics").await.1, "etcd_relay_up 1\n");

    let (_, text) = get(ports.http, "/debug/state").await;
    let state: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&state["auth"], &state["feeds"]), (&json!("off"), &json!([])));
    assert_eq!(state["relay"]["not_ready"], json!(["feed /a: no leader"]));
    let peers = state["connections"].as_array().expect("a list").iter().map(|connection| &connection["peer"]);
    assert!(peers.clone().all(|peer| peer.as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:"))), "{state}");
    assert_eq!(json!(peers.count()), state["connections_open"], "{state}");
}

#[tokio::test]
async fn connections_and_their_streams_are_told_in_pages() {
    let ports = serve();
    let held: Vec<TcpStream> = futures_util::future::join_all(
        (0..25).map(|_| async { TcpStream::connect(ports.http).await.expect("connected") }),
    )
    .await;
    *ports.told.streams.lock() = 20;
    let json = async |path: &str| {
        let (status, text) = get(ports.http, path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    while json("/debug/state").await["connections_open"].as_u64() < Some(26) {}
    let (mut peers, mut next, mut pages) = (Vec::new(), Some("/debug/state/connections?limit=10".to_owned()), 0);
    while let Some(path) = next {
        let page = json(&path).await;
        let rows = page["connections"].as_array().expect("a list");
        assert!(rows.len() <= 10, "{page}");
        peers.extend(rows.iter().map(|row| row["peer"].as_str().expect("a peer").to_owned()));
        next = page["next"].as_str().map(str::to_owned);
        pages += 1;
    }
    assert!(pages >= 3);
    for held in &held {
        let peer = held.local_addr().expect("an address").to_string();
        assert_eq!(peers.iter().filter(|listed| **listed == peer).count(), 1, "{peer} in {peers:?}");
    }

    let state = json("/debug/state").await;
    let connection = &state["connections"][0];
    assert_eq!(connection["watch_streams_open"], 20);
    let shown = connection["watch_streams"].as_array().expect("a list").len();
    assert!(shown > 0 && shown < 20 && connection["watches"].is_null(), "{connection}");
    let all = json(connection["watch_streams_next"].as_str().expect("a path")).await;
    assert_eq!((all["streams"].as_array().map(Vec::len), &all["next"]), (Some(20), &Value::Null));
    *ports.told.streams.lock() = 3;
    assert_eq!(json("/debug/state").await["connections"][0]["watches"], 6);

    for path in ["/debug/state/connections?limit=0", "/debug/state/feeds?limit=1001", "/debug/state?limit=5"] {
        assert_eq!(get(ports.http, path).await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(get(ports.http, "/debug/state/connections/0/streams").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn connections_are_found_by_what_is_shown_of_them() {
    let ports = serve();
    let agents = ["first/1.0", "second/<b>\"2\""];
    let mut held = Vec::new();
    for agent in agents {
        let stream = TcpStream::connect(ports.http).await.expect("connected");
        let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        let request = Request::get("/live").header(header::HOST, "127.0.0.1").header(header::USER_AGENT, agent);
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        read(sender.send_request(request).await.expect("an answer")).await;
        held.push(sender);
    }
    *ports.told.streams.lock() = 1;
    let found = async |query: &str| {
        let (status, text) = get(ports.http, &format!("/debug/state/connections?{query}")).await;
        assert_eq!(status, StatusCode::OK, "{query}: {text}");
        let page: Value = serde_json::from_str(&text).expect("JSON");
        let rows = page["connections"].as_array().expect("a list").iter();
        rows.filter_map(|row| row["agent"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(found("").await, ["first/1.0", r#"second/<b>\"2\""#], "in the order of opening, escaped");
    assert_eq!(found("find=second%2F%3Cb%3E").await, [r#"second/<b>\"2\""#]);
    assert_eq!(found("find=%2Fkey%2F1%2F2").await.len(), 2, "each watches it");
    assert_eq!(found("find=nobody").await, Vec::<String>::new());
    assert_eq!(found("behind=true").await, Vec::<String>::new());
    let (_, text) = get(ports.http, "/debug/state/connections?find=f%2F%26&limit=1").await;
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON")["next"], Value::Null, "{text}");
    let (_, text) = get(ports.http, "/debug/state?connections=1&find=%2Fkey%2F1%2F2&feeds=0").await;
    let state: Value = serde_json::from_str(&text).expect("JSON");
    let next = state["connections_next"].as_str().expect("a path");
    assert!(
        next.starts_with("/debug/state/connections?after=") && next.ends_with("&limit=1&find=%2Fkey%2F1%2F2"),
        "{next}"
    );
    assert_eq!(get(ports.http, next).await.0, StatusCode::OK);
    for query in ["behind=perhaps", "limit=0", &*format!("find={}", "x".repeat(257))] {
        assert_eq!(
            get(ports.http, &format!("/debug/state/connections?{query}")).await.0,
            StatusCode::BAD_REQUEST,
            "{query}"
        );
    }
    let watches = |stream: u64| format!("/debug/state/connections/1/streams/{stream}/watches?limit=1");
    let (status, text) = get(ports.http, &watches(1)).await;
    let page: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &page["watches"][0]["range"]), (StatusCode::OK, &json!("\"/key/1/1\"")));
    assert_eq!(page["next"], "/debug/state/connections/1/streams/1/watches?after=1&limit=1");
    assert_eq!(get(ports.http, &watches(9)).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_port_for_metrics_has_metrics_and_health_and_nothing_else() {
    let ports = serve();
    let config = listen::PortConfig::new(Port::Metrics, SocketAddr::from(([127, 0, 0, 1], 0)));
    let bound = Bound::bind(config, Arc::default()).expect("bound");
    let addr = bound.addr();
    let stop = Stop::default();
    tokio::spawn(
        bound.serve(HttpPort::new(metrics_only::router(ports.told.clone()), metrics_only::ABOUT, ports.grpc), stop),
    );
    for path in ["/metrics", "/proxy/metrics"] {
        assert_eq!(get(addr, path).await.1, "etcd_relay_up 1\n");
    }
    for path in ["/live", "/ready", "/health", "/proxy/health"] {
        assert_eq!(get(addr, path).await.0, StatusCode::OK, "{path}");
    }
    let _hold = ports.told.ready.hold("feed /a: no leader");
    for path in ["/ready", "/health"] {
        assert_eq!(get(addr, path).await.0, StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
    for path in ["/debug/state", "/v2/nodes", "/debug"] {
        let (status, text) = get(addr, path).await;
        assert!(status == StatusCode::NOT_FOUND && text.contains(path) && text.contains("/metrics"), "{text}");
    }
}

#[tokio::test]
async fn who_comes_to_the_wrong_port_is_told_the_right_one() {
    let ports = serve();
    let (status, text) = get(ports.http, "/v3/kv/range").await;
    assert!(status == StatusCode::NOT_FOUND && text.contains(&ports.grpc.to_string()), "{text}");
    assert_eq!(get(ports.grpc, "/v3/kv/range").await, (StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n".into()));
    assert_eq!(get(ports.grpc, "/v3/kv").await, (StatusCode::NOT_FOUND, "Not Found\n".into()));
    let response = call(ports.http, "/etcdserverpb.KV/Range", b"").await;
    let status = Status::from_header_map(response.headers()).expect("a gRPC status");
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains(&ports.grpc.to_string()), "{status}");

    let stream = TcpStream::connect(ports.grpc).await.expect("connected");
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let request = Request::post("/etcdserverpb.KV/Range")
        .header(header::HOST, "127.0.0.1")
        .header(header::CONTENT_TYPE, "application/grpc")
        .body(Full::<Bytes>::default())
        .expect("a request");
    let (status, text) = read(sender.send_request(request).await.expect("an answer")).await;
    assert!(status == StatusCode::HTTP_VERSION_NOT_SUPPORTED && text.contains("HTTP/2"), "{text}");
}

#[tokio::test]
async fn the_state_can_be_watched_until_the_relay_stops() {
    let ports = serve();
    assert_eq!(get(ports.http, "/debug/state?watch=often").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(get(ports.http, "/debug/state?watch=1ms").await.0, StatusCode::BAD_REQUEST);
    let stream = TcpStream::connect(ports.http).await.expect("connected");
    let (mut sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let request =
        Request::get("/debug/state?watch=100ms").header(header::HOST, "127.0.0.1").body(Full::<Bytes>::default());
    let response = sender.send_request(request.expect("a request")).await.expect("an answer");
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut body = response.into_body();
    let mut text = String::new();
    while text.matches("event: state\ndata: {").count() < 3 {
        let frame = body.frame().await.expect("the stream goes on").expect("a frame");
        text.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
    }
    ports.streams.cancel();
    body.collect().await.expect("the stream ends normally");
}
