//! [`Encoder`]: translates a protobuf message into the JSON of etcd's gateway, while the message arrives.
//!
//! It follows Go's `jsonpb`, which etcd 3.5 uses: fields have the names of their file and the order of their
//! declaration, and defaults are left out. 64-bit numbers are text, enumerations are names, bytes are base64, and `<`,
//! `>` and `&` are escaped. What surrounds a message is in `answer`. There is no recursion. Only a text or an
//! incomplete field head is kept in memory, so an answer of any length is passed on as its reader takes it. Always
//! holds: fields arrive in rising order, with the elements of a list together. All servers that answer here write them
//! so; anything else is an error.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::encoding::decode_varint;
use thiserror::Error;

use super::schema::{Field, Kind, MessageId, Schema};
use crate::front::gojson;

/// Longest field head in bytes: two varints.
const HEAD: usize = 20;
/// Longest text in bytes, for names, addresses and reasons.
const MAX_TEXT: u64 = 32 << 20;

/// The input is not such a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("etcd-relay: the answer cannot be read")]
pub(super) struct Malformed;

/// See the module.
#[derive(Debug)]
pub(super) struct Encoder {
    schema: Arc<Schema>,
    /// The open messages, the outermost first.
    levels: Vec<Level>,
    state: State,
}

/// A message that is being written.
#[derive(Debug)]
struct Level {
    message: MessageId,
    /// Bytes of it that are still to come, not counting the nested message.
    left: u64,
    /// The last field's number.
    last: u32,
    /// The last field is an open list.
    list: bool,
    /// A field has been written.
    some: bool,
}

#[derive(Debug)]
enum State {
    /// At the beginning of a field, or the end of a message.
    Head,
    /// In a bytes field: the number of bytes to come, and the bytes that are too few to be written.
    Bytes(u64, Carry),
    Text(u64, Vec<u8>),
    /// In an unknown field.
    Skip(u64),
}

/// The one or two bytes after the last group of three.
#[derive(Clone, Copy, Debug, Default)]
struct Carry {
    bytes: [u8; 3],
    len: usize,
}

/// What was found in a field's head.
enum Found {
    /// The head is incomplete.
    Part,
    Field,
}

impl Encoder {
    /// Begins a message of `len` bytes, and writes the opening brace.
    pub(super) fn new(schema: Arc<Schema>, message: MessageId, len: u64, out: &mut Vec<u8>) -> Self {
        out.push(b'{');
        let level = Level { message, left: len, last: 0, list: false, some: false };
        Self { schema, levels: vec![level], state: State::Head }
    }

    /// Whether the whole message was written.
    pub(super) fn is_over(&self) -> bool {
        self.levels.is_empty()
    }

    /// Reads as much of `input` as possible and writes it. Returns how much was read: everything up to the end of the
    /// message, except an incomplete field head.
    ///
    /// # Errors
    /// Fails if the input is not such a message.
    pub(super) fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Malformed> {
        let mut rest = input;
        while !self.levels.is_empty() {
            match &mut self.state {
                State::Head => {
                    if self.close(out) {
                        continue;
                    }
                    match self.head(&mut rest, out)? {
                        Found::Part => break,
                        Found::Field => {}
                    }
                }
                State::Bytes(left, carry) => {
                    let now = split(&mut rest, *left);
                    *left -= now.len() as u64;
                    carry.write(now, out);
                    if *left > 0 {
                        break;
                    }
                    carry.finish(out);
                    out.push(b'"');
                    self.state = State::Head;
                }
                State::Text(left, text) => {
                    let now = split(&mut rest, *left);
                    *left -= now.len() as u64;
                    text.extend_from_slice(now);
                    if *left > 0 {
                        break;
                    }
                    gojson::put_string_of(gojson::Go::New, out, text);
                    self.state = State::Head;
                }
                State::Skip(left) => {
                    let now = split(&mut rest, *left);
                    *left -= now.len() as u64;
                    if *left > 0 {
                        break;
                    }
                    self.state = State::Head;
                }
            }
        }
        Ok(input.len() - rest.len())
    }

    /// Closes the innermost message if it is complete. Returns whether it was.
    fn close(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(level) = self.levels.last().filter(|level| level.left == 0) else { return false };
        if level.list {
            out.push(b']');
        }
        out.push(b'}');
        self.levels.pop();
        true
    }

    /// Reads a field's head, and the whole value of a number.
    fn head(&mut self, rest: &mut &[u8], out: &mut Vec<u8>) -> Result<Found, Malformed> {
        let Some(level) = self.levels.last_mut() else { return Err(Malformed) };
        let visible = &rest[..rest.len().min(HEAD).min(usize::try_from(level.left).unwrap_or(usize::MAX))];
        let mut ahead = visible;
        let incomplete = |ahead: &[u8]| {
            // If the input is shorter than the longest varint, it may be incomplete.
            let more = (visible.len() as u64) < level.left && visible.len() < HEAD && ahead.len() < 10;
            if more { Ok(Found::Part) } else { Err(Malformed) }
        };
        let before = ahead;
        let Ok(tag) = decode_varint(&mut ahead) else { return incomplete(before) };
        let before = ahead;
        let value = match tag & 7 {
            0 | 2 => match decode_varint(&mut ahead) {
                Ok(value) => value,
                Err(_) => return incomplete(before),
            },
            1 => 8,
            5 => 4,
            _ => return Err(Malformed),
        };
        let taken = visible.len() - ahead.len();
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
        level.left -= taken as u64;
        *rest = &rest[taken..];
        let payload = if tag & 7 == 0 { 0 } else { value };
        level.left = level.left.checked_sub(payload).ok_or(Malformed)?;
        let schema = &*self.schema;
        let Some(field) = schema.message(level.message).field(number) else {
            self.state = State::Skip(payload);
            return Ok(Found::Field);
        };
        if field.number < level.last || field.number == level.last && !field.repeated {
            return Err(Malformed);
        }
        if level.list && field.number > level.last {
            out.push(b']');
            level.list = false;
        }
        level.last = field.number;
        let shown = field.repeated || field.oneof.is_some();
        match (field.kind, tag & 7) {
            (Kind::Bytes | Kind::Text, 2) if value == 0 && !shown => {}
            (Kind::Bytes, 2) => {
                level.begin(field, out);
                out.push(b'"');
                self.state = State::Bytes(value, Carry::default());
            }
            (Kind::Text, 2) if value <= MAX_TEXT => {
                level.begin(field, out);
                self.state = State::Text(value, Vec::new());
            }
            (Kind::Message(message), 2) => {
                level.begin(field, out);
                out.push(b'{');
                self.levels.push(Level { message, left: value, last: 0, list: false, some: false });
            }
            (Kind::Bytes | Kind::Text | Kind::Message(_), _) | (_, 1 | 2 | 5) => return Err(Malformed),
            _ if value == 0 && !shown => {}
            (kind, _) => {
                level.begin(field, out);
                put_number(schema, kind, value, out);
            }
        }
        Ok(Found::Field)
    }
}

impl Level {
    /// Writes what comes before a value.
    fn begin(&mut self, field: &Field, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.some, true) {
            out.push(b',');
        }
        if self.list {
            return;
        }
        out.push(b'"');
        out.extend_from_slice(field.name.as_bytes());
        out.extend_from_slice(b"\":");
        if field.repeated {
            out.push(b'[');
            self.list = true;
        }
    }
}

impl Carry {
    fn write(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        if self.len > 0 {
            let fill = bytes.len().min(3 - self.len);
            let (first, rest) = bytes.split_at(fill);
            self.bytes[self.len..self.len + fill].copy_from_slice(first);
            self.len += fill;
            bytes = rest;
            if self.len < 3 {
                return;
            }
            put_base64(&self.bytes, out);
        }
        let (groups, last) = bytes.split_at(bytes.len() / 3 * 3);
        put_base64(groups, out);
        self.bytes[..last.len()].copy_from_slice(last);
        self.len = last.len();
    }

    fn finish(&self, out: &mut Vec<u8>) {
        put_base64(&self.bytes[..self.len], out);
    }
}

fn put_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.resize(from + bytes.len().div_ceil(3) * 4, 0);
    // The encoded text exactly fits the space that was reserved.
    let written = STANDARD.encode_slice(bytes, &mut out[from..]);
    debug_assert_eq!(written, Ok(out.len() - from));
}

fn put_number(schema: &Schema, kind: Kind, value: u64, out: &mut Vec<u8>) {
    match kind {
        Kind::Bool => out.extend_from_slice(if value == 0 { b"false" } else { b"true" }),
        Kind::Int32 => put_text(value as i32, out),
        Kind::Uint32 => put_text(value as u32, out),
        Kind::Enum(id) => match schema.enumeration(id).name_of(value as i32) {
            Some(name) => put_quoted(name, out),
            None => put_text(value as i32, out),
        },
        Kind::Int64 => put_quoted(value as i64, out),
        Kind::Uint64 | Kind::Text | Kind::Bytes | Kind::Message(_) => put_quoted(value, out),
    }
}

fn put_text(value: impl std::fmt::Display, out: &mut Vec<u8>) {
    use std::io::Write as _;
    // Writing to a vector cannot fail.
    let _ = write!(out, "{value}");
}

fn put_quoted(value: impl std::fmt::Display, out: &mut Vec<u8>) {
    out.push(b'"');
    put_text(value, out);
    out.push(b'"');
}

/// Splits off up to `most` bytes from the front.
fn split<'a>(rest: &mut &'a [u8], most: u64) -> &'a [u8] {
    let (now, later) = rest.split_at(rest.len().min(usize::try_from(most).unwrap_or(usize::MAX)));
    *rest = later;
    now
}

#[cfg(test)]
mod tests;
