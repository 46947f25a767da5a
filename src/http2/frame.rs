//! HTTP/2 frames on the wire: their head, the flags, and the content of the small ones (RFC 9113, sections 4 and 6).
//!
//! The effect of a frame is in `connection` and `intake`. Always holds: a payload of the wrong shape is an error of the
//! connection, with the reason that the RFC names. Nothing is read beyond a payload.

use bytes::{Buf as _, BufMut as _};
use h2::Reason;

/// Length of a frame head.
pub(super) const HEAD: usize = 9;
/// Largest payload that we accept, and that we may send unless the peer allows more: the protocol's default.
pub(super) const MAX_PAYLOAD: usize = 16_384;
/// Largest window in the protocol.
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;
/// Largest stream number.
pub(super) const MAX_STREAM: u32 = (1 << 31) - 1;

/// The type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    Push,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// To be ignored.
    Unknown,
}

impl Kind {
    fn of(code: u8) -> Self {
        match code {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::Reset,
            4 => Self::Settings,
            5 => Self::Push,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            _ => Self::Unknown,
        }
    }
}

/// A flag of DATA and HEADERS.
pub(super) const END_STREAM: u8 = 0x1;
/// A flag of SETTINGS and PING.
pub(super) const ACK: u8 = 0x1;
/// A flag of HEADERS and CONTINUATION.
pub(super) const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) len: usize,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    /// Reads a head if `bytes` contains a complete one.
    pub(super) fn read(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEAD {
            return None;
        }
        let len = bytes.get_uint(3) as usize;
        let kind = Kind::of(bytes.get_u8());
        let flags = bytes.get_u8();
        Some(Self { len, kind, flags, stream: bytes.get_u32() & MAX_STREAM })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload of DATA or HEADERS without its padding.
    pub(super) fn unpadded<'a>(&self, payload: &'a [u8]) -> Result<&'a [u8], Reason> {
        if !self.has(PADDED) {
            return Ok(payload);
        }
        let (padding, rest) = payload.split_first().ok_or(Reason::FRAME_SIZE_ERROR)?;
        let len = rest.len().checked_sub(usize::from(*padding)).ok_or(Reason::PROTOCOL_ERROR)?;
        Ok(&rest[..len])
    }

    /// The block of HEADERS, after the obsolete priority fields.
    pub(super) fn block<'a>(&self, payload: &'a [u8]) -> Result<&'a [u8], Reason> {
        let block = self.unpadded(payload)?;
        if !self.has(PRIORITY) {
            return Ok(block);
        }
        let (priority, block) = block.split_at_checked(5).ok_or(Reason::FRAME_SIZE_ERROR)?;
        check_priority(self.stream, priority)?;
        Ok(block)
    }
}

/// Checks the priority fields, which have no effect.
pub(super) fn check_priority(stream: u32, mut priority: &[u8]) -> Result<(), Reason> {
    if priority.len() != 5 {
        return Err(Reason::FRAME_SIZE_ERROR);
    }
    if priority.get_u32() & MAX_STREAM == stream { Err(Reason::PROTOCOL_ERROR) } else { Ok(()) }
}

/// The single number in RST_STREAM and WINDOW_UPDATE.
pub(super) fn number(mut payload: &[u8]) -> Result<u32, Reason> {
    if payload.len() == 4 { Ok(payload.get_u32()) } else { Err(Reason::FRAME_SIZE_ERROR) }
}

/// A setting that matters to one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    TableSize(u32),
    InitialWindow(u32),
    MaxPayload(usize),
    /// How many streams the peer accepts at once, which matters to a client.
    MaxStreams(u32),
    /// Any other setting.
    Other,
}

const TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_STREAMS: u16 = 3;
const INITIAL_WINDOW: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST: u16 = 6;

/// Parses the settings of a SETTINGS frame.
pub(super) fn settings(payload: &[u8]) -> Result<impl Iterator<Item = Result<Setting, Reason>>, Reason> {
    let (settings, rest) = payload.as_chunks::<6>();
    if !rest.is_empty() {
        return Err(Reason::FRAME_SIZE_ERROR);
    }
    Ok(settings.iter().map(|setting| {
        let (name, value) = (u16::from_be_bytes([setting[0], setting[1]]), (&setting[2..]).get_u32());
        match name {
            TABLE_SIZE => Ok(Setting::TableSize(value)),
            ENABLE_PUSH if value > 1 => Err(Reason::PROTOCOL_ERROR),
            MAX_STREAMS => Ok(Setting::MaxStreams(value)),
            INITIAL_WINDOW if i64::from(value) > MAX_WINDOW => Err(Reason::FLOW_CONTROL_ERROR),
            INITIAL_WINDOW => Ok(Setting::InitialWindow(value)),
            MAX_FRAME_SIZE if !(MAX_PAYLOAD as u32..1 << 24).contains(&value) => Err(Reason::PROTOCOL_ERROR),
            MAX_FRAME_SIZE => Ok(Setting::MaxPayload(value as usize)),
            _ => Ok(Setting::Other),
        }
    }))
}

/// Writes a frame's head.
pub(super) fn put_head(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    out.put_uint(len as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
}

/// Writes the head of a DATA frame.
pub(super) fn put_data(out: &mut Vec<u8>, len: usize, end: bool, stream: u32) {
    put_head(out, len, 0, if end { END_STREAM } else { 0 }, stream);
}

/// Writes HEADERS, and CONTINUATION if `block` is larger than a frame may be.
pub(super) fn put_headers(out: &mut Vec<u8>, block: &[u8], end_stream: bool, stream: u32, max_payload: usize) {
    let end_stream = if end_stream { END_STREAM } else { 0 };
    if block.len() <= max_payload {
        put_head(out, block.len(), 1, END_HEADERS | end_stream, stream);
        out.put_slice(block);
        return;
    }
    let mut parts = block.chunks(max_payload).peekable();
    let (mut kind, mut flags) = (1, end_stream);
    while let Some(part) = parts.next() {
        let last = if parts.peek().is_none() { END_HEADERS } else { 0 };
        put_head(out, part.len(), kind, flags | last, stream);
        out.put_slice(part);
        (kind, flags) = (9, 0);
    }
}

/// Writes RST_STREAM.
pub(super) fn put_reset(out: &mut Vec<u8>, stream: u32, reason: Reason) {
    put_head(out, 4, 3, 0, stream);
    out.put_u32(reason.into());
}

/// Our own settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnSettings {
    pub(super) max_streams: u32,
    pub(super) initial_window: u32,
    pub(super) max_header_list: u32,
}

impl OwnSettings {
    /// Writes SETTINGS.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_head(out, 18, 4, 0, 0);
        for (name, value) in [
            (MAX_STREAMS, self.max_streams),
            (INITIAL_WINDOW, self.initial_window),
            (MAX_HEADER_LIST, self.max_header_list),
        ] {
            out.put_u16(name);
            out.put_u32(value);
        }
    }
}

/// Writes the SETTINGS of a client: nothing may be pushed.
pub(super) fn put_client_settings(out: &mut Vec<u8>, initial_window: u32, max_header_list: u32) {
    put_head(out, 18, 4, 0, 0);
    for (name, value) in [(ENABLE_PUSH, 0), (INITIAL_WINDOW, initial_window), (MAX_HEADER_LIST, max_header_list)] {
        out.put_u16(name);
        out.put_u32(value);
    }
}

/// Writes the acknowledgement of SETTINGS.
pub(super) fn put_settings_ack(out: &mut Vec<u8>) {
    put_head(out, 0, 4, ACK, 0);
}

/// Writes PING, or the answer to a ping.
pub(super) fn put_ping(out: &mut Vec<u8>, ack: bool, opaque: [u8; 8]) {
    put_head(out, 8, 6, if ack { ACK } else { 0 }, 0);
    out.put_slice(&opaque);
}

/// Writes GOAWAY.
pub(super) fn put_go_away(out: &mut Vec<u8>, last: u32, reason: Reason) {
    put_head(out, 8, 7, 0, 0);
    out.put_u32(last);
    out.put_u32(reason.into());
}

/// Writes WINDOW_UPDATE; stream 0 is the connection.
pub(super) fn put_window_update(out: &mut Vec<u8>, stream: u32, more: u32) {
    put_head(out, 4, 8, 0, stream);
    out.put_u32(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_as_it_was_written() {
        let mut out = Vec::new();
        put_data(&mut out, 70_000, true, 5);
        let head = Head::read(&out).expect("a head");
        assert_eq!((head.len, head.kind, head.stream), (70_000, Kind::Data, 5));
        assert!(head.has(END_STREAM) && Head::read(&out[..8]).is_none());
    }

    #[test]
    fn padding_is_taken_off_and_must_fit() {
        let head = Head { len: 0, kind: Kind::Data, flags: PADDED, stream: 1 };
        assert_eq!(head.unpadded(&[2, b'a', b'b', 0, 0]), Ok(&b"ab"[..]));
        assert_eq!(head.unpadded(&[2, 0, 0]), Ok(&b""[..]));
        assert_eq!(head.unpadded(&[3, 0, 0]), Err(Reason::PROTOCOL_ERROR));
        assert_eq!(head.unpadded(&[]), Err(Reason::FRAME_SIZE_ERROR));
        let head = Head { flags: PADDED | PRIORITY, ..head };
        assert_eq!(head.block(&[1, 0, 0, 0, 3, 9, b'x', 0]), Ok(&b"x"[..]));
        assert_eq!(head.block(&[1, 0, 0, 0, 1, 9, b'x', 0]), Err(Reason::PROTOCOL_ERROR));
        assert_eq!(head.block(&[1, 0, 0, 0, 1, 0]), Err(Reason::FRAME_SIZE_ERROR));
    }

    #[test]
    fn settings_are_checked() {
        let read = |payload: &[u8]| settings(payload).and_then(|settings| settings.collect::<Result<Vec<_>, _>>());
        assert_eq!(
            read(&[0, 4, 0, 0, 0, 9, 0, 9, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0]),
            Ok(vec![Setting::InitialWindow(9), Setting::Other, Setting::TableSize(0)])
        );
        assert_eq!(read(&[0; 5]), Err(Reason::FRAME_SIZE_ERROR));
        assert_eq!(read(&[0, 2, 0, 0, 0, 2]), Err(Reason::PROTOCOL_ERROR));
        assert_eq!(read(&[0, 4, 0x80, 0, 0, 0]), Err(Reason::FLOW_CONTROL_ERROR));
        for size in [[0, 0, 0x3f, 0xff], [1, 0, 0, 0]] {
            assert_eq!(read(&[&[0, 5], &size[..]].concat()), Err(Reason::PROTOCOL_ERROR));
        }
    }

    #[test]
    fn a_block_larger_than_a_frame_goes_on_in_others() {
        let mut out = Vec::new();
        put_headers(&mut out, &[7; 25], true, 3, 10);
        let mut rest = &out[..];
        let mut read = Vec::new();
        let mut heads = Vec::new();
        while let Some(head) = Head::read(rest) {
            heads.push((head.kind, head.flags));
            read.extend_from_slice(&rest[HEAD..HEAD + head.len]);
            rest = &rest[HEAD + head.len..];
        }
        assert_eq!(read, [7; 25]);
        let between = (Kind::Continuation, 0);
        assert_eq!(heads, [(Kind::Headers, END_STREAM), between, (Kind::Continuation, END_HEADERS)]);
    }
}
