//! The question to etcd: may this client read this range?
//!
//! Not here: whether it has to be asked. One call is one attempt. Always holds: only an answer that etcd gives after its check
//! of permission counts as a grant; whatever else comes does not.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use prost::Message as _;
use tonic::{Code, Status, body::Body};
use tower::ServiceExt as _;

use crate::{
    front::{client::Credentials, grpc::GrpcService},
    pb::etcdserverpb::RangeRequest,
    types::KeyRange,
};

const RANGE: &str = "/etcdserverpb.KV/Range";
/// No store comes to this revision, so etcd refuses the read, once it has checked permission, without doing it.
const NEVER: i64 = i64::MAX;
/// The answer is an error or, from a server that knows no such revision, a count.
const MAX_ANSWER: usize = 64 << 10;

/// The largest question that etcd takes, with its default flags.
const MAX_QUESTION: usize = 2 << 20;

/// A range in the very bytes that a client gave: etcd checks permission before it gives meaning to them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WireRange {
    /// `key`; not empty.
    pub key: Bytes,
    /// `range_end`.
    pub range_end: Bytes,
}

/// etcd's no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    code: Code,
    message: String,
}

/// What etcd says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Granted,
    Denied(Denial),
    /// etcd took the question and cannot answer it: another one may do.
    Unanswerable(String),
    /// Nobody answered.
    Unknown(String),
}

impl WireRange {
    /// What everyone may read where authentication is off, and nobody without a name where it is on.
    pub(super) fn probe() -> Self {
        Self { key: Bytes::from_static(&[0]), range_end: Bytes::new() }
    }

    /// The wire form of a parsed range.
    #[must_use]
    pub fn of(range: &KeyRange) -> Self {
        let (key, range_end) = range.to_wire();
        Self { key, range_end }
    }

    /// Whether etcd takes a question about it. A watch on what cannot be asked about could not be taken away again.
    #[must_use]
    pub fn can_be_asked(&self) -> bool {
        message(self).encoded_len() <= MAX_QUESTION
    }

    /// The bytes of both keys.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.key.len() + self.range_end.len()
    }

    /// The keys; `None` where there are none.
    pub(super) fn parse(&self) -> Option<KeyRange> {
        KeyRange::from_wire(self.key.clone(), self.range_end.clone()).ok()
    }
}

impl Denial {
    /// As etcd says it in the `cancel_reason` of a watch.
    #[must_use]
    pub fn reason(&self) -> String {
        // The names that Go's gRPC gives to the codes that etcd denies with.
        let code = match self.code {
            Code::PermissionDenied => "PermissionDenied",
            Code::Unauthenticated => "Unauthenticated",
            _ => "InvalidArgument",
        };
        format!("rpc error: code = {code} desc = {}", self.message)
    }

    /// Whether etcd does not know the client at all, so that it is denied every range.
    #[must_use]
    pub fn is_of_caller(&self) -> bool {
        self.code != Code::PermissionDenied
    }
}

/// Asks etcd through `upstream` whether a client with these `credentials` may read `range`.
pub(super) async fn ask(upstream: GrpcService, credentials: &Credentials, range: &WireRange) -> Verdict {
    let mut request = Request::new(Body::new(Full::new(question(range))));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(RANGE);
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    for (name, value) in credentials.headers() {
        headers.append(name, value.clone());
    }
    let Ok(response) = upstream.oneshot(request).await;
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

/// The gRPC message.
fn question(range: &WireRange) -> Bytes {
    let request = message(range);
    let len = request.encoded_len();
    let mut framed = BytesMut::with_capacity(5 + len);
    framed.put_u8(0);
    // Larger ranges are not asked about.
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
        // "Future revision": permission was checked before.
        Code::Ok | Code::OutOfRange => Verdict::Granted,
        Code::PermissionDenied | Code::Unauthenticated => denied(),
        Code::InvalidArgument if DENIALS.contains(&status.message()) => denied(),
        code @ (Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled) => {
            Verdict::Unknown(format!("etcd answers {code:?}: {}", status.message()))
        }
        code => Verdict::Unanswerable(format!("etcd answers {code:?}: {}", status.message())),
    }
}

/// etcd's denials that come with a code of several meanings.
const DENIALS: [&str; 2] = ["etcdserver: user name is empty", "etcdserver: revision of auth store is old"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_etcds_answers_has_one_meaning() {
        let denied = |code, message: &str, reason: &str, of_caller| {
            let Verdict::Denied(denial) = verdict(&Status::new(code, message)) else {
                panic!("{message} must be a denial");
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
            assert!(matches!(verdict(&status), Verdict::Unanswerable(_)), "{status:?} says nothing");
        }
        for status in [Status::unavailable("no connection"), Status::deadline_exceeded("?"), Status::cancelled("?")] {
            assert!(matches!(verdict(&status), Verdict::Unknown(_)), "{status:?} is no answer");
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
