//! HTTP/2 without TLS, the server's side (RFC 9113), for thousands of connections on which little but answers moves.
//!
//! A connection is one task: it reads frames, calls the handler for each request, polls handlers and answers that have something to
//! say, and writes what they give in one system call. hyper's server hands each piece from a task of the stream to one of the
//! connection through a lock and a queue; with a thousand watchers that took as long as all the rest, and four times the memory
//! (docs/performance.md). Here an event costs its stream's queue, a frame's head and the write.
//!
//! This layer knows nothing of the relay: [`Connection::new`] takes any stream of bytes, a service, the [`Limits`], and two futures
//! that tell when to end. So it can be fuzzed and simulated alone.
//!
//! Not here: what is answered (the service); sockets, and what a peer may do before it speaks HTTP/2 (`front::listen`); the client's
//! side, which has hyper's. Parts: `limits`, `frame` (the wire), `hpack` (compressed fields), `request` (what fields mean), `body` (a
//! request's), `stream`, `streams`, `output`, `wake`, `turn`, `intake` (what frames do), and `connection`, which is the task.
//!
//! Always holds:
//! - what a peer can make us keep is bounded: by windows for bodies, by a size for fields, by a number for streams, and we do
//!   not read from one who does not take what waits for it;
//! - an error of a stream ends that stream, one of the connection all of them, with the reason that the RFC names;
//! - a turn of a connection is bounded in time, whatever its peer sends and however many streams end at once;
//! - a stream that is over leaves nothing behind but, for a while, its number.

mod body;
mod connection;
mod frame;
pub mod hpack;
mod limits;
mod output;
mod request;
mod stream;
mod streams;
mod turn;
mod wake;

pub use self::{
    body::Body,
    connection::{Connection, Ended},
    limits::{Keepalive, Limits, Refused},
};

/// Why a handler or the body of an answer failed. It resets its stream: with the reason of an [`h2::Error`] that is among its causes,
/// otherwise with `INTERNAL_ERROR`.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[cfg(test)]
pub(crate) mod tests;
