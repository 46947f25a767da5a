//! [`Connection`]: the task of a connection.
//!
//! Not here: what each frame does, see `intake`; how an answer goes out, see `stream`. Always holds: only those who called are
//! looked at; nothing is read while [`BACKLOG`] waits for the socket, nor is any stream run then; a turn is bounded in rounds and in time,
//! so that no connection keeps its thread; when a connection ends its streams are dropped in turns as well.

mod intake;

use std::{
    fmt, io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use h2::Reason;
use http::{Request, Response};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};

use self::intake::Intake;
use super::{
    Failure,
    body::Body,
    frame::{self, MAX_PAYLOAD, MAX_STREAM, OwnSettings},
    limits::{Keepalive, Limits, Refused},
    output::Output,
    stream::{ConnectionContext, Ran},
    streams::Streams,
    turn::Turn,
    wake::{Bell, Calls, WakeSource, WakeSources},
};

/// Bytes that wait for the socket from which on nothing is read: what streams give until they are not asked, and as much again for
/// answers to the peer's own frames.
const BACKLOG: usize = 2 * Limits::OUTPUT + MAX_PAYLOAD;
/// Rounds of one turn.
const ROUNDS: usize = 16;
/// Calls that one turn looks at: a change that all streams of a connection hear of is a call of each.
const CALLERS: usize = 8 << 10;
/// The window that each connection has before it says another.
const FIRST_WINDOW: u32 = 65_535;
/// What is in our pings, to tell whose answer comes.
const PROBE: [u8; 8] = *b"alive? .";
const LAST_CALL: [u8; 8] = *b"stopping";

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum Ended {
    /// Reading or writing failed.
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    /// The peer was told this reason with GOAWAY.
    #[error("the client broke the protocol: {0}")]
    Protocol(Reason),
    /// A ping was not answered in time.
    #[error("the client does not answer pings")]
    Silent,
    /// A frame, or the fields of a request, did not become whole in time.
    #[error("the client did not finish what it began to send")]
    Unfinished,
}

/// See the module.
pub struct Connection<T, S, F, B: http_body::Body, E> {
    io: T,
    calls: Arc<Calls>,
    /// Those who called and were not looked at yet.
    callers: WakeSources,
    /// The socket may have bytes for us.
    readable: bool,
    /// The socket takes no more.
    full: bool,
    /// It is time to look whether the peer is there.
    is_due: bool,
    /// Its turn is over, and the tasks that are ready now go before the next.
    gives_way: bool,
    output: Output,
    streams: Streams<F, B>,
    peer: Peer,
    course: Course,
    turn: Turn,
    tell_from: u32,
    write: (Arc<Bell>, Waker),
    // In boxes: a delivery touches what is above, and each line of memory that it need not fetch is time.
    intake: Box<Intake>,
    rare: Box<Rare<E>>,
    service: S,
}

/// What a connection looks at when it begins, ends, or is quiet for long.
struct Rare<E> {
    bells: Bells,
    limits: Limits,
    watchdog: Watchdog,
    stop: Option<E>,
    abort: E,
    /// Told of each request that is not served because of a bound.
    tell: Box<dyn Fn(Refused) + Send + Sync>,
    /// How the connection has ended, while the last of its streams are dropped.
    ended: Option<Result<(), Ended>>,
}

/// By whom the parts of a connection call it.
struct Bells {
    read: (Arc<Bell>, Waker),
    timer: (Arc<Bell>, Waker),
    stop: (Arc<Bell>, Waker),
    abort: (Arc<Bell>, Waker),
}

/// What the peer takes.
#[derive(Debug)]
struct Peer {
    /// Bytes on all streams.
    window: i64,
    /// Bytes on a new stream.
    stream_window: i64,
    /// By how much that has changed for streams that do not know yet. They are told once a round: it costs a look at all of them, and a
    /// peer can change it with each few bytes.
    ahead: i64,
    max_payload: usize,
    /// It has made its table of fields smaller, and must be told that ours is.
    shrinks_table: bool,
}

/// Where a connection is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Open,
    /// The peer was told that we stop, and may have requests under way.
    Stopping,
    /// No new streams; ends with the last of those that are open.
    Finishing,
    /// Writes its last words.
    Closing(Option<Reason>),
}

/// Finds out whether a peer that says nothing is there, and whether one that has begun something goes on with it.
struct Watchdog {
    keepalive: Option<Keepalive>,
    timer: Pin<Box<Sleep>>,
    /// When a whole frame came last. A part of one is no sign of life: any peer could give one byte now and then.
    heard: Instant,
    /// When the ping was sent that waits for an answer.
    pinged: Option<Instant>,
}

impl<T, S, F, B, E> Connection<T, S, F, B, E>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<B>, Failure>>,
    B: http_body::Body<Error: Into<Failure>> + Unpin,
    E: Future<Output = ()> + Unpin,
{
    /// Serves the peer at `io`, whose preface is still to be read. When `stop` is ready the connection ends with the requests under way;
    /// when `abort` is ready it ends at once. Neither is polled again after that.
    ///
    /// How long the peer may take no bytes is for `io` to bound: an error from it ends the connection.
    ///
    /// # Panics
    /// Outside a tokio runtime with time, where `limits` has a keepalive.
    pub fn new(io: T, service: S, limits: Limits, stop: E, abort: E) -> Self {
        let calls = Calls::new(limits.connection_window / 4);
        let bell = |caller| {
            let bell = calls.bell(caller);
            (bell.clone(), Waker::from(bell))
        };
        let bells = Bells {
            read: bell(WakeSource::READ),
            timer: bell(WakeSource::TIMER),
            stop: bell(WakeSource::STOP),
            abort: bell(WakeSource::ABORT),
        };
        let mut output = Output::default();
        let own = OwnSettings {
            max_streams: limits.max_streams,
            initial_window: limits.stream_window,
            max_header_list: limits.max_header_list,
        };
        own.put(output.own());
        frame::put_window_update(output.own(), 0, limits.connection_window.saturating_sub(FIRST_WINDOW));
        for caller in [WakeSource::STOP, WakeSource::ABORT, WakeSource::TIMER] {
            calls.call(caller);
        }
        let now = Instant::now();
        let first = limits.keepalive.map_or(Limits::UNFINISHED, |terms| terms.interval.min(Limits::UNFINISHED));
        let watchdog = Watchdog {
            keepalive: limits.keepalive,
            timer: Box::pin(sleep_until(now + first)),
            heard: now,
            pinged: None,
        };
        Self {
            io,
            service,
            callers: WakeSources::new(),
            readable: true,
            full: false,
            is_due: false,
            gives_way: false,
            output,
            streams: Streams::new(),
            peer: Peer {
                window: i64::from(FIRST_WINDOW),
                stream_window: i64::from(FIRST_WINDOW),
                ahead: 0,
                max_payload: MAX_PAYLOAD,
                shrinks_table: false,
            },
            course: Course::Open,
            turn: Turn::default(),
            tell_from: limits.stream_window / 2,
            write: bell(WakeSource::WRITE),
            intake: Box::new(Intake::new(limits.connection_window.max(FIRST_WINDOW))),
            rare: Box::new(Rare {
                bells,
                limits,
                watchdog,
                stop: Some(stop),
                abort,
                tell: Box::new(|_| ()),
                ended: None,
            }),
            calls,
        }
    }

    /// Calls `tell` for each request that is not served because of a bound, such as to count it.
    #[must_use]
    pub fn on_refusal(mut self, tell: impl Fn(Refused) + Send + Sync + 'static) -> Self {
        self.rare.tell = Box::new(tell);
        self
    }

    /// One turn, which ends with the connection, when there is nothing to do, or to let others go on.
    fn take_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        for _ in 0..ROUNDS {
            if !self.callers.is_empty() || self.calls.look(&mut self.callers, cx) {
                if let [caller] = self.callers[..]
                    && let Some(place) = caller.place()
                    && self.may_run()
                    && self.peer.ahead == 0
                    && self.streams.is_at_rest(self.peer.window > 0)
                {
                    // What nearly all look-ups find: one stream has something to say, and its turn is now.
                    self.callers.clear();
                    self.run_one(place);
                } else if self.answer_calls() {
                    return Poll::Ready(Ok(()));
                }
            } else if self.is_idle() {
                return Poll::Pending;
            }
            if self.may_read() && !self.read()? {
                // Whoever has closed does not wait for answers.
                return Poll::Ready(Ok(()));
            }
            if std::mem::take(&mut self.is_due) {
                // After what has come is read: where all were held up, an answer may be among it.
                self.watch()?;
            }
            // Who sends without a pause has its answers all the same.
            let has_read_enough = self.turn.is_over();
            if has_read_enough {
                self.turn = Turn::default();
            }
            if !self.full {
                self.run();
                if self.output.len() >= MAX_PAYLOAD {
                    self.turn.weigh();
                }
                let write = &mut Context::from_waker(&self.write.1);
                match self.output.poll_write(&mut self.io, write) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => self.full = true,
                }
            }
            let finishes = self.course == Course::Finishing || self.intake.leaves && self.course != Course::Stopping;
            if finishes && self.streams.all.is_empty() && !matches!(self.course, Course::Closing(_)) {
                self.course = Course::Closing(None);
            }
            if let Course::Closing(reason) = self.course
                && self.streams.clear(&mut self.turn)
                && !self.full
                && self.output.is_empty()
            {
                let write = &mut Context::from_waker(&self.write.1);
                match Pin::new(&mut self.io).poll_shutdown(write) {
                    Poll::Ready(shut) => {
                        shut?;
                        return Poll::Ready(reason.map_or(Ok(()), |reason| Err(Ended::Protocol(reason))));
                    }
                    // It calls when it can go on. Only a look that finds no callers has this task woken by it.
                    Poll::Pending => self.full = true,
                }
            }
            if has_read_enough || self.turn.is_over() {
                break;
            }
        }
        self.give_way(cx);
        Poll::Pending
    }

    /// Has this task run again once others have had their turn, those among them for whose sockets something has come meanwhile.
    ///
    /// A task that wakes itself goes behind those that are known to be ready. But what has come to sockets the runtime looks at when nobody
    /// is ready, and else once in 61 runs of tasks: connections that always have more to do would have everyone else wait for 61 of their
    /// turns. So it first has itself woken after such a look, and then goes behind those whom that look has found.
    fn give_way(&mut self, cx: &mut Context<'_>) {
        self.gives_way = true;
        let yielded = pin!(tokio::task::yield_now()).poll(cx);
        debug_assert!(yielded.is_pending(), "it is ready when it is polled again");
    }

    /// One look at all who called. True where the connection is to be dropped at once.
    fn answer_calls(&mut self) -> bool {
        let mut callers = std::mem::take(&mut self.callers);
        let mut over = false;
        let now = callers.len().min(CALLERS);
        for caller in callers.drain(..now) {
            match caller {
                WakeSource::READ => {
                    self.rare.bells.read.0.answered();
                    self.readable = true;
                }
                WakeSource::WRITE => {
                    self.write.0.answered();
                    self.full = false;
                }
                WakeSource::TIMER => {
                    self.rare.bells.timer.0.answered();
                    self.is_due = true;
                }
                WakeSource::STOP => self.stop(),
                WakeSource::ABORT => {
                    let (bell, waker) = &self.rare.bells.abort;
                    bell.answered();
                    over |= Pin::new(&mut self.rare.abort).poll(&mut Context::from_waker(waker)).is_ready();
                }
                WakeSource::WINDOW => {
                    let read = self.calls.take_read();
                    self.intake.widen(read);
                    if !matches!(self.course, Course::Closing(_)) {
                        frame::put_window_update(self.output.own(), 0, read);
                    }
                }
                stream => stream.place().into_iter().for_each(|place| self.streams.queue(place)),
            }
        }
        if !callers.is_empty() {
            self.turn.end();
        }
        self.callers = callers;
        over
    }

    /// Begins to end, if it is told to.
    fn stop(&mut self) {
        let Some(stop) = &mut self.rare.stop else { return };
        let (bell, waker) = &self.rare.bells.stop;
        bell.answered();
        if Pin::new(stop).poll(&mut Context::from_waker(waker)).is_ready() {
            self.rare.stop = None;
            if self.course == Course::Open {
                // Requests that are under way when this arrives are served: the answer to the ping tells that there are no more.
                frame::put_go_away(self.output.own(), MAX_STREAM, Reason::NO_ERROR);
                frame::put_ping(self.output.own(), false, LAST_CALL);
                self.course = Course::Stopping;
            }
        }
    }

    /// Asks a peer that has been quiet whether it is there, and ends what it does not go on with.
    fn watch(&mut self) -> Result<(), Ended> {
        loop {
            let Rare { bells, watchdog, .. } = &mut *self.rare;
            if watchdog.timer.as_mut().poll(&mut Context::from_waker(&bells.timer.1)).is_pending() {
                return Ok(());
            }
            let now = Instant::now();
            let next = match (watchdog.keepalive, watchdog.pinged) {
                (None, _) => now + Limits::UNFINISHED,
                (Some(terms), Some(pinged)) if watchdog.heard < pinged => {
                    if pinged + terms.timeout <= now {
                        return Err(Ended::Silent);
                    }
                    pinged + terms.timeout
                }
                (Some(terms), _) if watchdog.heard + terms.interval <= now => {
                    watchdog.pinged = Some(now);
                    frame::put_ping(self.output.own(), false, PROBE);
                    now + terms.timeout
                }
                (Some(terms), _) => {
                    watchdog.pinged = None;
                    watchdog.heard + terms.interval
                }
            };
            watchdog.timer.as_mut().reset(next.min(now + Limits::UNFINISHED));
            if self.intake.unfinished_since().is_some_and(|since| since + Limits::UNFINISHED <= now) {
                return Err(Ended::Unfinished);
            }
            while let Some(id) = self.streams.stalled(now) {
                if let Err(reason) = self.reset(id, Reason::CANCEL) {
                    self.close(reason);
                    return Ok(());
                }
            }
        }
    }

    /// Reads what has come. False where the peer has closed its side.
    fn read(&mut self) -> Result<bool, Ended> {
        let waker = self.rare.bells.read.1.clone();
        match self.poll_read(&mut Context::from_waker(&waker)) {
            Poll::Pending => {
                self.readable = false;
                Ok(true)
            }
            Poll::Ready(read) => Ok(read?),
        }
    }

    /// Runs streams in turns until there is enough to write.
    fn run(&mut self) {
        if matches!(self.course, Course::Closing(_)) {
            return;
        }
        if self.peer.ahead != 0 {
            if std::mem::replace(&mut self.turn.has_widened, true) {
                // Until they know, no stream may run.
                return self.turn.end();
            }
            let more = std::mem::take(&mut self.peer.ahead);
            if !self.streams.widen_all(more) {
                return self.close(Reason::FLOW_CONTROL_ERROR);
            }
        }
        while self.output.len() < Limits::OUTPUT
            && self.turn.step()
            && let Some(place) = self.streams.next(self.peer.window > 0)
        {
            self.run_one(place);
        }
    }

    /// Runs the stream at `place`, if there is one.
    fn run_one(&mut self, place: usize) {
        let Some(stream) = self.streams.all.get_mut(place) else { return };
        let mut context = ConnectionContext {
            output: &mut self.output,
            calls: &self.calls,
            window: &mut self.peer.window,
            max_payload: self.peer.max_payload,
            shrinks_table: &mut self.peer.shrinks_table,
            tell_from: self.tell_from,
            turn: &mut self.turn,
        };
        self.streams.fresh -= usize::from(stream.is_new());
        let ran = stream.run(&mut context, &self.service);
        self.streams.held -= stream.let_go();
        match ran {
            Ran::Rests => {}
            Ran::Again => self.streams.queue(place),
            Ran::WaitsForConnection => self.streams.wait(place),
            Ran::Over(reset) => {
                let id = stream.id;
                if let Some(reason) = reset {
                    self.intake.remember_reset(id);
                    frame::put_reset(self.output.own(), id, reason);
                }
                self.intake.count_served();
                self.streams.remove(id);
            }
        }
    }

    /// Ends the connection with an error, once it is told to the peer.
    fn close(&mut self, reason: Reason) {
        frame::put_go_away(self.output.own(), self.intake.last, reason);
        self.course = Course::Closing(Some(reason));
    }

    fn is_idle(&self) -> bool {
        if matches!(self.course, Course::Closing(_)) {
            return self.streams.are_gone();
        }
        let may_run = self.may_run() && !self.streams.is_at_rest(self.peer.window > 0);
        !self.may_read() && !may_run
    }

    /// Whether there is something to read, and room for what it does. Requests are not read faster than their handlers are called.
    fn may_read(&self) -> bool {
        self.readable
            && self.output.len() < BACKLOG
            && self.streams.fresh < Limits::FRESH
            && !matches!(self.course, Course::Closing(_))
    }

    /// Whether what streams give can be written.
    fn may_run(&self) -> bool {
        !self.full && self.output.len() < Limits::OUTPUT && !matches!(self.course, Course::Closing(_))
    }
}

impl<T, S, F, B: http_body::Body, E> fmt::Debug for Connection<T, S, F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("course", &self.course).field("peer", &self.peer).finish_non_exhaustive()
    }
}

// Handlers are pinned in boxes of their own; nothing else here is ever pinned.
impl<T: Unpin, S, F, B: http_body::Body, E> Unpin for Connection<T, S, F, B, E> {}

impl<T, S, F, B, E> Future for Connection<T, S, F, B, E>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<B>, Failure>>,
    B: http_body::Body<Error: Into<Failure>> + Unpin,
    E: Future<Output = ()> + Unpin,
{
    type Output = Result<(), Ended>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if std::mem::take(&mut this.gives_way) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.turn = Turn::default();
        if this.rare.ended.is_none() {
            let ended = ready!(this.take_turn(cx));
            this.rare.ended = Some(ended);
        }
        // Who has closed is not there any more to wait for that.
        if this.streams.clear(&mut this.turn) {
            return Poll::Ready(this.rare.ended.take().unwrap_or(Ok(())));
        }
        this.give_way(cx);
        Poll::Pending
    }
}
