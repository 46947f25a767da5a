//! Tests of what threads do to a feed at the same time.

use async_trait::async_trait;

use super::*;
use crate::{
    hub::{
        FeedRunner, HistoryLimits, Hub, Limits, OutboxLimits,
        upstream::{Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest},
    },
    types::UpstreamHeader,
};

#[derive(Debug)]
struct Nothing;

#[async_trait]
impl Upstream for Nothing {
    async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for here".into()))
    }

    async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for here".into()))
    }

    async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for here".into()))
    }
}

struct NoDriver;

impl FeedRunner for NoDriver {
    fn run(&self, _: Arc<Feed>) {}
}

const WATCHES: i64 = 20_000;

fn feed() -> Arc<Feed> {
    let limits = Limits {
        history: HistoryLimits { bytes: 1 << 20, entries: 100 },
        outbox: OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: WATCHES as usize },
        on_demand: None,
        fills: 1,
        confirm_patience: Duration::from_secs(1),
    };
    let leaderless = Arc::new(watch::Sender::new(false));
    let hub = Hub::new(limits, Arc::new(Nothing), Arc::new(UpstreamHeader::default()), leaderless, Box::new(NoDriver));
    let feed = hub.open(KeyRange::prefix("".into()));
    feed.install(KeyMap::default(), Revision::new(10));
    feed.set_state(FeedState::Live, None);
    feed
}

fn subscribe(feed: &Arc<Feed>, outbox: &Arc<Outbox>, watch_id: i64, key: &'static str) {
    let subscribe = Subscribe {
        watch_id,
        range: KeyRange::single(key.into()),
        options: WatchOptions::default(),
        start_revision: Revision::ZERO,
        progress_notify: true,
        fragment: false,
        compacted: false,
    };
    feed.subscribe(outbox, &subscribe).expect("subscribed");
}

#[test]
fn cancels_may_race_with_the_end_of_their_stream() {
    let feed = feed();
    for _ in 0..10 {
        let outbox = Outbox::new(feed.shared.limits.outbox);
        (1..=WATCHES).for_each(|id| subscribe(&feed, &outbox, id, "k"));
        std::thread::scope(|scope| {
            let cancels = scope.spawn(|| (1..=WATCHES).rev().for_each(|id| outbox.cancel(id)));
            outbox.leave();
            cancels.join().expect("cancels");
        });
        assert_eq!((outbox.watches(), feed.stats().streams), (0, 0));
        assert!(feed.lock().index.is_empty());
    }
}
