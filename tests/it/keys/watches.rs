//! `/v1/watch` delivers the same as a watch of etcd, across breaks of any kind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use etcd_relay::pb::{etcdserverpb::WatchCreateRequest, mvccpb::event::EventType};

use super::{
    lists::HOSTILE,
    reader::{Block, Change, Reader, bytes_of, get},
};
use crate::support::{
    client::{WatchStream, prefix},
    etcd::Etcd,
    eventually,
    kv::{Kv, op_delete, op_put},
    relay::RelayCommand,
};

/// All events of etcd for `/a/` between two revisions.
async fn told_by_etcd(etcd: &Etcd, from: i64, through: i64) -> Vec<Change> {
    let mut stream = WatchStream::open(&etcd.endpoint()).await;
    stream.created(WatchCreateRequest { start_revision: from, ..prefix("/a/") }).await;
    stream.until_revision(through).await;
    let responses = stream.record();
    let events = responses.iter().flat_map(|recorded| &recorded.response.events);
    let changes = events.map(|event| {
        let kv = event.kv.as_ref().expect("a key");
        let kind = if event.r#type == EventType::Put as i32 { "put" } else { "delete" };
        (kind.to_owned(), kv.key.to_vec(), kv.value.to_vec(), kv.mod_revision)
    });
    changes.filter(|change| change.3 <= through).collect()
}

fn changes(events: &[Block]) -> Vec<Change> {
    events.iter().map(Block::change).collect()
}

/// Checks that exactly the last event of each revision has its id.
fn assert_whole_revisions(events: &[Block]) {
    for (index, event) in events.iter().enumerate() {
        let revision = event.change().3;
        let is_last = events.get(index + 1).is_none_or(|next| next.change().3 != revision);
        assert_eq!(event.id, is_last.then_some(revision), "{event:?}");
    }
}

#[tokio::test]
async fn events_are_etcds_whatever_keys_and_values_are() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    let begun = direct.revision().await;
    let paths = ["/v1/watch?prefix=/a/", "/v1/watch?prefix=/a/&encoding=base64", "/v1/watch?prefix=/a"];
    let mut readers = Vec::new();
    for path in paths {
        // The last one is outside every prefix.
        readers.push(Reader::open(relay.http_addr(), path, &[]).await);
    }
    for (key, value) in HOSTILE {
        direct.put(key, value).await;
        direct.put("/b/other", value).await;
        direct
            .txn(vec![op_put(key, b"one of"), op_put("/a/two", value), op_delete("/a/three"), op_put("/b", "")])
            .await;
        direct.txn(vec![op_delete(key), op_put("/a/three", value)]).await;
    }
    let last = direct.put("/a/last", "1").await;
    let want = told_by_etcd(&etcd, begun + 1, last).await;
    assert_eq!(want.len(), HOSTILE.len() * 6, "each round has five events, or six once there is a third key to delete");
    for (mut reader, path) in readers.into_iter().zip(paths) {
        let events = reader.until(last).await;
        assert_whole_revisions(&events);
        assert_eq!(changes(&events), want, "{path}");
        assert!((1_000..3_000).contains(&reader.retry.expect("it says when to come again")));
        if path.contains("base64") {
            assert!(events.iter().all(|event| event.json().get("key").is_none()), "all are base64");
        }
    }
    relay.assert_no_panic();
}

#[tokio::test]
async fn a_stream_that_resumes_at_any_id_across_restarts_loses_and_repeats_nothing() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let begun = direct.put("/a/first", "0").await;
    let mut relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    let mut reader = Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/", &[]).await;
    let mut got: Vec<Block> = Vec::new();
    let mut last = begun;
    for round in 0..4 {
        for number in 0..40 {
            let (one, two) = (format!("/a/{number}"), format!("/a/{}", number + 1));
            last = match number % 3 {
                0 => direct.txn(vec![op_put(&one, "x"), op_put(&two, "y"), op_put("/b/x", "z")]).await,
                1 => direct.put(&one, format!("{round}")).await,
                _ => direct.delete(&one).await,
            };
        }
        // Some of them before the break, possibly in the middle of a revision.
        for _ in 0..7 + 10 * round {
            got.push(reader.event().await);
        }
        if round % 2 == 0 {
            relay.kill();
        } else {
            relay.terminate();
            relay.exit_code(Duration::from_secs(60)).await;
        }
        // As in a browser, only complete blocks count at the end.
        while let Ok(Some(block)) = tokio::time::timeout(Duration::from_secs(5), reader.block()).await {
            if !block.event.is_empty() {
                got.push(block);
            }
        }
        let id = reader.last_id.expect("an id");
        // Everything after the last id comes again.
        while got.last().is_some_and(|event| event.change().3 > id) {
            got.pop();
        }
        last = direct.put("/a/while away", round.to_string()).await.max(last);
        relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
        let header = format!("Last-Event-ID: {id}");
        // The address still has the original start.
        reader = Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/&since=1", &[&header]).await;
        reader.last_id = Some(id);
    }
    got.extend(reader.until(last).await);
    assert_whole_revisions(&got);
    assert_eq!(changes(&got), told_by_etcd(&etcd, begun + 1, last).await);
    // The same using only the address.
    let mut reader = Reader::open(relay.http_addr(), &format!("/v1/watch?prefix=/a/&since={begun}"), &[]).await;
    assert_eq!(changes(&reader.until(last).await), changes(&got));
}

#[tokio::test]
async fn a_reader_whose_past_is_compacted_gets_a_snapshot_and_what_follows() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let first = direct.put("/a/1", "old").await;
    direct.put("/a/2", "gone").await;
    direct.delete("/a/2").await;
    let now = direct.put("/a/1", "new").await;
    direct.compact(now).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    for mode in ["events", "state"] {
        let path = format!("/v1/watch?prefix=/a/&mode={mode}&since={first}");
        let mut reader = Reader::open(relay.http_addr(), &path, &[]).await;
        let compacted = reader.event().await;
        assert_eq!((&*compacted.event, compacted.id), ("compacted", None));
        assert!(
            compacted.json()["compact_revision"].as_i64().is_some_and(|revision| revision > first),
            "{compacted:?}"
        );
        let (keys, revision, parts) = reader.snapshot().await;
        assert_eq!((keys.len(), &keys[&b"/a/1"[..]][..], parts), (1, &b"new"[..], 1));
        assert!(revision >= now);
        let next = direct.put("/a/1", mode).await;
        let events = reader.until(next).await;
        assert_eq!((events.len(), events[0].change().2), (1, mode.as_bytes().to_vec()));
        direct.put("/a/1", "new").await;
    }
    assert_eq!(relay.metric_of("etcd_relay_keys_snapshots_total", "reason=\"compacted\"").await, 2.0);
}

#[tokio::test]
async fn a_snapshot_comes_in_parts_and_nothing_is_missed_behind_it() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    for number in 0..200 {
        let ops = (0..10).map(|of| op_put(format!("/a/{:05}", number * 10 + of), "v".repeat(150))).collect();
        direct.txn(ops).await;
    }
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    // Writes all the time, so that some writes come between the snapshot and the watch.
    let enough = Arc::new(AtomicBool::new(false));
    let writer = {
        let (direct, enough) = (direct.clone(), enough.clone());
        tokio::spawn(async move {
            for number in (0..).take_while(|_| !enough.load(Ordering::Relaxed)) {
                direct.put(format!("/a/{:05}", number % 2_000), format!("{number}")).await;
                if number % 7 == 0 {
                    direct.delete(format!("/a/{:05}", (number + 3) % 2_000)).await;
                }
            }
        })
    };
    let mut readers = Vec::new();
    for path in
        ["/v1/watch?prefix=/a/&mode=state", "/v1/watch?prefix=/a/&snapshot=true", "/v1/watch?prefix=/&mode=state"]
    {
        let mut reader = Reader::open(relay.http_addr(), path, &[]).await;
        let (keys, _, parts) = reader.snapshot().await;
        assert!(keys.len() > 1_500 && parts > 2, "{} keys in {parts} parts", keys.len());
        readers.push((reader, keys));
    }
    for (reader, keys) in &mut readers {
        for _ in 0..50 {
            apply(keys, &reader.event().await);
        }
    }
    // Its last write is answered before the next one is made here.
    enough.store(true, Ordering::Relaxed);
    writer.await.expect("it writes");
    let last = direct.put("/a/last", "1").await;
    let list = get(relay.http_addr(), "/v1/keys?prefix=/a/&limit=10000", &[]).await.json();
    for (reader, keys) in &mut readers {
        for event in reader.until(last).await {
            apply(keys, &event);
        }
        let want = list["kvs"].as_array().expect("keys").iter().map(|kv| (bytes_of(kv, "key"), bytes_of(kv, "value")));
        assert!(*keys == want.collect(), "a reader does not have what a list has");
    }
    let mut empty = Reader::open(relay.http_addr(), "/v1/watch?prefix=/nothing/&mode=state", &[]).await;
    assert_eq!(empty.snapshot().await.0.len(), 0);
}

/// Applies an event to a reader's keys.
pub(super) fn apply(keys: &mut std::collections::BTreeMap<Vec<u8>, Vec<u8>>, event: &Block) {
    let (kind, key, value, _) = event.change();
    if kind == "put" {
        keys.insert(key, value);
    } else {
        keys.remove(&key);
    }
}

#[tokio::test]
async fn a_quiet_reader_is_told_how_far_it_is_so_that_a_compaction_does_not_overtake_it() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/").start().await;
    let mut reader = Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/", &[]).await;
    let begun = eventually("the first id", async || {
        let block = reader.block().await.expect("the stream goes on");
        block.id
    })
    .await;
    let other = direct.put("/b/other", "1").await;
    let block = reader.block().await.expect("a heartbeat");
    assert!(block.comment && block.event.is_empty() && block.data.is_empty(), "{block:?}");
    assert_eq!(block.id, Some(other), "it began at {begun}");
    direct.compact(other).await;
    let header = format!("Last-Event-ID: {other}");
    let mut reader = Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/", &[&header]).await;
    let next = direct.put("/a/next", "1").await;
    assert_eq!(reader.until(next).await[0].event, "put");
}
