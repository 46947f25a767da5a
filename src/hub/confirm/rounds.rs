//! [`Rounds`]: which callers wait for which of the confirmer's requests.
//!
//! A caller joins the round that begins next. One task makes the requests for all rounds, until nobody waits. Not here:
//! how upstream is asked, see `confirm`. `models` compiles this file over loom, so it uses no runtime.
//! Always holds: nobody joins a round whose request has begun; every caller that joins a round gets its answer, from
//! the task that runs or from the one that it has to start; a round knows who waits for it, at least.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::sync::Mutex;

/// The rounds of a confirmer; see the module. `W` is what a member wants to know, `A` is the answer for all members of
/// a round.
#[derive(Debug)]
pub(crate) struct Rounds<W, A> {
    state: Mutex<RoundsState<W, A>>,
}

#[derive(Debug)]
struct RoundsState<W, A> {
    /// A task is running, or is about to be started.
    asking: bool,
    /// The round that callers join now.
    next: Option<Next<A>>,
    wanted: Vec<W>,
}

#[derive(Debug)]
struct Next<A> {
    round: Arc<Round<A>>,
    callers: Callers,
}

/// Who waits for a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Clients' watches that can wait for others, all of them on the connection with this number.
    Watches(u64),
    /// The same, on several connections.
    WatchesOfSeveral,
    /// Somebody for whom the request begins as soon as possible.
    Urgent,
}

/// What a caller that has joined a round has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    None,
    /// No task is running: start one.
    Start,
    /// The task may be waiting for others to join: tell it that somebody urgent is there.
    Hurry,
}

/// One request, and all who wait for its answer.
#[derive(Debug)]
pub(crate) struct Round<A> {
    state: Mutex<RoundState<A>>,
}

#[derive(Debug)]
struct RoundState<A> {
    answer: Option<A>,
    /// Each caller has its place until it is woken or gives up.
    waiting: Vec<Option<Waker>>,
}

/// A caller that waits for a round. It stops waiting when this is dropped.
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
    /// Joins the next round.
    pub(crate) fn join(&self, wanted: Option<W>, caller: Callers) -> (Member<A>, Duty) {
        let mut state = self.state.lock();
        state.wanted.extend(wanted);
        let hurry = match &mut state.next {
            Some(next) => next.joined_by(caller),
            None => false,
        };
        let round =
            state.next.get_or_insert_with(|| Next { round: Arc::new(Round::new()), callers: caller }).round.clone();
        let duty = match (mem::replace(&mut state.asking, true), hurry) {
            (false, _) => Duty::Start,
            (true, true) => Duty::Hurry,
            (true, false) => Duty::None,
        };
        (Member { round, place: None }, duty)
    }

    /// Who waits for the next round, if anybody does.
    pub(crate) fn callers(&self) -> Option<Callers> {
        self.state.lock().next.as_ref().map(|next| next.callers)
    }

    /// The next round, which nobody can join any more, and what its members want to know. It is `None` if nobody waits.
    /// Unless the running task has requests under way, it then ends, and the next caller starts another.
    pub(crate) fn next(&self, under_way: bool) -> Option<(Arc<Round<A>>, Vec<W>)> {
        let mut state = self.state.lock();
        let next = state.next.take();
        state.asking = next.is_some() || under_way;
        Some((next?.round, mem::take(&mut state.wanted)))
    }

    /// The running task ends early. Returns the round that waited for it, so that it can be closed.
    pub(crate) fn stop(&self) -> Option<Arc<Round<A>>> {
        let mut state = self.state.lock();
        state.asking = false;
        state.wanted.clear();
        state.next.take().map(|next| next.round)
    }

    /// How many callers wait for the next round.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().next.as_ref().map_or(0, |next| next.round.state.lock().waiting.iter().flatten().count())
    }

    /// Whether anybody has joined since the last round began.
    #[cfg(test)]
    pub(super) fn is_awaited(&self) -> bool {
        self.state.lock().next.is_some()
    }
}

impl<A> Next<A> {
    /// Returns whether the round has become urgent.
    fn joined_by(&mut self, caller: Callers) -> bool {
        let before = self.callers;
        self.callers = match (before, caller) {
            (Callers::Urgent, _) | (_, Callers::Urgent) => Callers::Urgent,
            (Callers::Watches(one), Callers::Watches(other)) if one == other => before,
            _ => Callers::WatchesOfSeveral,
        };
        before != Callers::Urgent && self.callers == Callers::Urgent
    }
}

impl<A> Round<A> {
    fn new() -> Self {
        Self { state: Mutex::new(RoundState { answer: None, waiting: Vec::new() }) }
    }

    /// Gives the answer to all who wait, and returns how many they were. Only the first answer counts.
    pub(crate) fn close(&self, answer: A) -> usize {
        let waiting = {
            let mut state = self.state.lock();
            state.answer.get_or_insert(answer);
            mem::take(&mut state.waiting)
        };
        let many = waiting.len();
        // Not under the lock, since a woken task would wait for it.
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
