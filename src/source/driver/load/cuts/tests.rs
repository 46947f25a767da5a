//! Reads made-up key spaces from a model of etcd, and counts the requests and the keys that etcd looks at.

use std::{
    collections::BTreeSet,
    ops::Bound::{Excluded, Included, Unbounded},
};

use proptest::prelude::*;

use super::*;
use crate::types::{Header, KeyValueFields, RangeEnd};

/// What reading a range has cost.
#[derive(Debug, Default, PartialEq)]
struct Cost {
    requests: usize,
    /// Keys that etcd looked at: all keys of each requested range.
    looked_at: usize,
}

impl Cost {
    /// The cost of `keys` keys where every request goes to the end of the range.
    fn of_open_requests(keys: usize, limits: impl Iterator<Item = usize>) -> Self {
        let (mut cost, mut left) = (Self::default(), keys);
        for limit in limits {
            cost.requests += 1;
            cost.looked_at += left;
            left = left.saturating_sub(limit);
            if left == 0 {
                break;
            }
        }
        cost
    }
}

/// Answers as etcd does.
fn answer(keys: &BTreeSet<Bytes>, request: &Request, counts: bool, most: usize) -> (Page, usize) {
    let end = match request.range.end() {
        RangeEnd::Before(end) => Excluded(end),
        RangeEnd::Single => Included(request.range.start()),
        RangeEnd::Unbounded => Unbounded,
    };
    let mut found = keys.range::<Bytes, _>((Included(request.range.start()), end));
    let fields = |key: &Bytes| KeyValueFields { key: key.clone(), ..KeyValueFields::default() };
    let kvs: Vec<_> = found.by_ref().take(request.limit.min(most)).map(fields).collect();
    let left_out = found.count();
    let count = kvs.len() + left_out;
    (Page { header: Header::default(), kvs, more: left_out > 0, count: counts.then_some(count) }, count)
}

/// Reads everything, with values of `value` bytes, and checks that each key is read once and in order.
fn read(keys: &BTreeSet<Bytes>, range: &KeyRange, value: usize, counts: bool, most: usize) -> Cost {
    let (mut cuts, mut cost) = (Cuts::new(range.clone()), Cost::default());
    let mut expected = keys.iter().filter(|key| range.contains(key));
    while let Some(request) = cuts.next() {
        let (page, looked_at) = answer(keys, &request, counts, most);
        cost.requests += 1;
        cost.looked_at += looked_at;
        page.kvs.iter().for_each(|kv| assert_eq!(Some(&kv.key), expected.next()));
        let bytes = page.kvs.iter().map(|kv| kv.key.len() + value).sum();
        assert!(cuts.took(&request, &page, bytes));
    }
    assert_eq!(expected.next(), None, "all were read");
    cost
}

fn everything() -> KeyRange {
    KeyRange::prefix(Bytes::new())
}

const KEYS: usize = 200_000;
/// The limits of requests while values are small.
fn limits() -> impl Iterator<Item = usize> {
    [64, 512, 4096].into_iter().chain(std::iter::repeat(PAGE_KEYS.1))
}

fn numbered(keys: usize, key: impl Fn(usize) -> String) -> BTreeSet<Bytes> {
    (0..keys).map(|number| key(number).into()).collect()
}

/// Bytes that look random and are the same each time.
fn hashed(number: usize) -> u64 {
    let mut hash = number as u64 ^ 0x9e37_79b9_7f4a_7c15;
    for _ in 0..3 {
        hash = (hash ^ hash >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    hash ^ hash >> 29
}

#[test]
fn keys_that_are_named_in_any_usual_manner_are_looked_at_about_twice() {
    let prefix = "p".repeat(200);
    let manners: [(&str, BTreeSet<Bytes>); 8] = [
        ("counted", numbered(KEYS, |number| format!("/bench/key/{number:09}"))),
        ("counted without zeros", numbered(KEYS, |number| format!("/a/key-{number}"))),
        ("counted in hexadecimal", numbered(KEYS, |number| format!("/a/{number:08x}"))),
        ("random", numbered(KEYS, |number| format!("/a/{:016x}", hashed(number)))),
        ("random bytes", (0..KEYS).map(|number| hashed(number).to_be_bytes().to_vec().into()).collect()),
        ("long", numbered(KEYS, |number| format!("/{prefix}/{number:09}"))),
        ("random in a few folders", numbered(KEYS, |number| format!("/f{}/{:016x}", number % 5, hashed(number)))),
        (
            "files of folders",
            numbered(KEYS, |number| format!("/pods/ns-{:03}/pod-{:05}/status", number % 200, number / 200)),
        ),
    ];
    let open = Cost::of_open_requests(KEYS, limits());
    for (manner, keys) in manners {
        let cost = read(&keys, &everything(), 10, true, usize::MAX);
        // The first request looks at all of them.
        let fits = cost.looked_at <= 7 * KEYS / 2 && cost.requests <= 2 * open.requests;
        assert!(fits, "{manner}: {cost:?}, and with open requests {open:?}");
    }
}

#[test]
fn the_cost_of_a_key_does_not_grow_with_the_keys() {
    let cost = |keys: usize| {
        let numbers = numbered(keys, |number| format!("/bench/key/{number:09}"));
        read(&numbers, &everything(), 10, true, usize::MAX).looked_at as f64 / keys as f64
    };
    let (few, many) = (cost(100_000), cost(800_000));
    assert!(many <= few * 1.1, "{few} and {many} looks a key");
}

#[test]
fn keys_that_are_spread_to_mislead_cost_no_more_than_with_open_requests() {
    // Distances that change by powers of two; dense spots in a wide space; keys within keys.
    let spread: [(&str, BTreeSet<Bytes>); 4] = [
        (
            "growing distances",
            (0..KEYS).map(|n| Bytes::from(((n as u128) << (n * 100 / KEYS)).to_be_bytes().to_vec())).collect(),
        ),
        (
            "falling distances",
            (0..KEYS)
                .map(|n| Bytes::from((u128::MAX - ((n as u128) << (n * 100 / KEYS))).to_be_bytes().to_vec()))
                .collect(),
        ),
        (
            "spots",
            (0..KEYS)
                .map(|n| Bytes::from(((hashed(n / 500) as u128) << 64 | n as u128).to_be_bytes().to_vec()))
                .collect(),
        ),
        ("within each other", (0..KEYS).map(|n| Bytes::from(format!("{}{n:02}", "k/".repeat(n % 97)))).collect()),
    ];
    for (manner, keys) in spread {
        let open = Cost::of_open_requests(keys.len(), limits());
        let cost = read(&keys, &everything(), 10, true, usize::MAX);
        assert!(cost.looked_at <= open.looked_at + keys.len(), "{manner}: {cost:?}, and with open requests {open:?}");
        assert!(cost.requests <= 8 * open.requests, "{manner}: {cost:?}, and with open requests {open:?}");
    }
}

#[test]
fn an_upstream_that_does_not_count_is_asked_as_few_requests_as_possible() {
    let keys = numbered(KEYS, |number| format!("/bench/key/{number:09}"));
    assert_eq!(read(&keys, &everything(), 10, false, usize::MAX), Cost::of_open_requests(KEYS, limits()));
}

#[test]
fn pages_follow_the_size_of_values_and_grow_in_steps() {
    let keys = numbered(20_000, |number| format!("/k/{number:09}"));
    let mut cuts = Cuts::new(everything());
    let mut sizes = Vec::new();
    for value in [100, 100, 1 << 20, 1 << 20, 100, 100] {
        let request = cuts.next().expect("more");
        let (page, _) = answer(&keys, &request, false, usize::MAX);
        sizes.push(request.limit);
        assert!(cuts.took(&request, &page, page.kvs.len() * value));
    }
    assert_eq!(sizes, [64, 512, 4096, 4, 4, 32], "at most eight times as many as before, and about 4 MiB");
    let request = cuts.next().expect("more");
    assert!(cuts.ask_less(&request));
    let less = cuts.next().expect("the same again");
    assert_eq!((less.range.clone(), less.limit), (request.range, request.limit / 8));
    let mut one = less;
    while cuts.ask_less(&one) {
        one = cuts.next().expect("the same again");
    }
    assert_eq!(one.limit, 1, "a single key is accepted whatever its size");
}

proptest! {
    /// Whatever the keys are, and however few of them a page has.
    #[test]
    fn everything_is_read_once_and_in_order(
        keys in prop::collection::btree_set(prop::collection::vec(prop::sample::select(&b"\0/09az\xff"[..]), 0..12), 0..3000),
        start in prop::collection::vec(prop::sample::select(&b"\0/09az\xff"[..]), 0..3),
        most in prop::sample::select(&[1usize, 5, 40, 10_000][..]),
        value in prop::sample::select(&[1usize, 100_000][..]),
    ) {
        let keys: BTreeSet<Bytes> = keys.into_iter().map(Bytes::from).collect();
        read(&keys, &KeyRange::prefix(start.clone().into()), value, true, most);
        read(&keys, &KeyRange::single(start.into()), value, true, most);
    }
}
