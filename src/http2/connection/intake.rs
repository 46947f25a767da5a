//! Input of a connection: turns bytes into frames, and applies each frame.
//!
//! Output is in `stream`. Always holds: complete frames are applied in order. Work that a peer causes for nothing, for
//! example by streams that it resets at once, is counted and limited.

use std::{
    cell::Cell,
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use h2::Reason;
use http::{Request, Response, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    super::{
        Failure,
        body::Body,
        frame::{self, ACK, END_HEADERS, END_STREAM, HEAD, Head, Kind, MAX_PAYLOAD, MAX_WINDOW, Setting},
        hpack::{self, Decoder},
        limits::{Limits, Refused},
        request::{Fields, Rejected},
        stream::{Stream, put_fields},
    },
    BACKLOG, Connection, LAST_CALL, Phase,
};

/// Bytes per read. All connections of a thread share this buffer.
const READ: usize = 64 << 10;
/// What each client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The size of a field table unless the settings change it.
const DEFAULT_TABLE: u32 = 4096;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What a connection keeps of its input.
#[derive(Debug)]
pub(super) struct Intake {
    /// The beginning of a frame; if `has_more` is set, with complete frames before it.
    partial: Vec<u8>,
    /// When the incomplete frame began.
    since: Instant,
    /// There are complete frames left for another turn.
    has_more: bool,
    decoder: Decoder,
    /// Bytes that the peer may still send.
    window: i64,
    /// The highest stream number so far.
    pub(super) last: u32,
    has_greeted: bool,
    has_settings: bool,
    fields: Option<Block>,
    reset: VecDeque<u32>,
    wasted: u32,
}

/// A block of fields that continues in further frames.
#[derive(Debug)]
struct Block {
    stream: u32,
    end: bool,
    bytes: Vec<u8>,
    frames: u32,
    since: Instant,
}

impl Intake {
    pub(super) fn new(window: u32) -> Self {
        Self {
            partial: Vec::new(),
            since: Instant::now(),
            has_more: false,
            decoder: Decoder::new(DEFAULT_TABLE as usize),
            window: i64::from(window),
            last: 0,
            has_greeted: false,
            has_settings: false,
            fields: None,
            reset: VecDeque::new(),
            wasted: 0,
        }
    }

    /// Since when an incomplete frame or block holds up everything after it.
    pub(super) fn unfinished_since(&self) -> Option<Instant> {
        let frame = (!self.partial.is_empty() && !self.has_more).then_some(self.since);
        self.fields.as_ref().map(|fields| fields.since).into_iter().chain(frame).min()
    }

    /// Allows the peer to send this many bytes more.
    pub(super) fn widen(&mut self, more: u32) {
        self.window += i64::from(more);
    }

    /// Remembers a stream that we reset, since frames that still arrive for it are not the peer's fault.
    pub(super) fn remember_reset(&mut self, id: u32) {
        if self.reset.len() >= Limits::REMEMBERED_RESETS {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
    }

    /// Counts a stream that was answered, at least in part.
    pub(super) fn count_served(&mut self) {
        self.wasted = self.wasted.saturating_sub(1);
    }

    fn count_wasted(&mut self) -> Result<(), Reason> {
        self.wasted += 1;
        if self.wasted > Limits::WASTED_STREAMS { Err(Reason::ENHANCE_YOUR_CALM) } else { Ok(()) }
    }
}

impl<T, S, F, B, E> Connection<T, S, F, B, E>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<Body>) -> F,
    F: Future<Output = Result<Response<B>, Failure>>,
    B: http_body::Body<Error: Into<Failure>> + Unpin,
    E: Future<Output = ()> + Unpin,
{
    /// Reads and applies input. Ready with false if the peer has closed its side.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<bool>> {
        if std::mem::take(&mut self.intake.has_more) {
            // Input that was read earlier and was too much for one turn.
            let left = std::mem::take(&mut self.intake.partial);
            match self.take_frames(&left) {
                Ok(taken) => self.intake.partial = left[taken..].to_vec(),
                Err(reason) => self.close(reason),
            }
            if self.intake.has_more || matches!(self.phase, Phase::Closing(_)) {
                return Poll::Ready(Ok(true));
            }
        }
        let mut buffer = BUFFER.take();
        if buffer.is_empty() {
            buffer = vec![0; READ];
        }
        let outcome = loop {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.io).poll_read(cx, &mut read) {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let read = read.filled();
            if read.is_empty() {
                break Poll::Ready(Ok(false));
            }
            if let Err(reason) = self.take_bytes(read) {
                self.close(reason);
                break Poll::Ready(Ok(true));
            }
            if read.len() == READ || self.output.len() >= BACKLOG || self.intake.has_more {
                // There may be more, which is left for the next turn.
                break Poll::Ready(Ok(true));
            }
        };
        BUFFER.set(buffer);
        outcome
    }

    fn take_bytes(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        if self.intake.partial.is_empty() {
            let taken = self.take_frames(bytes)?;
            self.heard(true, taken > 0);
            self.intake.partial = bytes[taken..].to_vec();
            return Ok(());
        }
        let mut joined = std::mem::take(&mut self.intake.partial);
        joined.extend_from_slice(bytes);
        let taken = self.take_frames(&joined)?;
        self.heard(false, taken > 0);
        // Only as much room as the beginning of a frame needs, since it may stay for long.
        self.intake.partial = if taken == 0 { joined } else { joined[taken..].to_vec() };
        Ok(())
    }

    /// Notes that input arrived that begins a frame or contains complete ones.
    fn heard(&mut self, begins: bool, has_whole: bool) {
        if begins || has_whole {
            let now = Instant::now();
            self.intake.since = now;
            if has_whole {
                self.rare.watchdog.heard = now;
            }
        }
    }

    /// Applies the complete frames in `bytes`. Returns the number of bytes they take.
    fn take_frames(&mut self, bytes: &[u8]) -> Result<usize, Reason> {
        let mut taken = 0;
        if !self.intake.has_greeted {
            let known = bytes.len().min(PREFACE.len());
            if bytes[..known] != PREFACE[..known] {
                return Err(Reason::PROTOCOL_ERROR);
            }
            if known < PREFACE.len() {
                return Ok(0);
            }
            self.intake.has_greeted = true;
            taken = known;
        }
        while let Some(head) = Head::read(&bytes[taken..]) {
            if head.len > MAX_PAYLOAD {
                return Err(Reason::FRAME_SIZE_ERROR);
            }
            let Some(payload) = bytes[taken + HEAD..].get(..head.len) else { break };
            if !self.turn.step() || self.streams.fresh >= Limits::FRESH {
                self.intake.has_more = true;
                break;
            }
            self.take(head, payload)?;
            taken += HEAD + head.len;
        }
        Ok(taken)
    }

    fn take(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        if !self.intake.has_settings {
            // SETTINGS must be the first frame.
            if head.kind != Kind::Settings || head.has(ACK) {
                return Err(Reason::PROTOCOL_ERROR);
            }
            self.intake.has_settings = true;
        }
        if let Some(fields) = &self.intake.fields
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
        match head.kind {
            Kind::Data => self.take_data(head, payload),
            Kind::Headers => {
                let block = head.block(payload)?;
                if head.has(END_HEADERS) {
                    return self.take_fields(head.stream, head.has(END_STREAM), block);
                }
                let (stream, end, since) = (head.stream, head.has(END_STREAM), Instant::now());
                self.intake.fields = Some(Block { stream, end, bytes: block.to_vec(), frames: 0, since });
                Ok(())
            }
            Kind::Continuation => self.take_continuation(head, payload),
            Kind::Priority => frame::check_priority(head.stream, payload),
            Kind::Reset => self.take_reset(head.stream, frame::number(payload)?),
            Kind::Settings => self.take_settings(head, payload),
            Kind::Ping => self.take_ping(head, payload),
            Kind::GoAway if payload.len() < 8 => Err(Reason::FRAME_SIZE_ERROR),
            Kind::GoAway => {
                self.peer.leaves = true;
                Ok(())
            }
            Kind::WindowUpdate => self.take_window_update(head.stream, frame::number(payload)?),
            Kind::Push => Err(Reason::PROTOCOL_ERROR),
            Kind::Unknown => Ok(()),
        }
    }

    fn take_data(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        let data = head.unpadded(payload)?;
        self.intake.window -= payload.len() as i64;
        if self.intake.window < 0 {
            return Err(Reason::FLOW_CONTROL_ERROR);
        }
        let Some((_, stream)) = self.streams.get_mut(head.stream) else {
            self.wakes.count_read(payload.len() as u32);
            return self.closed(head.stream);
        };
        let ended = match stream.receive(data, payload.len(), &self.wakes) {
            Err(reason) => {
                self.wakes.count_read(payload.len() as u32);
                Err(reason)
            }
            Ok(_) if head.has(END_STREAM) => stream.end(None),
            Ok(0) => Ok(()),
            Ok(padding) => {
                frame::put_window_update(self.output.own(), head.stream, padding);
                Ok(())
            }
        };
        if ended.is_ok() && !data.is_empty() {
            self.streams.hold(head.stream, data.len());
            if self.streams.held > self.rare.limits.unanswered {
                (self.rare.on_refusal)(Refused::Unanswered);
                return self.reset(head.stream, Reason::ENHANCE_YOUR_CALM);
            }
        }
        ended.or_else(|reason| self.reset(head.stream, reason))
    }

    /// Handles a frame for a stream that is not open.
    fn closed(&mut self, id: u32) -> Result<(), Reason> {
        self.check_opened(id)?;
        if id <= self.intake.last && !self.intake.reset.contains(&id) {
            self.reset(id, Reason::STREAM_CLOSED)?;
        }
        Ok(())
    }

    /// Checks that the peer has opened this stream at some time. This includes a stream that was opened too late to be
    /// served.
    fn check_opened(&self, id: u32) -> Result<(), Reason> {
        let too_late = id > self.intake.last && self.phase == Phase::Finishing;
        let opened = !id.is_multiple_of(2) && (id <= self.intake.last || too_late);
        if opened { Ok(()) } else { Err(Reason::PROTOCOL_ERROR) }
    }

    /// Ends a stream because of an error of the peer.
    pub(super) fn reset(&mut self, id: u32, reason: Reason) -> Result<(), Reason> {
        self.intake.count_wasted()?;
        self.intake.remember_reset(id);
        frame::put_reset(self.output.own(), id, reason);
        if let Some(stream) = self.streams.remove(id) {
            stream.break_off(reason, &self.wakes);
        }
        Ok(())
    }

    fn take_continuation(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        let fields = self.intake.fields.as_mut().ok_or(Reason::PROTOCOL_ERROR)?;
        fields.frames += 1;
        // Decoding does not make fields smaller, so a block over this size cannot become a request that is served.
        if fields.frames > Limits::CONTINUATIONS
            || fields.bytes.len() + payload.len() > self.rare.limits.max_header_list as usize
        {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        fields.bytes.extend_from_slice(payload);
        if head.has(END_HEADERS)
            && let Some(Block { stream, end, bytes, .. }) = self.intake.fields.take()
        {
            return self.take_fields(stream, end, &bytes);
        }
        Ok(())
    }

    fn take_fields(&mut self, id: u32, end: bool, block: &[u8]) -> Result<(), Reason> {
        let mut fields = Fields::new(self.rare.limits.max_header_list as usize);
        let decoded = self.intake.decoder.decode(block, |field, size| fields.add(field, size));
        if let Err(malformed) = decoded {
            tracing::debug!(%malformed, "A client sent fields that cannot be decoded");
            return Err(Reason::COMPRESSION_ERROR);
        }
        if let Some((_, stream)) = self.streams.get_mut(id) {
            // Trailers are the end of the request.
            let ended = match fields.trailers() {
                _ if stream.has_ended() => Err(Reason::STREAM_CLOSED),
                Ok(trailers) if end => stream.end(Some(trailers)),
                _ => Err(Reason::PROTOCOL_ERROR),
            };
            return ended.or_else(|reason| self.reset(id, reason));
        }
        if id <= self.intake.last || id.is_multiple_of(2) {
            return if self.intake.reset.contains(&id) { Ok(()) } else { Err(Reason::PROTOCOL_ERROR) };
        }
        if matches!(self.phase, Phase::Finishing | Phase::Closing(_)) {
            // The peer was told which stream is the last one that is served.
            return Ok(());
        }
        self.intake.last = id;
        if self.streams.all.len() >= self.rare.limits.max_streams as usize {
            (self.rare.on_refusal)(Refused::Streams);
            return self.reset(id, Reason::REFUSED_STREAM);
        }
        let head = match fields.request() {
            Ok(head) => head,
            Err(Rejected::Malformed) => return self.reset(id, Reason::PROTOCOL_ERROR),
            Err(Rejected::TooLarge) => {
                (self.rare.on_refusal)(Refused::Fields);
                self.intake.count_wasted()?;
                let shrinks_table = std::mem::take(&mut self.peer.shrinks_table);
                put_fields(self.output.own(), id, true, self.peer.max_payload, |out| {
                    if shrinks_table {
                        hpack::encode_table_size(out, 0);
                    }
                    hpack::encode_head(out, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &http::HeaderMap::new());
                });
                if !end {
                    self.intake.remember_reset(id);
                    frame::put_reset(self.output.own(), id, Reason::NO_ERROR);
                }
                return Ok(());
            }
        };
        let windows = (self.peer.stream_window - self.peer.ahead, i64::from(self.rare.limits.stream_window));
        self.streams.make_room();
        let entry = self.streams.all.vacant_entry();
        let place = entry.key();
        let mut stream = Stream::new(id, &self.wakes, place, head, windows);
        if self.streams.held + stream.held() > self.rare.limits.unanswered {
            (self.rare.on_refusal)(Refused::Unanswered);
            return self.reset(id, Reason::REFUSED_STREAM);
        }
        let ended = if end { stream.end(None) } else { Ok(()) };
        self.streams.held += stream.held();
        self.streams.fresh += 1;
        entry.insert(stream);
        self.streams.places.insert(id, place);
        self.streams.queue(place);
        ended.or_else(|reason| self.reset(id, reason))
    }

    fn take_reset(&mut self, id: u32, reason: u32) -> Result<(), Reason> {
        match self.streams.remove(id) {
            Some(stream) => {
                if stream.is_new() {
                    // The stream was opened and reset at once, which only made work for us.
                    self.intake.count_wasted()?;
                }
                stream.break_off(reason.into(), &self.wakes);
                Ok(())
            }
            None => self.check_opened(id),
        }
    }

    fn take_settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        if head.has(ACK) {
            return if payload.is_empty() { Ok(()) } else { Err(Reason::FRAME_SIZE_ERROR) };
        }
        for setting in frame::settings(payload)? {
            match setting? {
                Setting::InitialWindow(window) => {
                    self.peer.ahead += i64::from(window) - self.peer.stream_window;
                    self.peer.stream_window = i64::from(window);
                }
                Setting::MaxPayload(len) => self.peer.max_payload = len,
                Setting::TableSize(size) => self.peer.shrinks_table |= size < DEFAULT_TABLE,
                Setting::MaxStreams(_) | Setting::Other => {}
            }
        }
        frame::put_settings_ack(self.output.own());
        Ok(())
    }

    fn take_ping(&mut self, head: Head, payload: &[u8]) -> Result<(), Reason> {
        let opaque: [u8; 8] = payload.try_into().map_err(|_| Reason::FRAME_SIZE_ERROR)?;
        if !head.has(ACK) {
            frame::put_ping(self.output.own(), true, opaque);
        } else if opaque == LAST_CALL && self.phase == Phase::Stopping {
            // All requests that were under way have arrived.
            frame::put_go_away(self.output.own(), self.intake.last, Reason::NO_ERROR);
            self.phase = Phase::Finishing;
        }
        Ok(())
    }

    fn take_window_update(&mut self, id: u32, more: u32) -> Result<(), Reason> {
        let more = i64::from(more) & MAX_WINDOW;
        if id == 0 {
            if more == 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            self.peer.window += more;
            if self.peer.window > MAX_WINDOW {
                return Err(Reason::FLOW_CONTROL_ERROR);
            }
            return Ok(());
        }
        match self.streams.get_mut(id) {
            None => self.check_opened(id),
            Some(_) if more == 0 => self.reset(id, Reason::PROTOCOL_ERROR),
            Some((place, stream)) => {
                if !stream.widen(more, self.peer.ahead) {
                    return self.reset(id, Reason::FLOW_CONTROL_ERROR);
                }
                self.streams.queue(place);
                Ok(())
            }
        }
    }
}
