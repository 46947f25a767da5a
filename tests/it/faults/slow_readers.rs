//! Clients that do not read: other clients are not affected, memory stays bounded, and later they get everything or an
//! error.

use std::time::{Duration, Instant};

use super::{PREFIX, full_scale};
use crate::support::{
    client::{self, WatchStream, event_revision},
    etcd::Etcd,
    kv::Kv,
    relay::{Relay, RelayCommand},
    replay::Replay,
    validate::{Expected, Operation, assert_valid, validate},
};

/// Connections that do not read.
const SLOW: usize = 20;
/// Writes under load. At full scale there are more and smaller ones: 200 healthy readers keep what they get in the
/// test's own process.
const WRITES: (usize, usize) = (500, 2_000);
/// Bytes per write. In both cases a client that does not read is MiB behind.
const VALUE: (usize, usize) = (16 << 10, 4 << 10);
/// How much the relay may grow: its history of 8 MiB, the newest values of few keys, buffers of some hundred sockets,
/// and what the allocator keeps.
const GROWTH: u64 = 160 << 20;

/// The results of a healthy reader.
struct Healthy {
    median: Duration,
    worst: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_hurt_nobody_and_get_everything() {
    let (etcd, relay) = servers().await;
    let without = load(&etcd, &relay, healthy_count()).await;
    let mut slow = slow_readers(&relay).await;
    let before = relay.resident_bytes();
    let with = load(&etcd, &relay, healthy_count()).await;
    let growth = relay.resident_bytes().saturating_sub(before);
    println!(
        "median {:?} → {:?}, worst {:?} → {:?}, growth {} KiB",
        without.median,
        with.median,
        without.worst,
        with.worst,
        growth >> 10
    );
    assert!(growth < GROWTH, "grew by {growth} bytes");
    // If slow clients stalled healthy ones, the difference would be seconds; a busy machine causes milliseconds.
    assert!(with.median < without.median * 3 + Duration::from_millis(100), "{:?} → {:?}", without.median, with.median);
    assert!(with.worst < without.worst * 3 + Duration::from_secs(2), "{:?} → {:?}", without.worst, with.worst);
    let last = Kv::connect(&etcd.endpoint()).await.put(format!("{PREFIX}last"), "x").await;
    let replay = Replay::read(&etcd.endpoint(), last).await;
    for stream in &mut slow {
        stream.resume();
    }
    for stream in &mut slow {
        stream.until_revision(last).await;
        let expected = Expected { complete_to: Some(last), prev_kv_known: true };
        assert_valid(&[client::prefix(PREFIX)], &stream.record(), &replay, expected);
    }
    relay.assert_no_panic();
}

/// What they did not read is gone from the relay's history and from etcd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_behind_a_compaction_are_told() {
    let (etcd, relay) = servers().await;
    let mut slow = slow_readers(&relay).await;
    load(&etcd, &relay, 1).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let replay = Replay::read(&etcd.endpoint(), kv.put(format!("{PREFIX}compact"), "x").await).await;
    let compacted = kv.revision().await;
    kv.compact(compacted).await;
    for stream in &mut slow {
        stream.resume();
    }
    for stream in &mut slow {
        let canceled = stream.until(|response| response.canceled).await;
        assert!(canceled.compact_revision <= compacted, "the true compact revision, or the one that the relay knew");
        let operation = Operation::of_stream(&[client::prefix(PREFIX)], &stream.record()).remove(0);
        let broken = validate(&operation, &replay, Expected::default());
        assert!(broken.is_empty(), "up to the cancel everything is in order: {broken:?}");
        // The stream survives.
        stream.created(client::prefix(PREFIX)).await;
    }
    relay.assert_no_panic();
}

/// If one stream of a connection is read slowly, each other stream of the connection continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_stream_does_not_stop_another_of_its_connection() {
    let (etcd, relay) = servers().await;
    let connection = crate::support::kv::channel(&relay.endpoint()).await;
    let (mut slow, mut healthy) = (WatchStream::over(connection.clone(), &[]), WatchStream::over(connection, &[]));
    slow.created(client::prefix(PREFIX)).await;
    slow.pause();
    healthy.created(client::key(format!("{PREFIX}small"))).await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    // More than the stream's window, and less than the connection could hold for one stream.
    for round in 0..3 {
        kv.put(format!("{PREFIX}big"), vec![b'x'; scaled(VALUE)]).await;
        let revision = kv.put(format!("{PREFIX}small"), format!("{round}")).await;
        healthy.until_revision(revision).await;
    }
    slow.resume();
    let last = kv.put(format!("{PREFIX}small"), "last").await;
    slow.until_revision(last).await;
}

async fn servers() -> (Etcd, Relay) {
    let etcd = Etcd::start().await;
    let command = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).arg("--history-bytes=8388608");
    let relay = command.start().await;
    (etcd, relay)
}

async fn slow_readers(relay: &Relay) -> Vec<WatchStream> {
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix(PREFIX)).await;
        stream.pause();
        slow.push(stream);
    }
    slow
}

fn healthy_count() -> usize {
    scaled((30, 200))
}

fn scaled((moderate, full): (usize, usize)) -> usize {
    if full_scale() { full } else { moderate }
}

/// Writes while `count` healthy watches read; each must get everything. Returns their delays, measured from the answer
/// to the write.
async fn load(etcd: &Etcd, relay: &Relay, count: usize) -> Healthy {
    let mut healthy = Vec::new();
    for _ in 0..count {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix(PREFIX)).await;
        healthy.push(stream);
    }
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut written = Vec::new();
    for round in 0..scaled(WRITES) {
        let revision = kv.put(format!("{PREFIX}{}", round % 10), vec![b'x'; scaled(VALUE)]).await;
        written.push((revision, Instant::now()));
    }
    let last = written[written.len() - 1].0;
    let mut delays = Vec::new();
    for stream in &mut healthy {
        stream.until_revision(last).await;
        let came = stream.record().into_iter().flat_map(|recorded| {
            let at = recorded.at;
            recorded.response.events.into_iter().map(move |event| (event_revision(&event), at))
        });
        let came: Vec<_> = came.collect();
        assert!(
            came.iter().map(|(revision, _)| revision).eq(written.iter().map(|(revision, _)| revision)),
            "each gets all"
        );
        delays.extend(
            came.iter().zip(&written).map(|((_, came), (_, written))| came.saturating_duration_since(*written)),
        );
    }
    delays.sort_unstable();
    Healthy { median: delays[delays.len() / 2], worst: delays[delays.len() - 1] }
}
