//! What an operator sees of the relay: log lines, metrics and readiness.
//!
//! A leaf: any layer may use it, and it uses none. Metrics are named in [`names`] and nowhere else.

pub mod delivered;
mod held;
pub mod logging;
pub mod names;
pub mod process;
mod ready;
pub mod recorder;

pub use held::HeldForward;
pub use ready::{Hold, ReadyBoard};
