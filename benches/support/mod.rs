//! Shared code of the views' benchmark: real servers as child processes, a generated LAIN cluster that changes,
//! watchers that check what they get, and the report.
//!
//! The measurements are in `scenarios`. A step that fails ends its scenario with the reason, and the program with an
//! error.

pub mod args;
pub mod cluster;
pub mod driver;
#[expect(dead_code, reason = "shared with the comparison, which uses the rest")]
pub mod etcd;
pub mod fleet;
pub mod process;
pub mod relay;
pub mod report;
pub mod scenarios;
pub mod values;

pub use etcd_relay::bench::{http, sse};
