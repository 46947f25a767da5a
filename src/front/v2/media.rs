//! Parses content types like Go's library, with its error texts.
//!
//! Bodies are in `forms`. Always holds: of a parameter, only what is needed to detect a duplicate is remembered.

use std::collections::BTreeMap;

/// Whether a content type is a form. Fails if it is invalid.
pub(super) fn is_form(content_type: Option<&[u8]>) -> Result<bool, &'static str> {
    let Some(text) = content_type.filter(|text| !text.is_empty()) else { return Ok(false) };
    let end = text.iter().position(|byte| *byte == b';').unwrap_or(text.len());
    let kind = text[..end].trim_ascii();
    check_kind(kind)?;
    check_parameters(&text[end..])?;
    Ok(kind.eq_ignore_ascii_case(b"application/x-www-form-urlencoded"))
}

fn check_kind(kind: &[u8]) -> Result<(), &'static str> {
    let (first, rest) = token(kind);
    if first.is_empty() {
        return Err("mime: no media type");
    }
    if rest.is_empty() {
        return Ok(());
    }
    let rest = rest.strip_prefix(b"/").ok_or("mime: expected slash after first token")?;
    match token(rest) {
        ([], _) => Err("mime: expected token after slash"),
        (_, []) => Ok(()),
        _ => Err("mime: unexpected content after media subtype"),
    }
}

fn check_parameters(mut text: &[u8]) -> Result<(), &'static str> {
    let mut known: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    loop {
        text = text.trim_ascii_start();
        if text.is_empty() || text == b";" {
            return Ok(());
        }
        let (name, value, rest) = parameter(text).ok_or("mime: invalid media parameter")?;
        if known.get(&name).is_some_and(|known| *known != value) {
            return Err("mime: duplicate parameter name");
        }
        known.insert(name, value);
        text = rest;
    }
}

/// The parameter at the beginning of a text: its name, its value and the rest.
fn parameter(text: &[u8]) -> Option<(Vec<u8>, Vec<u8>, &[u8])> {
    let (name, rest) = token(text.strip_prefix(b";")?.trim_ascii_start());
    let rest = rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
    let (value, rest) = match rest.strip_prefix(b"\"") {
        Some(quoted) => unquote(quoted)?,
        None => {
            let (value, rest) = token(rest);
            (Some(value.to_vec()).filter(|value| !value.is_empty())?, rest)
        }
    };
    (!name.is_empty()).then(|| (name.to_ascii_lowercase(), value, rest))
}

/// The text in quotes, and the rest after it.
fn unquote(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    let mut at = 0;
    loop {
        match (*text.get(at)?, text.get(at + 1)) {
            (b'"', _) => return Some((value, &text[at + 1..])),
            (b'\r' | b'\n', _) => return None,
            // Some clients do not escape the backslashes of file names: a backslash before a character that needs no
            // escape is kept.
            (b'\\', Some(escaped)) if !is_token(*escaped) => {
                value.push(*escaped);
                at += 1;
            }
            (byte, _) => value.push(byte),
        }
        at += 1;
    }
}

/// The token at the beginning of a text, and the rest.
fn token(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().take_while(|byte| is_token(**byte)).count())
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`{|}~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_are_read_as_go_reads_them() {
        const FORM: &str = "application/x-www-form-urlencoded";
        let of_form = |rest: &str| format!("{FORM}{rest}");
        for (text, want) in [
            (of_form(""), Ok(true)),
            ("Application/X-WWW-Form-Urlencoded; charset=utf-8".to_owned(), Ok(true)),
            (of_form(" ; charset=\"utf-8\" ;"), Ok(true)),
            (of_form(";"), Ok(true)),
            (of_form("; a=b; A=b"), Ok(true)),
            (of_form(";; a=b"), Err("mime: invalid media parameter")),
            (of_form("; a"), Err("mime: invalid media parameter")),
            (of_form("; a="), Err("mime: invalid media parameter")),
            (of_form("; a=\"b"), Err("mime: invalid media parameter")),
            (of_form("; a=b c"), Err("mime: invalid media parameter")),
            (of_form("; a=b; a=c"), Err("mime: duplicate parameter name")),
            (of_form(", text/plain"), Err("mime: unexpected content after media subtype")),
            ("text/plain".to_owned(), Ok(false)),
            (String::new(), Ok(false)),
            ("a/b c".to_owned(), Err("mime: unexpected content after media subtype")),
            ("a/".to_owned(), Err("mime: expected token after slash")),
            ("a b".to_owned(), Err("mime: expected slash after first token")),
            (";".to_owned(), Err("mime: no media type")),
        ] {
            assert_eq!(is_form(Some(text.as_bytes())), want, "{text}");
        }
    }
}
