//! What one client does to etcd through the relay does not affect the calls of other clients.

use std::time::Duration;

use etcd_relay::pb::{
    etcdserverpb::{
        LeaseGrantRequest, RangeRequest, TxnRequest, WatchCreateRequest, kv_client::KvClient, lease_client::LeaseClient,
    },
    v3lockpb::{LockRequest, lock_client::LockClient},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use tonic::transport::{Channel, Endpoint, Uri};

use super::PREFIX;
use crate::support::{
    client::{self, WatchStream},
    etcd::Etcd,
    eventually,
    kv::{self, Kv},
    relay::RelayCommand,
};

/// Streams that etcd accepts at once on a connection.
const STREAMS: usize = 10;

/// A client from another address of this machine.
async fn channel_from(address: &'static str, relay: &str) -> Channel {
    let target = Endpoint::from_shared(relay.to_owned()).expect("a URL");
    let connector = tower::service_fn(move |uri: Uri| async move {
        let socket = TcpSocket::new_v4()?;
        socket.bind(format!("{address}:0").parse().expect("an address"))?;
        let to = uri.authority().expect("an authority").as_str().parse().expect("an address");
        socket.connect(to).await.map(hyper_util::rt::TokioIo::new)
    });
    eventually("the relay accepts", async || target.connect_with_connector(connector).await.ok()).await
}

async fn lock(channel: &Channel, name: &str) -> Result<(), tonic::Status> {
    let lease = LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await?;
    let request = LockRequest { name: kv::bytes(name), lease: lease.into_inner().id };
    LockClient::new(channel.clone()).lock(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_clients_waiting_locks_hold_up_nobody_elses_calls() {
    let etcd = Etcd::start_with(&["--max-concurrent-streams", &STREAMS.to_string()]).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let holder = kv::channel(&etcd.endpoint()).await;
    lock(&holder, "held").await.expect("the lock is free");

    let greedy = kv::channel(&relay.endpoint()).await;
    let mut locks = JoinSet::new();
    for _ in 0..30 * STREAMS {
        let greedy = greedy.clone();
        locks.spawn(async move { lock(&greedy, "held").await });
    }
    eventually("more locks wait than one connection takes", async || {
        let lane = r#"lane="waiting""#;
        let connections = relay.metric_of("etcd_relay_upstream_connections", lane).await;
        let waiting = relay.metric_of("etcd_relay_upstream_waiting_calls", lane).await;
        (connections > 4.0 && waiting > 0.0).then_some(())
    })
    .await;

    // Its own short calls, others' short calls, others' locks, confirmed reads and new feeds: none of them waits.
    let same = Kv::over(greedy.clone());
    let revision = same.put(format!("{PREFIX}a"), "1").await;
    assert_eq!(same.get(format!("{PREFIX}a")).await.expect("there").mod_revision, revision);
    let other = channel_from("127.0.0.2", &relay.endpoint()).await;
    Kv::over(other.clone()).put(format!("{PREFIX}b"), "2").await;
    tokio::time::timeout(Duration::from_secs(20), lock(&other, "free"))
        .await
        .expect("not delayed")
        .expect("a free lock");
    let mut watch = WatchStream::over(other, &[]);
    watch.created(WatchCreateRequest { watch_id: 1, ..client::prefix("/elsewhere/") }).await;
    assert_eq!(locks.len(), 30 * STREAMS, "no lock was refused or given");
    locks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_feeds_than_a_connection_has_streams_are_all_live() {
    let etcd = Etcd::start_with(&["--max-concurrent-streams", &STREAMS.to_string()]).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let kv = Kv::connect(&relay.endpoint()).await;
    let mut streams = Vec::new();
    for feed in 0..3 * STREAMS {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix(format!("/apart/{feed}/"))).await;
        streams.push(stream);
    }
    for (feed, stream) in streams.iter_mut().enumerate() {
        let revision = kv.put(format!("/apart/{feed}/x"), "1").await;
        stream.until_revision(revision).await;
    }
}

/// Calls reach etcd as they are, after the relay has looked into them, and as JSON.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_way_a_call_goes_to_etcd_it_counts_for_its_client() {
    let etcd = Etcd::start().await;
    let limit = "--max-forwarded-per-client=1";
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).arg(limit).start().await;
    let holder = kv::channel(&etcd.endpoint()).await;
    lock(&holder, "held").await.expect("the lock is free");

    // The only call that the client may have is one that waits.
    let client = kv::channel(&relay.endpoint()).await;
    let lease = LeaseClient::new(holder.clone()).lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await;
    let request = LockRequest { name: kv::bytes("held"), lease: lease.expect("a lease").into_inner().id };
    let mut locks = LockClient::new(client.clone());
    let waiting = tokio::spawn(async move { locks.lock(request).await });
    let queue = RangeRequest {
        key: kv::bytes("held/"),
        range_end: kv::prefix_end("held/"),
        count_only: true,
        ..RangeRequest::default()
    };
    let at_etcd = Kv::over(holder);
    eventually("it waits at etcd", async || (at_etcd.range(queue.clone()).await.count == 2).then_some(())).await;

    let mut kv = KvClient::new(client.clone());
    let elsewhere = RangeRequest { key: kv::bytes("/elsewhere/a"), ..RangeRequest::default() };
    let refusals = [
        ("lease", LeaseClient::new(client).lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.map(drop)),
        ("put", kv.put(kv::put(format!("{PREFIX}a"), "1")).await.map(drop)),
        ("range", kv.range(elsewhere.clone()).await.map(drop)),
        ("txn", kv.txn(TxnRequest::default()).await.map(drop)),
    ];
    for (call, answer) in refusals {
        let status = answer.expect_err(call);
        assert!(status.message().contains("--max-forwarded-per-client"), "{call}: {status}");
    }
    let json = post_json(relay.grpc_addr(), "/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#).await;
    assert!(json.contains("--max-forwarded-per-client"), "{json}");

    // Another client is not affected.
    let mut other = KvClient::new(channel_from("127.0.0.2", &relay.endpoint()).await);
    other.put(kv::put(format!("{PREFIX}b"), "2")).await.expect("put");
    other.range(elsewhere).await.expect("read");
    waiting.abort();
}

/// Posts JSON over HTTP/1.1. Returns the whole answer.
async fn post_json(addr: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connected");
    let length = body.len();
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: {addr}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}
