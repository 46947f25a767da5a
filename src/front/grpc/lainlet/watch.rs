//! [`WatchBody`]: the response side of a `Watch`: a whole reply first, and whenever the view shows something else.
//!
//! Polled by the connection when the client has room for more, so what a slow client misses is skipped by the subscription.
//! Always holds: it never ends with OK. Lainlet ended so when its source stopped, which here is the relay's own end: a client
//! that takes OK for the end of all there is would not come back, and one that gets `Unavailable` asks again, elsewhere too.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body::Frame;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use super::answer;
use crate::{
    front::grpc::{pieces::Pieces, reply::trailers},
    view::{Subscription, Version},
};

/// See the module.
#[derive(Debug)]
pub struct WatchBody {
    /// Taken from the subscription before the head was sent.
    first: Option<Arc<Version>>,
    /// Gone when the stream has ended.
    subscription: Option<Subscription>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl WatchBody {
    /// Sends `first`, then what `subscription` gives, until `stop` is done.
    pub(super) fn new(first: Arc<Version>, subscription: Subscription, stop: CancellationToken) -> Self {
        Self { first: Some(first), subscription: Some(subscription), stop: Box::pin(stop.cancelled_owned()) }
    }

    fn end(&mut self, status: &Status) -> Frame<Pieces> {
        self.subscription = None;
        Frame::trailers(trailers(status))
    }
}

impl http_body::Body for WatchBody {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        let this = &mut *self;
        let Some(subscription) = &mut this.subscription else { return Poll::Ready(None) };
        let version = match this.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None if this.stop.as_mut().poll(cx).is_ready() => Poll::Ready(None),
            None => subscription.poll_next(cx),
        };
        version.map(|version| {
            let message = version.map_or_else(|| Err(stopped()), |version| answer::message(&version));
            Some(Ok(message.map_or_else(|status| this.end(&status), Frame::data)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.subscription.is_none()
    }
}

/// Why a stream ends that its client has not ended.
pub(super) fn stopped() -> Status {
    Status::unavailable("etcd-relay: the relay is stopping")
}
