//! [`Pages`]: the encoded key-values of whole leaves of a snapshot, each leaf in one buffer, for replies that list
//! them.
//!
//! Not here: what a leaf is, see `snapshot`; replies, see `listing`. A packed leaf is its own page. For one of shared
//! key-values, the first reply that needs the leaf makes its page, and all later replies share it. A page is dropped
//! with its leaf: a write replaces one leaf, and all others keep their pages.
//! Always holds: a page has exactly its leaf's encoded key-values; pages take at most [`BUDGET`] bytes and a page or
//! two more. Those that were not used lately are dropped first, and all that nobody has used for a minute.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// The most bytes of all pages of a hub.
const BUDGET: usize = 64 << 20;
/// A page that was not used for this long is dropped before twice as long.
const UNUSED: Duration = Duration::from_secs(30);
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

#[derive(Debug)]
struct Generations {
    young: Vec<Weak<Slot>>,
    young_bytes: usize,
    old: Vec<Weak<Slot>>,
    /// When the young generation began.
    turned: Instant,
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
        let generations = Generations { young: Vec::new(), young_bytes: 0, old: Vec::new(), turned: Instant::now() };
        Self { half: budget / 2, young: AtomicU64::new(1), generations: Mutex::new(generations) }
    }

    /// Whether a leaf of this many bytes gets a page.
    pub(super) fn are_worth_it(bytes: usize) -> bool {
        WORTH.contains(&bytes)
    }

    /// The page of a leaf, made if it does not exist.
    pub(super) fn page(&self, slot: &Arc<Slot>, make: impl FnOnce() -> Bytes) -> Bytes {
        let page = {
            let mut page = slot.page.lock();
            // Under the lock, since others that need it now would make the same page.
            page.get_or_insert_with(make).clone()
        };
        let young = self.young.load(Ordering::Relaxed);
        // Mostly it is already known to be in use. Looking first leaves the slot in the caches of all threads.
        let is_known = slot.generation.load(Ordering::Relaxed) == young;
        if !is_known && slot.generation.swap(young, Ordering::Relaxed) != young {
            self.note(slot, page.len());
        }
        page
    }

    /// Counts a page into the young generation.
    fn note(&self, slot: &Arc<Slot>, bytes: usize) {
        let mut generations = self.generations.lock();
        generations.young.push(Arc::downgrade(slot));
        generations.young_bytes += bytes;
        if generations.young_bytes >= self.half {
            self.turn(generations);
        }
    }

    /// Drops pages that were not used for a while. To be called now and then.
    pub(super) fn tidy(&self) {
        let generations = self.generations.lock();
        let is_empty = generations.young.is_empty() && generations.old.is_empty();
        if !is_empty && generations.turned.elapsed() >= UNUSED {
            self.turn(generations);
        }
    }

    /// Makes the young generation the old one, and drops what is still in the old one.
    fn turn(&self, mut generations: MutexGuard<'_, Generations>) {
        generations.young_bytes = 0;
        generations.turned = Instant::now();
        let old = self.young.fetch_add(1, Ordering::Relaxed) - 1;
        let full = std::mem::take(&mut generations.young);
        let forgotten = std::mem::replace(&mut generations.old, full);
        drop(generations);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(bytes: usize) -> (Arc<Slot>, Vec<u8>) {
        (Slot::new(), vec![7; bytes])
    }

    fn page(pages: &Pages, (slot, content): &(Arc<Slot>, Vec<u8>)) -> Bytes {
        pages.page(slot, || content.clone().into())
    }

    fn has_page((slot, _): &(Arc<Slot>, Vec<u8>)) -> bool {
        slot.page.lock().is_some()
    }

    #[test]
    fn a_page_is_made_once_and_shared() {
        let (pages, leaf) = (Pages::default(), leaf(2000));
        let first = page(&pages, &leaf);
        assert_eq!(first, leaf.1);
        assert_eq!(page(&pages, &leaf).as_ptr(), first.as_ptr());
    }

    #[test]
    fn pages_stay_within_the_budget_and_those_asked_for_lately_stay() {
        let pages = Pages::within(100_000);
        let leaves: Vec<_> = (0..200).map(|_| leaf(2000)).collect();
        let first = page(&pages, &leaves[0]);
        for leaf in &leaves {
            page(&pages, leaf);
            assert_eq!(page(&pages, &leaves[0]).as_ptr(), first.as_ptr(), "a page that is used stays");
            let held: usize = leaves.iter().filter(|leaf| has_page(leaf)).map(|leaf| leaf.1.len()).sum();
            assert!(held <= 100_000 + 2 * first.len(), "{held} bytes");
        }
        assert!(!has_page(&leaves[1]), "a page that was not used was dropped");
        assert!(has_page(&leaves[199]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_nobody_uses_is_dropped_after_a_while() {
        let (pages, used, unused) = (Pages::default(), leaf(2000), leaf(2000));
        page(&pages, &unused);
        for _ in 0..5 {
            page(&pages, &used);
            pages.tidy();
            tokio::time::sleep(UNUSED / 2).await;
        }
        assert!(has_page(&used) && !has_page(&unused));
        page(&pages, &unused);
        assert!(has_page(&unused), "it is made again");
    }

    #[test]
    fn a_page_goes_with_its_leaf() {
        let (pages, leaf) = (Pages::default(), leaf(2000));
        let page = page(&pages, &leaf);
        drop(leaf);
        assert!(page.is_unique(), "only the reply has it");
    }
}
