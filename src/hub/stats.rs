//! The hub's metrics, behind functions named after what happened. Handles are looked up once.
//!
//! Not here: names and label values, see `telemetry::names`.

use std::{sync::LazyLock, time::Instant};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::{FeedState, delivery::Cancellation, outbox::Phase, upstream::Changes};
use crate::{
    telemetry::names::{self, BackfillOutcome, CancelReason, Part},
    types::Revision,
};

static WATCHES: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::WATCHES));
static CREATED: LazyLock<Counter> = LazyLock::new(|| counter!(names::WATCHES_CREATED));
static PARKED: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::WATCHES_PARKED));
static CATCHING_UP: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::WATCHES_CATCHING_UP));
static GAP_FILLS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::GAP_FILLS));
static FILLS_WAITING: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::FILLS_WAITING));
static BACKFILLED: LazyLock<Counter> = LazyLock::new(|| counter!(names::BACKFILLED_REVISIONS));
static LONG_READS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::LONG_READS));
static EVENTS: LazyLock<Counter> = LazyLock::new(|| counter!(names::UPSTREAM_EVENTS));
static READING: LazyLock<Histogram> = LazyLock::new(|| publishing(Part::Reading));
static WAITING: LazyLock<Histogram> = LazyLock::new(|| publishing(Part::Waiting));
static PUSHING: LazyLock<Histogram> = LazyLock::new(|| publishing(Part::Pushing));
static REVISIONS: LazyLock<Counter> = LazyLock::new(|| counter!(names::UPSTREAM_REVISIONS));

pub(super) fn subscribed() {
    CREATED.increment(1);
    WATCHES.increment(1.0);
}

/// Watches ended by their client, or with their stream.
pub(super) fn unsubscribed(count: usize, reason: CancelReason) {
    WATCHES.decrement(count as f64);
    counter!(names::WATCHES_CANCELED, CancelReason::LABEL => reason.as_str()).increment(count as u64);
}

/// A watch ended because its client may not read its range any more.
pub(super) fn revoked() {
    WATCHES.decrement(1.0);
    counter!(names::WATCHES_CANCELED, CancelReason::LABEL => CancelReason::Denied.as_str()).increment(1);
}

/// A watch ended by upstream or the relay. After a compaction it still counts as a watch, until its client cancels it.
pub(super) fn canceled(cancellation: &Cancellation) {
    let reason = if cancellation.compact_revision == Revision::ZERO {
        WATCHES.decrement(1.0);
        CancelReason::Upstream
    } else if cancellation.reason.is_empty() {
        CancelReason::Compacted
    } else {
        CancelReason::Replaced
    };
    counter!(names::WATCHES_CANCELED, CancelReason::LABEL => reason.as_str()).increment(1);
}

/// A watch came into a phase, or left it.
pub(super) fn phase(phase: Phase, up: bool) {
    let gauges: &[&Gauge] = match phase {
        Phase::Live | Phase::Compacted => &[],
        Phase::Parked => &[&PARKED],
        Phase::Behind | Phase::Filling => &[&CATCHING_UP],
        Phase::Unfilled => &[&CATCHING_UP, &FILLS_WAITING],
    };
    gauges.iter().for_each(|gauge| if up { gauge.increment(1.0) } else { gauge.decrement(1.0) });
}

/// A feed read its past, or tried to.
pub(super) fn backfilled(outcome: BackfillOutcome) {
    counter!(names::BACKFILLS, BackfillOutcome::LABEL => outcome.as_str()).increment(1);
}

/// Revisions were put before a history.
pub(super) fn joined(revisions: usize) {
    BACKFILLED.increment(revisions as u64);
}

/// A read that takes long is waited for, or not any more.
pub(super) fn long_read(up: bool) {
    if up { LONG_READS.increment(1.0) } else { LONG_READS.decrement(1.0) }
}

fn publishing(part: Part) -> Histogram {
    histogram!(names::PUBLISH_SECONDS, Part::LABEL => part.as_str())
}

/// When what came at a time was published.
#[derive(Clone, Copy)]
pub(super) struct Published {
    /// The feed was asked for.
    pub(super) asked: Instant,
    /// It was had.
    pub(super) began: Instant,
    /// It was let go.
    pub(super) done: Instant,
}

pub(super) fn published(batch: &[Changes], at: Published) {
    if let Some(first) = batch.first() {
        READING.record((at.asked - first.received).as_secs_f64());
        WAITING.record((at.began - at.asked).as_secs_f64());
        PUSHING.record((at.done - at.began).as_secs_f64());
    }
    REVISIONS.increment(batch.len() as u64);
    EVENTS.increment(batch.iter().map(|changes| changes.events.len() as u64).sum());
}

/// A feed changed its state, or began: `None` stands for "did not exist".
pub(super) fn feed_state(old: Option<FeedState>, new: FeedState) {
    if let Some(old) = old.and_then(label) {
        gauge!(names::FEEDS, names::FeedState::LABEL => old.as_str()).decrement(1.0);
    }
    if let Some(new) = label(new) {
        gauge!(names::FEEDS, names::FeedState::LABEL => new.as_str()).increment(1.0);
    }
}

/// A closed feed is gone, so it has no label.
fn label(state: FeedState) -> Option<names::FeedState> {
    match state {
        FeedState::Starting => Some(names::FeedState::Starting),
        FeedState::Live => Some(names::FeedState::Live),
        FeedState::Resuming => Some(names::FeedState::Resuming),
        FeedState::Resyncing => Some(names::FeedState::Resyncing),
        FeedState::Closed => None,
    }
}

/// Counts a fill at work, whatever ends it.
pub(super) struct Filling;

impl Filling {
    pub(super) fn start() -> Self {
        GAP_FILLS.increment(1.0);
        Self
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        GAP_FILLS.decrement(1.0);
    }
}

/// What all feeds hold together, for the gauges that are set when metrics are scraped.
pub(super) fn totals(feeds: &[super::FeedStats], on_demand: usize) {
    gauge!(names::ON_DEMAND_BYTES).set(on_demand as f64);
    let sum = |of: fn(&super::FeedStats) -> usize| feeds.iter().map(of).sum::<usize>() as f64;
    let max = |of: fn(&super::FeedStats) -> Revision| feeds.iter().map(of).max().map_or(0.0, |max| max.get() as f64);
    gauge!(names::HISTORY_ENTRIES).set(sum(|feed| feed.history_entries));
    gauge!(names::HISTORY_BYTES).set(sum(|feed| feed.history_bytes));
    gauge!(names::HISTORY_OLDEST_REVISION).set(max(|feed| feed.history_start));
    gauge!(names::HISTORY_NEWEST_REVISION).set(max(|feed| feed.revision));
    gauge!(names::SNAPSHOT_KEYS).set(sum(|feed| feed.keys));
}
