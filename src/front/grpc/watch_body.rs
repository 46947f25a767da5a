//! [`WatchBody`]: the response side of a watch stream, an HTTP/2 body that takes its frames straight from a stream: gRPC
//! messages, or lines of JSON.
//!
//! Polled by the connection when the client has room for more, which is what lets a slow client park its watches.
//! Always holds: dropping the body, for whatever reason, takes the stream's watches out of the hub.

use std::{
    cell::Cell,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
};

use bytes::Buf as _;
use http_body::Frame;
use metrics::{Gauge, gauge};
use tonic::Status;

use super::{etcd::Listed, pieces::Pieces, reply::trailers, responses};
use crate::{
    front::gateway::Lines,
    hub::{Delivery, Drained, StreamEnd, WatchStream},
    telemetry::{delivered, names},
};

/// About how many event bytes go into one frame. Larger frames save little; smaller ones keep other streams waiting less.
const FRAME_BYTES: usize = 64 << 10;

static STREAMS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::WATCH_STREAMS));

/// Deliveries for which a thread keeps room.
const BATCH_KEPT: usize = 64;

thread_local! {
    /// Where deliveries are for the moment between queue and frame: in a place that all streams of a thread share, so that it is
    /// not fetched anew for each.
    static BATCH: Cell<Vec<Delivery>> = const { Cell::new(Vec::new()) };
}

/// See the module.
#[derive(Debug)]
pub struct WatchBody {
    stream: Arc<WatchStream>,
    ended: bool,
    /// Where responses are to be lines of JSON. In a box, since few are.
    lines: Option<Box<Lines>>,
    _listed: Option<Listed>,
}

impl WatchBody {
    /// The body of the stream that writes into `stream`; where `lines` says so, as lines of JSON.
    pub(super) fn new(stream: Arc<WatchStream>, lines: Option<Lines>, listed: Option<Listed>) -> Self {
        STREAMS.increment(1.0);
        Self { stream, ended: false, lines: lines.map(Box::new), _listed: listed }
    }
}

impl WatchBody {
    /// The bytes of a batch, which it empties, counted.
    fn write(&self, batch: &mut Vec<Delivery>) -> Pieces {
        // The oldest of the frame has waited longest. A client that asks for the past does not wait for it.
        let waited = batch.iter().find_map(|delivery| match delivery {
            Delivery::Events { payload, from, replay: false, .. } => {
                payload.received(*from as usize).map(|received| received.elapsed())
            }
            _ => None,
        });
        let (pieces, written) = match &self.lines {
            None => responses::write(batch),
            Some(lines) => responses::write_lines(batch, lines),
        };
        if let Some(waited) = waited {
            delivered::count_lag(waited);
        }
        delivered::count(written.responses, written.events, pieces.remaining() as u64);
        pieces
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
        let mut batch = BATCH.take();
        let drained = this.stream.poll_drain(cx, &mut batch, FRAME_BYTES);
        let data = match &drained {
            Poll::Ready(Drained::Some) => Some(this.write(&mut batch)),
            Poll::Ready(Drained::End(_)) | Poll::Pending => None,
        };
        batch.shrink_to(BATCH_KEPT);
        BATCH.set(batch);
        match drained {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Drained::End(end)) => {
                this.ended = true;
                Poll::Ready(Some(Ok(Frame::trailers(trailers(&status(end))))))
            }
            Poll::Ready(Drained::Some) => Poll::Ready(data.map(|data| Ok(Frame::data(data)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

impl Drop for WatchBody {
    fn drop(&mut self) {
        self.stream.leave();
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
