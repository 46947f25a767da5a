//! [`Trace`]: the events of a schedule, line by line, for debugging.
//!
//! Always holds: the lines depend only on the schedule, so two runs of a seed can be compared.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cluster::{Cluster, Place};

/// Lines that are printed after a failure. `ETCD_RELAY_SIM_LINES` sets another number.
const SHOWN: usize = 80;

/// See the module. Clones write to the same lines.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    lines: Arc<Mutex<Vec<String>>>,
    began: Instant,
    cluster: Arc<Cluster>,
}

impl Trace {
    pub(crate) fn new(cluster: &Arc<Cluster>) -> Self {
        Self { lines: Arc::default(), began: Instant::now(), cluster: cluster.clone() }
    }

    pub(crate) fn note(&self, line: impl AsRef<str>) {
        let Place { epoch, revision } = self.cluster.now();
        let at = self.began.elapsed().as_secs_f64();
        let mut lines = self.lines.lock();
        lines.extend(self.cluster.take_log());
        lines.push(format!("{at:>8.4} {epoch}@{revision} {}", line.as_ref()));
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> String {
        let lines = self.lines.lock();
        let shown = crate::number("ETCD_RELAY_SIM_LINES").map_or(SHOWN, |lines| lines as usize);
        lines[lines.len().saturating_sub(shown)..].join("\n")
    }

    /// All lines.
    #[cfg(tokio_unstable)]
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().clone()
    }
}
