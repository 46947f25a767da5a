//! Text in the form of Go's JSON encoder, which etcd's HTTP clients receive.
//!
//! Always holds: the output is a JSON string, whatever the input bytes are.

/// The version of Go whose form is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// Before 1.22, with which v2 servers are built.
    Old,
    /// Since 1.22, which writes `\b` and `\f`.
    New,
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes a quoted string. Each byte that is not UTF-8 becomes `\ufffd`; `<`, `>` and `&` are escaped.
pub(super) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_string_of(Go::Old, out, bytes);
}

/// Writes a quoted string in the form of a given version of Go.
pub(super) fn put_string_of(go: Go, out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(at) = rest.find(is_escaped) {
            let (plain, from) = rest.split_at(at);
            out.extend_from_slice(plain.as_bytes());
            let mut characters = from.chars();
            characters.next().into_iter().for_each(|character| put_escaped(go, out, character));
            rest = characters.as_str();
        }
        out.extend_from_slice(rest.as_bytes());
        for _ in chunk.invalid() {
            out.extend_from_slice(br"\ufffd");
        }
    }
    out.push(b'"');
}

/// The length of what [`put_string`] writes.
pub(super) fn string_len(bytes: &[u8]) -> usize {
    let valid = |text: &str| -> usize { text.chars().map(escaped_len).sum() };
    2 + bytes.utf8_chunks().map(|chunk| valid(chunk.valid()) + 6 * chunk.invalid().len()).sum::<usize>()
}

fn escaped_len(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' => 2,
        other if is_escaped(other) => 6,
        other => other.len_utf8(),
    }
}

fn is_escaped(character: char) -> bool {
    matches!(character, '"' | '\\' | '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}')
}

fn put_escaped(go: Go, out: &mut Vec<u8>, character: char) {
    match character {
        '\x08' if go == Go::New => out.extend_from_slice(br"\b"),
        '\x0c' if go == Go::New => out.extend_from_slice(br"\f"),
        '"' => out.extend_from_slice(br#"\""#),
        '\\' => out.extend_from_slice(br"\\"),
        '\n' => out.extend_from_slice(br"\n"),
        '\r' => out.extend_from_slice(br"\r"),
        '\t' => out.extend_from_slice(br"\t"),
        // All others have at most four digits.
        other => {
            out.extend_from_slice(br"\u");
            out.extend([12, 8, 4, 0].map(|shift| HEX[(u32::from(other) >> shift) as usize & 0xf]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_those_of_go() {
        for (bytes, want) in [
            (&b"plain"[..], r#""plain""#),
            (b"<a>&\"\\", r#""\u003ca\u003e\u0026\"\\""#),
            (b"\n\r\t\x08\x0c\x01\x7f", "\"\\n\\r\\t\\u0008\\u000c\\u0001\x7f\""),
            ("é\u{2028}\u{2029}😀".as_bytes(), "\"é\\u2028\\u2029😀\""),
            (b"a\xff\xfeb\xe2\x82", r#""a\ufffd\ufffdb\ufffd\ufffd""#),
        ] {
            let mut out = Vec::new();
            put_string(&mut out, bytes);
            assert_eq!(String::from_utf8_lossy(&out), want);
            assert_eq!(string_len(bytes), out.len(), "{want}");
        }
        let mut out = Vec::new();
        put_string_of(Go::New, &mut out, b"\x07\x08\x0c<");
        assert_eq!(String::from_utf8_lossy(&out), r#""\u0007\b\f\u003c""#);
    }
}
