//! Keep-alives of leases: many clients share a few streams at etcd, and each is answered like by etcd.

use etcd_relay::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest, lease_client::LeaseClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue, transport::Channel};

use crate::support::{etcd::Etcd, eventually, kv, relay::RelayCommand};

/// The number of clients, each with a lease; the size of a fleet on request.
fn clients() -> usize {
    if std::env::var("ETCD_RELAY_TEST_SCALE").is_ok_and(|scale| scale == "full") { 5_000 } else { 500 }
}

/// A client that keeps its lease alive, like Go's client.
struct Keeper {
    id: i64,
    beats: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl Keeper {
    async fn open(channel: &Channel, id: i64, metadata: &[(&'static str, &str)]) -> Result<Self, Status> {
        let (beats, requests) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(requests));
        for (name, value) in metadata {
            request.metadata_mut().insert(*name, MetadataValue::try_from(*value).expect("a value"));
        }
        let answers = LeaseClient::new(channel.clone()).lease_keep_alive(request).await?.into_inner();
        Ok(Self { id, beats, answers })
    }

    async fn keep(&mut self) -> Result<LeaseKeepAliveResponse, Status> {
        self.keep_lease(self.id).await
    }

    async fn keep_lease(&mut self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        // If the stream has ended, its status shows the reason.
        let _ = self.beats.send(LeaseKeepAliveRequest { id }).await;
        self.answers.message().await?.ok_or_else(|| Status::internal("ended"))
    }
}

async fn grant(channel: &Channel, ttl: i64) -> i64 {
    LeaseClient::new(channel.clone())
        .lease_grant(LeaseGrantRequest { id: 0, ttl })
        .await
        .expect("granted")
        .into_inner()
        .id
}

/// The remaining time of a lease according to etcd; -1 if it is gone.
async fn left(channel: &Channel, id: i64) -> i64 {
    let request = LeaseTimeToLiveRequest { id, keys: false };
    LeaseClient::new(channel.clone()).lease_time_to_live(request).await.expect("answered").into_inner().ttl
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_of_many_clients_cost_etcd_a_few_streams_and_none_is_lost() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").start().await;
    let direct = kv::channel(&etcd.endpoint()).await;
    let mut channels = Vec::new();
    for _ in 0..8 {
        channels.push(kv::channel(&relay.endpoint()).await);
    }
    let mut keepers = Vec::new();
    for index in 0..clients() {
        let id = grant(&direct, 60).await;
        keepers.push(Keeper::open(&channels[index % channels.len()], id, &[]).await.expect("open"));
    }
    // A client that sends requests and never reads delays nobody.
    let stalled = Keeper::open(&channels[0], keepers[0].id, &[]).await.expect("open");
    for _ in 0..10 {
        stalled.beats.send(LeaseKeepAliveRequest { id: stalled.id }).await.expect("room");
    }
    for _ in 0..3 {
        let rounds = keepers.iter_mut().map(async |keeper| {
            let answer = keeper.keep().await.expect("an answer");
            assert_eq!((answer.id, answer.ttl), (keeper.id, 60), "each client gets its own answer");
            assert_ne!(answer.header.expect("a header").cluster_id, 0);
        });
        futures_util::future::join_all(rounds).await;
    }
    let streams = etcd.calls("LeaseKeepAlive").await;
    assert!(streams <= 20, "{streams} streams at etcd for {} clients", keepers.len());
    // etcd's answer for a missing lease is not an error, and each client's answers come in order.
    let gone = keepers[1].keep_lease(12_345).await.expect("an answer");
    assert_eq!((gone.id, gone.ttl), (12_345, 0));
    for id in [keepers[1].id, 5, keepers[1].id, 6] {
        keepers[1].beats.send(LeaseKeepAliveRequest { id }).await.expect("room");
    }
    for id in [keepers[1].id, 5, keepers[1].id, 6] {
        assert_eq!(keepers[1].answers.message().await.expect("open").expect("an answer").id, id);
    }
    drop((keepers, stalled));
    eventually("nothing is left", async || (relay.metric("etcd_relay_forwards").await < 1.0).then_some(())).await;
    relay.assert_log_has_only(&[]);
}

/// etcd's own proxy keeps a dead client's lease alive for up to twice its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_of_a_client_that_is_gone_ends_while_others_keep_theirs() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").start().await;
    let (direct, channel) = (kv::channel(&etcd.endpoint()).await, kv::channel(&relay.endpoint()).await);
    let mut gone = Keeper::open(&channel, grant(&direct, 3).await, &[]).await.expect("open");
    let mut stays = Keeper::open(&channel, grant(&direct, 30).await, &[]).await.expect("open");
    let id = gone.id;
    gone.keep().await.expect("kept");
    drop(gone);
    eventually("its lease has ended", async || {
        assert_eq!(stays.keep().await.expect("kept").ttl, 30);
        (left(&direct, id).await == -1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_on_when_etcd_was_away_and_hear_that_there_is_no_leader() {
    let mut etcd = Etcd::cluster_of_three().await;
    let relay = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").start().await;
    let channel = kv::channel(&relay.endpoint()).await;
    let id = grant(&kv::channel(&etcd.endpoint()).await, 600).await;
    let mut plain = Keeper::open(&channel, id, &[]).await.expect("open");
    let mut wants_leader = Keeper::open(&channel, id, &[("hasleader", "true")]).await.expect("open");
    plain.keep().await.expect("kept");
    wants_leader.keep().await.expect("kept");
    etcd.kill_member(1);
    etcd.kill_member(2);
    // The client sends nothing: etcd ends such a stream by itself.
    let lost = wants_leader.answers.message().await.expect_err("there is no leader");
    assert_eq!((lost.code(), lost.message()), (Code::Unavailable, "etcdserver: no leader"));
    etcd.restart().await;
    let kept = eventually("a new stream works again", async || {
        let mut keeper = Keeper::open(&channel, id, &[("hasleader", "true")]).await.ok()?;
        keeper.keep().await.ok()
    })
    .await;
    assert_eq!(kept.id, id);
    eventually("so does one that wants none", async || {
        if plain.keep().await.is_ok() {
            return Some(());
        }
        plain = Keeper::open(&channel, id, &[]).await.ok()?;
        None
    })
    .await;
}
