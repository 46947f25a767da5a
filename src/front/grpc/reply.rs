//! Answers that are one message, or none: their head, their body, and the words for requests that cannot be read.
//!
//! For calls that the relay answers itself, past tonic's server, so that shared bytes are sent as they are.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tonic::Status;

use super::{
    pieces::{MAX_REQUEST, Pieces, Writer},
    range::Rest,
};

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");

/// The body of such an answer.
#[derive(Debug, Default)]
pub struct Reply {
    message: Option<Pieces>,
    /// What of the message is still to be made.
    rest: Option<Box<Rest>>,
    /// Whether the status OK is still to come.
    ends_ok: bool,
}

impl Reply {
    /// One gRPC message with its prefix, then the status OK.
    pub(super) fn ok(message: Pieces) -> Self {
        Self { message: Some(message), rest: None, ends_ok: true }
    }

    /// One gRPC message with its prefix, begun in `writer` and made as it is taken, then the status OK.
    pub(super) fn of_parts(mut writer: Writer, mut rest: Rest) -> Self {
        let more = rest.write(&mut writer);
        Self { message: Some(writer.finish()), rest: more.then(|| Box::new(rest)), ends_ok: true }
    }

    fn next_data(&mut self) -> Option<Pieces> {
        if let Some(message) = self.message.take() {
            return Some(message);
        }
        let mut writer = Writer::default();
        if !self.rest.as_mut()?.write(&mut writer) {
            self.rest = None;
        }
        Some(writer.finish())
    }

    fn next_trailers(&mut self) -> Option<HeaderMap> {
        std::mem::take(&mut self.ends_ok).then(|| {
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert(GRPC_STATUS, OK);
            trailers
        })
    }
}

impl http_body::Body for Reply {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        let data = self.next_data().map(Frame::data);
        Poll::Ready(data.or_else(|| self.next_trailers().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.rest.is_none() && !self.ends_ok
    }
}

/// A response with the headers of a gRPC answer.
pub(super) fn respond<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// An error as a response without a message.
pub(super) fn refuse(status: &Status) -> Response<Reply> {
    let mut response = respond(Reply::default());
    response.headers_mut().extend(trailers(status));
    response
}

/// A status as the trailers that end a gRPC response.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    if status.add_header(&mut trailers).is_err() {
        // A text that no header can carry; the code is what counts.
        trailers.insert(GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    trailers
}

/// All of a request's body, of a bounded size.
///
/// # Errors
/// The status to refuse it with, where it is larger or breaks off.
pub(super) async fn read(body: Incoming) -> Result<Bytes, Status> {
    match Limited::new(body, MAX_REQUEST).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Status::resource_exhausted(format!("etcd-relay: the request is larger than {MAX_REQUEST} bytes")))
        }
        Err(error) => Err(Status::unavailable(format!("etcd-relay: the request broke off: {error}"))),
    }
}

/// Refuses compressed requests, named `what`, by name.
///
/// # Errors
/// The status to refuse it with.
pub(super) fn refuse_compressed(headers: &HeaderMap, what: &str) -> Result<(), Status> {
    match headers.get("grpc-encoding").filter(|encoding| *encoding != "identity") {
        None => Ok(()),
        Some(encoding) => Err(Status::unimplemented(format!(
            "etcd-relay: {what} compressed with {encoding:?} are not supported; send them plain"
        ))),
    }
}
