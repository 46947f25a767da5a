//! Fills the gap between the revisions that watches need and the start of their feed's history, from a temporary
//! upstream watch.
//!
//! For revisions that do not fit into the history; `backfill` reads those that do. One upstream watch serves all
//! watches of a group (the same range and options) that need about the same revision, whichever stream's turn it was
//! (`turns`).
//! Always holds: only its fill writes to a filling watch. The splice to the history happens under the feed's lock, at a
//! revision that the history still has. A client that does not read gets no turn, and keeps one for [`GRACE`] at most
//! while others wait. No watch waits for another one of its fill: what a stream has no room for stays in the `window`,
//! and a watch that falls further behind than that leaves the fill. A stream with watches that wait either has a place
//! in the queue for each feed of theirs, or is being filled, or is full and queues again when it has been read.

mod window;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use self::window::{Item, Window};
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
/// How long a watch keeps its place in a fill without room in its stream, if others wait.
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
    /// By number.
    members: BTreeMap<usize, Member>,
    window: Window,
}

/// A watch to be filled. The client may cancel it and create another one with the same id, which this fill must not
/// serve.
struct Member {
    outbox: Arc<Outbox>,
    watch_id: i64,
    serial: u64,
    /// The item of the window that it needs next.
    needs: u64,
    /// Since when its stream has had no room for that item.
    stuck_since: Option<Instant>,
}

/// How far a member came.
enum Went {
    /// It has everything that was read.
    ToTheEnd,
    /// Its stream has no room.
    Stuck,
    /// It needs this fill no more.
    Gone,
}

/// Waits until the streams of members have room, and yields their numbers.
type Rooms = FuturesUnordered<BoxFuture<'static, usize>>;

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
                let first = Member::new(outbox, watch);
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
            let members = members.into_iter().enumerate().collect();
            return Some(Self { feed, range, options, members, window: Window::default() });
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
        self.release(members.into_values().collect());
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
        self.window = Window::default();
        for member in self.members.values_mut() {
            (member.needs, member.stuck_since) = (0, None);
        }
        // One for each member that is stuck.
        let mut rooms = Rooms::new();
        let mut ask = tokio::time::interval(PROGRESS_INTERVAL);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        // Whether some watch wants more than was read. Not looked for at each turn of the loop, since there may be
        // many.
        let mut more = true;
        loop {
            let message = tokio::select! {
                biased;
                // Cancel safe: every branch is.
                Some(number) = rooms.next() => {
                    more |= self.go_on(number, &rooms);
                    heard = Instant::now();
                    if self.members.is_empty() {
                        return Outcome::Done;
                    }
                    continue;
                }
                message = upstream.next(), if more => message,
                _ = ask.tick() => {
                    if self.others_wait() {
                        self.release_stuck();
                    }
                    if self.look().is_none() {
                        return Outcome::Done;
                    }
                    if heard.elapsed() >= TURN && self.others_wait() {
                        return Outcome::MakeWay;
                    }
                    self.forget_given();
                    more = self.wants_more();
                    if trusts_progress && more {
                        // A member that takes no request must not hold up those that wait for room.
                        let asked = timeout(PROGRESS_INTERVAL, upstream.request_progress()).await;
                        if let Ok(Err(error)) = asked {
                            return Outcome::Again(error);
                        }
                    }
                    continue;
                }
            };
            match message {
                Ok(WatchMessage::Events { header, revisions }) => {
                    let entries: Vec<Arc<Entry>> = revisions.iter().map(|changes| changes.entry(&cluster)).collect();
                    self.make_room();
                    for together in runs(&entries) {
                        self.give(together, header.revision, &rooms);
                    }
                    self.forget_given();
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
            more = self.wants_more();
        }
    }

    fn others_wait(&self) -> bool {
        self.feed.shared.turns.is_awaited()
    }

    /// Drops the watches that need no fill any more. Returns the lowest revision that one of the others needs, or
    /// `None` if there is none.
    fn look(&mut self) -> Option<Revision> {
        let mut lowest: Option<Revision> = None;
        self.members.retain(|_, member| {
            let next = member.next();
            lowest = [lowest, next].into_iter().flatten().min();
            next.is_some()
        });
        lowest
    }

    /// Whether some watch has everything that was read.
    fn wants_more(&self) -> bool {
        self.members.values().any(|member| member.stuck_since.is_none())
    }

    /// Before more is read: the watches that are furthest behind leave if there is too much for them to catch up with.
    fn make_room(&mut self) {
        self.window.trim();
        let first = self.window.first();
        self.release_if(|member| member.needs < first);
    }

    /// Drops what all watches have.
    fn forget_given(&mut self) {
        let needed = self.members.values().map(|member| member.needs).min();
        self.window.drop_before(needed.unwrap_or_else(|| self.window.end()));
    }

    /// Watches whose streams have had no room for a while leave.
    fn release_stuck(&mut self) {
        self.release_if(|member| member.stuck_since.is_some_and(|since| since.elapsed() >= GRACE));
    }

    fn release_if(&mut self, leaves: impl Fn(&Member) -> bool) {
        let left: Vec<usize> =
            self.members.iter().filter(|(_, member)| leaves(member)).map(|(number, _)| *number).collect();
        let left = left.iter().filter_map(|number| self.members.remove(number)).collect();
        self.release(left);
    }

    /// Passes on the events that the watches want from consecutive revisions.
    fn give(&mut self, entries: &[Arc<Entry>], as_of: Revision, rooms: &Rooms) {
        let Some(through) = entries.last().map(|last| last.revision) else { return };
        let Some(payload) = Payload::matching(entries, &self.range, self.options) else { return self.pass(through) };
        self.window.add(Item { payload, through, as_of });
        self.members.retain(|number, member| {
            member.stuck_since.is_some() || member.goes_on(*number, &self.window, false, rooms)
        });
    }

    /// A watch's stream has room again. Returns whether the watch wants more than was read.
    fn go_on(&mut self, number: usize, rooms: &Rooms) -> bool {
        // It may have left meanwhile.
        let Some(member) = self.members.get_mut(&number) else { return false };
        if !member.goes_on(number, &self.window, true, rooms) || member.splices(&self.feed) {
            self.members.remove(&number);
            return false;
        }
        member.stuck_since.is_none()
    }

    /// Upstream has nothing more up to `revision`.
    fn pass(&mut self, revision: Revision) {
        self.window.pass(revision);
        // The others pass it with the last item that they get.
        self.members.retain(|_, member| {
            member.stuck_since.is_some() || member.with(|state, slot| state.pass(slot, revision)).is_some()
        });
    }

    /// Hands the watches that the history reaches back to it.
    fn splice(&mut self) {
        self.members.retain(|_, member| !member.splices(&self.feed));
    }

    /// Upstream has compacted everything before a revision. This may concern more watches than these.
    fn end_compacted(&mut self, cluster: &Arc<Cluster>, compact_revision: Revision) {
        let needs_it = |member: &Member| member.next().is_none_or(|next| next < compact_revision);
        let (ended, left) = std::mem::take(&mut self.members).into_iter().partition(|(_, member)| needs_it(member));
        self.members = ended;
        self.end(&Cancellation { header: cluster.at(Revision::ZERO), compact_revision, ..Cancellation::default() });
        self.members = left;
        ends::compacted(&self.feed, cluster, compact_revision);
    }

    /// Ends all of its watches.
    fn end(&mut self, cancellation: &Cancellation) {
        for Member { outbox, watch_id, serial, .. } in std::mem::take(&mut self.members).into_values() {
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
    fn new(outbox: &Arc<Outbox>, watch: &Watch) -> Self {
        let (outbox, watch_id, serial) = (outbox.clone(), watch.id, watch.serial);
        Self { outbox, watch_id, serial, needs: 0, stuck_since: None }
    }

    /// Gives it what it needs from the window, as far as its stream has room; `is_next` if it has waited for its turn
    /// there. Returns false if it needs the fill no more.
    fn goes_on(&mut self, number: usize, window: &Window, is_next: bool, rooms: &Rooms) -> bool {
        match self.take_from(window, is_next) {
            Went::ToTheEnd => self.stuck_since = None,
            Went::Stuck => {
                self.stuck_since = Some(Instant::now());
                let outbox = self.outbox.clone();
                rooms.push(async move { outbox.wait_room().await }.map(move |()| number).boxed());
            }
            Went::Gone => return false,
        }
        true
    }

    fn take_from(&mut self, window: &Window, mut is_next: bool) -> Went {
        while let Some(item) = window.get(self.needs) {
            let given = self.with(|state, slot| {
                let next = state.watches.get(slot).map_or(Revision::ZERO, Watch::next);
                let mut waker = None;
                // A watch that is ahead of the fill needs no room.
                if item.payload.revision() >= next {
                    if !state.has_room(&self.outbox.limits, is_next) {
                        return None;
                    }
                    let was_empty = state.queue.is_empty();
                    state.give(slot, item.payload.clone(), item.as_of);
                    waker = was_empty.then(|| state.wake()).flatten();
                }
                state.pass(slot, item.through);
                Some(waker)
            });
            match given {
                Some(Some(waker)) => wake(waker),
                Some(None) => return Went::Stuck,
                None => return Went::Gone,
            }
            is_next = false;
            self.needs += 1;
        }
        Went::ToTheEnd
    }

    /// Hands it back to the history if that reaches it, and returns whether it needs the fill no more.
    fn splices(&self, feed: &Feed) -> bool {
        let inner = feed.lock();
        let mut state = self.outbox.lock();
        let Some(slot) = self.slot(&state) else { return true };
        let next = state.watches.get(slot).map_or(Revision::ZERO, Watch::next);
        if !feed.is_serving() || next < inner.history.start() {
            return false;
        }
        state.park(slot);
        let waker = state.wake();
        drop(state);
        drop(inner);
        wake(waker);
        true
    }

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
                members.push(Member::new(outbox, watch));
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

#[cfg(test)]
mod tests;
