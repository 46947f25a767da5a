//! What an outbox keeps under its lock: the queue, the watches, and in which phase each of them is.
//!
//! Not here: who changes it and when; see `outbox`, `feed`, `catch_up` and `fill`. Always holds: the counts agree with the
//! phases; a slot of a parked watch is in `parked_slots` or in the hands of `catch_up`.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use hashbrown::HashMap;
use slab::Slab;

use super::OutboxLimits;
use crate::{
    hub::{
        Feed,
        delivery::{Delivery, NO_WATCH_ID, ProgressAnswer, StreamEnd},
        index::GroupId,
        payload::Payload,
        stats,
    },
    types::{Header, Revision},
};

/// Guarded by the outbox's lock.
#[derive(Debug, Default)]
pub(in crate::hub) struct State {
    pub(in crate::hub) queue: VecDeque<Delivery>,
    pub(in crate::hub) queued_bytes: usize,
    pub(in crate::hub) waker: Option<Waker>,
    pub(in crate::hub) watches: Slab<Watch>,
    pub(in crate::hub) ids: HashMap<i64, u32>,
    pub(in crate::hub) next_id: i64,
    pub(in crate::hub) next_serial: u64,
    pub(in crate::hub) feeds: Slab<Attachment>,
    /// Slots of parked watches, and of some that are not parked any more: finding the parked ones must not cost a walk over
    /// all watches.
    pub(in crate::hub) parked_slots: Vec<u32>,
    /// Watches per phase other than live.
    pub(in crate::hub) parked: usize,
    pub(in crate::hub) filling: usize,
    pub(in crate::hub) compacted: usize,
    /// Tasks that wait for room in the queue.
    pub(in crate::hub) waiting: usize,
    pub(in crate::hub) end: Option<StreamEnd>,
    pub(in crate::hub) gone: bool,
}

/// A feed in which the stream has watches.
#[derive(Debug)]
pub(in crate::hub) struct Attachment {
    pub(in crate::hub) feed: Arc<Feed>,
    /// The outbox's place in the feed.
    pub(in crate::hub) slot: u32,
    pub(in crate::hub) watches: usize,
}

/// One watch of the stream.
#[derive(Debug)]
pub(in crate::hub) struct Watch {
    pub(in crate::hub) id: i64,
    /// Given by [`State::add`], and never again on this stream: ids and slots come back after a cancel.
    pub(in crate::hub) serial: u64,
    /// The first revision that it may still be given: after its start, all that it got, and what it was told as progress.
    pub(in crate::hub) next: Revision,
    /// Index into [`State::feeds`].
    pub(in crate::hub) attachment: u32,
    pub(in crate::hub) group: GroupId,
    pub(in crate::hub) position: u32,
    pub(in crate::hub) phase: Phase,
    pub(in crate::hub) fragment: bool,
    pub(in crate::hub) progress_notify: bool,
    /// Nothing was delivered since the last tick of the progress timer.
    pub(in crate::hub) quiet: bool,
    /// It began in the past and has not been live yet.
    pub(in crate::hub) replay: bool,
}

/// How a watch gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Phase {
    /// Pushed by the feed.
    Live,
    /// Read from history as the queue drains.
    Parked,
    /// From a temporary upstream watch.
    Filling,
    /// Ended by compaction. The id stays taken and blocks progress until the client cancels it, as in etcd.
    Compacted,
}

impl State {
    /// Adds a delivery and gives back the task to wake. On a stream that has ended nothing is added: its client goes on from the
    /// last that it got, and a busy feed must not put the end off for ever.
    pub(in crate::hub) fn enqueue(&mut self, delivery: Delivery) -> Option<Waker> {
        self.append(delivery).then(|| self.waker.take()).flatten()
    }

    /// The same where the task needs no wake-up. Whether it was added.
    fn append(&mut self, delivery: Delivery) -> bool {
        let open = !self.is_over();
        if open {
            self.queued_bytes += delivery.bytes();
            self.queue.push_back(delivery);
        }
        open
    }

    /// Adds the events of a watch that is not live, from the revision on that it needs next. The task is the caller's to wake,
    /// where that is another one.
    pub(in crate::hub) fn enqueue_events(&mut self, slot: usize, payload: Arc<Payload>, as_of: Revision) {
        let Some(watch) = self.watches.get_mut(slot) else { return };
        let from = payload.before(watch.next);
        if from == payload.revisions() {
            return;
        }
        watch.quiet = false;
        watch.next = payload.revision().next();
        let (watch_id, fragment, replay) = (watch.id, watch.fragment, watch.replay);
        self.append(Delivery::Events { watch_id, payload, from: from as u32, fragment, as_of: Some(as_of), replay });
    }

    /// Takes the wish for an id, or gives one as etcd does: the next of a counter that skips those in use.
    pub(in crate::hub) fn assign_id(&mut self, wish: i64) -> Option<i64> {
        if wish != 0 {
            return (!self.ids.contains_key(&wish)).then_some(wish);
        }
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    /// Adds a watch in phase live; the caller may change the phase.
    pub(in crate::hub) fn add(&mut self, mut watch: Watch) -> usize {
        self.feeds[watch.attachment as usize].watches += 1;
        watch.serial = self.next_serial;
        self.next_serial += 1;
        let id = watch.id;
        let slot = self.watches.insert(watch);
        self.ids.insert(id, slot as u32);
        slot
    }

    /// Takes a watch out. Gives it back with the outbox's place in the feed, where that was the last watch there. Both the
    /// feed's index and its outboxes are the caller's matter.
    pub(in crate::hub) fn remove(&mut self, slot: usize) -> (Watch, Option<u32>) {
        self.set_phase(slot, Phase::Live);
        let watch = self.watches.remove(slot);
        self.ids.remove(&watch.id);
        let attachment = &mut self.feeds[watch.attachment as usize];
        attachment.watches -= 1;
        let last = (attachment.watches == 0).then(|| self.feeds.remove(watch.attachment as usize).slot);
        (watch, last)
    }

    /// The slot of a watch.
    pub(in crate::hub) fn slot_of(&self, watch_id: i64) -> Option<usize> {
        self.ids.get(&watch_id).map(|slot| *slot as usize)
    }

    /// The slot of a watch that is being filled; `None` where it is not any more, whatever came in its place, or its stream has
    /// ended.
    pub(in crate::hub) fn filling(&self, watch_id: i64, serial: u64) -> Option<usize> {
        if self.is_over() {
            return None;
        }
        let slot = self.slot_of(watch_id)?;
        let watch = &self.watches[slot];
        (watch.serial == serial && watch.phase == Phase::Filling).then_some(slot)
    }

    /// Moves a watch to a phase and keeps the counts.
    pub(in crate::hub) fn set_phase(&mut self, slot: usize, phase: Phase) {
        let watch = &mut self.watches[slot];
        let old = std::mem::replace(&mut watch.phase, phase);
        watch.replay &= phase != Phase::Live;
        for (phase, up) in [(old, false), (phase, true)] {
            let step = |count: &mut usize| *count = if up { *count + 1 } else { *count - 1 };
            match phase {
                Phase::Live => {}
                Phase::Parked => {
                    step(&mut self.parked);
                    if up {
                        self.parked_slots.push(slot as u32);
                    } else if self.parked == 0 {
                        self.parked_slots.clear();
                    }
                    stats::parked(up);
                }
                Phase::Filling => {
                    step(&mut self.filling);
                    stats::filling(up);
                }
                Phase::Compacted => step(&mut self.compacted),
            }
        }
    }

    /// Gives the stream's task to wake, where nothing was queued but there is something to do.
    pub(in crate::hub) fn wake(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// Whether the stream has ended or is gone: nothing new may begin on it.
    pub(in crate::hub) fn is_over(&self) -> bool {
        self.gone || self.end.is_some()
    }

    /// The place of a feed in [`State::feeds`], made where it is new: `slot` gives the outbox's place in the feed.
    pub(in crate::hub) fn attach(&mut self, feed: &Arc<Feed>, slot: impl FnOnce() -> u32) -> u32 {
        if let Some((index, _)) = self.feeds.iter().find(|(_, attachment)| Arc::ptr_eq(&attachment.feed, feed)) {
            return index as u32;
        }
        self.feeds.insert(Attachment { feed: feed.clone(), slot: slot(), watches: 0 }) as u32
    }

    /// Takes up to `most` slots of parked watches, in no order. Those that stay parked must be given back.
    pub(in crate::hub) fn take_parked(&mut self, most: usize) -> Vec<u32> {
        let Self { parked_slots, watches, .. } = self;
        parked_slots.retain(|slot| watches.get(*slot as usize).is_some_and(|watch| watch.phase == Phase::Parked));
        parked_slots.sort_unstable();
        parked_slots.dedup();
        parked_slots.split_off(parked_slots.len().saturating_sub(most))
    }

    /// The feed of that one of these parked watches which is furthest behind: revisions of several feeds are of one store.
    pub(in crate::hub) fn furthest_behind(&self, slots: &[u32]) -> Option<&Arc<Feed>> {
        let watches = slots.iter().filter_map(|slot| self.watches.get(*slot as usize));
        watches.min_by_key(|watch| watch.next).map(|watch| &self.feeds[watch.attachment as usize].feed)
    }

    #[cfg(test)]
    pub(in crate::hub) fn parked_slots(&self) -> usize {
        self.parked_slots.len()
    }

    /// Gives back slots of watches that stay parked.
    pub(in crate::hub) fn put_parked(&mut self, slots: impl IntoIterator<Item = u32>) {
        self.parked_slots.extend(slots);
    }

    /// Whether no more should be queued.
    pub(in crate::hub) fn is_full(&self, limits: &OutboxLimits) -> bool {
        self.queued_bytes >= limits.bytes || self.queue.len() >= limits.deliveries
    }

    /// Queues the stream's progress where etcd would tell it: there are watches, all are live, and none waits for a revision to
    /// come.
    pub(in crate::hub) fn progress(&mut self, header: Header) -> (ProgressAnswer, Option<Waker>) {
        let revision = header.revision;
        let ahead = |watch: &Watch| {
            let of_feed = self.feeds[watch.attachment as usize].feed.revision();
            watch.next > revision.next() && watch.next <= of_feed.next()
        };
        if self.watches.iter().any(|(_, watch)| ahead(watch)) {
            // A watch in a feed that is ahead was told of more already, or began after it.
            return (ProgressAnswer::Later, None);
        }
        let behind = self.parked + self.filling + self.compacted > 0;
        let future = self.watches.iter().any(|(_, watch)| watch.next > revision.next());
        if behind || future || self.watches.is_empty() {
            return (ProgressAnswer::Silence, None);
        }
        for (_, watch) in &mut self.watches {
            watch.next = watch.next.max(revision.next());
        }
        let waker = self.enqueue(Delivery::Progress { watch_id: NO_WATCH_ID, header });
        (ProgressAnswer::Sent, waker)
    }
}
