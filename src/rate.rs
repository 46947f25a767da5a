//! [`Rate`]: limits how many pass in a second, one after the other, with only a small burst after a pause.
//!
//! Not here: a clock; the time is a duration since a moment that the caller chose. Used by the code that asks connections
//! to leave, and for questions to etcd (`hub/confirm`). Always holds: in any time `t` at most
//! `(t + BURST) × rate + 1` pass, however late the caller comes. A relay that got no CPU for a second does not ask a
//! whole second's clients at once.

use std::time::Duration;

/// How much a late caller may catch up. A busy machine is late by this much again and again, and would fall behind
/// otherwise. At most, a second has a quarter more than its rate.
const BURST: Duration = Duration::from_millis(250);

/// A limit on how many pass in a second; see the module.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    interval: Duration,
    next: Duration,
}

impl Rate {
    /// Lets this many pass in a second from `now` on. Infinity sets no limit.
    #[must_use]
    pub fn new(per_second: f64, now: Duration) -> Self {
        Self { interval: Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(Duration::MAX), next: now }
    }

    /// Changes the rate. The time of the next one stays as it is.
    pub fn set(&mut self, per_second: f64) {
        self.interval = Self::new(per_second, self.next).interval;
    }

    /// Lets one pass.
    ///
    /// # Errors
    /// The time of the next one, if that is not `now` yet.
    pub fn pass(&mut self, now: Duration) -> Result<(), Duration> {
        if self.next > now {
            return Err(self.next);
        }
        self.next = self.next.max(now.saturating_sub(BURST)).saturating_add(self.interval);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(rate: &mut Rate, now: Duration) -> usize {
        (0..10_000).take_while(|_| rate.pass(now).is_ok()).count()
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let second = Duration::from_secs(1);
        let mut rate = Rate::new(100.0, Duration::ZERO);
        let mut steady = 0;
        for millis in 0..1_000 {
            steady += passes(&mut rate, Duration::from_millis(millis));
        }
        assert!((100..=101).contains(&steady), "{steady} in the first second");
        assert!(passes(&mut rate, second * 5) <= 26, "after four seconds without CPU");
        assert_eq!(rate.pass(second * 5), Err(second * 5 + Duration::from_millis(10)));
    }

    #[test]
    fn no_bound_is_no_bound() {
        assert_eq!(passes(&mut Rate::new(f64::INFINITY, Duration::ZERO), Duration::ZERO), 10_000);
    }
}
