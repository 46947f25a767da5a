//! Heads and bodies of answers: status, content type and `X-Etcd-…`, as in etcd's v2 API.
//!
//! Always holds: what v2 leaves out is left out, and every answer has the headers for browsers.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};

use super::{answer::Refusal, users::Right, waits::Waiter};
use crate::{
    front::{body::BoxError, signal::Listener},
    types::{Header, Revision},
};

static CLUSTER: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
static INDEX: HeaderName = HeaderName::from_static("x-etcd-index");
static RAFT_INDEX: HeaderName = HeaderName::from_static("x-raft-index");
static RAFT_TERM: HeaderName = HeaderName::from_static("x-raft-term");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// Approximate number of header fields in an answer.
const HEADERS: usize = 10;
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// The body of an answer.
#[derive(Debug)]
pub enum V2Body {
    /// Complete; `None` once it was given.
    Whole(Option<Bytes>),
    /// The result of a wait or a stream, as it comes.
    Waiting(Waiting),
}

/// An open wait or stream.
pub struct Waiting {
    waiter: Waiter,
    stop: Listener,
    right: Right,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("waiter", &self.waiter).finish_non_exhaustive()
    }
}

impl V2Body {
    pub(super) fn whole(body: impl Into<Bytes>) -> Self {
        Self::Whole(Some(body.into()).filter(|body| !body.is_empty()))
    }

    pub(super) fn waiting(waiter: Waiter, stop: Listener, right: Right) -> Self {
        Self::Waiting(Waiting { waiter, stop, right })
    }

    /// The length in bytes, if it is known.
    fn len(&self) -> Option<usize> {
        match self {
            Self::Whole(body) => Some(body.as_ref().map_or(0, Bytes::len)),
            Self::Waiting(_) => None,
        }
    }
}

impl http_body::Body for V2Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Self::Waiting(waiting) => waiting.poll(cx).map(|event| event.map(|event| Ok(Frame::data(event)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_none(),
            Self::Waiting(waiting) => waiting.waiter.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.len().map_or_else(SizeHint::default, |len| SizeHint::with_exact(len as u64))
    }
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        // Checked first, since a stream may have something to send each time.
        if self.right.is_lost(cx) {
            return Poll::Ready(None);
        }
        match self.waiter.poll_next(cx) {
            Poll::Ready(event) => Poll::Ready(event.filter(|_| self.right.holds())),
            // When this relay stops, waiting clients come back to another one.
            Poll::Pending => self.stop.poll(cx).map(|()| None),
        }
    }
}

/// An answer of `/v2/keys`.
pub(super) fn of_keys(status: u16, header: &Header, index: Revision, body: V2Body) -> Response<V2Body> {
    let mut response = json(status, body);
    let headers = response.headers_mut();
    put_cluster(headers, header);
    headers.insert(&INDEX, HeaderValue::from(index.get()));
    headers.insert(&RAFT_INDEX, HeaderValue::from(header.revision.get()));
    headers.insert(&RAFT_TERM, HeaderValue::from(header.raft_term));
    response
}

/// An error of `/v2/keys`, with its body.
pub(super) fn of_refusal(header: &Header, refusal: &Refusal, body: Bytes) -> Response<V2Body> {
    let mut response = json(refusal.status(), V2Body::whole(body));
    let headers = response.headers_mut();
    put_cluster(headers, header);
    headers.insert(&INDEX, HeaderValue::from(refusal.index.get()));
    response
}

/// Any answer in JSON.
pub(super) fn json(status: u16, body: V2Body) -> Response<V2Body> {
    of_type(status, JSON, body)
}

/// Any answer in plain text.
pub(super) fn text(status: u16, body: impl Into<Bytes>) -> Response<V2Body> {
    of_type(status, TEXT, V2Body::whole(body))
}

/// An error in the format of Go's library.
pub(super) fn plain_error(status: u16, body: &'static str) -> Response<V2Body> {
    let mut response = text(status, body);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    response
}

/// An error of a path other than keys.
pub(super) fn message(status: u16, message: &str) -> Response<V2Body> {
    let text = serde_json::to_vec(&serde_json::json!({ "message": message })).unwrap_or_default();
    json(status, V2Body::whole(text))
}

/// The answer to a method that a path does not have.
pub(super) fn wrong_method(allowed: &'static str) -> Response<V2Body> {
    let mut response = plain_error(405, "Method Not Allowed\n");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// A status without a body.
pub(super) fn bare(status: u16) -> Response<V2Body> {
    let mut response = Response::new(V2Body::whole(Bytes::new()));
    // Reserves space for all usual headers, so that the map does not grow step by step.
    response.headers_mut().reserve(HEADERS);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

pub(super) fn put_cluster(headers: &mut HeaderMap, header: &Header) {
    if let Ok(id) = HeaderValue::try_from(format!("{:x}", header.cluster_id)) {
        headers.insert(&CLUSTER, id);
    }
}

/// The headers for browsers, on every answer.
pub(super) fn put_cors(headers: &mut HeaderMap) {
    const METHODS: HeaderValue = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
    const NAMES: HeaderValue = HeaderValue::from_static("accept, content-type, authorization");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, NAMES);
}

/// The answer to HEAD, made from the one to GET.
pub(super) fn without_body(mut response: Response<V2Body>) -> Response<V2Body> {
    if let Some(len) = response.body().len() {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    }
    response.map(|_| V2Body::whole(Bytes::new()))
}

fn of_type(status: u16, kind: HeaderValue, body: V2Body) -> Response<V2Body> {
    let mut response = bare(status).map(|_| body);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
