//! [`Entry`]: one whole revision as subscribers receive it, encoded once.
//!
//! Not here: which subscriber gets which event; that is `hub`. Always holds: an entry has every event of its revision
//! within its feed's range, in etcd's order, and `encoded` is their concatenation as protobuf field 11
//! (`WatchResponse.events`).

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

use super::{Cluster, KeyValue, KeyValueFields, Revision};

/// Tag byte of field 11, length-delimited: `WatchResponse.events`.
const EVENTS_TAG: u8 = 0x5a;
/// Field 1 of `Event` with the value DELETE.
const TYPE_DELETE: [u8; 2] = [0x08, 0x01];
/// Tag byte of field 3 of `Event`: `prev_kv`.
const PREV_KV_TAG: u8 = 0x1a;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The key was created or changed.
    Put,
    /// The key was deleted, by a request or because its lease ended.
    Delete,
}

/// One change, before it is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventFields {
    /// What happened.
    pub kind: EventKind,
    /// The key-value after the change; for a delete only `key` and `mod_revision` are set.
    pub kv: KeyValueFields,
}

impl EventFields {
    /// Whether the change created the key. etcd never reports a previous value for such a change, even if the same
    /// transaction deleted one.
    #[must_use]
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision
    }
}

/// One change, encoded within its [`Entry`].
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key-value after the change.
    pub kv: Arc<KeyValue>,
    /// The key-value before the change. Absent if the key was created, or if the source did not know the previous
    /// value.
    pub prev: Option<Arc<KeyValue>>,
    /// Where the event lies in [`Entry::encoded`].
    place: Range<u32>,
}

impl Event {
    /// Whether the change created the key.
    #[must_use]
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision
    }
}

/// One whole revision.
#[derive(Debug)]
pub struct Entry {
    /// The cluster that made the revision; responses with this entry carry its header.
    pub cluster: Arc<Cluster>,
    /// The revision.
    pub revision: Revision,
    /// When the relay received it. The delivery lag is counted from here.
    pub received: Instant,
    events: Box<[Event]>,
    encoded: Bytes,
    with_prev: OnceLock<WithPrev>,
}

/// The second encoding, with `prev_kv`, made when it is first needed.
#[derive(Debug)]
struct WithPrev {
    encoded: Bytes,
    places: Box<[Range<u32>]>,
}

impl Entry {
    /// Encodes a revision of `cluster`. `prev` gives the key-value that an event replaces; it is called in event order.
    pub fn encode(
        cluster: &Arc<Cluster>,
        revision: Revision,
        received: Instant,
        changes: &[EventFields],
        mut prev: impl FnMut(&EventFields) -> Option<Arc<KeyValue>>,
    ) -> Self {
        let event_len = |change: &EventFields| {
            change.kv.field_len() + if change.kind == EventKind::Delete { TYPE_DELETE.len() } else { 0 }
        };
        let total: usize = changes.iter().map(|change| delimited_len(event_len(change))).sum();
        let mut buffer = BytesMut::with_capacity(total);
        let mut places = Vec::with_capacity(changes.len());
        for change in changes {
            let start = buffer.len();
            buffer.put_u8(EVENTS_TAG);
            encode_varint(event_len(change) as u64, &mut buffer);
            if change.kind == EventKind::Delete {
                buffer.put_slice(&TYPE_DELETE);
            }
            let kv_start = buffer.len();
            let kv_places = change.kv.encode_field(&mut buffer);
            places.push((start, kv_start, buffer.len(), kv_places));
        }
        let encoded = buffer.freeze();
        let shared = changes.len() > 1;
        let events = places
            .into_iter()
            .zip(changes)
            .map(|((start, kv_start, end, kv_places), change)| {
                let kv = KeyValue::from_places(encoded.slice(kv_start..end), kv_places, &change.kv);
                // Otherwise one surviving key of a large transaction would keep the bytes of all the others in memory.
                let kv = if shared { kv.detached() } else { kv };
                Event { kind: change.kind, kv: Arc::new(kv), prev: prev(change), place: start as u32..end as u32 }
            })
            .collect();
        Self { cluster: cluster.clone(), revision, received, events, encoded, with_prev: OnceLock::new() }
    }

    /// The events, in etcd's order.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// All events as protobuf fields, with `prev_kv` if `prev` is true. That form is made once and kept.
    #[must_use]
    pub fn encoded(&self, prev: bool) -> &Bytes {
        if prev { &self.with_prev().encoded } else { &self.encoded }
    }

    /// Where event `index` lies in [`Entry::encoded`], which was called with the same `prev`.
    #[must_use]
    pub fn place(&self, index: usize, prev: bool) -> Range<usize> {
        let place = if prev { &self.with_prev().places[index] } else { &self.events[index].place };
        place.start as usize..place.end as usize
    }

    /// The most bytes that this entry keeps alive: both encodings, the key-values, and those that they replaced.
    #[must_use]
    pub fn cost(&self) -> usize {
        let second = self.with_prev.get().map_or(0, |with_prev| with_prev.encoded.len());
        let detached: usize = if self.events.len() > 1 { self.encoded.len() } else { 0 };
        let prev: usize =
            self.events.iter().filter_map(|event| event.prev.as_ref()).map(|prev| prev.encoded().len()).sum();
        ENTRY_OVERHEAD + self.events.len() * EVENT_OVERHEAD + self.encoded.len() + second + detached + prev
    }

    fn with_prev(&self) -> &WithPrev {
        self.with_prev.get_or_init(|| {
            let prev_len = |event: &Event| event.prev.as_ref().map_or(0, |prev| prev.encoded().len());
            let message_len = |event: &Event| {
                event.kv.encoded().len()
                    + if event.kind == EventKind::Delete { TYPE_DELETE.len() } else { 0 }
                    + prev_len(event)
            };
            let total = self.events.iter().map(|event| delimited_len(message_len(event))).sum();
            let mut buffer = BytesMut::with_capacity(total);
            let mut places = Vec::with_capacity(self.events.len());
            for event in &self.events {
                let start = buffer.len() as u32;
                buffer.put_u8(EVENTS_TAG);
                encode_varint(message_len(event) as u64, &mut buffer);
                if event.kind == EventKind::Delete {
                    buffer.put_slice(&TYPE_DELETE);
                }
                buffer.put_slice(event.kv.encoded());
                if let Some(prev) = &event.prev {
                    buffer.put_u8(PREV_KV_TAG);
                    buffer.put_slice(prev.encoded_untagged());
                }
                places.push(start..buffer.len() as u32);
            }
            WithPrev { encoded: buffer.freeze(), places: places.into() }
        })
    }
}

/// Rough size of an entry's own allocations.
const ENTRY_OVERHEAD: usize = 160;
/// Rough size of an event's own allocations.
const EVENT_OVERHEAD: usize = 144;

fn delimited_len(message: usize) -> usize {
    1 + encoded_len_varint(message as u64) + message
}
