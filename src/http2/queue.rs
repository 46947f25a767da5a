//! [`TurnQueue`]: the connections that have more to do than one turn allows, and wait for their next turn.
//!
//! A connection that lists a million keys is ready all the time. If fifty of them were ready at once, whatever else
//! becomes ready would wait for fifty long turns. So only a few of them are ready at a time, and the others wait here. The
//! first request of a new connection waits here too: when a thousand clients come at once, their requests are there at
//! the same time, and each takes as long as many deliveries.
//!
//! Not here: how long a turn may last, see `turn`; who shares a queue, see `relay`. Always holds:
//! - the connection that has waited longest gets the next place, and gives it back when its turn is over. A turn waits
//!   for nobody, so nobody waits here for a client;
//! - there is at least one place for each thread. There are more while the connections with a place wait so long for
//!   their turns, behind others that never wait here, that less than half of the threads' time is spent on these turns.
//!   So the others delay those who wait here no more than by half.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::PollSemaphore;

/// Who has waited less than this for a turn whose place it had is no reason for more places: a thread needs as long to
/// look at its sockets, or is not scheduled for as long.
const SOON: Duration = Duration::from_millis(1);
/// How often there may be one place more. A storm of clients keeps threads busy for a moment, but is no reason to let
/// all of them in at once.
const ONE_MORE: Duration = Duration::from_millis(10);
/// Most places for each thread: a thread's own queue has no room for more tasks.
const MOST: usize = 256;

/// See the module. Clones are the same queue.
#[derive(Clone)]
pub struct TurnQueue(Arc<Shared>);

struct Shared {
    threads: usize,
    free: Arc<Semaphore>,
    state: Mutex<State>,
    report: Box<dyn Fn(bool) + Send + Sync>,
}

#[derive(Debug)]
struct State {
    /// Places, free or not.
    places: usize,
    /// Connections without a place.
    waiting: usize,
    /// When there was one place more.
    grew: Instant,
}

/// The place that a connection waits for, or holds. Dropping it makes way for the next connection.
pub(super) struct Place {
    queue: TurnQueue,
    taking: PollSemaphore,
    held: Option<(OwnedSemaphorePermit, Instant)>,
    turn_began: Option<Instant>,
    waits: bool,
}

impl TurnQueue {
    /// A queue for the connections of that many threads, at least one. `report` is called with `true` when a connection
    /// begins to wait, and with `false` when it does not wait any more.
    #[must_use]
    pub fn new(threads: usize, report: impl Fn(bool) + Send + Sync + 'static) -> Self {
        let threads = threads.clamp(1, Semaphore::MAX_PERMITS / MOST);
        let state = Mutex::new(State { places: threads, waiting: 0, grew: Instant::now() });
        Self(Arc::new(Shared { threads, free: Arc::new(Semaphore::new(threads)), state, report: Box::new(report) }))
    }

    /// A place at the end of the queue, from the first [`Place::poll_held`] on.
    pub(super) fn join(&self) -> Place {
        let taking = PollSemaphore::new(self.0.free.clone());
        Place { queue: self.clone(), taking, held: None, turn_began: None, waits: false }
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.0.state.lock().places
    }
}

impl Shared {
    /// A place is free again, after a wait for the turn and the turn itself.
    fn give_back(&self, permit: OwnedSemaphorePermit, waited: Duration, turn: Duration) {
        let now = Instant::now();
        let (one_more, one_less) = {
            let mut state = self.state.lock();
            // If it is so with every place: the time that is spent on these turns, and that all threads have meanwhile.
            let spent = turn * state.places as u32;
            let time = (waited + turn) * self.threads as u32;
            let too_few = waited > SOON && spent * 2 < time;
            let too_many = !too_few && (state.waiting == 0 || spent * 4 > time * 3);
            let one_more = too_few && now.duration_since(state.grew) >= ONE_MORE && state.places < self.threads * MOST;
            let one_less = too_many && state.places > self.threads;
            if one_more {
                state.grew = now;
            }
            state.places = state.places + usize::from(one_more) - usize::from(one_less);
            (one_more, one_less)
        };
        if one_less {
            permit.forget();
        }
        if one_more {
            self.free.add_permits(1);
        }
    }
}

impl fmt::Debug for TurnQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnQueue").field("state", &*self.0.state.lock()).finish_non_exhaustive()
    }
}

impl Place {
    /// Waits until the place is this connection's.
    pub(super) fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.held.is_none() {
            let taken = self.taking.poll_acquire(cx);
            self.count(taken.is_pending());
            // The queue is never closed.
            self.held = ready!(taken).map(|permit| (permit, Instant::now()));
        }
        Poll::Ready(())
    }

    /// The turn begins for which this connection has the place.
    pub(super) fn begin_turn(&mut self) {
        self.turn_began = Some(Instant::now());
    }

    fn count(&mut self, waits: bool) {
        if waits != std::mem::replace(&mut self.waits, waits) {
            {
                let waiting = &mut self.queue.0.state.lock().waiting;
                *waiting = if waits { *waiting + 1 } else { *waiting - 1 };
            }
            (self.queue.0.report)(waits);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count(false);
        // One without a turn says nothing about how long turns are waited for.
        if let (Some((permit, since)), Some(began)) = (self.held.take(), self.turn_began) {
            self.queue.0.give_back(permit, began - since, began.elapsed());
        }
    }
}
