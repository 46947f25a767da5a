//! The lines in which the watches of a stream wait that are not live: for room, for their feed's past, for a fill, or
//! for the revision that they begin at.
//!
//! Not here: the watches and their transitions, see `watches`, which lets a watch join and leave its line. Always
//! holds: a line is ordered by position, so that the watch which is furthest behind comes first; a feed for which
//! nothing is kept takes no memory for lines once its watches from later revisions have arrived.

use std::{
    collections::BTreeSet,
    ops::Bound::{self, Excluded, Unbounded},
};

use super::{Attachment, FeedId, Phase, Watches};
use crate::{hub::turns::Ticket, types::Revision};

/// Watches of one phase: the revision that each needs next or waits for, and its slot.
pub(super) type Line = BTreeSet<(Revision, u32)>;

#[derive(Debug, Default)]
pub(super) struct Lag {
    /// Watches that begin at future revisions, each with the revision of its feed at which it becomes live, see
    /// [`Watch::arrival`](super::Watch::arrival).
    pub(super) ahead: Line,
    /// Watches that wait until the feed has read its past.
    behind: Line,
    /// Watches that wait for a fill.
    unfilled: Line,
    /// The slots of these watches. Turns go round them.
    unfilled_slots: BTreeSet<u32>,
    /// Watches that are being filled.
    filling: Line,
    /// The stream's place in the queue for fills from this feed, while it has one.
    ticket: Option<Ticket>,
    /// The slot that had the last turn. The next turn goes to a slot after it.
    last_filled: Option<u32>,
}

/// How watches join their lines and leave them.
impl Watches {
    pub(super) fn join_line(&mut self, slot: usize) {
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

    pub(super) fn leave_line(&mut self, slot: usize) {
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
                    // A stream that resumed at its feed's revision has no other use for it.
                    self.attachments[attachment as usize].lag = None;
                }
                left
            }
            Phase::Filling => self.lag_mut(attachment).filling.remove(&entry),
            Phase::Live | Phase::Compacted | Phase::Failed => true,
        };
        debug_assert!(left, "a watch is in its line until it leaves it");
    }

    fn lag_mut(&mut self, attachment: u32) -> &mut Lag {
        self.attachments[attachment as usize].lag.get_or_insert_default()
    }
}

/// Who is how far behind.
impl Watches {
    /// What the watch that is furthest behind needs, and its feed; `None` if no watch is behind.
    pub(in crate::hub) fn furthest_behind(&self) -> Option<(Revision, FeedId)> {
        let parked = self.parked.first().and_then(|(next, slot)| Some((*next, self.feed_of(*slot as usize)?)));
        let lagging = self.attachments.iter().flat_map(|(_, at)| {
            let lines = at.lag.iter().flat_map(|lag| [&lag.behind, &lag.unfilled, &lag.filling]);
            lines.filter_map(|line| line.first()).map(|(next, _)| (*next, at.feed))
        });
        parked.into_iter().chain(lagging).min_by_key(|(next, _)| *next)
    }

    /// Whether a parked watch is further behind than every watch that is being filled. False if none is being filled.
    pub(in crate::hub::outbox) fn is_a_parked_one_behind_the_filling(&self) -> bool {
        let lags = self.attachments.iter().filter_map(|(_, at)| at.lag.as_deref());
        let filling = lags.filter_map(|lag| lag.filling.first()).map(|(next, _)| *next).min();
        let parked = self.parked.first().map(|(next, _)| *next);
        parked.zip(filling).is_some_and(|(parked, filling)| parked < filling)
    }

    /// Whether a watch begins at a future revision.
    pub(in crate::hub::outbox) fn some_ahead(&self) -> bool {
        self.attachments.iter().any(|(_, at)| at.lag.as_ref().is_some_and(|lag| !lag.ahead.is_empty()))
    }

    /// The feed of the parked watch that is furthest behind (the revisions of several feeds belong to one store), and
    /// up to `most` slots of parked watches there, those furthest behind first.
    pub(in crate::hub) fn furthest_parked(&self, most: usize) -> Option<(FeedId, Vec<u32>)> {
        let (_, first) = self.parked.first()?;
        let attachment = self.watches[*first as usize].attachment;
        let slots = self.parked.iter().take(most).map(|(_, slot)| *slot);
        let slots = slots.filter(|slot| self.watches[*slot as usize].attachment == attachment).collect();
        Some((self.attachments[attachment as usize].feed, slots))
    }

    pub(super) fn lag_in(&self, feed: FeedId) -> Option<&Lag> {
        self.attachments.iter().find(|(_, at)| at.feed == feed)?.1.lag.as_deref()
    }

    /// The lowest revision that a watch which waits for a feed's past needs.
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
    /// Whether some watches wait for a fill without a place in the queue yet.
    pub(in crate::hub::outbox) fn want_turns(&self) -> bool {
        let wants = |at: &Attachment| at.lag.as_deref().is_some_and(Lag::wants_turn);
        self.unfilled > 0 && self.attachments.iter().any(|(_, at)| wants(at))
    }

    /// The same for one feed.
    pub(in crate::hub) fn want_turn_in(&self, feed: FeedId) -> bool {
        self.lag_in(feed).is_some_and(Lag::wants_turn)
    }

    /// Sets or removes the place in the queue.
    pub(in crate::hub) fn set_ticket(&mut self, feed: FeedId, ticket: Option<Ticket>) {
        let found = self.attachments.iter_mut().find(|(_, at)| at.feed == feed);
        if let Some(lag) = found.and_then(|(_, at)| at.lag.as_deref_mut()) {
            lag.ticket = ticket;
        }
    }

    /// The slot of the next watch that waits for a fill in a feed. Turns go round the slots, whatever revisions the
    /// watches need. If the watch that is furthest behind came first, a watch whose position rises would never get a
    /// turn after it.
    pub(in crate::hub) fn next_unfilled(&mut self, feed: FeedId) -> Option<usize> {
        let (_, at) = self.attachments.iter_mut().find(|(_, at)| at.feed == feed)?;
        let lag = at.lag.as_deref_mut()?;
        let first = |after: Bound<u32>| lag.unfilled_slots.range((after, Unbounded)).next().copied();
        let slot = first(lag.last_filled.map_or(Unbounded, Excluded)).or_else(|| first(Unbounded))?;
        lag.last_filled = Some(slot);
        Some(slot as usize)
    }

    /// Slots of watches in a feed that wait for a fill and need a revision from `from` to `through` next; the first
    /// `most` of them.
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

    /// Whether nothing is kept here.
    fn is_idle(&self) -> bool {
        let lines = [&self.ahead, &self.behind, &self.unfilled, &self.filling];
        lines.iter().all(|line| line.is_empty()) && self.ticket.is_none() && self.last_filled.is_none()
    }
}
