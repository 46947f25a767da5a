//! What only the wire format of Lainlet's HTTP API shows: heads, methods, paths, heartbeats, and clients that send too
//! much or read too little.
//!
//! The content of views is tested in `answers` and `streams`, permissions in `access`.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};

use super::{
    Lain,
    data::{self, entry},
    sse::Sse,
};
use crate::support::{eventually, http as metrics, patience};

const DOMAIN: &str = "/lain/config/domain";

/// A connection with raw reads and writes.
struct Raw(BufReader<TcpStream>);

impl Raw {
    async fn connect(lain: &Lain) -> Self {
        Self(BufReader::new(TcpStream::connect(lain.relay.http_addr()).await.expect("connected")))
    }

    /// A connection whose kernel buffers few unread bytes.
    async fn connect_narrow(lain: &Lain) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let connected = socket.connect(lain.relay.http_addr().parse().expect("an address")).await;
        Self(BufReader::new(connected.expect("connected")))
    }

    async fn say(&mut self, text: &str) {
        timeout(patience(), self.0.write_all(text.as_bytes())).await.expect("it is taken").expect("sent");
    }

    async fn ask(&mut self, method: &str, uri: &str) {
        self.say(&format!("{method} {uri} HTTP/1.1\r\nHost: lainlet.lain\r\n\r\n")).await;
    }

    /// Reads until the received text ends with `end`.
    async fn until(&mut self, end: &str) -> String {
        let last = *end.as_bytes().last().expect("not empty");
        let mut read = Vec::new();
        let reading = async {
            while !read.ends_with(end.as_bytes()) {
                let count = self.0.read_until(last, &mut read).await;
                let so_far = String::from_utf8_lossy(&read);
                assert!(count.as_ref().is_ok_and(|count| *count > 0), "no {end:?}: {count:?} after {so_far:?}");
            }
        };
        timeout(patience(), reading).await.unwrap_or_else(|_| panic!("no {end:?}"));
        String::from_utf8(read).expect("text")
    }

    /// Reads until the server closes.
    async fn rest(&mut self) -> String {
        let mut read = Vec::new();
        timeout(patience(), self.0.read_to_end(&mut read)).await.expect("it is closed").expect("no error");
        String::from_utf8(read).expect("text")
    }
}

/// The number of open streams of views over HTTP, and of requests in progress except this one, according to the relay.
async fn open(lain: &Lain) -> (f64, u64) {
    let streams = lain.relay.metric_of("etcd_relay_view_streams", r#"transport="http""#).await;
    let debug = lain.get("/debug").await.json();
    (streams, debug["connections"].as_u64().expect("a number") - 1)
}

async fn until_open(lain: &Lain, count: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let wanted = (count as f64, count);
    eventually(&format!("{count} streams are open"), async || (open(lain).await == wanted).then_some(())).await;
}

#[tokio::test]
async fn a_streams_head_is_lainlets_and_its_body_ends_with_the_connection() {
    let lain = Lain::embedded(&[entry(DOMAIN, "lain.local")]).await;
    let revision = lain.kv.revision().await;
    let mut raw = Raw::connect(&lain).await;
    raw.ask("GET", "/v2/configwatcher?target=domain&watch=1").await;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nVary: Accept-Encoding\r\nX-Etcd-Index: {revision}\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(raw.until("\r\n\r\n").await, head);
    let init = "id: 1\nevent: init\ndata: {\"domain\":\"lain.local\"}\n\n";
    assert_eq!(raw.until("\n\n").await, init, "no chunks");
    lain.put(DOMAIN, "a\nb<c").await;
    assert_eq!(raw.until("\n\n").await, "id: 2\nevent: update\ndata: {\"domain\":\"a\\nb\\u003cc\"}\n\n");
    lain.delete(DOMAIN).await;
    assert_eq!(raw.until("\n\n").await, "id: 3\nevent: delete\ndata: {}\n\n");
    // An error is the only event of a stream that otherwise looks normal.
    for (uri, text) in [
        ("/v2/procwatcher?watch=1", "appname required"),
        ("/v2/localspecquery?watch=1", "/localspecquery do not support watch action"),
        ("/v2/localspecwatcher/?watch=no", "/localspecquery do not support watch action"),
        ("/v2/nodes?watch=1&min_revision=x", "etcd-relay: min_revision must be a revision, not \"x\""),
    ] {
        let mut raw = Raw::connect(&lain).await;
        raw.ask("GET", uri).await;
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nVary: Accept-Encoding\r\nConnection: close\r\n\r\n";
        assert_eq!(raw.rest().await, format!("{head}id: 0\nevent: error\ndata: {text}\n\n"), "{uri}");
    }
}

#[tokio::test]
async fn what_a_client_sends_after_its_watch_is_ignored_and_its_close_is_noticed() {
    let lain = Lain::embedded(&[entry(DOMAIN, "0")]).await;
    let mut early = Raw::connect(&lain).await;
    early.say("GET /v2/configwatcher?target=domain&watch=1 HTTP/1.1\r\nHost: x\r\n\r\nx").await;
    early.until("\n\n").await;
    let mut busy = Raw::connect(&lain).await;
    busy.ask("GET", "/v2/configwatcher?target=domain&watch=1").await;
    busy.until("\n\n").await;
    // More than all buffers on the way can hold, so the relay must read it.
    busy.say(&"GET /version HTTP/1.1\r\n\r\n".repeat(1 << 20)).await;
    until_open(&lain, 2).await;
    lain.put(DOMAIN, "1").await;
    for raw in [&mut early, &mut busy] {
        assert_eq!(raw.until("\n\n").await, "id: 2\nevent: update\ndata: {\"domain\":\"1\"}\n\n");
    }
    drop(early);
    until_open(&lain, 1).await;
    busy.0.get_ref().set_zero_linger().expect("a reset");
    drop(busy);
    until_open(&lain, 0).await;
    let debug = lain.get("/debug").await.json();
    assert_eq!(debug["watchers"]["config"]["NumReceivers"], 0, "{debug}");
    lain.relay.assert_no_panic();
}

#[tokio::test]
async fn an_answer_has_lainlets_content_type_and_the_revision_that_it_reflects() {
    let lain = Lain::embedded(&[entry(DOMAIN, "lain.local")]).await;
    let answer = lain.get("/v2/configwatcher?target=domain").await;
    answer.assert_is(200, r#"{"domain":"lain.local"}"#, "a view");
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.revision(), Some(lain.kv.revision().await));
    assert_eq!(answer.header("content-length"), Some("23"));
    let version = lain.get("/version").await;
    version.assert_is(200, &format!("2.4.3+etcd-relay.{}", env!("CARGO_PKG_VERSION")), "the version");
    // Two requests over one connection, without a space after the colon.
    let mut raw = Raw::connect(&lain).await;
    for _ in 0..2 {
        raw.say("GET /version HTTP/1.1\r\nHost:x\r\n\r\n").await;
        assert!(raw.until(version.text()).await.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/plain"));
    }
}

#[tokio::test]
async fn a_path_is_known_with_one_slash_behind_it_and_in_its_own_letters() {
    let lain = Lain::embedded(&[]).await;
    for (uri, known) in [
        ("/v2/nodes", true),
        ("/v2/nodes/", true),
        ("/v2/nodes/?name=x", true),
        ("/v2/%6eodes", true),
        ("/v2/nodes%2f", true),
        ("/v2/nodes//", false),
        ("//v2/nodes", false),
        ("/v2//nodes", false),
        ("/v2/Nodes", false),
        ("/V2/nodes", false),
        ("/v2/nodes/x", false),
        ("/v2/%zzodes", false),
        ("/v2", false),
        ("/v2/", false),
        ("/nodes", false),
        ("/v2/streamrouter", false),
        ("/v2/version", false),
        ("/version/", true),
        ("/debug/", true),
        ("/appname/?ip=1.2.3.4", true),
        ("/v2/localspecwatcher?nodeip=x", true),
    ] {
        for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::OPTIONS] {
            let answer = lain.local().request(method.clone(), uri).await;
            let what = format!("{method} {uri}");
            if !known {
                let body = if method == Method::HEAD { "" } else { "404 not found" };
                answer.assert_is(404, body, &what);
                assert_eq!(answer.header("x-content-type-options"), None, "{what}");
            } else if matches!(method, Method::GET | Method::HEAD) {
                assert_ne!(answer.status, 404, "{what}");
            } else {
                answer.assert_is(404, "404 page not found\n", &what);
                assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn head_is_the_head_of_get() {
    let lain = Lain::embedded(&data::small()).await;
    for uri in ["/v2/depends", "/v2/procwatcher", "/version", "/appname?ip=127.20.0.8", "/v2/configwatcher?target="] {
        for client in [lain.local(), lain.local().http2()] {
            let (get, head) = (client.get(uri).await, client.request(Method::HEAD, uri).await);
            assert_eq!((head.status, head.text()), (get.status, ""), "{uri}");
            let told = ["content-type", "content-length", "x-etcd-index"];
            let of = |answer: &super::Answer| told.map(|name| answer.header(name).map(ToOwned::to_owned));
            assert_eq!(of(&head), of(&get), "{uri}");
            assert_eq!(head.header("content-length"), Some(get.body.len().to_string().as_str()), "{uri}");
        }
    }
    let mut raw = Raw::connect(&lain).await;
    raw.ask("HEAD", "/v2/depends?watch=1").await;
    let head = raw.rest().await.to_ascii_lowercase();
    assert!(head.contains("content-type: text/event-stream\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    until_open(&lain, 0).await;
}

#[tokio::test]
async fn heartbeats_come_from_the_start_between_other_events() {
    let lain = Lain::embedded(&[entry(DOMAIN, "0")]).await;
    let mut raw = Raw::connect(&lain).await;
    let begun = Instant::now();
    raw.ask("GET", "/v2/configwatcher/?target=domain&heartbeat=1&watch=1").await;
    raw.until("\r\n\r\n").await;
    assert_eq!(raw.until("\n\n").await, "id: 1\nevent: init\ndata: {\"domain\":\"0\"}\n\n");
    for number in 1..=2 {
        assert_eq!(raw.until("\n\n").await, "id: 0\nevent: heartbeat\n\n");
        assert!(begun.elapsed() >= Duration::from_secs(number), "heartbeat {number} after {:?}", begun.elapsed());
    }
    lain.put(DOMAIN, "1").await;
    let mut next = raw.until("\n\n").await;
    if next.contains("heartbeat") {
        next = raw.until("\n\n").await;
    }
    assert_eq!(next, "id: 2\nevent: update\ndata: {\"domain\":\"1\"}\n\n", "heartbeats are not counted");
    for heartbeat in ["0", "-1", "x", "1.5", ""] {
        let uri = format!("/v2/configwatcher?target=domain&watch=1&heartbeat={heartbeat}");
        let mut stream = lain.watch(&uri).await;
        stream.expect(1, "init").await;
        lain.put(DOMAIN, heartbeat).await;
        stream.expect(2, "update").await;
    }
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_and_harms_nobody() {
    const CHANGES: usize = 60;
    let lain = Lain::embedded(&[entry("/lain/config/big", "begin")]).await;
    let uri = "/v2/configwatcher?target=big&watch=1";
    let mut slow = Raw::connect_narrow(&lain).await;
    slow.ask("GET", uri).await;
    let mut quick = lain.watch(uri).await;
    quick.expect(1, "init").await;
    let value = |number: usize| format!("{number} {}", "x".repeat(256 << 10));
    for number in 1..=CHANGES {
        lain.kv.put("/lain/config/big", value(number)).await;
        // A client that reads gets each of them, whatever the slow client does.
        let update = quick.expect(number as u64 + 1, "update").await;
        assert!(update.starts_with(&format!("{{\"big\":\"{number} ")), "change {number}");
    }
    slow.until("\r\n\r\n").await;
    let mut ids = 0;
    loop {
        let event = slow.until("\n\n").await;
        ids += 1;
        assert!(event.starts_with(&format!("id: {ids}\n")), "what was skipped takes no number: {}", &event[..20]);
        if event.contains(&format!("event: update\ndata: {{\"big\":\"{CHANGES} ")) {
            break;
        }
    }
    assert!(ids <= CHANGES, "nothing was skipped in {ids} events");
}

#[tokio::test]
async fn streams_and_answers_share_an_http2_connection() {
    let lain = Lain::embedded(&[entry(DOMAIN, "0")]).await;
    let connection = TcpStream::connect(lain.relay.http_addr()).await.expect("connected");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(connection)).await;
    let (mut sender, driver) = handshake.expect("HTTP/2");
    let driver = tokio::spawn(driver);
    let uri = |path: &str| format!("http://{}{path}", lain.relay.http_addr());
    let mut send = async |path: &str| {
        let request = http::Request::get(uri(path)).body(Empty::<Bytes>::new()).expect("a request");
        sender.send_request(request).await.expect("an answer")
    };
    let mut streams = Vec::new();
    for _ in 0..3 {
        let response = send("/v2/configwatcher?target=domain&watch=1").await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert!(!response.headers().contains_key("connection"), "HTTP/2 has none");
        let mut stream = Sse::read("a stream", response);
        stream.expect_event(1, "init", r#"{"domain":"0"}"#).await;
        streams.push(stream);
    }
    until_open(&lain, 3).await;
    lain.put(DOMAIN, "1").await;
    for stream in &mut streams {
        stream.expect_event(2, "update", r#"{"domain":"1"}"#).await;
    }
    let answer = send("/v2/configwatcher?target=domain").await.into_body().collect().await.expect("a body");
    assert_eq!(answer.to_bytes(), r#"{"domain":"1"}"#);
    // If one stream is closed, the others stay open.
    drop(streams.pop());
    until_open(&lain, 2).await;
    drop(streams);
    until_open(&lain, 0).await;
    driver.abort();
}

#[tokio::test]
async fn a_revision_can_be_waited_for() {
    let lain = Lain::embedded(&[entry(DOMAIN, "0")]).await;
    let uri = "/v2/configwatcher?target=domain";
    for round in 1..=20 {
        let revision = lain.kv.put(DOMAIN, round.to_string()).await;
        let answer = lain.get(&format!("{uri}&min_revision={revision}")).await;
        answer.assert_is(200, &format!("{{\"domain\":\"{round}\"}}"), "one's own write is read");
        assert!(answer.revision() >= Some(revision), "{answer:?}");
    }
    let text = "etcd-relay: min_revision must be a revision, not \"soon\"";
    lain.get(&format!("{uri}&min_revision=soon")).await.assert_is(400, text, "no number");
    lain.get(&format!("{uri}&min_revision=")).await.assert_is(200, r#"{"domain":"20"}"#, "empty is absent");
    let ahead = lain.kv.revision().await + 1000;
    let (get, watch) = (format!("{uri}&min_revision={ahead}"), format!("{uri}&min_revision={ahead}&watch=1"));
    let (answer, mut stream) = tokio::join!(lain.get(&get), lain.watch(&watch));
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(answer.text().contains(&format!("has not reached revision {ahead}")), "{}", answer.text());
    let event = stream.next().await;
    assert_eq!((event.id, event.kind.as_str()), (0, "error"));
    assert!(event.data().contains(&format!("has not reached revision {ahead}")), "{event:?}");
    assert_eq!(stream.ended().await, Ok(()));
}

#[tokio::test]
async fn debug_has_lainlets_shape_and_counts_what_is_open() {
    let lain = Lain::embedded(&data::small()).await;
    lain.put("/lain/deployd/pod_groups/bad/bad.web.web", "{").await;
    let mut streams = vec![lain.watch("/v2/nodes?watch=1").await, lain.watch("/v2/containers?watch=1").await];
    for stream in &mut streams {
        stream.expect(1, "init").await;
    }
    let answer = lain.get("/debug?watch=1").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    let debug = answer.json();
    assert_eq!(debug["connections"], 3, "two streams and the one that asks");
    assert!(debug["goroutines"].as_u64() >= Some(1), "{debug}");
    let receivers =
        ["config", "container", "depends", "nodes", "podgroup"].map(|name| &debug["watchers"][name]["NumReceivers"]);
    assert_eq!(receivers, [0, 1, 0, 1, 0], "{debug}");
    let last = &debug["watchers"]["podgroup"]["LastEvent"];
    assert_eq!(last["Key"], "/lain/deployd/pod_groups/bad/bad.web.web");
    assert_eq!((&last["Action"], &last["Data"]), (&Value::from(1), &Value::Null), "{last}");
    assert_eq!(debug["unreadable"]["total"], 1, "{debug}");
    assert_eq!(debug["unreadable"]["values"][0]["key"], "/lain/deployd/pod_groups/bad/bad.web.web");
    let order: Vec<_> = [
        "\"connections\":",
        "\"goroutines\":",
        "\"watchers\":",
        "\"NumReceivers\":",
        "\"UpdateTime\":",
        "\"LastEvent\":",
        "\"TotalKeys\":",
    ]
    .map(|name| answer.text().find(name).unwrap_or_else(|| panic!("no {name} in {}", answer.text())))
    .into();
    assert!(order.is_sorted(), "{}", answer.text());
    drop(streams);
    until_open(&lain, 0).await;
}

#[tokio::test]
async fn streams_end_as_the_relay_ends() {
    let mut lain = Lain::embedded(&[entry(DOMAIN, "0")]).await;
    let mut one = lain.watch("/v2/configwatcher?target=domain&watch=1").await;
    let mut two = lain.local().http2().watch("/v2/configwatcher?target=domain&watch=1").await;
    one.expect(1, "init").await;
    two.expect(1, "init").await;
    lain.relay.terminate();
    assert_eq!((one.ended().await, two.ended().await), (Ok(()), Ok(())));
    assert_eq!(lain.relay.exit_code(patience()).await, 0);
}

#[tokio::test]
async fn requests_and_streams_are_counted() {
    let lain = Lain::embedded(&data::small()).await;
    let requests = async |answer: &str| {
        let labels = format!(r#"answer="{answer}""#);
        let text = lain.relay.metrics().await;
        let series = metrics::series(&text, "etcd_relay_view_requests_total");
        series
            .filter(|(all, _)| all.contains(&labels) && all.contains(r#"transport="http""#))
            .map(|(_, count)| count)
            .sum::<f64>()
    };
    for (uri, answer) in [
        ("/v2/nodes", "ok"),
        ("/v2/procwatcher", "invalid"),
        ("/v2/nodes?min_revision=x", "invalid"),
        ("/v2/webrouter/webprocs?appname=nobody", "unshowable"),
        ("/v2/nodes?min_revision=99999999", "not_ready"),
    ] {
        let before = requests(answer).await;
        lain.get(uri).await;
        assert!((requests(answer).await - before - 1.0).abs() < 0.5, "{uri} is {answer}");
    }
    let before = requests("forbidden").await;
    lain.peer("127.9.9.9").get("/v2/nodes").await;
    assert!((requests("forbidden").await - before - 1.0).abs() < 0.5);
    let transport = r#"transport="http""#;
    let messages = lain.relay.metric_of("etcd_relay_view_messages_total", transport).await;
    let mut stream = lain.watch("/v2/configwatcher?target=domain&watch=1").await;
    stream.expect(1, "init").await;
    lain.put(DOMAIN, "new").await;
    stream.expect(2, "update").await;
    let sent = lain.relay.metric_of("etcd_relay_view_messages_total", transport).await - messages;
    assert!((sent - 2.0).abs() < 0.5, "{sent}");
    assert!(lain.relay.metric_of("etcd_relay_view_message_bytes_total", transport).await > 0.0);
    assert!(lain.relay.metric("etcd_relay_view_lag_seconds_count").await >= 1.0);
}
