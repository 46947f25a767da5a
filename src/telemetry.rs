//! Logs and metrics.

pub mod names;
