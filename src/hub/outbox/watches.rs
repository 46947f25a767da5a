//! [`Watches`]: the watches of a stream, where each of them stands, and the lines in which those wait that are not live.
//!
//! Not here: who moves a watch and when, see `watch_stream`; what is queued for it, see `state`. Positions are written in this file alone, by
//! the transitions of `position`. One that is impossible fails a debug build; in a release build the watch is ended (`fail`).
//! Always holds: each watch that is not live is in the line of its phase, and a line is ordered by position, so that the watch which is
//! furthest behind comes first; what is counted agrees with the phases; an attachment lives as long as a watch in its feed.

use std::{
    collections::BTreeSet,
    ops::{
        Bound::{self, Excluded, Unbounded},
        Range,
    },
    sync::atomic::{AtomicU64, Ordering},
};

use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::position::{Impossible, Phase, Position, Pushable, Transition};
use crate::{
    hub::{
        index::GroupId,
        shares::{Counted, Full},
        stats,
        turns::Ticket,
    },
    types::Revision,
};

/// Most slots that are looked at while a lock is held.
const STEP_SLOTS: usize = 1024;

/// Names a feed for the outboxes that have watches there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::hub) struct FeedId(u64);

impl FeedId {
    /// One that no other feed of this process has; a later one is higher.
    pub(in crate::hub) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: the number protects nothing but itself.
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub(in crate::hub) fn number(self) -> u64 {
        self.0
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::hub) struct Watches {
    watches: Slab<Watch>,
    ids: HashMap<i64, u32>,
    next_id: i64,
    next_serial: u64,
    attachments: Slab<Attachment>,
    /// Read from history when there is room.
    parked: Line,
    behind: usize,
    unfilled: usize,
    filling: usize,
    compacted: usize,
    /// Those that want progress notifications.
    notified: usize,
    /// The highest revision up to which a live watch was given everything, or the stream was told so.
    newest: Revision,
    /// Slots are below it.
    slots: usize,
    /// Whose watches these are: one more is counted before it is added.
    counted: Counted,
}

/// Watches of one phase: what they need next, or wait for, and their slots.
type Line = BTreeSet<(Revision, u32)>;

/// A feed in which the stream has watches.
#[derive(Debug)]
struct Attachment {
    feed: FeedId,
    /// The outbox's place in the feed.
    place: u32,
    watches: u32,
    /// There where a watch waits: for the feed's past, for a fill, or for the revision that it begins with.
    lag: Option<Box<Lag>>,
}

#[derive(Debug, Default)]
struct Lag {
    /// Begin with revisions that are still to come. The revision is the one of their feed with which they are live, see [`Watch::arrival`].
    ahead: Line,
    /// Wait until the feed has read its past.
    behind: Line,
    /// Wait for a fill.
    unfilled: Line,
    /// The slots of these: turns go round them.
    unfilled_slots: BTreeSet<u32>,
    /// Are being filled.
    filling: Line,
    /// The stream's place in the queue for fills from this feed, while it has one.
    ticket: Option<Ticket>,
    /// The slot that had the last turn: the next one is after it.
    last_filled: Option<u32>,
}

/// One watch of the stream.
#[derive(Debug)]
pub(in crate::hub) struct Watch {
    pub(in crate::hub) id: i64,
    /// Given by [`Watches::add`], and never again on this stream: ids and slots come back after a cancel.
    pub(in crate::hub) serial: u64,
    position: Position,
    /// Index into [`Watches::attachments`].
    attachment: u32,
    group: GroupId,
    place: u32,
    pub(super) fragment: bool,
    pub(in crate::hub) progress_notify: bool,
    /// Nothing was delivered since the last tick of the progress timer.
    pub(super) quiet: bool,
    /// It began in the past and has not been live yet.
    pub(super) replay: bool,
    /// It named no revision to begin with.
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

    /// The lowest revision that it may be told as its progress. As in etcd, a watch that named its start is told nothing below that, not even
    /// the revision before it; one from now on named none.
    fn arrival(&self) -> Revision {
        if self.from_now { self.next().previous() } else { self.next() }
    }

    /// The revision by which its line is ordered.
    fn place_in_line(&self) -> Revision {
        if self.phase() == Phase::Ahead { self.arrival() } else { self.next() }
    }

    /// Where it is in its feed's index; `None` where it is there no more.
    pub(in crate::hub) fn link(&self) -> Option<Link> {
        (self.group != UNLINKED).then_some(Link { group: self.group, place: self.place })
    }

    /// The same for a watch that is read for.
    pub(in crate::hub) fn group(&self) -> GroupId {
        self.group
    }

    /// Where events are pushed to it.
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

/// Watches that are to be told their progress.
#[derive(Debug)]
pub(super) struct Due {
    /// Their slots and ids.
    pub(super) watches: SmallVec<[(usize, i64); 8]>,
    /// All slots before this one were looked at.
    pub(super) looked_through: usize,
}

/// What a watch that has ended had in its feed, for the feed to take out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(in crate::hub) struct Left {
    pub(in crate::hub) link: Option<Link>,
    /// The outbox's place in the feed, where that was its last watch there.
    pub(in crate::hub) place: Option<u32>,
}

/// What [`Watches::add`] makes a watch of.
#[derive(Debug)]
pub(in crate::hub) struct NewWatch {
    pub(in crate::hub) id: i64,
    /// The first revision that it wants.
    pub(in crate::hub) next: Revision,
    /// It did not name that revision.
    pub(in crate::hub) from_now: bool,
    pub(in crate::hub) attachment: u32,
    pub(in crate::hub) link: Link,
    pub(in crate::hub) fragment: bool,
    pub(in crate::hub) progress_notify: bool,
    /// It begins in the past: what it gets until it is live is late by its own wish.
    pub(in crate::hub) replay: bool,
}

/// How watches come and go.
impl Watches {
    /// None yet; those that come count for these.
    pub(super) fn counted(counted: Counted) -> Self {
        Self { counted, ..Self::default() }
    }

    /// One more is counted, and has this id or, for zero, one that is given as etcd does: the next of a counter that skips those in
    /// use.
    pub(in crate::hub) fn admit(&mut self, wish: i64) -> Result<Option<i64>, Full> {
        self.counted.add()?;
        let id = self.assign_id(wish);
        if id.is_none() {
            self.counted.remove();
        }
        Ok(id)
    }

    fn assign_id(&mut self, wish: i64) -> Option<i64> {
        if wish != 0 {
            return (!self.ids.contains_key(&wish)).then_some(wish);
        }
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    /// The attachment of a feed, made where it is new: `place` gives the outbox's place in the feed. The same for the feed to find the
    /// next watch: the place, and the slot that it will have.
    pub(in crate::hub) fn attach(&mut self, feed: FeedId, place: impl FnOnce() -> u32) -> (u32, u32, u32) {
        let slot = self.watches.vacant_key() as u32;
        if let Some((index, known)) = self.attachments.iter().find(|(_, known)| known.feed == feed) {
            return (index as u32, known.place, slot);
        }
        let place = place();
        (self.attachments.insert(Attachment { feed, place, watches: 0, lag: None }) as u32, place, slot)
    }

    /// Adds a watch that was admitted, in a feed that stands at `revision`. It is live or ahead; the caller may move it.
    pub(in crate::hub) fn add(&mut self, new: NewWatch, revision: Revision) -> usize {
        let NewWatch { id, next, from_now, attachment, link, fragment, progress_notify, replay } = new;
        let Link { group, place } = link;
        self.attachments[attachment as usize].watches += 1;
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
            self.newest = self.newest.max(arrival);
        }
        let slot = self.watches.insert(watch);
        self.ids.insert(id, slot as u32);
        self.slots = self.slots.max(slot + 1);
        self.notified += usize::from(progress_notify);
        self.join_line(slot);
        slot
    }

    /// Takes a watch out.
    pub(in crate::hub) fn remove(&mut self, slot: usize) -> Left {
        self.leave_line(slot);
        self.count(self.watches[slot].phase(), false);
        let watch = self.watches.remove(slot);
        self.ids.remove(&watch.id);
        self.counted.remove();
        self.notified -= usize::from(watch.progress_notify);
        if self.watches.is_empty() {
            (self.newest, self.slots) = (Revision::ZERO, 0);
            // The memory of a burst of watches goes back.
            (self.watches, self.ids) = (Slab::new(), HashMap::new());
        }
        let attachment = &mut self.attachments[watch.attachment as usize];
        attachment.watches -= 1;
        let is_last = attachment.watches == 0;
        let place = is_last.then(|| self.attachments.remove(watch.attachment as usize).place);
        Left { link: watch.link(), place }
    }

    /// Another watch took its place in the feed's index.
    pub(in crate::hub) fn moved(&mut self, slot: u32, place: u32) {
        if let Some(watch) = self.watches.get_mut(slot as usize) {
            watch.place = place;
        }
    }
}

/// The transitions: each moves one watch, and nothing else does.
impl Watches {
    /// A watch that keeps its slot moves. See [`Transition`].
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
        if before.phase() == Phase::Ahead && !after.phase().is_over() {
            self.newest = self.newest.max(watch.arrival());
        }
        watch.position = after;
        if after.phase() == Phase::Live {
            watch.replay = false;
            self.newest = self.newest.max(after.next().previous());
        }
        self.join_line(slot);
        if after.phase() != before.phase() {
            self.count(before.phase(), false);
            self.count(after.phase(), true);
        }
        Ok(())
    }

    /// Compaction ended a watch. Its id stays taken.
    pub(super) fn compact(&mut self, slot: usize) -> Result<Left, Impossible> {
        self.shift(slot, Transition::Compact, self.watches[slot].next())?;
        let watch = &mut self.watches[slot];
        let link = watch.link();
        watch.group = UNLINKED;
        Ok(Left { link, place: None })
    }

    /// A live watch was given everything through a revision.
    pub(super) fn pushed(&mut self, through: Revision) {
        self.newest = self.newest.max(through);
    }

    /// Watches in a feed, which stands at `revision`, that were ahead of it are live now. False where `most` were not enough.
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

    /// Live watches in a feed, which stands at `revision`, that are to be told so: of the slots from `from` on as many as may be looked at
    /// while a lock is held.
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

    /// The tick of the progress timer has come to these slots: what is delivered from here on is news.
    pub(super) fn ticked(&mut self, feed: FeedId, slots: Range<usize>) {
        for slot in slots {
            if let Some(watch) = self.watches.get_mut(slot)
                && self.attachments[watch.attachment as usize].feed == feed
            {
                watch.quiet = true;
            }
        }
    }

    fn join_line(&mut self, slot: usize) {
        let watch = &self.watches[slot];
        let (position, attachment, entry) = (watch.position, watch.attachment, (watch.place_in_line(), slot as u32));
        let joined = match position.phase() {
            Phase::Parked => self.parked.insert(entry),
            Phase::Behind => self.lag_mut(attachment).behind.insert(entry),
            Phase::Unfilled => {
                let lag = self.lag_mut(attachment);
                lag.unfilled.insert(entry) && lag.unfilled_slots.insert(entry.1)
            }
            Phase::Ahead => self.lag_mut(attachment).ahead.insert(entry),
            Phase::Filling => self.lag_mut(attachment).filling.insert(entry),
            Phase::Live | Phase::Compacted | Phase::Failed => true,
        };
        debug_assert!(joined, "a watch is in its line once");
    }

    fn leave_line(&mut self, slot: usize) {
        let watch = &self.watches[slot];
        let (position, attachment, entry) = (watch.position, watch.attachment, (watch.place_in_line(), slot as u32));
        let left = match position.phase() {
            Phase::Parked => self.parked.remove(&entry),
            Phase::Behind => self.lag_mut(attachment).behind.remove(&entry),
            Phase::Unfilled => {
                let lag = self.lag_mut(attachment);
                lag.unfilled.remove(&entry) && lag.unfilled_slots.remove(&entry.1)
            }
            Phase::Ahead => {
                let lag = self.lag_mut(attachment);
                let (left, idle) = (lag.ahead.remove(&entry), lag.is_idle());
                if idle {
                    // A stream that resumed where its feed stood has no other use for it.
                    self.attachments[attachment as usize].lag = None;
                }
                left
            }
            Phase::Filling => self.lag_mut(attachment).filling.remove(&entry),
            Phase::Live | Phase::Compacted | Phase::Failed => true,
        };
        debug_assert!(left, "a watch is in its line until it leaves it");
    }

    /// A watch came into a phase, or left it: here, and for the gauges.
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

    fn lag_mut(&mut self, attachment: u32) -> &mut Lag {
        self.attachments[attachment as usize].lag.get_or_insert_default()
    }
}

/// What is asked about them.
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

    /// Slots are below it.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// The slot of a watch.
    pub(in crate::hub) fn slot_of(&self, watch_id: i64) -> Option<usize> {
        self.ids.get(&watch_id).map(|slot| *slot as usize)
    }

    /// The slot of a watch that is being filled; `None` where it is not any more, whatever came in its place.
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

    /// The slots of some of the watches in a feed, of those from `from` on, and the slot to go on from: who looks at a million watches with
    /// a lock in hand holds up the feed.
    pub(in crate::hub) fn some_slots_in(&self, feed: FeedId, from: usize) -> (Vec<usize>, Option<usize>) {
        let to = self.slots.min(from + STEP_SLOTS);
        let slots = (from..to).filter(|slot| self.feed_of(*slot) == Some(feed)).collect();
        (slots, (to < self.slots).then_some(to))
    }

    /// The first `most` watches from a slot on, each with its slot and its feed, of the slots that may be looked at while a lock is held; and
    /// the slot where the next look begins, if there is one.
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

    /// Watches that history does not reach.
    pub(in crate::hub) fn catching_up(&self) -> usize {
        self.behind + self.unfilled + self.filling
    }

    /// Watches that compaction ended.
    pub(super) fn compacted(&self) -> usize {
        self.compacted
    }

    /// What the watch that is furthest behind needs, and its feed; `None` where none is behind.
    pub(in crate::hub) fn furthest_behind(&self) -> Option<(Revision, FeedId)> {
        let parked = self.parked.first().and_then(|(next, slot)| Some((*next, self.feed_of(*slot as usize)?)));
        let lagging = self.attachments.iter().flat_map(|(_, at)| {
            let lines = at.lag.iter().flat_map(|lag| [&lag.behind, &lag.unfilled, &lag.filling]);
            lines.filter_map(|line| line.first()).map(|(next, _)| (*next, at.feed))
        });
        parked.into_iter().chain(lagging).min_by_key(|(next, _)| *next)
    }

    /// Whether a parked watch is further behind than each of those that are being filled. False where none is being filled.
    pub(super) fn is_a_parked_one_behind_the_filling(&self) -> bool {
        let lags = self.attachments.iter().filter_map(|(_, at)| at.lag.as_deref());
        let filling = lags.filter_map(|lag| lag.filling.first()).map(|(next, _)| *next).min();
        let parked = self.parked.first().map(|(next, _)| *next);
        parked.zip(filling).is_some_and(|(parked, filling)| parked < filling)
    }

    /// The highest revision up to which a live watch was given everything, or the stream was told so.
    pub(super) fn newest(&self) -> Revision {
        self.newest
    }

    /// Revisions begin anew: another cluster has taken the place of the one that they were of.
    pub(in crate::hub) fn forget_newest(&mut self) {
        self.newest = Revision::ZERO;
    }

    /// Whether a watch begins with a revision that is still to come.
    pub(super) fn some_ahead(&self) -> bool {
        self.attachments.iter().any(|(_, at)| at.lag.as_ref().is_some_and(|lag| !lag.ahead.is_empty()))
    }

    /// Whether a watch wants progress notifications.
    pub(in crate::hub) fn want_progress(&self) -> bool {
        self.notified > 0
    }

    /// The feed of the parked watch that is furthest behind (revisions of several feeds are of one store), and up to `most` slots of
    /// parked watches there, those that are furthest behind of all first.
    pub(in crate::hub) fn furthest_parked(&self, most: usize) -> Option<(FeedId, Vec<u32>)> {
        let (_, first) = self.parked.first()?;
        let attachment = self.watches[*first as usize].attachment;
        let slots = self.parked.iter().take(most).map(|(_, slot)| *slot);
        let slots = slots.filter(|slot| self.watches[*slot as usize].attachment == attachment).collect();
        Some((self.attachments[attachment as usize].feed, slots))
    }

    fn lag_in(&self, feed: FeedId) -> Option<&Lag> {
        self.attachments.iter().find(|(_, at)| at.feed == feed)?.1.lag.as_deref()
    }

    /// What the watch that waits for a feed's past and is furthest behind needs.
    pub(in crate::hub) fn furthest_behind_in(&self, feed: FeedId) -> Option<Revision> {
        self.lag_in(feed)?.behind.first().map(|(next, _)| *next)
    }

    /// Slots of watches that wait for a feed's past and need a revision from `from` on; up to `most`.
    pub(in crate::hub) fn behind_from(&self, feed: FeedId, from: Revision, most: usize) -> Vec<usize> {
        let Some(lag) = self.lag_in(feed) else { return Vec::new() };
        lag.behind.range((from, 0)..).take(most).map(|(_, slot)| *slot as usize).collect()
    }

    /// Slots of watches that wait for a feed's past or for a fill there, and need a revision before `to`; up to `most`.
    pub(in crate::hub) fn lagging_before(&self, feed: FeedId, to: Revision, most: usize) -> Vec<usize> {
        let Some(lag) = self.lag_in(feed) else { return Vec::new() };
        let lines = [&lag.behind, &lag.unfilled].into_iter().flat_map(|line| line.range(..(to, 0)));
        lines.take(most).map(|(_, slot)| *slot as usize).collect()
    }

    /// Whether a watch waits for a feed's past or for a fill there.
    pub(in crate::hub) fn lags_in(&self, feed: FeedId) -> bool {
        self.lag_in(feed).is_some_and(|lag| !lag.behind.is_empty() || !lag.unfilled.is_empty())
    }
}

/// The queue for fills: the stream has one place for each feed in which watches wait.
impl Watches {
    /// Whether watches wait for a fill that has no place in the queue yet.
    pub(super) fn want_turns(&self) -> bool {
        let wants = |at: &Attachment| at.lag.as_deref().is_some_and(Lag::wants_turn);
        self.unfilled > 0 && self.attachments.iter().any(|(_, at)| wants(at))
    }

    /// The same for one feed.
    pub(in crate::hub) fn want_turn_in(&self, feed: FeedId) -> bool {
        self.lag_in(feed).is_some_and(Lag::wants_turn)
    }

    /// The place in the queue that there is from now on, or none any more.
    pub(in crate::hub) fn set_ticket(&mut self, feed: FeedId, ticket: Option<Ticket>) {
        let found = self.attachments.iter_mut().find(|(_, at)| at.feed == feed);
        if let Some(lag) = found.and_then(|(_, at)| at.lag.as_deref_mut()) {
            lag.ticket = ticket;
        }
    }

    /// The slot of the next watch that waits for a fill in a feed. Turns go round the slots, whatever the watches need: one whose position
    /// rises would otherwise come before one that is further behind, for as long as it waits again and again.
    pub(in crate::hub) fn next_unfilled(&mut self, feed: FeedId) -> Option<usize> {
        let (_, at) = self.attachments.iter_mut().find(|(_, at)| at.feed == feed)?;
        let lag = at.lag.as_deref_mut()?;
        let first = |after: Bound<u32>| lag.unfilled_slots.range((after, Unbounded)).next().copied();
        let slot = first(lag.last_filled.map_or(Unbounded, Excluded)).or_else(|| first(Unbounded))?;
        lag.last_filled = Some(slot);
        Some(slot as usize)
    }

    /// Slots of watches in a feed that wait for a fill and need a revision from `from` through `through` next; the first `most`.
    pub(in crate::hub) fn unfilled_in(
        &self,
        feed: FeedId,
        from: Revision,
        through: Revision,
        most: usize,
    ) -> Vec<usize> {
        let Some(lag) = self.lag_in(feed) else { return Vec::new() };
        lag.unfilled.range((from, 0)..=(through, u32::MAX)).take(most).map(|(_, slot)| *slot as usize).collect()
    }
}

impl Lag {
    fn wants_turn(&self) -> bool {
        !self.unfilled.is_empty() && self.ticket.is_none()
    }

    /// Nothing is kept here.
    fn is_idle(&self) -> bool {
        let lines = [&self.ahead, &self.behind, &self.unfilled, &self.filling];
        lines.iter().all(|line| line.is_empty()) && self.ticket.is_none() && self.last_filled.is_none()
    }
}

#[cfg(test)]
impl Watches {
    /// How many it has memory for.
    pub(in crate::hub) fn room(&self) -> usize {
        self.watches.capacity().max(self.ids.capacity())
    }
}

#[cfg(test)]
mod tests;
