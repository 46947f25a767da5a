//! Fills the gap between what a watch needs and where its feed's history begins, from a temporary upstream watch.
//!
//! Started by `feed` and `catch_up`; one task a watch, at most `Limits::fills` at work. Always holds: a filling watch is
//! written to by its fill alone; the splice to history happens under the feed's lock, at a revision that history still has;
//! a fill waits for room in the outbox, so a client that does not read costs one upstream watch that etcd holds back.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, MissedTickBehavior};

use super::{
    Feed,
    index::WatchOptions,
    outbox::{Cancellation, Outbox, Phase, wake},
    payload::Payload,
    stats,
    upstream::{Changes, UpstreamError, WatchMessage, WatchRequest},
};
use crate::types::{Entry, KeyRange, KeyValue, Revision};

/// How often a fill that is not through asks upstream where it stands; etcd is silent while its watch is behind.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Starts the fill of a watch that has just been put into phase `Filling`.
pub(super) fn spawn(feed: Arc<Feed>, outbox: Arc<Outbox>, watch_id: i64, range: KeyRange, options: WatchOptions) {
    let fill = Fill { feed, outbox, watch_id, range, options };
    tokio::spawn(async move {
        let gone = fill.outbox.gone.clone();
        // Dropping the fill drops its upstream watch.
        gone.run_until_cancelled(fill.run()).await;
    });
}

struct Fill {
    feed: Arc<Feed>,
    outbox: Arc<Outbox>,
    watch_id: i64,
    range: KeyRange,
    options: WatchOptions,
}

/// Why one upstream watch of a fill ended.
enum Outcome {
    /// The watch reads on from history, or is gone.
    Done,
    /// Upstream broke off; try again from where the watch stands.
    Again(UpstreamError),
}

impl Fill {
    async fn run(&self) {
        let _running = stats::Filling::start();
        // The semaphore is never closed.
        let Ok(_permit) = self.feed.shared.fills.acquire().await else { return };
        let backoff = || {
            ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(50))
                .with_max_delay(Duration::from_secs(3))
                .with_jitter()
                .without_max_times()
                .build()
        };
        let mut delays = backoff();
        loop {
            let before = self.next();
            match self.attempt().await {
                Outcome::Done => return,
                Outcome::Again(error) => {
                    tracing::debug!(%error, range = %self.range, watch_id = self.watch_id, "Upstream watch of a fill ended");
                    if self.next() > before {
                        delays = backoff();
                    }
                    tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(3))).await;
                }
            }
        }
    }

    /// One upstream watch, from where the subscription stands.
    async fn attempt(&self) -> Outcome {
        let Some(start_revision) = self.next() else { return Outcome::Done };
        let request = WatchRequest { range: self.range.clone(), start_revision, prev_kv: self.options.prev_kv };
        let mut upstream = match self.feed.shared.upstream.watch(request).await {
            Ok(upstream) => upstream,
            Err(error) => return Outcome::Again(error),
        };
        let trusts_progress = upstream.trusts_progress();
        let mut ask = tokio::time::interval_at(Instant::now(), PROGRESS_INTERVAL);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                // Cancel safe: both arms say so.
                message = upstream.next() => message,
                _ = ask.tick(), if trusts_progress => {
                    if let Err(error) = upstream.request_progress().await {
                        return Outcome::Again(error);
                    }
                    continue;
                }
            };
            match message {
                Ok(WatchMessage::Events { header, revisions }) => {
                    for changes in &revisions {
                        if !self.give(changes, header.revision).await {
                            return Outcome::Done;
                        }
                    }
                }
                Ok(WatchMessage::Progress(header)) if trusts_progress => self.passed(header.revision),
                Ok(WatchMessage::Progress(_)) => {}
                Ok(WatchMessage::Compacted { compact_revision }) => {
                    self.end(Cancellation { compact_revision, ..Cancellation::default() });
                    return Outcome::Done;
                }
                Ok(WatchMessage::Canceled { reason }) => {
                    self.end(Cancellation { revision: self.feed.revision(), reason, ..Cancellation::default() });
                    return Outcome::Done;
                }
                Err(error) => return Outcome::Again(error),
            }
            if self.splice() {
                return Outcome::Done;
            }
        }
    }

    /// Queues one revision once there is room. False where the watch is gone.
    async fn give(&self, changes: &Changes, as_of: Revision) -> bool {
        let mut prev = changes.prev.iter();
        let entry = Arc::new(Entry::encode(changes.revision, changes.received, &changes.events, |_| {
            prev.next().and_then(Option::as_ref).map(|fields| Arc::new(KeyValue::new(fields)))
        }));
        let payload = Payload::matching(&entry, &self.range, self.options);
        self.outbox.wait_room().await;
        let mut state = self.outbox.lock();
        let Some(slot) = state.slot_of(self.watch_id).filter(|slot| state.watches[*slot].phase == Phase::Filling)
        else {
            return false;
        };
        let watch = &mut state.watches[slot];
        if changes.revision < watch.next {
            return true;
        }
        watch.next = changes.revision.next();
        let waker = payload.and_then(|payload| state.enqueue_events(slot, payload, as_of));
        drop(state);
        wake(waker);
        true
    }

    /// Upstream has nothing more up to `revision`.
    fn passed(&self, revision: Revision) {
        let mut state = self.outbox.lock();
        if let Some(slot) = state.slot_of(self.watch_id) {
            let watch = &mut state.watches[slot];
            if watch.phase == Phase::Filling {
                watch.next = watch.next.max(revision.next());
            }
        }
    }

    /// Hands the watch back to history where that reaches it. True where there is nothing left to fill.
    fn splice(&self) -> bool {
        let inner = self.feed.lock();
        let mut state = self.outbox.lock();
        let Some(slot) = state.slot_of(self.watch_id).filter(|slot| state.watches[*slot].phase == Phase::Filling)
        else {
            return true;
        };
        if !self.feed.is_serving() || state.watches[slot].next < inner.history.start() {
            return false;
        }
        state.set_phase(slot, Phase::Parked);
        let waker = state.wake();
        drop(state);
        drop(inner);
        wake(waker);
        true
    }

    fn end(&self, cancellation: Cancellation) {
        self.feed.cancel_for(&self.outbox, Cancellation { watch_id: self.watch_id, ..cancellation });
    }

    /// The revision that the watch needs next; `None` where it is not to be filled any more.
    fn next(&self) -> Option<Revision> {
        let state = self.outbox.lock();
        let watch = &state.watches[state.slot_of(self.watch_id)?];
        (watch.phase == Phase::Filling).then_some(watch.next)
    }
}
