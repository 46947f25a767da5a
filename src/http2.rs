//! HTTP/2 without TLS (RFC 9113): the server side, for thousands of connections on which mostly answers flow, and the
//! client side for calls that are short and many ([`client`]).
//!
//! A connection is one task. It reads frames, calls the handler of each request, polls handlers and answer bodies that
//! have something to do, and writes their output in one system call. hyper's server passes each piece from the stream's
//! task to the connection's task through a lock and a queue. With a thousand watchers, that took as much time as
//! everything else, and four times the memory (docs/performance.md). Here an event costs only its stream's queue, a
//! frame head and the write.
//!
//! This layer is independent of the relay, except that it divides turns by `ClientKey`: [`Connection::new`] takes any stream of bytes, a service, the [`Limits`],
//! and two futures that end the connection. So it can be fuzzed and simulated alone.
//!
//! Not here: the answers (the service), sockets and the checks before HTTP/2 begins (`front::listen`), and calls that
//! stream in both directions, for which `source` uses hyper's client. Parts: `limits`, `frame` (the wire), `hpack`
//! (compressed fields), `request` (the meaning of fields), `body` (of a request), `stream`, `streams`, `output`,
//! `wake`, `turn`, `queue` (for long turns), `intake` (the effect of each frame), and `connection`, which is the task.
//!
//! Always holds:
//! - memory that a peer can use is bounded: bodies by windows, fields by size, streams by number. Nothing is read from
//!   a peer that does not take its answers;
//! - an error of a stream ends that stream, an error of the connection ends all of them, with the reason that the RFC
//!   names;
//! - a turn of a connection is bounded in time, whatever its peer sends and however many streams end at once;
//! - a closed stream leaves nothing behind except, for a while, its number.

mod body;
pub mod client;
mod connection;
mod frame;
pub mod hpack;
mod limits;
mod output;
mod queue;
mod request;
mod stream;
mod streams;
mod turn;
mod wake;

pub(crate) use self::queue::Place;
pub use self::{
    body::{Arrivals, Body},
    connection::{Connection, Ended},
    limits::{Keepalive, Limits, Refused},
    queue::{TurnQueue, TurnWait},
};

/// Why a handler or an answer's body failed. The stream is reset with the reason of an [`h2::Error`] among the causes,
/// or with `INTERNAL_ERROR` if there is none.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[cfg(test)]
pub(crate) mod tests;
