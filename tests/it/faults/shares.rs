//! What one client does to etcd through the relay does not affect the calls of other clients.

use std::time::Duration;

use etcd_relay::pb::{
    etcdserverpb::{LeaseGrantRequest, WatchCreateRequest, lease_client::LeaseClient},
    v3lockpb::{LockRequest, lock_client::LockClient},
};
use tokio::{net::TcpSocket, task::JoinSet};
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
