//! [`Overdue`]: tells the calls that are still unanswered after a while, so that the others need no timer and watch no
//! member's health.
//!
//! Nearly all calls are answered within a few milliseconds. What may happen to a call that is not, see `send`. Always
//! holds: a call is told between one and two [`TICK`]s after it asked; the task that tells them runs only while there
//! is one; a call that has ended leaves nothing behind.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use slab::Slab;

/// Far less than any time after which something is done about a call.
const TICK: Duration = Duration::from_millis(25);

/// Calls for which room is kept while none waits.
const KEPT: usize = 256;

/// The calls that wait; see the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Overdue {
    /// A plain mutex: nothing waits and no task is woken under it.
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    calls: Slab<Call>,
    ticks: u64,
    is_ticking: bool,
}

#[derive(Debug)]
struct Call {
    /// The number of ticks when it began to wait.
    since: u64,
    /// `None` once it was told.
    waker: Option<Waker>,
}

/// Ready when the call is overdue.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    overdue: &'a Overdue,
    place: Option<usize>,
}

impl Overdue {
    /// Begins to wait when it is first polled.
    pub(super) fn wait(&self) -> Wait<'_> {
        Wait { overdue: self, place: None }
    }

    async fn tick(self) {
        let mut ticking = Ticking { overdue: self, is_over: false };
        let mut wakes = Vec::new();
        loop {
            tokio::time::sleep(TICK).await;
            {
                let mut waiting = ticking.overdue.waiting.lock();
                if waiting.calls.is_empty() {
                    (waiting.is_ticking, ticking.is_over) = (false, true);
                    return;
                }
                waiting.ticks += 1;
                let due = waiting.ticks - 1;
                // Calls leave once they were told, so all of them are young.
                let young = waiting.calls.iter_mut().filter(|(_, call)| call.since < due);
                wakes.extend(young.filter_map(|(_, call)| call.waker.take()));
            }
            wakes.drain(..).for_each(Waker::wake);
        }
    }
}

/// The task that tells the calls. If it breaks off, the next call that waits starts another.
struct Ticking {
    overdue: Overdue,
    is_over: bool,
}

impl Drop for Ticking {
    fn drop(&mut self) {
        if !self.is_over {
            self.overdue.waiting.lock().is_ticking = false;
        }
    }
}

impl Future for Wait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.overdue.waiting.lock();
        if let Some(place) = self.place {
            let waker = &mut waiting.calls[place].waker;
            match waker {
                None => return Poll::Ready(()),
                Some(known) if known.will_wake(cx.waker()) => {}
                Some(known) => *known = cx.waker().clone(),
            }
            return Poll::Pending;
        }
        let since = waiting.ticks;
        let place = waiting.calls.insert(Call { since, waker: Some(cx.waker().clone()) });
        let begins = !std::mem::replace(&mut waiting.is_ticking, true);
        drop(waiting);
        self.place = Some(place);
        if begins {
            tokio::spawn(self.overdue.clone().tick());
        }
        Poll::Pending
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let mut waiting = self.overdue.waiting.lock();
            waiting.calls.remove(place);
            if waiting.calls.is_empty() && waiting.calls.capacity() > KEPT {
                waiting.calls = Slab::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_is_told_after_a_while_and_nothing_is_left_of_those_that_ended() {
        let overdue = Overdue::default();
        for _ in 0..3 {
            let began = tokio::time::Instant::now();
            let short = overdue.wait();
            assert!(tokio::time::timeout(TICK / 2, short).await.is_err());
            tokio::time::timeout(10 * TICK, overdue.wait()).await.expect("in time");
            assert!(began.elapsed() >= TICK + TICK / 2 && began.elapsed() <= 3 * TICK, "{:?}", began.elapsed());
            tokio::time::sleep(2 * TICK).await;
            let waiting = overdue.waiting.lock();
            assert!(waiting.calls.is_empty() && !waiting.is_ticking, "the task ends with the last call");
        }
    }
}
