//! Compares the map with an ordered map of the standard library, and checks that old versions stay as they were.

use std::collections::BTreeMap;

use proptest::prelude::*;

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

#[test]
fn rising_keys_leave_full_nodes() {
    let mut map = KeyMap::default();
    for i in 0..10_000u32 {
        map.insert(kv(&i.to_be_bytes(), 1));
    }
    fn leaves(node: &Node) -> usize {
        match node {
            Node::Leaf(_) => 1,
            Node::Inner(children) => children.iter().map(|child| leaves(&child.node)).sum(),
        }
    }
    assert!(leaves(&map.root) <= 10_000 / NODE_MAX + 1);
}

/// The first child of an inner node may get keys below the one that it once began with. It must be found by them when it
/// is a first child no more.
#[test]
fn keys_at_the_start_of_an_inner_node_are_found_after_it_joined_another() {
    let mut map = KeyMap::default();
    let bytes = |i: u32| i.to_be_bytes();
    (0..40_000).for_each(|i| drop(map.insert(kv(&bytes(i), 1))));
    // Rising keys leave full nodes, so inner nodes begin here. Each loses its first child, and gets the key again.
    let starts = || (0..40_000).step_by(NODE_MAX * NODE_MAX);
    for start in starts() {
        (start..start + NODE_MAX as u32).for_each(|i| drop(map.remove(&bytes(i))));
        map.insert(kv(&bytes(start), 2));
    }
    (0..40_000).filter(|i| i % 100 > 0 && !starts().any(|start| start == *i)).for_each(|i| drop(map.remove(&bytes(i))));
    for start in starts() {
        assert!(map.get(&bytes(start)).is_some(), "{start}");
    }
}

proptest! {
    #[test]
    fn behaves_as_an_ordered_map(
        ops in prop::collection::vec((any::<bool>(), prop::collection::vec(0u8..8, 0..4)), 0..2000),
        bounds in prop::collection::vec((prop::collection::vec(0u8..8, 0..4), prop::collection::vec(0u8..8, 0..4)), 8),
    ) {
        let mut map = KeyMap::default();
        let mut model = BTreeMap::new();
        for (step, (put, key)) in ops.into_iter().enumerate() {
            if put {
                let new = kv(&key, step as i64);
                prop_assert_eq!(map.insert(new.clone()), model.insert(key, new));
            } else {
                prop_assert_eq!(map.remove(&key), model.remove(&key));
            }
        }
        prop_assert_eq!(map.len(), model.len());
        prop_assert_eq!(map.bytes(), model.values().map(|kv| kv.encoded().len()).sum::<usize>());
        for (key, value) in &model {
            prop_assert_eq!(map.get(key), Some(value));
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
                held.extend(leaf.entries()[places].iter().map(|kv| kv.key().to_vec()));
                true
            });
            prop_assert_eq!(&held, &expected);
            prop_assert_eq!(keys(&map, &range), expected);
        }
    }
}
