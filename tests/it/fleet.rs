//! Several relays: how clients find them and stay with them.
//!
//! Always holds: what is written in etcd is read from etcd.

mod keepalives;
mod leaving;
mod rolling;
mod shedding;
mod tiers;

use std::{process::Command, time::Duration};

use etcd_relay::pb::etcdserverpb::{
    LeaseLeasesRequest, LeaseRevokeRequest, MemberListRequest, RangeRequest, cluster_client::ClusterClient,
    lease_client::LeaseClient,
};

use tonic::Code;

use crate::support::{
    etcd::{Etcd, etcdctl},
    eventually, free_port,
    kv::{self, Kv},
    relay::{Relay, RelayCommand},
};

const RELAYS: &str = "/relays";

/// A relay that advertises itself, and its URL.
async fn advertising(etcd: &Etcd, args: &[&str]) -> (Relay, String) {
    let addr = format!("127.0.0.1:{}", free_port());
    let url = format!("http://{addr}");
    let mut command = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").listen_grpc(&addr);
    for arg in args {
        command = command.arg(arg);
    }
    (command.arg(&format!("--advertise-client-url={url}")).start().await, url)
}

/// The addresses that a client gets when it asks for the members.
async fn members(endpoint: &str) -> Vec<String> {
    let request = MemberListRequest { linearizable: true };
    let list = ClusterClient::new(kv::channel(endpoint).await).member_list(request).await.expect("a list").into_inner();
    assert_ne!(list.header.expect("a header").cluster_id, 0);
    // Like Go's client: members without a name have not started to serve.
    assert!(list.members.iter().all(|member| !member.name.is_empty() && !member.is_learner));
    let mut urls: Vec<String> = list.members.into_iter().flat_map(|member| member.client_ur_ls).collect();
    urls.sort();
    urls
}

/// The keys below the prefix at which relays are registered.
async fn registered(etcd: &Etcd) -> Vec<String> {
    let (key, range_end) = (kv::bytes(format!("{RELAYS}/")), kv::prefix_end(format!("{RELAYS}/")));
    let kvs =
        Kv::connect(&etcd.endpoint()).await.range(RangeRequest { key, range_end, ..Default::default() }).await.kvs;
    kvs.into_iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_lists_name_the_relay_and_etcds_tools_stay_with_it() {
    let etcd = Etcd::start().await;
    let (relay, url) = advertising(&etcd, &[]).await;
    assert_eq!(members(&relay.endpoint()).await, std::slice::from_ref(&url));
    let status = Command::new(etcdctl())
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &relay.endpoint(), "endpoint", "status", "--cluster"])
        .output()
        .expect("etcdctl runs");
    let printed = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.success() && printed.contains(&url) && !printed.contains(&etcd.endpoint()), "{status:?}");
    let plain = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").start().await;
    assert_eq!(members(&plain.endpoint()).await, [etcd.endpoint()], "etcd's own list where nothing is advertised");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_register_themselves_and_each_names_all_of_them() {
    let etcd = Etcd::start().await;
    let resolver = [&*format!("--resolver-prefix={RELAYS}"), "--resolver-ttl=3s"];
    let (mut first, first_url) = advertising(&etcd, &resolver).await;
    let (mut second, second_url) = advertising(&etcd, &resolver).await;
    let mut both = vec![first_url.clone(), second_url.clone()];
    both.sort();
    for relay in [&first, &second] {
        eventually("both are named", async || (members(&relay.endpoint()).await == both).then_some(())).await;
    }
    // The leases are revoked, so the relays register again.
    let mut leases = LeaseClient::new(kv::channel(&etcd.endpoint()).await);
    for lease in leases.lease_leases(LeaseLeasesRequest {}).await.expect("leases").into_inner().leases {
        leases.lease_revoke(LeaseRevokeRequest { id: lease.id }).await.expect("revoked");
    }
    eventually("both are registered again", async || (registered(&etcd).await.len() == 2).then_some(())).await;
    // A relay that was killed is listed until its lease ends, and not longer.
    first.kill();
    eventually("the other one is named alone", async || {
        (members(&second.endpoint()).await == std::slice::from_ref(&second_url)).then_some(())
    })
    .await;
    assert_eq!(registered(&etcd).await, [format!("{RELAYS}/{second_url}")]);
    assert!((second.metric("etcd_relay_registered").await - 1.0).abs() < f64::EPSILON);
    // A relay that stops in order removes its key.
    second.terminate();
    assert_eq!(second.exit_code(Duration::from_secs(20)).await, 0);
    assert!(registered(&etcd).await.is_empty());
    let left = leases.lease_leases(LeaseLeasesRequest {}).await.expect("leases").into_inner().leases;
    assert!(left.is_empty(), "its lease goes with it: {left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_have_each_other_as_upstream_refuse_what_would_go_round() {
    let addr = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let url = addr.clone().map(|addr| format!("http://{addr}"));
    let first =
        RelayCommand::serve(std::slice::from_ref(&url[1])).prefix("/a/").listen_grpc(&addr[0]).unready().start().await;
    let second =
        RelayCommand::serve(std::slice::from_ref(&url[0])).prefix("/a/").listen_grpc(&addr[1]).unready().start().await;
    let itself = format!("127.0.0.1:{}", free_port());
    let itself = RelayCommand::serve(&[format!("http://{itself}")]).listen_grpc(&itself).unready().start().await;
    for relay in [&first, &second, &itself] {
        let mut kv = Kv::connect(&relay.endpoint()).await.raw;
        let refused = kv.put(kv::put("/a/k", "1")).await.expect_err("there is no etcd");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("--etcd"), "it says what to do: {refused:?}");
        assert_eq!(relay.ready_status().await, Some(503));
    }
}
