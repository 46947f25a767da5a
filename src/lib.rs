//! etcd-relay stands between an etcd v3 cluster and everything that watches it: one upstream watch per key prefix, fanned out.
//!
//! Layers, each using only those before it: [`types`] ← [`hub`] ← {[`source`], [`store`]} ← [`front`] ← [`relay`] ← `main`.
//! [`telemetry`] may be used by all, [`tls`] by [`source`] and [`front`], [`latest`] by [`view`] and [`front`], [`http2`] by [`front`], [`fleet`] by [`front`] and [`relay`], [`critical`] by all that spawn tasks of the process; [`cli`] turns flags into a [`relay::RelayConfig`], and
//! nothing but `main` uses it. [`mod@bench`], [`top`] and [`health`] are programs of their own that know none of them; the latter two ask a relay by [`fetch`].

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
pub mod relay;
pub mod shutdown;
pub mod source;
pub mod store;
mod sync;
pub mod telemetry;
pub mod tls;
pub mod top;
pub mod types;
pub mod view;
