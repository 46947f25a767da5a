//! A port for metrics and health alone, as etcd's `--listen-metrics-urls` and grpc-proxy's `--metrics-addr`: for Prometheus and for probes.
//!
//! | path | answer |
//! |---|---|
//! | GET /metrics, /proxy/metrics | Prometheus text |
//! | GET /health, /proxy/health | as on a member's client port |
//! | GET /live, /ready | as on the operator's port |
//!
//! Not here: views and `/debug/state`. Whoever reaches the port may ask: it has an address of its own so that a network can decide that.

use std::sync::Arc;

use axum::{Router, extract::State, routing::get};

use super::{LIVE, health, ready, scrape};
use crate::front::Inspect;

/// What the port is, for those who ask it for anything else.
pub const ABOUT: &str = "This is etcd-relay's port for metrics: /metrics, /health, /live, /ready.";

/// The routes, without an answer for paths that are not there.
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
