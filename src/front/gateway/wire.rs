//! [`Wire`]: writes a protobuf message whose nested lengths are known only after their content.
//!
//! Called by `decode`. Always holds: the time depends only on the length of the message, however deep it is. Field
//! contents are written as they come, and the heads of nested messages are inserted at the end.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

/// A gRPC message begins with a flag (not compressed) and its length.
const PREFIX: usize = 5;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// All contents, without the heads of nested messages.
    bytes: Vec<u8>,
    /// The heads in the order of their positions.
    heads: Vec<Head>,
    /// The nested messages that are still open, the outermost first.
    open: Vec<Level>,
    /// Total length of the heads directly in the message itself.
    extra: usize,
}

#[derive(Debug)]
struct Head {
    /// The position in `bytes` where the head belongs.
    at: usize,
    tag: u64,
    len: usize,
}

#[derive(Debug)]
struct Level {
    head: usize,
    /// Total length of the heads within.
    extra: usize,
}

/// A position to return to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    bytes: usize,
    heads: usize,
    extra: usize,
}

impl Wire {
    /// A varint field.
    pub(super) fn int(&mut self, number: u32, value: u64) {
        encode_varint(u64::from(number) << 3, &mut self.bytes);
        encode_varint(value, &mut self.bytes);
    }

    /// A field of bytes or text.
    pub(super) fn bytes(&mut self, number: u32, value: &[u8]) {
        encode_varint(u64::from(number) << 3 | 2, &mut self.bytes);
        encode_varint(value.len() as u64, &mut self.bytes);
        self.bytes.extend_from_slice(value);
    }

    /// Begins a nested message. Everything up to the matching [`Wire::close`] is part of it.
    pub(super) fn open(&mut self, number: u32) {
        self.open.push(Level { head: self.heads.len(), extra: 0 });
        self.heads.push(Head { at: self.bytes.len(), tag: u64::from(number) << 3 | 2, len: 0 });
    }

    pub(super) fn close(&mut self) {
        let Some(Level { head, extra }) = self.open.pop() else { return };
        let head = &mut self.heads[head];
        head.len = self.bytes.len() - head.at + extra;
        let own = encoded_len_varint(head.tag) + encoded_len_varint(head.len as u64);
        *self.extra() += own + extra;
    }

    /// The position of the next field.
    pub(super) fn mark(&mut self) -> Mark {
        Mark { bytes: self.bytes.len(), heads: self.heads.len(), extra: *self.extra() }
    }

    /// Removes what was written since a mark of the same message.
    pub(super) fn back(&mut self, to: Mark) {
        self.bytes.truncate(to.bytes);
        self.heads.truncate(to.heads);
        *self.extra() = to.extra;
    }

    /// The message in gRPC's form, with its prefix.
    pub(super) fn finish(self) -> Bytes {
        let len = self.bytes.len() + self.extra;
        let mut out = BytesMut::with_capacity(PREFIX + len);
        out.put_u8(0);
        // Requests are limited to far less than 4 GiB.
        out.put_u32(len as u32);
        let mut from = 0;
        for head in &self.heads {
            out.put_slice(&self.bytes[from..head.at]);
            encode_varint(head.tag, &mut out);
            encode_varint(head.len as u64, &mut out);
            from = head.at;
        }
        out.put_slice(&self.bytes[from..]);
        out.freeze()
    }

    fn extra(&mut self) -> &mut usize {
        self.open.last_mut().map_or(&mut self.extra, |level| &mut level.extra)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op::Request};

    #[test]
    fn messages_within_messages_have_their_lengths() {
        let put = |len| PutRequest { key: "k".into(), value: vec![7; len].into(), ..Default::default() };
        let wanted = TxnRequest {
            success: [200, 1].map(|len| RequestOp { request: Some(Request::RequestPut(put(len))) }).into(),
            ..Default::default()
        };
        let mut wire = Wire::default();
        for len in [200, 1] {
            wire.open(2);
            let mark = wire.mark();
            wire.open(3);
            wire.bytes(1, b"another field of the oneof");
            wire.close();
            wire.back(mark);
            wire.open(2);
            wire.bytes(1, b"k");
            wire.bytes(2, &vec![7; len]);
            wire.close();
            wire.close();
        }
        let bytes = wire.finish();
        assert_eq!(bytes[1..PREFIX], (bytes.len() as u32 - PREFIX as u32).to_be_bytes());
        assert_eq!(TxnRequest::decode(bytes.slice(PREFIX..)).expect("a message"), wanted);
    }
}
