//! etcd-relay stands between an etcd v3 cluster and everything that watches it: one upstream watch per key prefix, fanned out.
//!
//! Layers, each using only those before it: [`types`] ← [`hub`] ← {`source`, `store`} ← `front` ← `relay` ← `main`.

pub mod hub;
pub mod pb;
pub mod store;
pub mod types;
