//! [`Outbox`]: what one downstream watch stream has still to send, and where each of its watches stands.
//!
//! Not here: the wire form, see `front`; what joins it with feeds, see `watch_stream`. It knows feeds by their numbers alone.
//! A watch that keeps up is `Live`: its feed pushes into the queue. When the queue is full a watch is *parked*: it keeps only
//! the revision it needs next, and is read for from the feed's history when the queue drains (`catch_up`). One that needs what was
//! before the history is *behind* until the feed has read its past (`backfill`), or, where the history cannot hold that much, waits
//! until a temporary upstream watch serves it (`fill`).
//!
//! Always holds: each watch's deliveries are in revision order, each revision once and whole; the queue has at most
//! `OutboxLimits` plus one delivery a push; no lock is held while anything waits. Lock order: feed, then outbox; never two
//! outboxes at once.

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
pub(super) struct Outbox {
    state: Handover<State>,
    pub(super) limits: OutboxLimits,
    /// Whose stream it is: fills are given to clients in turns.
    pub(super) client: ClientKey,
    /// Wakes those who wait for room.
    room: Notify,
    /// Done when the stream is gone.
    gone: CancellationToken,
}

/// What [`Outbox::drain`] found.
#[derive(Debug)]
pub(super) enum Found {
    /// Deliveries.
    Some {
        /// There is room, and watches that wait for a fill are in no queue for one.
        want_turns: bool,
        /// There is room, and it is for the watches that are parked.
        parked_next: bool,
    },
    /// Nothing; but there is room, and it is for the watches that are parked.
    Parked,
    /// Nothing; the task is registered to be woken.
    Nothing,
    /// The stream has ended, and all that it had to say is taken.
    End(StreamEnd),
}

impl Outbox {
    /// An empty outbox of a stream of this client. Its watches count for `counted`.
    pub(super) fn new(limits: OutboxLimits, client: ClientKey, counted: Counted) -> Arc<Self> {
        let state = Handover::new(State::new(counted));
        Arc::new(Self { state, limits, client, room: Notify::new(), gone: CancellationToken::new() })
    }

    /// Moves what is waiting into `batch`, up to about `most_bytes` of events, at least one delivery.
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

    /// Queues a delivery that is about no feed.
    pub(super) fn say(&self, delivery: Delivery) {
        self.state.tell(|state| state.enqueue(delivery));
    }

    /// Ends the stream once all that is queued is sent; nothing more is queued.
    pub(super) fn end(&self, why: StreamEnd) {
        self.state.tell(|state| {
            state.end.get_or_insert(why);
            state.wake()
        });
    }

    /// Ends the stream now: what is queued is dropped, and no watch is added from here on. Gives back the task to wake.
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

    /// The stream is gone: nobody drains it any more.
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

    /// Waits until the queue has room and all who came before have found it, or the stream is gone: whoever writes at the client's wish must
    /// not outrun its reading. Cancel safe.
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

    /// Done when the stream is gone.
    pub(super) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// A live watch's next events, from the feed, under its lock. Gives back a task to wake.
    pub(super) fn push(&self, slot: u32, payload: &Arc<Payload>) -> Option<Waker> {
        self.lock().push(slot as usize, payload, &self.limits)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The place of a task that waits for room, whatever ends the wait. Then it is the turn of the next one, or of the parked watches.
struct Waiting<'a> {
    outbox: &'a Outbox,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Outbox { state, limits, room, .. } = self.outbox;
        let mut others_wait = false;
        state.tell(|state| {
            state.waiting.remove(&self.number);
            others_wait = !state.waiting.is_empty() && !state.is_full(limits);
            state.are_parked_next(limits).then(|| state.wake()).flatten()
        });
        if others_wait {
            room.notify_waiters();
        }
    }
}
