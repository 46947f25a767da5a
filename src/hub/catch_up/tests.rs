//! Tests of watches that are behind: what they receive, in which pieces, and when they are live again.

use std::{
    task::{Context, Waker},
    time::Instant,
};

use super::*;
use crate::{
    hub::{Delivery, FeedState, Hub, KeyMap, Subscribe, WatchStream, testing, upstream::Changes},
    types::{ClientKey, EventFields, EventKind, Header, KeyValueFields},
};

/// So small that a watch is parked after a few revisions.
const LIMITS: OutboxLimits = OutboxLimits { bytes: 1000, deliveries: 100, watches: 100 };

fn feed(hub: &Hub) -> Arc<Feed> {
    let feed = hub.open(KeyRange::prefix("".into()));
    feed.install(Arc::default(), KeyMap::default(), Revision::ZERO);
    feed.set_state(FeedState::Live);
    feed
}

fn changes(revision: i64, key: &'static str) -> Changes {
    let kv = KeyValueFields { key: key.into(), value: vec![0; 50].into(), ..KeyValueFields::default() };
    let events = vec![EventFields { kind: EventKind::Put, kv }];
    Changes { revision: Revision::new(revision), events, prev: Vec::new(), received: Instant::now() }
}

/// Puts of the key `a`, each published by itself.
fn publish(feed: &Feed, revisions: impl IntoIterator<Item = i64>) {
    revisions.into_iter().for_each(|revision| feed.publish(&[changes(revision, "a")]).expect("in order"));
}

fn watch(feed: &Arc<Feed>, range: KeyRange, start: i64) -> Arc<WatchStream> {
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    add(feed, &stream, range, start);
    stream
}

fn add(feed: &Arc<Feed>, stream: &Arc<WatchStream>, range: KeyRange, start: i64) {
    let subscribe = Subscribe {
        watch_id: 0,
        range,
        options: WatchOptions::default(),
        start_revision: Revision::new(start),
        progress_notify: false,
        fragment: false,
        known: Revision::ZERO,
        compacted: false,
    };
    stream.subscribe(feed, &subscribe).expect("subscribed");
}

/// Takes what is queued, without a step for parked watches.
fn take_created(stream: &Arc<WatchStream>) {
    let mut batch = Vec::new();
    stream.outbox.drain(&Context::from_waker(Waker::noop()), &mut batch, usize::MAX);
    assert!(matches!(batch[..], [Delivery::Created { .. }]));
}

fn everything() -> KeyRange {
    KeyRange::prefix("".into())
}

/// The next deliveries with events: the watch, the payload, and how much of the payload is not for the watch.
fn poll(stream: &Arc<WatchStream>) -> Vec<(i64, Arc<Payload>, usize)> {
    let mut batch = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    while batch.is_empty() && stream.poll_drain(&mut cx, &mut batch, 1).is_ready() {
        batch.retain(|delivery| matches!(delivery, Delivery::Events { .. }));
    }
    let events = |delivery| match delivery {
        Delivery::Events { watch_id, payload, from, .. } => Some((watch_id, payload, from as usize)),
        _ => None,
    };
    batch.into_iter().filter_map(events).collect()
}

/// Everything that the stream delivers, as (watch, revision).
fn drain(stream: &Arc<WatchStream>) -> Vec<(i64, i64)> {
    let mut all = Vec::new();
    loop {
        let polled = poll(stream);
        if polled.is_empty() {
            return all;
        }
        for (watch, payload, from) in polled {
            all.extend(payload.each(from).map(|whole| (watch, whole.revision.get())));
        }
    }
}

fn of(watch: i64, revisions: impl IntoIterator<Item = i64>) -> Vec<(i64, i64)> {
    revisions.into_iter().map(|revision| (watch, revision)).collect()
}

#[test]
fn what_came_together_is_one_delivery_for_all_of_a_group() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    let (one, other) = (watch(&feed, everything(), 0), watch(&feed, everything(), 3));
    let batch: Vec<Changes> = (1..=5).map(|revision| changes(revision, "a")).collect();
    feed.publish(&batch).expect("in order");
    let (first, second) = (poll(&one), poll(&other));
    assert_eq!((first.len(), second.len()), (1, 1));
    assert!(Arc::ptr_eq(&first[0].1, &second[0].1), "made once");
    let revisions = |polled: &[(i64, Arc<Payload>, usize)]| -> Vec<i64> {
        polled[0].1.each(polled[0].2).map(|whole| whole.revision.get()).collect()
    };
    assert_eq!(revisions(&first), [1, 2, 3, 4, 5]);
    assert_eq!(revisions(&second), [3, 4, 5], "it begins at 3");
    publish(&feed, [6]);
    assert_eq!((drain(&one), drain(&other)), (of(0, [6]), of(0, [6])));
}

#[test]
fn streams_that_are_behind_share_what_was_put_together_for_the_first() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    publish(&feed, 1..=80);
    let (one, other) = (watch(&feed, everything(), 1), watch(&feed, everything(), 7));
    let (first, second) = (poll(&one), poll(&other));
    assert_eq!(first[0].1.revisions(), 25, "a chunk in one piece");
    assert!(Arc::ptr_eq(&first[0].1, &second[0].1), "made once");
    assert_eq!((first[0].2, second[0].2), (0, 6));
    assert!(feed.stats().run_bytes > 0);
    let rest = |from: i64| of(0, from..=80);
    assert_eq!(drain(&one), rest(26));
    assert_eq!(drain(&other), rest(26));
    publish(&feed, [81]);
    assert_eq!((drain(&one), drain(&other)), (of(0, [81]), of(0, [81])), "live again");
}

#[test]
fn what_a_step_makes_is_kept_also_where_nothing_of_it_is_wanted() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    publish(&feed, 1..=80);
    let stream = watch(&feed, KeyRange::prefix("z".into()), 1);
    take_created(&stream);
    // Four chunks, each built once, two in a step.
    (0..2).for_each(|_| step(&stream.outbox, |_| Some(feed.clone())));
    assert_eq!(stream.stats().parked, 0);
    assert_eq!(drain(&stream), of(0, []));
}

#[test]
fn a_watch_that_is_behind_gets_each_revision_once_whatever_it_begins_with() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    let live = watch(&feed, everything(), 0);
    publish(&feed, 1..=60);
    for start in 1..=61 {
        let stream = watch(&feed, everything(), start);
        assert_eq!(drain(&stream), of(0, start..=60), "from {start}");
        assert_eq!(stream.stats().parked, 0);
    }
    assert_eq!(live.stats().parked, 1, "it needs more than its queue holds");
    let mut got = Vec::new();
    for revision in 61..=99 {
        got.extend(poll(&live).into_iter().flat_map(|(_, payload, from)| {
            payload.each(from).map(|whole| (0, whole.revision.get())).collect::<Vec<_>>()
        }));
        publish(&feed, [revision]);
    }
    got.extend(drain(&live));
    assert_eq!(got, of(0, 1..=99), "while the history grows");
}

#[test]
fn watches_of_ranges_and_of_keys_take_turns() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    for revision in 1..=60 {
        feed.publish(&[changes(revision, if revision % 2 == 0 { "a" } else { "b" })]).expect("in order");
    }
    let stream = watch(&feed, everything(), 1);
    add(&feed, &stream, KeyRange::single("a".into()), 1);
    add(&feed, &stream, KeyRange::prefix("b".into()), 1);
    add(&feed, &stream, KeyRange::prefix("c".into()), 1);
    let mut first = poll(&stream);
    first.extend(poll(&stream));
    let early = first.iter().map(|(_, payload, _)| payload.revision().get()).max().expect("events");
    assert!(early < 60, "no watch is served to its end while another waits");
    let mut all = drain(&stream);
    for (watch, payload, from) in first {
        all.extend(payload.each(from).map(|whole| (watch, whole.revision.get())));
    }
    all.sort_unstable();
    let odd = (1..=60).filter(|revision| revision % 2 == 1);
    let even = (1..=60).filter(|revision| revision % 2 == 0);
    assert_eq!(all, [of(0, 1..=60), of(1, even), of(2, odd)].concat());
    assert_eq!(stream.stats().parked, 0);
}

#[test]
fn runs_of_a_history_that_is_gone_are_not_passed_on() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    publish(&feed, 1..=60);
    let stream = watch(&feed, everything(), 1);
    take_created(&stream);
    let Next::Make(epoch, missing) = serve(&feed, &stream.outbox, vec![0], None) else {
        panic!("nothing is built yet")
    };
    feed.install(Arc::default(), KeyMap::default(), Revision::ZERO);
    publish(&feed, 1..=10);
    let runs = missing.iter().map(|Missing { key, task, range, options }| (*key, task.make(range, *options))).collect();
    serve(&feed, &stream.outbox, vec![0], Some(Made { feed: feed.clone(), epoch, runs }));
    assert_eq!(drain(&stream), of(0, 1..=10));
}

#[test]
fn of_more_watches_than_a_step_serves_none_waits_for_those_that_are_ahead_of_it() {
    let watches = STEP_WATCHES as i64 + 100;
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    publish(&feed, 1..=30);
    let limits = OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: watches as usize };
    let stream = WatchStream::new(limits, ClientKey::RELAY);
    (0..watches).for_each(|_| add(&feed, &stream, everything(), 1));
    let mut served = std::collections::BTreeSet::new();
    let mut cx = Context::from_waker(Waker::noop());
    // Little more than it takes to give each watch one delivery. Meanwhile more is published, so that watches that were
    // served fall behind again.
    for revision in 31..31 + watches / 100 + 5 {
        publish(&feed, [revision]);
        let mut batch = Vec::new();
        assert!(stream.poll_drain(&mut cx, &mut batch, usize::MAX).is_ready());
        served.extend(batch.iter().filter_map(|delivery| match delivery {
            Delivery::Events { watch_id, .. } => Some(*watch_id),
            _ => None,
        }));
    }
    let missing = (0..watches).find(|watch| !served.contains(watch));
    assert_eq!(missing, None, "{} of {watches} were served", served.len());
}

#[test]
fn a_live_watch_whose_events_go_on_does_not_hold_up_one_that_is_parked() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    let stream = watch(&feed, KeyRange::single("a".into()), 0);
    publish(&feed, 1..=60);
    drain(&stream);
    add(&feed, &stream, everything(), 1);
    publish(&feed, [61]);
    let mut newest = None;
    // The client reads as fast as events are published, so the queue is never empty.
    for revision in 62..=99 {
        publish(&feed, [revision]);
        let polled = poll(&stream);
        newest = polled
            .iter()
            .filter(|(watch, ..)| *watch == 1)
            .map(|(_, payload, _)| payload.revision().get())
            .max()
            .or(newest);
        assert!(!stream.outbox.lock().queue.is_empty());
    }
    assert!(newest.is_some_and(|newest| newest > 61), "the watch that was behind got up to {newest:?}");
}

#[test]
fn who_waits_for_room_comes_before_what_is_parked_and_leaves_it_the_room_afterwards() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    let stream = watch(&feed, everything(), 0);
    publish(&feed, 1..=60);
    assert_eq!(stream.stats().parked, 1);
    let woken = Arc::new(testing::Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    let mut room = Box::pin(stream.wait_room());
    assert!(room.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "the queue is full");
    let mut batch = Vec::new();
    while stream.poll_drain(&mut cx, &mut batch, usize::MAX).is_ready() {
        batch.clear();
    }
    assert_eq!((stream.stats().parked, stream.stats().queued), (1, 0), "nothing is read for it yet");
    assert_eq!(woken.times(), 0);
    // It finished, or gave up waiting.
    drop(room);
    assert_eq!(woken.times(), 1, "it is the turn of the parked watches");
    assert!(stream.poll_drain(&mut cx, &mut batch, usize::MAX).is_ready());
}

#[test]
fn who_has_waited_for_room_longest_finds_it_first() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub);
    let stream = watch(&feed, everything(), 0);
    let mut cx = Context::from_waker(Waker::noop());
    publish(&feed, 1..=20);
    let (mut busy, mut other) = (Box::pin(stream.wait_room()), Box::pin(stream.wait_room()));
    assert!(busy.as_mut().poll(&mut cx).is_pending() && other.as_mut().poll(&mut cx).is_pending(), "the queue is full");
    take(&stream);
    assert!(busy.as_mut().poll(&mut cx).is_ready());
    // It writes, and wants to write again, before the other one gets to it.
    (0..LIMITS.deliveries).for_each(|_| stream.refuse(Header::default(), String::new()));
    let mut again = Box::pin(stream.wait_room());
    assert!(again.as_mut().poll(&mut cx).is_pending() && other.as_mut().poll(&mut cx).is_pending(), "it is full again");
    take(&stream);
    assert!(again.as_mut().poll(&mut cx).is_pending(), "it is the other one's turn");
    assert!(other.as_mut().poll(&mut cx).is_ready());
    assert!(again.as_mut().poll(&mut cx).is_ready(), "and then its own");
}

/// Takes everything that is queued.
fn take(stream: &Arc<WatchStream>) {
    stream.outbox.drain(&Context::from_waker(Waker::noop()), &mut Vec::new(), usize::MAX);
}
