//! [`WatchBody`]: the response side of a `Watch`: a whole reply first, and whenever the view shows something else.
//!
//! Polled by the connection when the client has room for more, so what a slow client misses is skipped by the subscription.
//! Always holds: it never ends with OK. Lainlet ended so when its source stopped, which here is the relay's own end, or a view
//! that is read anew: a client that takes OK for the end of all there is would not come back, and one that gets `Unavailable`
//! asks again, elsewhere too.

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
    /// Taken from the subscription before the head was sent.
    first: Option<Arc<Version>>,
    /// Gone when the stream has ended.
    subscription: Option<Subscription>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl WatchBody {
    /// Sends `first`, then what `subscription` gives, until `stop` is done.
    pub(super) fn new(first: Arc<Version>, subscription: Subscription, stop: CancellationToken) -> Self {
        STREAMS.increment(1.0);
        Self { first: Some(first), subscription: Some(subscription), stop: Box::pin(stop.cancelled_owned()) }
    }

    /// What is to be sent next. Only what changed while the stream was open says how late it comes.
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

/// Why a stream ends whose view has no more to say: it failed, and is read anew.
pub(super) fn ended() -> Status {
    Status::unavailable("etcd-relay: the view is being read anew; ask again")
}
