//! Encodes parts of protobuf messages that views build themselves, since these are made once and sent to many clients.
//!
//! Whole messages are in `pb::lainlet`. Field numbers are below 16, so a tag is one byte. Always holds: an entry of a
//! map has its value even if that is empty. prost would leave it out, and Lainlet's old Go clients take a missing
//! message for a nil pointer.

use std::borrow::Cow;

use prost::encoding::{encode_varint, encoded_len_varint};

/// The length of a length-delimited field with `len` bytes.
pub(super) fn delimited_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// Writes the tag and the length of a length-delimited field.
pub(super) fn put_delimited_head(buffer: &mut Vec<u8>, field: u8, len: usize) {
    buffer.push(field << 3 | 2);
    encode_varint(len as u64, buffer);
}

/// Writes a length-delimited field.
pub(super) fn put_delimited(buffer: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    put_delimited_head(buffer, field, bytes.len());
    buffer.extend_from_slice(bytes);
}

/// Writes the part of a map's entry before its value. The map has number `field`, and `value_len` bytes must follow.
pub(super) fn put_entry_head(buffer: &mut Vec<u8>, field: u8, key: &str, value_len: usize) {
    put_delimited_head(buffer, field, delimited_len(key.len()) + delimited_len(value_len));
    put_delimited(buffer, 1, key.as_bytes());
    put_delimited_head(buffer, 2, value_len);
}

/// Writes an entry of the map with number `field`, whose value is an encoded message or a text.
pub(super) fn put_entry(buffer: &mut Vec<u8>, field: u8, key: &str, value: &[u8]) {
    put_entry_head(buffer, field, key, value.len());
    buffer.extend_from_slice(value);
}

/// Bytes as protobuf text. Each byte that is not UTF-8 is replaced, as in JSON.
pub(super) fn text(bytes: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => {
            let mut text = String::with_capacity(bytes.len() + bytes.len() / 8);
            for chunk in bytes.utf8_chunks() {
                text.push_str(chunk.valid());
                text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
            }
            text.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message as _;

    use super::*;
    use crate::pb::lainlet::{AppInfo, AppsReply};

    #[test]
    fn entries_read_back_and_have_their_value_also_where_it_is_empty() {
        let hello = AppInfo { appname: "hello".into() };
        let mut encoded = Vec::new();
        put_entry(&mut encoded, 1, "a", &hello.encode_to_vec());
        let first = encoded.len();
        put_entry(&mut encoded, 1, "b", &[]);
        assert_eq!(encoded[first..], [0x0a, 5, 0x0a, 1, b'b', 0x12, 0]);
        let reply = AppsReply::decode(&encoded[..]).expect("a reply");
        assert_eq!(reply.data, BTreeMap::from([("a".into(), hello), ("b".into(), AppInfo::default())]));
    }

    #[test]
    fn each_byte_that_is_no_text_is_replaced() {
        assert_eq!(text("日\u{2028}".as_bytes()), "日\u{2028}");
        assert_eq!(text(b"a\xed\xa0\x80b"), "a\u{fffd}\u{fffd}\u{fffd}b");
    }
}
