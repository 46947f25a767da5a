//! [`Limits`]: how much a peer may make a connection do and keep.
//!
//! Not here: what happens when a limit is reached, which is said at each of them and done where it is met.

use std::time::Duration;

/// How much a peer may ask for. What is a field differs between ports; what is a constant follows from the protocol or from the costs
/// of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open streams. More are refused with `REFUSED_STREAM`, which a client may try again.
    pub max_streams: u32,
    /// Bytes of a request's fields, as RFC 9113 counts them. A request with more is answered with 431; a block that is longer even
    /// when it is compressed ends the connection.
    pub max_header_list: u32,
    /// Bytes of a request's body that wait for its handler. The peer has no room to send more.
    pub stream_window: u32,
    /// The same for all requests together.
    pub connection_window: u32,
    /// Bytes that all requests together may take which were not answered yet: their fields as they are in memory, their bodies, and what
    /// each call takes beside them. A request for which there is no room is refused with `REFUSED_STREAM`; one that outgrows it with
    /// `ENHANCE_YOUR_CALM`. Windows cannot bound this, for a handler that waits for the rest of a body has read what came of it.
    pub unanswered: usize,
    /// Pings that find out whether the peer is there; `None` sends none.
    pub keepalive: Option<Keepalive>,
}

/// Pings that find out whether a client is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Time between pings.
    pub interval: Duration,
    /// A connection without an answer for this long is closed.
    pub timeout: Duration,
}

/// Which bound a request met that a connection did not serve.
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
    /// Bytes that wait for the socket before streams are asked for more: as much as a socket takes at once.
    pub const OUTPUT: usize = 128 << 10;
    /// Frames over which the fields of one request may be spread. More end the connection.
    pub const CONTINUATIONS: u32 = 64;
    /// Streams that a peer may have opened for nothing, such as to reset them at once, more than those that it let us answer. One more
    /// ends the connection.
    pub const WASTED_STREAMS: u32 = 1_000;
    /// How long a connection reads, and how long it runs its streams, before the other connections of its thread go on: what several large
    /// writes take, or a hundred small calls. Where all threads are busy with connections that always have more to do, the calls of others wait
    /// for about that long.
    pub const TURN: Duration = Duration::from_micros(250);
    /// Requests whose handlers were not called yet. Nothing more is read before some of them are.
    pub const FRESH: usize = 1_000;
    /// How long a peer may take for the rest of something that it has begun. A frame, or fields spread over several, that are not whole
    /// by then end the connection; a request of which a part of the body came, and nothing since then, is reset with `CANCEL`. It is looked
    /// at as often as that, so it can be twice as long.
    pub const UNFINISHED: Duration = Duration::from_secs(60);
    /// Streams that were reset by us and whose last frames, which may still come, are no fault of the peer's.
    pub const REMEMBERED_RESETS: usize = 64;
}

impl Default for Limits {
    /// Those of a port with its defaults.
    fn default() -> Self {
        Self {
            max_streams: 100_000,
            // etcd's tokens have some KiB.
            max_header_list: 64 << 10,
            // A client's largest request is some MiB; many small ones share a connection.
            stream_window: 1 << 20,
            connection_window: 4 << 20,
            // Some ten thousand calls that wait, or thirty of the largest writes.
            unanswered: 64 << 20,
            keepalive: Some(Keepalive::DEFAULT),
        }
    }
}

impl Keepalive {
    /// Notices a vanished client in 80 s at the most.
    pub const DEFAULT: Self = Self { interval: Duration::from_secs(60), timeout: Duration::from_secs(20) };
}
