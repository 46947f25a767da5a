//! The driver's side of a feed: what it writes, and what it is told about who waits.
//!
//! Called by `source::driver` alone, one driver a feed. Always holds: see `feed`.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Waker,
    time::{Duration, Instant},
};

use super::{Feed, FeedKind, FeedState, PublishError, Reset, inner::Inner};
use crate::{
    hub::{
        delivery::Cancellation,
        fill::{self, Filled},
        history::History,
        outbox::Phase,
        snapshot::{KeyMap, Snapshot, free},
        stats,
        upstream::Changes,
    },
    types::Revision,
};

impl Feed {
    /// Sets the state, for readers, metrics and `/debug/state`.
    pub fn set_state(&self, state: FeedState, error: Option<String>) {
        if error.is_some() {
            *self.last_error.lock() = error;
        }
        let old = self.state.send_replace(state);
        stats::feed_state(Some(old), state);
    }

    /// Says whether upstream refuses the relay's own identity. To be called before [`Feed::set_state`], which tells who waits.
    pub fn set_denied(&self, denied: bool) {
        self.denied.store(denied, Ordering::Release);
    }

    /// Says of which cluster the feed's revisions are from now on.
    pub fn set_cluster_id(&self, cluster_id: u64) {
        self.cluster_id.store(cluster_id, Ordering::Relaxed);
    }

    /// Says whether [`Feed::advance`] will be called with progress that can be believed.
    pub fn set_trusts_progress(&self, trusts: bool) {
        self.trusts_progress.store(trusts, Ordering::Relaxed);
    }

    /// The first snapshot, at `revision`. Nobody has subscribed before.
    pub fn install(&self, map: KeyMap, revision: Revision) {
        let mut inner = self.lock();
        let replaced = self.replace(&mut inner, map, revision);
        drop(inner);
        replaced.free();
    }

    /// The next revisions, rising, each whole. Pushes them to every live watch that they concern.
    ///
    /// # Errors
    /// [`PublishError::Stale`] at the first revision that is not after the feed's; the ones before it are published.
    pub fn publish(&self, batch: &[Changes]) -> Result<(), PublishError> {
        let mut wakers = Vec::new();
        // Read once for each batch, not for each delivery.
        let asked = Instant::now();
        let (began, shown);
        let result = {
            let mut inner = self.lock();
            began = Instant::now();
            let result = inner.publish(batch, &mut wakers);
            shown = self.show(&inner);
            result
        };
        let done = Instant::now();
        stats::published(batch, stats::Published { asked, began, done });
        wakers.into_iter().for_each(Waker::wake);
        // What the revisions replaced is freed here, where nobody waits.
        drop(shown);
        self.pins.expire(done);
        result
    }

    /// Upstream says that every event up to `revision` has been delivered. Older news are ignored.
    pub fn advance(&self, revision: Revision) {
        {
            let mut inner = self.lock();
            if revision <= inner.revision {
                return;
            }
            inner.revision = revision;
            self.show(&inner);
        }
        self.pins.expire(Instant::now());
    }

    /// A new snapshot, with a gap before it. Each watch goes on if what it needs is still to come; is filled from upstream if
    /// that still has it; and is ended otherwise.
    pub fn reset(self: &Arc<Self>, map: KeyMap, revision: Revision, reset: &Reset) {
        let mut wakers = Vec::new();
        let mut fills = Vec::new();
        let mut inner = self.lock();
        let was = inner.revision;
        let outboxes: Vec<_> = inner.outboxes.iter().map(|(_, outbox)| outbox.clone()).collect();
        for outbox in outboxes {
            let slots = outbox.lock().slots_in(self);
            for slot in slots {
                let mut state = outbox.lock();
                let watch = &mut state.watches[slot];
                let needs = match watch.phase {
                    Phase::Live => watch.next.max(was.next()),
                    Phase::Parked => watch.next,
                    // Upstream itself will tell its fill, unless the cluster is another one.
                    Phase::Filling if *reset != Reset::Replaced => continue,
                    Phase::Filling => watch.next,
                    Phase::Compacted => continue,
                };
                let (compact_revision, reason) = match reset {
                    Reset::Compacted { .. } if needs > revision => {
                        watch.next = needs;
                        state.set_phase(slot, Phase::Live);
                        continue;
                    }
                    Reset::Compacted { compact_revision } if needs >= *compact_revision => {
                        watch.next = needs;
                        let group = inner.index.group(watch.group);
                        let (range, options) = (group.range.clone(), group.options);
                        let filled = Filled { watch_id: watch.id, serial: watch.serial, range, options };
                        fills.push((outbox.clone(), filled));
                        state.set_phase(slot, Phase::Filling);
                        continue;
                    }
                    Reset::Compacted { compact_revision } => (*compact_revision, String::new()),
                    Reset::Replaced => (revision.max(Revision::new(1)), REPLACED.to_owned()),
                };
                let watch_id = watch.id;
                let cancellation = Cancellation { watch_id, compact_revision, reason, ..Cancellation::default() };
                stats::canceled(&cancellation);
                let ((watch, last), waker) = state.end_watch(slot, cancellation);
                drop(state);
                inner.unlink(&watch, last);
                wakers.extend(waker);
            }
        }
        let replaced = self.replace(&mut inner, map, revision);
        drop(inner);
        replaced.free();
        for (outbox, filled) in fills {
            fill::spawn(self.clone(), outbox, filled);
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ends the feed if nobody has used it for `idle`. After it nobody can subscribe.
    #[must_use]
    pub fn close_if_idle(&self, idle: Duration) -> bool {
        let mut inner = self.lock();
        let in_use = !inner.index.is_empty() || !inner.outboxes.is_empty() || self.waiting.load(Ordering::Relaxed) > 0;
        if in_use {
            inner.idle_since = tokio::time::Instant::now();
            return false;
        }
        let close = self.kind == FeedKind::OnDemand && inner.idle_since.elapsed() >= idle;
        if close {
            inner.closed = true;
            drop(inner);
            // First of all, so that nobody who still holds the feed takes it for one without keys; then its data go.
            self.set_state(FeedState::Closed, None);
            let mut inner = self.lock();
            let revision = inner.revision;
            let replaced = self.replace(&mut inner, KeyMap::default(), revision);
            drop(inner);
            replaced.free();
        }
        close
    }

    /// Somebody read from the feed: it is not idle.
    pub fn touch(&self) {
        if self.kind == FeedKind::OnDemand {
            self.lock().idle_since = tokio::time::Instant::now();
        }
    }

    /// Waits until someone waits for a revision. Cancel safe.
    pub async fn nudged(&self) {
        self.nudge.notified().await;
    }

    /// Whether someone waits for a revision.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Begins another history, with this map. What was there before is the caller's to free, once the lock is let go.
    fn replace(&self, inner: &mut Inner, map: KeyMap, revision: Revision) -> Replaced {
        let history = History::new(revision.next(), self.shared.limits.history);
        let history = std::mem::replace(&mut inner.history, history);
        let map = std::mem::replace(&mut inner.map, map);
        inner.revision = revision;
        inner.epoch += 1;
        let shown = self.show(inner);
        self.pins.clear();
        Replaced { history, map, shown }
    }

    /// Makes the state under the lock visible to those who read without it. Gives back what they saw before.
    fn show(&self, inner: &Inner) -> Arc<Snapshot> {
        let snapshot = Snapshot { revision: inner.revision, map: inner.map.clone(), epoch: inner.epoch };
        let before = self.snapshot.swap(Arc::new(snapshot));
        self.revision.send_replace(inner.revision);
        before
    }
}

/// What a feed had before it began again.
#[must_use]
struct Replaced {
    history: History,
    map: KeyMap,
    shown: Arc<Snapshot>,
}

impl Replaced {
    fn free(self) {
        let Self { history, map, shown } = self;
        let entries = history.len() + map.len();
        free((history, map, shown), entries);
    }
}

/// Told to every watch when the cluster behind the relay is another one.
const REPLACED: &str =
    "etcd-relay: the etcd cluster was replaced or restored to an older revision; list again and watch from there";
