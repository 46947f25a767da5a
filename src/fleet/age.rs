//! When a connection reaches its greatest age, and how fast the connections that have reached it are asked to leave.
//!
//! Always holds: connections that were opened together do not leave together, neither by chance nor after a time in
//! which the relay was stopped.

use std::time::Duration;

use super::drain::steady;

/// By how much the age of one connection may differ from the greatest age, as a fraction of it.
const JITTER: f64 = 0.25;
/// How long it takes to ask all connections if all of them are too old at once.
const SPREAD: Duration = Duration::from_secs(30);

/// The age of one connection. `chance` is evenly distributed from 0 to 1.
#[must_use]
pub fn greatest_age(max_age: Duration, chance: f64) -> Duration {
    max_age.mul_f64(JITTER.mul_add(2.0 * chance, 1.0 - JITTER))
}

/// How many of these connections are asked to leave in a second, even if all of them are too old.
#[must_use]
pub fn age_rate(connections: usize) -> f64 {
    steady(connections, SPREAD)
}
