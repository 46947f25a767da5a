//! [`Socket`]: a client's stream of bytes for HTTP, with a limit on how long it may accept no bytes.
//!
//! The stream may be TCP, TLS, or anything else that reads and writes. It is made by `preface`, which has already read
//! the first bytes. Always holds:
//! - bytes that were read before come first, exactly once;
//! - a socket fails, and is counted and logged, if it accepts no byte for the limit while there are bytes to write, or
//!   does not finish a flush or a shutdown in that time. There is a timer only while it waits;
//! - after [`Socket::told`], it takes as much in a turn as [`Written`] allows. Everything counts as written when it was
//!   flushed: HTTP/1.1 flushes only then.

use std::{
    fmt,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use smallvec::SmallVec;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{serve::turned_away, turns::Written};
use crate::telemetry::names::{Port, Turned};

/// Most bytes that may be read before: the length of HTTP/2's preface.
pub(super) const FIRST: usize = 24;

/// A socket whose first bytes may have been read already.
pub(super) struct Socket<T> {
    stream: T,
    first: [u8; FIRST],
    given: u8,
    filled: u8,
    stall: Stall,
    written: Option<Arc<Written>>,
}

/// Whose socket it is, and how long it may accept no bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) port: Port,
    pub(super) peer: SocketAddr,
    pub(super) write_stall: Duration,
}

/// The wait for a socket that accepts no bytes.
struct Stall {
    terms: Terms,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<T> Socket<T> {
    /// A socket from which the first `filled` bytes of `first` were already read.
    pub(super) fn new(stream: T, first: [u8; FIRST], filled: usize, terms: Terms) -> Self {
        Self {
            stream,
            first,
            given: 0,
            filled: filled.min(FIRST) as u8,
            stall: Stall { terms, timer: None },
            written: None,
        }
    }

    /// What was written from now on. The socket takes only as much in a turn as this allows.
    pub(super) fn told(&mut self) -> Arc<Written> {
        self.written.get_or_insert_default().clone()
    }
}

impl<T: Unpin> Socket<T> {
    /// Writes as much by `write` as the socket may take now.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>, usize) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let most = match &self.written {
            // If nothing, whoever drives the writer continues in the next turn.
            Some(written) => match written.offer() {
                None => return Poll::Pending,
                Some(most) => most,
            },
            None => usize::MAX,
        };
        let outcome = write(Pin::new(&mut self.stream), cx, most);
        match (&self.written, &outcome) {
            (Some(written), Poll::Ready(Ok(count))) => written.took(*count),
            (Some(written), Poll::Pending) => written.waits(),
            _ => {}
        }
        self.stall.bound(outcome, cx)
    }
}

impl Stall {
    /// Passes on the result of a write, a flush or a shutdown, but limits how long it may be pending.
    fn bound<R>(&mut self, outcome: Poll<io::Result<R>>, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.timer = None;
            return outcome;
        }
        let limit = self.terms.write_stall;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        let Terms { port, peer, .. } = self.terms;
        turned_away(port, Turned::Stalled);
        tracing::debug!(port = port.as_str(), %peer, "Closing a connection that accepted no bytes for {limit:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client accepts no bytes")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Socket<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.given < self.filled {
            let first = &self.first[usize::from(self.given)..usize::from(self.filled)];
            let count = buf.remaining().min(first.len());
            buf.put_slice(&first[..count]);
            self.given += count as u8;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Socket<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |stream, cx, most| stream.poll_write(cx, &buf[..buf.len().min(most)]))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |stream, cx, most| {
            if bufs.iter().map(|buf| buf.len()).sum::<usize>() <= most {
                return stream.poll_write_vectored(cx, bufs);
            }
            let mut left = most;
            let cut: SmallVec<[IoSlice<'_>; 32]> = bufs
                .iter()
                .map_while(|buf| {
                    let part = &buf[..buf.len().min(left)];
                    let had_room = left > 0;
                    left -= part.len();
                    had_room.then(|| IoSlice::new(part))
                })
                .collect();
            stream.poll_write_vectored(cx, &cut)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(cx);
        match (&this.written, &outcome) {
            (Some(written), Poll::Ready(_)) => written.flushed(),
            (Some(written), Poll::Pending) => written.waits(),
            _ => {}
        }
        this.stall.bound(outcome, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.stall.bound(outcome, cx)
    }
}

impl<T> fmt::Debug for Socket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("peer", &self.stall.terms.peer).finish_non_exhaustive()
    }
}
