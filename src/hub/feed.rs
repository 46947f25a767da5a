//! [`Feed`]: one watched range, its snapshot, its history, and the subscriptions that it serves.
//!
//! Not here: where the events come from, see `source`; how they are sent, see `front`. Its driver alone writes
//! (`install`, `publish`, `advance`, `reset`); fronts and views subscribe and read.
//!
//! Always holds:
//! - the feed's revision only rises, but for a reset; every event of the range up to it is in snapshot and history, and was
//!   pushed to each live watch before anyone can see that revision;
//! - subscribing and publishing exclude each other, so a watch created at a revision gets each event after it;
//! - under the feed's lock nothing waits and nobody is woken.

mod demand;
mod driven;
mod inner;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
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

pub use self::demand::Twins;
pub(super) use self::inner::Inner;
use self::inner::Locked;
use super::{
    FeedContext,
    backfill::{Asks, Past},
    delivery::{Cancellation, Delivery, StreamEnd},
    history::History,
    index::{Index, Member, WatchOptions},
    outbox::{LiveWatch, NewWatch, Outbox, Phase, UNLINKED, wake},
    pins::Pins,
    snapshot::{KeyMap, Snapshot},
    standing::{Doubt, FeedState, Mark, Permission, Standing, Trouble},
    stats,
};
use crate::{
    telemetry::names::CancelReason,
    types::{ClientKey, Cluster, Entry, Header, KeyRange, Revision, Stamp},
};

/// Most revisions of the history that [`Feed::since`] takes at a time.
const SINCE_STEP: usize = 64;

/// See [`Feed::since_step`].
type Since = (Vec<Arc<Entry>>, Option<Arc<Snapshot>>);

/// The number of the feed that was opened last.
static OPENED: AtomicU64 = AtomicU64::new(0);

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
    number: u64,
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
    /// Tells the driver of a doubt.
    doubts: Notify,
    /// Who opened it.
    client: ClientKey,
    /// What was read of its first snapshot, until that is whole.
    partial: ArcSwap<Snapshot>,
    twins: Mutex<demand::Known>,
}

/// What a watch asks for.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// The id that the client wishes; zero for any.
    pub watch_id: i64,
    /// The keys; inside the feed's range.
    pub range: KeyRange,
    /// Filters and form.
    pub options: WatchOptions,
    /// The first revision wanted; zero for "from now on".
    pub start_revision: Revision,
    /// Whether the client wants progress notifications.
    pub progress_notify: bool,
    /// Whether large responses may be cut between events.
    pub fragment: bool,
    /// Upstream said that `start_revision` is compacted there, so the history must not serve it either.
    pub compacted: bool,
}

/// Why a subscription was not made.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SubscribeError {
    /// The feed ended, or has no snapshot: look for one again.
    #[error("the feed is not serving")]
    NotServing,
    /// The stream has a watch with this id.
    #[error("mvcc: duplicate watch ID provided on the WatchStream")]
    DuplicateId,
    /// The stream has as many watches as it may.
    #[error("etcd-relay: this stream has as many watches as --max-watches-per-stream allows; open another stream")]
    TooMany,
    /// The client has as many watches as it may, over all its streams.
    #[error(
        "etcd-relay: this client has as many watches as --max-watches-per-client allows, over all streams of its address or of its user"
    )]
    ClientFull,
    /// The stream is gone.
    #[error("the stream is gone")]
    Gone,
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
            past: Past::default(),
            revision: Revision::ZERO,
            epoch: 0,
            closed: false,
            idle_since: Instant::now(),
        };
        stats::feed_state(None, FeedState::Starting);
        Arc::new(Self {
            number: OPENED.fetch_add(1, Ordering::Relaxed) + 1,
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
            doubts: Notify::new(),
            client,
            partial: ArcSwap::default(),
            twins: Mutex::default(),
        })
    }

    /// Names it within this process; a feed that is opened later has a higher number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
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
        Mark { epoch: snapshot.epoch, revision: snapshot.revision }
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

    /// Creates a watch: queues its `Created`, then its events follow.
    ///
    /// # Errors
    /// See [`SubscribeError`]; nothing was queued then.
    pub fn subscribe(self: &Arc<Self>, outbox: &Arc<Outbox>, subscribe: &Subscribe) -> Result<(), SubscribeError> {
        let mut inner = self.lock();
        if inner.closed || !self.is_serving() {
            return Err(SubscribeError::NotServing);
        }
        let now = inner.revision;
        let mut state = outbox.lock();
        if state.is_over() {
            return Err(SubscribeError::Gone);
        }
        if state.watches.len() >= outbox.limits.watches {
            return Err(SubscribeError::TooMany);
        }
        state.counted.add().map_err(|_| SubscribeError::ClientFull)?;
        let Some(id) = state.assign_id(subscribe.watch_id) else {
            state.counted.remove();
            return Err(SubscribeError::DuplicateId);
        };
        let attachment = state.attach(self, || inner.outboxes.insert(outbox.clone()) as u32);
        let member = Member { outbox: state.feeds[attachment as usize].slot, watch: state.watches.vacant_key() as u32 };
        let (group, position) = inner.index.insert(&subscribe.range, subscribe.options, member);
        let start = subscribe.start_revision;
        let from_now = start == Revision::ZERO;
        let past = !from_now && start <= now;
        let lags = past && (subscribe.compacted || start < inner.history.start());
        let parked = past && !lags && !inner.history.ends_before(start);
        let slot = state.add(NewWatch {
            id,
            next: if from_now { now.next() } else { start },
            attachment,
            group,
            position,
            fragment: subscribe.fragment,
            progress_notify: subscribe.progress_notify,
            replay: lags || parked,
        });
        let waker = state.enqueue(Delivery::Created { watch_id: id, stamp: inner.stamp() });
        let mut asks = Asks::default();
        if past && subscribe.compacted {
            asks = inner.lag_far(&mut state, slot, start);
        } else if lags {
            asks = inner.lag(&mut state, slot, start);
        } else if parked {
            state.park(slot);
        }
        drop(state);
        drop(inner);
        stats::subscribed();
        asks.start(self, [outbox]);
        wake(waker);
        Ok(())
    }

    /// Ends a watch at the client's wish and queues the answer.
    pub(super) fn cancel(&self, outbox: &Outbox, watch_id: i64) {
        let mut inner = self.lock();
        let header = inner.cluster.at(inner.revision);
        let mut state = outbox.lock();
        let Some(slot) = state.slot_of(watch_id) else { return };
        if !std::ptr::eq(Arc::as_ptr(&state.feeds[state.watches[slot].attachment as usize].feed), self) {
            return;
        }
        let (watch, last) = state.remove(slot);
        let cancellation = Cancellation { watch_id, header, ..Cancellation::default() };
        let waker = state.enqueue(Delivery::Canceled(Box::new(cancellation)));
        drop(state);
        inner.unlink(watch.link(), last);
        drop(inner);
        stats::unsubscribed(1, CancelReason::Client);
        wake(waker);
    }

    /// Ends a watch that was being filled, for a reason of upstream's. After a compaction the id stays taken, as in etcd.
    pub(super) fn cancel_filled(&self, outbox: &Outbox, serial: u64, cancellation: Cancellation) {
        let mut inner = self.lock();
        let mut state = outbox.lock();
        let Some(slot) = state.filling(cancellation.watch_id, serial) else { return };
        stats::canceled(&cancellation);
        let ((link, last), waker) = state.end_watch(slot, cancellation);
        drop(state);
        inner.unlink(link, last);
        drop(inner);
        wake(waker);
    }

    /// Ends a watch whose client may not read its range any more, with etcd's reason. One that is gone stays gone, and one
    /// that has its id by now is left alone.
    pub(super) fn revoke(&self, outbox: &Outbox, watch: &LiveWatch, reason: String) {
        let LiveWatch { watch_id, serial, .. } = *watch;
        let mut inner = self.lock();
        let header = inner.cluster.at(inner.revision);
        let mut state = outbox.lock();
        let Some(slot) = state.slot_of(watch_id) else { return };
        // The same serial is the same watch, so it is of this feed.
        if state.watches[slot].serial != serial || state.watches[slot].phase() == Phase::Compacted {
            return;
        }
        let cancellation = Cancellation { watch_id, header, reason, ..Cancellation::default() };
        let ((link, last), waker) = state.end_watch(slot, cancellation);
        drop(state);
        inner.unlink(link, last);
        drop(inner);
        stats::revoked();
        wake(waker);
    }

    /// The watches of a stream here that can still be given events, each with its range. Takes the lock for some at a time.
    pub(super) fn ranges_of(&self, outbox: &Outbox) -> Vec<LiveWatch> {
        let slots = outbox.lock().slots_in(self);
        let mut ranges = Vec::with_capacity(slots.len());
        for slots in slots.chunks(1024) {
            let inner = self.lock();
            let state = outbox.lock();
            ranges.extend(slots.iter().filter_map(|slot| {
                // Between two locks it may have become another watch, of another feed.
                let watch = state.watches.get(*slot)?;
                let mine = std::ptr::eq(Arc::as_ptr(&state.feeds[watch.attachment as usize].feed), self);
                let alive = mine && watch.group != UNLINKED;
                let range = || inner.index.group(watch.group).range.clone();
                alive.then(|| LiveWatch { watch_id: watch.id, serial: watch.serial, range: range() })
            }));
        }
        ranges
    }

    /// Takes all of a stream's watches out. Called when the stream is gone.
    pub(super) fn forget(&self, outbox: &Outbox) {
        let mut inner = self.lock();
        let (slots, stopping) = {
            let state = outbox.lock();
            (state.slots_in(self), state.end == Some(StreamEnd::Stopping))
        };
        let mut forgotten = 0;
        for (done, slot) in slots.into_iter().enumerate() {
            // A cancel may have come in where the lock was let go. A stream that is gone gets no new watch in its place.
            let removed = {
                let mut state = outbox.lock();
                state.watches.contains(slot).then(|| state.remove(slot))
            };
            if let Some((watch, last)) = removed {
                inner.unlink(watch.link(), last);
                forgotten += 1;
            }
            if done % 64 == 63 {
                // The end of a stream with a million watches must not hold up the feed.
                Locked::bump(&mut inner);
            }
        }
        drop(inner);
        stats::unsubscribed(forgotten, if stopping { CancelReason::Shutdown } else { CancelReason::Client });
    }

    /// Calls `with` with the revision up to which every live watch has been given everything; nothing is published
    /// meanwhile.
    pub(super) fn with_stamp<T>(&self, with: impl FnOnce(&Stamp) -> T) -> T {
        let inner = self.lock();
        with(&inner.stamp())
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        Locked { inner: self.inner.lock(), tasks: &self.shared.tasks }
    }

    /// Numbers for `/debug/state` and metrics.
    #[must_use]
    pub fn stats(&self) -> FeedStats {
        let standing = self.standing();
        let inner = self.lock();
        FeedStats {
            number: self.number,
            range: self.range.to_string(),
            kind: self.kind,
            cluster_id: inner.cluster.id(),
            state: standing.state,
            permission: standing.permission,
            doubted: standing.doubt.is_some(),
            revision: inner.revision,
            keys: inner.map.len(),
            bytes: inner.map.bytes(),
            history_start: inner.history.start(),
            history_entries: inner.history.len(),
            history_bytes: inner.history.bytes(),
            run_bytes: inner.history.run_bytes(),
            streams: inner.outboxes.len(),
            watches: inner.index.len(),
            trusts_progress: standing.trusts_progress,
            last_error: standing.trouble.map(Arc::unwrap_or_clone),
        }
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

/// What [`Feed::stats`] tells.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FeedStats {
    /// Names it within this process, in the order in which feeds were opened.
    pub number: u64,
    /// The keys, readable.
    pub range: String,
    /// Why it exists.
    pub kind: FeedKind,
    /// The cluster that its data came from; zero before the first snapshot.
    pub cluster_id: u64,
    /// How far it is with its upstream.
    pub state: FeedState,
    /// Whether upstream lets the relay read it.
    pub permission: Permission,
    /// Whether its driver has to find out that it still is what its upstream is.
    pub doubted: bool,
    /// The feed's revision.
    pub revision: Revision,
    /// Keys in the snapshot.
    pub keys: usize,
    /// Encoded bytes of the snapshot.
    pub bytes: usize,
    /// The first revision from which on the history misses nothing.
    pub history_start: Revision,
    /// Revisions in the history.
    pub history_entries: usize,
    /// Bytes in the history.
    pub history_bytes: usize,
    /// Bytes of parts of the history that are kept as streams that are behind get them.
    pub run_bytes: usize,
    /// Streams with a watch here.
    pub streams: usize,
    /// Watches here.
    pub watches: usize,
    /// Whether upstream's progress is believed.
    pub trusts_progress: bool,
    /// Upstream's last error, if there ever was one.
    pub last_error: Option<Trouble>,
}

#[cfg(test)]
mod tests;
