//! Everything that clients connect to: ports, etcd's v3 API over gRPC and as JSON (`gateway`), plain HTTP, and etcd's
//! v2 API (`v2`).
//!
//! Where the data comes from is not here: the composition root gives each front the traits and services it needs.

pub mod access;
pub mod balance;
pub mod body;
pub mod client;
pub mod gateway;
mod gojson;
pub mod grpc;
pub mod http;
pub mod inspect;
pub mod lainlet;
pub mod listen;
pub mod order;
mod pieces;
pub mod session;
pub mod signal;
mod texts;
mod tokens;
pub mod users;
pub mod v2;

pub use inspect::Inspect;

#[cfg(test)]
mod tests;
