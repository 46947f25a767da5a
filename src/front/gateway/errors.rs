//! The errors of etcd's JSON gateway, for calls with one answer and within a stream.
//!
//! The format is that of grpc-gateway 1, which etcd 3.5 uses.

use http::StatusCode;
use tonic::{Code, Status};

use crate::front::gojson::{Go, put_string_of};

/// The HTTP status for a gRPC code.
pub(super) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The body for a failed call. Default values are left out, as everywhere.
pub(super) fn whole(status: &Status) -> Vec<u8> {
    let mut out = Vec::new();
    let text = status.message().as_bytes();
    out.push(b'{');
    if !text.is_empty() {
        out.extend_from_slice(b"\"error\":");
        put_string_of(Go::New, &mut out, text);
        out.push(b',');
    }
    out.extend_from_slice(format!("\"code\":{}", status.code() as i32).as_bytes());
    if !text.is_empty() {
        out.extend_from_slice(b",\"message\":");
        put_string_of(Go::New, &mut out, text);
    }
    out.push(b'}');
    out
}

/// The last line of a failed stream, which may be its only line.
pub(super) fn in_stream(status: &Status) -> Vec<u8> {
    let http = http_status(status.code());
    let codes = format!("{{\"error\":{{\"grpc_code\":{},\"http_code\":{}", status.code() as i32, http.as_u16());
    let mut out = codes.into_bytes();
    if !status.message().is_empty() {
        out.extend_from_slice(b",\"message\":");
        put_string_of(Go::New, &mut out, status.message().as_bytes());
    }
    out.extend_from_slice(b",\"http_status\":");
    put_string_of(Go::New, &mut out, http.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"}}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_the_first_grpc_gateway() {
        let status = Status::not_found("etcdserver: <requested> lease not found");
        assert_eq!(
            String::from_utf8_lossy(&whole(&status)),
            r#"{"error":"etcdserver: \u003crequested\u003e lease not found","code":5,"message":"etcdserver: \u003crequested\u003e lease not found"}"#
        );
        assert_eq!(String::from_utf8_lossy(&whole(&Status::unknown(""))), r#"{"code":2}"#);
        assert_eq!(
            String::from_utf8_lossy(&in_stream(&Status::unavailable("etcdserver: no leader"))),
            r#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"Service Unavailable"}}"#
        );
    }
}
