//! The hub's metrics, behind functions named after what happened. The handles are looked up once.
//!
//! Not here: names and label values, see `telemetry::names`.

use std::{sync::LazyLock, time::Instant};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::upstream::Changes;
use crate::telemetry::names::{self, BackfillOutcome, CancelReason, Part};

static WATCHES: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::WATCHES));
static CREATED: LazyLock<Counter> = LazyLock::new(|| counter!(names::WATCHES_CREATED));
static PARKED: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::WATCHES_PARKED));
static CATCHING_UP: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::WATCHES_CATCHING_UP));
static GAP_FILLS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::GAP_FILLS));
static FILLS_WAITING: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::FILLS_WAITING));
static BACKFILLED: LazyLock<Counter> = LazyLock::new(|| counter!(names::BACKFILLED_REVISIONS));
static LONG_READS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::LONG_READS));
static EVENTS: LazyLock<Counter> = LazyLock::new(|| counter!(names::UPSTREAM_EVENTS));
static CONFIRMS: LazyLock<Counter> = LazyLock::new(|| counter!(names::CONFIRMS));
static CONFIRMED_CALLS: LazyLock<Counter> = LazyLock::new(|| counter!(names::CONFIRMED_CALLS));
static READING: LazyLock<Histogram> = LazyLock::new(|| publishing(Part::Reading));
static WAITING: LazyLock<Histogram> = LazyLock::new(|| publishing(Part::Waiting));
static TAKING: LazyLock<Histogram> = LazyLock::new(|| publishing(Part::Taking));
static PUSHING: LazyLock<Histogram> = LazyLock::new(|| publishing(Part::Pushing));
static REVISIONS: LazyLock<Counter> = LazyLock::new(|| counter!(names::UPSTREAM_REVISIONS));

pub(super) fn subscribed() {
    CREATED.increment(1);
    WATCHES.increment(1.0);
}

/// Upstream is asked for its current revision.
pub(super) fn asked_for_revision() {
    CONFIRMS.increment(1);
}

/// Calls have the answer that they shared.
pub(super) fn confirmed(calls: usize) {
    CONFIRMED_CALLS.increment(calls as u64);
}

/// Watches ended and are gone.
pub(super) fn unsubscribed(count: usize, reason: CancelReason) {
    WATCHES.decrement(count as f64);
    counter!(names::WATCHES_CANCELED, CancelReason::LABEL => reason.as_str()).increment(count as u64);
}

/// A watch ended and its id stays in use. It still counts as a watch until its client cancels it.
pub(super) fn canceled(reason: CancelReason) {
    counter!(names::WATCHES_CANCELED, CancelReason::LABEL => reason.as_str()).increment(1);
}

/// A watch is parked, or not any more.
pub(super) fn parked(up: bool) {
    step(&PARKED, up);
}

/// The history does not reach back to a watch, or it does again.
pub(super) fn catching_up(up: bool) {
    step(&CATCHING_UP, up);
}

/// A watch waits for a fill, or not any more.
pub(super) fn waits_for_fill(up: bool) {
    step(&FILLS_WAITING, up);
}

/// A feed read its past, or tried to.
pub(super) fn backfilled(outcome: BackfillOutcome) {
    counter!(names::BACKFILLS, BackfillOutcome::LABEL => outcome.as_str()).increment(1);
}

/// Revisions were put before a history.
pub(super) fn joined(revisions: usize) {
    BACKFILLED.increment(revisions as u64);
}

/// A long read is under way or waiting, or not any more.
pub(super) fn long_read(up: bool) {
    step(&LONG_READS, up);
}

fn step(gauge: &Gauge, up: bool) {
    if up { gauge.increment(1.0) } else { gauge.decrement(1.0) }
}

fn publishing(part: Part) -> Histogram {
    histogram!(names::PUBLISH_SECONDS, Part::LABEL => part.as_str())
}

/// When revisions that arrived together were published.
#[derive(Clone, Copy)]
pub(super) struct Published {
    /// The feed's lock was requested.
    pub(super) asked: Instant,
    /// The lock was acquired.
    pub(super) began: Instant,
    /// The lock was released.
    pub(super) taken: Instant,
    /// Everything was pushed.
    pub(super) done: Instant,
}

pub(super) fn published(batch: &[Changes], at: Published) {
    if let Some(first) = batch.first() {
        READING.record((at.asked - first.received).as_secs_f64());
        WAITING.record((at.began - at.asked).as_secs_f64());
        TAKING.record((at.taken - at.began).as_secs_f64());
        PUSHING.record((at.done - at.taken).as_secs_f64());
    }
    REVISIONS.increment(batch.len() as u64);
    EVENTS.increment(batch.iter().map(|changes| changes.events.len() as u64).sum());
}

/// A feed changed its state, began or ended. `None` means that it does not exist.
pub(super) fn feed_state(old: Option<names::FeedState>, new: Option<names::FeedState>) {
    if let Some(old) = old {
        gauge!(names::FEEDS, names::FeedState::LABEL => old.as_str()).decrement(1.0);
    }
    if let Some(new) = new {
        gauge!(names::FEEDS, names::FeedState::LABEL => new.as_str()).increment(1.0);
    }
}

/// Counts a running fill, however it ends.
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
