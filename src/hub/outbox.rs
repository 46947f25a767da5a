//! [`Outbox`]: what one downstream watch stream has still to send, and where each of its watches stands.
//!
//! Not here: the wire form, see `front`; who writes which event into it, see `feed`.
//! A watch that keeps up is `Live`: `feed` pushes into the queue. When the queue is full a watch is *parked*: it keeps only
//! the revision it needs next, and reads on from the feed's history when the queue drains (`catch_up`). One that the
//! history no longer reaches is *filling*: a temporary upstream watch serves it (`fill`).
//!
//! Always holds: each watch's deliveries are in revision order, each revision once and whole; the queue has at most
//! `OutboxLimits` plus one delivery a push; no lock is held while anything waits. Lock order: feed, then outbox; never two
//! outboxes at once.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Feed, catch_up, index::GroupId, payload::Payload};
use crate::types::{KeyRange, Revision};

/// The watch id of responses that are about no watch, or about all of a stream.
pub const NO_WATCH_ID: i64 = -1;

/// How much a stream may have waiting.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Event bytes. Beyond it watches are parked. Payloads are shared, so this bounds what a stream can pin, not what it costs.
    pub bytes: usize,
    /// Deliveries.
    pub deliveries: usize,
    /// Watches. Creates beyond it are refused.
    pub watches: usize,
}

/// One response to be sent.
#[derive(Debug)]
pub enum Delivery {
    /// A watch was created.
    Created {
        /// Its id.
        watch_id: i64,
        /// The revision at registration: events after it follow (or from the start revision, where one was given).
        revision: Revision,
    },
    /// Events of one revision.
    Events {
        /// The watch.
        watch_id: i64,
        /// The events.
        payload: Arc<Payload>,
        /// Whether the client allows the response to be cut between events.
        fragment: bool,
        /// Of events that are not live: the newest revision when they were read, which etcd puts into the header then.
        as_of: Option<Revision>,
    },
    /// Every event up to `revision` was sent before this.
    Progress {
        /// The watch, or [`NO_WATCH_ID`] for all of the stream.
        watch_id: i64,
        /// The revision.
        revision: Revision,
    },
    /// A watch ended, or was refused.
    Canceled(Box<Cancellation>),
}

/// The end of a watch, in etcd's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cancellation {
    /// The watch; [`NO_WATCH_ID`] for one that was refused.
    pub watch_id: i64,
    /// Whether this answers a create that was refused.
    pub refused: bool,
    /// For the header; zero after a compaction, as etcd does it.
    pub revision: Revision,
    /// The oldest revision that can be watched; zero where compaction is not the reason.
    pub compact_revision: Revision,
    /// etcd's text, or the relay's own where etcd has none.
    pub reason: String,
}

impl Delivery {
    fn bytes(&self) -> usize {
        match self {
            Self::Events { payload, .. } => payload.bytes().len(),
            _ => 0,
        }
    }
}

/// What a front gets from [`Outbox::poll_drain`].
#[derive(Debug, PartialEq, Eq)]
pub enum Drained {
    /// Deliveries were added to the batch.
    Some,
    /// The stream has ended and all it had to say is said.
    End(StreamEnd),
}

/// What [`Outbox::answer_progress`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressAnswer {
    /// It queued the answer.
    Sent,
    /// etcd would not answer now.
    Silence,
    /// One feed is behind another: ask again when it has caught up.
    Later,
}

/// Why a stream ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The relay stops; the client resumes elsewhere.
    Stopping,
    /// The client asked to be told when the cluster has no leader.
    NoLeader,
    /// The feed that a create needs was not there in time.
    Unavailable(String),
    /// A request cannot be decoded; says why.
    Malformed(String),
    /// A request is too large; says how large.
    TooLarge(String),
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
    pub(super) limits: OutboxLimits,
    /// Wakes fills that wait for room.
    pub(super) room: Notify,
    /// Done when the stream is gone.
    pub(super) gone: CancellationToken,
}

/// Guarded by the outbox's lock.
#[derive(Debug, Default)]
pub(super) struct State {
    queue: std::collections::VecDeque<Delivery>,
    queued_bytes: usize,
    waker: Option<Waker>,
    pub(super) watches: Slab<Watch>,
    ids: HashMap<i64, u32>,
    next_id: i64,
    next_serial: u64,
    pub(super) feeds: Slab<Attachment>,
    /// Slots of parked watches, and of some that are not parked any more: finding the parked ones must not cost a walk over
    /// all watches.
    parked_slots: Vec<u32>,
    /// Watches per phase other than live.
    parked: usize,
    filling: usize,
    compacted: usize,
    /// Tasks that wait for room in the queue.
    waiting: usize,
    /// The newest revision that any watch was given events of, or told as its progress.
    pub(super) told: Revision,
    end: Option<StreamEnd>,
    gone: bool,
}

/// A feed in which the stream has watches.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) feed: Arc<Feed>,
    /// The outbox's place in the feed.
    pub(super) slot: u32,
    pub(super) watches: usize,
}

/// One watch of the stream.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) id: i64,
    /// Given by [`State::add`], and never again on this stream: ids and slots come back after a cancel.
    pub(super) serial: u64,
    /// The first revision that it still needs; of a live watch, the first one it may be given.
    pub(super) next: Revision,
    /// Index into [`State::feeds`].
    pub(super) attachment: u32,
    pub(super) group: GroupId,
    pub(super) position: u32,
    pub(super) phase: Phase,
    pub(super) fragment: bool,
    pub(super) progress_notify: bool,
    /// Nothing was delivered since the last tick of the progress timer.
    pub(super) quiet: bool,
}

/// How a watch gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Pushed by the feed.
    Live,
    /// Read from history as the queue drains.
    Parked,
    /// From a temporary upstream watch.
    Filling,
    /// Ended by compaction. The id stays taken and blocks progress until the client cancels it, as in etcd.
    Compacted,
}

impl Outbox {
    /// An empty outbox.
    #[must_use]
    pub fn new(limits: OutboxLimits) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limits, room: Notify::new(), gone: CancellationToken::new() })
    }

    /// Moves what is waiting into `batch`, up to about `most_bytes` of events, at least one delivery.
    ///
    /// Ready with [`Drained::Some`] where there was something. Registers the task to be woken otherwise.
    pub fn poll_drain(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        batch: &mut Vec<Delivery>,
        most_bytes: usize,
    ) -> Poll<Drained> {
        // A bound on the work of one poll: a long history with few matches must not hold the executor.
        for _ in 0..8 {
            let mut state = self.lock();
            let mut bytes = 0;
            while let Some(next) = state.queue.front() {
                bytes += next.bytes();
                if !batch.is_empty() && bytes > most_bytes {
                    break;
                }
                if let Some(delivery) = state.queue.pop_front() {
                    state.queued_bytes -= delivery.bytes();
                    batch.push(delivery);
                }
            }
            let low = state.queued_bytes <= self.limits.bytes / 2 && state.queue.len() <= self.limits.deliveries / 2;
            if low && state.waiting > 0 {
                self.room.notify_waiters();
            }
            let read_on = low && state.parked > 0;
            if state.queue.is_empty() && state.queue.capacity() > 256 {
                // A burst is over: its memory goes back.
                state.queue.shrink_to(16);
            }
            if !batch.is_empty() {
                return Poll::Ready(Drained::Some);
            }
            if !read_on {
                if let Some(end) = &state.end {
                    return Poll::Ready(Drained::End(end.clone()));
                }
                if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    state.waker = Some(cx.waker().clone());
                }
                return Poll::Pending;
            }
            drop(state);
            catch_up::step(self);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Queues the answer to a create that is refused.
    pub fn refuse(&self, revision: Revision, reason: String) {
        let cancellation =
            Cancellation { watch_id: NO_WATCH_ID, refused: true, revision, reason, ..Cancellation::default() };
        self.say(Delivery::Canceled(Box::new(cancellation)));
    }

    /// Queues a delivery that is about no feed.
    pub(super) fn say(&self, delivery: Delivery) {
        let waker = self.lock().enqueue(delivery);
        wake(waker);
    }

    /// Ends the stream once all that is queued is sent. With `progress`, it is told its last progress where etcd would tell it,
    /// else each live watch that asked for notifications is: a client that resumes elsewhere starts where it stopped.
    pub fn end(&self, why: StreamEnd, progress: bool) {
        if progress && self.answer_progress() != ProgressAnswer::Sent {
            self.notify_progress(true);
        }
        let mut state = self.lock();
        state.end.get_or_insert(why);
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// Ends the stream now: its watches get nothing more, and what is queued is dropped. For a client that may not have it.
    pub fn cut(&self, why: StreamEnd) {
        // First of all, so that no watch is added behind our back.
        self.lock().end = Some(why);
        for feed in self.feeds() {
            feed.forget(self);
        }
        let mut state = self.lock();
        state.queue.clear();
        state.queued_bytes = 0;
        let waker = state.waker.take();
        drop(state);
        self.room.notify_waiters();
        wake(waker);
    }

    /// The watches that can still be given events, each with its range, in no order.
    #[must_use]
    pub fn live_watches(&self) -> Vec<LiveWatch> {
        self.feeds().iter().flat_map(|feed| feed.ranges_of(self)).collect()
    }

    /// Ends a watch whose client may not read its range any more, with etcd's reason.
    pub fn revoke(&self, watch: &LiveWatch, reason: &str) {
        if let Some(feed) = self.feed_of(watch.watch_id) {
            feed.revoke(self, watch, reason.to_owned());
        }
    }

    /// Waits until the queue has room, or the stream is gone: whoever writes at the client's wish must not outrun its reading.
    /// Cancel safe.
    pub async fn wait_room(&self) {
        loop {
            let notified = self.room.notified();
            {
                let mut state = self.lock();
                if state.gone || !state.is_full(&self.limits) {
                    return;
                }
                state.waiting += 1;
            }
            let _waiting = Waiting(self);
            notified.await;
        }
    }

    /// Done when the stream is gone.
    #[must_use]
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// The feeds in which the stream has watches.
    #[must_use]
    pub fn feeds(&self) -> Vec<Arc<Feed>> {
        self.lock().feeds.iter().map(|(_, attachment)| attachment.feed.clone()).collect()
    }

    /// The feed of a watch.
    #[must_use]
    pub fn feed_of(&self, watch_id: i64) -> Option<Arc<Feed>> {
        let state = self.lock();
        let watch = &state.watches[*state.ids.get(&watch_id)? as usize];
        Some(state.feeds[watch.attachment as usize].feed.clone())
    }

    /// Number of watches.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.lock().watches.len()
    }

    /// Counts for `/debug/state`: watches, parked, filling, deliveries queued, bytes queued.
    #[must_use]
    pub fn stats(&self) -> OutboxStats {
        let state = self.lock();
        OutboxStats {
            watches: state.watches.len(),
            parked: state.parked,
            filling: state.filling,
            queued: state.queue.len(),
            queued_bytes: state.queued_bytes,
            behind_from: state
                .watches
                .iter()
                .filter(|(_, watch)| matches!(watch.phase, Phase::Parked | Phase::Filling))
                .map(|(_, watch)| watch.next)
                .min(),
        }
    }

    /// Answers a progress request on the whole stream, if etcd would: every watch is live and none waits for a revision to
    /// come.
    pub fn answer_progress(&self) -> ProgressAnswer {
        let feeds = self.feeds();
        let (answer, waker) = match &feeds[..] {
            [] => return ProgressAnswer::Silence,
            [feed] => feed.with_revision(|revision| self.lock().progress(revision)),
            // Several feeds stand at several revisions. The lowest one holds for all.
            feeds => {
                let revision = feeds.iter().map(|feed| feed.revision()).min().unwrap_or_default();
                self.lock().progress(revision)
            }
        };
        wake(waker);
        answer
    }

    /// The tick of the progress timer: each live watch that asked for notifications and got nothing since the last tick is
    /// told where it stands. With `all`, also those that got something.
    pub fn notify_progress(&self, all: bool) {
        for feed in self.feeds() {
            let waker = feed.with_revision(|revision| {
                let mut state = self.lock();
                if state.is_full(&self.limits) && !all {
                    // The client does not read. One that has closed its side is not held back by its requests either.
                    return None;
                }
                let mut due: SmallVec<[i64; 8]> = SmallVec::new();
                let State { watches, feeds, .. } = &mut *state;
                for (_, watch) in watches.iter_mut() {
                    if watch.progress_notify && Arc::ptr_eq(&feeds[watch.attachment as usize].feed, &feed) {
                        let synced = watch.phase == Phase::Live && watch.next <= revision.next();
                        if synced && (watch.quiet || all) {
                            due.push(watch.id);
                        }
                        watch.quiet = true;
                    }
                }
                if !due.is_empty() {
                    state.told = state.told.max(revision);
                }
                let mut waker = None;
                for watch_id in due {
                    waker = state.enqueue(Delivery::Progress { watch_id, revision }).or(waker);
                }
                waker
            });
            wake(waker);
        }
    }

    /// Whether any watch asked for progress notifications.
    #[must_use]
    pub fn wants_progress(&self) -> bool {
        self.lock().watches.iter().any(|(_, watch)| watch.progress_notify)
    }

    /// Ends a watch at the client's wish. An unknown id is no answer, as in etcd.
    pub fn cancel(&self, watch_id: i64) {
        let Some(feed) = self.feed_of(watch_id) else { return };
        feed.cancel(self, watch_id);
    }

    /// The stream is gone: takes its watches out of all feeds. Called once, by whoever drops the stream.
    pub fn leave(&self) {
        self.gone.cancel();
        let feeds = {
            let mut state = self.lock();
            state.gone = true;
            state.queue.clear();
            state.queued_bytes = 0;
            state.waker = None;
            state.feeds.iter().map(|(_, attachment)| attachment.feed.clone()).collect::<Vec<_>>()
        };
        self.room.notify_waiters();
        for feed in feeds {
            feed.forget(self);
        }
        // Breaks the circle of references between feed and outbox.
        let mut state = self.lock();
        state.feeds.clear();
        state.watches = Slab::new();
        state.ids = HashMap::new();
    }

    /// A live watch's next events, from the feed, under its lock. Gives back a task to wake.
    pub(super) fn push(&self, slot: u32, payload: &Arc<Payload>) -> Option<Waker> {
        let mut guard = self.lock();
        let state = &mut *guard;
        // A member of a group has a watch until the feed removes it.
        let watch = state.watches.get_mut(slot as usize)?;
        if watch.phase != Phase::Live || payload.revision() < watch.next || state.gone {
            return None;
        }
        if state.queued_bytes >= self.limits.bytes || state.queue.len() >= self.limits.deliveries {
            // What is missed is read from the history once the client reads again.
            watch.next = payload.revision();
            let slot = slot as usize;
            state.set_phase(slot, Phase::Parked);
            return None;
        }
        watch.quiet = false;
        let delivery =
            Delivery::Events { watch_id: watch.id, payload: payload.clone(), fragment: watch.fragment, as_of: None };
        state.told = state.told.max(payload.revision());
        state.enqueue(delivery)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Counts a task that waits for room, whatever ends the wait.
struct Waiting<'a>(&'a Outbox);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

/// A watch as [`Outbox::live_watches`] saw it.
#[derive(Clone, Debug)]
pub struct LiveWatch {
    /// Its id.
    pub watch_id: i64,
    /// Tells it from another watch that has its id later.
    pub(super) serial: u64,
    /// Its keys.
    pub range: KeyRange,
}

/// What [`Outbox::stats`] counts.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct OutboxStats {
    /// Watches of the stream.
    pub watches: usize,
    /// Of these, parked ones.
    pub parked: usize,
    /// Of these, filling ones.
    pub filling: usize,
    /// Deliveries waiting.
    pub queued: usize,
    /// Event bytes waiting.
    pub queued_bytes: usize,
    /// The lowest revision that a watch behind its feed still needs.
    pub behind_from: Option<Revision>,
}

impl State {
    /// Adds a delivery and gives back the task to wake.
    pub(super) fn enqueue(&mut self, delivery: Delivery) -> Option<Waker> {
        if self.gone {
            return None;
        }
        self.queued_bytes += delivery.bytes();
        self.queue.push_back(delivery);
        self.waker.take()
    }

    /// Adds the events of a watch that is not live and gives back the task to wake.
    pub(super) fn enqueue_events(&mut self, slot: usize, payload: Arc<Payload>, as_of: Revision) -> Option<Waker> {
        let watch = self.watches.get_mut(slot)?;
        watch.quiet = false;
        watch.next = payload.revision().next();
        let (watch_id, fragment) = (watch.id, watch.fragment);
        self.told = self.told.max(payload.revision());
        self.enqueue(Delivery::Events { watch_id, payload, fragment, as_of: Some(as_of) })
    }

    /// Takes the wish for an id, or gives one as etcd does: the next of a counter that skips those in use.
    pub(super) fn assign_id(&mut self, wish: i64) -> Option<i64> {
        if wish != 0 {
            return (!self.ids.contains_key(&wish)).then_some(wish);
        }
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    /// Adds a watch in phase live; the caller may change the phase.
    pub(super) fn add(&mut self, mut watch: Watch) -> usize {
        self.feeds[watch.attachment as usize].watches += 1;
        watch.serial = self.next_serial;
        self.next_serial += 1;
        let id = watch.id;
        let slot = self.watches.insert(watch);
        self.ids.insert(id, slot as u32);
        slot
    }

    /// Takes a watch out. Gives it back with the outbox's place in the feed, where that was the last watch there. Both the
    /// feed's index and its outboxes are the caller's matter.
    pub(super) fn remove(&mut self, slot: usize) -> (Watch, Option<u32>) {
        self.set_phase(slot, Phase::Live);
        let watch = self.watches.remove(slot);
        self.ids.remove(&watch.id);
        let attachment = &mut self.feeds[watch.attachment as usize];
        attachment.watches -= 1;
        let last = (attachment.watches == 0).then(|| self.feeds.remove(watch.attachment as usize).slot);
        (watch, last)
    }

    /// The slot of a watch.
    pub(super) fn slot_of(&self, watch_id: i64) -> Option<usize> {
        self.ids.get(&watch_id).map(|slot| *slot as usize)
    }

    /// The slot of a watch that is being filled; `None` where it is not any more, whatever came in its place.
    pub(super) fn filling(&self, watch_id: i64, serial: u64) -> Option<usize> {
        let slot = self.slot_of(watch_id)?;
        let watch = &self.watches[slot];
        (watch.serial == serial && watch.phase == Phase::Filling).then_some(slot)
    }

    /// Moves a watch to a phase and keeps the counts.
    pub(super) fn set_phase(&mut self, slot: usize, phase: Phase) {
        let watch = &mut self.watches[slot];
        let old = std::mem::replace(&mut watch.phase, phase);
        for (phase, up) in [(old, false), (phase, true)] {
            let step = |count: &mut usize| *count = if up { *count + 1 } else { *count - 1 };
            match phase {
                Phase::Live => {}
                Phase::Parked => {
                    step(&mut self.parked);
                    if up {
                        self.parked_slots.push(slot as u32);
                    } else if self.parked == 0 {
                        self.parked_slots.clear();
                    }
                    super::stats::parked(up);
                }
                Phase::Filling => {
                    step(&mut self.filling);
                    super::stats::filling(up);
                }
                Phase::Compacted => step(&mut self.compacted),
            }
        }
    }

    /// Gives the stream's task to wake, where nothing was queued but there is something to do.
    pub(super) fn wake(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// Whether the stream has ended or is gone: nothing new may begin on it.
    pub(super) fn is_over(&self) -> bool {
        self.gone || self.end.is_some()
    }

    /// The place of a feed in [`State::feeds`], made where it is new: `slot` gives the outbox's place in the feed.
    pub(super) fn attach(&mut self, feed: &Arc<Feed>, slot: impl FnOnce() -> u32) -> u32 {
        if let Some((index, _)) = self.feeds.iter().find(|(_, attachment)| Arc::ptr_eq(&attachment.feed, feed)) {
            return index as u32;
        }
        self.feeds.insert(Attachment { feed: feed.clone(), slot: slot(), watches: 0 }) as u32
    }

    /// Takes up to `most` slots of parked watches, in no order. Those that stay parked must be given back.
    pub(super) fn take_parked(&mut self, most: usize) -> Vec<u32> {
        let Self { parked_slots, watches, .. } = self;
        parked_slots.retain(|slot| watches.get(*slot as usize).is_some_and(|watch| watch.phase == Phase::Parked));
        parked_slots.sort_unstable();
        parked_slots.dedup();
        parked_slots.split_off(parked_slots.len().saturating_sub(most))
    }

    #[cfg(test)]
    pub(super) fn parked_slots(&self) -> usize {
        self.parked_slots.len()
    }

    /// Gives back slots of watches that stay parked.
    pub(super) fn put_parked(&mut self, slots: impl IntoIterator<Item = u32>) {
        self.parked_slots.extend(slots);
    }

    /// Whether no more should be queued.
    pub(super) fn is_full(&self, limits: &OutboxLimits) -> bool {
        self.queued_bytes >= limits.bytes || self.queue.len() >= limits.deliveries
    }

    /// Queues the stream's progress where etcd would tell it: there are watches, all are live, and none waits for a revision to
    /// come.
    fn progress(&mut self, revision: Revision) -> (ProgressAnswer, Option<Waker>) {
        let ahead = |watch: &Watch| {
            let of_feed = self.feeds[watch.attachment as usize].feed.revision();
            watch.next > revision.next() && watch.next <= of_feed.next()
        };
        if self.told > revision || self.watches.iter().any(|(_, watch)| ahead(watch)) {
            // A watch was told of more already, or began after it in a feed that is ahead.
            return (ProgressAnswer::Later, None);
        }
        let behind = self.parked + self.filling + self.compacted > 0;
        let future = self.watches.iter().any(|(_, watch)| watch.next > revision.next());
        if behind || future || self.watches.is_empty() {
            return (ProgressAnswer::Silence, None);
        }
        self.told = self.told.max(revision);
        let waker = self.enqueue(Delivery::Progress { watch_id: NO_WATCH_ID, revision });
        (ProgressAnswer::Sent, waker)
    }
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
