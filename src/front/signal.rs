//! [`Signal`]: tells thousands of streams once that something has happened, such as that the relay ends.
//!
//! A cancellation token can do the same, but each look at it takes a lock that all streams share, and a stream looks whenever it
//! is polled; here that is one load. Always holds: who listens is woken, or sees it when it looks next.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use slab::Slab;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Signal {
    shared: Arc<Shared>,
    /// Passes the token's word on, as long as there is anyone who may ask to listen.
    _follows: Arc<AbortOnDropHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    told: AtomicBool,
    wakers: Mutex<Slab<Waker>>,
}

impl Signal {
    /// Tells when `token` is cancelled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn of(token: CancellationToken) -> Self {
        let shared = Arc::new(Shared::default());
        let telling = shared.clone();
        let follows = tokio::spawn(async move {
            token.cancelled().await;
            telling.tell();
        });
        Self { shared, _follows: Arc::new(AbortOnDropHandle::new(follows)) }
    }

    /// One who listens, for one task at a time.
    #[must_use]
    pub fn listener(&self) -> Listener {
        Listener { shared: self.shared.clone(), waker: None }
    }
}

impl Shared {
    fn tell(&self) {
        // Released by the lock, and so seen by whoever adds a waker afterwards.
        let wakers = {
            let mut wakers = self.wakers.lock();
            self.told.store(true, Ordering::Release);
            std::mem::take(&mut *wakers)
        };
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

/// Listens to a [`Signal`].
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    /// Our place among the wakers, and what is there.
    waker: Option<(usize, Waker)>,
}

impl Listener {
    /// Ready when it has happened.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.told.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if self.waker.as_ref().is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.leave();
        let mut wakers = self.shared.wakers.lock();
        if self.shared.told.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        self.waker = Some((wakers.insert(cx.waker().clone()), cx.waker().clone()));
        Poll::Pending
    }

    fn leave(&mut self) {
        if let Some((place, _)) = self.waker.take() {
            // It is empty after all were woken.
            self.shared.wakers.lock().try_remove(place);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn all_who_listen_are_told_and_those_who_come_later() {
        let token = CancellationToken::new();
        let signal = Signal::of(token.clone());
        let mut tasks = tokio::task::JoinSet::new();
        let (listening, mut count) = tokio::sync::mpsc::channel(10);
        for _ in 0..10 {
            let mut listener = signal.listener();
            let listening = listening.clone();
            tasks.spawn(poll_fn(move |cx| {
                let told = listener.poll(cx);
                if told.is_pending() {
                    let _ = listening.try_send(());
                }
                told
            }));
        }
        for _ in 0..10 {
            count.recv().await.expect("one listens");
        }
        assert_eq!(signal.shared.wakers.lock().len(), 10);
        token.cancel();
        tasks.join_all().await;
        let mut late = signal.listener();
        poll_fn(|cx| late.poll(cx)).await;
    }

    #[tokio::test]
    async fn who_goes_leaves_nothing_and_who_moves_is_woken_where_it_is() {
        let token = CancellationToken::new();
        let signal = Signal::of(token.clone());
        let mut listener = signal.listener();
        poll_fn(|cx| {
            assert!(listener.poll(cx).is_pending() && listener.poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(signal.shared.wakers.lock().len(), 1);
        // In another task now, whose waker takes the place.
        let task = tokio::spawn(async move {
            poll_fn(|cx| listener.poll(cx)).await;
            listener
        });
        let mut dropped = signal.listener();
        assert!(dropped.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(dropped);
        token.cancel();
        drop(task.await.expect("woken"));
        assert!(signal.shared.wakers.lock().is_empty());
    }
}
