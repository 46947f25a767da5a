//! [`Scanner`]: finds the end of a JSON value, and its errors, in the words of Go's `encoding/json`, which etcd's
//! gateway uses.
//!
//! The meaning of a value is in `decode`. The scanner reads a value byte by byte, in any pieces, without recursion.
//! Always holds: a value that was scanned to its end is valid JSON and no deeper than [`MAX_DEPTH`]. The places of its
//! objects and arrays are known, so that a reader can skip one in a single step.

use std::fmt::Write as _;

use thiserror::Error;

/// Greatest depth of objects and arrays: Go's own limit.
const MAX_DEPTH: usize = 10_000;
/// Most objects and arrays in a value. The place of one can take four times as much memory as its text, and etcd
/// accepts far fewer.
const MAX_PARTS: usize = 1 << 18;

/// Why a text is not JSON, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum SyntaxError {
    #[error("invalid character {} {}", quoted(*.0), .1)]
    Character(u8, &'static str),
    /// The text ends within a value.
    #[error("unexpected end of JSON input")]
    End,
    /// The value has too many objects and arrays; Go has no such limit.
    #[error("etcd-relay: a request has at most {MAX_PARTS} objects and arrays")]
    Parts,
}

/// The place of an object or an array in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    /// The objects and arrays around the current position, the outermost first.
    open: Vec<Open>,
    extents: Vec<Extent>,
    /// Number of bytes read.
    taken: u32,
}

/// The effect of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The value continues.
    More,
    /// The value ended before this byte, which is not part of it.
    Before,
    /// The value ends with this byte.
    With,
}

/// An open object or array.
#[derive(Clone, Copy, Debug)]
struct Open {
    part: Part,
    extent: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Key,
    Value,
    Element,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There were only spaces so far.
    Begin,
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    AfterValue,
    Text,
    Escape,
    /// This many digits of a `\u` escape are still to come.
    Hex(u8),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    E,
    ESign,
    Exponent,
    /// A part of `true`, `false` or `null`: the word, its name, and the length read so far.
    Word(&'static [u8], &'static str, usize),
    /// The value has ended.
    Ended,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self { state: State::Begin, open: Vec::new(), extents: Vec::new(), taken: 0 }
    }

    /// The objects and arrays of the value, in the order of their starts.
    pub(super) fn extents(self) -> Vec<Extent> {
        self.extents
    }

    /// Reads bytes up to the end of the value. Returns how many were read, and whether the value has ended. A byte that
    /// ends a number or a word is not included.
    ///
    /// # Errors
    /// Fails if the bytes are not JSON.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(usize, bool), SyntaxError> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.state == State::Text {
                // Most bytes of a large request are of this kind.
                let plain = bytes[at..].iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)).count();
                if plain > 0 {
                    at += plain;
                    self.taken += plain as u32;
                    continue;
                }
            }
            match self.step(*byte)? {
                Step::More => at += 1,
                Step::Before => return Ok((at, true)),
                Step::With => return Ok((at + 1, true)),
            }
        }
        Ok((at, false))
    }

    /// Whether a value has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.state != State::Begin
    }

    /// Called at the end of the text. Returns whether the value is complete.
    pub(super) fn ends(&mut self) -> bool {
        // As in Go, a number ends when something else follows.
        self.has_begun() && matches!(self.step(b' '), Ok(Step::Before | Step::With))
    }

    fn step(&mut self, byte: u8) -> Result<Step, SyntaxError> {
        let step = self.next(byte)?;
        if step != Step::Before {
            self.taken += 1;
        }
        Ok(step)
    }

    fn next(&mut self, byte: u8) -> Result<Step, SyntaxError> {
        let fail = |context| Err(SyntaxError::Character(byte, context));
        let space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        self.state = match self.state {
            State::Begin | State::Value | State::ValueOrEnd | State::KeyOrEnd if space => return Ok(Step::More),
            State::Key if space => return Ok(Step::More),
            State::ValueOrEnd if byte == b']' => return Ok(self.close()),
            State::Begin | State::Value | State::ValueOrEnd => return self.begin(byte),
            State::KeyOrEnd if byte == b'}' => return Ok(self.close()),
            State::Key | State::KeyOrEnd if byte == b'"' => State::Text,
            State::Key | State::KeyOrEnd => return fail("looking for beginning of object key string"),
            State::AfterValue | State::Ended => return self.after_value(byte, space),
            State::Text => match byte {
                b'"' => State::AfterValue,
                b'\\' => State::Escape,
                0..=0x1f => return fail("in string literal"),
                _ => State::Text,
            },
            State::Escape => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => State::Text,
                b'u' => State::Hex(4),
                _ => return fail("in string escape code"),
            },
            State::Hex(left) if byte.is_ascii_hexdigit() => {
                if left > 1 {
                    State::Hex(left - 1)
                } else {
                    State::Text
                }
            }
            State::Hex(_) => return fail("in \\u hexadecimal character escape"),
            State::Minus => match byte {
                b'0' => State::Zero,
                b'1'..=b'9' => State::Digits,
                _ => return fail("in numeric literal"),
            },
            State::Digits if byte.is_ascii_digit() => State::Digits,
            State::Zero | State::Digits if byte == b'.' => State::Point,
            State::Zero | State::Digits | State::Fraction if matches!(byte, b'e' | b'E') => State::E,
            State::Point | State::Fraction if byte.is_ascii_digit() => State::Fraction,
            State::Point => return fail("after decimal point in numeric literal"),
            State::E if matches!(byte, b'+' | b'-') => State::ESign,
            State::E | State::ESign | State::Exponent if byte.is_ascii_digit() => State::Exponent,
            State::E | State::ESign => return fail("in exponent of numeric literal"),
            State::Zero | State::Digits | State::Fraction | State::Exponent => return self.after_value(byte, space),
            State::Word(word, contexts, at) => {
                if word.get(at) != Some(&byte) {
                    return fail(contexts_of(contexts, at));
                }
                if at + 1 < word.len() { State::Word(word, contexts, at + 1) } else { State::AfterValue }
            }
        };
        Ok(Step::More)
    }

    /// The first byte of a value.
    fn begin(&mut self, byte: u8) -> Result<Step, SyntaxError> {
        self.state = match byte {
            b'{' => return self.open(byte, Part::Key, State::KeyOrEnd),
            b'[' => return self.open(byte, Part::Element, State::ValueOrEnd),
            b'"' => State::Text,
            b'-' => State::Minus,
            b'0' => State::Zero,
            b'1'..=b'9' => State::Digits,
            b't' => State::Word(b"true", "true", 1),
            b'f' => State::Word(b"false", "false", 1),
            b'n' => State::Word(b"null", "null", 1),
            _ => return Err(SyntaxError::Character(byte, "looking for beginning of value")),
        };
        Ok(Step::More)
    }

    fn after_value(&mut self, byte: u8, space: bool) -> Result<Step, SyntaxError> {
        let Some(open) = self.open.last_mut() else {
            self.state = State::Ended;
            return Ok(Step::Before);
        };
        if space {
            // The number is complete.
            self.state = State::AfterValue;
            return Ok(Step::More);
        }
        let fail = |context| Err(SyntaxError::Character(byte, context));
        self.state = match (open.part, byte) {
            (Part::Key, b':') => {
                open.part = Part::Value;
                State::Value
            }
            (Part::Value, b',') => {
                open.part = Part::Key;
                State::Key
            }
            (Part::Element, b',') => State::Value,
            (Part::Value, b'}') | (Part::Element, b']') => return Ok(self.close()),
            (Part::Key, _) => return fail("after object key"),
            (Part::Value, _) => return fail("after object key:value pair"),
            (Part::Element, _) => return fail("after array element"),
        };
        Ok(Step::More)
    }

    fn open(&mut self, byte: u8, part: Part, state: State) -> Result<Step, SyntaxError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(SyntaxError::Character(byte, "exceeded max depth"));
        }
        if self.extents.len() >= MAX_PARTS {
            return Err(SyntaxError::Parts);
        }
        self.open.push(Open { part, extent: self.extents.len() });
        self.extents.push(Extent { start: self.taken, end: self.taken });
        self.state = state;
        Ok(Step::More)
    }

    fn close(&mut self) -> Step {
        if let Some(open) = self.open.pop() {
            self.extents[open.extent].end = self.taken + 1;
        }
        if self.open.is_empty() {
            self.state = State::Ended;
            return Step::With;
        }
        self.state = State::AfterValue;
        Step::More
    }
}

/// Checks that a text is a single JSON value.
///
/// # Errors
/// Fails if it is not.
pub(super) fn check(text: &[u8]) -> Result<(), SyntaxError> {
    let mut scanner = Scanner::new();
    let (taken, ended) = scanner.take(text)?;
    if !ended && !scanner.ends() {
        return Err(SyntaxError::End);
    }
    let mut rest = text[taken..].iter().filter(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    rest.next().map_or(Ok(()), |byte| Err(SyntaxError::Character(*byte, "after top-level value")))
}

/// What Go expects within a word.
fn contexts_of(word: &str, at: usize) -> &'static str {
    match (word, at) {
        ("true", 1) => "in literal true (expecting 'r')",
        ("true", 2) => "in literal true (expecting 'u')",
        ("true", _) => "in literal true (expecting 'e')",
        ("false", 1) => "in literal false (expecting 'a')",
        ("false", 2) => "in literal false (expecting 'l')",
        ("false", 3) => "in literal false (expecting 's')",
        ("false", _) => "in literal false (expecting 'e')",
        (_, 1) => "in literal null (expecting 'u')",
        _ => "in literal null (expecting 'l')",
    }
}

/// A byte in Go's form: as the character of that number, in single quotes.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        _ => {
            let text = go_quoted(char::from(byte).encode_utf8(&mut [0; 4]).as_bytes());
            format!("'{}'", &text[1..text.len() - 1])
        }
    }
}

/// Bytes in the form of Go's `%q`.
pub(super) fn go_quoted(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            let short = match character {
                '"' => "\\\"",
                '\\' => r"\\",
                '\x07' => r"\a",
                '\x08' => r"\b",
                '\x0c' => r"\f",
                '\n' => r"\n",
                '\r' => r"\r",
                '\t' => r"\t",
                '\x0b' => r"\v",
                '\0'..='\x1f' | '\x7f' => {
                    let _ = write!(out, r"\x{:02x}", u32::from(character));
                    continue;
                }
                // Characters that Rust would escape are escaped by Go as well.
                _ if character.is_ascii() || character.escape_debug().len() == 1 => {
                    out.push(character);
                    continue;
                }
                '\0'..='\u{ffff}' => {
                    let _ = write!(out, r"\u{:04x}", u32::from(character));
                    continue;
                }
                _ => {
                    let _ = write!(out, r"\U{:08x}", u32::from(character));
                    continue;
                }
            };
            out.push_str(short);
        }
        for byte in chunk.invalid() {
            let _ = write!(out, r"\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_of_objects_and_arrays_are_bounded_however_small_these_are() {
        let text = |parts: usize| format!("[{}0]", "{},".repeat(parts - 1));
        assert_eq!(check(text(MAX_PARTS).as_bytes()), Ok(()));
        assert_eq!(check(text(MAX_PARTS + 1).as_bytes()), Err(SyntaxError::Parts));
    }

    #[test]
    fn what_is_wrong_is_said_in_gos_words() {
        for (text, want) in [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("1.", "unexpected end of JSON input"),
            ("abc", "invalid character 'a' looking for beginning of value"),
            ("{a", "invalid character 'a' looking for beginning of object key string"),
            (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
            (r#"{"a" 1"#, "invalid character '1' after object key"),
            (r#"{"a":1 "b""#, "invalid character '\"' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("1 2", "invalid character '2' after top-level value"),
            ("01", "invalid character '1' after top-level value"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.e", "invalid character 'e' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
            ("trve", "invalid character 'v' in literal true (expecting 'u')"),
            ("nil", "invalid character 'i' in literal null (expecting 'u')"),
            (r#""\x""#, "invalid character 'x' in string escape code"),
            (r#""\u00g0""#, r"invalid character 'g' in \u hexadecimal character escape"),
            ("\"a\nb\"", r"invalid character '\n' in string literal"),
            ("'a'", r"invalid character '\'' looking for beginning of value"),
            ("\u{e9}", "invalid character 'Ã' looking for beginning of value"),
            ("\x01", r"invalid character '\x01' looking for beginning of value"),
        ] {
            assert_eq!(check(text.as_bytes()).expect_err(text).to_string(), want, "{text}");
        }
        for text in ["{}", " [1, -0.5e+3 , \"\\u00e9\\n\", {\"a\": null}] ", "true", "0", "\"\""] {
            check(text.as_bytes()).expect(text);
        }
    }

    #[test]
    fn a_value_is_found_however_it_comes_and_what_follows_is_left() {
        let text = br#" {"a":[{},[1]]} {"b""#;
        for cut in 0..text.len() {
            let mut scanner = Scanner::new();
            let (first, rest) = text.split_at(cut);
            let (mut taken, mut ended) = scanner.take(first).expect("JSON");
            if !ended {
                let (more, end) = scanner.take(rest).expect("JSON");
                (taken, ended) = (taken + more, end);
            }
            assert!(ended && taken == 15, "cut at {cut}: {taken}");
            let extents: Vec<_> =
                scanner.extents().iter().map(|extent| &text[extent.start as usize..extent.end as usize]).collect();
            assert_eq!(extents, [&br#"{"a":[{},[1]]}"#[..], b"[{},[1]]", b"{}", b"[1]"]);
        }
    }

    #[test]
    fn a_number_ends_where_something_else_comes() {
        let mut scanner = Scanner::new();
        assert_eq!(scanner.take(b"12"), Ok((2, false)));
        assert_eq!(scanner.take(b"3x"), Ok((1, true)));
        let mut scanner = Scanner::new();
        assert_eq!(scanner.take(b"12"), Ok((2, false)));
        assert!(scanner.ends());
    }

    #[test]
    fn depth_is_bounded() {
        let mut text = vec![b'['; MAX_DEPTH + 1];
        assert_eq!(check(&text), Err(SyntaxError::Character(b'[', "exceeded max depth")));
        text.truncate(MAX_DEPTH);
        text.extend(vec![b']'; MAX_DEPTH]);
        check(&text).expect("as deep as allowed");
    }
}
