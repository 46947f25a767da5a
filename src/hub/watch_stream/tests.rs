//! Tests of a stream with its feeds: what a fault of the relay does to a watch, and that a stream leaves nothing
//! behind.

use std::{sync::Weak, task::Waker};

use super::*;
use crate::{
    hub::{FeedState, Hub, KeyMap, Reset, outbox::Transition, testing, upstream::Changes},
    types::{EventFields, EventKind, KeyValueFields},
};

const LIMITS: OutboxLimits = OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 };

fn feed(hub: &Hub, prefix: &'static str) -> Arc<Feed> {
    let feed = hub.open(KeyRange::prefix(prefix.into()));
    feed.install(Arc::default(), KeyMap::default(), Revision::new(10));
    feed.set_state(FeedState::Live);
    feed
}

fn watch(stream: &WatchStream, feed: &Arc<Feed>, watch_id: i64, start_revision: i64, compacted: bool) {
    let subscribe = Subscribe {
        watch_id,
        range: feed.range().clone(),
        options: WatchOptions::default(),
        start_revision: Revision::new(start_revision),
        progress_notify: true,
        fragment: false,
        known: Revision::ZERO,
        compacted,
    };
    stream.subscribe(feed, &subscribe).expect("subscribed");
}

fn publish(feed: &Feed, revision: i64) {
    let kv = KeyValueFields { key: feed.range().start().clone(), ..KeyValueFields::default() };
    let changes = Changes {
        revision: Revision::new(revision),
        events: vec![EventFields { kind: EventKind::Put, kv }],
        prev: Vec::new(),
        received: std::time::Instant::now(),
    };
    feed.publish(&[changes]).expect("the next revision");
}

/// The messages of a stream, in short.
fn told(stream: &WatchStream) -> Vec<String> {
    let mut cx = Context::from_waker(Waker::noop());
    let (mut batch, mut all) = (Vec::new(), Vec::new());
    while stream.poll_drain(&mut cx, &mut batch, usize::MAX) == Poll::Ready(Drained::Some) {
        all.extend(batch.drain(..).map(|delivery| match delivery {
            Delivery::Created { watch_id, .. } => format!("{watch_id} created"),
            Delivery::Events { watch_id, payload, .. } => format!("{watch_id} events {}", payload.revision()),
            Delivery::Progress { watch_id, stamp } => format!("{watch_id} progress {}", stamp.revision),
            Delivery::Canceled(cancellation) => format!("{} canceled", cancellation.watch_id),
        }));
    }
    all
}

/// Makes the relay lose track of a watch, and continues as a release build does.
fn lose(stream: &WatchStream, watch_id: i64) {
    let mut state = stream.outbox.lock();
    let slot = state.watches.slot_of(watch_id).expect("a watch");
    let impossible = state.watches.shift(slot, Transition::BeginFill, Revision::new(99)).expect_err("it is live");
    state.fail(slot, &impossible);
}

#[test]
fn a_watch_that_the_relay_has_lost_track_of_is_ended_and_no_other() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let hub = testing::hub(LIMITS);
        let feed = feed(&hub, "k");
        let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
        watch(&stream, &feed, 1, 0, false);
        watch(&stream, &feed, 2, 0, false);
        assert_eq!(told(&stream), ["1 created", "2 created"]);

        let woken = Arc::new(testing::Woken::default());
        let waker = Waker::from(woken.clone());
        assert!(stream.poll_drain(&mut Context::from_waker(&waker), &mut Vec::new(), 1).is_pending());
        lose(&stream, 1);
        assert_eq!(woken.times(), 1, "its client is told at once");
        publish(&feed, 11);
        assert_eq!(told(&stream), ["1 canceled", "2 events 11"]);
        assert_eq!(stream.live_watches().iter().map(|watch| watch.watch_id).collect::<Vec<_>>(), [2]);

        // It does not move any more, and does not hold up the others.
        stream.notify_progress(true);
        assert_eq!(stream.answer_progress(), ProgressAnswer::Sent);
        assert_eq!(told(&stream), ["2 progress 11", "-1 progress 11"]);
        feed.reset(&feed.cluster(), KeyMap::default(), Revision::new(20), &Reset::Replaced);
        assert_eq!(told(&stream), ["2 canceled"]);

        stream.cancel(1);
        stream.cancel(2);
        assert_eq!(told(&stream), ["1 canceled", "2 canceled"]);
        assert_eq!((feed.stats().watches, feed.stats().streams, stream.watches()), (0, 0, 0));
    });
    let metrics = recorder.handle().render();
    assert!(metrics.contains(r#"etcd_relay_watches_canceled_total{reason="fault"} 1"#), "{metrics}");
}

#[test]
fn a_transition_that_is_impossible_fails_a_debug_build() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub, "k");
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    watch(&stream, &feed, 1, 0, false);
    let fill = || stream.outbox.lock().begin_fill(0);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(fill));
    assert_eq!(outcome.is_err(), cfg!(debug_assertions), "nobody put it into the queue for fills");
}

#[test]
fn feeds_and_streams_hold_each_other_in_no_circle() {
    let hub = testing::hub(LIMITS);
    let feeds = [feed(&hub, "a"), feed(&hub, "b")];
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    for (watch_id, feed) in (1..).zip(&feeds) {
        watch(&stream, feed, watch_id, 0, false);
    }
    let outbox = Arc::downgrade(&stream.outbox);
    let held: Vec<Weak<Feed>> = feeds.iter().map(Arc::downgrade).collect();
    // Without `leave`.
    drop((stream, feeds, hub));
    assert!(outbox.upgrade().is_none() && held.iter().all(|feed| feed.upgrade().is_none()));
}

#[test]
fn a_stream_lets_go_of_feeds_in_which_it_has_no_watch_any_more() {
    let hub = testing::hub(LIMITS);
    let feeds = [feed(&hub, "a"), feed(&hub, "b")];
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    for (watch_id, feed) in (1..).zip(&feeds) {
        watch(&stream, feed, watch_id, 0, false);
    }
    stream.cancel(1);
    assert_eq!(stream.feeds().len(), 1);
    assert!(Arc::ptr_eq(&stream.feeds()[0], &feeds[1]));
    // The feed itself may end its last watch.
    feeds[1].end(crate::hub::NoFeed::Bytes);
    assert_eq!(stream.feeds().len(), 0);
    assert_eq!(stream.feeds.lock().len(), 0);
    watch(&stream, &feeds[0], 3, 0, false);
    assert_eq!(stream.feeds().len(), 1);
    stream.leave();
    assert_eq!((stream.feeds.lock().len(), stream.watches(), feeds[0].stats().streams), (0, 0, 0));
}

#[test]
fn a_stream_that_goes_from_feed_to_feed_holds_those_alone_in_which_it_has_watches() {
    let hub = testing::hub(LIMITS);
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    for _ in 0..10 {
        // Nobody reads its list of feeds meanwhile.
        watch(&stream, &feed(&hub, "k"), 1, 0, false);
        stream.cancel(1);
        assert!(stream.feeds.lock().len() <= 1);
    }
}

#[test]
fn the_memory_of_many_watches_goes_back_when_all_have_gone() {
    let limits = OutboxLimits { watches: 10_000, ..LIMITS };
    let hub = testing::hub(limits);
    let feed = feed(&hub, "k");
    let stream = WatchStream::new(limits, ClientKey::RELAY);
    (1..=10_000).for_each(|watch_id| watch(&stream, &feed, watch_id, 0, false));
    assert!(stream.outbox.lock().watches.room() >= 10_000);
    (1..=10_000).for_each(|watch_id| stream.cancel(watch_id));
    assert_eq!(stream.outbox.lock().watches.room(), 0);
    watch(&stream, &feed, 1, 0, false);
    publish(&feed, 11);
    assert!(told(&stream).ends_with(&["1 created".to_owned(), "1 events 11".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_canceled_takes_its_place_in_the_queue_for_fills_along() {
    // There is one turn, and upstream does not answer.
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub, "k");
    let at_work = WatchStream::new(LIMITS, ClientKey::new(1));
    watch(&at_work, &feed, 1, 5, true);
    let waits = WatchStream::new(LIMITS, ClientKey::new(2));
    for _ in 0..10 {
        watch(&waits, &feed, 1, 5, true);
        assert!(feed.shared.turns.is_awaited());
        waits.cancel(1);
        assert!(!feed.shared.turns.is_awaited(), "a client could fill the queue with useless places");
    }
    at_work.leave();
}

#[test]
fn progress_notifications_stay_within_the_queue_and_come_to_each_watch_once() {
    let limits = OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 5000 };
    let hub = testing::hub(limits);
    let feeds = [feed(&hub, "a"), feed(&hub, "b")];
    let stream = WatchStream::new(limits, ClientKey::RELAY);
    let watches = 4000;
    for watch_id in 1..=watches {
        watch(&stream, &feeds[watch_id as usize % 2], watch_id, 0, false);
        told(&stream);
    }
    let mut all = Vec::new();
    loop {
        let done = stream.notify_progress(false);
        assert!(stream.stats().queued <= limits.deliveries, "{} wait", stream.stats().queued);
        all.extend(told(&stream));
        if done {
            break;
        }
    }
    all.sort_unstable();
    let mut each: Vec<String> = (1..=watches).map(|watch_id| format!("{watch_id} progress 10")).collect();
    each.sort_unstable();
    assert_eq!(all, each);
}

#[test]
fn a_stream_is_silent_about_progress_while_a_watch_begins_with_a_revision_to_come() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub, "k");
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    watch(&stream, &feed, 1, 0, false);
    watch(&stream, &feed, 2, 13, false);
    watch(&stream, &feed, 3, 11, false);
    told(&stream);
    for (revision, events) in [(11, vec!["1 events 11", "3 events 11"]), (12, vec!["1 events 12", "3 events 12"])] {
        assert_eq!(stream.answer_progress(), ProgressAnswer::Silence, "before {revision}");
        stream.notify_progress(true);
        publish(&feed, revision);
        let events: Vec<_> = events.into_iter().map(str::to_owned).collect();
        assert!(told(&stream).ends_with(&events), "at {revision}");
    }
    assert_eq!(stream.answer_progress(), ProgressAnswer::Silence, "13 is the next revision, and has not come");
    publish(&feed, 13);
    assert_eq!(told(&stream), ["1 events 13", "2 events 13", "3 events 13"]);
    assert_eq!(stream.answer_progress(), ProgressAnswer::Sent);
    assert_eq!(told(&stream), ["-1 progress 13"]);
    assert_eq!(stream.stats().parked, 0);
    watch(&stream, &feed, 4, 20, false);
    assert_eq!(stream.answer_progress(), ProgressAnswer::Silence);
    stream.cancel(4);
    assert_eq!(stream.answer_progress(), ProgressAnswer::Sent);
}

#[test]
fn a_watch_that_names_its_start_is_told_no_progress_below_it() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub, "k");
    let (from_now, resumed) = (WatchStream::new(LIMITS, ClientKey::RELAY), WatchStream::new(LIMITS, ClientKey::RELAY));
    watch(&from_now, &feed, 1, 0, false);
    watch(&resumed, &feed, 2, 11, false);
    let progress = |stream: &WatchStream| {
        stream.notify_progress(true);
        let answer = stream.answer_progress();
        (answer, told(stream).split_off(1))
    };
    assert_eq!(progress(&from_now), (ProgressAnswer::Sent, vec!["1 progress 10".into(), "-1 progress 10".into()]));
    assert_eq!(progress(&resumed), (ProgressAnswer::Silence, Vec::new()), "exactly one ahead");
    // No event reaches it.
    feed.advance(Revision::new(11));
    resumed.notify_progress(true);
    assert_eq!(resumed.answer_progress(), ProgressAnswer::Sent);
    assert_eq!(told(&resumed), ["2 progress 11", "-1 progress 11"]);
}

#[test]
fn a_stream_is_told_no_progress_below_the_start_of_a_watch_in_a_feed_that_is_further() {
    let hub = testing::hub(LIMITS);
    let feeds = [feed(&hub, "a"), feed(&hub, "b")];
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    watch(&stream, &feeds[1], 1, 0, false);
    watch(&stream, &feeds[0], 2, 11, false);
    feeds[0].advance(Revision::new(12));
    watch(&stream, &feeds[0], 3, 12, false);
    told(&stream);
    assert_eq!(stream.answer_progress(), ProgressAnswer::Later, "the other feed is at 10");
    feeds[1].advance(Revision::new(11));
    assert_eq!(stream.answer_progress(), ProgressAnswer::Later, "12 is where the third begins");
    feeds[1].advance(Revision::new(12));
    assert_eq!(stream.answer_progress(), ProgressAnswer::Sent);
    assert!(told(&stream).ends_with(&["-1 progress 12".to_owned()]));
}

#[test]
fn a_watch_whose_start_was_reached_without_an_event_outlasts_a_compaction_as_a_live_one_does() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub, "k");
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    watch(&stream, &feed, 1, 11, false);
    watch(&stream, &feed, 2, 0, false);
    feed.advance(Revision::new(20));
    let compacted = Reset::Compacted { compact_revision: Revision::new(21) };
    feed.reset(&feed.cluster(), KeyMap::default(), Revision::new(20), &compacted);
    publish(&feed, 21);
    assert_eq!(told(&stream), ["1 created", "2 created", "1 events 21", "2 events 21"]);
}

#[test]
fn what_was_missed_ends_no_watch_that_begins_after_it() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub, "k");
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    watch(&stream, &feed, 1, 0, false);
    watch(&stream, &feed, 2, 15, false);
    watch(&stream, &feed, 3, 25, false);
    watch(&stream, &feed, 4, 31, false);
    told(&stream);
    feed.advance(Revision::new(20));
    feed.reset(&feed.cluster(), KeyMap::default(), Revision::new(30), &Reset::Missed);
    publish(&feed, 31);
    assert_eq!(told(&stream), ["1 canceled", "2 canceled", "3 canceled", "4 events 31"]);
}

#[test]
fn many_watches_that_a_revision_was_to_come_for_are_live_in_steps() {
    let limits = OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 5000 };
    let hub = testing::hub(limits);
    let feed = feed(&hub, "k");
    let stream = WatchStream::new(limits, ClientKey::RELAY);
    for watch_id in 1..=3000 {
        watch(&stream, &feed, watch_id, 20, false);
        told(&stream);
    }
    assert_eq!(stream.answer_progress(), ProgressAnswer::Silence);
    feed.advance(Revision::new(30));
    let mut later = 0;
    while stream.answer_progress() == ProgressAnswer::Later {
        later += 1;
    }
    assert_eq!(later, 2, "a bounded number of them at a time");
    assert_eq!(told(&stream), ["-1 progress 30"]);
}

#[test]
fn progress_is_told_again_after_another_cluster_with_lower_revisions_has_come() {
    let hub = testing::hub(LIMITS);
    let feed = feed(&hub, "k");
    let stream = WatchStream::new(LIMITS, ClientKey::RELAY);
    watch(&stream, &feed, 1, 0, false);
    watch(&stream, &feed, 2, 0, false);
    assert_eq!(stream.answer_progress(), ProgressAnswer::Sent);
    feed.reset(&feed.cluster(), KeyMap::default(), Revision::new(5), &Reset::Replaced);
    feed.loaded();
    stream.cancel(1);
    watch(&stream, &feed, 3, 0, false);
    stream.cancel(2);
    told(&stream);
    assert_eq!(stream.answer_progress(), ProgressAnswer::Sent);
    assert_eq!(told(&stream), ["-1 progress 5"]);
}

#[test]
fn watches_are_shown_in_pages_each_with_its_keys_and_how_far_it_is_behind() {
    let limits = OutboxLimits { bytes: 1 << 20, deliveries: 2, watches: 5000 };
    let hub = testing::hub(limits);
    let feeds = [feed(&hub, "a"), feed(&hub, "b")];
    let stream = WatchStream::new(limits, ClientKey::RELAY);
    for watch_id in 1..=3000 {
        watch(&stream, &feeds[watch_id as usize % 2], watch_id, if watch_id == 2999 { 20 } else { 0 }, false);
        told(&stream);
    }
    // A few are left, far apart.
    (1..=3000)
        .filter(|watch_id| ![1, 1500, 2999, 3000].contains(watch_id))
        .for_each(|watch_id| stream.cancel(watch_id));
    told(&stream);
    for revision in 11..=14 {
        publish(&feeds[1], revision);
    }
    let (mut rows, mut after) = (Vec::new(), 0);
    loop {
        let page = stream.watches_after(after, 3);
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 3 && last.number > after);
        after = last.number;
        rows.extend(page);
    }
    let shown: Vec<_> = rows.iter().map(|row| (row.watch_id, row.phase, row.next.get(), row.lag_revisions)).collect();
    assert_eq!(shown[1..], [(1500, "live", 11, 0), (2999, "ahead", 20, 0), (3000, "live", 11, 0)]);
    assert_eq!((shown[0].0, shown[0].1, shown[0].3), (1, "parked", 14 - shown[0].2 + 1), "its queue holds two");
    assert!(shown[0].3 > 0);
    let ranges: Vec<_> = rows.iter().map(|row| (row.range.clone().expect("keys"), row.feed)).collect();
    for (row, feed) in ranges.iter().zip([&feeds[1], &feeds[0], &feeds[1], &feeds[0]]) {
        assert_eq!(*row, (feed.range().to_string(), feed.number()));
    }
    stream.leave();
    assert!(stream.watches_after(0, 10).is_empty());
}
