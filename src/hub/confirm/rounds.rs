//! [`Rounds`]: who waits for which of the confirmer's asks.
//!
//! Whoever comes joins the round that begins next. One task asks, for one round after the other, until nobody waits. Not here: how upstream
//! is asked, see `confirm`. `models` compiles this file over loom, so it knows no runtime. Always holds: nobody joins a round whose ask has
//! begun; whoever joins a round is told its answer, by the task that runs or by the one that it is asked to start.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::sync::Mutex;

/// See the module. `W` is what a member wants to know, `A` what all of a round are told.
#[derive(Debug)]
pub(crate) struct Rounds<W, A> {
    state: Mutex<RoundsState<W, A>>,
}

#[derive(Debug)]
struct RoundsState<W, A> {
    /// A task asks, or is about to be started.
    asking: bool,
    /// For those who come now.
    next: Option<Arc<Round<A>>>,
    wanted: Vec<W>,
}

/// One ask, and all who wait for its answer.
#[derive(Debug)]
pub(crate) struct Round<A> {
    state: Mutex<RoundState<A>>,
}

#[derive(Debug)]
struct RoundState<A> {
    answer: Option<A>,
    /// Each at its place, until it is woken or gives up.
    waiting: Vec<Option<Waker>>,
}

/// Who waits for a round. Dropped, it waits no more.
#[derive(Debug)]
pub(crate) struct Member<A> {
    round: Arc<Round<A>>,
    place: Option<usize>,
}

impl<W, A> Default for Rounds<W, A> {
    fn default() -> Self {
        Self { state: Mutex::new(RoundsState { asking: false, next: None, wanted: Vec::new() }) }
    }
}

impl<W, A> Rounds<W, A> {
    /// Joins the next round. True where no task asks: who joined has to start one.
    pub(crate) fn join(&self, wanted: Option<W>) -> (Member<A>, bool) {
        let mut state = self.state.lock();
        state.wanted.extend(wanted);
        let round = state.next.get_or_insert_with(|| Arc::new(Round::new())).clone();
        let start = !mem::replace(&mut state.asking, true);
        (Member { round, place: None }, start)
    }

    /// The next round, which nobody joins from now on, and what its members want to know; `None` where nobody waits. Then the task that
    /// asks is at its end, and who comes next starts another.
    pub(crate) fn next(&self) -> Option<(Arc<Round<A>>, Vec<W>)> {
        let mut state = self.state.lock();
        let round = state.next.take();
        state.asking = round.is_some();
        Some((round?, mem::take(&mut state.wanted)))
    }

    /// The task that asks ends before its time. Gives the round that waited for it, for somebody to close.
    pub(crate) fn stop(&self) -> Option<Arc<Round<A>>> {
        let mut state = self.state.lock();
        state.asking = false;
        state.wanted.clear();
        state.next.take()
    }

    /// How many wait for the next round.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().next.as_ref().map_or(0, |round| round.state.lock().waiting.iter().flatten().count())
    }

    /// Whether anybody has come since the last round began.
    #[cfg(test)]
    pub(super) fn is_awaited(&self) -> bool {
        self.state.lock().next.is_some()
    }
}

impl<A> Round<A> {
    fn new() -> Self {
        Self { state: Mutex::new(RoundState { answer: None, waiting: Vec::new() }) }
    }

    /// Tells all who wait, and says how many they were. The first answer counts.
    pub(crate) fn close(&self, answer: A) -> usize {
        let waiting = {
            let mut state = self.state.lock();
            state.answer.get_or_insert(answer);
            mem::take(&mut state.waiting)
        };
        let many = waiting.len();
        // Not under the lock: who is woken there runs into it.
        waiting.into_iter().flatten().for_each(Waker::wake);
        many
    }
}

impl<A: Clone> Future for Member<A> {
    type Output = A;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<A> {
        let member = self.get_mut();
        let mut state = member.round.state.lock();
        if let Some(answer) = &state.answer {
            member.place = None;
            return Poll::Ready(answer.clone());
        }
        match member.place.and_then(|place| state.waiting.get_mut(place)) {
            Some(Some(waker)) => waker.clone_from(cx.waker()),
            Some(place) => *place = Some(cx.waker().clone()),
            None => {
                member.place = Some(state.waiting.len());
                state.waiting.push(Some(cx.waker().clone()));
            }
        }
        Poll::Pending
    }
}

impl<A> Drop for Member<A> {
    fn drop(&mut self) {
        if let Some(place) = self.place
            && let Some(waker) = self.round.state.lock().waiting.get_mut(place)
        {
            *waker = None;
        }
    }
}
