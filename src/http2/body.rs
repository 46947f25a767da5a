//! [`Body`]: a request's body, as its handler reads it, and [`Feeder`], by which the connection fills it.
//!
//! Most requests are whole before their handler is called, and are then nothing but bytes. Always holds: the peer may send as much as
//! was read and no more, so what waits here is bounded by the windows; a body that is dropped gives back what it did not read.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

use super::wake::Bell;

/// Up to this size data that wait are joined.
const SMALL: usize = 4 << 10;

/// See the module.
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
    /// Tells the stream that enough was read for the peer to send more.
    bell: Arc<Bell>,
    tell_from: u32,
}

#[derive(Debug, Default)]
struct BodyState {
    data: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    end: Option<Result<(), Reason>>,
    /// Read, and not told to the peer.
    read: u32,
    /// Nobody reads any more.
    dropped: bool,
    reader: Option<Waker>,
}

/// Fills a [`Body`].
#[derive(Debug)]
pub(super) struct Feeder(Arc<BodyInner>);

impl Body {
    /// A body that is here.
    pub(super) fn whole(data: Bytes) -> Self {
        Self(Kind::Whole(data))
    }

    /// A body that begins with `data` and of which more comes. `bell` is rung when `tell_from` bytes were read.
    pub(super) fn arriving(bell: Arc<Bell>, tell_from: u32, data: VecDeque<Bytes>) -> (Feeder, Self) {
        let state = BodyState { data, ..BodyState::default() };
        let shared = Arc::new(BodyInner { state: Mutex::new(state), bell, tell_from });
        (Feeder(shared.clone()), Self(Kind::Arriving(shared)))
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
            join(&mut state.data, data);
            state.reader.take()
        };
        wake(reader);
    }

    /// No more comes: all is there, or the stream was reset.
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

    /// Takes the count of bytes that were read, if there are enough of them to tell the peer.
    pub(super) fn take_read(&self) -> Option<u32> {
        let mut state = self.0.state.lock();
        (state.read >= self.0.tell_from).then(|| std::mem::take(&mut state.read))
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
        self.bell.calls().count_read(bytes);
        let tell = {
            let mut state = self.state.lock();
            state.read += bytes;
            state.read >= self.tell_from && state.end.is_none()
        };
        if tell {
            self.bell.ring();
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

/// Adds `data` to those that wait. Small ones become one: windows count their bytes, but not what each costs beside them.
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
        super::wake::{Calls, WakeSource},
        *,
    };

    fn arriving(tell_from: u32) -> (Arc<Calls>, Feeder, Body) {
        let calls = Calls::new(1000);
        let (feeder, body) = Body::arriving(calls.bell(WakeSource::stream(0)), tell_from, VecDeque::new());
        (calls, feeder, body)
    }

    fn has_called(calls: &Calls) -> bool {
        calls.look(&mut super::super::wake::WakeSources::new(), &Context::from_waker(Waker::noop()))
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
        let (calls, feeder, mut body) = arriving(4);
        feeder.push(Bytes::from_static(b"one"));
        feeder.push(Bytes::from_static(b"two"));
        body.frame().await.expect("a frame").expect("no error");
        assert!(!has_called(&calls) && feeder.take_read().is_none());
        body.frame().await.expect("a frame").expect("no error");
        assert!(has_called(&calls));
        assert_eq!((feeder.take_read(), feeder.take_read()), (Some(6), None));
        assert_eq!(calls.take_read(), 6);
    }

    #[test]
    fn small_data_that_wait_are_joined_and_counted_once() {
        let (calls, feeder, mut body) = arriving(1000);
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
        assert_eq!((read.len(), calls.take_read(), feeder.take_read()), (10_000, 10_000, Some(10_000)));
    }

    #[test]
    fn what_is_not_read_is_given_back() {
        let (calls, feeder, body) = arriving(4);
        feeder.push(Bytes::from_static(b"one"));
        drop(body);
        assert_eq!(calls.take_read(), 3);
        feeder.push(Bytes::from_static(b"two"));
        assert_eq!((calls.take_read(), feeder.take_read()), (3, Some(6)));
    }
}
