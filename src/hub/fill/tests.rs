//! Tests of what the watches of one fill get while some of their clients read slowly.

use std::{
    future::{pending, poll_fn},
    sync::atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{sync::Notify, time::sleep};

use super::*;
use crate::{
    hub::{
        Delivery, FeedState, Hub, KeyMap, OutboxLimits, Subscribe, WatchStream, testing,
        upstream::{Changes, Confirmed, Page, Upstream, UpstreamWatch},
    },
    types::{ClientKey, EventFields, EventKind, Header, KeyValueFields},
};

/// The revisions that the history has no more.
const FIRST: i64 = 11;
const LAST: i64 = 250;
/// The newest revision. The history keeps 100.
const NEWEST: i64 = LAST + 100;
const LIMITS: OutboxLimits = OutboxLimits { bytes: 1 << 20, deliveries: 2, watches: 10 };
/// More often than [`GRACE`].
const SLOW: Duration = Duration::from_millis(200);

/// Has each revision in a message of its own. A watch of the key `gate` brings nothing until the gate is opened.
#[derive(Debug)]
struct Past {
    value: usize,
    watches: AtomicUsize,
    gate: Arc<Notify>,
}

struct PastWatch {
    next: i64,
    value: usize,
    gate: Option<Arc<Notify>>,
}

fn change(revision: i64, value: usize) -> Changes {
    let revision = Revision::new(revision);
    let value = vec![0; value].into();
    let kv = KeyValueFields { key: "k".into(), value, mod_revision: revision, ..KeyValueFields::default() };
    let events = vec![EventFields { kind: EventKind::Put, kv }];
    Changes { revision, events, prev: vec![None], received: std::time::Instant::now() }
}

#[async_trait]
impl Upstream for Past {
    async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for in this test".into()))
    }

    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        let gate = (request.range == KeyRange::single("gate".into())).then(|| self.gate.clone());
        self.watches.fetch_add(usize::from(gate.is_none()), Ordering::Relaxed);
        Ok(Box::new(PastWatch { next: request.start_revision.get(), value: self.value, gate }))
    }

    async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for in this test".into()))
    }
}

#[async_trait]
impl UpstreamWatch for PastWatch {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        if let Some(gate) = &self.gate {
            gate.notified().await;
            return Ok(WatchMessage::Canceled { reason: "the gate is open".into() });
        }
        if self.next > NEWEST {
            return pending().await;
        }
        let revisions = vec![change(self.next, self.value)];
        self.next += 1;
        let header = Header { revision: Revision::new(NEWEST), ..Header::default() };
        Ok(WatchMessage::Events { header, revisions })
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        Ok(())
    }

    fn trusts_progress(&self) -> bool {
        true
    }

    fn created(&self) -> Header {
        Header { revision: Revision::new(NEWEST), ..Header::default() }
    }
}

/// Two streams of two clients, whose watches of all keys from [`FIRST`] on share a fill.
async fn two(value: usize) -> (Arc<Past>, Arc<Hub>, [Arc<WatchStream>; 2]) {
    let past = Arc::new(Past { value, watches: AtomicUsize::new(0), gate: Arc::default() });
    let hub = testing::hub_over(past.clone(), LIMITS);
    let feed = hub.open(KeyRange::prefix(Bytes::new()));
    feed.install(Arc::default(), KeyMap::default(), Revision::new(FIRST - 1));
    feed.set_state(FeedState::Live);
    for revision in FIRST..=NEWEST {
        feed.publish(&[change(revision, 10)]).expect("in order");
    }
    // The only turn, until both others wait for one.
    let stream = |client, range, start| {
        let stream = WatchStream::new(LIMITS, ClientKey::new(client));
        let subscribe = Subscribe {
            watch_id: 0,
            range,
            options: WatchOptions::default(),
            start_revision: Revision::new(start),
            progress_notify: false,
            fragment: false,
            known: Revision::ZERO,
            compacted: false,
        };
        stream.subscribe(&feed, &subscribe).expect("a watch");
        stream
    };
    let gate = stream(1, KeyRange::single("gate".into()), FIRST);
    tokio::task::yield_now().await;
    let streams = [2, 3].map(|client| stream(client, KeyRange::prefix(Bytes::new()), FIRST));
    // So that their queues have room.
    for stream in &streams {
        assert!(matches!(read(stream).await[..], [None]), "created");
    }
    past.gate.notify_one();
    gate.leave();
    (past, hub, streams)
}

/// The next deliveries: the revisions of events.
async fn read(stream: &Arc<WatchStream>) -> Vec<Option<i64>> {
    let mut batch = Vec::new();
    poll_fn(|cx| stream.poll_drain(cx, &mut batch, 1)).await;
    let revisions = |delivery: &Delivery| match delivery {
        Delivery::Events { payload, from, .. } => {
            payload.each(*from as usize).map(|whole| Some(whole.revision.get())).collect()
        }
        _ => vec![None],
    };
    batch.iter().flat_map(revisions).collect()
}

/// Reads until the newest revision, with a pause before each delivery. Returns how long that took.
async fn read_all(stream: Arc<WatchStream>, pause: Duration) -> Duration {
    let began = Instant::now();
    let mut next = FIRST;
    while next <= NEWEST {
        sleep(pause).await;
        for revision in read(&stream).await {
            assert_eq!(revision, Some(next), "each revision, once, in order");
            next += 1;
        }
    }
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_watch_does_not_wait_for_the_slow_client_of_another_one_in_its_fill() {
    let (past, _hub, [slow, fast]) = two(10).await;
    let slow = tokio::spawn(read_all(slow, SLOW));
    let took = read_all(fast, Duration::ZERO).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(slow.await.expect("it gets everything too") > took);
    assert_eq!(past.watches.load(Ordering::Relaxed), 1, "they shared a fill until the end");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_falls_far_behind_the_others_of_its_fill_leaves_it_and_gets_everything_by_another() {
    let (past, _hub, [slow, fast]) = two(window::MOST_BYTES / 20).await;
    let slow = tokio::spawn(read_all(slow, SLOW));
    let took = read_all(fast, Duration::ZERO).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    slow.await.expect("it gets everything too");
    assert!(past.watches.load(Ordering::Relaxed) > 1);
}
