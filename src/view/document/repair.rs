//! [`repair`]: replaces invalid text in JSON.
//!
//! Go's decoder reads each byte that is not UTF-8, and each escape of half a surrogate pair, as U+FFFD. serde_json
//! refuses both. Called by `read` for refused values. Always holds: what is not JSON does not become JSON.

use std::borrow::Cow;

/// The length of `\u` and its four digits.
const ESCAPE_LEN: usize = 6;

/// The JSON with both replaced; borrowed if it contains neither.
pub(super) fn repair(json: &[u8]) -> Cow<'_, [u8]> {
    let mut json = match str::from_utf8(json) {
        Ok(_) => Cow::Borrowed(json),
        Err(_) => Cow::Owned(replace_bytes(json)),
    };
    replace_surrogates(&mut json);
    json
}

fn replace_bytes(json: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(json.len() + json.len() / 8);
    for chunk in json.utf8_chunks() {
        text.extend_from_slice(chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            text.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    text
}

/// Backslashes occur only in strings, so no other part of the JSON need be parsed.
fn replace_surrogates(json: &mut Cow<'_, [u8]>) {
    let mut at = 0;
    while let Some(found) = json.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'\\')) {
        at += found;
        at += match (unit(json, at), unit(json, at + ESCAPE_LEN)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 2 * ESCAPE_LEN,
            (Some(0xd800..=0xdfff), _) => {
                json.to_mut()[at..at + ESCAPE_LEN].copy_from_slice(b"\\ufffd");
                ESCAPE_LEN
            }
            (Some(_), _) => ESCAPE_LEN,
            // Another escape, such as one of a backslash.
            (None, _) => 2,
        };
    }
}

/// The UTF-16 code unit of the escape at this position, if there is one.
fn unit(json: &[u8], at: usize) -> Option<u32> {
    let digits = json.get(at..at + ESCAPE_LEN)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_text_is_not_copied() {
        for json in ["", "{}", r#""é \ud83d\ude80 \\ud800 \n""#, r#""\\\\ud800""#, r"\", r"\u12", r"\u+d80"] {
            assert!(matches!(repair(json.as_bytes()), Cow::Borrowed(_)), "{json}");
        }
    }

    #[test]
    fn each_bad_byte_is_one_replacement() {
        let bad: [(&[u8], &str); 4] = [
            (b"\xff", "\u{fffd}"),
            // An incomplete character, and a surrogate encoded as UTF-8.
            (b"a\xe2\x82b", "a\u{fffd}\u{fffd}b"),
            (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
            (b"\xe2\x82\xac\x80", "€\u{fffd}"),
        ];
        for (bytes, text) in bad {
            assert_eq!(repair(bytes), text.as_bytes(), "{bytes:x?}");
        }
    }

    #[test]
    fn each_half_of_a_pair_is_one_replacement() {
        let halves = [
            (r"\ud800", r"\ufffd"),
            (r"\uDC00x", r"\ufffdx"),
            (r"\ud800\u0041", r"\ufffd\u0041"),
            (r"\ud83d\ud83d\ude80", r"\ufffd\ud83d\ude80"),
            (r"\ude80\ud83d", r"\ufffd\ufffd"),
            (r"\\\ud800", r"\\\ufffd"),
            (r"\ud800\\udc00", r"\ufffd\\udc00"),
        ];
        for (escaped, text) in halves {
            assert_eq!(repair(escaped.as_bytes()), text.as_bytes(), "{escaped}");
        }
        assert_eq!(repair(b"\xff\\ud800"), "\u{fffd}\\ufffd".as_bytes());
    }
}
