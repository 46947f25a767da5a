//! [`Feed`]: one watched range, its snapshot, its history, and the subscriptions that it serves.
//!
//! Not here: where the events come from, see `source`; how they are sent, see `front`; how watches come and go, see `watch_stream`. Its
//! driver alone writes (`install`, `publish`, `advance`, `reset`); fronts and views subscribe and read.
//!
//! Always holds:
//! - the feed's revision only rises, but for a reset; every event of the range up to it is in snapshot and history, and was
//!   pushed to each live watch before anyone can see that revision;
//! - subscribing and publishing exclude each other, so a watch created at a revision gets each event after it;
//! - under the feed's lock nothing waits and nobody is woken.

mod demand;
mod driven;
mod goal;
mod heard;
mod held;
mod inner;
mod lag;
mod stats;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use slab::Slab;
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

pub use self::{
    demand::Twins,
    goal::Lag,
    held::Held,
    stats::{FeedStats, Totals},
};
use self::{goal::Goal, heard::Heard, lag::Past};
pub(super) use self::{
    inner::{Inner, Locked},
    lag::Asks,
};
use super::{
    FeedContext,
    history::History,
    index::Index,
    outbox::FeedId,
    pins::Pins,
    slack::Slack,
    snapshot::{KeyMap, Snapshot},
    standing::{Doubt, FeedState, Mark, Permission, Standing},
};
use crate::types::{ClientKey, Cluster, Entry, Header, KeyRange, Revision};

/// Most revisions of the history that [`Feed::since`] takes at a time.
const SINCE_STEP: usize = 64;

/// See [`Feed::since_step`].
type Since = (Vec<Arc<Entry>>, Option<Arc<Snapshot>>);

/// Why a feed exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedKind {
    /// Configured: always on.
    Prefix,
    /// Asked for by a watch: ends after an idle time.
    OnDemand,
}

/// See the module.
#[derive(Debug)]
pub struct Feed {
    id: FeedId,
    range: KeyRange,
    kind: FeedKind,
    pub(super) shared: Arc<FeedContext>,
    inner: Mutex<Inner>,
    snapshot: ArcSwap<Snapshot>,
    /// Snapshots that lists in pages go on from.
    pub(super) pins: Pins,
    /// Tells those who wait for a revision. The snapshot's is the one that counts: this one follows once the lock is let go.
    revision: watch::Sender<Revision>,
    standing: watch::Sender<Standing>,
    /// Readers that wait for a revision; the driver asks for progress while there are any.
    waiting: AtomicUsize,
    nudge: Notify,
    /// The newest revision above which a watch "from now" began, where the feed did not have it: an answer below it shows, as one below the
    /// feed's own revision does, that the cluster went back.
    floor: AtomicI64,
    /// What the cluster has and the feed has not yet.
    goal: Mutex<Goal>,
    /// Tells the driver of a doubt.
    doubts: Notify,
    /// Who opened it.
    client: ClientKey,
    /// What was read of its first snapshot, until that is whole.
    partial: ArcSwap<Snapshot>,
    twins: Mutex<demand::Known>,
    /// When upstream last told how far the feed is.
    heard: Heard,
    /// The audit is to look at it soon.
    suspected: AtomicBool,
}

/// What was wrong with what the driver wrote.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PublishError {
    /// The revision is not after the feed's.
    #[error("revision {got} came when the feed already stood at {at}")]
    Stale {
        /// What came.
        got: Revision,
        /// Where the feed stood.
        at: Revision,
    },
}

/// Why a feed starts again from a new snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The next revisions are gone upstream.
    Compacted {
        /// The oldest revision that is left there.
        compact_revision: Revision,
    },
    /// Upstream told a change after it had said that there was none: watches went past it, and cannot go on as if they had it.
    Missed,
    /// It is another cluster, or one restored to an older revision: no revision held by anyone means anything now.
    Replaced,
}

/// Why a wait for a revision ended without it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum WaitError {
    /// Not reached in time.
    #[error("the feed did not reach the revision in time")]
    Timeout,
    /// This upstream's progress reports cannot be believed, or the feed has no watch now.
    #[error("the feed cannot tell whether it is up to date")]
    Unknown,
    /// Upstream refuses the relay's own identity.
    #[error("etcd denies the relay access")]
    Denied,
    /// What answered is not the cluster that the feed's data came from, or no more as it was then.
    #[error("another etcd cluster answers than the one that the feed's data came from")]
    Replaced,
}

impl Feed {
    pub(super) fn new(range: KeyRange, kind: FeedKind, client: ClientKey, shared: Arc<FeedContext>) -> Arc<Self> {
        let inner = Inner {
            map: KeyMap::default(),
            cluster: Arc::default(),
            history: History::new(Revision::ZERO, shared.history_of(kind)),
            index: Index::default(),
            outboxes: Slab::new(),
            slack: Slack::default(),
            past: Past::default(),
            revision: Revision::ZERO,
            epoch: 0,
            closed: false,
            idle_since: Instant::now(),
        };
        super::stats::feed_state(None, FeedState::Starting.label());
        Arc::new(Self {
            id: FeedId::new(),
            range,
            kind,
            shared,
            inner: Mutex::new(inner),
            snapshot: ArcSwap::default(),
            pins: Pins::default(),
            revision: watch::Sender::new(Revision::ZERO),
            standing: watch::Sender::new(Standing::new()),
            waiting: AtomicUsize::new(0),
            nudge: Notify::new(),
            floor: AtomicI64::new(0),
            goal: Mutex::new(Goal::none()),
            doubts: Notify::new(),
            client,
            partial: ArcSwap::default(),
            twins: Mutex::default(),
            heard: Heard::new(),
            suspected: AtomicBool::new(false),
        })
    }

    /// Names it within this process; a feed that is opened later has a higher number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.id.number()
    }

    /// By which outboxes know it.
    pub(super) fn id(&self) -> FeedId {
        self.id
    }

    /// The keys it watches.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// Why it exists.
    #[must_use]
    pub fn kind(&self) -> FeedKind {
        self.kind
    }

    /// Where it stands with upstream.
    #[must_use]
    pub fn state(&self) -> FeedState {
        self.standing.borrow().state
    }

    /// Every event up to this revision has been published.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.snapshot.load().revision
    }

    /// The revision, and its changes to come.
    #[must_use]
    pub fn watch_revision(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// The current state of the range. A pointer; later changes do not touch it.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The snapshot and the history entries after `revision`, newest last, as of one moment; `None` for the entries where the
    /// window does not reach back that far.
    #[must_use]
    pub fn since(&self, revision: Revision) -> (Arc<Snapshot>, Option<Vec<Arc<Entry>>>) {
        let mut entries: Vec<Arc<Entry>> = Vec::new();
        let mut from = revision.next();
        let mut epoch = None;
        loop {
            let Some((step, newest)) = self.since_step(from, &mut epoch) else {
                return (self.snapshot.load_full(), None);
            };
            from = step.last().map_or(from, |last| last.revision.next());
            entries.extend(step);
            if let Some(newest) = newest {
                return (newest, Some(entries));
            }
        }
    }

    /// Some history entries from revision `from` on, oldest first; with the newest one comes the snapshot of the same moment. In steps,
    /// since whoever reads far back must not hold the feed up for as long as that takes. `None` where the window does not reach back that
    /// far, or where the feed is not in `epoch` any more, which the first step fills in.
    pub(super) fn since_step(&self, from: Revision, epoch: &mut Option<u64>) -> Option<Since> {
        let inner = self.lock();
        let step = inner.history.read(from, SINCE_STEP)?;
        if *epoch.get_or_insert(inner.epoch) != inner.epoch {
            return None;
        }
        let newest = (step.len() < SINCE_STEP).then(|| self.snapshot.load_full());
        Some((step, newest))
    }

    /// The cluster that its data came from.
    #[must_use]
    pub fn cluster(&self) -> Arc<Cluster> {
        self.snapshot.load().cluster.clone()
    }

    /// Where it stands with upstream, as of one moment.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Where it stands, and its changes to come.
    #[must_use]
    pub fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Whether it can serve, see [`Standing::is_serving`].
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.standing.borrow().is_serving()
    }

    /// Whether upstream refuses the relay's own identity. The feed does not serve then. [`Feed::last_error`] has upstream's words.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.standing.borrow().permission == Permission::Denied
    }

    /// Upstream's last error, while it lasts.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.standing.borrow().error().map(str::to_owned)
    }

    /// Where it stands now: to be had before upstream is asked, for [`Feed::reach`].
    #[must_use]
    pub fn mark(&self) -> Mark {
        let snapshot = self.snapshot.load();
        // In this order: a floor of an earlier snapshot is never taken for one of a later.
        let floor = Revision::new(self.floor.load(Ordering::Acquire));
        Mark { epoch: snapshot.epoch, revision: snapshot.revision.max(floor) }
    }

    /// A watch began above `revision`, which the cluster has and the feed has not. Called under the feed's lock.
    pub(super) fn begun_above(&self, revision: Revision) {
        self.floor.fetch_max(revision.get(), Ordering::AcqRel);
    }

    /// Whether an `answer` of upstream's, to a question that was put after `mark`, is about the data that the feed has. Where it
    /// cannot be, the feed is doubted, and does not serve until its driver knows more.
    ///
    /// # Errors
    /// [`WaitError::Replaced`].
    pub fn check(&self, mark: Mark, answer: &Header) -> Result<(), WaitError> {
        let snapshot = self.snapshot.load();
        if snapshot.epoch == 0 {
            // It has nothing yet that could be another cluster's.
            return Ok(());
        }
        let same_cluster = snapshot.cluster.id() == answer.cluster_id;
        if snapshot.epoch != mark.epoch {
            // The feed has begun again since. Of which cluster the answer speaks is known, but not of which of its pasts.
            return if same_cluster { Ok(()) } else { Err(WaitError::Replaced) };
        }
        let doubt = match same_cluster {
            true if answer.revision >= mark.revision => return Ok(()),
            true => Doubt::WentBack,
            false => Doubt::Cluster,
        };
        let epoch = snapshot.epoch;
        drop(snapshot);
        tracing::debug!(range = %self.range, ?answer, ?doubt, "Upstream's answer does not fit the feed");
        self.raise(doubt, epoch);
        Err(WaitError::Replaced)
    }

    /// Waits until the feed has everything up to `answer`, which upstream gave to a question that was put after `mark`. Cancel
    /// safe.
    ///
    /// # Errors
    /// As [`Feed::check`] and [`Feed::wait_for`].
    pub async fn reach(&self, mark: Mark, answer: &Header, patience: Duration) -> Result<(), WaitError> {
        self.check(mark, answer)?;
        if self.revision() < answer.revision {
            Box::pin(self.wait_for(answer.revision, patience)).await?;
        }
        // It may have begun again meanwhile, with another cluster's revisions.
        if self.snapshot.load().cluster.id() == answer.cluster_id { Ok(()) } else { Err(WaitError::Replaced) }
    }

    /// Lets the driver find out whether the feed is still what its upstream is.
    pub fn doubt(&self, doubt: Doubt) {
        self.raise(doubt, self.snapshot.load().epoch);
    }

    fn raise(&self, doubt: Doubt, epoch: u64) {
        let raised = self.standing.send_if_modified(|standing| {
            // A doubt about a snapshot that is gone would be settled by nobody.
            let graver = self.snapshot.load().epoch == epoch && standing.doubt.is_none_or(|(known, _)| known < doubt);
            if graver {
                standing.doubt = Some((doubt, epoch));
            }
            graver
        });
        if raised {
            self.doubts.notify_one();
        }
    }

    /// Waits until the feed serves. Cancel safe.
    ///
    /// # Errors
    /// [`WaitError::Timeout`] after `patience`; [`WaitError::Denied`] at once where upstream refuses the relay;
    /// [`WaitError::Unknown`] where the feed has ended.
    pub async fn wait_serving(&self, patience: Duration) -> Result<(), WaitError> {
        // Somebody wants it: it does not end for want of use.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _expected = Expected(self);
        let mut standing = self.standing.subscribe();
        let decided = standing.wait_for(|standing| {
            standing.is_serving() || standing.permission == Permission::Denied || standing.state == FeedState::Closed
        });
        match tokio::time::timeout(patience, decided).await {
            Ok(Ok(standing)) if standing.is_serving() => Ok(()),
            Ok(Ok(standing)) if standing.permission == Permission::Denied => Err(WaitError::Denied),
            Ok(_) => Err(WaitError::Unknown),
            Err(_) => Err(WaitError::Timeout),
        }
    }

    /// Waits until every event up to `revision` has been published, asking upstream for progress. Cancel safe.
    ///
    /// # Errors
    /// [`WaitError::Timeout`] after `patience`; [`WaitError::Unknown`] at once where the feed has ended or upstream's progress
    /// cannot be believed, since then the wait might never end.
    pub async fn wait_for(&self, revision: Revision, patience: Duration) -> Result<(), WaitError> {
        if self.revision() >= revision {
            return Ok(());
        }
        match &*self.standing.borrow() {
            Standing { state: FeedState::Closed, .. }
            | Standing { state: FeedState::Live, trusts_progress: false, .. } => {
                return Err(WaitError::Unknown);
            }
            _ => {}
        }
        let mut reached = self.revision.subscribe();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(self);
        self.nudge.notify_one();
        match tokio::time::timeout(patience, reached.wait_for(|now| *now >= revision)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(WaitError::Unknown),
            Err(_) => Err(WaitError::Timeout),
        }
    }

    /// Lets the driver ask how far the feed is, unless upstream told within `stale`: one ask for all who want to know meanwhile.
    pub fn refresh(&self, stale: Duration) {
        if self.heard.is_older_than(stale) {
            self.nudge.notify_one();
        }
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked { inner: self.inner.lock(), tasks: &self.shared.tasks }
    }
}

/// Counts a reader that waits for a revision, whatever ends the wait.
struct Waiting<'a>(&'a Feed);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one who waits until the feed serves; then the time without use begins anew.
struct Expected<'a>(&'a Feed);

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.touch();
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
