//! [`Drain`]: how fast a relay that is stopping asks its connections to leave.
//!
//! Each connection that leaves is one more for the other relays within the same second. So they are asked at a steady
//! rate over two thirds of the drain time, and a machine that is slow takes a little longer. A connection that was not
//! asked by the end is cut off without a last progress report, which is worse for everybody than a slightly higher
//! rate. So a drain that is late goes faster, but no faster than it must, and is over after five sixths of the drain
//! time.
//!
//! A client that knows no other relay comes back to this one. It is served, and asked a second time at the very end, so
//! that it waits for little more than the restart. Its leases must not end meanwhile.
//! Always holds: a drain that is not late asks no more than its rate in any second, apart from the burst that [`Rate`]
//! allows.

use std::time::Duration;

use crate::rate::Rate;

/// At least this many connections are asked in a second, so that a relay with few of them stops soon. It harms no other
/// relay.
const LEAST_RATE: f64 = 25.0;
/// How much later than planned a drain may be over, as a fraction of the planned time.
const LATE: f64 = 0.25;

/// Paces the end of a relay's connections; see the module.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    rate: Rate,
    /// The planned rate, in connections a second.
    planned: f64,
    end: Duration,
}

/// The part of the drain time in which all connections are asked: two thirds.
/// ```
/// use std::time::Duration;
///
/// use etcd_relay::fleet::{Drain, spread};
///
/// let spread = spread(Duration::from_secs(30));
/// assert_eq!(spread, Duration::from_secs(20));
///
/// // 2,000 connections over 20 s: one may go now, and the next one 10 ms later.
/// let mut drain = Drain::new(2_000, spread, Duration::ZERO);
/// assert_eq!(drain.pass(Duration::ZERO, 2_000), Ok(()));
/// assert_eq!(drain.pass(Duration::ZERO, 1_999), Err(Duration::from_millis(10)));
/// ```
#[must_use]
pub fn spread(drain_time: Duration) -> Duration {
    drain_time * 2 / 3
}

/// The part of the drain time, after the spread, in which connections are asked that came meanwhile: a twelfth.
#[must_use]
pub fn last_spread(spread: Duration) -> Duration {
    spread / 8
}

impl Drain {
    /// A drain of this many connections that begins `now`. It takes `spread`, or less if there are few.
    #[must_use]
    pub fn new(connections: usize, spread: Duration, now: Duration) -> Self {
        let planned = steady(connections, spread);
        Self { rate: Rate::new(planned, now), planned, end: now + spread.mul_f64(1.0 + LATE) }
    }

    /// Whether one of the `remaining` connections may be asked now.
    ///
    /// # Errors
    /// The time at which the next one may be asked, if that is not `now` yet.
    pub fn pass(&mut self, now: Duration, remaining: usize) -> Result<(), Duration> {
        let needed = remaining as f64 / self.end.saturating_sub(now).as_secs_f64();
        self.rate.set(self.planned.max(needed));
        self.rate.pass(now)
    }
}

/// The rate at which this many connections can be asked within this time.
pub(super) fn steady(connections: usize, time: Duration) -> f64 {
    (connections as f64 / time.as_secs_f64()).max(LEAST_RATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 2,000 connections are asked at each of these moments, over 20 s.
    fn asked(moments: impl Iterator<Item = u64>) -> Vec<usize> {
        let mut drain = Drain::new(2_000, Duration::from_secs(20), Duration::ZERO);
        let mut remaining = 2_000;
        let at = |millis| {
            let before = remaining;
            while remaining > 0 && drain.pass(Duration::from_millis(millis), remaining).is_ok() {
                remaining -= 1;
            }
            before - remaining
        };
        moments.map(at).collect()
    }

    #[test]
    fn all_are_asked_in_time_and_few_soon() {
        assert_eq!(spread(Duration::from_secs(30)), Duration::from_secs(20));
        let steady: Vec<usize> = asked(0..20_000).chunks(1_000).map(|second| second.iter().sum()).collect();
        assert!(steady.iter().all(|count| count.abs_diff(100) <= 1), "{steady:?}");
        assert!((super::steady(10, Duration::from_secs(20)) - LEAST_RATE).abs() < 1e-9);
        let mut at_once = Drain::new(100, Duration::ZERO, Duration::ZERO);
        assert!(
            (1..=100).rev().all(|left| at_once.pass(Duration::ZERO, left).is_ok()),
            "no time to spread anything over"
        );
    }

    #[test]
    fn a_drain_that_is_late_goes_faster_but_asks_nobody_too_late_and_not_all_at_once() {
        // The machine stops for ten of the twenty seconds.
        let after_a_pause = asked((0..5_000).chain(15_000..25_000));
        assert_eq!(after_a_pause.iter().sum::<usize>(), 2_000);
        assert!(after_a_pause[5_000] <= 40, "{} right after the pause", after_a_pause[5_000]);
        let seconds: Vec<usize> = after_a_pause[5_000..].chunks(1_000).map(|second| second.iter().sum()).collect();
        assert!(seconds.iter().all(|count| *count <= 190), "{seconds:?}");
        // A machine that runs the drain only once a second.
        assert_eq!(asked((0..=25).map(|second| second * 1_000)).iter().sum::<usize>(), 2_000);
    }
}
