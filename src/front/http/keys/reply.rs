//! [`Failure`], the error answers, and [`KeysBody`], the body of all answers.
//!
//! Always holds: an error is JSON, and its text tells the client what to do. etcd's own errors keep their text.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf as _;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status};

use super::{json::put_text, list::ListBody, query::BadQuery, stream::WatchEvents};
use crate::{
    front::pieces::Pieces,
    hub::{NoFeed, StreamEnd, SubscribeError},
    telemetry::names::KeysAnswer,
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// In seconds. A retry may succeed at any moment.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
/// The kind of credentials that are required. It makes browsers ask for a password.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"etcd\", charset=\"UTF-8\"");

/// etcd's errors for a client whose user it does not know.
const UNKNOWN_USER: [&str; 5] = [
    "etcdserver: user name is empty",
    "etcdserver: invalid auth token",
    "etcdserver: authentication failed, invalid user ID or password",
    "etcdserver: revision of auth store is old",
    "etcd-relay: etcd no longer accepts this stream's token",
];
/// etcd's error for a user without permission.
const FORBIDDEN: &str = "etcdserver: permission denied";
/// The relay's error for a range that etcd cannot be asked about.
const TOO_LARGE: &str = "etcd-relay: key and range_end are too large";

/// Why a request fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
    }

    /// For a watch that was refused or ended for this reason.
    pub(super) fn of_watch(reason: &str) -> Self {
        let reason = without_code(reason);
        let is = |text: &dyn std::fmt::Display| reason == text.to_string();
        let status = if let Some(status) = of_user(reason) {
            status
        } else if is(&NoFeed::Denied) {
            StatusCode::FORBIDDEN
        } else if is(&NoFeed::Unsupported) {
            StatusCode::BAD_REQUEST
        } else if is(&NoFeed::ClientLimit) || is(&NoFeed::ClientBytes) || is(&SubscribeError::ClientFull) {
            StatusCode::TOO_MANY_REQUESTS
        } else if reason.starts_with(TOO_LARGE) {
            StatusCode::PAYLOAD_TOO_LARGE
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        Self::new(status, reason)
    }

    /// For a stream of watches that ended.
    pub(super) fn of_end(end: StreamEnd) -> Self {
        match end {
            StreamEnd::Stopping => Self::unavailable("etcd-relay: the relay is stopping; reconnect"),
            StreamEnd::NoLeader => Self::unavailable("etcdserver: no leader"),
            StreamEnd::Unavailable(text) => Self::of_watch(&text),
            StreamEnd::Malformed(text) | StreamEnd::TooLarge(text) => Self::new(StatusCode::BAD_REQUEST, text),
        }
    }

    fn answer(&self) -> KeysAnswer {
        match self.status {
            StatusCode::UNAUTHORIZED => KeysAnswer::Unauthorized,
            StatusCode::FORBIDDEN => KeysAnswer::Forbidden,
            StatusCode::GONE => KeysAnswer::Compacted,
            StatusCode::TOO_MANY_REQUESTS => KeysAnswer::Limit,
            status if status.is_client_error() => KeysAnswer::Invalid,
            _ => KeysAnswer::Unavailable,
        }
    }

    /// The answer, and its label for metrics.
    pub(super) fn response(&self) -> (Response<KeysBody>, KeysAnswer) {
        let mut json = b"{\"error\":".to_vec();
        put_text(&self.text, &mut json);
        json.extend_from_slice(b"}\n");
        let mut response = Response::new(KeysBody::whole(json.into()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, JSON);
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        (response, self.answer())
    }
}

impl From<BadQuery> for Failure {
    fn from(error: BadQuery) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let text = status.message();
        let http = of_user(text).unwrap_or(match status.code() {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::OutOfRange if text.contains("has been compacted") => StatusCode::GONE,
            Code::OutOfRange if text.contains("future revision") => StatusCode::BAD_REQUEST,
            // etcd's answer is longer than allowed.
            Code::OutOfRange => return Self::new(StatusCode::PAYLOAD_TOO_LARGE, LARGE_ANSWER),
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        });
        Self::new(http, text)
    }
}

const LARGE_ANSWER: &str = "etcd-relay: no feed has these keys, and etcd's answer is too large to pass on; use a \
    smaller limit= or keys_only=true";

/// An error without the gRPC code that etcd puts before it in the reasons of watches.
fn without_code(text: &str) -> &str {
    let described = text.strip_prefix("rpc error: code = ").and_then(|rest| rest.split_once(" desc = "));
    described.map_or(text, |(_, description)| description)
}

fn of_user(text: &str) -> Option<StatusCode> {
    if UNKNOWN_USER.iter().any(|known| text.starts_with(known)) {
        return Some(StatusCode::UNAUTHORIZED);
    }
    (text == FORBIDDEN).then_some(StatusCode::FORBIDDEN)
}

/// The body of the answers for keys.
#[derive(Debug)]
pub enum KeysBody {
    /// Complete; `None` once it was given.
    Whole(Option<Pieces>),
    /// Keys, in parts.
    List(Box<ListBody>),
    /// Events.
    Watch(Box<WatchEvents>),
}

impl KeysBody {
    pub(super) fn whole(pieces: Pieces) -> Self {
        Self::Whole((pieces.remaining() > 0).then_some(pieces))
    }
}

impl http_body::Body for KeysBody {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(pieces) => Poll::Ready(pieces.take().map(|pieces| Ok(Frame::data(pieces)))),
            Self::List(list) => Poll::Ready(list.next().map(|part| Ok(Frame::data(part)))),
            Self::Watch(events) => events.poll_next(cx).map(|data| data.map(|data| Ok(Frame::data(data)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(pieces) => pieces.is_none(),
            Self::List(list) => list.is_over(),
            Self::Watch(events) => events.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(pieces) => SizeHint::with_exact(pieces.as_ref().map_or(0, |pieces| pieces.remaining() as u64)),
            Self::List(_) | Self::Watch(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_status_that_a_script_can_act_on() {
        for (status, want) in [
            (Status::unauthenticated("etcdserver: invalid auth token"), 401),
            (Status::invalid_argument("etcdserver: user name is empty"), 401),
            (Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password"), 401),
            (Status::permission_denied("etcdserver: permission denied"), 403),
            (Status::out_of_range("etcdserver: mvcc: required revision has been compacted"), 410),
            (Status::out_of_range("etcdserver: mvcc: required revision is a future revision"), 400),
            (Status::out_of_range("Error, decoded message length too large: found 9 bytes"), 413),
            (Status::resource_exhausted("etcdserver: too many requests"), 429),
            (Status::unavailable("etcdserver: no leader"), 503),
            (Status::internal("?"), 503),
        ] {
            assert_eq!(Failure::from(&status).status.as_u16(), want, "{status:?}");
        }
        for (reason, want) in [
            ("etcdserver: permission denied".to_owned(), 403),
            ("rpc error: code = PermissionDenied desc = etcdserver: permission denied".to_owned(), 403),
            ("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token".to_owned(), 401),
            ("etcd-relay: etcd no longer accepts this stream's token: etcdserver: invalid auth token".to_owned(), 401),
            (NoFeed::Denied.to_string(), 403),
            (NoFeed::Limit.to_string(), 503),
            (NoFeed::ClientBytes.to_string(), 429),
            (SubscribeError::ClientFull.to_string(), 429),
            (format!("{TOO_LARGE} for etcd to be asked (9 bytes)"), 413),
            ("anything else".to_owned(), 503),
        ] {
            assert_eq!(Failure::of_watch(&reason).status.as_u16(), want, "{reason}");
        }
    }

    #[test]
    fn an_error_is_json_whatever_its_text() {
        let (response, _) = Failure::unavailable("a \"quote\"\r\nand a line").response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let KeysBody::Whole(Some(mut body)) = response.into_body() else { panic!("no body") };
        let json: serde_json::Value = serde_json::from_slice(&body.copy_to_bytes(body.remaining())).expect("JSON");
        assert_eq!(json["error"], "a \"quote\"\r\nand a line");
    }
}
