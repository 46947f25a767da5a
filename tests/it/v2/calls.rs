//! What a v3 client gets from a relay over v2: reads and watches, and a clear error for everything else.

use etcd_relay::pb::etcdserverpb::{
    LeaseGrantRequest, MemberListRequest, RangeRequest, cluster_client::ClusterClient, lease_client::LeaseClient,
};
use tonic::Code;

use super::{over_one, relay_over};
use crate::support::{
    client::{self, WatchStream},
    etcd::Etcd,
    kv::{self, Kv},
};

#[tokio::test]
async fn keys_are_read_within_feeds_and_outside_with_the_indexes_of_v2() {
    let (relay, store, _etcd) = over_one().await;
    let first = store.set("/d/a", "1").await;
    let second = store.set("/d/a", "2").await;
    let elsewhere = store.set("/e/b", "3").await;
    let kv = Kv::connect(&relay.endpoint()).await;
    let a = kv.get("/d/a").await.expect("a key");
    assert_eq!((a.create_revision, a.mod_revision, a.version, &a.value[..]), (first, second, 2, &b"2"[..]));
    let b = kv.get("/e/b").await.expect("a key outside every feed");
    assert_eq!((b.mod_revision, &b.value[..]), (elsewhere, &b"3"[..]));
    let all = |limit| RangeRequest { key: "/e/".into(), range_end: "/e0".into(), limit, ..RangeRequest::default() };
    store.set("/e/c/d", "4").await;
    let listed = kv.range(all(1)).await;
    assert_eq!((listed.kvs.len(), listed.more, listed.count), (1, true, 2));
    assert_eq!(kv.get("/d/none").await, None);
    let header = listed.header.expect("a header");
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0, "{header:?}");
    // A read after a write shows it, however many writes there were elsewhere.
    for round in 0..20 {
        let at = store.set("/d/a", &round.to_string()).await;
        assert_eq!(kv.get("/d/a").await.expect("a key").mod_revision, at);
    }
}

#[tokio::test]
async fn what_v2_has_not_is_unimplemented_and_never_sent_to_the_v3_store() {
    let (relay, store, etcd) = over_one().await;
    let index = store.set("/d/a", "1").await;
    let channel = kv::channel(&relay.endpoint()).await;
    let kv = Kv::over(channel.clone());
    let refused = [
        kv.raw.clone().put(kv::put("/d/a", "2")).await.expect_err("a put"),
        kv.raw.clone().txn(etcd_relay::pb::etcdserverpb::TxnRequest::default()).await.expect_err("a txn"),
        kv.raw
            .clone()
            .range(RangeRequest { key: "/d".into(), range_end: "/e".into(), ..RangeRequest::default() })
            .await
            .expect_err("a range"),
        kv.raw
            .clone()
            .range(RangeRequest { key: "no-slash".into(), ..RangeRequest::default() })
            .await
            .expect_err("a key"),
        LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { ttl: 5, id: 0 }).await.expect_err("a lease"),
        ClusterClient::new(channel).member_list(MemberListRequest { linearizable: false }).await.expect_err("members"),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
        assert!(status.message().contains("etcd"), "{status:?}");
    }
    let past = RangeRequest { key: "/d/a".into(), revision: 1, ..RangeRequest::default() };
    assert_eq!(kv.raw.clone().range(past).await.expect_err("the past").code(), Code::OutOfRange);
    let mut watch = WatchStream::open(&relay.endpoint()).await;
    watch.create(etcd_relay::pb::etcdserverpb::WatchCreateRequest { range_end: "/e".into(), ..client::key("/d") });
    let refused = watch.until(|response| response.canceled).await;
    assert!(refused.cancel_reason.contains("etcd v2"), "{refused:?}");
    watch.create(etcd_relay::pb::etcdserverpb::WatchCreateRequest { start_revision: 1, ..client::prefix("/d/") });
    let compacted = watch.until(|response| response.canceled).await;
    assert!(compacted.compact_revision >= index, "{compacted:?}");
    let v3 = Kv::connect(&etcd.endpoint()).await;
    assert_eq!(v3.revision().await, 1, "the cluster's v3 store was written to");
}

#[tokio::test]
async fn a_member_without_v2_is_named_as_such() {
    let etcd = Etcd::start().await;
    let relay = relay_over(&[etcd.endpoint()], "/d/").unready().start().await;
    let why = crate::support::eventually("the relay says why it is not ready", async || {
        let answer = crate::support::http::get(relay.http_addr(), "/ready").await.ok()?;
        (answer.status == 503 && answer.body.contains("--enable-v2")).then_some(answer.body)
    })
    .await;
    assert!(why.contains("does not serve etcd's v2 API"), "{why}");
}
