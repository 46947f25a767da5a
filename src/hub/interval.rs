//! [`IntervalTree`]: finds every range that contains a key.
//!
//! Used by `index` for subscriptions to more than one key. A treap (a search tree kept balanced by random priorities)
//! ordered by range, in which each node knows the furthest end below it.
//! Always holds: insertion, removal and lookup cost O(log n) expected, a lookup also its matches; one value a range.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::types::{KeyRange, RangeEnd};

/// A map from ranges to values that can be asked by key.
#[derive(Debug)]
pub(super) struct IntervalTree<V> {
    root: Option<Box<Node<V>>>,
    random: u64,
}

#[derive(Debug)]
struct Node<V> {
    range: KeyRange,
    value: V,
    /// The furthest end in this subtree.
    reach: RangeEnd,
    priority: u64,
    left: Option<Box<Node<V>>>,
    right: Option<Box<Node<V>>>,
}

impl<V> Default for IntervalTree<V> {
    fn default() -> Self {
        // Any odd seed serves: nobody gains from guessing the shape, and equal runs give equal trees.
        Self { root: None, random: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl<V: Default> IntervalTree<V> {
    /// The value of `range`, made where there is none.
    pub(super) fn entry(&mut self, range: &KeyRange) -> &mut V {
        // xorshift64: plenty for priorities.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        if self.find(range).is_none() {
            insert(&mut self.root, range, self.random);
        }
        let mut node = self.root.as_mut();
        loop {
            // Just inserted, or found before.
            let here = node.expect("the range is in the tree");
            node = match range.cmp(&here.range) {
                Ordering::Less => here.left.as_mut(),
                Ordering::Greater => here.right.as_mut(),
                Ordering::Equal => return &mut here.value,
            };
        }
    }

    /// Takes `range` out.
    pub(super) fn remove(&mut self, range: &KeyRange) {
        remove(&mut self.root, range);
    }

    /// Calls `found` with the value of each range that contains `key`.
    pub(super) fn stab(&self, key: &[u8], found: &mut impl FnMut(&V)) {
        stab(self.root.as_deref(), key, found);
    }

    fn find(&self, range: &KeyRange) -> Option<&V> {
        let mut node = self.root.as_deref();
        while let Some(here) = node {
            node = match range.cmp(&here.range) {
                Ordering::Less => here.left.as_deref(),
                Ordering::Greater => here.right.as_deref(),
                Ordering::Equal => return Some(&here.value),
            };
        }
        None
    }
}

fn stab<V>(node: Option<&Node<V>>, key: &[u8], found: &mut impl FnMut(&V)) {
    let Some(node) = node else { return };
    let reached = match &node.reach {
        RangeEnd::Before(end) => key < &end[..],
        RangeEnd::Unbounded => true,
        // `reach` is made by `further`, which never gives it.
        RangeEnd::Single => false,
    };
    if !reached {
        return;
    }
    stab(node.left.as_deref(), key, found);
    if key >= &node.range.start()[..] {
        if node.range.contains(key) {
            found(&node.value);
        }
        stab(node.right.as_deref(), key, found);
    }
}

fn insert<V: Default>(slot: &mut Option<Box<Node<V>>>, range: &KeyRange, priority: u64) {
    let Some(node) = slot else {
        let reach = exclusive_end(range);
        *slot = Some(Box::new(Node {
            range: range.detached(),
            value: V::default(),
            reach,
            priority,
            left: None,
            right: None,
        }));
        return;
    };
    if range < &node.range {
        insert(&mut node.left, range, priority);
        if node.left.as_ref().is_some_and(|left| left.priority > node.priority) {
            rotate_right(slot);
        }
    } else {
        insert(&mut node.right, range, priority);
        if node.right.as_ref().is_some_and(|right| right.priority > node.priority) {
            rotate_left(slot);
        }
    }
    if let Some(node) = slot {
        node.update();
    }
}

fn remove<V>(slot: &mut Option<Box<Node<V>>>, range: &KeyRange) {
    let Some(node) = slot else { return };
    match range.cmp(&node.range) {
        Ordering::Less => remove(&mut node.left, range),
        Ordering::Greater => remove(&mut node.right, range),
        Ordering::Equal => match (&node.left, &node.right) {
            (None, _) => *slot = node.right.take(),
            (_, None) => *slot = node.left.take(),
            // Sink the node below its heavier child, then go after it.
            (Some(left), Some(right)) => {
                if left.priority > right.priority {
                    rotate_right(slot);
                    slot.iter_mut().for_each(|node| remove(&mut node.right, range));
                } else {
                    rotate_left(slot);
                    slot.iter_mut().for_each(|node| remove(&mut node.left, range));
                }
            }
        },
    }
    if let Some(node) = slot {
        node.update();
    }
}

fn rotate_right<V>(slot: &mut Option<Box<Node<V>>>) {
    if let Some(mut node) = slot.take() {
        match node.left.take() {
            Some(mut left) => {
                node.left = left.right.take();
                node.update();
                left.right = Some(node);
                *slot = Some(left);
            }
            None => *slot = Some(node),
        }
    }
}

fn rotate_left<V>(slot: &mut Option<Box<Node<V>>>) {
    if let Some(mut node) = slot.take() {
        match node.right.take() {
            Some(mut right) => {
                node.right = right.left.take();
                node.update();
                right.left = Some(node);
                *slot = Some(right);
            }
            None => *slot = Some(node),
        }
    }
}

impl<V> Node<V> {
    fn update(&mut self) {
        let mut reach = exclusive_end(&self.range);
        for child in [&self.left, &self.right].into_iter().flatten() {
            reach = further(reach, &child.reach);
        }
        self.reach = reach;
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

fn further(one: RangeEnd, other: &RangeEnd) -> RangeEnd {
    match (one, other) {
        (RangeEnd::Before(one), RangeEnd::Before(other)) => RangeEnd::Before(one.max(other.clone())),
        _ => RangeEnd::Unbounded,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn finds_exactly_the_ranges_that_contain_a_key(
            ops in prop::collection::vec((any::<bool>(), prop::collection::vec(0u8..5, 0..3), prop::collection::vec(0u8..5, 0..3)), 0..200),
            keys in prop::collection::vec(prop::collection::vec(0u8..5, 0..4), 20),
        ) {
            let mut tree = IntervalTree::<Vec<KeyRange>>::default();
            let mut model = std::collections::BTreeSet::new();
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
        fn stays_shallow_when_ranges_come_in_order(count in 1u32..3000) {
            let mut tree = IntervalTree::<u32>::default();
            for i in 0..count {
                tree.entry(&KeyRange::prefix(i.to_be_bytes().to_vec().into()));
            }
            fn depth(node: Option<&Node<u32>>) -> u32 {
                node.map_or(0, |node| 1 + depth(node.left.as_deref()).max(depth(node.right.as_deref())))
            }
            prop_assert!(depth(tree.root.as_deref()) <= 4 * (32 - count.leading_zeros()) + 4);
        }
    }
}
