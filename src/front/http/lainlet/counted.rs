//! The metrics of views over HTTP, behind functions named after what happened.
//!
//! Not here: names and label values, see `telemetry::names`.

use std::{sync::LazyLock, time::Instant};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::telemetry::names::{self, Answer, Transport};

const HTTP: &str = Transport::Http.as_str();
/// In the order of [`Answer::ALL`]. Looked up once: a lookup is a good part of what a small answer costs.
static REQUESTS: LazyLock<Vec<Counter>> = LazyLock::new(|| {
    let of =
        |answer: &Answer| counter!(names::VIEW_REQUESTS, Transport::LABEL => HTTP, Answer::LABEL => answer.as_str());
    Answer::ALL.iter().map(of).collect()
});
static STREAMS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::VIEW_STREAMS, Transport::LABEL => HTTP));
static MESSAGES: LazyLock<Counter> = LazyLock::new(|| counter!(names::VIEW_MESSAGES, Transport::LABEL => HTTP));
static BYTES: LazyLock<Counter> = LazyLock::new(|| counter!(names::VIEW_MESSAGE_BYTES, Transport::LABEL => HTTP));
static LAG: LazyLock<Histogram> = LazyLock::new(|| histogram!(names::VIEW_LAG_SECONDS));

/// A request was answered, one way or another.
pub(super) fn answered(answer: Answer) {
    if let Some(counter) = REQUESTS.get(answer as usize) {
        counter.increment(1);
    }
}

/// A stream that is open as long as this lives.
#[derive(Debug)]
pub(super) struct OpenStream(());

impl OpenStream {
    pub(super) fn new() -> Self {
        STREAMS.increment(1.0);
        Self(())
    }

    /// A reply of `bytes` bytes is given to the connection. `received` is when its change was received; none for a stream's
    /// first, for which nobody waited.
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
