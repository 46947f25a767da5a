//! Which parts of a connection have something to do: the socket, a timer, a stream. One task serves them all and looks
//! only at those that were woken, since a look at an idle part would fetch its memory for nothing.
//!
//! Always holds: a part that is woken between two looks is seen by the later one. The task is woken once for all parts
//! until it looks. Nothing is woken under a lock.

use std::{
    sync::Arc,
    task::{Context, Wake, Waker},
};

use smallvec::SmallVec;

use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering};

/// A part of a connection, as a number: below [`WakeSource::FIRST_STREAM`] a fixed part, from there on the place of a
/// stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WakeSource(u32);

impl WakeSource {
    pub(super) const READ: Self = Self(0);
    pub(super) const WRITE: Self = Self(1);
    pub(super) const TIMER: Self = Self(2);
    pub(super) const STOP: Self = Self(3);
    pub(super) const ABORT: Self = Self(4);
    /// Bodies of requests were read, so the connection's window can be widened.
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

/// The parts that were woken. Usually these are few, so they need no allocation.
pub(super) type WakeSources = SmallVec<[WakeSource; 4]>;

/// What the task of a connection shares with everything that wakes it.
#[derive(Debug)]
pub(super) struct WakeList {
    waiting: Mutex<Waiting>,
    /// Bytes of request bodies that were read but not yet reported to the peer.
    read: AtomicU32,
    /// The number of such bytes from which on they are reported.
    report_from: u32,
}

#[derive(Debug, Default)]
struct Waiting {
    woken: WakeSources,
    /// The task, while it is idle.
    task: Option<Waker>,
}

impl WakeList {
    /// The list for a connection that reports this many bytes of request bodies at a time.
    pub(super) fn new(report_from: u32) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), read: AtomicU32::new(0), report_from })
    }

    /// The flag by which `source` wakes the connection.
    pub(super) fn flag(self: &Arc<Self>, source: WakeSource) -> Arc<WakeFlag> {
        Arc::new(WakeFlag { wakes: self.clone(), source, is_set: AtomicBool::new(false) })
    }

    pub(super) fn add(&self, source: WakeSource) {
        let task = {
            let mut waiting = self.waiting.lock();
            waiting.woken.push(source);
            waiting.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    /// Moves the parts that were woken into `woken`, which must be empty. If there are none, returns false, and the
    /// next one wakes the task of `cx`.
    pub(super) fn look(&self, woken: &mut WakeSources, cx: &Context<'_>) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.woken.is_empty() {
            waiting.task = Some(cx.waker().clone());
            return false;
        }
        std::mem::swap(&mut waiting.woken, woken);
        true
    }

    /// Counts bytes of request bodies that were read.
    pub(super) fn count_read(&self, bytes: u32) {
        let before = self.read.fetch_add(bytes, Ordering::Relaxed);
        if before < self.report_from && before + bytes >= self.report_from {
            self.add(WakeSource::WINDOW);
        }
    }

    /// Takes the count of bytes that were read.
    pub(super) fn take_read(&self) -> u32 {
        self.read.swap(0, Ordering::Relaxed)
    }
}

/// Wakes the connection for one of its parts.
#[derive(Debug)]
pub(super) struct WakeFlag {
    wakes: Arc<WakeList>,
    source: WakeSource,
    /// The part was woken and has not been looked at yet.
    is_set: AtomicBool,
}

impl WakeFlag {
    /// Resets the flag. It must be called before the part is looked at; from then on the part can be woken again.
    ///
    /// This is a swap and not a store. A store may take effect after the look that follows it, on x86 too. A `set`
    /// between the two would then find `true` and wake nobody, although the look missed its reason. Swaps of one
    /// location have an order. This swap reads from each `set` before it, so by `Acquire` the look sees everything that
    /// came before that `set`. A `set` after it finds `false` and wakes the task.
    pub(super) fn reset(&self) {
        self.is_set.swap(false, Ordering::AcqRel);
    }

    pub(super) fn set(&self) {
        if !self.is_set.swap(true, Ordering::AcqRel) {
            self.wakes.add(self.source);
        }
    }

    pub(super) fn wakes(&self) -> &WakeList {
        &self.wakes
    }
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.set();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.set();
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
        let wakes = WakeList::new(1000);
        let (one, two) = (wakes.flag(WakeSource::READ), wakes.flag(WakeSource::stream(3)));
        let counting = Arc::new(Counting::default());
        let task = Waker::from(counting.clone());
        let cx = Context::from_waker(&task);
        let mut woken = WakeSources::new();
        assert!(!wakes.look(&mut woken, &cx));
        one.set();
        two.set();
        one.set();
        assert_eq!(counting.0.load(Ordering::Relaxed), 1);
        assert!(wakes.look(&mut woken, &cx));
        assert_eq!(woken[..], [WakeSource::READ, WakeSource::stream(3)]);
        assert_eq!((woken[0].place(), woken[1].place()), (None, Some(3)));
        woken.clear();
        one.set();
        assert!(!wakes.look(&mut woken, &cx), "the flag is still set from the first time");
        one.reset();
        one.set();
        assert_eq!(counting.0.load(Ordering::Relaxed), 2);
        assert!(wakes.look(&mut woken, &cx));
    }

    #[test]
    fn reading_much_is_told_once() {
        let wakes = WakeList::new(1000);
        let mut woken = WakeSources::new();
        let cx = Context::from_waker(Waker::noop());
        wakes.count_read(1000 - 1);
        assert!(!wakes.look(&mut woken, &cx));
        wakes.count_read(1);
        wakes.count_read(1);
        assert!(wakes.look(&mut woken, &cx));
        assert_eq!((woken.as_slice(), wakes.take_read()), (&[WakeSource::WINDOW][..], 1000 + 1));
    }
}
