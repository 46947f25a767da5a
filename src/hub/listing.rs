//! [`Listing`]: the key-values of a reply, to be taken a part at a time, encoded.
//!
//! Not here: which they are, see `read`; how they are sent, see `front`. Neighbours in a snapshot are no list but two places in it:
//! a reply of half a million keys costs no memory before it is sent, and what is sent is the pages that all replies share.
//! Always holds: what is taken in parts is of one snapshot, and as long as [`Listing::encoded_len`] says.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use smallvec::SmallVec;

use super::{
    pages::Pages,
    snapshot::{Snapshot, size},
};
use crate::types::KeyValue;

/// See the module.
#[derive(Clone)]
pub struct Listing(Source);

#[derive(Clone)]
enum Source {
    /// What is left of neighbours in a snapshot, by their places.
    Neighbours { snapshot: Arc<Snapshot>, pages: Arc<Pages>, places: Range<usize> },
    /// What is left of some.
    Picked { kvs: SmallVec<[Arc<KeyValue>; 1]>, next: usize },
}

impl Listing {
    pub(super) fn neighbours(snapshot: Arc<Snapshot>, pages: Arc<Pages>, places: Range<usize>) -> Self {
        Self(Source::Neighbours { snapshot, pages, places })
    }

    pub(super) fn picked(kvs: SmallVec<[Arc<KeyValue>; 1]>) -> Self {
        Self(Source::Picked { kvs, next: 0 })
    }

    /// How many key-values are left to be taken.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Source::Neighbours { places, .. } => places.len(),
            Source::Picked { kvs, next } => kvs.len() - next,
        }
    }

    /// Whether all were taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Encoded bytes of what is left to be taken.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        match &self.0 {
            Source::Neighbours { snapshot, places, .. } => {
                snapshot.map.bytes_of_first(places.end) - snapshot.map.bytes_of_first(places.start)
            }
            Source::Picked { kvs, next } => size(&kvs[*next..]),
        }
    }

    /// The key-values that are left to be taken.
    #[must_use]
    pub fn kvs(&self) -> Vec<&Arc<KeyValue>> {
        match &self.0 {
            Source::Neighbours { snapshot, places, .. } => {
                let mut kvs = Vec::with_capacity(places.len());
                snapshot.map.leaves(places.clone(), |leaf, places| {
                    kvs.extend(&leaf.entries()[places]);
                    true
                });
                kvs
            }
            Source::Picked { kvs, next } => kvs[*next..].iter().collect(),
        }
    }

    /// Takes key-values, encoded, in order, some at a time to `with`, until these were `bytes` or a few more, or all.
    pub fn take(&mut self, bytes: usize, mut with: impl FnMut(&Bytes)) {
        let mut taken = 0;
        match &mut self.0 {
            Source::Neighbours { snapshot, pages, places } => {
                let mut next = places.start;
                snapshot.map.leaves(places.clone(), |leaf, places| {
                    next += places.len();
                    // For less than half of a leaf none is made.
                    let page = if 2 * places.len() < leaf.entries().len() { None } else { leaf.page(pages) };
                    match page {
                        Some(page) if places.len() == leaf.entries().len() => {
                            taken += page.len();
                            with(&page);
                        }
                        Some(page) => {
                            let before = size(&leaf.entries()[..places.start]);
                            let bytes = size(&leaf.entries()[places]);
                            taken += bytes;
                            with(&page.slice(before..before + bytes));
                        }
                        None => {
                            for kv in &leaf.entries()[places] {
                                taken += kv.encoded().len();
                                with(kv.encoded());
                            }
                        }
                    }
                    taken < bytes
                });
                places.start = next;
            }
            Source::Picked { kvs, next } => {
                while let Some(kv) = kvs.get(*next).filter(|_| taken < bytes) {
                    taken += kv.encoded().len();
                    with(kv.encoded());
                    *next += 1;
                }
            }
        }
    }
}

impl FromIterator<Arc<KeyValue>> for Listing {
    fn from_iter<T: IntoIterator<Item = Arc<KeyValue>>>(kvs: T) -> Self {
        Self::picked(kvs.into_iter().collect())
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("left", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::KeyMap,
        types::{KeyRange, KeyValueFields, Revision},
    };

    const KEYS: u32 = 1000;

    fn put(map: &mut KeyMap, key: u32, value: usize) {
        let key = format!("{key:05}").into();
        let fields = KeyValueFields { key, value: vec![b'x'; value].into(), ..KeyValueFields::default() };
        map.insert(Arc::new(KeyValue::new(&fields)));
    }

    fn listing(map: &KeyMap, pages: &Arc<Pages>, range: &KeyRange) -> Listing {
        let snapshot = Arc::new(Snapshot { map: map.clone(), ..Snapshot::default() });
        let places = map.places(range);
        Listing::neighbours(snapshot, pages.clone(), places)
    }

    /// What is taken so many bytes at a time, and the buffers in which it came.
    fn take(mut listing: Listing, bytes: usize) -> (Vec<u8>, Vec<*const u8>) {
        let (mut all, mut buffers) = (Vec::new(), Vec::new());
        let len = listing.encoded_len();
        while !listing.is_empty() {
            let before = all.len();
            listing.take(bytes, |part| {
                all.extend_from_slice(part);
                buffers.push(part.as_ptr());
            });
            assert!(all.len() > before, "each part has something");
            assert_eq!(listing.encoded_len(), len - all.len());
        }
        (all, buffers)
    }

    #[test]
    fn any_part_of_a_snapshot_is_taken_whole_and_in_order_however_much_at_a_time() {
        let mut map = KeyMap::default();
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
                assert_eq!(listing.kvs(), map.range(&range).collect::<Vec<_>>());
                assert_eq!(take(listing, bytes).0, expected, "{range} by {bytes}");
            }
        }
    }

    #[test]
    fn replies_share_the_pages_and_a_write_makes_one_of_them_new() {
        let mut map = KeyMap::default();
        (0..KEYS).for_each(|key| put(&mut map, key, 300));
        let (pages, all) = (Arc::default(), KeyRange::prefix("".into()));
        let first = listing(&map, &pages, &all);
        let (bytes, buffers) = take(first.clone(), usize::MAX);
        assert!(buffers.len() < KEYS as usize / 16, "{} buffers", buffers.len());
        assert_eq!(take(listing(&map, &pages, &all), usize::MAX).1, buffers);

        put(&mut map, 500, 200);
        let (changed, new) = take(listing(&map, &pages, &all), usize::MAX);
        assert_eq!(changed.len(), bytes.len() - 100);
        let shared = new.iter().filter(|buffer| buffers.contains(buffer)).count();
        assert_eq!(shared, buffers.len() - 1);
        assert_eq!(take(first, usize::MAX).0, bytes, "what was begun stays as it was");
    }

    #[test]
    fn picked_key_values_are_taken_in_their_order() {
        let kvs: SmallVec<[Arc<KeyValue>; 1]> = [2, 1, 3]
            .map(|revision| {
                let mod_revision = Revision::new(revision);
                Arc::new(KeyValue::new(&KeyValueFields { key: "k".into(), mod_revision, ..Default::default() }))
            })
            .into_iter()
            .collect();
        let expected: Vec<u8> = kvs.iter().flat_map(|kv| kv.encoded().to_vec()).collect();
        for bytes in [1, usize::MAX] {
            assert_eq!(take(Listing::picked(kvs.clone()), bytes).0, expected);
        }
    }
}
