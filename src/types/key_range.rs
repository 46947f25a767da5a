//! [`KeyRange`]: the keys that a request, a watch or a feed covers, parsed once at the edge.
//!
//! Follows etcd's wire form (`key`, `range_end`): an empty `range_end` means one key, `"\0"` means every key from `key`
//! on, and anything else is a half-open interval. Always holds: a `KeyRange` contains at least one possible key.

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

/// A non-empty set of neighbouring keys.
/// ```
/// use etcd_relay::types::KeyRange;
///
/// let app = KeyRange::prefix("/app/".into());
/// assert!(app.contains(b"/app/a") && !app.contains(b"/apps"));
/// assert!(app.covers(&KeyRange::single("/app/a".into())));
///
/// // As etcd writes it: everything from `/app/` up to, but not including, `/app0`.
/// let (key, range_end) = app.to_wire();
/// assert_eq!((&key[..], &range_end[..]), (&b"/app/"[..], &b"/app0"[..]));
/// assert_eq!(KeyRange::from_wire(key, range_end)?, app);
/// assert!(KeyRange::from_wire("/b".into(), "/a".into()).is_err());
/// # Ok::<(), etcd_relay::types::EmptyRange>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    start: Bytes,
    end: RangeEnd,
}

/// Where a [`KeyRange`] ends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RangeEnd {
    /// The range is only its start key.
    Single,
    /// The range ends before this key.
    Before(Bytes),
    /// The range has every key from its start on.
    Unbounded,
}

/// The range contains no key, because its end is not after its start.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the key range is empty: range_end is not after key")]
pub struct EmptyRange;

impl KeyRange {
    /// Reads etcd's wire form.
    ///
    /// An empty `key` is kept as it is. With the range_end `"\0"` it means the whole key space.
    ///
    /// # Errors
    /// [`EmptyRange`] if `range_end` is neither empty nor `"\0"` and is not after `key`.
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Result<Self, EmptyRange> {
        let end = match &range_end[..] {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            end if end <= &key[..] => return Err(EmptyRange),
            _ => RangeEnd::Before(range_end),
        };
        Ok(Self { start: key, end })
    }

    /// One key.
    #[must_use]
    pub fn single(key: Bytes) -> Self {
        Self { start: key, end: RangeEnd::Single }
    }

    /// Every key that begins with `prefix`; the whole key space for `""`.
    #[must_use]
    pub fn prefix(prefix: Bytes) -> Self {
        let end = match prefix.iter().rposition(|byte| *byte != 0xff) {
            Some(last) => {
                let mut end = prefix[..=last].to_vec();
                end[last] += 1;
                RangeEnd::Before(end.into())
            }
            None => RangeEnd::Unbounded,
        };
        Self { start: prefix, end }
    }

    /// The same range in its own allocations.
    #[must_use]
    pub fn detached(&self) -> Self {
        let copy = Bytes::copy_from_slice;
        let end = match &self.end {
            RangeEnd::Before(end) => RangeEnd::Before(copy(end)),
            end => end.clone(),
        };
        Self { start: copy(&self.start), end }
    }

    /// The first key of the range.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// Where the range ends.
    #[must_use]
    pub fn end(&self) -> &RangeEnd {
        &self.end
    }

    /// Whether the range is one key.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.end == RangeEnd::Single
    }

    /// etcd's wire form, `(key, range_end)`. The empty key, which etcd refuses, becomes `"\0"`, the first possible key.
    #[must_use]
    pub fn to_wire(&self) -> (Bytes, Bytes) {
        let key = if self.start.is_empty() { Bytes::from_static(&[0]) } else { self.start.clone() };
        let end = match &self.end {
            RangeEnd::Single => Bytes::new(),
            RangeEnd::Before(end) => end.clone(),
            RangeEnd::Unbounded => Bytes::from_static(&[0]),
        };
        (key, end)
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => key >= &self.start[..] && key < &end[..],
            RangeEnd::Unbounded => key >= &self.start[..],
        }
    }

    /// Whether every key of `other` lies in this range.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (&self.end, &other.end) {
            (_, RangeEnd::Single) => self.contains(&other.start),
            (RangeEnd::Single, RangeEnd::Before(end)) => {
                // [key, key + "\0") is the only interval that contains a single key.
                self.start == other.start
                    && end.len() == self.start.len() + 1
                    && end.starts_with(&self.start)
                    && end.ends_with(&[0])
            }
            (RangeEnd::Single, RangeEnd::Unbounded) | (RangeEnd::Before(_), RangeEnd::Unbounded) => false,
            (RangeEnd::Before(end), RangeEnd::Before(other_end)) => self.start <= other.start && other_end <= end,
            (RangeEnd::Unbounded, _) => self.start <= other.start,
        }
    }

    /// The smallest range that contains both ranges and every key between them.
    #[must_use]
    pub fn span(&self, other: &Self) -> Self {
        if self.covers(other) {
            return self.clone();
        }
        if other.covers(self) {
            return other.clone();
        }
        let end = match (self.before(), other.before()) {
            (Some(one), Some(another)) => RangeEnd::Before(one.max(another)),
            _ => RangeEnd::Unbounded,
        };
        Self { start: self.start.clone().min(other.start.clone()), end }
    }

    /// The first key after the range; `None` if the range has no end.
    #[must_use]
    pub fn before(&self) -> Option<Bytes> {
        match &self.end {
            RangeEnd::Single => Some([&self.start[..], &[0]].concat().into()),
            RangeEnd::Before(end) => Some(end.clone()),
            RangeEnd::Unbounded => None,
        }
    }

    /// The part below `key`, and the part from it on. `None` if one of them would be empty.
    #[must_use]
    pub fn split(&self, key: &Bytes) -> Option<(Self, Self)> {
        let is_inside = !self.is_single() && self.start < *key && self.contains(key);
        is_inside.then(|| {
            let below = Self { start: self.start.clone(), end: RangeEnd::Before(key.clone()) };
            (below, Self { start: key.clone(), end: self.end.clone() })
        })
    }

    /// The range without the keys up to and including `key`; `None` if nothing is left. Used to read a range in pages.
    #[must_use]
    pub fn after(&self, key: &[u8]) -> Option<Self> {
        let mut start = Vec::with_capacity(key.len() + 1);
        start.extend_from_slice(key);
        start.push(0);
        let left = match &self.end {
            RangeEnd::Single => false,
            RangeEnd::Before(end) => start[..] < end[..],
            RangeEnd::Unbounded => true,
        };
        left.then(|| Self { start: start.into(), end: self.end.clone() })
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Readable in logs: `"/a/"` for one key, `["/a/", "/a0")` for an interval; bytes other than printable ASCII are
/// escaped. A long key is cut, and its length is shown: clients choose keys, and a log or an answer must not grow with
/// them.
impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = Shown(&self.start);
        match &self.end {
            RangeEnd::Single => write!(f, "{start}"),
            RangeEnd::Before(end) => write!(f, "[{start}, {})", Shown(end)),
            RangeEnd::Unbounded => write!(f, "[{start}, ∞)"),
        }
    }
}

impl fmt::Debug for RangeEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single => f.write_str("Single"),
            Self::Before(end) => write!(f, "Before({})", Shown(end)),
            Self::Unbounded => f.write_str("Unbounded"),
        }
    }
}

/// The most bytes of a key that are shown. Keys chosen by people are shorter.
const SHOWN_BYTES: usize = 256;

/// A key in quotes, or its beginning with its length.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..SHOWN_BYTES) {
            Some(begin) if begin.len() < self.0.len() => {
                write!(f, "\"{}…\" ({} bytes)", begin.escape_ascii(), self.0.len())
            }
            _ => write!(f, "\"{}\"", self.0.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::from_wire(key.into(), end.into()).expect("a range that contains keys")
    }

    #[test]
    fn a_long_key_is_shown_in_part_with_its_length() {
        assert_eq!(wire("/a/", "/a0").to_string(), r#"["/a/", "/a0")"#);
        let key: Bytes = vec![0xff; 1 << 20].into();
        assert_eq!(KeyRange::single(key.slice(..256)).to_string().len(), 4 * 256 + 2, "the whole key is shown");
        let shown = KeyRange::from_wire("/a/".into(), key.clone()).expect("a range").to_string();
        assert!(shown.starts_with(r#"["/a/", "\xff"#) && shown.ends_with("…\" (1048576 bytes))"), "{shown}");
        assert!(shown.len() < 2_000 && format!("{:?}", RangeEnd::Before(key)).len() < 2_000);
    }

    #[test]
    fn an_interval_that_ends_at_or_before_its_start_is_refused() {
        assert_eq!(KeyRange::from_wire("b".into(), "a".into()), Err(EmptyRange));
        assert_eq!(KeyRange::from_wire("b".into(), "b".into()), Err(EmptyRange));
    }

    #[test]
    fn a_prefix_ends_at_the_next_string_that_does_not_begin_with_it() {
        assert_eq!(KeyRange::prefix("/a/".into()), wire("/a/", "/a0"));
        assert_eq!(
            KeyRange::prefix(Bytes::from_static(b"a\xff")),
            KeyRange::from_wire("a".into(), "b".into())
                .map(|r| KeyRange { start: Bytes::from_static(b"a\xff"), ..r })
                .expect("range")
        );
        assert_eq!(KeyRange::prefix(Bytes::from_static(b"\xff\xff")).end(), &RangeEnd::Unbounded);
        assert_eq!(KeyRange::prefix("".into()), wire("", "\0"));
    }

    #[test]
    fn covers_agrees_with_contains_at_the_edges() {
        let a = wire("/a/", "/a0");
        assert!(a.covers(&wire("/a/b", "")) && a.covers(&wire("/a/b", "/a/c")) && a.covers(&a));
        assert!(!a.covers(&wire("/a0", "")) && !a.covers(&wire("/a/", "\0")) && !a.covers(&wire("/a", "")));
        assert!(wire("", "\0").covers(&a) && wire("", "\0").covers(&wire("x", "\0")));
        assert!(wire("k", "").covers(&wire("k", "k\0")) && !wire("k", "").covers(&wire("k", "l")));
    }

    #[test]
    fn a_span_has_both_and_no_more_than_lies_between() {
        assert_eq!(wire("a", "").span(&wire("c", "")), wire("a", "c\0"));
        assert_eq!(wire("c", "d").span(&wire("a", "b")), wire("a", "d"));
        assert_eq!(wire("a", "d").span(&wire("b", "")), wire("a", "d"));
        assert_eq!(wire("a", "").span(&wire("a", "")), wire("a", ""));
        assert_eq!(wire("b", "\0").span(&wire("a", "")), wire("a", "\0"));
    }

    #[test]
    fn after_leaves_the_keys_that_follow() {
        assert_eq!(wire("a", "c").after(b"b"), Some(wire("b\0", "c")));
        assert_eq!(wire("a", "b\0").after(b"b"), None);
        assert_eq!(wire("a", "").after(b"a"), None);
    }
}
