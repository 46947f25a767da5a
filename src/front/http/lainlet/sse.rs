//! [`SseBody`]: a view as a stream of server-sent events.
//!
//! The connection polls it when the client has taken the previous data, so the subscription skips versions that a slow
//! client misses. Always holds: only the line with an event's number belongs to the stream; all clients share the rest.
//! Numbers count the events of the stream from 1. An error is the last event and has number 0.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{InProgress, counted::OpenStream};
use crate::{
    front::pieces::{Pieces, SHARE_FROM},
    view::{Kind, Parts, Subscription, Version},
};

const HEARTBEAT: &[u8] = b"id: 0\nevent: heartbeat\n\n";

/// The text for a stream whose view has failed and is being read again.
pub(super) const READ_ANEW: &str = "etcd-relay: the view is being read again; retry";

/// See the module.
#[derive(Debug)]
pub struct SseBody {
    /// Taken from the subscription before the head was sent.
    first: Option<Arc<Version>>,
    /// `None` once the stream has ended.
    subscription: Option<Subscription>,
    sent: u64,
    heartbeat: Option<Heartbeat>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    open: (OpenStream, InProgress),
}

impl SseBody {
    /// Sends `first`, then the versions of `subscription`, until `stop` is cancelled, with a heartbeat after each
    /// `heartbeat`.
    pub(super) fn new(
        first: Arc<Version>,
        subscription: Subscription,
        heartbeat: Option<Duration>,
        stop: CancellationToken,
        open: (OpenStream, InProgress),
    ) -> Self {
        Self {
            first: Some(first),
            subscription: Some(subscription),
            sent: 0,
            heartbeat: heartbeat.map(|every| Heartbeat { every, next: Box::pin(sleep(every)) }),
            stop: Box::pin(stop.cancelled_owned()),
            open,
        }
    }

    fn event(&mut self, version: &Version, is_first: bool) -> Pieces {
        match &version.body {
            Ok(payload) => {
                self.sent += 1;
                let kind = if is_first { Kind::Init } else { version.kind };
                let event = numbered(self.sent, payload.frame(kind));
                self.open.0.sent(event.remaining(), (!is_first).then_some(version.received));
                event
            }
            Err(failure) => {
                self.subscription = None;
                error(&failure.to_string())
            }
        }
    }
}

impl http_body::Body for SseBody {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        let this = &mut *self;
        let event = if let Some(first) = this.first.take() {
            this.event(&first, true)
        } else if this.stop.as_mut().poll(cx).is_ready() {
            this.subscription = None;
            return Poll::Ready(None);
        } else {
            let Some(subscription) = &mut this.subscription else { return Poll::Ready(None) };
            match subscription.poll_next(cx) {
                Poll::Ready(Some(version)) => this.event(&version, false),
                Poll::Ready(None) => {
                    this.subscription = None;
                    error(READ_ANEW)
                }
                Poll::Pending if this.heartbeat.as_mut().is_some_and(|heartbeat| heartbeat.poll_due(cx)) => {
                    Bytes::from_static(HEARTBEAT).into()
                }
                Poll::Pending => return Poll::Pending,
            }
        };
        Poll::Ready(Some(Ok(Frame::data(event))))
    }

    fn is_end_stream(&self) -> bool {
        self.subscription.is_none()
    }
}

/// The timer of the next heartbeat.
#[derive(Debug)]
struct Heartbeat {
    every: Duration,
    next: Pin<Box<Sleep>>,
}

impl Heartbeat {
    fn poll_due(&mut self, cx: &mut Context<'_>) -> bool {
        let due = self.next.as_mut().poll(cx).is_ready();
        if due {
            // Heartbeats that a client missed because it did not read are not sent later.
            let missed = self.next.deadline() + self.every <= Instant::now();
            let last = if missed { Instant::now() } else { self.next.deadline() };
            self.next.as_mut().reset(last + self.every);
        }
        due
    }
}

/// The event with this number, whose other lines are `rest`.
fn numbered(number: u64, rest: &Parts) -> Pieces {
    let number = number.to_string();
    let own = number.len() + 5;
    let copied = if rest.len() < SHARE_FROM { rest.len() } else { 0 };
    let mut line = Vec::with_capacity(own + copied);
    line.extend_from_slice(b"id: ");
    line.extend_from_slice(number.as_bytes());
    line.push(b'\n');
    if copied > 0 {
        rest.pieces().iter().for_each(|piece| line.extend_from_slice(piece));
        return Bytes::from(line).into();
    }
    let mut event = Pieces::from(Bytes::from(line));
    event.extend(rest);
    event
}

/// The event with the reason why the stream ends.
pub(super) fn error(text: &str) -> Pieces {
    // Clients take each line of data as a separate event.
    let text = text.replace(['\r', '\n'], " ");
    Bytes::from(format!("id: 0\nevent: error\ndata: {text}\n\n")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(mut pieces: Pieces) -> String {
        String::from_utf8(pieces.copy_to_bytes(pieces.remaining()).to_vec()).expect("text")
    }

    #[test]
    fn an_error_is_one_line_whatever_its_text() {
        assert_eq!(text(error("a\nb\r\nc")), "id: 0\nevent: error\ndata: a b  c\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_come_at_even_times_and_missed_ones_are_left_out() {
        let every = Duration::from_secs(5);
        let mut heartbeat = Heartbeat { every, next: Box::pin(sleep(every)) };
        let begun = Instant::now();
        let mut due = async || {
            std::future::poll_fn(|cx| if heartbeat.poll_due(cx) { Poll::Ready(()) } else { Poll::Pending }).await
        };
        due().await;
        assert_eq!(begun.elapsed().as_secs(), 5);
        tokio::time::advance(Duration::from_secs(7)).await;
        due().await;
        assert_eq!(begun.elapsed().as_secs(), 12, "a late heartbeat is sent at once");
        due().await;
        assert_eq!(begun.elapsed().as_secs(), 15, "the next one comes at its regular time");
        tokio::time::advance(Duration::from_secs(30)).await;
        due().await;
        due().await;
        assert_eq!(begun.elapsed().as_secs(), 50, "after a long pause one heartbeat is sent, not all that were missed");
    }
}
