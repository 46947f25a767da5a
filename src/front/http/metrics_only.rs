//! A port for metrics and health alone, like etcd's `--listen-metrics-urls` and grpc-proxy's `--metrics-addr`: for
//! Prometheus and probes.
//!
//! | path | answer |
//! |---|---|
//! | GET /metrics, /proxy/metrics | Prometheus text |
//! | GET /health, /proxy/health | as on a member's client port |
//! | GET /live, /ready | as on the operator's port |
//!
//! Views and `/debug/state` are not served here. Everyone who can reach the port may read it: it has an address of its
//! own, so that the network can control access.

use std::sync::Arc;

use axum::{Router, extract::State, routing::get};

use super::{LIVE, health, ready, scrape};
use crate::front::Inspect;

/// The description of the port in answers to requests for unknown paths.
pub const ABOUT: &str = "This is etcd-relay's port for metrics: /metrics, /health, /live, /ready.";

/// The routes, without the answer for unknown paths.
pub fn router(inspect: Arc<dyn Inspect>) -> Router {
    let shown = async |State(inspect): State<Arc<dyn Inspect>>| scrape(&*inspect);
    let healthy = async |State(inspect): State<Arc<dyn Inspect>>| health(&*inspect);
    Router::new()
        .route("/metrics", get(shown))
        .route("/proxy/metrics", get(shown))
        .route("/health", get(healthy))
        .route("/proxy/health", get(healthy))
        .route("/live", get(async || LIVE))
        .route("/ready", get(async |State(inspect): State<Arc<dyn Inspect>>| ready(&*inspect)))
        .with_state(inspect)
}
