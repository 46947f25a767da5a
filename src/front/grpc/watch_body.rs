//! [`WatchBody`]: the response side of a watch stream. It is an HTTP/2 body that takes its frames directly from a
//! stream, as gRPC messages or as lines of JSON.
//!
//! The connection polls it when the client has room. This is how the watches of a slow client get parked. Always holds:
//! dropping the body, for whatever reason, removes the stream's watches from the hub.

use std::{
    cell::Cell,
    collections::VecDeque,
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

/// Approximate number of event bytes in a frame. Larger frames save little; smaller ones let other streams wait less.
const FRAME_BYTES: usize = 64 << 10;

static STREAMS: LazyLock<Gauge> = LazyLock::new(|| gauge!(names::WATCH_STREAMS));

/// Number of deliveries for which a thread keeps memory.
const BATCH_KEPT: usize = 64;

thread_local! {
    /// Holds deliveries between the queue and the frame. All streams of a thread share it, so that its memory stays in
    /// the cache.
    static BATCH: Cell<Vec<Delivery>> = const { Cell::new(Vec::new()) };
}

/// See the module.
#[derive(Debug)]
pub struct WatchBody {
    stream: Arc<WatchStream>,
    ended: bool,
    /// Set if the responses are lines of JSON. Boxed, because few are.
    lines: Option<Box<LineByLine>>,
    _listed: Option<Listed>,
}

/// Responses as lines of JSON. Each is a frame of its own, as etcd sends each as a chunk of its own over HTTP/1.1.
#[derive(Debug)]
struct LineByLine {
    lines: Lines,
    /// Written lines: those of one batch, at most.
    ready: VecDeque<Pieces>,
}

impl WatchBody {
    /// The body for the deliveries of `stream`. If `lines` is given, the responses are lines of JSON.
    pub(super) fn new(stream: Arc<WatchStream>, lines: Option<Lines>, listed: Option<Listed>) -> Self {
        STREAMS.increment(1.0);
        let lines = lines.map(|lines| Box::new(LineByLine { lines, ready: VecDeque::new() }));
        Self { stream, ended: false, lines, _listed: listed }
    }
}

impl WatchBody {
    /// Writes a batch as bytes, counts it and empties it. Returns the first frame.
    fn write(&mut self, batch: &mut Vec<Delivery>) -> Pieces {
        // The oldest delivery of the frame has waited longest. Past events that a client requested do not count as
        // waiting.
        let waited = batch.iter().find_map(|delivery| match delivery {
            Delivery::Events { payload, from, replay: false, .. } => {
                payload.received(*from as usize).map(|received| received.elapsed())
            }
            _ => None,
        });
        let (pieces, bytes, written) = match &mut self.lines {
            None => {
                let (pieces, written) = responses::write(batch);
                let bytes = pieces.remaining();
                (pieces, bytes, written)
            }
            Some(lines) => {
                let (ready, written) = responses::write_lines(batch, &lines.lines);
                lines.ready = ready;
                let bytes = lines.ready.iter().map(Pieces::remaining).sum();
                (lines.ready.pop_front().unwrap_or_default(), bytes, written)
            }
        };
        if let Some(waited) = waited {
            delivered::count_lag(waited);
        }
        delivered::count(written.responses, written.events, bytes as u64);
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
        if let Some(line) = this.lines.as_mut().and_then(|lines| lines.ready.pop_front()) {
            return Poll::Ready(Some(Ok(Frame::data(line))));
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

/// etcd's status for the end of a stream, so that clients react as with etcd: they resume elsewhere or give up.
fn status(end: StreamEnd) -> Status {
    match end {
        StreamEnd::Stopping => Status::unavailable("etcdserver: server stopped"),
        StreamEnd::NoLeader => Status::unavailable("etcdserver: no leader"),
        StreamEnd::Unavailable(text) => Status::unavailable(text),
        StreamEnd::Malformed(text) => Status::internal(text),
        StreamEnd::TooLarge(text) => Status::resource_exhausted(text),
    }
}
