//! Tests of feeds on demand with small limits; the test acts as the driver.

use super::*;
use crate::{
    hub::{Hub, Limits, OutboxLimits, Reset, Snapshot, Subscribe, WatchOptions, WatchStream, testing},
    types::{Cluster, EventFields, EventKind, Header, KeyRange, KeyValue, KeyValueFields, Revision},
};

const ONE: ClientKey = ClientKey::new(1);
const TWO: ClientKey = ClientKey::new(2);
const OUTBOX: OutboxLimits = OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 };
const VALUE: usize = 200;

fn hub(most: usize, bytes: usize) -> Arc<Hub> {
    testing::hub_with(|limits| Limits { on_demand: Some(most), on_demand_bytes: bytes, outbox: OUTBOX, ..limits })
}

fn cluster() -> Arc<Cluster> {
    Arc::new(Cluster::of(&Header { cluster_id: 7, ..Header::default() }))
}

fn fields(key: usize, revision: i64) -> KeyValueFields {
    KeyValueFields {
        key: format!("{key:06}").into(),
        value: vec![revision as u8; VALUE].into(),
        create_revision: Revision::new(1),
        mod_revision: Revision::new(revision),
        version: revision,
        lease: 0,
    }
}

fn range(from: usize, to: usize) -> KeyRange {
    KeyRange::from_wire(format!("{from:06}").into(), format!("{to:06}").into()).expect("a range")
}

/// Reads the snapshot of a feed as its driver does: in pages, sharing the keys that another feed has. Returns false if
/// the feed had to end.
fn load(feed: &Feed, keys: std::ops::Range<usize>) -> bool {
    let (cluster, mut map) = (cluster(), KeyMap::sharing());
    for page in keys.collect::<Vec<_>>().chunks(100) {
        let twins = feed.twins();
        for key in page {
            let kv = KeyValue::new(&fields(*key, 1));
            map.insert(twins.share(7, &kv).unwrap_or_else(|| Arc::new(kv)));
        }
        let part = Snapshot { revision: Revision::new(9), map: map.clone(), epoch: 0, cluster: cluster.clone() };
        if !feed.loads(part) {
            return false;
        }
    }
    feed.install(cluster, map, Revision::new(9));
    feed.loaded();
    true
}

fn watch(feed: &Arc<Feed>) -> Arc<WatchStream> {
    let stream = WatchStream::new(OUTBOX, feed.client());
    let subscribe = Subscribe {
        watch_id: 0,
        range: feed.range().clone(),
        options: WatchOptions::default(),
        start_revision: Revision::ZERO,
        progress_notify: false,
        fragment: false,
        known: Revision::ZERO,
        compacted: false,
    };
    stream.subscribe(feed, &subscribe).expect("serving");
    stream
}

fn held(hub: &Hub) -> usize {
    Census::of(&hub.feeds()).total
}

#[tokio::test]
async fn overlapping_ranges_have_each_key_once() {
    let hub = hub(100, 1 << 30);
    let (keys, step) = (2_000, 40);
    let mut feeds = Vec::new();
    let mut one = 0;
    for start in (0..25 * step).step_by(step) {
        let feed = hub.feed(&range(start, start + keys), ONE).expect("room");
        assert!(load(&feed, start..start + keys));
        feeds.push(feed);
        one = one.max(feeds[0].map().bytes());
    }
    // The union is 25 steps longer than one of them. Each further feed has pointers and the map's own nodes.
    let union = (keys + 24 * step) * (one / keys + KEY_OVERHEAD);
    let most = union + 25 * (keys * POINTER + FEED_OVERHEAD);
    assert!(held(&hub) <= most + most / 10, "{} of {most}", held(&hub));
    // They are the same key-values, not only as many.
    let shared = |feed: &Arc<Feed>, other: &Arc<Feed>| {
        let key = format!("{:06}", 25 * step + 7);
        let of = |feed: &Arc<Feed>| feed.snapshot().map.get(key.as_bytes()).expect("there").kept();
        Arc::ptr_eq(&of(feed), &of(other))
    };
    assert!(feeds.iter().all(|feed| shared(feed, &feeds[0])));

    // A change is also shared by the feeds that get it later.
    let changed = fields(25 * step + 7, 10);
    let changes = crate::hub::upstream::Changes {
        revision: Revision::new(10),
        events: vec![EventFields { kind: EventKind::Put, kv: changed }],
        prev: Vec::new(),
        received: std::time::Instant::now(),
    };
    for feed in &feeds[..5] {
        feed.publish(std::slice::from_ref(&changes)).expect("in order");
    }
    assert!(feeds[..5].iter().all(|feed| shared(feed, &feeds[0])));
}

#[tokio::test]
async fn keys_of_another_cluster_or_another_revision_are_not_shared() {
    let hub = hub(100, 1 << 30);
    let one = hub.feed(&range(0, 100), ONE).expect("room");
    assert!(load(&one, 0..100));
    let other = hub.feed(&range(50, 150), ONE).expect("room");
    let twins = other.twins();
    let kv = KeyValue::new(&fields(60, 1));
    assert!(twins.share(7, &kv).is_some());
    assert!(twins.share(8, &kv).is_none());
    assert!(twins.share(7, &KeyValue::new(&fields(60, 2))).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_uses_goes_before_anyone_is_refused_the_oldest_first() {
    let hub = hub(4, 1 << 30);
    let mut opened = Vec::new();
    for feed in 0..4 {
        opened.push(hub.feed(&range(feed * 10, feed * 10 + 10), ClientKey::RELAY).expect("room"));
        assert!(load(&opened[feed], feed * 10..feed * 10 + 10));
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let _used = watch(&opened[0]);
    assert_eq!(hub.feed(&range(90, 95), TWO).err(), Some(NoFeed::Limit), "they may be about to be used");
    tokio::time::advance(GRACE).await;
    let new = hub.feed(&range(90, 95), TWO).expect("room was made");
    let closed: Vec<bool> = opened.iter().map(|feed| feed.is_closed()).collect();
    assert_eq!(closed, [false, true, false, false], "the one that was idle longest");
    assert!(!new.is_closed());
}

#[tokio::test(start_paused = true)]
async fn one_client_leaves_feeds_for_others_and_has_its_own_ended_first() {
    let hub = hub(100, 1 << 30);
    let mut opened = Vec::new();
    let refusal = loop {
        let at = opened.len() * 10;
        match hub.feed(&range(at, at + 5), ONE) {
            Ok(feed) => opened.push(feed),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!((opened.len(), refusal), (88, NoFeed::ClientLimit));
    let other = hub.feed(&range(900_000, 900_005), TWO).expect("there is room for others");
    tokio::time::advance(GRACE).await;
    hub.feed(&range(800_000, 800_005), ONE).expect("its own feed made room");
    assert!(!other.is_closed());
    // One for the new feed, and one to keep as much for others as before.
    assert_eq!(opened.iter().filter(|feed| feed.is_closed()).count(), 2);
}

#[tokio::test]
async fn of_a_few_feeds_one_client_may_have_all() {
    let hub = hub(2, 1 << 30);
    for at in [0, 10] {
        hub.feed(&range(at, at + 5), ONE).expect("room");
    }
    assert_eq!(hub.feed(&range(90, 95), ONE).err(), Some(NoFeed::Limit));
}

#[tokio::test(start_paused = true)]
async fn what_another_client_left_makes_room_for_one_that_has_its_share() {
    let hub = hub(16, 1 << 30);
    let left = hub.feed(&range(900, 905), TWO).expect("room");
    let used: Vec<_> = (0..13)
        .map(|at| {
            let feed = hub.feed(&range(at * 10, at * 10 + 5), ONE).expect("room");
            assert!(load(&feed, at * 10..at * 10 + 5));
            let stream = watch(&feed);
            (feed, stream)
        })
        .collect();
    assert_eq!(hub.feed(&range(800, 805), ONE).err(), Some(NoFeed::ClientLimit));
    tokio::time::advance(GRACE).await;
    hub.feed(&range(800, 805), ONE).expect("room was made");
    assert!(left.is_closed() && used.iter().all(|(feed, _)| !feed.is_closed()));
}

#[tokio::test(start_paused = true)]
async fn the_client_that_holds_most_is_the_one_that_loses_a_feed() {
    let hub = hub(100, 4 << 20);
    let large = hub.feed(&range(500_000, 502_000), TWO).expect("room");
    assert!(load(&large, 500_000..502_000));
    let mut used = vec![watch(&large)];
    let small: Vec<_> = (0..5)
        .map(|at| {
            let feed = hub.feed(&range(at * 10_000, at * 10_000 + 9_999), ONE).expect("room");
            assert!(load(&feed, at * 10_000..at * 10_000 + 1_000));
            used.push(watch(&feed));
            feed
        })
        .collect();
    for (at, feed) in small.iter().enumerate() {
        let grown = (at * 10_000..at * 10_000 + 1_900).fold(KeyMap::sharing(), |mut map, key| {
            map.insert(KeyValue::new(&fields(key, 1)));
            map
        });
        feed.reset(&cluster(), grown, Revision::new(9), &Reset::Compacted { compact_revision: Revision::ZERO });
    }
    hub.shared.on_demand.enforce();
    assert!(!large.is_closed(), "it is the largest feed, but its client holds less");
    assert_eq!(small.iter().filter(|feed| feed.is_closed()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_range_that_is_too_large_ends_while_it_is_read() {
    let hub = hub(100, 1 << 20);
    let small = hub.feed(&range(500_000, 500_100), TWO).expect("room");
    assert!(load(&small, 500_000..500_100));
    let _used = watch(&small);
    let large = hub.feed(&range(0, 100_000), ONE).expect("its size is not known yet");
    assert!(!load(&large, 0..100_000));
    let again = hub.feed(&range(0, 100_000), ONE).err();
    assert!(matches!(again, Some(NoFeed::ClientBytes | NoFeed::Bytes)), "it is not read again at once: {again:?}");
    assert!(large.is_closed() && !small.is_closed());
    assert!(held(&hub) < 1 << 19, "its data is gone: {}", held(&hub));
    assert!(hub.feed(&range(700_000, 700_100), TWO).is_ok());
}

#[tokio::test(start_paused = true)]
async fn feeds_that_grow_too_large_end_with_a_reason_and_leave_room() {
    let hub = hub(100, 1 << 20);
    let feed = hub.feed(&range(0, 100_000), ONE).expect("room");
    assert!(load(&feed, 0..1_000));
    let other = hub.feed(&range(500_000, 500_100), TWO).expect("room");
    assert!(load(&other, 500_000..500_100));
    let (stream, _others) = (watch(&feed), watch(&other));
    assert_eq!(stream.watches(), 1);
    for revision in 10..5_000 {
        let changes = crate::hub::upstream::Changes {
            revision: Revision::new(revision),
            events: vec![EventFields { kind: EventKind::Put, kv: fields(revision as usize, revision) }],
            prev: Vec::new(),
            received: std::time::Instant::now(),
        };
        feed.publish(&[changes]).expect("in order");
    }
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || feed.enforce());
    let metrics = recorder.handle().render();
    assert!(metrics.contains(r#"etcd_relay_watches_canceled_total{reason="feed_ended"} 1"#), "{metrics}");
    assert_eq!(hub.feed(&range(0, 100_000), TWO).err(), Some(NoFeed::Bytes));
    tokio::time::advance(REFUSED).await;
    assert!(hub.feed(&range(0, 100_000), TWO).is_ok(), "it may be smaller by now");
    assert_eq!(stream.watches(), 0, "the watch was cancelled");
    assert!(!other.is_closed());
    assert!(held(&hub) < 1 << 20);
}

#[tokio::test]
async fn whoever_finds_a_feed_does_not_wait_for_one_who_opens_another() {
    let hub = hub(100, 1 << 30);
    let feed = hub.feed(&range(0, 100), ONE).expect("room");
    assert!(load(&feed, 0..100));
    std::thread::scope(|scope| {
        // A change that is being pushed to all of its streams holds the lock like this.
        let busy = feed.lock();
        let opening = scope.spawn(|| hub.feed(&range(500, 600), TWO).is_ok());
        while !hub.opening.is_locked() {
            std::thread::yield_now();
        }
        for _ in 0..10_000 {
            assert!(hub.feeds.try_read().is_some(), "the list of feeds is locked during the wait for one feed");
            std::thread::yield_now();
        }
        assert!(hub.running(&range(0, 100)).is_some() && !opening.is_finished());
        drop(busy);
        assert!(opening.join().expect("it opens"));
    });
}

/// It packs its key-values, so that others cannot share them.
#[tokio::test]
async fn what_a_configured_feed_has_too_counts_for_the_client_that_opened_a_feed_for_it() {
    let hub = hub(100, 1 << 30);
    let feed = hub.feed(&range(0, 1_000), ONE).expect("room");
    assert!(load(&feed, 0..1_000));
    let alone = held(&hub);
    let (always, mut packed) = (hub.open(range(0, 500)), KeyMap::default());
    (0..500).for_each(|key| packed.insert(KeyValue::new(&fields(key, 1))));
    always.install(cluster(), packed, Revision::new(9));
    assert_eq!(held(&hub), alone);
    let (kv, other) = (KeyValue::new(&fields(7, 1)), hub.feed(&range(0, 1_200), TWO).expect("room"));
    let shared = other.twins().share(7, &kv).expect("the first feed has it");
    assert!(Arc::ptr_eq(&shared, &feed.map().get(kv.key()).expect("there").kept()));
}
