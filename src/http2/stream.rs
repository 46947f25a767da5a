//! [`Stream`]: one request and its answer, from the first field to the last byte.
//!
//! The handler and the answer's body are polled here, in the connection's task, when they were woken and the peer has
//! room. So output is written at once, and nothing is produced for a slow client. Always holds: no more is sent than
//! the windows allow. A body is not polled while its last data still waits.

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
    request::{RequestHead, is_of_connection},
    turn::Turn,
    wake::{WakeFlag, WakeList, WakeSource},
};

/// A stream; see the module.
pub(super) struct Stream<F, B: http_body::Body> {
    pub(super) id: u32,
    flag: Arc<WakeFlag>,
    waker: Waker,
    /// It is queued to run.
    pub(super) queued: bool,
    /// It waits for the connection's window.
    pub(super) waits_for_connection: bool,
    /// Bytes that the peer accepts.
    window: i64,
    answer: Answer<F, B>,
    /// Data of the body that is not written yet.
    data: Option<B::Data>,
    is_head: bool,
    coming: Coming,
    /// Bytes that the peer may still send.
    receive_window: i64,
    /// Bytes of the request's body that are still to come, if its length was declared.
    length: Option<u64>,
    /// Memory of the request until it is answered, in bytes.
    held: usize,
    /// When data last arrived, for an incomplete and unanswered request.
    heard: Option<Instant>,
}

/// Memory of a call in addition to its content: its map of fields, its waker, and what its handler allocates.
const CALL_COST: usize = 2 << 10;

/// The state of the answer.
#[expect(
    clippy::large_enum_variant,
    reason = "a box would cost an allocation per request, to save memory that the body needs anyway"
)]
enum Answer<F, B> {
    /// The request has not been given to its handler yet.
    Pending(Request<()>),
    Awaited(Pin<Box<F>>),
    Sent(B),
    Done,
}

/// The input of a request.
enum Coming {
    /// Data that arrived before the handler was called.
    Early(VecDeque<Bytes>),
    ToBody(Feeder),
    Ended,
    /// The complete body, which arrived before the handler was called.
    Whole(VecDeque<Bytes>),
}

/// What the streams of a connection share while they run.
#[derive(Debug)]
pub(super) struct ConnectionContext<'a> {
    pub(super) output: &'a mut Output,
    pub(super) wakes: &'a WakeList,
    /// Bytes that the peer accepts on all streams together.
    pub(super) window: &'a mut i64,
    pub(super) max_payload: usize,
    /// The peer must be told that our field table is as small as it wants.
    pub(super) shrinks_table: &'a mut bool,
    /// Half of what a stream may receive before its window is widened.
    pub(super) report_from: u32,
    pub(super) turn: &'a mut Turn,
}

/// A piece of data of this size or more counts as a long step.
const LARGE: usize = 4 << 10;

/// The state of a stream after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// It is woken when there is more to do.
    Idle,
    /// There is more to do after other streams had their turn.
    Again,
    /// It waits for the connection's window.
    WaitsForConnection,
    /// It is over. If the peer does not know that, the stream is reset with this reason.
    Over(Option<Reason>),
}

impl<F, B> Stream<F, B>
where
    F: Future<Output = Result<Response<B>, Failure>>,
    B: http_body::Body<Error: Into<Failure>> + Unpin,
{
    /// A stream for the request `head`, at `place` among the connection's streams.
    pub(super) fn new(id: u32, wakes: &Arc<WakeList>, place: usize, head: RequestHead, windows: (i64, i64)) -> Self {
        let flag = wakes.flag(WakeSource::stream(place));
        Self {
            id,
            waker: Waker::from(flag.clone()),
            flag,
            queued: false,
            waits_for_connection: false,
            window: windows.0,
            is_head: head.request.method() == Method::HEAD,
            held: size_of::<Self>() + size_of::<F>() + CALL_COST + head.cost,
            heard: None,
            answer: Answer::Pending(head.request),
            data: None,
            coming: Coming::Early(VecDeque::new()),
            receive_window: windows.1,
            length: head.length,
        }
    }

    /// Whether the handler has not been called yet.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.answer, Answer::Pending(_))
    }

    /// Memory of the request until it is answered, in bytes.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Releases the memory of the request, which is answered now. Returns its size.
    pub(super) fn let_go(&mut self) -> usize {
        if self.held > 0 && self.is_answered() { std::mem::take(&mut self.held) } else { 0 }
    }

    fn is_answered(&self) -> bool {
        matches!(self.answer, Answer::Sent(_) | Answer::Done)
    }

    /// When data last arrived, if more must come before the request can be answered.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.heard.filter(|_| !self.has_ended() && !self.is_answered())
    }

    /// Adds data of an unanswered request to its memory. Returns whether it is the first data of a body.
    pub(super) fn hold(&mut self, more: usize) -> bool {
        if self.is_answered() {
            return false;
        }
        self.held += more;
        self.heard.replace(Instant::now()).is_none()
    }

    /// Whether the peer has declared the end of the request.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.coming, Coming::Ended | Coming::Whole(_))
    }

    /// Changes the peer's window. Returns false if it would exceed the protocol's limit, once the pending change
    /// `ahead` of all streams is added.
    pub(super) fn widen(&mut self, more: i64, ahead: i64) -> bool {
        self.window += more;
        self.window + ahead <= MAX_WINDOW
    }

    /// Whether the peer accepts anything on this stream.
    pub(super) fn has_room(&self) -> bool {
        self.window > 0
    }

    /// Receives `data`, which used `used` bytes of the window including padding. Returns how many bytes of window to
    /// give back at once.
    pub(super) fn receive(&mut self, data: &[u8], used: usize, wakes: &WakeList) -> Result<u32, Reason> {
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
        wakes.count_read(padding as u32);
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

    /// Receives the end of the request.
    pub(super) fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Reason> {
        if self.has_ended() {
            return Err(Reason::STREAM_CLOSED);
        }
        if self.length.is_some_and(|left| left > 0) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.coming = match std::mem::replace(&mut self.coming, Coming::Ended) {
            // Trailers are dropped: no call whose request arrives complete has trailers with a meaning.
            Coming::Early(early) => Coming::Whole(early),
            Coming::ToBody(feeder) => {
                feeder.end(trailers, Ok(()));
                Coming::Ended
            }
            ended => ended,
        };
        Ok(())
    }

    /// Tells the reader of the request's body that the stream was reset. Window that nobody can use any more is given
    /// back.
    pub(super) fn break_off(self, reason: Reason, wakes: &WakeList) {
        match self.coming {
            Coming::ToBody(feeder) => feeder.end(None, Err(reason)),
            Coming::Early(data) | Coming::Whole(data) => {
                wakes.count_read(data.iter().map(Bytes::len).sum::<usize>() as u32)
            }
            Coming::Ended => {}
        }
    }

    /// Runs the stream as far as possible.
    pub(super) fn run(&mut self, context: &mut ConnectionContext<'_>, call: &impl Fn(Request<Body>) -> F) -> Ran {
        self.flag.reset();
        self.tell_read(context);
        loop {
            if let Some(data) = &mut self.data {
                let room = self.window.min(*context.window).max(0) as usize;
                let len = data.remaining().min(room).min(context.max_payload);
                if len == 0 && data.has_remaining() {
                    return if self.window > 0 { Ran::WaitsForConnection } else { Ran::Idle };
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
                if context.output.len() >= Limits::OUTPUT && !self.ends_soon(context.output) {
                    if self.rest().is_some() {
                        // With many connections that send such answers, each further write would delay all others.
                        context.turn.end();
                    }
                    return Ran::Again;
                }
                if !context.turn.step() {
                    return Ran::Again;
                }
                continue;
            }
            let cx = &mut Context::from_waker(&self.waker);
            match &mut self.answer {
                Answer::Pending(_) => self.call_handler(context, call),
                Answer::Awaited(answer) => {
                    context.turn.weigh();
                    match guarded(|| answer.as_mut().poll(cx)) {
                        Poll::Pending => return Ran::Idle,
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
                    // Without room the body is not polled, unless only trailers can follow.
                    let room = self.window.min(*context.window);
                    if room <= 0 && body.size_hint().upper() != Some(0) {
                        return if self.window > 0 { Ran::WaitsForConnection } else { Ran::Idle };
                    }
                    match guarded(|| Pin::new(body).poll_frame(cx).map_err(Into::into).map(Ok)) {
                        Poll::Pending => return Ran::Idle,
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

    /// Whether the rest of the answer should leave together with what waits already.
    fn ends_soon(&self, output: &Output) -> bool {
        output.takes_much() && self.rest().is_some_and(|rest| output.len() as u64 + rest <= Limits::ANSWER as u64)
    }

    /// The length of the rest of the answer, unless its end is open, as that of a watch is.
    fn rest(&self) -> Option<u64> {
        let Answer::Sent(body) = &self.answer else { return None };
        let data = self.data.as_ref().map_or(0, |data| data.remaining() as u64);
        body.size_hint().upper().map(|rest| rest.saturating_add(data))
    }

    /// Gives the request to its handler.
    fn call_handler(&mut self, context: &ConnectionContext<'_>, call: &impl Fn(Request<Body>) -> F) {
        let Answer::Pending(request) = std::mem::replace(&mut self.answer, Answer::Done) else { return };
        let body = match std::mem::replace(&mut self.coming, Coming::Ended) {
            Coming::Early(early) => {
                let (feeder, body) = Body::arriving(self.flag.clone(), context.report_from, early);
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
                context.wakes.count_read(data.len() as u32);
                Body::whole(data)
            }
            coming @ (Coming::ToBody(_) | Coming::Ended) => {
                self.coming = coming;
                Body::whole(Bytes::new())
            }
        };
        self.answer = Answer::Awaited(Box::pin(call(request.map(|()| body))));
    }

    /// Writes the head of the answer. Returns whether that was the whole answer.
    fn head(&mut self, response: Response<B>, context: &mut ConnectionContext<'_>) -> bool {
        let (mut parts, body) = response.into_parts();
        let names: Vec<_> = parts.headers.keys().filter(|name| is_of_connection(name)).cloned().collect();
        for name in names {
            tracing::debug!(header = name.as_str(), "Removed a header that HTTP/2 does not allow");
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
        // A peer that is still sending is told that it can stop.
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

/// Polls code outside this layer. A panic there ends only the stream, because the task serves many others.
fn guarded<T>(poll: impl FnOnce() -> Poll<Result<T, Failure>>) -> Poll<Result<T, Failure>> {
    // Whatever panicked is dropped with its stream.
    catch_unwind(AssertUnwindSafe(poll)).unwrap_or_else(|_| Poll::Ready(Err("a handler panicked".into())))
}

/// Whether it is gRPC, whose messages already contain their length, so that the head need not declare it.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Writes the fields from `encode` as HEADERS.
pub(super) fn put_fields(out: &mut Vec<u8>, id: u32, end: bool, max_payload: usize, encode: impl FnOnce(&mut Vec<u8>)) {
    // The block is written in place, and moved only in the rare case that it does not fit into one frame.
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

/// The reason with which to reset the stream of a failed answer.
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
