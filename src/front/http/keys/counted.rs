//! The metrics of keys over HTTP, behind functions named after what happened.
//!
//! Not here: names and label values, see `telemetry::names`.

use std::{sync::LazyLock, time::Duration};

use metrics::{Counter, Gauge, counter, gauge};

use crate::telemetry::{
    delivered,
    names::{self, KeysAnswer, KeysPath, KeysSnapshot},
};

static STREAMS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::KEYS_STREAMS));
static MESSAGES: LazyLock<Counter> = LazyLock::new(|| counter!(names::KEYS_MESSAGES));
static BYTES: LazyLock<Counter> = LazyLock::new(|| counter!(names::KEYS_MESSAGE_BYTES));

/// A request was answered, one way or another.
pub(super) fn answered(path: KeysPath, answer: KeysAnswer) {
    counter!(names::KEYS_REQUESTS, KeysPath::LABEL => path.as_str(), KeysAnswer::LABEL => answer.as_str()).increment(1);
}

/// A stream begins, or goes on, with a snapshot.
pub(super) fn snapshot(why: KeysSnapshot) {
    counter!(names::KEYS_SNAPSHOTS, KeysSnapshot::LABEL => why.as_str()).increment(1);
}

/// A stream that is open as long as this lives.
#[derive(Debug)]
pub(super) struct OpenStream(());

impl OpenStream {
    pub(super) fn new() -> Self {
        STREAMS.increment(1.0);
        Self(())
    }

    /// So many bytes of events are given to the connection at once. `waited` is how long the oldest of them was under way; none where nobody waited
    /// for it.
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
