//! Lainlet's gRPC services through the generated clients: replies, streams, metadata and invalid requests.
//!
//! `services` gives all of them a common interface, with replies in the form of HTTP's JSON, so that both can be
//! compared; `refusals` has requests that fail. The content and permissions of the views are tested in detail over
//! HTTP, in `streams` and `access`.

mod refusals;
mod services;

use std::{collections::BTreeMap, net::Ipv4Addr};

use etcd_relay::pb::lainlet::{EmptyRequest, StatusReply, lainlet_client::LainletClient};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::Code;

use self::services::{Grpc, WATCHED, as_grpc_has_it, of_uri};
use super::{Lain, data, streams};
use crate::support::{eventually, http, patience, quiet_time};

/// A service of each of the four directories, with a parameter that everyone may use.
const SOURCES: [(&str, &str); 4] = [("Config", ""), ("StreamrouterPorts", ""), ("Depends", ""), ("Nodes", "")];

impl Lain {
    /// A gRPC client at 127.0.0.1, which is trusted.
    async fn grpc(&self) -> Grpc {
        self.grpc_at(&Ipv4Addr::LOCALHOST.to_string()).await
    }

    /// A gRPC client at this loopback address.
    async fn grpc_at(&self, address: &str) -> Grpc {
        Grpc::over(self.channel_from(address).await)
    }

    /// Makes each change and waits until all views show the last one. Returns its revision.
    async fn apply_over_grpc(&self, changes: &[data::Change]) -> i64 {
        let mut revision = 0;
        for change in changes {
            revision = self.apply(change).await;
        }
        let client = self.grpc().await.with("min-revision", revision);
        for (service, text) in SOURCES {
            eventually("the views show the change", async || client.get(service, text).await.ok()).await;
        }
        revision
    }
}

/// The gRPC code for an error with this text over HTTP.
fn code_of(text: &str) -> Code {
    match text {
        "appname required" | "empty key" => Code::InvalidArgument,
        "over half of the containers lost their IPs" => Code::FailedPrecondition,
        text if text.starts_with("unkown address ") => Code::NotFound,
        text if text.starts_with("authorize failed, ") => Code::PermissionDenied,
        text => panic!("{text} has no code"),
    }
}

#[tokio::test]
async fn each_answer_of_the_original_over_http_is_given_over_grpc() {
    let lain = Lain::over_etcd(&data::small()).await;
    let mut revision = lain.kv.revision().await;
    let mut asked = BTreeMap::<&str, usize>::new();
    let mut differences = Vec::new();
    for state in ["small", "final"] {
        if state == "final" {
            revision = lain.apply_over_grpc(&data::changes()).await;
        }
        let mut clients = BTreeMap::new();
        for expected in data::expected().into_iter().filter(|expected| expected.state == state) {
            let Some((service, text)) = of_uri(&expected.uri) else { continue };
            if !clients.contains_key(&expected.peer) {
                clients.insert(expected.peer.clone(), lain.grpc_at(&expected.peer).await);
            }
            *asked.entry(service).or_default() += 1;
            let answer = match clients[&expected.peer].get(service, &text).await {
                Ok(reply) => Ok((reply.data, reply.revision)),
                Err(status) => Err((status.code(), status.message().to_owned())),
            };
            let wanted = if expected.status == 200 {
                let body: Value = serde_json::from_str(&expected.body).expect("JSON");
                Ok((as_grpc_has_it(service, body), Some(revision)))
            } else {
                let text = if expected.body == "appname required" { "appname reequired" } else { &expected.body };
                Err((code_of(&expected.body), text.to_owned()))
            };
            if answer != wanted {
                differences.push(format!(
                    "{state}: {} asks {service}.Get({text:?})\n  got  {answer:.600?}\n  want {wanted:.600?}",
                    expected.peer
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    assert_eq!(asked.len(), WATCHED.len() + 2, "not all services were asked: {asked:?}");
    assert_eq!(asked.values().sum::<usize>(), 133, "{asked:?}");
    lain.relay.assert_no_panic();
}

#[tokio::test]
async fn each_stream_sends_a_whole_reply_at_once_and_after_each_visible_change() {
    let lain = Lain::over_etcd(&data::small()).await;
    let loaded = lain.kv.revision().await;
    let client = lain.grpc().await;
    let mut open = Vec::new();
    for (uri, lines) in streams::TABLE {
        let (service, text) = of_uri(uri).expect("a service");
        let mut watch = client.watch(service, &text).await.expect("a stream");
        assert_eq!(watch.revision, Some(loaded), "{service}.Watch({text})");
        assert_eq!(watch.reply().await, client.get(service, &text).await.expect("a reply").data, "{service}({text})");
        open.push((service, text, streams::parse(lines), Some(watch)));
    }
    assert!(
        WATCHED.iter().all(|service| open.iter().any(|(open, ..)| open == service)),
        "not all services are watched"
    );
    let mut complaints = Vec::new();
    for (index, change) in data::changes().iter().enumerate() {
        let revision = lain.apply(change).await;
        let at = client.with("min-revision", revision);
        for (service, text, lines, watch) in &mut open {
            let Some(stream) = watch else { continue };
            let answer = eventually("the view shows the change", async || match at.get(service, text).await {
                Err(status) if status.code() == Code::Unavailable => None,
                answer => Some(answer.map(|reply| reply.data)),
            })
            .await;
            let due = lines.iter().find(|(line, _)| *line == index + 1).map(|(_, kind)| *kind);
            let told = if due.is_some() { stream.next().await } else { stream.now() };
            let what = format!("{service}.Watch({text}) after line {}", index + 1);
            match (due, told) {
                (None, None) => {}
                (Some("error"), Some(Err(told))) => {
                    let answer = answer.expect_err("the view fails");
                    assert_eq!((told.code(), told.message()), (Code::FailedPrecondition, answer.message()), "{what}");
                    *watch = None;
                }
                (Some("update" | "delete"), Some(Ok(told))) if Ok(&told) == answer.as_ref().map_err(|_| ()) => {}
                (due, told) => complaints.push(format!("{what}: due {due:?}, told {told:.300?}, got {answer:.300?}")),
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    lain.relay.assert_no_panic();
}

/// In the original, watchers of one key took each other's updates: of three, only one got each.
#[tokio::test]
async fn watchers_of_one_key_all_get_each_update() {
    let lain = Lain::over_etcd(&data::small()).await;
    let (one, other) = (lain.grpc().await, lain.grpc().await);
    let mut watchers = Vec::new();
    for client in [&one, &one, &other] {
        watchers.push(client.watch("Config", "domain").await.expect("a stream"));
    }
    let first = join_all(watchers.iter_mut().map(services::Watch::reply)).await;
    assert_eq!(first, vec![json!({ "domain": "lain.local" }); 3]);
    for round in 0..20 {
        lain.kv.put("/lain/config/domain", format!("round-{round}")).await;
        // A request in between takes nothing from them.
        one.get("Config", "domain").await.expect("a reply");
        let told = join_all(watchers.iter_mut().map(services::Watch::reply)).await;
        assert_eq!(told, vec![json!({ "domain": format!("round-{round}") }); 3]);
    }
}

#[tokio::test]
async fn a_nodes_members_are_texts_or_maps_of_texts() {
    let node = r#"{"name":"n","ssh_port":22,"up":true,"gone":null,"weight":1.50,"big":1e21,"tags":["a",{"b":1}],
        "labels":{"zone":"z1","rank":3,"none":null,"list":[1, 2],"deep":{"x":"<&>"}},"empty":{}}"#;
    let lain = Lain::over_etcd(&[data::entry("/lain/nodes/nodes/n:10.0.0.1:22", node)]).await;
    let client = lain.grpc().await;
    let string = |text: &str| json!({ "STRING": text });
    let want = json!({ "n:10.0.0.1:22": {
        "name": string("n"), "ssh_port": string("22"), "up": string("true"), "gone": string("null"), "weight": string("1.5"),
        "big": string("1e+21"), "tags": string(r#"["a",{"b":1}]"#), "empty": { "MAP": {} },
        "labels": { "MAP": {
            "zone": "z1", "rank": "3", "none": "null", "list": "[1,2]", "deep": r#"{"x":"\u003c\u0026\u003e"}"#,
        } },
    } });
    assert_eq!(client.get("Nodes", "n").await.expect("a reply").data, want);
}

#[tokio::test]
async fn a_view_of_one_node_is_of_the_callers_or_of_the_one_that_is_named() {
    let node = |name: &str, ip: &str| {
        let value = format!(r#"{{"name":"{name}","ip":"{ip}","ssh_port":"22"}}"#);
        data::entry(&format!("/lain/nodes/nodes/{name}:{ip}:22"), &value)
    };
    let mut entries = data::small();
    entries.push(node("node2", "127.77.0.2"));
    let lain = Lain::over_etcd(&entries).await;
    let (own, of_node2) = (lain.grpc().await, lain.grpc_at("127.77.0.2").await);
    let service = "RebellionLocalprocs";
    let node1 = own.get(service, "").await.expect("a reply").data;
    let node2 = of_node2.get(service, "").await.expect("a reply").data;
    assert_ne!(node1, node2);
    assert!(node2.get("chat.web.web").is_some(), "{node2}");
    for name in ["node2", "127.77.0.2"] {
        assert_eq!(own.with("nodename", name).get(service, "").await.expect("a reply").data, node2, "nodename {name}");
    }
    assert_eq!(of_node2.with("nodename", "node1").get(service, "").await.expect("a reply").data, node1);
    assert_eq!(own.with("nodename", "").get(service, "").await.expect("a reply").data, node1);
    let mut watch = own.with("nodename", "node2").watch(service, "").await.expect("a stream");
    assert_eq!(watch.reply().await, node2);
    // Other views ignore it and have their own parameter.
    let all = own.get("Containers", "").await.expect("a reply");
    assert_eq!(own.with("nodename", "node2").get("Containers", "").await.expect("a reply"), all);
    // Lainlet failed here, because it ignored its own address.
    let specs = |text: &'static str| async { own.get("Localspec", text).await.expect("a reply").data };
    assert_eq!(specs("").await, specs("192.168.77.21").await);
    assert_eq!(of_node2.get("Localspec", "").await.expect("a reply").data, specs("node2").await);
}

#[tokio::test]
async fn a_reply_reflects_at_least_the_revision_that_is_asked_for() {
    let lain = Lain::over_etcd(&data::small()).await;
    let client = lain.grpc().await;
    let loaded = lain.kv.revision().await;
    assert_eq!(client.get("Config", "domain").await.expect("a reply").revision, Some(loaded));
    // Changes elsewhere count as well: the view then reflects that its own data did not change.
    let elsewhere = lain.kv.put("/elsewhere", "x").await;
    let reply = client.with("min-revision", elsewhere).get("Config", "domain").await.expect("a reply");
    assert_eq!(reply.revision, Some(elsewhere));
    for streams in [false, true] {
        let next = lain.kv.revision().await + 1;
        let late = client.with("min-revision", next);
        let ask = tokio::spawn(async move {
            if streams {
                let mut watch = late.watch("Config", "domain").await.expect("a stream");
                (watch.revision, watch.reply().await)
            } else {
                let reply = late.get("Config", "domain").await.expect("a reply");
                (reply.revision, reply.data)
            }
        });
        let domain = format!("at-{next}");
        assert_eq!(lain.kv.put("/lain/config/domain", &domain).await, next);
        assert_eq!(ask.await.expect("no panic"), (Some(next), json!({ "domain": domain })));
    }
}

/// Go's clients accept 4 MiB by default and can be configured for more; the relay has no limit.
#[tokio::test]
async fn replies_may_be_large() {
    let lain = Lain::over_etcd(&[]).await;
    let value = "v".repeat(1 << 20);
    for key in 0..9 {
        lain.kv.put(format!("/lain/config/large/{key}"), &value).await;
    }
    let client = lain.grpc().await.with("min-revision", lain.kv.revision().await);
    let want: Value = (0..9).map(|key| (format!("large/{key}"), value.clone())).collect();
    assert_eq!(client.get("Config", "large/").await.expect("a reply").data, want);
    let mut watch = client.watch("Config", "large/").await.expect("a stream");
    assert_eq!(watch.reply().await, want);
    lain.kv.put("/lain/config/large/0", "small").await;
    assert_eq!(watch.reply().await["large/0"], json!("small"));
}

#[tokio::test]
async fn the_version_names_both_programs_and_the_status_each_watcher() {
    let lain = Lain::over_etcd(&data::small()).await;
    // Anyone may request it.
    let client = lain.grpc_at("127.9.9.9").await;
    let mut lainlet = LainletClient::new(client.channel());
    let version = lainlet.version(EmptyRequest {}).await.expect("a version").into_inner();
    assert_eq!(version.version, format!("2.4.3+etcd-relay.{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(version.api_version, "2.4");

    let watch = lain.grpc().await.watch("Coreinfo", "").await.expect("a stream");
    let rows = lain.grpc().await.watch("Containers", "").await.expect("a stream");
    for (service, text) in SOURCES {
        lain.grpc().await.get(service, text).await.expect("a reply");
    }
    let status = status(&mut lainlet).await;
    assert!(status.goroutines > 0);
    let keys: Vec<_> = status.status.keys().map(String::as_str).collect();
    assert_eq!(keys, ["configwatcher", "containerwatcher", "dependswatcher", "nodeswatcher", "podgroupwatcher"]);
    let of = |name: &str| status.status[name].clone();
    assert_eq!((of("podgroupwatcher").num_receivers, of("containerwatcher").num_receivers), (1, 1));
    assert_eq!(of("nodeswatcher").num_receivers, 0);
    let in_directory = |prefix: &str| data::small().iter().filter(|entry| entry.key.starts_with(prefix)).count();
    assert_eq!(of("nodeswatcher").total_keys as usize, in_directory("/lain/nodes/nodes/"));
    assert_eq!(of("configwatcher").total_keys as usize, in_directory("/lain/config/"));
    assert_eq!(of("podgroupwatcher").total_keys as usize, in_directory("/lain/deployd/pod_groups/"));
    let containers = lain.grpc().await.get("Containers", "").await.expect("a reply").data;
    assert_eq!(of("containerwatcher").total_keys as usize, containers.as_object().expect("an object").len());

    let before = of("configwatcher").update_time;
    assert!(before > 1_700_000_000, "{before} is no time of today");
    let revision = lain.kv.put("/lain/config/secret", "do not tell").await;
    lain.grpc().await.with("min-revision", revision).get("Config", "").await.expect("a reply");
    let after = self::status(&mut lainlet).await.status["configwatcher"].clone();
    let event: Value = serde_json::from_slice(&after.last_event).expect("JSON");
    let want = json!({ "Action": 1, "Key": "/lain/config/secret", "ModifiedIndex": revision, "Data": null });
    assert_eq!(event, want);
    assert!(after.update_time >= before);

    // A client that leaves is no longer counted, even if nothing changes.
    drop((watch, rows));
    eventually("the streams are forgotten", async || {
        let status = self::status(&mut LainletClient::new(client.channel())).await;
        status.status.values().all(|watcher| watcher.num_receivers == 0).then_some(())
    })
    .await;
}

async fn status(lainlet: &mut LainletClient<tonic::transport::Channel>) -> StatusReply {
    lainlet.status(EmptyRequest {}).await.expect("a status").into_inner()
}

/// A client takes OK for the end; after Unavailable it comes back, possibly to another relay.
#[tokio::test]
async fn streams_end_with_unavailable_when_the_relay_stops() {
    let mut lain = Lain::over_etcd(&data::small()).await;
    let client = lain.grpc().await;
    let mut watch = client.watch("Coreinfo", "hello").await.expect("a stream");
    watch.reply().await;
    lain.relay.terminate();
    let status = watch.next().await.expect("no end with OK").expect_err("an end");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcd-relay: the relay is stopping"));
    assert_eq!(lain.relay.exit_code(patience()).await, 0);
}

/// A slow client misses versions, but gets the newest one in the end.
#[tokio::test]
async fn a_slow_client_skips_to_the_newest_reply() {
    let lain = Lain::over_etcd(&[]).await;
    let value = |round: usize| format!("{round:04}").repeat(1 << 16);
    let mut revision = lain.kv.put("/lain/config/load", value(0)).await;
    let mut watch = lain.grpc().await.watch("Config", "load").await.expect("a stream");
    assert_eq!(watch.reply().await, json!({ "load": value(0) }));
    // Far more than the connection's window, without reading.
    let rounds = 100;
    for round in 1..=rounds {
        revision = lain.kv.put("/lain/config/load", value(round)).await;
    }
    lain.grpc().await.with("min-revision", revision).get("Config", "load").await.expect("a reply");
    let mut replies = 0;
    let last = json!({ "load": value(rounds) });
    let read = async {
        loop {
            replies += 1;
            if watch.reply().await == last {
                return;
            }
        }
    };
    timeout(patience(), read).await.expect("the newest reply");
    assert!(replies < rounds, "{replies} replies for {rounds} changes: nothing was skipped");
    let nothing_more = timeout(quiet_time(), watch.next()).await;
    assert!(nothing_more.is_err(), "{nothing_more:.100?} after the newest reply");
}

#[tokio::test]
async fn requests_streams_and_what_goes_to_them_are_counted() {
    let lain = Lain::over_etcd(&data::small()).await;
    let (trusted, unknown) = (lain.grpc().await, lain.grpc_at("127.9.9.9").await);
    trusted.get("Config", "domain").await.expect("a reply");
    unknown.get("Nodes", "").await.expect_err("a refusal");
    trusted.get("Podgroup", "").await.expect_err("a refusal");
    trusted.get("WebrouterWebprocs", "con").await.expect_err("a refusal");
    let mut watch = trusted.watch("Config", "domain").await.expect("a stream");
    watch.reply().await;
    let labels = r#"transport="grpc""#;
    // Nothing was late yet, because the first reply does not count.
    assert_eq!(lain.relay.metric("etcd_relay_view_lag_seconds_count").await, 0.0);
    lain.kv.put("/lain/config/domain", "b").await;
    watch.reply().await;
    for (answer, count) in [("ok", 2.0), ("forbidden", 1.0), ("invalid", 1.0), ("unshowable", 1.0), ("not_ready", 0.0)]
    {
        let metrics = lain.relay.metrics().await;
        let counted = http::series(&metrics, "etcd_relay_view_requests_total")
            .find(|(found, _)| found.contains(labels) && found.contains(&format!("answer=\"{answer}\"")));
        assert_eq!(counted.map(|(_, value)| value), Some(count), "{answer}");
    }
    assert_eq!(lain.relay.metric_of("etcd_relay_view_streams", labels).await, 1.0);
    assert_eq!(lain.relay.metric_of("etcd_relay_view_messages_total", labels).await, 2.0);
    assert!(lain.relay.metric_of("etcd_relay_view_message_bytes_total", labels).await > 0.0);
    assert_eq!(lain.relay.metric("etcd_relay_view_lag_seconds_count").await, 1.0);
    drop(watch);
    eventually("the stream is over", async || {
        (lain.relay.metric_of("etcd_relay_view_streams", labels).await == 0.0).then_some(())
    })
    .await;
}
