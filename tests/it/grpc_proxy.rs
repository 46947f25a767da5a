//! `etcd-relay grpc-proxy start` as a replacement of `etcd grpc-proxy start`.
//!
//! Each flag is tested beside the command line. These tests check that the process serves what etcd's proxy serves, and
//! what it does not.

use std::{process::Stdio, time::Duration};

use etcd_relay::pb::etcdserverpb::WatchCreateRequest;

use crate::support::{
    client::{self, WatchStream, revisions},
    etcd::Etcd,
    eventually, http,
    kv::Kv,
    relay::RelayCommand,
    replay::Replay,
    validate::{Expected, assert_valid},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serves_under_the_flags_of_etcds_proxy() {
    let etcd = Etcd::start().await;
    let command =
        RelayCommand::grpc_proxy(&[etcd.endpoint()]).arg("--advertise-client-url=").arg("--max-send-bytes=1048576");
    let mut relay = command.start().await;
    // Logged after the addresses.
    eventually("the words that scripts wait for are said", async || {
        relay.log().contains("started gRPC proxy").then_some(())
    })
    .await;
    relay.assert_log_has_only(&["--max-send-bytes"]);
    assert_eq!(relay.log().matches("--max-send-bytes").count(), 1, "one line for a flag that is not needed");
    let kv = Kv::connect(&relay.endpoint()).await;
    let mut live = WatchStream::open(&relay.endpoint()).await;
    live.created(client::key("foo")).await;
    let mut last = 0;
    for round in 0..2_000 {
        last = kv.put("foo", format!("{round}")).await;
    }
    let mut late = WatchStream::open(&relay.endpoint()).await;
    let request = WatchCreateRequest { start_revision: 2, ..client::key("foo") };
    late.created(request.clone()).await;
    late.until_revision(last).await;
    live.until_revision(last).await;
    let replay = Replay::read(&etcd.endpoint(), last).await;
    let expected = Expected { complete_to: Some(last), prev_kv_known: true };
    assert_valid(&[request], &late.record(), &replay, expected);
    assert_valid(&[client::key("foo")], &live.record(), &replay, expected);
    // As in etcd's proxy, the same address has metrics and health as well.
    assert!(http::get(relay.grpc_addr(), "/health").await.expect("health").body.contains("\"health\":\"true\""));
    assert!(http::get(relay.grpc_addr(), "/metrics").await.expect("metrics").body.contains("etcd_relay_"));
    relay.terminate();
    assert_eq!(relay.exit_code(Duration::from_secs(20)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flag_that_cannot_be_kept_is_refused_by_name() {
    for flag in ["--namespace=/a/", "--cert-file=x.pem", "--enable-pprof=true", "--no-such-flag"] {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_etcd-relay"))
            .args(["grpc-proxy", "start", "--listen-addr=127.0.0.1:0", flag])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(20), output).await.expect("it ends").expect("it starts");
        let (name, _) = flag.split_once('=').unwrap_or((flag, ""));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{flag}: {text}");
        assert!(text.contains(name), "{flag} is named: {text}");
    }
}

/// Without `--prefix`, which etcd's proxy does not have, each range opens a feed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_one_range_share_one_at_etcd() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::grpc_proxy(&[etcd.endpoint()]).start().await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix("a/")).await;
        streams.push(stream);
    }
    assert_eq!(etcd.watchers().await, 1);
    let revision = Kv::connect(&etcd.endpoint()).await.put("a/b", "1").await;
    for stream in &mut streams {
        assert_eq!(revisions(&stream.next().await), [revision]);
    }
}

/// The relay is given one member. It learns of the others, continues without the first, and follows changes of the
/// membership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_are_those_that_the_cluster_names() {
    let mut etcd = Etcd::cluster_of_three().await;
    let command = RelayCommand::grpc_proxy(&[etcd.endpoint()]).arg("--endpoints-auto-sync-interval=1s");
    let relay = command.start().await;
    let healthy = async |member: usize| {
        let text = http::get(relay.grpc_addr(), "/metrics").await.expect("metrics").body;
        let label = format!("member=\"{member}\"");
        http::series(&text, "etcd_relay_member_healthy").find(|(found, _)| *found == label).map(|(_, value)| value)
    };
    for member in [2, 3] {
        eventually("a member that was not named is asked", async || (healthy(member).await == Some(1.0)).then_some(()))
            .await;
    }
    let mut watch = WatchStream::open(&relay.endpoint()).await;
    watch.created(client::key("foo")).await;
    let kv = Kv::connect(&relay.endpoint()).await;
    let put = async || {
        let put = crate::support::kv::put("foo", "1");
        eventually("a write", async || kv.raw.clone().put(put.clone()).await.ok()).await.into_inner().header
    };
    etcd.kill_member(0);
    let revision = put().await.expect("a header").revision;
    watch.until_revision(revision).await;
    etcd.restart().await;

    let added = etcd.add_member().await;
    eventually("a member that came is asked", async || (healthy(added + 1).await == Some(1.0)).then_some(())).await;
    etcd.remove_member(0).await;
    eventually("a member that went is not asked", async || healthy(1).await.filter(|healthy| healthy.is_nan())).await;
    for gone in ["The cluster has another member", "The cluster no longer has this member"] {
        assert!(relay.log().contains(gone));
    }
    let revision = put().await.expect("a header").revision;
    watch.until_revision(revision).await;
    assert!(!watch.has_ended());
    relay.assert_no_panic();
}
