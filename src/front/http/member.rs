//! What an etcd member answers over plain HTTP on its client port, for clients and probes that rely on it.
//!
//! | path | answer |
//! |---|---|
//! | GET /health | `{"health":"true","reason":""}`, or status 503 with `"false"` and the reason |
//! | GET /version | the upstream's versions, from which clients derive its features; 503 while unknown |
//! | GET /metrics | Prometheus text, for the callers that `--metrics-from` allows |
//! | GET /proxy/health, /proxy/metrics | the same, at the paths of etcd's grpc-proxy |

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, Uri, header};

use super::{audience::Gate, not_found, scrape};
use crate::front::Inspect;

/// The router for requests on the gRPC port that are not gRPC. `metrics` decides who may read the metrics.
pub fn router(inspect: Arc<dyn Inspect>, metrics: Gate) -> Router {
    let gated = Router::new().route("/metrics", get(shown)).route("/proxy/metrics", get(shown));
    Router::new()
        .route("/health", get(health).fallback(only_get))
        .route("/version", get(version).fallback(only_get))
        .route("/proxy/health", get(health).fallback(only_get))
        .merge(metrics.before(gated))
        .fallback(other)
        .with_state(inspect)
}

async fn health(State(inspect): State<Arc<dyn Inspect>>) -> Response {
    super::health(&*inspect)
}

async fn version(State(inspect): State<Arc<dyn Inspect>>) -> Response {
    match inspect.version() {
        Some(version) => Json(&*version).into_response(),
        None => {
            (StatusCode::SERVICE_UNAVAILABLE, "the upstream's version is not known yet; see /health\n").into_response()
        }
    }
}

async fn only_get() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")], "Method Not Allowed\n").into_response()
}

async fn shown(State(inspect): State<Arc<dyn Inspect>>) -> Response {
    scrape(&*inspect)
}

async fn other(uri: Uri) -> Response {
    not_found(format!(
        "No {} here. This is etcd-relay's port for etcd's v3 API over gRPC (content type application/grpc, HTTP/2); \
         over plain HTTP it serves /v3/... (like etcd's JSON gateway), /health, /version and /metrics.\n",
        uri.path()
    ))
}
