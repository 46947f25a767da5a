//! [`Goal`]: a revision that the cluster has and the feed does not have yet, and since when.
//!
//! Set by those who learned the cluster's revision and found the feed below it: readers whose wait timed out, and the
//! pulse. Read by the driver, which asks for progress as long as there is a goal; by readers, which do not wait for a
//! feed that is late; and by metrics.
//! Always holds: a goal that was set before the feed began again is void, and so is one that was reached.

use std::time::Duration;

use tokio::time::Instant;

use super::{Feed, FeedState, Mark};
use crate::types::{Header, Revision};

/// A revision to be reached; see the module. With revision zero there is no goal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    revision: Revision,
    /// The epoch of the feed's snapshot when the goal was set.
    epoch: u64,
    since: Instant,
}

/// How far a feed is behind its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Revisions of the whole store. Only a few of them may concern the feed.
    pub revisions: i64,
    /// For how long it has been behind.
    pub time: Duration,
}

impl Goal {
    pub(super) fn none() -> Self {
        Self { revision: Revision::ZERO, epoch: 0, since: Instant::now() }
    }
}

impl Feed {
    /// Upstream gave this `answer` to a request that was made after `mark`, so the feed should soon have the revision
    /// in it.
    pub fn expect(&self, mark: Mark, answer: &Header) {
        if self.check(mark, answer).is_err() || !self.can_tell() {
            return;
        }
        let (epoch, revision) = self.epoch_and_revision();
        if revision >= answer.revision {
            return;
        }
        {
            let mut goal = self.goal.lock();
            if goal.epoch != epoch || goal.revision <= revision {
                *goal = Goal { revision: answer.revision, epoch, since: Instant::now() };
            } else {
                goal.revision = goal.revision.max(answer.revision);
            }
        }
        self.nudge.notify_one();
    }

    /// How far the feed is behind what the cluster is known to have; `None` if it has all of that.
    #[must_use]
    pub fn lag(&self) -> Option<Lag> {
        let goal = *self.goal.lock();
        let (epoch, revision) = self.epoch_and_revision();
        let behind = goal.epoch == epoch && goal.revision > revision;
        behind.then(|| Lag { revisions: goal.revision.get() - revision.get(), time: goal.since.elapsed() })
    }

    /// Whether upstream's progress can show that the feed is up to date.
    fn can_tell(&self) -> bool {
        let standing = self.standing.borrow();
        standing.is_serving() && (standing.trusts_progress || standing.state != FeedState::Live)
    }

    fn epoch_and_revision(&self) -> (u64, Revision) {
        let snapshot = self.snapshot.load();
        (snapshot.epoch, snapshot.revision)
    }
}
