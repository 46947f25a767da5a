//! [`WatchBody`]: the response stream of a `Watch`: a complete reply first, and another one whenever the view changes.
//!
//! The connection polls it when the client has room, so the subscription skips versions that a slow client misses.
//! Always holds: it never ends with OK. Lainlet did that when its source stopped, which here means that the relay stops
//! or the view is read again. A client that takes OK for a normal end would not come back. After `Unavailable` it tries
//! again, possibly at another relay.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
};

use bytes::Buf as _;
use http_body::Frame;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use super::answer;
use crate::{
    front::grpc::{pieces::Pieces, reply::trailers},
    telemetry::names::{self, Transport},
    view::{Subscription, Version},
};

const GRPC: &str = Transport::Grpc.as_str();
static STREAMS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::VIEW_STREAMS, Transport::LABEL => GRPC));
static MESSAGES: LazyLock<Counter> = LazyLock::new(|| counter!(names::VIEW_MESSAGES, Transport::LABEL => GRPC));
static BYTES: LazyLock<Counter> = LazyLock::new(|| counter!(names::VIEW_MESSAGE_BYTES, Transport::LABEL => GRPC));
static LAG: LazyLock<Histogram> = LazyLock::new(|| histogram!(names::VIEW_LAG_SECONDS));

/// See the module.
#[derive(Debug)]
pub struct WatchBody {
    /// Taken from the subscription before the head of the response was sent.
    first: Option<Arc<Version>>,
    /// `None` once the stream has ended.
    subscription: Option<Subscription>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl WatchBody {
    /// Sends `first`, then the versions of `subscription`, until `stop` is cancelled.
    pub(super) fn new(first: Arc<Version>, subscription: Subscription, stop: CancellationToken) -> Self {
        STREAMS.increment(1.0);
        Self { first: Some(first), subscription: Some(subscription), stop: Box::pin(stop.cancelled_owned()) }
    }

    /// The next message. Only changes during the stream are measured for their delay.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Pieces, Status>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(answer::message(&first));
        }
        if self.stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(Status::unavailable("etcd-relay: the relay is stopping")));
        }
        let Some(subscription) = &mut self.subscription else { return Poll::Ready(Err(ended())) };
        let Some(version) = ready!(subscription.poll_next(cx)) else { return Poll::Ready(Err(ended())) };
        let message = answer::message(&version);
        if message.is_ok() {
            LAG.record(version.received.elapsed().as_secs_f64());
        }
        Poll::Ready(message)
    }
}

impl http_body::Body for WatchBody {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        if self.subscription.is_none() {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.poll_message(cx)) {
            Ok(message) => {
                MESSAGES.increment(1);
                BYTES.increment(message.remaining() as u64);
                Frame::data(message)
            }
            Err(status) => {
                self.subscription = None;
                Frame::trailers(trailers(&status))
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.subscription.is_none()
    }
}

impl Drop for WatchBody {
    fn drop(&mut self) {
        STREAMS.decrement(1.0);
    }
}

/// The status for a stream whose view has failed and is being read again.
pub(super) fn ended() -> Status {
    Status::unavailable("etcd-relay: the view is being read again; retry")
}
