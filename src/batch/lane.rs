//! [`Lane`]: the sends that the connections of one thread have queued, and how they leave in one system call.
//!
//! `socket` queues here, and learns here what has become of a send. Always holds:
//! - a socket has at most one send in a lane;
//! - a queued send leaves when [`Ring::CAPACITY`] sends or [`BYTES`] are queued, or else when the tasks that are ready
//!   on this thread have run. It never waits for a client;
//! - whoever queues waits for sends that are under way only if the queue is full, so that it holds no more sends beyond
//!   its capacity than there are threads;
//! - nobody is woken under a lock.
//!
//! Locks are taken in this order: `sender`, then `queue` or a socket's own.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    ops::Range,
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Poll, Waker},
};

use futures_util::task::AtomicWaker;
use metrics::{Counter, Gauge, counter, gauge};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{
    UringError,
    ring::{Broken, Ring},
    socket::Outgoing,
};
use crate::telemetry::names;

/// Bytes that wait in a lane before they are sent; what a connection's turn may write.
const BYTES: usize = 128 << 10;
/// After a send that had no company, this many are made directly: a thread whose connections do not send at the same
/// time would pay for the queue and gain nothing.
const DIRECT: u32 = 32;

/// A lane; see the module.
pub(super) struct Lane {
    queue: Mutex<Batch>,
    sender: Mutex<Sender>,
    /// Wakes the task that sends what is queued.
    flusher: AtomicWaker,
    /// How many more sends are made directly.
    direct: AtomicU32,
    batches: Counter,
    sends: Counter,
}

/// Sends in the order in which they were queued.
#[derive(Default)]
struct Batch {
    sends: Vec<Queued>,
    bytes: Vec<u8>,
}

struct Queued {
    to: Arc<Outgoing>,
    /// Where its bytes end. They begin where those of the send before end.
    end: usize,
}

/// What makes the sends of a batch.
struct Sender {
    /// `None` after it has failed.
    ring: Option<Ring>,
    rings: Gauge,
    /// Empty between batches; kept for its memory.
    batch: Batch,
}

impl Lane {
    pub(super) fn new() -> Result<Self, UringError> {
        let rings = gauge!(names::SEND_RINGS);
        let ring = Ring::new()?;
        rings.increment(1.0);
        Ok(Self {
            queue: Mutex::default(),
            sender: Mutex::new(Sender { ring: Some(ring), rings, batch: Batch::default() }),
            flusher: AtomicWaker::new(),
            direct: AtomicU32::new(0),
            batches: counter!(names::SEND_BATCHES),
            sends: counter!(names::BATCHED_SENDS),
        })
    }

    /// Whether the next send should be queued. If not, it is to be made directly.
    pub(super) fn takes(&self) -> bool {
        let direct = self.direct.load(Ordering::Relaxed);
        if direct > 0 {
            self.direct.store(direct - 1, Ordering::Relaxed);
        }
        direct == 0
    }

    /// Queues a send. `to` must have none in any lane.
    pub(super) fn queue(&self, to: Arc<Outgoing>, pieces: &[IoSlice<'_>]) {
        let (is_first, is_full) = {
            let mut queue = self.queue.lock();
            for piece in pieces {
                queue.bytes.extend_from_slice(piece);
            }
            let end = queue.bytes.len();
            queue.sends.push(Queued { to, end });
            (queue.sends.len() == 1, queue.sends.len() >= Ring::CAPACITY || end >= BYTES)
        };
        if is_full {
            self.flush();
        } else if is_first {
            self.flusher.wake();
        }
    }

    /// Sends what is queued. When it returns, nothing is under way that was queued before the call.
    pub(super) fn flush(&self) {
        let woken = {
            let mut sender = self.sender.lock();
            std::mem::swap(&mut *self.queue.lock(), &mut sender.batch);
            let count = sender.batch.sends.len();
            match count {
                0 => {}
                1 => self.direct.store(DIRECT, Ordering::Relaxed),
                _ => {
                    self.batches.increment(1);
                    self.sends.increment(count as u64);
                }
            }
            sender.send()
        };
        for waker in woken {
            waker.wake();
        }
    }

    /// Sends what was queued once all tasks that are ready have run. Never ends. A task of its own runs it, on the
    /// threads that queue.
    pub(super) async fn keep_flushing(&self) {
        let mut has_given_way = false;
        poll_fn(|cx| {
            self.flusher.register(cx.waker());
            if self.queue.lock().sends.is_empty() {
                has_given_way = false;
            } else if has_given_way {
                has_given_way = false;
                self.flush();
            } else {
                // A task that was just woken runs next. One that wakes itself goes behind those that are ready.
                has_given_way = true;
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        })
        .await;
    }

    /// Nothing is sent while this is held.
    #[cfg(test)]
    pub(super) fn hold(&self) -> impl Drop + '_ {
        self.sender.lock()
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queue.lock().sends.len()
    }

    #[cfg(test)]
    pub(super) fn remove_ring(&self) {
        self.sender.lock().ring = None;
    }

    /// Lets the next batch fail.
    #[cfg(test)]
    pub(super) fn break_ring(&self) {
        if let Some(ring) = &mut self.sender.lock().ring {
            ring.break_it();
        }
    }
}

impl Sender {
    /// Sends the batch. Returns whom to wake.
    fn send(&mut self) -> SmallVec<[Waker; 4]> {
        let mut woken = SmallVec::new();
        let Self { ring, rings, batch: Batch { sends, bytes } } = self;
        if let Some(uring) = ring.as_mut().filter(|_| sends.len() > 1) {
            if let Err((made, error)) = join(uring, sends, bytes, &mut woken) {
                tracing::error!(%error, "Cannot send to several clients at once; their connections are closed, and others are written to one by one");
                woken.extend(sends[made..].iter().filter_map(|queued| queued.to.sent(&[], Err(lost(&error)))));
                *ring = None;
                rings.decrement(1.0);
            }
        } else {
            for (to, range) in ranges(sends) {
                let bytes = &bytes[range];
                woken.extend(to.sent(bytes, to.try_write(bytes)));
            }
        }
        sends.clear();
        bytes.clear();
        woken
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.ring.is_some() {
            self.rings.decrement(1.0);
        }
    }
}

/// Makes the sends by `ring`. If it fails, returns how many were made before. The bytes are gone then.
fn join(
    ring: &mut Ring,
    sends: &[Queued],
    bytes: &mut Vec<u8>,
    woken: &mut SmallVec<[Waker; 4]>,
) -> Result<(), (usize, Broken)> {
    let all: SmallVec<[(BorrowedFd<'_>, Range<usize>); Ring::CAPACITY]> =
        ranges(sends).map(|(to, range)| (to.as_fd(), range)).collect();
    let mut made = 0;
    // Threads that share a lane may have queued a few more than a ring takes.
    for part in all.chunks(Ring::CAPACITY) {
        let results = ring.send(bytes, part).map_err(|error| (made, error))?;
        for ((queued, (_, range)), result) in sends[made..].iter().zip(part).zip(results) {
            let sent = usize::try_from(*result).map_err(|_| io::Error::from_raw_os_error(-result));
            woken.extend(queued.to.sent(&bytes[range.clone()], sent));
        }
        made += part.len();
    }
    Ok(())
}

/// Each send with the range of its bytes.
fn ranges(sends: &[Queued]) -> impl Iterator<Item = (&Arc<Outgoing>, Range<usize>)> {
    let begins = std::iter::once(0).chain(sends.iter().map(|queued| queued.end));
    sends.iter().zip(begins).map(|(queued, begin)| (&queued.to, begin..queued.end))
}

fn lost(error: &Broken) -> io::Error {
    io::Error::other(error.to_string())
}
