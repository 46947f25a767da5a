//! [`Quiet`]: limits how often a log line is written, so that clients cannot fill the log.
//!
//! Always holds: there is a pause between two lines.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Pause between two log lines about the same problem.
const PAUSE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    last: Mutex<Option<Instant>>,
}

impl Quiet {
    /// Whether a line may be written now. If so, the pause begins.
    pub(super) fn may_log(&self) -> bool {
        let now = Instant::now();
        let mut last = self.last.lock();
        let may = last.is_none_or(|last| now.duration_since(last) >= PAUSE);
        if may {
            *last = Some(now);
        }
        may
    }
}
