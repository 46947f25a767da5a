//! Metrics of views over HTTP, behind functions named after the events.
//!
//! Names and label values are in `telemetry::names`.

use std::{sync::LazyLock, time::Instant};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::telemetry::names::{self, Answer, Transport};

const HTTP: &str = Transport::Http.as_str();
/// In the order of [`Answer::ALL`]. Looked up once, because a look-up costs a good part of a small answer.
static REQUESTS: LazyLock<Vec<Counter>> = LazyLock::new(|| {
    let of =
        |answer: &Answer| counter!(names::VIEW_REQUESTS, Transport::LABEL => HTTP, Answer::LABEL => answer.as_str());
    Answer::ALL.iter().map(of).collect()
});
static STREAMS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::VIEW_STREAMS, Transport::LABEL => HTTP));
static MESSAGES: LazyLock<Counter> = LazyLock::new(|| counter!(names::VIEW_MESSAGES, Transport::LABEL => HTTP));
static BYTES: LazyLock<Counter> = LazyLock::new(|| counter!(names::VIEW_MESSAGE_BYTES, Transport::LABEL => HTTP));
static LAG: LazyLock<Histogram> = LazyLock::new(|| histogram!(names::VIEW_LAG_SECONDS));

/// Counts an answered request by its result.
pub(super) fn answered(answer: Answer) {
    if let Some(counter) = REQUESTS.get(answer as usize) {
        counter.increment(1);
    }
}

/// Counts a stream as open while it exists.
#[derive(Debug)]
pub(super) struct OpenStream(());

impl OpenStream {
    pub(super) fn new() -> Self {
        STREAMS.increment(1.0);
        Self(())
    }

    /// Counts a reply that was given to the connection. `received` is when its change arrived; `None` for the first
    /// reply of a stream, which nobody waited for.
    pub(super) fn sent(&self, bytes: usize, received: Option<Instant>) {
        MESSAGES.increment(1);
        BYTES.increment(bytes as u64);
        if let Some(received) = received {
            LAG.record(received.elapsed().as_secs_f64());
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        STREAMS.decrement(1.0);
    }
}
