//! How the relays of a fleet move clients between them without a storm of reconnects: only the decisions.
//!
//! These are pure calculations. Each takes the time as a duration since a moment that its caller chose, and randomness
//! as a number. So a port runs them by its clock, and `tests/fleet_sim` runs the same code for a million clients on a
//! simulated one.
//! Not here: connections, see `front::listen::pacing`; what relays report to each other through etcd, see
//! `front::balance`.
//! Always holds: nothing waits, and the result depends only on the arguments and the earlier calls.

mod age;
mod drain;
mod load;
mod shed;

pub use self::{
    age::{age_rate, greatest_age},
    drain::{Drain, last_spread, spread},
    load::{Load, Publishing},
    shed::{STEP, Shedding},
};
