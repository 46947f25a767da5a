//! [`Leaf`]: neighbouring key-values of a map: a base, in which they lie side by side, and those that changed since.
//!
//! By itself a key-value costs half of its length more than in a base ([`Base`]), but whoever refers to a base keeps
//! all of it in memory, and a write cannot change it. So a key-value that is written is *loose* at first: an allocation
//! of its own, which the history shares. When many have changed, the leaf is *packed*: a new base is made of all its
//! key-values. Large ones always stay loose. The leaves of feeds on demand are never packed, since feeds of overlapping
//! ranges share their key-values. Not here: the tree above the leaves, see `snapshot`. Always holds: a leaf is packed
//! only after [`PATCHES`] of its key-values or [`WASTE`] bytes of them changed, or if it splits or joins another. So an
//! old version that is held keeps a bounded multiple of what was changed since. Nobody refers to a base for longer than
//! to the snapshot or the reply that it was found in (see [`Kv`]).

mod base;

use std::{
    ops::{Deref, Range as Span},
    sync::{Arc, OnceLock},
};

use bytes::{Bytes, BytesMut};

pub(super) use self::base::Packer;
use self::base::{Base, START};
use super::Weight;
use crate::{
    hub::pages::{Pages, Slot},
    types::{KeyValue, LARGE},
};

/// The bytes of a full base. More would keep more in memory for whoever holds an old snapshot, fewer would cost more
/// for each leaf. The allocator has buffers of just this size.
const FULL: usize = 4 * LARGE;
/// The most bytes of a base. A full one may grow by this much before it splits, so that keys whose values become a
/// little longer do not halve each leaf.
const MOST: usize = FULL + LARGE;
/// The most key-values of a leaf, so that looking at each of them takes some microseconds at the most.
const ENTRIES: usize = 64;
/// The most key-values of a leaf that always stay loose: so few that copying their pointers takes less than a
/// microsecond.
const LARGES: usize = 32;
/// How many small key-values may be loose before the leaf is packed. With more of them, each write would copy more
/// pointers. With fewer, more bases would be made.
const PATCHES: usize = 8;
/// How many bytes of a base may have been replaced or deleted before the leaf is packed. It is more than any one
/// key-value has there, so the writes of a single hot key make no base.
const WASTE: usize = FULL / 3;

/// In [`Leaf::order`]: the key-value is loose, and the other bits are its place among these.
const LOOSE: u8 = 0x80;

/// Neighbouring key-values; see the module.
#[derive(Debug)]
pub(in crate::hub) struct Leaf {
    /// Some of its key-values may have been replaced or deleted.
    base: Base,
    loose: Vec<Arc<KeyValue>>,
    /// In key order, where each key-value is: its place in the base, or [`LOOSE`] and its place in `loose`. Empty if
    /// all of them are loose and in order, or if there is nothing but the base.
    order: Vec<u8>,
    /// The bytes of the base's key-values that were neither replaced nor deleted.
    live: u32,
    /// The loose key-values that go into the next base.
    small: Small,
    /// Whether it is packed at all.
    packs: bool,
    /// Removed with each change, since its page has the key-values from before.
    page: OnceLock<Arc<Slot>>,
}

/// The number and the bytes of the small loose key-values.
#[derive(Clone, Copy, Debug, Default)]
struct Small {
    count: u32,
    bytes: u32,
}

/// Where a key-value is.
enum Place {
    Base(usize),
    Loose(usize),
}

/// A key-value of a snapshot.
#[derive(Clone, Debug)]
pub enum Kv<'a> {
    /// It has its own allocation, which others can share.
    Shared(&'a Arc<KeyValue>),
    /// It refers to the base of a leaf.
    Packed(KeyValue),
}

/// A key-value that a reply holds. It takes less memory than a [`KeyValue`], which is read from it when it is needed.
#[derive(Clone, Debug)]
pub(in crate::hub) struct Pick(Picked);

#[derive(Clone, Debug)]
enum Picked {
    Shared(Arc<KeyValue>),
    /// Its encoding.
    Packed(Bytes),
}

impl Default for Leaf {
    /// Without key-values, and to be packed.
    fn default() -> Self {
        Self::of(Vec::new(), true)
    }
}

/// A leaf is cloned in order to be changed, so the clone has no page.
impl Clone for Leaf {
    fn clone(&self) -> Self {
        Self {
            base: self.base.clone(),
            loose: self.loose.clone(),
            order: self.order.clone(),
            live: self.live,
            small: self.small,
            packs: self.packs,
            page: OnceLock::new(),
        }
    }
}

impl Leaf {
    /// An empty leaf that is never packed.
    pub(super) fn shared() -> Self {
        Self::of(Vec::new(), false)
    }

    /// A leaf of loose key-values.
    fn of(loose: Vec<Arc<KeyValue>>, packs: bool) -> Self {
        let mut small = Small::default();
        loose.iter().for_each(|kv| small.add(kv));
        Self { base: Base::default(), loose, order: Vec::new(), live: 0, small, packs, page: OnceLock::new() }
    }

    /// A leaf of a new base and of large key-values.
    fn packed(base: Base, loose: Vec<Arc<KeyValue>>, order: &[u8]) -> Self {
        let is_mixed = base.len() > 0 && !loose.is_empty();
        let order = if is_mixed { order.to_vec() } else { Vec::new() };
        let live = base.bytes() as u32;
        Self { base, loose, order, live, small: Small::default(), packs: true, page: OnceLock::new() }
    }

    /// How many key-values there are.
    pub(in crate::hub) fn len(&self) -> usize {
        if self.order.is_empty() { self.base.len() + self.loose.len() } else { self.order.len() }
    }

    fn place(&self, index: usize) -> Place {
        match self.order.get(index) {
            Some(code) if code & LOOSE != 0 => Place::Loose(usize::from(code & !LOOSE)),
            Some(code) => Place::Base(usize::from(*code)),
            None if self.base.len() == 0 => Place::Loose(index),
            None => Place::Base(index),
        }
    }

    /// The key-value at a place.
    pub(in crate::hub) fn at(&self, index: usize) -> Kv<'_> {
        match self.place(index) {
            Place::Base(at) => Kv::Packed(KeyValue::of_encoded(self.base.slice(at..at + 1))),
            Place::Loose(at) => Kv::Shared(&self.loose[at]),
        }
    }

    /// The key-values at these places.
    pub(in crate::hub) fn iter(&self, places: Span<usize>) -> impl DoubleEndedIterator<Item = Kv<'_>> {
        places.map(|index| self.at(index))
    }

    fn encoded(&self, index: usize) -> &[u8] {
        match self.place(index) {
            Place::Base(at) => self.base.encoded(at..at + 1),
            Place::Loose(at) => self.loose[at].encoded(),
        }
    }

    /// The key at a place.
    pub(super) fn key(&self, index: usize) -> &[u8] {
        match self.place(index) {
            Place::Base(at) => KeyValue::key_of(self.base.encoded(at..at + 1)),
            Place::Loose(at) => self.loose[at].key(),
        }
    }

    /// The first key of a leaf that is not empty.
    pub(super) fn first_key(&self) -> &[u8] {
        self.key(0)
    }

    /// The last key of a leaf that is not empty.
    pub(super) fn last_key(&self) -> &[u8] {
        self.key(self.len() - 1)
    }

    /// Whether it is nothing but its base.
    fn is_base(&self) -> bool {
        self.order.is_empty() && self.loose.is_empty()
    }

    /// The key-values at these places encoded side by side, in a buffer that all replies share; `None` if they are
    /// better taken one by one.
    pub(in crate::hub) fn piece(&self, places: Span<usize>, pages: &Pages) -> Option<Bytes> {
        if self.is_base() {
            return Some(self.base.slice(places));
        }
        // For less than half of a leaf no page is made.
        if 2 * places.len() < self.len() {
            return None;
        }
        let slot = match self.page.get() {
            Some(slot) => slot,
            None if Pages::are_worth_it(self.size(0..self.len())) => self.page.get_or_init(Slot::new),
            None => return None,
        };
        let page = pages.page(slot, || {
            let mut page = BytesMut::with_capacity(self.size(0..self.len()));
            (0..self.len()).for_each(|index| page.extend_from_slice(self.encoded(index)));
            page.freeze()
        });
        if places.len() == self.len() {
            return Some(page);
        }
        let start = self.size(0..places.start);
        Some(page.slice(start..start + self.size(places)))
    }

    /// Encoded bytes of the key-values at these places.
    pub(super) fn size(&self, places: Span<usize>) -> usize {
        if self.is_base() {
            return self.base.encoded(places).len();
        }
        places.map(|index| self.encoded(index).len()).sum()
    }

    /// The size of the key-values at these places.
    pub(super) fn weight(&self, places: Span<usize>) -> Weight {
        places.fold(Weight::default(), |mut weight, index| {
            weight += match self.place(index) {
                Place::Base(at) => Weight::of_encoded(self.base.encoded(at..at + 1)),
                Place::Loose(at) => Weight::of_one(&self.loose[at]),
            };
            weight
        })
    }

    /// Where a key is, or would be.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut from, mut to) = (0, self.len());
        while from < to {
            let middle = from.midpoint(to);
            match self.key(middle).cmp(key) {
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => to = middle,
            }
        }
        Err(from)
    }

    /// How many keys are below `key`.
    pub(super) fn rank(&self, key: &[u8]) -> usize {
        self.find(key).unwrap_or_else(|index| index)
    }

    /// Inserts a key-value, or replaces the one with its key. Returns the size of what was replaced, and the right part
    /// if the leaf had to split.
    pub(super) fn put(&mut self, kv: Arc<KeyValue>) -> (Weight, Option<Self>) {
        self.page.take();
        self.small.add(&kv);
        let found = self.find(kv.key());
        let (Ok(index) | Err(index)) = found;
        let replaced = found.map_or_else(|_| Weight::default(), |index| self.weight(index..index + 1));
        match found.map(|index| self.place(index)) {
            Ok(Place::Loose(at)) => {
                let replaced = std::mem::replace(&mut self.loose[at], kv);
                self.small.remove(&replaced);
            }
            Ok(Place::Base(at)) => {
                self.live -= self.base.encoded(at..at + 1).len() as u32;
                self.list_order()[index] = LOOSE | self.loose.len() as u8;
                self.loose.push(kv);
            }
            Err(index) if self.base.len() == 0 => self.loose.insert(index, kv),
            Err(index) => {
                let at = LOOSE | self.loose.len() as u8;
                self.list_order().insert(index, at);
                self.loose.push(kv);
            }
        }
        if !self.is_too_large() {
            self.tidy();
            return (replaced, None);
        }
        // Rising keys leave full leaves behind, and so do falling ones.
        let at = match found {
            Err(index) if index + 1 == self.len() => index,
            Err(0) => 1,
            _ => self.middle(),
        };
        let right = self.part(at..self.len());
        *self = self.part(0..at);
        (replaced, Some(right))
    }

    /// Removes the key-value at a place.
    pub(super) fn remove(&mut self, index: usize) {
        self.page.take();
        match self.place(index) {
            Place::Base(at) => {
                self.live -= self.base.encoded(at..at + 1).len() as u32;
                self.list_order().remove(index);
            }
            Place::Loose(at) if self.order.is_empty() => {
                let removed = self.loose.remove(at);
                self.small.remove(&removed);
            }
            Place::Loose(at) => {
                self.order.remove(index);
                let removed = self.loose.swap_remove(at);
                self.small.remove(&removed);
                // The last one took its place.
                let last = LOOSE | self.loose.len() as u8;
                if let Some(code) = self.order.iter_mut().find(|code| **code == last) {
                    *code = LOOSE | at as u8;
                }
            }
        }
        self.tidy();
    }

    /// The places of all key-values, to be changed. There is a base.
    fn list_order(&mut self) -> &mut Vec<u8> {
        if self.order.is_empty() {
            self.order = (0..self.base.len() as u8).collect();
        }
        &mut self.order
    }

    /// Packs the leaf if enough of it has changed.
    fn tidy(&mut self) {
        let (all, live) = (self.base.bytes(), self.live as usize);
        if all > 0 && live == 0 {
            // There is nothing left of the base.
            self.loose = self.order.iter().map(|code| self.loose[usize::from(code & !LOOSE)].clone()).collect();
            self.order = Vec::new();
            self.base = Base::default();
        } else if live == all && self.loose.is_empty() {
            self.order = Vec::new();
        }
        let is_due = all - live > WASTE && live > 0
            || self.small.count as usize > PATCHES
            || self.small.bytes as usize > FULL / 2;
        if self.packs && is_due {
            *self = self.part(0..self.len());
        }
    }

    fn is_too_large(&self) -> bool {
        if !self.packs {
            return self.len() > LARGES;
        }
        self.len() > ENTRIES || self.larges() > LARGES || self.packed_len() > MOST
    }

    fn larges(&self) -> usize {
        self.loose.len() - self.small.count as usize
    }

    /// The bytes that its base has after it was packed.
    fn packed_len(&self) -> usize {
        self.live as usize + self.small.bytes as usize + START * (self.len() - self.larges())
    }

    /// The place at which to cut it, so that the larger part is smallest: in bytes if there are too many for a base.
    fn middle(&self) -> usize {
        if self.packed_len() <= MOST {
            return self.len() / 2;
        }
        let small = |index: usize| Some(self.encoded(index).len()).filter(|len| *len < LARGE).unwrap_or(0);
        let all: usize = (0..self.len()).map(small).sum();
        let mut before = 0;
        let larger = (1..self.len()).map(|at| {
            before += small(at - 1);
            (before.max(all - before), at)
        });
        larger.min().map_or(1, |(_, at)| at)
    }

    /// Some of its key-values in a leaf of their own, with a new base.
    fn part(&self, places: Span<usize>) -> Self {
        if !self.packs {
            return Self::of(self.loose[places].to_vec(), false);
        }
        if places.len() == 1
            && let Kv::Shared(kv) = self.at(places.start)
        {
            return Self::of(vec![kv.clone()], true);
        }
        let small = places.clone().map(|index| self.encoded(index).len()).filter(|len| *len < LARGE);
        let mut packer = Packer::new(small.map(|len| len + START).sum());
        self.write(places, &mut packer);
        packer.finish()
    }

    fn write(&self, places: Span<usize>, packer: &mut Packer) {
        for index in places {
            match self.place(index) {
                Place::Base(at) => packer.push(self.base.encoded(at..at + 1)),
                Place::Loose(at) if self.loose[at].is_large() => packer.keep(self.loose[at].clone()),
                Place::Loose(at) => packer.push(self.loose[at].encoded()),
            }
        }
    }

    /// Tells bases from each other.
    #[cfg(test)]
    pub(super) fn base(&self) -> Option<*const u8> {
        (self.base.len() > 0).then(|| self.base.slice(0..1).as_ptr())
    }

    /// Whether it should join a neighbour.
    pub(super) fn is_sparse(&self) -> bool {
        if !self.packs {
            return self.len() < LARGES / 4;
        }
        self.len() < ENTRIES / 4 && self.larges() < LARGES / 4 && self.packed_len() < FULL / 4
    }

    /// This leaf and the next one as one; `None` if they do not fit into one.
    pub(super) fn joined(&self, next: &Self) -> Option<Self> {
        let (entries, bytes) = (self.len() + next.len(), self.packed_len() + next.packed_len());
        if !self.packs {
            return (entries <= LARGES).then(|| Self::of([&self.loose[..], &next.loose[..]].concat(), false));
        }
        (entries <= ENTRIES && self.larges() + next.larges() <= LARGES && bytes <= FULL).then(|| {
            let mut both = Packer::new(bytes);
            self.write(0..self.len(), &mut both);
            next.write(0..next.len(), &mut both);
            both.finish()
        })
    }
}

impl Small {
    fn add(&mut self, kv: &KeyValue) {
        if !kv.is_large() {
            self.count += 1;
            self.bytes += kv.encoded().len() as u32;
        }
    }

    fn remove(&mut self, kv: &KeyValue) {
        if !kv.is_large() {
            self.count -= 1;
            self.bytes -= kv.encoded().len() as u32;
        }
    }
}

impl Deref for Kv<'_> {
    type Target = KeyValue;

    fn deref(&self) -> &KeyValue {
        match self {
            Self::Shared(kv) => kv,
            Self::Packed(kv) => kv,
        }
    }
}

impl Kv<'_> {
    /// For a reply with many others of the same snapshot.
    #[must_use]
    pub(in crate::hub) fn picked(self) -> Pick {
        match self {
            Self::Shared(kv) => Pick(Picked::Shared(kv.clone())),
            Self::Packed(kv) => Pick(Picked::Packed(kv.into_encoded())),
        }
    }

    /// For those who keep it longer than that, or keep few of many. It is a copy if it refers to a leaf's base.
    #[must_use]
    pub fn kept(&self) -> Arc<KeyValue> {
        match self {
            Self::Shared(kv) => (*kv).clone(),
            Self::Packed(kv) => Arc::new(kv.detached()),
        }
    }
}

impl Pick {
    pub(in crate::hub) fn kv(&self) -> Kv<'_> {
        match &self.0 {
            Picked::Shared(kv) => Kv::Shared(kv),
            Picked::Packed(encoded) => Kv::Packed(KeyValue::of_encoded(encoded.clone())),
        }
    }

    /// The value, without reading the rest.
    pub(in crate::hub) fn value(&self) -> &[u8] {
        match &self.0 {
            Picked::Shared(kv) => kv.value(),
            Picked::Packed(encoded) => KeyValue::value_of(encoded),
        }
    }

    /// Without a reference to a leaf's base.
    pub(in crate::hub) fn kept(self) -> Self {
        match self.0 {
            Picked::Shared(_) => self,
            Picked::Packed(encoded) => Self(Picked::Packed(Bytes::copy_from_slice(&encoded))),
        }
    }
}

impl From<Arc<KeyValue>> for Pick {
    fn from(kv: Arc<KeyValue>) -> Self {
        Self(Picked::Shared(kv))
    }
}

#[cfg(test)]
mod tests;
