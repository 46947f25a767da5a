//! HTTP/2 without TLS, the server's side (RFC 9113), for thousands of connections on which little but answers moves.
//!
//! A connection is one task: it reads frames, calls the handler for each request, polls handlers and answers that have something to
//! say, and writes what they give in one system call. hyper's server hands each piece from a task of the stream to one of the
//! connection through a lock and a queue; with a thousand watchers that took as long as all the rest, and four times the memory
//! (docs/performance.md). Here an event costs its stream's queue, a frame's head and the write.
//!
//! Not here: what is answered (the port's service); the client's side, which has hyper's. Parts: `frame` (the wire), `hpack`
//! (compressed fields), `request` (what fields mean), `body` (a request's), `stream`, `output`, `wake`, `intake` (what frames do), and
//! `connection`, which is the task.
//!
//! Always holds:
//! - what a peer can make us keep is bounded: by windows for bodies, by a size for fields, by a number for streams, and we do
//!   not read from one who does not take what waits for it;
//! - an error of a stream ends that stream, one of the connection all of them, with the reason that the RFC names;
//! - a stream that is over leaves nothing behind but, for a while, its number.

mod body;
mod connection;
mod frame;
mod hpack;
mod output;
mod request;
mod stream;
mod streams;
mod wake;

pub use self::body::Body;
pub(super) use self::connection::{Connection, Limits};

#[cfg(test)]
mod tests;
