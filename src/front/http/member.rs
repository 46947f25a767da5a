//! What an etcd member answers over plain HTTP on its client port, for clients and probes that expect it there.
//!
//! | path | answer |
//! |---|---|
//! | GET /health | `{"health":"true","reason":""}`, or status 503 with `"false"` and the reason |
//! | GET /version | the upstream's versions, so that clients choose features by them; 503 while unknown |
//! | GET /metrics | Prometheus text |
//! | GET /proxy/health, /proxy/metrics | the same, where etcd's grpc-proxy has its own |
//! | any /v3/… | 501: etcd's JSON gateway is not served |

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use http::{StatusCode, Uri};
use serde_json::json;

use super::not_found;
use crate::front::Inspect;

/// The router for requests on the gRPC port that are not gRPC.
pub fn router(inspect: Arc<dyn Inspect>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/proxy/health", get(health))
        .route("/proxy/metrics", get(metrics))
        .route("/v3/{*call}", any(gateway))
        .fallback(other)
        .with_state(inspect)
}

async fn health(State(inspect): State<Arc<dyn Inspect>>) -> Response {
    let reasons = inspect.not_ready();
    let (status, health) =
        if reasons.is_empty() { (StatusCode::OK, "true") } else { (StatusCode::SERVICE_UNAVAILABLE, "false") };
    (status, Json(json!({ "health": health, "reason": reasons.join("; ") }))).into_response()
}

async fn version(State(inspect): State<Arc<dyn Inspect>>) -> Response {
    match inspect.version() {
        Some(version) => Json(&*version).into_response(),
        None => {
            (StatusCode::SERVICE_UNAVAILABLE, "the upstream's version is not known yet; see /health\n").into_response()
        }
    }
}

async fn metrics(State(inspect): State<Arc<dyn Inspect>>) -> Response {
    super::metrics(&*inspect)
}

async fn gateway() -> Response {
    let text =
        "etcd-relay does not serve etcd's JSON gateway (/v3/...); use gRPC on this port, or a member of the cluster\n";
    (StatusCode::NOT_IMPLEMENTED, text).into_response()
}

async fn other(uri: Uri) -> Response {
    not_found(format!(
        "No {} here. This is etcd-relay's port for etcd's v3 API over gRPC (content type application/grpc, HTTP/2); \
         over plain HTTP it answers /health, /version and /metrics.\n",
        uri.path()
    ))
}
