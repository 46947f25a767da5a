//! [`Watches`]: the watches of a stream and their positions.
//!
//! Not here: when a watch moves and why, see `watch_stream`; what is queued for it, see `state`; the lines in which
//! watches wait, see `lines`. Only this file changes positions, by the transitions of `position`. A transition that is
//! not allowed panics in a debug build; in a release build the watch is ended (`fail`). Always holds: each watch that
//! is not live is in the line of its phase; the counts agree with the phases; an attachment lives as long as a watch in
//! its feed.

mod lines;

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

use self::lines::{Lag, Line};
use super::position::{Impossible, Phase, Position, Pushable, Transition};
use crate::{
    hub::{
        index::GroupId,
        shares::{Counted, Full},
        stats,
    },
    types::Revision,
};

/// The most slots that are looked at while a lock is held.
const STEP_SLOTS: usize = 1024;

/// Identifies a feed for the outboxes with watches in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::hub) struct FeedId(u64);

impl FeedId {
    /// An id that no other feed of this process has. Later ids are higher.
    pub(in crate::hub) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed, since the number guards no other memory.
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub(in crate::hub) fn number(self) -> u64 {
        self.0
    }

    /// The part of the number that a watch keeps. Feeds that exist at the same time are never four billion feeds apart.
    fn short(self) -> u32 {
        self.0 as u32
    }
}

/// The watches of a stream; see the module.
#[derive(Debug, Default)]
pub(in crate::hub) struct Watches {
    watches: Slab<Watch>,
    ids: HashMap<i64, u32>,
    next_id: i64,
    next_serial: u64,
    attachments: Slab<Attachment>,
    /// Watches that read the history when there is room.
    parked: Line,
    behind: usize,
    unfilled: usize,
    filling: usize,
    compacted: usize,
    /// How many watches want progress notifications.
    notified: usize,
    /// All slots are below it.
    slots: usize,
    /// The clients that these watches count for. A watch is counted before it is added.
    counted: Counted,
}

/// A feed in which the stream has watches.
#[derive(Debug)]
struct Attachment {
    feed: FeedId,
    /// The outbox's place in the feed.
    place: u32,
    watches: u32,
    /// The highest revision up to which a live watch in this feed was given everything, or for which the stream was
    /// told so. It is kept for each feed, since a feed that the stream leaves may have been that of another cluster.
    newest: Revision,
    /// Present while a watch waits: for the feed's past, for a fill, or for the revision that it begins at.
    lag: Option<Box<Lag>>,
}

/// One watch of the stream.
#[derive(Debug)]
pub(in crate::hub) struct Watch {
    pub(in crate::hub) id: i64,
    /// Assigned by [`Watches::add`], and never again on this stream, whereas ids and slots are reused after a cancel.
    pub(in crate::hub) serial: u64,
    position: Position,
    /// Index into [`Watches::attachments`].
    attachment: u32,
    group: GroupId,
    place: u32,
    /// The feed, next to what a push looks at.
    feed: u32,
    pub(super) fragment: bool,
    pub(in crate::hub) progress_notify: bool,
    /// Nothing was delivered since the last tick of the progress timer.
    pub(super) quiet: bool,
    /// It began in the past and has not been live yet.
    pub(super) replay: bool,
    /// The client did not name a start revision.
    from_now: bool,
}

impl Watch {
    /// See [`Position::next`].
    pub(in crate::hub) fn next(&self) -> Revision {
        self.position.next()
    }

    pub(in crate::hub) fn phase(&self) -> Phase {
        self.position.phase()
    }

    /// The lowest progress that it may be told. As in etcd, a watch that named its start revision is told nothing below
    /// that, not even the revision before it; a watch from now on named none.
    fn arrival(&self) -> Revision {
        if self.from_now { self.next().previous() } else { self.next() }
    }

    /// The revision by which its line is ordered.
    fn place_in_line(&self) -> Revision {
        if self.phase() == Phase::Ahead { self.arrival() } else { self.next() }
    }

    /// Its place in its feed's index; `None` if it is not in there any more.
    pub(in crate::hub) fn link(&self) -> Option<Link> {
        (self.group != UNLINKED).then_some(Link { group: self.group, place: self.place })
    }

    /// The group of a watch that is catching up.
    pub(in crate::hub) fn group(&self) -> GroupId {
        self.group
    }

    /// Whether it is a watch of this feed.
    pub(super) fn is_of(&self, feed: FeedId) -> bool {
        self.feed == feed.short()
    }

    /// Allows events to be pushed to it, if it is live.
    pub(super) fn pushable(&mut self, through: Revision) -> Option<Pushable<'_>> {
        self.position.pushable(through)
    }
}

/// A watch's place in its feed's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Link {
    pub(in crate::hub) group: GroupId,
    pub(in crate::hub) place: u32,
}

/// The group of a watch that is in no index any more.
const UNLINKED: GroupId = u32::MAX;

/// Watches that are due for a progress notification.
#[derive(Debug)]
pub(super) struct Due {
    /// Their slots and ids.
    pub(super) watches: SmallVec<[(usize, i64); 8]>,
    /// All slots before this one were checked.
    pub(super) looked_through: usize,
}

/// What a watch that has ended had in its feed, so that the feed can take it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(in crate::hub) struct Left {
    pub(in crate::hub) link: Option<Link>,
    /// The outbox's place in the feed, if that was its last watch there.
    pub(in crate::hub) place: Option<u32>,
}

/// What [`Watches::add`] makes a watch from.
#[derive(Debug)]
pub(in crate::hub) struct NewWatch {
    pub(in crate::hub) id: i64,
    /// The first revision that it wants.
    pub(in crate::hub) next: Revision,
    /// The client did not name that revision.
    pub(in crate::hub) from_now: bool,
    pub(in crate::hub) attachment: u32,
    pub(in crate::hub) link: Link,
    pub(in crate::hub) fragment: bool,
    pub(in crate::hub) progress_notify: bool,
    /// It begins in the past, so its events are late on purpose until it is live.
    pub(in crate::hub) replay: bool,
}

/// How watches come and go.
impl Watches {
    /// An empty set. Watches that are added count for these clients.
    pub(super) fn counted(counted: Counted) -> Self {
        Self { counted, ..Self::default() }
    }

    /// Counts one more watch and returns its id: the requested one, or for zero the next free number of a counter, as
    /// in etcd.
    pub(in crate::hub) fn admit(&mut self, requested: i64) -> Result<Option<i64>, Full> {
        self.counted.add()?;
        let id = self.assign_id(requested);
        if id.is_none() {
            self.counted.remove();
        }
        Ok(id)
    }

    fn assign_id(&mut self, requested: i64) -> Option<i64> {
        if requested != 0 {
            return (!self.ids.contains_key(&requested)).then_some(requested);
        }
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    /// The attachment of a feed, created if it is new; `place` gives the outbox's place in the feed. Returns what the
    /// feed needs to find the next watch: the place, and the slot that the watch will have.
    pub(in crate::hub) fn attach(&mut self, feed: FeedId, place: impl FnOnce() -> u32) -> (u32, u32, u32) {
        let slot = self.watches.vacant_key() as u32;
        if let Some((index, known)) = self.attachments.iter().find(|(_, known)| known.feed == feed) {
            return (index as u32, known.place, slot);
        }
        let place = place();
        (
            self.attachments.insert(Attachment { feed, place, watches: 0, newest: Revision::ZERO, lag: None }) as u32,
            place,
            slot,
        )
    }

    /// Adds an admitted watch, in a feed that is at `revision`. It is live or ahead; the caller may then move it.
    pub(in crate::hub) fn add(&mut self, new: NewWatch, revision: Revision) -> usize {
        let NewWatch { id, next, from_now, attachment, link, fragment, progress_notify, replay } = new;
        let Link { group, place } = link;
        let attached = &mut self.attachments[attachment as usize];
        attached.watches += 1;
        let feed = attached.feed.short();
        let serial = self.next_serial;
        self.next_serial += 1;
        let (position, quiet) = (Position::live(next), true);
        let mut watch = Watch {
            id,
            serial,
            position,
            attachment,
            group,
            place,
            feed,
            fragment,
            progress_notify,
            quiet,
            replay,
            from_now,
        };
        let arrival = watch.arrival();
        if arrival > revision {
            watch.position = Position::ahead(next);
        } else {
            attached.newest = attached.newest.max(arrival);
        }
        let slot = self.watches.insert(watch);
        self.ids.insert(id, slot as u32);
        self.slots = self.slots.max(slot + 1);
        self.notified += usize::from(progress_notify);
        self.join_line(slot);
        slot
    }

    /// Removes a watch.
    pub(in crate::hub) fn remove(&mut self, slot: usize) -> Left {
        self.leave_line(slot);
        self.count(self.watches[slot].phase(), false);
        let watch = self.watches.remove(slot);
        self.ids.remove(&watch.id);
        self.counted.remove();
        self.notified -= usize::from(watch.progress_notify);
        if self.watches.is_empty() {
            self.slots = 0;
            // Returns the memory that a burst of watches took.
            (self.watches, self.ids) = (Slab::new(), HashMap::new());
        }
        let attachment = &mut self.attachments[watch.attachment as usize];
        attachment.watches -= 1;
        let is_last = attachment.watches == 0;
        let place = is_last.then(|| self.attachments.remove(watch.attachment as usize).place);
        Left { link: watch.link(), place }
    }

    /// The watch has moved to another place in the feed's index.
    pub(in crate::hub) fn moved(&mut self, slot: u32, place: u32) {
        if let Some(watch) = self.watches.get_mut(slot as usize) {
            watch.place = place;
        }
    }
}

/// The transitions. Each moves one watch, and nothing else moves watches.
impl Watches {
    /// Moves a watch that keeps its slot. See [`Transition`].
    pub(in crate::hub) fn shift(
        &mut self,
        slot: usize,
        transition: Transition,
        next: Revision,
    ) -> Result<(), Impossible> {
        let before = self.watches[slot].position;
        let after = before.after(transition, next)?;
        if after == before {
            return Ok(());
        }
        self.leave_line(slot);
        let watch = &mut self.watches[slot];
        let attached = &mut self.attachments[watch.attachment as usize];
        if before.phase() == Phase::Ahead && !after.phase().is_over() {
            attached.newest = attached.newest.max(watch.arrival());
        }
        watch.position = after;
        if after.phase() == Phase::Live {
            watch.replay = false;
            attached.newest = attached.newest.max(after.next().previous());
        }
        self.join_line(slot);
        if after.phase() != before.phase() {
            self.count(before.phase(), false);
            self.count(after.phase(), true);
        }
        Ok(())
    }

    /// A compaction ended a watch. Its id stays in use.
    pub(super) fn compact(&mut self, slot: usize) -> Result<Left, Impossible> {
        self.shift(slot, Transition::Compact, self.watches[slot].next())?;
        let watch = &mut self.watches[slot];
        let link = watch.link();
        watch.group = UNLINKED;
        Ok(Left { link, place: None })
    }

    /// The live watch in a slot was given everything up to and including a revision.
    pub(super) fn pushed(&mut self, slot: usize, through: Revision) {
        let attached = &mut self.attachments[self.watches[slot].attachment as usize];
        attached.newest = attached.newest.max(through);
    }

    /// The stream was told that all its watches were given everything up to and including a revision.
    pub(super) fn told(&mut self, through: Revision) {
        for (_, attached) in &mut self.attachments {
            attached.newest = attached.newest.max(through);
        }
    }

    /// Makes watches live that were ahead of their feed, which is at `revision` now. Returns false if there are more
    /// than `most` of them.
    pub(super) fn arrive(&mut self, feed: FeedId, revision: Revision, most: usize) -> bool {
        for _ in 0..most {
            let Some((arrival, slot)) = self.lag_in(feed).and_then(|lag| lag.ahead.first().copied()) else {
                return true;
            };
            if arrival > revision || !self.arrive_one(slot as usize) {
                return true;
            }
        }
        false
    }

    fn arrive_one(&mut self, slot: usize) -> bool {
        let next = self.watches[slot].next();
        self.shift(slot, Transition::Arrive, next).is_ok()
    }

    /// Live watches in a feed that is at `revision` which are due for a progress notification. Looks at as many slots
    /// from `from` on as the lock may be held for.
    pub(super) fn due_for_progress(&mut self, feed: FeedId, revision: Revision, all: bool, from: usize) -> Due {
        let to = self.slots.min(from + STEP_SLOTS);
        let due = |slot: usize| {
            let watch = self.watches.get(slot)?;
            let wanted = watch.progress_notify
                && (watch.quiet || all)
                && self.attachments[watch.attachment as usize].feed == feed;
            let (id, phase, told) = (watch.id, watch.phase(), watch.next() <= revision.next());
            let arrives = wanted && phase == Phase::Ahead && watch.arrival() <= revision && self.arrive_one(slot);
            (arrives || wanted && phase == Phase::Live && told).then_some((slot, id))
        };
        Due { watches: (from..to).filter_map(due).collect(), looked_through: to }
    }

    /// The progress timer's tick has come to these slots. Whatever is delivered from here on counts for the next tick.
    pub(super) fn ticked(&mut self, feed: FeedId, slots: Range<usize>) {
        for slot in slots {
            if let Some(watch) = self.watches.get_mut(slot)
                && self.attachments[watch.attachment as usize].feed == feed
            {
                watch.quiet = true;
            }
        }
    }

    /// Counts a watch that entered or left a phase, here and for the gauges.
    fn count(&mut self, phase: Phase, up: bool) {
        let count = match phase {
            Phase::Live | Phase::Ahead | Phase::Failed => return,
            Phase::Parked => return stats::parked(up),
            Phase::Compacted => &mut self.compacted,
            Phase::Behind => {
                stats::catching_up(up);
                &mut self.behind
            }
            Phase::Filling => {
                stats::catching_up(up);
                &mut self.filling
            }
            Phase::Unfilled => {
                stats::catching_up(up);
                stats::waits_for_fill(up);
                &mut self.unfilled
            }
        };
        if up { *count += 1 } else { *count -= 1 }
    }
}

/// Queries.
impl Watches {
    pub(in crate::hub) fn len(&self) -> usize {
        self.watches.len()
    }

    pub(in crate::hub) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    pub(in crate::hub) fn get(&self, slot: usize) -> Option<&Watch> {
        self.watches.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Watch> {
        self.watches.get_mut(slot)
    }

    /// All slots are below it.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// The slot of a watch.
    pub(in crate::hub) fn slot_of(&self, watch_id: i64) -> Option<usize> {
        self.ids.get(&watch_id).map(|slot| *slot as usize)
    }

    /// The slot of a watch that is being filled; `None` if it is not any more, even if another watch has its id.
    pub(super) fn filling(&self, watch_id: i64, serial: u64) -> Option<usize> {
        let slot = self.slot_of(watch_id)?;
        let watch = &self.watches[slot];
        (watch.serial == serial && watch.phase() == Phase::Filling).then_some(slot)
    }

    /// The feed of a watch.
    pub(in crate::hub) fn feed_of(&self, slot: usize) -> Option<FeedId> {
        Some(self.attachments[self.watches.get(slot)?.attachment as usize].feed)
    }

    /// The outbox's place in the feed of a watch.
    pub(in crate::hub) fn place_of(&self, slot: usize) -> u32 {
        self.attachments[self.watches[slot].attachment as usize].place
    }

    /// The feeds in which there are watches.
    pub(in crate::hub) fn feeds(&self) -> impl Iterator<Item = FeedId> {
        self.attachments.iter().map(|(_, attachment)| attachment.feed)
    }

    /// The slots of some of the watches in a feed, from `from` on, and the slot to continue from. Looking at a million
    /// watches under a lock would hold up the feed.
    pub(in crate::hub) fn some_slots_in(&self, feed: FeedId, from: usize) -> (Vec<usize>, Option<usize>) {
        let to = self.slots.min(from + STEP_SLOTS);
        let slots = (from..to).filter(|slot| self.feed_of(*slot) == Some(feed)).collect();
        (slots, (to < self.slots).then_some(to))
    }

    /// The first `most` watches from a slot on, each with its slot and its feed, within the number of slots that may be
    /// looked at under a lock; and the slot to continue from, if there is one.
    pub(in crate::hub) fn some_from(&self, from: usize, most: usize) -> (Vec<(usize, FeedId, &Watch)>, Option<usize>) {
        let to = self.slots.min(from.saturating_add(STEP_SLOTS));
        let found = (from..to).filter_map(|slot| Some((slot, self.feed_of(slot)?, self.watches.get(slot)?)));
        let found: Vec<_> = found.take(most).collect();
        let next = if found.len() == most { found.last().map_or(from, |(slot, ..)| slot + 1) } else { to };
        (found, (next < self.slots).then_some(next))
    }

    /// The slots of all watches in a feed.
    pub(in crate::hub) fn slots_in(&self, feed: FeedId) -> Vec<usize> {
        self.watches.iter().map(|(slot, _)| slot).filter(|slot| self.feed_of(*slot) == Some(feed)).collect()
    }

    /// Parked watches.
    pub(in crate::hub) fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Watches that the history does not reach.
    pub(in crate::hub) fn catching_up(&self) -> usize {
        self.behind + self.unfilled + self.filling
    }

    /// Watches that a compaction ended.
    pub(super) fn compacted(&self) -> usize {
        self.compacted
    }

    /// The highest revision up to which a live watch was given everything, or for which the stream was told so.
    pub(super) fn newest(&self) -> Revision {
        self.attachments.iter().map(|(_, attached)| attached.newest).max().unwrap_or_default()
    }

    /// Another cluster has replaced the one that the feed's revisions belonged to, so they start again.
    pub(in crate::hub) fn forget_newest(&mut self, feed: FeedId) {
        if let Some((_, attached)) = self.attachments.iter_mut().find(|(_, attached)| attached.feed == feed) {
            attached.newest = Revision::ZERO;
        }
    }

    /// Whether a watch wants progress notifications.
    pub(in crate::hub) fn want_progress(&self) -> bool {
        self.notified > 0
    }
}

#[cfg(test)]
impl Watches {
    /// The number of watches for which it has memory.
    pub(in crate::hub) fn room(&self) -> usize {
        self.watches.capacity().max(self.ids.capacity())
    }
}

#[cfg(test)]
mod tests;
