//! Tests of the store as its users see it. `tests/it/store.rs` compares requests with a real etcd.

mod model;
mod service;

use std::{num::NonZeroUsize, time::Duration};

use futures_util::FutureExt;

use super::*;
use crate::{
    hub::upstream::{Upstream, UpstreamError, UpstreamWatch, WatchMessage, WatchRequest},
    pb::etcdserverpb::{RequestOp, request_op::Request},
    types::{EventKind, KeyRange},
};

fn put(store: &Store, key: &'static str, value: &'static str) -> Revision {
    let response = store.put(&put_request(key, value)).expect("a put");
    Revision::new(response.header.expect("a header").revision)
}

fn put_request(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() }
}

fn compact(store: &Store, revision: i64) {
    store.compact(&CompactionRequest { revision, physical: false }).expect("a compaction");
}

async fn watch_all(store: &Store, start: i64) -> Box<dyn UpstreamWatch> {
    let range = KeyRange::prefix("".into());
    let request = WatchRequest { range, start_revision: Revision::new(start), prev_kv: true };
    store.watch(request).await.expect("a watch")
}

/// The watch's next message; `None` if there is none now.
fn now(watch: &mut Box<dyn UpstreamWatch>) -> Option<WatchMessage> {
    watch.next().now_or_never().map(|message| message.expect("an open watch"))
}

/// `revision kind key` of each event that the watch has now.
fn events_now(watch: &mut Box<dyn UpstreamWatch>) -> Vec<String> {
    match now(watch) {
        None => Vec::new(),
        Some(WatchMessage::Events { revisions, .. }) => revisions
            .iter()
            .flat_map(|changes| changes.events.iter().map(|event| (changes.revision, event)))
            .map(|(revision, event)| format!("{revision} {:?} {}", event.kind, event.kv.key.escape_ascii()))
            .collect(),
        other => panic!("no events: {other:?}"),
    }
}

#[tokio::test]
async fn a_watch_gets_what_was_and_what_comes_and_nothing_twice() {
    let store = Store::default();
    put(&store, "a", "1");
    let mut all = watch_all(&store, 1).await;
    let mut later = watch_all(&store, 0).await;
    assert_eq!(all.created().revision, Revision::new(2));
    assert_eq!(events_now(&mut all), ["2 Put a"]);
    assert!(now(&mut all).is_none() && now(&mut later).is_none(), "nothing has happened since");
    put(&store, "b", "1");
    store.delete_range(&DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() }).expect("a delete");
    assert_eq!(events_now(&mut all), ["3 Put b", "4 Delete a"]);
    assert_eq!(events_now(&mut later), ["3 Put b", "4 Delete a"]);
}

#[tokio::test]
async fn a_waiting_watch_is_woken() {
    let store = Store::default();
    let mut watch = watch_all(&store, 0).await;
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    put(&store, "a", "1");
    assert!(matches!(waiting.await.expect("no panic"), Ok(WatchMessage::Events { .. })));
}

#[tokio::test]
async fn a_watch_gets_only_its_range() {
    let store = Store::default();
    let request =
        WatchRequest { range: KeyRange::prefix("a/".into()), start_revision: Revision::new(2), prev_kv: false };
    let mut watch = store.watch(request).await.expect("a watch");
    let ops = ["a/1", "b/1", "a/2"].map(|key| RequestOp { request: Some(Request::RequestPut(put_request(key, ""))) });
    store.txn(&TxnRequest { success: ops.into(), ..TxnRequest::default() }).expect("a transaction");
    put(&store, "c", "1");
    assert_eq!(events_now(&mut watch), ["2 Put a/1", "2 Put a/2"]);
    assert!(now(&mut watch).is_none());
}

#[tokio::test]
async fn a_watch_from_a_compacted_revision_is_told_the_oldest_that_is_left() {
    let store = Store::default();
    for _ in 0..5 {
        put(&store, "a", "1");
    }
    compact(&store, 4);
    let mut gone = watch_all(&store, 3).await;
    assert!(
        matches!(now(&mut gone), Some(WatchMessage::Compacted { compact_revision }) if compact_revision.get() == 4)
    );
    assert!(matches!(gone.next().await, Err(UpstreamError::Unavailable(_))), "it has ended");
    let mut oldest = watch_all(&store, 4).await;
    let Some(WatchMessage::Events { revisions, .. }) = now(&mut oldest) else { panic!("events") };
    assert_eq!(revisions.iter().map(|changes| changes.revision.get()).collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(revisions[0].prev, [None], "what the compacted revision replaced is gone");
    assert_eq!(revisions[1].prev[0].as_ref().map(|kv| kv.mod_revision.get()), Some(4));
}

#[tokio::test]
async fn of_a_key_changed_twice_in_the_compact_revision_the_last_change_stays() {
    let store = Store::default();
    let delete_all = DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), ..DeleteRangeRequest::default() };
    let ops = [Request::RequestPut(put_request("a", "1")), Request::RequestDeleteRange(delete_all)];
    let success = ops.map(|request| RequestOp { request: Some(request) }).into();
    store.txn(&TxnRequest { success, ..TxnRequest::default() }).expect("a transaction");
    assert_eq!(events_now(&mut watch_all(&store, 2).await), ["2 Put a", "2 Delete a"]);
    compact(&store, 2);
    assert_eq!(events_now(&mut watch_all(&store, 2).await), ["2 Delete a"]);
}

#[tokio::test]
async fn progress_comes_after_the_events_and_not_before_a_future_start() {
    let store = Store::default();
    let mut watch = watch_all(&store, 0).await;
    put(&store, "a", "1");
    watch.request_progress().await.expect("an open watch");
    assert_eq!(events_now(&mut watch), ["2 Put a"]);
    assert!(matches!(now(&mut watch), Some(WatchMessage::Progress(header)) if header.revision.get() == 2));
    assert!(now(&mut watch).is_none(), "one answer a request");

    let mut future = watch_all(&store, 4).await;
    future.request_progress().await.expect("an open watch");
    assert!(now(&mut future).is_none());
    put(&store, "a", "2");
    assert!(matches!(now(&mut future), Some(WatchMessage::Progress(header)) if header.revision.get() == 3));
    put(&store, "a", "3");
    assert_eq!(events_now(&mut future), ["4 Put a"]);
}

#[tokio::test]
async fn a_long_history_comes_in_bounded_messages() {
    let store = Store::default();
    for _ in 0..2500 {
        put(&store, "a", "1");
    }
    put(&store, "b", "1");
    let mut watch = watch_all(&store, 2).await;
    let mut sizes = Vec::new();
    while let Some(WatchMessage::Events { revisions, .. }) = now(&mut watch) {
        sizes.push(revisions.len());
    }
    assert_eq!(sizes, [1000, 1000, 501]);
    let range = KeyRange::single("b".into());
    let mut rare =
        store.watch(WatchRequest { range, start_revision: Revision::new(2), prev_kv: false }).await.expect("a watch");
    assert!(matches!(rare.next().await, Ok(WatchMessage::Events { revisions, .. }) if revisions.len() == 1));
}

#[tokio::test]
async fn pages_are_pinned_to_their_revision() {
    let store = Store::default();
    for key in ["a", "b", "c"] {
        put(&store, key, "old");
    }
    let pinned = store.header().revision;
    put(&store, "b", "new");
    let range = KeyRange::prefix("".into());
    let first = store.page(&range, Some(pinned), 2).await.expect("a page");
    assert!(first.more && first.header.revision == pinned.next());
    assert_eq!(first.kvs.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"old", b"old"]);
    let rest = range.after(&first.kvs[1].key).expect("the rest");
    let second = store.page(&rest, Some(pinned), 2).await.expect("a page");
    assert!(!second.more && second.kvs.len() == 1);
    compact(&store, pinned.get() + 1);
    assert!(matches!(store.page(&rest, Some(pinned), 2).await, Err(UpstreamError::Compacted)));
    let confirmed = store.confirm(Some(pinned)).await.expect("an answer");
    assert!(confirmed.compacted && confirmed.header.revision == pinned.next());
    assert!(!store.confirm(Some(pinned.next())).await.expect("an answer").compacted);
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_with_its_time_and_takes_its_keys_in_one_revision() {
    let store = Store::default();
    let cancel = CancellationToken::new();
    let expiry = tokio::spawn(store.clone().expire_leases(cancel.clone()));
    store.lease_grant(&LeaseGrantRequest { id: 7, ttl: 10 }).expect("a lease");
    store.lease_grant(&LeaseGrantRequest { id: 8, ttl: 60 }).expect("a lease");
    for key in ["a", "b", "c"] {
        store.put(&PutRequest { lease: 7, ..put_request(key, "1") }).expect("a put");
    }
    // A key that was detached from the lease stays.
    store.put(&PutRequest { lease: 8, ..put_request("c", "2") }).expect("a put");
    let mut watch = watch_all(&store, 0).await;

    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(store.lease_keep_alive(&LeaseKeepAliveRequest { id: 7 }).ttl, 10);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(now(&mut watch).is_none(), "it was kept alive");
    let left = store.lease_time_to_live(&LeaseTimeToLiveRequest { id: 7, keys: true });
    assert_eq!((left.ttl, left.granted_ttl, left.keys), (4, 10, vec!["a".into(), "b".into()]));

    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(events_now(&mut watch), ["6 Delete a", "6 Delete b"]);
    assert_eq!(store.lease_keep_alive(&LeaseKeepAliveRequest { id: 7 }).ttl, 0);
    assert_eq!(store.leases().leases, [LeaseStatus { id: 8 }]);
    cancel.cancel();
    expiry.await.expect("no panic");
}

#[test]
fn lease_ids_and_times_are_bounded_as_in_etcd() {
    let store = Store::default();
    let chosen = store.lease_grant(&LeaseGrantRequest { id: 0, ttl: 1 }).expect("a lease");
    assert!(chosen.id > 0 && chosen.ttl == 2);
    let again = store.lease_grant(&LeaseGrantRequest { id: chosen.id, ttl: 1 });
    assert_eq!(again, Err(StoreError::LeaseExists));
    let long = store.lease_grant(&LeaseGrantRequest { id: 0, ttl: 9_000_000_001 });
    assert_eq!(long, Err(StoreError::LeaseTtlTooLarge));
}

#[test]
fn too_much_history_is_compacted_away() {
    let revisions = NonZeroUsize::new(10).expect("not zero");
    let store = Store::new(StoreConfig { history_revisions: revisions, ..StoreConfig::default() });
    for _ in 0..50 {
        put(&store, "a", "1");
    }
    let at = |revision| store.range(&RangeRequest { key: "a".into(), revision, ..RangeRequest::default() });
    assert_eq!(at(41), Err(StoreError::Compacted));
    assert_eq!(at(42).map(|response| response.kvs[0].version), Ok(41));

    let store = Store::new(StoreConfig { history_bytes: 10_000, ..StoreConfig::default() });
    let large = "x".repeat(3000);
    for _ in 0..50 {
        store
            .put(&PutRequest { key: "a".into(), value: large.clone().into(), ..PutRequest::default() })
            .expect("a put");
    }
    assert!(store.sizes().1 <= 10_000);
    assert_eq!(store.shared.state.lock().mvcc.log_from(Revision::ZERO).count(), 3);
}

#[test]
fn a_full_store_refuses_puts_and_takes_deletes() {
    let store = Store::new(StoreConfig { quota_bytes: 4000, ..StoreConfig::default() });
    let large = PutRequest { key: "a".into(), value: "x".repeat(3000).into(), ..PutRequest::default() };
    store.put(&large).expect("room");
    assert_eq!(store.put(&PutRequest { key: "b".into(), ..large.clone() }), Err(StoreError::NoSpace));
    let op = RequestOp { request: Some(Request::RequestPut(large.clone())) };
    let txn = TxnRequest { success: vec![op], ..TxnRequest::default() };
    assert_eq!(store.txn(&txn), Err(StoreError::NoSpace));
    store.delete_range(&DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() }).expect("a delete");
    store.put(&large).expect("room again");
}

#[test]
fn requests_are_bounded_as_in_etcd() {
    let store = Store::default();
    let ops = |count: usize| -> Vec<_> {
        let op = |index: usize| {
            let put = PutRequest { key: format!("{index}").into(), ..PutRequest::default() };
            RequestOp { request: Some(Request::RequestPut(put)) }
        };
        (0..count).map(op).collect()
    };
    let txn = |success| TxnRequest { success, ..TxnRequest::default() };
    store.txn(&txn(ops(128))).expect("as many as are allowed");
    assert_eq!(store.txn(&txn(ops(129))), Err(StoreError::TooManyOps));
    let nested = RequestOp { request: Some(Request::RequestTxn(txn(ops(100)))) };
    assert_eq!(store.txn(&txn(vec![nested; 29])), Err(StoreError::TooManyOps));
    let value = "x".repeat(1536 * 1024).into();
    let large = PutRequest { key: "a".into(), value, ..PutRequest::default() };
    assert_eq!(store.put(&large), Err(StoreError::RequestTooLarge));
    assert_eq!(store.header().revision, Revision::new(2), "what is refused changes nothing");
}

#[tokio::test(start_paused = true)]
async fn the_example_data_changes_without_growing() {
    let store = Store::default();
    let keys = demo::seed(&store).expect("the data");
    assert_eq!(keys, 68);
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), count_only: true, ..RangeRequest::default() };
    let count = || store.range(&all).expect("a count").count;
    assert_eq!(count(), 68);
    let seeded = store.header().revision;
    let cancel = CancellationToken::new();
    let config = demo::DemoConfig { interval: Duration::from_millis(100) };
    let changing = tokio::spawn(demo::keep_changing(store.clone(), config, cancel.clone()));
    let mut watch = watch_all(&store, 0).await;
    let (mut puts, mut deletes) = (0, 0);
    while puts + deletes < 200 {
        let Ok(WatchMessage::Events { revisions, .. }) = watch.next().await else { panic!("only events") };
        for event in revisions.iter().flat_map(|changes| &changes.events) {
            *(if event.kind == EventKind::Put { &mut puts } else { &mut deletes }) += 1;
            assert!(event.kind == EventKind::Delete || !event.kv.value.is_empty());
        }
        assert!((67..=68).contains(&count()), "at most one machine is away");
    }
    assert!(puts >= 160 && deletes >= 15, "{puts} puts, {deletes} deletes");
    cancel.cancel();
    changing.await.expect("no panic");
    assert!(store.header().revision.get() >= seeded.get() + 200);
}
