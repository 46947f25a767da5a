//! [`Latest`]: a value that is replaced now and then, for thousands of readers that want only the newest one.
//!
//! It works like `tokio::sync::watch`, but for many waiting tasks. Each task registers its waker once and not for each
//! value, so a check that finds nothing new takes no lock, and a new value wakes all tasks from one piece of memory.
//! Views use it for their versions, and ports for messages to all streams.
//!
//! Always holds: a new value wakes everyone who has checked and found nothing new; no task is woken under a lock.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use slab::Slab;
use smallvec::SmallVec;

use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};

/// The number after the last value.
const NO_MORE: u64 = u64::MAX;
/// How many tasks are woken between two reads of their list.
const BATCH: usize = 64;

/// The writer of the value. When it is dropped, there are no more values.
#[derive(Debug)]
pub struct Latest<T> {
    shared: Arc<LatestInner<T>>,
}

#[derive(Debug)]
struct LatestInner<T> {
    /// The number of the newest value, from 1; it changes under the lock of the value.
    number: AtomicU64,
    value: RwLock<T>,
    /// A place for each follower; `None` until it has waited.
    followers: Mutex<Slab<Option<Waker>>>,
}

impl<T: Clone> Latest<T> {
    /// Begins with `value`.
    /// ```
    /// use etcd_relay::latest::Latest;
    ///
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// # runtime.block_on(async {
    /// let latest = Latest::new("one");
    /// let mut follower = latest.follow();
    /// assert_eq!(follower.next().await, Some("one"));
    /// latest.replace("two");
    /// latest.replace("three");
    /// // A follower gets the newest value, and not those in between.
    /// assert_eq!(follower.next().await, Some("three"));
    /// drop(latest);
    /// assert_eq!(follower.next().await, None);
    /// # });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn new(value: T) -> Self {
        let shared = LatestInner { number: AtomicU64::new(1), value: RwLock::new(value), followers: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// The newest value.
    #[must_use]
    pub fn get(&self) -> T {
        self.shared.value.read().clone()
    }

    /// Replaces the value, and wakes all who wait.
    pub fn replace(&self, value: T) {
        let old = {
            let mut newest = self.shared.value.write();
            let number = self.shared.number.load(Ordering::Relaxed);
            self.shared.number.store(number.saturating_add(1), Ordering::Release);
            std::mem::replace(&mut *newest, value)
        };
        drop(old);
        self.shared.wake_all();
    }

    /// A follower, which gets the newest value first, and then each time there is a newer one.
    #[must_use]
    pub fn follow(&self) -> Follower<T> {
        let place = self.shared.followers.lock().insert(None);
        Follower { shared: self.shared.clone(), place, given: 0, waker: None }
    }

    /// The number of followers.
    #[must_use]
    pub fn followers(&self) -> usize {
        self.shared.followers.lock().len()
    }
}

impl<T> Latest<T> {
    /// Ends the values, as dropping this does.
    pub fn end(&self) {
        {
            let _newest = self.shared.value.write();
            self.shared.number.store(NO_MORE, Ordering::Release);
        }
        self.shared.wake_all();
    }
}

impl<T> Drop for Latest<T> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<T> LatestInner<T> {
    fn wake_all(&self) {
        let mut next = 0;
        loop {
            let mut batch: SmallVec<[Waker; BATCH]> = SmallVec::new();
            {
                let followers = self.followers.lock();
                // A follower that takes a place before `next` meanwhile first checks after the value was there.
                while next < followers.capacity() && batch.len() < BATCH {
                    batch.extend(followers.get(next).and_then(Clone::clone));
                    next += 1;
                }
                if batch.is_empty() {
                    return;
                }
            }
            batch.into_iter().for_each(Waker::wake);
        }
    }
}

/// A reader of the newest value.
#[derive(Debug)]
pub struct Follower<T> {
    shared: Arc<LatestInner<T>>,
    place: usize,
    /// The number of the value that it got last.
    given: u64,
    /// The waker that is in its place.
    waker: Option<Waker>,
}

impl<T: Clone> Follower<T> {
    /// The newest value, if it is not the one that was returned last; `None` when there are no more. Cancel safe.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let newer = self.newer();
        if newer.is_ready() || self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return newer;
        }
        self.waker = Some(cx.waker().clone());
        if let Some(place) = self.shared.followers.lock().get_mut(self.place) {
            place.clone_from(&self.waker);
        }
        // A value that came before this woke nobody.
        self.newer()
    }

    /// [`Follower::poll_next`] as a future. Cancel safe.
    pub async fn next(&mut self) -> Option<T> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn newer(&mut self) -> Poll<Option<T>> {
        match self.shared.number.load(Ordering::Acquire) {
            NO_MORE => Poll::Ready(None),
            number if number == self.given => Poll::Pending,
            _ => {
                let newest = self.shared.value.read();
                self.given = self.shared.number.load(Ordering::Relaxed);
                Poll::Ready(Some(newest.clone()))
            }
        }
    }
}

impl<T> Drop for Follower<T> {
    fn drop(&mut self) {
        self.shared.followers.lock().try_remove(self.place);
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn a_follower_is_given_the_newest_first_and_nothing_twice() {
        let latest = Latest::new(1);
        latest.replace(2);
        let mut follower = latest.follow();
        assert_eq!(follower.next().await, Some(2));
        latest.replace(3);
        latest.replace(4);
        assert_eq!((follower.next().await, latest.get()), (Some(4), 4));
        assert!(follower.poll_next(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(latest);
        assert_eq!((follower.next().await, follower.next().await), (None, None));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn each_of_many_sees_the_last_of_many() {
        const LAST: u64 = 5_000;
        let latest = Latest::new(0);
        let mut tasks = JoinSet::new();
        for _ in 0..200 {
            let mut follower = latest.follow();
            tasks.spawn(async move {
                let mut last = None;
                while let Some(value) = follower.next().await {
                    assert!(last < Some(value), "{value} after {last:?}");
                    last = Some(value);
                    if value == LAST {
                        break;
                    }
                }
                last
            });
        }
        for value in 1..=LAST {
            latest.replace(value);
            if value % 100 == 0 {
                // Those that have begun to wait meanwhile are woken by the next value.
                tokio::task::yield_now().await;
            }
        }
        assert!(tasks.join_all().await.into_iter().all(|last| last == Some(LAST)));
        assert_eq!(latest.followers(), 0, "a dropped follower leaves nothing behind");
    }

    #[tokio::test]
    async fn a_follower_that_moves_is_woken_where_it_is() {
        let latest = Latest::new(1);
        let mut follower = latest.follow();
        assert_eq!(follower.next().await, Some(1));
        assert!(follower.poll_next(&mut Context::from_waker(Waker::noop())).is_pending());
        let (waits, waiting) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut waits = Some(waits);
            std::future::poll_fn(|cx| {
                let next = follower.poll_next(cx);
                if let Some(waits) = waits.take() {
                    let _ = waits.send(());
                }
                next
            })
            .await
        });
        waiting.await.expect("it waits");
        latest.replace(2);
        assert_eq!(task.await.expect("no panic"), Some(2));
    }
}
