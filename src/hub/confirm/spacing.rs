//! [`Spacing`]: when the next request for watches may begin.
//!
//! A request costs etcd as much as a read. Where etcd answers within half a millisecond, a thousand clients that come one
//! after the other would cause nearly a thousand requests, since each finds the last one answered. So requests for
//! watches of different clients have a rate, and the clients that come meanwhile share the next one.
//!
//! Not here: who waits for which request, see `rounds`. Always holds: readers are never held up, and neither is a
//! connection whose watches are created one after the other while no other connection creates any. Nobody waits for
//! more than a hundredth of a second here.

use std::time::Duration;

use tokio::time::Instant;

use super::rounds::Callers;
use crate::rate::Rate;

/// Requests a second for the watches of different connections, after the first fifty (see [`Rate`]). A client that has
/// just connected does not notice five milliseconds, and two hundred reads a second cost etcd a few percent of a core.
const PER_SECOND: f64 = 200.0;

/// See the module.
#[derive(Debug)]
pub(super) struct Spacing {
    /// The origin of the rate's times.
    origin: Instant,
    rate: Rate,
    /// The connection for which alone the last request for watches was.
    last: Option<u64>,
}

impl Spacing {
    pub(super) fn new(now: Instant) -> Self {
        Self { origin: now, rate: Rate::new(PER_SECOND, Duration::ZERO), last: None }
    }

    /// Lets a request begin for these callers.
    ///
    /// # Errors
    /// When it may, if that is not `now` yet.
    pub(super) fn begin(&mut self, callers: Callers, now: Instant) -> Result<(), Instant> {
        let only = match callers {
            Callers::Urgent => return Ok(()),
            Callers::Watches(connection) if self.last == Some(connection) => return Ok(()),
            Callers::Watches(connection) => Some(connection),
            Callers::WatchesOfSeveral => None,
        };
        self.rate.pass(now.saturating_duration_since(self.origin)).map_err(|at| self.origin + at)?;
        self.last = only;
        Ok(())
    }
}
