//! [`LainletBody`]: a complete answer, or a stream of events.
//!
//! Always holds: the buffers are those of the views, without a copy.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf as _;
use http_body::{Frame, SizeHint};

use super::sse::SseBody;
use crate::front::pieces::Pieces;

/// The body of answers of Lainlet's HTTP API.
#[derive(Debug)]
pub enum LainletBody {
    /// Complete; `None` once it was given.
    Whole(Option<Pieces>),
    /// Events.
    Events(SseBody),
}

impl LainletBody {
    pub(super) fn whole(pieces: Pieces) -> Self {
        Self::Whole((pieces.remaining() > 0).then_some(pieces))
    }
}

impl http_body::Body for LainletBody {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(pieces) => Poll::Ready(pieces.take().map(|pieces| Ok(Frame::data(pieces)))),
            Self::Events(events) => Pin::new(events).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(pieces) => pieces.is_none(),
            Self::Events(events) => events.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(pieces) => SizeHint::with_exact(pieces.as_ref().map_or(0, |pieces| pieces.remaining() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
