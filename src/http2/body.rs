//! [`Body`]: a request's body for its handler, and [`Feeder`], through which the connection fills it.
//!
//! Most requests are complete before their handler is called; their body is then just bytes. Always holds: the peer may
//! send only as much as the handler has read, so the windows bound what waits here. A dropped body gives back the
//! window of its unread data.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

use super::wake::WakeFlag;

/// Waiting pieces up to this size are joined.
const SMALL: usize = 4 << 10;

/// A request's body; see the module.
#[derive(Debug)]
pub struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Whole(Bytes),
    Arriving(Arc<BodyInner>),
}

#[derive(Debug)]
struct BodyInner {
    state: Mutex<BodyState>,
    /// Set when the peer should be allowed to send more.
    flag: Arc<WakeFlag>,
    report_from: u32,
}

#[derive(Debug, Default)]
struct BodyState {
    data: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    end: Option<Result<(), Reason>>,
    /// Bytes that were read but not yet reported to the peer.
    read: u32,
    /// The handler has dropped the body.
    dropped: bool,
    reader: Option<Waker>,
    arrivals: Option<Arc<dyn Arrivals>>,
}

/// Is told of a body's data when the connection receives it, before anybody can read it. See [`Body::tell`].
pub trait Arrivals: fmt::Debug + Send + Sync {
    /// So many bytes have arrived. Called under the body's lock, so it must not use the body.
    fn arrived(&self, bytes: usize);
}

/// Fills a [`Body`].
#[derive(Debug)]
pub(super) struct Feeder(Arc<BodyInner>);

impl Body {
    /// A body whose data is complete.
    pub(super) fn whole(data: Bytes) -> Self {
        Self(Kind::Whole(data))
    }

    /// A body that begins with `data` and is still arriving. `flag` is set after each `report_from` bytes that are
    /// read.
    pub(super) fn arriving(flag: Arc<WakeFlag>, report_from: u32, data: VecDeque<Bytes>) -> (Feeder, Self) {
        let state = BodyState { data, ..BodyState::default() };
        let shared = Arc::new(BodyInner { state: Mutex::new(state), flag, report_from });
        (Feeder(shared.clone()), Self(Kind::Arriving(shared)))
    }

    /// From now on, `arrivals` is told of this body's data in the connection's task, in the order in which frames of
    /// all streams arrive. What has arrived already is told at once.
    pub fn tell(&mut self, arrivals: Arc<dyn Arrivals>) {
        match &mut self.0 {
            Kind::Whole(data) => arrivals.arrived(data.len()),
            Kind::Arriving(shared) => {
                let mut state = shared.state.lock();
                arrivals.arrived(state.data.iter().map(Bytes::len).sum());
                state.arrivals = Some(arrivals);
            }
        }
    }

    /// Whether the request had arrived whole before its handler was called.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.0, Kind::Whole(_))
    }
}

impl Feeder {
    pub(super) fn push(&self, data: Bytes) {
        let reader = {
            let mut state = self.0.state.lock();
            if state.dropped {
                drop(state);
                self.0.count_read(data.len());
                return;
            }
            if let Some(arrivals) = &state.arrivals {
                arrivals.arrived(data.len());
            }
            join(&mut state.data, data);
            state.reader.take()
        };
        wake(reader);
    }

    /// Marks the end: the body is complete, or the stream was reset.
    pub(super) fn end(&self, trailers: Option<HeaderMap>, end: Result<(), Reason>) {
        let reader = {
            let mut state = self.0.state.lock();
            if state.end.is_none() {
                state.trailers = trailers;
                state.end = Some(end);
            }
            state.reader.take()
        };
        wake(reader);
    }

    /// Takes the count of read bytes if it is large enough to report it to the peer.
    pub(super) fn take_read(&self) -> Option<u32> {
        let mut state = self.0.state.lock();
        (state.read >= self.0.report_from).then(|| std::mem::take(&mut state.read))
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.end(None, Err(Reason::CANCEL));
    }
}

impl BodyInner {
    fn count_read(&self, bytes: usize) {
        let bytes = bytes as u32;
        self.flag.wakes().count_read(bytes);
        let is_due = {
            let mut state = self.state.lock();
            state.read += bytes;
            state.read >= self.report_from && state.end.is_none()
        };
        if is_due {
            self.flag.set();
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let shared = match &mut self.get_mut().0 {
            Kind::Whole(data) if data.is_empty() => return Poll::Ready(None),
            Kind::Whole(data) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(data))))),
            Kind::Arriving(shared) => shared,
        };
        let mut state = shared.state.lock();
        if let Some(data) = state.data.pop_front() {
            drop(state);
            shared.count_read(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = state.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        match state.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(reason)) => Poll::Ready(Some(Err(reason.into()))),
            None => {
                if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                    state.reader = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(data) => data.is_empty(),
            Kind::Arriving(shared) => {
                let state = shared.state.lock();
                state.data.is_empty() && state.trailers.is_none() && state.end == Some(Ok(()))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(data) => SizeHint::with_exact(data.len() as u64),
            Kind::Arriving(_) => SizeHint::default(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Kind::Arriving(shared) = &self.0 else { return };
        let unread = {
            let mut state = shared.state.lock();
            state.dropped = true;
            std::mem::take(&mut state.data)
        };
        shared.count_read(unread.iter().map(Bytes::len).sum());
    }
}

/// Adds `data` to the waiting pieces. Small pieces are joined: windows count their bytes, but not the overhead of each
/// piece.
pub(super) fn join(waiting: &mut VecDeque<Bytes>, data: Bytes) {
    if let Some(last) = waiting.back_mut()
        && last.len() + data.len() <= SMALL
    {
        match std::mem::take(last).try_into_mut() {
            Ok(mut joined) => {
                joined.extend_from_slice(&data);
                *last = joined.freeze();
                return;
            }
            Err(shared) => *last = shared,
        }
    }
    waiting.push_back(data);
}

fn wake(reader: Option<Waker>) {
    if let Some(reader) = reader {
        reader.wake();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::{
        super::wake::{WakeList, WakeSource},
        *,
    };

    fn arriving(report_from: u32) -> (Arc<WakeList>, Feeder, Body) {
        let wakes = WakeList::new(1000);
        let (feeder, body) = Body::arriving(wakes.flag(WakeSource::stream(0)), report_from, VecDeque::new());
        (wakes, feeder, body)
    }

    /// The bytes of each arrival.
    #[derive(Debug, Default)]
    struct Noted(Mutex<Vec<usize>>);

    impl Arrivals for Noted {
        fn arrived(&self, bytes: usize) {
            self.0.lock().push(bytes);
        }
    }

    #[test]
    fn arrivals_are_told_when_they_come_and_not_when_they_are_read() {
        let (_calls, feeder, mut body) = arriving(100);
        let noted = Arc::new(Noted::default());
        feeder.push(Bytes::from_static(b"one"));
        feeder.push(Bytes::from_static(b"two"));
        body.tell(noted.clone());
        assert_eq!(*noted.0.lock(), [6], "what was there before");
        feeder.push(Bytes::from_static(b"more"));
        assert_eq!(*noted.0.lock(), [6, 4]);
        drop(body);
        feeder.push(Bytes::from_static(b"nobody reads this"));
        assert_eq!(*noted.0.lock(), [6, 4]);
        Body::whole(Bytes::from_static(b"whole")).tell(noted.clone());
        assert_eq!(*noted.0.lock(), [6, 4, 5]);
    }

    fn was_woken(wakes: &WakeList) -> bool {
        wakes.look(&mut super::super::wake::WakeSources::new(), &Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn a_body_gives_what_came_and_its_trailers_in_order() {
        let (_calls, feeder, body) = arriving(100);
        let reading = tokio::spawn(body.collect());
        tokio::task::yield_now().await;
        feeder.push(Bytes::from_static(b"one"));
        feeder.push(Bytes::from_static(b"two"));
        let trailers = HeaderMap::from_iter([(http::header::TE, http::HeaderValue::from_static("x"))]);
        feeder.end(Some(trailers), Ok(()));
        let collected = reading.await.expect("no panic").expect("no error");
        assert!(collected.trailers().is_some_and(|trailers| trailers.contains_key("te")));
        assert_eq!(collected.to_bytes(), "onetwo");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error_also_where_the_stream_just_goes() {
        for gone in [false, true] {
            let (_calls, feeder, body) = arriving(100);
            feeder.push(Bytes::from_static(b"one"));
            if !gone {
                feeder.end(None, Err(Reason::CANCEL));
            }
            drop(feeder);
            let error = body.collect().await.expect_err("broken off");
            assert_eq!(error.reason(), Some(Reason::CANCEL));
        }
    }

    #[tokio::test]
    async fn the_stream_is_told_when_enough_was_read() {
        let (wakes, feeder, mut body) = arriving(4);
        feeder.push(Bytes::from_static(b"one"));
        feeder.push(Bytes::from_static(b"two"));
        body.frame().await.expect("a frame").expect("no error");
        assert!(!was_woken(&wakes) && feeder.take_read().is_none());
        body.frame().await.expect("a frame").expect("no error");
        assert!(was_woken(&wakes));
        assert_eq!((feeder.take_read(), feeder.take_read()), (Some(6), None));
        assert_eq!(wakes.take_read(), 6);
    }

    #[test]
    fn small_data_that_wait_are_joined_and_counted_once() {
        let (wakes, feeder, mut body) = arriving(1000);
        for byte in 0..10_000 {
            feeder.push(Bytes::copy_from_slice(&[byte as u8]));
        }
        let mut read = Vec::new();
        let mut frames = 0;
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = http_body::Body::poll_frame(Pin::new(&mut body), &mut cx) {
            read.extend_from_slice(&frame.into_data().expect("data"));
            frames += 1;
        }
        assert_eq!(frames, 10_000_usize.div_ceil(SMALL));
        assert!(read.iter().enumerate().all(|(at, byte)| *byte == at as u8));
        assert_eq!((read.len(), wakes.take_read(), feeder.take_read()), (10_000, 10_000, Some(10_000)));
    }

    #[test]
    fn what_is_not_read_is_given_back() {
        let (wakes, feeder, body) = arriving(4);
        feeder.push(Bytes::from_static(b"one"));
        drop(body);
        assert_eq!(wakes.take_read(), 3);
        feeder.push(Bytes::from_static(b"two"));
        assert_eq!((wakes.take_read(), feeder.take_read()), (3, Some(6)));
    }
}
