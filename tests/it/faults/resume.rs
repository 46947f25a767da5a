//! After a restart of the relay all clients come back with their revisions. The cost for etcd does not depend on their
//! number, and no client waits for what another one requested.
//!
//! Calls at etcd are counted instead of time. With `ETCD_RELAY_TEST_SCALE=full` the duration is printed.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use etcd_relay::pb::etcdserverpb::WatchCreateRequest;

use tonic::transport::Endpoint;

use super::full_scale;
use crate::support::{
    client::{self, WatchStream},
    etcd::Etcd,
    eventually,
    kv::{self, Kv},
    relay::{Relay, RelayCommand},
    replay::Replay,
    validate::{Expected, assert_valid},
};

/// Clients that resume, each on its own stream: some want all keys, some one key, some previous values.
async fn resume(relay: &Relay, count: i64, last: i64) -> Vec<(WatchCreateRequest, WatchStream)> {
    let mut streams = Vec::new();
    let mut channels = Vec::new();
    for _ in 0..8 {
        channels.push(kv::channel(&relay.endpoint()).await);
    }
    for number in 0..count {
        let start_revision = last - number % 20;
        let request = match number % 3 {
            0 => WatchCreateRequest { start_revision, ..client::prefix("k") },
            1 => WatchCreateRequest { start_revision, prev_kv: true, ..client::prefix("k") },
            _ => WatchCreateRequest { start_revision, ..client::key(format!("k{}", number % 7)) },
        };
        let stream = WatchStream::over(channels[number as usize % channels.len()].clone(), &[]);
        stream.create(request.clone());
        streams.push((request, stream));
    }
    streams
}

async fn write(kv: &Kv, count: i64) -> i64 {
    let mut last = 0;
    for number in 0..count {
        last = kv.put(&format!("k{}", number % 7), format!("{number}")).await;
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_resume_after_a_start_of_the_relay_cost_etcd_a_few_watches_together() {
    let etcd = Etcd::start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let before = write(&kv, 300).await;
    let relay = Relay::over(&etcd.endpoint()).await;
    let calls = (etcd.calls("Watch").await, etcd.calls("Status").await);
    let began = Instant::now();
    let mut streams = resume(&relay, if full_scale() { 3_000 } else { 300 }, before).await;
    // One more on another connection, which wants little.
    let mut single = WatchStream::open(&relay.endpoint()).await;
    let asked = Instant::now();
    single.create(WatchCreateRequest { start_revision: before - 7, ..client::key("k1") });
    single.until(|response| !response.events.is_empty()).await;
    let waited = asked.elapsed();
    for (_, stream) in &mut streams {
        stream.until(|response| response.created).await;
    }
    let last = kv.txn((0..7).map(|key| kv::op_put(format!("k{key}"), "last")).collect()).await;
    for (_, stream) in &mut streams {
        stream.until_revision(last).await;
    }
    if full_scale() {
        eprintln!("{} watches resumed in {:?}, one beside them in {waited:?}", streams.len(), began.elapsed());
    }
    let more = (etcd.calls("Watch").await - calls.0, etcd.calls("Status").await - calls.1);
    assert!(more.0 <= 4 && more.1 <= 4, "{more:?} watch streams and status calls for {} watches", streams.len());
    assert!(relay.metric_of("etcd_relay_backfills_total", r#"outcome="joined""#).await >= 1.0);
    assert!(relay.metric("etcd_relay_backfilled_revisions_total").await >= 20.0);
    let replay = Replay::read(&etcd.endpoint(), last).await;
    for (request, stream) in &streams {
        let expected = Expected { complete_to: Some(last), prev_kv_known: true };
        assert_valid(std::slice::from_ref(request), &stream.record(), &replay, expected);
    }
    relay.assert_no_panic();
}

/// The same for many watches on a few streams, like those of Kubernetes' API server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watches_of_a_few_streams_resume_together() {
    let etcd = Etcd::start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let before = write(&kv, 50).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").arg("--max-watches-per-stream=20000").start().await;
    let calls = etcd.calls("Watch").await;
    let watches = if full_scale() { 10_000 } else { 500 };
    let began = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..10 {
        let stream = WatchStream::open(&relay.endpoint()).await;
        for watch in 0..watches {
            let start_revision = before - 6 - watch % 5;
            stream.create(WatchCreateRequest { start_revision, ..client::key(format!("k{}", watch % 7)) });
        }
        streams.push(stream);
    }
    for stream in &mut streams {
        let mut caught_up = HashSet::new();
        while caught_up.len() < watches as usize {
            let response = stream.until(|response| !response.events.is_empty()).await;
            caught_up.insert(response.watch_id);
        }
    }
    if full_scale() {
        eprintln!("{} watches on {} streams resumed in {:?}", 10 * watches, streams.len(), began.elapsed());
    }
    let more = etcd.calls("Watch").await - calls;
    assert!(more <= 4, "{more} watch streams for {} watches", 10 * watches);
    relay.assert_no_panic();
}

/// Streams that need a past beyond the history and do not read it do not delay another client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_do_not_read_their_past_hold_up_no_other_client() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").arg("--history-entries=5").start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let first = kv.put("small", "first").await;
    let mut last = 0;
    for number in 0..100 {
        // Each stalled stream wants something else, so that none of them share a fill.
        last = kv.put(format!("large/{}", number % 4), vec![b'x'; 100_000]).await;
    }
    let mut stalled = Vec::new();
    for number in 0..200 {
        let stream = WatchStream::open(&relay.endpoint()).await;
        stream.pause();
        let end = format!("large/{number:04}~");
        stream.create(WatchCreateRequest { start_revision: first, range_end: end.into(), ..client::key("large/") });
        stalled.push(stream);
    }
    eventually("the stalled ones wait for what they do not read", async || {
        (relay.metric("etcd_relay_watches_catching_up").await >= 100.0).then_some(())
    })
    .await;
    // The second is the client of the stalled streams, which waits until each of them has had its turn.
    let clients = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::LOCALHOST];
    for local in &clients[..if full_scale() { 2 } else { 1 }] {
        let began = Instant::now();
        let target = Endpoint::from_shared(relay.endpoint()).expect("a URL").local_address(Some(IpAddr::V4(*local)));
        let mut stream = WatchStream::over(target.connect().await.expect("a connection"), &[]);
        stream.create(WatchCreateRequest { start_revision: first, ..client::key("small") });
        stream.until_revision(first).await;
        if full_scale() {
            eprintln!("from {local} beside {} stalled streams: {:?}", stalled.len(), began.elapsed());
        }
    }
    assert!(relay.metric("etcd_relay_watches_catching_up").await >= 1.0, "they still do not read");
    stalled.iter().for_each(WatchStream::resume);
    for stream in &mut stalled {
        stream.until(|response| response.events.iter().any(|event| event.kv.is_some())).await;
    }
    assert!(last > first);
    relay.assert_no_panic();
}

/// A past beyond the history is filled, for watches that want the same by one watch on etcd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_want_the_same_past_share_a_fill() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("").arg("--history-entries=5").start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let before = write(&kv, 300).await;
    let calls = etcd.calls("Watch").await;
    let mut streams = Vec::new();
    let channel = kv::channel(&relay.endpoint()).await;
    for _ in 0..200 {
        let request = WatchCreateRequest { start_revision: before - 200, ..client::prefix("k") };
        let stream = WatchStream::over(channel.clone(), &[]);
        stream.create(request.clone());
        streams.push((request, stream));
    }
    for (_, stream) in &mut streams {
        stream.until_revision(before).await;
    }
    let more = etcd.calls("Watch").await - calls;
    // Watches that arrive while a fill begins join the next one, and on a slow machine they arrive one by one.
    assert!(more <= 100, "{more} watch streams for {} watches that want the same", streams.len());
    let replay = Replay::read(&etcd.endpoint(), before).await;
    for (request, stream) in &streams {
        let expected = Expected { complete_to: Some(before), prev_kv_known: true };
        assert_valid(std::slice::from_ref(request), &stream.record(), &replay, expected);
    }
    relay.assert_no_panic();
}
