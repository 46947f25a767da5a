//! [`KeyValue`]: one key at one revision, in etcd's own encoding, made once and shared by history, snapshot and
//! replies.
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
/// Tag bytes of the fields of `mvccpb.KeyValue`, in the order in which etcd writes them.
const KEY_TAG: u8 = 0x0a;
const CREATE_TAG: u8 = 0x10;
const MOD_TAG: u8 = 0x18;
const VERSION_TAG: u8 = 0x20;
const VALUE_TAG: u8 = 0x2a;
const LEASE_TAG: u8 = 0x30;

/// A key-value of this size takes longer to copy than to send, and little more memory by itself than beside others.
pub(crate) const LARGE: usize = 2 << 10;

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

    /// Reads what [`KeyValue::encoded`] returned, which may be a slice of several key-values side by side.
    #[must_use]
    pub fn of_encoded(encoded: Bytes) -> Self {
        let (places, fields) = read(&encoded);
        Self::from_places(encoded, places, &fields)
    }

    /// The key of an encoded key-value, without reading the rest.
    #[must_use]
    pub fn key_of(encoded: &[u8]) -> &[u8] {
        let (_, at) = varint(encoded, 1);
        match encoded.get(at) {
            Some(&KEY_TAG) => {
                let (len, at) = varint(encoded, at + 1);
                &encoded[at..at + len as usize]
            }
            _ => &[],
        }
    }

    /// The value of an encoded key-value.
    #[must_use]
    pub fn value_of(encoded: &[u8]) -> &[u8] {
        let (Places { value, .. }, _) = read(encoded);
        &encoded[value.start as usize..value.end as usize]
    }

    /// The same as [`KeyValue::bare_len`] for an encoded key-value.
    #[must_use]
    pub fn bare_len_of(encoded: &[u8]) -> usize {
        bare_len(encoded.len(), &read(encoded).0)
    }

    /// The same key-value in its own allocation, so that it does not keep a larger one in memory.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { encoded: Bytes::copy_from_slice(&self.encoded), ..self.clone() }
    }

    /// Whether it is never put into a buffer with others.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.encoded.len() >= LARGE
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

    /// The same without the rest.
    #[must_use]
    pub fn into_encoded(self) -> Bytes {
        self.encoded
    }

    /// The field without its tag byte, that is length and message, to be written after another tag.
    #[must_use]
    pub fn encoded_untagged(&self) -> &[u8] {
        &self.encoded[1..]
    }

    /// Length of the field without the value, as a keys-only list contains it.
    #[must_use]
    pub fn bare_len(&self) -> usize {
        bare_len(self.encoded.len(), &Places { key: self.key.clone(), value: self.value.clone() })
    }

    /// Writes the field without the value.
    pub fn put_bare(&self, buffer: &mut BytesMut) {
        buffer.put_u8(KV_TAG);
        encode_varint(self.bare_message_len() as u64, buffer);
        buffer.put_slice(&self.encoded[self.head_len()..self.value_field().start]);
        buffer.put_slice(&self.encoded[self.value_field().end..]);
    }

    fn bare_message_len(&self) -> usize {
        bare_message_len(self.encoded.len(), &self.key, &self.value)
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

/// Length of an encoded key-value without its value.
fn bare_len(len: usize, Places { key, value }: &Places) -> usize {
    let message = bare_message_len(len, key, value);
    1 + encoded_len_varint(message as u64) + message
}

fn bare_message_len(len: usize, key: &Range<u32>, value: &Range<u32>) -> usize {
    len - field_of(key).start - field_of(value).len()
}

/// Reads the numbers of an encoded key-value, and where its key and its value lie.
fn read(encoded: &[u8]) -> (Places, KeyValueFields) {
    let mut fields = KeyValueFields::default();
    let (_, mut at) = varint(encoded, 1);
    // Empty bytes have no field, and lie where it would be.
    let (mut key, mut value) = (at..at, None);
    let mut without_lease = at;
    while at < encoded.len() {
        let tag = encoded[at];
        let (number, behind) = varint(encoded, at + 1);
        at = behind;
        match tag {
            CREATE_TAG => fields.create_revision = Revision::new(number as i64),
            MOD_TAG => fields.mod_revision = Revision::new(number as i64),
            VERSION_TAG => fields.version = number as i64,
            LEASE_TAG => {
                fields.lease = number as i64;
                continue;
            }
            _ => {
                let bytes = at..at + number as usize;
                at = bytes.end;
                if tag == KEY_TAG { key = bytes } else { value = Some(bytes) }
            }
        }
        without_lease = at;
    }
    let value = value.unwrap_or(without_lease..without_lease);
    let place = |bytes: Range<usize>| bytes.start as u32..bytes.end as u32;
    (Places { key: place(key), value: place(value) }, fields)
}

/// Reads a number, and where it ends.
fn varint(encoded: &[u8], mut at: usize) -> (u64, usize) {
    let (mut number, mut shift) = (0, 0);
    while let Some(byte) = encoded.get(at)
        && shift < 64
    {
        at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (number, at)
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
    pub(crate) fn field_len(&self) -> usize {
        let message = self.message_len();
        1 + encoded_len_varint(message as u64) + message
    }

    /// Writes tag 2, length and message, as [`KeyValue::encoded`] has them.
    pub(crate) fn encode_to(&self, buffer: &mut BytesMut) {
        self.encode_field(buffer);
    }

    /// Does the same, and tells where key and value are. The fields are in the order in which etcd writes them.
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
        let key = put_bytes(KEY_TAG, &self.key, buffer);
        put_int(CREATE_TAG, self.create_revision.get(), buffer);
        put_int(MOD_TAG, self.mod_revision.get(), buffer);
        put_int(VERSION_TAG, self.version, buffer);
        let value = put_bytes(VALUE_TAG, &self.value, buffer);
        put_int(LEASE_TAG, self.lease, buffer);
        Places { key, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_from_an_encoding_is_what_was_encoded() {
        for key in ["", "k", "a/longer/key"] {
            for value in [0, 1, 127, 128, 20_000] {
                for (version, lease) in [(0, 0), (1, 7), (i64::MAX, -1)] {
                    let kv = KeyValue::new(&KeyValueFields {
                        key: key.into(),
                        value: vec![b'v'; value].into(),
                        create_revision: Revision::new(version),
                        mod_revision: Revision::new(i64::MAX),
                        version,
                        lease,
                    });
                    assert_eq!(KeyValue::of_encoded(kv.encoded().clone()), kv);
                    assert_eq!(KeyValue::key_of(kv.encoded()), key.as_bytes());
                    assert_eq!(KeyValue::value_of(kv.encoded()), kv.value());
                    assert_eq!(KeyValue::bare_len_of(kv.encoded()), kv.bare_len());
                }
            }
        }
    }

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
