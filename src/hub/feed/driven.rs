//! The driver's side of a feed: what the driver writes, and what it learns about waiting readers.
//!
//! Called only by `source::driver`, with one driver for each feed. Not here: `reset`, which has its own module.
//! Always holds: see `feed`.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Waker,
    time::{Duration, Instant},
};

use super::{Feed, FeedKind, PublishError, Twins, handouts::Handouts, inner::Inner};
use crate::{
    hub::{
        history::History,
        snapshot::{KeyMap, Snapshot, free},
        standing::{Doubt, FeedState, Permission, Standing},
        stats,
        upstream::Changes,
    },
    types::{Cluster, Revision},
};

impl Feed {
    /// Changes the feed's relation to upstream, as a whole, for readers, metrics, `/ready` and `/debug/state`.
    pub(crate) fn stand(&self, change: impl FnOnce(&mut Standing)) {
        let mut states = None;
        self.standing.send_modify(|standing| {
            let old = standing.state;
            if old == FeedState::Closed {
                // The feed has ended, so its driver's changes no longer count.
                return;
            }
            change(standing);
            states = Some((old, standing.state));
        });
        if let Some((old, new)) = states.filter(|(old, new)| old != new) {
            stats::feed_state(old.label(), new.label());
        }
    }

    /// Sets only the state. The feed is taken to be up to date with what it has, and no more.
    pub fn set_state(&self, state: FeedState) {
        self.stand(|standing| {
            standing.state = state;
            standing.trusts_progress = false;
        });
    }

    /// A snapshot was read, which settles earlier doubts. The feed can serve now, and watches from here on.
    pub fn loaded(&self) {
        let epoch = self.snapshot.load().epoch;
        self.stand(|standing| {
            standing.state = FeedState::Resuming;
            standing.permission = Permission::Granted;
            standing.doubt = standing.doubt.filter(|(_, of)| *of == epoch);
        });
    }

    /// A watch is open from the feed's next revision on, at this member if there are members.
    pub fn follows(&self, trusts_progress: bool, member: Option<Arc<str>>) {
        self.stand(|standing| {
            standing.state = FeedState::Live;
            standing.member = member;
            standing.trusts_progress = trusts_progress;
            standing.permission = Permission::Granted;
            standing.recovered();
        });
    }

    /// Upstream failed. If it `denied` the relay access more than once in a row, the relay may not read the range.
    /// Other failures say nothing about that.
    pub fn failed(&self, state: FeedState, error: String, denied: bool) {
        self.stand(|standing| {
            standing.state = state;
            standing.trusts_progress = false;
            if denied {
                standing.permission = Permission::Denied;
            }
            standing.failed(error);
        });
    }

    /// Waits until a doubt is raised. Cancel safe.
    pub async fn in_doubt(&self) {
        self.doubts.notified().await;
    }

    /// What has to be checked, if anything.
    #[must_use]
    pub fn doubted(&self) -> Option<Doubt> {
        let epoch = self.snapshot.load().epoch;
        self.standing.borrow().doubt.filter(|(_, of)| *of == epoch).map(|(doubt, _)| doubt)
    }

    /// The doubt is settled: the feed matches its upstream. A graver doubt stays.
    pub fn settled(&self, doubt: Doubt) {
        self.stand(|standing| standing.doubt = standing.doubt.filter(|(known, _)| *known != doubt));
    }

    /// Whether the relay lost its permission to read, while its watch goes on.
    pub fn permission(&self, lost: Option<String>) {
        self.stand(|standing| match lost {
            Some(error) => {
                standing.permission = Permission::Lost;
                standing.failed(error);
            }
            None => {
                standing.permission = Permission::Granted;
                standing.recovered();
            }
        });
    }

    /// Installs the first snapshot, at `revision` of `cluster`. Nobody has subscribed before that.
    pub fn install(&self, cluster: Arc<Cluster>, map: KeyMap, revision: Revision) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        inner.cluster = cluster;
        let replaced = self.replace(&mut inner, map, revision);
        drop(inner);
        self.announce(revision);
        replaced.free();
        self.forget_part();
    }

    /// Publishes the next revisions, each whole and in rising order. Pushes them to every live watch that they concern.
    ///
    /// # Errors
    /// [`PublishError::Stale`] at the first revision that is not after the feed's; the ones before it are published.
    pub fn publish(&self, batch: &[Changes]) -> Result<(), PublishError> {
        // Read once for each batch, not for each delivery.
        let asked = Instant::now();
        let twins = self.twins();
        let turn = self.inner.turn();
        let Taken { result, handouts, shown, revision, began } = self.take(batch, &twins);
        let taken = Instant::now();
        let wakers = handouts.push();
        drop(turn);
        let done = Instant::now();
        stats::published(batch, stats::Published { asked, began, taken, done });
        wakers.into_iter().for_each(Waker::wake);
        self.announce(revision);
        self.heard.now();
        // What the revisions replaced is freed here, where nobody waits.
        drop(shown);
        self.pins.expire();
        result
    }

    /// Takes over revisions, so that everybody sees them. The caller has the turn to push them, see `Sequence::turn`.
    pub(super) fn take(&self, batch: &[Changes], twins: &Twins) -> Taken {
        let mut inner = self.lock();
        let began = Instant::now();
        let mut handouts = Handouts::new(self.id, inner.outboxes.seated());
        let result = inner.publish(batch, twins, &mut handouts);
        Taken { result, handouts, shown: self.show(&inner), revision: inner.revision, began }
    }

    /// Upstream reports that it has delivered every event up to `revision`. An older report is ignored.
    pub fn advance(&self, revision: Revision) {
        self.heard.now();
        {
            let mut inner = self.lock();
            if revision <= inner.revision {
                return;
            }
            inner.revision = revision;
            self.show(&inner);
        }
        self.announce(revision);
        self.pins.expire();
    }

    /// Ends the feed if nobody has used it for `idle`. Nobody can subscribe after that.
    #[must_use]
    pub fn close_if_idle(&self, idle: Duration) -> bool {
        let mut inner = self.lock();
        let in_use = !inner.index.is_empty() || !inner.outboxes.is_empty() || self.waiting.load(Ordering::Relaxed) > 0;
        if in_use {
            inner.idle_since = tokio::time::Instant::now();
            return false;
        }
        let close = self.kind == FeedKind::OnDemand && inner.idle_since.elapsed() >= idle;
        if inner.closed {
            return true;
        }
        if close {
            inner.closed = true;
            drop(inner);
            self.close();
        }
        close
    }

    /// Drops everything that a feed without a future does not need.
    pub(in crate::hub) fn drop_data(&self) {
        let mut inner = self.lock();
        let revision = inner.revision;
        let replaced = self.replace(&mut inner, KeyMap::default(), revision);
        drop(inner);
        replaced.free();
    }

    /// Notes that somebody read from the feed, so that it is not idle.
    pub fn touch(&self) {
        if self.kind == FeedKind::OnDemand {
            self.lock().idle_since = tokio::time::Instant::now();
        }
    }

    /// Waits until somebody waits for a revision. Cancel safe.
    pub async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// Whether somebody waits for a revision, or the cluster is known to have one that the feed does not have.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 || self.lag().is_some()
    }

    /// Begins another history, with this map. Returns the previous content, which the caller frees once the lock is
    /// released.
    pub(in crate::hub) fn replace(&self, inner: &mut Inner, map: KeyMap, revision: Revision) -> Replaced {
        let history = History::new(revision.next(), self.shared.history_of(self.kind));
        let history = std::mem::replace(&mut inner.history, history);
        let map = std::mem::replace(&mut inner.map, map);
        inner.revision = revision;
        inner.epoch += 1;
        inner.past.begin();
        self.floor.store(0, Ordering::Release);
        let shown = self.show(inner);
        self.pins.clear();
        Replaced { history, map, shown }
    }

    /// Makes the state under the lock visible to those who read without it. Returns what they saw before.
    fn show(&self, inner: &Inner) -> Arc<Snapshot> {
        let (map, cluster) = (inner.map.clone(), inner.cluster.clone());
        self.snapshot.swap(Arc::new(Snapshot { revision: inner.revision, map, epoch: inner.epoch, cluster }))
    }

    /// Notifies those who wait for a revision. Not under the lock, since a woken task would wait for it. Only the
    /// driver calls this, so revisions are announced in the order in which they became visible.
    pub(in crate::hub) fn announce(&self, revision: Revision) {
        self.revision.send_replace(revision);
    }
}

/// What [`Feed::take`] gives.
#[derive(Debug)]
pub(super) struct Taken {
    result: Result<(), PublishError>,
    pub(super) handouts: Handouts,
    /// What was visible before. The caller frees it where nobody waits.
    shown: Arc<Snapshot>,
    revision: Revision,
    /// When the lock was acquired.
    began: Instant,
}

/// What a feed had before it began again.
#[must_use]
pub(in crate::hub) struct Replaced {
    history: History,
    map: KeyMap,
    shown: Arc<Snapshot>,
}

impl Replaced {
    pub(in crate::hub) fn free(self) {
        let Self { history, map, shown } = self;
        let entries = history.len() + map.len();
        free((history, map, shown), entries);
    }
}
