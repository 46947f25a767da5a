//! [`Client`]: the client side of HTTP/2 for calls that are short and many (RFC 9113), over any stream of bytes.
//!
//! A connection is one task, the [`Driver`], which reads and writes. A call has no task and no channel. Whoever makes
//! it puts its frames into the connection's output under a lock (`state`), and the driver writes the frames of all
//! calls that came meanwhile in one system call. What one read brings is given to all its calls under one lock, before
//! the first of them is woken. So a caller with several calls has all their answers in one turn. hyper's client has two
//! tasks and two channels for a call, and writes each call by itself; that took more than half of what a forwarded call
//! cost (docs/performance.md).
//!
//! This layer knows nothing of the relay: which connection a call uses, and what is sent, is decided in `source::pool`,
//! `source::forward` and `source::etcd`. Parts: `state` (calls, windows, output), `driver` (the task: bytes and
//! frames), and `call` (a call, from its request to the end of its answer).
//!
//! Always holds:
//! - memory that a peer can use is bounded: answers by the windows, fields by [`ClientLimits::max_header_list`].
//!   Nothing is read from a peer that does not take what is sent;
//! - a call ends once: with its answer, with the peer's reset, or with the connection. A call that is dropped before
//!   that is reset;
//! - data of requests is sent in the order in which it was offered, and no call waits for another caller to be polled;
//! - nothing is woken and no foreign code runs under the lock.

mod call;
mod driver;
mod state;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use h2::Reason;
use http::HeaderMap;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};

use self::state::State;
pub use self::{
    call::{Call, Unsent, Upload},
    driver::Driver,
};

/// Limits of a connection, and how it finds out that its peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Most bytes of an answer that wait for their reader.
    pub stream_window: u32,
    /// Most bytes of the fields of an answer, as RFC 9113 counts them. The call of a larger one ends with an error.
    pub max_header_list: u32,
    /// Pings to detect a vanished peer; `None` sends none.
    pub keepalive: Option<Pings>,
}

/// Pings to detect a vanished peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pings {
    /// Time without a frame after which a ping is sent.
    pub interval: Duration,
    /// The connection ends if a ping is not answered for this long.
    pub timeout: Duration,
    /// Whether to ping while no call is running.
    pub while_idle: bool,
}

/// The head of a request. Its method is POST.
#[derive(Clone, Copy, Debug)]
pub struct CallHead<'a> {
    /// Whether the scheme is `https`.
    pub secure: bool,
    /// `:authority`.
    pub authority: &'a str,
    /// `:path`.
    pub path: &'a str,
    /// All other fields. They must be valid in HTTP/2: no `connection` and the like.
    pub headers: &'a HeaderMap,
}

/// Why a call that was sent has no answer, or only a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Lost {
    /// The peer reset the stream.
    #[error("stream error received: {0}")]
    Reset(Reason),
    /// The answer violates the protocol, or is larger than allowed.
    #[error("the answer cannot be used: {0}")]
    Unusable(Reason),
    /// The request broke off.
    #[error("the request broke off")]
    Request,
    /// The connection ended.
    #[error("{0}")]
    Connection(Arc<str>),
}

/// Makes calls on one connection. Cheap to clone. When the last clone is dropped, the connection ends with its last
/// call.
#[derive(Clone)]
pub struct Client {
    open: Arc<Open>,
}

/// Tells the driver when nobody can make a call any more.
struct Open {
    shared: Arc<Shared>,
}

struct Shared {
    /// A plain mutex: nothing waits and no task is woken under it.
    state: Mutex<State>,
    /// How many calls the peer accepts at once; zero until it has sent its settings.
    most: AtomicUsize,
    closed: AtomicBool,
}

impl Client {
    /// Starts a connection at `io`. The driver must be polled for anything to happen. The receiver is notified once
    /// the peer has sent its settings, and calls may be made.
    ///
    /// # Panics
    /// Panics outside a tokio runtime with time, if `limits` has a keepalive.
    pub fn start<T>(io: T, limits: ClientLimits) -> (Self, Driver<T>, oneshot::Receiver<()>)
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let (greeted, greeting) = oneshot::channel();
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(&limits, greeted)),
            most: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        let driver = Driver::new(io, shared.clone(), limits);
        (Self { open: Arc::new(Open { shared }) }, driver, greeting)
    }

    /// How many calls the peer accepts at once; zero until it has sent its settings.
    #[must_use]
    pub fn most(&self) -> usize {
        self.open.shared.most.load(Ordering::Relaxed)
    }

    /// Whether no more calls can be made, because the connection has ended or the peer asked to leave.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.open.shared.closed.load(Ordering::Relaxed)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let task = self.shared.state.lock().release();
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("most", &self.most()).finish_non_exhaustive()
    }
}
