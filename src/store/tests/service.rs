//! Tests of the gRPC services, through the generated clients and without a socket.

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use tonic::Code;
use tower::ServiceExt;

use super::*;
use crate::pb::{
    etcdserverpb::{
        AlarmRequest, AuthStatusRequest, AuthenticateRequest, HashKvRequest, MemberListRequest, StatusRequest,
        auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, watch_client::WatchClient,
    },
    v3lockpb::{LockRequest, lock_client::LockClient},
};

#[tokio::test]
async fn key_values_and_their_errors_pass_over_the_wire() {
    let store = Store::default();
    let mut kv = KvClient::new(store.forward_service());
    let header = kv.put(put_request("a", "1")).await.expect("a put").into_inner().header.expect("a header");
    assert_eq!((header.revision, header.raft_term), (2, RAFT_TERM));
    assert_eq!(header.cluster_id, store.header().cluster_id);
    let read = RangeRequest { key: "a".into(), ..RangeRequest::default() };
    assert_eq!(kv.range(read.clone()).await.expect("a range").into_inner().kvs[0].value, Bytes::from("1"));
    let future = kv.range(RangeRequest { revision: 9, ..read }).await.expect_err("a future revision");
    assert_eq!(future.code(), Code::OutOfRange);
    assert_eq!(future.message(), "etcdserver: mvcc: required revision is a future revision");
    let empty = kv.put(PutRequest::default()).await.expect_err("no key");
    assert_eq!((empty.code(), empty.message()), (Code::InvalidArgument, "etcdserver: key is not provided"));
}

#[tokio::test]
async fn each_keep_alive_request_has_its_answer() {
    let store = Store::default();
    store.lease_grant(&LeaseGrantRequest { id: 5, ttl: 30 }).expect("a lease");
    let requests = futures_util::stream::iter([5, 6, 5].map(|id| LeaseKeepAliveRequest { id }));
    let mut lease = LeaseClient::new(store.forward_service());
    let answers = lease.lease_keep_alive(requests).await.expect("a stream").into_inner();
    let ttls: Vec<_> =
        answers.map(|answer| answer.expect("an answer")).map(|answer| (answer.id, answer.ttl)).collect().await;
    assert_eq!(ttls, [(5, 30), (6, 0), (5, 30)]);
}

#[tokio::test]
async fn the_store_is_a_cluster_of_one_without_alarms_and_auth() {
    let store = Store::new(StoreConfig { client_urls: vec!["http://127.0.0.1:1".into()], ..StoreConfig::default() });
    put(&store, "a", "1");
    let member_id = store.header().member_id;
    let mut maintenance = MaintenanceClient::new(store.forward_service());
    let status = maintenance.status(StatusRequest {}).await.expect("a status").into_inner();
    assert_eq!((status.version.as_str(), status.leader), (ETCD_API_VERSION, member_id));
    assert!(status.db_size >= status.db_size_in_use && status.db_size_in_use > 0);
    assert!(maintenance.alarm(AlarmRequest::default()).await.expect("no alarm").into_inner().alarms.is_empty());
    let members =
        ClusterClient::new(store.forward_service()).member_list(MemberListRequest::default()).await.expect("members");
    assert_eq!(members.get_ref().members[0].client_ur_ls, ["http://127.0.0.1:1"]);
    assert_eq!(members.get_ref().members[0].id, member_id);
    let mut auth = AuthClient::new(store.forward_service());
    assert!(!auth.auth_status(AuthStatusRequest {}).await.expect("a status").into_inner().enabled);
    let login = auth.authenticate(AuthenticateRequest::default()).await.expect_err("no auth");
    assert_eq!(
        (login.code(), login.message()),
        (Code::FailedPrecondition, "etcdserver: authentication is not enabled")
    );
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_name() {
    let store = Store::default();
    let hash = MaintenanceClient::new(store.forward_service()).hash_kv(HashKvRequest::default()).await;
    let watch = WatchClient::new(store.forward_service()).watch(futures_util::stream::empty()).await.map(|_| ());
    let lock = LockClient::new(store.forward_service()).lock(LockRequest::default()).await;
    let refused = [
        (hash.expect_err("refused"), "Maintenance.HashKV"),
        (watch.expect_err("refused"), "Watch.Watch"),
        (lock.expect_err("refused"), "v3lockpb.Lock.Lock"),
    ];
    for (status, name) in refused {
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(status.message(), format!("etcd-relay: the embedded store does not serve {name}"));
    }
}

#[tokio::test]
async fn every_method_that_is_said_to_be_served_is() {
    for method in super::super::service::SERVED {
        let request = http::Request::post(method)
            .header("content-type", "application/grpc")
            .body(tonic::body::Body::new(http_body_util::Full::new(Bytes::from_static(&[0; 5]))))
            .expect("a request");
        let response = Store::default().forward_service().oneshot(request).await.expect("an answer");
        let at_once = response.headers().get("grpc-status").cloned();
        let collected = response.into_body().collect().await.expect("a body");
        let status = at_once.or_else(|| collected.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()));
        let status = status.expect("a status").to_str().expect("a number").to_owned();
        assert_ne!(status, "12", "{method} is unimplemented");
    }
}
