//! etcd-relay stands between an etcd v3 cluster and everything that watches it: one upstream watch per key prefix,
//! fanned out.
//!
//! Layers, each using only those before it: [`types`] ← [`hub`] ← {[`source`], [`store`]} ← [`front`] ← [`relay`] ←
//! `main`. [`telemetry`] may be used by all, [`tls`] by [`source`] and [`front`], [`latest`] by [`view`] and [`front`],
//! [`http2`] by [`front`], [`fleet`] by [`front`] and [`relay`], and [`critical`] by everything that spawns tasks of
//! the process, and [`service`] by [`relay`]. [`cli`] turns flags into a [`relay::RelayConfig`], and only `main` uses
//! it. [`mod@bench`], [`top`] and [`health`] are separate programs that use none of these layers; the latter two query
//! a relay by [`fetch`].

pub mod batch;
pub mod bench;
pub mod cli;
pub mod critical;
pub mod fetch;
pub mod fleet;
pub mod front;
pub mod health;
pub mod http2;
pub mod hub;
pub mod latest;
pub mod pb;
mod ranges;
pub mod rate;
pub mod relay;
pub mod rpc;
pub mod service;
pub mod shutdown;
pub mod source;
pub mod store;
mod sync;
pub mod telemetry;
pub mod tls;
pub mod top;
pub mod types;
pub mod view;
