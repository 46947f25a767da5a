//! The tables that indices refer to (RFC 7541, 2.3): the static table, and the client's own.
//!
//! The encoding of indices is in `decode`. `encode` reads the static names. Always holds: the sizes of a client's
//! entries, as RFC 7541 counts them, add up to at most the table's limit.

use std::{array, collections::VecDeque, sync::LazyLock};

use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    uri::{PathAndQuery, Scheme},
};

use super::field::{Field, Invalid};

/// The size of an entry in addition to its strings.
const OVERHEAD: usize = 32;

/// A field with its sizes, which an invalid field does not keep itself.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) field: Field,
    /// The length of the name in bytes.
    pub(super) name: usize,
    /// The length of name and value, plus the overhead.
    pub(super) size: usize,
}

impl Entry {
    pub(super) fn new(field: Field, name: usize, value: usize) -> Self {
        Self { field, name, size: name + value + OVERHEAD }
    }
}

/// The client's own table. It allocates with the first entry.
#[derive(Debug)]
pub(super) struct Table {
    fixed: &'static [Entry; FIXED.len()],
    /// The newest entry comes first.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

impl Table {
    pub(super) fn new(limit: usize) -> Self {
        Self { fixed: &STATIC, entries: VecDeque::new(), size: 0, limit }
    }

    /// The entry at an index on the wire, where the first index is 1.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&Entry> {
        let index = index.checked_sub(1)?;
        match self.fixed.get(index) {
            Some(entry) => Some(entry),
            None => self.entries.get(index - FIXED.len()),
        }
    }

    /// Evicts old entries and puts the new one first. An entry larger than the table only evicts.
    pub(super) fn insert(&mut self, entry: Entry) {
        self.shrink(self.limit.saturating_sub(entry.size));
        if entry.size <= self.limit {
            self.size += entry.size;
            self.entries.push_front(entry);
        }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.shrink(limit);
    }

    fn shrink(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    #[cfg(test)]
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> impl Iterator<Item = &Field> {
        self.entries.iter().map(|entry| &entry.field)
    }

    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.entries.capacity()
    }
}

/// The fields of [`FIXED`]. Their strings are static, so clones update no counter that threads share.
static STATIC: LazyLock<[Entry; FIXED.len()]> = LazyLock::new(|| {
    array::from_fn(|at| {
        let (name, value) = FIXED[at];
        let field = match (name, value) {
            (":authority", _) => Field::Invalid(Invalid::Authority),
            (":method", "GET") => Field::Method(Method::GET),
            (":method", _) => Field::Method(Method::POST),
            (":path", path) => Field::Path(PathAndQuery::from_static(path)),
            (":scheme", "http") => Field::Scheme(Scheme::HTTP),
            (":scheme", _) => Field::Scheme(Scheme::HTTPS),
            (":status", status) => {
                StatusCode::from_bytes(status.as_bytes()).map_or(Field::Invalid(Invalid::Status), Field::Status)
            }
            _ => Field::Header(HeaderName::from_static(name), HeaderValue::from_static(value)),
        };
        Entry::new(field, name.len(), value.len())
    })
});

/// The index of the first `:status`.
pub(super) const STATUS: usize = 8;

/// The index of the first header after the pseudo-headers. From here on, no name occurs twice.
pub(super) const HEADERS: usize = 15;

/// RFC 7541, appendix A; the first has index 1.
pub(super) const FIXED: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
