//! etcd's v2 API over v3 data: what its clients rely on, with several relays and writers at the same time.

use std::collections::BTreeSet;

use etcd_relay::pb::etcdserverpb::{LeaseLeasesRequest, LeaseTimeToLiveRequest, lease_client::LeaseClient};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::store::Store;
use crate::support::{
    etcd::{Etcd, Http},
    eventually,
    kv::{self, Kv},
    patience,
    relay::{Relay, RelayCommand},
};

/// A relay with the v2 API, and a client of it.
async fn facade(etcd: &Etcd) -> (Relay, Store) {
    let mut relay = RelayCommand::serve(&[etcd.endpoint()]).arg("--listen-v2=127.0.0.1:0").start().await;
    let store = Store::at(&relay.addr_of("v2").await);
    (relay, store)
}

/// A wait whose head was read.
struct Wait {
    lines: BufReader<TcpStream>,
    index: i64,
}

impl Wait {
    async fn open(store: &Store, target: &str) -> Self {
        let mut stream = TcpStream::connect(store.addr()).await.expect("a connection");
        let request = format!("GET /v2/keys{target} HTTP/1.0\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut lines = BufReader::new(stream);
        let mut index = 0;
        loop {
            let mut line = String::new();
            timeout(patience(), lines.read_line(&mut line)).await.expect("a head at once").expect("a line");
            if let Some(value) = line.to_lowercase().strip_prefix("x-etcd-index: ") {
                index = value.trim().parse().expect("an index");
            }
            if line == "\r\n" {
                return Self { lines, index };
            }
        }
    }

    async fn event(&mut self) -> Value {
        let mut line = String::new();
        timeout(patience(), self.lines.read_line(&mut line)).await.expect("an event").expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    async fn ends(mut self) {
        let mut rest = Vec::new();
        timeout(patience(), self.lines.read_to_end(&mut rest)).await.expect("an end").expect("an orderly end");
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

#[tokio::test]
async fn what_v2_writes_v3_reads_and_the_other_way_round() {
    let etcd = Etcd::start().await;
    let (_relay, store) = facade(&etcd).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let made = store.put("/a/b/c", &[("value", "<1>")]).await;
    assert_eq!(
        made.body,
        json!({"action": "set", "node": {"key": "/a/b/c", "value": "<1>", "modifiedIndex": made.index, "createdIndex": made.index}})
    );
    assert_eq!(&kv.get("/a/b/c").await.expect("a key").value[..], b"<1>");
    assert!(kv.get("/a/b/").await.is_some(), "no mark");
    let at = kv.put("/x/y", "2").await;
    let read = store.ask("GET", "/x?recursive=true&quorum=true", &[]).await;
    let nodes = json!([{"key": "/x/y", "value": "2", "modifiedIndex": at, "createdIndex": at}]);
    assert_eq!(read.body["node"]["nodes"], nodes);
    assert_eq!(store.ask("GET", "/a/b/c/d", &[]).await.body["errorCode"], 104);
    assert_eq!(store.ask("GET", "/q/r", &[]).await.body["cause"], "/q");
    let gone = store.ask("DELETE", "/a?recursive=true", &[]).await;
    assert_eq!((gone.status, &gone.body["node"]["dir"]), (200, &json!(true)));
    assert_eq!(kv.get("/a/b/c").await, None);
}

#[tokio::test]
async fn the_demo_offers_its_own_store_over_the_v2_api_too() {
    let mut demo = RelayCommand::demo().arg("--listen-v2=127.0.0.1:0").start().await;
    let store = Store::at(&demo.addr_of("v2").await);
    let made = store.put("/a/b", &[("value", "1")]).await;
    assert_eq!((made.status, &made.body["action"]), (201, &json!("set")), "{made:?}");
    let read = store.ask("GET", "/a?recursive=true", &[]).await;
    assert_eq!(read.body["node"]["nodes"], json!([made.body["node"]]));
    let kv = Kv::connect(&demo.endpoint()).await;
    assert_eq!(&kv.get("/a/b").await.expect("a key").value[..], b"1", "the store of the v3 API");
    let mut wait = Wait::open(&store, "/a?wait=true&recursive=true").await;
    assert_eq!(wait.index, made.index);
    let at = kv.put("/a/c", "2").await;
    let event = wait.event().await;
    let node = json!({"key": "/a/c", "value": "2", "modifiedIndex": at, "createdIndex": at});
    assert_eq!((&event["action"], &event["node"]), (&json!("set"), &node));
    demo.assert_no_panic();
}

#[tokio::test]
async fn compare_and_swap_counts_right_through_two_facades() {
    const WRITERS: usize = 6;
    const EACH: usize = 20;
    let etcd = Etcd::start().await;
    let (one, first) = facade(&etcd).await;
    let (two, second) = facade(&etcd).await;
    first.set("/counter", "0").await;
    let count = async |store: Store| {
        for _ in 0..EACH {
            loop {
                let read = store.ask("GET", "/counter?quorum=true", &[]).await;
                let value: usize = read.body["node"]["value"].as_str().expect("a value").parse().expect("a number");
                let index = read.body["node"]["modifiedIndex"].to_string();
                let fields = [("value", &*(value + 1).to_string()), ("prevIndex", &*index)];
                let written = store.ask("PUT", "/counter", &fields).await;
                match written.status {
                    200 => break,
                    412 => assert_eq!(written.body["errorCode"], 101, "{written:?}"),
                    _ => panic!("{written:?}"),
                }
            }
        }
    };
    let writers = (0..WRITERS).map(|writer| count(if writer % 2 == 0 { first.clone() } else { second.clone() }));
    futures_util::future::join_all(writers).await;
    let last = first.ask("GET", "/counter?quorum=true", &[]).await;
    assert_eq!(last.body["node"]["value"], (WRITERS * EACH).to_string());
    one.assert_no_panic();
    two.assert_no_panic();
}

#[tokio::test]
async fn no_name_is_given_twice_and_names_grow() {
    let etcd = Etcd::start().await;
    let (_one, first) = facade(&etcd).await;
    let (_two, second) = facade(&etcd).await;
    let post = async |store: Store| {
        let mut names = Vec::new();
        for _ in 0..20 {
            let made = store.ask("POST", "/queue", &[("value", "x")]).await;
            assert_eq!(made.status, 201, "{made:?}");
            names.push(made.body["node"]["key"].as_str().expect("a key").to_owned());
        }
        assert!(names.is_sorted(), "{names:?}");
        names
    };
    let posted = futures_util::future::join_all([post(first.clone()), post(second.clone()), post(first.clone())]).await;
    let names: BTreeSet<String> = posted.into_iter().flatten().collect();
    assert_eq!(names.len(), 60);
    assert_eq!(first.list("/queue").await.1.len(), 60);
}

#[tokio::test]
async fn keys_end_when_their_time_comes_and_not_before() {
    let etcd = Etcd::start().await;
    let (_relay, store) = facade(&etcd).await;
    let mut wait = Wait::open(&store, "/t?wait=true&recursive=true&stream=true").await;
    let begun = std::time::Instant::now();
    let made = store.put("/t/k", &[("value", "x"), ("ttl", "2")]).await;
    assert_eq!(made.body["node"]["ttl"], 2, "{made:?}");
    store.put("/t/d", &[("dir", "true"), ("ttl", "2")]).await;
    store.set("/t/d/k", "y").await;
    for action in ["set", "set", "set", "expire", "expire"] {
        let event = wait.event().await;
        assert_eq!(event["action"], action, "{event}");
        if action == "expire" {
            let lived = begun.elapsed();
            assert!(lived.as_secs() >= 2, "{event} after {lived:?}");
        }
    }
    assert_eq!(store.list("/t").await.1.len(), 0);
}

#[tokio::test]
async fn waits_are_told_each_change_once_from_the_past_and_as_it_comes() {
    let etcd = Etcd::start().await;
    let (_relay, store) = facade(&etcd).await;
    let first = store.set("/w/a", "1").await;
    let second = store.put("/w/b", &[("value", "2"), ("prevExist", "false")]).await.index;
    let mut past = Wait::open(&store, &format!("/w?wait=true&recursive=true&waitIndex={first}")).await;
    assert_eq!((past.event().await["node"]["modifiedIndex"].clone(), past.index), (json!(first), second));
    past.ends().await;
    let mut next = Wait::open(&store, &format!("/w?wait=true&recursive=true&waitIndex={}", first + 1)).await;
    assert_eq!(next.event().await["action"], "create");
    let mut all = Wait::open(&store, &format!("/w?wait=true&recursive=true&stream=true&waitIndex={first}")).await;
    let mut single = Wait::open(&store, "/w/b?wait=true").await;
    let mut hidden = Wait::open(&store, "/w?wait=true&recursive=true").await;
    store.set("/w/_h", "3").await;
    store.put("/w/b", &[("ttl", "100"), ("refresh", "true"), ("prevExist", "true")]).await;
    let gone = store.delete("/w").await;
    for (action, index) in [("set", first), ("create", second), ("delete", gone)] {
        let event = all.event().await;
        assert_eq!((&event["action"], &event["node"]["modifiedIndex"]), (&json!(action), &json!(index)), "{event}");
    }
    for wait in [&mut single, &mut hidden] {
        let event = wait.event().await;
        assert_eq!((&event["action"], &event["node"]["key"]), (&json!("delete"), &json!("/w")), "{event}");
    }
}

#[tokio::test]
async fn what_is_too_large_or_makes_no_sense_is_refused_and_hurts_nobody() {
    let etcd = Etcd::start().await;
    let (mut relay, store) = facade(&etcd).await;
    for (form, code) in [("ttl=x", 202), ("prevIndex=-1", 203), ("dir=maybe", 209), ("a=%zz", 210), ("prevValue=", 201)]
    {
        let answer = store.ask("PUT", &format!("/k?{form}"), &[]).await;
        assert_eq!((answer.status, &answer.body["errorCode"]), (400, &json!(code)), "{form}: {answer:?}");
    }
    let huge = "x".repeat(20 << 20);
    if let Ok(answer) = store.try_ask("PUT", "/k", &[("value", &huge)]).await {
        assert_eq!((answer.status, &answer.body["errorCode"]), (400, &json!(210)), "{answer:?}");
    }
    let large = store.ask("PUT", "/k", &[("value", &"x".repeat(3 << 20))]).await;
    assert_eq!((large.status, &large.body["errorCode"]), (400, &json!(210)), "{large:?}");
    let deep = store.ask("PUT", &"/d".repeat(200), &[("value", "x")]).await;
    assert_eq!((deep.status, &deep.body["errorCode"]), (400, &json!(210)), "{deep:?}");
    let before = relay.resident_bytes();
    let mut waits = Vec::new();
    for _ in 0..1_000 {
        let mut stream = TcpStream::connect(store.addr()).await.expect("a connection");
        stream
            .write_all(b"GET /v2/keys/?wait=true&recursive=true&stream=true HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("sent");
        waits.push(stream);
    }
    for round in 0..50 {
        store.set("/k", &format!("{round}{}", "y".repeat(1_000))).await;
    }
    eventually("the facade answers", async || (store.ask("GET", "/k", &[]).await.status == 200).then_some(())).await;
    assert!(relay.resident_bytes() < before + (512 << 20), "{} bytes more", relay.resident_bytes() - before);
    assert!(relay.is_running());
    relay.assert_no_panic();
}

/// Each component of a path is looked up, and the look-ups copied the path: such a path once needed a gigabyte.
#[tokio::test]
async fn a_path_of_any_depth_takes_no_more_memory_and_time_than_its_length() {
    let etcd = Etcd::start().await;
    let (relay, store) = facade(&etcd).await;
    store.set("/d", "x").await;
    let before = relay.resident_bytes();
    let path = format!("/a{}", "/d".repeat(30_000));
    for _ in 0..4 {
        for (method, status, code) in [("GET", 404, 100), ("PUT", 400, 210), ("POST", 400, 210), ("DELETE", 400, 210)] {
            let answer = store.ask(method, &path, &[("value", "x")]).await;
            assert_eq!((answer.status, &answer.body["errorCode"]), (status, &json!(code)), "{method}");
        }
    }
    assert!(relay.resident_bytes() < before + (256 << 20), "{} bytes more", relay.resident_bytes() - before);
    relay.assert_no_panic();
}

/// Each directory of the path was copied for its waits: half a terabyte for one v3 key.
#[tokio::test]
async fn a_key_that_is_too_deep_for_v2_holds_up_no_wait() {
    let etcd = Etcd::start().await;
    let (relay, store) = facade(&etcd).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut wait = Wait::open(&store, "/?wait=true&recursive=true").await;
    kv.put("/d".repeat(500_000), "x").await;
    let at = kv.put("/told", "x").await;
    assert_eq!(wait.event().await["node"]["modifiedIndex"], at);
    let listed = store.ask("GET", "/?recursive=true&quorum=true", &[]).await;
    assert_eq!(listed.body["node"]["nodes"].as_array().map(Vec::len), Some(1), "{:?}", listed.body);
    relay.assert_no_panic();
}

#[tokio::test]
async fn a_directory_whose_time_was_over_while_no_relay_ran_goes_when_one_is_back() {
    let etcd = Etcd::start().await;
    let (relay, store) = facade(&etcd).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let kept = [("dir", "true"), ("ttl", "5")];
    store.put("/set", &kept).await;
    store.put("/made", &kept[..1]).await;
    store.put("/made", &[kept[0], kept[1], ("prevExist", "true")]).await;
    for path in ["/set", "/made"] {
        store.set(&format!("{path}/sub/key"), "x").await;
    }
    drop(relay);
    let mut leases = LeaseClient::new(kv::channel(&etcd.endpoint()).await);
    for path in ["/set/", "/made/"] {
        let id = kv.get(path).await.expect("a mark").lease;
        let lease = leases.lease_time_to_live(LeaseTimeToLiveRequest { id, keys: false }).await;
        let left = lease.expect("a lease").get_ref().ttl;
        assert!(left > 24 * 3600, "{path}: etcd would end the mark alone after {left} s");
    }
    let (_relay, store) = facade(&etcd).await;
    eventually("the directories are gone, with all that was in them", async || {
        let left = store.ask("GET", "/?recursive=true&quorum=true", &[]).await;
        left.body["node"]["nodes"].is_null().then_some(())
    })
    .await;
    eventually("their leases are gone as well", async || {
        let left = leases.clone().lease_leases(LeaseLeasesRequest {}).await;
        left.expect("leases").get_ref().leases.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_cluster_whose_progress_cannot_be_trusted_is_read_and_written_like_any_other() {
    let Some(etcd) = Etcd::of_version("3.4.23", &[], Http::Shared).await else { return };
    let (relay, store) = facade(&etcd).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    for round in 0..20 {
        store.set("/a/b", &round.to_string()).await;
        let read = store.ask("GET", "/a/b", &[]).await;
        assert_eq!(read.body["node"]["value"], round.to_string(), "a client reads what it has written");
    }
    // The feed gets no event for this revision.
    let at = kv.put("elsewhere", "1").await;
    let read = store.ask("GET", "/a?quorum=true", &[]).await;
    assert_eq!((read.status, read.index), (200, at), "{read:?}");
    assert_eq!(read.body["node"]["nodes"][0]["value"], "19", "{read:?}");
    assert_eq!(store.ask("GET", "/a/b?quorum=true", &[]).await.body["node"]["value"], "19");
    for (path, code, cause) in [("/a/c", 100, "/a/c"), ("/q/r", 100, "/q"), ("/a/b/c/d", 104, "/a/b")] {
        let refused = store.ask("GET", &format!("{path}?quorum=true"), &[]).await;
        assert_eq!((&refused.body["errorCode"], &refused.body["cause"]), (&json!(code), &json!(cause)), "{refused:?}");
        assert_eq!(refused.body["index"], at, "{refused:?}");
    }
    let mut names = Vec::new();
    for _ in 0..3 {
        kv.put("elsewhere", "2").await;
        let made = store.ask("POST", "/queue", &[("value", "x")]).await;
        assert_eq!(made.status, 201, "{made:?}");
        names.push(made.body["node"]["key"].as_str().expect("a key").to_owned());
    }
    assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    relay.assert_no_panic();
}

#[tokio::test]
async fn names_in_the_root_grow_and_its_mark_is_not_shown() {
    let etcd = Etcd::start().await;
    let (_relay, store) = facade(&etcd).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut names = Vec::new();
    for _ in 0..3 {
        let made = store.ask("POST", "", &[("value", "x")]).await;
        assert_eq!(made.status, 201, "{made:?}");
        let name = made.body["node"]["key"].as_str().expect("a key").to_owned();
        let mark = kv.get("/").await.expect("a mark");
        assert_eq!(mark.mod_revision, made.index, "the mark is as new as the last name");
        store.delete(&name).await;
        names.push(name);
    }
    assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    let root = store.ask("GET", "/?recursive=true", &[]).await;
    assert_eq!(root.body, json!({"action": "get", "node": {"dir": true}}));
}

/// Sends a request whose answer is never read to its end, and returns the status of the answer.
async fn ask_and_leave_unread(addr: &str, from: &str, request: &[u8]) -> (TcpStream, u16) {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Little of the answer fits into the sockets; the rest stays with the relay.
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    socket.bind(format!("{from}:0").parse().expect("an address")).expect("a port");
    let mut stream = socket.connect(addr.parse().expect("an address")).await.expect("a connection");
    stream.write_all(request).await.expect("sent");
    let mut head = [0; 12];
    timeout(patience(), stream.read_exact(&mut head)).await.expect("an answer").expect("a head");
    let status = std::str::from_utf8(&head[9..]).expect("text").parse().expect("a status");
    (stream, status)
}

#[tokio::test]
async fn a_client_that_leaves_its_answers_unread_is_refused_before_the_relays_memory_is_full_of_them() {
    const LEN: usize = 700 << 10;
    let etcd = Etcd::start().await;
    let (relay, store) = facade(&etcd).await;
    let form = |fields: &str| {
        let head = "PUT /v2/keys/large HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded";
        format!("{head}\r\nContent-Length: {}\r\n\r\n{fields}", fields.len()).into_bytes()
    };
    // Each byte is six in the answer.
    let value = "\u{1}".repeat(LEN);
    let (stream, status) = ask_and_leave_unread(store.addr(), "127.0.0.1", &form(&format!("value={value}"))).await;
    assert_eq!(status, 201);
    drop(stream);
    let refused = form(&format!("value=x&prevValue=y{value}"));
    let mut unread = Vec::new();
    // The error names both values, in eight megabytes. The client's share is 256 MiB.
    let after = loop {
        let (stream, status) = ask_and_leave_unread(store.addr(), "127.0.0.1", &refused).await;
        unread.push(stream);
        match status {
            412 => assert!(unread.len() < 100, "none is refused"),
            status => break status,
        }
    };
    assert_eq!((after, unread.len() > 10), (500, true), "{}", unread.len());
    let (other, status) = ask_and_leave_unread(store.addr(), "127.0.0.2", &refused).await;
    assert_eq!(status, 412, "another client's write is answered");
    drop((unread, other));
    eventually("the client has room again", async || {
        (ask_and_leave_unread(store.addr(), "127.0.0.1", &refused).await.1 == 412).then_some(())
    })
    .await;
    relay.assert_no_panic();
}
