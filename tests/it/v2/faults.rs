//! The relay over v2 while members fail: afterwards its data equals what a quorum has.

use super::{ENABLE, Follower, over_one, relay_over, store::Store};
use crate::support::{client, etcd::Etcd, eventually, gate::Gate, kv::Kv};

use etcd_relay::pb::etcdserverpb::RangeRequest;

#[tokio::test]
async fn two_thousand_writes_elsewhere_while_the_relay_is_cut_off_leave_it_right() {
    let etcd = Etcd::start_with(&[ENABLE]).await;
    let store = Store::at(&etcd.addr());
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = relay_over(&[gate.endpoint()], "/d/").start().await;
    let mut follower = Follower::from_nothing(&relay, "/d/").await;
    store.set("/d/before", "1").await;
    store.set("/d/before", "2").await;
    gate.shut();
    store.set("/d/during", "3").await;
    store.delete("/d/before").await;
    for write in 0..2_000 {
        store.set("/elsewhere", &write.to_string()).await;
    }
    gate.open();
    // Its events are gone from etcd's history, so a watch that would need them is canceled.
    let canceled = follower.watch.until(|response| response.canceled).await;
    assert!(canceled.compact_revision > 2_000, "{canceled:?}");
    same_as_a_quorum(&relay.endpoint(), &store, "/d").await;
    // From there on it is followed as before.
    let again = client::WatchStream::open(&relay.endpoint()).await;
    let mut again = Follower { watch: again, keys: store.list("/d").await.1, revision: 0 };
    let start_revision = canceled.compact_revision;
    let created = again
        .watch
        .created(etcd_relay::pb::etcdserverpb::WatchCreateRequest { start_revision, ..client::prefix("/d/") });
    assert!(created.await.created);
    let at = store.set("/d/after", "4").await;
    again.reach(at).await;
    assert_eq!(again.keys, store.list("/d").await.1);
    assert_eq!(relay.metric_of("etcd_relay_upstream_resyncs_total", "reason=\"compacted\"").await, 1.0);
}

#[tokio::test]
async fn a_quiet_directory_in_a_busy_store_keeps_its_watches() {
    let (relay, store, _etcd) = over_one().await;
    let mut follower = Follower::from_nothing(&relay, "/d/").await;
    store.set("/d/quiet", "1").await;
    let listings = || relay.metric_of("etcd_relay_v2_listings_total", "reason=\"cleared\"");
    let mut written = 0;
    while listings().await < 2.0 {
        for _ in 0..300 {
            written = store.set("/elsewhere", "x").await;
        }
    }
    assert!(written > 1_000);
    let at = store.set("/d/quiet", "2").await;
    follower.reach(at).await;
    assert_eq!(follower.keys["/d/quiet"].1, at);
    assert_eq!(relay.metric("etcd_relay_upstream_resyncs_total").await, 0.0);
}

#[tokio::test]
async fn members_that_are_killed_and_stopped_lose_nothing() {
    let mut etcd = Etcd::cluster_of_three_with(&[ENABLE]).await;
    let relay = relay_over(&etcd.endpoints(), "/d/").arg("--request-timeout=2s").start().await;
    let mut follower = Follower::from_nothing(&relay, "/d/").await;
    for round in 0..3 {
        let last = Store::at(etcd.endpoints()[2].trim_start_matches("http://"));
        if round == 1 {
            etcd.pause_member(1);
        } else {
            etcd.kill_member(round / 2);
        }
        let mut at = 0;
        for key in 0..20 {
            at = eventually("two of three take a write", async || {
                let fields = [("value", "x")];
                let answer = last.try_ask("PUT", &format!("/d/{round}-{key}"), &fields).await.ok()?;
                (answer.status < 300).then_some(answer.index)
            })
            .await;
        }
        follower.reach(at).await;
        let (_, listed) = last.list("/d").await;
        assert_eq!(follower.keys.keys().collect::<Vec<_>>(), listed.keys().collect::<Vec<_>>(), "round {round}");
        etcd.resume();
        etcd.restart().await;
    }
    assert_eq!(relay.metric("etcd_relay_upstream_resyncs_total").await, 0.0);
}

#[tokio::test]
async fn a_replaced_cluster_ends_every_watch_and_is_listed_anew() {
    let old = Etcd::start_with(&[ENABLE]).await;
    let gate = Gate::before(&old.endpoint()).await;
    Store::at(&old.addr()).set("/d/old", "1").await;
    let relay = relay_over(&[gate.endpoint()], "/d/").start().await;
    let mut follower = Follower::from_nothing(&relay, "/d/").await;
    let new = Etcd::start_with(&[ENABLE]).await;
    let store = Store::at(&new.addr());
    store.set("/d/new", "2").await;
    gate.point_at(&new.endpoint());
    follower.watch.until(|response| response.canceled).await;
    same_as_a_quorum(&relay.endpoint(), &store, "/d").await;
    let replaced = relay.metric_of("etcd_relay_upstream_resyncs_total", "reason=\"cluster_replaced\"").await;
    assert_eq!(replaced, 1.0);
}

/// A linearizable read of the relay equals etcd's listing, including revisions.
async fn same_as_a_quorum(endpoint: &str, store: &Store, directory: &str) {
    let kv = Kv::connect(endpoint).await;
    eventually("the relay answers", async || {
        let prefix = format!("{directory}/");
        let (_, listed) = store.list(directory).await;
        let request = RangeRequest {
            range_end: crate::support::kv::prefix_end(&prefix),
            key: prefix.into(),
            ..Default::default()
        };
        let answer = kv.raw.clone().range(request).await.ok()?.into_inner();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let kvs: super::store::Keys =
            answer.kvs.iter().map(|kv| (text(&kv.key), (text(&kv.value), kv.mod_revision))).collect();
        (kvs == listed).then_some(())
    })
    .await;
}
