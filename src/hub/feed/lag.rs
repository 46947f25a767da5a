//! What a feed knows of the watches that need what is before its history, and how a watch comes to be one of them.
//!
//! Not here: how the past is read, see `backfill` and `fill`. Under the feed's lock. Always holds: the place of an outbox with a watch that
//! lags is noted.

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

/// How long fills serve after upstream would not let the relay read the feed's past.
const REFUSED: Duration = Duration::from_secs(10);
/// Most streams that are looked at while the feed's lock is held.
const STEP: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(in crate::hub) struct Past {
    /// Places of the outboxes that have watches which are behind or unfilled; some have none any more.
    lagging: BTreeSet<u32>,
    /// There is a task that reads the feed's past.
    pub(in crate::hub) at_work: bool,
    /// A watch fell behind since that task looked last.
    pub(in crate::hub) asked: bool,
    /// When upstream refused.
    pub(in crate::hub) refused: Option<Instant>,
}

/// What is to be started for watches that lag, once the locks are let go.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub(in crate::hub) struct Asks {
    pub(in crate::hub) backfill: bool,
    pub(in crate::hub) fill: bool,
}

impl Past {
    /// An outbox has left the feed, or nothing of it lags.
    pub(in crate::hub) fn forget(&mut self, outbox: u32) {
        self.lagging.remove(&outbox);
    }

    /// The feed has begun another history.
    pub(in crate::hub) fn begin(&mut self) {
        self.refused = None;
    }

    /// Places of outboxes after `place`, around, that have watches for a fill.
    pub(in crate::hub) fn lagging_after(&self, place: u32) -> impl Iterator<Item = u32> {
        self.lagging.range(place..).chain(self.lagging.range(..place)).copied()
    }
}

impl Inner {
    /// A watch that is live or parked needs what is before the history.
    pub(in crate::hub) fn lag(&mut self, state: &mut State, slot: usize, needs: Revision) -> Asks {
        if self.may_backfill() { self.lag_near(state, slot, needs) } else { self.lag_far(state, slot, needs) }
    }

    /// The same where the history has room, or is to begin anew.
    pub(in crate::hub) fn lag_near(&mut self, state: &mut State, slot: usize, needs: Revision) -> Asks {
        self.past.lagging.insert(state.watches.place_of(slot));
        state.fall_behind(slot, needs);
        self.past.asked = true;
        Asks { backfill: !std::mem::replace(&mut self.past.at_work, true), fill: false }
    }

    /// The same for what upstream alone can tell.
    pub(in crate::hub) fn lag_far(&mut self, state: &mut State, slot: usize, needs: Revision) -> Asks {
        self.past.lagging.insert(state.watches.place_of(slot));
        state.await_fill(slot, needs);
        Asks { backfill: false, fill: true }
    }

    pub(in crate::hub) fn may_backfill(&self) -> bool {
        self.history.grows_back() && self.past.refused.is_none_or(|refused| refused.elapsed() >= REFUSED)
    }

    /// Some outboxes with watches that lag, from a place on, and the place to go on from.
    pub(in crate::hub) fn lagging_from(&self, place: u32) -> (Vec<(u32, Arc<Outbox>)>, Option<u32>) {
        let places: Vec<u32> = self.past.lagging.range(place..).take(STEP).copied().collect();
        let next = places.last().filter(|_| places.len() == STEP).map(|last| last + 1);
        (places.iter().map(|place| (*place, self.outboxes[*place as usize].clone())).collect(), next)
    }
}

impl BitOr for Asks {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self { backfill: self.backfill || other.backfill, fill: self.fill || other.fill }
    }
}

impl BitOrAssign for Asks {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}
