//! [`RequestBody`]: the body of a call upstream, tied to the call's answer.
//!
//! Always holds: when the guard, which lives with the answer, is dropped, the request ends with a reset.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::Reason;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tonic::body::Body;

/// The body of a request; see the module.
#[derive(Debug)]
pub(super) struct RequestBody {
    inner: Body,
    /// Resolves when the answer is dropped, or when the call is dropped before it has an answer.
    call: oneshot::Receiver<()>,
}

/// Ends the request when it is dropped.
pub(super) type Guard = oneshot::Sender<()>;

impl RequestBody {
    /// Returns the body and the guard that ends it.
    pub(super) fn new(inner: Body) -> (Self, Guard) {
        let (guard, call) = oneshot::channel();
        (Self { inner, call }, guard)
    }

    /// The original body, if nothing of it was sent.
    pub(super) fn into_inner(self) -> Body {
        self.inner
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
