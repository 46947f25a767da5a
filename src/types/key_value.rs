//! [`KeyValue`]: one key at one revision, in etcd's own encoding, made once and shared by history, snapshot and replies.
//!
//! Always holds: [`KeyValue::encoded`] is the protobuf field `2: mvccpb.KeyValue`. That is both the `kv` field of an
//! `Event` and an element of `kvs` in a `RangeResponse`, because etcd's rpc.proto and kv.proto give both the field
//! number 2.

use std::{fmt, ops::Range};

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

use super::Revision;

/// Tag byte of field 2, length-delimited.
const KV_TAG: u8 = 0x12;

/// A key with its value and etcd's metadata, encoded.
/// ```
/// use etcd_relay::types::{KeyValue, KeyValueFields, Revision};
///
/// let fields = KeyValueFields {
///     key: "/app/a".into(),
///     value: "on".into(),
///     create_revision: Revision::new(7),
///     mod_revision: Revision::new(9),
///     version: 2,
///     lease: 0,
/// };
/// let kv = KeyValue::new(&fields);
/// assert_eq!((kv.key(), kv.value()), (&b"/app/a"[..], &b"on"[..]));
/// // The encoding is kept, and sent as it is to everyone.
/// assert_eq!(kv.encoded()[0], 0x12);
/// assert_eq!(kv.fields(), fields);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    encoded: Bytes,
    key: Range<u32>,
    value: Range<u32>,
    /// Revision at which the key was created; zero for a deleted key.
    pub create_revision: Revision,
    /// Revision of the key's last change.
    pub mod_revision: Revision,
    /// Number of changes since the key was created, counted from 1; zero for a deleted key.
    pub version: i64,
    /// Lease that the key is attached to; zero for none.
    pub lease: i64,
}

/// The parts of a [`KeyValue`], before it is encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValueFields {
    /// The key.
    pub key: Bytes,
    /// The value; empty for a deleted key.
    pub value: Bytes,
    /// See [`KeyValue::create_revision`].
    pub create_revision: Revision,
    /// See [`KeyValue::mod_revision`].
    pub mod_revision: Revision,
    /// See [`KeyValue::version`].
    pub version: i64,
    /// See [`KeyValue::lease`].
    pub lease: i64,
}

impl KeyValue {
    /// Encodes `fields` into its own allocation.
    #[must_use]
    pub fn new(fields: &KeyValueFields) -> Self {
        let mut buffer = BytesMut::with_capacity(fields.field_len());
        let places = fields.encode_field(&mut buffer);
        Self::from_places(buffer.freeze(), places, fields)
    }

    /// Wraps a slice that [`KeyValueFields::encode_field`] wrote. `places` are relative to the slice.
    pub(super) fn from_places(encoded: Bytes, places: Places, fields: &KeyValueFields) -> Self {
        Self {
            encoded,
            key: places.key,
            value: places.value,
            create_revision: fields.create_revision,
            mod_revision: fields.mod_revision,
            version: fields.version,
            lease: fields.lease,
        }
    }

    /// The same key-value in its own allocation, so that it does not keep a larger one in memory.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { encoded: Bytes::copy_from_slice(&self.encoded), ..self.clone() }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.encoded[self.key.start as usize..self.key.end as usize]
    }

    /// The key, sharing this key-value's bytes.
    #[must_use]
    pub fn key_bytes(&self) -> Bytes {
        self.encoded.slice(self.key.start as usize..self.key.end as usize)
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.encoded[self.value.start as usize..self.value.end as usize]
    }

    /// The value, sharing this key-value's bytes.
    #[must_use]
    pub fn value_bytes(&self) -> Bytes {
        self.encoded.slice(self.value.start as usize..self.value.end as usize)
    }

    /// The whole protobuf field (tag 2, length, message).
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The field without its tag byte, that is length and message, to be written after another tag.
    #[must_use]
    pub fn encoded_untagged(&self) -> &[u8] {
        &self.encoded[1..]
    }

    /// Length of the field without the value, as a keys-only list contains it.
    #[must_use]
    pub fn bare_len(&self) -> usize {
        let message = self.bare_message_len();
        1 + encoded_len_varint(message as u64) + message
    }

    /// Writes the field without the value.
    pub fn put_bare(&self, buffer: &mut BytesMut) {
        buffer.put_u8(KV_TAG);
        encode_varint(self.bare_message_len() as u64, buffer);
        buffer.put_slice(&self.encoded[self.head_len()..self.value_field().start]);
        buffer.put_slice(&self.encoded[self.value_field().end..]);
    }

    fn bare_message_len(&self) -> usize {
        self.encoded.len() - self.head_len() - self.value_field().len()
    }

    /// Length of the tag and of the length prefix. The key is the first field after them.
    fn head_len(&self) -> usize {
        field_of(&self.key).start
    }

    fn value_field(&self) -> Range<usize> {
        field_of(&self.value)
    }

    /// The parts, sharing this key-value's bytes.
    #[must_use]
    pub fn fields(&self) -> KeyValueFields {
        KeyValueFields {
            key: self.key_bytes(),
            value: self.value_bytes(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key().escape_ascii().to_string())
            .field("mod_revision", &self.mod_revision)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Where the field with these bytes lies, including its tag and length. Empty bytes have no field.
fn field_of(bytes: &Range<u32>) -> Range<usize> {
    let bytes = bytes.start as usize..bytes.end as usize;
    if bytes.is_empty() { bytes } else { bytes.start - encoded_len_varint(bytes.len() as u64) - 1..bytes.end }
}

/// Where key and value lie in the encoded field.
pub(super) struct Places {
    key: Range<u32>,
    value: Range<u32>,
}

impl KeyValueFields {
    /// Length of the message alone.
    fn message_len(&self) -> usize {
        let bytes_len =
            |bytes: &Bytes| if bytes.is_empty() { 0 } else { 1 + encoded_len_varint(bytes.len() as u64) + bytes.len() };
        let int_len = |int: i64| if int == 0 { 0 } else { 1 + encoded_len_varint(int as u64) };
        bytes_len(&self.key)
            + int_len(self.create_revision.get())
            + int_len(self.mod_revision.get())
            + int_len(self.version)
            + bytes_len(&self.value)
            + int_len(self.lease)
    }

    /// Length of tag, length and message.
    pub(super) fn field_len(&self) -> usize {
        let message = self.message_len();
        1 + encoded_len_varint(message as u64) + message
    }

    /// Writes tag 2, length and message. The fields are in the order in which etcd writes them.
    pub(super) fn encode_field(&self, buffer: &mut BytesMut) -> Places {
        let start = buffer.len();
        buffer.put_u8(KV_TAG);
        encode_varint(self.message_len() as u64, buffer);
        let put_bytes = |tag: u8, bytes: &Bytes, buffer: &mut BytesMut| {
            if !bytes.is_empty() {
                buffer.put_u8(tag);
                encode_varint(bytes.len() as u64, buffer);
                buffer.put_slice(bytes);
            }
            let end = buffer.len() - start;
            // Messages are smaller than 2 GiB: gRPC refuses larger ones long before this.
            (end - bytes.len()) as u32..end as u32
        };
        let put_int = |tag: u8, int: i64, buffer: &mut BytesMut| {
            if int != 0 {
                buffer.put_u8(tag);
                encode_varint(int as u64, buffer);
            }
        };
        let key = put_bytes(0x0a, &self.key, buffer);
        put_int(0x10, self.create_revision.get(), buffer);
        put_int(0x18, self.mod_revision.get(), buffer);
        put_int(0x20, self.version, buffer);
        let value = put_bytes(0x2a, &self.value, buffer);
        put_int(0x30, self.lease, buffer);
        Places { key, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_its_value_a_key_value_is_encoded_as_if_it_had_none() {
        for value in [0, 1, 10, 127, 128, 300, 20_000, 3 << 20] {
            for lease in [0, 7] {
                let fields = KeyValueFields {
                    key: "a/key".into(),
                    value: vec![b'v'; value].into(),
                    create_revision: Revision::new(300),
                    mod_revision: Revision::new(70_000),
                    version: 3,
                    lease,
                };
                let mut bare = BytesMut::new();
                let kv = KeyValue::new(&fields);
                kv.put_bare(&mut bare);
                assert_eq!(bare, KeyValue::new(&KeyValueFields { value: Bytes::new(), ..fields }).encoded());
                assert_eq!(bare.len(), kv.bare_len(), "{value} bytes");
            }
        }
    }
}
