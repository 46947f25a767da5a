//! [`Stream`]: one request and its answer, from the first field to the last byte.
//!
//! Its handler and the answer's body are polled here, in the connection's task, when they call and when the peer has room: so what an
//! answer gives is written at once, and a slow client is not asked for more. Always holds: no more is sent than the windows
//! allow; a body is not polled while the last data that it gave wait.

use std::{
    collections::VecDeque,
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, Bytes};
use h2::Reason;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::time::Instant;

use super::{
    Failure,
    body::{Body, Feeder, join},
    frame::{self, MAX_WINDOW},
    hpack,
    limits::Limits,
    output::Output,
    request::{Asked, is_of_connection},
    turn::Turn,
    wake::{Bell, Calls, WakeSource},
};

/// See the module.
pub(super) struct Stream<F, B: http_body::Body> {
    pub(super) id: u32,
    bell: Arc<Bell>,
    waker: Waker,
    /// It is to be run.
    pub(super) queued: bool,
    /// It waits for the connection's window.
    pub(super) waits_for_connection: bool,
    /// Bytes that the peer takes.
    window: i64,
    answer: Answer<F, B>,
    /// What the body gave, and is not written.
    data: Option<B::Data>,
    is_head: bool,
    coming: Coming,
    /// Bytes that the peer may still send.
    receive_window: i64,
    /// Bytes of the request's body still to come, where the request has told.
    length: Option<u64>,
    /// Bytes that the request takes until it is answered.
    held: usize,
    /// When data came last for a request that was not whole and not answered then.
    heard: Option<Instant>,
}

/// What a call takes beside what it is made of: its map of fields, its waker, and what its handler makes of it.
const CALL_COST: usize = 2 << 10;

/// How far an answer is.
#[expect(
    clippy::large_enum_variant,
    reason = "a box would be made for each request, to spare what the body needs anyway"
)]
enum Answer<F, B> {
    /// The request is not given to its handler yet.
    Asked(Request<()>),
    Awaited(Pin<Box<F>>),
    Sent(B),
    Done,
}

/// What the peer sends of the request.
enum Coming {
    /// What came before the handler was called.
    Early(VecDeque<Bytes>),
    ToBody(Feeder),
    Ended,
    /// All that came before the handler was called.
    Whole(VecDeque<Bytes>),
}

/// What streams of a connection share when they are run.
#[derive(Debug)]
pub(super) struct ConnectionContext<'a> {
    pub(super) output: &'a mut Output,
    pub(super) calls: &'a Calls,
    /// Bytes that the peer takes on all streams.
    pub(super) window: &'a mut i64,
    pub(super) max_payload: usize,
    /// The peer is to be told that our table of fields is as small as it wants.
    pub(super) shrinks_table: &'a mut bool,
    /// Half of what a stream may receive without a word of ours.
    pub(super) tell_from: u32,
    pub(super) turn: &'a mut Turn,
}

/// From this size on a piece of data counts as one that took long to make.
const LARGE: usize = 4 << 10;

/// Where a stream is after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// It calls when there is more to do.
    Rests,
    /// There is more to do once other streams had their turn.
    Again,
    /// It waits for the window of the connection.
    WaitsForConnection,
    /// It is over; told to reset it, with a reason, where the peer does not know that.
    Over(Option<Reason>),
}

impl<F, B> Stream<F, B>
where
    F: Future<Output = Result<Response<B>, Failure>>,
    B: http_body::Body<Error: Into<Failure>> + Unpin,
{
    /// A stream of `asked`, at `place` among the connection's streams.
    pub(super) fn new(id: u32, calls: &Arc<Calls>, place: usize, asked: Asked, windows: (i64, i64)) -> Self {
        let bell = calls.bell(WakeSource::stream(place));
        Self {
            id,
            waker: Waker::from(bell.clone()),
            bell,
            queued: false,
            waits_for_connection: false,
            window: windows.0,
            is_head: asked.request.method() == Method::HEAD,
            held: size_of::<Self>() + size_of::<F>() + CALL_COST + asked.cost,
            heard: None,
            answer: Answer::Asked(asked.request),
            data: None,
            coming: Coming::Early(VecDeque::new()),
            receive_window: windows.1,
            length: asked.length,
        }
    }

    /// Whether the handler was not called yet.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.answer, Answer::Asked(_))
    }

    /// Bytes that the request takes until it is answered.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Bytes that are not held any more, since the request was answered.
    pub(super) fn let_go(&mut self) -> usize {
        if self.held > 0 && self.is_answered() { std::mem::take(&mut self.held) } else { 0 }
    }

    fn is_answered(&self) -> bool {
        matches!(self.answer, Answer::Sent(_) | Answer::Done)
    }

    /// When data came last, where more must come before the request can be answered.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.heard.filter(|_| !self.has_ended() && !self.is_answered())
    }

    /// Data came for a request that was not answered: so many bytes more are held. Whether they are the first of a body.
    pub(super) fn hold(&mut self, more: usize) -> bool {
        if self.is_answered() {
            return false;
        }
        self.held += more;
        self.heard.replace(Instant::now()).is_none()
    }

    /// Whether the peer has said that no more comes.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.coming, Coming::Ended | Coming::Whole(_))
    }

    /// Changes how much the peer takes; false where that is more than may be, once what is `ahead` for all streams is added.
    pub(super) fn widen(&mut self, more: i64, ahead: i64) -> bool {
        self.window += more;
        self.window + ahead <= MAX_WINDOW
    }

    /// Whether the peer takes anything on this stream.
    pub(super) fn has_room(&self) -> bool {
        self.window > 0
    }

    /// Takes `data`, for which the peer used `used` bytes of the window, padding with them. How many the peer is to be given back at once.
    pub(super) fn receive(&mut self, data: &[u8], used: usize, calls: &Calls) -> Result<u32, Reason> {
        if self.has_ended() {
            return Err(Reason::STREAM_CLOSED);
        }
        self.receive_window -= used as i64;
        if self.receive_window < 0 {
            return Err(Reason::FLOW_CONTROL_ERROR);
        }
        if let Some(length) = &mut self.length {
            *length = length.checked_sub(data.len() as u64).ok_or(Reason::PROTOCOL_ERROR)?;
        }
        let padding = used - data.len();
        calls.count_read(padding as u32);
        self.receive_window += padding as i64;
        if !data.is_empty() {
            let bytes = Bytes::copy_from_slice(data);
            match &mut self.coming {
                Coming::Early(early) => join(early, bytes),
                Coming::ToBody(feeder) => feeder.push(bytes),
                Coming::Ended | Coming::Whole(_) => {}
            }
        }
        Ok(padding as u32)
    }

    /// No more of the request comes.
    pub(super) fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Reason> {
        if self.has_ended() {
            return Err(Reason::STREAM_CLOSED);
        }
        if self.length.is_some_and(|left| left > 0) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.coming = match std::mem::replace(&mut self.coming, Coming::Ended) {
            // Trailers are dropped: no call of a request that comes whole has any that mean something.
            Coming::Early(early) => Coming::Whole(early),
            Coming::ToBody(feeder) => {
                feeder.end(trailers, Ok(()));
                Coming::Ended
            }
            ended => ended,
        };
        Ok(())
    }

    /// Tells the reader of the request's body that the stream was reset. What never got a reader is given back.
    pub(super) fn break_off(self, reason: Reason, calls: &Calls) {
        match self.coming {
            Coming::ToBody(feeder) => feeder.end(None, Err(reason)),
            Coming::Early(data) | Coming::Whole(data) => {
                calls.count_read(data.iter().map(Bytes::len).sum::<usize>() as u32)
            }
            Coming::Ended => {}
        }
    }

    /// Goes on as far as it can.
    pub(super) fn run(&mut self, context: &mut ConnectionContext<'_>, call: &impl Fn(Request<Body>) -> F) -> Ran {
        self.bell.answered();
        self.tell_read(context);
        loop {
            if let Some(data) = &mut self.data {
                let room = self.window.min(*context.window).max(0) as usize;
                let len = data.remaining().min(room).min(context.max_payload);
                if len == 0 && data.has_remaining() {
                    return if self.window > 0 { Ran::WaitsForConnection } else { Ran::Rests };
                }
                let all = len == data.remaining();
                let end = all && matches!(&self.answer, Answer::Sent(body) if body.is_end_stream());
                frame::put_data(context.output.own(), len, end, self.id);
                context.output.take(data, len);
                self.window -= len as i64;
                *context.window -= len as i64;
                if all {
                    self.data = None;
                }
                if end {
                    return self.over();
                }
                if context.output.len() >= Limits::OUTPUT || !context.turn.step() {
                    return Ran::Again;
                }
                continue;
            }
            let cx = &mut Context::from_waker(&self.waker);
            match &mut self.answer {
                Answer::Asked(_) => self.ask(context, call),
                Answer::Awaited(answer) => {
                    context.turn.weigh();
                    match guarded(|| answer.as_mut().poll(cx)) {
                        Poll::Pending => return Ran::Rests,
                        Poll::Ready(Err(error)) => return Ran::Over(Some(reason(&*error))),
                        Poll::Ready(Ok(response)) => {
                            if self.head(response, context) {
                                return self.over();
                            }
                            if !context.turn.step() {
                                return Ran::Again;
                            }
                        }
                    }
                }
                Answer::Sent(body) => {
                    // Without room it is not asked for more, unless there is nothing but trailers to come.
                    let room = self.window.min(*context.window);
                    if room <= 0 && body.size_hint().upper() != Some(0) {
                        return if self.window > 0 { Ran::WaitsForConnection } else { Ran::Rests };
                    }
                    match guarded(|| Pin::new(body).poll_frame(cx).map_err(Into::into).map(Ok)) {
                        Poll::Pending => return Ran::Rests,
                        Poll::Ready(Ok(None)) => {
                            frame::put_data(context.output.own(), 0, true, self.id);
                            return self.over();
                        }
                        Poll::Ready(Err(error) | Ok(Some(Err(error)))) => return Ran::Over(Some(reason(&*error))),
                        Poll::Ready(Ok(Some(Ok(frame)))) => match frame.into_data() {
                            Ok(data) => {
                                if data.remaining() >= LARGE {
                                    context.turn.weigh();
                                }
                                self.data = Some(data);
                            }
                            Err(frame) => {
                                if let Ok(trailers) = frame.into_trailers() {
                                    let own = context.output.own();
                                    put_fields(own, self.id, true, context.max_payload, |block| {
                                        if std::mem::take(context.shrinks_table) {
                                            hpack::encode_table_size(block, 0);
                                        }
                                        hpack::encode_trailers(block, &trailers);
                                    });
                                    return self.over();
                                }
                            }
                        },
                    }
                }
                Answer::Done => return self.over(),
            }
        }
    }

    /// Gives the request to its handler.
    fn ask(&mut self, context: &ConnectionContext<'_>, call: &impl Fn(Request<Body>) -> F) {
        let Answer::Asked(request) = std::mem::replace(&mut self.answer, Answer::Done) else { return };
        let body = match std::mem::replace(&mut self.coming, Coming::Ended) {
            Coming::Early(early) => {
                let (feeder, body) = Body::arriving(self.bell.clone(), context.tell_from, early);
                self.coming = Coming::ToBody(feeder);
                body
            }
            Coming::Whole(mut early) => {
                let first = early.pop_front().unwrap_or_default();
                let data = if early.is_empty() {
                    first
                } else {
                    early.push_front(first);
                    early.make_contiguous().concat().into()
                };
                context.calls.count_read(data.len() as u32);
                Body::whole(data)
            }
            coming @ (Coming::ToBody(_) | Coming::Ended) => {
                self.coming = coming;
                Body::whole(Bytes::new())
            }
        };
        self.answer = Answer::Awaited(Box::pin(call(request.map(|()| body))));
    }

    /// Writes the head of the answer. Whether that was all.
    fn head(&mut self, response: Response<B>, context: &mut ConnectionContext<'_>) -> bool {
        let (mut parts, body) = response.into_parts();
        let names: Vec<_> = parts.headers.keys().filter(|name| is_of_connection(name)).cloned().collect();
        for name in names {
            tracing::debug!(header = name.as_str(), "Left out a header that HTTP/2 does not have");
            parts.headers.remove(name);
        }
        let has_body = !parts.status.is_informational()
            && parts.status != StatusCode::NO_CONTENT
            && parts.status != StatusCode::NOT_MODIFIED;
        if let Some(length) = body.size_hint().exact()
            && has_body
            && (length > 0 || !self.is_head)
            && !is_grpc(&parts.headers)
            && !parts.headers.contains_key(header::CONTENT_LENGTH)
        {
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        let end = self.is_head || body.is_end_stream();
        put_fields(context.output.own(), self.id, end, context.max_payload, |block| {
            if std::mem::take(context.shrinks_table) {
                hpack::encode_table_size(block, 0);
            }
            hpack::encode_head(block, parts.status, &parts.headers);
        });
        self.answer = if end { Answer::Done } else { Answer::Sent(body) };
        end
    }

    fn over(&self) -> Ran {
        // Who still sends is told that there is no need to.
        Ran::Over((!self.has_ended()).then_some(Reason::NO_ERROR))
    }

    fn tell_read(&mut self, context: &mut ConnectionContext<'_>) {
        if let Coming::ToBody(feeder) = &self.coming
            && let Some(read) = feeder.take_read()
        {
            self.receive_window += i64::from(read);
            frame::put_window_update(context.output.own(), self.id, read);
        }
    }
}

/// Polls what is not of the connection. A panic there is an error of the stream, for many others are in the same task.
fn guarded<T>(poll: impl FnOnce() -> Poll<Result<T, Failure>>) -> Poll<Result<T, Failure>> {
    // Whatever panicked is dropped with its stream.
    catch_unwind(AssertUnwindSafe(poll)).unwrap_or_else(|_| Poll::Ready(Err("a handler panicked".into())))
}

/// A head that says how long the body is says it twice in gRPC, whose messages do.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Writes the fields that `encode` writes, as HEADERS.
pub(super) fn put_fields(out: &mut Vec<u8>, id: u32, end: bool, max_payload: usize, encode: impl FnOnce(&mut Vec<u8>)) {
    // In place, and moved in the rare case that one frame does not do.
    let at = out.len();
    frame::put_headers(out, &[], end, id, max_payload);
    let block = out.len();
    encode(out);
    let len = out.len() - block;
    if len <= max_payload {
        out[at..at + 3].copy_from_slice(&(len as u32).to_be_bytes()[1..]);
    } else {
        let block = out.split_off(block);
        out.truncate(at);
        frame::put_headers(out, &block, end, id, max_payload);
    }
}

/// With what to reset the stream of an answer that failed.
fn reason(error: &(dyn Error + 'static)) -> Reason {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        }
        next = error.source();
    }
    Reason::INTERNAL_ERROR
}
