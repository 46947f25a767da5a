//! When a connection has its greatest age, and how fast those that have it are asked to leave.
//!
//! Always holds: connections that came together do not go together: not by chance, and not after a time in which the relay stood still.

use std::time::Duration;

use super::drain::steady;

/// How much sooner or later than the greatest age a connection is asked, as a part of it.
const JITTER: f64 = 0.25;
/// All connections would take this long if all were too old at once.
const SPREAD: Duration = Duration::from_secs(30);

/// The age of one connection. `chance` is evenly distributed from 0 to 1.
#[must_use]
pub fn greatest_age(max_age: Duration, chance: f64) -> Duration {
    max_age.mul_f64(JITTER.mul_add(2.0 * chance, 1.0 - JITTER))
}

/// How many of so many connections are asked in a second, however many are too old.
#[must_use]
pub fn age_rate(connections: usize) -> f64 {
    steady(connections, SPREAD)
}
