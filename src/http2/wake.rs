//! Who of a connection has something to do: the socket, a timer, a stream. One task serves them all, and looks only at those
//! that called, since a look at the others would fetch their memory for nothing.
//!
//! Always holds: a call between two looks is seen by the later one; the task is woken once for all calls until it looks; nobody is
//! woken under a lock.

use std::{
    sync::Arc,
    task::{Context, Wake, Waker},
};

use smallvec::SmallVec;

use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering};

/// What called, as a number: below [`WakeSource::FIRST_STREAM`] a part of the connection, from there on the place of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WakeSource(u32);

impl WakeSource {
    pub(super) const READ: Self = Self(0);
    pub(super) const WRITE: Self = Self(1);
    pub(super) const TIMER: Self = Self(2);
    pub(super) const STOP: Self = Self(3);
    pub(super) const ABORT: Self = Self(4);
    /// Requests were read, so that the connection may have more of them.
    pub(super) const WINDOW: Self = Self(5);
    const FIRST_STREAM: u32 = 6;

    pub(super) fn stream(place: usize) -> Self {
        Self(Self::FIRST_STREAM + place as u32)
    }

    /// The place of the stream, if it is one.
    pub(super) fn place(self) -> Option<usize> {
        self.0.checked_sub(Self::FIRST_STREAM).map(|place| place as usize)
    }
}

/// Those who called. Few at a time, so they need no memory of their own.
pub(super) type WakeSources = SmallVec<[WakeSource; 4]>;

/// What the task of a connection and those who call it share.
#[derive(Debug)]
pub(super) struct Calls {
    waiting: Mutex<Waiting>,
    /// Bytes of requests that were read and that the peer was not told of.
    read: AtomicU32,
    /// From how many of them on it is to be told.
    tell_from: u32,
}

#[derive(Debug, Default)]
struct Waiting {
    callers: WakeSources,
    /// The task, while it rests.
    task: Option<Waker>,
}

impl Calls {
    /// Calls of a connection that tells its peer of so many bytes of requests at a time.
    pub(super) fn new(tell_from: u32) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), read: AtomicU32::new(0), tell_from })
    }

    /// Who calls by it.
    pub(super) fn bell(self: &Arc<Self>, caller: WakeSource) -> Arc<Bell> {
        Arc::new(Bell { calls: self.clone(), caller, rung: AtomicBool::new(false) })
    }

    pub(super) fn call(&self, caller: WakeSource) {
        let task = {
            let mut waiting = self.waiting.lock();
            waiting.callers.push(caller);
            waiting.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Moves those who called into `callers`, which is empty. Where nobody did, the task of `cx` is woken by the next, and this is false.
    pub(super) fn look(&self, callers: &mut WakeSources, cx: &Context<'_>) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.callers.is_empty() {
            waiting.task = Some(cx.waker().clone());
            return false;
        }
        std::mem::swap(&mut waiting.callers, callers);
        true
    }

    /// Counts bytes of requests that were read.
    pub(super) fn count_read(&self, bytes: u32) {
        let before = self.read.fetch_add(bytes, Ordering::Relaxed);
        if before < self.tell_from && before + bytes >= self.tell_from {
            self.call(WakeSource::WINDOW);
        }
    }

    /// Takes the count of bytes that were read.
    pub(super) fn take_read(&self) -> u32 {
        self.read.swap(0, Ordering::Relaxed)
    }
}

/// Calls for one part of a connection.
#[derive(Debug)]
pub(super) struct Bell {
    calls: Arc<Calls>,
    caller: WakeSource,
    /// It has called, and nobody has come yet.
    rung: AtomicBool,
}

impl Bell {
    /// Whoever was called is here, and looks after this for what it was called for; from now on it is called anew.
    ///
    /// A swap, and not a store: a store may come to pass after the look that follows it (on x86 too), so a ring between the two would
    /// find `true` and call nobody, for something that the look did not see. Swaps of one place have an order. A ring before this one
    /// is what this swap reads from, and by `Acquire` the look sees all that came before that ring; a ring after it finds `false`, and
    /// calls.
    pub(super) fn answered(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }

    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.calls.call(self.caller);
        }
    }

    pub(super) fn calls(&self) -> &Calls {
        &self.calls
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_task_is_woken_once_for_all_who_call_and_sees_each_once() {
        let calls = Calls::new(1000);
        let (one, two) = (calls.bell(WakeSource::READ), calls.bell(WakeSource::stream(3)));
        let counting = Arc::new(Counting::default());
        let task = Waker::from(counting.clone());
        let cx = Context::from_waker(&task);
        let mut callers = WakeSources::new();
        assert!(!calls.look(&mut callers, &cx));
        one.ring();
        two.ring();
        one.ring();
        assert_eq!(counting.0.load(Ordering::Relaxed), 1);
        assert!(calls.look(&mut callers, &cx));
        assert_eq!(callers[..], [WakeSource::READ, WakeSource::stream(3)]);
        assert_eq!((callers[0].place(), callers[1].place()), (None, Some(3)));
        callers.clear();
        one.ring();
        assert!(!calls.look(&mut callers, &cx), "nobody was there to answer the first ring");
        one.answered();
        one.ring();
        assert_eq!(counting.0.load(Ordering::Relaxed), 2);
        assert!(calls.look(&mut callers, &cx));
    }

    #[test]
    fn reading_much_is_told_once() {
        let calls = Calls::new(1000);
        let mut callers = WakeSources::new();
        let cx = Context::from_waker(Waker::noop());
        calls.count_read(1000 - 1);
        assert!(!calls.look(&mut callers, &cx));
        calls.count_read(1);
        calls.count_read(1);
        assert!(calls.look(&mut callers, &cx));
        assert_eq!((callers.as_slice(), calls.take_read()), (&[WakeSource::WINDOW][..], 1000 + 1));
    }
}
