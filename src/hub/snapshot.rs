//! [`Snapshot`]: the current state of a feed, an immutable ordered map at a revision.
//!
//! Not here: past states, see `history`. Written by `feed`, and read by everyone who holds it. Each version shares
//! everything that did not change with the one before. It is a persistent B+ tree whose inner nodes know the number and
//! the bytes of their keys, so that counting needs no walk. How its leaves hold key-values is in `snapshot/leaf.rs`.
//! Its tests are in `snapshot/tests.rs`. Always holds: a held snapshot never changes; keys are unique and in order; a
//! write copies at most one path.

mod leaf;

use std::{
    ops::{AddAssign, Range as Span, SubAssign},
    sync::Arc,
};

use bytes::Bytes;
use tokio::runtime::Handle;

pub use self::leaf::Kv;
use self::leaf::Packer;
pub(super) use self::leaf::{Leaf, Pick};
use crate::types::{Cluster, Header, KeyRange, KeyValue, KeyValueFields, RangeEnd, Revision, Stamp};

/// The most children of a node: so few that copying a path takes about a microsecond, and enough for a flat tree.
const NODE_MAX: usize = 32;
/// A node with fewer children joins a neighbour if both fit into one node.
const NODE_MIN: usize = NODE_MAX / 4;
/// A number of entries that takes about a millisecond to free.
pub(super) const MANY: usize = 10_000;

/// The state of a key range at a revision.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The map has every change in the range up to this revision, and none after it.
    pub revision: Revision,
    /// The key-values.
    pub map: KeyMap,
    /// Rises with each new snapshot that the feed reads from upstream. Within an epoch, each state follows from the one
    /// before by the history's entries.
    pub epoch: u64,
    /// The cluster that all of it came from.
    pub cluster: Arc<Cluster>,
}

impl Snapshot {
    /// The header data for responses with this content.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { cluster: self.cluster.clone(), revision: self.revision }
    }

    /// The header of an answer that is made from it.
    #[must_use]
    pub fn header(&self) -> Header {
        self.cluster.at(self.revision)
    }
}

/// A persistent ordered map from keys to key-values. Cloning costs a pointer.
#[derive(Clone, Debug, Default)]
pub struct KeyMap {
    root: Arc<Node>,
    bytes: usize,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Leaf),
    Inner(Vec<Child>),
}

#[derive(Clone, Debug)]
struct Child {
    /// No key of this child is below it, and all keys of the child before are. It is meaningless for the first child.
    lower: Bytes,
    weight: Weight,
    node: Arc<Node>,
}

/// The count and size of some key-values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    count: usize,
    /// Encoded bytes.
    pub(super) bytes: usize,
    /// Encoded bytes without the values.
    pub(super) bare_bytes: usize,
}

impl KeyMap {
    /// An empty map whose key-values others can share. Any other map packs its key-values, which takes less memory.
    #[must_use]
    pub fn sharing() -> Self {
        Self { root: Arc::new(Node::Leaf(Leaf::shared())), bytes: 0 }
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.root.count()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Encoded bytes of all key-values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The key-value of `key`.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Kv<'_>> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.find(key).ok().map(|index| leaf.at(index)),
                Node::Inner(children) => node = &children[route(children, key)].node,
            }
        }
    }

    /// Inserts a key-value, or replaces the one with its key.
    pub fn insert(&mut self, kv: impl Into<Arc<KeyValue>>) {
        let kv = kv.into();
        self.bytes += kv.encoded().len();
        let (replaced, right) = Arc::make_mut(&mut self.root).insert(kv);
        self.bytes -= replaced.bytes;
        self.grow(right);
    }

    /// Inserts many key-values, or replaces those with their keys. It is fast if they are in rising order, above all
    /// keys that are there. Only for a map that packs its key-values.
    pub fn extend<'a>(&mut self, kvs: impl IntoIterator<Item = &'a KeyValueFields>) {
        let mut packer = Packer::default();
        let mut last = self.root.last_key().map(Bytes::copy_from_slice);
        for fields in kvs {
            if last.as_ref().is_none_or(|last| *last < fields.key) {
                last = Some(fields.key.clone());
                packer.add(fields).into_iter().for_each(|leaf| self.push(leaf));
            } else {
                packer.flush().into_iter().for_each(|leaf| self.push(leaf));
                self.insert(KeyValue::new(fields));
            }
        }
        packer.flush().into_iter().for_each(|leaf| self.push(leaf));
    }

    /// Adds a leaf whose keys are above all others.
    fn push(&mut self, leaf: Leaf) {
        self.bytes += leaf.size(0..leaf.len());
        if self.is_empty() {
            self.root = Arc::new(Node::Leaf(leaf));
        } else {
            let right = Arc::make_mut(&mut self.root).push(leaf);
            self.grow(right);
        }
    }

    /// Adds a level above the root if it had to split.
    fn grow(&mut self, right: Option<Child>) {
        if let Some(right) = right {
            let left = Child::new(Bytes::new(), std::mem::take(&mut self.root));
            self.root = Arc::new(Node::Inner(vec![left, right]));
        }
    }

    /// Removes a key. Returns whether it existed.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        // Checked first, so that no path is copied for a key that does not exist.
        if self.get(key).is_none() {
            return false;
        }
        self.bytes -= Arc::make_mut(&mut self.root).remove(key).bytes;
        if let Node::Inner(children) = &*self.root
            && let [child] = &children[..]
        {
            self.root = child.node.clone();
        }
        true
    }

    /// The key-values of `range` in key order.
    #[must_use]
    pub fn range<'a>(&'a self, range: &KeyRange) -> Range<'a> {
        let mut path = Vec::new();
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(leaf) => {
                    let places = leaf.rank(range.start())..leaf.len();
                    return Range { path, leaf, places, start: range.start().clone(), end: range.end().clone() };
                }
                Node::Inner(children) => {
                    let index = route(children, range.start());
                    path.push(children[index + 1..].iter());
                    node = &children[index].node;
                }
            }
        }
    }

    /// How many keys lie in `range`, without a walk.
    #[must_use]
    pub fn count(&self, range: &KeyRange) -> usize {
        match range.end() {
            RangeEnd::Single => usize::from(self.get(range.start()).is_some()),
            _ => self.places(range).len(),
        }
    }

    /// How many keys lie in `range`, and their encoded bytes, without a walk.
    #[must_use]
    pub fn weigh(&self, range: &KeyRange) -> (usize, usize) {
        let weight = self.weight(&self.places(range));
        (weight.count, weight.bytes)
    }

    /// The places of the keys of `range` among all keys, counted from the first.
    pub(super) fn places(&self, range: &KeyRange) -> Span<usize> {
        let from = self.rank(range.start());
        match range.end() {
            RangeEnd::Single => from..from + usize::from(self.get(range.start()).is_some()),
            RangeEnd::Before(end) => from..self.rank(end),
            RangeEnd::Unbounded => from..self.len(),
        }
    }

    /// The size of the key-values at these places, without a walk.
    pub(super) fn weight(&self, places: &Span<usize>) -> Weight {
        let mut weight = self.weight_of_first(places.end);
        weight -= self.weight_of_first(places.start);
        weight
    }

    fn weight_of_first(&self, mut count: usize) -> Weight {
        let mut weight = Weight::default();
        let mut node = &*self.root;
        'down: loop {
            match node {
                Node::Leaf(leaf) => {
                    weight += leaf.weight(0..count.min(leaf.len()));
                    return weight;
                }
                Node::Inner(children) => {
                    for child in children {
                        if count < child.weight.count {
                            node = &child.node;
                            continue 'down;
                        }
                        count -= child.weight.count;
                        weight += child.weight;
                    }
                    return weight;
                }
            }
        }
    }

    /// How many keys there are from `from` on, and below `to` if it is given, and their encoded bytes, without a walk.
    pub(super) fn between(&self, from: &[u8], to: Option<&[u8]>) -> (usize, usize) {
        let (first, behind) = (self.rank(from), to.map_or_else(|| self.len(), |to| self.rank(to)));
        let bytes = self.bytes_of_first(behind).saturating_sub(self.bytes_of_first(first));
        (behind.saturating_sub(first), bytes)
    }

    /// Encoded bytes of the first `count` key-values.
    fn bytes_of_first(&self, mut count: usize) -> usize {
        let mut bytes = 0;
        let mut node = &*self.root;
        'down: loop {
            match node {
                Node::Leaf(leaf) => return bytes + leaf.size(0..count.min(leaf.len())),
                Node::Inner(children) => {
                    for child in children {
                        if count < child.weight.count {
                            node = &child.node;
                            continue 'down;
                        }
                        count -= child.weight.count;
                        bytes += child.weight.bytes;
                    }
                    return bytes;
                }
            }
        }
    }

    /// Calls `with` for each leaf that has key-values of `places`, with their places in the leaf, until it returns
    /// false.
    pub(super) fn leaves<'a>(&'a self, places: Span<usize>, mut with: impl FnMut(&'a Leaf, Span<usize>) -> bool) {
        let (mut skip, mut left) = (places.start, places.len());
        self.root.leaves(&mut skip, &mut left, &mut with);
    }

    /// How many keys are below `key`.
    fn rank(&self, key: &[u8]) -> usize {
        let mut below = 0;
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return below + leaf.rank(key),
                Node::Inner(children) => {
                    let index = route(children, key);
                    below += children[..index].iter().map(|child| child.weight.count).sum::<usize>();
                    node = &children[index].node;
                }
            }
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::Leaf(Leaf::default())
    }
}

impl Child {
    fn new(lower: Bytes, node: Arc<Node>) -> Self {
        Self { lower, weight: node.weight(), node }
    }

    /// The leaf that follows another one.
    fn next_leaf(before: &Leaf, leaf: Leaf) -> Self {
        let last = if before.len() > 0 { before.last_key() } else { &[] };
        Self::new(between(last, leaf.first_key()), Arc::new(Node::Leaf(leaf)))
    }
}

impl Weight {
    fn of_one(kv: &KeyValue) -> Self {
        Self { count: 1, bytes: kv.encoded().len(), bare_bytes: kv.bare_len() }
    }

    fn of_encoded(kv: &[u8]) -> Self {
        Self { count: 1, bytes: kv.len(), bare_bytes: KeyValue::bare_len_of(kv) }
    }
}

impl AddAssign for Weight {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
        self.bare_bytes += other.bare_bytes;
    }
}

impl SubAssign for Weight {
    fn sub_assign(&mut self, other: Self) {
        self.count -= other.count;
        self.bytes -= other.bytes;
        self.bare_bytes -= other.bare_bytes;
    }
}

impl Node {
    fn count(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.len(),
            Self::Inner(children) => children.iter().map(|child| child.weight.count).sum(),
        }
    }

    fn weight(&self) -> Weight {
        match self {
            Self::Leaf(leaf) => leaf.weight(0..leaf.len()),
            Self::Inner(children) => children.iter().fold(Weight::default(), |mut sum, child| {
                sum += child.weight;
                sum
            }),
        }
    }

    /// The last key, if there is any.
    fn last_key(&self) -> Option<&[u8]> {
        match self {
            Self::Leaf(leaf) => (leaf.len() > 0).then(|| leaf.last_key()),
            Self::Inner(children) => children.last()?.node.last_key(),
        }
    }

    /// Whether it should join a neighbour.
    fn is_sparse(&self) -> bool {
        match self {
            Self::Leaf(leaf) => leaf.is_sparse(),
            Self::Inner(children) => children.len() < NODE_MIN,
        }
    }

    /// This node and the next one, which has no key below `lower`, as one; `None` if they do not fit into one.
    fn joined(&self, next: &Self, lower: &Bytes) -> Option<Self> {
        match (self, next) {
            (Self::Leaf(leaf), Self::Leaf(next)) => leaf.joined(next).map(Self::Leaf),
            (Self::Inner(children), Self::Inner(more)) => (children.len() + more.len() <= NODE_MAX).then(|| {
                let mut all = [&children[..], &more[..]].concat();
                // It was a first child, whose own bound means nothing.
                all[children.len()].lower = lower.clone();
                Self::Inner(all)
            }),
            // All leaves are at one depth, so neighbours are of one kind.
            _ => None,
        }
    }

    /// See [`KeyMap::leaves`]. Returns false if `with` stopped it.
    fn leaves<'a>(
        &'a self,
        skip: &mut usize,
        left: &mut usize,
        with: &mut impl FnMut(&'a Leaf, Span<usize>) -> bool,
    ) -> bool {
        match self {
            Self::Leaf(leaf) => {
                let from = std::mem::take(skip).min(leaf.len());
                let to = leaf.len().min(from + *left);
                *left -= to - from;
                with(leaf, from..to)
            }
            Self::Inner(children) => {
                for child in children {
                    if *left == 0 {
                        break;
                    }
                    if *skip >= child.weight.count {
                        *skip -= child.weight.count;
                    } else if !child.node.leaves(skip, left, with) {
                        return false;
                    }
                }
                true
            }
        }
    }

    /// Inserts below this node. Returns the size of what was replaced, and what lies to the right of the node if it had
    /// to split.
    fn insert(&mut self, kv: Arc<KeyValue>) -> (Weight, Option<Child>) {
        match self {
            Self::Leaf(leaf) => {
                let (replaced, right) = leaf.put(kv);
                (replaced, right.map(|right| Child::next_leaf(leaf, right)))
            }
            Self::Inner(children) => {
                let index = route(children, kv.key());
                let child = &mut children[index];
                let added = Weight::of_one(&kv);
                let (replaced, right) = Arc::make_mut(&mut child.node).insert(kv);
                if let Some(right) = right {
                    child.weight = child.node.weight();
                    children.insert(index + 1, right);
                    return (replaced, split(children, index + 1));
                }
                child.weight += added;
                child.weight -= replaced;
                if added.bytes < replaced.bytes && child.node.is_sparse() {
                    join(children, index);
                }
                (replaced, None)
            }
        }
    }

    /// Adds a leaf to the right of all others. Returns what lies to the right of the node if it had to split.
    fn push(&mut self, leaf: Leaf) -> Option<Child> {
        match self {
            Self::Leaf(last) => Some(Child::next_leaf(last, leaf)),
            Self::Inner(children) => {
                let last = children.last_mut()?;
                let right = Arc::make_mut(&mut last.node).push(leaf);
                last.weight = last.node.weight();
                children.extend(right);
                let last = children.len() - 1;
                split(children, last)
            }
        }
    }

    /// Removes a key that exists. Returns its size.
    fn remove(&mut self, key: &[u8]) -> Weight {
        match self {
            Self::Leaf(leaf) => {
                let Ok(index) = leaf.find(key) else { return Weight::default() };
                let removed = leaf.weight(index..index + 1);
                leaf.remove(index);
                removed
            }
            Self::Inner(children) => {
                let index = route(children, key);
                let child = &mut children[index];
                let removed = Arc::make_mut(&mut child.node).remove(key);
                child.weight -= removed;
                if child.weight.count == 0 {
                    children.remove(index);
                } else if child.node.is_sparse() {
                    join(children, index);
                }
                removed
            }
        }
    }
}

/// Joins child `index` with a neighbour if both fit into one node.
fn join(children: &mut Vec<Child>, index: usize) {
    for left in [index.checked_sub(1), Some(index)].into_iter().flatten() {
        if let Some(next) = children.get(left + 1)
            && let Some(both) = children[left].node.joined(&next.node, &next.lower)
        {
            let next = children.remove(left + 1);
            children[left].weight += next.weight;
            children[left].node = Arc::new(both);
            return;
        }
    }
}

/// Splits the children of a node that has too many, and returns those that go to its right. `inserted` is the place of
/// the new child, so that rising keys leave full nodes behind.
fn split(children: &mut Vec<Child>, inserted: usize) -> Option<Child> {
    (children.len() > NODE_MAX).then(|| {
        let at = if inserted + 1 == children.len() { NODE_MAX } else { children.len() / 2 };
        let right = children.split_off(at);
        children.shrink_to_fit();
        Child::new(right[0].lower.clone(), Arc::new(Node::Inner(right)))
    })
}

/// A short key above `last` and not above `first`, which are neighbours. It is a copy, so that it does not keep a value
/// in memory that was replaced long ago.
fn between(last: &[u8], first: &[u8]) -> Bytes {
    let same = last.iter().zip(first).take_while(|(last, first)| last == first).count();
    Bytes::copy_from_slice(&first[..first.len().min(same + 1)])
}

/// Frees data that keeps about this many entries in memory. A large amount is freed on another thread, so that no feed
/// and no reader waits for it.
pub(super) fn free(held: impl Send + 'static, entries: usize) {
    if entries >= MANY
        && let Ok(runtime) = Handle::try_current()
    {
        runtime.spawn_blocking(move || drop(held));
    }
}

fn route(children: &[Child], key: &[u8]) -> usize {
    children[1..].partition_point(|child| &child.lower[..] <= key)
}

/// Key-values of a range in key order.
#[derive(Debug)]
pub struct Range<'a> {
    /// For each inner node on the path, the children that were not visited yet.
    path: Vec<std::slice::Iter<'a, Child>>,
    leaf: &'a Leaf,
    /// The places in the leaf that were not visited yet.
    places: Span<usize>,
    start: Bytes,
    end: RangeEnd,
}

impl<'a> Iterator for Range<'a> {
    type Item = Kv<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(index) = self.places.next() {
                let kv = self.leaf.at(index);
                let inside = match &self.end {
                    RangeEnd::Single => kv.key() == &self.start[..],
                    RangeEnd::Before(end) => kv.key() < &end[..],
                    RangeEnd::Unbounded => true,
                };
                return inside.then_some(kv);
            }
            let mut node = loop {
                match self.path.last_mut()?.next() {
                    Some(child) => break &*child.node,
                    None => self.path.pop(),
                };
            };
            while let Node::Inner(children) = node {
                self.path.push(children[1..].iter());
                node = &children[0].node;
            }
            if let Node::Leaf(leaf) = node {
                self.leaf = leaf;
                self.places = 0..leaf.len();
            }
        }
    }
}

#[cfg(test)]
mod tests;
