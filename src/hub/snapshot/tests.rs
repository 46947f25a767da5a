//! Compares the map with an ordered map of the standard library, and checks that old versions stay as they were.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::types::KeyValueFields;

fn kv(key: &[u8], revision: i64) -> Arc<KeyValue> {
    Arc::new(KeyValue::new(&KeyValueFields {
        key: Bytes::copy_from_slice(key),
        value: revision.to_string().into(),
        mod_revision: Revision::new(revision),
        ..KeyValueFields::default()
    }))
}

fn keys(map: &KeyMap, range: &KeyRange) -> Vec<Vec<u8>> {
    map.range(range).map(|kv| kv.key().to_vec()).collect()
}

fn everything() -> KeyRange {
    KeyRange::prefix(Bytes::new())
}

#[test]
fn a_held_version_does_not_change_when_the_map_does() {
    let mut map = KeyMap::default();
    for i in 0..1000u32 {
        map.insert(kv(&i.to_be_bytes(), 1));
    }
    let held = map.clone();
    for i in 0..1000u32 {
        if i % 2 == 0 {
            map.remove(&i.to_be_bytes());
        } else {
            map.insert(kv(&i.to_be_bytes(), 2));
        }
    }
    assert_eq!(held.len(), 1000);
    assert!(held.range(&everything()).all(|kv| kv.mod_revision.get() == 1));
    assert_eq!(map.len(), 500);
    assert!(map.range(&everything()).all(|kv| kv.mod_revision.get() == 2));
}

fn leaves(node: &Node) -> usize {
    match node {
        Node::Leaf(_) => 1,
        Node::Inner(children) => children.iter().map(|child| leaves(&child.node)).sum(),
    }
}

#[test]
fn rising_keys_leave_full_nodes() {
    for mut map in [KeyMap::default(), KeyMap::sharing()] {
        for i in 0..10_000u32 {
            map.insert(kv(&i.to_be_bytes(), 1));
        }
        assert!(leaves(&map.root) <= 10_000 / 32 + 1);
    }
}

#[test]
fn leaves_that_become_sparse_join() {
    for mut map in [KeyMap::default(), KeyMap::sharing()] {
        for i in 0..10_000u32 {
            map.insert(kv(&i.to_be_bytes(), 1));
        }
        (0..10_000u32).filter(|i| i % 10 > 0).for_each(|i| assert!(map.remove(&i.to_be_bytes())));
        assert_eq!(map.len(), 1_000);
        assert!(leaves(&map.root) <= 1_000 / 8, "{} leaves", leaves(&map.root));
    }
    // Values that shrink leave sparse leaves as well.
    let mut map = KeyMap::default();
    let mut put = |key: u32, value: usize| {
        let key = Bytes::copy_from_slice(&key.to_be_bytes());
        let fields = KeyValueFields { key, value: vec![0; value].into(), ..KeyValueFields::default() };
        map.insert(KeyValue::new(&fields));
    };
    (0..1_000).for_each(|key| put(key, 1_000));
    (0..1_000).for_each(|key| put(key, 10));
    assert!(leaves(&map.root) <= 1_000 / 8 + 1, "{} leaves", leaves(&map.root));
}

#[test]
fn key_values_in_rising_order_fill_whole_leaves_and_others_find_their_places() {
    let fields = |key: u32| kv(&key.to_be_bytes(), i64::from(key)).fields();
    let mut map = KeyMap::default();
    for page in 0..10 {
        map.extend(&(0..1_000).map(|key| fields(page * 1_000 + key)).collect::<Vec<_>>());
    }
    assert_eq!(map.len(), 10_000);
    assert!(leaves(&map.root) <= 10 * (1_000 / 64 + 1));
    // No server sends a page like this, but it must not harm.
    map.extend(&[20_000, 5, 20_001, 20_001, 15_000, 20_002].map(fields));
    let expected = (0..10_000).chain([15_000, 20_000, 20_001, 20_002]);
    assert_eq!(keys(&map, &everything()), expected.map(|key: u32| key.to_be_bytes().to_vec()).collect::<Vec<_>>());
    assert_eq!(map.bytes(), map.range(&everything()).map(|kv| kv.encoded().len()).sum::<usize>());
}

/// Whoever holds an old version holds the bases that were made anew since.
#[test]
fn a_held_version_keeps_little_more_than_what_was_changed_since() {
    let fields = |key: usize| KeyValueFields {
        key: format!("{key:06}").into(),
        value: vec![b'v'; 250].into(),
        ..KeyValueFields::default()
    };
    let all: Vec<_> = (0..10_000).map(fields).collect();
    let mut map = KeyMap::default();
    map.extend(&all);
    let mut random = SmallRng::seed_from_u64(1);
    let mut bases = HashSet::new();
    let mut versions = Vec::new();
    for write in 0..50_000 {
        if write % 500 == 0 {
            // It is held to the end, so that no other base takes the memory of one of its own.
            versions.push(map.clone());
            map.leaves(0..map.len(), |leaf, _| {
                bases.extend(leaf.base());
                true
            });
        }
        map.insert(KeyValue::new(&all[random.random_range(0..all.len())]));
    }
    let first = leaves(&versions[0].root);
    assert!(bases.len() > 2 * first && bases.len() <= first + 50_000 / 8, "{} bases, {first} leaves", bases.len());
}

#[test]
fn separators_are_short_even_if_keys_are_not() {
    let mut map = KeyMap::default();
    for i in 0..1_000u32 {
        let key = [&i.to_be_bytes()[..], &[7; 4_000]].concat();
        map.insert(kv(&key, 1));
        assert!(map.get(&key).is_some());
    }
    fn longest(node: &Node) -> usize {
        match node {
            Node::Leaf(_) => 0,
            Node::Inner(children) => {
                children.iter().map(|child| child.lower.len().max(longest(&child.node))).max().unwrap_or(0)
            }
        }
    }
    assert_eq!(longest(&map.root), 4);
}

/// Checks what must always hold of a tree: bounds of its children, their weights, and their depth.
fn check(node: &Node, lower: &[u8], upper: Option<&[u8]>) -> usize {
    match node {
        Node::Leaf(leaf) => {
            let keys: Vec<_> = (0..leaf.len()).map(|index| leaf.key(index)).collect();
            assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "in order");
            assert!(keys.iter().all(|key| *key >= lower && upper.is_none_or(|upper| *key < upper)), "within bounds");
            0
        }
        Node::Inner(children) => {
            assert!(children.len() <= NODE_MAX && !children.is_empty());
            let depths: Vec<_> = (0..children.len())
                .map(|index| {
                    let child = &children[index];
                    assert_eq!(child.weight, child.node.weight());
                    assert!(child.weight.count > 0, "no child is empty");
                    let lower = if index == 0 { lower } else { &child.lower };
                    check(&child.node, lower, children.get(index + 1).map_or(upper, |next| Some(&next.lower)))
                })
                .collect();
            assert!(depths.windows(2).all(|pair| pair[0] == pair[1]), "all leaves are at one depth");
            depths[0] + 1
        }
    }
}

/// Grows and shrinks a large map again and again, with keys and values of all sizes.
#[test]
#[expect(clippy::print_stdout, reason = "a failure shows the seed")]
fn a_large_map_stays_an_ordered_map_while_it_grows_and_shrinks() {
    let seed =
        std::env::var("ETCD_RELAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("ETCD_RELAY_TEST_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for mut map in [KeyMap::default(), KeyMap::sharing()] {
        let mut model: BTreeMap<Vec<u8>, Arc<KeyValue>> = BTreeMap::new();
        let mut held: Vec<(KeyMap, Vec<Arc<KeyValue>>)> = Vec::new();
        for step in 0..60_000i64 {
            // It grows for a while, and then shrinks to a fifth.
            let grows = step % 20_000 < 11_000;
            let mut key = random.random_range(0..30_000u32).to_string().into_bytes();
            if random.random_bool(0.01) {
                key.resize(random.random_range(5..4_000), b'k');
            }
            if random.random_bool(if grows { 0.9 } else { 0.02 }) {
                let value = match random.random_range(0..1_000) {
                    0 => random.random_range(0..30_000),
                    1..30 => random.random_range(0..10_000),
                    _ => random.random_range(0..300),
                };
                let fields = KeyValueFields {
                    key: key.clone().into(),
                    value: vec![step as u8; value].into(),
                    mod_revision: Revision::new(step),
                    ..KeyValueFields::default()
                };
                let new = Arc::new(KeyValue::new(&fields));
                map.insert(new.clone());
                model.insert(key, new);
            } else {
                // A key that exists, if there is any at or after the random one.
                let key = model.range(key.clone()..).next().map_or(key, |(key, _)| key.clone());
                assert_eq!(map.remove(&key), model.remove(&key).is_some());
            }
            if step % 2_500 == 0 {
                assert_eq!(map.len(), model.len());
                check(&map.root, &[], None);
                assert!(map.range(&everything()).map(|kv| kv.kept()).eq(model.values().cloned()));
                assert!(model.iter().all(|(key, kv)| map.get(key).is_some_and(|found| *found == **kv)));
                held.push((map.clone(), model.values().cloned().collect()));
            }
        }
        for (map, kvs) in held {
            assert!(map.range(&everything()).map(|kv| kv.kept()).eq(kvs), "what is held stays as it was");
        }
    }
}

/// For each node above leaves, the first key and the number of keys of its first leaf.
fn starts_of(node: &Node, starts: &mut Vec<(u32, u32)>) {
    let Node::Inner(children) = node else { return };
    if let Node::Leaf(leaf) = &*children[0].node {
        starts.push((u32::from_be_bytes(leaf.first_key().try_into().expect("four bytes")), leaf.len() as u32));
    }
    children.iter().for_each(|child| starts_of(&child.node, starts));
}

/// The first child of an inner node may get keys below the one that it once began with. It must be found by them when
/// it is a first child no more.
#[test]
fn keys_at_the_start_of_an_inner_node_are_found_after_it_joined_another() {
    for mut map in [KeyMap::default(), KeyMap::sharing()] {
        let bytes = |i: u32| i.to_be_bytes();
        (0..40_000).for_each(|i| map.insert(kv(&bytes(i), 1)));
        let mut starts = Vec::new();
        starts_of(&map.root, &mut starts);
        assert!(starts.len() > 16);
        // Each of them loses its first child, and gets the child's first key again.
        for (start, count) in &starts {
            (*start..start + count).for_each(|i| assert!(map.remove(&bytes(i))));
            map.insert(kv(&bytes(*start), 2));
        }
        let is_start = |i: u32| starts.iter().any(|(start, _)| *start == i);
        (0..40_000).filter(|i| i % 100 > 0 && !is_start(*i)).for_each(|i| _ = map.remove(&bytes(i)));
        for (start, _) in &starts {
            assert!(map.get(&bytes(*start)).is_some(), "{start}");
        }
    }
}

proptest! {
    #[test]
    fn behaves_as_an_ordered_map(
        shares in any::<bool>(),
        ops in prop::collection::vec((any::<bool>(), prop::collection::vec(0u8..8, 0..4)), 0..2000),
        bounds in prop::collection::vec((prop::collection::vec(0u8..8, 0..4), prop::collection::vec(0u8..8, 0..4)), 8),
    ) {
        let mut map = if shares { KeyMap::sharing() } else { KeyMap::default() };
        let mut model = BTreeMap::new();
        for (step, (put, key)) in ops.into_iter().enumerate() {
            if put {
                let new = kv(&key, step as i64);
                map.insert(new.clone());
                model.insert(key, new);
            } else {
                prop_assert_eq!(map.remove(&key), model.remove(&key).is_some());
            }
        }
        prop_assert_eq!(map.len(), model.len());
        prop_assert_eq!(map.bytes(), model.values().map(|kv| kv.encoded().len()).sum::<usize>());
        for (key, value) in &model {
            prop_assert_eq!(map.get(key).map(|kv| kv.kept()), Some(value.clone()));
        }
        for (from, to) in bounds {
            let Ok(range) = KeyRange::from_wire(from.into(), to.into()) else { continue };
            let expected: Vec<_> = model.keys().filter(|key| range.contains(key)).cloned().collect();
            prop_assert_eq!(map.count(&range), expected.len());
            let places = map.places(&range);
            let sizes: Vec<_> = model.values().map(|kv| kv.encoded().len()).collect();
            let bare: usize = model.values().skip(places.start).take(places.len()).map(|kv| kv.bare_len()).sum();
            let weight = map.weight(&places);
            prop_assert_eq!((weight.bytes, weight.bare_bytes), (sizes[places.clone()].iter().sum::<usize>(), bare));
            let mut held = Vec::new();
            map.leaves(places, |leaf, places| {
                held.extend(leaf.iter(places).map(|kv| kv.key().to_vec()));
                true
            });
            prop_assert_eq!(&held, &expected);
            prop_assert_eq!(keys(&map, &range), expected);
        }
    }
}
