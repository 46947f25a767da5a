//! Damage: unreadable values, missing keys, an unavailable etcd, a lost history. The views stay as complete as the data
//! allows, and nobody is told about things that did not change.
//!
//! The start without data is in `startup`; etcd's own watchers in the same situations are in `faults`.

use etcd_relay::pb::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, PutRequest, lease_client::LeaseClient};
use serde_json::{Value, json};

use super::{
    Lain,
    data::{self, Entry},
};
use crate::support::{
    etcd::Etcd,
    eventually, http,
    kv::{self, Kv},
};

const HELLO_WEB: &str = "/lain/deployd/pod_groups/hello/hello.web.web";
const MYSQL_PORTAL: &str = "/lain/deployd/depends/pods/mysql-service.portal.portal-mysql-master";
/// A text in values that must not be shown to anyone.
const SECRET: &str = "s3cr3t-in-a-value";

/// A pod group of the app `bad` with this value.
fn bad(number: usize, value: &str) -> Entry {
    data::entry(&data::group_key(&format!("bad.web.web{number}")), value)
}

/// Values that are not pod groups.
fn refused_groups() -> Vec<String> {
    let good = || serde_json::from_str::<Value>(&data::group("bad.web.web", &[("n", "127.1.1.1", "127.1.1.2")]).value);
    let with = |pointer: &str, value: Value| {
        let mut group = good().expect("a group");
        *group.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        group.to_string()
    };
    let raw = |pointer: &str, number: &str| with(pointer, json!("@")).replace("\"@\"", number);
    let whole = good().expect("a group").to_string();
    vec![
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "7".to_owned(),
        format!("\"{SECRET}\""),
        format!("{{\"Spec\": {{\"Name\": \"{SECRET}"),
        format!("{whole} {SECRET}"),
        format!("{whole}{whole}"),
        format!("\u{feff}{whole}"),
        with("/Spec", json!("text")),
        with("/Spec/Name", json!(7)),
        with("/Spec/Namespace", json!([SECRET])),
        with("/Spec/Pod/Annotation", json!({"mountpoint": []})),
        with("/Spec/Pod/Containers", json!({})),
        with("/Spec/Pod/Containers/0/Env", json!("A=B")),
        with("/Spec/Pod/Containers/0/Expose", json!("80")),
        raw("/Spec/Pod/Containers/0/Expose", "80.0"),
        raw("/Spec/Pod/Containers/0/MemoryLimit", "1e3"),
        raw("/Spec/Pod/Containers/0/MemoryLimit", "9223372036854775808"),
        with("/Pods", json!({})),
        with("/Pods/0/InstanceNo", json!("1")),
        raw("/Pods/0/InstanceNo", "1.5"),
        with("/Pods/0/Containers/0/ContainerIp", json!(127)),
        with("/Pods/0/Containers/0/ContainerPort", json!(true)),
    ]
}

/// The relay's count of unreadable values.
async fn refused_values(lain: &Lain) -> f64 {
    let metrics = lain.relay.metrics().await;
    let changes = http::series(&metrics, "etcd_relay_view_changes_total");
    changes.filter(|(labels, _)| labels.contains(r#"effect="refused""#)).map(|(_, count)| count).sum()
}

/// Log lines at WARN or above that contain this key.
fn warnings_about(lain: &Lain, key: &str) -> usize {
    let log = lain.relay.log();
    log.lines().filter(|line| line.contains(key) && (line.contains("\"WARN\"") || line.contains("\"ERROR\""))).count()
}

/// The content of `/debug`, without the parts that change by themselves.
async fn debug(lain: &Lain) -> String {
    let answer = lain.get("/debug").await;
    assert_eq!(answer.status, 200);
    assert!(answer.json()["watchers"]["podgroup"]["TotalKeys"].is_u64(), "{}", answer.text());
    answer.text().to_owned()
}

#[tokio::test]
async fn values_that_do_not_parse_at_the_start_are_absent_alone() {
    let mut entries = data::small();
    let refused = refused_groups();
    entries.extend(refused.iter().enumerate().map(|(number, value)| bad(number, value)));
    let portal = data::entry("/lain/deployd/depends/pods/bad.portal.portal-bad", &format!("{{\"n\": \"{SECRET}\"}}"));
    let node = data::entry("/lain/nodes/nodes/bad:127.1.1.1:22", &format!("[\"{SECRET}\"]"));
    entries.extend([portal.clone(), node.clone()]);
    let lain = Lain::over_etcd(&entries).await;
    let clean = Lain::embedded(&data::small()).await;
    for uri in [
        "/v2/coreinfowatcher",
        "/v2/procwatcher?appname=*",
        "/v2/containers",
        "/v2/appswatcher",
        "/v2/backupspec",
        "/v2/depends",
        "/v2/nodes",
        "/v2/webrouter/webprocs",
        "/v2/streamrouter/ports",
    ] {
        lain.get(uri).await.assert_is(200, clean.get(uri).await.text(), uri);
    }
    lain.get("/v2/coreinfowatcher?appname=bad").await.assert_is(200, "{}", "the app that has broken groups alone");
    lain.get("/appname?ip=127.1.1.2").await.assert_is(500, "unkown address 127.1.1.2", "an address in a broken group");

    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let count = (refused.len() + 2) as f64;
    assert!(refused_values(&lain).await >= count, "{} of {count} were counted", refused_values(&lain).await);
    let shown = debug(&lain).await;
    for key in [portal.key.as_str(), &node.key, &bad(0, "").key] {
        let name = key.rsplit_once('/').expect("a slash").1;
        assert!(shown.contains(name), "/debug does not name {key}: {shown}");
        assert_eq!(warnings_about(&lain, name), 1, "{key} is logged once; log:\n{}", lain.relay.log());
    }
    assert!(!shown.contains(SECRET), "/debug shows a value: {shown}");
    assert!(!lain.relay.log().contains(SECRET), "the log shows a value:\n{}", lain.relay.log());
    // A repaired group is shown at once.
    let mended = data::group("bad.web.web0", &[("node1", "192.168.77.21", "127.30.0.1")]);
    lain.put(&mended.key, &mended.value).await;
    assert!(lain.get("/v2/coreinfowatcher?appname=bad").await.text().contains("127.30.0.1"));
    lain.relay.assert_no_panic();
}

#[tokio::test]
async fn a_value_that_no_longer_parses_leaves_the_old_one_in_place() {
    let lain = Lain::embedded(&data::small()).await;
    let mut hello = lain.watch("/v2/coreinfowatcher?appname=hello&watch=1").await;
    let mut depends = lain.watch("/v2/depends?watch=1").await;
    let mut nodes = lain.watch("/v2/nodes?watch=1").await;
    let before = [hello.expect(1, "init").await, depends.expect(1, "init").await, nodes.expect(1, "init").await];
    let counted = refused_values(&lain).await;
    let node = "/lain/nodes/nodes/node2:192.168.77.22:22";
    for round in 1..=2_i32 {
        for key in [HELLO_WEB, MYSQL_PORTAL, node] {
            lain.put(key, format!("{{\"{SECRET}\": {round}")).await;
        }
    }
    for ((uri, before), key) in ["/v2/coreinfowatcher?appname=hello", "/v2/depends", "/v2/nodes"]
        .into_iter()
        .zip(&before)
        .zip([HELLO_WEB, MYSQL_PORTAL, node])
    {
        lain.get(uri).await.assert_is(200, before, uri);
        let name = key.rsplit_once('/').expect("a slash").1;
        assert!(debug(&lain).await.contains(name), "/debug does not name {key}");
        assert_eq!(warnings_about(&lain, name), 1, "{key} is logged once; log:\n{}", lain.relay.log());
    }
    assert!((refused_values(&lain).await - counted - 6.0).abs() < 0.5, "each of the six values is counted");
    assert!(!debug(&lain).await.contains(SECRET) && !lain.relay.log().contains(SECRET), "a value is shown");
    // Other keys are still updated, and the pod keeps its address.
    lain.put("/lain/nodes/nodes/node9:127.88.0.9:22", r#"{"name":"node9"}"#).await;
    assert!(nodes.expect(2, "update").await.contains("node9"));
    assert_eq!(lain.peer("127.20.0.8").get("/v2/proxywatcher").await.status, 200);
    // Repaired.
    let changes = data::changes();
    lain.apply(&changes[0]).await;
    hello.expect(2, "update").await;
    lain.delete(MYSQL_PORTAL).await;
    assert!(!depends.expect(2, "delete").await.contains("mysql"));
    lain.delete(node).await;
    assert!(!nodes.expect(3, "delete").await.contains("node2"));
    let shown = debug(&lain).await;
    for key in [HELLO_WEB, MYSQL_PORTAL, node] {
        let name = key.rsplit_once('/').expect("a slash").1;
        let still: Vec<_> = shown.match_indices(name).map(|(at, _)| &shown[at.saturating_sub(80)..at]).collect();
        // The last event of a directory may contain its key.
        assert!(still.iter().all(|before| before.contains("\"Key\":")), "/debug still names {key}: {shown}");
    }
}

#[tokio::test]
async fn null_and_what_is_missing_is_read_as_the_original_does() {
    let lain = Lain::embedded(&[]).await;
    let key = data::group_key("a.web.web");
    for (what, value, expected) in [
        ("all zero", r#"{"Spec":{"Name":"a.web.web"}}"#, r#"{"a.web.web":{"PodInfos":[]}}"#),
        (
            "null for pods",
            r#"{"Spec":{"Name":"a.web.web","Pod":null},"Pods":null}"#,
            r#"{"a.web.web":{"PodInfos":[]}}"#,
        ),
        (
            "unknown members",
            r#"{"x":[{}],"Spec":{"y":1,"Name":"a.web.web"},"Pods":[]}"#,
            r#"{"a.web.web":{"PodInfos":[]}}"#,
        ),
        ("the last of two", r#"{"Spec":{"Name":"b","Name":"a.web.web"}}"#, r#"{"a.web.web":{"PodInfos":[]}}"#),
        ("a lone surrogate", r#"{"Spec":{"Name":"a\ud800b"}}"#, "{\"a\u{fffd}b\":{\"PodInfos\":[]}}"),
        (
            "null for containers",
            r#"{"Spec":{"Name":"a.web.web"},"Pods":[{"InstanceNo":1,"Containers":null}]}"#,
            r#"{"a.web.web":{"PodInfos":[{"Annotation":"","ContainerInfos":[],"Dependencies":[],"InstanceNo":1}]}}"#,
        ),
        (
            "a container that the spec lacks",
            r#"{"Spec":{"Name":"a.web.web","Pod":{"Annotation":"x"}},"Pods":[{"InstanceNo":2,"Containers":[{"Id":"i","NodeName":"n","NodeIp":"m","ContainerIp":"c"}]}]}"#,
            r#"{"a.web.web":{"PodInfos":[{"Annotation":"x","ContainerInfos":[{"Command":null,"ContainerId":"i","ContainerIp":"c","Cpu":0,"Env":null,"Expose":0,"Image":"","Memory":0,"NodeIp":"m","NodeName":"n","Volumes":null}],"Dependencies":[],"InstanceNo":2}]}}"#,
        ),
        (
            "null and empty lists in the spec",
            r#"{"Spec":{"Name":"a.web.web","Pod":{"Dependencies":[{"PodName":"p","Policy":1}],"Containers":[{"Env":[],"Command":null,"Volumes":["v"],"CpuLimit":3,"MemoryLimit":4,"Expose":5,"Image":"i"}]}},"Pods":[{"InstanceNo":1,"Containers":[{}]}]}"#,
            r#"{"a.web.web":{"PodInfos":[{"Annotation":"","ContainerInfos":[{"Command":null,"ContainerId":"","ContainerIp":"","Cpu":3,"Env":[],"Expose":5,"Image":"i","Memory":4,"NodeIp":"","NodeName":"","Volumes":["v"]}],"Dependencies":[{"PodName":"p","Policy":1}],"InstanceNo":1}]}}"#,
        ),
    ] {
        lain.put(&key, value).await;
        lain.get("/v2/coreinfowatcher").await.assert_is(200, expected, what);
    }
    lain.put("/lain/deployd/depends/pods/a", "null").await;
    lain.get("/v2/depends").await.assert_is(200, r#"{"a":{}}"#, "a portal of null");
    lain.put("/lain/deployd/depends/pods/b", r#"{"n":null,"m":{"c":null}}"#).await;
    lain.get("/v2/depends?target=b").await.assert_is(
        200,
        r#"{"b":{"m":{"c":{"Annotation":"","Containers":[]}},"n":{}}}"#,
        "nodes and clients of null",
    );
    lain.put("/lain/nodes/nodes/a:1:2", "null").await;
    lain.put("/lain/nodes/nodes/b:1:2", r#"{"z":1.50,"y":1.0,"x":12345678901234567890,"w":-0.0,"v":1e21,"u":1e-7,"t":null,"s":{"b":[1e2,true],"a":{}},"r":1e-6,"q":123456789012345678901234}"#).await;
    lain.get("/v2/nodes").await.assert_is(
        200,
        r#"{"a:1:2":null,"b:1:2":{"q":1.2345678901234569e+23,"r":0.000001,"s":{"a":{},"b":[100,true]},"t":null,"u":1e-7,"v":1e+21,"w":-0,"x":12345678901234567000,"y":1,"z":1.5}}"#,
        "objects of nodes",
    );
    lain.put("/lain/nodes/nodes/b:1:2", r#"{"z":1e999}"#).await;
    assert!(lain.get("/v2/nodes").await.text().contains(r#""z":1.5"#), "a number out of range refuses the value");
}

#[tokio::test]
async fn every_character_arrives_as_the_original_writes_it() {
    let lain = Lain::embedded(&[]).await;
    let mut stream = lain.watch("/v2/configwatcher?target=x&watch=1").await;
    stream.expect_event(1, "init", "{}").await;
    let cases: [(&[u8], &str); 10] = [
        (b"<a href='x'>&amp;</a>", r"\u003ca href='x'\u003e\u0026amp;\u003c/a\u003e"),
        (br#"a "quoted" \ back/slash"#, r#"a \"quoted\" \\ back/slash"#),
        (b"line\nreturn\rtab\tend", r"line\nreturn\rtab\tend"),
        (b"\x00\x01\x08\x0b\x0c\x1f", r"\u0000\u0001\u0008\u000b\u000c\u001f"),
        ("DEL \u{7f} and \u{85}".as_bytes(), "DEL \u{7f} and \u{85}"),
        ("\u{2028}\u{2029}\u{2027}".as_bytes(), "\\u2028\\u2029\u{2027}"),
        ("维护通知 ü ф".as_bytes(), "维护通知 ü ф"),
        ("😀 𝄞 \u{10ffff}".as_bytes(), "😀 𝄞 \u{10ffff}"),
        (b"\xff a\xc3( \xed\xa0\x80 \xf0\x9f\x98", r"\ufffd a\ufffd( \ufffd\ufffd\ufffd \ufffd\ufffd\ufffd"),
        ("\u{feff}bom \u{fffd}".as_bytes(), "\u{feff}bom \u{fffd}"),
    ];
    for ((value, written), id) in cases.into_iter().zip(2..) {
        lain.put("/lain/config/x", value).await;
        let expected = format!(r#"{{"x":"{written}"}}"#);
        lain.get("/v2/configwatcher?target=x").await.assert_is(200, &expected, &format!("{value:?}"));
        stream.expect_event(id, "update", &expected).await;
    }
    lain.delete("/lain/config/x").await;
    // The same in a key. Keys are sorted by their bytes.
    for key in ["y<\"\\", "y😀", "y\u{ffff}", "ya", "yB"] {
        lain.put(&format!("/lain/config/{key}"), "").await;
    }
    lain.get("/v2/configwatcher?target=y").await.assert_is(
        200,
        "{\"y\\u003c\\\"\\\\\":\"\",\"yB\":\"\",\"ya\":\"\",\"y\u{ffff}\":\"\",\"y😀\":\"\"}",
        "keys",
    );
    // And in values that are parsed first.
    let mut group: Value = serde_json::from_str(&data::group("u.web.web", &[("n", "1", "2")]).value).expect("a group");
    group["Spec"]["Pod"]["Annotation"] = json!("<ü>\u{2028}\n\u{1}\"😀");
    let escaped = group.to_string().replace('ü', r"\u00fc").replace('😀', r"\ud83d\ude00");
    lain.put(&data::group_key("u.web.web"), escaped).await;
    lain.get("/v2/webrouter/webprocs").await.assert_is(
        200,
        r#"{"u.web.web":{"PodInfos":[{"Annotation":"\u003cü\u003e\u2028\n\u0001\"😀","ContainerInfos":[{"ContainerIp":"2","Expose":80}]}]}}"#,
        "an annotation",
    );
}

#[tokio::test]
async fn a_key_that_ends_with_its_lease_is_deleted() {
    let lain = Lain::embedded(&data::small()).await;
    let mut stream = lain.watch("/v2/configwatcher?target=leased&watch=1").await;
    stream.expect_event(1, "init", "{}").await;
    let mut leases = LeaseClient::new(kv::channel(&lain.relay.endpoint()).await);
    let lease = leases.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("a lease").into_inner().id;
    for key in ["a", "b"] {
        let request = kv::put(format!("/lain/config/leased/{key}"), "1");
        lain.kv.put_request(PutRequest { lease, ..request }).await;
    }
    eventually("both are told", async || (stream.next().await.data().contains("leased/b")).then_some(())).await;
    let told = stream.record().len() as u64;
    leases.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoked");
    let after = stream.next().await;
    assert_eq!((after.id, after.kind.as_str()), (told + 1, "delete"), "{after:?}");
    // What one lease deletes is one revision.
    assert_eq!(after.data(), "{}");
}

#[tokio::test]
async fn an_app_that_is_removed_and_comes_back_is_the_same_again() {
    let lain = Lain::embedded(&data::small()).await;
    let uris = ["/v2/proxywatcher?appname=chat", "/v2/streamrouter/ports", "/v2/appswatcher"];
    let mut streams = Vec::new();
    for uri in uris {
        let mut stream = lain.watch(&super::client::with(uri, "watch=1")).await;
        let before = stream.expect(1, "init").await;
        streams.push((stream, before));
    }
    let caller = lain.peer("127.20.0.15");
    assert_eq!(caller.get("/v2/proxywatcher").await.status, 200);
    let groups: Vec<_> = data::small().into_iter().filter(|entry| entry.key.contains("/pod_groups/chat/")).collect();
    assert_eq!(groups.len(), 3);
    for round in 0..3 {
        lain.kv.txn(groups.iter().map(|group| kv::op_delete(&group.key)).collect()).await;
        for ((stream, before), uri) in streams.iter_mut().zip(uris) {
            let gone = stream.expect(2 * round + 2, "delete").await;
            assert!(gone.len() < before.len(), "{uri}: {gone}");
            assert_eq!(gone, lain.get(uri).await.text(), "{uri}");
        }
        assert_eq!(caller.get("/v2/proxywatcher").await.status, 400, "the app's address is nobody's");
        data::load(&lain.kv, &groups).await;
        for ((stream, before), uri) in streams.iter_mut().zip(uris) {
            stream.expect_event(2 * round + 3, "update", before).await;
            lain.get(uri).await.assert_is(200, before, uri);
        }
        assert_eq!(caller.get("/v2/proxywatcher").await.status, 200, "the app has its address back");
    }
}

#[tokio::test]
async fn etcd_goes_and_comes_and_only_what_changed_is_told() {
    let mut lain = Lain::over_etcd(&data::small()).await;
    let mut domain = lain.watch("/v2/configwatcher?target=domain&watch=1").await;
    let mut nodes = lain.watch("/v2/nodes?watch=1").await;
    let mut hello = lain.watch("/v2/proxywatcher?appname=hello&watch=1").await;
    for stream in [&mut domain, &mut nodes, &mut hello] {
        stream.expect(1, "init").await;
    }
    let known = lain.get("/v2/nodes").await;
    lain.etcd.as_mut().expect("an etcd").kill();
    lain.get("/v2/nodes").await.assert_is(200, known.text(), "the last known, while etcd is away");
    let mut late = lain.watch("/v2/nodes?watch=1").await;
    late.expect_event(1, "init", known.text()).await;
    lain.etcd.as_mut().expect("an etcd").restart().await;
    lain.kv = Kv::connect(&lain.etcd.as_ref().expect("an etcd").endpoint()).await;
    lain.kv.put("/lain/config/domain", "after").await;
    domain.expect_event(2, "update", r#"{"domain":"after"}"#).await;
    // The next event of the others is their own next change.
    lain.delete("/lain/nodes/nodes/node3:192.168.77.23:22").await;
    for stream in [&mut nodes, &mut late] {
        assert!(!stream.expect(2, "delete").await.contains("node3"));
    }
    for change in data::changes().iter().take(3) {
        lain.apply_and_reach(change).await;
    }
    hello.expect(2, "update").await;
}

#[tokio::test]
async fn after_a_resync_those_are_told_whose_view_changed() {
    let (lain, gate) = Lain::through_a_gate(&data::small()).await;
    let mut streams = Vec::new();
    for (uri, changes) in [
        ("/v2/configwatcher?target=domain", true),
        ("/v2/configwatcher?target=vips", true),
        ("/v2/configwatcher?target=vip", true),
        ("/v2/configwatcher?target=features", false),
        ("/v2/proxywatcher?appname=chat", true),
        ("/v2/proxywatcher?appname=hello", false),
        ("/v2/containers?nodename=node1", true),
        ("/v2/nodes", true),
        ("/v2/nodes?name=node1", false),
        ("/v2/depends", false),
    ] {
        let mut stream = lain.watch(&super::client::with(uri, "watch=1")).await;
        stream.expect(1, "init").await;
        streams.push((stream, uri, changes));
    }
    gate.shut();
    let kv = &lain.kv;
    kv.put("/lain/config/domain", "while away").await;
    kv.delete("/lain/config/vip").await;
    kv.put("/lain/config/features/graphite", "changed").await;
    kv.put("/lain/config/features/graphite", "True").await;
    kv.delete("/lain/config/vips/192.168.77.201").await;
    for proc in ["chat.web.web", "chat.worker.bot", "chat.worker.gateway"] {
        kv.delete(data::group_key(proc)).await;
    }
    // Line 7: times only.
    data::apply(kv, &data::changes()[6]).await;
    let last = kv.delete("/lain/nodes/nodes/node3:192.168.77.23:22").await;
    kv.compact(last).await;
    gate.open();
    let reached = lain.reached_by("/v2/nodes", last).await;
    assert!(!reached.text().contains("node3"), "{}", reached.text());
    lain.reached(last).await;
    assert!(lain.relay.metric("etcd_relay_upstream_resyncs_total").await >= 3.0, "no feed read its keys again");
    for (stream, uri, changes) in &mut streams {
        let now = lain.get(uri).await;
        if *changes {
            stream.expect_event(2, "update", now.text()).await;
        }
        stream.nothing_up_to(&lain, last).await;
    }
    lain.peer("127.20.0.15").get("/v2/nodes").await.assert_is(
        400,
        "authorize failed, super required",
        "a pod that went",
    );
    lain.get("/appname?ip=127.20.0.15").await.assert_is(500, "unkown address 127.20.0.15", "a pod that went");
    // Everything is restored: this is the next event of each stream.
    let last = data::changes();
    let mut operations: Vec<_> = data::small().iter().map(|entry| kv::op_put(&entry.key, &entry.value)).collect();
    operations.push(kv::op_put("/lain/config/features/new", "1"));
    let revision = lain.kv.txn(operations).await;
    lain.reached(revision).await;
    for (stream, uri, changes) in &mut streams {
        if *changes {
            stream.expect_event(3, "update", lain.get(uri).await.text()).await;
        } else if uri.contains("features") {
            assert!(stream.expect(2, "update").await.contains("features/new"));
        }
    }
    // And the three that have had no event yet: a node, an app, a portal.
    for change in last.iter().take(3).chain([&last[30]]) {
        lain.apply_and_reach(change).await;
    }
    lain.put("/lain/nodes/nodes/node1:192.168.77.21:22", "{}").await;
    for (stream, uri, _) in streams.iter_mut().filter(|(_, uri, changes)| !changes && !uri.contains("features")) {
        stream.expect_event(2, "update", lain.get(uri).await.text()).await;
    }
}

#[tokio::test]
async fn another_cluster_in_its_place_is_told_as_a_change() {
    let (mut lain, gate) = Lain::through_a_gate(&data::small()).await;
    let backup = lain.etcd.as_ref().expect("an etcd").save_snapshot();
    lain.put("/lain/config/domain", "after the backup").await;
    lain.put("/lain/config/later", "1").await;
    let mut domain = lain.watch("/v2/configwatcher?target=domain&watch=1").await;
    let mut later = lain.watch("/v2/configwatcher?target=later&watch=1").await;
    let mut nodes = lain.watch("/v2/nodes?watch=1").await;
    domain.expect_event(1, "init", r#"{"domain":"after the backup"}"#).await;
    later.expect_event(1, "init", r#"{"later":"1"}"#).await;
    nodes.expect(1, "init").await;
    let restored = Etcd::restored_from(&backup).await;
    gate.shut();
    gate.point_at(&restored.endpoint());
    gate.open();
    domain.expect_event(2, "update", r#"{"domain":"lain.local"}"#).await;
    later.expect_event(2, "update", "{}").await;
    lain.kv = Kv::connect(&restored.endpoint()).await;
    lain.etcd = Some(restored);
    let revision = lain.kv.revision().await;
    eventually("an answer names no revision that the new cluster does not have", async || {
        let index = lain.get("/v2/nodes").await.revision().expect("X-Etcd-Index");
        println!("X-Etcd-Index {index}, the new cluster has {revision}");
        (index <= revision).then_some(())
    })
    .await;
    lain.kv.put("/lain/config/later", "2").await;
    later.expect_event(3, "update", r#"{"later":"2"}"#).await;
    lain.kv.delete("/lain/nodes/nodes/node3:192.168.77.23:22").await;
    assert!(!nodes.expect(2, "delete").await.contains("node3"));
}

#[tokio::test]
async fn names_that_begin_with_each_other_live_their_own_lives() {
    let lain = Lain::embedded(&data::small()).await;
    let place = |ip: &'static str| [("node1", "192.168.77.21", ip)];
    for (name, ip) in [("a.web.web", "127.30.0.1"), ("a.web.web2", "127.30.0.2"), ("ab.web.web", "127.30.0.3")] {
        let group = data::group(name, &place(ip));
        lain.put(&group.key, &group.value).await;
    }
    for (node, value) in
        [("n1:127.1.0.1:22", r#"{"n":1}"#), ("n1:127.1.0.1:2222", r#"{"n":2}"#), ("n11:127.1.0.2:22", r#"{"n":3}"#)]
    {
        lain.put(&format!("/lain/nodes/nodes/{node}"), value).await;
    }
    for (key, value) in [("a", "1"), ("a/b", "2"), ("ab", "3")] {
        lain.put(&format!("/lain/config/pre/{key}"), value).await;
    }
    let mut a = lain.watch("/v2/proxywatcher?appname=a&watch=1").await;
    let mut config = lain.watch("/v2/configwatcher?target=pre/a&watch=1").await;
    let seen = a.expect(1, "init").await;
    assert!(seen.contains("127.30.0.1") && seen.contains("127.30.0.2") && !seen.contains("127.30.0.3"), "{seen}");
    config.expect_event(1, "init", r#"{"pre/a":"1"}"#).await;
    // A change that it does not show does not affect it.
    let revision = lain.put("/lain/config/pre/ab", "4").await;
    config.nothing_up_to(&lain, revision).await;
    lain.delete("/lain/config/pre/a").await;
    config.expect_event(2, "delete", r#"{"pre/a/b":"2","pre/ab":"4"}"#).await;
    lain.put("/lain/config/pre/a", "5").await;
    config.expect_event(3, "update", r#"{"pre/a":"5"}"#).await;
    lain.delete(&data::group_key("a.web.web")).await;
    let seen = a.expect(2, "delete").await;
    assert!(!seen.contains("127.30.0.1") && seen.contains("127.30.0.2"), "{seen}");
    assert!(lain.get("/v2/proxywatcher?appname=ab").await.text().contains("127.30.0.3"));
    lain.delete("/lain/nodes/nodes/n1:127.1.0.1:22").await;
    lain.get("/v2/nodes?name=n1").await.assert_is(200, r#"{"n1:127.1.0.1:2222":{"n":2}}"#, "n1");
    lain.get("/v2/nodes?name=n11").await.assert_is(200, r#"{"n11:127.1.0.2:22":{"n":3}}"#, "n11");
    // Keys beside the directories are not in them.
    let before = lain.get("/v2/configwatcher").await;
    lain.put("/lain/config_backup/domain", "trap").await;
    lain.put("/lain/config", "trap").await;
    lain.put("/lain/config/", "trap").await;
    lain.get("/v2/configwatcher").await.assert_is(200, before.text(), "keys beside /lain/config/");
}

#[tokio::test]
async fn an_answer_to_debug_shows_no_value() {
    let lain = Lain::embedded(&data::small()).await;
    lain.put("/lain/config/rsyncd_secrets", SECRET).await;
    let answer = http::get(lain.relay.http_addr(), "/debug").await.expect("/debug answers");
    let debug: Value = serde_json::from_str(&answer.body).expect("JSON");
    for source in ["config", "container", "depends", "nodes", "podgroup"] {
        let watcher = &debug["watchers"][source];
        assert!(watcher["NumReceivers"].is_u64() && watcher["UpdateTime"].is_string(), "{source}: {watcher}");
        assert!(watcher["LastEvent"]["Data"].is_null(), "{source}: {watcher}");
    }
    assert!(!answer.body.contains(SECRET), "{}", answer.body);
}
