//! The two bodies of a forwarded call, tied together so that the call ends on both sides or on none.
//!
//! Always holds: bytes pass as they come, with the flow control of both connections; when the answer is dropped, the request
//! ends with a reset; a call is counted once.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body};

use super::{Running, count, status};
use crate::{
    source::causes::chain,
    telemetry::names::{Outcome, Service},
};

/// What the client sends.
#[derive(Debug)]
pub(super) struct RequestBody {
    inner: Body,
    /// Ends when the answer, or the call before there is one, is dropped.
    call: oneshot::Receiver<()>,
}

impl RequestBody {
    /// Returns the body and the guard that ends it.
    pub(super) fn new(inner: Body) -> (Self, oneshot::Sender<()>) {
        let (guard, call) = oneshot::channel();
        (Self { inner, call }, guard)
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if Pin::new(&mut self.call).poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Reason::CANCEL.into())));
        }
        // The client's reset or lost connection becomes a reset upstream.
        Pin::new(&mut self.inner).poll_frame(cx).map_err(|_| Reason::CANCEL.into())
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A call that is running. Dropped without [`Call::finish`], the client went away.
#[derive(Debug)]
pub(super) struct Call {
    service: Service,
    outcome: Outcome,
    _guard: oneshot::Sender<()>,
    _running: Running,
}

impl Call {
    pub(super) fn start(service: Service, guard: oneshot::Sender<()>) -> Self {
        Self { service, outcome: Outcome::Canceled, _guard: guard, _running: Running::start() }
    }

    /// Says how the call ended when the relay itself answered.
    pub(super) fn finish(mut self, code: Code) {
        self.outcome = if code == Code::Unavailable { Outcome::Unavailable } else { Outcome::Error };
    }

    /// Notes what the answer's headers or trailers say.
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.outcome = if code.as_bytes() == b"0" { Outcome::Ok } else { Outcome::Error };
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        count(self.service, self.outcome);
    }
}

/// What etcd answers.
pub(super) struct ResponseBody {
    /// Gone when the answer has ended.
    inner: Option<Incoming>,
    call: Call,
    /// For calls that never end by themselves: when to end them.
    drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl ResponseBody {
    pub(super) fn new(head: &HeaderMap, inner: Incoming, mut call: Call, drain: Option<CancellationToken>) -> Self {
        call.note(head);
        Self { inner: Some(inner), call, drain: drain.map(|drain| Box::pin(drain.cancelled_owned())) }
    }

    /// Ends the answer with `status` in its trailers.
    fn end(&mut self, status: &Status, outcome: Outcome) -> Option<Result<Frame<Bytes>, h2::Error>> {
        self.inner = None;
        self.call.outcome = outcome;
        let mut trailers = HeaderMap::new();
        Some(match status.add_header(&mut trailers) {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(_) => Err(Reason::INTERNAL_ERROR.into()),
        })
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if let Some(drain) = &mut self.drain {
                    ready!(drain.as_mut().poll(cx));
                    return Poll::Ready(self.end(&status::stopped(), Outcome::Shutdown));
                }
                return Poll::Pending;
            }
        };
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.note(trailers);
                    self.inner = None;
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => match status::reset(&error) {
                Some(reason) => {
                    self.inner = None;
                    self.call.outcome = Outcome::Error;
                    Some(Err(reason.into()))
                }
                // etcd went away in the middle. A reset would be an internal error to the client; this tells it to go on.
                None => {
                    let text = format!("etcd-relay lost its connection to etcd: {}", chain(&error));
                    self.end(&Status::unavailable(text), Outcome::Unavailable)
                }
            },
            None => {
                self.inner = None;
                // An answer without a status breaks gRPC; the client will say so in its own words.
                if self.call.outcome == Outcome::Canceled {
                    self.call.outcome = Outcome::Error;
                }
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // A call that may be ended early has no length that could be promised.
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), |_| SizeHint::default())
    }
}
