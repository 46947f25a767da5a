//! Fills the gap between the revisions that watches need and the start of their feed's history, from a temporary
//! upstream watch.
//!
//! For revisions that do not fit into the history; `backfill` reads those that do. One upstream watch serves all
//! watches of a group (the same range and options) that need about the same revision, whichever stream's turn it was
//! (`turns`).
//! Always holds: only its fill writes to a filling watch. The splice to the history happens under the feed's lock, at a
//! revision that the history still has. A client that does not read gets no turn, and if others wait or share the fill,
//! it keeps its turn for [`GRACE`] at most. A stream with watches that wait either has a place in the queue for each
//! feed of theirs, or is being filled, or is full and queues again when it has been read.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, MissedTickBehavior};

use super::{
    Feed,
    delivery::Cancellation,
    ends,
    feed::Inner,
    index::{Group, GroupId, WatchOptions},
    outbox::{Outbox, Phase, State, Watch, wake},
    payload::Payload,
    runs::{RUN_BYTES, RUN_REVISIONS, is_large, weight},
    stats,
    turns::{Candidate, Turn},
    upstream::{UpstreamError, WatchMessage, WatchRequest},
};
use crate::types::{Cluster, Entry, KeyRange, Revision};

/// How often a fill asks upstream for its progress, and checks which watches are still there. etcd sends nothing by
/// itself while its watch is behind.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How long a fill may keep its turn while others wait and upstream brings nothing, because its keys are quiet and
/// progress cannot be trusted. This is long compared with the time that etcd takes to begin.
const TURN: Duration = Duration::from_secs(5);
/// How long a fill waits for a client that does not read, if others wait.
const GRACE: Duration = Duration::from_millis(250);
/// How many revisions a watch may be ahead of another one in the same fill. It waits until the fill reaches it.
const NEAR: i64 = 1024;
/// The most watches of one fill, and the most streams that are searched for them while the feed's lock is held.
const MOST: usize = 4096;
/// After this many failures in a row the turn goes to others.
const ATTEMPTS: usize = 4;

/// Puts a stream into the queue for fills from a feed, unless it is queued already or none of its watches waits.
pub(super) fn enqueue(feed: &Arc<Feed>, outbox: &Arc<Outbox>) {
    let mut state = outbox.lock();
    // A full stream queues again when it has been read.
    if state.is_full(&outbox.limits) {
        return;
    }
    queue(feed, outbox, &mut state);
    drop(state);
    feed.shared.turns.give();
}

fn queue(feed: &Arc<Feed>, outbox: &Arc<Outbox>, state: &mut State) {
    if !state.is_over() && state.watches.want_turn_in(feed.id()) {
        let waiting = Waiting { feed: feed.clone(), outbox: outbox.clone() };
        let ticket = feed.shared.turns.queue(outbox.client, Box::new(waiting));
        state.watches.set_ticket(feed.id(), Some(ticket));
    }
}

/// A stream with watches that wait for a fill from a feed.
#[derive(Debug)]
struct Waiting {
    feed: Arc<Feed>,
    outbox: Arc<Outbox>,
}

impl Candidate for Waiting {
    fn begin(self: Box<Self>, turn: Turn) {
        // Otherwise its watches are gone, or its client does not read.
        if let Some(fill) = Fill::begin(self.feed, &self.outbox) {
            let turns = fill.feed.shared.turns.clone();
            let tasks = fill.feed.shared.tasks.clone();
            tasks.detach("fill", async move {
                fill.run(turn).await;
                turns.give();
            });
        }
    }
}

/// One upstream watch, and the watches that it serves.
struct Fill {
    feed: Arc<Feed>,
    range: KeyRange,
    options: WatchOptions,
    members: Vec<Member>,
}

/// A watch to be filled. The client may cancel it and create another one with the same id, which this fill must not
/// serve.
struct Member {
    outbox: Arc<Outbox>,
    watch_id: i64,
    serial: u64,
}

/// Why one upstream watch of a fill ended.
enum Outcome {
    /// No watch is left in it.
    Done,
    /// Others wait, and this fill cannot go on. It continues when its turn comes again.
    MakeWay,
    /// Upstream broke off. Try again from where the watches are.
    Again(UpstreamError),
}

impl Fill {
    /// The fill of this stream's next waiting watch, and of all watches that can share it.
    fn begin(feed: Arc<Feed>, outbox: &Arc<Outbox>) -> Option<Self> {
        loop {
            let slot = {
                let mut state = outbox.lock();
                state.watches.set_ticket(feed.id(), None);
                if state.is_over() || state.is_full(&outbox.limits) {
                    return None;
                }
                state.watches.next_unfilled(feed.id())?
            };
            let inner = feed.lock();
            let (place, group, first, from) = {
                let mut state = outbox.lock();
                if state.is_full(&outbox.limits) {
                    return None;
                }
                let here = |watch: &&Watch| watch.phase() == Phase::Unfilled;
                // Otherwise the watch was cancelled meanwhile.
                let Some(watch) = state.watches.get(slot).filter(here) else { continue };
                if state.watches.feed_of(slot) != Some(feed.id()) {
                    continue;
                }
                let first = Member { outbox: outbox.clone(), watch_id: watch.id, serial: watch.serial };
                let found = (state.watches.place_of(slot), watch.group(), first, watch.next());
                state.begin_fill(slot);
                found
            };
            let mut members = vec![first];
            gather(&feed, &inner, place, group, from, &mut members);
            let Group { range, options, .. } = inner.index.group(group);
            let (range, options) = (range.clone(), *options);
            drop(inner);
            queue(&feed, outbox, &mut outbox.lock());
            return Some(Self { feed, range, options, members });
        }
    }

    /// Fills until no watch is left in it, or others should have the turn.
    async fn run(mut self, turn: Turn) {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(250))
            .with_max_delay(Duration::from_secs(3))
            .with_jitter()
            .without_max_times()
            .build();
        let mut denied = false;
        for attempt in 1.. {
            match self.attempt().await {
                Outcome::Done | Outcome::MakeWay => break,
                // A single refusal may come from an expired token; the next attempt uses a new one.
                Outcome::Again(error @ UpstreamError::Denied(_)) if denied => {
                    let (header, reason) = (self.feed.snapshot().header(), format!("etcd-relay: {error}"));
                    self.end(&Cancellation { header, reason, ..Cancellation::default() });
                    break;
                }
                Outcome::Again(error) => {
                    denied = matches!(error, UpstreamError::Denied(_));
                    tracing::debug!(%error, range = %self.range, watches = self.members.len(),
                        "Upstream watch of a fill ended");
                    tokio::time::sleep(delays.next().unwrap_or(TURN)).await;
                    if attempt >= ATTEMPTS && self.others_wait() {
                        break;
                    }
                }
            }
        }
        // Those who wait may get the turn before those who had it.
        drop(turn);
        let members = std::mem::take(&mut self.members);
        self.release(members);
    }

    /// Runs one upstream watch, from the position of the watch that is furthest behind.
    async fn attempt(&mut self) -> Outcome {
        let Some(start_revision) = self.look() else { return Outcome::Done };
        let _at_work = stats::Filling::start();
        let request = WatchRequest { range: self.range.clone(), start_revision, prev_kv: self.options.prev_kv };
        let mut upstream = match self.feed.shared.upstream.watch(request).await {
            Ok(upstream) => upstream,
            Err(error) => return Outcome::Again(error),
        };
        let cluster = self.feed.cluster();
        if upstream.created().cluster_id != cluster.id() {
            // The feed's driver will find out as well, and end the watches or keep them.
            return Outcome::Again(UpstreamError::Unavailable("another cluster answers".into()));
        }
        let trusts_progress = upstream.trusts_progress();
        let mut ask = tokio::time::interval(PROGRESS_INTERVAL);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            let message = tokio::select! {
                biased;
                // Cancel safe: every branch is.
                message = upstream.next() => message,
                _ = ask.tick() => {
                    if self.look().is_none() {
                        return Outcome::Done;
                    }
                    if heard.elapsed() >= TURN && self.others_wait() {
                        return Outcome::MakeWay;
                    }
                    if trusts_progress && let Err(error) = upstream.request_progress().await {
                        return Outcome::Again(error);
                    }
                    continue;
                }
            };
            match message {
                Ok(WatchMessage::Events { header, revisions }) => {
                    let entries: Vec<Arc<Entry>> = revisions.iter().map(|changes| changes.entry(&cluster)).collect();
                    for together in runs(&entries) {
                        self.wait_room().await;
                        self.give(together, header.revision);
                    }
                    heard = Instant::now();
                }
                Ok(WatchMessage::Progress(header)) if trusts_progress => self.pass(header.revision),
                Ok(WatchMessage::Progress(_)) => {}
                Ok(WatchMessage::Compacted { compact_revision }) => {
                    self.end_compacted(&cluster, compact_revision);
                    let none = self.members.is_empty();
                    return if none { Outcome::Done } else { Outcome::Again(UpstreamError::Compacted) };
                }
                Ok(WatchMessage::Canceled { reason }) => {
                    let header = cluster.at(self.feed.revision());
                    self.end(&Cancellation { header, reason, ..Cancellation::default() });
                    return Outcome::Done;
                }
                Err(error) => return Outcome::Again(error),
            }
            self.splice();
            if self.members.is_empty() {
                return Outcome::Done;
            }
        }
    }

    fn others_wait(&self) -> bool {
        self.feed.shared.turns.is_awaited()
    }

    /// Drops the watches that need no fill any more. Returns the lowest revision that one of the others needs, or
    /// `None` if there is none.
    fn look(&mut self) -> Option<Revision> {
        let mut lowest: Option<Revision> = None;
        self.members.retain(|member| {
            let next = member.next();
            lowest = [lowest, next].into_iter().flatten().min();
            next.is_some()
        });
        lowest
    }

    /// Waits until all of them have room. Those that take too long leave the fill if they hold up others.
    async fn wait_room(&mut self) {
        loop {
            let patience = Instant::now() + GRACE;
            let mut late = Vec::new();
            let mut members = Vec::with_capacity(self.members.len());
            for member in std::mem::take(&mut self.members) {
                match tokio::time::timeout_at(patience, member.outbox.wait_room()).await {
                    Ok(()) => members.push(member),
                    Err(_) => late.push(member),
                }
            }
            self.members = members;
            if late.is_empty() {
                return;
            }
            if self.members.is_empty() && !self.others_wait() {
                // They hold up nobody, but they may be gone.
                self.members = late;
                if self.look().is_none() {
                    return;
                }
            } else {
                self.release(late);
            }
        }
    }

    /// Queues the events that the watches want from consecutive revisions.
    fn give(&mut self, entries: &[Arc<Entry>], as_of: Revision) {
        let Some(through) = entries.last().map(|last| last.revision) else { return };
        let payload = Payload::matching(entries, &self.range, self.options);
        self.members.retain(|member| {
            let waker = member.with(|state, slot| {
                let was_empty = state.queue.is_empty();
                if let Some(payload) = &payload {
                    state.give(slot, payload.clone(), as_of);
                }
                state.pass(slot, through);
                was_empty.then(|| state.wake()).flatten()
            });
            waker.map(wake).is_some()
        });
    }

    /// Upstream has nothing more up to `revision`.
    fn pass(&mut self, revision: Revision) {
        self.members.retain(|member| member.with(|state, slot| state.pass(slot, revision)).is_some());
    }

    /// Hands the watches that the history reaches back to it.
    fn splice(&mut self) {
        let feed = self.feed.clone();
        self.members.retain(|member| {
            let inner = feed.lock();
            let mut state = member.outbox.lock();
            let Some(slot) = member.slot(&state) else { return false };
            let next = state.watches.get(slot).map_or(Revision::ZERO, Watch::next);
            if !feed.is_serving() || next < inner.history.start() {
                return true;
            }
            state.park(slot);
            let waker = state.wake();
            drop(state);
            drop(inner);
            wake(waker);
            false
        });
    }

    /// Upstream has compacted everything before a revision. This may concern more watches than these.
    fn end_compacted(&mut self, cluster: &Arc<Cluster>, compact_revision: Revision) {
        let needs_it = |member: &Member| member.next().is_none_or(|next| next < compact_revision);
        let (ended, left) = std::mem::take(&mut self.members).into_iter().partition(needs_it);
        self.members = ended;
        self.end(&Cancellation { header: cluster.at(Revision::ZERO), compact_revision, ..Cancellation::default() });
        self.members = left;
        ends::compacted(&self.feed, cluster, compact_revision);
    }

    /// Ends all of its watches.
    fn end(&mut self, cancellation: &Cancellation) {
        for Member { outbox, watch_id, serial } in self.members.drain(..) {
            ends::cancel_filled(&self.feed, &outbox, serial, Cancellation { watch_id, ..cancellation.clone() });
        }
    }

    /// Returns watches to those that wait for a fill.
    fn release(&self, members: Vec<Member>) {
        for member in members {
            let mut inner = self.feed.lock();
            let mut state = member.outbox.lock();
            let Some(slot) = member.slot(&state) else { continue };
            let Some(needs) = state.watches.get(slot).map(Watch::next) else { continue };
            let tasks = inner.lag_far(&mut state, slot, needs);
            drop(state);
            drop(inner);
            if tasks.fill {
                enqueue(&self.feed, &member.outbox);
            }
        }
    }
}

impl Member {
    /// Calls `with` for the watch, if it is still to be filled.
    fn with<T>(&self, with: impl FnOnce(&mut State, usize) -> T) -> Option<T> {
        let mut state = self.outbox.lock();
        let slot = self.slot(&state)?;
        Some(with(&mut state, slot))
    }

    /// The revision that it needs next, if it is still to be filled.
    fn next(&self) -> Option<Revision> {
        let state = self.outbox.lock();
        state.watches.get(self.slot(&state)?).map(Watch::next)
    }

    fn slot(&self, state: &State) -> Option<usize> {
        state.filling(self.watch_id, self.serial)
    }
}

/// Adds the group's watches that wait for a fill from about the revision `around` on to this fill. The search begins at
/// `place` and goes round.
fn gather(feed: &Feed, inner: &Inner, place: u32, group: GroupId, around: Revision, members: &mut Vec<Member>) {
    let from = Revision::new(around.get().saturating_sub(NEAR / 2));
    let through = Revision::new(around.get().saturating_add(NEAR / 2));
    let mut looked = 0;
    for place in inner.past.lagging_after(place) {
        if looked >= MOST {
            break;
        }
        let Some(outbox) = inner.outboxes.get(place) else { continue };
        let mut state = outbox.lock();
        looked += 1;
        if state.is_over() || state.is_full(&outbox.limits) {
            continue;
        }
        for slot in state.watches.unfilled_in(feed.id(), from, through, MOST - looked) {
            looked += 1;
            let Some(watch) = state.watches.get(slot) else { continue };
            if watch.group() == group {
                members.push(Member { outbox: outbox.clone(), watch_id: watch.id, serial: watch.serial });
                state.begin_fill(slot);
            }
        }
    }
}

/// Splits entries into parts. Each part is queued as one delivery.
fn runs(mut entries: &[Arc<Entry>]) -> impl Iterator<Item = &[Arc<Entry>]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |entry: &&Arc<Entry>| {
            let alone = is_large(entry);
            let fits = bytes == 0 || !alone && bytes + weight(entry) <= RUN_BYTES;
            // A large entry ends the run that it begins.
            bytes += if alone { RUN_BYTES } else { weight(entry) };
            fits
        };
        let together = entries.iter().take(RUN_REVISIONS).take_while(fits).count();
        let run = entries.split_off(..together)?;
        (!run.is_empty()).then_some(run)
    })
}
