//! Watches and reads of compacted revisions.

use etcd_relay::pb::etcdserverpb::{CompactionRequest, RangeRequest, WatchCreateRequest, WatchResponse};
use tonic::Code;

use crate::support::{
    client::{self, header_revision, is_progress, revisions},
    kv::Kv,
    target::Target,
};

pub async fn a_compacted_start_is_refused_with_the_revision(target: &Target) {
    let (kv, written) = compacted(target).await;
    let mut stream = target.stream().await;
    let created = stream.created(from(1)).await;
    assert_eq!(created.watch_id, 0);
    assert_compacted(&stream.next().await, 0, written[5]);
    let created = stream.created(from(written[4])).await;
    assert_compacted(&stream.next().await, created.watch_id, written[5]);
    kv.put("a", "after").await;
    stream.expect_silence().await;
}

pub async fn the_compact_revision_itself_can_be_watched(target: &Target) {
    let (_, written) = compacted(target).await;
    let mut stream = target.stream().await;
    stream.created(from(written[5])).await;
    let mut told = Vec::new();
    while told.len() < 5 {
        told.extend(revisions(&stream.next().await));
    }
    assert_eq!(told, written[5..]);
}

pub async fn a_compacted_watch_keeps_its_id_until_canceled(target: &Target) {
    let (_, written) = compacted(target).await;
    let mut stream = target.stream().await;
    let request = WatchCreateRequest { watch_id: 5, ..from(1) };
    stream.created(request.clone()).await;
    assert_compacted(&stream.next().await, 5, written[5]);
    stream.create(request);
    let refused = stream.next().await;
    assert!(refused.created && refused.canceled);
    assert_eq!(refused.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    stream.cancel(5);
    let canceled = stream.next().await;
    assert!(canceled.canceled);
    assert_eq!((canceled.watch_id, canceled.compact_revision), (5, 0));
    assert!(header_revision(&canceled) >= written[9]);
    let created = stream.created(WatchCreateRequest { watch_id: 5, ..from(0) }).await;
    assert_eq!(created.watch_id, 5);
}

pub async fn a_compacted_watch_leaves_others_alone(target: &Target) {
    let (kv, written) = compacted(target).await;
    let mut stream = target.stream().await;
    stream.created(from(0)).await;
    stream.created(from(1)).await;
    assert_compacted(&stream.next().await, 1, written[5]);
    let revision = kv.put("a", "after").await;
    let response = stream.next().await;
    assert_eq!((response.watch_id, revisions(&response)), (0, vec![revision]));
}

pub async fn a_compacted_watch_silences_progress_until_canceled(target: &Target) {
    let (_, written) = compacted(target).await;
    let mut stream = target.stream().await;
    stream.created(from(0)).await;
    stream.created(from(1)).await;
    assert_compacted(&stream.next().await, 1, written[5]);
    stream.progress();
    stream.expect_silence().await;
    stream.cancel(1);
    assert!(stream.next().await.canceled);
    stream.progress();
    let progress = stream.next().await;
    assert!(is_progress(&progress));
    assert_eq!(progress.watch_id, -1);
}

pub async fn a_live_watch_survives_compaction(target: &Target) {
    let kv = target.kv().await;
    let mut stream = target.stream().await;
    stream.created(from(0)).await;
    for _ in 0..10 {
        let revision = kv.put("a", "x").await;
        kv.compact(revision).await;
        assert_eq!(revisions(&stream.next().await), [revision]);
    }
    stream.expect_silence().await;
}

pub async fn prev_kv_of_the_compact_revision_is_gone(target: &Target) {
    let (kv, written) = compacted(target).await;
    let mut streams = Vec::new();
    for first in [5, 6] {
        let mut stream = target.stream().await;
        stream.created(WatchCreateRequest { prev_kv: true, ..from(written[first]) }).await;
        let mut told = Vec::new();
        while told.len() < 10 - first {
            told.extend(stream.next().await.events);
        }
        for (event, index) in told.iter().zip(first..) {
            let prev = event.prev_kv.as_ref().map(|prev| (prev.mod_revision, prev.value.to_vec()));
            // A previous value at the compact revision itself is compacted.
            let expected = (index > 5).then(|| (written[index - 1], (index - 1).to_string().into_bytes()));
            assert_eq!(prev, expected, "what revision {} replaced, from {first} on", written[index]);
        }
        streams.push(stream);
    }
    let revision = kv.put("a", "after").await;
    for mut stream in streams {
        let after = stream.next().await.events.remove(0);
        assert_eq!(after.kv.expect("a key-value").mod_revision, revision);
        assert!(after.prev_kv.is_some(), "a live event's previous value is known");
    }
}

pub async fn a_read_of_the_compacted_past_is_refused(target: &Target) {
    let (kv, written) = compacted(target).await;
    for serializable in [false, true] {
        let read = |revision| RangeRequest { key: "a".into(), revision, serializable, ..Default::default() };
        let status = kv.raw.clone().range(read(written[4])).await.expect_err("compacted");
        let expected = (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
        assert_eq!((status.code(), status.message()), expected);
        let kept = kv.range(read(written[5])).await;
        assert_eq!(kept.kvs[0].mod_revision, written[5], "the compact revision itself can be read");
    }
}

pub async fn compaction_is_refused_in_the_same_words(target: &Target) {
    let (kv, written) = compacted(target).await;
    for (revision, words) in [
        (written[4], "etcdserver: mvcc: required revision has been compacted"),
        (written[9] + 100, "etcdserver: mvcc: required revision is a future revision"),
    ] {
        let request = CompactionRequest { revision, physical: false };
        let status = kv.raw.clone().compact(request).await.expect_err(words);
        assert_eq!((status.code(), status.message()), (Code::OutOfRange, words));
    }
}

/// Puts the key "a" ten times and compacts at the sixth revision.
async fn compacted(target: &Target) -> (Kv, Vec<i64>) {
    let kv = target.kv().await;
    let mut written = Vec::new();
    for round in 0..10 {
        written.push(kv.put("a", format!("{round}")).await);
    }
    kv.compact(written[5]).await;
    (kv, written)
}

fn from(start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest { start_revision, ..client::key("a") }
}

fn assert_compacted(response: &WatchResponse, watch_id: i64, compact_revision: i64) {
    assert!(response.canceled && !response.created && response.events.is_empty(), "not canceled: {response:?}");
    assert_eq!((response.watch_id, response.compact_revision), (watch_id, compact_revision));
    assert_eq!((response.cancel_reason.as_str(), header_revision(response)), ("", 0));
    assert_ne!(response.header.as_ref().expect("a header").cluster_id, 0);
}
