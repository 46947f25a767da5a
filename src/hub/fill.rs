//! Fills the gap between what a watch needs and where its feed's history begins, from a temporary upstream watch.
//!
//! Started by `feed` and `catch_up`; one task a watch, at most `Limits::fills` at work. Always holds: a filling watch is
//! written to by its fill alone; the splice to history happens under the feed's lock, at a revision that history still has;
//! a fill waits for room in the outbox, so a client that does not read costs one upstream watch that etcd holds back; and where
//! others wait for their turn, one that cannot go on makes way.

use std::{pin::pin, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::{
    sync::SemaphorePermit,
    time::{Instant, MissedTickBehavior},
};

use super::{
    Feed,
    delivery::Cancellation,
    index::WatchOptions,
    outbox::{Outbox, Phase, State, wake},
    payload::Payload,
    stats,
    upstream::{Changes, UpstreamError, WatchMessage, WatchRequest},
};
use crate::types::{Cluster, Entry, KeyRange, KeyValue, Revision};

/// How often a fill that is not through asks upstream where it stands; etcd is silent while its watch is behind.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How long a fill may keep its turn from others without bringing anything: its client does not read, or its keys are quiet and
/// progress cannot be believed. Long beside the time that etcd takes to begin.
const TURN: Duration = Duration::from_secs(5);

/// Starts the fill of a watch that has just been put into phase `Filling`.
pub(super) fn spawn(feed: Arc<Feed>, outbox: Arc<Outbox>, filled: Filled) {
    let fill = Fill { feed, outbox, filled };
    let tasks = fill.feed.shared.tasks.clone();
    tasks.detach("fill", async move {
        let gone = fill.outbox.gone.clone();
        // Dropping the fill drops its upstream watch.
        gone.run_until_cancelled(fill.run()).await;
    });
}

/// The watch to be filled. The client may cancel it and create another one with its id, which is not to be filled from here.
pub(super) struct Filled {
    pub(super) watch_id: i64,
    pub(super) serial: u64,
    pub(super) range: KeyRange,
    pub(super) options: WatchOptions,
}

struct Fill {
    feed: Arc<Feed>,
    outbox: Arc<Outbox>,
    filled: Filled,
}

/// Why one upstream watch of a fill ended.
enum Outcome {
    /// The watch reads on from history, or is gone.
    Done,
    /// Others wait, and this fill cannot go on; again when it is its turn.
    MakeWay,
    /// Upstream broke off; try again from where the watch stands.
    Again(UpstreamError),
}

impl Fill {
    async fn run(&self) {
        let backoff = || {
            ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(50))
                .with_max_delay(Duration::from_secs(3))
                .with_jitter()
                .without_max_times()
                .build()
        };
        let mut delays = backoff();
        let mut denied = false;
        loop {
            self.outbox.wait_room().await;
            let Some(permit) = self.turn().await else { return };
            let before = self.next();
            let outcome = self.attempt().await;
            drop(permit);
            match outcome {
                Outcome::Done => return,
                Outcome::MakeWay => {}
                // Once may be a token that is too old; the next attempt brings a new one.
                Outcome::Again(error @ UpstreamError::Denied(_)) if denied => {
                    let (header, reason) = (self.feed.snapshot().header(), format!("etcd-relay: {error}"));
                    return self.end(Cancellation { header, reason, ..Cancellation::default() });
                }
                Outcome::Again(error) => {
                    denied = matches!(error, UpstreamError::Denied(_));
                    let (range, watch_id) = (&self.filled.range, self.filled.watch_id);
                    tracing::debug!(%error, %range, watch_id, "Upstream watch of a fill ended");
                    if self.next() > before {
                        delays = backoff();
                    }
                    tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(3))).await;
                }
            }
        }
    }

    /// Waits for a turn; `None` where the watch is gone before it comes. Turns are given in the order in which they were asked for.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let mut acquire = pin!(self.feed.shared.fills.acquire());
        loop {
            // The semaphore is never closed.
            match tokio::time::timeout(TURN, &mut acquire).await {
                Ok(permit) => return permit.ok(),
                // A client that creates and cancels must not fill the queue with watches that are gone.
                Err(_) => self.next().map(drop)?,
            }
        }
    }

    /// One upstream watch, from where the subscription stands.
    async fn attempt(&self) -> Outcome {
        let Some(start_revision) = self.next() else { return Outcome::Done };
        let _at_work = stats::Filling::start();
        let Filled { range, options, .. } = &self.filled;
        let request = WatchRequest { range: range.clone(), start_revision, prev_kv: options.prev_kv };
        let mut upstream = match self.feed.shared.upstream.watch(request).await {
            Ok(upstream) => upstream,
            Err(error) => return Outcome::Again(error),
        };
        let cluster = self.feed.cluster();
        if upstream.created().cluster_id != cluster.id() {
            // The feed's driver will find out too, and end the watch or keep it.
            return Outcome::Again(UpstreamError::Unavailable("another cluster answers".into()));
        }
        let trusts_progress = upstream.trusts_progress();
        let mut ask = tokio::time::interval_at(Instant::now(), PROGRESS_INTERVAL);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            let message = tokio::select! {
                // Cancel safe: each arm says so.
                message = upstream.next() => message,
                () = tokio::time::sleep_until(heard + TURN) => {
                    // Where upstream is silent, nothing else tells that the client has canceled.
                    if self.next().is_none() {
                        return Outcome::Done;
                    }
                    if self.others_wait() {
                        return Outcome::MakeWay;
                    }
                    heard = Instant::now();
                    continue;
                }
                _ = ask.tick(), if trusts_progress => {
                    if let Err(error) = upstream.request_progress().await {
                        return Outcome::Again(error);
                    }
                    continue;
                }
            };
            match message {
                Ok(WatchMessage::Events { header, revisions }) => {
                    let mut rest = &revisions[..];
                    while !rest.is_empty() {
                        while tokio::time::timeout(TURN, self.outbox.wait_room()).await.is_err() {
                            if self.next().is_none() {
                                return Outcome::Done;
                            }
                            if self.others_wait() {
                                return Outcome::MakeWay;
                            }
                        }
                        let Some(given) = self.give(&cluster, rest, header.revision) else { return Outcome::Done };
                        rest = &rest[given..];
                    }
                    heard = Instant::now();
                }
                Ok(WatchMessage::Progress(header)) if trusts_progress => self.passed(header.revision),
                Ok(WatchMessage::Progress(_)) => {}
                Ok(WatchMessage::Compacted { compact_revision }) => {
                    let header = cluster.at(Revision::ZERO);
                    self.end(Cancellation { header, compact_revision, ..Cancellation::default() });
                    return Outcome::Done;
                }
                Ok(WatchMessage::Canceled { reason }) => {
                    self.end(Cancellation {
                        header: cluster.at(self.feed.revision()),
                        reason,
                        ..Cancellation::default()
                    });
                    return Outcome::Done;
                }
                Err(error) => return Outcome::Again(error),
            }
            if self.splice() {
                return Outcome::Done;
            }
        }
    }

    /// Whether all turns are taken, so that others may be waiting.
    fn others_wait(&self) -> bool {
        self.feed.shared.fills.available_permits() == 0
    }

    /// Queues revisions while there is room, at least one, together: the stream sends in one response what came in one. Gives
    /// back how many; `None` where the watch is gone.
    fn give(&self, cluster: &Arc<Cluster>, revisions: &[Changes], as_of: Revision) -> Option<usize> {
        let mut state = self.outbox.lock();
        let slot = self.slot(&state)?;
        let mut given = 0;
        for changes in revisions {
            if given > 0 && state.is_full(&self.outbox.limits) {
                break;
            }
            given += 1;
            if changes.revision < state.watches[slot].next {
                continue;
            }
            if let Some(payload) = self.payload(cluster, changes) {
                state.enqueue_events(slot, payload, as_of);
            }
            state.watches[slot].next = changes.revision.next();
        }
        let waker = if state.queue.is_empty() { None } else { state.wake() };
        drop(state);
        wake(waker);
        Some(given)
    }

    /// What the watch wants of a revision, encoded for it alone.
    fn payload(&self, cluster: &Arc<Cluster>, changes: &Changes) -> Option<Arc<Payload>> {
        let mut prev = changes.prev.iter();
        let entry = Arc::new(Entry::encode(cluster, changes.revision, changes.received, &changes.events, |_| {
            prev.next().and_then(Option::as_ref).map(|fields| Arc::new(KeyValue::new(fields)))
        }));
        Payload::matching(&[entry], &self.filled.range, self.filled.options)
    }

    /// Upstream has nothing more up to `revision`.
    fn passed(&self, revision: Revision) {
        let mut state = self.outbox.lock();
        if let Some(slot) = self.slot(&state) {
            let watch = &mut state.watches[slot];
            watch.next = watch.next.max(revision.next());
        }
    }

    /// Hands the watch back to history where that reaches it. True where there is nothing left to fill.
    fn splice(&self) -> bool {
        let inner = self.feed.lock();
        let mut state = self.outbox.lock();
        let Some(slot) = self.slot(&state) else { return true };
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
        let Filled { watch_id, serial, .. } = self.filled;
        self.feed.cancel_filled(&self.outbox, serial, Cancellation { watch_id, ..cancellation });
    }

    /// The revision that the watch needs next; `None` where it is not to be filled any more.
    fn next(&self) -> Option<Revision> {
        let state = self.outbox.lock();
        self.slot(&state).map(|slot| state.watches[slot].next)
    }

    fn slot(&self, state: &State) -> Option<usize> {
        state.filling(self.filled.watch_id, self.filled.serial)
    }
}
