//! Progress reports to a stream: in answer to a request, at the tick of a timer, and before it ends.
//!
//! Always holds: before a stream is told a revision, it was given everything up to that revision.

use super::WatchStream;
use crate::{
    hub::{
        Feed,
        delivery::ProgressAnswer,
        outbox::{Notified, wake},
    },
    types::Stamp,
};

impl WatchStream {
    /// Answers a progress request for the whole stream, if etcd would: every watch is live and none waits for a future
    /// revision.
    pub fn answer_progress(&self) -> ProgressAnswer {
        let feeds = self.feeds();
        let (answer, waker) = match &feeds[..] {
            [] => return ProgressAnswer::Silence,
            [feed] => with_stamp(feed, |stamp| self.outbox.lock().progress(stamp, &[(feed.id(), stamp.revision)])),
            // Several feeds are at several revisions. The lowest one holds for all of them, if they are of one cluster.
            [first, ..] => {
                let stamps: Vec<Stamp> = feeds.iter().map(|feed| feed.lock_settled().stamp()).collect();
                if feeds.iter().any(|feed| feed.cluster().id() != first.cluster().id()) {
                    return ProgressAnswer::Later;
                }
                let reached: Vec<_> =
                    feeds.iter().zip(&stamps).map(|(feed, stamp)| (feed.id(), stamp.revision)).collect();
                let lowest = stamps.into_iter().min_by_key(|stamp| stamp.revision).unwrap_or_default();
                self.outbox.lock().progress(&lowest, &reached)
            }
        };
        wake(waker);
        answer
    }

    /// The progress timer's tick: each live watch that asked for notifications and got nothing since the last tick is
    /// told its progress. With `all`, so are those that got something. Returns false if the queue has no room for the
    /// others; the next call continues with them.
    pub fn notify_progress(&self, all: bool) -> bool {
        let feeds = self.feeds();
        let stopped = self.outbox.lock().notify_from.take().filter(|_| !all);
        let first = feeds.iter().position(|feed| stopped.is_some_and(|(stopped, _)| stopped == feed.id()));
        let mut from = first.and(stopped).map_or(0, |(_, slot)| slot);
        for feed in feeds.iter().skip(first.unwrap_or(0)) {
            loop {
                let (notified, waker) = with_stamp(feed, |stamp| {
                    let mut state = self.outbox.lock();
                    let (notified, waker) = state.notify_progress(feed.id(), stamp, all, from, &self.outbox.limits);
                    if let Notified::Full(slot) = notified {
                        state.notify_from = Some((feed.id(), slot));
                    }
                    (notified, waker)
                });
                wake(waker);
                match notified {
                    Notified::All => break,
                    Notified::Some(slot) => from = slot,
                    Notified::Full(_) => return false,
                }
            }
            from = 0;
        }
        true
    }

    /// Whether any watch asked for progress notifications.
    #[must_use]
    pub fn wants_progress(&self) -> bool {
        self.outbox.lock().watches.want_progress()
    }
}

/// Calls `with` with the revision up to which every live watch was given everything. Nothing is published or pushed
/// meanwhile.
fn with_stamp<T>(feed: &Feed, with: impl FnOnce(&Stamp) -> T) -> T {
    let inner = feed.lock_settled();
    with(&inner.stamp())
}
