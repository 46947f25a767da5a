//! The headers of a request that are passed on with its call, as in grpc-gateway 1: `Authorization`, `Grpc-Metadata-…`,
//! `Grpc-Timeout`, and HTTP's standard headers with the gateway's mark.
//!
//! Always holds: a client cannot set headers that belong to gRPC itself or to a connection.

use std::time::Duration;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tonic::Status;

/// The headers that are passed on with the prefix `grpcgateway-`. By the first one etcd recognizes calls of a gateway,
/// for which it ignores the name in the connection's certificate.
const KNOWN: [HeaderName; 23] = [
    header::ACCEPT,
    header::ACCEPT_CHARSET,
    header::ACCEPT_LANGUAGE,
    header::ACCEPT_RANGES,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::DATE,
    header::EXPECT,
    header::FROM,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    HeaderName::from_static("if-schedule-tag-match"),
    header::IF_UNMODIFIED_SINCE,
    header::MAX_FORWARDS,
    header::ORIGIN,
    header::PRAGMA,
    header::REFERER,
    header::USER_AGENT,
    header::VIA,
    header::WARNING,
];

/// Names that a client may not set by `Grpc-Metadata-`: those of gRPC itself, and those of a connection.
const RESERVED: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// The headers and the timeout of a call.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) headers: HeaderMap,
    /// The timeout of the call; zero if it has already expired.
    pub(super) timeout: Option<Duration>,
    /// Why gRPC cannot carry the headers. The call fails with it once its request has been read, as in grpc-gateway.
    pub(super) illegal: Option<Status>,
}

/// Reads a request's headers.
///
/// # Errors
/// Fails if a timeout or a binary value cannot be read.
pub(super) fn of(headers: &HeaderMap) -> Result<Metadata, Status> {
    let timeout = match headers.get("grpc-timeout").filter(|value| !value.is_empty()) {
        Some(value) => timeout(value)?,
        None => None,
    };
    let mut passed = HeaderMap::new();
    for (name, value) in headers {
        if name == header::AUTHORIZATION {
            passed.append(name, value.clone());
        }
        if KNOWN.contains(name) {
            if let Ok(marked) = HeaderName::try_from(format!("grpcgateway-{name}")) {
                passed.append(marked, value.clone());
            }
        } else if let Some(inner) = name.as_str().strip_prefix("grpc-metadata-")
            && !inner.starts_with("grpc-")
            && !RESERVED.contains(&inner)
            && let Ok(inner) = HeaderName::try_from(inner)
        {
            let value = if inner.as_str().ends_with("-bin") { binary(name, value)? } else { value.clone() };
            passed.append(inner, value);
        }
    }
    let illegal = passed.iter().find_map(|(name, value)| illegal(name, value));
    Ok(Metadata { headers: passed, timeout, illegal })
}

/// Why gRPC cannot carry a header, in the words of gRPC for Go.
fn illegal(name: &HeaderName, value: &HeaderValue) -> Option<Status> {
    let name = name.as_str();
    if name.bytes().any(|byte| !byte.is_ascii_alphanumeric() && !b"-_.".contains(&byte)) {
        return Some(Status::internal(format!("header key {name:?} contains illegal characters not in [0-9a-z-_.]")));
    }
    let printable = value.as_bytes().iter().all(|byte| matches!(byte, b' '..=b'~'));
    (!printable)
        .then(|| Status::internal(format!("header key {name:?} contains value with non-printable ASCII characters")))
}

/// A binary value, with or without padding, in gRPC's form.
fn binary(name: &HeaderName, value: &HeaderValue) -> Result<HeaderValue, Status> {
    let bytes = value.as_bytes();
    let decoded = if bytes.len().is_multiple_of(4) { STANDARD.decode(bytes) } else { STANDARD_NO_PAD.decode(bytes) };
    let refused =
        |why: &dyn std::fmt::Display| Status::invalid_argument(format!("invalid binary header {name}: {why}"));
    let decoded = decoded.map_err(|error| refused(&error))?;
    HeaderValue::try_from(STANDARD_NO_PAD.encode(decoded)).map_err(|error| refused(&error))
}

/// Parses a number and its unit. Zero means no timeout; a negative number has already expired. So have some numbers
/// that are too large: the product wraps around, as in Go.
fn timeout(value: &HeaderValue) -> Result<Option<Duration>, Status> {
    let text = String::from_utf8_lossy(value.as_bytes());
    let invalid = || Status::invalid_argument(format!("invalid grpc-timeout: {text}"));
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(invalid)?;
    let number: i64 = number.parse().map_err(|_| invalid())?;
    let nanos: i64 = match unit {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1_000,
        "n" => 1,
        _ => return Err(invalid()),
    };
    let nanos = number.wrapping_mul(nanos);
    Ok((nanos != 0).then(|| Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(headers: &[(&'static str, &'static str)]) -> Result<Metadata, Status> {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        of(&headers.collect())
    }

    #[test]
    fn a_token_goes_as_it_came_and_metadata_without_its_prefix() {
        let metadata = passed(&[
            ("authorization", "Bearer t"),
            ("accept", "*/*"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-some-bin", "/+8="),
            ("grpc-metadata-grpc-encoding", "gzip"),
            ("grpc-metadata-te", "x"),
            ("x-else", "y"),
        ]);
        let mut names: Vec<_> = metadata
            .expect("readable")
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "authorization: Bearer t",
                "grpcgateway-accept: */*",
                "grpcgateway-authorization: Bearer t",
                "hasleader: true",
                "some-bin: /+8"
            ]
        );
    }

    #[test]
    fn what_grpc_cannot_carry_is_said_in_its_words() {
        let value = |bytes: &'static [u8]| HeaderValue::from_bytes(bytes).expect("a value");
        for (name, bytes, told) in [
            ("grpc-metadata-x", &b"\xe9"[..], "header key \"x\" contains value with non-printable ASCII characters"),
            ("origin", b"a\tb", "header key \"grpcgateway-origin\" contains value with non-printable ASCII characters"),
            ("grpc-metadata-a!b", b"x", "header key \"a!b\" contains illegal characters not in [0-9a-z-_.]"),
        ] {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value(bytes))]);
            let illegal = of(&headers).expect("readable").illegal.expect("illegal");
            assert_eq!((illegal.code(), illegal.message()), (tonic::Code::Internal, told));
        }
        assert!(passed(&[("grpc-metadata-x_y.z", "~ ")]).expect("readable").illegal.is_none());
    }

    #[test]
    fn timeouts_are_read_as_the_gateway_reads_them() {
        let timeout = |value| passed(&[("grpc-timeout", value)]).map(|metadata| metadata.timeout);
        assert_eq!(timeout("250m").expect("readable"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("0S").expect("readable"), None);
        assert_eq!(timeout("-1S").expect("readable"), Some(Duration::ZERO));
        assert_eq!(timeout("99999999H").expect("readable"), Some(Duration::ZERO));
        for nonsense in ["1", "S", "1s", "1.5S", "xS"] {
            let error = timeout(nonsense).expect_err(nonsense);
            assert_eq!(error.message(), format!("invalid grpc-timeout: {nonsense}"));
        }
    }
}
