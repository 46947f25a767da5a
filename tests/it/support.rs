//! Shared code of the tests: real servers as child processes, clients that show the wire format, and the checker for
//! what they received.
//!
//! Expectations about the relay are in the tests.

pub mod browser;
pub mod client;
pub mod etcd;
mod eventually;
pub mod gate;
pub mod http;
pub mod kv;
pub mod peers;
mod ports;
pub mod process;
pub mod relay;
pub mod replay;
pub mod schema;
pub mod target;
pub mod tls;
pub mod validate;
pub mod writer;

pub use eventually::{eventually, eventually_within, patience, quiet_time, seconds_from_env};
pub use ports::free_port;
