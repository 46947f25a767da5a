//! Builds gRPC messages in [`Pieces`], and writes the protobuf fields that the relay encodes itself.
//!
//! Always holds: a message's length is written before its content, so the content must have exactly that length.

use bytes::{BufMut, BytesMut};
use prost::encoding::encode_varint;

pub use crate::front::pieces::Pieces;
pub(super) use crate::front::pieces::{SHARE_FROM, Writer};

/// A gRPC message begins with a flag (not compressed) and its length.
pub(super) const PREFIX: usize = 5;
/// etcd's limit on requests, and the size at which it splits fragmented responses: its --max-request-bytes plus 512
/// KiB.
pub(super) const MAX_REQUEST: usize = (1536 << 10) + (512 << 10);

impl Writer {
    /// Begins a message. `head` writes its own fields, and exactly `shared` further bytes must follow.
    pub(super) fn message(&mut self, shared: usize, head: impl FnOnce(&mut BytesMut)) {
        let own = self.own();
        let prefix = own.len();
        own.put_bytes(0, PREFIX);
        head(own);
        let len = own.len() - prefix - PREFIX + shared;
        // Messages are below 4 GiB: a message from upstream is below 2 GiB, and a burst is bounded.
        own[prefix + 1..prefix + PREFIX].copy_from_slice(&(len as u32).to_be_bytes());
    }

    /// Adds bytes that `write` produces. They were counted in `shared` before.
    pub(super) fn tail(&mut self, write: impl FnOnce(&mut BytesMut)) {
        write(self.own());
    }
}

/// Writes a varint field unless it is zero, as in proto3.
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
    // The length fits into one byte: four varints of at most ten bytes, with their tags.
    buffer.put_u8(0);
    put_int(buffer, 1, header.cluster_id);
    put_int(buffer, 2, header.member_id);
    put_int(buffer, 3, header.revision.get() as u64);
    put_int(buffer, 4, header.raft_term);
    buffer[len_at] = (buffer.len() - len_at - 1) as u8;
}

#[cfg(test)]
mod tests {
    use bytes::{Buf as _, Bytes};

    use super::*;

    #[test]
    fn a_message_begins_with_its_length() {
        let mut writer = Writer::default();
        let shared = Bytes::from(vec![2; 2000]);
        writer.message(shared.len() + 1, |own| own.put_slice(b"head"));
        writer.shared(&shared);
        writer.tail(|own| own.put_u8(9));
        let mut pieces = writer.finish();
        let mut expected = vec![0, 0, 0, 7, 213];
        expected.extend_from_slice(b"head");
        expected.extend_from_slice(&shared);
        expected.push(9);
        assert_eq!(pieces.copy_to_bytes(pieces.remaining()), expected);
    }
}
