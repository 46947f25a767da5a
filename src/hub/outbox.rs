//! [`Outbox`]: what one downstream watch stream has still to send, and where each of its watches stands.
//!
//! Not here: the wire form, see `front`; who writes which event into it, see `feed`.
//! A watch that keeps up is `Live`: `feed` pushes into the queue. When the queue is full a watch is *parked*: it keeps only
//! the revision it needs next, and reads on from the feed's history when the queue drains (`catch_up`). One that needs what was
//! before the history is *behind* until the feed has read its past (`backfill`), or, where the history cannot hold that much, waits
//! until a temporary upstream watch serves it (`fill`).
//!
//! Always holds: each watch's deliveries are in revision order, each revision once and whole; the queue has at most
//! `OutboxLimits` plus one delivery a push; no lock is held while anything waits. Lock order: feed, then outbox; never two
//! outboxes at once.

mod state;

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

pub(super) use self::state::{Link, NewWatch, Phase, State, UNLINKED, Watch};
use super::{
    Feed, catch_up,
    delivery::{Cancellation, Delivery, Drained, NO_WATCH_ID, ProgressAnswer, StreamEnd},
    fill,
    payload::Payload,
    shares::Counted,
};
use crate::types::{ClientKey, Header, KeyRange, Revision};

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

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
    pub(super) limits: OutboxLimits,
    /// Whose stream it is: fills are given to clients in turns.
    pub(super) client: ClientKey,
    /// Wakes fills that wait for room.
    pub(super) room: Notify,
    /// Done when the stream is gone.
    pub(super) gone: CancellationToken,
}

impl Outbox {
    /// An empty outbox of a stream of this client.
    #[must_use]
    pub fn new(limits: OutboxLimits, client: ClientKey) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limits, client, room: Notify::new(), gone: CancellationToken::new() })
    }

    /// The same for a stream whose watches count for a client.
    #[must_use]
    pub fn counted(limits: OutboxLimits, client: ClientKey, counted: Counted) -> Arc<Self> {
        let outbox = Self::new(limits, client);
        outbox.lock().counted = counted;
        outbox
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
            let others_wait = low && state.waiting > 0;
            let read_on = low && state.parked() > 0 && state.end.is_none();
            let wants_turn = low && state.has_unfilled() && state.ticket.is_none();
            if state.queue.is_empty() {
                // The next goes where the last was, whose memory is at hand.
                state.queue.clear();
                if state.queue.capacity() > 256 {
                    // A burst is over: its memory goes back.
                    state.queue.shrink_to(16);
                }
            }
            if !batch.is_empty() {
                drop(state);
                if others_wait {
                    self.room.notify_waiters();
                }
                if wants_turn {
                    fill::ask(self);
                }
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
    pub fn refuse(&self, header: Header, reason: String) {
        let cancellation =
            Cancellation { watch_id: NO_WATCH_ID, refused: true, header, reason, ..Cancellation::default() };
        self.say(Delivery::Canceled(Box::new(cancellation)));
    }

    /// Queues a delivery that is about no feed.
    pub(super) fn say(&self, delivery: Delivery) {
        let waker = self.lock().enqueue(delivery);
        wake(waker);
    }

    /// Ends the stream once all that is queued is sent; nothing more is queued. With `progress`, it is told its last progress where etcd would tell it,
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

    /// Whose stream it is.
    #[must_use]
    pub fn client(&self) -> ClientKey {
        self.client
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
        let behind = state
            .watches
            .iter()
            .filter(|(_, watch)| !matches!(watch.phase(), Phase::Live | Phase::Compacted))
            .map(|(_, watch)| (watch.next(), &state.feeds[watch.attachment as usize].feed))
            .min_by_key(|(next, _)| *next);
        OutboxStats {
            watches: state.watches.len(),
            parked: state.parked(),
            filling: state.catching_up(),
            queued: state.queue.len(),
            queued_bytes: state.queued_bytes,
            behind_from: behind.map(|(next, _)| next),
            lag_revisions: behind.map_or(0, |(next, feed)| (feed.revision().get() - next.get() + 1).max(0)),
        }
    }

    /// Answers a progress request on the whole stream, if etcd would: every watch is live and none waits for a revision to
    /// come.
    pub fn answer_progress(&self) -> ProgressAnswer {
        let feeds = self.feeds();
        let (answer, waker) = match &feeds[..] {
            [] => return ProgressAnswer::Silence,
            [feed] => feed.with_stamp(|stamp| self.lock().progress(stamp)),
            // Several feeds stand at several revisions. The lowest one holds for all, where they are of one cluster.
            [first, ..] => {
                let stamps = feeds.iter().map(|feed| feed.snapshot().stamp());
                let lowest = stamps.min_by_key(|stamp| stamp.revision).unwrap_or_default();
                if feeds.iter().any(|feed| feed.cluster().id() != first.cluster().id()) {
                    return ProgressAnswer::Later;
                }
                self.lock().progress(&lowest)
            }
        };
        wake(waker);
        answer
    }

    /// The tick of the progress timer: each live watch that asked for notifications and got nothing since the last tick is
    /// told where it stands. With `all`, also those that got something.
    pub fn notify_progress(&self, all: bool) {
        for feed in self.feeds() {
            let waker = feed.with_stamp(|stamp| {
                let mut state = self.lock();
                if state.is_full(&self.limits) && !all {
                    // The client does not read. One that has closed its side is not held back by its requests either.
                    return None;
                }
                let mut due: SmallVec<[(usize, i64); 8]> = SmallVec::new();
                let State { watches, feeds, .. } = &mut *state;
                for (slot, watch) in watches.iter_mut() {
                    if watch.progress_notify && Arc::ptr_eq(&feeds[watch.attachment as usize].feed, &feed) {
                        let synced = watch.phase() == Phase::Live && watch.next() <= stamp.revision.next();
                        if synced && (watch.quiet || all) {
                            due.push((slot, watch.id));
                        }
                        watch.quiet = true;
                    }
                }
                let mut waker = None;
                for (slot, watch_id) in due {
                    state.told_progress(slot, stamp.revision);
                    waker = state.enqueue(Delivery::Progress { watch_id, stamp: stamp.clone() }).or(waker);
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
            if let Some(ticket) = state.ticket.take() {
                ticket.withdraw();
            }
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
        state.counted = Counted::default();
    }

    /// A live watch's next events, from the feed, under its lock. Gives back a task to wake.
    pub(super) fn push(&self, slot: u32, payload: &Arc<Payload>) -> Option<Waker> {
        self.lock().push(slot as usize, payload, &self.limits)
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
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct OutboxStats {
    /// Watches of the stream.
    pub watches: usize,
    /// Of these, parked ones.
    pub parked: usize,
    /// Of these, ones that the history does not reach.
    pub filling: usize,
    /// Deliveries waiting.
    pub queued: usize,
    /// Event bytes waiting.
    pub queued_bytes: usize,
    /// The lowest revision that a watch behind its feed still needs.
    pub behind_from: Option<Revision>,
    /// How many revisions that watch is behind its feed; zero where none is behind.
    pub lag_revisions: i64,
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
