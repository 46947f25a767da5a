//! [`Pages`]: the encoded key-values of whole leaves of a snapshot, each leaf in one buffer, for replies that list
//! them.
//!
//! Not here: what a leaf is, see `snapshot`; replies, see `listing`. The first reply that needs a whole leaf makes its
//! page, and all later replies share it. A page is dropped with its leaf: a write replaces one leaf, and all others
//! keep their pages.
//! Always holds: a page has exactly its leaf's encoded key-values; pages take at most [`BUDGET`] bytes and a page or
//! two more, and those that were not used lately are dropped first.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::types::KeyValue;

/// The most bytes of all pages of a hub.
const BUDGET: usize = 64 << 20;
/// Leaves of fewer bytes are copied into each reply, because more buffers would cost more. In leaves of more bytes,
/// each large value is its own buffer anyway.
const WORTH: std::ops::RangeInclusive<usize> = 1 << 10..=32 << 10;

/// Counts pages in two generations. A page that is used moves to the young generation. When that is full it becomes the
/// old one, and what was still in the old one is dropped.
#[derive(Debug)]
pub(crate) struct Pages {
    half: usize,
    /// The number of the young generation.
    young: AtomicU64,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: Vec<Weak<Slot>>,
    young_bytes: usize,
    old: Vec<Weak<Slot>>,
}

/// Holds a leaf's page, if there is one.
#[derive(Debug)]
pub(super) struct Slot {
    page: Mutex<Option<Bytes>>,
    /// The generation in which it was last used.
    generation: AtomicU64,
}

impl Default for Pages {
    fn default() -> Self {
        Self::within(BUDGET)
    }
}

impl Pages {
    fn within(budget: usize) -> Self {
        // The first number differs from that of a new slot.
        Self { half: budget / 2, young: AtomicU64::new(1), generations: Mutex::default() }
    }

    /// Whether a leaf of this many bytes gets a page.
    pub(super) fn are_worth_it(bytes: usize) -> bool {
        WORTH.contains(&bytes)
    }

    /// The page of a leaf with these entries, made if it does not exist.
    pub(super) fn page(&self, slot: &Arc<Slot>, entries: &[Arc<KeyValue>]) -> Bytes {
        let page = {
            let mut page = slot.page.lock();
            // Under the lock, since others that need it now would make the same page.
            page.get_or_insert_with(|| encode(entries)).clone()
        };
        let young = self.young.load(Ordering::Relaxed);
        if slot.generation.swap(young, Ordering::Relaxed) != young {
            self.note(slot, page.len());
        }
        page
    }

    /// Counts a page into the young generation.
    fn note(&self, slot: &Arc<Slot>, bytes: usize) {
        let (forgotten, old) = {
            let mut generations = self.generations.lock();
            generations.young.push(Arc::downgrade(slot));
            generations.young_bytes += bytes;
            if generations.young_bytes < self.half {
                return;
            }
            generations.young_bytes = 0;
            let old = self.young.fetch_add(1, Ordering::Relaxed) - 1;
            let full = std::mem::take(&mut generations.young);
            (std::mem::replace(&mut generations.old, full), old)
        };
        // A leaf that is gone took its page with it.
        for slot in forgotten.iter().filter_map(Weak::upgrade) {
            // Under the page's lock: a reply that needs it now either finds it, or makes it again and counts it.
            let mut page = slot.page.lock();
            if slot.generation.load(Ordering::Relaxed) <= old {
                *page = None;
            }
        }
    }
}

impl Slot {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { page: Mutex::default(), generation: AtomicU64::new(0) })
    }
}

fn encode(entries: &[Arc<KeyValue>]) -> Bytes {
    let mut page = BytesMut::with_capacity(entries.iter().map(|kv| kv.encoded().len()).sum());
    entries.iter().for_each(|kv| page.extend_from_slice(kv.encoded()));
    page.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyValueFields;

    fn leaf(bytes: usize) -> (Arc<Slot>, Vec<Arc<KeyValue>>) {
        let kv =
            |key: &'static str| KeyValueFields { key: key.into(), value: vec![7; bytes].into(), ..Default::default() };
        (Slot::new(), ["a", "b"].map(|key| Arc::new(KeyValue::new(&kv(key)))).to_vec())
    }

    fn has_page((slot, _): &(Arc<Slot>, Vec<Arc<KeyValue>>)) -> bool {
        slot.page.lock().is_some()
    }

    #[test]
    fn a_page_is_made_once_and_shared() {
        let pages = Pages::default();
        let (slot, entries) = leaf(1000);
        let first = pages.page(&slot, &entries);
        assert_eq!(first, [&entries[0].encoded()[..], &entries[1].encoded()[..]].concat());
        assert_eq!(pages.page(&slot, &entries).as_ptr(), first.as_ptr());
    }

    #[test]
    fn pages_stay_within_the_budget_and_those_asked_for_lately_stay() {
        let pages = Pages::within(100_000);
        let leaves: Vec<_> = (0..200).map(|_| leaf(1000)).collect();
        let often = &leaves[0];
        let first = pages.page(&often.0, &often.1);
        for leaf in &leaves {
            pages.page(&leaf.0, &leaf.1);
            assert_eq!(pages.page(&often.0, &often.1).as_ptr(), first.as_ptr(), "a page that is used stays");
            let held: usize =
                leaves.iter().filter(|leaf| has_page(leaf)).map(|leaf| 2 * leaf.1[0].encoded().len()).sum();
            assert!(held <= 100_000 + 2 * first.len(), "{held} bytes");
        }
        assert!(!has_page(&leaves[1]), "a page that was not used was dropped");
        assert!(has_page(&leaves[199]));
    }

    #[test]
    fn a_page_goes_with_its_leaf() {
        let pages = Pages::default();
        let (slot, entries) = leaf(1000);
        let page = pages.page(&slot, &entries);
        drop(slot);
        assert!(page.is_unique(), "only the reply has it");
    }
}
