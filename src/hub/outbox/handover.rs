//! [`Handover`]: what waits for a task, under a lock, and whether the task rests. Whoever adds something finds the task looking for it, or
//! wakes it.
//!
//! Not here: what waits, and who may add to it, see `state`. Used by the outbox alone; `models/` tries it in every order in which threads can
//! meet. Always holds: a task looks and goes to rest under one lock; nobody is woken under it, since who is woken runs into it.

use std::task::{Context, Waker};

use crate::sync::{Mutex, MutexGuard};

/// See the module.
#[derive(Debug)]
pub(crate) struct Handover<S> {
    state: Mutex<S>,
}

/// The task that takes what waits, while it rests.
#[derive(Debug, Default)]
pub(crate) struct Resting(Option<Waker>);

impl<S: AsMut<Resting>> Handover<S> {
    pub(crate) fn new(state: S) -> Self {
        Self { state: Mutex::new(state) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, S> {
        self.state.lock()
    }

    /// What the task finds; where that is nothing, it rests until it is woken.
    pub(crate) fn look<T>(&self, cx: &Context<'_>, find: impl FnOnce(&mut S) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        let found = find(&mut state);
        if found.is_none() {
            state.as_mut().rest(cx);
        }
        found
    }

    /// Changes what waits, and wakes the task that the change gives back.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut S) -> Option<Waker>) {
        let waker = change(&mut self.lock());
        wake(waker);
    }
}

impl Resting {
    fn rest(&mut self, cx: &Context<'_>) {
        if !self.0.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.0 = Some(cx.waker().clone());
        }
    }

    /// The task to wake, if it rests: whoever takes it has to, once the lock is let go.
    pub(crate) fn take(&mut self) -> Option<Waker> {
        self.0.take()
    }
}

pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
