//! Answers that are one message, or none: their head, their body, and the words for requests that cannot be read.
//!
//! For calls that the relay answers itself, past tonic's server, so that shared bytes are sent as they are.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited};
use tonic::Status;

use super::pieces::{MAX_REQUEST, Pieces};
use crate::front::body::RequestBody;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// The body of such an answer.
#[derive(Debug, Default)]
pub struct Reply {
    message: Option<Pieces>,
    trailers: Option<HeaderMap>,
}

impl Reply {
    /// One gRPC message with its prefix, then the status OK.
    pub(super) fn ok(message: Pieces) -> Self {
        Self { message: Some(message), trailers: Some(trailers(&Status::ok(""))) }
    }
}

impl http_body::Body for Reply {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        let data = self.message.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.trailers.is_none()
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
        trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
    }
    trailers
}

/// All of a request's body, of a bounded size.
///
/// # Errors
/// The status to refuse it with, where it is larger or breaks off.
pub(super) async fn read(body: RequestBody) -> Result<Bytes, Status> {
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
