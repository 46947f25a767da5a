//! What a stream is told of its progress: in answer to its question, at the tick of a timer, and before it ends.
//!
//! Always holds: whoever is told a revision was given everything up to it before.

use super::WatchStream;
use crate::{
    hub::{Feed, delivery::ProgressAnswer, outbox::wake},
    types::{Revision, Stamp},
};

impl WatchStream {
    /// Answers a progress request on the whole stream, if etcd would: every watch is live and none waits for a revision to
    /// come.
    pub fn answer_progress(&self) -> ProgressAnswer {
        let feeds = self.feeds();
        let reached = |id| feeds.iter().find(|feed| feed.id() == id).map_or(Revision::ZERO, |feed| feed.revision());
        let (answer, waker) = match &feeds[..] {
            [] => return ProgressAnswer::Silence,
            [feed] => with_stamp(feed, |stamp| self.outbox.lock().progress(stamp, reached)),
            // Several feeds stand at several revisions. The lowest one holds for all, where they are of one cluster.
            [first, ..] => {
                let stamps = feeds.iter().map(|feed| feed.snapshot().stamp());
                let lowest = stamps.min_by_key(|stamp| stamp.revision).unwrap_or_default();
                if feeds.iter().any(|feed| feed.cluster().id() != first.cluster().id()) {
                    return ProgressAnswer::Later;
                }
                self.outbox.lock().progress(&lowest, reached)
            }
        };
        wake(waker);
        answer
    }

    /// The tick of the progress timer: each live watch that asked for notifications and got nothing since the last tick is
    /// told where it stands. With `all`, also those that got something.
    pub fn notify_progress(&self, all: bool) {
        for feed in self.feeds() {
            let waker = with_stamp(&feed, |stamp| {
                let mut state = self.outbox.lock();
                if state.is_full(&self.outbox.limits) && !all {
                    // The client does not read. One that has closed its side is not held back by its requests either.
                    return None;
                }
                state.notify_progress(feed.id(), stamp, all)
            });
            wake(waker);
        }
    }

    /// Whether any watch asked for progress notifications.
    #[must_use]
    pub fn wants_progress(&self) -> bool {
        self.outbox.lock().watches.iter().any(|(_, watch)| watch.progress_notify)
    }
}

/// Calls `with` with the revision up to which every live watch has been given everything; nothing is published
/// meanwhile.
fn with_stamp<T>(feed: &Feed, with: impl FnOnce(&Stamp) -> T) -> T {
    let inner = feed.lock();
    with(&inner.stamp())
}
