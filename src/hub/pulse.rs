//! The pulse: asks for the cluster's revision now and then if nobody else does, and sets it as the feeds' goal.
//!
//! A member that hears its leader but gets no entries, or whose watch streams stand still, looks healthy to a feed that
//! only listens. So feeds are told what the cluster has. A driver then asks for progress, and moves to another member
//! if none comes.
//! Not here: what a driver does. Always holds: there is one request to upstream per beat, however many feeds there are;
//! at most `EACH` feeds ask for progress because of it; the process is not ready while a configured feed has been
//! behind for `LATE`.

use std::{sync::Arc, time::Duration};

use hashbrown::HashMap;
use metrics::gauge;

use super::{FeedKind, Hub};
use crate::telemetry::{Hold, ReadyBoard, names};

/// Time between requests.
const BEAT: Duration = Duration::from_secs(1);
/// How many feeds are told at a beat. With more feeds each is told less often: of 1,024 feeds, each is told every 16 s.
const EACH: usize = 64;
/// How long a configured feed may be behind before clients should go elsewhere.
const LATE: Duration = Duration::from_secs(3);

/// Runs for ever; spawn it as a task.
pub async fn beat(hub: Arc<Hub>, ready: ReadyBoard) {
    let mut told = 0;
    let mut held: HashMap<u64, Hold> = HashMap::new();
    loop {
        tokio::time::sleep(BEAT).await;
        let feeds = hub.feeds();
        if !feeds.is_empty() {
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
