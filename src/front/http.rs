//! Plain HTTP. The operator's port ([`admin`]) has the `state`, a `page` that shows it, Lainlet's API ([`lainlet`]) and
//! the keys ([`keys`]). [`member`] has what an etcd member answers beside gRPC, and [`metrics_only`] is for ports with
//! metrics alone.

pub mod admin;
pub mod audience;
mod body;
pub mod keys;
pub mod lainlet;
pub mod member;
pub mod metrics_only;
mod page;
mod pages;
mod state;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde_json::json;

pub use self::body::HttpBody;
use super::Inspect;

/// The content type of Prometheus text.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The answer of a live process.
const LIVE: &str = "live\n";

fn scrape(inspect: &dyn Inspect) -> Response {
    ([(header::CONTENT_TYPE, PROMETHEUS)], inspect.metrics()).into_response()
}

fn ready(inspect: &dyn Inspect) -> Response {
    let reasons = inspect.not_ready();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready:\n{}\n", reasons.join("\n"))).into_response()
}

fn health(inspect: &dyn Inspect) -> Response {
    let reasons = inspect.not_ready();
    let (status, health) =
        if reasons.is_empty() { (StatusCode::OK, "true") } else { (StatusCode::SERVICE_UNAVAILABLE, "false") };
    (status, Json(json!({ "health": health, "reason": reasons.join("; ") }))).into_response()
}

fn not_found(text: String) -> Response {
    (StatusCode::NOT_FOUND, text).into_response()
}
