//! The backfill of a feed: reads revisions older than the feed's history from upstream and puts them before it. Any
//! number of watches that begin a little before the history are then served from memory.
//!
//! Not here: what the history cannot hold, see `fill`. After the relay has started, each history begins at its
//! snapshot, and all clients come back with the revisions that they had. Together they cost etcd one watch.
//!
//! Each feed has one such task while it needs one. The task repeats these steps:
//!
//! - *plan*: finds what the lagging watches need. If no watch lags, the task ends. Otherwise it reads from the lowest
//!   revision that is needed, and a margin more for watches that come a little later. It reads no more than one stage
//!   at a time, so that a watch that needs little does not wait for one that needs much. Stages grow as far as the
//!   history has room, judged by what the stage before brought.
//! - *read*: opens one upstream watch over the range of the feed, with previous values, up to the start of the history.
//!   Whatever does not fit into the history is dropped as it arrives, the oldest first.
//! - *join*: puts it before the history under the feed's lock, in steps, the newest revisions first. Each step leaves a
//!   history without a gap.
//! - *settle*: parks the watches that the history now reaches and wakes their streams. From here on they are ordinary
//!   parked watches. If the history cannot grow any more, the other watches wait for fills. Otherwise they stay behind
//!   until the next plan.
//!
//! Meanwhile:
//!
//! - the history may drop its oldest entries because it is full. Then nothing is joined, and the lagging watches wait
//!   for fills;
//! - the feed may begin another history (`epoch`), or stop serving. Then everything that was read is dropped, and the
//!   task plans again;
//! - upstream may have compacted some of what is needed. The watches that need it are cancelled with the compact
//!   revision, and the next read begins where upstream's history begins;
//! - another cluster may answer, or a member that lacks what the feed has, or the watch may break. Then the read is
//!   tried again, after a delay that grows;
//! - upstream may refuse the relay, cancel the watch, or be unable to report that the watch is complete (see
//!   `trusts_progress`). Then the lagging watches wait for fills, which can pass upstream's reason to each watch, and
//!   no backfill is tried for a while.
//!
//! Always holds: an entry that is put before the history is complete and equal to a live one, except that a replaced
//! value may be unknown if upstream had compacted it (`read` takes care of that). A watch that is behind has no writer,
//! and while one is behind there is a task. What has been read and not joined yet is never more than one history, in
//! the configured feeds and in [`ON_DEMAND`] others at the same time.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, MissedTickBehavior};

use super::{
    Feed, FeedKind, ends,
    feed::PastTasks,
    fill,
    outbox::{Outbox, Watch, wake},
    stats,
    upstream::{Changes, UpstreamError, WatchMessage, WatchRequest},
};
use crate::{
    telemetry::names::BackfillOutcome,
    types::{Cluster, Entry, Revision},
};

/// The most feeds on demand that are backfilled at once, since clients decide how many there are. Configured feeds do
/// not wait.
pub(super) const ON_DEMAND: usize = 4;
/// Revisions that are read beyond those needed, in addition to as many again as are needed.
const MARGIN: i64 = 256;
/// Revisions of the first stage.
const STAGE: i64 = 8192;
/// The largest factor by which a stage may be longer than the one before.
const GROWTH: i64 = 8;
/// The most entries that are joined while the feed's lock is held.
const STEP: usize = 1024;
/// The most watches of a stream that are moved while its lock is held.
const STEP_WATCHES: usize = 1024;
/// How often upstream is asked for its progress. etcd reports none by itself while its watch is behind.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// How long upstream may be silent before the watch is given up. etcd reads all revisions since the start before it
/// sends anything.
const SILENCE: Duration = Duration::from_secs(30);

/// Starts the tasks that watches of these streams need in `feed`.
pub(super) fn start<'a>(tasks: PastTasks, feed: &Arc<Feed>, outboxes: impl IntoIterator<Item = &'a Arc<Outbox>>) {
    if tasks.backfill {
        feed.shared.tasks.detach("backfill", run(feed.clone()));
    }
    if tasks.fill {
        outboxes.into_iter().for_each(|outbox| fill::enqueue(feed, outbox));
    }
}

/// One watch on upstream, and its purpose.
#[derive(Debug)]
struct Plan {
    /// The history that it extends, and where that begins.
    epoch: u64,
    cluster: Arc<Cluster>,
    to: Revision,
    from: Revision,
    /// Entries and bytes for which the history has room.
    room: (usize, usize),
    /// Whether the feed has seen an event since. Upstream then repeats that event, which shows that everything before
    /// it has arrived.
    ends_with_event: bool,
}

/// What upstream sent, oldest first.
#[derive(Debug, Default)]
struct Read {
    entries: VecDeque<(Arc<Entry>, usize)>,
    bytes: usize,
    /// Events and bytes of all that was read.
    seen: (usize, usize),
    /// From this revision on nothing is missing.
    from: Revision,
}

enum Ended {
    /// Everything up to the start of the history.
    Complete(Read),
    Compacted(Revision),
    Failed(UpstreamError),
    Refused(String),
}

async fn run(feed: Arc<Feed>) {
    let mut delays = delays();
    let mut stage = STAGE;
    let mut oldest = Revision::ZERO;
    loop {
        let on_demand = feed.kind() == FeedKind::OnDemand;
        // The semaphore is never closed.
        let turn = if on_demand { feed.shared.backfills.acquire().await.ok() } else { None };
        let Some(plan) = plan(&feed, stage, oldest) else { return };
        tracing::debug!(range = %feed.range(), from = plan.from.get(), to = plan.to.get(), "Reading a feed's past");
        let outcome = match read(&feed, &plan).await {
            Ended::Complete(read) => {
                delays = self::delays();
                stage = longer(stage, &plan, &read);
                join(&feed, &plan, read)
            }
            Ended::Compacted(compact_revision) => {
                oldest = compact_revision;
                ends::compacted(&feed, &plan.cluster, compact_revision);
                BackfillOutcome::Compacted
            }
            Ended::Failed(error) => {
                tracing::debug!(range = %feed.range(), %error, "Cannot read a feed's past, trying again");
                drop(turn);
                tokio::time::sleep(delays.next().unwrap_or(SILENCE)).await;
                BackfillOutcome::Failed
            }
            Ended::Refused(reason) => {
                tracing::info!(range = %feed.range(), reason,
                    "Cannot read a feed's past for all of its watches at once; each watch that needs it is served by itself");
                feed.lock().past.refused = Some(Instant::now());
                BackfillOutcome::Refused
            }
        };
        stats::backfilled(outcome);
        settle(&feed);
    }
}

/// What to read next; `None` if no watch is behind, and the task then counts as ended.
fn plan(feed: &Feed, stage: i64, oldest: Revision) -> Option<Plan> {
    loop {
        feed.lock().past.asked = false;
        let mut lowest: Option<Revision> = None;
        let mut place = Some(0);
        while let Some(from) = place {
            let (outboxes, next) = feed.lock().lagging_from(from);
            for (_, outbox) in outboxes {
                let needs = outbox.lock().watches.furthest_behind_in(feed.id());
                lowest = [lowest, needs].into_iter().flatten().min();
            }
            place = next;
        }
        let mut inner = feed.lock();
        let Some(lowest) = lowest else {
            if inner.past.asked {
                continue;
            }
            inner.past.at_work = false;
            return None;
        };
        let to = inner.history.start();
        let needed = to.get().saturating_sub(lowest.get()).max(0);
        let from = to.get() - needed.saturating_mul(2).saturating_add(MARGIN).min(stage.max(1));
        let from = Revision::new(from.max(1));
        // Compacted revisions are not requested again, unless a watch must be told that they are compacted.
        let from = if lowest >= oldest { from.max(oldest).min(to) } else { from };
        return Some(Plan {
            epoch: inner.epoch,
            cluster: inner.cluster.clone(),
            to,
            from,
            room: inner.history.room(),
            ends_with_event: !inner.history.ends_before(to),
        });
    }
}

/// Reads the range of the feed until everything before the start of the history has arrived.
async fn read(feed: &Feed, plan: &Plan) -> Ended {
    let request = WatchRequest { range: feed.range().clone(), start_revision: plan.from, prev_kv: true };
    let mut upstream = match tokio::time::timeout(SILENCE, feed.shared.upstream.watch(request)).await {
        Ok(Ok(upstream)) => upstream,
        Ok(Err(UpstreamError::Denied(reason))) => return Ended::Refused(reason),
        Ok(Err(error)) => return Ended::Failed(error),
        Err(_) => return Ended::Failed(UpstreamError::Timeout(SILENCE)),
    };
    let created = upstream.created();
    if created.cluster_id != plan.cluster.id() {
        return Ended::Failed(UpstreamError::Unavailable("another cluster answers".into()));
    }
    if created.revision < plan.to.previous() {
        return Ended::Failed(UpstreamError::Unavailable("the member is behind the history".into()));
    }
    let trusts_progress = upstream.trusts_progress();
    if !trusts_progress && !plan.ends_with_event {
        return Ended::Refused("etcd's progress cannot be trusted, and nothing has happened since".into());
    }
    let mut read = Read { from: plan.from, ..Read::default() };
    let mut ask = tokio::time::interval(PROGRESS_INTERVAL);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        // Cancel safe: every branch is.
        let message = tokio::select! {
            biased;
            message = upstream.next() => message,
            _ = ask.tick(), if trusts_progress => {
                if let Err(error) = upstream.request_progress().await {
                    return Ended::Failed(error);
                }
                continue;
            }
            () = tokio::time::sleep_until(heard + SILENCE) => return Ended::Failed(UpstreamError::Timeout(SILENCE)),
        };
        heard = Instant::now();
        match message {
            Ok(WatchMessage::Events { revisions, .. }) => {
                for changes in &revisions {
                    if changes.revision >= plan.to {
                        return Ended::Complete(read);
                    }
                    read.add(&plan.cluster, changes, plan.room);
                }
            }
            Ok(WatchMessage::Progress(header)) if trusts_progress && header.revision >= plan.to.previous() => {
                return Ended::Complete(read);
            }
            Ok(WatchMessage::Progress(_)) => {}
            Ok(WatchMessage::Compacted { compact_revision }) if compact_revision > plan.from => {
                return Ended::Compacted(compact_revision);
            }
            Ok(WatchMessage::Compacted { compact_revision }) => {
                let text = format!("revision {} is compacted at {compact_revision}", plan.from);
                return Ended::Failed(UpstreamError::Protocol(text));
            }
            Ok(WatchMessage::Canceled { reason }) => return Ended::Refused(reason),
            Err(UpstreamError::Denied(reason)) => return Ended::Refused(reason),
            Err(error) => return Ended::Failed(error),
        }
    }
}

impl Read {
    /// Adds the next revision, and drops the oldest ones that do not fit into the history.
    fn add(&mut self, cluster: &Arc<Cluster>, changes: &Changes, room: (usize, usize)) {
        let entry = changes.entry(cluster);
        let cost = entry.cost();
        self.seen = (self.seen.0 + 1, self.seen.1 + cost);
        self.bytes += cost;
        self.entries.push_back((entry, cost));
        while self.entries.len() > room.0 || self.bytes > room.1 {
            let Some((oldest, cost)) = self.entries.pop_front() else { break };
            self.bytes -= cost;
            self.from = oldest.revision.next();
        }
    }
}

/// The number of revisions in the next stage: more than in this one, but no more than the history has room for, if they
/// bring as many entries as this stage did.
fn longer(stage: i64, plan: &Plan, read: &Read) -> i64 {
    let revisions = (plan.to.get() - plan.from.get()).max(1) as u128;
    let fits = |room: usize, seen: usize| (room.saturating_sub(seen)) as u128 * revisions / seen.max(1) as u128;
    let fitting = fits(plan.room.0, read.seen.0).min(fits(plan.room.1, read.seen.1));
    let fitting = i64::try_from(fitting).unwrap_or(i64::MAX);
    stage.saturating_mul(GROWTH).min(fitting).max(STAGE)
}

/// Puts what was read before the history, the newest revisions first.
fn join(feed: &Feed, plan: &Plan, mut read: Read) -> BackfillOutcome {
    let mut to = plan.to;
    // What was dropped because the history had no room stays dropped.
    let mut complete = read.from == plan.from;
    loop {
        let rest = read.entries.len().saturating_sub(STEP);
        let newest: Vec<Arc<Entry>> = read.entries.drain(rest..).map(|(entry, _)| entry).collect();
        let from = read.entries.back().map_or(read.from, |(older, _)| older.revision.next());
        let joined = newest.len();
        let mut inner = feed.lock();
        if inner.epoch != plan.epoch || !feed.is_serving() {
            return BackfillOutcome::Moved;
        }
        if !inner.history.grows_back() || inner.history.start() != to {
            return BackfillOutcome::Full;
        }
        inner.history.prepend(from, newest);
        complete &= inner.history.grows_back();
        if read.entries.is_empty() && !complete {
            inner.history.close();
        }
        drop(inner);
        stats::joined(joined);
        to = from;
        if read.entries.is_empty() {
            return if complete { BackfillOutcome::Joined } else { BackfillOutcome::Full };
        }
    }
}

/// Moves each watch that is behind to where it is served from now on.
fn settle(feed: &Arc<Feed>) {
    let mut place = Some(0);
    while let Some(from) = place {
        let (outboxes, next) = feed.lock().lagging_from(from);
        for (place, outbox) in outboxes {
            while settle_some(feed, place, &outbox) {}
        }
        place = next;
    }
}

/// Does the same for some watches of a stream. Returns true if there may be more.
fn settle_some(feed: &Arc<Feed>, place: u32, outbox: &Arc<Outbox>) -> bool {
    let mut inner = feed.lock();
    let mut state = outbox.lock();
    let mut tasks = PastTasks::default();
    let mut slots = state.watches.behind_from(feed.id(), inner.history.start(), STEP_WATCHES);
    slots.iter().for_each(|slot| state.park(*slot));
    let waker = if slots.is_empty() { None } else { state.wake() };
    if slots.is_empty() && !inner.may_backfill() {
        slots = state.watches.behind_from(feed.id(), Revision::ZERO, STEP_WATCHES);
        for slot in &slots {
            let Some(needs) = state.watches.get(*slot).map(Watch::next) else { continue };
            tasks |= inner.lag_far(&mut state, *slot, needs);
        }
    }
    // The place may belong to another stream by now.
    let is_here = inner.outboxes.get(place).is_some_and(|there| Arc::ptr_eq(there, outbox));
    if is_here && !state.watches.lags_in(feed.id()) {
        inner.past.forget(place);
    }
    drop(state);
    drop(inner);
    wake(waker);
    start(tasks, feed, [outbox]);
    !slots.is_empty()
}

fn delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(3))
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests;
