//! [`Listing`]: the encoded key-values of a reply, taken one part at a time.
//!
//! Not here: which key-values they are, see `read`; how they are sent, see `front`. Neighbours in a snapshot are kept
//! as two places in it, not as a list. So a reply of half a million keys costs no memory before it is sent, and it is
//! sent from the pages that all replies share. Key-values without their values, or from last to first, are copied as
//! they are taken.
//! Always holds: all parts are from one snapshot, and as long together as [`Listing::encoded_len`] says. It takes a
//! bounded time to take a part, or to drop the rest, however many key-values there are.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::{
    pages::Pages,
    snapshot::{Kv, MANY, Pick, Snapshot, free},
    work::Held,
};
use crate::types::KeyValue;

/// A key-value that is taken by itself counts for at least this many bytes, since fetching a shorter one takes as long.
const LEAST: usize = 128;
/// How many key-values are copied at a time from last to first.
const BACK: usize = 64;

/// The key-values of a reply; see the module.
pub struct Listing {
    source: Source,
    /// Whether values are left out.
    bare: bool,
    /// Encoded bytes that have not been taken yet.
    left: usize,
}

enum Source {
    /// Neighbours in a snapshot, as the range of places that has not been taken yet.
    Neighbours { snapshot: Arc<Snapshot>, pages: Arc<Pages>, places: Range<usize>, order: Order },
    /// Separate key-values that have not been taken yet, and the memory that is counted for them.
    Picked { kvs: smallvec::IntoIter<[Pick; 1]>, held: Option<Held> },
}

/// The direction through a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Rising,
    Falling,
}

impl Listing {
    pub(super) fn neighbours(
        snapshot: Arc<Snapshot>,
        pages: Arc<Pages>,
        places: Range<usize>,
        order: Order,
        bare: bool,
    ) -> Self {
        let weight = snapshot.map.weight(&places);
        let left = if bare { weight.bare_bytes } else { weight.bytes };
        Self { source: Source::Neighbours { snapshot, pages, places, order }, bare, left }
    }

    /// Iterates over all of `kvs`, so there must not be many.
    pub(super) fn picked(kvs: SmallVec<[Pick; 1]>, bare: bool) -> Self {
        let left = kvs.iter().map(|pick| len(&pick.kv(), bare)).sum();
        Self::picked_of(kvs, left, bare)
    }

    /// `bytes` is their encoded length in this form.
    pub(super) fn picked_of(kvs: SmallVec<[Pick; 1]>, bytes: usize, bare: bool) -> Self {
        Self { source: Source::Picked { kvs: kvs.into_iter(), held: None }, bare, left: bytes }
    }

    /// Counts the memory of the list itself, until the list is dropped.
    pub(super) fn hold(&mut self, memory: Held) {
        if let Source::Picked { held, .. } = &mut self.source {
            *held = Some(memory);
        }
    }

    /// How many key-values have not been taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.source {
            Source::Neighbours { places, .. } => places.len(),
            Source::Picked { kvs, .. } => kvs.len(),
        }
    }

    /// Whether all of them were taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Encoded bytes that have not been taken yet.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.left
    }

    /// The key-values that have not been taken yet, with their values.
    #[must_use]
    pub fn kvs(&self) -> Vec<Kv<'_>> {
        match &self.source {
            Source::Neighbours { snapshot, places, order, .. } => {
                let mut kvs = Vec::with_capacity(places.len());
                snapshot.map.leaves(places.clone(), |leaf, places| {
                    kvs.extend(leaf.iter(places));
                    true
                });
                if *order == Order::Falling {
                    kvs.reverse();
                }
                kvs
            }
            Source::Picked { kvs, .. } => kvs.as_slice().iter().map(Pick::kv).collect(),
        }
    }

    /// Takes encoded key-values in order and passes them to `with` in pieces, until they are `bytes` or a few more, or
    /// until all are taken. It takes fewer bytes if the key-values are small.
    pub fn take(&mut self, bytes: usize, mut with: impl FnMut(Cow<'_, Bytes>)) {
        let before = self.left;
        let mut part = Part { bare: self.bare, copied: BytesMut::new(), left: &mut self.left, work: 0, most: bytes };
        match &mut self.source {
            Source::Neighbours { snapshot, pages, places, order: Order::Rising } => {
                if part.bare && places.start < places.end {
                    // Enough key-values of average size to make up `bytes`.
                    let count = places.len().min(bytes / LEAST + 1);
                    part.copied.reserve(before / places.len() * count);
                }
                let mut next = places.start;
                snapshot.map.leaves(places.clone(), |leaf, places| {
                    next += places.len();
                    match (!part.bare).then(|| leaf.piece(places.clone(), pages)).flatten() {
                        Some(piece) => part.piece(piece, &mut with),
                        None => leaf.iter(places).for_each(|kv| part.one(&kv, &mut with)),
                    }
                    !part.is_full()
                });
                places.start = next;
            }
            Source::Neighbours { snapshot, places, order: Order::Falling, .. } => {
                let mut last: SmallVec<[Kv<'_>; BACK]> = SmallVec::new();
                while places.start < places.end && !part.is_full() {
                    let from = places.start.max(places.end.saturating_sub(BACK));
                    snapshot.map.leaves(from..places.end, |leaf, places| {
                        last.extend(leaf.iter(places));
                        true
                    });
                    last.drain(..).rev().for_each(|kv| part.one(&kv, &mut with));
                    places.end = from;
                }
            }
            Source::Picked { kvs, .. } => {
                while !part.is_full()
                    && let Some(pick) = kvs.next()
                {
                    part.one(&pick.kv(), &mut with);
                }
            }
        }
        if !part.copied.is_empty() {
            with(Cow::Owned(part.copied.freeze()));
        }
    }

    /// Takes key-values as they are stored, in order, and passes them to `with` one at a time, until they are `bytes`
    /// or a few more, or until all are taken. For callers that do not send them encoded. If values are to be left out,
    /// `with` has to do so.
    pub fn take_each(&mut self, bytes: usize, mut with: impl FnMut(&KeyValue)) {
        let bare = self.bare;
        let (mut work, mut taken) = (0, 0);
        let mut one = |kv: &KeyValue| {
            taken += len(kv, bare);
            work += kv.encoded().len().max(LEAST);
            with(kv);
            work < bytes
        };
        match &mut self.source {
            Source::Neighbours { snapshot, places, order: Order::Rising, .. } => {
                let mut next = places.start;
                snapshot.map.leaves(places.clone(), |leaf, places| {
                    leaf.iter(places).all(|kv| {
                        next += 1;
                        one(&kv)
                    })
                });
                places.start = next;
            }
            Source::Neighbours { snapshot, places, order: Order::Falling, .. } => {
                let mut goes_on = true;
                while goes_on && places.start < places.end {
                    places.end -= 1;
                    snapshot.map.leaves(places.end..places.end + 1, |leaf, places| {
                        goes_on = leaf.iter(places).all(|kv| one(&kv));
                        true
                    });
                }
            }
            Source::Picked { kvs, .. } => while kvs.next().is_some_and(|pick| one(&pick.kv())) {},
        }
        self.left -= taken;
    }
}

/// A part, while it is being taken.
struct Part<'a> {
    bare: bool,
    /// Key-values without their values.
    copied: BytesMut,
    left: &'a mut usize,
    work: usize,
    most: usize,
}

impl Part<'_> {
    fn is_full(&self) -> bool {
        self.work >= self.most
    }

    fn piece(&mut self, piece: Bytes, with: &mut impl FnMut(Cow<'_, Bytes>)) {
        *self.left -= piece.len();
        self.work += piece.len();
        with(Cow::Owned(piece));
    }

    fn one(&mut self, kv: &KeyValue, with: &mut impl FnMut(Cow<'_, Bytes>)) {
        let len = len(kv, self.bare);
        *self.left -= len;
        self.work += len.max(LEAST);
        if self.bare {
            kv.put_bare(&mut self.copied);
        } else {
            with(Cow::Borrowed(kv.encoded()));
        }
    }
}

/// The encoded length of a key-value.
pub(super) fn len(kv: &KeyValue, bare: bool) -> usize {
    if bare { kv.bare_len() } else { kv.encoded().len() }
}

/// A client that leaves does not take the rest.
impl Drop for Listing {
    fn drop(&mut self) {
        match &mut self.source {
            Source::Neighbours { snapshot, .. } => {
                if Arc::strong_count(snapshot) == 1 && snapshot.map.len() >= MANY {
                    let keys = snapshot.map.len();
                    free(std::mem::take(snapshot), keys);
                }
            }
            Source::Picked { kvs, .. } => {
                let count = kvs.len();
                if count >= MANY {
                    free(std::mem::replace(kvs, SmallVec::new().into_iter()), count);
                }
            }
        }
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("left", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    mod churned;

    use super::*;
    use crate::{
        hub::KeyMap,
        types::{KeyRange, KeyValueFields, Revision},
    };

    const KEYS: u32 = 1000;

    fn put(map: &mut KeyMap, key: u32, value: usize) {
        let key = format!("{key:05}").into();
        let fields = KeyValueFields { key, value: vec![b'x'; value].into(), ..KeyValueFields::default() };
        map.insert(KeyValue::new(&fields));
    }

    fn values(kvs: impl IntoIterator<Item = impl std::ops::Deref<Target = KeyValue>>) -> Vec<KeyValue> {
        kvs.into_iter().map(|kv| (*kv).clone()).collect()
    }

    fn listing(map: &KeyMap, pages: &Arc<Pages>, range: &KeyRange) -> Listing {
        let snapshot = Arc::new(Snapshot { map: map.clone(), ..Snapshot::default() });
        let places = map.places(range);
        Listing::neighbours(snapshot, pages.clone(), places, Order::Rising, false)
    }

    /// Takes everything, `bytes` at a time. Returns the bytes, and the buffers that they came in.
    fn take(mut listing: Listing, bytes: usize) -> (Vec<u8>, Vec<*const u8>) {
        let (mut all, mut buffers) = (Vec::new(), Vec::new());
        let len = listing.encoded_len();
        while !listing.is_empty() {
            let before = all.len();
            listing.take(bytes, |part| {
                all.extend_from_slice(&part);
                buffers.push(part.as_ptr());
            });
            assert!(all.len() > before, "each part has some key-values");
            assert_eq!(listing.encoded_len(), len - all.len());
        }
        (all, buffers)
    }

    #[test]
    fn any_part_of_a_snapshot_is_taken_whole_and_in_order_however_much_at_a_time() {
        for mut map in [KeyMap::default(), KeyMap::sharing()] {
            // Small, middling and large leaves.
            (0..KEYS).rev().for_each(|key| put(&mut map, key, [3, 300, 3000][key as usize * 3 / KEYS as usize]));
            let pages = Arc::default();
            for (from, to) in [(0, KEYS), (0, 1), (1, 999), (250, 800), (500, 500), (700, KEYS)] {
                let wire = |key: u32| Bytes::from(format!("{key:05}"));
                let Ok(range) = KeyRange::from_wire(wire(from), wire(to)) else { continue };
                let expected: Vec<u8> = map.range(&range).flat_map(|kv| kv.encoded().to_vec()).collect();
                for bytes in [1, 5_000, usize::MAX] {
                    let listing = listing(&map, &pages, &range);
                    assert_eq!(listing.len(), (to - from) as usize);
                    assert_eq!(values(listing.kvs()), values(map.range(&range)));
                    assert_eq!(take(listing, bytes).0, expected, "{range} by {bytes}");
                }
            }
        }
    }

    #[test]
    fn lists_of_packed_leaves_are_made_of_the_leaves_own_buffers() {
        let mut map = KeyMap::default();
        (0..KEYS).for_each(|key| put(&mut map, key, 300));
        let (pages, all) = (Arc::default(), KeyRange::prefix("".into()));
        let (bytes, buffers) = take(listing(&map, &pages, &all), usize::MAX);
        assert!(buffers.len() <= 2 * (KEYS as usize / 32) + 32, "{} buffers", buffers.len());
        assert_eq!(
            take(listing(&map, &Arc::default(), &all), usize::MAX),
            (bytes, buffers),
            "there is no page to make"
        );
    }

    #[test]
    fn replies_share_the_pages_and_a_write_makes_one_of_them_new() {
        let mut map = KeyMap::default();
        (0..KEYS).for_each(|key| put(&mut map, key, 300));
        let (pages, all) = (Arc::default(), KeyRange::prefix("".into()));
        let first = listing(&map, &pages, &all);
        let (bytes, buffers) = take(listing(&map, &pages, &all), usize::MAX);
        assert!(buffers.len() < KEYS as usize / 8, "{} buffers", buffers.len());
        assert_eq!(take(listing(&map, &pages, &all), usize::MAX).1, buffers);

        put(&mut map, 500, 200);
        let (changed, new) = take(listing(&map, &pages, &all), usize::MAX);
        assert_eq!(changed.len(), bytes.len() - 100);
        let shared = new.iter().filter(|buffer| buffers.contains(buffer)).count();
        assert_eq!(shared, buffers.len() - 1);
        assert_eq!(take(first, usize::MAX).0, bytes, "a listing that has begun stays as it was");
    }

    #[test]
    fn key_values_that_are_taken_one_by_one_are_the_same_in_the_same_order() {
        let mut map = KeyMap::default();
        (0..KEYS).for_each(|key| put(&mut map, key, key as usize % 400));
        let snapshot = Arc::new(Snapshot { map, ..Snapshot::default() });
        for order in [Order::Rising, Order::Falling] {
            for bytes in [1, 5_000, usize::MAX] {
                let listing = || Listing::neighbours(snapshot.clone(), Arc::default(), 17..731, order, false);
                let (mut one_by_one, mut left) = (Vec::new(), listing());
                while !left.is_empty() {
                    let before = (left.len(), left.encoded_len(), one_by_one.len());
                    left.take_each(bytes, |kv| one_by_one.extend_from_slice(kv.encoded()));
                    assert!(left.len() < before.0, "each part has some key-values");
                    assert_eq!(before.1 - left.encoded_len(), one_by_one.len() - before.2);
                    assert!(bytes == usize::MAX || before.0 - left.len() <= bytes / LEAST + 1, "a part is bounded");
                }
                assert_eq!(one_by_one, take(listing(), usize::MAX).0, "{order:?} by {bytes}");
            }
        }
    }

    #[test]
    fn picked_key_values_are_taken_in_their_order() {
        let kvs: SmallVec<[Pick; 1]> = [2, 1, 3]
            .map(|revision| {
                let mod_revision = Revision::new(revision);
                Arc::new(KeyValue::new(&KeyValueFields { key: "k".into(), mod_revision, ..Default::default() })).into()
            })
            .into_iter()
            .collect();
        let expected: Vec<u8> = kvs.iter().flat_map(|pick| pick.kv().encoded().to_vec()).collect();
        for bytes in [1, usize::MAX] {
            assert_eq!(take(Listing::picked(kvs.clone(), false), bytes).0, expected);
        }
    }

    #[test]
    fn keys_alone_and_falling_keys_are_as_long_as_was_said_and_each_part_is_bounded() {
        let mut map = KeyMap::default();
        (0..KEYS).for_each(|key| put(&mut map, key, key as usize % 400));
        let snapshot = Arc::new(Snapshot { map, ..Snapshot::default() });
        for (order, bare) in [(Order::Rising, true), (Order::Falling, false), (Order::Falling, true)] {
            for places in [0..KEYS as usize, 17..18, 100..731, 5..5] {
                let mut kvs: Vec<_> = (places.clone()).map(|key| format!("{key:05}")).collect();
                if order == Order::Falling {
                    kvs.reverse();
                }
                let mut expected = Vec::new();
                for key in kvs {
                    let kv = snapshot.map.get(key.as_bytes()).expect("a key");
                    let value = if bare { Bytes::new() } else { kv.value_bytes() };
                    let fields = KeyValueFields { value, ..kv.fields() };
                    expected.extend_from_slice(KeyValue::new(&fields).encoded());
                }
                let mut listing = Listing::neighbours(snapshot.clone(), Arc::default(), places, order, bare);
                let (mut all, len) = (Vec::new(), listing.encoded_len());
                while !listing.is_empty() {
                    let before = (all.len(), listing.len());
                    listing.take(2_000, |part| all.extend_from_slice(&part));
                    assert!(all.len() - before.0 <= 2_000 + BACK * 500, "bytes");
                    assert!(before.1 - listing.len() <= 2_000 / LEAST + BACK, "key-values");
                }
                assert_eq!((all.len(), &all), (len, &expected), "{order:?}, bare: {bare}");
            }
        }
    }
}
