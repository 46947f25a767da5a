//! Metrics of keys over HTTP, behind functions named after the events.
//!
//! Names and label values are in `telemetry::names`.

use std::{sync::LazyLock, time::Duration};

use metrics::{Counter, Gauge, counter, gauge};

use crate::telemetry::{
    delivered,
    names::{self, KeysAnswer, KeysPath, KeysSnapshot},
};

static STREAMS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::KEYS_STREAMS));
static MESSAGES: LazyLock<Counter> = LazyLock::new(|| counter!(names::KEYS_MESSAGES));
static BYTES: LazyLock<Counter> = LazyLock::new(|| counter!(names::KEYS_MESSAGE_BYTES));

/// Counts an answered request by its result.
pub(super) fn answered(path: KeysPath, answer: KeysAnswer) {
    counter!(names::KEYS_REQUESTS, KeysPath::LABEL => path.as_str(), KeysAnswer::LABEL => answer.as_str()).increment(1);
}

/// Counts a snapshot at the beginning or in the middle of a stream.
pub(super) fn snapshot(why: KeysSnapshot) {
    counter!(names::KEYS_SNAPSHOTS, KeysSnapshot::LABEL => why.as_str()).increment(1);
}

/// Counts a stream as open while it exists.
#[derive(Debug)]
pub(super) struct OpenStream(());

impl OpenStream {
    pub(super) fn new() -> Self {
        STREAMS.increment(1.0);
        Self(())
    }

    /// Counts bytes of events that were given to the connection together. `waited` is the age of the oldest event;
    /// `None` if none was live.
    pub(super) fn sent(&self, bytes: usize, waited: Option<Duration>) {
        MESSAGES.increment(1);
        BYTES.increment(bytes as u64);
        if let Some(waited) = waited {
            delivered::count_lag(waited);
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        STREAMS.decrement(1.0);
    }
}
