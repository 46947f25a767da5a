//! [`TurnQueue`]: the connections that have more to do than one turn allows, and wait for their next turn.
//!
//! A connection that lists a million keys is ready all the time. If fifty of them were ready at once, whatever else
//! becomes ready would wait for fifty long turns. So only a few of them are ready at a time, and the others wait here. The
//! first request of a new connection waits here too: when a thousand clients come at once, their requests are there at
//! the same time, and each takes as long as many deliveries.
//!
//! Not here: how long a turn may last, see `turn`; who shares a queue, see `front`. Always holds:
//! - at most as many connections hold a place as there are; the one that has waited longest gets the next;
//! - a place is given back with the turn that it was taken for, or when the connection is dropped. A turn waits for
//!   nobody, so nobody waits here for a client.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// See the module. Clones are the same queue.
#[derive(Clone)]
pub struct TurnQueue(Arc<Shared>);

struct Shared {
    places: Arc<Semaphore>,
    report: Box<dyn Fn(bool) + Send + Sync>,
}

/// The place that a connection waits for, or holds. Dropping it makes way for the next connection.
pub(super) struct Place {
    queue: TurnQueue,
    taking: PollSemaphore,
    held: Option<OwnedSemaphorePermit>,
    waits: bool,
}

impl TurnQueue {
    /// A queue of which `at_once` connections are ready at a time, at least one. `report` is called with `true` when a
    /// connection begins to wait, and with `false` when it does not wait any more.
    #[must_use]
    pub fn new(at_once: usize, report: impl Fn(bool) + Send + Sync + 'static) -> Self {
        let places = Arc::new(Semaphore::new(at_once.clamp(1, Semaphore::MAX_PERMITS)));
        Self(Arc::new(Shared { places, report: Box::new(report) }))
    }

    /// Joins the queue at its end.
    pub(super) fn join(&self) -> Place {
        Place { queue: self.clone(), taking: PollSemaphore::new(self.0.places.clone()), held: None, waits: false }
    }
}

impl fmt::Debug for TurnQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnQueue").field("free", &self.0.places.available_permits()).finish_non_exhaustive()
    }
}

impl Place {
    /// Waits until the place is this connection's.
    pub(super) fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.held.is_none() {
            let taken = self.taking.poll_acquire(cx);
            self.count(taken.is_pending());
            // The queue is never closed.
            self.held = ready!(taken);
        }
        Poll::Ready(())
    }

    fn count(&mut self, waits: bool) {
        if waits != std::mem::replace(&mut self.waits, waits) {
            (self.queue.0.report)(waits);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count(false);
    }
}
