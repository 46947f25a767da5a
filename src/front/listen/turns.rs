//! [`Turns`]: how much an HTTP/1.1 connection writes before the other connections of its thread continue.
//!
//! hyper writes a long answer for as long as the socket takes it. For a client that reads quickly this is until the
//! runtime intervenes, after a hundred writes of up to some hundred KiB each. So the socket takes only so much in a turn
//! (`socket`, which tells what it took by [`Written`]), and the connection then waits for its next turn in the queue
//! that it shares with HTTP/2 connections. `serve` drives hyper by this, and `lasting` what comes after it. Always
//! holds:
//! - once [`Limits::OUTPUT`] bytes were taken, the socket takes no more in that turn. A single write takes at most
//!   [`Limits::ANSWER`];
//! - the first turn of a connection, and turns that are likely to be long, come in the order of the queue. They are the
//!   one after a long turn, and those that follow it until everything is written;
//! - a place in the queue is held for one turn.
//!
//! The time of a turn is not bounded, beyond what hyper does in one: it reads and answers up to 16 requests. If that
//! takes longer than [`Limits::TURN`], the turn counts as a long one.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::{
    http2::{Limits, Place, TurnQueue},
    types::ClientKey,
};

/// The turns of a connection; see the module.
pub(super) struct Turns {
    /// Shared with other connections, and whose connection this is.
    queue: Option<(TurnQueue, ClientKey)>,
    written: Arc<Written>,
    /// The next turn is likely to be a long one.
    is_due: bool,
    waiting: Option<Pin<Box<dyn Future<Output = Place> + Send>>>,
}

/// What the socket took, for those who drive its writer.
#[derive(Debug)]
pub(super) struct Written {
    /// The writer has nothing that the socket did not take.
    everything: AtomicBool,
    /// Bytes that the socket took in this turn.
    taken: AtomicUsize,
    /// More was offered in this turn.
    refused: AtomicBool,
    /// The writer had to wait, for its next turn or for the client, and has not run since everything is written.
    waited: AtomicBool,
}

impl Turns {
    /// The turns of a new connection of `client`, which join `queue`. `written` is told by its socket.
    pub(super) fn new(queue: Option<(TurnQueue, ClientKey)>, written: Arc<Written>) -> Self {
        Self { queue, written, is_due: true, waiting: None }
    }

    /// The next turn is likely to be a long one.
    pub(super) fn expect_long(&mut self) {
        self.is_due = true;
    }

    /// Runs `turn` when its turn has come. If it is pending because the socket took enough, it is polled again.
    pub(super) fn poll<T>(&mut self, cx: &mut Context<'_>, turn: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        if self.is_due && self.waiting.is_none() {
            self.wait();
        }
        let place = match &mut self.waiting {
            Some(waiting) => Some(ready!(waiting.as_mut().poll(cx))),
            None => None,
        };
        self.waiting = None;
        self.written.begin_turn();
        let outcome = turn(cx);
        drop(place);
        let has_more = !self.written.is_everything();
        self.is_due = self.written.is_enough() || self.is_due && has_more;
        if outcome.is_pending() {
            if self.written.refused.load(Ordering::Relaxed) {
                self.give_way(cx);
            } else if !has_more && self.written.waited.swap(false, Ordering::Relaxed) {
                // hyper 1.12 writes at the end of its turn, and does not look once more whether it can go on with a
                // request that it read while it had more to write. That request would wait until the client sends more.
                cx.waker().wake_by_ref();
            }
        }
        outcome
    }

    fn wait(&mut self) {
        self.waiting = self.queue.as_ref().map(|(queue, client)| Box::pin(queue.clone().turn(*client)) as _);
    }

    /// Lets other connections continue. The task is woken for its next turn.
    fn give_way(&mut self, cx: &mut Context<'_>) {
        self.wait();
        let has_turn = self.waiting.as_mut().is_none_or(|waiting| waiting.as_mut().poll(cx).is_ready());
        if has_turn {
            self.waiting = None;
            cx.waker().wake_by_ref();
        }
    }
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").field("written", &self.written).finish_non_exhaustive()
    }
}

impl Default for Written {
    fn default() -> Self {
        Self {
            everything: AtomicBool::new(true),
            taken: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
            waited: AtomicBool::new(false),
        }
    }
}

impl Written {
    fn begin_turn(&self) {
        self.taken.store(0, Ordering::Relaxed);
        self.refused.store(false, Ordering::Relaxed);
    }

    /// The most bytes that the socket may take at once; `None` if it may take no more in this turn. Called before each
    /// write.
    pub(super) fn offer(&self) -> Option<usize> {
        self.everything.store(false, Ordering::Relaxed);
        let is_enough = self.is_enough();
        if is_enough {
            self.refused.store(true, Ordering::Relaxed);
            self.waits();
        }
        (!is_enough).then_some(Limits::ANSWER)
    }

    /// The writer waits until the socket takes more.
    pub(super) fn waits(&self) {
        self.waited.store(true, Ordering::Relaxed);
    }

    /// The socket took so many bytes.
    pub(super) fn took(&self, count: usize) {
        self.taken.fetch_add(count, Ordering::Relaxed);
    }

    /// The turn has taken so long.
    pub(super) fn lasted(&self, time: Duration) {
        if time >= Limits::TURN {
            self.taken.fetch_max(Limits::OUTPUT, Ordering::Relaxed);
        }
    }

    /// Whether the turn was a long one.
    fn is_enough(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= Limits::OUTPUT
    }

    /// The writer has flushed.
    pub(super) fn flushed(&self) {
        self.everything.store(true, Ordering::Relaxed);
    }

    /// Whether the writer has nothing that the socket did not take.
    pub(super) fn is_everything(&self) -> bool {
        self.everything.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
