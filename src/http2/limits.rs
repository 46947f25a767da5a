//! [`Limits`]: how much work and memory a peer may cause on a connection.
//!
//! The effect at each limit is described here and implemented where the limit is reached.

use std::time::Duration;

/// Limits of a connection. The fields can differ between ports. The constants follow from the protocol or from the cost
/// of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most open streams. Further ones are refused with `REFUSED_STREAM`; a client may try them again.
    pub max_streams: u32,
    /// Most bytes of a request's fields, as RFC 9113 counts them. A larger request is answered with 431. If the
    /// compressed block alone is larger, the connection ends.
    pub max_header_list: u32,
    /// Most bytes of a request's body that wait for its handler. The peer's window allows no more.
    pub stream_window: u32,
    /// The same for all requests together.
    pub connection_window: u32,
    /// Most bytes of all unanswered requests together: their fields as they are in memory, their bodies, and an
    /// overhead per call. A request for which there is no room is refused with `REFUSED_STREAM`; one that outgrows the
    /// room is reset with `ENHANCE_YOUR_CALM`. Windows cannot bound this, because a handler that waits for the rest of
    /// a body has already read the first part.
    pub unanswered: usize,
    /// Pings to detect a vanished peer; `None` sends none.
    pub keepalive: Option<Keepalive>,
}

/// Pings to detect a vanished client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Time between pings.
    pub interval: Duration,
    /// A connection is closed if a ping is not answered for this long.
    pub timeout: Duration,
}

/// The limit because of which a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// [`Limits::max_streams`].
    Streams,
    /// [`Limits::max_header_list`].
    Fields,
    /// [`Limits::unanswered`].
    Unanswered,
}

impl Limits {
    /// Most bytes that wait for the socket before streams run again: about what a socket accepts at once. A turn ends
    /// with such a write if it is part of an answer of known length. This does not apply to watches: if they catch up,
    /// fewer and longer turns cost less.
    pub const OUTPUT: usize = 128 << 10;
    /// An answer may exceed [`Self::OUTPUT`] if it ends within so many bytes, and if the socket took the last large
    /// write at once. A second write would wake the client and send a short packet once more, which cost a tenth
    /// of the whole in a bare program.
    pub const ANSWER: usize = 512 << 10;
    /// Most frames for the fields of one request. More end the connection.
    pub const CONTINUATIONS: u32 = 64;
    /// How many more streams a peer may open for nothing, for example to reset them at once, than it let us answer. One
    /// more ends the connection.
    pub const WASTED_STREAMS: u32 = 1_000;
    /// How long a connection reads, and how long it runs its streams, before the other connections of its thread
    /// continue. This is the time of several large writes, or of a hundred small calls. If all threads have connections
    /// that always have more to do, other calls wait for about this long.
    pub const TURN: Duration = Duration::from_micros(250);
    /// Most requests whose handlers were not called yet. Nothing more is read until some of them are.
    pub const FRESH: usize = 1_000;
    /// How long a peer may take to complete what it has begun. An incomplete frame, or incomplete fields, then end the
    /// connection. A request whose body has begun and then stopped is reset with `CANCEL`. The check runs at this
    /// interval, so it can take twice as long.
    pub const UNFINISHED: Duration = Duration::from_secs(60);
    /// Number of reset streams that are remembered. Frames that still arrive for them are not the peer's fault.
    pub const REMEMBERED_RESETS: usize = 64;
}

impl Default for Limits {
    /// The limits of a port with default flags.
    fn default() -> Self {
        Self {
            max_streams: 100_000,
            // etcd's tokens can have some KiB.
            max_header_list: 64 << 10,
            // The largest request of a client has some MiB, and many small ones share a connection.
            stream_window: 1 << 20,
            connection_window: 4 << 20,
            // Enough for some ten thousand waiting calls, or thirty of the largest writes.
            unanswered: 64 << 20,
            keepalive: Some(Keepalive::DEFAULT),
        }
    }
}

impl Keepalive {
    /// Detects a vanished client within 80 s.
    pub const DEFAULT: Self = Self { interval: Duration::from_secs(60), timeout: Duration::from_secs(20) };
}
