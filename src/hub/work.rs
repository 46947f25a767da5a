//! [`Workers`]: the threads for reads whose time grows with the number of keys, and the queue before them.
//!
//! Not here: what such a read does, see `read`. On its connection's thread it would hold up everything else there. Here
//! reads take turns of about a millisecond: client by client, so that a client that asks for much delays only itself,
//! and for each client connection by connection, in order of arrival.
//! Always holds:
//! - no more threads run than half of the cores, but at least one; they end when there is nothing to do. In a
//!   simulation one task takes their place ([`Hands`]);
//! - each client has at most one read under way, and [`BEGUN`] are under way in all; the others wait, and hold no
//!   snapshot meanwhile;
//! - the waiting reads are bounded for each client and in all, see [`Bounds`]; above that a read is refused;
//! - a read whose [`Place`] is dropped is not continued.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use thiserror::Error;
use tokio::{runtime::Handle, sync::oneshot};

use super::stats;
use crate::{critical::Tasks, types::ClientKey};

/// The most reads under way, which bounds their memory: about 32 bytes for each key of a feed.
const BEGUN: usize = 8;
/// How long a thread without work stays.
const LINGER: Duration = Duration::from_secs(5);
/// How far the threads give way to those that serve connections, if the cores are not enough for all. See nice(2).
const NICE: i32 = 10;

/// How much may wait, and how much may be held for clients that do not read their replies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The most waiting reads of a client.
    pub(super) waiting: usize,
    /// The most bytes of these reads. All clients together have sixteen times as much, and then each has an equal share
    /// of it.
    pub(super) waiting_bytes: usize,
    /// The most bytes of a client's unread replies; above that its next read waits. All clients together have eight
    /// times as much, and above that only clients that hold nothing may begin a read.
    pub(super) held_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        // A thousand reads wait for some seconds. A held reply takes eight bytes for each key-value.
        Self { waiting: 1024, waiting_bytes: 4 << 20, held_bytes: 32 << 20 }
    }
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hands {
    /// At most this many threads.
    Threads(usize),
    /// One task of the runtime, see [`Tasks::on_one_thread`].
    Task,
}

impl Hands {
    /// Threads, unless `tasks` has none.
    pub(super) fn of(tasks: &Tasks) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        if tasks.has_threads() { Self::Threads((cores / 2).max(1)) } else { Self::Task }
    }

    fn most(self) -> usize {
        match self {
            Self::Threads(most) => most,
            Self::Task => 1,
        }
    }
}

/// Whose read it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The client.
    pub client: ClientKey,
    /// One of its connections, by a unique number.
    pub connection: u64,
}

/// A job that is done in steps.
pub(super) trait Job: Send {
    /// Continues for about a millisecond. Returns true once the job is done and its caller has the result.
    fn step(&mut self, share: &Share) -> bool;
}

/// The client has as many reads waiting as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy;

/// Why a job that takes turns has no result.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NotDone {
    /// The client has as many reads waiting as it may.
    #[error("too many long reads of this client's address wait; try again when one has ended")]
    Busy,
    /// A step failed because of a fault in the relay, which the log names.
    #[error("the read failed inside the relay")]
    Failed,
}

/// The threads and their queue; see the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Workers {
    shared: Arc<WorkQueue>,
}

struct WorkQueue {
    queue: Mutex<Queue>,
    wanted: Condvar,
    bounds: Bounds,
    hands: Hands,
}

#[derive(Default)]
struct Queue {
    clients: HashMap<ClientKey, Client>,
    /// Clients that may begin a read, the next one first.
    to_begin: VecDeque<ClientKey>,
    /// Reads under way that no thread is running, the next one first.
    begun: VecDeque<Begun>,
    /// The number of reads under way.
    under_way: usize,
    held_bytes: usize,
    last: u64,
    threads: usize,
    idle: usize,
}

/// A client's reads and replies. It is forgotten when it has none.
#[derive(Default)]
struct Client {
    /// Waiting reads by connection, in order of arrival.
    waiting: BTreeMap<Number, Waiting>,
    waiting_bytes: usize,
    held_bytes: usize,
    /// The connection whose read was begun last.
    last: u64,
    is_under_way: bool,
    /// Whether it is in [`Queue::to_begin`].
    may_begin: bool,
}

/// A connection and the number of a read.
type Number = (u64, u64);

struct Waiting {
    job: Box<dyn Job>,
    bytes: usize,
    dropped: Arc<AtomicBool>,
}

struct Begun {
    client: ClientKey,
    job: Box<dyn Job>,
    dropped: Arc<AtomicBool>,
}

/// The place of a read in the queue, and later among those under way.
pub(super) struct Place {
    shared: Arc<WorkQueue>,
    client: ClientKey,
    number: Number,
    dropped: Arc<AtomicBool>,
}

/// Counts the memory of a reply towards its client's share.
pub(super) struct Share {
    shared: Arc<WorkQueue>,
    client: ClientKey,
}

/// Memory of a reply, counted until this is dropped.
pub(super) struct Held {
    shared: Arc<WorkQueue>,
    client: ClientKey,
    bytes: usize,
}

impl Workers {
    pub(super) fn new(bounds: Bounds, hands: Hands) -> Self {
        let (queue, wanted) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(WorkQueue { queue, wanted, bounds, hands }) }
    }

    /// Queues a job. `bytes` is about how much memory it takes while it waits.
    ///
    /// # Errors
    /// [`Busy`] if the client's limits are reached, or the system cannot start a thread.
    pub(super) fn enter(&self, asker: Asker, bytes: usize, job: Box<dyn Job>) -> Result<Place, Busy> {
        let Asker { client: key, connection } = asker;
        let dropped = Arc::new(AtomicBool::new(false));
        let mut queue = self.shared.queue.lock();
        let Queue { clients, last, .. } = &mut *queue;
        let others = clients.len();
        let client = clients.entry(key).or_default();
        if !client.waiting.is_empty() {
            let share = self.shared.bounds.waiting_bytes.min(16 * self.shared.bounds.waiting_bytes / others.max(1));
            if client.waiting.len() >= self.shared.bounds.waiting || client.waiting_bytes + bytes > share {
                return Err(Busy);
            }
        }
        *last += 1;
        let number = (connection, *last);
        client.waiting.insert(number, Waiting { job, bytes, dropped: dropped.clone() });
        client.waiting_bytes += bytes;
        queue.list(key, &self.shared.bounds);
        stats::long_read(true);
        let place = Place { shared: self.shared.clone(), client: key, number, dropped };
        self.shared.rouse(queue)?;
        Ok(place)
    }

    /// Queues a function, and calls it until a step has a result. `bytes` is about how much memory it takes while it
    /// waits.
    ///
    /// # Errors
    /// See [`NotDone`].
    pub(super) async fn run<T: Send + 'static>(
        &self,
        asker: Asker,
        bytes: usize,
        step: impl FnMut() -> Option<T> + Send + 'static,
    ) -> Result<T, NotDone> {
        let (answer, answered) = oneshot::channel();
        let job = Stepped { step, answer: Some(answer) };
        let place = self.enter(asker, bytes, Box::new(job));
        let _place = place.map_err(|Busy| NotDone::Busy)?;
        answered.await.map_err(|_| NotDone::Failed)
    }
}

/// A job that calls one function until it has a result.
struct Stepped<F, T> {
    step: F,
    answer: Option<oneshot::Sender<T>>,
}

impl<T: Send, F: FnMut() -> Option<T> + Send> Job for Stepped<F, T> {
    fn step(&mut self, _: &Share) -> bool {
        let Some(outcome) = (self.step)() else { return false };
        if let Some(answer) = self.answer.take() {
            // The caller may be gone.
            drop(answer.send(outcome));
        }
        true
    }
}

impl WorkQueue {
    /// Wakes a thread if there is something to do, or starts one.
    fn rouse(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) -> Result<(), Busy> {
        let to_do = queue.to_begin.len() + queue.begun.len();
        if to_do > 0 && queue.idle > 0 {
            self.wanted.notify_one();
        }
        if to_do <= queue.idle || queue.threads >= self.hands.most() {
            return Ok(());
        }
        queue.threads += 1;
        drop(queue);
        self.start().or_else(|error| {
            let mut queue = self.queue.lock();
            queue.threads -= 1;
            tracing::error!(%error, threads = queue.threads, "Cannot start a thread for long reads");
            // If there is another thread, that one does the work.
            if queue.threads > 0 { Ok(()) } else { Err(Busy) }
        })
    }

    /// Starts a thread, or the task.
    fn start(self: &Arc<Self>) -> io::Result<()> {
        let shared = self.clone();
        match self.hands {
            Hands::Threads(_) => {
                thread::Builder::new().name("long-reads".to_owned()).spawn(move || shared.work()).map(drop)
            }
            Hands::Task => {
                let runtime = Handle::try_current().map_err(io::Error::other)?;
                runtime.spawn(async move { shared.work_as_task().await });
                Ok(())
            }
        }
    }

    /// The main loop of a thread.
    fn work(self: &Arc<Self>) {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "Cannot lower the priority of the threads for long reads");
        }
        while let Some(begun) = self.next() {
            self.step(begun);
        }
    }

    /// The same as a task, which ends at once when there is nothing to do.
    async fn work_as_task(self: &Arc<Self>) {
        while let Some(begun) = self.next_or_end() {
            self.step(begun);
            // The runtime's other tasks go on meanwhile.
            tokio::task::yield_now().await;
        }
    }

    /// Continues a read by a step.
    fn step(self: &Arc<Self>, mut begun: Begun) {
        let share = Share { shared: self.clone(), client: begun.client };
        let is_dropped = begun.dropped.load(Ordering::Relaxed);
        let is_over = is_dropped
            || catch_unwind(AssertUnwindSafe(|| begun.job.step(&share))).unwrap_or_else(|_| {
                // The caller finds out when the job is dropped. The panic itself has been logged by now.
                tracing::error!("A long read failed because of a fault in the relay");
                true
            });
        if is_over {
            let client = begun.client;
            // What it held is freed before another read begins.
            drop(begun);
            self.queue.lock().end(client, &self.bounds);
        } else {
            self.queue.lock().begun.push_back(begun);
        }
    }

    /// The next read to continue. `None` if there is none, and then the caller ends.
    fn next_or_end(&self) -> Option<Begun> {
        let mut queue = self.queue.lock();
        let next = queue.next();
        queue.threads -= usize::from(next.is_none());
        next
    }

    /// The next read to continue. `None` after a while without one.
    fn next(&self) -> Option<Begun> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(next) = queue.next() {
                return Some(next);
            }
            queue.idle += 1;
            let waited = self.wanted.wait_for(&mut queue, LINGER);
            queue.idle -= 1;
            if waited.timed_out() && queue.begun.is_empty() && queue.to_begin.is_empty() {
                queue.threads -= 1;
                return None;
            }
        }
    }
}

impl Queue {
    /// Puts a client into the queue, if it has a waiting read and may begin one.
    fn list(&mut self, key: ClientKey, bounds: &Bounds) {
        let all = 8 * bounds.held_bytes;
        let Some(client) = self.clients.get_mut(&key) else { return };
        let fits = client.held_bytes == 0 || client.held_bytes < bounds.held_bytes && self.held_bytes < all;
        if fits && !client.waiting.is_empty() && !client.is_under_way && !client.may_begin {
            client.may_begin = true;
            self.to_begin.push_back(key);
        }
    }

    /// The next read to continue, or to begin.
    fn next(&mut self) -> Option<Begun> {
        while self.under_way < BEGUN {
            let Some(key) = self.to_begin.pop_front() else { break };
            let Some(client) = self.clients.get_mut(&key) else { continue };
            client.may_begin = false;
            if let Some(waiting) = client.next() {
                client.is_under_way = true;
                self.under_way += 1;
                return Some(Begun { client: key, job: waiting.job, dropped: waiting.dropped });
            }
            self.forget(key);
        }
        self.begun.pop_front()
    }

    /// A read has ended.
    fn end(&mut self, key: ClientKey, bounds: &Bounds) {
        self.under_way -= 1;
        if let Some(client) = self.clients.get_mut(&key) {
            client.is_under_way = false;
        }
        self.list(key, bounds);
        self.forget(key);
    }

    /// Forgets a client that has nothing here.
    fn forget(&mut self, key: ClientKey) {
        let has_nothing = |client: &Client| {
            client.waiting.is_empty() && client.held_bytes == 0 && !client.is_under_way && !client.may_begin
        };
        if self.clients.get(&key).is_some_and(has_nothing) {
            self.clients.remove(&key);
        }
        if self.clients.is_empty() {
            self.clients = HashMap::new();
            self.to_begin = VecDeque::new();
            self.begun = VecDeque::new();
        }
    }
}

impl Client {
    /// The next read: the oldest of the connection that comes after the one that had the last turn.
    fn next(&mut self) -> Option<Waiting> {
        let after = self.waiting.range((self.last.saturating_add(1), 0)..).next();
        let number = *after.or_else(|| self.waiting.iter().next())?.0;
        let waiting = self.waiting.remove(&number)?;
        self.last = number.0;
        self.waiting_bytes -= waiting.bytes;
        Some(waiting)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
        stats::long_read(false);
        let removed = {
            let mut queue = self.shared.queue.lock();
            let client = queue.clients.get_mut(&self.client);
            let removed = client.and_then(|client| {
                let removed = client.waiting.remove(&self.number)?;
                client.waiting_bytes -= removed.bytes;
                Some(removed)
            });
            queue.forget(self.client);
            removed
        };
        // Not under the lock.
        drop(removed);
    }
}

impl Share {
    /// Counts the memory of a reply.
    pub(super) fn hold(&self, bytes: usize) -> Held {
        let mut queue = self.shared.queue.lock();
        queue.held_bytes += bytes;
        // A client with a read under way is in the map.
        queue.clients.entry(self.client).or_default().held_bytes += bytes;
        Held { shared: self.shared.clone(), client: self.client, bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.held_bytes -= self.bytes;
        if let Some(client) = queue.clients.get_mut(&self.client) {
            client.held_bytes -= self.bytes;
        }
        queue.list(self.client, &self.shared.bounds);
        queue.forget(self.client);
        // If no thread can be started, the next read that arrives tries again.
        self.shared.rouse(queue).ok();
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.shared.queue.lock();
        f.debug_struct("Workers").field("clients", &queue.clients.len()).field("under_way", &queue.under_way).finish()
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
