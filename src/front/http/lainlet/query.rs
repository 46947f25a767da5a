//! The parameters of a request, parsed like the Go version of Lainlet's time.
//!
//! Always holds: of repeated parameters the first counts. A pair with a malformed escape is ignored and does not affect
//! the others.

use std::{borrow::Cow, time::Duration};

use thiserror::Error;

use crate::types::Revision;

/// Longer than any client waits. A larger number counts as this.
const LONGEST_HEARTBEAT: u64 = 365 * 24 * 60 * 60;

/// A parameter that cannot be read and must not be ignored.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("etcd-relay: min_revision must be a revision, not {0:?}")]
pub(super) struct BadRevision(String);

/// The values of `names` in a query; `None` for each that is absent.
pub(super) fn parameters<'a, const N: usize>(query: &'a str, names: [&str; N]) -> [Option<Cow<'a, str>>; N] {
    let mut values = [const { None }; N];
    // Until 1.17, Go also took a semicolon as a separator.
    for pair in query.split(['&', ';']) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(name) = unescape(name) else { continue };
        for (wanted, found) in names.iter().zip(&mut values) {
            if name == *wanted && found.is_none() {
                *found = unescape(value);
            }
        }
    }
    values
}

/// Resolves the escapes of a text; `None` if one is malformed.
pub(super) fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => escaped(&mut bytes)?,
            byte => byte,
        });
    }
    Some(Cow::Owned(into_text(plain)))
}

/// Resolves the escapes of a path; `None` if one is malformed. A plus sign stands for itself.
pub(super) fn unescape_path(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut plain = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'%' { escaped(&mut bytes)? } else { byte });
    }
    Some(into_text(plain))
}

/// Whether `watch` requests a stream.
pub(super) fn wants_stream(watch: Option<&str>) -> bool {
    !matches!(watch, None | Some("" | "0" | "false"))
}

/// The time between heartbeats.
pub(super) fn heartbeat(seconds: Option<&str>) -> Option<Duration> {
    let seconds: i64 = seconds?.parse().ok()?;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(seconds.min(LONGEST_HEARTBEAT)))
}

/// The revision that the reply must have reached.
///
/// # Errors
/// Fails if it is not a decimal number.
pub(super) fn min_revision(text: Option<&str>) -> Result<Option<Revision>, BadRevision> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let revision = text.parse().ok().filter(|revision| *revision >= 0);
    revision.map_or_else(|| Err(BadRevision(text.to_owned())), |revision| Ok(Some(Revision::new(revision))))
}

fn escaped(bytes: &mut std::str::Bytes<'_>) -> Option<u8> {
    let mut digit = || char::from(bytes.next()?).to_digit(16);
    Some((digit()? * 16 + digit()?) as u8)
}

/// Keys that are not UTF-8 cannot be requested; the replacement character occurs in no key.
fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(query: &str) -> Option<String> {
        let [target] = parameters(query, ["target"]);
        target.map(Cow::into_owned)
    }

    #[test]
    fn the_first_readable_pair_counts() {
        for (query, want) in [
            ("", None),
            ("target", Some("")),
            ("target=", Some("")),
            ("target=a", Some("a")),
            ("target=a&target=b", Some("a")),
            ("target=&target=b", Some("")),
            ("other=1;target=a", Some("a")),
            ("target=a;b", Some("a")),
            ("target=a=b", Some("a=b")),
            ("%74arget=a", Some("a")),
            ("Target=a", None),
            ("target=%zz&target=b", Some("b")),
            ("target=%2&x=1", None),
            ("%zz=1&target=a", Some("a")),
            ("target=a%2Fb+c%2b", Some("a/b c+")),
            ("target=%E4%B8%AD", Some("中")),
            ("target=%ff", Some("\u{fffd}")),
            ("&&=&target=a&", Some("a")),
        ] {
            assert_eq!(target(query).as_deref(), want, "{query}");
        }
    }

    #[test]
    fn a_stream_is_what_watch_does_not_deny() {
        for (watch, want) in [
            (None, false),
            (Some(""), false),
            (Some("0"), false),
            (Some("false"), false),
            (Some("1"), true),
            (Some("no"), true),
            (Some("False"), true),
            (Some("00"), true),
        ] {
            assert_eq!(wants_stream(watch), want, "{watch:?}");
        }
    }

    #[test]
    fn heartbeats_are_decimal_seconds() {
        for (text, want) in [
            ("5", Some(5)),
            ("+5", Some(5)),
            ("0", None),
            ("-1", None),
            ("", None),
            ("5s", None),
            ("1.5", None),
            ("99999999999999999999", None),
            ("9223372036854775807", Some(LONGEST_HEARTBEAT)),
        ] {
            assert_eq!(heartbeat(Some(text)), want.map(Duration::from_secs), "{text}");
        }
        assert_eq!(heartbeat(None), None);
    }

    #[test]
    fn a_revision_is_a_decimal_number() {
        assert_eq!(min_revision(None), Ok(None));
        assert_eq!(min_revision(Some("")), Ok(None));
        assert_eq!(min_revision(Some("42")), Ok(Some(Revision::new(42))));
        for wrong in ["-1", "4.2", "x", "9223372036854775808"] {
            let error = min_revision(Some(wrong)).expect_err(wrong);
            assert_eq!(error.to_string(), format!("etcd-relay: min_revision must be a revision, not {wrong:?}"));
        }
    }

    #[test]
    fn a_path_keeps_its_plus_signs() {
        assert_eq!(unescape_path("/v2/%6eodes%2F+").as_deref(), Some("/v2/nodes/+"));
        assert_eq!(unescape_path("/v2/%6"), None);
    }
}
