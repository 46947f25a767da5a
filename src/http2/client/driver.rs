//! [`Driver`]: the task of a connection: reads frames for the calls, and writes what they have put into the output.
//!
//! Not here: what a frame does to a call, see `state`. Always holds: frames are applied in order; what one read brings
//! is applied under one lock, [`EVENTS`] frames at a time; while [`BACKLOG`] bytes wait for the socket, nothing is
//! read; a turn is bounded in time; when the driver ends or is dropped, so do all calls.

use std::{
    cell::Cell,
    fmt, io,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::Reason;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    super::{
        frame::{self, ACK, END_HEADERS, END_STREAM, HEAD, Head, Kind, MAX_PAYLOAD, MAX_WINDOW},
        hpack::Decoder,
        limits::Limits,
        output::Output,
        request::Fields,
        turn::Turn,
    },
    ClientLimits, Lost, Pings, Shared,
    state::{Effects, Event, Wakes},
};

/// While this many bytes wait for the socket, nothing is read, since frames of the peer may need answers.
const BACKLOG: usize = 2 * Limits::OUTPUT;
/// Bytes per read. All connections of a thread share this buffer.
const READ: usize = 64 << 10;
/// Most frames that are applied at once. An event takes more memory than the smallest frame, by far.
const EVENTS: usize = 256;
/// Most rounds of reading and writing in a turn.
const ROUNDS: usize = 16;
/// The size of a field table unless the settings change it.
const TABLE: usize = 4096;
/// The content of our pings.
const PROBE: [u8; 8] = *b"alive? .";

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Drives a connection to its end; see the module.
pub struct Driver<T> {
    io: T,
    shared: Arc<Shared>,
    limits: ClientLimits,
    /// What is being written.
    writing: Output,
    /// The socket accepts no more, or has bytes that it must still be made to send, as with TLS.
    is_full: bool,
    /// Answers to the peer's frames.
    replies: Vec<u8>,
    /// Bytes that waited for the socket at the last look.
    backlog: usize,
    decoder: Decoder,
    /// The beginning of a frame.
    partial: Vec<u8>,
    fields: Option<Block>,
    has_settings: bool,
    events: Vec<Event>,
    watchdog: Option<Watchdog>,
    /// The turn is over: the tasks that are ready now run before the next turn.
    gives_way: bool,
    /// How the connection ends, while its last frames are being written.
    ending: Option<Ending>,
}

/// A block of fields that continues in further frames.
struct Block {
    stream: u32,
    end: bool,
    bytes: Vec<u8>,
    frames: usize,
}

struct Watchdog {
    pings: Pings,
    timer: Pin<Box<Sleep>>,
    /// When a complete frame last arrived.
    heard: Instant,
    /// When the ping was sent whose answer is awaited.
    pinged: Option<Instant>,
}

/// How a connection ends.
enum Ending {
    /// Nobody needs it any more.
    Unused,
    Lost(Lost),
}

/// Whether a step changed anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Done,
    Nothing,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    pub(super) fn new(io: T, shared: Arc<Shared>, limits: ClientLimits) -> Self {
        let now = Instant::now();
        let watchdog = limits.keepalive.map(|pings| Watchdog {
            pings,
            timer: Box::pin(sleep_until(now + pings.interval)),
            heard: now,
            pinged: None,
        });
        Self {
            io,
            shared,
            limits,
            writing: Output::default(),
            is_full: false,
            replies: Vec::new(),
            backlog: 0,
            decoder: Decoder::new(TABLE),
            partial: Vec::new(),
            fields: None,
            has_settings: false,
            events: Vec::new(),
            watchdog,
            gives_way: false,
            ending: None,
        }
    }

    fn take_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let mut turn = Turn::default();
        for _ in 0..ROUNDS {
            if let Some(ending) = &self.ending {
                // The last frames, as far as the socket accepts them at once.
                let written = self.writing.poll_write(&mut self.io, cx);
                if written.is_ready() {
                    let _ = Pin::new(&mut self.io).poll_shutdown(cx);
                }
                return Poll::Ready(match ending {
                    Ending::Unused => Ok(()),
                    Ending::Lost(lost) => Err(lost.clone()),
                });
            }
            let read = match self.read(cx) {
                Ok(read) => read,
                Err(lost) => {
                    self.end(Ending::Lost(lost));
                    continue;
                }
            };
            if let Err(lost) = self.watch(cx) {
                self.end(Ending::Lost(lost));
                continue;
            }
            let written = match self.write(cx) {
                Ok(Some(written)) => written,
                Ok(None) => {
                    frame::put_go_away(self.writing.own(), 0, Reason::NO_ERROR);
                    self.end(Ending::Unused);
                    continue;
                }
                Err(error) => {
                    self.end(Ending::Lost(socket(&error)));
                    continue;
                }
            };
            if (read, written) == (Step::Nothing, Step::Nothing) {
                return Poll::Pending;
            }
            turn.weigh();
            if !turn.step() {
                break;
            }
        }
        // See the server's side: a task that only wakes itself would keep the runtime from looking at sockets.
        self.gives_way = true;
        let yielded = pin!(tokio::task::yield_now()).poll(cx);
        debug_assert!(yielded.is_pending(), "the next poll is ready");
        Poll::Pending
    }

    /// Ends all calls.
    fn end(&mut self, ending: Ending) {
        let lost = match &ending {
            Ending::Lost(lost) => lost.clone(),
            Ending::Unused => Lost::Connection(Arc::from("the connection was closed")),
        };
        self.shared.end(&lost);
        self.ending = Some(ending);
    }

    /// Writes what waits. Returns `None` if the connection is of no more use.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<Option<Step>> {
        loop {
            let mut step = Step::Nothing;
            if self.is_full || !self.writing.is_empty() {
                let before = self.writing.len();
                self.is_full = match self.writing.poll_write(&mut self.io, cx) {
                    Poll::Ready(written) => {
                        written?;
                        false
                    }
                    Poll::Pending => true,
                };
                let left = self.writing.len();
                if left < before {
                    step = Step::Done;
                    let mut wakes = Wakes::new();
                    let mut state = self.shared.state.lock();
                    (state.writing, state.task) = (left, None);
                    state.send_ready(&mut wakes);
                    self.backlog = state.backlog();
                    drop(state);
                    wake(wakes);
                }
                // What came meanwhile is for the next round, which reads first.
                if self.is_full || step == Step::Done {
                    return Ok(Some(step));
                }
            }
            let mut state = self.shared.state.lock();
            if !self.replies.is_empty() {
                state.out.own().append(&mut self.replies);
            }
            self.backlog = state.backlog();
            if state.out.is_empty() {
                if state.is_over() {
                    return Ok(None);
                }
                if !state.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                    state.task = Some(cx.waker().clone());
                }
                return Ok(Some(step));
            }
            // Nobody needs to wake the task before its next look.
            state.task = None;
            self.writing = std::mem::take(&mut state.out);
            state.writing = self.writing.len();
        }
    }

    /// Reads once, and applies what was read.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<Step, Lost> {
        if self.backlog.max(self.writing.len()) + self.replies.len() >= BACKLOG {
            return Ok(Step::Nothing);
        }
        let mut buffer = BUFFER.take();
        if buffer.is_empty() {
            buffer = vec![0; READ];
        }
        let mut read = ReadBuf::new(&mut buffer);
        let result = match Pin::new(&mut self.io).poll_read(cx, &mut read) {
            Poll::Pending => Ok(Step::Nothing),
            Poll::Ready(Err(error)) => Err(socket(&error)),
            Poll::Ready(Ok(())) if read.filled().is_empty() => {
                Err(Lost::Connection(Arc::from("the peer closed the connection")))
            }
            Poll::Ready(Ok(())) => self.take_bytes(read.filled()).map(|()| Step::Done).map_err(|reason| {
                frame::put_go_away(self.writing.own(), 0, reason);
                Lost::Connection(format!("the peer broke the protocol: {reason}").into())
            }),
        };
        BUFFER.set(buffer);
        result
    }

    fn take_bytes(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        let parsed = if self.partial.is_empty() {
            self.parse(bytes).map(|taken| self.partial = bytes[taken..].to_vec())
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            joined.extend_from_slice(bytes);
            self.parse(&joined).map(|taken| self.partial = if taken == 0 { joined } else { joined[taken..].to_vec() })
        };
        // What came before an error counts.
        self.apply()?;
        parsed
    }

    /// Gives the calls what was read.
    fn apply(&mut self) -> Result<(), Reason> {
        if self.events.is_empty() {
            return Ok(());
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.heard = Instant::now();
        }
        let mut effects = Effects::default();
        let mut state = self.shared.state.lock();
        // The task looks again after this, so nobody needs to wake it.
        state.task = None;
        let applied = self.events.drain(..).try_for_each(|event| state.apply(event, &mut effects));
        let settled = applied.and_then(|()| state.settle(&mut effects.wakes));
        let (most, closed) = (state.max_streams, state.is_closed());
        self.backlog = state.backlog();
        drop(state);
        if self.has_settings {
            self.shared.most.store(most, Ordering::Relaxed);
        }
        if closed {
            self.shared.closed.store(true, Ordering::Relaxed);
        }
        if let Some(greeted) = effects.greeted {
            // Nobody waits if the attempt was given up.
            let _ = greeted.send(());
        }
        wake(effects.wakes);
        settled
    }

    /// Turns the complete frames in `bytes` into events. Returns the number of bytes that they take.
    fn parse(&mut self, bytes: &[u8]) -> Result<usize, Reason> {
        let mut taken = 0;
        while let Some(head) = Head::read(&bytes[taken..]) {
            if head.len > MAX_PAYLOAD {
                return Err(Reason::FRAME_SIZE_ERROR);
            }
            let Some(payload) = bytes[taken + HEAD..].get(..head.len) else { break };
            if self.events.len() >= EVENTS {
                self.apply()?;
            }
            self.take(head, payload)?;
            taken += HEAD + head.len;
        }
        Ok(taken)
    }

    fn take(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        if !self.has_settings {
            // SETTINGS must be the first frame.
            if head.kind != Kind::Settings || head.has(ACK) {
                return Err(Reason::PROTOCOL_ERROR);
            }
            self.has_settings = true;
        }
        if let Some(fields) = &self.fields
            && (head.kind != Kind::Continuation || head.stream != fields.stream)
        {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let of_stream = match head.kind {
            Kind::Data | Kind::Headers | Kind::Priority | Kind::Reset | Kind::Continuation => Some(true),
            Kind::Settings | Kind::Ping | Kind::GoAway => Some(false),
            Kind::WindowUpdate | Kind::Push | Kind::Unknown => None,
        };
        if of_stream.is_some_and(|of_stream| of_stream != (head.stream != 0)) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let (id, end) = (head.stream, head.has(END_STREAM));
        let event = match head.kind {
            Kind::Data => {
                let data = Bytes::copy_from_slice(head.unpadded(payload)?);
                Event::Data { id, end, data, used: payload.len() as u32 }
            }
            Kind::Headers => {
                let block = head.block(payload)?;
                if !head.has(END_HEADERS) {
                    self.fields = Some(Block { stream: id, end, bytes: block.to_vec(), frames: 0 });
                    return Ok(());
                }
                self.decode(id, end, block)?
            }
            Kind::Continuation => {
                let most = self.limits.max_header_list as usize;
                let fields = self.fields.as_mut().ok_or(Reason::PROTOCOL_ERROR)?;
                fields.frames += 1;
                // Full frames for all that is allowed, and some more.
                if fields.bytes.len() + payload.len() > most || fields.frames > most / MAX_PAYLOAD + 64 {
                    return Err(Reason::ENHANCE_YOUR_CALM);
                }
                fields.bytes.extend_from_slice(payload);
                match self.fields.take_if(|_| head.has(END_HEADERS)) {
                    Some(Block { stream, end, bytes, .. }) => self.decode(stream, end, &bytes)?,
                    None => return Ok(()),
                }
            }
            Kind::Reset => Event::Reset { id, reason: frame::number(payload)?.into() },
            Kind::Settings if head.has(ACK) => {
                return if payload.is_empty() { Ok(()) } else { Err(Reason::FRAME_SIZE_ERROR) };
            }
            Kind::Settings => Event::Settings(frame::settings(payload)?.collect::<Result<_, _>>()?),
            Kind::Ping => {
                let opaque: [u8; 8] = payload.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?;
                if !head.has(ACK) {
                    frame::put_ping(&mut self.replies, true, opaque);
                }
                Event::Heard
            }
            Kind::GoAway => {
                let (last, rest) = payload.split_first_chunk().ok_or(Reason::FRAME_SIZE_ERROR)?;
                let reason = rest.first_chunk().ok_or(Reason::FRAME_SIZE_ERROR)?;
                let last = u32::from_be_bytes(*last) & frame::MAX_STREAM;
                Event::GoAway { last, reason: u32::from_be_bytes(*reason).into() }
            }
            Kind::WindowUpdate => Event::Window { id, more: i64::from(frame::number(payload)?) & MAX_WINDOW },
            Kind::Priority => {
                frame::check_priority(id, payload)?;
                return Ok(());
            }
            // Nothing may be pushed, as our settings say.
            Kind::Push => return Err(Reason::PROTOCOL_ERROR),
            Kind::Unknown => return Ok(()),
        };
        self.events.push(event);
        Ok(())
    }

    fn decode(&mut self, id: u32, end: bool, block: &[u8]) -> Result<Event, Reason> {
        let mut fields = Fields::new(self.limits.max_header_list as usize);
        match self.decoder.decode(block, |field, size| fields.add(field, size)) {
            Ok(()) => Ok(Event::Fields { id, end, fields }),
            Err(malformed) => {
                tracing::debug!(%malformed, "A server sent fields that cannot be decoded");
                Err(Reason::COMPRESSION_ERROR)
            }
        }
    }

    /// Pings a silent peer, and gives it up if it does not answer.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Lost> {
        let Some(Watchdog { pings, timer, heard, pinged }) = &mut self.watchdog else { return Ok(()) };
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let next = match *pinged {
                Some(at) if *heard < at => {
                    if at + pings.timeout <= now {
                        return Err(Lost::Connection(Arc::from("the peer does not answer pings")));
                    }
                    at + pings.timeout
                }
                _ if *heard + pings.interval <= now => {
                    if pings.while_idle || self.shared.state.lock().running > 0 {
                        *pinged = Some(now);
                        frame::put_ping(&mut self.replies, false, PROBE);
                        now + pings.timeout
                    } else {
                        *pinged = None;
                        now + pings.interval
                    }
                }
                _ => {
                    *pinged = None;
                    *heard + pings.interval
                }
            };
            timer.as_mut().reset(next);
        }
        Ok(())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = Result<(), Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if std::mem::take(&mut this.gives_way) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.take_turn(cx)
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.shared.end(&Lost::Connection(Arc::from("the connection was dropped")));
    }
}

impl<T> fmt::Debug for Driver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Shared {
    /// Ends all calls, unless they have ended before.
    fn end(&self, lost: &Lost) {
        let mut wakes = Wakes::new();
        let greeted = self.state.lock().end_all(lost, &mut wakes);
        self.closed.store(true, Ordering::Relaxed);
        drop(greeted);
        wake(wakes);
    }
}

fn socket(error: &io::Error) -> Lost {
    Lost::Connection(format!("the connection broke: {error}").into())
}

fn wake(wakes: Wakes) {
    wakes.into_iter().for_each(std::task::Waker::wake);
}
