//! The metrics recorder: keeps all series in memory and renders them as Prometheus text.
//!
//! Not here: names (see [`super::names`]) and the HTTP answer (see `front::http`). One recorder a process.

use std::time::Duration;

use metrics::gauge;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use thiserror::Error;

use super::names;

/// How often histograms are drained of their raw samples, so that a process nobody scrapes does not keep them.
const UPKEEP: Duration = Duration::from_secs(5);

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
    /// The buckets are unusable: a fault in [`names`].
    #[error("cannot set up the metrics")]
    Build(#[from] BuildError),
    /// The process has a recorder already; a process has one [`Metrics`], to be cloned.
    #[error("this process records metrics already; use the recorder that was installed first")]
    Installed,
}

impl Metrics {
    /// Builds the recorder, makes it the process's own, and describes all metrics, each series starting at zero.
    ///
    /// # Errors
    /// [`RecorderError::Installed`] when called twice in a process.
    pub fn install() -> Result<Self, RecorderError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(names::DELIVERY_LAG_SECONDS.into()), &names::LAG_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full(names::VIEW_LAG_SECONDS.into()), &names::LAG_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full(names::PUBLISH_SECONDS.into()), &names::PUBLISH_BUCKETS)?
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
        self.handle.render()
    }

    /// Drains histograms for ever; run it as a task.
    pub async fn upkeep(self) {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            self.handle.run_upkeep();
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
