//! Builds gRPC messages in [`Pieces`], and writes the protobuf fields that the relay encodes itself.
//!
//! Always holds: a message's length is written before its content, so the content must have exactly that length.

use std::cell::RefCell;

use bytes::{BufMut, BytesMut};
use prost::encoding::encode_varint;
use smallvec::SmallVec;

pub use crate::front::pieces::Pieces;
pub(super) use crate::front::pieces::{SHARE_FROM, Writer};
use crate::types::Header;

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

/// The header that this thread wrote last, and its field.
type LastHeader = (Header, SmallVec<[u8; HEADER_MAX]>);

/// The most bytes of the field: its tag and length, and four varints of at most ten bytes with their tags.
const HEADER_MAX: usize = 2 + 4 * 11;

thread_local! {
    /// Most responses with the events of a revision have the same header.
    static LAST: RefCell<LastHeader> = const { RefCell::new((Header::NONE, SmallVec::new_const())) };
}

/// Writes field 1, the `ResponseHeader`.
pub(super) fn put_header(buffer: &mut BytesMut, header: &Header) {
    LAST.with_borrow_mut(|(of, field)| {
        if of != header || field.is_empty() {
            (*of, *field) = (*header, header_field(header));
        }
        buffer.put_slice(field);
    });
}

fn header_field(header: &Header) -> SmallVec<[u8; HEADER_MAX]> {
    let mut fields = BytesMut::with_capacity(HEADER_MAX);
    put_int(&mut fields, 1, header.cluster_id);
    put_int(&mut fields, 2, header.member_id);
    put_int(&mut fields, 3, header.revision.get() as u64);
    put_int(&mut fields, 4, header.raft_term);
    // The length fits into one byte.
    let mut field = SmallVec::from_slice(&[0x0a, fields.len() as u8]);
    field.extend_from_slice(&fields);
    field
}

#[cfg(test)]
mod tests {
    use bytes::{Buf as _, Bytes};
    use prost::Message as _;

    use super::*;
    use crate::{pb::etcdserverpb::ResponseHeader, types::Revision};

    #[test]
    fn headers_are_those_that_were_asked_for_whatever_was_written_before() {
        let header = |cluster_id, member_id, revision, raft_term| Header {
            cluster_id,
            member_id,
            revision: Revision::new(revision),
            raft_term,
        };
        let largest = header(u64::MAX, u64::MAX, i64::MAX, u64::MAX);
        let headers = [Header::default(), header(1, 2, 3, 4), header(1, 2, 3, 5), largest, header(1, 2, 3, 5)];
        for header in headers.iter().flat_map(|header| [header; 2]) {
            let mut field = BytesMut::new();
            put_header(&mut field, header);
            assert_eq!((field[0], usize::from(field[1])), (0x0a, field.len() - 2), "{header:?}");
            let read = ResponseHeader::decode(&field[2..]).expect("a header");
            let Header { cluster_id, member_id, revision, raft_term } = *header;
            assert_eq!(read, ResponseHeader { cluster_id, member_id, revision: revision.get(), raft_term });
        }
    }

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
