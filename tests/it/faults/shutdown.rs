//! Shutdown: after SIGTERM each stream ends in an orderly way, within the drain time.

use std::time::Duration;

use tonic::Code;

use super::PREFIX;
use crate::support::{
    client::{self, WatchStream, header_revision, is_progress, revisions},
    etcd::Etcd,
    kv::Kv,
    relay::RelayCommand,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_each_stream_so_that_clients_resume() {
    let etcd = Etcd::start().await;
    let mut relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix(PREFIX)).await;
        streams.push(stream);
    }
    let told = kv.put(format!("{PREFIX}a"), "1").await;
    for stream in &mut streams {
        assert_eq!(revisions(&stream.next().await), [told]);
    }
    // A revision that no watch sees, so only progress can report it.
    let quiet = Kv::connect(&relay.endpoint()).await.put("elsewhere", "1").await;
    Kv::connect(&relay.endpoint()).await.get(format!("{PREFIX}a")).await.expect("a read that waits for that revision");
    relay.terminate();
    assert_eq!(relay.exit_code(Duration::from_secs(20)).await, 0);
    for stream in &mut streams {
        // etcd's clients open a stream again after Unavailable; most other codes end their watches for good.
        let status = stream.ended().await.expect_err("a watch does not end by itself");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        let record = stream.record();
        let last = &record[record.len() - 1].response;
        assert!(!last.canceled, "a cancel would end the client's watch for good");
        assert!(is_progress(last) && header_revision(last) >= quiet, "a last progress, to resume from: {last:?}");
    }
    relay.assert_log_has_only(&[]);
}

/// A client that does not read cannot delay the shutdown beyond the drain time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_cannot_hold_up_the_end() {
    let etcd = Etcd::start().await;
    let command = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).arg("--drain-time=2s");
    let mut relay = command.start().await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(client::prefix(PREFIX)).await;
    stream.pause();
    let kv = Kv::connect(&etcd.endpoint()).await;
    for _ in 0..20 {
        kv.put(format!("{PREFIX}a"), vec![b'x'; 100 << 10]).await;
    }
    relay.terminate();
    relay.exit_code(Duration::from_secs(10)).await;
    relay.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_flags_end_the_start_with_64() {
    for (args, named) in [
        (&["serve"][..], "--etcd"),
        (&["serve", "--etcd", "not a url"], "--etcd"),
        (&["serve", "--etcd", "http://127.0.0.1:1", "--history-entries", "0"], "--history-entries"),
        (&["serve", "--etcd", "http://127.0.0.1:1", "--on-demand", "perhaps"], "--on-demand"),
        (&["serve", "--etcd", "http://127.0.0.1:1", "--listen-grpc", "nowhere"], "--listen-grpc"),
        (&["serve", "--etcd", "http://127.0.0.1:1", "--no-such-flag"], "--no-such-flag"),
    ] {
        let output =
            tokio::process::Command::new(env!("CARGO_BIN_EXE_etcd-relay")).args(args).kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(20), output).await.expect("it ends").expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {text}");
        assert!(text.contains(named), "{args:?} names the flag: {text}");
    }
}
