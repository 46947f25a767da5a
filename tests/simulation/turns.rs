//! How long a fill waits if there are more fills than may run: one turn for each fill before it, and no longer.
//!
//! Random schedules are in `main`, which allows for this wait at the end. Always holds: time is paused, so a wait costs
//! nothing and is the same in each run.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_relay::{
    critical::Tasks,
    hub::{Delivery, Drained, HistoryLimits, Hub, Limits, OutboxLimits, Subscribe, WatchOptions, WatchStream},
    source::{Driver, DriverConfig},
    types::{ClientKey, KeyRange, Revision, UpstreamHeader},
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    TURN,
    world::{World, WorldUpstream},
};

/// Watches with quiet keys before the one with a missing event.
const QUIET: [&str; 3] = ["a", "b", "c"];

#[tokio::test(start_paused = true)]
async fn a_fill_that_is_owed_events_waits_one_turn_for_each_quiet_one_before_it() {
    // A world whose progress cannot be trusted: a fill of quiet keys does not learn that it is complete.
    let world = (0..).map(World::new).find(|world| !world.trusted()).expect("some world");
    world.settle();
    let hub = hub(&world);
    let feed = hub.open(KeyRange::prefix(Bytes::new()));
    feed.wait_serving(Duration::from_secs(1)).await.expect("the snapshot");
    let put = |keys: &[&'static str]| {
        world.write(&keys.iter().map(|key| (Bytes::from_static(key.as_bytes()), false)).collect());
    };
    put(&["owed"]);
    let owed = world.revision();
    // So that the history no longer has it.
    put(&["other"]);
    let newest = Revision::new(world.revision());
    feed.watch_revision().wait_for(|now| *now == newest).await.expect("the feed");

    let stream = WatchStream::new(hub.limits().outbox, ClientKey::RELAY);
    for (id, key) in (1..).zip(QUIET.into_iter().chain(["owed"])) {
        let subscribe = Subscribe {
            watch_id: id,
            range: KeyRange::single(Bytes::from_static(key.as_bytes())),
            options: WatchOptions::default(),
            start_revision: Revision::new(owed),
            progress_notify: false,
            fragment: false,
            known: Revision::ZERO,
            compacted: false,
        };
        stream.subscribe(&feed, &subscribe).expect("a watch");
    }
    let asked = Instant::now();
    assert_eq!(next_event(&stream).await, owed);
    let waited = asked.elapsed();
    let turns = TURN * QUIET.len() as u32;
    assert!((turns..turns + Duration::from_secs(1)).contains(&waited), "{waited:?} for {} turns", QUIET.len());

    // The quiet ones are still in the queue and get later events.
    assert_eq!(stream.stats().filling, QUIET.len());
    put(&QUIET);
    let asked = Instant::now();
    for _ in QUIET {
        assert!(next_event(&stream).await > owed);
    }
    assert!(asked.elapsed() < TURN, "{:?} although each has something", asked.elapsed());
    stream.leave();
}

/// With one fill at a time and a history of one revision.
fn hub(world: &Arc<World>) -> Arc<Hub> {
    let limits = Limits {
        history: HistoryLimits { bytes: 1 << 20, entries: 1 },
        outbox: OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 },
        on_demand: None,
        on_demand_bytes: 1 << 30,
        fills: 1,
        confirm_patience: Duration::from_secs(1),
    };
    let upstream = Arc::new(WorldUpstream(world.clone()));
    let header = Arc::new(UpstreamHeader::default());
    let driver =
        Driver::new(DriverConfig::default(), upstream.clone(), header.clone(), Tasks::new(), CancellationToken::new());
    Hub::new(limits, upstream, header, &Tasks::new(), Box::new(driver))
}

/// The revision of the next event on the stream.
async fn next_event(stream: &Arc<WatchStream>) -> i64 {
    loop {
        let mut batch = Vec::new();
        let drain = poll_fn(|cx| stream.poll_drain(cx, &mut batch, 1));
        let drained = timeout(Duration::from_secs(60), drain).await.expect("the event never came");
        assert!(!matches!(drained, Drained::End(_)), "nobody ended the stream");
        let event = batch.iter().find_map(|delivery| match delivery {
            Delivery::Events { payload, .. } => Some(payload.revision().get()),
            _ => None,
        });
        if let Some(revision) = event {
            return revision;
        }
    }
}
