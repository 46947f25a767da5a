//! [`Session`]: the client side of one HTTP/2 connection with gRPC, without any I/O of its own.
//!
//! Sockets are in `link`, the content of messages is in `message`. It is handwritten because the load generator shares
//! the machine with the server that it measures: a complete message is passed on in place, without a task, a queue or a
//! copy. Always holds: received window is given back as data is read. Nothing is sent beyond the server's windows. A
//! frame that breaks the protocol is an error and ends the connection.

use std::mem;

use hashbrown::HashMap;
use percent_encoding::percent_decode_str;
use thiserror::Error;

use super::hpack;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
/// The largest frame that RFC 9113 allows by default.
const FRAME_MAX: usize = 16 << 10;
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
/// The window of a stream. It is that of etcd's own client on fast networks, and is given back by halves.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Longest gRPC message that is accepted.
const MESSAGE_MAX: usize = 512 << 20;

/// Most memory that is reserved for a message before it has arrived.
const MESSAGE_RESERVED: usize = 256 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// Why a connection failed.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum WireError {
    #[error("the server breaks HTTP/2: {0}")]
    Protocol(&'static str),
    #[error("the server closes the connection: error {code}, {text:?}")]
    GoAway { code: u32, text: String },
    #[error("the server sends compressed messages, which were not asked for")]
    Compressed,
}

/// An event of the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A gRPC message on this stream.
    Message(u32, &'a [u8]),
    /// The server ended the stream.
    Ended(u32, Status),
}

/// The result of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// The `grpc-status` is 0.
    Ok,
    /// Any other status, or none.
    Failed(String),
}

/// Receives the events.
pub(super) type OnEvent<'a, E> = &'a mut dyn FnMut(&mut Sender, Event<'_>) -> Result<(), E>;

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    /// A frame that is not complete yet.
    partial: Vec<u8>,
    /// Trailers that are not complete yet: their stream, and whether it ends.
    block: Option<(u32, bool, Vec<u8>)>,
    /// The trailers of the last successful call. Most are the same bytes.
    good_trailers: Vec<u8>,
    read: u32,
    stream_window: u32,
    streams: HashMap<u32, WireStream>,
    /// Streams with data to send.
    waiting: Vec<u32>,
    sender: Sender,
}

/// The sending half, which the receiver of an event may use.
#[derive(Debug)]
pub(super) struct Sender {
    out: Vec<u8>,
    next_stream: u32,
    window: i64,
    initial_window: i64,
    /// Streams that the receiver of an event has opened.
    opened: Vec<(u32, Outgoing)>,
    /// Messages for open streams.
    queued: Vec<(u32, Vec<u8>)>,
    authority: String,
}

#[derive(Debug)]
struct WireStream {
    outgoing: Outgoing,
    /// A message that is not complete yet, with its head of five bytes.
    message: Vec<u8>,
    read: u32,
}

#[derive(Debug)]
struct Outgoing {
    /// Data for which the server's window has no room.
    waiting: Vec<u8>,
    window: i64,
    end: bool,
}

impl Session {
    /// Opens a session to a server with this authority (`host:port`), which may send `stream_window` bytes ahead on a
    /// stream.
    pub(super) fn open(authority: &str, stream_window: u32) -> Self {
        let mut out = PREFACE.to_vec();
        let settings: [(u16, u32); 3] = [
            // No dynamic table, so each block of headers can be read or skipped separately.
            (1, 0),
            // No server push.
            (2, 0),
            (4, stream_window),
        ];
        head(&mut out, settings.len() * 6, SETTINGS, 0, 0);
        for (name, value) in settings {
            out.extend_from_slice(&name.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        window_update(&mut out, 0, CONNECTION_WINDOW - DEFAULT_WINDOW);
        Self { stream_window, ..Self::with(out, authority) }
    }

    /// A session whose server sends frames on `stream` without a request.
    pub(super) fn listening(stream: u32) -> Self {
        let mut session = Self::with(Vec::new(), "");
        session.streams.insert(stream, WireStream::new(Outgoing { waiting: Vec::new(), window: 0, end: true }));
        session
    }

    fn with(out: Vec<u8>, authority: &str) -> Self {
        Self {
            partial: Vec::new(),
            block: None,
            good_trailers: Vec::new(),
            read: 0,
            stream_window: STREAM_WINDOW,
            streams: HashMap::new(),
            waiting: Vec::new(),
            sender: Sender {
                out,
                next_stream: 1,
                window: i64::from(DEFAULT_WINDOW),
                initial_window: i64::from(DEFAULT_WINDOW),
                opened: Vec::new(),
                queued: Vec::new(),
                authority: authority.to_owned(),
            },
        }
    }

    /// Opens streams and sends on them.
    pub(super) fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// The bytes for the socket. The caller removes what it has written.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        self.flush();
        &mut self.sender.out
    }

    /// Reads bytes from the socket and passes on complete events.
    pub(super) fn input<E: From<WireError>>(&mut self, mut bytes: &[u8], on: OnEvent<'_, E>) -> Result<(), E> {
        if !self.partial.is_empty() {
            let mut partial = mem::take(&mut self.partial);
            if partial.len() < HEAD {
                let (part, rest) = bytes.split_at(bytes.len().min(HEAD - partial.len()));
                partial.extend_from_slice(part);
                bytes = rest;
            }
            if let Some(length) = frame_length(&partial)? {
                let (part, rest) = bytes.split_at(bytes.len().min(length - partial.len()));
                partial.extend_from_slice(part);
                bytes = rest;
                if partial.len() == length {
                    self.frame(&partial, on)?;
                    partial.clear();
                    // Of thousands of connections, few have a partial frame at the same time.
                    partial.shrink_to(1024);
                }
            }
            self.partial = partial;
        }
        while let Some(length) = frame_length(bytes)?.filter(|length| *length <= bytes.len()) {
            let (frame, rest) = bytes.split_at(length);
            self.frame(frame, on)?;
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn frame<E: From<WireError>>(&mut self, frame: &[u8], on: OnEvent<'_, E>) -> Result<(), E> {
        let (kind, flags) = (frame[3], frame[4]);
        let stream = be32(&frame[5..9]) & 0x7fff_ffff;
        let payload = &frame[HEAD..];
        if self.block.is_some() != (kind == CONTINUATION) {
            return Err(WireError::Protocol("a block of headers is interrupted").into());
        }
        match kind {
            DATA => {
                self.give_back(stream, payload.len());
                self.data(stream, unpadded(payload, flags, 0)?, on)?;
                if flags & END_STREAM != 0 {
                    self.end(stream, Status::Failed("the stream ends without a status".to_owned()), on)?;
                }
            }
            HEADERS => {
                let skip = if flags & PRIORITY != 0 { 5 } else { 0 };
                let block = unpadded(payload, flags, skip)?;
                self.headers(stream, flags & END_STREAM != 0, block, flags & END_HEADERS != 0, on)?;
            }
            CONTINUATION => {
                let Some((of, ends, mut block)) = self.block.take().filter(|(of, ..)| *of == stream) else {
                    return Err(WireError::Protocol("a continuation of nothing").into());
                };
                block.extend_from_slice(payload);
                if block.len() > 4 * FRAME_MAX {
                    return Err(WireError::Protocol("endless headers").into());
                }
                self.headers(of, ends, &block, flags & END_HEADERS != 0, on)?;
            }
            RESET => {
                let code = payload.try_into().map_or(0, u32::from_be_bytes);
                self.end(stream, Status::Failed(format!("the server resets the stream: error {code}")), on)?;
            }
            SETTINGS if flags & ACK == 0 => self.settings(payload)?,
            PING if flags & ACK == 0 => {
                head(&mut self.sender.out, payload.len(), PING, ACK, 0);
                self.sender.out.extend_from_slice(payload);
            }
            GO_AWAY if payload.len() >= 8 => {
                let text = String::from_utf8_lossy(&payload[8..]).into_owned();
                return Err(WireError::GoAway { code: be32(&payload[4..8]), text }.into());
            }
            WINDOW_UPDATE if payload.len() == 4 => {
                let more = i64::from(be32(payload) & 0x7fff_ffff);
                if stream == 0 {
                    self.sender.window += more;
                } else if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.outgoing.window += more;
                }
            }
            // Acknowledgements, and frames that RFC 9113 says to ignore.
            _ => {}
        }
        self.adopt();
        Ok(())
    }

    /// Splits the bytes of a stream into messages.
    fn data<E: From<WireError>>(&mut self, id: u32, mut bytes: &[u8], on: OnEvent<'_, E>) -> Result<(), E> {
        // Data may still arrive for a stream that was given up.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        while !bytes.is_empty() {
            if stream.message.is_empty()
                && let Some(length) = message_length(bytes)?.filter(|length| *length <= bytes.len())
            {
                on(&mut self.sender, Event::Message(id, &bytes[5..length]))?;
                bytes = &bytes[length..];
                continue;
            }
            let have = stream.message.len();
            let wanted = message_length(&stream.message)?.unwrap_or(5);
            let (part, rest) = bytes.split_at(bytes.len().min(wanted - have));
            if have <= 5 {
                // Avoids moving the message while it grows, but limits what a server's claim alone may cost.
                stream.message.reserve_exact((wanted - have).min(MESSAGE_RESERVED));
            }
            stream.message.extend_from_slice(part);
            bytes = rest;
            if message_length(&stream.message)? == Some(stream.message.len()) {
                on(&mut self.sender, Event::Message(id, &stream.message[5..]))?;
                stream.message = Vec::new();
            }
        }
        Ok(())
    }

    fn headers<E: From<WireError>>(
        &mut self,
        stream: u32,
        ends: bool,
        block: &[u8],
        whole: bool,
        on: OnEvent<'_, E>,
    ) -> Result<(), E> {
        if !whole {
            self.block = Some((stream, ends, block.to_vec()));
            return Ok(());
        }
        if !ends {
            return Ok(());
        }
        let status = if block == self.good_trailers { Status::Ok } else { status_of(block)? };
        if status == Status::Ok && block != self.good_trailers {
            self.good_trailers = block.to_vec();
        }
        self.end(stream, status, on)
    }

    fn end<E: From<WireError>>(&mut self, id: u32, status: Status, on: OnEvent<'_, E>) -> Result<(), E> {
        if self.streams.remove(&id).is_some() {
            on(&mut self.sender, Event::Ended(id, status))?;
        }
        Ok(())
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), WireError> {
        for setting in payload.chunks(6) {
            let &[a, b, c, d, e, f] = setting else { return Err(WireError::Protocol("settings of a wrong length")) };
            if u16::from_be_bytes([a, b]) == 4 {
                let window = i64::from(u32::from_be_bytes([c, d, e, f]));
                let change = window - self.sender.initial_window;
                self.sender.initial_window = window;
                let opened = self.sender.opened.iter_mut().map(|(_, outgoing)| outgoing);
                for outgoing in self.streams.values_mut().map(|stream| &mut stream.outgoing).chain(opened) {
                    outgoing.window += change;
                }
            }
        }
        head(&mut self.sender.out, 0, SETTINGS, ACK, 0);
        Ok(())
    }

    /// Gives back the window for bytes that were read, once they are half of it.
    fn give_back(&mut self, id: u32, read: usize) {
        let read = u32::try_from(read).unwrap_or(u32::MAX);
        self.read += read;
        if self.read > CONNECTION_WINDOW / 2 {
            window_update(&mut self.sender.out, 0, mem::take(&mut self.read));
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.read += read;
            if stream.read > self.stream_window / 2 {
                window_update(&mut self.sender.out, id, mem::take(&mut stream.read));
            }
        }
    }

    /// Takes over what was opened and queued since the last call.
    fn adopt(&mut self) {
        for (id, outgoing) in self.sender.opened.drain(..) {
            if !outgoing.waiting.is_empty() {
                self.waiting.push(id);
            }
            self.streams.insert(id, WireStream::new(outgoing));
        }
        for (id, message) in self.sender.queued.drain(..) {
            if let Some(stream) = self.streams.get_mut(&id) {
                if stream.outgoing.waiting.is_empty() {
                    self.waiting.push(id);
                }
                stream.outgoing.waiting.extend_from_slice(&message);
            }
        }
    }

    /// Sends what the server's windows have room for.
    fn flush(&mut self) {
        self.adopt();
        let Sender { out, window, .. } = &mut self.sender;
        self.waiting.retain(|id| {
            let Some(stream) = self.streams.get_mut(id) else { return false };
            stream.outgoing.send(*id, window, out);
            !stream.outgoing.waiting.is_empty()
        });
    }
}

impl WireStream {
    fn new(outgoing: Outgoing) -> Self {
        Self { outgoing, message: Vec::new(), read: 0 }
    }
}

impl Outgoing {
    fn send(&mut self, id: u32, connection: &mut i64, out: &mut Vec<u8>) {
        let mut sent = 0;
        while sent < self.waiting.len() {
            let room = usize::try_from(self.window.min(*connection)).unwrap_or(0);
            let length = (self.waiting.len() - sent).min(room).min(FRAME_MAX);
            if length == 0 {
                break;
            }
            let last = self.end && sent + length == self.waiting.len();
            head(out, length, DATA, if last { END_STREAM } else { 0 }, id);
            out.extend_from_slice(&self.waiting[sent..sent + length]);
            sent += length;
            self.window -= length as i64;
            *connection -= length as i64;
        }
        self.waiting.drain(..sent);
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
    }
}

impl Sender {
    /// Opens a stream for this method, such as `/etcdserverpb.Watch/Watch`. Returns its number.
    pub(super) fn open(&mut self, method: &str) -> u32 {
        self.start(method, Vec::new(), false)
    }

    /// Calls this method with one message.
    pub(super) fn call(&mut self, method: &str, message: &[u8]) -> u32 {
        self.start(method, enveloped(message), true)
    }

    /// Sends a message on an open stream.
    pub(super) fn send(&mut self, stream: u32, message: &[u8]) {
        let message = enveloped(message);
        // Usually this is the stream that was opened last.
        match self.opened.iter_mut().rev().find(|(id, _)| *id == stream) {
            Some((_, outgoing)) => outgoing.waiting.extend_from_slice(&message),
            None => self.queued.push((stream, message)),
        }
    }

    fn start(&mut self, method: &str, waiting: Vec<u8>, end: bool) -> u32 {
        let id = self.next_stream;
        self.next_stream += 2;
        // POST and http from the static table; the others as literals without indexing.
        let mut block = vec![0x83, 0x86];
        literal(&mut block, &[0x04], method);
        literal(&mut block, &[0x01], &self.authority);
        literal(&mut block, &[0x0f, 0x10], "application/grpc");
        literal(&mut block, b"\x00\x02te", "trailers");
        head(&mut self.out, block.len(), HEADERS, END_HEADERS, id);
        self.out.extend_from_slice(&block);
        let mut outgoing = Outgoing { waiting, window: self.initial_window, end };
        // The usual case: a short call that fits into the windows is sent at once.
        outgoing.send(id, &mut self.window, &mut self.out);
        self.opened.push((id, outgoing));
        id
    }
}

/// Writes a complete message as a frame, for code that plays the server.
pub(super) fn data_frame(out: &mut Vec<u8>, stream: u32, message: &[u8]) {
    let message = enveloped(message);
    for part in message.chunks(FRAME_MAX) {
        head(out, part.len(), DATA, 0, stream);
        out.extend_from_slice(part);
    }
}

fn head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&[length[1], length[2], length[3], kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

fn window_update(out: &mut Vec<u8>, stream: u32, by: u32) {
    head(out, 4, WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&by.to_be_bytes());
}

/// A header with a plain value. The length has HPACK's form with seven bits in its first byte.
fn literal(block: &mut Vec<u8>, name: &[u8], value: &str) {
    block.extend_from_slice(name);
    let mut length = value.len();
    if length < 127 {
        block.push(length as u8);
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push((length % 128 + 128) as u8);
            length /= 128;
        }
        block.push(length as u8);
    }
    block.extend_from_slice(value.as_bytes());
}

/// A message with gRPC's head.
fn enveloped(message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(5 + message.len());
    bytes.push(0);
    bytes.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

/// The length of the frame that begins here, including its head.
fn frame_length(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let &[a, b, c, ..] = bytes else { return Ok(None) };
    if bytes.len() < HEAD {
        return Ok(None);
    }
    let length = be32(&[0, a, b, c]) as usize;
    if length > FRAME_MAX {
        return Err(WireError::Protocol("a frame longer than allowed"));
    }
    Ok(Some(HEAD + length))
}

/// The length of the message that begins here, including its head.
fn message_length(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let Some(&[compressed, a, b, c, d]) = bytes.first_chunk::<5>() else { return Ok(None) };
    if compressed != 0 {
        return Err(WireError::Compressed);
    }
    let length = be32(&[a, b, c, d]) as usize;
    if length > MESSAGE_MAX {
        return Err(WireError::Protocol("a message of more than 512 MiB"));
    }
    Ok(Some(5 + length))
}

fn unpadded(payload: &[u8], flags: u8, skip: usize) -> Result<&[u8], WireError> {
    let short = WireError::Protocol("a frame shorter than its padding");
    let padded = if flags & PADDED == 0 {
        Some((0, payload))
    } else {
        payload.split_first().map(|(n, rest)| (usize::from(*n), rest))
    };
    let content = padded.and_then(|(padding, rest)| rest.get(skip..rest.len().checked_sub(padding)?));
    content.ok_or(short)
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// The status in the trailers.
fn status_of(block: &[u8]) -> Result<Status, WireError> {
    let headers = hpack::read(block).ok_or(WireError::Protocol("headers that cannot be read"))?;
    let value = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    Ok(match (value("grpc-status"), value("grpc-message")) {
        (Some("0"), _) => Status::Ok,
        (Some(code), text) => {
            // The text is percent-encoded.
            let text = percent_decode_str(text.unwrap_or_default()).decode_utf8_lossy();
            Status::Failed(format!("status {code}: {text}"))
        }
        (None, _) => Status::Failed(format!("HTTP {} without a gRPC status", value(":status").unwrap_or("200"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a session with an open stream for these bytes, which arrive in pieces of `step`.
    fn read(bytes: &[u8], step: usize) -> Result<Vec<String>, WireError> {
        let mut session = Session::listening(1);
        let mut seen = Vec::new();
        for part in bytes.chunks(step) {
            session.input(part, &mut |_, event| {
                seen.push(match event {
                    Event::Message(1, bytes) => String::from_utf8_lossy(bytes).into_owned(),
                    other => format!("{other:?}"),
                });
                Ok::<(), WireError>(())
            })?;
        }
        Ok(seen)
    }

    fn trailers(block: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        head(&mut bytes, block.len(), HEADERS, END_HEADERS | END_STREAM, 1);
        bytes.extend_from_slice(block);
        bytes
    }

    #[test]
    fn messages_are_whole_however_they_are_cut() {
        let mut bytes = Vec::new();
        let long = "x".repeat(40_000);
        for message in ["one", "", &long, "two"] {
            data_frame(&mut bytes, 1, message.as_bytes());
        }
        // Two messages in one frame, and one message in two frames.
        let joined = [enveloped(b"three"), enveloped(b"four")].concat();
        for part in [&joined[..7], &joined[7..]] {
            head(&mut bytes, part.len(), DATA, 0, 1);
            bytes.extend_from_slice(part);
        }
        for step in [1, 2, 7, 1000, bytes.len()] {
            let seen = read(&bytes, step).expect("in order");
            assert_eq!(seen, ["one", "", &long, "two", "three", "four"], "in pieces of {step}");
        }
    }

    #[test]
    fn the_end_of_a_stream_has_its_reason() {
        let mut block = Vec::new();
        literal(&mut block, b"\x00\x0bgrpc-status", "14");
        literal(&mut block, b"\x00\x0cgrpc-message", "no%20leader: 5%25 %C3%A9, 100%");
        let seen = read(&trailers(&block), 3).expect("in order");
        assert_eq!(
            seen,
            [format!("{:?}", Event::Ended(1, Status::Failed("status 14: no leader: 5% é, 100%".to_owned())))]
        );
        let mut block = Vec::new();
        literal(&mut block, b"\x00\x0bgrpc-status", "0");
        assert_eq!(read(&trailers(&block), 99).expect("in order"), [format!("{:?}", Event::Ended(1, Status::Ok))]);
    }

    #[test]
    fn what_breaks_the_protocol_is_an_error() {
        let mut compressed = Vec::new();
        head(&mut compressed, 5, DATA, 0, 1);
        compressed.extend_from_slice(&[1, 0, 0, 0, 0]);
        assert_eq!(read(&compressed, 99), Err(WireError::Compressed));
        assert!(matches!(read(&[0xff; 20], 99), Err(WireError::Protocol(_))));
        assert!(matches!(read(&trailers(&[0x00, 0x0b, b'g']), 99), Err(WireError::Protocol(_))));
        let mut away = Vec::new();
        head(&mut away, 10, GO_AWAY, 0, 0);
        away.extend_from_slice(b"\0\0\0\0\0\0\0\x0bhi");
        assert_eq!(read(&away, 99), Err(WireError::GoAway { code: 11, text: "hi".to_owned() }));
    }

    #[test]
    fn nothing_is_sent_beyond_the_servers_windows() {
        let mut session = Session::open("host", STREAM_WINDOW);
        let opening = session.output().len();
        let long = vec![7; 100_000];
        let stream = session.sender().call("/a/b", &long);
        let first = session.output().len() - opening;
        assert!(first > 60_000 && first < 66_000, "{first} bytes sent at once");
        let sent = |session: &mut Session| session.output().len();
        let before = sent(&mut session);
        let mut more = Vec::new();
        window_update(&mut more, 0, 1 << 20);
        session.input(&more, &mut |_, _| Ok::<(), WireError>(())).expect("in order");
        assert_eq!(sent(&mut session), before, "the stream's window has no room");
        more.clear();
        window_update(&mut more, stream, 1 << 20);
        session.input(&more, &mut |_, _| Ok::<(), WireError>(())).expect("in order");
        assert!(sent(&mut session) - before > 34_000, "the rest goes out");
    }

    #[test]
    fn windows_are_given_back_as_they_are_read() {
        let mut session = Session::listening(1);
        let mut bytes = Vec::new();
        data_frame(&mut bytes, 1, &vec![0; STREAM_WINDOW as usize]);
        session.input(&bytes, &mut |_, _| Ok::<(), WireError>(())).expect("in order");
        let out = session.output();
        assert_eq!((out[3], be32(&out[5..9])), (WINDOW_UPDATE, 1));
        assert!(be32(&out[9..13]) > STREAM_WINDOW / 2);
    }

    #[test]
    fn pings_and_settings_are_answered() {
        let mut session = Session::listening(1);
        let mut bytes = Vec::new();
        head(&mut bytes, 8, PING, 0, 0);
        bytes.extend_from_slice(b"12345678");
        head(&mut bytes, 0, SETTINGS, 0, 0);
        session.input(&bytes, &mut |_, _| Ok::<(), WireError>(())).expect("in order");
        let out = session.output();
        assert_eq!((out[3], out[4], &out[9..17]), (PING, ACK, &b"12345678"[..]));
        assert_eq!((out[20], out[21]), (SETTINGS, ACK));
    }
}
