//! Asks etcd whether a client may read a range.
//!
//! Whether the question is needed is decided by the caller. One call is one attempt. Always holds: only an answer that
//! etcd gives after its permission check counts as a grant.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use prost::Message as _;
use tonic::{Code, Status, body::Body};

use crate::{front::client::Credentials, pb::etcdserverpb::RangeRequest, rpc::GrpcService, types::KeyRange};

const RANGE: &str = "/etcdserverpb.KV/Range";
/// No store reaches this revision. So etcd checks permission and then refuses the read without executing it.
const NEVER: i64 = i64::MAX;
/// The answer is an error or, from a server that ignores the revision, a count.
const MAX_ANSWER: usize = 64 << 10;

/// The largest question that etcd accepts with its default flags.
const MAX_QUESTION: usize = 2 << 20;

/// A range with exactly the bytes that a client sent: etcd checks permission before it interprets them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WireRange {
    /// The field `key`; not empty.
    pub key: Bytes,
    /// The field `range_end`.
    pub range_end: Bytes,
}

/// A denial by etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    code: Code,
    message: String,
}

/// The result of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Granted,
    Denied(Denial),
    /// etcd cannot answer this question, but may answer another one.
    Unanswerable(String),
    /// There was no answer.
    Unknown(String),
}

impl WireRange {
    /// A range that everyone may read while authentication is off, and no anonymous client while it is on.
    pub(super) fn probe() -> Self {
        Self { key: Bytes::from_static(&[0]), range_end: Bytes::new() }
    }

    /// The wire form of a parsed range.
    #[must_use]
    pub fn of(range: &KeyRange) -> Self {
        let (key, range_end) = range.to_wire();
        Self { key, range_end }
    }

    /// Whether etcd accepts a question about this range. A watch on any other range could not be ended after a
    /// revocation.
    #[must_use]
    pub fn can_be_asked(&self) -> bool {
        message(self).encoded_len() <= MAX_QUESTION
    }

    /// The length of both keys in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.key.len() + self.range_end.len()
    }

    /// The parsed range; `None` if it contains no keys.
    pub(super) fn parse(&self) -> Option<KeyRange> {
        KeyRange::from_wire(self.key.clone(), self.range_end.clone()).ok()
    }
}

impl Denial {
    /// The reason in etcd's words, for the `cancel_reason` of a watch.
    #[must_use]
    pub fn reason(&self) -> String {
        // Go's gRPC names for the codes of etcd's denials.
        let code = match self.code {
            Code::PermissionDenied => "PermissionDenied",
            Code::Unauthenticated => "Unauthenticated",
            _ => "InvalidArgument",
        };
        format!("rpc error: code = {code} desc = {}", self.message)
    }

    /// Whether etcd does not know the client at all, so that every range is denied.
    #[must_use]
    pub fn is_of_caller(&self) -> bool {
        self.code != Code::PermissionDenied
    }
}

/// Asks etcd through `upstream` whether a client with `credentials` may read `range`.
pub(super) async fn ask(upstream: GrpcService, credentials: &Credentials, range: &WireRange) -> Verdict {
    let mut request = Request::new(Body::new(Full::new(question(range))));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(RANGE);
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    for (name, value) in credentials.headers() {
        headers.append(name, value.clone());
    }
    let Ok(response) = upstream.answer(request).await;
    let (head, body) = response.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return verdict(&status);
    }
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => match body.trailers().and_then(Status::from_header_map) {
            Some(status) => verdict(&status),
            None => Verdict::Unknown("etcd's answer has no status".into()),
        },
        Err(error) => Verdict::Unknown(format!("etcd's answer cannot be read: {error}")),
    }
}

/// The gRPC message of the question.
fn question(range: &WireRange) -> Bytes {
    let request = message(range);
    let len = request.encoded_len();
    let mut framed = BytesMut::with_capacity(5 + len);
    framed.put_u8(0);
    // The length fits: larger ranges are not asked about.
    framed.put_u32(len as u32);
    framed.put_slice(&request.encode_to_vec());
    framed.freeze()
}

fn message(range: &WireRange) -> RangeRequest {
    RangeRequest {
        key: range.key.clone(),
        range_end: range.range_end.clone(),
        limit: 1,
        revision: NEVER,
        serializable: true,
        count_only: true,
        ..RangeRequest::default()
    }
}

fn verdict(status: &Status) -> Verdict {
    let denied = || Verdict::Denied(Denial { code: status.code(), message: status.message().to_owned() });
    match status.code() {
        // `OutOfRange` is the error for a future revision, which comes after the permission check.
        Code::Ok | Code::OutOfRange => Verdict::Granted,
        Code::PermissionDenied | Code::Unauthenticated => denied(),
        Code::InvalidArgument if DENIALS.contains(&status.message()) => denied(),
        code @ (Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled) => {
            Verdict::Unknown(format!("etcd answered {code:?}: {}", status.message()))
        }
        code => Verdict::Unanswerable(format!("etcd answered {code:?}: {}", status.message())),
    }
}

/// Texts of denials whose code has several meanings.
const DENIALS: [&str; 2] = ["etcdserver: user name is empty", "etcdserver: revision of auth store is old"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_etcds_answers_has_one_meaning() {
        let denied = |code, message: &str, reason: &str, of_caller| {
            let Verdict::Denied(denial) = verdict(&Status::new(code, message)) else {
                panic!("{message} is a denial");
            };
            assert_eq!((denial.reason().as_str(), denial.is_of_caller()), (reason, of_caller));
        };
        denied(
            Code::PermissionDenied,
            "etcdserver: permission denied",
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
            false,
        );
        denied(
            Code::Unauthenticated,
            "etcdserver: invalid auth token",
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
            true,
        );
        denied(
            Code::InvalidArgument,
            "etcdserver: user name is empty",
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
            true,
        );
        denied(
            Code::InvalidArgument,
            "etcdserver: revision of auth store is old",
            "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old",
            true,
        );
        let future = "etcdserver: mvcc: required revision is a future revision";
        assert_eq!(verdict(&Status::out_of_range(future)), Verdict::Granted);
        for status in [
            Status::resource_exhausted("grpc: received message larger than max (2400000 vs. 2097152)"),
            Status::invalid_argument("etcdserver: key is not provided"),
            Status::unknown("?"),
            Status::internal("?"),
            Status::unimplemented("?"),
        ] {
            assert!(matches!(verdict(&status), Verdict::Unanswerable(_)), "{status:?} decides nothing");
        }
        for status in [Status::unavailable("no connection"), Status::deadline_exceeded("?"), Status::cancelled("?")] {
            assert!(matches!(verdict(&status), Verdict::Unknown(_)), "{status:?} is not an answer");
        }
    }

    #[test]
    fn what_etcd_would_not_take_is_not_asked() {
        let range = |bytes: usize| WireRange { key: vec![b'k'; bytes].into(), range_end: Bytes::new() };
        assert!(range(MAX_QUESTION - 64).can_be_asked());
        assert!(!range(MAX_QUESTION - 8).can_be_asked());
        assert_eq!(question(&range(MAX_QUESTION - 64)).len(), message(&range(MAX_QUESTION - 64)).encoded_len() + 5);
    }
}
