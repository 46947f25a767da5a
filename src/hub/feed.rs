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

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Waker,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use smallvec::SmallVec;
use thiserror::Error;
use tokio::sync::{Notify, watch};

use super::{
    Shared,
    fill::{self, Filled},
    history::History,
    index::{Group, Index, Member, WatchOptions},
    outbox::{Cancellation, Delivery, LiveWatch, NO_WATCH_ID, Outbox, Phase, State, Watch, wake},
    payload::Payload,
    snapshot::{KeyMap, Snapshot},
    stats,
    upstream::Changes,
};
use crate::types::{Entry, KeyRange, Revision};

/// Where a feed stands with its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedState {
    /// Reading its first snapshot; serves nobody yet.
    Starting,
    /// Watching.
    Live,
    /// The watch broke; watching again from the next revision. Serves what it has.
    Resuming,
    /// The revisions it needs are gone upstream; reading a new snapshot.
    Resyncing,
    /// Ended after its idle time; serves nobody any more.
    Closed,
}

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
    range: KeyRange,
    kind: FeedKind,
    pub(super) shared: Arc<Shared>,
    inner: Mutex<Inner>,
    snapshot: ArcSwap<Snapshot>,
    revision: watch::Sender<Revision>,
    state: watch::Sender<FeedState>,
    last_error: Mutex<Option<String>>,
    /// Readers that wait for a revision; the driver asks for progress while there are any.
    waiting: AtomicUsize,
    nudge: Notify,
    trusts_progress: AtomicBool,
    /// Upstream refuses the relay's own identity.
    denied: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Inner {
    map: KeyMap,
    pub(super) history: History,
    pub(super) index: Index,
    outboxes: Slab<Arc<Outbox>>,
    pub(super) revision: Revision,
    closed: bool,
    idle_since: Instant,
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
}

impl Feed {
    pub(super) fn new(range: KeyRange, kind: FeedKind, shared: Arc<Shared>) -> Arc<Self> {
        let inner = Inner {
            map: KeyMap::default(),
            history: History::new(Revision::ZERO, shared.limits.history),
            index: Index::default(),
            outboxes: Slab::new(),
            revision: Revision::ZERO,
            closed: false,
            idle_since: Instant::now(),
        };
        stats::feed_state(None, Some(FeedState::Starting));
        Arc::new(Self {
            range,
            kind,
            shared,
            inner: Mutex::new(inner),
            snapshot: ArcSwap::default(),
            revision: watch::Sender::new(Revision::ZERO),
            state: watch::Sender::new(FeedState::Starting),
            last_error: Mutex::default(),
            waiting: AtomicUsize::new(0),
            nudge: Notify::new(),
            trusts_progress: AtomicBool::new(false),
            denied: AtomicBool::new(false),
        })
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
        *self.state.borrow()
    }

    /// Every event up to this revision has been published.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
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
        let inner = self.lock();
        let entries = inner.history.read(revision.next(), usize::MAX);
        (self.snapshot.load_full(), entries)
    }

    /// Whether it can serve: it has a snapshot that upstream has not left behind, and the relay may read what comes next.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.state(), FeedState::Live | FeedState::Resuming) && !self.is_denied()
    }

    /// Whether upstream refuses the relay's own identity. The feed does not serve then: what it has may be out of date for
    /// ever. [`Feed::last_error`] has upstream's words.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.denied.load(Ordering::Acquire)
    }

    /// The state, and its changes to come.
    #[must_use]
    pub fn watch_state(&self) -> watch::Receiver<FeedState> {
        self.state.subscribe()
    }

    /// What upstream's last error was, if there ever was one.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Waits until the feed serves. Cancel safe.
    ///
    /// # Errors
    /// [`WaitError::Timeout`] after `patience`; [`WaitError::Denied`] at once where upstream refuses the relay;
    /// [`WaitError::Unknown`] where the feed has ended.
    pub async fn wait_serving(&self, patience: Duration) -> Result<(), WaitError> {
        let mut state = self.state.subscribe();
        let serving =
            state.wait_for(|state| self.is_denied() || !matches!(state, FeedState::Starting | FeedState::Resyncing));
        match tokio::time::timeout(patience, serving).await {
            Ok(Ok(_)) if self.is_denied() => Err(WaitError::Denied),
            Ok(Ok(state)) if *state != FeedState::Closed => Ok(()),
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
        match self.state() {
            FeedState::Closed => return Err(WaitError::Unknown),
            FeedState::Live if !self.trusts_progress.load(Ordering::Relaxed) => return Err(WaitError::Unknown),
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
        let id = state.assign_id(subscribe.watch_id).ok_or(SubscribeError::DuplicateId)?;
        let attachment = state.attach(self, || inner.outboxes.insert(outbox.clone()) as u32);
        let member = Member { outbox: state.feeds[attachment as usize].slot, watch: state.watches.vacant_key() as u32 };
        let (group, position) = inner.index.insert(&subscribe.range, subscribe.options, member);
        let start = subscribe.start_revision;
        let from_now = start == Revision::ZERO;
        let slot = state.add(Watch {
            id,
            serial: 0,
            next: if from_now { now.next() } else { start },
            attachment,
            group,
            position,
            phase: Phase::Live,
            fragment: subscribe.fragment,
            progress_notify: subscribe.progress_notify,
            quiet: true,
        });
        let waker = state.enqueue(Delivery::Created { watch_id: id, revision: now });
        let past = !from_now && start <= now;
        let fill = past && (subscribe.compacted || start < inner.history.start());
        if fill {
            state.set_phase(slot, Phase::Filling);
        } else if past && inner.history.since(start).next().is_some() {
            state.set_phase(slot, Phase::Parked);
        }
        let serial = state.watches[slot].serial;
        drop(state);
        drop(inner);
        stats::subscribed();
        if fill {
            let filled = Filled { watch_id: id, serial, range: subscribe.range.clone(), options: subscribe.options };
            fill::spawn(self.clone(), outbox.clone(), filled);
        }
        wake(waker);
        Ok(())
    }

    /// Ends a watch at the client's wish and queues the answer.
    pub(super) fn cancel(&self, outbox: &Outbox, watch_id: i64) {
        let mut inner = self.lock();
        let revision = inner.revision;
        let mut state = outbox.lock();
        let Some(slot) = state.slot_of(watch_id) else { return };
        if !std::ptr::eq(Arc::as_ptr(&state.feeds[state.watches[slot].attachment as usize].feed), self) {
            return;
        }
        let (watch, last) = state.remove(slot);
        let cancellation = Cancellation { watch_id, revision, ..Cancellation::default() };
        let waker = state.enqueue(Delivery::Canceled(Box::new(cancellation)));
        drop(state);
        inner.unlink(&watch, last);
        drop(inner);
        stats::unsubscribed(1);
        wake(waker);
    }

    /// Ends a watch that was being filled, for a reason of upstream's. After a compaction the id stays taken, as in etcd.
    pub(super) fn cancel_filled(&self, outbox: &Outbox, serial: u64, cancellation: Cancellation) {
        let mut inner = self.lock();
        let mut state = outbox.lock();
        let Some(slot) = state.filling(cancellation.watch_id, serial) else { return };
        stats::canceled(&cancellation);
        let ((watch, last), waker) = state.end_watch(slot, cancellation);
        drop(state);
        inner.unlink(&watch, last);
        drop(inner);
        wake(waker);
    }

    /// Ends a watch whose client may not read its range any more, with etcd's reason. One that is gone stays gone, and one
    /// that has its id by now is left alone.
    pub(super) fn revoke(&self, outbox: &Outbox, watch: &LiveWatch, reason: String) {
        let LiveWatch { watch_id, serial, .. } = *watch;
        let mut inner = self.lock();
        let revision = inner.revision;
        let mut state = outbox.lock();
        let Some(slot) = state.slot_of(watch_id) else { return };
        // The same serial is the same watch, so it is of this feed.
        if state.watches[slot].serial != serial || state.watches[slot].phase == Phase::Compacted {
            return;
        }
        let cancellation = Cancellation { watch_id, revision, reason, ..Cancellation::default() };
        let ((watch, last), waker) = state.end_watch(slot, cancellation);
        drop(state);
        inner.unlink(&watch, last);
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
        let slots = outbox.lock().slots_in(self);
        let mut forgotten = 0;
        for (done, slot) in slots.into_iter().enumerate() {
            let mut state = outbox.lock();
            // A cancel may have come in where the lock was let go. A stream that is gone gets no new watch in its place.
            if state.watches.contains(slot) {
                let (watch, last) = state.remove(slot);
                drop(state);
                inner.unlink(&watch, last);
                forgotten += 1;
            }
            if done % 64 == 63 {
                // The end of a stream with a million watches must not hold up the feed.
                MutexGuard::bump(&mut inner);
            }
        }
        drop(inner);
        stats::unsubscribed(forgotten);
    }

    /// Calls `with` with the revision up to which every live watch has been given everything; nothing is published meanwhile.
    pub(super) fn with_revision<T>(&self, with: impl FnOnce(Revision) -> T) -> T {
        let inner = self.lock();
        with(inner.revision)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Numbers for `/debug/state` and metrics.
    #[must_use]
    pub fn stats(&self) -> FeedStats {
        let inner = self.lock();
        FeedStats {
            range: self.range.to_string(),
            kind: self.kind,
            state: self.state(),
            revision: inner.revision,
            keys: inner.map.len(),
            bytes: inner.map.bytes(),
            history_start: inner.history.start(),
            history_entries: inner.history.len(),
            history_bytes: inner.history.bytes(),
            streams: inner.outboxes.len(),
            watches: inner.index.len(),
            trusts_progress: self.trusts_progress.load(Ordering::Relaxed),
            last_error: self.last_error.lock().clone(),
        }
    }
}

/// What the driver does. One driver a feed; see `source::driver`.
impl Feed {
    /// Sets the state, for readers, metrics and `/debug/state`.
    pub fn set_state(&self, state: FeedState, error: Option<String>) {
        if error.is_some() {
            *self.last_error.lock() = error;
        }
        let old = self.state.send_replace(state);
        stats::feed_state(Some(old), Some(state));
    }

    /// Says whether upstream refuses the relay's own identity. To be called before [`Feed::set_state`], which tells who waits.
    pub fn set_denied(&self, denied: bool) {
        self.denied.store(denied, Ordering::Release);
    }

    /// Says whether [`Feed::advance`] will be called with progress that can be believed.
    pub fn set_trusts_progress(&self, trusts: bool) {
        self.trusts_progress.store(trusts, Ordering::Relaxed);
    }

    /// The first snapshot, at `revision`. Nobody has subscribed before.
    pub fn install(&self, map: KeyMap, revision: Revision) {
        let mut inner = self.lock();
        inner.history = History::new(revision.next(), self.shared.limits.history);
        inner.map = map;
        inner.revision = revision;
        self.show(&inner);
    }

    /// The next revisions, rising, each whole. Pushes them to every live watch that they concern.
    ///
    /// # Errors
    /// [`PublishError::Stale`] at the first revision that is not after the feed's; the ones before it are published.
    pub fn publish(&self, batch: &[Changes]) -> Result<(), PublishError> {
        let mut wakers = Vec::new();
        let result = {
            let mut inner = self.lock();
            let result = batch.iter().try_for_each(|changes| inner.publish(changes, &mut wakers));
            self.show(&inner);
            result
        };
        stats::published(batch);
        wakers.into_iter().for_each(Waker::wake);
        result
    }

    /// Upstream says that every event up to `revision` has been delivered. Older news are ignored.
    pub fn advance(&self, revision: Revision) {
        let mut inner = self.lock();
        if revision > inner.revision {
            inner.revision = revision;
            self.show(&inner);
        }
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
            let slots = {
                let mut state = outbox.lock();
                if *reset == Reset::Replaced {
                    // Revisions begin again, and so does what may be told.
                    state.told = Revision::ZERO;
                }
                state.slots_in(self)
            };
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
        inner.history = History::new(revision.next(), self.shared.limits.history);
        inner.map = map;
        inner.revision = revision;
        self.show(&inner);
        drop(inner);
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
            inner.idle_since = Instant::now();
            return false;
        }
        let close = self.kind == FeedKind::OnDemand && inner.idle_since.elapsed() >= idle;
        if close {
            inner.closed = true;
            drop(inner);
            self.set_state(FeedState::Closed, None);
            stats::feed_state(Some(FeedState::Closed), None);
        }
        close
    }

    /// Somebody read from the feed: it is not idle.
    pub fn touch(&self) {
        if self.kind == FeedKind::OnDemand {
            self.lock().idle_since = Instant::now();
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

    /// Makes the state under the lock visible to those who read without it.
    fn show(&self, inner: &Inner) {
        self.snapshot.store(Arc::new(Snapshot { revision: inner.revision, map: inner.map.clone() }));
        self.revision.send_replace(inner.revision);
    }
}

/// Told to every watch when the cluster behind the relay is another one.
const REPLACED: &str =
    "etcd-relay: the etcd cluster was replaced or restored to an older revision; list again and watch from there";

impl Inner {
    fn publish(&mut self, changes: &Changes, wakers: &mut Vec<Waker>) -> Result<(), PublishError> {
        if changes.revision <= self.revision {
            return Err(PublishError::Stale { got: changes.revision, at: self.revision });
        }
        let prev = |change: &crate::types::EventFields| self.map.get(&change.kv.key).cloned();
        let entry = Arc::new(Entry::encode(changes.revision, changes.received, &changes.events, prev));
        for event in entry.events() {
            match event.kind {
                crate::types::EventKind::Put => drop(self.map.insert(event.kv.clone())),
                crate::types::EventKind::Delete => drop(self.map.remove(event.kv.key())),
            }
        }
        self.dispatch(&entry, wakers);
        // After the dispatch, so that the cost counts the second encoding where it was asked for.
        self.history.push(entry);
        self.revision = changes.revision;
        Ok(())
    }

    /// Pushes a revision to every live watch that it concerns: work for those that match, none for the others.
    fn dispatch(&self, entry: &Arc<Entry>, wakers: &mut Vec<Waker>) {
        if let [event] = entry.events() {
            // Nearly every revision has one event: both its forms are made at most once for all groups.
            let mut made: [Option<Arc<Payload>>; 2] = [None, None];
            self.index.matches(event.kv.key(), |id| {
                let group = self.index.group(id);
                if group.options.wants(event.kind) {
                    let prev_kv = group.options.prev_kv;
                    let payload = made[usize::from(prev_kv)].get_or_insert_with(|| Payload::whole(entry, prev_kv));
                    self.push(group, payload, wakers);
                }
            });
            return;
        }
        let mut concerned: HashMap<u32, SmallVec<[u32; 4]>> = HashMap::new();
        for (index, event) in entry.events().iter().enumerate() {
            self.index.matches(event.kv.key(), |id| {
                if self.index.group(id).options.wants(event.kind) {
                    concerned.entry(id).or_default().push(index as u32);
                }
            });
        }
        for (id, picks) in concerned {
            let group = self.index.group(id);
            self.push(group, &Payload::some(entry, group.options.prev_kv, picks), wakers);
        }
    }

    fn push(&self, group: &Group, payload: &Arc<Payload>, wakers: &mut Vec<Waker>) {
        for member in &group.members {
            wakers.extend(self.outboxes[member.outbox as usize].push(member.watch, payload));
        }
    }

    /// Takes a watch that left its outbox out of the index, and its outbox out of the feed where `last` gives its place.
    /// No outbox is locked by the caller.
    fn unlink(&mut self, watch: &Watch, last: Option<u32>) {
        if watch.group != UNLINKED
            && let Some(moved) = self.index.remove(watch.group, watch.position)
        {
            let mut state = self.outboxes[moved.outbox as usize].lock();
            if let Some(moved) = state.watches.get_mut(moved.watch as usize) {
                moved.position = watch.position;
            }
        }
        if let Some(slot) = last {
            self.outboxes.remove(slot as usize);
        }
        if self.index.is_empty() {
            self.idle_since = Instant::now();
        }
    }
}

/// The group of a watch that is in no index any more.
const UNLINKED: u32 = u32::MAX;

impl State {
    /// The slots of the watches that this stream has in `feed`.
    fn slots_in(&self, feed: &Feed) -> Vec<usize> {
        let mine = |watch: &Watch| std::ptr::eq(Arc::as_ptr(&self.feeds[watch.attachment as usize].feed), feed);
        self.watches.iter().filter(|(_, watch)| mine(watch)).map(|(slot, _)| slot).collect()
    }

    /// Ends a watch with `cancellation`. Gives back the watch for [`Inner::unlink`] and the task to wake.
    fn end_watch(&mut self, slot: usize, cancellation: Cancellation) -> ((Watch, Option<u32>), Option<Waker>) {
        let compacted = cancellation.compact_revision != Revision::ZERO;
        let unlinked = if compacted {
            // The id stays taken until the client cancels it.
            let watch = &mut self.watches[slot];
            let (group, position) = (std::mem::replace(&mut watch.group, UNLINKED), watch.position);
            let gone = Watch { id: NO_WATCH_ID, group, position, ..*watch };
            self.set_phase(slot, Phase::Compacted);
            (gone, None)
        } else {
            self.remove(slot)
        };
        (unlinked, self.enqueue(Delivery::Canceled(Box::new(cancellation))))
    }
}

/// Counts a reader that waits for a revision, whatever ends the wait.
struct Waiting<'a>(&'a Feed);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What [`Feed::stats`] tells.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FeedStats {
    /// The keys, readable.
    pub range: String,
    /// Why it exists.
    pub kind: FeedKind,
    /// Where it stands with upstream.
    pub state: FeedState,
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
    /// Streams with a watch here.
    pub streams: usize,
    /// Watches here.
    pub watches: usize,
    /// Whether upstream's progress is believed.
    pub trusts_progress: bool,
    /// Upstream's last error, if there ever was one.
    pub last_error: Option<String>,
}

#[cfg(test)]
mod tests;
