//! A watch shows the same as etcd's own listings at the same indexes, whatever is written.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{Follower, over_one, store::Store};
use crate::support::eventually;

/// Number of concurrent writers, and writes of each.
const WRITERS: u64 = 3;
const WRITES: usize = 400;

#[tokio::test]
async fn a_watch_tells_random_writes_of_all_kinds_step_by_step() {
    let seed: u64 =
        std::env::var("ETCD_RELAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("ETCD_RELAY_TEST_SEED={seed}");
    let (relay, store, _etcd) = over_one().await;
    let mut follower = Follower::from_nothing(&relay, "/d/").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, stop) = (store.clone(), stop.clone());
            tokio::spawn(async move { write(&store, seed.wrapping_add(writer), &stop).await })
        })
        .collect();
    let mut compared = 0;
    while writers.iter().any(|writer| !writer.is_finished()) {
        compare(&mut follower, &store).await;
        compared += 1;
    }
    for writer in writers {
        writer.await.expect("a writer");
    }
    compare(&mut follower, &store).await;
    assert!(compared > 5, "only {compared} comparisons while it was written");
    assert_eq!(relay.metric_of("etcd_relay_upstream_resyncs_total", "reason=\"compacted\"").await, 0.0);
}

/// Compares the follower at the index of a listing with the listing. Refreshes change indexes without events.
async fn compare(follower: &mut Follower, store: &Store) {
    let (index, listed) = store.list("/d").await;
    // Events after the listing come as well, so the state in between is compared.
    let mut kept = follower.keys.clone();
    while follower.revision < index {
        follower.watch.progress();
        let response = follower.watch.next().await;
        assert!(!response.canceled, "the watch was canceled: {response:?}");
        for event in &response.events {
            let after = event.kv.as_ref().expect("a key").mod_revision > index;
            if after && follower.revision <= index {
                kept = follower.keys.clone();
            }
            follower.apply(event);
        }
        if crate::support::client::is_progress(&response) {
            let revision = crate::support::client::header_revision(&response);
            follower.revision = follower.revision.max(revision);
        }
        if follower.revision <= index {
            kept = follower.keys.clone();
        }
    }
    if follower.revision == index {
        kept = follower.keys.clone();
    }
    let values = |keys: &super::store::Keys| -> Vec<(String, String)> {
        keys.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect()
    };
    assert_eq!(values(&kept), values(&listed), "at {index}");
}

/// Writes in all ways that v2 has. Most writes may fail.
async fn write(store: &Store, seed: u64, stop: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    let names = ["a", "b", "c", "_h", "a/x", "a/y", "b/x/1", "b/x/2", "c/_h/z", "a b", "é"];
    for round in 0..WRITES {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let name = names.choose(&mut random).expect("names");
        let key = format!("/d/{name}").replace('é', "%C3%A9");
        let value = format!("<{round}>\n\"&");
        let previous = format!("<{}>\n\"&", round.saturating_sub(1));
        let (method, target, fields): (&str, String, Vec<(&str, &str)>) = match random.random_range(0..20) {
            0..=6 => ("PUT", key, vec![("value", &value)]),
            7 => ("PUT", key, vec![("value", &value), ("prevExist", "false")]),
            8 => ("PUT", key, vec![("value", &value), ("prevExist", "true")]),
            9 => ("PUT", key, vec![("value", &value), ("prevValue", &previous)]),
            10 => ("PUT", key, vec![("value", &value), ("ttl", "1")]),
            11 => ("PUT", key, vec![("dir", "true"), ("ttl", "1")]),
            12 => ("PUT", key, vec![("dir", "true")]),
            13 => ("PUT", key, vec![("ttl", "2"), ("refresh", "true"), ("prevExist", "true")]),
            14 => ("POST", key, vec![("value", &value)]),
            15 => ("DELETE", key, vec![]),
            16 => ("DELETE", format!("{key}?recursive=true"), vec![]),
            17 => ("PUT", format!("/elsewhere/{}", round % 7), vec![("value", &value)]),
            18 if random.random_range(0..8) == 0 => ("DELETE", "/d?recursive=true".to_owned(), vec![]),
            _ => ("DELETE", format!("{key}?dir=true"), vec![]),
        };
        let answer = store.ask(method, &target, &fields).await;
        // etcd 3.5 has no better error for the update of a directory.
        let of_directory = answer.body["cause"].as_str().is_some_and(|cause| cause.ends_with(": Not a file ()"));
        assert!(answer.status < 500 || of_directory, "{method} {target} {fields:?}: {answer:?}");
    }
}

#[tokio::test]
async fn six_hundred_keys_that_expire_at_once_are_told_one_by_one() {
    let (relay, store, _etcd) = over_one().await;
    let mut follower = Follower::from_nothing(&relay, "/d/").await;
    let mut written = 0;
    for key in 0..600 {
        written = store.put(&format!("/d/{key}"), &[("value", "x"), ("ttl", "3")]).await.index;
    }
    follower.reach(written).await;
    let listed = eventually("all keys expire", async || {
        let (index, keys) = store.list("/d").await;
        keys.is_empty().then_some(index)
    })
    .await;
    follower.reach(listed).await;
    assert_eq!(follower.keys.len(), 0, "{:?}", follower.keys);
}

#[tokio::test]
async fn the_end_of_a_directory_above_is_the_end_of_each_key_in_one_revision() {
    let (relay, store, _etcd) = over_one().await;
    let mut follower = Follower::from_nothing(&relay, "/d/").await;
    for key in ["a", "b/c", "b/d/e"] {
        store.set(&format!("/d/{key}"), "x").await;
    }
    let at = store.delete("/d").await;
    follower.reach(at).await;
    assert_eq!(follower.keys.len(), 0);
    let record = follower.watch.record();
    let deletes: Vec<_> = record
        .iter()
        .flat_map(|recorded| recorded.response.events.clone())
        .filter(|event| event.r#type == 1)
        .map(|event| event.kv.expect("a key"))
        .collect();
    let keys: Vec<_> = deletes.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
    assert_eq!(keys, ["/d/a", "/d/b/c", "/d/b/d/e"]);
    assert!(deletes.iter().all(|kv| kv.mod_revision == at), "{deletes:?}");
}
