//! [`Pieces`]: bytes to be sent, partly shared with the hub, and [`Writer`], which puts gRPC messages together from them.
//!
//! Always holds: shared bytes are passed on, not copied, unless they are so few that one more buffer in the system call would
//! cost more than the copy.

use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::encode_varint;
use smallvec::SmallVec;

/// From this size on shared bytes are passed on; below, they are copied beside their neighbours.
const SHARE_FROM: usize = 1024;
/// A gRPC message begins with a flag (not compressed) and its length.
pub(super) const PREFIX: usize = 5;
/// etcd's limit on requests, and where it cuts responses that may be cut: its --max-request-bytes and 512 KiB more.
pub(super) const MAX_REQUEST: usize = (1536 << 10) + (512 << 10);

/// A list of buffers that reads as one.
#[derive(Debug, Default)]
pub struct Pieces {
    list: SmallVec<[Bytes; 3]>,
    /// Buffers read to their end.
    done: usize,
    remaining: usize,
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        Self { remaining: bytes.len(), list: SmallVec::from_iter([bytes]), done: 0 }
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

    fn advance(&mut self, mut count: usize) {
        self.remaining -= count;
        while count > 0 {
            let piece = &mut self.list[self.done];
            let step = count.min(piece.len());
            piece.advance(step);
            count -= step;
            if piece.is_empty() {
                // Lets go of shared bytes as soon as they are sent.
                *piece = Bytes::new();
                self.done += 1;
            }
        }
    }
}

/// Writes gRPC messages into [`Pieces`].
#[derive(Debug, Default)]
pub(super) struct Writer {
    pieces: Pieces,
    /// Bytes of our own, behind the last piece.
    own: BytesMut,
}

impl Writer {
    /// A writer with room for `capacity` bytes of its own.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { pieces: Pieces::default(), own: BytesMut::with_capacity(capacity) }
    }

    /// Begins a message whose own fields `head` writes and that has `shared` further bytes, which must follow.
    pub(super) fn message(&mut self, shared: usize, head: impl FnOnce(&mut BytesMut)) {
        let prefix = self.own.len();
        self.own.put_bytes(0, PREFIX);
        head(&mut self.own);
        let len = self.own.len() - prefix - PREFIX + shared;
        // Messages are below 4 GiB: what upstream sends in one is below 2 GiB, and a burst is bounded.
        self.own[prefix + 1..prefix + PREFIX].copy_from_slice(&(len as u32).to_be_bytes());
    }

    /// Adds bytes to the message.
    pub(super) fn shared(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARE_FROM {
            self.own.extend_from_slice(bytes);
        } else {
            self.flush();
            self.pieces.remaining += bytes.len();
            self.pieces.list.push(bytes.clone());
        }
    }

    /// Adds bytes that a function writes; their number was counted as shared before.
    pub(super) fn tail(&mut self, write: impl FnOnce(&mut BytesMut)) {
        write(&mut self.own);
    }

    /// All that was written.
    pub(super) fn finish(mut self) -> Pieces {
        self.flush();
        self.pieces
    }

    fn flush(&mut self) {
        if !self.own.is_empty() {
            let own = self.own.split().freeze();
            self.pieces.remaining += own.len();
            self.pieces.list.push(own);
        }
    }
}

/// Writes a varint field unless it is zero, as proto3 does.
pub(super) fn put_int(buffer: &mut BytesMut, field: u8, value: u64) {
    if value != 0 {
        buffer.put_u8(field << 3);
        encode_varint(value, buffer);
    }
}

/// Writes a length-delimited field unless it is empty.
pub(super) fn put_bytes(buffer: &mut BytesMut, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        buffer.put_u8(field << 3 | 2);
        encode_varint(bytes.len() as u64, buffer);
        buffer.put_slice(bytes);
    }
}

/// Writes field 1, the `ResponseHeader`.
pub(super) fn put_header(buffer: &mut BytesMut, header: &crate::types::Header) {
    buffer.put_u8(0x0a);
    let len_at = buffer.len();
    // Four varints of at most ten bytes each and their tags: the length is one byte.
    buffer.put_u8(0);
    put_int(buffer, 1, header.cluster_id);
    put_int(buffer, 2, header.member_id);
    put_int(buffer, 3, header.revision.get() as u64);
    put_int(buffer, 4, header.raft_term);
    buffer[len_at] = (buffer.len() - len_at - 1) as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_read_as_one_buffer_and_small_ones_are_joined() {
        let mut writer = Writer::default();
        let (small, large) = (Bytes::from(vec![1; 10]), Bytes::from(vec![2; SHARE_FROM]));
        writer.message(small.len() + large.len() + 1, |own| own.put_slice(b"head"));
        writer.shared(&small);
        writer.shared(&large);
        writer.tail(|own| own.put_u8(9));
        let mut pieces = writer.finish();
        assert_eq!(pieces.list.len(), 3);
        assert!(std::ptr::eq(pieces.list[1].as_ptr(), large.as_ptr()), "large bytes are passed on, not copied");
        let mut expected = vec![0, 0, 0, 4, 15];
        expected.extend_from_slice(b"head");
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
}
