//! [`decode`]: translates a JSON value into a protobuf message, as etcd's gateway does.
//!
//! It follows Go's `jsonpb`, which etcd 3.5 uses. Fields have two possible names, and the last of several values
//! counts. Unknown fields are ignored, and `null` counts as absent. Numbers may be numbers or text, enumerations names
//! or numbers, and bytes base64 or an array of numbers. Of a oneof, the field declared last counts. Errors have Go's
//! text; of several errors, the one in the field declared first is reported. `scan` has already checked that the text
//! is JSON. There is no recursion, and time and memory depend only on the length of the text.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use smallvec::SmallVec;
use thiserror::Error;

use super::{
    scan::{self, Extent, SyntaxError, go_quoted},
    schema::{Field, Kind, Message, MessageId, Schema},
    wire::{Mark, Wire},
};

/// Go's type names in its errors.
const OBJECT: &str = "map[string]json.RawMessage";
const LIST: &str = "[]json.RawMessage";

/// Why a value is not a valid message, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum DecodeError {
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// The type that the value has, and the expected type.
    #[error("json: cannot unmarshal {0} into Go value of type {1}")]
    Type(String, &'static str),
    #[error("unknown value {0} for enum {1}")]
    Enum(String, String),
    #[error("illegal base64 data at input byte {0}")]
    Base64(usize),
}

/// Translates `text`, one JSON value, into the message that gRPC sends. `extents` are the places of its objects and
/// arrays.
///
/// # Errors
/// Fails if the value is not such a message.
pub(super) fn decode(
    schema: &Schema,
    message: MessageId,
    text: &[u8],
    extents: &[Extent],
) -> Result<Bytes, DecodeError> {
    let text = Text { bytes: text, extents };
    let mut wire = Wire::default();
    let whole = text.value(text.skip_space(0));
    if whole.bytes == b"null" {
        return Ok(wire.finish());
    }
    let mut frames = vec![Frame::of(schema.message(message), &text, whole)?];
    while let Some(frame) = frames.last_mut() {
        match frame.next(&text, &mut wire)? {
            // Only in a list: a null element is an empty message.
            Next::Message(_, value) if value.bytes == b"null" => wire.close(),
            Next::Message(id, value) => frames.push(Frame::of(schema.message(id), &text, value)?),
            Next::Field(field, value) => scalar(schema, field, value, &mut wire)?,
            Next::End => {
                frames.pop();
                wire.close();
            }
        }
    }
    Ok(wire.finish())
}

/// The text, and the places of its objects and arrays.
struct Text<'a> {
    bytes: &'a [u8],
    extents: &'a [Extent],
}

/// A value in the text.
#[derive(Clone, Copy)]
struct Value<'a> {
    start: usize,
    bytes: &'a [u8],
}

impl<'a> Value<'a> {
    fn end(self) -> usize {
        self.start + self.bytes.len()
    }

    fn first(self) -> u8 {
        self.bytes.first().copied().unwrap_or_default()
    }

    /// Go's name for its JSON type.
    fn what(self) -> &'static str {
        match self.first() {
            b'{' => "object",
            b'[' => "array",
            b'"' => "string",
            b't' | b'f' => "bool",
            _ => "number",
        }
    }

    fn is_not(self, wanted: &'static str) -> DecodeError {
        DecodeError::Type(self.what().to_owned(), wanted)
    }

    /// The text without its quotes. Like `jsonpb`, it removes only the quotes.
    fn unquoted(self) -> Option<&'a [u8]> {
        self.bytes.strip_prefix(b"\"")?.strip_suffix(b"\"")
    }
}

impl<'a> Text<'a> {
    fn skip_space(&self, from: usize) -> usize {
        let rest = self.bytes.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count()
    }

    /// The value that begins at `start`.
    fn value(&self, start: usize) -> Value<'a> {
        let rest = self.bytes.get(start..).unwrap_or_default();
        let len = match rest.first() {
            Some(b'{' | b'[') => {
                let found = self.extents.binary_search_by_key(&start, |extent| extent.start as usize);
                found.ok().and_then(|index| self.extents.get(index)).map_or(rest.len(), |it| it.end as usize - start)
            }
            Some(b'"') => quoted_len(rest),
            _ => {
                let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}' | b':' | b' ' | b'\t' | b'\r' | b'\n');
                rest.iter().position(ends).unwrap_or(rest.len())
            }
        };
        Value { start, bytes: &rest[..len.min(rest.len())] }
    }

    /// The next element of an array, after its `[` or after an element, and the position after it.
    fn element(&self, from: usize) -> Option<(Value<'a>, usize)> {
        let mut at = self.skip_space(from);
        if self.bytes.get(at) == Some(&b',') {
            at = self.skip_space(at + 1);
        }
        if matches!(self.bytes.get(at), None | Some(b']' | b'}')) {
            return None;
        }
        let value = self.value(at);
        Some((value, value.end()))
    }

    /// The next member of an object, after its `{` or after a member.
    fn member(&self, from: usize) -> Option<(Value<'a>, Value<'a>, usize)> {
        let (key, behind) = self.element(from)?;
        let colon = self.skip_space(behind);
        let value = self.value(self.skip_space(colon + 1));
        Some((key, value, value.end()))
    }
}

/// The length of a text including its quotes.
fn quoted_len(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// A message that is being translated.
struct Frame<'a> {
    fields: &'a [Field],
    /// For each field, the value that counts.
    values: SmallVec<[Option<Value<'a>>; 13]>,
    next: usize,
    /// The list in the last field, and the position up to which it was read.
    list: Option<(&'a Field, usize)>,
    /// The oneof that was written last, and its place in the output.
    oneof: Option<(usize, Mark)>,
}

enum Next<'a> {
    /// A nested message, which has been opened in the output.
    Message(MessageId, Value<'a>),
    /// A field, or an element of one.
    Field(&'a Field, Value<'a>),
    End,
}

impl<'a> Frame<'a> {
    fn of(message: &'a Message, text: &Text<'a>, value: Value<'a>) -> Result<Self, DecodeError> {
        if value.first() != b'{' {
            return Err(value.is_not(OBJECT));
        }
        let fields = &message.fields;
        let mut values = SmallVec::from_elem(None, fields.len());
        let mut camel: SmallVec<[Option<Value<'a>>; 13]> = SmallVec::from_elem(None, fields.len());
        let mut at = value.start + 1;
        while let Some((key, value, behind)) = text.member(at) {
            let name = unquote(key.bytes);
            if let Some(index) = fields.iter().position(|field| field.name.as_bytes() == &*name) {
                values[index] = Some(value);
            } else if let Some(index) = fields.iter().position(|field| field.json_name.as_bytes() == &*name) {
                camel[index] = Some(value);
            }
            at = behind;
        }
        for (value, camel) in values.iter_mut().zip(camel) {
            *value = camel.or(*value);
        }
        Ok(Self { fields, values, next: 0, list: None, oneof: None })
    }

    fn next(&mut self, text: &Text<'a>, wire: &mut Wire) -> Result<Next<'a>, DecodeError> {
        loop {
            if let Some((field, at)) = self.list {
                let Some((value, behind)) = text.element(at) else {
                    self.list = None;
                    continue;
                };
                self.list = Some((field, behind));
                return Ok(within(field, value, wire));
            }
            let Some(field) = self.fields.get(self.next) else { return Ok(Next::End) };
            let value = self.values[self.next];
            self.next += 1;
            let Some(value) = value.filter(|value| value.bytes != b"null") else { continue };
            if field.repeated {
                if value.first() != b'[' {
                    return Err(value.is_not(LIST));
                }
                self.list = Some((field, value.start + 1));
                continue;
            }
            if let Some(oneof) = field.oneof {
                match self.oneof {
                    Some((written, mark)) if written == oneof => wire.back(mark),
                    _ => self.oneof = Some((oneof, wire.mark())),
                }
            }
            return Ok(within(field, value, wire));
        }
    }
}

fn within<'a>(field: &'a Field, value: Value<'a>, wire: &mut Wire) -> Next<'a> {
    match field.kind {
        Kind::Message(id) => {
            wire.open(field.number);
            Next::Message(id, value)
        }
        _ => Next::Field(field, value),
    }
}

/// Writes a value that is not a message.
fn scalar(schema: &Schema, field: &Field, value: Value<'_>, wire: &mut Wire) -> Result<(), DecodeError> {
    let explicit = field.repeated || field.oneof.is_some();
    let int = match field.kind {
        Kind::Bool => boolean(value)?.into(),
        Kind::Int32 => signed(value, "int32", i32::MIN.into(), i32::MAX.into())? as u64,
        Kind::Int64 => signed(value, "int64", i64::MIN, i64::MAX)? as u64,
        Kind::Uint32 => unsigned(value, "uint32", u32::MAX.into())?,
        Kind::Uint64 => unsigned(value, "uint64", u64::MAX)?,
        Kind::Enum(id) => match value.unquoted() {
            Some(name) => {
                let known = schema.enumeration(id);
                let unknown = || DecodeError::Enum(go_quoted(value.bytes), known.name.clone());
                known.number(name).ok_or_else(unknown)? as u64
            }
            None => signed(value, "protoreflect.EnumNumber", i32::MIN.into(), i32::MAX.into())? as u64,
        },
        Kind::Text => {
            let text = text(value)?;
            if explicit || !text.is_empty() {
                wire.bytes(field.number, &text);
            }
            return Ok(());
        }
        Kind::Bytes => {
            let bytes = bytes(value)?;
            if explicit || !bytes.is_empty() {
                wire.bytes(field.number, &bytes);
            }
            return Ok(());
        }
        // The message was opened where it was found.
        Kind::Message(_) => return Ok(()),
    };
    if explicit || int != 0 {
        wire.int(field.number, int);
    }
    Ok(())
}

fn boolean(value: Value<'_>) -> Result<bool, DecodeError> {
    match value.bytes {
        b"true" => Ok(true),
        b"false" | b"null" => Ok(false),
        _ => Err(value.is_not("bool")),
    }
}

fn signed(value: Value<'_>, wanted: &'static str, least: i64, most: i64) -> Result<i64, DecodeError> {
    number(value, wanted, |text| text.parse().ok().filter(|number| (least..=most).contains(number)))
}

fn unsigned(value: Value<'_>, wanted: &'static str, most: u64) -> Result<u64, DecodeError> {
    number(value, wanted, |text| text.parse().ok().filter(|number| *number <= most))
}

/// A number, or a number in quotes. `jsonpb` parses other quoted text as JSON.
fn number<T: Default>(
    value: Value<'_>,
    wanted: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, DecodeError> {
    let inner = match value.unquoted() {
        Some(inner) => {
            scan::check(inner)?;
            Value { start: 0, bytes: inner.trim_ascii() }
        }
        None => value,
    };
    match inner.first() {
        b'n' => Ok(T::default()),
        b'-' | b'0'..=b'9' => {
            let text = String::from_utf8_lossy(inner.bytes);
            parse(&text).ok_or_else(|| DecodeError::Type(format!("number {text}"), wanted))
        }
        _ => Err(inner.is_not(wanted)),
    }
}

fn text(value: Value<'_>) -> Result<Cow<'_, [u8]>, DecodeError> {
    match value.first() {
        b'"' => Ok(unquote(value.bytes)),
        b'n' => Ok(Cow::Borrowed(b"")),
        _ => Err(value.is_not("string")),
    }
}

fn bytes(value: Value<'_>) -> Result<Vec<u8>, DecodeError> {
    match value.first() {
        b'"' => base64(&unquote(value.bytes)),
        b'n' => Ok(Vec::new()),
        b'[' => octets(value),
        _ => Err(value.is_not("[]uint8")),
    }
}

/// Reads bytes from an array of numbers. Of several wrong elements, only the first is reported.
fn octets(value: Value<'_>) -> Result<Vec<u8>, DecodeError> {
    // No element reaches beyond the end of the array, so an array within it need not be looked up.
    let mut scanner = scan::Scanner::new();
    scanner.take(value.bytes)?;
    let extents = scanner.extents();
    let text = Text { bytes: value.bytes, extents: &extents };
    let (mut octets, mut at) = (Vec::new(), 1);
    while let Some((element, behind)) = text.element(at) {
        if element.unquoted().is_some() {
            return Err(element.is_not("uint8"));
        }
        octets.push(unsigned(element, "uint8", u8::MAX.into())? as u8);
        at = behind;
    }
    Ok(octets)
}

/// Decodes base64 like Go: the standard alphabet, with padding; line breaks are ignored.
fn base64(text: &[u8]) -> Result<Vec<u8>, DecodeError> {
    if let Ok(bytes) = STANDARD.decode(text) {
        return Ok(bytes);
    }
    base64_in_lines(text)
}

/// Decodes base64 that has line breaks or an error. It reports the position that Go reports.
fn base64_in_lines(text: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let is_end = |byte: u8| matches!(byte, b'\n' | b'\r');
    let skip = |from: usize| from + text[from.min(text.len())..].iter().take_while(|byte| is_end(**byte)).count();
    let wrong = |at| Err(DecodeError::Base64(at));
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let mut at = 0;
    loop {
        let (mut bits, mut have) = (0_u32, 0);
        while have < 4 {
            let Some(byte) = text.get(at).copied() else {
                return if have == 0 { Ok(out) } else { wrong(at - have) };
            };
            at += 1;
            match sextet(byte) {
                Some(value) => {
                    bits = bits << 6 | value;
                    have += 1;
                }
                None if is_end(byte) => {}
                None if byte != b'=' || have < 2 => return wrong(at - 1),
                None => {
                    if have == 2 {
                        at = skip(at);
                        match text.get(at) {
                            None => return wrong(text.len()),
                            Some(b'=') => at += 1,
                            Some(_) => return wrong(at - 1),
                        }
                    }
                    at = skip(at);
                    if at < text.len() {
                        return wrong(at);
                    }
                    let octets = (bits << (6 * (4 - have))).to_be_bytes();
                    out.extend_from_slice(&octets[1..have]);
                    return Ok(out);
                }
            }
        }
        out.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
}

fn sextet(byte: u8) -> Option<u32> {
    Some(match byte {
        b'A'..=b'Z' => (byte - b'A').into(),
        b'a'..=b'z' => (byte - b'a' + 26).into(),
        b'0'..=b'9' => (byte - b'0' + 52).into(),
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

/// The text between the quotes, as Go reads it: invalid characters become U+FFFD.
fn unquote(quoted: &[u8]) -> Cow<'_, [u8]> {
    let inner = quoted.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(quoted);
    if !inner.contains(&b'\\') {
        return match String::from_utf8_lossy(inner) {
            Cow::Borrowed(_) => Cow::Borrowed(inner),
            Cow::Owned(_) => Cow::Owned(each_as_one(inner)),
        };
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut at = 0;
    while let Some(byte) = inner.get(at) {
        let plain = inner[at..].iter().take_while(|byte| **byte != b'\\').count();
        if plain > 0 {
            out.extend_from_slice(&each_as_one(&inner[at..at + plain]));
            at += plain;
            continue;
        }
        debug_assert_eq!(*byte, b'\\');
        let escaped = inner.get(at + 1).copied().unwrap_or_default();
        at += 2;
        out.push(match escaped {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let (character, behind) = unicode(inner, at);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                at = behind;
                continue;
            }
            other => other,
        });
    }
    Cow::Owned(out)
}

/// The character of the `\u` escape whose digits begin at `at`, joined with a second surrogate, and the position after
/// it.
fn unicode(text: &[u8], at: usize) -> (char, usize) {
    let unit = |at: usize| {
        let digits = std::str::from_utf8(text.get(at..at + 4)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    let Some(first) = unit(at) else { return (char::REPLACEMENT_CHARACTER, at + 4) };
    if let Some(character) = char::from_u32(first) {
        return (character, at + 4);
    }
    if let (0xd800..0xdc00, Some(br"\u")) = (first, text.get(at + 4..at + 6))
        && let Some(second @ 0xdc00..0xe000) = unit(at + 6)
    {
        let character = char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
        return (character.unwrap_or(char::REPLACEMENT_CHARACTER), at + 10);
    }
    (char::REPLACEMENT_CHARACTER, at + 4)
}

/// Replaces each byte outside of valid characters by U+FFFD.
fn each_as_one(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        chunk.invalid().iter().for_each(|_| out.extend_from_slice("\u{fffd}".as_bytes()));
    }
    out
}

#[cfg(test)]
mod tests;
