//! [`Stream`]: a TCP connection whose small writes may wait a moment, to be sent together with those of others.
//!
//! Ports read and write it as any stream. How sends are joined is in `lane`. Always holds:
//! - bytes leave in the order in which they were written: at most one send is queued, and the next write first makes
//!   sure that the one before has left;
//! - what the socket did not accept of a queued send is kept here. The writer is woken then, and must flush, which
//!   waits as the write itself would have;
//! - a queued send keeps its socket open, so its bytes cannot reach another one. A stream that is dropped sends what it
//!   has queued.

use std::{
    fmt,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{Batcher, lane::Lane};

/// Larger writes are made directly: they would be copied once more, and for them a system call is a small part of the
/// cost.
const LARGEST: usize = 4 << 10;

/// A TCP connection; see the module.
#[derive(Debug)]
pub enum Stream {
    /// Each write is a system call.
    Direct(TcpStream),
    /// Writes may be joined, once [`Switch::join`] was called.
    Joined(JoinedStream),
}

/// A connection whose writes may be joined with those of others.
pub struct JoinedStream {
    read: OwnedReadHalf,
    out: Arc<Outgoing>,
    batcher: Arc<Batcher>,
    /// Where its last send was queued.
    lane: Option<Arc<Lane>>,
    /// The writer, as `out` knows it.
    writer: Option<Waker>,
}

/// Lets a stream join its writes with those of others.
#[derive(Clone, Debug)]
pub struct Switch(Arc<Outgoing>);

/// The side of a stream that lanes know.
pub(super) struct Outgoing {
    socket: OwnedWriteHalf,
    state: AtomicU8,
    joins: AtomicBool,
    rest: Mutex<Rest>,
}

/// What is left of a queued send that was not sent whole.
#[derive(Default)]
struct Rest {
    bytes: Vec<u8>,
    written: usize,
    error: Option<io::Error>,
    /// Who must flush then.
    writer: Option<Waker>,
}

/// Everything has been sent.
const SENT: u8 = 0;
/// A send is in a lane.
const QUEUED: u8 = 1;
/// A send was not made whole: `rest` has what is left.
const LEFT: u8 = 2;

impl Stream {
    /// The stream of `socket`. With a batcher, its writes can be joined with those of others.
    #[must_use]
    pub fn new(socket: TcpStream, batcher: Option<&Arc<Batcher>>) -> Self {
        let Some(batcher) = batcher else { return Self::Direct(socket) };
        let (read, socket) = socket.into_split();
        let out =
            Outgoing { socket, state: AtomicU8::new(SENT), joins: AtomicBool::new(false), rest: Mutex::default() };
        Self::Joined(JoinedStream { read, out: Arc::new(out), batcher: batcher.clone(), lane: None, writer: None })
    }

    /// What lets it join its writes; `None` if it cannot.
    #[must_use]
    pub fn switch(&self) -> Option<Switch> {
        match self {
            Self::Direct(_) => None,
            Self::Joined(stream) => Some(Switch(stream.out.clone())),
        }
    }
}

#[cfg(test)]
impl Stream {
    pub(super) fn stop_joining(&self) {
        self.switch().expect("it has a batcher").0.joins.store(false, Ordering::Relaxed);
    }
}

impl Switch {
    /// From now on, writes may be joined. Whoever writes must then flush when it is woken, or in the turn that follows.
    pub fn join(&self) {
        self.0.joins.store(true, Ordering::Relaxed);
    }
}

impl Outgoing {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().as_fd()
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.try_write(bytes)
    }

    /// Takes the outcome of the queued send of `bytes`. Returns whom to wake.
    pub(super) fn sent(&self, bytes: &[u8], outcome: io::Result<usize>) -> Option<Waker> {
        let left = match outcome {
            Ok(sent) if sent == bytes.len() => {
                self.state.store(SENT, Ordering::Release);
                return None;
            }
            Ok(sent) => Ok(&bytes[sent..]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(bytes),
            Err(error) => Err(error),
        };
        let mut rest = self.rest.lock();
        match left {
            Ok(left) => rest.bytes = left.to_vec(),
            Err(error) => rest.error = Some(error),
        }
        self.state.store(LEFT, Ordering::Release);
        rest.writer.clone()
    }

    /// Writes what is left of a queued send.
    fn poll_rest(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut rest = self.rest.lock();
        if let Some(error) = &rest.error {
            // A stream that has failed fails each time.
            return Poll::Ready(Err(io::Error::new(error.kind(), error.to_string())));
        }
        while rest.written < rest.bytes.len() {
            match ready!(self.poll_try(cx, |socket| socket.try_write(&rest.bytes[rest.written..])))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => rest.written += written,
            }
        }
        (rest.bytes, rest.written) = (Vec::new(), 0);
        self.state.store(SENT, Ordering::Release);
        Poll::Ready(Ok(()))
    }

    /// Writes directly, as soon as the socket accepts bytes.
    fn poll_try(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&OwnedWriteHalf) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.as_ref().poll_write_ready(cx))?;
            match write(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}

impl JoinedStream {
    /// Sends what was written before.
    fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.state.load(Ordering::Acquire) == QUEUED
            && let Some(lane) = &self.lane
        {
            lane.flush();
        }
        match self.out.state.load(Ordering::Acquire) {
            LEFT => self.out.poll_rest(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Queues a send, if it should be joined with others. Returns its length then.
    fn queue(&mut self, cx: &Context<'_>, pieces: &[IoSlice<'_>]) -> Option<usize> {
        let len = pieces.iter().map(|piece| piece.len()).sum();
        if len > LARGEST || !self.out.joins.load(Ordering::Relaxed) {
            return None;
        }
        let lane = self.batcher.lane();
        if !lane.takes() {
            return None;
        }
        if !self.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
            self.writer = Some(cx.waker().clone());
            self.out.rest.lock().writer.clone_from(&self.writer);
        }
        if !self.lane.as_ref().is_some_and(|last| Arc::ptr_eq(last, lane)) {
            self.lane = Some(lane.clone());
        }
        self.out.state.store(QUEUED, Ordering::Release);
        lane.queue(self.out.clone(), pieces);
        Some(len)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(cx))?;
        if let Some(written) = self.queue(cx, &[IoSlice::new(bytes)]) {
            return Poll::Ready(Ok(written));
        }
        self.out.poll_try(cx, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(cx))?;
        // TLS writes its records in this way.
        if let Some(written) = self.queue(cx, buffers) {
            return Poll::Ready(Ok(written));
        }
        self.out.poll_try(cx, |socket| socket.try_write_vectored(buffers))
    }

    /// A queued send counts as flushed: it leaves soon, and its writer is woken if it could not be made whole.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.out.state.load(Ordering::Acquire) {
            LEFT => self.out.poll_rest(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        Poll::Ready(Ok(rustix::net::shutdown(self.out.as_fd(), rustix::net::Shutdown::Write)?))
    }
}

impl Drop for JoinedStream {
    fn drop(&mut self) {
        if self.out.state.load(Ordering::Acquire) == QUEUED
            && let Some(lane) = &self.lane
        {
            lane.flush();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Joined(stream) => Pin::new(&mut stream.read).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Direct(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Joined(stream) => stream.poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Direct(socket) => Pin::new(socket).poll_write_vectored(cx, buffers),
            Self::Joined(stream) => stream.poll_write_vectored(cx, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(socket) => Pin::new(socket).poll_flush(cx),
            Self::Joined(stream) => stream.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Direct(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Joined(stream) => stream.poll_shutdown(cx),
        }
    }
}

impl fmt::Debug for JoinedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinedStream").field("out", &self.out).finish_non_exhaustive()
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("socket", &self.socket).field("state", &self.state).finish_non_exhaustive()
    }
}
