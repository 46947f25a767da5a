//! Micro-benchmarks of the hub alone, without a network: the cost of a revision for streams that match it and for those
//! that do not, and of joining, catching up and reading. `cargo bench`; `cargo bench -- publish` for some of them.
//!
//! Whole relays under load are measured in `compare`. Times are of one thread; compare them only within one run.

use std::{
    sync::Arc,
    task::{Context, Waker},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use divan::{Bencher, black_box};
use etcd_relay::{
    critical::Tasks,
    hub::{
        Feed, FeedRunner, FeedState, HistoryLimits, Hub, KeyMap, Limits, OutboxLimits, RangeQuery, Subscribe,
        WatchOptions, WatchStream,
        upstream::{Changes, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest},
    },
    types::{ClientKey, EventFields, EventKind, KeyRange, KeyValue, KeyValueFields, Revision, UpstreamHeader},
};

fn main() {
    divan::main();
}

/// A revision with one event of 256 B for streams that watch the whole prefix and read at once. The time per delivery
/// is the total divided by the number of streams.
#[divan::bench(args = [1, 100, 1_000, 10_000])]
fn publish_to_streams_of_one_prefix(bencher: Bencher<'_, '_>, streams: usize) {
    let feed = feed(0);
    let streams: Vec<_> = (0..streams).map(|_| subscribed(&feed, [KeyRange::prefix("".into())])).collect();
    let mut revision = feed.revision();
    bencher.bench_local(|| {
        revision = revision.next();
        feed.publish(&[put(revision, "key")]).expect("in order");
        streams.iter().for_each(drain);
    });
}

/// A hundred revisions that came together, for streams that watch the whole prefix.
#[divan::bench(args = [1, 100, 1_000])]
fn publish_a_burst_to_streams_of_one_prefix(bencher: Bencher<'_, '_>, streams: usize) {
    let feed = feed(0);
    let streams: Vec<_> = (0..streams).map(|_| subscribed(&feed, [KeyRange::prefix("".into())])).collect();
    let mut revision = feed.revision();
    bencher.bench_local(|| {
        let mut next = || {
            revision = revision.next();
            put(revision, "key")
        };
        let burst: Vec<_> = (0..100).map(|_| next()).collect();
        feed.publish(&burst).expect("in order");
        streams.iter().for_each(drain);
    });
}

/// A revision that concerns one of many watches, each on a key of its own: must not grow with their number.
#[divan::bench(args = [1, 1_000, 100_000])]
fn publish_to_one_of_many_keys(bencher: Bencher<'_, '_>, keys: usize) {
    let feed = feed(0);
    let stream = subscribed(&feed, (0..keys).map(|key| KeyRange::single(format!("key{key}").into())));
    let mut revision = feed.revision();
    bencher.bench_local(|| {
        revision = revision.next();
        feed.publish(&[put(revision, "key0")]).expect("in order");
        drain(&stream);
    });
}

/// The same with a range for each watch.
#[divan::bench(args = [1, 1_000, 100_000])]
fn publish_to_one_of_many_ranges(bencher: Bencher<'_, '_>, ranges: usize) {
    let feed = feed(0);
    let stream = subscribed(&feed, (0..ranges).map(|range| KeyRange::prefix(format!("{range}/").into())));
    let mut revision = feed.revision();
    bencher.bench_local(|| {
        revision = revision.next();
        feed.publish(&[put(revision, "0/key")]).expect("in order");
        drain(&stream);
    });
}

/// A revision while a reader holds the previous snapshot, so that the write must copy its path.
#[divan::bench(args = [1_000, 500_000])]
fn publish_beside_a_held_snapshot(bencher: Bencher<'_, '_>, keys: usize) {
    let feed = feed(keys);
    let mut revision = feed.revision();
    bencher.bench_local(|| {
        revision = revision.next();
        let held = feed.snapshot();
        feed.publish(&[put(revision, "key0000001")]).expect("in order");
        held
    });
}

/// Changes of keys all over a large map, none of which is in the processor's cache. Each event keeps the value before.
#[divan::bench(args = [500_000])]
fn publish_changes_all_over(bencher: Bencher<'_, '_>, keys: usize) {
    let feed = feed(keys);
    let (mut revision, mut key) = (feed.revision(), 0);
    bencher.bench_local(|| {
        revision = revision.next();
        // A prime number of keys further on, so that all of them have their turn.
        key = (key + 199_999) % keys;
        let mut changes = put(revision, &format!("key{key:07}"));
        changes.events[0].kv.create_revision = Revision::new(1);
        feed.publish(&[changes]).expect("in order");
    });
}

/// A stream that joins with one watch and leaves, beside others. The cost must not grow with their number, because all
/// streams of a large client end together.
#[divan::bench(args = [0, 1_000, 100_000])]
fn join_and_leave(bencher: Bencher<'_, '_>, others: usize) {
    let feed = feed(0);
    let _others: Vec<_> = (0..others).map(|_| subscribed(&feed, [KeyRange::prefix("".into())])).collect();
    bencher.bench_local(|| {
        let stream = subscribed(&feed, [KeyRange::prefix("".into())]);
        stream.leave();
    });
}

/// Watches of the past: 1,000 revisions from the history for one stream, and for many that begin at the same revision
/// and share what is read.
#[divan::bench(args = [1, 100])]
fn replay_a_thousand_revisions(bencher: Bencher<'_, '_>, streams: usize) {
    let feed = feed(0);
    let start = feed.revision().next();
    let mut revision = feed.revision();
    for _ in 0..1_000 {
        revision = revision.next();
        feed.publish(&[put(revision, "key")]).expect("in order");
    }
    bencher.bench_local(|| {
        for _ in 0..streams {
            let stream = WatchStream::new(LIMITS.outbox, ClientKey::RELAY);
            subscribe(&feed, &stream, KeyRange::prefix("".into()), start);
            drain(&stream);
            stream.leave();
        }
    });
}

/// A thousand of half a million keys from the snapshot, as buffers for a connection.
#[divan::bench]
fn range_of_a_thousand_keys(bencher: Bencher<'_, '_>) {
    let feed = feed(500_000);
    let query = RangeQuery::all(KeyRange::prefix("key0001".into()));
    bencher.bench_local(|| taken(&query, &feed));
}

/// The same, each time after a write of one of them.
#[divan::bench]
fn range_of_a_thousand_keys_after_a_write(bencher: Bencher<'_, '_>) {
    let feed = feed(500_000);
    let query = RangeQuery::all(KeyRange::prefix("key0001".into()));
    let mut revision = feed.revision();
    bencher.bench_local(|| {
        revision = revision.next();
        feed.publish(&[put(revision, "key0001500")]).expect("in order");
        taken(&query, &feed)
    });
}

/// One of half a million keys.
#[divan::bench]
fn range_of_one_key(bencher: Bencher<'_, '_>) {
    let feed = feed(500_000);
    let query = RangeQuery::all(KeyRange::single("key0001500".into()));
    bencher.bench_local(|| taken(&query, &feed));
}

/// The count of a large range.
#[divan::bench]
fn count_of_half_a_million_keys(bencher: Bencher<'_, '_>) {
    let feed = feed(500_000);
    let query = RangeQuery { count_only: true, ..RangeQuery::all(KeyRange::prefix("key".into())) };
    bencher.bench_local(|| black_box(query.read(&feed)).expect("a reply"));
}

const LIMITS: Limits = Limits {
    history: HistoryLimits { bytes: 64 << 20, entries: 10_000 },
    outbox: OutboxLimits { bytes: 1 << 20, deliveries: 4_096, watches: 1_000_000 },
    on_demand: None,
    on_demand_bytes: 1 << 30,
    fills: 1,
    confirm_patience: Duration::from_secs(1),
};

/// A live feed of everything with `keys` keys.
fn feed(keys: usize) -> Arc<Feed> {
    let hub =
        Hub::new(LIMITS, Arc::new(Nothing), Arc::new(UpstreamHeader::default()), &Tasks::new(), Box::new(NoDriver));
    let feed = hub.open(KeyRange::prefix("".into()));
    let mut map = KeyMap::default();
    let revision = Revision::new(1);
    for key in 0..keys {
        let fields = &put(revision, &format!("key{key:07}")).events[0].kv;
        map.insert(KeyValue::new(fields));
    }
    feed.install(Arc::default(), map, revision);
    feed.set_state(FeedState::Live);
    feed
}

fn subscribed(feed: &Arc<Feed>, ranges: impl IntoIterator<Item = KeyRange>) -> Arc<WatchStream> {
    let stream = WatchStream::new(LIMITS.outbox, ClientKey::RELAY);
    for range in ranges {
        subscribe(feed, &stream, range, Revision::ZERO);
    }
    drain(&stream);
    stream
}

fn subscribe(feed: &Arc<Feed>, stream: &Arc<WatchStream>, range: KeyRange, start_revision: Revision) {
    let subscribe = Subscribe {
        watch_id: 0,
        range,
        options: WatchOptions::default(),
        start_revision,
        progress_notify: false,
        fragment: false,
        known: Revision::ZERO,
        compacted: false,
    };
    stream.subscribe(feed, &subscribe).expect("subscribed");
}

/// Takes everything that waits, like a front.
fn drain(stream: &Arc<WatchStream>) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut batch = Vec::new();
    while stream.poll_drain(&mut cx, &mut batch, 64 << 10).is_ready() {
        black_box(&batch);
        batch.clear();
    }
}

fn put(revision: Revision, key: &str) -> Changes {
    let kv = KeyValueFields {
        key: key.to_owned().into(),
        value: vec![b'x'; 256].into(),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: 0,
    };
    let events = vec![EventFields { kind: EventKind::Put, kv }];
    Changes { revision, events, prev: Vec::new(), received: Instant::now() }
}

/// Takes a whole answer, like a front. Returns its number of buffers and bytes.
fn taken(query: &RangeQuery, feed: &Feed) -> (usize, usize) {
    let mut reply = query.read(feed).expect("a reply");
    let mut taken = (0, 0);
    reply.kvs.take(usize::MAX, |bytes| taken = (taken.0 + 1, taken.1 + black_box(bytes).len()));
    taken
}

/// The benchmarks write into feeds directly.
struct NoDriver;

impl FeedRunner for NoDriver {
    fn run(&self, _: Arc<Feed>) {}
}

/// An upstream that is never called.
#[derive(Debug)]
struct Nothing;

fn never<T>() -> Result<T, UpstreamError> {
    Err(UpstreamError::Unavailable("no benchmark calls upstream".into()))
}

#[async_trait]
impl Upstream for Nothing {
    async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        never()
    }

    async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        never()
    }

    async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        never()
    }
}
