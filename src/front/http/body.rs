//! [`HttpBody`]: the body of answers from the HTTP port's own handlers.
//!
//! Always holds: buffers reach the connection as they are, like in `front::body`.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};

use super::{keys::KeysBody, lainlet::LainletBody};
use crate::front::pieces::Pieces;

/// See the module.
#[derive(Debug)]
pub enum HttpBody {
    /// An answer of Lainlet's API.
    Lainlet(LainletBody),
    /// Keys.
    Keys(KeysBody),
}

impl Body for HttpBody {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        match self.get_mut() {
            Self::Lainlet(body) => Pin::new(body).poll_frame(cx),
            Self::Keys(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Lainlet(body) => body.is_end_stream(),
            Self::Keys(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Lainlet(body) => body.size_hint(),
            Self::Keys(body) => body.size_hint(),
        }
    }
}
