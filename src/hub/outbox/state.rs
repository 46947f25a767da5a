//! What an outbox keeps under its lock: the queue, the watches, and where each of them stands.
//!
//! Not here: who moves a watch and when; see `feed`, `catch_up`, `backfill` and `fill`. A watch's phase and position are written in this
//! file alone, by transitions with a name: each says from which phase it may come, and a debug build checks it.
//! Always holds: a position never falls; each watch that is not live is in the line of its phase, and a line is ordered by
//! position, so that the watch which is furthest behind comes first; what is counted agrees with the phases.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Bound::{self, Excluded, Unbounded},
    sync::Arc,
    task::Waker,
};

use hashbrown::HashMap;
use slab::Slab;

use super::OutboxLimits;
use crate::{
    hub::{
        Feed,
        delivery::{Delivery, NO_WATCH_ID, ProgressAnswer, StreamEnd},
        index::GroupId,
        payload::Payload,
        shares::Counted,
        stats,
        turns::Ticket,
    },
    types::{Revision, Stamp},
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
    /// Read from history when there is room.
    parked: Line,
    behind: usize,
    unfilled: usize,
    filling: usize,
    compacted: usize,
    /// The stream's place in the queue for fills, while it has one.
    pub(in crate::hub) ticket: Option<Ticket>,
    /// The place in its line of the watch that was filled last: the next one is after it.
    last_filled: Option<(Revision, u32)>,
    /// Tasks that wait for room in the queue.
    pub(in crate::hub) waiting: usize,
    pub(in crate::hub) end: Option<StreamEnd>,
    pub(in crate::hub) gone: bool,
    /// Whose watches these are: one more is counted before it is added.
    pub(in crate::hub) counted: Counted,
}

/// Watches of one phase: what they need next, and their slots.
type Line = BTreeSet<(Revision, u32)>;

/// A feed in which the stream has watches.
#[derive(Debug)]
pub(in crate::hub) struct Attachment {
    pub(in crate::hub) feed: Arc<Feed>,
    /// The outbox's place in the feed.
    pub(in crate::hub) slot: u32,
    pub(in crate::hub) watches: usize,
    /// Wait until the feed has read its past.
    behind: Line,
    /// Wait for a fill.
    unfilled: Line,
}

/// One watch of the stream.
#[derive(Debug)]
pub(in crate::hub) struct Watch {
    pub(in crate::hub) id: i64,
    /// Given by [`State::add`], and never again on this stream: ids and slots come back after a cancel.
    pub(in crate::hub) serial: u64,
    next: Revision,
    /// Index into [`State::feeds`].
    pub(in crate::hub) attachment: u32,
    pub(in crate::hub) group: GroupId,
    pub(in crate::hub) position: u32,
    phase: Phase,
    fragment: bool,
    pub(in crate::hub) progress_notify: bool,
    /// Nothing was delivered since the last tick of the progress timer.
    pub(in crate::hub) quiet: bool,
    /// It began in the past and has not been live yet.
    replay: bool,
}

impl Watch {
    /// The first revision that it may still be given: after its start, all that it got, and what it was told as progress.
    pub(in crate::hub) fn next(&self) -> Revision {
        self.next
    }

    pub(in crate::hub) fn phase(&self) -> Phase {
        self.phase
    }

    pub(in crate::hub) fn link(&self) -> Link {
        Link { group: self.group, position: self.position }
    }
}

/// A watch's place in its feed's index.
#[derive(Clone, Copy, Debug)]
pub(in crate::hub) struct Link {
    pub(in crate::hub) group: GroupId,
    pub(in crate::hub) position: u32,
}

/// The group of a watch that is in no index any more.
pub(in crate::hub) const UNLINKED: GroupId = u32::MAX;

/// What [`State::add`] makes a watch of.
#[derive(Debug)]
pub(in crate::hub) struct NewWatch {
    pub(in crate::hub) id: i64,
    /// The first revision that it wants.
    pub(in crate::hub) next: Revision,
    pub(in crate::hub) attachment: u32,
    pub(in crate::hub) group: GroupId,
    pub(in crate::hub) position: u32,
    pub(in crate::hub) fragment: bool,
    pub(in crate::hub) progress_notify: bool,
    /// It begins in the past: what it gets until it is live is late by its own wish.
    pub(in crate::hub) replay: bool,
}

/// How a watch gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Phase {
    /// Pushed by the feed.
    Live,
    /// Read from history as the queue drains.
    Parked,
    /// Not at all until the feed has read its past: then from history.
    Behind,
    /// Not at all until it is its turn to be filled.
    Unfilled,
    /// From a temporary upstream watch.
    Filling,
    /// Ended by compaction. The id stays taken and blocks progress until the client cancels it, as in etcd.
    Compacted,
}

impl Phase {
    /// Whether a watch may go from this phase to another.
    const fn leads_to(self, next: Self) -> bool {
        match self {
            Self::Live | Self::Parked => matches!(next, Self::Live | Self::Parked | Self::Behind | Self::Unfilled),
            Self::Behind => matches!(next, Self::Live | Self::Parked | Self::Unfilled),
            Self::Unfilled => matches!(next, Self::Live | Self::Parked | Self::Behind | Self::Filling),
            Self::Filling => matches!(next, Self::Parked | Self::Unfilled),
            Self::Compacted => false,
        }
    }
}

/// The transitions: each moves one watch, and nothing else does.
impl State {
    /// Adds a watch that is live; the caller may move it.
    pub(in crate::hub) fn add(&mut self, new: NewWatch) -> usize {
        let NewWatch { id, next, attachment, group, position, fragment, progress_notify, replay } = new;
        self.feeds[attachment as usize].watches += 1;
        let serial = self.next_serial;
        self.next_serial += 1;
        let (phase, quiet) = (Phase::Live, true);
        let watch =
            Watch { id, serial, next, attachment, group, position, phase, fragment, progress_notify, quiet, replay };
        let slot = self.watches.insert(watch);
        self.ids.insert(id, slot as u32);
        slot
    }

    /// A live watch gets its next events, or is parked where the queue is full. Gives back a task to wake.
    pub(in crate::hub) fn push(&mut self, slot: usize, payload: &Arc<Payload>, limits: &OutboxLimits) -> Option<Waker> {
        // A member of a group has a watch until the feed removes it.
        let full = self.is_full(limits);
        let over = self.is_over();
        let watch = self.watches.get_mut(slot)?;
        if watch.phase != Phase::Live || payload.revision() < watch.next || over {
            return None;
        }
        let from = payload.before(watch.next);
        if full {
            // What is missed is read from the history once the client reads again.
            let next = payload.revision_at(from);
            self.shift(slot, Phase::Parked, next);
            return None;
        }
        watch.quiet = false;
        let delivery = Delivery::Events {
            watch_id: watch.id,
            payload: payload.clone(),
            from: from as u32,
            fragment: watch.fragment,
            as_of: None,
            replay: false,
        };
        watch.next = payload.revision().next();
        self.enqueue(delivery)
    }

    /// A live watch was told that it has everything up to `revision`.
    pub(in crate::hub) fn told_progress(&mut self, slot: usize, revision: Revision) {
        let watch = &mut self.watches[slot];
        debug_assert_eq!(watch.phase, Phase::Live, "progress is for those that are live");
        watch.next = watch.next.max(revision.next());
    }

    /// History has what the watch needs next.
    pub(in crate::hub) fn park(&mut self, slot: usize) {
        self.shift(slot, Phase::Parked, self.watches[slot].next);
    }

    /// History does not reach back to what the watch needs, but it may soon: the feed reads its past.
    pub(in crate::hub) fn fall_behind(&mut self, slot: usize, needs: Revision) {
        self.shift(slot, Phase::Behind, needs);
    }

    /// History does not reach back to what the watch needs and will not: it waits for a fill, or for another one.
    pub(in crate::hub) fn await_fill(&mut self, slot: usize, needs: Revision) {
        self.shift(slot, Phase::Unfilled, needs);
    }

    /// It is the watch's turn to be filled.
    pub(in crate::hub) fn begin_fill(&mut self, slot: usize) {
        self.shift(slot, Phase::Filling, self.watches[slot].next);
    }

    /// The watch was given everything that there is, or all that it needs is still to come: it is at least at `next`.
    pub(in crate::hub) fn go_live(&mut self, slot: usize, next: Revision) {
        self.shift(slot, Phase::Live, next.max(self.watches[slot].next));
    }

    /// Adds the events of a watch that is parked or filling, from the revision on that it needs next. The task is the caller's to
    /// wake, where that is another one.
    pub(in crate::hub) fn give(&mut self, slot: usize, payload: Arc<Payload>, as_of: Revision) {
        let Some(watch) = self.watches.get_mut(slot) else { return };
        let from = payload.before(watch.next);
        if from == payload.revisions() {
            return;
        }
        watch.quiet = false;
        let (watch_id, fragment, replay, through) = (watch.id, watch.fragment, watch.replay, payload.revision());
        self.pass(slot, through);
        self.append(Delivery::Events { watch_id, payload, from: from as u32, fragment, as_of: Some(as_of), replay });
    }

    /// A watch that is parked or filling has everything up to `through`.
    pub(in crate::hub) fn pass(&mut self, slot: usize, through: Revision) {
        let watch = &self.watches[slot];
        let (phase, next) = (watch.phase, watch.next.max(through.next()));
        debug_assert!(matches!(phase, Phase::Parked | Phase::Filling), "nobody reads for a watch that is {phase:?}");
        if next > watch.next {
            if phase == Phase::Parked {
                self.parked.remove(&(watch.next, slot as u32));
                self.parked.insert((next, slot as u32));
            }
            self.watches[slot].next = next;
        }
    }

    /// Compaction ended a watch. Its id stays taken. What it had in the feed's index is the caller's matter.
    pub(in crate::hub) fn end_compacted(&mut self, slot: usize) -> Link {
        debug_assert_ne!(self.watches[slot].phase, Phase::Compacted, "it ends once");
        self.leave_line(slot);
        let watch = &mut self.watches[slot];
        watch.phase = Phase::Compacted;
        let link = watch.link();
        watch.group = UNLINKED;
        self.join_line(slot);
        link
    }

    /// Takes a watch out. Gives it back with the outbox's place in the feed, where that was the last watch there. Both the
    /// feed's index and its outboxes are the caller's matter.
    pub(in crate::hub) fn remove(&mut self, slot: usize) -> (Watch, Option<u32>) {
        self.leave_line(slot);
        let watch = self.watches.remove(slot);
        self.ids.remove(&watch.id);
        self.counted.remove();
        let attachment = &mut self.feeds[watch.attachment as usize];
        attachment.watches -= 1;
        let last = (attachment.watches == 0).then(|| self.feeds.remove(watch.attachment as usize).slot);
        (watch, last)
    }

    fn shift(&mut self, slot: usize, phase: Phase, next: Revision) {
        let watch = &self.watches[slot];
        debug_assert!(watch.phase.leads_to(phase), "a watch that is {:?} is to be {phase:?}", watch.phase);
        debug_assert!(next >= watch.next, "a position falls from {} to {next}", watch.next);
        self.leave_line(slot);
        let watch = &mut self.watches[slot];
        (watch.phase, watch.next) = (phase, next);
        watch.replay &= phase != Phase::Live;
        self.join_line(slot);
    }

    fn join_line(&mut self, slot: usize) {
        let Watch { phase, next, attachment, .. } = self.watches[slot];
        let entry = (next, slot as u32);
        let joined = match phase {
            Phase::Parked => self.parked.insert(entry),
            Phase::Behind => self.feeds[attachment as usize].behind.insert(entry),
            Phase::Unfilled => self.feeds[attachment as usize].unfilled.insert(entry),
            Phase::Live | Phase::Filling | Phase::Compacted => true,
        };
        debug_assert!(joined, "a watch is in its line once");
        self.count(phase, |count| *count += 1);
        stats::phase(phase, true);
    }

    fn leave_line(&mut self, slot: usize) {
        let Watch { phase, next, attachment, .. } = self.watches[slot];
        let entry = (next, slot as u32);
        let left = match phase {
            Phase::Parked => self.parked.remove(&entry),
            Phase::Behind => self.feeds[attachment as usize].behind.remove(&entry),
            Phase::Unfilled => self.feeds[attachment as usize].unfilled.remove(&entry),
            Phase::Live | Phase::Filling | Phase::Compacted => true,
        };
        debug_assert!(left, "a watch is in its line until it leaves it");
        self.count(phase, |count| *count -= 1);
        stats::phase(phase, false);
    }

    fn count(&mut self, phase: Phase, step: impl FnOnce(&mut usize)) {
        match phase {
            Phase::Live | Phase::Parked => {}
            Phase::Behind => step(&mut self.behind),
            Phase::Unfilled => step(&mut self.unfilled),
            Phase::Filling => step(&mut self.filling),
            Phase::Compacted => step(&mut self.compacted),
        }
    }
}

/// What is asked about the watches.
impl State {
    /// Parked watches.
    pub(in crate::hub) fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Watches that history does not reach.
    pub(in crate::hub) fn catching_up(&self) -> usize {
        self.behind + self.unfilled + self.filling
    }

    /// Whether some watches wait for a fill.
    pub(in crate::hub) fn has_unfilled(&self) -> bool {
        self.unfilled > 0
    }

    /// The feed of the parked watch that is furthest behind (revisions of several feeds are of one store), and up to `most` slots of
    /// parked watches there, those that are furthest behind of all first.
    pub(in crate::hub) fn furthest_parked(&self, most: usize) -> Option<(Arc<Feed>, Vec<u32>)> {
        let (_, first) = self.parked.first()?;
        let attachment = self.watches[*first as usize].attachment;
        let slots = self.parked.iter().take(most).map(|(_, slot)| *slot);
        let slots = slots.filter(|slot| self.watches[*slot as usize].attachment == attachment).collect();
        Some((self.feeds[attachment as usize].feed.clone(), slots))
    }

    /// The next watch that waits for a fill, in turns and those that are furthest behind first: its feed, slot and what it needs.
    pub(in crate::hub) fn next_unfilled(&mut self) -> Option<(Arc<Feed>, usize, Revision)> {
        let first = |after: Bound<(Revision, u32)>| {
            let firsts =
                self.feeds.iter().filter_map(|(_, at)| Some((*at.unfilled.range((after, Unbounded)).next()?, at)));
            firsts.min_by_key(|(first, _)| *first)
        };
        let after = self.last_filled.map_or(Unbounded, Excluded);
        let ((next, slot), at) = first(after).or_else(|| first(Unbounded))?;
        let feed = at.feed.clone();
        self.last_filled = Some((next, slot));
        Some((feed, slot as usize, next))
    }

    /// Slots of watches in `feed` that wait for a fill and need a revision from `from` through `through` next; the first `most`.
    pub(in crate::hub) fn unfilled_in(
        &self,
        feed: &Feed,
        from: Revision,
        through: Revision,
        most: usize,
    ) -> Vec<usize> {
        let Some(at) = self.attachment(feed) else { return Vec::new() };
        at.unfilled.range((from, 0)..=(through, u32::MAX)).take(most).map(|(_, slot)| *slot as usize).collect()
    }

    /// What the watch that waits for `feed`'s past and is furthest behind needs.
    pub(in crate::hub) fn furthest_behind_in(&self, feed: &Feed) -> Option<Revision> {
        self.attachment(feed)?.behind.first().map(|(next, _)| *next)
    }

    /// Slots of watches that wait for `feed`'s past and need a revision from `from` on; up to `most`.
    pub(in crate::hub) fn behind_from(&self, feed: &Feed, from: Revision, most: usize) -> Vec<usize> {
        let Some(at) = self.attachment(feed) else { return Vec::new() };
        at.behind.range((from, 0)..).take(most).map(|(_, slot)| *slot as usize).collect()
    }

    /// Slots of watches that wait for `feed`'s past or for a fill there, and need a revision before `to`; up to `most`.
    pub(in crate::hub) fn lagging_before(&self, feed: &Feed, to: Revision, most: usize) -> Vec<usize> {
        let Some(at) = self.attachment(feed) else { return Vec::new() };
        let lines = [&at.behind, &at.unfilled].into_iter().flat_map(|line| line.range(..(to, 0)));
        lines.take(most).map(|(_, slot)| *slot as usize).collect()
    }

    /// Whether a watch waits for `feed`'s past or for a fill there.
    pub(in crate::hub) fn lags_in(&self, feed: &Feed) -> bool {
        self.attachment(feed).is_some_and(|at| !at.behind.is_empty() || !at.unfilled.is_empty())
    }

    fn attachment(&self, feed: &Feed) -> Option<&Attachment> {
        self.feeds.iter().map(|(_, at)| at).find(|at| std::ptr::eq(Arc::as_ptr(&at.feed), feed))
    }

    fn is_in(&self, slot: usize, feed: &Feed) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.feeds[self.watches[slot].attachment as usize].feed), feed)
    }

    /// The slots of the watches that this stream has in `feed`.
    pub(in crate::hub) fn slots_in(&self, feed: &Feed) -> Vec<usize> {
        self.watches.iter().map(|(slot, _)| slot).filter(|slot| self.is_in(*slot, feed)).collect()
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
}

/// The queue, and the stream as a whole.
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
        self.feeds.insert(Attachment {
            feed: feed.clone(),
            slot: slot(),
            watches: 0,
            behind: Line::new(),
            unfilled: Line::new(),
        }) as u32
    }

    /// Whether no more should be queued.
    pub(in crate::hub) fn is_full(&self, limits: &OutboxLimits) -> bool {
        self.queued_bytes >= limits.bytes || self.queue.len() >= limits.deliveries
    }

    /// Queues the stream's progress where etcd would tell it: there are watches, all are live, and none waits for a revision to
    /// come.
    pub(in crate::hub) fn progress(&mut self, stamp: &Stamp) -> (ProgressAnswer, Option<Waker>) {
        let revision = stamp.revision;
        let ahead = |watch: &Watch| {
            let of_feed = self.feeds[watch.attachment as usize].feed.revision();
            watch.next > revision.next() && watch.next <= of_feed.next()
        };
        if self.watches.iter().any(|(_, watch)| ahead(watch)) {
            // A watch in a feed that is ahead was told of more already, or began after it.
            return (ProgressAnswer::Later, None);
        }
        let behind = self.parked() + self.catching_up() + self.compacted > 0;
        let future = self.watches.iter().any(|(_, watch)| watch.next > revision.next());
        if behind || future || self.watches.is_empty() {
            return (ProgressAnswer::Silence, None);
        }
        for (_, watch) in &mut self.watches {
            watch.next = watch.next.max(revision.next());
        }
        let waker = self.enqueue(Delivery::Progress { watch_id: NO_WATCH_ID, stamp: stamp.clone() });
        (ProgressAnswer::Sent, waker)
    }
}
