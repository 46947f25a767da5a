//! [`Feed`]: one watched range with its snapshot, its history, and the subscriptions that it serves.
//!
//! Not here: where the events come from, see `source`; how they are sent, see `front`; how watches come and go, see
//! `watch_stream`. Only its driver writes (`install`, `publish`, `advance`, `reset`); fronts and views subscribe and
//! read.
//!
//! Always holds:
//! - the feed's revision only rises, except at a reset. Every event of the range up to it is in snapshot and history
//!   before anyone can see that revision, and is then pushed to each watch that was live (`handouts`). No stream is
//!   told that it has everything up to a revision before that;
//! - subscribing and taking over revisions exclude each other, so a watch created at a revision gets each event after
//!   it;
//! - under the feed's lock nothing waits and no task is woken.

mod demand;
mod driven;
mod goal;
mod handouts;
mod heard;
mod held;
mod inner;
mod lag;
mod places;
mod sequence;
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
use self::{goal::Goal, heard::Heard, lag::Past, places::Places, sequence::Sequence};
pub(super) use self::{
    inner::{Inner, Locked},
    lag::PastTasks,
};
use super::{
    FeedContext,
    history::History,
    index::Index,
    outbox::FeedId,
    pins::Pins,
    snapshot::{KeyMap, Snapshot},
    standing::{Doubt, FeedState, Mark, Permission, Standing},
    upstream::Agreement,
};
use crate::types::{ClientKey, Cluster, Entry, Header, KeyRange, Revision};

/// The most revisions of the history that [`Feed::since`] takes at a time.
const SINCE_STEP: usize = 64;
/// After this time without anything from upstream, and while no member answers anything else either, nothing is
/// expected of it.
const SILENCE: Duration = Duration::from_secs(1);

/// See [`Feed::since_step`].
type Since = (Vec<Arc<Entry>>, Option<Arc<Snapshot>>);

/// Why a feed exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedKind {
    /// Configured, and always on.
    Prefix,
    /// Opened for a watch; ends after an idle time.
    OnDemand,
}

/// One watched range; see the module.
#[derive(Debug)]
pub struct Feed {
    id: FeedId,
    range: KeyRange,
    kind: FeedKind,
    pub(super) shared: Arc<FeedContext>,
    inner: Sequence<Inner>,
    snapshot: ArcSwap<Snapshot>,
    /// Snapshots that lists in pages continue from.
    pub(super) pins: Pins,
    /// Notifies those who wait for a revision. The snapshot's revision is the one that counts; this one follows once
    /// the lock is released.
    revision: watch::Sender<Revision>,
    standing: watch::Sender<Standing>,
    /// Readers that wait for a revision; the driver asks for progress while there are any.
    waiting: AtomicUsize,
    nudge: Notify,
    /// The newest revision above which a watch "from now" began before the feed had it. An answer below it shows that
    /// the cluster went back, as one below the feed's own revision does.
    floor: AtomicI64,
    /// What the cluster has and the feed does not have yet.
    goal: Mutex<Goal>,
    /// Tells the driver about a doubt.
    doubts: Notify,
    /// The client that opened it.
    client: ClientKey,
    /// The part of its first snapshot that was read so far.
    partial: ArcSwap<Snapshot>,
    twins: Mutex<demand::Known>,
    /// When upstream last reported the feed's progress.
    heard: Heard,
    /// The audit should check it soon.
    suspected: AtomicBool,
}

/// What was wrong with what the driver wrote.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PublishError {
    /// The revision is not after the feed's.
    #[error("revision {got} arrived when the feed already had revision {at}")]
    Stale {
        /// The revision that arrived.
        got: Revision,
        /// The feed's revision.
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
    /// Upstream reported a change after it had said that there was none. Watches had gone past it, and cannot go on as
    /// if they had it.
    Missed,
    /// It is another cluster, or one restored to an older revision. Revisions that clients know mean nothing any more.
    Replaced,
}

/// Why a wait for a revision failed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum WaitError {
    /// The revision was not reached in time.
    #[error("the feed did not reach the revision in time")]
    Timeout,
    /// This upstream's progress cannot be trusted, or the feed has no watch now.
    #[error("the feed cannot tell whether it is up to date")]
    Unknown,
    /// Upstream denies the relay's own user access.
    #[error("etcd denies the relay access")]
    Denied,
    /// The answer comes from another cluster than the feed's data, or from a cluster that was reset since.
    #[error("the etcd cluster that answers is not the one that the feed's data came from")]
    Replaced,
}

impl Feed {
    pub(super) fn new(range: KeyRange, kind: FeedKind, client: ClientKey, shared: Arc<FeedContext>) -> Arc<Self> {
        let inner = Inner {
            map: KeyMap::default(),
            cluster: Arc::default(),
            history: History::new(Revision::ZERO, shared.history_of(kind)),
            index: Index::default(),
            outboxes: Places::default(),
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
            inner: Sequence::new(inner),
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

    /// Identifies the feed within this process. A feed that is opened later has a higher number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.id.number()
    }

    /// The id by which outboxes know it.
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

    /// Its state towards upstream.
    #[must_use]
    pub fn state(&self) -> FeedState {
        self.standing.borrow().state
    }

    /// Whether events come, or may come at any moment. A frozen member keeps its connection, so a feed that watches
    /// there is live for a while although upstream is away.
    #[must_use]
    pub fn hears_upstream(&self) -> bool {
        let silent = || *self.shared.upstream.agreement().borrow() == Agreement::Silent;
        self.state() == FeedState::Live && !(self.heard.is_older_than(SILENCE) && silent())
    }

    /// Every event up to this revision has been published.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.snapshot.load().revision
    }

    /// The revision, and its future changes.
    #[must_use]
    pub fn watch_revision(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// The current state of the range. It is a pointer, and later changes do not affect it.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The snapshot and the history entries after `revision`, newest last, taken at one moment. The entries are `None`
    /// if the history does not reach back that far.
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

    /// Some history entries from revision `from` on, oldest first. With the newest one comes the snapshot of the same
    /// moment. It goes in steps, because reading far back at once would hold up the feed. `None` if the history does
    /// not reach back that far, or if the feed is not in `epoch` any more; the first step sets `epoch`.
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

    /// Its relation to upstream, taken at one moment.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Its relation to upstream, and future changes of it.
    #[must_use]
    pub fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Whether it can serve, see [`Standing::is_serving`].
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.standing.borrow().is_serving()
    }

    /// Whether upstream denies the relay's own user access. The feed then does not serve, and [`Feed::last_error`] has
    /// upstream's message.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.standing.borrow().permission == Permission::Denied
    }

    /// Upstream's last error, while it lasts.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.standing.borrow().error().map(str::to_owned)
    }

    /// The feed's current position. Take it before upstream is asked, and pass it to [`Feed::reach`].
    #[must_use]
    pub fn mark(&self) -> Mark {
        let snapshot = self.snapshot.load();
        // In this order, so that the floor of an earlier snapshot is never combined with a later snapshot.
        let floor = Revision::new(self.floor.load(Ordering::Acquire));
        Mark { epoch: snapshot.epoch, revision: snapshot.revision.max(floor) }
    }

    /// A watch began above `revision`, which the cluster has and the feed does not. Called under the feed's lock.
    pub(super) fn begun_above(&self, revision: Revision) {
        self.floor.fetch_max(revision.get(), Ordering::AcqRel);
    }

    /// Whether upstream's `answer`, to a request that was made after `mark`, is about the data that the feed has. If it
    /// cannot be, the feed is put in doubt, and does not serve until its driver has found out more.
    ///
    /// # Errors
    /// [`WaitError::Replaced`].
    pub fn check(&self, mark: Mark, answer: &Header) -> Result<(), WaitError> {
        let snapshot = self.snapshot.load();
        if snapshot.epoch == 0 {
            // It has no data yet that could be another cluster's.
            return Ok(());
        }
        let same_cluster = snapshot.cluster.id() == answer.cluster_id;
        if snapshot.epoch != mark.epoch {
            // The feed has begun again since. The answer's cluster is known, but not which of the cluster's pasts it is
            // about.
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

    /// Waits until the feed has everything up to `answer`, which upstream gave to a request that was made after `mark`.
    /// Cancel safe.
    ///
    /// # Errors
    /// As [`Feed::check`] and [`Feed::wait_for`].
    pub async fn reach(&self, mark: Mark, answer: &Header, patience: Duration) -> Result<(), WaitError> {
        self.check(mark, answer)?;
        if self.revision() < answer.revision {
            Box::pin(self.wait_for(answer.revision, patience)).await?;
        }
        // The feed may have begun again meanwhile, with another cluster's revisions.
        if self.snapshot.load().cluster.id() == answer.cluster_id { Ok(()) } else { Err(WaitError::Replaced) }
    }

    /// Makes the driver check whether the feed still matches its upstream.
    pub fn doubt(&self, doubt: Doubt) {
        self.raise(doubt, self.snapshot.load().epoch);
    }

    fn raise(&self, doubt: Doubt, epoch: u64) {
        let raised = self.standing.send_if_modified(|standing| {
            // Nobody would settle a doubt about a snapshot that is gone.
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
    /// [`WaitError::Timeout`] after `patience`; [`WaitError::Denied`] at once if upstream denies the relay access;
    /// [`WaitError::Unknown`] if the feed has ended.
    pub async fn wait_serving(&self, patience: Duration) -> Result<(), WaitError> {
        // Somebody needs it, so it does not end for being idle.
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
    /// [`WaitError::Timeout`] after `patience`; [`WaitError::Unknown`] at once if the feed has ended or upstream's
    /// progress cannot be trusted, since the wait might never end then.
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

    /// Makes the driver ask for the feed's progress, unless upstream reported it within `stale`. All callers that need
    /// it meanwhile share one request.
    pub fn refresh(&self, stale: Duration) {
        if self.heard.is_older_than(stale) {
            self.nudge.notify_one();
        }
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked { inner: self.inner.lock(), _turn: None, tasks: &self.shared.tasks }
    }

    /// Locks the feed when nothing is left to push: each live watch was given everything up to the feed's revision. It
    /// waits for a publication that is being pushed, so creates and reads do not use it. The caller holds no outbox.
    pub(super) fn lock_settled(&self) -> Locked<'_> {
        let turn = self.inner.turn();
        Locked { inner: self.inner.lock(), _turn: Some(turn), tasks: &self.shared.tasks }
    }
}

/// Counts a reader that waits for a revision, however the wait ends.
struct Waiting<'a>(&'a Feed);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a caller that waits until the feed serves. When it ends, the idle time starts from zero.
struct Expected<'a>(&'a Feed);

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.touch();
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
