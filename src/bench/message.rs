//! Reads etcd's answers in place: only the fields that are checked are looked up, and nothing is copied.
//!
//! Checks are in `check`; requests are made with `pb`. Called for every delivery. Always holds: bytes that are not
//! protobuf are an error.

use thiserror::Error;

/// Bytes that are not a valid message.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a message that cannot be read")]
pub(super) struct Unreadable;

/// The fields of a `WatchResponse` without its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WatchResponse<'a> {
    pub(super) revision: i64,
    pub(super) watch_id: i64,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) compact_revision: i64,
    pub(super) cancel_reason: &'a [u8],
}

/// The fields of a key-value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyValue<'a> {
    pub(super) key: &'a [u8],
    pub(super) mod_revision: i64,
    pub(super) version: i64,
    pub(super) value: &'a [u8],
}

/// The fields of a `RangeResponse` without its key-values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeResponse {
    pub(super) revision: i64,
    pub(super) more: bool,
    pub(super) count: i64,
}

/// Reads the head of a `WatchResponse`.
pub(super) fn watch_response(bytes: &[u8]) -> Result<WatchResponse<'_>, Unreadable> {
    let mut response = WatchResponse::default();
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(header)) => response.revision = header_revision(header)?,
            (2, Value::Number(id)) => response.watch_id = id as i64,
            (3, Value::Number(created)) => response.created = created != 0,
            (4, Value::Number(canceled)) => response.canceled = canceled != 0,
            (5, Value::Number(revision)) => response.compact_revision = revision as i64,
            (6, Value::Bytes(reason)) => response.cancel_reason = reason,
            _ => {}
        }
    }
    Ok(response)
}

/// The events of a `WatchResponse`: whether each is a put, and its key-value.
pub(super) fn events(bytes: &[u8]) -> impl Iterator<Item = Result<(bool, KeyValue<'_>), Unreadable>> {
    fields(bytes).filter_map(|field| match field {
        Ok((11, Value::Bytes(event))) => Some(read_event(event)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

/// Reads the head of a `RangeResponse`.
pub(super) fn range_response(bytes: &[u8]) -> Result<RangeResponse, Unreadable> {
    let mut response = RangeResponse::default();
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(header)) => response.revision = header_revision(header)?,
            (3, Value::Number(more)) => response.more = more != 0,
            (4, Value::Number(count)) => response.count = count as i64,
            _ => {}
        }
    }
    Ok(response)
}

/// The key-values of a `RangeResponse`.
pub(super) fn key_values(bytes: &[u8]) -> impl Iterator<Item = Result<KeyValue<'_>, Unreadable>> {
    fields(bytes).filter_map(|field| match field {
        Ok((2, Value::Bytes(kv))) => Some(read_key_value(kv)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

/// The revision in the header of the answer to a write.
pub(super) fn answered_revision(bytes: &[u8]) -> Result<i64, Unreadable> {
    for field in fields(bytes) {
        if let (1, Value::Bytes(header)) = field? {
            return header_revision(header);
        }
    }
    Err(Unreadable)
}

fn header_revision(bytes: &[u8]) -> Result<i64, Unreadable> {
    let mut revision = 0;
    for field in fields(bytes) {
        if let (3, Value::Number(number)) = field? {
            revision = number as i64;
        }
    }
    Ok(revision)
}

fn read_event(bytes: &[u8]) -> Result<(bool, KeyValue<'_>), Unreadable> {
    let mut is_put = true;
    let mut key_value = KeyValue::default();
    for field in fields(bytes) {
        match field? {
            (1, Value::Number(kind)) => is_put = kind == 0,
            (2, Value::Bytes(kv)) => key_value = read_key_value(kv)?,
            _ => {}
        }
    }
    Ok((is_put, key_value))
}

fn read_key_value(bytes: &[u8]) -> Result<KeyValue<'_>, Unreadable> {
    let mut key_value = KeyValue::default();
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(key)) => key_value.key = key,
            (3, Value::Number(revision)) => key_value.mod_revision = revision as i64,
            (4, Value::Number(version)) => key_value.version = version as i64,
            (5, Value::Bytes(value)) => key_value.value = value,
            _ => {}
        }
    }
    Ok(key_value)
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, up to the first error.
fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), Unreadable>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or(Unreadable))
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(rest)?),
        1 => Value::Bytes(take(rest, 8)?),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Value::Bytes(take(rest, length)?)
        }
        5 => Value::Bytes(take(rest, 4)?),
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for (index, byte) in rest.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *rest = &rest[index + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb::{
        etcdserverpb::{self as pb, ResponseHeader},
        mvccpb,
    };

    fn kv(key: &'static str, mod_revision: i64) -> mvccpb::KeyValue {
        mvccpb::KeyValue {
            key: key.into(),
            value: "v".into(),
            mod_revision,
            version: 3,
            lease: 9,
            ..Default::default()
        }
    }

    #[test]
    fn a_watch_response_is_read_as_prost_reads_it() {
        let response = pb::WatchResponse {
            header: Some(ResponseHeader { revision: 300, cluster_id: u64::MAX, ..Default::default() }),
            watch_id: 7,
            canceled: true,
            compact_revision: 5,
            cancel_reason: "gone".into(),
            events: vec![
                mvccpb::Event { kv: Some(kv("a", 299)), ..Default::default() },
                mvccpb::Event { r#type: 1, kv: Some(kv("b", 300)), prev_kv: Some(kv("b", 1)) },
            ],
            ..Default::default()
        };
        let bytes = response.encode_to_vec();
        let read = watch_response(&bytes).expect("readable");
        assert_eq!((read.revision, read.watch_id, read.created, read.canceled), (300, 7, false, true));
        assert_eq!((read.compact_revision, read.cancel_reason), (5, &b"gone"[..]));
        let events: Vec<_> = events(&bytes).collect::<Result<_, _>>().expect("readable");
        assert_eq!(events[0], (true, KeyValue { key: b"a", mod_revision: 299, version: 3, value: b"v" }));
        assert_eq!(events[1], (false, KeyValue { key: b"b", mod_revision: 300, version: 3, value: b"v" }));
    }

    #[test]
    fn a_range_response_is_read_as_prost_reads_it() {
        let header = Some(ResponseHeader { revision: 12, ..Default::default() });
        let bytes =
            pb::RangeResponse { header, kvs: vec![kv("a", 1), kv("b", 2)], more: true, count: 5 }.encode_to_vec();
        assert_eq!(range_response(&bytes), Ok(RangeResponse { revision: 12, more: true, count: 5 }));
        let keys: Vec<_> = key_values(&bytes).map(|kv| kv.expect("readable").key.to_vec()).collect();
        assert_eq!(keys, [b"a", b"b"]);
        assert_eq!(answered_revision(&bytes), Ok(12));
    }

    #[test]
    fn what_is_cut_short_is_unreadable() {
        let bytes = pb::WatchResponse { cancel_reason: "gone".into(), ..Default::default() }.encode_to_vec();
        assert_eq!(watch_response(&bytes[..bytes.len() - 1]), Err(Unreadable));
        assert_eq!(watch_response(&[0xff; 12]), Err(Unreadable));
    }
}
