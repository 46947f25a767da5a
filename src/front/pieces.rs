//! [`Pieces`]: bytes to send, partly shared with others, and [`Writer`], which collects them.
//!
//! Always holds: shared bytes are not copied, unless they are so few that another buffer in the system call would cost
//! more than the copy.

use std::{borrow::Cow, io::IoSlice};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::view::Parts;

/// Shared bytes of this size or more are passed on; smaller ones are copied beside their neighbours.
pub(super) const SHARE_FROM: usize = 1024;

/// A list of buffers that reads as one.
#[derive(Debug, Default)]
pub struct Pieces {
    list: SmallVec<[Bytes; 3]>,
    /// Number of buffers that were completely read.
    done: usize,
    remaining: usize,
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        Self { remaining: bytes.len(), list: SmallVec::from_iter([bytes]), done: 0 }
    }
}

impl Pieces {
    /// Adds bytes, which must not be empty.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.remaining += bytes.len();
        self.list.push(bytes);
    }

    /// Adds bytes that a view shares between all its clients.
    pub(super) fn extend(&mut self, parts: &Parts) {
        self.remaining += parts.len();
        self.list.extend(parts.pieces().iter().cloned());
    }
}

impl From<&Parts> for Pieces {
    fn from(parts: &Parts) -> Self {
        let mut pieces = Self::default();
        pieces.extend(parts);
        pieces
    }
}

impl From<Vec<u8>> for Pieces {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static str> for Pieces {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.list.get(self.done).map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let left = &self.list[self.done.min(self.list.len())..];
        for (slice, piece) in slices.iter_mut().zip(left) {
            *slice = IoSlice::new(piece);
        }
        left.len().min(slices.len())
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        if let Some(piece) = self.list.get_mut(self.done)
            && len <= piece.len()
        {
            self.remaining -= len;
            let taken = piece.split_to(len);
            if piece.is_empty() {
                self.done += 1;
            }
            return taken;
        }
        let mut joined = BytesMut::with_capacity(len);
        joined.put(self.take(len));
        joined.freeze()
    }

    fn advance(&mut self, mut count: usize) {
        self.remaining -= count;
        while count > 0 {
            let piece = &mut self.list[self.done];
            let step = count.min(piece.len());
            piece.advance(step);
            count -= step;
            if piece.is_empty() {
                // Frees shared bytes as soon as they are sent.
                *piece = Bytes::new();
                self.done += 1;
            }
        }
    }
}

/// Writes [`Pieces`].
#[derive(Debug, Default)]
pub(super) struct Writer {
    pieces: Pieces,
    /// Our own bytes after the last piece.
    own: BytesMut,
}

impl Writer {
    /// A writer with space for `capacity` own bytes.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { pieces: Pieces::default(), own: BytesMut::with_capacity(capacity) }
    }

    /// Makes space for so many pieces.
    pub(super) fn reserve(&mut self, pieces: usize) {
        self.pieces.list.reserve(pieces);
    }

    /// Adds shared bytes.
    pub(super) fn shared(&mut self, bytes: &Bytes) {
        self.part(bytes, || bytes.clone());
    }

    /// The same, but a reference that the caller gives away is not counted once more.
    pub(super) fn shared_or_owned(&mut self, bytes: Cow<'_, Bytes>) {
        match bytes {
            Cow::Owned(bytes) if bytes.len() >= SHARE_FROM => {
                self.flush();
                self.pieces.push(bytes);
            }
            bytes => self.shared(&bytes),
        }
    }

    /// The same for a part of shared bytes. `share` returns it, and is called only if it is not copied.
    pub(super) fn part(&mut self, bytes: &[u8], share: impl FnOnce() -> Bytes) {
        if bytes.len() < SHARE_FROM {
            self.own.extend_from_slice(bytes);
        } else {
            self.flush();
            self.pieces.push(share());
        }
    }

    /// A buffer for own bytes after everything written so far.
    pub(super) fn own(&mut self) -> &mut BytesMut {
        &mut self.own
    }

    /// Everything that was written.
    pub(super) fn finish(mut self) -> Pieces {
        if !self.own.is_empty() {
            self.pieces.push(self.own.freeze());
        }
        self.pieces
    }

    /// Everything that was written since the last call. What follows is written into the same space.
    pub(super) fn take(&mut self) -> Pieces {
        self.flush();
        std::mem::take(&mut self.pieces)
    }

    fn flush(&mut self) {
        if !self.own.is_empty() {
            let own = self.own.split().freeze();
            self.pieces.push(own);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;

    use super::*;

    #[test]
    fn pieces_read_as_one_buffer_and_small_ones_are_joined() {
        let mut writer = Writer::default();
        let (small, large) = (Bytes::from(vec![1; 10]), Bytes::from(vec![2; SHARE_FROM]));
        writer.own().put_slice(b"head");
        writer.shared(&small);
        writer.shared(&large);
        writer.own().put_u8(9);
        let mut pieces = writer.finish();
        assert_eq!(pieces.list.len(), 3);
        assert!(std::ptr::eq(pieces.list[1].as_ptr(), large.as_ptr()), "large buffers are passed on, not copied");
        let mut expected = b"head".to_vec();
        expected.extend_from_slice(&small);
        expected.extend_from_slice(&large);
        expected.push(9);
        assert_eq!(pieces.remaining(), expected.len());
        let mut read = Vec::new();
        while pieces.has_remaining() {
            let step = pieces.chunk().len().min(7);
            read.extend_from_slice(&pieces.chunk()[..step]);
            pieces.advance(step);
        }
        assert_eq!(read, expected);
    }

    #[test]
    fn bytes_of_one_piece_are_taken_as_they_are_and_others_joined() {
        let (one, two) = (Bytes::from(vec![1; 10]), Bytes::from(vec![2; 10]));
        let mut pieces = Pieces::default();
        pieces.push(one.clone());
        pieces.push(two.clone());
        let taken = pieces.copy_to_bytes(4);
        assert!(std::ptr::eq(taken.as_ptr(), one.as_ptr()) && pieces.remaining() == 16);
        assert_eq!(pieces.copy_to_bytes(10), [&one[4..], &two[..4]].concat());
        let last = pieces.copy_to_bytes(6);
        assert!(std::ptr::eq(last.as_ptr(), &raw const two[4]) && !pieces.has_remaining());
    }
}
