//! [`Arrivals`]: how far a session has got with the data of its watch requests, and the marks for the rest.
//!
//! The data is counted in bytes: when it arrives, in the connection's task, and when the session's decoder asks for
//! more, and so has decoded all that it was given before. Data that waits together has one mark, as the session handles
//! it together.
//! Always holds: a stream has at most [`MOST`] marks. A stream whose oldest mark is too old to count gets no new ones
//! until its session goes on, so a stream that is stuck, for instance because its client does not read, holds writes up
//! once. When the session ends, its marks go.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Extensions;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Order;
use crate::{
    front::{
        body::{BoxError, RequestBody},
        listen::Connected,
    },
    http2,
};

/// The most marks of a stream. Data beyond that belongs to the last one.
const MOST: usize = 32;
/// The most bytes of waiting data that have one mark. With a thousand creates in them, the session decodes them in
/// about as many steps as data without a mark of its own would take.
const SPAN: u64 = 64 << 10;

/// Marks that are cleared together.
type Marks = SmallVec<[u64; 4]>;

/// A session's part; see the module.
#[derive(Debug)]
pub struct Arrivals {
    shared: Arc<Noted>,
}

/// What the connection, the decoder and the session share.
#[derive(Debug)]
struct Noted {
    order: Arc<Order>,
    /// Bytes that the decoder was given.
    given: AtomicU64,
    /// Bytes of which it has decoded all messages that are complete.
    decoded: AtomicU64,
    spans: Mutex<Spans>,
}

#[derive(Debug, Default)]
struct Spans {
    /// Bytes that have arrived.
    arrived: u64,
    /// Those that the session has not handled.
    open: VecDeque<Span>,
    /// The session has ended.
    over: bool,
}

/// Data with one mark: from `begin` to `end`, counted from the first byte of the body.
#[derive(Debug)]
struct Span {
    mark: u64,
    begin: u64,
    end: u64,
}

/// A body whose data is marked.
#[derive(Debug)]
struct NotedBody {
    body: RequestBody,
    shared: Arc<Noted>,
}

/// Arrivals that a front has noted for the session to which it passes a request on.
#[derive(Clone, Debug)]
struct Noticed(Arc<Mutex<Option<Arrivals>>>);

/// Marks the data of watch requests on the connection in `extensions`. They must be read from the body that is
/// returned.
pub(in crate::front) fn note(extensions: &mut Extensions, body: RequestBody) -> (Option<Arrivals>, RequestBody) {
    if let Some(Noticed(arrivals)) = extensions.remove() {
        return (arrivals.lock().take(), body);
    }
    let Some(Connected { order, .. }) = Connected::of(extensions) else { return (None, body) };
    let (arrivals, body) = marked(order.clone(), body);
    (Some(arrivals), RequestBody::Made(tonic::body::Body::new(body)))
}

/// The same for a front that translates the requests before it passes them on. It must ask for more of the body only
/// when it has passed on all complete requests in what it was given.
pub(in crate::front) fn note_ahead(extensions: &mut Extensions, body: RequestBody) -> RequestBody {
    let (arrivals, body) = note(extensions, body);
    extensions.insert(Noticed(Arc::new(Mutex::new(arrivals))));
    body
}

fn marked(order: Arc<Order>, mut body: RequestBody) -> (Arrivals, NotedBody) {
    order.streams.fetch_add(1, Ordering::AcqRel);
    let shared =
        Arc::new(Noted { order, given: AtomicU64::new(0), decoded: AtomicU64::new(0), spans: Mutex::default() });
    // Over HTTP/1.1, a connection reads no other request before the end of this one.
    if let RequestBody::Http2(body) = &mut body {
        body.tell(shared.clone());
    }
    (Arrivals { shared: shared.clone() }, NotedBody { body, shared })
}

impl Arrivals {
    /// How far the data is decoded.
    pub(in crate::front) fn decoded(&self) -> u64 {
        self.shared.decoded.load(Ordering::Relaxed)
    }

    /// Writes need not wait any more for the requests up to here.
    pub(in crate::front) fn clear(&self, to: u64) {
        let mut spans = self.shared.spans.lock();
        let count = spans.open.iter().take_while(|span| span.end <= to).count();
        if count > 0 {
            let marks: Marks = spans.open.drain(..count).map(|span| span.mark).collect();
            if spans.open.is_empty() {
                // Most streams never get another span.
                spans.open = VecDeque::new();
            }
            drop(spans);
            self.shared.order.clear(marks.into_iter());
        }
    }

    /// The session handles no more requests.
    pub(in crate::front) fn end(&self) {
        let mut spans = self.shared.spans.lock();
        if !std::mem::replace(&mut spans.over, true) {
            let open = std::mem::take(&mut spans.open);
            drop(spans);
            self.shared.order.clear(open.into_iter().map(|span| span.mark));
            self.shared.order.streams.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
impl Arrivals {
    /// One mark, for data of no length.
    pub(in crate::front) fn of_something(order: &Arc<Order>) -> Self {
        let (arrivals, _) = marked(order.clone(), RequestBody::Made(tonic::body::Body::empty()));
        arrivals.shared.spans.lock().open.push_back(Span { mark: order.mark(), begin: 0, end: 0 });
        arrivals
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.end();
    }
}

impl http2::Arrivals for Noted {
    fn arrived(&self, bytes: usize) {
        let mut spans = self.spans.lock();
        if bytes == 0 || spans.over {
            return;
        }
        let begin = spans.arrived;
        let end = begin + bytes as u64;
        spans.arrived = end;
        let is_late = spans.open.front().is_some_and(|span| !self.order.has(span.mark));
        let no_more = is_late || spans.open.len() >= MOST;
        let given = self.given.load(Ordering::Relaxed);
        if let Some(last) = spans.open.back_mut()
            && (no_more || last.end > given && end - last.begin <= SPAN)
        {
            last.end = end;
            return;
        }
        spans.open.push_back(Span { mark: self.order.mark(), begin, end });
    }
}

impl Body for NotedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        // The decoder asks for more only when what it has contains no complete message.
        let given = this.shared.given.load(Ordering::Relaxed);
        this.shared.decoded.store(given, Ordering::Relaxed);
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.shared.given.store(given + data.len() as u64, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;
    use crate::{front::listen::ConnectionId, http2::Arrivals as _};

    fn noted() -> (Arc<Order>, Arrivals) {
        let order = Order::new();
        // Its data is told by hand.
        let (arrivals, _) = marked(order.clone(), RequestBody::Made(tonic::body::Body::empty()));
        (order, arrivals)
    }

    fn marks(arrivals: &Arrivals) -> usize {
        arrivals.shared.spans.lock().open.len()
    }

    #[test]
    fn data_that_waits_together_has_one_mark_until_the_session_has_handled_it() {
        let (order, arrivals) = noted();
        assert!(order.is_used() && !order.is_pending());
        arrivals.shared.arrived(0);
        assert!(!order.is_pending());
        arrivals.shared.arrived(10);
        arrivals.shared.arrived(10);
        assert_eq!(marks(&arrivals), 1);
        arrivals.shared.given.store(20, Ordering::Relaxed);
        arrivals.shared.arrived(5);
        assert_eq!(marks(&arrivals), 2, "what comes while the session handles the rest has its own mark");
        arrivals.clear(19);
        assert_eq!(marks(&arrivals), 2);
        arrivals.clear(20);
        assert!(marks(&arrivals) == 1 && order.is_pending());
        arrivals.clear(25);
        assert!(marks(&arrivals) == 0 && !order.is_pending());
    }

    #[test]
    fn much_data_has_several_marks_but_not_any_number() {
        let (_order, arrivals) = noted();
        for _ in 0..4 * MOST {
            arrivals.shared.arrived(SPAN as usize);
        }
        assert_eq!(marks(&arrivals), MOST);
        arrivals.clear(SPAN);
        assert_eq!(marks(&arrivals), MOST - 1);
        arrivals.clear(4 * MOST as u64 * SPAN);
        assert_eq!(marks(&arrivals), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_stuck_gets_no_new_marks() {
        let (order, arrivals) = noted();
        arrivals.shared.arrived(10);
        order.wait().await;
        arrivals.shared.given.store(10, Ordering::Relaxed);
        arrivals.shared.arrived(10);
        assert!(!order.is_pending(), "no write waits for a stream that is known to be late");
        arrivals.clear(20);
        arrivals.shared.arrived(10);
        assert!(order.is_pending(), "it goes on");
    }

    #[test]
    fn a_session_that_ends_leaves_no_marks() {
        let (order, arrivals) = noted();
        arrivals.shared.arrived(10);
        let shared = arrivals.shared.clone();
        drop(arrivals);
        assert!(!order.is_pending() && !order.is_used());
        shared.arrived(10);
        assert!(!order.is_pending());
    }

    #[tokio::test]
    async fn data_is_decoded_when_the_decoder_asks_for_more() {
        let order = Order::new();
        let message = Full::new(Bytes::from_static(b"a message"));
        let (arrivals, mut body) = marked(order, RequestBody::Made(tonic::body::Body::new(message)));
        assert!(body.frame().await.is_some());
        assert_eq!(arrivals.decoded(), 0);
        assert!(body.frame().await.is_none());
        assert_eq!(arrivals.decoded(), 9);
    }

    #[test]
    fn what_one_front_has_noted_the_next_one_does_not_note_again() {
        let order = Order::new();
        let mut extensions = Extensions::new();
        extensions.insert(Connected::for_tests(ConnectionId(1), "127.0.0.1:1", order.clone()));
        let empty = || RequestBody::Made(tonic::body::Body::empty());
        let body = note_ahead(&mut extensions, empty());
        assert_eq!(order.streams.load(Ordering::Relaxed), 1);
        let (arrivals, _) = note(&mut extensions, body);
        assert!(arrivals.is_some() && order.streams.load(Ordering::Relaxed) == 1);
        drop(arrivals);
        assert!(!order.is_used());
        drop(note_ahead(&mut extensions, empty()));
        assert!(order.is_used());
        drop(extensions);
        assert!(!order.is_used(), "the call was refused before a session began");
    }
}
