//! Compares a listing with a plain sorted list: random rows are added and removed, and both are compared after each
//! step.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

/// The content of a row: group, order, etcd key, text.
type Plain = (Option<u8>, u8, u16, u8);

fn row(shape: Shape, (group, order, key, text): Plain) -> Arc<Row> {
    let order = format!("o{order}");
    let json = match shape {
        Shape::Object => format!("\"{order}\":{text}"),
        _ => text.to_string(),
    };
    let group = group.map(|group| format!("g{group}"));
    let group = group.as_ref().map(String::as_bytes);
    let key = Bytes::from(format!("{key:05}"));
    let pods = Pods { all: u64::from(text), alive: u64::from(text % 2) };
    Arc::new(Row::new(group, order.as_bytes(), key, json.into(), vec![text], pods))
}

/// The visible rows: the last of each group and order.
fn shown(mut rows: Vec<Plain>) -> Vec<Plain> {
    let name = |(group, order, key, _): &Plain| (group.map(|g| format!("g{g}")), format!("o{order}"), *key);
    rows.sort_by_key(name);
    let mut shown: Vec<Plain> = Vec::new();
    for row in rows {
        if shown.last().is_some_and(|last| (last.0, last.1) == (row.0, row.1)) {
            shown.pop();
        }
        shown.push(row);
    }
    shown
}

fn json(listing: &Listing, shape: Shape) -> String {
    let all: Vec<u8> = listing.chunks().iter().flat_map(|chunk| chunk.json(shape).to_vec()).collect();
    String::from_utf8(all).expect("text")
}

fn plain_json(rows: &[Plain], shape: Shape) -> String {
    let mut json = String::new();
    match shape {
        Shape::Object => rows.iter().for_each(|(_, order, _, text)| json += &format!(",\"o{order}\":{text}")),
        Shape::List | Shape::PackedList => rows.iter().for_each(|(.., text)| json += &format!(",{text}")),
        Shape::Groups => {
            for group in rows.chunk_by(|row, next| row.0 == next.0) {
                let texts: Vec<String> = group.iter().map(|(.., text)| text.to_string()).collect();
                json += &format!(",\"g{}\":[{}]", group[0].0.unwrap_or_default(), texts.join(","));
            }
        }
    }
    json
}

#[test]
fn it_shows_what_a_plain_sorted_list_would() {
    for (shape, seed) in [(Shape::Object, 1), (Shape::List, 2), (Shape::Groups, 3), (Shape::Groups, 4)] {
        let mut random = StdRng::seed_from_u64(seed);
        let mut listing = Listing::default();
        let mut plain: Vec<Plain> = Vec::new();
        let mut digests = std::collections::HashMap::new();
        for step in 0..1_200 {
            let grow =
                plain.len() < 20 || (plain.len() < 400 && random.random_bool(if step % 400 < 280 { 0.7 } else { 0.3 }));
            if grow {
                let group = (shape == Shape::Groups).then(|| random.random_range(0..20));
                let (order, key) = (random.random_range(0..200), random.random_range(0..50_000));
                let new = (group, order, key, random.random_range(0..5));
                if plain.iter().any(|old| (old.0, old.1, old.2) == (new.0, new.1, new.2)) {
                    continue;
                }
                listing.insert(row(shape, new));
                plain.push(new);
            } else {
                let gone = plain.swap_remove(random.random_range(0..plain.len()));
                listing.remove(&row(shape, gone));
            }
            let shown = shown(plain.clone());
            let want = plain_json(&shown, shape);
            assert_eq!(json(&listing, shape), want, "{shape:?}, seed {seed}, step {step}");
            let pods = plain.iter().fold(0, |sum, (.., text)| sum + u64::from(*text));
            assert_eq!(listing.pods().all, pods, "{shape:?}, seed {seed}, step {step}");
            let known = digests.entry(want).or_insert_with(|| listing.digest());
            assert_eq!(*known, listing.digest(), "{shape:?}, seed {seed}, step {step}");
            let most = listing.chunks().iter().map(|chunk| chunk.rows.len()).max().unwrap_or_default();
            assert!(most <= CHUNK_MAX + 60, "a chunk has {most} rows, seed {seed}, step {step}");
        }
        assert_eq!(listing.rows, plain.len());
        for gone in plain.drain(..) {
            listing.remove(&row(shape, gone));
        }
        assert!(listing.is_empty() && listing.chunks().is_empty() && listing.bytes() == 0, "{shape:?}");
    }
}

#[test]
fn a_change_leaves_the_other_chunks_as_they_are() {
    let mut listing = Listing::default();
    for order in 0..200 {
        listing.insert(row(Shape::Object, (None, order, 0, 1)));
    }
    let before = listing.clone();
    listing.remove(&row(Shape::Object, (None, 100, 0, 1)));
    listing.insert(row(Shape::Object, (None, 100, 0, 2)));
    let shared = |chunk: &&Arc<Chunk>| before.chunks().iter().any(|other| Arc::ptr_eq(other, chunk));
    assert_eq!(listing.chunks().len() - listing.chunks().iter().filter(shared).count(), 1);
    assert!(listing.chunks().len() >= 200 / CHUNK_MAX);
    assert_ne!(listing.digest(), before.digest());
}

#[test]
fn the_digest_is_of_what_is_shown_in_its_order() {
    let digest = |rows: &[(u8, u8)]| {
        let mut listing = Listing::default();
        rows.iter().for_each(|(order, text)| listing.insert(row(Shape::List, (None, *order, 0, *text))));
        listing.digest()
    };
    let shown = digest(&[(1, 7), (2, 8)]);
    // The etcd keys make no difference.
    assert_eq!(shown, digest(&[(5, 8), (4, 7)]));
    let others: [&[(u8, u8)]; 6] =
        [&[], &[(1, 7)], &[(1, 8), (2, 7)], &[(1, 7), (2, 7)], &[(1, 78)], &[(1, 7), (2, 8), (3, 8)]];
    for other in others {
        assert_ne!(shown, digest(other), "{other:?}");
    }
}

#[test]
fn the_digest_does_not_tell_how_rows_are_parted() {
    let rows: Vec<_> = (0..200).map(|order| row(Shape::List, (None, order, 0, order))).collect();
    let (mut forwards, mut backwards) = (Listing::default(), Listing::default());
    rows.iter().for_each(|row| forwards.insert(row.clone()));
    rows.iter().rev().for_each(|row| backwards.insert(row.clone()));
    let sizes = |listing: &Listing| listing.chunks().iter().map(|chunk| chunk.rows.len()).collect::<Vec<_>>();
    assert_ne!(sizes(&forwards), sizes(&backwards));
    assert_eq!(forwards.digest(), backwards.digest());
}
