//! Many watchers: etcd has one watch per feed, and each event comes once to each watch.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use etcd_relay::pb::etcdserverpb::WatchCreateRequest;
use futures_util::future::join_all;

use super::{OUTSIDE, PREFIX, full_scale};
use crate::support::{
    client::{self, WatchStream, revisions},
    etcd::Etcd,
    eventually, eventually_within,
    kv::{self, Kv, op_put},
    patience,
    relay::RelayCommand,
    replay::Replay,
    validate::{Expected, assert_valid},
};

/// The time after which feeds on demand have ended, with a margin.
const IDLE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_connections_is_one_watch_at_etcd() {
    let etcd = Etcd::start().await;
    assert_eq!(etcd.watchers().await, 0);
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let connections = if full_scale() { 1_000 } else { 200 };
    let mut streams = Vec::new();
    for index in 0..connections {
        let request = WatchCreateRequest { prev_kv: index % 3 == 0, ..client::prefix(PREFIX) };
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(request.clone()).await;
        streams.push((request, stream));
    }
    assert_eq!(etcd.watchers().await, 1, "one watch for the feed, whatever the number of connections");
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut last = 0;
    for round in 0..20 {
        last = kv.put(format!("{PREFIX}{}", round % 3), format!("{round}")).await;
    }
    let replay = Replay::read(&etcd.endpoint(), last).await;
    for (request, stream) in &mut streams {
        stream.until_revision(last).await;
        let expected = Expected { complete_to: Some(last), prev_kv_known: true };
        assert_valid(std::slice::from_ref(request), &stream.record(), &replay, expected);
    }
    assert_eq!(etcd.watchers().await, 1);
    relay.assert_log_has_only(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_on_distinct_keys_share_one_watch_at_etcd() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let (connections, keys) = if full_scale() { (100, 3_000) } else { (20, 500) };
    let mut streams = Vec::new();
    for _ in 0..connections {
        streams.push(WatchStream::open(&relay.endpoint()).await);
    }
    let key = |number: usize| format!("{PREFIX}{number:05}");
    let start = Instant::now();
    for stream in &streams {
        for number in 0..keys {
            stream.create(client::key(key(number)));
        }
    }
    for stream in &mut streams {
        for number in 0..keys {
            let created = stream.next().await;
            assert!(created.created && !created.canceled);
            assert_eq!(created.watch_id, i64::try_from(number).expect("small"));
        }
    }
    println!("{connections} × {keys} watches created in {:?}", start.elapsed());
    assert_eq!(etcd.watchers().await, 1);
    // Each key changes once, many of them in one revision; etcd's limit is 128 operations per transaction.
    let kv = Kv::connect(&etcd.endpoint()).await;
    let numbers: Vec<usize> = (0..keys).collect();
    let mut revision_of = vec![0; keys];
    for chunk in numbers.chunks(100) {
        let revision = kv.txn(chunk.iter().map(|number| op_put(key(*number), "1")).collect()).await;
        chunk.iter().for_each(|number| revision_of[*number] = revision);
    }
    for stream in &mut streams {
        let mut told = vec![0; keys];
        for _ in 0..keys {
            let response = stream.next().await;
            let [event] = &response.events[..] else { panic!("one event for one key: {response:?}") };
            let number = usize::try_from(response.watch_id).expect("an id that was given");
            assert_eq!(event.kv.as_ref().expect("a key").key, key(number));
            told[number] = revisions(&response)[0];
        }
        assert_eq!(told, revision_of);
    }
    relay.assert_log_has_only(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_outside_share_a_feed_each_that_ends_when_idle() {
    let etcd = Etcd::start().await;
    let command = RelayCommand::serve(&[etcd.endpoint()]).arg("--on-demand=allow").arg("--on-demand-idle=1s");
    let relay = command.start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut streams = Vec::new();
    for index in 0..50 {
        let prefix = format!("{OUTSIDE}{}/", index % 5);
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix(&prefix)).await;
        streams.push((prefix, stream));
    }
    assert_eq!(etcd.watchers().await, 5, "one watch for each range");
    let revision = kv.txn((0..5).map(|index| op_put(format!("{OUTSIDE}{index}/key"), "1")).collect()).await;
    for (prefix, stream) in &mut streams {
        let response = stream.next().await;
        assert_eq!(revisions(&response), [revision]);
        assert!(response.events[0].kv.as_ref().expect("a key").key.starts_with(&kv::bytes(prefix)));
    }
    drop(streams);
    let deadline = patience() + IDLE;
    eventually_within(deadline, "feeds without watchers end", async || (etcd.watchers().await == 0).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_outside_are_refused_where_the_operator_says_so() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).arg("--on-demand=deny").start().await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.create(client::prefix(OUTSIDE));
    let refused = stream.next().await;
    assert!(refused.created && refused.canceled && refused.watch_id == -1);
    assert!(refused.cancel_reason.contains("on-demand"), "the reason names the flag: {:?}", refused.cancel_reason);
    stream.created(client::prefix(PREFIX)).await;
    assert_eq!(etcd.watchers().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_beyond_the_bounds_are_refused_by_name_and_harm_nothing() {
    let etcd = Etcd::start().await;
    let command = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX);
    let relay = command.arg("--on-demand-max=2").arg("--max-watches-per-stream=3").start().await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    let create = async |stream: &mut WatchStream, request| {
        stream.create(request);
        stream.next().await
    };
    for range in ["1/", "2/"] {
        assert!(!create(&mut stream, client::prefix(format!("{OUTSIDE}{range}"))).await.canceled);
    }
    let third_feed = create(&mut stream, client::prefix(format!("{OUTSIDE}3/"))).await;
    assert!(third_feed.canceled && third_feed.watch_id == -1);
    assert!(third_feed.cancel_reason.contains("--on-demand-max"), "{:?}", third_feed.cancel_reason);
    assert!(!create(&mut stream, client::prefix(PREFIX)).await.canceled, "a range inside a prefix needs no feed");
    let fourth_watch = create(&mut stream, client::prefix(PREFIX)).await;
    assert!(fourth_watch.canceled && fourth_watch.watch_id == -1);
    assert!(fourth_watch.cancel_reason.contains("--max-watches-per-stream"), "{:?}", fourth_watch.cancel_reason);
    // Existing watches continue, and a watch that ends makes room.
    let revision = Kv::connect(&etcd.endpoint()).await.put(format!("{PREFIX}key"), "1").await;
    assert_eq!(revisions(&stream.next().await), [revision]);
    stream.cancel(2);
    assert!(stream.next().await.canceled);
    assert!(!create(&mut stream, client::prefix(PREFIX)).await.canceled);
    assert_eq!(relay.metric("etcd_relay_watches").await, 3.0);
}

/// A client is an address: all its streams count, on any connection, and no other client's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_has_a_bounded_number_of_watches_over_all_its_streams() {
    let etcd = Etcd::start().await;
    let command = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX);
    let relay = command.arg("--max-watches-per-client=3").start().await;
    let mut one = WatchStream::open(&relay.endpoint()).await;
    let mut two = WatchStream::open(&relay.endpoint()).await;
    one.created(client::prefix(PREFIX)).await;
    one.created(client::prefix(PREFIX)).await;
    two.created(client::prefix(PREFIX)).await;
    for stream in [&mut one, &mut two] {
        stream.create(client::prefix(PREFIX));
        let refused = stream.next().await;
        assert!(refused.created && refused.canceled && refused.watch_id == -1, "{refused:?}");
        assert!(refused.cancel_reason.contains("--max-watches-per-client"), "{:?}", refused.cancel_reason);
    }
    let refusals = relay.metric_of("etcd_relay_watches_refused_total", r#"reason="client_limit""#).await;
    assert_eq!(refusals, 2.0);

    let channel = kv::channel_from(Ipv4Addr::new(127, 0, 0, 2), &relay.endpoint()).await;
    let mut other = WatchStream::over(channel, &[]);
    for _ in 0..3 {
        other.created(client::prefix(PREFIX)).await;
    }
    // A watch that ends makes room, and so does a stream.
    one.cancel(0);
    assert!(one.next().await.canceled);
    two.created(client::prefix(PREFIX)).await;
    drop(two);
    eventually("the watches of the stream are gone", async || {
        (relay.metric("etcd_relay_watches").await == 4.0).then_some(())
    })
    .await;
    one.created(client::prefix(PREFIX)).await;
    one.created(client::prefix(PREFIX)).await;
    assert_eq!(relay.metric("etcd_relay_watches").await, 6.0);
}

/// Memory of many clients returns to the system even if one of them stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_a_burst_took_goes_back() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let mut stays = WatchStream::open(&relay.endpoint()).await;
    stays.created(client::prefix(PREFIX)).await;
    let before = relay.resident_bytes();
    let mut streams = Vec::new();
    for _ in 0..4 {
        let channel = kv::channel(&relay.endpoint()).await;
        for _ in 0..1_000 {
            let stream = WatchStream::over(channel.clone(), &[]);
            stream.create(client::prefix(PREFIX));
            streams.push(stream);
        }
    }
    eventually("all watch", async || (relay.metric("etcd_relay_watches").await == 4_001.0).then_some(())).await;
    let taken = relay.resident_bytes().saturating_sub(before);
    drop(streams);
    eventually("they have left", async || (relay.metric("etcd_relay_watches").await == 1.0).then_some(())).await;
    // The allocator needs some ten seconds. Half is far from what an allocator that keeps memory would return.
    let kept = || relay.resident_bytes().saturating_sub(before);
    eventually_within(2 * patience(), "memory goes back", async || (kept() < taken / 2).then_some(())).await;
}

/// Clients that leave in any way leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_go_leave_nothing_behind() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    for _ in 0..3 {
        let mut streams = Vec::new();
        for _ in 0..20 {
            let mut stream = WatchStream::open(&relay.endpoint()).await;
            stream.created(client::prefix(PREFIX)).await;
            streams.push(stream);
        }
        assert!(relay.metric("etcd_relay_watches").await >= 20.0);
        streams.iter().take(10).for_each(|stream| stream.cancel(0));
        drop(streams);
        eventually("no subscriber is left", async || (relay.metric("etcd_relay_watches").await == 0.0).then_some(()))
            .await;
    }
    assert_eq!(etcd.watchers().await, 1);
}

/// Each of them waits for the turn in which its first request is answered, and somebody who looks at the metrics sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_come_at_once_wait_for_their_turns_and_their_waits_are_counted() {
    let etcd = Etcd::start().await;
    Kv::connect(&etcd.endpoint()).await.put(format!("{PREFIX}a"), "value").await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let waits = || relay.metric("etcd_relay_turns_wait_seconds_count");
    assert_eq!(waits().await, 0.0, "nobody was there yet");
    // A thread that is fast enough lets nobody of a small crowd wait.
    let waited = eventually("somebody waits for a turn", async || {
        let come = (0..100).map(async |_| Kv::connect(&relay.endpoint()).await.get(format!("{PREFIX}a")).await);
        for answer in join_all(come).await {
            assert_eq!(answer.expect("the key").value, "value");
        }
        let waits = waits().await;
        (waits > 0.0).then_some(waits)
    })
    .await;
    eventually("nobody waits any more", async || (relay.metric("etcd_relay_turns_waiting").await == 0.0).then_some(()))
        .await;
    let seconds = relay.metric("etcd_relay_turns_wait_seconds_sum").await;
    assert!(seconds > 0.0 && seconds < waited * patience().as_secs_f64(), "{waited} waits took {seconds} s");
}
