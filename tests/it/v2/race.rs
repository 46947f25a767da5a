//! Writers at three relays and v3 clients use the same keys, while relays and etcd are killed: nothing is lost or
//! duplicated, and no key expires too early or stays.
//!
//! Seeds are printed. `ETCD_RELAY_RACE_SECONDS` extends the run beyond its ten seconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_relay::pb::etcdserverpb::{
    Compare, RangeRequest, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinSet;

use super::store::{Answer, Store};
use crate::support::{
    etcd::Etcd,
    eventually,
    kv::{self, Kv},
    relay::{Relay, RelayCommand},
};

/// Relays whose clients write the same keys.
const FACADES: usize = 3;
/// Writers of each kind: counters, queues, locks.
const EACH: usize = 3;
/// TTL of the keys that expire, in seconds.
const TTL: u64 = 2;
/// How long a key may outlive its TTL while relays and etcd restart: as long as its lease without a relay.
const LATE: Duration = Duration::from_secs(10);

/// What all writers share.
#[derive(Default)]
struct Shared {
    addrs: Mutex<Vec<String>>,
    stop: AtomicBool,
    /// Values of the counter that a writer was told it wrote.
    counted: Mutex<Vec<u64>>,
    /// Writes of the counter whose result is unknown.
    uncertain: AtomicU64,
    /// In-order names in the order in which they were given, and those whose keys may have been deleted.
    named: Mutex<Vec<String>>,
    taken: Mutex<BTreeSet<String>>,
    /// Keys that expire, with the latest time of that, counted from when their writer got its answer.
    ends: Mutex<BTreeMap<String, Instant>>,
    /// The longest time that a key existed after its end.
    late: Mutex<Duration>,
    holders: AtomicU64,
    locked: AtomicU64,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn store(&self, random: &mut StdRng) -> Store {
        let addrs = self.addrs.lock();
        Store::at(&addrs[random.random_range(0..addrs.len())])
    }

    async fn ask(&self, random: &mut StdRng, method: &str, target: &str, fields: &[(&str, &str)]) -> Option<Answer> {
        let store = self.store(random);
        match store.try_ask(method, target, fields).await {
            Ok(answer) if answer.status < 500 && !answer.body.is_null() => Some(answer),
            // The relay or etcd is gone, so the write may have been done.
            _ => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                None
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_on_three_facades_and_v3_clients_lose_nothing_while_relays_and_etcd_are_killed() {
    let seed: u64 =
        std::env::var("ETCD_RELAY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("ETCD_RELAY_TEST_SEED={seed}");
    let seconds = std::env::var("ETCD_RELAY_RACE_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(10);
    let mut etcd = Etcd::start().await;
    let mut relays = Vec::new();
    for _ in 0..FACADES {
        relays.push(facade(&etcd).await);
    }
    let shared = Arc::new(Shared::default());
    *shared.addrs.lock() = relays.iter().map(|(_, addr)| addr.clone()).collect();
    assert_eq!(Store::at(&relays[0].1).put("/race/counter", &[("value", "0")]).await.status, 201);
    let mut writers = JoinSet::new();
    for writer in 0..EACH as u64 {
        let random = |kind: u64| StdRng::seed_from_u64(seed ^ (kind << 32) ^ writer);
        writers.spawn(count(shared.clone(), random(1)));
        writers.spawn(name(shared.clone(), random(2)));
        writers.spawn(lock(shared.clone(), random(3), writer));
    }
    writers.spawn(expire(shared.clone(), StdRng::seed_from_u64(seed)));
    writers.spawn(outlive(shared.clone(), Kv::connect(&etcd.endpoint()).await));
    for _ in 0..2 {
        writers.spawn(count_over_v3(shared.clone(), Kv::connect(&etcd.endpoint()).await));
    }
    let mut random = StdRng::seed_from_u64(!seed);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut kills = 0;
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(random.random_range(500..1_500))).await;
        kills += 1;
        if kills % 4 == 2 {
            etcd.kill();
            etcd.restart().await;
        } else {
            let at = random.random_range(0..FACADES);
            // The old one is killed when it is dropped.
            let fresh = facade(&etcd).await;
            shared.addrs.lock()[at] = fresh.1.clone();
            relays[at] = fresh;
        }
    }
    shared.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = writers.join_next().await {
        ended.expect("a writer");
    }
    assert!(kills > 2);
    judge(&shared, &Store::at(&relays[0].1)).await;
    for (relay, _) in &relays {
        relay.assert_no_panic();
    }
}

async fn facade(etcd: &Etcd) -> (Relay, String) {
    let mut relay = RelayCommand::serve(&[etcd.endpoint()]).arg("--listen-v2=127.0.0.1:0").start().await;
    let addr = relay.addr_of("v2").await;
    (relay, addr)
}

async fn judge(shared: &Shared, store: &Store) {
    let last = eventually("the counter is read", async || {
        let answer = store.try_ask("GET", "/race/counter?quorum=true", &[]).await.ok()?;
        answer.body["node"]["value"].as_str()?.parse::<u64>().ok()
    })
    .await;
    let counted = shared.counted.lock().clone();
    let uncertain = shared.uncertain.load(Ordering::SeqCst);
    let distinct: BTreeSet<u64> = counted.iter().copied().collect();
    assert_eq!(distinct.len(), counted.len(), "two writers were told that they wrote the same value");
    let sure = counted.len() as u64;
    println!("{sure} counted, {uncertain} uncertain, {last} at the end");
    assert!(sure > 20 && sure <= last && last <= sure + uncertain, "{sure} counted, {uncertain} uncertain, but {last}");
    let named = shared.named.lock().clone();
    let distinct: BTreeSet<&String> = named.iter().collect();
    assert!(
        distinct.len() == named.len() && named.len() > 20,
        "{} of {} names are distinct",
        distinct.len(),
        named.len()
    );
    let (_, listed) = store.list("/race/queue").await;
    let taken = shared.taken.lock().clone();
    let lost: Vec<_> = named.iter().filter(|name| !listed.contains_key(*name) && !taken.contains(*name)).collect();
    assert!(lost.is_empty(), "names that are not there: {lost:?}");
    let (ends, late) = (shared.ends.lock().len(), *shared.late.lock());
    let locked = shared.locked.load(Ordering::SeqCst);
    println!(
        "{} names, {} of them taken; {locked} locks; {ends} keys with an end, the latest {late:?} after it",
        named.len(),
        taken.len()
    );
    assert!(late < LATE, "a key was there {late:?} after its end");
    assert!(shared.locked.load(Ordering::SeqCst) > 3, "the lock was taken {:?} times", shared.locked);
    eventually("every key whose time has come is gone", async || {
        store.list("/race/ttl").await.1.is_empty().then_some(())
    })
    .await;
}

/// Counts by compare and swap.
async fn count(shared: Arc<Shared>, mut random: StdRng) {
    while shared.goes_on() {
        let Some(read) = shared.ask(&mut random, "GET", "/race/counter?quorum=true", &[]).await else { continue };
        let node = &read.body["node"];
        let value: u64 = node["value"].as_str().and_then(|value| value.parse().ok()).expect("a number");
        let next = (value + 1).to_string();
        let condition = if random.random_bool(0.5) {
            ("prevIndex", node["modifiedIndex"].to_string())
        } else {
            ("prevValue", value.to_string())
        };
        let fields = [("value", &*next), (condition.0, &*condition.1)];
        match shared.ask(&mut random, "PUT", "/race/counter", &fields).await {
            Some(answer) if answer.status == 200 => shared.counted.lock().push(value + 1),
            Some(answer) => assert_eq!(answer.body["errorCode"], 101, "{answer:?}"),
            None => drop(shared.uncertain.fetch_add(1, Ordering::SeqCst)),
        }
    }
}

/// The same as a v3 client.
async fn count_over_v3(shared: Arc<Shared>, kv: Kv) {
    let key = "/race/counter";
    while shared.goes_on() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let range = RangeRequest { key: key.into(), ..Default::default() };
        let Ok(read) = kv.raw.clone().range(range).await else { continue };
        let Some(read) = read.into_inner().kvs.pop() else { continue };
        let value: u64 = String::from_utf8_lossy(&read.value).parse().expect("a number");
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.into(),
            target_union: Some(TargetUnion::ModRevision(read.mod_revision)),
            ..Default::default()
        };
        let success = vec![kv::op_put(key, (value + 1).to_string())];
        match kv.raw.clone().txn(TxnRequest { compare: vec![compare], success, failure: Vec::new() }).await {
            Ok(answer) if answer.get_ref().succeeded => shared.counted.lock().push(value + 1),
            Ok(_) => {}
            Err(_) => drop(shared.uncertain.fetch_add(1, Ordering::SeqCst)),
        }
    }
}

/// Takes in-order names.
async fn name(shared: Arc<Shared>, mut random: StdRng) {
    let mut last = String::new();
    while shared.goes_on() {
        let Some(made) = shared.ask(&mut random, "POST", "/race/queue", &[("value", "x")]).await else { continue };
        assert_eq!(made.status, 201, "{made:?}");
        let name = made.body["node"]["key"].as_str().expect("a name").to_owned();
        assert!(name > last, "{name} came after {last}");
        last.clone_from(&name);
        shared.named.lock().push(name.clone());
        // A name is never used again, even if its key is gone.
        if random.random_bool(0.3) {
            shared.taken.lock().insert(name.clone());
            let taken = shared.ask(&mut random, "DELETE", &name, &[]).await;
            assert!(taken.is_none_or(|taken| matches!(taken.status, 200 | 404)), "{name}");
        }
    }
}

/// Takes and releases a lock like libkv.
async fn lock(shared: Arc<Shared>, mut random: StdRng, me: u64) {
    let me = me.to_string();
    while shared.goes_on() {
        let begun = Instant::now();
        let fields = [("value", &*me), ("prevExist", "false"), ("ttl", "3")];
        let Some(taken) = shared.ask(&mut random, "PUT", "/race/lock", &fields).await else { continue };
        if taken.status != 201 {
            assert_eq!(taken.body["errorCode"], 105, "{taken:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        // A client whose answer came too late does not use the lock.
        if begun.elapsed() < Duration::from_secs(1) {
            assert_eq!(shared.holders.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock");
            tokio::time::sleep(Duration::from_millis(30)).await;
            // The time is over for a client that was delayed by the machine.
            if begun.elapsed() < Duration::from_secs(3) {
                shared.locked.fetch_add(1, Ordering::SeqCst);
            }
            shared.holders.fetch_sub(1, Ordering::SeqCst);
        }
        let index = taken.body["node"]["modifiedIndex"].to_string();
        shared.ask(&mut random, "DELETE", &format!("/race/lock?prevIndex={index}"), &[]).await;
    }
}

/// Creates keys with a TTL and checks that none expires too early.
async fn expire(shared: Arc<Shared>, mut random: StdRng) {
    for key in 0.. {
        if !shared.goes_on() {
            return;
        }
        let target = format!("/race/ttl/{key}");
        let begun = Instant::now();
        let ttl = TTL.to_string();
        let Some(made) = shared.ask(&mut random, "PUT", &target, &[("value", "x"), ("ttl", &ttl)]).await else {
            continue;
        };
        assert_eq!(made.status, 201, "{made:?}");
        shared.ends.lock().insert(target.clone(), Instant::now() + Duration::from_secs(TTL));
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_900))).await;
        let read = shared.ask(&mut random, "GET", &format!("{target}?quorum=true"), &[]).await;
        if begun.elapsed() < Duration::from_secs(TTL)
            && let Some(read) = read
        {
            assert_eq!(read.status, 200, "{target} ended {:?} after it was made for {TTL} s", begun.elapsed());
        }
    }
}

/// Measures how long keys exist after their end. While etcd is away, this is measured when it is back.
async fn outlive(shared: Arc<Shared>, kv: Kv) {
    while shared.goes_on() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let range = RangeRequest { key: "/race/ttl/".into(), range_end: "/race/ttl0".into(), ..Default::default() };
        let asked = Instant::now();
        let Ok(read) = kv.raw.clone().range(range).await else { continue };
        let ends = shared.ends.lock();
        let late = read.get_ref().kvs.iter().filter_map(|kv| {
            let end = ends.get(std::str::from_utf8(&kv.key).ok()?)?;
            Some(asked.saturating_duration_since(*end))
        });
        let late = late.max().unwrap_or_default();
        let mut latest = shared.late.lock();
        *latest = late.max(*latest);
    }
}
