//! Readers that do not read: their cost, what they get in the end, and that others are not affected.

use super::{reader::Reader, watches::apply};
use crate::support::{
    client::{WatchStream, prefix},
    etcd::Etcd,
    eventually,
    kv::Kv,
    relay::RelayCommand,
};

/// Enough to fill a stream's queue and the sockets of both sides many times.
const PUTS: usize = 6_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_the_newest_values_gets_these_and_others_get_all_of_them() {
    let etcd = Etcd::start().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix("/a/").start().await;
    direct.put("/a/kept", "1").await;
    let path = "/v1/watch?prefix=/a/&mode=state";
    let (mut stalled, mut reading) = (
        Reader::open(relay.http_addr(), path, &[]).await,
        Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/", &[]).await,
    );
    let mut all = Reader::open(relay.http_addr(), "/v1/watch?prefix=/a/", &[]).await;
    let (mut keys, ..) = stalled.snapshot().await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(prefix("/a/")).await;
    let before = relay.resident_bytes();
    let mut last = 0;
    // Reads meanwhile, because otherwise it would be slow too.
    let counting = tokio::spawn(async move {
        let mut events = 0;
        while events < PUTS {
            assert_eq!(reading.event().await.event, "put");
            events += 1;
        }
    });
    for number in 0..PUTS {
        last = direct.put(format!("/a/{}", number % 5), format!("{number} {}", "x".repeat(4_000))).await;
    }
    counting.await.expect("a reader beside one that does not read gets each event");
    stream.until_revision(last).await;
    eventually("the reader that does not read is parked", async || {
        (relay.metric("etcd_relay_watches_parked").await >= 1.0).then_some(())
    })
    .await;
    let grown = relay.resident_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "the relay grew by {grown} bytes");
    // Most of that is the relay's own history, which is bounded.
    let mut events = 0;
    while stalled.last_id.is_none_or(|id| id < last) {
        let event = stalled.block().await.expect("the stream goes on");
        if event.event == "snapshot" {
            keys.clear();
            for kv in event.json()["kvs"].as_array().expect("keys") {
                keys.insert(kv["key"].as_str().expect("text").into(), kv["value"].as_str().expect("text").into());
            }
        } else if !event.event.is_empty() {
            apply(&mut keys, &event);
        }
        events += 1;
    }
    assert!(events < PUTS / 2, "{events} blocks for {PUTS} changes of 5 keys");
    assert_eq!(keys.len(), 6);
    for number in PUTS - 5..PUTS {
        let value = &keys[format!("/a/{}", number % 5).as_bytes()];
        assert!(value.starts_with(format!("{number} ").as_bytes()), "the newest value of each key");
    }
    assert_eq!(keys[&b"/a/kept"[..]], b"1");
    // A reader of all events gets all of them, however late.
    let told = all.until(last).await;
    assert_eq!(told.len(), PUTS);
    relay.assert_no_panic();
}
