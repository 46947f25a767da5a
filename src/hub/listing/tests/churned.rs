//! Lists of maps that change all the time, compared with an ordered map of the standard library: values of all sizes,
//! keys that differ only at their end, everything deleted again, and snapshots that are held meanwhile.

use std::{collections::BTreeMap, sync::Weak};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::super::*;
use crate::{
    hub::KeyMap,
    types::{KeyRange, KeyValueFields, Revision},
};

type Model = BTreeMap<Vec<u8>, Arc<KeyValue>>;

const STEPS: i64 = 6_000;
/// The steps in which a map grows, and those in which it shrinks to nothing.
const GROWS: i64 = 1_200;

fn key(random: &mut SmallRng) -> Vec<u8> {
    let number = random.random_range(0..900_u32);
    match number % 3 {
        // Long, and equal up to the last bytes.
        0 => [&[b'k'; 700][..], format!("{number:03}").as_bytes()].concat(),
        1 => number.to_be_bytes().to_vec(),
        // Each is the beginning of the next ones.
        _ => vec![0; number as usize / 3],
    }
}

fn value(random: &mut SmallRng) -> Vec<u8> {
    let len = match random.random_range(0..400) {
        0 => 1_500_000,
        1..20 => random.random_range(0..6_000),
        20..120 => random.random_range(1_900..2_100),
        120..200 => 0,
        _ => random.random_range(0..400),
    };
    vec![random.random(); len]
}

/// What a list must have.
fn expected(model: &Model, places: Range<usize>, order: Order, bare: bool) -> Vec<u8> {
    let mut kvs: Vec<_> = model.values().skip(places.start).take(places.len()).collect();
    if order == Order::Falling {
        kvs.reverse();
    }
    let mut all = Vec::new();
    for kv in kvs {
        if bare {
            let fields = KeyValueFields { value: Bytes::new(), ..kv.fields() };
            all.extend_from_slice(KeyValue::new(&fields).encoded());
        } else {
            all.extend_from_slice(kv.encoded());
        }
    }
    all
}

/// Takes a list in parts of any size, in both ways of taking, and compares it with the model.
fn compare(map: &KeyMap, model: &Model, pages: &Arc<Pages>, random: &mut SmallRng) {
    assert_eq!(map.len(), model.len());
    let (one, other) = (random.random_range(0..=model.len()), random.random_range(0..=model.len()));
    let places = one.min(other)..one.max(other);
    let order = if random.random() { Order::Rising } else { Order::Falling };
    let bare = random.random();
    let snapshot = Arc::new(Snapshot { map: map.clone(), ..Snapshot::default() });
    let mut listing = Listing::neighbours(snapshot, pages.clone(), places.clone(), order, bare);
    let expected = expected(model, places.clone(), order, bare);
    assert_eq!((listing.len(), listing.encoded_len()), (places.len(), expected.len()));
    let mut all = Vec::new();
    while !listing.is_empty() {
        let left = listing.len();
        let bytes = random.random_range(1..20_000);
        if random.random() {
            listing.take(bytes, |part| all.extend_from_slice(&part));
        } else {
            listing.take_each(bytes, |kv| {
                if bare {
                    let mut copied = BytesMut::new();
                    kv.put_bare(&mut copied);
                    all.extend_from_slice(&copied);
                } else {
                    all.extend_from_slice(kv.encoded());
                }
            });
        }
        assert!(listing.len() < left, "each part has some key-values");
        assert_eq!(listing.encoded_len() + all.len(), expected.len());
    }
    assert!(all == expected, "{places:?} {order:?}, bare: {bare}");
    // A range of keys is found where the model has it.
    let (from, to) = (key(random), key(random));
    if let Ok(range) = KeyRange::from_wire(from.into(), to.into()) {
        let inside = model.keys().filter(|key| range.contains(key)).count();
        let bytes: usize = model.iter().filter(|(key, _)| range.contains(key)).map(|(_, kv)| kv.encoded().len()).sum();
        assert_eq!((map.count(&range), map.weigh(&range)), (inside, (inside, bytes)));
        assert_eq!(map.range(&range).count(), inside);
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "a failure shows the seed")]
fn whatever_is_written_lists_are_those_of_an_ordered_map_and_nothing_is_left_of_what_was_deleted() {
    let seed =
        std::env::var("ETCD_RELAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("ETCD_RELAY_TEST_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for mut map in [KeyMap::default(), KeyMap::sharing()] {
        let (mut model, pages) = (Model::new(), Arc::default());
        let mut held: Vec<(KeyMap, Model)> = Vec::new();
        let mut written: Vec<Weak<KeyValue>> = Vec::new();
        for step in 1..=STEPS {
            let shrinks = step % (2 * GROWS) > GROWS;
            if shrinks && random.random_bool(0.9) {
                // Somewhere, or from one end on.
                let place = match random.random_range(0..3) {
                    0 => 0,
                    1 => model.len().saturating_sub(1),
                    _ => random.random_range(0..model.len().max(1)),
                };
                if let Some(key) = model.keys().nth(place).cloned() {
                    assert!(map.remove(&key));
                    model.remove(&key);
                }
            } else {
                let fields = KeyValueFields {
                    key: key(&mut random).into(),
                    value: value(&mut random).into(),
                    mod_revision: Revision::new(step),
                    ..KeyValueFields::default()
                };
                let new = Arc::new(KeyValue::new(&fields));
                written.push(Arc::downgrade(&new));
                map.insert(new.clone());
                model.insert(fields.key.to_vec(), new);
            }
            if step % 20 == 0 {
                compare(&map, &model, &pages, &mut random);
            }
            if step % 250 == 0 {
                held.push((map.clone(), model.clone()));
                let (map, model) = &held[random.random_range(0..held.len())];
                compare(map, model, &pages, &mut random);
            }
        }
        for (map, model) in held {
            compare(&map, &model, &pages, &mut random);
            assert!(map.range(&KeyRange::prefix(Bytes::new())).map(|kv| kv.kept()).eq(model.into_values()));
        }
        while let Some((key, _)) = model.pop_last() {
            assert!(map.remove(&key) && !map.remove(&key));
        }
        assert_eq!((map.len(), map.bytes()), (0, 0));
        assert!(written.iter().all(|kv| kv.strong_count() == 0), "an empty map keeps no key-value");
        map.leaves(0..1, |leaf, _| {
            assert_eq!(leaf.len(), 0);
            true
        });
        map.insert(KeyValue::new(&KeyValueFields { key: "again".into(), ..KeyValueFields::default() }));
        assert!(map.get(b"again").is_some() && map.len() == 1);
    }
}
