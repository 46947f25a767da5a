//! Values and responses of many MiB, beyond gRPC's default limits, and in fragments from etcd.

use etcd_relay::pb::etcdserverpb::{RangeRequest, WatchCreateRequest};

use super::PREFIX;
use crate::support::{
    client::{self, WatchStream, revisions},
    etcd::Etcd,
    gate::Gate,
    kv::{Kv, bytes, op_put, prefix_end},
    relay::RelayCommand,
    replay::Replay,
    validate::{Expected, assert_valid},
};

const MIB: usize = 1 << 20;

/// 12 MiB in one transaction; with previous values 24 MiB in one response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transactions_pass() {
    let etcd = Etcd::start_with(&["--max-request-bytes=16777216"]).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    // Through the relay: a forwarded request may be as large as etcd allows.
    let kv = Kv::connect(&relay.endpoint()).await;
    let mut streams = Vec::new();
    for (prev_kv, fragment) in [(false, false), (true, false), (true, true)] {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        let request = WatchCreateRequest { prev_kv, fragment, ..client::prefix(PREFIX) };
        stream.created(request.clone()).await;
        streams.push((request, stream));
    }
    let mut last = 0;
    for fill in [b'a', b'b', b'c'] {
        last = kv.txn((0..4).map(|index| op_put(format!("{PREFIX}{index}"), vec![fill; 3 * MIB])).collect()).await;
    }
    let replay = Replay::read(&etcd.endpoint(), last).await;
    for (request, stream) in &mut streams {
        stream.until_revision(last).await;
        let expected = Expected { complete_to: Some(last), prev_kv_known: true };
        assert_valid(std::slice::from_ref(request), &stream.record(), &replay, expected);
    }
    let request =
        RangeRequest { key: bytes(PREFIX), range_end: prefix_end(PREFIX), serializable: true, ..Default::default() };
    assert_eq!(kv.range(request).await.kvs.len(), 4, "a read of 12 MiB");
    relay.assert_log_has_only(&[]);
}

/// After a break, etcd sends up to 1000 revisions in one response, which is split if it is larger than 2 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_catch_up_arrives_in_fragments_and_is_complete() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = RelayCommand::serve(&[gate.endpoint()]).prefix(PREFIX).arg("--history-bytes=4194304").start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut live = WatchStream::open(&relay.endpoint()).await;
    live.created(client::prefix(PREFIX)).await;
    let first = kv.put(format!("{PREFIX}0"), "first").await;
    live.until_revision(first).await;
    gate.shut();
    for round in 0..40 {
        kv.put(format!("{PREFIX}{}", round % 3), vec![b'a' + round % 26; MIB]).await;
    }
    // A single revision that is larger than a fragment.
    kv.txn((0..3).map(|index| op_put(format!("{PREFIX}txn{index}"), vec![b'x'; MIB / 3])).collect()).await;
    gate.open();
    let last = kv.put(format!("{PREFIX}0"), "last").await;
    // A watch from before the relay's history of 4 MiB, so that its gap is filled in fragments as well.
    let mut late = WatchStream::open(&relay.endpoint()).await;
    let request = WatchCreateRequest { start_revision: first, prev_kv: true, ..client::prefix(PREFIX) };
    late.created(request.clone()).await;
    let replay = Replay::read(&etcd.endpoint(), last).await;
    let expected = Expected { complete_to: Some(last), prev_kv_known: true };
    for (request, stream) in [(client::prefix(PREFIX), &mut live), (request, &mut late)] {
        stream.until_revision(last).await;
        assert_valid(&[request], &stream.record(), &replay, expected);
    }
    relay.assert_no_panic();
}

/// A prefix with more than one page, and more than the default limit of a message, is complete when the relay is ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_prefix_is_loaded_at_the_start() {
    let etcd = Etcd::start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    for round in 0..60 {
        kv.put(format!("{PREFIX}big/{round:02}"), vec![b'x'; MIB]).await;
    }
    for chunk in 0..30 {
        kv.txn((0..100).map(|index| op_put(format!("{PREFIX}small/{chunk:02}{index:02}"), "x")).collect()).await;
    }
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let cached = Kv::connect(&relay.endpoint()).await;
    let request =
        RangeRequest { key: bytes(PREFIX), range_end: prefix_end(PREFIX), serializable: true, ..Default::default() };
    let (told, mut expected) = (cached.range(request.clone()).await, kv.range(request).await);
    expected.header.as_mut().expect("a header").member_id = told.header.as_ref().expect("a header").member_id;
    assert_eq!(told.count, 3_060);
    assert!(told == expected, "the same key-values as etcd's");
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(client::prefix(PREFIX)).await;
    let revision = kv.delete(format!("{PREFIX}big/00")).await;
    assert_eq!(revisions(&stream.next().await), [revision]);
}
