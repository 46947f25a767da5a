//! [`FeedStats`]: the figures of a feed for `/debug/state` and for metrics.

use std::{sync::Arc, time::Duration};

use metrics::gauge;

use super::{Feed, FeedKind};
use crate::{
    hub::standing::{FeedState, Permission, Trouble},
    telemetry::names,
    types::Revision,
};

/// What [`Feed::stats`] returns.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FeedStats {
    /// Identifies the feed within this process, in the order in which feeds were opened.
    pub number: u64,
    /// The keys, in readable form.
    pub range: String,
    /// Why it exists.
    pub kind: FeedKind,
    /// The address of the member on which its watch is open, while one is.
    pub member: Option<String>,
    /// The cluster that its data came from; zero before the first snapshot.
    pub cluster_id: u64,
    /// Its state towards its upstream.
    pub state: FeedState,
    /// Whether upstream lets the relay read it.
    pub permission: Permission,
    /// Whether its driver has to check that it still matches its upstream.
    pub doubted: bool,
    /// The feed's revision.
    pub revision: Revision,
    /// Keys in the snapshot.
    pub keys: usize,
    /// Encoded bytes of the snapshot.
    pub bytes: usize,
    /// The first revision from which the history is complete.
    pub history_start: Revision,
    /// Revisions in the history.
    pub history_entries: usize,
    /// Bytes in the history.
    pub history_bytes: usize,
    /// Bytes of the prepared parts of the history that are kept for streams that are behind.
    pub run_bytes: usize,
    /// Streams with a watch here.
    pub streams: usize,
    /// Watches here.
    pub watches: usize,
    /// Whether upstream's progress is trusted.
    pub trusts_progress: bool,
    /// By how many revisions of the store it is behind, as far as the relay knows.
    pub lag_revisions: i64,
    /// For how long it has been behind.
    pub lag_seconds: f64,
    /// Upstream's last error, if there was one.
    pub last_error: Option<Trouble>,
}

impl Feed {
    /// The figures for `/debug/state` and metrics.
    #[must_use]
    pub fn stats(&self) -> FeedStats {
        let standing = self.standing();
        let lag = self.lag();
        let inner = self.lock();
        FeedStats {
            number: self.number(),
            range: self.range.to_string(),
            kind: self.kind,
            member: standing.member.filter(|_| standing.state == FeedState::Live).map(|member| member.to_string()),
            cluster_id: inner.cluster.id(),
            state: standing.state,
            permission: standing.permission,
            doubted: standing.doubt.is_some(),
            revision: inner.revision,
            keys: inner.map.len(),
            bytes: inner.map.bytes(),
            history_start: inner.history.start(),
            history_entries: inner.history.len(),
            history_bytes: inner.history.bytes(),
            run_bytes: inner.history.run_bytes(),
            streams: inner.outboxes.len(),
            watches: inner.index.len(),
            trusts_progress: standing.trusts_progress,
            lag_revisions: lag.map_or(0, |lag| lag.revisions),
            lag_seconds: lag.map_or(0.0, |lag| lag.time.as_secs_f64()),
            last_error: standing.trouble.map(Arc::unwrap_or_clone),
        }
    }
}

/// The totals over all feeds, for `/debug/state`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// The newest revision that any of them has.
    pub revision: Revision,
    /// Keys; a key that lies in two feeds counts twice.
    pub keys: usize,
    /// Watches.
    pub watches: usize,
    /// By how many revisions the slowest feed is behind its cluster.
    pub lag_revisions: i64,
    /// The longest time for which a feed has been behind.
    pub lag: Duration,
}

impl Totals {
    /// The totals over some feeds. Each is locked for a moment.
    pub(in crate::hub) fn of(feeds: &[Arc<Feed>]) -> Self {
        feeds.iter().fold(Self::default(), |totals, feed| {
            let (lag, inner) = (feed.lag(), feed.lock());
            Self {
                revision: totals.revision.max(inner.revision),
                keys: totals.keys + inner.map.len(),
                watches: totals.watches + inner.index.len(),
                lag_revisions: totals.lag_revisions.max(lag.map_or(0, |lag| lag.revisions)),
                lag: totals.lag.max(lag.map_or(Duration::ZERO, |lag| lag.time)),
            }
        })
    }
}

impl FeedStats {
    /// Sets the gauges of what all feeds, and those on demand, hold together. Called when metrics are scraped.
    pub(in crate::hub) fn set_gauges(feeds: &[Self], on_demand: usize) {
        gauge!(names::ON_DEMAND_BYTES).set(on_demand as f64);
        let sum = |of: fn(&Self) -> usize| feeds.iter().map(of).sum::<usize>() as f64;
        let max = |of: fn(&Self) -> Revision| feeds.iter().map(of).max().map_or(0.0, |max| max.get() as f64);
        gauge!(names::HISTORY_ENTRIES).set(sum(|feed| feed.history_entries));
        gauge!(names::HISTORY_BYTES).set(sum(|feed| feed.history_bytes));
        gauge!(names::HISTORY_OLDEST_REVISION).set(max(|feed| feed.history_start));
        gauge!(names::HISTORY_NEWEST_REVISION).set(max(|feed| feed.revision));
        gauge!(names::SNAPSHOT_KEYS).set(sum(|feed| feed.keys));
    }
}
