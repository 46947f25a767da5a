//! [`Batcher`]: joins the sends of many connections into one system call, where the kernel offers io_uring.
//!
//! A write to a thousand watchers is a thousand sends of some hundred bytes. Each costs a system call, and a turn of
//! the connection's task between two system calls. With a batcher, the connections of a thread queue what they write
//! (`socket`), and the thread sends it all at once (`lane`, `ring`). Ports use this; what is written is not known here.
//! Always holds: a connection sees no difference but in time, and a batcher that cannot be used any more is only
//! slower.

mod lane;
mod ring;
mod socket;

use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::lane::Lane;
pub use self::{
    ring::UringError,
    socket::{JoinedStream, Stream, Switch},
};
use crate::critical::Tasks;

/// How bytes are sent to clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// By io_uring where it can be used.
    #[default]
    Auto,
    /// Each send is a system call.
    Epoll,
    /// By io_uring.
    Uring,
}

/// Joins sends; see the module.
pub struct Batcher {
    /// One for each thread of the runtime.
    lanes: Vec<Arc<Lane>>,
    /// Cancelled when it is dropped.
    dropped: CancellationToken,
    _drop: DropGuard,
}

thread_local! {
    /// The number of this thread, in the order of first sends.
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Batcher {
    /// A batcher for the threads of this runtime; `None` if `io` says so, or leaves it to the kernel and the kernel
    /// refuses. What was decided is logged.
    ///
    /// # Errors
    /// If `io` asks for io_uring and it cannot be used.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub fn new(io: Io) -> Result<Option<Arc<Self>>, UringError> {
        if io == Io::Epoll {
            return Ok(None);
        }
        let threads = Handle::current().metrics().num_workers();
        let lanes: Vec<_> = match (0..threads).map(|_| Lane::new().map(Arc::new)).collect() {
            Ok(lanes) => lanes,
            Err(error) if io == Io::Auto => {
                tracing::info!(io = "epoll", reason = %error, "Each send to a client is a system call");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        tracing::info!(io = "uring", threads, "Sends to many clients are joined into one system call");
        let dropped = CancellationToken::new();
        Ok(Some(Arc::new(Self { lanes, _drop: dropped.clone().drop_guard(), dropped })))
    }

    /// Spawns what sends the queued bytes. To be called before streams join their writes. The tasks end with the
    /// batcher.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    pub fn start(&self, tasks: &Tasks) {
        for lane in &self.lanes {
            let (lane, dropped) = (lane.clone(), self.dropped.clone());
            tasks.detach("sends to clients", async move {
                dropped.run_until_cancelled(lane.keep_flushing()).await;
            });
        }
    }

    /// The lane of this thread.
    fn lane(&self) -> &Arc<Lane> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        let thread = THREAD.get().unwrap_or_else(|| {
            let thread = THREADS.fetch_add(1, Ordering::Relaxed);
            THREAD.set(Some(thread));
            thread
        });
        &self.lanes[thread % self.lanes.len()]
    }
}

impl fmt::Debug for Batcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").field("lanes", &self.lanes.len()).finish()
    }
}

#[cfg(test)]
mod tests;
