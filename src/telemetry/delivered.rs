//! What is counted for each delivery: responses, events, bytes, and the delivery lag.
//!
//! This does not use the metrics library, whose counters are shared by all threads and whose histograms keep each value
//! until they are read. On the delivery path that took a twentieth of a delivery's time, and memory for each delivery.
//! Here each thread adds to its own counters, and the recorder and `/debug/state` sum them up when they are read.
//! Called only by watch streams and by these two readers. Always holds: what was counted is in the next sum; the
//! buckets are those of [`names::LAG_BUCKETS`].

use std::{
    cell::Cell,
    fmt::Write as _,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use metrics::counter;

use super::names;

/// With more threads than this, some share a place. That costs them a little time and nothing else.
const PLACES: usize = 16;
const BUCKETS: usize = names::LAG_BUCKETS.len() + 1;

static COUNTS: [Counts; PLACES] = [const { Counts::new() }; PLACES];

thread_local! {
    static PLACE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The counters of one thread, in separate cache lines.
#[repr(align(128))]
struct Counts {
    responses: AtomicU64,
    events: AtomicU64,
    bytes: AtomicU64,
    /// By bucket; the last one is for everything longer.
    lags: [AtomicU64; BUCKETS],
    lag_nanos: AtomicU64,
}

impl Counts {
    const fn new() -> Self {
        Self {
            responses: AtomicU64::new(0),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            lags: [const { AtomicU64::new(0) }; BUCKETS],
            lag_nanos: AtomicU64::new(0),
        }
    }

    fn of_thread() -> &'static Self {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        let place = PLACE.get().unwrap_or_else(|| {
            let place = THREADS.fetch_add(1, Ordering::Relaxed) % PLACES;
            PLACE.set(Some(place));
            place
        });
        &COUNTS[place]
    }
}

/// Counts what was handed to a connection in one step.
pub fn count(responses: u64, events: u64, bytes: u64) {
    let counts = Counts::of_thread();
    counts.responses.fetch_add(responses, Ordering::Relaxed);
    counts.events.fetch_add(events, Ordering::Relaxed);
    counts.bytes.fetch_add(bytes, Ordering::Relaxed);
}

/// Counts the delivery lag of one event.
pub fn count_lag(lag: Duration) {
    let counts = Counts::of_thread();
    counts.lags[bucket(lag.as_secs_f64())].fetch_add(1, Ordering::Relaxed);
    counts.lag_nanos.fetch_add(u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn bucket(seconds: f64) -> usize {
    names::LAG_BUCKETS.partition_point(|bound| *bound < seconds)
}

fn sum(of: impl Fn(&Counts) -> &AtomicU64) -> u64 {
    COUNTS.iter().map(|counts| of(counts).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
}

/// What was counted so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Delivered {
    /// Watch responses.
    pub responses: u64,
    /// Events in them.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Delivered {
    /// The current sums.
    #[must_use]
    pub fn now() -> Self {
        Self {
            responses: sum(|counts| &counts.responses),
            events: sum(|counts| &counts.events),
            bytes: sum(|counts| &counts.bytes),
        }
    }
}

/// Passes the sums to the recorder.
pub(super) fn record() {
    let Delivered { responses, events, bytes } = Delivered::now();
    counter!(names::RESPONSES_DELIVERED).absolute(responses);
    counter!(names::EVENTS_DELIVERED).absolute(events);
    counter!(names::BYTES_DELIVERED).absolute(bytes);
}

/// Adds the histogram to a text for Prometheus.
pub(super) fn render(text: &mut String) {
    let lags: Vec<u64> = (0..BUCKETS).map(|bucket| sum(|counts| &counts.lags[bucket])).collect();
    let seconds = Duration::from_nanos(sum(|counts| &counts.lag_nanos)).as_secs_f64();
    render_histogram(text, names::DELIVERY_LAG_SECONDS, names::DELIVERY_LAG, &lags, seconds);
}

fn render_histogram(text: &mut String, name: &str, meaning: &str, counts: &[u64], sum: f64) {
    let bounds = names::LAG_BUCKETS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
    let _ = writeln!(text, "# HELP {name} {meaning}\n# TYPE {name} histogram");
    let mut below = 0;
    for (bound, count) in bounds.zip(counts) {
        below += count;
        let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {below}");
    }
    let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {below}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_within_it() {
        for (at, bound) in names::LAG_BUCKETS.iter().enumerate() {
            assert_eq!((bucket(*bound), bucket(bound * 1.01)), (at, at + 1));
        }
    }

    #[test]
    fn what_threads_count_is_added_up() {
        let before = (sum(|counts| &counts.events), sum(|counts| &counts.lags[BUCKETS - 1]));
        std::thread::scope(|scope| {
            for _ in 0..2 * PLACES {
                scope.spawn(|| {
                    count(1, 3, 100);
                    count_lag(Duration::from_secs(3_600));
                });
            }
        });
        let threads = 2 * PLACES as u64;
        // Other tests of this process may count as well.
        assert!(sum(|counts| &counts.events) >= before.0 + 3 * threads);
        assert!(sum(|counts| &counts.lags[BUCKETS - 1]) >= before.1 + threads);
    }

    #[test]
    fn the_histogram_reads_as_prometheus_reads_it() {
        let mut counts = [0; BUCKETS];
        (counts[0], counts[BUCKETS - 2], counts[BUCKETS - 1]) = (2, 1, 4);
        let mut text = String::new();
        render_histogram(&mut text, "lag", "How long", &counts, 1.5);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["# HELP lag How long", "# TYPE lag histogram", "lag_bucket{le=\"0.00005\"} 2"]);
        assert_eq!(lines[1 + BUCKETS - 1], "lag_bucket{le=\"30\"} 3");
        assert_eq!(lines[1 + BUCKETS..], ["lag_bucket{le=\"+Inf\"} 7", "lag_sum 1.5", "lag_count 7", ""]);
    }
}
