//! [`Handover`]: data that waits for a task, under a lock, and whether that task rests. Adding data either happens
//! before the task looks, or wakes the task.
//!
//! Not here: what the data is and who may add to it, see `state`. Used only by the outbox; `models/` checks it in every
//! order in which threads can interleave. Always holds: the task looks and goes to rest under one lock; no task is
//! woken under that lock, since it would wait for it at once.

use std::task::{Context, Waker};

use crate::sync::{Mutex, MutexGuard};

/// Data for a task; see the module.
#[derive(Debug)]
pub(crate) struct Handover<S> {
    state: Mutex<S>,
}

/// The task that takes the data, while it rests.
#[derive(Debug, Default)]
pub(crate) struct Resting(Option<Waker>);

impl<S: AsMut<Resting>> Handover<S> {
    pub(crate) fn new(state: S) -> Self {
        Self { state: Mutex::new(state) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, S> {
        self.state.lock()
    }

    /// What `find` returns. If that is nothing, the task rests until it is woken.
    pub(crate) fn look<T>(&self, cx: &Context<'_>, find: impl FnOnce(&mut S) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        let found = find(&mut state);
        if found.is_none() {
            state.as_mut().rest(cx);
        }
        found
    }

    /// Changes the data, and wakes the task that `change` returns.
    pub(crate) fn change(&self, change: impl FnOnce(&mut S) -> Option<Waker>) {
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

    /// The task to wake, if it rests. The caller has to wake it once the lock is released.
    pub(crate) fn take(&mut self) -> Option<Waker> {
        self.0.take()
    }
}

pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
