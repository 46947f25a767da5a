//! What the relay shows its operator: `/metrics`, `/debug/state`, `/live`, `/ready`, `/health`, `/version`.
//!
//! `tidy` compares the names of all metrics with the documentation. Each value is shown to change with what it
//! measures.

use std::{net::Ipv4Addr, time::Duration};

use etcd_relay::pb::etcdserverpb::{RangeRequest, WatchCreateRequest};
use serde_json::Value;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{
    client::{self, WatchStream},
    etcd::Etcd,
    eventually, http,
    kv::{Kv, channel},
    relay::{Relay, RelayCommand},
    schema::Schema,
};

const PREFIX: &str = "/inside/";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_follow_what_they_name() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix(PREFIX)).await;
        stream.created(client::key(format!("{PREFIX}quiet"))).await;
        streams.push(stream);
    }
    let kv = Kv::connect(&relay.endpoint()).await;
    let mut last = 0;
    for round in 0..10 {
        last = kv.put(format!("{PREFIX}a"), format!("{round}")).await;
    }
    for stream in &mut streams {
        stream.until_revision(last).await;
    }
    let read = RangeRequest { key: format!("{PREFIX}a").into(), serializable: true, ..Default::default() };
    kv.range(read).await;
    for (metric, value) in [
        ("etcd_relay_watches", 6.0),
        ("etcd_relay_watch_streams", 3.0),
        ("etcd_relay_watches_created_total", 6.0),
        ("etcd_relay_upstream_events_total", 10.0),
        ("etcd_relay_events_delivered_total", 30.0),
        ("etcd_relay_history_entries", 10.0),
        ("etcd_relay_snapshot_keys", 1.0),
        ("etcd_relay_ready", 1.0),
    ] {
        eventually(&format!("{metric} is {value}"), async || {
            let told = relay.metric(metric).await;
            if (told - value).abs() > 0.1 { None } else { Some(()) }
        })
        .await;
    }
    #[expect(clippy::cast_precision_loss, reason = "a small revision")]
    let newest = last as f64;
    eventually("the history has the newest revision", async || {
        let told = relay.metric("etcd_relay_history_newest_revision").await;
        ((told - newest).abs() < 0.1).then_some(())
    })
    .await;
    // A watch that was ended by compaction exists until its stream is gone.
    kv.compact(last).await;
    let past = WatchCreateRequest { start_revision: last - 5, ..client::prefix(PREFIX) };
    streams[0].create(past);
    streams[0].until(|response| response.canceled).await;
    drop(streams);
    let left = [
        "etcd_relay_watches",
        "etcd_relay_watch_streams",
        "etcd_relay_watches_parked",
        "etcd_relay_watches_catching_up",
        "etcd_relay_gap_fills",
    ];
    for metric in left {
        eventually(&format!("{metric} is 0"), async || (relay.metric(metric).await.abs() < 0.1).then_some(())).await;
    }
    assert!(relay.metric_of("etcd_relay_watches_canceled_total", r#"reason="compacted""#).await >= 1.0);
    assert!(relay.metric("etcd_relay_forwarded_total").await >= 10.0, "puts are forwarded");
    assert!(relay.metric("etcd_relay_reads_total").await >= 1.0, "reads are counted");
    assert!(relay.metric("etcd_relay_delivery_lag_seconds_count").await >= 1.0, "the lag of deliveries is measured");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relays_own_questions_are_no_forwarded_calls() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    // The relay is ready once it knows whether authentication is on, which it checks with a read that etcd refuses.
    let told = relay.metrics().await;
    assert_eq!(http::series(&told, "etcd_relay_forwarded_total").next(), None, "nobody called");
    let kv = Kv::connect(&relay.endpoint()).await;
    kv.put(format!("{PREFIX}a"), "1").await;
    let ok = r#"service="kv",outcome="ok""#;
    eventually("the put is counted", async || {
        let counted = relay.metric_of("etcd_relay_forwarded_total", ok).await;
        (counted > 0.5).then_some(())
    })
    .await;
    let told = relay.metrics().await;
    let calls: f64 = http::series(&told, "etcd_relay_forwarded_total").map(|(_, count)| count).sum();
    assert!((calls - 1.0).abs() < 0.1, "{told}");
    assert!(told.contains(r#"etcd_relay_forwarded_total{service="kv",outcome="error"} 0"#), "{told}");
    assert!(
        !told.contains("etcd_relay_tls_") && !told.contains("etcd_relay_v2_"),
        "what it does not have has no series"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_shows_feeds_and_connections() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(client::prefix(PREFIX)).await;
    stream.created(WatchCreateRequest { start_revision: 1_000, ..client::key(format!("{PREFIX}a")) }).await;
    let last = Kv::connect(&etcd.endpoint()).await.put(format!("{PREFIX}a"), "1").await;
    stream.until_revision(last).await;
    let state = relay.state().await;
    let feed = &state["feeds"][0];
    assert_eq!(feed["state"], "live", "{state:#}");
    assert_eq!(feed["revision"], last, "{state:#}");
    let text = state.to_string();
    assert!(text.contains(PREFIX), "the range of the feed: {state:#}");
    assert!(state["connections"].as_array().is_some_and(|connections| !connections.is_empty()), "{state:#}");
}

/// Readers rely on its format: each field is described, and has the described type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_is_as_its_schema_says() {
    let schema = Schema::of_file("docs/debug-state.schema.json");
    let mut etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    relay.follows().await;
    let asked = async |path: &str| {
        let answer = http::get(relay.http_addr(), path).await.expect("an answer");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        parse(&answer.body)
    };
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    for number in 0..10 {
        stream.created(client::key(format!("{PREFIX}{number}"))).await;
    }
    stream.created(WatchCreateRequest { start_revision: 1_000, ..client::prefix(PREFIX) }).await;
    let last = Kv::connect(&etcd.endpoint()).await.put(format!("{PREFIX}1"), "1").await;
    stream.until_revision(last).await;

    let state = relay.state().await;
    schema.assert_describes(&state);
    let (relay_id, cluster) = (&state["relay"], &state["cluster"]);
    assert!(
        relay_id["cpu_seconds"].as_f64() > Some(0.0) && relay_id["memory_bytes"].as_u64() > Some(1 << 20),
        "{relay_id}"
    );
    assert!(relay_id["delivered"]["events"].as_u64() >= Some(1), "{relay_id}");
    assert_eq!(
        (&cluster["member"], &cluster["revision"]),
        (&Value::from(etcd.endpoint()), &Value::from(last)),
        "{cluster}"
    );
    assert_eq!((&cluster["watches"], &cluster["keys"]), (&Value::from(11), &Value::from(1)), "{cluster}");
    let cluster_id = state["feeds"][0]["cluster_id"].as_u64().expect("a number");
    assert_eq!(cluster["id"], format!("{cluster_id:x}"));
    assert_eq!(state["feeds"][0]["member"], etcd.endpoint());
    let watcher = |row: &&Value| row["watch_streams_open"] == 1;
    let rows = state["connections"].as_array().expect("a list");
    let row = rows.iter().find(watcher).expect("the watcher's connection");
    assert!(
        row["agent"].as_str().is_some_and(|agent| agent.starts_with("tonic/")) && row["protocol"] == "http2",
        "{row}"
    );
    let shown = &row["watch_streams"][0];
    assert_eq!(shown["watching"].as_array().map(Vec::len), Some(4), "{shown}");
    let watches = asked(shown["watching_next"].as_str().expect("a path")).await;
    schema.assert_part_describes("watches_page", &watches);
    let watches = watches["watches"].as_array().expect("a list");
    assert_eq!((watches.len(), &watches[0]["range"]), (11, &Value::from(format!("\"{PREFIX}0\""))));
    assert_eq!(
        (&watches[0]["phase"], &watches[10]["phase"], &watches[10]["next"]),
        (&Value::from("live"), &Value::from("ahead"), &Value::from(1_000))
    );

    let id = &row["id"];
    let pages = [
        ("feeds_page", "/debug/state/feeds?limit=1".to_owned()),
        ("connections_page", "/debug/state/connections?limit=1".to_owned()),
        ("connections_page", format!("/debug/state/connections?find=%22{}3%22&behind=false", PREFIX)),
        ("streams_page", format!("/debug/state/connections/{id}/streams")),
        ("views", "/debug/state/views".to_owned()),
    ];
    for (part, path) in &pages {
        schema.assert_part_describes(part, &asked(path).await);
    }
    assert_eq!(asked(&pages[2].1).await["connections"].as_array().map(Vec::len), Some(1), "the one that watches it");
    let little = asked("/debug/state?feeds=0&connections=0").await;
    schema.assert_describes(&little);
    assert_eq!((&little["feeds"], &little["feeds_open"]), (&serde_json::json!([]), &Value::from(1)));
    assert!(
        little["feeds_next"].as_str().is_some_and(|path| path.starts_with("/debug/state/feeds?after=0")),
        "{little}"
    );

    for path in [
        "/debug/state?feeds=1001",
        "/debug/state?connections=-1",
        "/debug/state?behind=perhaps",
        "/debug/state?watch=0s",
        "/debug/state/connections?limit=0",
        &format!("/debug/state/connections?find={}", "x".repeat(257)),
    ] {
        assert_eq!(http::get(relay.http_addr(), path).await.expect("an answer").status, 400, "{path}");
    }
    let none = http::get(relay.http_addr(), &format!("/debug/state/connections/{id}/streams/99/watches")).await;
    assert_eq!(none.expect("an answer").status, 404);

    // With an error, and without a cluster.
    etcd.kill();
    eventually("an error shows", async || (!relay.state().await["feeds"][0]["last_error"].is_null()).then_some(()))
        .await;
    schema.assert_describes(&relay.state().await);
    let demo = RelayCommand::demo_with_example().start().await;
    schema.assert_describes(&demo.state().await);
}

/// What others watch, and their addresses, is only for the operator. Metrics contain no names, and are open to everyone
/// by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_is_for_trusted_callers_and_metrics_are_for_whom_the_operator_says() {
    let stranger = Ipv4Addr::new(127, 0, 0, 2);
    let relay = RelayCommand::demo().start().await;
    let asked = async |relay: &Relay, from, path: &str, header: &str| {
        http::get_as(from, relay.http_addr(), path, header).await.expect("an answer")
    };
    for path in ["/debug/state", "/debug/state?watch=1s", "/debug/state/feeds", "/debug/state/connections"] {
        let refused = asked(&relay, stranger, path, "").await;
        assert_eq!(refused.status, 403, "{path}");
        for said in ["127.0.0.2", "--trusted-net", "--debug-from any"] {
            assert!(refused.body.contains(said), "{said} is not in {:?}", refused.body);
        }
    }
    assert_eq!(asked(&relay, Ipv4Addr::LOCALHOST, "/debug/state", "").await.status, 200);
    let proxied = asked(&relay, Ipv4Addr::LOCALHOST, "/debug/state", "X-Forwarded-For: 127.0.0.1\r\n").await;
    assert_eq!(proxied.status, 403, "{}", proxied.body);
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(asked(&relay, stranger, path, "").await.status, 200, "{path}");
    }
    let named = RelayCommand::demo().arg("--trusted-net=127.0.0.2/32").arg("--metrics-from=trusted").start().await;
    assert_eq!(asked(&named, stranger, "/debug/state", "").await.status, 200);
    assert_eq!(asked(&named, stranger, "/metrics", "").await.status, 200);
    let further = Ipv4Addr::new(127, 0, 0, 3);
    for addr in [named.http_addr(), named.grpc_addr()] {
        let refused = http::get_as(further, addr, "/metrics", "").await.expect("an answer");
        assert!(refused.status == 403 && refused.body.contains("--metrics-from any"), "{}", refused.body);
    }
    assert_eq!(http::get_as(further, named.grpc_addr(), "/health", "").await.expect("an answer").status, 200);
    let open = RelayCommand::demo().arg("--debug-from=any").start().await;
    assert_eq!(asked(&open, stranger, "/debug/state", "").await.status, 200);
}

/// A client may watch any number of keys of a megabyte; the operator's answer does not grow with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_has_a_bounded_length_whatever_clients_watch() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).start().await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    let keys = 8;
    for key in 0..keys {
        let mut name = vec![0xff; 1 << 20];
        name[0] = key;
        stream.created(client::key(name)).await;
    }
    let answer = http::get(relay.http_addr(), "/debug/state").await.expect("an answer");
    assert!(answer.body.len() < 64 << 10, "{} bytes", answer.body.len());
    let state = parse(&answer.body);
    assert_eq!((&state["feeds_open"], &state["feeds_next"]), (&Value::from(keys), &Value::Null));
    assert!(state["feeds"][0]["range"].as_str().is_some_and(|range| range.contains("(1048576 bytes)")), "{state:#}");
    let page = http::get(relay.http_addr(), "/debug/state/feeds?limit=5").await.expect("an answer");
    let page = parse(&page.body);
    assert_eq!(page["feeds"].as_array().map(Vec::len), Some(5));
    let rest = http::get(relay.http_addr(), page["next"].as_str().expect("a path")).await.expect("an answer");
    assert_eq!(parse(&rest.body)["feeds"].as_array().map(Vec::len), Some(usize::from(keys) - 5));
}

/// Prometheus and probes can have separate addresses, which show nothing about clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_health_have_ports_of_their_own_where_asked_for() {
    let command = RelayCommand::demo().arg("--listen-metrics=127.0.0.1:0,127.0.0.1:0").arg("--metrics-from=nobody");
    let relay = command.start().await;
    let addrs = relay.metrics_addrs();
    assert_eq!(addrs.len(), 2, "{addrs:?}");
    for addr in &addrs {
        for path in ["/metrics", "/live", "/ready", "/health"] {
            let answer = http::get(addr, path).await.expect("an answer");
            assert_eq!(answer.status, 200, "{path}");
        }
        let metrics = http::get(addr, "/metrics").await.expect("an answer").body;
        assert!(http::metric(&metrics, "etcd_relay_ready").is_some(), "{metrics}");
        for path in ["/debug/state", "/v2/nodes", "/version"] {
            assert_eq!(http::get(addr, path).await.expect("an answer").status, 404, "{path}");
        }
    }
    for addr in [relay.http_addr(), relay.grpc_addr()] {
        let closed = http::get(addr, "/metrics").await.expect("an answer");
        assert!(closed.status == 403 && closed.body.contains("--metrics-from nobody"), "{}", closed.body);
    }
    let etcd = Etcd::start().await;
    let proxy = RelayCommand::grpc_proxy(&[etcd.endpoint()]).arg("--metrics-addr=http://127.0.0.1:0").start().await;
    let addr = proxy.metrics_addrs().pop().expect("an address");
    assert_eq!(http::get(&addr, "/metrics").await.expect("an answer").status, 200);
    eventually("the proxy reaches etcd", async || {
        let health = http::get(&addr, "/proxy/health").await.expect("an answer");
        (health.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_paths_answer_as_etcds() {
    let etcd = Etcd::start().await;
    let relay = Relay::over(&etcd.endpoint()).await;
    for path in ["/health", "/version"] {
        let answer = http::get(relay.grpc_addr(), path).await.expect("the relay answers");
        let direct = http::get(&etcd.addr(), path).await.expect("etcd answers");
        let (told, expected): (Value, Value) = (parse(&answer.body), parse(&direct.body));
        assert_eq!((answer.status, told), (direct.status, expected), "{path}");
    }
    assert_eq!(http::get(relay.http_addr(), "/live").await.expect("an answer").status, 200);
    assert_eq!(http::get(relay.http_addr(), "/ready").await.expect("an answer").status, 200);
}

/// gRPC health and reflection, used like tools use them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_health_and_reflection_are_answered() {
    let etcd = Etcd::start().await;
    let relay = Relay::over(&etcd.endpoint()).await;
    let mut health = HealthClient::new(channel(&relay.endpoint()).await);
    let status = health.check(HealthCheckRequest { service: String::new() }).await.expect("health").into_inner();
    assert_eq!(status.status(), ServingStatus::Serving);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel(&relay.endpoint()).await);
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter([ask])).await.expect("reflection").into_inner();
    let answer = answers.message().await.expect("reflection").expect("an answer").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("not a list: {answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["etcdserverpb.Watch", "etcdserverpb.KV", "etcdserverpb.Lease", "message.Coreinfo", "message.Lainlet"] {
        assert!(names.iter().any(|listed| listed == name), "{name} is not in {names:?}");
    }
}

/// Past events are late at the client's own request; counted as delay, they would look like an outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_delivery_lag_is_that_of_live_events() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let kv = Kv::connect(&relay.endpoint()).await;
    let first = kv.put(format!("{PREFIX}key"), "1").await;
    let last = kv.put(format!("{PREFIX}key"), "2").await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(WatchCreateRequest { start_revision: first, ..client::prefix(PREFIX) }).await;
    stream.until_revision(last).await;
    assert_eq!(relay.metric("etcd_relay_delivery_lag_seconds_count").await, 0.0);
    stream.until_revision(kv.put(format!("{PREFIX}key"), "3").await).await;
    assert_eq!(relay.metric("etcd_relay_delivery_lag_seconds_count").await, 1.0);
}

/// An idle relay with an idle feed costs almost nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_relay_is_idle() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix(PREFIX)).await;
        streams.push(stream);
    }
    let before = relay.cpu_time();
    let watched = Duration::from_secs(3);
    tokio::time::sleep(watched).await;
    let used = relay.cpu_time().saturating_sub(before);
    assert!(used < watched / 10, "{used:?} of CPU in {watched:?} without any event");
}

fn parse(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("not JSON: {error}: {body}"))
}
