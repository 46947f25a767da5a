//! The backfill of a feed: reads from upstream what was before the feed's history, and puts it there, so that watches that begin a
//! little before it are served from memory, however many they are.
//!
//! Not here: what the history cannot hold, see `fill`. After a start of the relay each history begins at its snapshot, and all
//! clients come back with the revisions that they had. They cost etcd one watch together.
//!
//! One task a feed, while it is needed. What it does, in turns:
//!
//! - *plan*: finds what the watches that are behind need. Nobody is behind: the task ends. Otherwise it reads from the lowest need on,
//!   and a margin more, for those who come a little later; but no more than a stage, so that who is near does not wait for
//!   who is far. Stages grow, as far as the history has room by what the stage before brought.
//! - *read*: one upstream watch over the range of the feed, with what each event replaced, through the history's start. What does not
//!   fit into the history is let go as it comes, the oldest first.
//! - *join*: under the feed's lock, in steps, the newest first. Each step leaves a history without a gap.
//! - *settle*: watches that the history reaches are parked and their streams woken: from here on they are like all that are parked. Where
//!   the history cannot grow any more, the others wait for fills. The rest stay behind, for the next plan.
//!
//! What may happen meanwhile:
//!
//! - the history lets go of its oldest entries (it is full): nothing is joined, and those behind wait for fills;
//! - the feed begins another history (`epoch`), or does not serve: what was read is dropped, and the next plan looks again;
//! - upstream has compacted what is asked for: watches that need it are told, and the next read begins where upstream's history does;
//! - another cluster answers, or a member that lacks what the feed has, or the watch breaks: again, after a delay that grows;
//! - upstream refuses the relay, cancels the watch, or cannot tell when it has told everything (see `trusts_progress`): those behind
//!   wait for fills, which can tell each watch upstream's reason, and no backfill is tried for a while.
//!
//! Always holds: an entry that is put before the history is whole and as a live one, but that what a change replaced may be unknown
//! where upstream had compacted it (`read` minds that); a watch that is behind has no writer; while one is, there is a task; what is
//! read and not joined yet is never more than one history, in as many feeds as there are configured and [`ON_DEMAND`] others.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::{Instant, MissedTickBehavior};

use super::{
    Feed, FeedKind, ends,
    feed::Asks,
    fill,
    outbox::{Outbox, Watch, wake},
    stats,
    upstream::{Changes, UpstreamError, WatchMessage, WatchRequest},
};
use crate::{
    telemetry::names::BackfillOutcome,
    types::{Cluster, Entry, Revision},
};

/// Most feeds on demand that are backfilled at once: clients decide how many there are. Configured ones do not wait.
pub(super) const ON_DEMAND: usize = 4;
/// Revisions that are read beyond what is needed; and as many again as are needed.
const MARGIN: i64 = 256;
/// Revisions of the first stage.
const STAGE: i64 = 8192;
/// How much longer a stage may be than the one before.
const GROWTH: i64 = 8;
/// Most entries that are joined while the feed's lock is held.
const STEP: usize = 1024;
/// Most watches of a stream that are moved while its lock is held.
const STEP_WATCHES: usize = 1024;
/// How often upstream is asked where it stands; etcd is silent while its watch is behind.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// How long upstream may be silent before the watch is given up. It reads all revisions since the start before it says something.
const SILENCE: Duration = Duration::from_secs(30);

/// Starts what is asked for, for watches of these streams in `feed`.
pub(super) fn start<'a>(asks: Asks, feed: &Arc<Feed>, outboxes: impl IntoIterator<Item = &'a Arc<Outbox>>) {
    if asks.backfill {
        feed.shared.tasks.detach("backfill", run(feed.clone()));
    }
    if asks.fill {
        outboxes.into_iter().for_each(|outbox| fill::ask(feed, outbox));
    }
}

/// One watch on upstream, and what for.
#[derive(Debug)]
struct Plan {
    /// The history that it is for, and where that begins.
    epoch: u64,
    cluster: Arc<Cluster>,
    to: Revision,
    from: Revision,
    /// Entries and bytes for which the history has room.
    room: (usize, usize),
    /// Whether the feed has seen an event since: then upstream gives it again, which tells that all before it was told.
    ends_with_event: bool,
}

/// What upstream gave, oldest first.
#[derive(Debug, Default)]
struct Read {
    entries: VecDeque<(Arc<Entry>, usize)>,
    bytes: usize,
    /// Events and bytes of all that was read.
    seen: (usize, usize),
    /// From here on nothing is missing.
    from: Revision,
}

enum Ended {
    /// Everything through the history's start.
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
        // It is never closed.
        let turn = if on_demand { feed.shared.backfills.acquire().await.ok() } else { None };
        let Some(plan) = plan(&feed, stage, oldest) else { return };
        tracing::debug!(range = %feed.range(), from = plan.from.get(), to = plan.to.get(), "Reading the past of a feed");
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
                tracing::debug!(range = %feed.range(), %error, "The past of a feed could not be read; trying again");
                drop(turn);
                tokio::time::sleep(delays.next().unwrap_or(SILENCE)).await;
                BackfillOutcome::Failed
            }
            Ended::Refused(reason) => {
                tracing::info!(range = %feed.range(), reason,
                    "The past of a feed cannot be read in one; each watch that needs it is served by itself");
                feed.lock().past.refused = Some(Instant::now());
                BackfillOutcome::Refused
            }
        };
        stats::backfilled(outcome);
        settle(&feed);
    }
}

/// What to read next; `None` where nobody is behind, and then the task has ended.
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
        // What is compacted is not asked for again, unless a watch is to be told that it is.
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

/// Reads the range of the feed until everything before the history's start has come.
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
        return Ended::Refused("etcd's progress cannot be believed, and nothing has happened since".into());
    }
    let mut read = Read { from: plan.from, ..Read::default() };
    let mut ask = tokio::time::interval(PROGRESS_INTERVAL);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        // Cancel safe: each arm says so.
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
    /// Adds the next revision and lets go of the oldest ones that do not fit into the history.
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

/// Revisions of the next stage: more than of this one, but not so many that the history would have no room for what they bring, if
/// they bring as much.
fn longer(stage: i64, plan: &Plan, read: &Read) -> i64 {
    let revisions = (plan.to.get() - plan.from.get()).max(1) as u128;
    let fits = |room: usize, seen: usize| (room.saturating_sub(seen)) as u128 * revisions / seen.max(1) as u128;
    let fitting = fits(plan.room.0, read.seen.0).min(fits(plan.room.1, read.seen.1));
    let fitting = i64::try_from(fitting).unwrap_or(i64::MAX);
    stage.saturating_mul(GROWTH).min(fitting).max(STAGE)
}

/// Puts what was read before the history, the newest first.
fn join(feed: &Feed, plan: &Plan, mut read: Read) -> BackfillOutcome {
    let mut to = plan.to;
    // What was too much for the history is too much for good.
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

/// The same for some watches of a stream. True where there may be more.
fn settle_some(feed: &Arc<Feed>, place: u32, outbox: &Arc<Outbox>) -> bool {
    let mut inner = feed.lock();
    let mut state = outbox.lock();
    let mut asks = Asks::default();
    let mut slots = state.watches.behind_from(feed.id(), inner.history.start(), STEP_WATCHES);
    slots.iter().for_each(|slot| state.park(*slot));
    let waker = if slots.is_empty() { None } else { state.wake() };
    if slots.is_empty() && !inner.may_backfill() {
        slots = state.watches.behind_from(feed.id(), Revision::ZERO, STEP_WATCHES);
        for slot in &slots {
            let Some(needs) = state.watches.get(*slot).map(Watch::next) else { continue };
            asks |= inner.lag_far(&mut state, *slot, needs);
        }
    }
    // By now it may be another stream's place.
    let is_here = inner.outboxes.get(place as usize).is_some_and(|there| Arc::ptr_eq(there, outbox));
    if is_here && !state.watches.lags_in(feed.id()) {
        inner.past.forget(place);
    }
    drop(state);
    drop(inner);
    wake(waker);
    start(asks, feed, [outbox]);
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
