//! The pulse: asks for the cluster's revision now and then if nobody else does, and sets it as the feeds' goal.
//!
//! A member that hears its leader but gets no entries, or whose watch streams stand still, looks healthy to a feed that
//! only listens. So feeds are told what the cluster has. A driver then asks for progress, and moves to another member
//! if none comes. A feed that receives something at every beat does not stand still, so on account of it the question
//! is asked less often: each costs etcd as much as half a write, in which a cluster with few writes would notice many
//! relays. Not here: what a driver does. Always holds: there is at most one request to upstream per beat, however many
//! feeds there are; a feed that received nothing for a beat is told at the next one, and so is a feed that is behind;
//! at most `EACH` feeds ask for progress because of it; the process is not ready while a configured feed has been
//! behind for `LATE`.

use std::{sync::Arc, time::Duration};

use hashbrown::HashMap;
use metrics::gauge;

use super::{Feed, FeedKind, Hub};
use crate::{
    telemetry::{Hold, ReadyBoard, names},
    types::Revision,
};

/// Time between requests.
const BEAT: Duration = Duration::from_secs(1);
/// How many feeds are told at a beat. With more feeds each is told less often: of 1,024 feeds, each is told every 16 s.
const EACH: usize = 64;
/// A feed that receives something at each beat is told at every beat of this number.
const MOVING: u32 = 4;
/// How long a configured feed may be behind before clients should go elsewhere.
const LATE: Duration = Duration::from_secs(3);

/// Runs forever; spawn it as a task.
pub async fn beat(hub: Arc<Hub>, ready: ReadyBoard) {
    let mut told = 0;
    let mut seen = Seen::default();
    let mut held: HashMap<u64, Hold> = HashMap::new();
    loop {
        tokio::time::sleep(BEAT).await;
        hub.shared.pages.tidy();
        let feeds = hub.feeds();
        if seen.is_due(&feeds) {
            // Round and round, in the order in which they were opened.
            let first = feeds.iter().position(|feed| feed.number() > told).unwrap_or(0);
            let next: Vec<_> = feeds.iter().cycle().skip(first).take(EACH.min(feeds.len())).collect();
            told = next.last().map_or(0, |feed| feed.number());
            let marks: Vec<_> = next.iter().map(|feed| feed.mark()).collect();
            if let Ok(confirmed) = hub.confirmer().confirm(None).await {
                next.iter().zip(marks).for_each(|(feed, mark)| feed.expect(mark, &confirmed.header));
            }
        }
        let lags = feeds.iter().filter_map(|feed| Some((feed, feed.lag()?)));
        let (mut revisions, mut time) = (0, Duration::ZERO);
        let mut late = HashMap::new();
        for (feed, lag) in lags {
            revisions = revisions.max(lag.revisions);
            time = time.max(lag.time);
            if feed.kind() == FeedKind::Prefix && lag.time >= LATE {
                let behind = humantime::format_duration(Duration::from_secs(lag.time.as_secs()));
                let why = format!("feed {}: {} revisions behind etcd for {behind}", feed.range(), lag.revisions);
                late.insert(feed.number(), why);
            }
        }
        gauge!(names::FEED_LAG_REVISIONS).set(revisions as f64);
        gauge!(names::FEED_LAG_SECONDS).set(time.as_secs_f64());
        held.retain(|number, _| late.contains_key(number));
        for (number, why) in late {
            match held.get(&number) {
                Some(hold) => hold.explain(why),
                None => _ = held.insert(number, ready.hold(why)),
            }
        }
    }
}

/// The feeds as they were at the last beat: their revision, and for how many beats they have not been told of another.
#[derive(Debug, Default)]
struct Seen(HashMap<u64, (Revision, u32)>);

impl Seen {
    /// Whether one of the feeds needs the cluster's revision at this beat.
    fn is_due(&mut self, feeds: &[Arc<Feed>]) -> bool {
        let then = std::mem::take(&mut self.0);
        // Of more feeds than can be told at a beat, each waits for its turn anyway.
        let mut is_due = feeds.len() > EACH;
        for feed in feeds {
            let revision = feed.revision();
            let untold = match then.get(&feed.number()) {
                Some((before, untold)) if revision > *before && feed.lag().is_none() => untold + 1,
                _ => MOVING,
            };
            is_due |= untold >= MOVING;
            self.0.insert(feed.number(), (revision, untold));
        }
        if is_due {
            self.0.values_mut().for_each(|(_, untold)| *untold = 0);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::{
        hub::{
            KeyMap, OutboxLimits, testing,
            upstream::{Changes, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest},
        },
        types::{Cluster, EventFields, EventKind, Header, KeyRange, KeyValueFields},
    };

    /// Counts the questions for the cluster's revision, and answers them.
    #[derive(Debug, Default)]
    struct Asked {
        times: AtomicUsize,
        revision: AtomicI64,
    }

    #[async_trait]
    impl Upstream for Asked {
        async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
            Err(UpstreamError::Unavailable("not asked for here".into()))
        }

        async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
            Err(UpstreamError::Unavailable("not asked for here".into()))
        }

        async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
            self.times.fetch_add(1, Ordering::SeqCst);
            let revision = Revision::new(self.revision.load(Ordering::SeqCst));
            let header = Header { cluster_id: 7, revision, ..Header::default() };
            Ok(Confirmed { header, compacted: false })
        }
    }

    impl Asked {
        /// The number of questions since the last call.
        fn times(&self) -> usize {
            self.times.swap(0, Ordering::SeqCst)
        }
    }

    /// A feed that has the first revision of its cluster, and the beating pulse.
    fn beating() -> (Arc<Asked>, Arc<Hub>, Arc<Feed>) {
        let upstream = Arc::new(Asked { revision: AtomicI64::new(1), ..Asked::default() });
        let hub = testing::hub_over(upstream.clone(), OutboxLimits { bytes: 1, deliveries: 1, watches: 1 });
        let feed = hub.open(KeyRange::prefix("".into()));
        let cluster = Arc::new(Cluster::of(&Header { cluster_id: 7, ..Header::default() }));
        feed.install(cluster, KeyMap::default(), Revision::new(1));
        feed.follows(true, None);
        tokio::spawn(beat(hub.clone(), ReadyBoard::new()));
        (upstream, hub, feed)
    }

    /// The feed receives this revision, and the cluster has it.
    fn put(upstream: &Asked, feed: &Feed, revision: i64) {
        upstream.revision.fetch_max(revision, Ordering::SeqCst);
        let mod_revision = Revision::new(revision);
        let (key, value) = ("k".into(), "v".into());
        let kv = KeyValueFields { key, value, create_revision: mod_revision, mod_revision, version: 1, lease: 0 };
        let events = vec![EventFields { kind: EventKind::Put, kv }];
        let changes = Changes { revision: mod_revision, events, prev: Vec::new(), received: std::time::Instant::now() };
        feed.publish(&[changes]).expect("in order");
    }

    #[tokio::test(start_paused = true)]
    async fn a_feed_that_moves_is_asked_about_at_every_fourth_beat_and_one_that_stands_still_at_each() {
        let (upstream, _hub, feed) = beating();
        tokio::time::sleep(BEAT / 2 + BEAT * 8).await;
        assert_eq!(upstream.times(), 8, "it stands still");
        for revision in 2..18 {
            put(&upstream, &feed, revision);
            tokio::time::sleep(BEAT).await;
        }
        assert_eq!(upstream.times(), 4, "it moves");
        tokio::time::sleep(BEAT * 8).await;
        assert_eq!(upstream.times(), 8, "it stands still again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_feed_that_is_behind_is_asked_about_although_it_moves() {
        let (upstream, _hub, feed) = beating();
        tokio::time::sleep(BEAT * 3 / 2).await;
        assert_eq!(upstream.times(), 1);
        upstream.revision.store(1_000, Ordering::SeqCst);
        tokio::time::sleep(BEAT).await;
        assert_eq!(upstream.times(), 1);
        assert!(feed.lag().is_some(), "it is behind");
        for revision in 2..10 {
            put(&upstream, &feed, revision);
            tokio::time::sleep(BEAT).await;
        }
        assert_eq!(upstream.times(), 8);
    }
}
