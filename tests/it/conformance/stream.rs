//! Which events a watch gets, and what ends it.

use etcd_relay::pb::{
    etcdserverpb::{DeleteRangeRequest, WatchCreateRequest, WatchRequest, WatchResponse},
    mvccpb::event::EventType,
};

use crate::support::{
    client::{self, WatchStream, header_revision, revisions},
    kv::{self, channel, op_delete, op_put},
    target::Target,
};

pub async fn a_single_key_watch_sees_that_key_alone(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    stream.created(client::key(format!("{ns}b"))).await;
    for key in ["a", "b", "bb", "c", "b"] {
        kv.put(format!("{ns}{key}"), "1").await;
    }
    assert_eq!(keys(&mut stream, 2, &ns).await, ["b", "b"]);
    stream.expect_silence().await;
}

pub async fn a_prefix_watch_sees_the_prefix_alone(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    stream.created(client::prefix(format!("{ns}b"))).await;
    for key in ["a", "b", "bb", "c", "b\u{7f}"] {
        kv.put(format!("{ns}{key}"), "1").await;
    }
    assert_eq!(keys(&mut stream, 3, &ns).await, ["b", "bb", "b\u{7f}"]);
    stream.expect_silence().await;
}

pub async fn range_end_zero_is_every_key_from_the_first_on(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    // Other tests write as well, so the first key is after all of theirs.
    let from = format!("~{ns}b");
    stream.created(WatchCreateRequest { range_end: "\0".into(), ..client::key(&from) }).await;
    for key in ["a", "b", "c"] {
        kv.put(format!("~{ns}{key}"), "1").await;
    }
    kv.put(format!("~~{ns}"), "1").await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let events = stream.next().await.events;
        seen.extend(events.into_iter().map(|event| event.kv.expect("a key").key).filter(|key| {
            let key = String::from_utf8_lossy(key).into_owned();
            key.contains(&ns)
        }));
    }
    assert_eq!(seen, [format!("~{ns}b"), format!("~{ns}c"), format!("~~{ns}")]);
}

pub async fn an_interval_ends_before_its_end(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let interval = WatchCreateRequest { range_end: kv::bytes(format!("{ns}c")), ..client::key(format!("{ns}a")) };
    stream.created(interval).await;
    for key in ["", "a", "b\u{7f}", "c", "d", "bb"] {
        kv.put(format!("{ns}{key}"), "1").await;
    }
    assert_eq!(keys(&mut stream, 3, &ns).await, ["a", "b\u{7f}", "bb"]);
    stream.expect_silence().await;
}

pub async fn an_empty_key_is_the_zero_key(target: &Target) {
    let (mut all, mut zero) = (target.stream().await, target.stream().await);
    let (ns, kv) = (target.namespace(), target.kv().await);
    all.created(WatchCreateRequest { range_end: "\0".into(), ..Default::default() }).await;
    zero.created(WatchCreateRequest::default()).await;
    let key = format!("{ns}a");
    kv.put(&key, "1").await;
    let revision = kv.put("\0", &ns).await;
    let mine = |response: &WatchResponse| {
        response.events.iter().any(|event| event.kv.as_ref().is_some_and(|kv| kv.key == key || kv.value == ns))
    };
    assert_eq!(all.until(mine).await.events[0].kv.as_ref().expect("a key").key, key, "everything includes that key");
    all.until_revision(revision).await;
    let response = zero.until(mine).await;
    assert_eq!(revisions(&response), [revision], "no range end: that key alone");
}

pub async fn a_request_without_content_is_ignored(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    stream.send(WatchRequest { request_union: None });
    stream.created(client::prefix(&ns)).await;
    stream.send(WatchRequest { request_union: None });
    let revision = kv.put(format!("{ns}a"), "1").await;
    assert_eq!(revisions(&stream.next().await), [revision]);
    stream.expect_silence().await;
}

pub async fn half_close_keeps_the_stream(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    stream.created(client::prefix(&ns)).await;
    stream.half_close();
    stream.expect_silence().await;
    for round in 0..3 {
        let revision = kv.put(format!("{ns}a"), format!("{round}")).await;
        assert_eq!(revisions(&stream.next().await), [revision]);
    }
    assert!(!stream.has_ended());
}

pub async fn cancel_ends_one_watch_and_no_other(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    stream.created(client::prefix(&ns)).await;
    stream.created(client::prefix(&ns)).await;
    let before = kv.put(format!("{ns}a"), "1").await;
    for _ in 0..2 {
        assert_eq!(revisions(&stream.next().await), [before]);
    }
    stream.cancel(0);
    let canceled = stream.next().await;
    assert!(canceled.canceled && !canceled.created && canceled.events.is_empty());
    assert_eq!((canceled.watch_id, canceled.cancel_reason.as_str(), canceled.compact_revision), (0, "", 0));
    assert!(header_revision(&canceled) >= before);
    let after = kv.put(format!("{ns}a"), "2").await;
    let response = stream.next().await;
    assert_eq!((response.watch_id, revisions(&response)), (1, vec![after]));
    stream.expect_silence().await;
    stream.cancel(0);
    stream.expect_silence().await;
}

pub async fn cancel_of_an_unknown_id_is_not_answered(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    stream.created(client::prefix(&ns)).await;
    for id in [1, 99, -1, i64::MAX] {
        stream.cancel(id);
    }
    stream.expect_silence().await;
    let revision = kv.put(format!("{ns}a"), "1").await;
    assert_eq!(revisions(&stream.next().await), [revision]);
}

pub async fn watches_of_one_stream_are_independent(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    stream.created(client::key(format!("{ns}a"))).await;
    stream.created(client::key(format!("{ns}b"))).await;
    stream.created(client::prefix(&ns)).await;
    stream.created(client::prefix(&ns)).await;
    let revision = kv.put(format!("{ns}b"), "1").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let response = stream.next().await;
        assert_eq!(revisions(&response), [revision]);
        ids.push(response.watch_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
    stream.expect_silence().await;
}

pub async fn streams_of_one_connection_are_independent(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    let connection = channel(&target.endpoint()).await;
    let mut streams: Vec<_> = (0..20).map(|_| WatchStream::over(connection.clone(), &[])).collect();
    for stream in &mut streams {
        assert_eq!(stream.created(client::prefix(&ns)).await.watch_id, 0);
    }
    drop(streams.drain(..10));
    let revision = kv.put(format!("{ns}a"), "1").await;
    for stream in &mut streams {
        assert_eq!(revisions(&stream.next().await), [revision]);
    }
}

pub async fn live_headers_carry_the_revision_of_their_events(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let created = stream.created(client::prefix(&ns)).await.header.expect("a header");
    // Writes of other tests may come while the watch is created. etcd then has it catch up, and the header of what a
    // watch catches up with has the current revision. The watch is live once it has had an event.
    let first = kv.put(format!("{ns}a"), "first").await;
    assert_eq!(revisions(&stream.next().await), [first]);
    for round in 0..5 {
        let revision = kv.put(format!("{ns}a"), format!("{round}")).await;
        let response = stream.next().await;
        let header = response.header.expect("a header");
        assert_eq!((header.revision, revisions(&response)), (revision, vec![revision]));
        assert_eq!((header.cluster_id, header.member_id), (created.cluster_id, created.member_id));
        assert_ne!(header.raft_term, 0);
    }
}

pub async fn a_transaction_arrives_whole_and_in_order(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    kv.put(format!("{ns}gone"), "1").await;
    stream.created(client::prefix(&ns)).await;
    let names = ["z", "m", "a", "q"];
    let mut operations: Vec<_> = names.iter().map(|name| op_put(format!("{ns}{name}"), name)).collect();
    operations.insert(2, op_delete(format!("{ns}gone")));
    let revision = kv.txn(operations).await;
    let response = stream.next().await;
    assert_eq!(revisions(&response), [revision; 5], "one response has the whole revision");
    let told: Vec<_> = response.events.iter().map(|event| (event.r#type(), short_key(event, &ns))).collect();
    let expected = [
        ("z", EventType::Put),
        ("m", EventType::Put),
        ("gone", EventType::Delete),
        ("a", EventType::Put),
        ("q", EventType::Put),
    ];
    assert_eq!(told, expected.map(|(key, kind)| (kind, key.to_owned())));
    stream.expect_silence().await;
}

pub async fn a_delete_of_many_keys_arrives_whole(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    for index in 0..30 {
        kv.put(format!("{ns}{index:02}"), "1").await;
    }
    stream.created(client::prefix(&ns)).await;
    let request = DeleteRangeRequest { key: kv::bytes(&ns), range_end: kv::prefix_end(&ns), ..Default::default() };
    let revision = kv.delete_request(request).await.header.expect("a header").revision;
    let response = stream.next().await;
    assert_eq!(revisions(&response), vec![revision; 30]);
    for (index, event) in response.events.iter().enumerate() {
        let deleted = event.kv.as_ref().expect("a key");
        assert_eq!((event.r#type(), short_key(event, &ns)), (EventType::Delete, format!("{index:02}")));
        assert_eq!((deleted.version, deleted.create_revision, deleted.value.len()), (0, 0, 0));
        assert!(event.prev_kv.is_none());
    }
}

pub async fn leader_wanted_and_there_changes_nothing(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    let mut stream = WatchStream::open_with(&target.endpoint(), &[("hasleader", "true")]).await;
    stream.created(client::prefix(&ns)).await;
    let revision = kv.put(format!("{ns}a"), "1").await;
    assert_eq!(revisions(&stream.next().await), [revision]);
}

/// The keys of the next events, without the namespace.
async fn keys(stream: &mut WatchStream, count: usize, namespace: &str) -> Vec<String> {
    let mut keys = Vec::new();
    while keys.len() < count {
        let response = stream.next().await;
        keys.extend(response.events.iter().map(|event| short_key(event, namespace)));
    }
    keys
}

fn short_key(event: &etcd_relay::pb::mvccpb::Event, namespace: &str) -> String {
    let key = String::from_utf8_lossy(&event.kv.as_ref().expect("a key").key).into_owned();
    key.strip_prefix(namespace).map_or_else(|| key.clone(), ToOwned::to_owned)
}
