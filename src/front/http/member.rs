//! What an etcd member answers over plain HTTP on its client port, for clients and probes that expect it there.
//!
//! | path | answer |
//! |---|---|
//! | GET /health | `{"health":"true","reason":""}`, or status 503 with `"false"` and the reason |
//! | GET /version | the upstream's versions, so that clients choose features by them; 503 while unknown |
//! | GET /metrics | Prometheus text, for those whom `--metrics-from` names |
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

use super::{audience::Gate, not_found, scrape};
use crate::front::Inspect;

/// The router for requests on the gRPC port that are not gRPC. `metrics` says who may read those.
pub fn router(inspect: Arc<dyn Inspect>, metrics: Gate) -> Router {
    let gated = Router::new().route("/metrics", get(shown)).route("/proxy/metrics", get(shown));
    Router::new()
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/proxy/health", get(health))
        .route("/v3/{*call}", any(gateway))
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

async fn shown(State(inspect): State<Arc<dyn Inspect>>) -> Response {
    scrape(&*inspect)
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
