//! [`Answer`]: translates the messages of a gRPC answer into JSON, as fast as the client takes them.
//!
//! The head of the HTTP response depends on the first message and is made in `front::gateway`. Always holds: the call
//! is polled only when everything made from it has been taken, so a client that does not read delays only its own call.
//! Each message of a stream is a separate line, sent as soon as it is there, in a frame of its own. Over HTTP/1.1 such
//! a frame becomes a chunk. etcd sends a chunk for each message, and clients such as etcd3gw parse chunk by chunk.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut as _, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status};

use super::{
    Counted,
    encode::{Encoder, Malformed},
    errors,
    schema::{MessageId, Schema},
};
use crate::{
    front::body::{BoxError, PortBody, PortBuf},
    telemetry::names::GatewayOutcome,
};

/// A line up to this length is sent in one piece; a longer one is sent while it is read. Lines are below 3 MiB with
/// etcd's default limits.
const LINE: usize = 4 << 20;

/// A gRPC message begins with a flag and its length.
const PREFIX: usize = 5;

/// The form of the JSON answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One message, which is the whole answer.
    Whole,
    /// Each message is a line, `{"result":…}`.
    Lines,
    /// The messages are already such lines.
    Made,
}

/// See the module.
pub(super) struct Answer<B: http_body::Body> {
    body: PortBody<B>,
    schema: Arc<Schema>,
    message: MessageId,
    form: Form,
    /// Bytes that arrived but were not read yet: less than a head, unless a message is awaited.
    input: BytesMut,
    /// The message that is being translated.
    encoder: Option<Encoder>,
    /// JSON that is not sent yet: less than a line, unless lines are long.
    out: Vec<u8>,
    /// Data that is passed on unchanged.
    made: Option<PortBuf<B::Data>>,
    deadline: Option<Pin<Box<Sleep>>>,
    counted: Counted,
    ended: bool,
}

// Only the body is ever pinned, and it can be moved.
impl<B: http_body::Body + Unpin> Unpin for Answer<B> {}

/// How an answer begins.
pub(super) enum Begin {
    /// With a message.
    Message,
    /// There is no message: the call failed or ended.
    End(Status),
}

impl<B> Answer<B>
where
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Unpin,
{
    pub(super) fn new(
        body: PortBody<B>,
        schema: Arc<Schema>,
        message: MessageId,
        form: Form,
        deadline: Option<Pin<Box<Sleep>>>,
        counted: Counted,
    ) -> Self {
        let (input, encoder, out, made) = (BytesMut::new(), None, Vec::new(), None);
        Self { body, schema, message, form, input, encoder, out, made, deadline, counted, ended: false }
    }

    /// Waits until the beginning of the answer is known.
    pub(super) async fn begin(&mut self) -> Begin {
        std::future::poll_fn(|cx| {
            loop {
                let has = self.made.is_some() || self.input.len() >= PREFIX;
                if has {
                    return Poll::Ready(Begin::Message);
                }
                match std::task::ready!(self.poll_body(cx)) {
                    Came::Data => {}
                    Came::End(status) => return Poll::Ready(Begin::End(status)),
                }
            }
        })
        .await
    }

    /// The whole answer if it is a single message of at most `most` bytes and the call ended well; `None` if it is
    /// longer.
    ///
    /// # Errors
    /// Returns the status if the call failed.
    pub(super) async fn whole(&mut self, most: usize) -> Result<Option<Vec<u8>>, Status> {
        let len = message_len(&self.input);
        if len.is_none_or(|len| len > most) {
            return Ok(None);
        }
        let status = std::future::poll_fn(|cx| {
            loop {
                if let Err(Malformed) = self.write() {
                    return Poll::Ready(Status::internal(Malformed.to_string()));
                }
                match std::task::ready!(self.poll_body(cx)) {
                    Came::Data => {}
                    Came::End(status) => return Poll::Ready(status),
                }
            }
        })
        .await;
        if status.code() != Code::Ok {
            return Err(status);
        }
        if self.encoder.is_some() {
            return Err(Status::unavailable("etcd-relay: the answer ended too early"));
        }
        self.counted.end(GatewayOutcome::Ok);
        Ok(Some(std::mem::take(&mut self.out)))
    }

    fn is_late(&self) -> bool {
        self.deadline.as_ref().is_some_and(|deadline| deadline.deadline() <= Instant::now())
    }

    /// Counts the outcome of the call.
    pub(super) fn count(&mut self, outcome: GatewayOutcome) {
        self.counted.end(outcome);
    }

    /// Reads more of the call's answer.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(None) => {
                    return Poll::Ready(Came::End(Status::unknown("etcd-relay: the answer has no status")));
                }
                // etcd also ends a call whose time is over, and may be earlier than the timer below.
                Poll::Ready(Some(Err(_))) if self.is_late() => {
                    return Poll::Ready(Came::End(Status::deadline_exceeded(DEADLINE)));
                }
                Poll::Ready(Some(Err(error))) => {
                    let error: BoxError = error;
                    return Poll::Ready(Came::End(Status::unavailable(format!(
                        "etcd-relay: the answer ended too early: {error}"
                    ))));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.has_remaining() => {}
                    Ok(data) if self.form == Form::Made => {
                        self.made = Some(data);
                        return Poll::Ready(Came::Data);
                    }
                    Ok(data) => {
                        self.input.put(data);
                        return Poll::Ready(Came::Data);
                    }
                    Err(frame) => {
                        return Poll::Ready(Came::End(status_of(&frame.into_trailers().unwrap_or_default())));
                    }
                },
            }
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Came::End(Status::deadline_exceeded(DEADLINE)));
        }
        Poll::Pending
    }

    /// Translates as much as possible of the data that has arrived, but at most up to the end of a line. Returns
    /// whether the result is to be sent.
    fn write(&mut self) -> Result<bool, Malformed> {
        let out = &mut self.out;
        let most = if self.form == Form::Lines { LINE } else { 0 };
        loop {
            let Some(encoder) = &mut self.encoder else {
                let Some(len) = message_len(&self.input) else { return Ok(out.len() > most) };
                if self.input[0] != 0 {
                    // The request did not allow compressed answers.
                    return Err(Malformed);
                }
                self.input.advance(PREFIX);
                if self.form == Form::Lines {
                    out.extend_from_slice(b"{\"result\":");
                }
                self.encoder = Some(Encoder::new(self.schema.clone(), self.message, len as u64, out));
                continue;
            };
            let taken = encoder.feed(&self.input, out)?;
            self.input.advance(taken);
            if !encoder.is_over() {
                return Ok(out.len() > most);
            }
            self.encoder = None;
            if self.form == Form::Lines {
                out.extend_from_slice(b"}\n");
                return Ok(true);
            }
        }
    }

    /// Ends the answer.
    fn end(&mut self, status: &Status) -> Option<Result<Vec<u8>, BoxError>> {
        self.ended = true;
        let broken = self.encoder.is_some();
        if status.code() == Code::Ok && !broken {
            self.counted.end(GatewayOutcome::Ok);
            return None;
        }
        self.counted.end(GatewayOutcome::Error);
        if self.form == Form::Whole || broken {
            // The answer is incomplete, and the client must notice that.
            return Some(Err(status.message().into()));
        }
        Some(Ok(errors::in_stream(status)))
    }
}

/// Go's text, which grpc-gateway sends when a call times out.
pub(super) const DEADLINE: &str = "context deadline exceeded";

enum Came {
    Data,
    End(Status),
}

impl<B> http_body::Body for Answer<B>
where
    B: http_body::Body<Data: Send, Error: Into<BoxError>> + Unpin,
{
    type Data = PortBuf<B::Data>;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, BoxError>>> {
        let this = self.get_mut();
        loop {
            if this.ended {
                return Poll::Ready(None);
            }
            if let Some(made) = this.made.take() {
                return Poll::Ready(Some(Ok(Frame::data(made))));
            }
            match this.write() {
                Err(malformed) => {
                    this.ended = true;
                    this.counted.end(GatewayOutcome::Error);
                    return Poll::Ready(Some(Err(malformed.into())));
                }
                Ok(true) => return Poll::Ready(Some(Ok(frame(std::mem::take(&mut this.out))))),
                Ok(false) => {}
            }
            match std::task::ready!(this.poll_body(cx)) {
                Came::Data => {}
                Came::End(status) => {
                    let last = this.end(&status);
                    return Poll::Ready(last.map(|last| last.map(frame)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

fn frame<D>(json: Vec<u8>) -> Frame<PortBuf<D>> {
    Frame::data(PortBuf::Plain(json.into()))
}

/// The length of the message at the beginning of `input`.
fn message_len(input: &[u8]) -> Option<usize> {
    let prefix = input.get(..PREFIX)?;
    let len: [u8; 4] = prefix[1..].try_into().ok()?;
    usize::try_from(u32::from_be_bytes(len)).ok()
}

/// The status in a call's trailers or head.
pub(super) fn status_of(fields: &HeaderMap) -> Status {
    Status::from_header_map(fields).unwrap_or_else(|| Status::unknown("etcd-relay: the answer has no status"))
}
