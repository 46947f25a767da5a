//! [`Connection`]: the task of a connection.
//!
//! Not here: the effect of each frame (`intake`) and how an answer is sent (`stream`). Always holds: only parts that
//! were woken are looked at. While [`BACKLOG`] bytes wait for the socket, nothing is read and no stream runs. A turn is
//! bounded in rounds and in time, so no connection keeps its thread. When a connection ends, its streams are dropped in
//! turns as well.

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
    queue::{Place, TurnQueue},
    stream::{ConnectionContext, Ran},
    streams::Streams,
    turn::Turn,
    wake::{WakeFlag, WakeList, WakeSource, WakeSources},
};
use crate::types::ClientKey;

/// While this many bytes wait for the socket, nothing is read: beyond the most that streams produce, this leaves room
/// for answers to the peer's own frames.
const BACKLOG: usize = Limits::ANSWER + Limits::OUTPUT + MAX_PAYLOAD;
/// Most rounds in one turn.
const ROUNDS: usize = 16;
/// Most wake-ups that one turn handles. A change that concerns all streams of a connection wakes each of them.
const CALLERS: usize = 8 << 10;
/// The initial window of each connection in the protocol.
const FIRST_WINDOW: u32 = 65_535;
/// The content of our pings, by which their answers are recognized.
const PROBE: [u8; 8] = *b"alive? .";
const LAST_CALL: [u8; 8] = *b"stopping";

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum Ended {
    /// Reading or writing failed.
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    /// The peer broke the protocol and was sent this reason with GOAWAY.
    #[error("the client broke the protocol: {0}")]
    Protocol(Reason),
    /// A ping was not answered in time.
    #[error("the client does not answer pings")]
    Silent,
    /// A frame, or the fields of a request, were not complete in time.
    #[error("the client did not complete a frame or a request in time")]
    Unfinished,
}

/// A connection; see the module.
pub struct Connection<T, S, F, B: http_body::Body, E> {
    io: T,
    wakes: Arc<WakeList>,
    /// Parts that were woken and not looked at yet.
    woken: WakeSources,
    /// The socket may have bytes to read.
    readable: bool,
    /// The socket accepts no more bytes.
    full: bool,
    /// The watchdog is due.
    is_due: bool,
    pause: Pause,
    /// No request has been given to its handler yet.
    is_new: bool,
    /// It has ended, and its last streams are being dropped.
    has_ended: bool,
    output: Output,
    streams: Streams<F, B>,
    peer: Peer,
    phase: Phase,
    turn: Turn,
    report_from: u32,
    write: (Arc<WakeFlag>, Waker),
    // Rarely used parts are in boxes: a delivery touches the fields above, and each cache line that it does not fetch
    // saves time.
    intake: Box<Intake>,
    rare: Box<Rare<E>>,
    service: S,
}

/// What a connection needs only when it begins, ends, or has been idle for long.
struct Rare<E> {
    wake_flags: WakeFlags,
    limits: Limits,
    watchdog: Watchdog,
    stop: Option<E>,
    abort: E,
    /// Called for each request that is refused because of a limit.
    on_refusal: Box<dyn Fn(Refused) + Send + Sync>,
    /// Shared with other connections, and whose connection this is.
    queue: Option<(TurnQueue, ClientKey)>,
    /// The place of this connection in `queue`; `None` while it does not need one.
    place: Option<Box<Place>>,
    /// The result of the connection once it has ended.
    ended: Option<Result<(), Ended>>,
}

/// The wake flags of the parts of a connection.
struct WakeFlags {
    read: (Arc<WakeFlag>, Waker),
    timer: (Arc<WakeFlag>, Waker),
    stop: (Arc<WakeFlag>, Waker),
    abort: (Arc<WakeFlag>, Waker),
}

/// What the peer has told us.
#[derive(Debug)]
struct Peer {
    /// Bytes that it accepts on all streams together.
    window: i64,
    /// Bytes that it accepts on a new stream.
    stream_window: i64,
    /// The change of that number which the streams do not know yet. They are updated once per round: an update visits
    /// all of them, and a peer can cause one with every few bytes.
    ahead: i64,
    max_payload: usize,
    /// The peer has reduced its field table, so a change of our table's size must be sent.
    shrinks_table: bool,
    /// The peer will end the connection once its streams are over.
    leaves: bool,
}

/// The phase of a connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The peer has been told that we stop, but requests may still arrive.
    Stopping,
    /// No new streams are accepted; the connection ends with its last open stream.
    Finishing,
    /// The last frames are being written.
    Closing(Option<Reason>),
}

/// What comes before the next turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// Nothing: the connection is woken for what there is to do.
    None,
    /// The last turn was a long one, and so may be the next: when the connection is woken, it joins the queue.
    Due,
    /// The connection waits for a place in the queue for turns.
    Queued,
    /// It has a place, and the runtime checks the sockets.
    Checking,
    /// It has a place for the turn that comes now.
    Over,
}

/// Finds out whether a silent peer is still there, and whether a peer completes what it has begun.
struct Watchdog {
    keepalive: Option<Keepalive>,
    timer: Pin<Box<Sleep>>,
    /// When the last complete frame arrived. Part of a frame is no sign of life: a peer could send one byte now and
    /// then.
    heard: Instant,
    /// When the ping was sent whose answer is awaited.
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
    /// Serves the peer at `io`, which has not sent its preface yet. When `stop` is ready, the connection ends once the
    /// open requests are answered. When `abort` is ready, it ends at once. Neither is polled after that.
    ///
    /// `io` must bound the time in which the peer accepts no bytes: an error of `io` ends the connection.
    ///
    /// # Panics
    /// Panics outside a tokio runtime with time, if `limits` has a keepalive.
    pub fn new(io: T, service: S, limits: Limits, stop: E, abort: E) -> Self {
        let wakes = WakeList::new(limits.connection_window / 4);
        let flag = |source| {
            let flag = wakes.flag(source);
            (flag.clone(), Waker::from(flag))
        };
        let wake_flags = WakeFlags {
            read: flag(WakeSource::READ),
            timer: flag(WakeSource::TIMER),
            stop: flag(WakeSource::STOP),
            abort: flag(WakeSource::ABORT),
        };
        let mut output = Output::default();
        let own = OwnSettings {
            max_streams: limits.max_streams,
            initial_window: limits.stream_window,
            max_header_list: limits.max_header_list,
        };
        own.put(output.own());
        frame::put_window_update(output.own(), 0, limits.connection_window.saturating_sub(FIRST_WINDOW));
        for source in [WakeSource::STOP, WakeSource::ABORT, WakeSource::TIMER] {
            wakes.add(source);
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
            woken: WakeSources::new(),
            readable: true,
            full: false,
            is_due: false,
            pause: Pause::None,
            is_new: true,
            has_ended: false,
            output,
            streams: Streams::new(),
            peer: Peer {
                window: i64::from(FIRST_WINDOW),
                stream_window: i64::from(FIRST_WINDOW),
                ahead: 0,
                max_payload: MAX_PAYLOAD,
                shrinks_table: false,
                leaves: false,
            },
            phase: Phase::Open,
            turn: Turn::default(),
            report_from: limits.stream_window / 2,
            write: flag(WakeSource::WRITE),
            intake: Box::new(Intake::new(limits.connection_window.max(FIRST_WINDOW))),
            rare: Box::new(Rare {
                wake_flags,
                limits,
                watchdog,
                stop: Some(stop),
                abort,
                on_refusal: Box::new(|_| ()),
                queue: None,
                place: None,
                ended: None,
            }),
            wakes,
        }
    }

    /// Calls `report` for each request that is refused because of a limit, for example to count it.
    #[must_use]
    pub fn on_refusal(mut self, report: impl Fn(Refused) + Send + Sync + 'static) -> Self {
        self.rare.on_refusal = Box::new(report);
        self
    }

    /// The connections that share a queue wait there for turns that are likely to be long. Places in it are divided
    /// between clients; this connection is one of `client`.
    #[must_use]
    pub fn sharing(mut self, queue: TurnQueue, client: ClientKey) -> Self {
        self.rare.queue = Some((queue, client));
        self
    }

    /// Runs one turn. It ends with the connection, when there is nothing to do, or to let other connections run.
    fn take_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        for _ in 0..ROUNDS {
            if !self.woken.is_empty() || self.wakes.look(&mut self.woken, cx) {
                if let [source] = self.woken[..]
                    && let Some(place) = source.place()
                    && self.may_run()
                    && self.peer.ahead == 0
                    && self.streams.is_at_rest(self.peer.window > 0)
                {
                    // The most frequent case: one stream was woken, and it runs now.
                    self.woken.clear();
                    self.run_one(place);
                } else if self.handle_wakes() {
                    return Poll::Ready(Ok(()));
                }
            } else if self.is_idle() {
                return Poll::Pending;
            }
            if self.may_read() && !self.read()? {
                // The peer has closed the connection and does not wait for answers.
                return Poll::Ready(Ok(()));
            }
            if std::mem::take(&mut self.is_due) {
                // Checked after reading: if everything was delayed, the answer to a ping may have just been read.
                self.watch()?;
            }
            if self.is_new && self.streams.fresh > 0 && !matches!(self.phase, Phase::Closing(_)) {
                if self.pause != Pause::Over {
                    // Our settings, and answers to the peer's, need no turn.
                    self.write()?;
                    break;
                }
                self.is_new = false;
            }
            // A peer that sends without a pause must get its answers all the same.
            let has_read_enough = self.turn.is_over();
            if has_read_enough {
                self.turn = Turn::default();
            }
            if !self.full {
                self.run();
                if self.output.len() >= MAX_PAYLOAD {
                    self.turn.weigh();
                }
                self.write()?;
            }
            let finishes = self.phase == Phase::Finishing || self.peer.leaves && self.phase != Phase::Stopping;
            if finishes && self.streams.all.is_empty() && !matches!(self.phase, Phase::Closing(_)) {
                self.phase = Phase::Closing(None);
            }
            if let Phase::Closing(reason) = self.phase
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
                    // The socket wakes us when it accepts more. This task is only woken again after a look that finds
                    // nothing to do.
                    Poll::Pending => self.full = true,
                }
            }
            if has_read_enough || self.turn.is_over() {
                if self.woken.is_empty() && self.is_idle() && !self.wakes.look(&mut self.woken, cx) {
                    self.pause = Pause::Due;
                    return Poll::Pending;
                }
                break;
            }
        }
        self.give_way(cx);
        Poll::Pending
    }

    /// Lets other tasks run first, including those whose sockets have received something meanwhile, and those of
    /// connections that have waited longer for such a turn.
    fn give_way(&mut self, cx: &mut Context<'_>) {
        // Whoever waits comes first.
        self.rare.place = None;
        self.rare.place = self.rare.queue.as_ref().map(|(queue, client)| Box::new(queue.join(*client)));
        self.pause = Pause::Queued;
        let aborts = !self.has_ended && self.woken.contains(&WakeSource::ABORT);
        if aborts {
            self.pause = Pause::Over;
        }
        if aborts || self.poll_pause(cx).is_ready() {
            // It was told to end. Its next turn begins without a place.
            cx.waker().wake_by_ref();
        }
    }

    /// Waits until the next turn may begin.
    ///
    /// A task that wakes itself goes behind the tasks that are known to be ready. But the runtime checks the sockets
    /// only when no task is ready, or once in 61 runs of tasks. So connections that always have more to do would delay
    /// all others by 61 of their turns. Therefore this task is first woken after such a check, and then goes behind the
    /// tasks that the check has found.
    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.pause {
            Pause::None | Pause::Over => return Poll::Ready(()),
            Pause::Due if self.rare.queue.is_none() => {
                self.pause = Pause::None;
                return Poll::Ready(());
            }
            Pause::Due => self.give_way(cx),
            Pause::Queued => {
                if let Some(place) = &mut self.rare.place
                    && place.poll_held(cx).is_pending()
                {
                    if self.is_aborted(cx) {
                        // It ends, and does nothing else.
                        self.pause = Pause::Over;
                        return Poll::Ready(());
                    }
                    return Poll::Pending;
                }
                self.pause = Pause::Checking;
                let yielded = pin!(tokio::task::yield_now()).poll(cx);
                debug_assert!(yielded.is_pending(), "the next poll is ready");
            }
            Pause::Checking => {
                self.pause = Pause::Over;
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    /// Whether a connection that waits in the queue has just been told to end at once. The other parts that were woken
    /// are looked at in its turn.
    fn is_aborted(&mut self, cx: &Context<'_>) -> bool {
        let mut woken = WakeSources::new();
        let mut is_aborted = false;
        while self.wakes.look(&mut woken, cx) {
            is_aborted |= woken.contains(&WakeSource::ABORT);
            self.woken.append(&mut woken);
        }
        is_aborted
    }

    /// Handles the parts that were woken. Returns true if the connection must be dropped at once.
    fn handle_wakes(&mut self) -> bool {
        let mut woken = std::mem::take(&mut self.woken);
        let mut over = false;
        let now = woken.len().min(CALLERS);
        for source in woken.drain(..now) {
            match source {
                WakeSource::READ => {
                    self.rare.wake_flags.read.0.reset();
                    self.readable = true;
                }
                WakeSource::WRITE => {
                    self.write.0.reset();
                    self.full = false;
                    // The socket may have bytes that it took before and could not send.
                    self.output.flush_again();
                }
                WakeSource::TIMER => {
                    self.rare.wake_flags.timer.0.reset();
                    self.is_due = true;
                }
                WakeSource::STOP => self.stop(),
                WakeSource::ABORT => {
                    let (flag, waker) = &self.rare.wake_flags.abort;
                    flag.reset();
                    over |= Pin::new(&mut self.rare.abort).poll(&mut Context::from_waker(waker)).is_ready();
                }
                WakeSource::WINDOW => {
                    let read = self.wakes.take_read();
                    self.intake.widen(read);
                    if !matches!(self.phase, Phase::Closing(_)) {
                        frame::put_window_update(self.output.own(), 0, read);
                    }
                }
                stream => stream.place().into_iter().for_each(|place| self.streams.queue(place)),
            }
        }
        if !woken.is_empty() {
            self.turn.end();
        }
        self.woken = woken;
        over
    }

    /// Begins to end the connection if `stop` is ready.
    fn stop(&mut self) {
        let Some(stop) = &mut self.rare.stop else { return };
        let (flag, waker) = &self.rare.wake_flags.stop;
        flag.reset();
        if Pin::new(stop).poll(&mut Context::from_waker(waker)).is_ready() {
            self.rare.stop = None;
            if self.phase == Phase::Open {
                // Requests that arrive before the answer to this ping are still served; after the answer, no more can
                // be under way.
                frame::put_go_away(self.output.own(), MAX_STREAM, Reason::NO_ERROR);
                frame::put_ping(self.output.own(), false, LAST_CALL);
                self.phase = Phase::Stopping;
            }
        }
    }

    /// Pings a silent peer, and ends what a peer does not complete.
    fn watch(&mut self) -> Result<(), Ended> {
        loop {
            let Rare { wake_flags, watchdog, .. } = &mut *self.rare;
            if watchdog.timer.as_mut().poll(&mut Context::from_waker(&wake_flags.timer.1)).is_pending() {
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

    /// Reads from the socket. Returns false if the peer has closed its side.
    fn read(&mut self) -> Result<bool, Ended> {
        let waker = self.rare.wake_flags.read.1.clone();
        match self.poll_read(&mut Context::from_waker(&waker)) {
            Poll::Pending => {
                self.readable = false;
                Ok(true)
            }
            Poll::Ready(read) => Ok(read?),
        }
    }

    /// Writes what there is to write, as far as the socket takes it.
    fn write(&mut self) -> io::Result<()> {
        let waker = &mut Context::from_waker(&self.write.1);
        match self.output.poll_write(&mut self.io, waker) {
            Poll::Ready(written) => written,
            Poll::Pending => {
                self.full = true;
                Ok(())
            }
        }
    }

    /// Runs streams in turn until there is enough to write.
    fn run(&mut self) {
        if matches!(self.phase, Phase::Closing(_)) {
            return;
        }
        if self.peer.ahead != 0 {
            if std::mem::replace(&mut self.turn.has_widened, true) {
                // No stream may run before its window is updated.
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

    /// Runs the stream at `place`, if it still exists.
    fn run_one(&mut self, place: usize) {
        let Some(stream) = self.streams.all.get_mut(place) else { return };
        let mut context = ConnectionContext {
            output: &mut self.output,
            wakes: &self.wakes,
            window: &mut self.peer.window,
            max_payload: self.peer.max_payload,
            shrinks_table: &mut self.peer.shrinks_table,
            report_from: self.report_from,
            turn: &mut self.turn,
        };
        self.streams.fresh -= usize::from(stream.is_new());
        let ran = stream.run(&mut context, &self.service);
        self.streams.held -= stream.let_go();
        match ran {
            Ran::Idle => {}
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

    /// Ends the connection with an error, which is first sent to the peer.
    fn close(&mut self, reason: Reason) {
        frame::put_go_away(self.output.own(), self.intake.last, reason);
        self.phase = Phase::Closing(Some(reason));
    }

    fn is_idle(&self) -> bool {
        if matches!(self.phase, Phase::Closing(_)) {
            return self.streams.are_gone();
        }
        let may_run = self.may_run() && !self.streams.is_at_rest(self.peer.window > 0);
        !self.may_read() && !may_run
    }

    /// Whether more may be read. Requests are not read faster than their handlers are called.
    fn may_read(&self) -> bool {
        self.readable
            && self.output.len() < BACKLOG
            && self.streams.fresh < Limits::FRESH
            && !matches!(self.phase, Phase::Closing(_))
    }

    /// Whether there is room for the output of streams.
    fn may_run(&self) -> bool {
        !self.full && self.output.len() < Limits::OUTPUT && !matches!(self.phase, Phase::Closing(_))
    }
}

impl<T, S, F, B: http_body::Body, E> fmt::Debug for Connection<T, S, F, B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("phase", &self.phase).field("peer", &self.peer).finish_non_exhaustive()
    }
}

// Handlers are pinned in separate boxes; nothing else here is pinned.
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
        ready!(this.poll_pause(cx));
        if this.pause == Pause::Over
            && let Some(place) = &mut this.rare.place
        {
            place.begin_turn();
        }
        this.turn = Turn::default();
        if !this.has_ended {
            let Poll::Ready(ended) = this.take_turn(cx) else {
                // Unless it waits for its next turn, it has nothing more to do.
                match this.pause {
                    Pause::Over => (this.pause, this.rare.place) = (Pause::None, None),
                    Pause::Due => this.rare.place = None,
                    Pause::None | Pause::Queued | Pause::Checking => {}
                }
                return Poll::Pending;
            };
            this.rare.ended = Some(ended);
            this.has_ended = true;
        }
        // A peer that has closed does not wait for this.
        if this.streams.clear(&mut this.turn) {
            return Poll::Ready(this.rare.ended.take().unwrap_or(Ok(())));
        }
        this.give_way(cx);
        Poll::Pending
    }
}
