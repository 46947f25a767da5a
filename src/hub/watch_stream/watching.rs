//! [`WatchStats`]: the watches of a stream one by one, as `/debug/state` shows them.
//!
//! Not here: the totals of a stream, see [`super::WatchStreamStats`]. Always holds: watches come in the order of their
//! places; no lock is held for more than the rows of one request, and texts are made outside all locks.

use super::{FeedId, WatchStream};
use crate::types::{KeyRange, Revision};

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WatchStats {
    /// Its place in the stream, from 1. A later watch may get the same place once this one is gone.
    pub number: u64,
    /// The id that the client knows.
    pub watch_id: i64,
    /// The keys, in readable form; `None` for a watch that has ended and was not cancelled yet.
    pub range: Option<String>,
    /// The number of its feed.
    pub feed: u64,
    /// How it gets its events.
    pub phase: &'static str,
    /// The revision that it needs next.
    pub next: Revision,
    /// How many revisions it is behind its feed.
    pub lag_revisions: i64,
}

/// A watch that was found before its feed's lock was taken.
struct Seen {
    slot: usize,
    serial: u64,
    feed: FeedId,
}

impl WatchStream {
    /// The first `most` watches with a number above `after`, in the order of their numbers.
    #[must_use]
    pub fn watches_after(&self, after: u64, most: usize) -> Vec<WatchStats> {
        let mut rows = Vec::new();
        let mut from = usize::try_from(after).ok();
        while let Some(slot) = from
            && rows.len() < most
        {
            let seen: Vec<Seen> = {
                let state = self.outbox.lock();
                let (found, next) = state.watches.some_from(slot, most - rows.len());
                from = next;
                found.into_iter().map(|(slot, feed, watch)| Seen { slot, serial: watch.serial, feed }).collect()
            };
            // Neighbouring watches of the same feed are read under one lock of that feed.
            for seen in seen.chunk_by(|one, next| one.feed == next.feed) {
                rows.extend(self.watches_of(seen));
            }
        }
        rows
    }

    fn watches_of(&self, seen: &[Seen]) -> Vec<WatchStats> {
        let Some(feed) = seen.first().and_then(|seen| self.feed(seen.feed)) else { return Vec::new() };
        let inner = feed.lock();
        let state = self.outbox.lock();
        let rows: Vec<(WatchStats, Option<KeyRange>)> = seen
            .iter()
            .filter_map(|seen| {
                // A watch that ended meanwhile is not shown, nor is another one that got its place.
                let watch = state.watches.get(seen.slot).filter(|watch| watch.serial == seen.serial)?;
                let lag = if watch.phase().is_behind() { inner.revision.get() - watch.next().get() + 1 } else { 0 };
                let stats = WatchStats {
                    number: seen.slot as u64 + 1,
                    watch_id: watch.id,
                    range: None,
                    feed: seen.feed.number(),
                    phase: watch.phase().name(),
                    next: watch.next(),
                    lag_revisions: lag.max(0),
                };
                Some((stats, watch.link().map(|link| inner.index.group(link.group).range.clone())))
            })
            .collect();
        drop(state);
        drop(inner);
        let readable = |(stats, range): (WatchStats, Option<KeyRange>)| WatchStats {
            range: range.map(|range| range.to_string()),
            ..stats
        };
        rows.into_iter().map(readable).collect()
    }
}
