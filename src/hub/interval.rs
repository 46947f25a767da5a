//! [`IntervalTree`]: finds every range that contains a key.
//!
//! Used by `index` for subscriptions to more than one key. It is an AVL tree ordered by range, in which each node knows
//! the furthest end below it. The nodes lie side by side in one allocation and are walked without recursion.
//! Always holds: the heights of a node's two subtrees differ by one at most, in whatever order ranges are inserted and
//! removed, so the tree is never higher than 1.45 · log2 n. Insertion and removal cost O(log n). A lookup visits O(log
//! n) nodes, and for each match at most as many again (fewer if many match). There is one value for each range.

use std::cmp::Ordering;

use bytes::Bytes;
use slab::Slab;
use smallvec::SmallVec;

use super::slack::Slack;
use crate::types::{KeyRange, RangeEnd};

/// Means "no node".
const NONE: u32 = u32::MAX;
/// Children of a node.
const LEFT: usize = 0;
const RIGHT: usize = 1;
/// Higher than any tree that fits into memory, so that a walk needs no allocation.
const HEIGHT: usize = 48;

/// The nodes from the root down, each with the side on which the next one lies.
type Path = SmallVec<[(u32, usize); HEIGHT]>;

/// A map from ranges to values, searched by key.
#[derive(Debug)]
pub(super) struct IntervalTree<V> {
    nodes: Slab<Node<V>>,
    slack: Slack,
    root: u32,
}

#[derive(Debug)]
struct Node<V> {
    range: KeyRange,
    value: V,
    /// The first key after the range.
    end: RangeEnd,
    /// The furthest end in this subtree.
    reach: RangeEnd,
    children: [u32; 2],
    /// The height of this subtree; a leaf has 1.
    height: u8,
}

impl<V> Default for IntervalTree<V> {
    fn default() -> Self {
        Self { nodes: Slab::new(), slack: Slack::default(), root: NONE }
    }
}

impl<V: Default> IntervalTree<V> {
    /// The value of `range`, which is created if there is none.
    pub(super) fn entry(&mut self, range: &KeyRange) -> &mut V {
        let (path, found) = self.find(range);
        let node = if found == NONE { self.insert(path, range) } else { found };
        &mut self.nodes[node as usize].value
    }

    fn insert(&mut self, path: Path, range: &KeyRange) -> u32 {
        let range = range.detached();
        let end = exclusive_end(&range);
        let node = Node { range, value: V::default(), reach: end.clone(), end, children: [NONE; 2], height: 1 };
        let node = self.nodes.insert(node) as u32;
        self.hang(path, node);
        node
    }
}

impl<V> IntervalTree<V> {
    /// Removes `range`.
    pub(super) fn remove(&mut self, range: &KeyRange) {
        let (mut path, found) = self.find(range);
        if found == NONE {
            return;
        }
        let mut gone = found;
        if let [left, right] = self.nodes[found as usize].children
            && left != NONE
            && right != NONE
        {
            // The next range in order has no left child. It takes the place of the removed one.
            path.push((found, RIGHT));
            gone = right;
            while self.nodes[gone as usize].children[LEFT] != NONE {
                path.push((gone, LEFT));
                gone = self.nodes[gone as usize].children[LEFT];
            }
            if let Some((place, next)) = self.nodes.get2_mut(found as usize, gone as usize) {
                std::mem::swap(&mut place.range, &mut next.range);
                std::mem::swap(&mut place.value, &mut next.value);
                std::mem::swap(&mut place.end, &mut next.end);
            }
        }
        let [left, right] = self.nodes.remove(gone as usize).children;
        self.hang(path, if left == NONE { right } else { left });
        self.slack.removed(&mut self.nodes);
    }

    /// Calls `found` with the value of each range that contains `key`.
    pub(super) fn stab(&self, key: &[u8], found: &mut impl FnMut(&V)) {
        self.walk(key, |node, matches| {
            if matches {
                found(&node.value);
            }
        });
    }

    /// Calls `visit` with each node below which a range may contain `key`, and with whether the node's own range does.
    fn walk(&self, key: &[u8], mut visit: impl FnMut(&Node<V>, bool)) {
        let mut ahead: SmallVec<[u32; HEIGHT]> = SmallVec::new();
        let mut node = self.root;
        loop {
            if let Some(here) = self.nodes.get(node as usize).filter(|node| is_before(key, &node.reach)) {
                let begun = key >= &here.range.start()[..];
                visit(here, begun && is_before(key, &here.end));
                if begun {
                    ahead.push(here.children[RIGHT]);
                }
                node = here.children[LEFT];
            } else {
                match ahead.pop() {
                    Some(next) => node = next,
                    None => return,
                }
            }
        }
    }

    /// The node of `range`, or [`NONE`], and the path to it or to where it would be inserted.
    fn find(&self, range: &KeyRange) -> (Path, u32) {
        let mut path = Path::new();
        let mut node = self.root;
        while let Some(here) = self.nodes.get(node as usize) {
            let side = match range.cmp(&here.range) {
                Ordering::Less => LEFT,
                Ordering::Greater => RIGHT,
                Ordering::Equal => break,
            };
            path.push((node, side));
            node = here.children[side];
        }
        (path, node)
    }

    /// Attaches a subtree at the end of a path, and rebalances all nodes of the path.
    fn hang(&mut self, mut path: Path, subtree: u32) {
        let mut below = subtree;
        while let Some((node, side)) = path.pop() {
            self.nodes[node as usize].children[side] = below;
            below = self.balance(node);
        }
        self.root = below;
    }

    /// Restores the balance of a node whose subtrees differ by two in height at most. Returns the node that is on top
    /// now.
    fn balance(&mut self, node: u32) -> u32 {
        let [left, right] = self.nodes[node as usize].children;
        let (heavy, child) = match (self.height(left), self.height(right)) {
            (left_height, right_height) if left_height > right_height + 1 => (LEFT, left),
            (left_height, right_height) if right_height > left_height + 1 => (RIGHT, right),
            _ => {
                self.update(node);
                return node;
            }
        };
        let grandchildren = self.nodes[child as usize].children;
        if self.height(grandchildren[1 - heavy]) > self.height(grandchildren[heavy]) {
            self.nodes[node as usize].children[heavy] = self.rotate(child, 1 - heavy);
        }
        self.rotate(node, heavy)
    }

    /// Rotates the child on this side above the node. Returns the child.
    fn rotate(&mut self, node: u32, side: usize) -> u32 {
        let child = self.nodes[node as usize].children[side];
        let moved = std::mem::replace(&mut self.nodes[child as usize].children[1 - side], node);
        self.nodes[node as usize].children[side] = moved;
        self.update(node);
        self.update(child);
        child
    }

    /// Recomputes from its children what a node knows about its subtree.
    fn update(&mut self, node: u32) {
        let here = &self.nodes[node as usize];
        let (mut height, mut reach) = (0, &here.end);
        for child in here.children {
            if let Some(child) = self.nodes.get(child as usize) {
                height = height.max(child.height);
                // `Unbounded` is the greatest end, and an exclusive end is never `Single`.
                reach = reach.max(&child.reach);
            }
        }
        let reach = (*reach != here.reach).then(|| reach.clone());
        let here = &mut self.nodes[node as usize];
        here.height = height + 1;
        if let Some(reach) = reach {
            here.reach = reach;
        }
    }

    fn height(&self, node: u32) -> u8 {
        self.nodes.get(node as usize).map_or(0, |node| node.height)
    }
}

fn is_before(key: &[u8], end: &RangeEnd) -> bool {
    match end {
        RangeEnd::Before(end) => key < &end[..],
        RangeEnd::Unbounded => true,
        // `exclusive_end` makes the ends, and never returns this.
        RangeEnd::Single => false,
    }
}

fn exclusive_end(range: &KeyRange) -> RangeEnd {
    match range.end() {
        RangeEnd::Single => {
            let mut end = range.start().to_vec();
            end.push(0);
            RangeEnd::Before(Bytes::from(end))
        }
        end => end.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    impl<V> IntervalTree<V> {
        /// Checks order, heights and ends of each node. Returns the height.
        fn check(&self) -> usize {
            let mut seen = 0;
            let mut ahead = vec![self.root];
            while let Some(index) = ahead.pop() {
                let Some(node) = self.nodes.get(index as usize) else { continue };
                seen += 1;
                let [left, right] = node.children.map(|child| self.nodes.get(child as usize));
                let heights = [left, right].map(|child| child.map_or(0, |child| child.height));
                assert!(heights[0].abs_diff(heights[1]) <= 1, "unbalanced: {heights:?}");
                assert_eq!(node.height, 1 + heights[0].max(heights[1]));
                let ends = [left, right].into_iter().flatten().map(|child| &child.reach).chain([&node.end]);
                assert_eq!(Some(&node.reach), ends.max());
                assert!(left.is_none_or(|left| left.range < node.range));
                assert!(right.is_none_or(|right| right.range > node.range));
                ahead.extend(node.children);
            }
            assert_eq!(seen, self.nodes.len(), "every node is reached once");
            usize::from(self.height(self.root))
        }
    }

    fn numbered(number: u32) -> KeyRange {
        KeyRange::prefix(number.to_be_bytes().to_vec().into())
    }

    fn most_height(count: usize) -> usize {
        (1.45 * (count as f64 + 2.0).log2()) as usize
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..5, 0..3)
    }

    proptest! {
        #[test]
        fn finds_exactly_the_ranges_that_contain_a_key(
            ops in prop::collection::vec((any::<bool>(), bytes(), bytes()), 0..150),
            keys in prop::collection::vec(prop::collection::vec(0u8..5, 0..4), 20),
        ) {
            let mut tree = IntervalTree::<Vec<KeyRange>>::default();
            let mut model = BTreeSet::new();
            for (put, from, to) in ops {
                let Ok(range) = KeyRange::from_wire(from.into(), to.into()) else { continue };
                if put {
                    let value = tree.entry(&range);
                    if value.is_empty() { value.push(range.clone()); }
                    model.insert(range);
                } else {
                    tree.remove(&range);
                    model.remove(&range);
                }
                prop_assert!(tree.check() <= most_height(model.len()));
            }
            for key in keys {
                let mut found = Vec::new();
                tree.stab(&key, &mut |value| found.extend(value.iter().cloned()));
                found.sort();
                let expected: Vec<_> = model.iter().filter(|range| range.contains(&key)).cloned().collect();
                prop_assert_eq!(found, expected);
            }
        }

        #[test]
        fn stays_low_whatever_the_order_of_what_comes_and_goes(
            order in Just((0..300).collect::<Vec<u32>>()).prop_shuffle(),
            left in 0..300_usize,
        ) {
            let mut tree = IntervalTree::<u32>::default();
            for number in 0..300 {
                *tree.entry(&numbered(number)) = number;
            }
            assert!(tree.check() <= most_height(300));
            for number in &order[left..] {
                tree.remove(&numbered(*number));
            }
            assert!(tree.check() <= most_height(left));
            let mut found = Vec::new();
            order.iter().for_each(|number| tree.stab(&number.to_be_bytes(), &mut |value| found.push(*value)));
            assert_eq!(found, order[..left]);
        }
    }

    /// In a treap whose random seed is known, ranges that arrive in the order of their priorities make a list. The
    /// stack is that of a small thread.
    #[test]
    fn no_order_of_ranges_makes_it_high_or_takes_stack() {
        const RANGES: u32 = 100_000;
        let work = || {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            let mut priorities: Vec<(u64, u32)> = (0..RANGES)
                .map(|number| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    (random, number)
                })
                .collect();
            priorities.sort_unstable();
            let mut order = vec![0; RANGES as usize];
            for (place, (_, number)) in (0..).zip(&priorities) {
                order[*number as usize] = place;
            }
            let mut tree = IntervalTree::<u32>::default();
            order.iter().for_each(|number| *tree.entry(&numbered(*number)) = *number);
            assert!(tree.check() <= most_height(RANGES as usize));
            let mut found = Vec::new();
            tree.stab(&7_u32.to_be_bytes(), &mut |value| found.push(*value));
            assert_eq!(found, [7]);
            order.iter().for_each(|number| tree.remove(&numbered(*number)));
            assert_eq!((tree.check(), tree.nodes.capacity()), (0, 0));
        };
        std::thread::Builder::new().stack_size(256 << 10).spawn(work).expect("a thread").join().expect("no panic");
    }

    #[test]
    fn a_lookup_visits_a_path_and_what_matches() {
        // Each range contains those after it; a key lies in the first ones.
        let mut tree = IntervalTree::<u32>::default();
        for number in 0..4096_u32 {
            let (from, to) = (number.to_be_bytes(), (10_000 - number).to_be_bytes());
            let range = KeyRange::from_wire(from.to_vec().into(), to.to_vec().into()).expect("a range");
            *tree.entry(&range) = number;
        }
        for last in [0_u32, 1, 100, 4095] {
            let (mut visited, mut found) = (0, Vec::new());
            tree.walk(&last.to_be_bytes(), |node, matches| {
                visited += 1;
                found.extend(matches.then_some(node.value));
            });
            found.sort_unstable();
            assert_eq!(found, (0..=last).collect::<Vec<_>>());
            assert!(visited <= found.len() + most_height(4096), "{visited} for {}", found.len());
        }
    }
}
