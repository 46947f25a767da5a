//! The answer of a forwarded call, and how the call ended.
//!
//! Always holds: bytes pass as they come, under the flow control of both connections; when the answer is dropped, the
//! request ends with a reset (`pool::Answer`); a call is counted once.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::Reason;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status};

use super::{clients::Counted, status};
use crate::{
    source::{Members, causes::chain, pool::Answer},
    telemetry::names::{Outcome, Service},
};

/// A running call. If it is dropped without [`Call::finish`], the client has gone away.
#[derive(Debug)]
pub(super) struct Call {
    /// `None` for a request of the relay's own, which is not counted.
    service: Option<Service>,
    outcome: Outcome,
    counted: Counted,
}

impl Call {
    pub(super) fn start(service: Option<Service>, counted: Counted) -> Self {
        counted.counts().begin(service);
        Self { service, outcome: Outcome::Canceled, counted }
    }

    /// Records how a call ended that the relay itself answered.
    pub(super) fn finish(mut self, code: Code) {
        self.outcome = if code == Code::Unavailable { Outcome::Unavailable } else { Outcome::Error };
    }

    /// Records how a call ended that the relay was answering itself until then.
    pub(super) fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// Reads the status from the answer's headers or trailers.
    pub(super) fn note(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.outcome = if code.as_bytes() == b"0" { Outcome::Ok } else { Outcome::Error };
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.counted.counts().end(self.service, self.outcome);
    }
}

/// etcd's answer.
pub(super) struct ResponseBody {
    /// `None` once the answer has ended.
    inner: Option<Answer>,
    call: Call,
    /// When to end a call that never ends by itself.
    drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// When to end it because its member is silent and another one answers.
    left: Left,
}

/// Ready when calls that wait for a member should end. Most answers have arrived whole, and do not ask.
enum Left {
    /// The call stays with its member.
    Never,
    Unasked(Members, usize),
    Asked(BoxFuture<'static, ()>),
}

impl Left {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self {
                Self::Never => return Poll::Pending,
                Self::Unasked(members, member) => {
                    let (members, member) = (members.clone(), *member);
                    *self = Self::Asked(Box::pin(async move { members.left(member).await }));
                }
                Self::Asked(left) => {
                    ready!(left.as_mut().poll(cx));
                    *self = Self::Never;
                    return Poll::Ready(());
                }
            }
        }
    }
}

impl ResponseBody {
    pub(super) fn new(
        inner: Answer,
        call: Call,
        drain: Option<CancellationToken>,
        left: Option<(Members, usize)>,
    ) -> Self {
        let left = left.map_or(Left::Never, |(members, member)| Left::Unasked(members, member));
        Self { inner: Some(inner), call, drain: drain.map(|drain| Box::pin(drain.cancelled_owned())), left }
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
                if self.left.poll(cx).is_ready() {
                    return Poll::Ready(self.end(&status::left(), Outcome::Unavailable));
                }
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
                // etcd went away in the middle. A reset would look like an internal error to the client; this status
                // makes it try again.
                None => {
                    let text = format!("etcd-relay lost its connection to etcd: {}", chain(&error));
                    self.end(&Status::unavailable(text), Outcome::Unavailable)
                }
            },
            None => {
                self.inner = None;
                // An answer without a status violates gRPC; the client will report that in its own words.
                if self.call.outcome == Outcome::Canceled {
                    self.call.outcome = Outcome::Error;
                }
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Answer::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        // A call that may be ended early cannot promise a length.
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), |_| SizeHint::default())
    }
}
