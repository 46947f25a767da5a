//! History: late watches get all of it, or a correct error if etcd itself has lost it.

use etcd_relay::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};

use super::PREFIX;
use crate::support::{
    client::{self, WatchStream, revisions},
    etcd::Etcd,
    gate::Gate,
    kv::Kv,
    relay::{Relay, RelayCommand},
    replay::Replay,
    validate::{Expected, assert_valid},
};

/// etcd's own proxy silently loses 4,000 of the late watch's 5,000 events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_watch_from_the_first_revision_gets_all_5000() {
    let etcd = Etcd::start().await;
    let relay = Relay::over(&etcd.endpoint()).await;
    late_watch(&etcd, &relay).await;
}

/// The same if the relay's history has almost none of it: the gap is filled from etcd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_watch_behind_the_window_gets_all_5000() {
    let etcd = Etcd::start().await;
    let command = RelayCommand::serve(&[etcd.endpoint()]).prefix("").arg("--history-entries=100");
    let relay = command.start().await;
    late_watch(&etcd, &relay).await;
    assert!(
        relay.metric("etcd_relay_history_oldest_revision").await > 4_800.0,
        "the history has only the last entries"
    );
}

async fn late_watch(etcd: &Etcd, relay: &Relay) {
    let kv = Kv::connect(&etcd.endpoint()).await;
    for round in 0..5_000 {
        kv.put("foo", format!("{round}")).await;
    }
    let mut live = WatchStream::open(&relay.endpoint()).await;
    live.created(client::key("foo")).await;
    live.until_revision(kv.put("foo", "live").await).await;
    let mut late = WatchStream::open(&relay.endpoint()).await;
    let request = WatchCreateRequest { start_revision: 2, ..client::key("foo") };
    late.created(request.clone()).await;
    // etcd's own proxy stops after the first batch.
    late.until_revision(900).await;
    let mut last = 0;
    for round in 0..4 {
        last = kv.put("foo", format!("live {round}")).await;
        live.until_revision(last).await;
    }
    let replay = Replay::read(&etcd.endpoint(), last).await;
    assert_eq!(replay.events().len(), 5_005);
    let expected = Expected { complete_to: Some(last), prev_kv_known: true };
    for (stream, request) in [(&mut live, client::key("foo")), (&mut late, request)] {
        stream.until_revision(last).await;
        assert_valid(&[request], &stream.record(), &replay, expected);
    }
}

/// While the relay could not reach etcd, etcd was written to and compacted: what the watches need is gone, and they get
/// an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_while_away_is_told() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = RelayCommand::serve(&[gate.endpoint()]).prefix(PREFIX).start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let key = format!("{PREFIX}a");
    let seen = kv.put(&key, "seen").await;
    let mut streams = Vec::new();
    for request in
        [client::prefix(PREFIX), client::key(&key), WatchCreateRequest { start_revision: seen, ..client::key(&key) }]
    {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(request.clone()).await;
        streams.push((request, stream));
    }
    // A watch whose revision is after the lost ones can continue.
    let mut ahead = WatchStream::open(&relay.endpoint()).await;
    let ahead_request = WatchCreateRequest { start_revision: seen + 100, ..client::key(&key) };
    ahead.created(ahead_request.clone()).await;
    let told = kv.put(&key, "told").await;
    for (_, stream) in &mut streams {
        stream.until_revision(told).await;
    }
    gate.shut();
    let mut lost = Vec::new();
    for round in 0..50 {
        lost.push(kv.put(&key, format!("{round}")).await);
    }
    let compacted = lost[40];
    kv.compact(compacted).await;
    gate.open();
    for (request, stream) in &mut streams {
        let canceled: WatchResponse = stream.until(|response| response.canceled).await;
        assert_eq!(canceled.compact_revision, compacted, "the true compact revision: {request:?}");
        assert!(
            stream
                .record()
                .iter()
                .all(|recorded| revisions(&recorded.response).iter().all(|revision| *revision <= told))
        );
        // The stream survives, and its client can start again where history begins.
        stream.create(WatchCreateRequest { start_revision: compacted, watch_id: 100, ..request.clone() });
    }
    let mut last = 0;
    while last < seen + 105 {
        last = kv.put(&key, "after").await;
    }
    let expected = Expected { complete_to: Some(last), prev_kv_known: false };
    let replay = Replay::read_prefix(&etcd.endpoint(), "", compacted, last).await;
    for (request, stream) in &mut streams {
        stream.until_revision(last).await;
        let again = WatchCreateRequest { start_revision: compacted, watch_id: 100, ..request.clone() };
        let record: Vec<_> = stream.record().into_iter().filter(|recorded| recorded.response.watch_id == 100).collect();
        assert_valid(&[again], &record, &replay, expected);
    }
    ahead.until_revision(last).await;
    assert_valid(&[ahead_request], &ahead.record(), &replay, expected);
    relay.ready().await;
    relay.assert_no_panic();
}

/// A compaction that affects no watch breaks nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_behind_the_watches_breaks_nothing() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = RelayCommand::serve(&[gate.endpoint()]).prefix(PREFIX).start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let key = format!("{PREFIX}a");
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(client::prefix(PREFIX)).await;
    let mut last = kv.put(&key, "seen").await;
    stream.until_revision(last).await;
    gate.shut();
    let compacted = last;
    for round in 0..50 {
        last = kv.put(&key, format!("{round}")).await;
    }
    kv.compact(compacted).await;
    gate.open();
    let replay = Replay::read_prefix(&etcd.endpoint(), "", compacted, last).await;
    stream.until_revision(last).await;
    let expected = Expected { complete_to: Some(last), prev_kv_known: true };
    assert_valid(&[client::prefix(PREFIX)], &stream.record(), &replay, expected);
}
