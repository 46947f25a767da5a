//! [`Sorter`]: takes a read's key-values in the order of their keys, and returns them sorted and limited.
//!
//! Not here: which key-values they are, see `walk`. Called only by `walk`, which passes a few thousand at a time.
//! Always holds: no call takes longer than it takes to sort [`RUN`] key-values; equal key-values stay in the order of
//! their keys.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    vec,
};

use smallvec::SmallVec;

use super::{RangeQuery, SortOrder, SortTarget};
use crate::hub::{
    listing,
    snapshot::{Kv, Pick},
};

/// How many key-values are sorted at a time, which takes about a millisecond. If fewer are wanted, no more are kept.
const RUN: usize = 4096;

/// Sorts the key-values of a read; see the module.
#[derive(Debug)]
pub(super) struct Sorter {
    target: SortTarget,
    order: SortOrder,
    bare: bool,
    /// How many key-values are wanted.
    most: usize,
    /// After this many key-values no more are needed.
    enough: usize,
    offered: usize,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    /// In the order of their keys.
    AsTheyCome(SmallVec<[Pick; 1]>),
    /// The first ones in the wanted order, if few are wanted. The last of them is on top.
    First(BinaryHeap<Item>),
    /// Sorted parts, and the part that is being collected.
    Runs(Vec<vec::IntoIter<Item>>, Vec<Item>),
}

/// The result of a read.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    pub(super) kvs: SmallVec<[Pick; 1]>,
    /// Their encoded length.
    pub(super) bytes: usize,
}

/// A key-value with its sort key.
#[derive(Debug)]
struct Item {
    /// Decides the order, except between long values.
    rank: u64,
    /// The position in the order of keys.
    number: usize,
    /// Set if the rank is only the beginning of the value.
    by_value: Option<SortOrder>,
    pick: Pick,
}

impl Sorter {
    pub(super) fn new(query: &RangeQuery) -> Self {
        // etcd sorts in ascending order if a target other than the key is given without an order.
        let (as_they_come, order) = match (query.sort_target, query.sort_order) {
            (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => (true, SortOrder::Ascend),
            (_, SortOrder::None) => (false, SortOrder::Ascend),
            (_, order) => (false, order),
        };
        let most = if query.limit == 0 { usize::MAX } else { query.limit };
        let kept = if as_they_come {
            Kept::AsTheyCome(SmallVec::new())
        } else if most <= RUN {
            Kept::First(BinaryHeap::new())
        } else {
            Kept::Runs(Vec::new(), Vec::new())
        };
        // One more than the limit shows whether there is more. Without an order, etcd reads no more than that either,
        // and sorts what it read.
        let all_first = !as_they_come && (query.sort_order != SortOrder::None || query.is_filtered());
        let enough = if all_first { usize::MAX } else { most.saturating_add(1) };
        Self { target: query.sort_target, order, bare: query.keys_only, most, enough, offered: 0, kept }
    }

    /// Takes the next key-value. Returns false if no more are needed.
    pub(super) fn offer(&mut self, kv: Kv<'_>) -> bool {
        let number = self.offered;
        self.offered += 1;
        match &mut self.kept {
            Kept::AsTheyCome(kvs) => {
                if kvs.len() < self.most {
                    let pick = kv.picked();
                    kvs.push(if self.most <= RUN { pick.kept() } else { pick });
                }
            }
            Kept::First(first) => {
                let item = Item::new(kv, number, self.target, self.order);
                if first.len() < self.most {
                    first.push(item);
                } else if let Some(mut last) = first.peek_mut()
                    && item < *last
                {
                    *last = item;
                }
            }
            Kept::Runs(runs, open) => {
                open.push(Item::new(kv, number, self.target, self.order));
                if open.len() == RUN {
                    runs.push(run(std::mem::take(open)));
                }
            }
        }
        self.offered < self.enough
    }

    /// All key-values were passed.
    pub(super) fn finish(self) -> Finishing {
        let more = self.offered > self.most;
        let (runs, sorted) = match self.kept {
            Kept::AsTheyCome(kvs) => (Vec::new(), Sorted { bytes: 0, kvs }),
            Kept::First(first) => {
                // Few of many: they would keep the others in memory.
                let few = first.into_sorted_vec().into_iter().map(|item| Item { pick: item.pick.kept(), ..item });
                (vec![few.collect::<Vec<_>>().into_iter()], Sorted::default())
            }
            Kept::Runs(mut runs, open) => {
                runs.push(run(open));
                (runs, Sorted::default())
            }
        };
        let mut finishing =
            Finishing { more, bare: self.bare, most: self.most, runs, heads: BinaryHeap::new(), measured: 0, sorted };
        for run in 0..finishing.runs.len() {
            finishing.advance(run);
        }
        finishing
    }
}

fn run(mut items: Vec<Item>) -> vec::IntoIter<Item> {
    items.sort_unstable();
    items.into_iter()
}

/// Merges sorted parts, and measures them.
#[derive(Debug)]
pub(super) struct Finishing {
    /// Whether the limit left some out.
    pub(super) more: bool,
    bare: bool,
    most: usize,
    runs: Vec<vec::IntoIter<Item>>,
    /// The next item of each run, and which run it is from.
    heads: BinaryHeap<Reverse<(Item, usize)>>,
    /// How many key-values have been measured.
    measured: usize,
    sorted: Sorted,
}

impl Finishing {
    /// Continues for about `steps` key-values. Returns the result once it is done.
    pub(super) fn step(&mut self, steps: usize) -> Option<Sorted> {
        for _ in 0..steps {
            if self.sorted.kvs.len() < self.most
                && let Some(Reverse((item, run))) = self.heads.pop()
            {
                self.sorted.kvs.push(item.pick);
                self.advance(run);
            }
            let Some(pick) = self.sorted.kvs.get(self.measured) else { return Some(std::mem::take(&mut self.sorted)) };
            self.sorted.bytes += listing::len(&pick.kv(), self.bare);
            self.measured += 1;
        }
        None
    }

    fn advance(&mut self, run: usize) {
        if let Some(item) = self.runs[run].next() {
            self.heads.push(Reverse((item, run)));
        }
    }
}

impl Item {
    fn new(kv: Kv<'_>, number: usize, target: SortTarget, order: SortOrder) -> Self {
        // Maps signed numbers to unsigned ones in the same order.
        let signed = |value: i64| value as u64 ^ 1 << 63;
        let rank = match target {
            SortTarget::Key => number as u64,
            SortTarget::Version => signed(kv.version),
            SortTarget::Create => signed(kv.create_revision.get()),
            SortTarget::Mod => signed(kv.mod_revision.get()),
            SortTarget::Value => beginning(kv.value()),
        };
        let rank = if order == SortOrder::Descend { !rank } else { rank };
        let by_value = (target == SortTarget::Value).then_some(order);
        Self { rank, number, by_value, pick: kv.picked() }
    }
}

/// The first bytes of a value as a number. Most values differ there, and are then compared without reading their
/// memory.
fn beginning(value: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = value.len().min(bytes.len());
    bytes[..len].copy_from_slice(&value[..len]);
    u64::from_be_bytes(bytes)
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_value = || match self.by_value {
            None => Ordering::Equal,
            Some(SortOrder::Descend) => other.pick.value().cmp(self.pick.value()),
            Some(SortOrder::None | SortOrder::Ascend) => self.pick.value().cmp(other.pick.value()),
        };
        self.rank.cmp(&other.rank).then_with(by_value).then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Item {}
