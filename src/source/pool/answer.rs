//! [`Answer`]: the body of a member's answer, whichever client made the call.
//!
//! Always holds: an answer keeps its place on the connection until it has ended or is dropped, and a call whose answer
//! is dropped is reset.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::body::Body;

use super::{CallError, Place, request::Guard};
use crate::http2::client::Call;

/// A member's answer; see the module.
pub(in crate::source) struct Answer {
    inner: Incoming,
    _place: Place,
}

/// The two clients' bodies.
pub(super) enum Incoming {
    Stream { body: hyper::body::Incoming, _guard: Guard },
    Call(Call<Body>),
}

impl Answer {
    pub(super) fn new(inner: Incoming, place: Place) -> Self {
        Self { inner, _place: place }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        match &mut self.inner {
            Incoming::Stream { body, .. } => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Incoming::Call(call) => Pin::new(call).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Incoming::Stream { body, .. } => body.is_end_stream(),
            Incoming::Call(call) => call.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Incoming::Stream { body, .. } => body.size_hint(),
            Incoming::Call(call) => call.size_hint(),
        }
    }
}
