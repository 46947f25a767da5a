//! Plain HTTP: the operator's port ([`admin`]) with Lainlet's API on it ([`lainlet`]), and what an etcd member answers beside gRPC
//! ([`member`]).

pub mod admin;
pub mod lainlet;
pub mod member;

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use super::Inspect;

/// The content type of Prometheus text.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

fn metrics(inspect: &dyn Inspect) -> Response {
    ([(header::CONTENT_TYPE, PROMETHEUS)], inspect.metrics()).into_response()
}

fn not_found(text: String) -> Response {
    (StatusCode::NOT_FOUND, text).into_response()
}
