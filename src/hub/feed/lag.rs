//! The watches of a feed that need revisions older than its history, and how a watch becomes one of them.
//!
//! Not here: how the past is read, see `backfill` and `fill`. Everything here runs under the feed's lock. Always holds:
//! the place of every outbox with a lagging watch is noted.

use std::{
    collections::BTreeSet,
    ops::{BitOr, BitOrAssign},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::Inner;
use crate::{
    hub::outbox::{Outbox, State},
    types::Revision,
};

/// For how long fills serve the lagging watches after upstream refused to let the relay read the feed's past.
const REFUSED: Duration = Duration::from_secs(10);
/// The most streams that are looked at while the feed's lock is held.
const STEP: usize = 64;

/// The feed's lagging watches; see the module.
#[derive(Debug, Default)]
pub(in crate::hub) struct Past {
    /// Places of the outboxes with watches that are behind or unfilled. Some of them may have no such watch any more.
    lagging: BTreeSet<u32>,
    /// A task is reading the feed's past.
    pub(in crate::hub) at_work: bool,
    /// A watch has fallen behind since that task last checked.
    pub(in crate::hub) asked: bool,
    /// When upstream last refused.
    pub(in crate::hub) refused: Option<Instant>,
}

/// The tasks to start for lagging watches, once the locks are released.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub(in crate::hub) struct PastTasks {
    pub(in crate::hub) backfill: bool,
    pub(in crate::hub) fill: bool,
}

impl Past {
    /// An outbox has left the feed, or none of its watches lags.
    pub(in crate::hub) fn forget(&mut self, outbox: u32) {
        self.lagging.remove(&outbox);
    }

    /// The feed has begun another history.
    pub(in crate::hub) fn begin(&mut self) {
        self.refused = None;
    }

    /// Places of outboxes with watches that wait for a fill, beginning after `place` and going round.
    pub(in crate::hub) fn lagging_after(&self, place: u32) -> impl Iterator<Item = u32> {
        self.lagging.range(place..).chain(self.lagging.range(..place)).copied()
    }
}

impl Inner {
    /// A watch that is live or parked needs revisions older than the history.
    pub(in crate::hub) fn lag(&mut self, state: &mut State, slot: usize, needs: Revision) -> PastTasks {
        if self.may_backfill() { self.lag_near(state, slot, needs) } else { self.lag_far(state, slot, needs) }
    }

    /// The same, if the history has room or will be replaced.
    pub(in crate::hub) fn lag_near(&mut self, state: &mut State, slot: usize, needs: Revision) -> PastTasks {
        self.past.lagging.insert(state.watches.place_of(slot));
        state.fall_behind(slot, needs);
        self.past.asked = true;
        PastTasks { backfill: !std::mem::replace(&mut self.past.at_work, true), fill: false }
    }

    /// The same, if only upstream has the revisions.
    pub(in crate::hub) fn lag_far(&mut self, state: &mut State, slot: usize, needs: Revision) -> PastTasks {
        self.past.lagging.insert(state.watches.place_of(slot));
        state.await_fill(slot, needs);
        PastTasks { backfill: false, fill: true }
    }

    pub(in crate::hub) fn may_backfill(&self) -> bool {
        self.history.grows_back() && self.past.refused.is_none_or(|refused| refused.elapsed() >= REFUSED)
    }

    /// Some outboxes with lagging watches, beginning at a place, and the place to continue from.
    pub(in crate::hub) fn lagging_from(&self, place: u32) -> (Vec<(u32, Arc<Outbox>)>, Option<u32>) {
        let places: Vec<u32> = self.past.lagging.range(place..).take(STEP).copied().collect();
        let next = places.last().filter(|_| places.len() == STEP).map(|last| last + 1);
        (places.iter().filter_map(|place| Some((*place, self.outboxes.get(*place)?.clone()))).collect(), next)
    }
}

impl BitOr for PastTasks {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self { backfill: self.backfill || other.backfill, fill: self.fill || other.fill }
    }
}

impl BitOrAssign for PastTasks {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}
