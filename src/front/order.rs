//! [`Order`]: a write that arrives on a connection after the create of a watch "from now" is not forwarded before it is
//! known where that watch begins, so the watch shows the write, as at a member. Clients such as jetcd rely on that:
//! they write without waiting for `created`.
//!
//! A connection's data of watch requests is marked when the connection's task receives it (`arrivals`), and so before
//! the task calls the handler of any request that arrives later. The session clears a mark when it has learnt where the
//! creates in that data begin, or that they need not wait. A write (`held`) waits for the marks that are there when it
//! has arrived whole, and for no later ones. Not here: where a watch begins, see `session`.
//!
//! Always holds: reads, and connections without a watch, never wait. A mark counts for `PATIENCE`, after which its
//! create is served without knowing the current revision anyway. A write that waits stops neither the reading of its
//! connection nor a session. The wait of a write does not depend on creates that arrive after it. Nothing is woken
//! under a lock; the locks are taken in the order: the data of a request's body, a stream's spans, a connection's
//! marks.

mod arrivals;
mod held;

use std::{
    collections::BTreeMap,
    fmt,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

pub use self::arrivals::Arrivals;
pub(super) use self::{
    arrivals::{note, note_ahead},
    held::{ahead_of, hold, hold_whole, writes},
};

/// How long writes wait for a create. The create itself waits for a second at most until the current revision is known
/// (`session::CURRENT_PATIENCE`), and is served without it then. The rest is for what comes before and after that. If
/// etcd takes longer to say whether the client may watch, the write goes first.
const PATIENCE: Duration = Duration::from_millis(1_250);

/// The order of a connection's watches and writes; see the module.
pub struct Order {
    /// Number of watch streams whose data is marked.
    streams: AtomicUsize,
    /// Number of marks. It is changed under the lock, and read without it.
    marked: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of the last mark.
    last: u64,
    /// The marks in order of arrival, with the time of arrival.
    marks: BTreeMap<u64, Instant>,
    /// The writes that wait, by the last mark for which they wait.
    held: BTreeMap<(u64, u64), Waker>,
    last_held: u64,
    /// One of them waits for the time at which the next mark is too old.
    is_timed: bool,
}

/// The place of a write that waits.
struct Place<'a> {
    order: &'a Order,
    /// The last mark for which it waits, and its own number.
    key: (u64, u64),
    /// It is the one that removes marks that are too old.
    is_timer: bool,
}

impl Order {
    /// The order of a connection without watches.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { streams: AtomicUsize::new(0), marked: AtomicUsize::new(0), state: Mutex::default() })
    }

    /// Whether the connection has a watch stream.
    fn is_used(&self) -> bool {
        self.streams.load(Ordering::Acquire) > 0
    }

    /// Whether a write that arrives now may have to wait.
    fn is_pending(&self) -> bool {
        self.marked.load(Ordering::Acquire) > 0
    }

    /// Marks data that arrives now. Returns the number of the mark.
    fn mark(&self) -> u64 {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.last += 1;
        let number = state.last;
        state.marks.insert(number, now);
        self.marked.store(state.marks.len(), Ordering::Release);
        number
    }

    /// Marks were removed.
    fn fewer(&self, state: &mut State) {
        self.marked.store(state.marks.len(), Ordering::Release);
        if state.marks.is_empty() {
            // An empty map may keep a node, and most connections never get another mark.
            state.marks = BTreeMap::new();
        }
    }

    /// Whether writes still wait for this mark.
    fn has(&self, number: u64) -> bool {
        self.state.lock().marks.contains_key(&number)
    }

    /// Removes marks. Those that are not there any more are ignored.
    fn clear(&self, numbers: impl Iterator<Item = u64>) {
        let mut state = self.state.lock();
        for number in numbers {
            state.marks.remove(&number);
        }
        self.fewer(&mut state);
        let ready = state.take_ready();
        drop(state);
        ready.into_iter().for_each(Waker::wake);
    }

    /// Waits until no mark is left of those that are there now, or until the last of them is too old to count.
    async fn wait(&self) {
        if !self.is_pending() {
            return;
        }
        let mut place = self.place();
        while let Some(until) = place.waits_until(Instant::now()) {
            let is_timer = place.is_timer;
            // Both are cancel safe.
            tokio::select! {
                biased;
                () = poll_fn(|cx| place.poll(cx)) => {}
                () = sleep_until(until), if is_timer => {}
            }
        }
    }

    fn place(&self) -> Place<'_> {
        let mut state = self.state.lock();
        state.last_held += 1;
        Place { order: self, key: (state.last, state.last_held), is_timer: false }
    }
}

impl State {
    /// Whether there is a mark up to this one.
    fn has_up_to(&self, last: u64) -> bool {
        self.marks.first_key_value().is_some_and(|(first, _)| *first <= last)
    }

    /// Takes the writes that have nothing to wait for any more.
    fn take_ready(&mut self) -> Vec<Waker> {
        let first = self.marks.first_key_value().map_or(u64::MAX, |(first, _)| *first);
        let mut ready = Vec::new();
        while let Some(held) = self.held.first_entry()
            && held.key().0 < first
        {
            ready.push(held.remove());
        }
        ready
    }
}

impl Place<'_> {
    /// Removes the marks that are too old. Returns when the next one will be, if the write still has to wait.
    ///
    /// Only one of the writes waits for that time, and wakes the others when it is their turn. Otherwise each of
    /// thousands of writes would be woken by each of thousands of marks.
    fn waits_until(&mut self, now: Instant) -> Option<Instant> {
        let mut state = self.order.state.lock();
        while let Some(oldest) = state.marks.first_entry()
            && *oldest.get() + PATIENCE <= now
        {
            oldest.remove();
        }
        self.order.fewer(&mut state);
        let ready = state.take_ready();
        let oldest = state.marks.first_key_value().filter(|(first, _)| **first <= self.key.0);
        let until = oldest.map(|(_, arrived)| *arrived + PATIENCE);
        if until.is_some() && !std::mem::replace(&mut state.is_timed, true) {
            self.is_timer = true;
        }
        drop(state);
        ready.into_iter().for_each(Waker::wake);
        until
    }

    /// Ready when the write may have nothing to wait for any more, or when somebody must wait for the time.
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.order.state.lock();
        if !state.has_up_to(self.key.0) || !state.is_timed {
            return Poll::Ready(());
        }
        state.held.insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.order.state.lock();
        state.held.remove(&self.key);
        if state.held.is_empty() {
            // As with the marks.
            state.held = BTreeMap::new();
        }
        state.is_timed &= !self.is_timer;
        if !state.is_timed {
            // Also if it was woken to wait for the time, and is dropped before that.
            let next = state.held.pop_first();
            drop(state);
            next.into_iter().for_each(|(_, next)| next.wake());
        }
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("streams", &self.streams).field("marked", &self.marked).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
