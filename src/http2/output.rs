//! [`Output`]: frames on their way to the socket. Small frames are copied into one buffer, large data is passed on as
//! it is.
//!
//! Always holds: bytes leave in the order in which they came. Shared bytes of [`SHARE_FROM`] or more are not copied. A
//! connection with nothing to write holds no buffer, since all connections of a thread share one.

use std::{
    cell::Cell,
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use smallvec::SmallVec;
use tokio::io::AsyncWrite;

use super::limits::Limits;

/// Data of this size or more is passed on; smaller data is copied beside its neighbours, because each buffer adds cost
/// to the system call.
pub(super) const SHARE_FROM: usize = 2048;
/// Most buffers in one system call: as many as Linux accepts.
const SLICES: usize = 1024;
/// So many buffers need no allocation.
const FEW_SLICES: usize = 32;
/// Largest buffer that a thread keeps for its connections.
const KEPT: usize = 128 << 10;

/// Longest list of shared bytes that a thread keeps for its connections.
const KEPT_LIST: usize = 256;

/// Shared bytes, each with the total number of own bytes that come before it.
type Shared = VecDeque<(usize, Bytes)>;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static SPARE_LIST: Cell<Shared> = const { Cell::new(VecDeque::new()) };
}

/// The output of a connection; see the module.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Our own bytes, and those that were copied.
    own: Vec<u8>,
    /// How much of `own` has been written.
    written: usize,
    shared: Shared,
    shared_len: usize,
    /// The socket may hold back bytes until it is flushed, as TLS does.
    unflushed: bool,
    /// The socket took the last large write at once.
    takes_much: bool,
}

impl Output {
    /// Flushes with the next write, even if there is nothing to write.
    pub(super) fn flush_again(&mut self) {
        self.unflushed = true;
    }

    /// Number of waiting bytes.
    pub(super) fn len(&self) -> usize {
        self.own.len() - self.written + self.shared_len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the socket probably takes more than [`Limits::OUTPUT`] at once.
    pub(super) fn takes_much(&self) -> bool {
        self.takes_much
    }

    /// The buffer at the end of everything that waits.
    pub(super) fn own(&mut self) -> &mut Vec<u8> {
        if self.own.capacity() == 0 {
            self.own = SPARE.take();
        }
        &mut self.own
    }

    /// Takes `len` bytes from `data`, which must have as many.
    pub(super) fn take(&mut self, data: &mut impl Buf, mut len: usize) {
        while len > 0 {
            let count = data.chunk().len().min(len);
            if count >= SHARE_FROM {
                // If the bytes are in one piece, this only counts a reference.
                let bytes = data.copy_to_bytes(count);
                let behind = self.own().len();
                self.shared_len += count;
                if self.shared.capacity() == 0 {
                    self.shared = SPARE_LIST.take();
                }
                self.shared.push_back((behind, bytes));
            } else {
                let bytes = &data.chunk()[..count];
                self.own().extend_from_slice(bytes);
                data.advance(count);
            }
            len -= count;
        }
    }

    /// Writes and flushes everything that waits. Pending while the socket accepts no more.
    pub(super) fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let offered = self.len();
            let written = if self.shared.is_empty() {
                Pin::new(&mut *io).poll_write(cx, &self.own[self.written..])
            } else {
                let slices = self.slices();
                Pin::new(&mut *io).poll_write_vectored(cx, &slices)
            };
            let Poll::Ready(written) = written else {
                self.takes_much = false;
                self.settle();
                return Poll::Pending;
            };
            match written? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => {
                    self.advance(written);
                    self.unflushed = true;
                    if offered >= Limits::OUTPUT {
                        self.takes_much = written == offered;
                    }
                }
            }
        }
        self.rest();
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Shrinks the buffers to what waits for a full socket, which may take long.
    fn settle(&mut self) {
        self.shared.shrink_to_fit();
        if self.written == 0 && self.own.len() == self.own.capacity() {
            return;
        }
        let left = self.own[self.written..].to_vec();
        for (behind, _) in &mut self.shared {
            *behind -= self.written;
        }
        let mut spare = std::mem::replace(&mut self.own, left);
        self.written = 0;
        keep(&mut spare);
    }

    /// Gives up memory that others can use, once everything is written.
    fn rest(&mut self) {
        keep(&mut std::mem::take(&mut self.own));
        self.written = 0;
        let list = std::mem::take(&mut self.shared);
        if (1..=KEPT_LIST).contains(&list.capacity()) {
            SPARE_LIST.set(list);
        }
    }

    /// The beginning of what waits.
    fn slices(&self) -> SmallVec<[IoSlice<'_>; FEW_SLICES]> {
        let mut slices = SmallVec::with_capacity((2 * self.shared.len() + 1).min(SLICES));
        let mut at = self.written;
        for (behind, bytes) in &self.shared {
            if slices.len() + 2 >= SLICES {
                return slices;
            }
            if at < *behind {
                slices.push(IoSlice::new(&self.own[at..*behind]));
            }
            slices.push(IoSlice::new(bytes));
            at = *behind;
        }
        if at < self.own.len() {
            slices.push(IoSlice::new(&self.own[at..]));
        }
        slices
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let Some((behind, bytes)) = self.shared.front_mut() else {
                self.written += count;
                return;
            };
            let own = (*behind - self.written).min(count);
            self.written += own;
            count -= own;
            let shared = bytes.len().min(count);
            bytes.advance(shared);
            self.shared_len -= shared;
            count -= shared;
            if bytes.is_empty() {
                self.shared.pop_front();
            }
        }
    }
}

/// Keeps a buffer for the next connection of this thread.
fn keep(buffer: &mut Vec<u8>) {
    if buffer.capacity() > 0 && buffer.capacity() <= KEPT {
        buffer.clear();
        SPARE.set(std::mem::take(buffer));
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// A writer that accepts a few bytes at a time.
    struct Slow(Vec<u8>, usize);

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let count = buf.len().min(self.1);
            self.0.extend_from_slice(&buf[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut left = self.1;
            for buf in bufs {
                let count = buf.len().min(left);
                self.0.extend_from_slice(&buf[..count]);
                left -= count;
            }
            Poll::Ready(Ok(self.1 - left))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn bytes_leave_as_they_came_however_the_socket_takes_them() {
        for step in [1, 7, 1000, 5000, 1 << 20] {
            let mut output = Output::default();
            let mut expected = Vec::new();
            for round in 0..100_u8 {
                let small = vec![round; usize::from(round)];
                output.own().extend_from_slice(&small);
                let large = Bytes::from(vec![round ^ 0xff; SHARE_FROM + usize::from(round)]);
                output.take(&mut large.clone(), large.len());
                output.take(&mut &small[..], small.len());
                expected.extend([&small[..], &large, &small].concat());
            }
            assert_eq!(output.len(), expected.len());
            let mut socket = Slow(Vec::new(), step);
            let written = output.poll_write(&mut socket, &mut Context::from_waker(Waker::noop()));
            assert!(matches!(written, Poll::Ready(Ok(()))));
            assert!(socket.0 == expected && output.is_empty(), "{step} at a time");
            assert_eq!(output.own.capacity(), 0, "no buffer is held");
        }
    }

    #[test]
    fn large_bytes_are_passed_on_and_small_ones_copied() {
        let mut output = Output::default();
        let bytes = Bytes::from(vec![1; SHARE_FROM]);
        output.take(&mut bytes.clone(), SHARE_FROM);
        output.take(&mut bytes.slice(1..), SHARE_FROM - 1);
        assert!(std::ptr::eq(output.shared[0].1.as_ptr(), bytes.as_ptr()));
        assert_eq!((output.shared.len(), output.own.len()), (1, SHARE_FROM - 1));
    }
}
