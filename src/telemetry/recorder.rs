//! The metrics recorder: keeps all series in memory and renders them as Prometheus text.
//!
//! Not here: names (see [`super::names`]) and the HTTP answer (see `front::http`). One recorder a process.

use std::time::Duration;

use metrics::{gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use thiserror::Error;
use tokio::time::Instant;

use super::{delivered, names};

/// How often the raw samples of histograms are aggregated, so that a process that is never scraped does not keep them.
const UPKEEP: Duration = Duration::from_secs(5);
/// How often the scheduling delay is measured: so rarely that it costs an idle relay next to nothing.
const PULSE: Duration = Duration::from_millis(20);

/// Renders the metrics of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    process: Collector,
}

/// Why metrics cannot be recorded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecorderError {
    /// The buckets are invalid, which is a fault in [`names`].
    #[error("cannot set up the metrics")]
    Build(#[from] BuildError),
    /// The process has a recorder already. There is one [`Metrics`] for a process; clone it.
    #[error("this process records metrics already; use the recorder that was installed first")]
    Installed,
}

impl Metrics {
    /// Builds the recorder, makes it the recorder of the process, and describes all metrics. Each series starts at
    /// zero.
    ///
    /// # Errors
    /// [`RecorderError::Installed`] if the process has called this before.
    pub fn install() -> Result<Self, RecorderError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(names::VIEW_LAG_SECONDS.into()), &names::LAG_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full(names::PUBLISH_SECONDS.into()), &names::PUBLISH_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full(names::TURN_SECONDS.into()), &names::PUBLISH_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full(names::TURNS_WAIT_SECONDS.into()), &names::LAG_BUCKETS)?
            .build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|_| RecorderError::Installed)?;
        names::describe();
        gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let process = Collector::default();
        process.describe();
        Ok(Self { handle, process })
    }

    /// All metrics as Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        self.process.collect();
        delivered::record();
        let mut text = self.handle.render();
        delivered::render(&mut text);
        text
    }

    /// Aggregates histograms forever, and measures the scheduling delay meanwhile. Run it as a task of the runtime
    /// that serves.
    pub async fn upkeep(self) {
        let turn = histogram!(names::TURN_SECONDS);
        let mut drained = Instant::now();
        loop {
            let due = Instant::now() + PULSE;
            tokio::time::sleep_until(due).await;
            turn.record(due.elapsed().as_secs_f64());
            if drained.elapsed() >= UPKEEP {
                drained = Instant::now();
                self.handle.run_upkeep();
            }
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
