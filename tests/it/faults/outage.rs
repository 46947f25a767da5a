//! etcd fails and recovers. Nothing was lost upstream, so no watch may break, lose an event or fall silent.

use std::time::Duration;

use tonic::Code;

use super::{Audience, OUTSIDE, PREFIX};
use crate::support::{
    client::{self, WatchStream, revisions},
    etcd::Etcd,
    eventually,
    gate::Gate,
    kv::{self, Kv},
    relay::{Relay, RelayCommand},
    seconds_from_env,
    writer::Writer,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_outlive_a_killed_etcd() {
    let mut etcd = Etcd::start().await;
    let relay = relay(&etcd.endpoints()).await;
    let mut audience = audience(&etcd, &relay).await;
    for _ in 0..2 {
        let writer = load(&etcd).await;
        etcd.kill();
        etcd.restart().await;
        more(&writer).await;
        writer.stop().await;
    }
    audience.judge(&etcd.endpoint()).await;
    relay.ready().await;
    relay.assert_no_panic();
    assert!(relay.metric("etcd_relay_upstream_reconnects_total").await >= 2.0);
}

/// A stopped member keeps its connections open and is silent. `ETCD_RELAY_TEST_PAUSE` sets for how many seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_outlive_a_paused_etcd() {
    let mut etcd = Etcd::start().await;
    let relay = relay(&etcd.endpoints()).await;
    let mut audience = audience(&etcd, &relay).await;
    let writer = load(&etcd).await;
    etcd.pause();
    tokio::time::sleep(seconds_from_env("ETCD_RELAY_TEST_PAUSE", 6)).await;
    etcd.resume();
    more(&writer).await;
    writer.stop().await;
    audience.judge(&etcd.endpoint()).await;
    relay.ready().await;
    relay.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_outlive_a_change_of_leader_and_the_loss_of_a_member() {
    let mut etcd = Etcd::cluster_of_three().await;
    let relay = relay(&etcd.endpoints()).await;
    let mut audience = audience(&etcd, &relay).await;
    let writer = load(&etcd).await;
    let leader = etcd.leader().await;
    etcd.move_leader((leader + 1) % 3).await;
    more(&writer).await;
    // A client tries the first endpoint first.
    etcd.kill_member(0);
    more(&writer).await;
    etcd.restart().await;
    more(&writer).await;
    writer.stop().await;
    audience.judge(&etcd.endpoint()).await;
    relay.ready().await;
    relay.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_outlive_connections_that_are_cut() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = relay(&[gate.endpoint()]).await;
    let mut audience = audience(&etcd, &relay).await;
    let writer = load(&etcd).await;
    for _ in 0..5 {
        gate.cut();
        more(&writer).await;
    }
    writer.stop().await;
    audience.judge(&etcd.endpoint()).await;
    relay.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_outlive_a_network_that_says_nothing() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = relay(&[gate.endpoint()]).await;
    let mut audience = audience(&etcd, &relay).await;
    let writer = load(&etcd).await;
    gate.hold();
    more(&writer).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    gate.open();
    more(&writer).await;
    writer.stop().await;
    audience.judge(&etcd.endpoint()).await;
    relay.assert_no_panic();
}

/// Clients that require a leader get etcd's error, so that they go elsewhere; other clients wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_want_a_leader_end_without_one() {
    let mut etcd = Etcd::cluster_of_three().await;
    let relay = relay(&etcd.endpoints()).await;
    let metadata = [("hasleader", "true")];
    let mut wants = WatchStream::open_with(&relay.endpoint(), &metadata).await;
    wants.created(client::prefix(PREFIX)).await;
    let mut waits = WatchStream::open(&relay.endpoint()).await;
    waits.created(client::prefix(PREFIX)).await;
    // The remaining member stays, so that the relay can still ask it.
    etcd.kill_member(1);
    etcd.kill_member(2);
    let status = wants.ended().await.expect_err("no leader");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    let mut late = WatchStream::open_with(&relay.endpoint(), &metadata).await;
    late.create(client::prefix(PREFIX));
    let status = late.ended().await.expect_err("no leader");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    assert!(!waits.has_ended());
    etcd.restart().await;
    let revision = Kv::connect(&etcd.endpoint()).await.put(format!("{PREFIX}a"), "1").await;
    assert_eq!(revisions(&waits.next().await), [revision]);
}

/// The relay listens, is not ready, and begins its work when etcd starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_away_at_the_start_is_waited_for() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    gate.shut();
    let relay = RelayCommand::serve(&[gate.endpoint()]).prefix(PREFIX).unready().start().await;
    assert_eq!(relay.ready_status().await, Some(503));
    gate.open();
    relay.ready().await;
    let mut audience = audience(&etcd, &relay).await;
    audience.judge(&etcd.endpoint()).await;
}

/// Plain HTTP is not answered where the relay expects it, so it checks over gRPC whether etcd can be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_ready_and_follows_members_that_serve_grpc_alone() {
    let mut etcd = Etcd::with_http_apart().await;
    let relay = relay(&etcd.endpoints()).await;
    let mut audience = audience(&etcd, &relay).await;
    etcd.kill();
    eventually("the relay says that it is not ready", async || (relay.ready_status().await == Some(503)).then_some(()))
        .await;
    etcd.restart().await;
    relay.ready().await;
    audience.judge(&etcd.endpoint()).await;
}

/// etcd's own clients wait for a member in the same way. A call that was sent is not repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_were_not_sent_wait_until_etcd_is_back() {
    let mut etcd = Etcd::start().await;
    let over =
        |wait: &str| RelayCommand::serve(&etcd.endpoints()).prefix(PREFIX).arg(&format!("--forward-wait={wait}"));
    let (waits, waits_not) = (over("60s").start().await, over("0s").start().await);
    let clients = [Kv::connect(&waits.endpoint()).await, Kv::connect(&waits_not.endpoint()).await];
    etcd.kill();
    for relay in [&waits, &waits_not] {
        eventually("it knows that etcd is away", async || (relay.ready_status().await == Some(503)).then_some(()))
            .await;
    }
    let refused = clients[1].raw.clone().put(kv::put(format!("{PREFIX}a"), "1")).await.expect_err("etcd is away");
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "there is no connection available"));
    let put = clients[0].clone();
    let put = tokio::spawn(async move { put.put(format!("{PREFIX}a"), "2").await });
    eventually("the call waits", async || (waits.metric("etcd_relay_forwards_held").await >= 1.0).then_some(())).await;
    etcd.restart().await;
    let revision = put.await.expect("the call succeeds");
    let kept = Kv::connect(&etcd.endpoint()).await.get(format!("{PREFIX}a")).await.expect("it was written");
    assert_eq!((kept.mod_revision, kept.version), (revision, 1), "once");
}

/// While etcd is gone, the relay reports that it is not ready, and it is ready again when etcd is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_etcd() {
    let mut etcd = Etcd::start().await;
    let relay = relay(&etcd.endpoints()).await;
    etcd.kill();
    eventually("the relay says that it is not ready", async || (relay.ready_status().await == Some(503)).then_some(()))
        .await;
    etcd.restart().await;
    relay.ready().await;
}

async fn relay(endpoints: &[String]) -> Relay {
    RelayCommand::serve(endpoints).prefix(PREFIX).arg("--on-demand=allow").start().await
}

/// Watches of each kind, after some history.
async fn audience(etcd: &Etcd, relay: &Relay) -> Audience {
    let kv = Kv::connect(&etcd.endpoint()).await;
    let first = kv.put(format!("{PREFIX}00"), "first").await;
    for index in 0..50 {
        kv.put(format!("{PREFIX}{:02}", index % 20), "before").await;
        kv.put(format!("{OUTSIDE}{:02}", index % 20), "before").await;
    }
    Audience::gather(&relay.endpoint(), first).await
}

/// Starts a load and waits until it writes.
async fn load(etcd: &Etcd) -> Writer {
    let writer = Writer::start(&etcd.endpoints(), PREFIX);
    more(&writer).await;
    writer
}

/// Waits until the load has made a hundred more writes.
async fn more(writer: &Writer) {
    let before = writer.written();
    eventually("writes go on", async || (writer.written() >= before + 100).then_some(())).await;
}
