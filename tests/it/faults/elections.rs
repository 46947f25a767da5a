//! The leader fails, so the cluster elects another one: writes through the relay wait for it, and keep-alives go on.
//!
//! With three members the election takes one to two seconds. Members that fail without an election are in `members`.

use std::time::Duration;

use etcd_relay::pb::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, lease_client::LeaseClient};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use super::PREFIX;
use crate::support::{
    etcd::Etcd,
    eventually_within,
    kv::{self, Kv},
    relay::{Relay, RelayCommand},
};

/// Writes that begin while the leader fails, one every 20 ms.
const WRITES: usize = 100;
/// How many of them may be lost: those that were on their way, and those that came before the relay had noticed.
const LOST: usize = 15;
/// Clients with a lease.
const KEEPERS: usize = 20;
/// The time until all is well again, plus a reserve for a busy machine.
const SOON: Duration = Duration::from_secs(12);

/// A relay, and the member that its calls go to.
async fn relay_over(etcd: &Etcd) -> (Relay, usize) {
    let relay = RelayCommand::serve(&etcd.endpoints()).prefix(PREFIX).start().await;
    relay.follows().await;
    let state = relay.state().await;
    let members = state["members"].as_array().cloned().unwrap_or_default();
    let used = members.iter().position(|member| member["preferred"] == true).expect("one is used");
    (relay, used)
}

async fn lead_by(etcd: &Etcd, member: usize) {
    if etcd.leader().await != member {
        etcd.move_leader(member).await;
    }
}

/// A follower passes writes on to the leader that is gone, and they are lost. A client that has all members loses a
/// quarter of these writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_wait_for_the_end_of_an_election() {
    let mut etcd = Etcd::cluster_of_three().await;
    let (relay, used) = relay_over(&etcd).await;
    lead_by(&etcd, used).await;
    let through = Kv::connect(&relay.endpoint()).await;
    through.put(format!("{PREFIX}before"), "1").await;
    let mut writes = JoinSet::new();
    let mut every = tokio::time::interval(Duration::from_millis(20));
    for number in 0..WRITES {
        every.tick().await;
        if number == 5 {
            etcd.kill_member(used);
        }
        let mut raw = through.raw.clone();
        writes.spawn(async move { raw.put(kv::put(format!("{PREFIX}{number:03}"), "1")).await.map(|_| number) });
    }
    let ends = writes.join_all().await;
    let lost: Vec<_> = ends.iter().filter_map(|end| end.as_ref().err()).map(|status| status.message()).collect();
    println!("{} of {WRITES} writes were lost", lost.len());
    assert!(lost.len() <= LOST, "{} writes were lost: {lost:?}", lost.len());
    relay.assert_no_panic();
}

/// A follower waits seven seconds for the leader that is gone, and then ends the stream with an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keep_alives_go_on_when_the_leader_is_frozen() {
    let mut etcd = Etcd::cluster_of_three().await;
    let (relay, used) = relay_over(&etcd).await;
    let leader = (used + 1) % 3;
    lead_by(&etcd, leader).await;
    let channel = kv::channel(&relay.endpoint()).await;
    let mut keepers = Vec::new();
    for _ in 0..KEEPERS {
        let mut leases = LeaseClient::new(channel.clone());
        let id = leases.lease_grant(LeaseGrantRequest { id: 0, ttl: 60 }).await.expect("granted").into_inner().id;
        let (beats, requests) = mpsc::channel(1);
        beats.send(LeaseKeepAliveRequest { id }).await.expect("room");
        let mut answers = leases.lease_keep_alive(ReceiverStream::new(requests)).await.expect("open").into_inner();
        assert_eq!(answers.message().await.expect("kept").expect("an answer").id, id);
        keepers.push((id, beats, answers));
    }
    etcd.pause_member(leader);
    for (id, beats, _) in &keepers {
        beats.send(LeaseKeepAliveRequest { id: *id }).await.expect("room");
    }
    for (id, _, answers) in &mut keepers {
        let answer = tokio::time::timeout(SOON, answers.message()).await.expect("in time");
        let answer = answer.expect("the stream goes on").expect("an answer");
        assert_eq!((answer.id, answer.ttl), (*id, 60));
    }
    eventually_within(SOON, "a write as well", async || {
        let put = Kv::over(channel.clone()).raw.put(kv::put(format!("{PREFIX}after"), "1")).await;
        put.is_ok().then_some(())
    })
    .await;
    relay.assert_no_panic();
}
