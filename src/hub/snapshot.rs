//! [`Snapshot`]: the current state of a feed, an immutable ordered map at a revision.
//!
//! Not here: past states, see `history`. Written by `feed`, and read by everyone who holds it. Each version shares
//! everything that did not change with the one before. It is a persistent B+ tree whose inner nodes know the number and
//! the bytes of their keys, so that counting needs no walk. Its tests are in `snapshot/tests.rs`.
//! Always holds: a held snapshot never changes; keys are unique and in order; a write copies at most one path.

mod leaf;

use std::{
    ops::{AddAssign, Range as Span, SubAssign},
    sync::Arc,
};

use bytes::Bytes;
use tokio::runtime::Handle;

pub(super) use self::leaf::Leaf;
use crate::types::{Cluster, Header, KeyRange, KeyValue, RangeEnd, Revision, Stamp};

/// The most entries of a node: so few that copying a path takes about a microsecond, and enough for a flat tree.
const NODE_MAX: usize = 32;
/// A node with fewer entries joins a neighbour if both fit into one node.
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
    /// No key of this child is below it. It is meaningless for the first child.
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
    pub fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(leaf) => return position(leaf.entries(), key).ok().map(|index| &leaf.entries()[index]),
                Node::Inner(children) => node = &children[route(children, key)].node,
            }
        }
    }

    /// Inserts a key-value, and returns the one that it replaces.
    pub fn insert(&mut self, kv: Arc<KeyValue>) -> Option<Arc<KeyValue>> {
        self.bytes += kv.encoded().len();
        let (replaced, split) = Arc::make_mut(&mut self.root).insert(kv);
        if let Some((lower, right)) = split {
            let left = std::mem::take(&mut self.root);
            let children = vec![Child::new(Bytes::new(), left), Child::new(lower, Arc::new(right))];
            self.root = Arc::new(Node::Inner(children));
        }
        self.bytes -= replaced.as_ref().map_or(0, |old| old.encoded().len());
        replaced
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &[u8]) -> Option<Arc<KeyValue>> {
        // Checked first, so that no path is copied for a key that does not exist.
        self.get(key)?;
        let root = Arc::make_mut(&mut self.root);
        let removed = root.remove(key);
        if let Node::Inner(children) = root
            && children.len() == 1
        {
            self.root = children.remove(0).node;
        }
        self.bytes -= removed.as_ref().map_or(0, |old| old.encoded().len());
        removed
    }

    /// The key-values of `range` in key order.
    #[must_use]
    pub fn range<'a>(&'a self, range: &KeyRange) -> Range<'a> {
        let mut iter =
            Range { path: Vec::new(), leaf: [].iter(), end: range.end().clone(), start: range.start().clone() };
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(leaf) => {
                    let from = leaf.entries().partition_point(|kv| kv.key() < &range.start()[..]);
                    iter.leaf = leaf.entries()[from..].iter();
                    return iter;
                }
                Node::Inner(children) => {
                    let index = route(children, range.start());
                    iter.path.push(children[index + 1..].iter());
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
                    weight += Weight::of(&leaf.entries()[..count.min(leaf.entries().len())]);
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
                Node::Leaf(leaf) => return bytes + size(leaf.entries().iter().take(count)),
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
                Node::Leaf(leaf) => return below + leaf.entries().partition_point(|kv| kv.key() < key),
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
}

impl Weight {
    fn of<'a>(entries: impl IntoIterator<Item = &'a Arc<KeyValue>>) -> Self {
        entries.into_iter().fold(Self::default(), |mut sum, kv| {
            sum += Self::of_one(kv);
            sum
        })
    }

    fn of_one(kv: &KeyValue) -> Self {
        Self { count: 1, bytes: kv.encoded().len(), bare_bytes: kv.bare_len() }
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
            Self::Leaf(leaf) => leaf.entries().len(),
            Self::Inner(children) => children.iter().map(|child| child.weight.count).sum(),
        }
    }

    fn weight(&self) -> Weight {
        match self {
            Self::Leaf(leaf) => Weight::of(leaf.entries()),
            Self::Inner(children) => children.iter().fold(Weight::default(), |mut sum, child| {
                sum += child.weight;
                sum
            }),
        }
    }

    fn width(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.entries().len(),
            Self::Inner(children) => children.len(),
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
                let from = std::mem::take(skip).min(leaf.entries().len());
                let to = leaf.entries().len().min(from + *left);
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

    /// Inserts below this node. Returns what was replaced, and the right part if the node had to split.
    fn insert(&mut self, kv: Arc<KeyValue>) -> (Option<Arc<KeyValue>>, Option<(Bytes, Self)>) {
        match self {
            Self::Leaf(leaf) => {
                let entries = leaf.entries_mut();
                match position(entries, kv.key()) {
                    Ok(index) => (Some(std::mem::replace(&mut entries[index], kv)), None),
                    Err(index) => {
                        entries.insert(index, kv);
                        let right = split(entries, index);
                        (None, right.map(|right| (lower_of(&right[0]), Self::Leaf(Leaf::of(right)))))
                    }
                }
            }
            Self::Inner(children) => {
                let index = route(children, kv.key());
                let child = &mut children[index];
                let added = Weight::of_one(&kv);
                let (replaced, right) = Arc::make_mut(&mut child.node).insert(kv);
                if let Some((lower, right)) = right {
                    child.weight = child.node.weight();
                    children.insert(index + 1, Child::new(lower, Arc::new(right)));
                    let right = split(children, index + 1);
                    return (replaced, right.map(|right| (right[0].lower.clone(), Self::Inner(right))));
                }
                child.weight += added;
                if let Some(replaced) = &replaced {
                    child.weight -= Weight::of_one(replaced);
                }
                (replaced, None)
            }
        }
    }

    fn remove(&mut self, key: &[u8]) -> Option<Arc<KeyValue>> {
        match self {
            Self::Leaf(leaf) => {
                let entries = leaf.entries_mut();
                position(entries, key).ok().map(|index| entries.remove(index))
            }
            Self::Inner(children) => {
                let index = route(children, key);
                let child = &mut children[index];
                let removed = Arc::make_mut(&mut child.node).remove(key)?;
                child.weight -= Weight::of_one(&removed);
                let width = child.node.width();
                if width == 0 {
                    children.remove(index);
                } else if width < NODE_MIN {
                    join(children, index);
                }
                Some(removed)
            }
        }
    }
}

/// Joins child `index` with a neighbour if both fit into one node.
fn join(children: &mut Vec<Child>, index: usize) {
    let fits = |left: usize| {
        left + 1 < children.len() && children[left].node.width() + children[left + 1].node.width() <= NODE_MAX
    };
    let left = match index.checked_sub(1) {
        Some(left) if fits(left) => left,
        _ if fits(index) => index,
        _ => return,
    };
    let right = children.remove(left + 1);
    let target = &mut children[left];
    target.weight += right.weight;
    match (Arc::make_mut(&mut target.node), &*right.node) {
        (Node::Leaf(leaf), Node::Leaf(more)) => leaf.entries_mut().extend_from_slice(more.entries()),
        (Node::Inner(entries), Node::Inner(more)) => {
            let first = entries.len();
            entries.extend_from_slice(more);
            // It was a first child, whose own bound means nothing.
            entries[first].lower = right.lower;
        }
        // All leaves are at one depth, so neighbours are of one kind.
        _ => unreachable!("neighbours in a B+ tree are of one kind"),
    }
}

/// Splits a node that is too wide. `inserted` is the place of the last entry, so that rising keys leave full nodes
/// behind.
fn split<T>(entries: &mut Vec<T>, inserted: usize) -> Option<Vec<T>> {
    (entries.len() > NODE_MAX).then(|| {
        let at = if inserted + 1 == entries.len() { entries.len() - 1 } else { entries.len() / 2 };
        entries.split_off(at)
    })
}

/// A copy of the key, so that a separator does not keep a value in memory that was replaced long ago.
fn lower_of(kv: &KeyValue) -> Bytes {
    Bytes::copy_from_slice(kv.key())
}

/// Encoded bytes of some key-values.
pub(super) fn size<'a>(entries: impl IntoIterator<Item = &'a Arc<KeyValue>>) -> usize {
    entries.into_iter().map(|kv| kv.encoded().len()).sum()
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

fn position(entries: &[Arc<KeyValue>], key: &[u8]) -> Result<usize, usize> {
    entries.binary_search_by(|kv| kv.key().cmp(key))
}

fn route(children: &[Child], key: &[u8]) -> usize {
    children[1..].partition_point(|child| &child.lower[..] <= key)
}

/// Key-values of a range in key order.
#[derive(Debug)]
pub struct Range<'a> {
    /// For each inner node on the path, the children that were not visited yet.
    path: Vec<std::slice::Iter<'a, Child>>,
    leaf: std::slice::Iter<'a, Arc<KeyValue>>,
    start: Bytes,
    end: RangeEnd,
}

impl<'a> Iterator for Range<'a> {
    type Item = &'a Arc<KeyValue>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(kv) = self.leaf.next() {
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
                self.leaf = leaf.entries().iter();
            }
        }
    }
}

#[cfg(test)]
mod tests;
