//! JSON exactly as Go's `encoding/json` writes it.
//!
//! It is compact, escapes `<`, `>`, `&`, U+2028 and U+2029, and writes floats in Go's form. Structs are written in the
//! order of their fields, maps in the order of their iteration, so pass sorted maps. Views call it for their rows.

use std::io;

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter};

/// The JSON of a value.
pub(crate) fn to_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut json = Vec::with_capacity(128);
    write_json(&mut json, value);
    json
}

/// Appends the JSON of a value, whose maps must have strings as keys.
pub(crate) fn write_json<T: Serialize + ?Sized>(to: &mut Vec<u8>, value: &T) {
    let mut serializer = serde_json::Serializer::with_formatter(to, Go);
    value.serialize(&mut serializer).expect("writing to memory cannot fail, and views have only strings as keys");
}

/// Appends bytes as a JSON string. Each byte that is not UTF-8 is written as the six characters `\ufffd`.
pub(crate) fn write_string(to: &mut Vec<u8>, bytes: &[u8]) {
    to.push(b'"');
    for chunk in bytes.utf8_chunks() {
        escape(to, chunk.valid()).expect("writing to memory cannot fail");
        for _ in chunk.invalid() {
            to.extend_from_slice(b"\\ufffd");
        }
    }
    to.push(b'"');
}

/// Writes text with the escapes of a JSON string, without quotes.
fn escape<W: io::Write + ?Sized>(to: &mut W, text: &str) -> io::Result<()> {
    let bytes = text.as_bytes();
    let mut written = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let (len, code) = match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | b'<' | b'>' | b'&' | ..0x20 => (1, u16::from(*byte)),
            // U+2028 and U+2029, which end a line in JavaScript.
            0xe2 if matches!(bytes[at..], [_, 0x80, 0xa8 | 0xa9, ..]) => (3, 0x2000 + u16::from(bytes[at + 2]) - 0x80),
            _ => continue,
        };
        to.write_all(&bytes[written..at])?;
        written = at + len;
        match byte {
            b'"' => to.write_all(b"\\\"")?,
            b'\\' => to.write_all(b"\\\\")?,
            b'\n' => to.write_all(b"\\n")?,
            b'\r' => to.write_all(b"\\r")?,
            b'\t' => to.write_all(b"\\t")?,
            _ => write!(to, "\\u{code:04x}")?,
        }
    }
    to.write_all(&bytes[written..])
}

/// Go's format where it differs from serde_json's.
struct Go;

impl Formatter for Go {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        escape(to, fragment)
    }

    fn write_char_escape<W: io::Write + ?Sized>(&mut self, to: &mut W, escaped: CharEscape) -> io::Result<()> {
        let byte = match escaped {
            CharEscape::Quote => b'"',
            CharEscape::ReverseSolidus => b'\\',
            CharEscape::Solidus => b'/',
            CharEscape::Backspace => 0x08,
            CharEscape::FormFeed => 0x0c,
            CharEscape::LineFeed => b'\n',
            CharEscape::CarriageReturn => b'\r',
            CharEscape::Tab => b'\t',
            CharEscape::AsciiControl(byte) => byte,
        };
        escape(to, char::from(byte).encode_utf8(&mut [0; 4]))
    }

    fn write_f64<W: io::Write + ?Sized>(&mut self, to: &mut W, value: f64) -> io::Result<()> {
        // Like Go, both write the fewest digits that give the same number.
        let magnitude = value.abs();
        if magnitude == 0.0 || (1e-6..1e21).contains(&magnitude) {
            write!(to, "{value}")
        } else if magnitude < 1.0 {
            write!(to, "{value:e}")
        } else {
            write!(to, "{}", format!("{value:e}").replacen('e', "e+", 1))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn json<T: Serialize + ?Sized>(value: &T) -> String {
        String::from_utf8(to_json(value)).expect("text")
    }

    fn string(bytes: &[u8]) -> String {
        let mut json = Vec::new();
        write_string(&mut json, bytes);
        String::from_utf8(json).expect("text")
    }

    #[test]
    fn escapes() {
        let escapes = [
            ("<b>&amp;</b>", r"\u003cb\u003e\u0026amp;\u003c/b\u003e"),
            ("\u{2027}\u{2028}\u{2029}\u{202a}", "\u{2027}\\u2028\\u2029\u{202a}"),
            ("\"quoted\" back\\slash", r#"\"quoted\" back\\slash"#),
            ("\n\r\t", r"\n\r\t"),
            ("\u{0}\u{1}\u{7}\u{8}\u{b}\u{c}\u{1b}\u{1f}", r"\u0000\u0001\u0007\u0008\u000b\u000c\u001b\u001f"),
            ("a/b 'c' \u{7f}\u{80}é中🚀\u{fffd}\u{feff}", "a/b 'c' \u{7f}\u{80}é中🚀\u{fffd}\u{feff}"),
            ("", ""),
        ];
        for (text, escaped) in escapes {
            assert_eq!(json(text), format!("\"{escaped}\""));
            assert_eq!(string(text.as_bytes()), format!("\"{escaped}\""));
        }
        // Nothing else is escaped: all of ASCII, one by one.
        for char in '\0'..='\u{7f}' {
            let text = char.to_string();
            let as_it_is = format!("\"{char}\"");
            assert_eq!(json(&text) != as_it_is, char < ' ' || "\"\\<>&".contains(char), "{char:?}");
            assert_eq!(json(&text), string(text.as_bytes()));
        }
    }

    #[test]
    fn a_byte_that_is_not_utf8_is_escaped() {
        assert_eq!(string(b"a\xffb"), r#""a\ufffdb""#);
        assert_eq!(string(b"\xe2\x82<"), r#""\ufffd\ufffd\u003c""#);
        assert_eq!(string(b"\xed\xa0\x80\xe2\x80"), r#""\ufffd\ufffd\ufffd\ufffd\ufffd""#);
    }

    #[test]
    fn shapes() {
        #[derive(Serialize)]
        struct Shape<'a> {
            #[serde(rename = "Zed")]
            zed: Option<&'a [&'a str]>,
            #[serde(rename = "<a>")]
            a: &'a [i64],
            map: BTreeMap<&'a str, bool>,
        }
        let shape = Shape { zed: None, a: &[-1, i64::MAX], map: BTreeMap::from([("b&", true), ("B", false)]) };
        assert_eq!(
            json(&shape),
            r#"{"Zed":null,"\u003ca\u003e":[-1,9223372036854775807],"map":{"B":false,"b\u0026":true}}"#
        );
        assert_eq!(
            json(&Shape { zed: Some(&[]), a: &[], map: BTreeMap::new() }),
            r#"{"Zed":[],"\u003ca\u003e":[],"map":{}}"#
        );
        let mut appended = b"[".to_vec();
        write_json(&mut appended, &1);
        assert_eq!(appended, b"[1");
    }

    #[test]
    fn floats() {
        let floats = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (12_345_678_901_234_567_890.0, "12345678901234567000"),
            (999_999_999_999_999_900_000.0, "999999999999999900000"),
            (1e21, "1e+21"),
            (-1.25e300, "-1.25e+300"),
            (1e-6, "0.000001"),
            (9.99e-7, "9.99e-7"),
            (-1e-7, "-1e-7"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ];
        for (float, written) in floats {
            assert_eq!(json(&float), written);
        }
    }

    proptest! {
        #[test]
        fn text_reads_back(text in ".*") {
            prop_assert_eq!(serde_json::from_str::<String>(&json(&text)).expect("JSON"), text.as_str());
            prop_assert_eq!(string(text.as_bytes()), json(&text));
            let unescaped = json(&text).contains(['<', '>', '&', '\u{2028}', '\u{2029}', '\n']);
            prop_assert!(!unescaped);
        }

        #[test]
        fn bytes_read_back_with_replacements(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let read: String = serde_json::from_str(&string(&bytes)).expect("JSON");
            let mut replaced = String::new();
            for chunk in bytes.utf8_chunks() {
                replaced.push_str(chunk.valid());
                replaced.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
            }
            prop_assert_eq!(read, replaced);
        }

        #[test]
        fn floats_read_back(float in any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |float| float.is_finite())) {
            let read: f64 = serde_json::from_str(&json(&float)).expect("JSON");
            prop_assert_eq!(read.to_bits(), float.to_bits());
        }
    }
}
