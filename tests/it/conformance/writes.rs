//! Calls other than watches: writes, transactions and leases, which a relay forwards.

use std::time::Duration;

use etcd_relay::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, TxnRequest, WatchCreateRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    lease_client::LeaseClient,
    response_op::Response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};

use crate::support::{
    client::{self, revisions},
    kv::{self, channel, op_delete, op_put, put},
    target::Target,
};

pub async fn put_answers_with_what_was_asked(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    let key = format!("{ns}a");
    let first = kv.put(&key, "1").await;
    let response = kv.put_request(PutRequest { prev_kv: true, ..put(&key, "2") }).await;
    let prev = response.prev_kv.expect("asked for");
    assert_eq!((prev.mod_revision, &prev.value[..], prev.version), (first, &b"1"[..], 1));
    let header = response.header.expect("a header");
    assert!(header.revision > first && header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
    let now = kv.get(&key).await.expect("just put");
    assert_eq!((now.create_revision, now.mod_revision, now.version), (first, header.revision, 2));
}

pub async fn put_keeps_value_or_lease_where_told(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    let (key, lease) = (format!("{ns}a"), grant(target, 60).await.1);
    kv.put_request(PutRequest { lease, ..put(&key, "1") }).await;
    kv.put_request(PutRequest { ignore_lease: true, ..put(&key, "2") }).await;
    let both = kv.get(&key).await.expect("just put");
    assert_eq!((both.lease, &both.value[..]), (lease, &b"2"[..]));
    kv.put_request(PutRequest { ignore_value: true, ..put(&key, "") }).await;
    let value = kv.get(&key).await.expect("just put");
    assert_eq!((value.lease, &value.value[..], value.version), (0, &b"2"[..], 3));
}

pub async fn delete_counts_and_shows_what_it_took(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    for key in ["a", "b", "c"] {
        kv.put(format!("{ns}{key}"), key).await;
    }
    let request = DeleteRangeRequest { key: kv::bytes(&ns), range_end: kv::bytes(format!("{ns}c")), prev_kv: true };
    let response = kv.delete_request(request.clone()).await;
    let values: Vec<_> = response.prev_kvs.iter().map(|kv| &kv.value[..]).collect();
    assert_eq!((response.deleted, values), (2, vec![&b"a"[..], b"b"]));
    let before = response.header.expect("a header").revision;
    let again = kv.delete_request(request).await;
    assert_eq!((again.deleted, again.prev_kvs.len()), (0, 0));
    assert!(again.header.expect("a header").revision >= before);
}

pub async fn transactions_compare_and_branch(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    let key = kv::bytes(format!("{ns}a"));
    let compare = |target: CompareTarget, union| Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.clone(),
        target_union: Some(union),
        ..Default::default()
    };
    let absent = || vec![compare(CompareTarget::Version, TargetUnion::Version(0))];
    let valued = |value: &str| vec![compare(CompareTarget::Value, TargetUnion::Value(kv::bytes(value)))];
    for (compare, value, expected) in [(absent(), "1", true), (absent(), "2", false), (valued("1"), "3", true)] {
        let request = TxnRequest { compare, success: vec![op_put(&key, value)], failure: vec![op_delete("nothing")] };
        let response = kv.txn_request(request).await;
        assert_eq!(response.succeeded, expected, "put of {value}");
        let put = matches!(response.responses[0].response, Some(Response::ResponsePut(_)));
        assert_eq!(put, expected);
    }
    assert_eq!(kv.get(&key).await.expect("put twice").value, "3");
}

pub async fn refused_writes_use_the_same_words(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    let key = format!("{ns}a");
    for (request, code, words) in [
        (put("", "1"), Code::InvalidArgument, "etcdserver: key is not provided"),
        (PutRequest { lease: 0x7777, ..put(&key, "1") }, Code::NotFound, "etcdserver: requested lease not found"),
        (PutRequest { ignore_value: true, ..put(&key, "1") }, Code::InvalidArgument, "etcdserver: value is provided"),
        (PutRequest { ignore_value: true, ..put(&key, "") }, Code::InvalidArgument, "etcdserver: key not found"),
    ] {
        let status = kv.raw.clone().put(request.clone()).await.expect_err(words);
        assert_eq!((status.code(), status.message()), (code, words), "{request:?}");
    }
    let twice = TxnRequest { success: vec![op_put(&key, "1"), op_put(&key, "2")], ..Default::default() };
    let status = kv.raw.clone().txn(twice).await.expect_err("a key twice");
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "etcdserver: duplicate key given in txn request")
    );
    let status = kv.raw.clone().delete_range(DeleteRangeRequest::default()).await.expect_err("no key");
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));
    assert!(kv.get(&key).await.is_none(), "nothing was written");
}

pub async fn a_lease_that_ends_deletes_its_keys(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    // Two seconds is the shortest lease that etcd grants.
    let (_, lease) = grant(target, 2).await;
    let written = kv.put_request(PutRequest { lease, ..put(format!("{ns}a"), "1") }).await.header.expect("a header");
    stream.created(WatchCreateRequest { prev_kv: true, ..client::prefix(&ns) }).await;
    let event = stream.next().await.events.remove(0);
    let (deleted, prev) = (event.kv.expect("a key"), event.prev_kv.expect("asked for"));
    assert!(deleted.mod_revision > written.revision);
    assert_eq!((deleted.lease, prev.lease, &prev.value[..]), (0, lease, &b"1"[..]));
    assert!(kv.get(format!("{ns}a")).await.is_none());
}

pub async fn a_lease_that_is_kept_alive_lives(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    // Keep-alives every quarter of the time, because a busy machine may miss one.
    let (mut leases, lease) = grant(target, 4).await;
    kv.put_request(PutRequest { lease, ..put(format!("{ns}a"), "1") }).await;
    let (beats, queue) = mpsc::channel(1);
    beats.send(LeaseKeepAliveRequest { id: lease }).await.expect("room for one");
    let mut answers = leases.lease_keep_alive(ReceiverStream::new(queue)).await.expect("keep alive").into_inner();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..6 {
        let answer = answers.message().await.expect("keep alive").expect("an answer for each beat");
        assert_eq!((answer.id, answer.ttl), (lease, 4));
        ticks.tick().await;
        beats.send(LeaseKeepAliveRequest { id: lease }).await.expect("the stream is open");
    }
    assert!(kv.get(format!("{ns}a")).await.is_some());
    let left =
        leases.lease_time_to_live(LeaseTimeToLiveRequest { id: lease, keys: true }).await.expect("ttl").into_inner();
    assert_eq!((left.granted_ttl, left.keys), (4, vec![kv::bytes(format!("{ns}a"))]));
}

pub async fn a_revoked_lease_deletes_its_keys_as_one_revision(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let (mut leases, lease) = grant(target, 60).await;
    for key in ["a", "b", "c"] {
        kv.put_request(PutRequest { lease, ..put(format!("{ns}{key}"), "1") }).await;
    }
    stream.created(client::prefix(&ns)).await;
    let revoked = leases.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoke").into_inner();
    let revision = revoked.header.expect("a header").revision;
    assert_eq!(revisions(&stream.next().await), [revision; 3]);
    let status = leases.lease_revoke(LeaseRevokeRequest { id: lease }).await.expect_err("gone");
    assert_eq!((status.code(), status.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    let gone =
        leases.lease_time_to_live(LeaseTimeToLiveRequest { id: lease, keys: false }).await.expect("ttl").into_inner();
    assert_eq!(gone.ttl, -1);
}

async fn grant(target: &Target, seconds: i64) -> (LeaseClient<Channel>, i64) {
    let mut leases = LeaseClient::new(channel(&target.endpoint()).await);
    let granted = leases.lease_grant(LeaseGrantRequest { ttl: seconds, id: 0 }).await.expect("grant").into_inner();
    assert_eq!((granted.ttl, granted.error.as_str()), (seconds, ""));
    (leases, granted.id)
}
