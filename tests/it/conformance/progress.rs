//! Progress: how a watch without events reports its position.

use std::time::Duration;

use etcd_relay::pb::etcdserverpb::WatchCreateRequest;

use crate::support::{
    client::{self, event_revision, header_revision, is_progress},
    quiet_time,
    target::Target,
};

pub async fn a_request_is_answered_for_the_whole_stream(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let before = kv.put(format!("{ns}a"), "1").await;
    stream.created(client::key(format!("{ns}quiet"))).await;
    stream.created(client::key(format!("{ns}silent"))).await;
    for _ in 0..3 {
        // A request for which a server has no answer within a few seconds gets none, and clients ask again. Much is
        // written by other tests meanwhile.
        let mut attempts = 0..6;
        let progress = loop {
            attempts.next().expect("one of six requests is answered");
            stream.progress();
            if let Some(recorded) = stream.take_within(Duration::from_secs(5)).await {
                break recorded.response;
            }
        };
        assert!(is_progress(&progress), "not progress: {progress:?}");
        assert_eq!(progress.watch_id, -1);
        assert!(header_revision(&progress) >= before);
        assert_ne!(progress.header.as_ref().expect("a header").raft_term, 0);
    }
    stream.expect_silence().await;
}

pub async fn a_request_without_watches_is_not_answered(target: &Target) {
    let (mut stream, ns) = (target.stream().await, target.namespace());
    stream.progress();
    stream.expect_silence().await;
    stream.created(client::prefix(&ns)).await;
    stream.cancel(0);
    assert!(stream.next().await.canceled);
    stream.progress();
    stream.expect_silence().await;
}

pub async fn a_future_watch_silences_progress(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let start_revision = kv.revision().await + 1_000_000;
    stream.created(client::prefix(&ns)).await;
    stream.created(WatchCreateRequest { start_revision, ..client::prefix(&ns) }).await;
    stream.progress();
    if target.is_etcd() {
        // Releases before 2025 answer with the current revision, which the future watch has not reached: a false
        // promise.
        if let Some(recorded) = stream.take_within(quiet_time()).await {
            assert!(is_progress(&recorded.response));
        }
    } else {
        stream.expect_silence().await;
    }
    stream.cancel(1);
    assert!(stream.next().await.canceled);
    stream.progress();
    assert!(is_progress(&stream.next().await));
}

/// Needs its own server, where no other test writes, with an interval of 100 ms.
pub async fn a_watch_exactly_one_ahead_is_told_nothing_below_its_start(target: &Target) {
    let (mut stream, kv) = (target.stream().await, target.kv().await);
    let start_revision = kv.put("other", "0").await + 1;
    stream.created(WatchCreateRequest { start_revision, progress_notify: true, ..client::key("quiet") }).await;
    stream.progress();
    // Releases of etcd before 2025 ignore where a watch begins.
    if !target.is_etcd() {
        stream.expect_silence().await;
    }
    assert_eq!(kv.put("other", "1").await, start_revision);
    loop {
        stream.progress();
        let Some(recorded) = stream.take_within(quiet_time()).await else { continue };
        assert!(is_progress(&recorded.response), "not progress: {recorded:?}");
        match header_revision(&recorded.response) {
            revision if revision == start_revision => break,
            below => assert!(target.is_etcd(), "told {below} before {start_revision}"),
        }
    }
}

pub async fn progress_comes_after_the_events_it_covers(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    stream.created(client::prefix(&ns)).await;
    let mut written = Vec::new();
    for round in 0..100 {
        written.push(kv.put(format!("{ns}a"), format!("{round}")).await);
        stream.progress();
    }
    let last = written[99];
    let (mut told, mut covered) = (Vec::new(), 0);
    // A request is not answered while the watch is behind, so the test repeats it at the end.
    while covered < last {
        let Some(recorded) = stream.take_within(quiet_time()).await else {
            stream.progress();
            continue;
        };
        if is_progress(&recorded.response) {
            covered = header_revision(&recorded.response);
            let owed = written.iter().filter(|revision| **revision <= covered).count();
            assert!(told.len() >= owed, "progress {covered} with {} of {owed} events told", told.len());
        } else {
            told.extend(recorded.response.events.iter().map(event_revision));
        }
    }
    assert_eq!(told, written);
}

/// Runs with an interval of 100 ms.
pub async fn progress_is_told_to_who_asked(target: &Target) {
    let kv = target.kv().await;
    let (mut asked, mut silent) = (target.stream().await, target.stream().await);
    silent.created(client::key("quiet")).await;
    asked.created(client::key("quiet")).await;
    asked.created(WatchCreateRequest { progress_notify: true, ..client::key("quiet") }).await;
    let mut last = 0;
    for round in 0..3 {
        let revision = kv.put("other", format!("{round}")).await;
        loop {
            let progress = asked.next().await;
            assert!(is_progress(&progress), "not progress: {progress:?}");
            assert_eq!(progress.watch_id, 1, "told with the id of the watch that asked");
            assert!(header_revision(&progress) >= last);
            last = header_revision(&progress);
            if last >= revision {
                break;
            }
        }
    }
    silent.expect_silence().await;
}
