//! What happens to watches while a publication is pushed: any order of steps, one at a time, on one thread.

use std::{
    collections::BTreeMap,
    task::{Context, Poll},
};

use proptest::prelude::*;

use crate::{
    hub::{
        Delivery, Drained, Feed, FeedState, Hub, KeyMap, OutboxLimits, ProgressAnswer, Subscribe, WatchOptions,
        WatchStream, testing, upstream::Changes,
    },
    types::{ClientKey, EventFields, EventKind, KeyRange, KeyValueFields, Revision},
};

use super::*;

/// Streams that come and go.
const STREAMS: usize = 4;
/// Deliveries in a queue, so few that watches are often parked.
const ROOM: usize = 3;

/// What clients do between two pushes.
#[derive(Clone, Debug)]
enum Step {
    /// A stream watches a range in one of two feeds, from now or from some revisions ago or ahead.
    Watch {
        stream: usize,
        feed: usize,
        range: usize,
        start: i64,
    },
    /// A stream cancels the watch that it made first and still has.
    Cancel {
        stream: usize,
    },
    Read {
        stream: usize,
    },
    /// A stream leaves, and another one comes.
    Replace {
        stream: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let stream = || 0..STREAMS;
    prop_oneof![
        4 => (stream(), 0..2_usize, 0..3_usize, -4..3_i64)
            .prop_map(|(stream, feed, range, start)| Step::Watch { stream, feed, range, start }),
        2 => stream().prop_map(|stream| Step::Cancel { stream }),
        4 => stream().prop_map(|stream| Step::Read { stream }),
        1 => stream().prop_map(|stream| Step::Replace { stream }),
    ]
}

/// A round: the feed that publishes, how many revisions at once, and what is done before each push.
fn round() -> impl Strategy<Value = (usize, usize, Vec<Vec<Step>>)> {
    let between = proptest::collection::vec(step(), 0..3);
    (0..2_usize, 1..4_usize, proptest::collection::vec(between, 1..12))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_watch_gets_each_revision_once_whatever_comes_between_two_pushes(
        rounds in proptest::collection::vec(round(), 1..12),
    ) {
        let mut world = World::new();
        for (feed, revisions, between) in rounds {
            world.publish(feed, revisions, between);
        }
        world.settle();
    }
}

/// Two feeds of the same keys, the second far behind the first, with streams that watch in both.
struct World {
    hub: Arc<Hub>,
    feeds: [Arc<Feed>; 2],
    streams: Vec<Stream>,
}

struct Stream {
    inner: Arc<WatchStream>,
    next_id: i64,
    /// Each watch, with what it must get next.
    watches: BTreeMap<i64, Watch>,
}

struct Watch {
    feed: usize,
    next: i64,
    /// Its client was told that it exists.
    created: bool,
}

impl World {
    fn new() -> Self {
        let hub = testing::hub(OutboxLimits { bytes: 1 << 20, deliveries: ROOM, watches: 100 });
        let feeds = [100, 10].map(|revision| {
            let feed = hub.open(KeyRange::prefix("".into()));
            feed.install(Arc::default(), KeyMap::default(), Revision::new(revision));
            feed.set_state(FeedState::Live);
            feed
        });
        let streams = (0..STREAMS).map(|_| Stream::new(&hub)).collect();
        Self { hub, feeds, streams }
    }

    /// Publishes revisions of one event each, with the steps before each push.
    fn publish(&mut self, feed: usize, revisions: usize, between: Vec<Vec<Step>>) {
        let feed = self.feeds[feed].clone();
        let from = feed.revision().get();
        let batch: Vec<_> = (1..=revisions as i64).map(|add| put(from + add)).collect();
        let twins = feed.twins();
        let turn = feed.inner.turn();
        let taken = feed.take(&batch, &twins);
        let mut between = between.into_iter();
        for push in taken.handouts.pushes() {
            between.next().into_iter().flatten().for_each(|step| self.step(&step));
            drop(push());
        }
        drop(turn);
        between.flatten().for_each(|step| self.step(&step));
        self.streams.iter_mut().for_each(|stream| stream.ask_progress(&self.feeds));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Watch { stream, feed, range, start } => self.streams[stream].watch(&self.feeds, feed, range, start),
            Step::Cancel { stream } => self.streams[stream].cancel(),
            Step::Read { stream } => self.streams[stream].read(),
            Step::Replace { stream } => {
                self.streams[stream].inner.leave();
                self.streams[stream] = Stream::new(&self.hub);
            }
        }
    }

    /// Each watch has everything once its client has read.
    fn settle(&mut self) {
        for stream in &mut self.streams {
            stream.read();
            for (id, watch) in &stream.watches {
                let newest = self.feeds[watch.feed].revision().get();
                assert!(watch.next > newest, "watch {id} lacks {} of {newest}", watch.next);
            }
            stream.inner.leave();
        }
        assert!(self.feeds.iter().all(|feed| feed.stats().streams == 0 && feed.stats().watches == 0));
    }
}

impl Stream {
    fn new(hub: &Hub) -> Self {
        let inner = WatchStream::new(hub.limits().outbox, ClientKey::RELAY);
        Self { inner, next_id: 1, watches: BTreeMap::new() }
    }

    fn watch(&mut self, feeds: &[Arc<Feed>; 2], feed: usize, range: usize, start: i64) {
        let now = feeds[feed].revision().get();
        // The history begins with the feed.
        let oldest = feeds[feed].stats().history_start.get();
        let start = if start == 0 { 0 } else { (now + start).max(oldest) };
        let range =
            [KeyRange::single("k".into()), KeyRange::prefix("".into()), KeyRange::prefix("k".into())][range].clone();
        let subscribe = Subscribe {
            watch_id: self.next_id,
            range,
            options: WatchOptions::default(),
            start_revision: Revision::new(start),
            progress_notify: true,
            fragment: false,
            known: Revision::ZERO,
            compacted: false,
        };
        self.inner.subscribe(&feeds[feed], &subscribe).expect("subscribed");
        let next = if start == 0 { now + 1 } else { start };
        self.watches.insert(self.next_id, Watch { feed, next, created: false });
        self.next_id += 1;
    }

    fn cancel(&mut self) {
        if let Some((id, _)) = self.watches.pop_first() {
            self.inner.cancel(id);
        }
    }

    /// Takes everything, and checks that each watch gets each revision once: every revision has an event for it.
    fn read(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut batch = Vec::new();
        while let Poll::Ready(drained) = self.inner.poll_drain(&mut cx, &mut batch, usize::MAX) {
            assert_eq!(drained, Drained::Some);
            batch.drain(..).for_each(|delivery| self.take(delivery));
        }
    }

    fn take(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Events { watch_id, payload, from, .. } => {
                // Otherwise it was cancelled.
                let Some(watch) = self.watches.get_mut(&watch_id) else { return };
                for whole in payload.each(from as usize) {
                    assert_eq!(whole.revision.get(), watch.next, "watch {watch_id}");
                    watch.next += 1;
                }
            }
            // It was told that it has everything up to this revision.
            Delivery::Progress { watch_id: _, stamp } => {
                for (id, watch) in self.watches.iter().filter(|(_, watch)| watch.created) {
                    assert!(watch.next > stamp.revision.get(), "watch {id} lacks {} of {}", watch.next, stamp.revision);
                }
            }
            Delivery::Created { watch_id, .. } => {
                self.watches.entry(watch_id).and_modify(|watch| watch.created = true);
            }
            Delivery::Canceled(_) => {}
        }
    }

    fn ask_progress(&mut self, feeds: &[Arc<Feed>; 2]) {
        if self.inner.answer_progress() == ProgressAnswer::Sent {
            // The feed that is furthest behind.
            let lowest = self.watches.values().map(|watch| feeds[watch.feed].revision()).min();
            assert!(lowest.is_some());
        }
    }
}

fn put(revision: i64) -> Changes {
    let kv = KeyValueFields { key: "k".into(), ..KeyValueFields::default() };
    Changes {
        revision: Revision::new(revision),
        events: vec![EventFields { kind: EventKind::Put, kv }],
        prev: Vec::new(),
        received: std::time::Instant::now(),
    }
}
