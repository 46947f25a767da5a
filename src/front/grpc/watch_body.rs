//! [`WatchBody`]: the response side of a watch stream, an HTTP/2 body that takes its frames straight from an outbox.
//!
//! Polled by the connection when the client has room for more, which is what lets a slow client park its watches.
//! Always holds: dropping the body, for whatever reason, takes the stream's watches out of the hub.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
};

use bytes::Buf as _;
use http_body::Frame;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tonic::Status;

use super::{etcd::Listed, pieces::Pieces, reply::trailers, responses};
use crate::{
    hub::{Delivery, Drained, Outbox, StreamEnd},
    telemetry::names,
    types::UpstreamHeader,
};

/// About how many event bytes go into one frame. Larger frames save little; smaller ones keep other streams waiting less.
const FRAME_BYTES: usize = 64 << 10;

static STREAMS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::WATCH_STREAMS));
static RESPONSES: LazyLock<Counter> = LazyLock::new(|| counter!(names::RESPONSES_DELIVERED));
static EVENTS: LazyLock<Counter> = LazyLock::new(|| counter!(names::EVENTS_DELIVERED));
static BYTES: LazyLock<Counter> = LazyLock::new(|| counter!(names::BYTES_DELIVERED));
static LAG: LazyLock<Histogram> = LazyLock::new(|| histogram!(names::DELIVERY_LAG_SECONDS));

/// See the module.
#[derive(Debug)]
pub struct WatchBody {
    outbox: Arc<Outbox>,
    header: Arc<UpstreamHeader>,
    batch: Vec<Delivery>,
    ended: bool,
    _listed: Option<Listed>,
}

impl WatchBody {
    /// The body of the stream that writes into `outbox`.
    pub(super) fn new(outbox: Arc<Outbox>, header: Arc<UpstreamHeader>, listed: Option<Listed>) -> Self {
        STREAMS.increment(1.0);
        Self { outbox, header, batch: Vec::new(), ended: false, _listed: listed }
    }
}

impl http_body::Body for WatchBody {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        match this.outbox.poll_drain(cx, &mut this.batch, FRAME_BYTES) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Drained::Some) => {
                // The oldest of the frame has waited longest. A client that asks for the past does not wait for it.
                let waited = this.batch.iter().find_map(|delivery| match delivery {
                    Delivery::Events { payload, from, replay: false, .. } => {
                        payload.received(*from as usize).map(|received| received.elapsed())
                    }
                    _ => None,
                });
                let (pieces, written) = responses::write(&mut this.batch, &this.header);
                if let Some(waited) = waited {
                    LAG.record(waited.as_secs_f64());
                }
                EVENTS.increment(written.events);
                RESPONSES.increment(written.responses);
                BYTES.increment(pieces.remaining() as u64);
                Poll::Ready(Some(Ok(Frame::data(pieces))))
            }
            Poll::Ready(Drained::End(end)) => {
                this.ended = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers(&status(end))))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

impl Drop for WatchBody {
    fn drop(&mut self) {
        self.outbox.leave();
        STREAMS.decrement(1.0);
    }
}

/// etcd's words for the end of a stream, so that its clients do what they do with etcd: resume elsewhere, or give up.
fn status(end: StreamEnd) -> Status {
    match end {
        StreamEnd::Stopping => Status::unavailable("etcdserver: server stopped"),
        StreamEnd::NoLeader => Status::unavailable("etcdserver: no leader"),
        StreamEnd::Unavailable(text) => Status::unavailable(text),
        StreamEnd::Malformed(text) => Status::internal(text),
        StreamEnd::TooLarge(text) => Status::resource_exhausted(text),
    }
}
