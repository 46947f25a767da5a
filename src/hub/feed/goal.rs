//! [`Goal`]: a revision that the cluster has and the feed has not yet, and since when.
//!
//! Set by whoever was told the cluster's revision and found the feed below it: readers that waited in vain, and the pulse. Read by the driver, which
//! asks for progress as long as there is a goal, by readers, which do not wait for a feed that is late, and by metrics.
//! Always holds: a goal that was set before the feed began again is void; one that is reached is no goal.

use std::time::Duration;

use tokio::time::Instant;

use super::{Feed, FeedState, Mark};
use crate::types::{Header, Revision};

/// See the module. With revision zero there is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    revision: Revision,
    /// Of which of the feed's snapshots it was said.
    epoch: u64,
    since: Instant,
}

/// How far a feed is behind its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Revisions of the whole store, few of which may be the feed's.
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
    /// Upstream gave this `answer` to a question that was put after `mark`: the feed should soon have what it names.
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

    /// How far the feed is behind what the cluster is known to have; `None` where it has all of that.
    #[must_use]
    pub fn lag(&self) -> Option<Lag> {
        let goal = *self.goal.lock();
        let (epoch, revision) = self.epoch_and_revision();
        let behind = goal.epoch == epoch && goal.revision > revision;
        behind.then(|| Lag { revisions: goal.revision.get() - revision.get(), time: goal.since.elapsed() })
    }

    /// Whether upstream's progress could tell that the feed is up to date.
    fn can_tell(&self) -> bool {
        let standing = self.standing.borrow();
        standing.is_serving() && (standing.trusts_progress || standing.state != FeedState::Live)
    }

    fn epoch_and_revision(&self) -> (u64, Revision) {
        let snapshot = self.snapshot.load();
        (snapshot.epoch, snapshot.revision)
    }
}
