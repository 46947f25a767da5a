//! Answers of one message or none: their head, their body, and errors for unreadable requests.
//!
//! Used for calls that the relay answers without tonic's server, so that shared bytes are sent as they are.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tonic::Status;

use super::{
    pieces::{Pieces, Writer},
    range::Rest,
};

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const OK: HeaderValue = HeaderValue::from_static("0");
/// The ASCII characters that gRPC requires to be encoded in the text of a status.
const ENCODED: AsciiSet = CONTROLS.add(b'%');

/// The body of such an answer.
#[derive(Debug, Default)]
pub struct Reply {
    message: Option<Pieces>,
    /// The part of the message that is not made yet.
    rest: Option<Box<Rest>>,
    /// Whether the status OK is still to be sent.
    ends_ok: bool,
}

impl Reply {
    /// One gRPC message with its prefix, followed by the status OK.
    pub(super) fn ok(message: Pieces) -> Self {
        Self { message: Some(message), rest: None, ends_ok: true }
    }

    /// One gRPC message with its prefix, begun in `writer` and completed as it is taken, followed by the status OK.
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

    /// Reports when little or no more data comes: then the rest is sent at once, and the end need not wait for room.
    fn size_hint(&self) -> SizeHint {
        let message = self.message.as_ref().map_or(0, |message| message.remaining() as u64);
        match self.rest.as_ref().map_or(Some(0), |rest| rest.len()) {
            Some(rest) => SizeHint::with_exact(message + rest),
            None => SizeHint::default(),
        }
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

/// The trailers that end a gRPC response with this status.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    if status.add_header(&mut trailers).is_err() {
        // The text cannot be sent in a header, but the code matters most.
        trailers.insert(GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    spell(&mut trailers, status.message());
    trailers
}

/// Writes the text of a status like etcd: it is encoded only if gRPC requires it, so that it is readable without a gRPC
/// client.
pub(in crate::front) fn spell(headers: &mut HeaderMap, message: &str) {
    let encoded = utf8_percent_encode(message, &ENCODED).to_string();
    if let (Some(value), Ok(spelled)) = (headers.get_mut(GRPC_MESSAGE), HeaderValue::from_str(&encoded)) {
        *value = spelled;
    }
}

/// Reads the whole body of a request, of at most `most` bytes. A body of one buffer, as nearly all are, is passed on as
/// it is.
///
/// # Errors
/// Returns the status to refuse it with if it is larger or ends too early.
pub(super) async fn read<B>(mut body: B, most: usize) -> Result<Bytes, Status>
where
    B: http_body::Body<Data = Bytes, Error: fmt::Display> + Unpin,
{
    let mut read = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Status::unavailable(format!("etcd-relay: the request ended too early: {error}")))?
            .into_data();
        // Trailers of requests have no meaning.
        let Ok(data) = frame else { continue };
        if read.len() + joined.len() + data.len() > most {
            let text = format!("etcd-relay: the request is larger than {most} bytes");
            return Err(Status::resource_exhausted(text));
        }
        if read.is_empty() && joined.is_empty() {
            read = data;
        } else {
            joined.extend_from_slice(&std::mem::take(&mut read));
            joined.extend_from_slice(&data);
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(if joined.is_empty() { read } else { joined.freeze() })
}

/// Refuses compressed requests; `what` names them in the error.
///
/// # Errors
/// Returns the status of the refusal.
pub(super) fn refuse_compressed(headers: &HeaderMap, what: &str) -> Result<(), Status> {
    // Checks all of them, because readers may differ in which one they use.
    match headers.get_all("grpc-encoding").iter().find(|encoding| *encoding != "identity") {
        None => Ok(()),
        Some(encoding) => Err(Status::unimplemented(format!(
            "etcd-relay: {what} compressed with {encoding:?} are not supported; send them plain"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, StreamBody};

    use super::*;
    use crate::front::grpc::pieces::MAX_REQUEST;

    async fn read_in(parts: &[usize]) -> Result<Bytes, Status> {
        let frames: Vec<Result<_, Infallible>> =
            parts.iter().map(|len| Ok(Frame::data(Bytes::from(vec![*len as u8; *len])))).collect();
        read(StreamBody::new(futures_util::stream::iter(frames)), MAX_REQUEST).await
    }

    #[test]
    fn the_text_of_a_status_is_encoded_no_more_than_grpc_demands() {
        for (text, spelled) in [
            (
                "etcd-relay: no snapshot of [\"/a\", \"/b\") yet; try again?",
                "etcd-relay: no snapshot of [\"/a\", \"/b\") yet; try again?",
            ),
            ("100 %\n\u{7f}é", "100 %25%0A%7F%C3%A9"),
            ("", ""),
        ] {
            let trailers = trailers(&Status::unavailable(text));
            let told = trailers.get(GRPC_MESSAGE).map_or("", |value| value.to_str().expect("ASCII"));
            assert_eq!((told, Status::from_header_map(&trailers).expect("a status").message()), (spelled, text));
        }
    }

    #[tokio::test]
    async fn a_request_is_read_whole_however_it_comes() {
        assert_eq!(read_in(&[]).await.expect("read"), "");
        assert_eq!(read_in(&[0, 3, 0, 2]).await.expect("read"), [3, 3, 3, 2, 2][..]);
        let whole = Bytes::from(vec![1; 100]);
        assert_eq!(
            read(Full::new(whole.clone()), MAX_REQUEST).await.expect("read").as_ptr(),
            whole.as_ptr(),
            "not copied"
        );
    }

    #[tokio::test]
    async fn a_request_that_is_too_large_is_refused() {
        assert_eq!(read_in(&[MAX_REQUEST - 1, 1]).await.expect("read").len(), MAX_REQUEST);
        assert_eq!(read_in(&[MAX_REQUEST, 1]).await.expect_err("refused").code(), tonic::Code::ResourceExhausted);
    }
}
