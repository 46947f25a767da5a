//! [`TargetIndex`]: finds the targets of one view that a key affects.
//!
//! Owned by `engine`. Always holds: a change finds all targets whose key is a prefix of one of its match keys with one
//! look-up per length of such keys, however many targets there are.

use std::{
    collections::BTreeMap,
    ops::{Index, IndexMut},
};

use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::{projection::Projection, select::Match, target::Shown};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct TargetIndex {
    shown: Slab<Shown>,
    all: Vec<usize>,
    by_key: HashMap<Box<[u8]>, SmallVec<[usize; 1]>>,
    /// The number of targets with a key of each length.
    lengths: BTreeMap<usize, usize>,
}

impl TargetIndex {
    pub(super) fn insert(&mut self, shown: Shown) {
        let keys = shown.target.select.keys.clone();
        let slot = self.shown.insert(shown);
        match keys {
            Match::All => self.all.push(slot),
            Match::Key(key) => {
                *self.lengths.entry(key.len()).or_default() += 1;
                self.by_key.entry(key).or_default().push(slot);
            }
        }
    }

    /// The targets that a change of a key affects: by its cache key, or, if rows have their own keys, by those of the
    /// documents before and after it.
    pub(super) fn concerned<D: 'static>(
        &self,
        projection: &dyn Projection<D>,
        key: &[u8],
        (old, new): (Option<&D>, Option<&D>),
    ) -> Vec<usize> {
        if self.shown.is_empty() {
            return Vec::new();
        }
        let mut slots = self.all.clone();
        let mut find = |key: &[u8]| {
            for (length, _) in self.lengths.range(..=key.len()) {
                slots.extend(self.by_key.get(&key[..*length]).into_iter().flatten());
            }
        };
        if projection.spec().matches_rows {
            [old, new].into_iter().flatten().for_each(|document| projection.match_keys(document, &mut find));
        } else {
            find(key);
        }
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// Removes and returns the targets for which `which` is true.
    pub(super) fn drop_where(&mut self, which: impl Fn(&Shown) -> bool) -> Vec<Shown> {
        let slots: Vec<usize> = self.shown.iter().filter(|(_, shown)| which(shown)).map(|(slot, _)| slot).collect();
        slots.into_iter().map(|slot| self.remove(slot)).collect()
    }

    fn remove(&mut self, slot: usize) -> Shown {
        let shown = self.shown.remove(slot);
        match &shown.target.select.keys {
            Match::All => self.all.retain(|other| *other != slot),
            Match::Key(key) => {
                if let Some(slots) = self.by_key.get_mut(key) {
                    slots.retain(|other| *other != slot);
                    if slots.is_empty() {
                        self.by_key.remove(key);
                    }
                }
                if let Some(count) = self.lengths.get_mut(&key.len()) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&key.len());
                    }
                }
            }
        }
        shown
    }
}

impl Index<usize> for TargetIndex {
    type Output = Shown;

    fn index(&self, slot: usize) -> &Shown {
        &self.shown[slot]
    }
}

impl IndexMut<usize> for TargetIndex {
    fn index_mut(&mut self, slot: usize) -> &mut Shown {
        &mut self.shown[slot]
    }
}
