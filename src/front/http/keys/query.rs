//! The parameters of `/v1/keys` and `/v1/watch`, as docs/http-api.md describes.
//!
//! Always holds: a parameter that is unknown, repeated or unreadable is an error that names it. Keys are the exact
//! bytes of the request, whether they are text or not.

use bytes::Bytes;
use http::HeaderMap;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use smallvec::SmallVec;
use thiserror::Error;

use super::json::Form;
use crate::types::{KeyRange, Revision};

/// Default number of keys in an answer.
const LIMIT: i64 = 1_000;
/// Most keys of an answer: the text of such a page is still made in one step.
const MOST: i64 = 10_000;
/// The header in which browsers send the id of the last event they got.
const LAST_EVENT_ID: &str = "last-event-id";
/// Characters that need no escape in a query.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What is wrong with a request, in words for its client.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the error texts describe the variants")]
pub(super) enum BadQuery {
    #[error("{0:?} is not percent-encoded: write two hexadecimal digits after each %")]
    Escape(String),
    #[error("unknown parameter {0:?}; docs/http-api.md lists the parameters")]
    Unknown(String),
    #[error("{0}= is given twice")]
    Twice(&'static str),
    #[error("the keys are missing: give prefix=, key= or from= (an empty prefix= means all keys)")]
    NoKeys,
    #[error("key= is for a single key; remove prefix=, from= and to=")]
    KeyAndRange,
    #[error("key= is empty")]
    EmptyKey,
    #[error("no key can match prefix=, from= and to= together")]
    EmptyRange,
    #[error("{name}={value:?} is not {wanted}")]
    Value { name: &'static str, value: String, wanted: &'static str },
    #[error(
        "the header Last-Event-ID is {0:?}, which is not the id of an event; remove it to start from the beginning"
    )]
    LastEventId(String),
    #[error("mode=state starts with a snapshot unless it resumes; remove snapshot=false")]
    StateWithoutSnapshot,
}

/// A requested list of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) range: KeyRange,
    pub(super) form: Form,
    pub(super) limit: i64,
    /// Zero means the current revision.
    pub(super) revision: Revision,
    pub(super) serializable: bool,
    /// The parameters that the next page repeats, all but its start and its revision.
    repeated: String,
}

/// Which changes a stream sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// All changes.
    Events,
    /// The last change of each key.
    State,
}

/// A requested stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    pub(super) range: KeyRange,
    pub(super) form: Form,
    pub(super) mode: Mode,
    /// The reader already has everything up to this revision.
    pub(super) since: Option<Revision>,
    /// Whether it starts with a snapshot if it does not resume.
    pub(super) snapshot: bool,
}

impl List {
    pub(super) fn read(query: &str) -> Result<Self, BadQuery> {
        let mut fields = Fields::read(query)?;
        let mut repeated = String::new();
        let mut repeat = |name: &str, value: Option<&Bytes>| {
            if let Some(value) = value {
                repeated.push_str(&format!("{name}={}&", percent_encode(value, PLAIN)));
            }
        };
        ["prefix", "to", "limit", "serializable", "keys_only", "encoding"]
            .into_iter()
            .for_each(|name| repeat(name, fields.get(name)));
        let range = fields.range()?;
        let form = fields.form()?;
        let limit = fields.number("limit", 1..=MOST, "a number of keys from 1 to 10000")?.unwrap_or(LIMIT);
        let revision = fields.number("revision", 1..=i64::MAX, "a revision")?;
        let serializable = fields.flag("serializable")?.unwrap_or(false);
        fields.end()?;
        Ok(Self { range, form, limit, revision: Revision::new(revision.unwrap_or(0)), serializable, repeated })
    }

    /// The path of the page after `last`, as of `revision`.
    pub(super) fn next(&self, path: &str, last: &[u8], revision: Revision) -> String {
        let last = percent_encode(last, PLAIN);
        format!("{path}?{}from={last}%00&revision={revision}", self.repeated)
    }
}

impl Watch {
    pub(super) fn read(query: &str, headers: &HeaderMap) -> Result<Self, BadQuery> {
        let mut fields = Fields::read(query)?;
        let range = fields.range()?;
        let form = fields.form()?;
        let mode = fields.one_of("mode", &[("events", Mode::Events), ("state", Mode::State)], "events or state")?;
        let mode = mode.unwrap_or(Mode::Events);
        let since = fields.number("since", 0..=i64::MAX - 1, "a revision")?;
        let snapshot = fields.flag("snapshot")?;
        fields.end()?;
        if mode == Mode::State && snapshot == Some(false) {
            return Err(BadQuery::StateWithoutSnapshot);
        }
        // A reconnecting browser uses the same address, so the parameters are those of its first request.
        let since = last_event_id(headers)?.or(since);
        let snapshot = snapshot.unwrap_or(mode == Mode::State);
        Ok(Self { range, form, mode, since: since.map(Revision::new), snapshot })
    }
}

/// The id of the last event that a browser got; `None` if it got none.
fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, BadQuery> {
    let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) else { return Ok(None) };
    let text = String::from_utf8_lossy(id.as_bytes());
    match decimal(&text).filter(|id| *id < i64::MAX) {
        Some(id) => Ok(Some(id)),
        None => Err(BadQuery::LastEventId(text.into_owned())),
    }
}

/// The parameters that were not used yet.
struct Fields(SmallVec<[(String, Bytes); 4]>);

impl Fields {
    fn read(query: &str) -> Result<Self, BadQuery> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let fields = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (unescape(name).map(String::from_utf8), unescape(value)) {
                (Some(Ok(name)), Some(value)) => Ok((name, Bytes::from(value))),
                _ => Err(BadQuery::Escape(pair.to_owned())),
            }
        });
        Ok(Self(fields.collect::<Result<_, _>>()?))
    }

    fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn take(&mut self, name: &'static str) -> Result<Option<Bytes>, BadQuery> {
        let Some(at) = self.0.iter().position(|(known, _)| known == name) else { return Ok(None) };
        let (_, value) = self.0.swap_remove(at);
        if self.get(name).is_some() { Err(BadQuery::Twice(name)) } else { Ok(Some(value)) }
    }

    /// Checks that no parameter is left.
    fn end(self) -> Result<(), BadQuery> {
        self.0.into_iter().next().map_or(Ok(()), |(name, _)| Err(BadQuery::Unknown(name)))
    }

    fn range(&mut self) -> Result<KeyRange, BadQuery> {
        let (key, prefix) = (self.take("key")?, self.take("prefix")?);
        let (from, to) = (self.take("from")?, self.take("to")?);
        if let Some(key) = key {
            return match (prefix, from, to) {
                (None, None, None) if key.is_empty() => Err(BadQuery::EmptyKey),
                (None, None, None) => Ok(KeyRange::single(key)),
                _ => Err(BadQuery::KeyAndRange),
            };
        }
        if prefix.is_none() && from.is_none() {
            return Err(BadQuery::NoKeys);
        }
        let prefix = KeyRange::prefix(prefix.unwrap_or_default());
        let start = prefix.start().clone().max(from.unwrap_or_default());
        let end = match (prefix.before(), to) {
            (Some(end), Some(to)) => Some(end.min(to)),
            (end, to) => end.or(to),
        };
        match end {
            // These two values have another meaning for etcd, and no key is before them.
            Some(end) if end.is_empty() || *end == [0] => Err(BadQuery::EmptyRange),
            Some(end) => KeyRange::from_wire(start, end).map_err(|_| BadQuery::EmptyRange),
            None => KeyRange::from_wire(start, Bytes::from_static(&[0])).map_err(|_| BadQuery::EmptyRange),
        }
    }

    fn form(&mut self) -> Result<Form, BadQuery> {
        let base64 = self.one_of("encoding", &[("text", false), ("base64", true)], "text or base64")?;
        let keys_only = self.flag("keys_only")?;
        Ok(Form { base64: base64.unwrap_or(false), keys_only: keys_only.unwrap_or(false) })
    }

    fn flag(&mut self, name: &'static str) -> Result<Option<bool>, BadQuery> {
        self.one_of(name, &[("true", true), ("false", false)], "true or false")
    }

    fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        values: &[(&str, T)],
        wanted: &'static str,
    ) -> Result<Option<T>, BadQuery> {
        self.parse(name, wanted, |text| values.iter().find(|(value, _)| *value == text).map(|(_, meant)| *meant))
    }

    fn number(
        &mut self,
        name: &'static str,
        within: std::ops::RangeInclusive<i64>,
        wanted: &'static str,
    ) -> Result<Option<i64>, BadQuery> {
        self.parse(name, wanted, |text| decimal(text).filter(|number| within.contains(number)))
    }

    fn parse<T>(
        &mut self,
        name: &'static str,
        wanted: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, BadQuery> {
        let Some(value) = self.take(name)? else { return Ok(None) };
        match std::str::from_utf8(&value).ok().and_then(parse) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(BadQuery::Value { name, value: String::from_utf8_lossy(&value).into_owned(), wanted }),
        }
    }
}

/// A number that consists of digits alone.
fn decimal(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The bytes that a text stands for; `None` if an escape is malformed.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => byte,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn range(query: &str) -> Result<KeyRange, BadQuery> {
        List::read(query).map(|list| list.range)
    }

    fn between(start: &[u8], end: &[u8]) -> KeyRange {
        KeyRange::from_wire(Bytes::copy_from_slice(start), Bytes::copy_from_slice(end)).expect("a range")
    }

    #[test]
    fn keys_are_the_bytes_that_were_written() {
        for (query, want) in [
            ("key=a", KeyRange::single("a".into())),
            ("key=%00%ff+%2b%3D", KeyRange::single(Bytes::from_static(b"\x00\xff +="))),
            ("key=a=b", KeyRange::single("a=b".into())),
            ("prefix=", KeyRange::prefix("".into())),
            ("prefix", KeyRange::prefix("".into())),
            ("&prefix=%2Fa%2F&", between(b"/a/", b"/a0")),
            ("prefix=/a/&from=/a/k", between(b"/a/k", b"/a0")),
            ("prefix=/a/&from=/", between(b"/a/", b"/a0")),
            ("prefix=/a/&to=/a/k", between(b"/a/", b"/a/k")),
            ("prefix=/a/&to=/z", between(b"/a/", b"/a0")),
            ("prefix=%ff", between(b"\xff", b"\0")),
            ("from=k", between(b"k", b"\0")),
            ("from=&to=k", between(b"", b"k")),
            ("from=a&to=k", between(b"a", b"k")),
        ] {
            assert_eq!(range(query), Ok(want), "{query}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let value = |name, value: &str, wanted| BadQuery::Value { name, value: value.to_owned(), wanted };
        let revision = |name, text| value(name, text, "a revision");
        let limit = |text| value("limit", text, "a number of keys from 1 to 10000");
        for (query, want) in [
            ("", BadQuery::NoKeys),
            ("to=k", BadQuery::NoKeys),
            ("key=", BadQuery::EmptyKey),
            ("key=a&prefix=a", BadQuery::KeyAndRange),
            ("key=a&from=a", BadQuery::KeyAndRange),
            ("key=a&to=b", BadQuery::KeyAndRange),
            ("key=a&key=b", BadQuery::Twice("key")),
            ("prefix=a&limit=1&limit=1", BadQuery::Twice("limit")),
            ("prefix=%", BadQuery::Escape("prefix=%".into())),
            ("prefix=%2", BadQuery::Escape("prefix=%2".into())),
            ("prefix=%zz", BadQuery::Escape("prefix=%zz".into())),
            ("prefix=%2%41", BadQuery::Escape("prefix=%2%41".into())),
            ("%ff=1", BadQuery::Escape("%ff=1".into())),
            ("prefix=a&Limit=1", BadQuery::Unknown("Limit".into())),
            ("prefix=a&mode=state", BadQuery::Unknown("mode".into())),
            ("prefix=a;limit=1&x", BadQuery::Unknown("x".into())),
            ("from=b&to=a", BadQuery::EmptyRange),
            ("from=a&to=a", BadQuery::EmptyRange),
            ("from=a&to=", BadQuery::EmptyRange),
            ("from=&to=%00", BadQuery::EmptyRange),
            ("prefix=/a/&from=/b", BadQuery::EmptyRange),
            ("prefix=/a/&to=/a/", BadQuery::EmptyRange),
            ("prefix=a&limit=0", limit("0")),
            ("prefix=a&limit=", limit("")),
            ("prefix=a&limit=-1", limit("-1")),
            ("prefix=a&limit=%2B1", limit("+1")),
            ("prefix=a&limit=10001", limit("10001")),
            ("prefix=a&limit=99999999999999999999", limit("99999999999999999999")),
            ("prefix=a&revision=0", revision("revision", "0")),
            ("prefix=a&revision=9223372036854775808", revision("revision", "9223372036854775808")),
            ("prefix=a&encoding=hex", value("encoding", "hex", "text or base64")),
            ("prefix=a&keys_only=1", value("keys_only", "1", "true or false")),
            ("prefix=a&serializable", value("serializable", "", "true or false")),
        ] {
            assert_eq!(List::read(query), Err(want), "{query}");
        }
        for (query, want) in [
            ("prefix=a&limit=1", BadQuery::Unknown("limit".into())),
            ("prefix=a&mode=all", value("mode", "all", "events or state")),
            ("prefix=a&since=-1", revision("since", "-1")),
            ("prefix=a&since=9223372036854775807", revision("since", "9223372036854775807")),
            ("prefix=a&mode=state&snapshot=false", BadQuery::StateWithoutSnapshot),
        ] {
            assert_eq!(Watch::read(query, &HeaderMap::new()), Err(want), "{query}");
        }
    }

    #[test]
    fn the_id_of_the_last_event_goes_before_the_address() {
        let since = |id: Option<&'static str>, query: &str| {
            let mut headers = HeaderMap::new();
            headers.extend(id.map(|id| (http::HeaderName::from_static(LAST_EVENT_ID), HeaderValue::from_static(id))));
            Watch::read(query, &headers).map(|watch| watch.since.map(Revision::get))
        };
        assert_eq!(since(None, "prefix="), Ok(None));
        assert_eq!(since(None, "prefix=&since=0"), Ok(Some(0)));
        assert_eq!(since(Some("7"), "prefix=&since=3"), Ok(Some(7)));
        assert_eq!(since(Some(""), "prefix=&since=3"), Ok(Some(3)));
        for wrong in ["x", "-1", "7 ", "9223372036854775807"] {
            assert_eq!(since(Some(wrong), "prefix="), Err(BadQuery::LastEventId(wrong.to_owned())));
        }
    }

    #[test]
    fn the_next_page_asks_for_the_same_in_a_way_that_can_be_read_again() {
        let query =
            "prefix=%2Fa%00%26&from=%2Fa%00%26b&to=%2Fb&limit=2&encoding=base64&keys_only=true&serializable=true";
        let list = List::read(query).expect("the query is valid");
        let next = list.next("/v1/keys", b"/a\0&c\xff", Revision::new(9));
        let (path, query) = next.split_once('?').expect("a query");
        assert_eq!(path, "/v1/keys");
        let after = List::read(query).expect("the query is valid");
        assert_eq!(after.range, between(b"/a\0&c\xff\0", b"/a\0'"));
        assert_eq!((after.limit, after.form, after.serializable), (2, list.form, true));
        assert_eq!(after.revision.get(), 9);
    }
}
