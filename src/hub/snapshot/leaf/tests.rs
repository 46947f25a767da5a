//! Tests of leaves: what writes make of a leaf and its base, and what others hold of them.

use std::collections::BTreeMap;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::types::{KeyValueFields, Revision};

fn kv(key: usize, value: usize) -> Arc<KeyValue> {
    Arc::new(KeyValue::new(&fields(key, value)))
}

fn fields(key: usize, value: usize) -> KeyValueFields {
    KeyValueFields {
        key: format!("{key:04}").into(),
        value: vec![b'v'; value].into(),
        mod_revision: Revision::new(1),
        ..KeyValueFields::default()
    }
}

/// A packed leaf of these keys with values of these sizes, which must fit.
fn leaf(kvs: impl IntoIterator<Item = (usize, usize)>) -> Leaf {
    let mut packer = Packer::default();
    for (key, value) in kvs {
        assert!(packer.add(&fields(key, value)).is_none(), "it fits");
    }
    packer.flush().unwrap_or_default()
}

/// What a put makes of a leaf.
fn put(leaf: &Leaf, key: usize, value: usize) -> Vec<Leaf> {
    let mut left = leaf.clone();
    let right = left.put(kv(key, value)).1;
    let leaves: Vec<_> = [left].into_iter().chain(right).collect();
    leaves.iter().for_each(check);
    leaves
}

fn removed(leaf: &Leaf, index: usize) -> Leaf {
    let mut leaf = leaf.clone();
    leaf.remove(index);
    check(&leaf);
    leaf
}

/// The keys and the sizes of the values.
fn content(leaves: &[Leaf]) -> Vec<Vec<(usize, usize)>> {
    let of = |kv: Kv<'_>| (String::from_utf8_lossy(kv.key()).parse().expect("a number"), kv.value().len());
    leaves.iter().map(|leaf| leaf.iter(0..leaf.len()).map(of).collect()).collect()
}

fn is_same_base(one: &Leaf, other: &Leaf) -> bool {
    one.base().is_some() && one.base() == other.base()
}

/// Checks what must always hold of a leaf.
fn check(leaf: &Leaf) {
    let kvs: Vec<_> = leaf.iter(0..leaf.len()).collect();
    assert!(kvs.windows(2).all(|pair| pair[0].key() < pair[1].key()), "in order");
    for (index, kv) in kvs.iter().enumerate() {
        assert_eq!((leaf.key(index), leaf.find(kv.key())), (kv.key(), Ok(index)));
        assert_eq!(leaf.weight(index..index + 1), Weight::of_one(kv));
    }
    let small = leaf.loose.iter().filter(|kv| !kv.is_large());
    let small = (small.clone().count(), small.map(|kv| kv.encoded().len()).sum::<usize>());
    assert_eq!((leaf.small.count as usize, leaf.small.bytes as usize), small);
    let in_base = kvs.iter().filter(|kv| matches!(kv, Kv::Packed(_)));
    assert_eq!(leaf.live as usize, in_base.map(|kv| kv.encoded().len()).sum::<usize>());
    assert_eq!(leaf.len() - leaf.loose.len(), kvs.iter().filter(|kv| matches!(kv, Kv::Packed(_))).count());
    if !leaf.packs {
        assert!(leaf.base.len() == 0 && leaf.order.is_empty() && leaf.len() <= LARGES);
        return;
    }
    assert!(leaf.len() <= ENTRIES && leaf.base.len() <= ENTRIES && leaf.larges() <= LARGES);
    assert!(leaf.base.bytes() + START * leaf.base.len() <= MOST && leaf.packed_len() <= MOST);
    assert!(small.0 <= PATCHES && small.1 <= FULL / 2, "{small:?}");
    assert!(leaf.base.bytes() - leaf.live as usize <= WASTE, "{} bytes", leaf.live);
}

#[test]
fn a_put_inserts_or_replaces_and_leaves_the_old_leaf_as_it_was() {
    let old = leaf([(2, 10), (4, 20), (6, 0)]);
    assert_eq!(content(&put(&old, 1, 5)), [[(1, 5), (2, 10), (4, 20), (6, 0)]]);
    assert_eq!(content(&put(&old, 5, 5)), [[(2, 10), (4, 20), (5, 5), (6, 0)]]);
    assert_eq!(content(&put(&old, 7, 5)), [[(2, 10), (4, 20), (6, 0), (7, 5)]]);
    assert_eq!(content(&put(&old, 4, 300)), [[(2, 10), (4, 300), (6, 0)]]);
    assert_eq!(old.clone().put(kv(4, 1)).0, Weight::of_one(&kv(4, 20)));
    assert_eq!(old.clone().put(kv(5, 1)).0, Weight::default());
    assert_eq!(content(&[removed(&old, 1)]), [[(2, 10), (6, 0)]]);
    assert_eq!(removed(&removed(&removed(&old, 0), 0), 0).len(), 0);
    assert_eq!(content(&[old]), [[(2, 10), (4, 20), (6, 0)]]);
}

#[test]
fn a_leaf_that_was_put_and_deleted_again_is_nothing_but_its_base() {
    let old = leaf((0..28).map(|key| (2 * key, 270)));
    let with = put(&old, 5, 270).remove(0);
    assert!(!with.is_base() && removed(&with, 3).is_base());
    assert!(is_same_base(&old, &removed(&with, 3)));
}

#[test]
fn the_puts_of_a_hot_key_copy_no_base() {
    let old = leaf((0..28).map(|key| (key, 270)));
    let mut hot = old.clone();
    for change in 0..1_000 {
        assert!(hot.put(kv(7, 200 + change % 100)).1.is_none());
        assert!(is_same_base(&old, &hot), "change {change}");
        assert!(hot.loose.len() == 1 && hot.loose.capacity() <= 4);
    }
    // Neither do those of some neighbours.
    for change in 0..1_000 {
        assert!(hot.put(kv(7 + change % 8, 270)).1.is_none());
        assert!(is_same_base(&old, &hot), "change {change}");
    }
    check(&hot);
    assert_eq!(content(&[hot]), content(&[leaf((0..28).map(|key| (key, 270)))]));
    // A base with nothing but hot keys is soon given up.
    let mut hot = leaf([(1, 1_900), (2, 1_900)]);
    (0..100).for_each(|change| _ = hot.put(kv(1 + change % 2, 1_900)));
    assert_eq!((hot.base.len(), hot.loose.len()), (0, 2));
}

/// How many bases there are while a leaf's keys are put in this order.
fn bases(old: &Leaf, puts: impl IntoIterator<Item = (usize, usize)>) -> usize {
    let (mut leaf, mut bases) = (old.clone(), 0);
    for (key, value) in puts {
        let before = leaf.clone();
        assert!(leaf.put(kv(key, value)).1.is_none());
        check(&leaf);
        bases += usize::from(!is_same_base(&before, &leaf));
    }
    bases
}

#[test]
fn a_base_is_made_only_after_many_changes() {
    let old = leaf((0..28).map(|key| (key, 270)));
    let puts = (0..2_800).map(|put| (put * 5 % 28, 270));
    assert!(bases(&old, puts) <= 2_800 / PATCHES, "a third of the bytes are as many key-values");
    let old = leaf((0..64).map(|key| (key, 30)));
    let puts = (0..6_400).map(|put| (put * 5 % 64, 30));
    assert!(bases(&old, puts) <= 6_400 / PATCHES, "many are small");
    let old = leaf((0..4).map(|key| (key, 1_900)));
    assert!(bases(&old, (0..400).map(|put| (put % 4, 1_900))) <= 400 / 2, "and some are not");
}

#[test]
fn what_was_deleted_is_soon_out_of_memory() {
    let mut leaf = leaf((0..28).map(|key| (key, 270)));
    while leaf.len() > 0 {
        leaf.remove(leaf.len() / 3);
        check(&leaf);
        let kept = leaf.base.bytes() + leaf.loose.iter().map(|kv| kv.encoded().len()).sum::<usize>();
        assert!(kept <= leaf.size(0..leaf.len()) + WASTE, "{kept} bytes for {}", leaf.len());
    }
    assert_eq!(leaf.base.len(), 0);
}

#[test]
fn lists_take_a_base_as_it_is_and_make_pages_for_what_changed() {
    let pages = Pages::default();
    let old = leaf((0..28).map(|key| (key, 270)));
    let encoded = |leaf: &Leaf, places: Span<usize>| -> Vec<u8> {
        leaf.iter(places).flat_map(|kv| kv.encoded().to_vec()).collect()
    };
    let first = old.piece(3..28, &pages).expect("a part of the base");
    assert_eq!(first, encoded(&old, 3..28));
    assert_eq!(first.as_ptr(), old.base.slice(3..4).as_ptr());
    assert_eq!(old.piece(3..4, &pages).expect("a part of the base").as_ptr(), first.as_ptr());
    let new = put(&old, 5, 100).remove(0);
    let page = new.piece(3..28, &pages).expect("a page");
    assert_eq!(page, encoded(&new, 3..28));
    assert_eq!(new.piece(2..28, &pages).expect("the same page")[new.size(2..3)..].as_ptr(), page.as_ptr());
    assert!(new.piece(3..9, &pages).is_none(), "a small part is taken one by one");
    let newer = put(&new, 6, 100).remove(0);
    assert_eq!(newer.piece(3..28, &pages).expect("a page"), encoded(&newer, 3..28));
}

#[test]
fn a_full_leaf_splits_in_its_middle_or_at_its_ends() {
    let sizes = |leaves: &[Leaf]| leaves.iter().map(Leaf::len).collect::<Vec<_>>();
    // 34 of 300 bytes in a base.
    let mut full = leaf((1..28).map(|key| (10 * key, 284)));
    (28..35).for_each(|key| assert!(full.put(kv(10 * key, 284)).1.is_none()));
    assert_eq!((full.len(), full.packed_len()), (34, MOST - 40));
    assert_eq!(sizes(&put(&full, 105, 284)), [17, 18]);
    assert_eq!(sizes(&put(&full, 999, 284)), [34, 1], "rising keys leave full leaves");
    assert_eq!(sizes(&put(&full, 1, 284)), [1, 34], "and so do falling ones");
    assert!(put(&full, 999, 284)[0].is_base());
    assert_eq!(sizes(&put(&full, 30, 2_000)), [14, 20], "by bytes: the third has 2,000");
    // Many tiny ones.
    let full = leaf((1..65).map(|key| (10 * key, 0)));
    assert_eq!(sizes(&put(&full, 105, 0)), [32, 33]);
    assert_eq!(sizes(&put(&full, 100, 0)), [64]);
}

#[test]
fn a_large_key_value_is_not_copied() {
    let large = kv(2, 1_500_000);
    let mut leaf = leaf([(1, 50), (2, 50), (3, 50)]);
    leaf.put(large.clone());
    let is_there = |leaf: &Leaf| matches!(leaf.at(1), Kv::Shared(found) if Arc::ptr_eq(found, &large));
    assert!(is_there(&leaf) && content(&[leaf.clone()]) == [[(1, 50), (2, 1_500_000), (3, 50)]]);
    // Neither when the leaf is packed, or joins another.
    (4..60).for_each(|key| assert!(leaf.put(kv(key, 100)).1.is_none()));
    assert!(leaf.base.len() > 30 && is_there(&leaf));
    let (left, right) = (removed(&leaf, 5).part(0..4), leaf.part(4..9));
    assert!(is_there(&left.joined(&right).expect("it fits")));
    // Values that are all large have no base.
    let mut leaf = Leaf::default();
    (0..32).for_each(|key| assert!(leaf.put(kv(10 * key, 4_000)).1.is_none()));
    assert_eq!((leaf.base.len(), leaf.order.len()), (0, 0));
    assert_eq!(put(&leaf, 105, 4_000).iter().map(Leaf::len).collect::<Vec<_>>(), [16, 17]);
}

#[test]
fn sparse_leaves_join_if_they_fit_into_one() {
    let (one, other) = (leaf([(1, 250), (2, 250)]), leaf((3..27).map(|key| (key, 250))));
    assert!(one.is_sparse() && !other.is_sparse());
    let both = one.joined(&other).expect("it fits");
    check(&both);
    assert_eq!(content(&[both]).concat(), content(&[one.clone(), other]).concat());
    assert!(one.joined(&leaf((3..32).map(|key| (key, 250)))).is_none(), "too many bytes");
    let tiny = leaf((0..10).map(|key| (key, 0)));
    assert!(tiny.is_sparse() && tiny.joined(&leaf((10..65).map(|key| (key, 0)))).is_none(), "too many key-values");
    assert!(!leaf((0..20).map(|key| (key, 0))).is_sparse(), "there are many, though they are small");
}

#[test]
fn what_others_keep_does_not_keep_a_base() {
    let leaf = leaf((0..12).map(|key| (key, 300)));
    let (kept, picked) = (leaf.at(3).kept(), leaf.at(4).picked().kept());
    let base = leaf.base.slice(0..12);
    drop(leaf);
    assert!(base.is_unique(), "nobody else has the base");
    assert_eq!((&*kept, &*picked.kv()), (&*kv(3, 300), &*kv(4, 300)));
}

#[test]
fn shared_key_values_stay_the_same_allocations() {
    let kvs: Vec<_> = (0..32).map(|key| kv(key, 10)).collect();
    let mut leaf = Leaf::shared();
    kvs.iter().for_each(|kv| assert!(leaf.put(kv.clone()).1.is_none()));
    for (index, kv) in kvs.iter().enumerate() {
        assert!(matches!(leaf.at(index), Kv::Shared(found) if Arc::ptr_eq(found, kv)));
        assert!(Arc::ptr_eq(&leaf.at(index).kept(), kv));
    }
    assert_eq!(put(&leaf, 99, 10).iter().map(Leaf::len).collect::<Vec<_>>(), [32, 1]);
    leaf.remove(5);
    assert!(leaf.put(kv(5, 1)).1.is_none() && leaf.put(kv(4, 1)).1.is_none());
    check(&leaf);
}

/// Puts and deletes of all sizes, each compared with an ordered map of the standard library.
#[test]
#[expect(clippy::print_stdout, reason = "a failure shows the seed")]
fn whatever_the_sizes_are_leaves_stay_ordered_and_within_their_bounds() {
    let seed =
        std::env::var("ETCD_RELAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("ETCD_RELAY_TEST_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for round in 0..120 {
        // Some leaves have values of all sizes, and others of one.
        let sizes: &[usize] = match round % 4 {
            0 => &[0, 10, 500, 1_000, 1_900, 2_050, 4_500],
            1 => &[30],
            2 => &[250, 270, 290],
            _ => &[1_000, 2_100],
        };
        let mut leaf = if round % 8 == 7 { Leaf::shared() } else { Leaf::default() };
        let mut model: BTreeMap<usize, Arc<KeyValue>> = BTreeMap::new();
        let mut held: Vec<(Leaf, BTreeMap<usize, Arc<KeyValue>>)> = Vec::new();
        for step in 0..600 {
            let key = random.random_range(0..100);
            if random.random_bool(0.35) && !model.is_empty() {
                let index = random.random_range(0..model.len());
                let key = *model.keys().nth(index).expect("a key");
                leaf.remove(index);
                model.remove(&key);
            } else {
                let new = kv(key, sizes[random.random_range(0..sizes.len())]);
                let (replaced, right) = leaf.put(new.clone());
                let before = model.insert(key, new);
                assert_eq!(replaced, before.map_or_else(Weight::default, |kv| Weight::of_one(&kv)));
                if let Some(right) = right {
                    check(&right);
                    let gone = model.split_off(&content(std::slice::from_ref(&right))[0][0].0);
                    assert!(!gone.is_empty() && leaf.len() > 0);
                    assert!(right.iter(0..right.len()).map(|kv| kv.kept()).eq(gone.into_values()));
                }
            }
            check(&leaf);
            assert!(leaf.iter(0..leaf.len()).map(|kv| kv.kept()).eq(model.values().cloned()));
            if step % 50 == 0 {
                held.push((leaf.clone(), model.clone()));
            }
        }
        for (leaf, model) in held {
            check(&leaf);
            assert!(leaf.iter(0..leaf.len()).map(|kv| kv.kept()).eq(model.into_values()), "what is held stays");
        }
    }
}
