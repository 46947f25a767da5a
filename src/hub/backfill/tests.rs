//! Tests of the backfill: what it puts before a history serves watches and reads as if it had arrived live, and nothing
//! is put there that is not the past of this history.

use super::*;
use crate::{
    hub::{
        Delivery, FeedState, KeyMap, OutboxLimits, RangeQuery, ReadError, Reset, Subscribe, WatchOptions, WatchStream,
        testing, upstream::Changes,
    },
    types::{ClientKey, EventFields, EventKind, KeyRange, KeyValue, KeyValueFields},
};

const LIMITS: OutboxLimits = OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 10 };

/// A put of `k`, which was created at revision 2; `known` says whether upstream reports what the put replaced.
fn change(revision: i64, known: bool) -> Changes {
    let kv = |revision: i64| KeyValueFields {
        key: "k".into(),
        value: format!("{revision}").into(),
        create_revision: Revision::new(2),
        mod_revision: Revision::new(revision),
        version: revision - 1,
        lease: 0,
    };
    Changes {
        revision: Revision::new(revision),
        events: vec![EventFields { kind: EventKind::Put, kv: kv(revision) }],
        prev: vec![(known && revision > 2).then(|| kv(revision - 1))],
        received: std::time::Instant::now(),
    }
}

/// A feed over all keys, whose history begins after revision 10.
fn feed() -> (Arc<crate::hub::Hub>, Arc<Feed>) {
    let hub = testing::hub(LIMITS);
    let feed = hub.open(KeyRange::prefix("".into()));
    feed.install(Arc::default(), map(10), Revision::new(10));
    feed.set_state(FeedState::Live);
    (hub, feed)
}

fn map(revision: i64) -> KeyMap {
    let mut map = KeyMap::default();
    map.insert(KeyValue::new(&change(revision, true).events[0].kv));
    map
}

/// What a backfill of the revisions from `from` on would plan and read now.
fn past(feed: &Feed, from: i64, known: impl Fn(i64) -> bool) -> (Plan, Read) {
    let inner = feed.lock();
    let plan = Plan {
        epoch: inner.epoch,
        cluster: inner.cluster.clone(),
        to: inner.history.start(),
        from: Revision::new(from),
        room: inner.history.room(),
        ends_with_event: false,
    };
    let mut read = Read { from: plan.from, ..Read::default() };
    (from..plan.to.get()).for_each(|at| read.add(&plan.cluster, &change(at, known(at)), plan.room));
    (plan, read)
}

/// The value of `k` at a revision.
fn at(feed: &Feed, revision: i64) -> Result<String, ReadError> {
    let query = RangeQuery { revision: Revision::new(revision), ..RangeQuery::all(KeyRange::single("k".into())) };
    let reply = query.read(feed)?;
    let kvs = reply.kvs.kvs();
    Ok(kvs.first().map_or_else(String::new, |kv| String::from_utf8_lossy(kv.value()).into_owned()))
}

/// What a watch from a revision on gets from the history.
fn watched(feed: &Arc<Feed>, start: i64) -> Vec<i64> {
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    let subscribe = Subscribe {
        watch_id: 0,
        range: KeyRange::prefix("".into()),
        options: WatchOptions { prev_kv: true, ..WatchOptions::default() },
        start_revision: Revision::new(start),
        progress_notify: false,
        fragment: false,
        known: Revision::ZERO,
        compacted: false,
    };
    stream.subscribe(feed, &subscribe).expect("subscribed");
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let (mut batch, mut revisions) = (Vec::new(), Vec::new());
    while stream.poll_drain(&mut cx, &mut batch, usize::MAX).is_ready() {
        for delivery in batch.drain(..) {
            if let Delivery::Events { payload, from, .. } = delivery {
                revisions.extend(payload.each(from as usize).map(|whole| whole.revision.get()));
            }
        }
    }
    stream.leave();
    revisions
}

#[test]
fn what_was_put_before_the_history_serves_watches_and_reads_of_the_past() {
    let (_hub, feed) = feed();
    let (plan, read) = past(&feed, 2, |_| true);
    feed.publish(&[change(11, true)]).expect("in order");
    assert_eq!(join(&feed, &plan, read), BackfillOutcome::Joined);
    assert_eq!(watched(&feed, 4), (4..=11).collect::<Vec<_>>());
    assert_eq!([at(&feed, 2), at(&feed, 7), at(&feed, 10)].map(Result::unwrap), ["2", "7", "10"]);
    assert_eq!(at(&feed, 1), Ok(String::new()), "before the key was created");
}

#[test]
fn a_change_that_replaced_something_unknown_is_shown_and_not_undone() {
    let (_hub, feed) = feed();
    // etcd has compacted everything before revision 5.
    let (plan, read) = past(&feed, 5, |revision| revision > 5);
    assert_eq!(join(&feed, &plan, read), BackfillOutcome::Joined);
    assert_eq!(watched(&feed, 5), (5..=10).collect::<Vec<_>>());
    assert_eq!(at(&feed, 5).as_deref(), Ok("5"));
    assert_eq!(at(&feed, 4), Err(ReadError::BeforeHistory), "nobody here knows the value");
}

#[test]
fn what_was_read_for_another_history_is_dropped() {
    let (_hub, feed) = feed();
    let (plan, read) = past(&feed, 2, |_| true);
    feed.reset(&Arc::default(), map(10), Revision::new(10), &Reset::Replaced);
    feed.set_state(FeedState::Live);
    assert_eq!(join(&feed, &plan, read), BackfillOutcome::Moved, "its revisions may be those of another cluster");
    assert_eq!(feed.stats().history_start, Revision::new(11));
}

#[test]
fn what_was_read_for_a_feed_that_does_not_serve_is_dropped() {
    let (_hub, feed) = feed();
    let (plan, read) = past(&feed, 2, |_| true);
    feed.set_state(FeedState::Resyncing);
    assert_eq!(join(&feed, &plan, read), BackfillOutcome::Moved);
    assert_eq!(feed.stats().history_start, Revision::new(11));
}

#[test]
fn nothing_is_put_before_a_history_that_let_go_of_something_meanwhile() {
    let (_hub, feed) = feed();
    let (plan, read) = past(&feed, 2, |_| true);
    (11..=111).for_each(|revision| feed.publish(&[change(revision, true)]).expect("in order"));
    assert_eq!(join(&feed, &plan, read), BackfillOutcome::Full);
    assert_eq!((feed.stats().history_start, feed.stats().history_entries), (Revision::new(12), 100));
}

#[test]
fn the_newest_of_the_past_is_kept_where_not_all_fits() {
    let (_hub, feed) = feed();
    (11..=104).for_each(|revision| feed.publish(&[change(revision, true)]).expect("in order"));
    let (plan, read) = past(&feed, 2, |_| true);
    assert_eq!((read.entries.len(), read.from), (6, Revision::new(5)), "no more is kept than fits into the history");
    assert_eq!(join(&feed, &plan, read), BackfillOutcome::Full);
    assert_eq!(feed.stats().history_start, Revision::new(5));
    assert!(!feed.lock().history.grows_back());
}

#[test]
fn a_stage_grows_as_far_as_there_is_room_for_what_it_would_bring() {
    let (_hub, feed) = feed();
    let (plan, read) = past(&feed, 2, |_| true);
    let plan = Plan { room: (100_000, usize::MAX), ..plan };
    // Eight revisions brought nine entries, so the remaining room allows this many more revisions.
    assert_eq!(longer(STAGE, &plan, &read), STAGE * GROWTH);
    let dense = Plan { room: (20_000, usize::MAX), ..plan };
    assert!((STAGE..=20_000).contains(&longer(STAGE, &dense, &read)));
    let empty = Read { from: dense.from, ..Read::default() };
    assert_eq!(longer(STAGE, &dense, &empty), STAGE * GROWTH, "a range in which nothing happens");
}
