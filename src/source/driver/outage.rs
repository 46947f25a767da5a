//! [`Outage`]: the failures of a feed's upstream since it last worked, and which of them are logged at level `warn`.
//!
//! Not here: what follows from a failure, and the text of the log line. Used by `driver`.
//! Always holds: the first failure of each kind is logged at once, since the kind tells an operator what to do; each
//! kind is logged again every [`WARN_EVERY`] failures, so that an outage of an hour does not flood the log.

use crate::telemetry::names::ReconnectReason;

/// After this many failures in a row a kind is logged again.
const WARN_EVERY: u32 = 30;

/// Counts failures in a row; see the module.
#[derive(Debug, Default)]
pub(super) struct Outage {
    failures: u32,
    /// The kinds that were logged in the current round of [`WARN_EVERY`] failures.
    logged: Vec<ReconnectReason>,
}

impl Outage {
    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure. Returns whether it should be logged.
    pub(super) fn failed(&mut self, reason: ReconnectReason) -> bool {
        if self.failures.is_multiple_of(WARN_EVERY) {
            self.logged.clear();
        }
        self.failures = self.failures.saturating_add(1);
        let first = !self.logged.contains(&reason);
        if first {
            self.logged.push(reason);
        }
        first
    }

    /// Upstream works again. Returns how many failures there were before, if any.
    pub(super) fn ended(&mut self) -> Option<u32> {
        let failures = std::mem::take(self).failures;
        (failures > 0).then_some(failures)
    }
}

#[cfg(test)]
mod tests {
    use ReconnectReason::{Denied, Unavailable};

    use super::*;

    #[test]
    fn another_kind_of_failure_is_told_in_the_midst_of_an_outage() {
        let mut outage = Outage::default();
        assert!(outage.failed(Unavailable), "the first");
        assert!(!outage.failed(Unavailable), "the same kind again");
        assert!(outage.failed(Denied), "another kind");
        assert!(!outage.failed(Unavailable) && !outage.failed(Denied), "both were logged");
        assert_eq!(outage.failures(), 5);
    }

    #[test]
    fn a_long_outage_is_told_now_and_then() {
        let mut outage = Outage::default();
        let logged: Vec<u32> = (0..2 * WARN_EVERY + 1).filter(|_| outage.failed(Unavailable)).collect();
        assert_eq!(logged, [0, WARN_EVERY, 2 * WARN_EVERY]);
    }

    #[test]
    fn after_an_outage_the_next_failure_is_the_first_again() {
        let mut outage = Outage::default();
        assert_eq!(outage.ended(), None);
        outage.failed(Unavailable);
        outage.failed(Denied);
        assert_eq!(outage.ended(), Some(2));
        assert_eq!(outage.ended(), None);
        assert!(outage.failed(Denied));
    }
}
