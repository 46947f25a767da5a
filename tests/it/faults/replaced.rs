//! Another cluster answers at the same address: a restored one, or a new one. Its revisions mean something else, so
//! every watch must be told to start again, and must not get the new cluster's events as a continuation.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_relay::pb::etcdserverpb::{RangeRequest, RangeResponse};
use tokio::task::JoinSet;

use super::PREFIX;
use crate::support::{
    client::{self, WatchStream},
    etcd::Etcd,
    eventually,
    gate::Gate,
    kv::{Kv, put},
    patience,
    relay::{Relay, RelayCommand},
    replay::Replay,
    validate::{Expected, Operation, validate},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_told_of_a_cluster_restored_from_backup() {
    let old = Etcd::start().await;
    write(&old, 20).await;
    let snapshot = old.save_snapshot();
    replace(old, async || Etcd::restored_from(Path::new(&snapshot)).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_told_of_a_new_cluster() {
    let old = Etcd::start().await;
    write(&old, 20).await;
    replace(old, async || Etcd::start().await).await;
}

/// The new cluster's revisions are higher than the old one's, so only its id shows the change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_told_of_a_new_cluster_that_is_ahead() {
    let old = Etcd::start().await;
    write(&old, 20).await;
    let ahead = async || {
        let new = Etcd::start().await;
        write(&new, 300).await;
        new
    };
    replace(old, ahead).await;
}

async fn replace(old: Etcd, make: impl AsyncFnOnce() -> Etcd) {
    let gate = Gate::before(&old.endpoint()).await;
    let relay = RelayCommand::serve(&[gate.endpoint()]).prefix(PREFIX).start().await;
    let mut streams = Vec::new();
    for request in [client::prefix(PREFIX), client::key(format!("{PREFIX}3"))] {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(request.clone()).await;
        streams.push((request, stream));
    }
    let last = write(&old, 50).await;
    let replay = Replay::read(&old.endpoint(), last).await;
    for (_, stream) in &mut streams {
        stream.until(|response| !response.events.is_empty()).await;
    }
    eventually("the relay has everything of the old cluster", async || {
        let record = streams[0].1.record();
        record.iter().any(|recorded| client::revisions(&recorded.response).contains(&last)).then_some(())
    })
    .await;
    let new = make().await;
    gate.point_at(&new.endpoint());
    gate.cut();
    drop(old);
    for (request, stream) in &mut streams {
        eventually("the watch is told", async || {
            let canceled = stream.record().iter().any(|recorded| recorded.response.canceled);
            (canceled || stream.has_ended()).then_some(())
        })
        .await;
        // Until then, only events of the old cluster. The cancel itself may come from the new one.
        let before: Vec<_> = stream.record().into_iter().take_while(|recorded| !recorded.response.canceled).collect();
        let operation = Operation::of_stream(std::slice::from_ref(request), &before).remove(0);
        let told = validate(&operation, &replay, Expected::default());
        assert!(told.is_empty(), "{told:?}");
        let after = stream.record().len() - before.len();
        assert!(after <= 1, "nothing comes after the cancel");
    }
    fresh_watch_works(&new, &relay).await;
    relay.assert_no_panic();
}

/// How often the relay must fail to connect before the other cluster starts. By then its next attempt is some seconds
/// away, and its readers reach the other cluster before its feed does.
const ATTEMPTS: f64 = 7.0;
/// Pause between two failing reads of a reader.
const PACE: Duration = Duration::from_millis(5);
/// The values of the key.
const OLD: &str = "old";
const NEW: &str = "new";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_shows_what_was_before_a_write_on_the_new_cluster() {
    let old = Etcd::start().await;
    write(&old, 50).await;
    read_across(old, async |old| {
        drop(old);
        Etcd::start().await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_shows_what_was_before_a_write_on_a_restored_cluster() {
    let old = Etcd::start().await;
    write(&old, 20).await;
    let snapshot = old.save_snapshot();
    write(&old, 50).await;
    read_across(old, async |old| {
        let restored = Etcd::restored_from(&snapshot).await;
        drop(old);
        restored
    })
    .await;
}

/// Its data is an older copy, so its id is the same and only its revision shows the change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_shows_what_was_before_a_write_on_a_cluster_that_went_back() {
    let mut old = Etcd::start().await;
    write(&old, 20).await;
    old.kill();
    let copy = old.copy_data();
    old.restart().await;
    write(&old, 50).await;
    read_across(old, async |mut old| {
        old.roll_back(&copy);
        old.restart().await;
        old
    })
    .await;
}

/// Reads one key without a pause while `exchange` replaces the killed cluster, and checks each answer to a read that
/// began after a write to the new one was acknowledged.
async fn read_across(mut old: Etcd, exchange: impl AsyncFnOnce(Etcd) -> Etcd) {
    let key = format!("{PREFIX}read");
    let before = Kv::connect(&old.endpoint()).await.put_request(put(&key, OLD)).await.header.expect("a header");
    let gate = Gate::before(&old.endpoint()).await;
    let relay = RelayCommand::serve(&[gate.endpoint()]).prefix(PREFIX).start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let kv = Kv::connect(&relay.endpoint()).await;
        assert_eq!(kv.get(&key).await.expect("written").value, OLD);
        readers.spawn(read_until(kv, key.clone(), stop.clone()));
    }
    gate.shut();
    old.kill();
    let attempts = async || relay.metric("etcd_relay_upstream_reconnects_total").await >= ATTEMPTS;
    eventually("the relay has looked for etcd for a while", async || attempts().await.then_some(())).await;
    let new = exchange(old).await;
    let kv = Kv::connect(&new.endpoint()).await;
    gate.point_at(&new.endpoint());
    gate.open();
    let written = kv.put_request(put(&key, NEW)).await.header.expect("a header");
    let acknowledged = Instant::now();
    eventually("the feed begins again", async || {
        (relay.metric("etcd_relay_upstream_resyncs_total").await >= 1.0).then_some(())
    })
    .await;
    let local = async || relay.metric_of("etcd_relay_reads_total", "outcome=\"confirmed\"").await;
    let so_far = local().await;
    eventually("reads are answered from memory again", async || (local().await > so_far + 20.0).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    let answers = readers.join_all().await.concat();
    let (mut judged, mut stale) = (0, Vec::new());
    for (asked, answer) in &answers {
        let header = answer.header.as_ref().expect("a header");
        let value = answer.kvs.first().map(|kv| kv.value.clone()).unwrap_or_default();
        if value == OLD && header.cluster_id != before.cluster_id {
            stale.push(format!("{asked:?}: the old value under the new cluster's name: {header:?}"));
        }
        if *asked > acknowledged {
            judged += 1;
            if value != NEW || header.cluster_id != written.cluster_id || header.revision < written.revision {
                stale.push(format!("{:?} after the write: {value:?}, {header:?}", *asked - acknowledged));
            }
        }
    }
    assert!(stale.is_empty(), "{} of {judged}, such as {:?}", stale.len(), &stale[..stale.len().min(3)]);
    assert!(judged > 20, "only {judged} answers after the write");
    fresh_watch_works(&new, &relay).await;
    relay.assert_no_panic();
}

/// Reads the key until it is told to stop. Returns each answer with the time before its request. Reads fail while etcd
/// is away.
async fn read_until(kv: Kv, key: String, stop: Arc<AtomicBool>) -> Vec<(Instant, RangeResponse)> {
    let mut answers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let request = RangeRequest { key: key.clone().into(), ..RangeRequest::default() };
        let mut raw = kv.raw.clone();
        match tokio::time::timeout(patience(), raw.range(request)).await.expect("a read is answered") {
            Ok(answer) => answers.push((asked, answer.into_inner())),
            // etcd is away. Requests without a pause would take CPU time that the other cluster needs to start.
            Err(_) => tokio::time::sleep(PACE).await,
        }
    }
    answers
}

async fn fresh_watch_works(new: &Etcd, relay: &Relay) {
    relay.ready().await;
    let kv = Kv::connect(&new.endpoint()).await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    let created = stream.created(client::prefix(PREFIX)).await.header.expect("a header");
    let put = kv.put_request(put(format!("{PREFIX}3"), "new")).await.header.expect("a header");
    assert_eq!(created.cluster_id, put.cluster_id, "the relay speaks for the new cluster");
    let response = stream.next().await;
    assert_eq!(client::revisions(&response), [put.revision]);
    let read = Kv::connect(&relay.endpoint()).await.get(format!("{PREFIX}3")).await.expect("just put");
    assert_eq!(read.mod_revision, put.revision, "reads are the new cluster's, too");
    assert!(
        Kv::connect(&relay.endpoint()).await.get(format!("{PREFIX}old")).await.is_none()
            || kv.get(format!("{PREFIX}old")).await.is_some()
    );
}

async fn write(etcd: &Etcd, count: usize) -> i64 {
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut last = 0;
    for round in 0..count {
        last = kv.put(format!("{PREFIX}{}", round % 7), format!("{round}")).await;
    }
    last
}
