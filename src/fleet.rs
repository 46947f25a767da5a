//! How the relays of a fleet move clients between them without a storm: what is decided, and nothing else.
//!
//! These are plain calculations. Each takes the time as a duration since some moment that its caller chose, and chance as a number, so that
//! a port runs them by its clock and `tests/fleet_sim` runs the same code for a million clients on a made-up one.
//! Not here: connections, see `front::listen::pacing`; what relays tell each other through etcd, see `front::balance`.
//! Always holds: nothing waits, and nothing is read but what is given.

mod age;
mod drain;
mod load;
mod rate;
mod shed;

pub use self::{
    age::{age_rate, greatest_age},
    drain::{Drain, spread},
    load::{Load, Publishing},
    rate::Rate,
    shed::{STEP, Shedding},
};
