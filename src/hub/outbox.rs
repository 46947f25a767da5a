//! [`Outbox`]: what one downstream watch stream has still to send, and the position of each of its watches.
//!
//! Not here: the wire form, see `front`; what joins it with feeds, see `watch_stream`. It knows feeds only by their
//! numbers. A watch that keeps up is `Live`: its feed pushes into the queue. When the queue is full a watch is
//! *parked*: it keeps only the revision that it needs next, and gets its events from the feed's history when the queue
//! drains (`catch_up`). A watch that needs revisions older than the history is *behind* until the feed has read its
//! past (`backfill`). If the history cannot hold that much, the watch waits until a temporary upstream watch serves it
//! (`fill`).
//!
//! Always holds: each watch's deliveries are in revision order, each revision once and whole; the queue has at most
//! `OutboxLimits` and one more delivery for each push; no lock is held while anything waits. Lock order: feed, then
//! outbox; never two outboxes at once.

mod handover;
mod position;
mod queue;
mod state;
mod watches;

use std::{
    sync::Arc,
    task::{Context, Waker},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::handover::Handover;
#[cfg(test)]
pub(super) use self::position::Transition;
pub(super) use self::{
    handover::wake,
    position::Phase,
    state::{Notified, State},
    watches::{FeedId, Left, Link, NewWatch, Watch, Watches},
};
use super::{
    delivery::{Delivery, StreamEnd},
    payload::Payload,
    shares::Counted,
};
use crate::{sync::MutexGuard, types::ClientKey};

/// How much may wait on a stream.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Event bytes. Above this, watches are parked. Payloads are shared, so this limits what a stream keeps in memory,
    /// not what it costs.
    pub bytes: usize,
    /// Deliveries.
    pub deliveries: usize,
    /// Watches. Further creates are refused.
    pub watches: usize,
}

/// What one stream has still to send; see the module.
#[derive(Debug)]
pub(super) struct Outbox {
    state: Handover<State>,
    pub(super) limits: OutboxLimits,
    /// The client of the stream: clients take turns for fills.
    pub(super) client: ClientKey,
    /// Wakes tasks that wait for room.
    room: Notify,
    /// Cancelled when the stream is gone.
    gone: CancellationToken,
}

/// What [`Outbox::drain`] found.
#[derive(Debug)]
pub(super) enum Found {
    /// Deliveries.
    Some {
        /// There is room, and some watches wait for a fill without a place in the queue for one.
        want_turns: bool,
        /// There is room, and it is the parked watches' turn.
        parked_next: bool,
    },
    /// No deliveries, but there is room, and it is the parked watches' turn.
    Parked,
    /// Nothing; the task will be woken.
    Nothing,
    /// The stream has ended, and everything was taken.
    End(StreamEnd),
}

impl Outbox {
    /// An empty outbox for a stream of this client. Its watches are counted in `counted`.
    pub(super) fn new(limits: OutboxLimits, client: ClientKey, counted: Counted) -> Arc<Self> {
        let state = Handover::new(State::new(counted));
        Arc::new(Self { state, limits, client, room: Notify::new(), gone: CancellationToken::new() })
    }

    /// Moves what waits into `batch`, up to about `most_bytes` of events, but at least one delivery.
    pub(super) fn drain(&self, cx: &Context<'_>, batch: &mut Vec<Delivery>, most_bytes: usize) -> Found {
        let mut others_wait = false;
        let found = self.state.look(cx, |state| {
            state.queue.take(batch, most_bytes);
            let low = state.queue.is_low(&self.limits);
            let parked_next = state.are_parked_next(&self.limits);
            if !batch.is_empty() {
                others_wait = low && !state.waiting.is_empty();
                return Some(Found::Some { want_turns: low && state.watches.want_turns(), parked_next });
            }
            if let Some(end) = &state.end {
                return Some(Found::End(end.clone()));
            }
            parked_next.then_some(Found::Parked)
        });
        if others_wait {
            self.room.notify_waiters();
        }
        found.unwrap_or(Found::Nothing)
    }

    /// Queues a delivery that belongs to no feed.
    pub(super) fn queue(&self, delivery: Delivery) {
        self.state.change(|state| state.enqueue(delivery));
    }

    /// Ends the stream once everything in the queue was sent; nothing more is queued.
    pub(super) fn end(&self, why: StreamEnd) {
        self.state.change(|state| {
            state.end.get_or_insert(why);
            state.wake()
        });
    }

    /// Ends the stream now: the queue is dropped, and no watch is added from here on. Returns the task to wake.
    #[must_use]
    pub(super) fn cut(&self, why: StreamEnd) -> Option<Waker> {
        let mut state = self.lock();
        state.end = Some(why);
        state.queue.clear();
        let waker = state.wake();
        drop(state);
        self.room.notify_waiters();
        waker
    }

    /// The stream is gone, and nobody drains it any more.
    pub(super) fn leave(&self) {
        self.gone.cancel();
        let mut state = self.lock();
        state.gone = true;
        state.queue.clear();
        let waker = state.wake();
        drop(state);
        drop(waker);
        self.room.notify_waiters();
    }

    /// Waits until the queue has room and all earlier waiters have had theirs, or until the stream is gone. Whatever
    /// answers the client's requests must not run ahead of the client's reading. Cancel safe.
    pub(super) async fn wait_room(&self) {
        let mut place: Option<Waiting<'_>> = None;
        loop {
            let notified = self.room.notified();
            {
                let mut state = self.lock();
                let first = state.waiting.first().copied();
                let is_next = first.is_none() || first == place.as_ref().map(|waiting| waiting.number);
                if state.gone || is_next && !state.is_full(&self.limits) {
                    return;
                }
                if place.is_none() {
                    let number = state.next_waiting;
                    state.next_waiting += 1;
                    state.waiting.insert(number);
                    place = Some(Waiting { outbox: self, number });
                }
            }
            notified.await;
        }
    }

    /// Cancelled when the stream is gone.
    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Pushes the next events of `feed` to the live watch in a slot. A watch that has left may be named, so that the
    /// slot is empty, or another watch's. Returns a task to wake.
    pub(super) fn push(&self, feed: FeedId, slot: u32, payload: &Arc<Payload>) -> Option<Waker> {
        self.lock().push(feed, slot as usize, payload, &self.limits)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The place of a task that waits for room. However the wait ends, it is then the turn of the next task, or of the
/// parked watches.
struct Waiting<'a> {
    outbox: &'a Outbox,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Outbox { state, limits, room, .. } = self.outbox;
        let mut others_wait = false;
        state.change(|state| {
            state.waiting.remove(&self.number);
            others_wait = !state.waiting.is_empty() && !state.is_full(limits);
            state.are_parked_next(limits).then(|| state.wake()).flatten()
        });
        if others_wait {
            room.notify_waiters();
        }
    }
}
