//! How often watches that asked for progress get it, over an etcd that sends it often.
//!
//! The meaning of progress is tested in `conformance`. Always holds: the tests do not depend on the machine's speed. A
//! missing notification fails a test, a late one does not.

use etcd_relay::pb::etcdserverpb::WatchCreateRequest;

use crate::support::{
    client::{self, WatchStream, header_revision, is_progress},
    etcd::Etcd,
    eventually,
    kv::{self, Kv},
    relay::RelayCommand,
    writer::Writer,
};

/// Streams that watch and get no events.
const IDLE: usize = 1_000;
/// Notifications that each of them waits for. At the relay's own interval of ten minutes, none would come.
const TICKS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn idle_streams_are_told_progress_as_often_as_etcd_tells_it_and_etcd_is_not_asked() {
    let etcd = Etcd::start_with(&["--experimental-watch-progress-notify-interval=500ms"]).await;
    let relay = RelayCommand::serve(&etcd.endpoints()).prefix("/busy/").prefix("/quiet/").start().await;
    let kv = Kv::connect(&etcd.endpoint()).await;
    let mut channels = Vec::new();
    for _ in 0..10 {
        channels.push(kv::channel(&relay.endpoint()).await);
    }
    let mut streams = Vec::new();
    for index in 0..IDLE {
        // The feed of half of them changes all the time, so etcd never sends progress on its watch.
        let key = if index % 2 == 0 { format!("/busy/{index}") } else { format!("/quiet/{index}") };
        let mut stream = WatchStream::over(channels[index % channels.len()].clone(), &[]);
        stream.created(WatchCreateRequest { progress_notify: true, ..client::key(key) }).await;
        streams.push(stream);
    }
    let writing = Writer::start(&etcd.endpoints(), "/busy/changes");
    let outside = kv.put("/elsewhere", "1").await;
    // After the first one, the relay knows the interval.
    let told = |stream: &WatchStream| stream.record().iter().filter(|at| is_progress(&at.response)).count();
    eventually("each is told once", async || streams.iter().all(|stream| told(stream) > 0).then_some(())).await;
    let (reads, watches) = (etcd.calls("Range").await, etcd.calls("Watch").await);
    let before: Vec<usize> = streams.iter().map(&told).collect();
    eventually("each is told again and again", async || {
        let all = streams.iter().zip(&before).all(|(stream, before)| told(stream) >= before + TICKS);
        all.then_some(())
    })
    .await;
    let asked = etcd.calls("Range").await - reads;
    let ticks = (IDLE * TICKS) as u64;
    assert!(asked * 100 < ticks, "{asked} reads at etcd for {ticks} notifications");
    assert_eq!(etcd.calls("Watch").await, watches, "no watch is opened for it");
    assert_eq!(etcd.watchers().await, 3, "one for each prefix, and one that tells the interval");
    // Progress is also reported for changes outside all feeds.
    eventually("a quiet range reaches what was written elsewhere", async || {
        let reached = |stream: &WatchStream| {
            stream.record().iter().any(|at| is_progress(&at.response) && header_revision(&at.response) >= outside)
        };
        streams.iter().skip(1).step_by(2).all(reached).then_some(())
    })
    .await;
    writing.stop().await;
    let interval = relay.metric("etcd_relay_progress_notify_interval_seconds").await;
    assert!(interval < 5.0, "the interval is etcd's and not the relay's, but {interval} s");
    relay.assert_log_has_only(&[]);
}
