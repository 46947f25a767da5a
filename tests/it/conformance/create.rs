//! Create requests: ids, refusals and the answer.

use etcd_relay::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};

use crate::support::{
    client::{self, header_revision, revisions},
    target::Target,
};

const DUPLICATE: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

pub async fn ids_count_from_zero(target: &Target) {
    let (mut stream, ns) = (target.stream().await, target.namespace());
    for id in 0..5 {
        assert_eq!(stream.created(client::prefix(&ns)).await.watch_id, id);
    }
    let mut other = target.stream().await;
    assert_eq!(other.created(client::prefix(&ns)).await.watch_id, 0, "ids are counted per stream");
}

pub async fn a_chosen_id_is_kept(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    for watch_id in [7, 1_i64 << 40, -5] {
        let request = WatchCreateRequest { watch_id, ..client::prefix(&ns) };
        assert_eq!(stream.created(request).await.watch_id, watch_id);
    }
    kv.put(format!("{ns}a"), "1").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let response = stream.next().await;
        assert_eq!(response.events.len(), 1);
        ids.push(response.watch_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [-5, 7, 1 << 40]);
}

pub async fn automatic_ids_step_over_chosen_ones(target: &Target) {
    let (mut stream, ns) = (target.stream().await, target.namespace());
    let chosen = |watch_id| WatchCreateRequest { watch_id, ..client::prefix(&ns) };
    stream.created(chosen(1)).await;
    stream.created(chosen(2)).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(stream.created(chosen(0)).await.watch_id);
    }
    assert_eq!(ids, [0, 3, 4]);
}

pub async fn duplicate_id_is_refused(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let request = WatchCreateRequest { watch_id: 3, ..client::prefix(&ns) };
    stream.created(request.clone()).await;
    stream.create(request);
    assert_refused(&stream.next().await, DUPLICATE);
    let revision = kv.put(format!("{ns}a"), "1").await;
    let response = stream.next().await;
    assert_eq!((response.watch_id, revisions(&response)), (3, vec![revision]), "the first watch continues");
    stream.expect_silence().await;
}

pub async fn an_id_can_be_used_again_after_cancel(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let request = WatchCreateRequest { watch_id: 3, ..client::prefix(&ns) };
    stream.created(request.clone()).await;
    stream.cancel(3);
    assert!(stream.next().await.canceled);
    assert_eq!(stream.created(request).await.watch_id, 3);
    let revision = kv.put(format!("{ns}a"), "1").await;
    assert_eq!(revisions(&stream.next().await), [revision]);
}

pub async fn empty_ranges_are_refused(target: &Target) {
    let mut stream = target.stream().await;
    for (key, range_end) in [("b", "a"), ("b", "b"), ("b\0", "b")] {
        stream.create(WatchCreateRequest { key: key.into(), range_end: range_end.into(), ..Default::default() });
        assert_refused(&stream.next().await, EMPTY_RANGE);
    }
    let ns = target.namespace();
    assert_eq!(stream.created(client::prefix(&ns)).await.watch_id, 0, "a refused create uses no id");
}

pub async fn answers_come_in_the_order_of_requests(target: &Target) {
    let (mut stream, ns) = (target.stream().await, target.namespace());
    for index in 0..300 {
        match index % 3 {
            0 => stream.create(client::key(format!("{ns}{index}"))),
            1 => stream.create(WatchCreateRequest { range_end: "/".into(), ..client::key("0") }),
            _ => stream.create(WatchCreateRequest { watch_id: 1_000 + index, ..client::prefix(&ns) }),
        }
    }
    for index in 0..300 {
        let response = stream.next().await;
        let expected = match index % 3 {
            0 => index / 3,
            1 => -1,
            _ => 1_000 + index,
        };
        assert!(response.created);
        assert_eq!((response.watch_id, response.canceled), (expected, index % 3 == 1), "answer {index}");
    }
}

pub async fn created_headers_say_who_and_when(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let before = kv.put(format!("{ns}a"), "1").await;
    let own = kv.get(format!("{ns}a")).await.expect("just put");
    assert_eq!(own.mod_revision, before);
    let response = stream.created(client::prefix(&ns)).await;
    let after = kv.revision().await;
    let header = response.header.expect("a header");
    assert!((before..=after).contains(&header.revision), "{before}..={after} has not {}", header.revision);
    let answer = kv.range(etcd_relay::pb::etcdserverpb::RangeRequest { key: "x".into(), ..Default::default() }).await;
    let read = answer.header.expect("a header");
    assert_eq!((header.cluster_id, header.raft_term), (read.cluster_id, read.raft_term));
    assert_ne!(header.cluster_id, 0);
    assert_ne!(header.member_id, 0);
    assert_ne!(header.raft_term, 0);
    stream.create(WatchCreateRequest { range_end: "/".into(), ..client::key("0") });
    let refused = stream.next().await.header.expect("a refusal has a header, too");
    assert_eq!((refused.cluster_id, refused.raft_term), (header.cluster_id, header.raft_term));
    assert!(refused.revision >= header.revision);
}

pub async fn a_watch_is_there_once_created_is_answered(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    for round in 0..20 {
        let mut stream = target.stream().await;
        stream.created(client::prefix(&ns)).await;
        let revision = kv.put(format!("{ns}a"), format!("{round}")).await;
        assert_eq!(revisions(&stream.next().await), [revision]);
    }
}

/// etcd has refused it since 2025. Earlier releases accepted it and silently left out the past.
pub async fn negative_start_revision_is_refused(target: &Target) {
    let (mut stream, ns) = (target.stream().await, target.namespace());
    stream.create(WatchCreateRequest { start_revision: -1, ..client::prefix(&ns) });
    let response = stream.next().await;
    if !target.is_etcd() || response.canceled {
        assert_refused(&response, COMPACTED);
    }
    assert!(response.created);
}

fn assert_refused(response: &WatchResponse, reason: &str) {
    assert!(response.created && response.canceled, "not refused: {response:?}");
    assert_eq!((response.watch_id, response.cancel_reason.as_str()), (-1, reason));
    assert_eq!((response.compact_revision, response.events.len()), (0, 0));
    assert_ne!(header_revision(response), 0);
}
