//! [`State`]: what the calls of a connection and its driver share: the open streams, the windows, and the frames that
//! wait to be written.
//!
//! Plain data under a lock; callers wake what the methods return after they have let go of it. Always holds: a stream
//! is listed here from its first frame until its call has taken the end of the answer or was dropped; data waits in
//! `ready` in the order in which it was offered, and is put into the output by whoever makes room for it: a caller, a
//! window update, or the driver after a write; no stream's data is more than one piece of its body.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use bytes::Bytes;
use h2::Reason;
use hashbrown::HashMap;
use http::{HeaderMap, StatusCode};
use slab::Slab;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{
    super::{
        body::join,
        frame::{self, MAX_PAYLOAD, MAX_STREAM, MAX_WINDOW, Setting},
        hpack::Compressor,
        limits::Limits,
        output::Output,
        request::{Fields, Rejected},
        stream::put_fields,
    },
    CallHead, ClientLimits, Lost,
};

/// Window of each connection in the protocol. Ours is the largest that the protocol allows: only the streams' windows
/// hold back a peer, so an answer that nobody reads delays no other.
const FIRST_WINDOW: i64 = 65_535;
/// The connection's window is widened after this many bytes.
const REPORT_FROM: u32 = 1 << 30;

/// Wakers to be called without the lock.
pub(super) type Wakes = SmallVec<[Waker; 8]>;

/// What follows, without the lock, from what was read.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) wakes: Wakes,
    /// Notified, since the settings have arrived.
    pub(super) greeted: Option<oneshot::Sender<()>>,
}

/// See the module.
pub(super) struct State {
    /// Frames for the driver.
    pub(super) out: Output,
    /// Bytes that the driver has taken and not written.
    pub(super) writing: usize,
    /// The driver, while it is idle.
    pub(super) task: Option<Waker>,
    pub(super) phase: Phase,
    /// Nobody can make a call any more.
    pub(super) released: bool,
    /// Streams whose answer has not ended.
    pub(super) running: usize,
    greeted: Option<oneshot::Sender<()>>,
    compressor: Compressor,
    slots: Slab<Slot>,
    places: HashMap<u32, usize, foldhash::fast::RandomState>,
    /// The next stream's number.
    next: u32,
    /// Bytes that the peer accepts on all streams together.
    window: i64,
    /// Bytes that it accepts on a new stream.
    initial_window: i64,
    /// That number was raised, so streams may have room again. They are looked at once for all that was read: the peer
    /// can change the number with every few bytes.
    widened: bool,
    max_payload: usize,
    pub(super) max_streams: usize,
    /// The last stream that the peer will answer.
    last: u32,
    /// Numbers of streams with data that may be sent. Some may be gone.
    ready: VecDeque<u32>,
    /// Bytes that arrived since the connection's window was widened.
    received: u32,
    stream_window: i64,
}

/// The phase of a connection's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The peer has not sent its settings.
    Greeting,
    Open,
    /// The peer asked to leave: no more calls.
    Leaving,
    Closed(Lost),
}

/// A stream.
pub(super) struct Slot {
    id: u32,
    waker: Option<Waker>,
    /// The piece of the request that is not sent yet.
    pending: Bytes,
    /// The request ends after it.
    ends: bool,
    /// The end of the request was sent.
    pub(super) sent: bool,
    /// It is in `ready`.
    queued: bool,
    /// Bytes that the peer accepts, without the initial window.
    window: i64,
    /// Bytes that the peer may send.
    receive_window: i64,
    /// Bytes that the call has read since the window was widened.
    read: u32,
    has_head: bool,
    /// Bytes of the answer that are still to come, if its length was declared.
    length: Option<u64>,
    /// Boxed, because it is handed on several times.
    pub(super) answer: Box<Answer>,
}

/// What has arrived of an answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) head: Option<(StatusCode, HeaderMap)>,
    pub(super) data: VecDeque<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
    pub(super) end: Option<Result<(), Lost>>,
}

/// Something that the driver has read.
pub(super) enum Event {
    Fields {
        id: u32,
        end: bool,
        fields: Fields,
    },
    Data {
        id: u32,
        end: bool,
        data: Bytes,
        used: u32,
    },
    Reset {
        id: u32,
        reason: Reason,
    },
    Window {
        id: u32,
        more: i64,
    },
    Settings(SmallVec<[Setting; 6]>),
    GoAway {
        last: u32,
        reason: Reason,
    },
    /// A frame that concerns no call.
    Heard,
}

impl State {
    pub(super) fn new(limits: &ClientLimits, greeted: oneshot::Sender<()>) -> Self {
        let mut out = Output::default();
        out.own().extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        frame::put_client_settings(out.own(), limits.stream_window, limits.max_header_list);
        frame::put_window_update(out.own(), 0, (MAX_WINDOW - FIRST_WINDOW) as u32);
        Self {
            out,
            writing: 0,
            task: None,
            phase: Phase::Greeting,
            released: false,
            running: 0,
            greeted: Some(greeted),
            compressor: Compressor::new(),
            slots: Slab::new(),
            places: HashMap::default(),
            next: 1,
            window: FIRST_WINDOW,
            initial_window: FIRST_WINDOW,
            widened: false,
            max_payload: MAX_PAYLOAD,
            max_streams: usize::MAX,
            last: MAX_STREAM,
            ready: VecDeque::new(),
            received: 0,
            stream_window: i64::from(limits.stream_window),
        }
    }

    /// Whether no more calls can be made.
    pub(super) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Leaving | Phase::Closed(_))
    }

    /// Bytes that wait for the socket.
    pub(super) fn backlog(&self) -> usize {
        self.out.len() + self.writing
    }

    /// Nobody can make a call any more. Returns the driver's waker.
    pub(super) fn release(&mut self) -> Option<Waker> {
        self.released = true;
        self.task.take()
    }

    /// Whether the connection is of no more use.
    pub(super) fn is_over(&self) -> bool {
        self.running == 0 && (self.released || self.phase == Phase::Leaving)
    }

    /// Opens a stream and writes the request's head. Returns its place; `None` if the peer accepts no more
    /// streams at this time, or at all.
    pub(super) fn open(&mut self, head: &CallHead<'_>) -> Option<usize> {
        if self.phase != Phase::Open || self.running >= self.max_streams {
            return None;
        }
        if self.next > MAX_STREAM {
            self.phase = Phase::Leaving;
            return None;
        }
        let id = self.next;
        self.next += 2;
        let Self { out, compressor, max_payload, .. } = self;
        put_fields(out.own(), id, false, *max_payload, |block| {
            compressor.request(block, head.secure, head.authority, head.path, head.headers);
        });
        let place = self.slots.insert(Slot {
            id,
            waker: None,
            pending: Bytes::new(),
            ends: false,
            sent: false,
            queued: false,
            window: 0,
            receive_window: self.stream_window,
            read: 0,
            has_head: false,
            length: None,
            answer: Box::default(),
        });
        self.places.insert(id, place);
        self.running += 1;
        Some(place)
    }

    /// The stream of a call that has not given it back.
    pub(super) fn slot(&mut self, place: usize) -> &mut Slot {
        &mut self.slots[place]
    }

    /// Offers the next piece of a request. The one before must have been sent.
    pub(super) fn offer(&mut self, place: usize, data: Bytes, ends: bool, wakes: &mut Wakes) {
        let slot = &mut self.slots[place];
        if slot.sent || matches!(slot.answer.end, Some(Err(_))) {
            return;
        }
        if data.is_empty() {
            if ends {
                slot.sent = true;
                frame::put_data(self.out.own(), 0, true, slot.id);
                wakes.extend(self.task.take());
            }
            return;
        }
        (slot.pending, slot.ends) = (data, ends);
        if self.initial_window + slot.window > 0 {
            slot.queued = true;
            let id = slot.id;
            self.ready.push_back(id);
            self.send_ready(wakes);
        }
    }

    /// Puts data of streams into the output as far as there is room.
    pub(super) fn send_ready(&mut self, wakes: &mut Wakes) {
        while self.window > 0 && self.backlog() < Limits::OUTPUT {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(slot) = self.places.get(&id).and_then(|place| self.slots.get_mut(*place)) else { continue };
            let room = (self.initial_window + slot.window).min(self.window).max(0) as usize;
            let len = slot.pending.len().min(room).min(self.max_payload);
            if len == 0 {
                // Its window was made smaller meanwhile.
                slot.queued = false;
                continue;
            }
            let all = len == slot.pending.len();
            frame::put_data(self.out.own(), len, all && slot.ends, id);
            self.out.take(&mut slot.pending, len);
            slot.window -= len as i64;
            self.window -= len as i64;
            slot.queued = !all && self.initial_window + slot.window > 0;
            if slot.queued {
                self.ready.push_back(id);
            }
            if all {
                slot.pending = Bytes::new();
                slot.sent = slot.ends;
                if !slot.ends {
                    wakes.extend(slot.waker.take());
                }
            }
            wakes.extend(self.task.take());
        }
    }

    /// The call has read this much of its answer, so the peer may send more.
    pub(super) fn count_read(&mut self, place: usize, bytes: usize, wakes: &mut Wakes) {
        let slot = &mut self.slots[place];
        slot.read += bytes as u32;
        if i64::from(slot.read) >= self.stream_window / 2 && slot.answer.end.is_none() {
            let read = std::mem::take(&mut slot.read);
            slot.receive_window += i64::from(read);
            frame::put_window_update(self.out.own(), slot.id, read);
            wakes.extend(self.task.take());
        }
    }

    /// Removes the stream of a call that is over, or does not want its answer any more. The peer is told if it does not
    /// know that.
    pub(super) fn close(&mut self, place: usize, wakes: &mut Wakes) -> Box<Answer> {
        let slot = self.slots.remove(place);
        self.places.remove(&slot.id);
        if slot.answer.end.is_none() {
            self.running -= 1;
        }
        let is_known = matches!(slot.answer.end, Some(Err(_))) || slot.answer.end.is_some() && slot.sent;
        if !is_known && !matches!(self.phase, Phase::Closed(_)) {
            frame::put_reset(self.out.own(), slot.id, Reason::CANCEL);
            wakes.extend(self.task.take());
        }
        if self.is_over() {
            wakes.extend(self.task.take());
        }
        if self.ready.len() > 2 * self.slots.len() + 16 {
            self.ready.retain(|id| self.places.contains_key(id));
        }
        slot.answer
    }

    /// Applies what was read.
    ///
    /// # Errors
    /// Returns the reason for which the connection must end.
    pub(super) fn apply(&mut self, event: Event, effects: &mut Effects) -> Result<(), Reason> {
        let wakes = &mut effects.wakes;
        match event {
            Event::Fields { id, end, fields } => self.take_fields(id, end, fields, wakes),
            Event::Data { id, end, data, used } => self.take_data(id, end, data, used, wakes),
            Event::Reset { id, reason } => {
                let Some(place) = self.find(id)? else { return Ok(()) };
                let slot = &mut self.slots[place];
                if slot.answer.end.is_none() {
                    self.end(place, Err(Lost::Reset(reason)), wakes);
                } else {
                    // The peer has answered, and needs no more of the request.
                    (slot.sent, slot.pending) = (true, Bytes::new());
                }
                Ok(())
            }
            Event::Window { id: 0, more } => {
                if more == 0 {
                    return Err(Reason::PROTOCOL_ERROR);
                }
                self.window += more;
                if self.window > MAX_WINDOW {
                    return Err(Reason::FLOW_CONTROL_ERROR);
                }
                Ok(())
            }
            Event::Window { id, more } => {
                let Some(place) = self.find(id)? else { return Ok(()) };
                if more == 0 {
                    return self.fail(place, Reason::PROTOCOL_ERROR, wakes);
                }
                let slot = &mut self.slots[place];
                slot.window += more;
                if self.initial_window + slot.window > MAX_WINDOW {
                    return self.fail(place, Reason::FLOW_CONTROL_ERROR, wakes);
                }
                self.queue(place);
                Ok(())
            }
            Event::Settings(settings) => {
                self.take_settings(&settings, effects);
                Ok(())
            }
            Event::Heard => Ok(()),
            Event::GoAway { last, reason } => {
                if matches!(self.phase, Phase::Greeting | Phase::Open) {
                    self.phase = Phase::Leaving;
                }
                if last >= self.last {
                    return Ok(());
                }
                self.last = last;
                let lost = Lost::Connection(format!("the peer is closing the connection: {reason}").into());
                let late: Vec<usize> =
                    self.places.iter().filter(|(id, _)| **id > last).map(|(_, place)| *place).collect();
                for place in late {
                    self.end(place, Err(lost.clone()), wakes);
                }
                Ok(())
            }
        }
    }

    /// Ends all calls, and refuses further ones. Returns who still waits for the peer's settings.
    pub(super) fn end_all(&mut self, lost: &Lost, wakes: &mut Wakes) -> Option<oneshot::Sender<()>> {
        if matches!(self.phase, Phase::Closed(_)) {
            return None;
        }
        self.phase = Phase::Closed(lost.clone());
        let all: Vec<usize> = self.places.values().copied().collect();
        for place in all {
            self.end(place, Err(lost.clone()), wakes);
        }
        self.ready = VecDeque::new();
        self.out = Output::default();
        self.greeted.take()
    }

    /// The place of an open stream. `None` if it was closed before.
    fn find(&self, id: u32) -> Result<Option<usize>, Reason> {
        if id.is_multiple_of(2) || id >= self.next {
            return Err(Reason::PROTOCOL_ERROR);
        }
        Ok(self.places.get(&id).copied())
    }

    /// Queues the data of a stream that may be sent.
    fn queue(&mut self, place: usize) {
        let slot = &mut self.slots[place];
        if self.initial_window + slot.window > 0
            && !slot.pending.is_empty()
            && !std::mem::replace(&mut slot.queued, true)
        {
            self.ready.push_back(slot.id);
        }
    }

    fn end(&mut self, place: usize, end: Result<(), Lost>, wakes: &mut Wakes) {
        let slot = &mut self.slots[place];
        if slot.answer.end.is_some() {
            return;
        }
        if end.is_err() {
            // Nothing more is sent.
            slot.pending = Bytes::new();
        }
        slot.answer.end = Some(end);
        self.running -= 1;
        wakes.extend(slot.waker.take());
    }

    /// Ends a call whose answer cannot be used.
    fn fail(&mut self, place: usize, reason: Reason, wakes: &mut Wakes) -> Result<(), Reason> {
        let slot = &self.slots[place];
        if !matches!(slot.answer.end, Some(Err(_))) {
            frame::put_reset(self.out.own(), slot.id, reason);
            self.end(place, Err(Lost::Unusable(reason)), wakes);
        }
        Ok(())
    }

    fn take_fields(&mut self, id: u32, end: bool, fields: Fields, wakes: &mut Wakes) -> Result<(), Reason> {
        let Some(place) = self.find(id)? else { return Ok(()) };
        let slot = &mut self.slots[place];
        match &slot.answer.end {
            Some(Ok(())) => return self.fail(place, Reason::STREAM_CLOSED, wakes),
            Some(Err(_)) => return Ok(()),
            None => {}
        }
        let reason = |rejected| match rejected {
            Rejected::Malformed => Reason::PROTOCOL_ERROR,
            Rejected::TooLarge => Reason::ENHANCE_YOUR_CALM,
        };
        if slot.has_head {
            return match fields.trailers() {
                Ok(trailers) if end && slot.length.is_none_or(|left| left == 0) => {
                    slot.answer.trailers = Some(trailers);
                    self.end(place, Ok(()), wakes);
                    Ok(())
                }
                Ok(_) => self.fail(place, Reason::PROTOCOL_ERROR, wakes),
                Err(rejected) => self.fail(place, reason(rejected), wakes),
            };
        }
        match fields.answer() {
            Ok((status, _, _)) if status.is_informational() && !end => Ok(()),
            Ok((status, _, _)) if status.is_informational() => self.fail(place, Reason::PROTOCOL_ERROR, wakes),
            Ok((_, _, Some(length))) if end && length > 0 => self.fail(place, Reason::PROTOCOL_ERROR, wakes),
            Ok((status, headers, length)) => {
                (slot.has_head, slot.length) = (true, length);
                slot.answer.head = Some((status, headers));
                if end {
                    self.end(place, Ok(()), wakes);
                } else {
                    wakes.extend(slot.waker.take());
                }
                Ok(())
            }
            Err(rejected) => self.fail(place, reason(rejected), wakes),
        }
    }

    fn take_data(&mut self, id: u32, end: bool, data: Bytes, used: u32, wakes: &mut Wakes) -> Result<(), Reason> {
        self.received += used;
        if self.received >= REPORT_FROM {
            frame::put_window_update(self.out.own(), 0, std::mem::take(&mut self.received));
        }
        let Some(place) = self.find(id)? else { return Ok(()) };
        let slot = &mut self.slots[place];
        match &slot.answer.end {
            Some(Ok(())) => return self.fail(place, Reason::STREAM_CLOSED, wakes),
            Some(Err(_)) => return Ok(()),
            None => {}
        }
        slot.receive_window -= i64::from(used);
        if slot.receive_window < 0 {
            return self.fail(place, Reason::FLOW_CONTROL_ERROR, wakes);
        }
        if !slot.has_head {
            return self.fail(place, Reason::PROTOCOL_ERROR, wakes);
        }
        if let Some(left) = &mut slot.length {
            match left.checked_sub(data.len() as u64) {
                Some(rest) if !end || rest == 0 => *left = rest,
                _ => return self.fail(place, Reason::PROTOCOL_ERROR, wakes),
            }
        }
        // Padding counts like data that was read.
        slot.read += used - data.len() as u32;
        if !data.is_empty() {
            join(&mut slot.answer.data, data);
            wakes.extend(slot.waker.take());
        }
        if end {
            self.end(place, Ok(()), wakes);
        }
        Ok(())
    }

    fn take_settings(&mut self, settings: &[Setting], effects: &mut Effects) {
        frame::put_settings_ack(self.out.own());
        for setting in settings {
            match *setting {
                Setting::InitialWindow(window) => {
                    self.widened |= i64::from(window) > self.initial_window;
                    self.initial_window = i64::from(window);
                }
                Setting::MaxPayload(len) => self.max_payload = len,
                Setting::TableSize(size) => self.compressor.allow(size),
                Setting::MaxStreams(streams) => self.max_streams = streams as usize,
                Setting::Other => {}
            }
        }
        if self.phase == Phase::Greeting {
            self.phase = Phase::Open;
        }
        effects.greeted = self.greeted.take();
    }

    /// Called after all events of a read.
    ///
    /// # Errors
    /// Returns the reason for which the connection must end.
    pub(super) fn settle(&mut self, wakes: &mut Wakes) -> Result<(), Reason> {
        if std::mem::take(&mut self.widened) {
            let places: Vec<usize> = self.places.values().copied().collect();
            for place in places {
                if self.initial_window + self.slots[place].window > MAX_WINDOW {
                    return Err(Reason::FLOW_CONTROL_ERROR);
                }
                self.queue(place);
            }
        }
        self.send_ready(wakes);
        Ok(())
    }
}

impl Slot {
    /// Whether the piece that was offered last has been sent, so that there is room for the next one.
    pub(super) fn has_room(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn wait(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }
}

/// The state of a shared connection, for the error of a call that came too late.
pub(super) fn closed(phase: &Phase) -> Lost {
    match phase {
        Phase::Closed(lost) => lost.clone(),
        Phase::Leaving => Lost::Connection(Arc::from("the peer is closing the connection")),
        Phase::Greeting | Phase::Open => Lost::Connection(Arc::from("the peer accepts no more calls now")),
    }
}
