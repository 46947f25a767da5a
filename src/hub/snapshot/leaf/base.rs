//! [`Base`]: neighbouring key-values, encoded side by side in one buffer that never changes; and [`Packer`], which
//! writes them.
//!
//! Not here: what has changed since a base was made, see `leaf`. Versions of a leaf share its base, and lists are sent
//! from it as it is. Always holds: a base has at most [`ENTRIES`] key-values, none of which is large, and at most
//! [`MOST`](super::MOST) bytes.

use std::{ops::Range as Span, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::{ENTRIES, FULL, LARGES, LOOSE, Leaf};
use crate::types::{KeyValue, KeyValueFields, LARGE};

/// What a key-value takes in a base in addition to its encoding: where it starts.
pub(super) const START: usize = size_of::<u16>();

/// Neighbouring key-values; see the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Base {
    /// The key-values, and then where each of them starts, so that both are one allocation.
    buffer: Bytes,
    len: u16,
}

impl Base {
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// The bytes of all key-values.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.len() - START * self.len()
    }

    /// The key-values at these places encoded side by side.
    pub(super) fn encoded(&self, places: Span<usize>) -> &[u8] {
        &self.buffer[self.start(places.start)..self.start(places.end)]
    }

    /// The same, sharing the buffer.
    pub(super) fn slice(&self, places: Span<usize>) -> Bytes {
        self.buffer.slice(self.start(places.start)..self.start(places.end))
    }

    fn start(&self, index: usize) -> usize {
        let at = self.bytes() + START * index;
        // Behind the last one, where the first start is written.
        self.buffer
            .get(at..at + START)
            .map_or(self.bytes(), |start| usize::from(u16::from_le_bytes([start[0], start[1]])))
    }
}

/// Writes key-values into a leaf: large ones stay by themselves, and all others become its base.
#[derive(Debug)]
pub(in crate::hub::snapshot) struct Packer {
    encoded: BytesMut,
    starts: SmallVec<[u16; ENTRIES]>,
    loose: Vec<Arc<KeyValue>>,
    /// See [`Leaf`].
    order: SmallVec<[u8; ENTRIES]>,
}

impl Default for Packer {
    /// With room for a full leaf.
    fn default() -> Self {
        Self::new(FULL)
    }
}

impl Packer {
    /// `bytes` is what the base will have, with its starts.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            encoded: BytesMut::with_capacity(bytes),
            starts: SmallVec::new(),
            loose: Vec::new(),
            order: SmallVec::new(),
        }
    }

    /// Adds a key-value that is not large.
    pub(super) fn push(&mut self, encoded: &[u8]) {
        self.begin();
        self.encoded.put_slice(encoded);
    }

    fn begin(&mut self) {
        self.order.push(self.starts.len() as u8);
        // A base ends far below 64 KiB.
        self.starts.push(self.encoded.len() as u16);
    }

    /// Adds a large key-value.
    pub(super) fn keep(&mut self, kv: Arc<KeyValue>) {
        self.order.push(LOOSE | self.loose.len() as u8);
        self.loose.push(kv);
    }

    /// The leaf of all that was added.
    pub(super) fn finish(mut self) -> Leaf {
        self.starts.iter().for_each(|start| self.encoded.put_u16_le(*start));
        Leaf::packed(Base { buffer: self.encoded.freeze(), len: self.starts.len() as u16 }, self.loose, &self.order)
    }

    /// Adds a key-value. Returns a leaf of those before it if it has no room beside them.
    pub(in crate::hub::snapshot) fn add(&mut self, fields: &KeyValueFields) -> Option<Leaf> {
        let len = fields.field_len();
        let is_large = len >= LARGE;
        let has_room = self.order.len() < ENTRIES
            && if is_large { self.loose.len() < LARGES } else { self.packed_len() + len + START <= FULL };
        let full = if has_room { None } else { self.flush() };
        if is_large {
            self.keep(Arc::new(KeyValue::new(fields)));
        } else {
            self.begin();
            fields.encode_to(&mut self.encoded);
        }
        full
    }

    fn packed_len(&self) -> usize {
        self.encoded.len() + START * self.starts.len()
    }

    /// A leaf of what was added since the last one, in a buffer of just its size.
    pub(in crate::hub::snapshot) fn flush(&mut self) -> Option<Leaf> {
        let mut leaf = Self::new(self.packed_len());
        leaf.encoded.put_slice(&self.encoded);
        self.encoded.clear();
        std::mem::swap(&mut leaf.starts, &mut self.starts);
        std::mem::swap(&mut leaf.order, &mut self.order);
        std::mem::swap(&mut leaf.loose, &mut self.loose);
        (!leaf.order.is_empty()).then(|| leaf.finish())
    }
}
