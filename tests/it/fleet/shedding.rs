//! A relay that has all clients, for example after a restart of the other one, asks clients to leave until both have
//! similar shares.
//!
//! The shares are printed; the limits in time are tested in `tests/fleet_sim`.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use etcd_relay::pb::etcdserverpb::RangeRequest;
use tokio::task::JoinSet;

use super::{
    RELAYS, advertising,
    rolling::{Next, Seen, is_full, watch},
};
use crate::support::{
    etcd::Etcd,
    eventually, eventually_within, free_port,
    kv::{self, Kv},
    patience,
    relay::{Relay, RelayCommand},
};

/// How many connections a relay has asked to leave because it had more than its share.
async fn asked(relay: &Relay) -> f64 {
    relay.metric_of("etcd_relay_connections_asked_to_leave_total", r#"port="grpc",reason="share""#).await
}

/// The published numbers of the relays' connections.
async fn loads(etcd: &Etcd) -> Vec<(String, String)> {
    let prefix = format!("{RELAYS}.connections/");
    let (key, range_end) = (kv::bytes(&prefix), kv::prefix_end(&prefix));
    let kvs =
        Kv::connect(&etcd.endpoint()).await.range(RangeRequest { key, range_end, ..Default::default() }).await.kvs;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    kvs.into_iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_has_everybody_sheds_to_one_that_comes_back() {
    let clients = if is_full() { 2_000 } else { 40 };
    let etcd = Etcd::start().await;
    let resolver = format!("--resolver-prefix={RELAYS}");
    let (full, full_url) = advertising(&etcd, &[&resolver]).await;
    let empty_addr = format!("127.0.0.1:{}", free_port());
    let empty_url = format!("http://{empty_addr}");
    let endpoints = [full.endpoint(), empty_url.clone()];
    let seen = Arc::new(Seen::default());
    let kv = Kv::connect(&etcd.endpoint()).await;
    let from = kv.revision().await + 1;
    let mut watching = JoinSet::new();
    for _ in 0..clients {
        let goes = if is_full() { Next::Any } else { Next::Other };
        watching.spawn(watch(endpoints.clone(), 0, from, seen.clone(), goes));
    }
    let at = |relay: usize| seen.at[relay].load(Ordering::SeqCst);
    eventually("all are at the one relay", async || (at(0) == clients).then_some(())).await;
    let connected = seen.connects.lock().len();
    let empty = RelayCommand::serve(&etcd.endpoints())
        .prefix("/a/")
        .listen_grpc(&empty_addr)
        .arg(&resolver)
        .arg(&format!("--advertise-client-url={empty_url}"))
        .start()
        .await;
    let begun = Instant::now();
    let mut shares = Vec::new();
    let even = async || {
        if shares.len() as u64 <= begun.elapsed().as_secs() / 5 {
            shares.push((at(0), at(1), asked(&full).await, asked(&empty).await));
        }
        let all = at(0) + at(1);
        (all == clients && at(0).abs_diff(at(1)) * 5 <= all / 2).then_some(())
    };
    eventually_within(patience().max(Duration::from_secs(if is_full() { 180 } else { 60 })), "even shares", even).await;
    let took = begun.elapsed();
    println!("{clients} clients; even after {took:?}; every 5 s: shares, and how many were asked to leave: {shares:?}");
    let (sent, back) = (asked(&full).await, asked(&empty).await);
    assert!(sent >= clients as f64 * 0.4, "{sent} were asked to leave");
    // On a busy machine, a relay may learn of the other's clients late.
    assert!(back * 4.0 <= sent, "{back} were sent back");
    assert!((empty.metric("etcd_relay_fleet_relays").await - 2.0).abs() < f64::EPSILON);
    let mut keys = loads(&etcd).await;
    keys.sort();
    let mut urls = [full_url, empty_url].map(|url| format!("{RELAYS}.connections/{url}"));
    urls.sort();
    assert_eq!(keys.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), urls, "{keys:?}");
    // No client lost or repeated anything: each event below the prefix came once, in order.
    let mut last = 0;
    for round in 0..3 {
        last = kv.put(format!("/a/{round}"), "x").await;
    }
    seen.last.store(last, Ordering::SeqCst);
    kv.put("/a/last", "y").await;
    tokio::time::timeout(patience() * 2, async { while watching.join_next().await.is_some() {} })
        .await
        .expect("all get to the last revision");
    assert_eq!(*seen.wrong.lock(), None);
    let connects = seen.connects.lock();
    let mut seconds = std::collections::BTreeMap::<u64, usize>::new();
    for at in connects.iter().skip(connected).filter(|at| **at > begun) {
        *seconds.entry((*at - begun).as_secs()).or_default() += 1;
    }
    let worst = seconds.values().max().copied().unwrap_or(0);
    println!("at most {worst} connections a second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_not_to_shed_writes_nothing_of_its_connections() {
    let etcd = Etcd::start().await;
    let resolver = format!("--resolver-prefix={RELAYS}");
    let (sheds, url) = advertising(&etcd, &[&resolver]).await;
    let (keeps, _) = advertising(&etcd, &[&resolver, "--shed-connections=false"]).await;
    eventually("both are registered", async || {
        let registered = async |relay: &Relay| relay.metric("etcd_relay_registered").await > 0.5;
        (registered(&sheds).await && registered(&keeps).await).then_some(())
    })
    .await;
    let expected = [(format!("{RELAYS}.connections/{url}"), r#"{"connections":0,"ready":true}"#.to_owned())];
    eventually("only this relay has written its load", async || (loads(&etcd).await == expected).then_some(())).await;
}
