//! [`Compressor`]: encodes the header blocks of requests (RFC 7541), with a table of the fields that calls have in
//! common.
//!
//! Blocks of answers need no table, see `encode`. The client's side of a connection calls it once for each block, in
//! the order of sending. Always holds: the table is no larger than the peer allows; a field that may be secret, or that
//! differs from call to call, is never put into the table; a table that is full of fields which are not used any more
//! is emptied.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use http::HeaderMap;

use super::{
    encode::{encode_table_size, integer, string},
    table::{FIXED, HEADERS},
};

/// The size of the table in the protocol, until the peer asks for less.
const TABLE: usize = 4096;
/// The size of an entry in addition to its strings.
const OVERHEAD: usize = 32;
/// Longer values are not put into the table.
const LONGEST: usize = 256;
/// So many fields that found the table full empty it.
const MISSES: u32 = 500;
/// Fields that are never put into the table: secrets, and those that differ from call to call.
const APART: [&str; 5] = ["token", "authorization", "cookie", "grpc-timeout", "content-length"];

/// Encodes the blocks of one connection; see the module.
#[derive(Debug)]
pub(in crate::http2) struct Compressor {
    entries: Vec<Entry>,
    /// Positions in `entries`, by name and value.
    known: HashTable<usize>,
    size: usize,
    limit: usize,
    misses: u32,
    /// The peer must be told, before the next block, that the table was emptied.
    emptied: bool,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    name: Box<str>,
    value: Box<[u8]>,
}

impl Compressor {
    pub(in crate::http2) fn new() -> Self {
        Self { entries: Vec::new(), known: HashTable::new(), size: 0, limit: TABLE, misses: 0, emptied: false }
    }

    /// The peer allows a table of this size.
    pub(in crate::http2) fn allow(&mut self, size: u32) {
        let limit = (size as usize).min(TABLE);
        if limit != self.limit {
            self.limit = limit;
            self.empty();
        }
    }

    /// Appends the block of a POST request.
    pub(in crate::http2) fn request(
        &mut self,
        out: &mut Vec<u8>,
        secure: bool,
        authority: &str,
        path: &str,
        headers: &HeaderMap,
    ) {
        if self.misses >= MISSES {
            self.empty();
        }
        if std::mem::take(&mut self.emptied) {
            encode_table_size(out, 0);
            if self.limit > 0 {
                encode_table_size(out, self.limit);
            }
        }
        // `:method: POST` and `:scheme` in the static table.
        out.extend([0x83, if secure { 0x87 } else { 0x86 }]);
        self.field(out, ":path", path.as_bytes(), false);
        self.field(out, ":authority", authority.as_bytes(), false);
        for (name, value) in headers {
            self.field(out, name.as_str(), value.as_bytes(), value.is_sensitive());
        }
    }

    fn field(&mut self, out: &mut Vec<u8>, name: &str, value: &[u8], sensitive: bool) {
        if sensitive || value.len() > LONGEST || APART.contains(&name) {
            return literal(out, if sensitive { 0x10 } else { 0 }, 4, name, value);
        }
        let hash = hash(name, value);
        let is_it = |&at: &usize| *self.entries[at].name == *name && *self.entries[at].value == *value;
        if let Some(&at) = self.known.find(hash, is_it) {
            // The newest entry has the first index after the static ones.
            return integer(out, 0x80, 7, FIXED.len() + self.entries.len() - at);
        }
        let size = name.len() + value.len() + OVERHEAD;
        if self.size + size > self.limit {
            self.misses += 1;
            return literal(out, 0, 4, name, value);
        }
        literal(out, 0x40, 6, name, value);
        self.size += size;
        self.entries.push(Entry { hash, name: name.into(), value: value.into() });
        let Self { entries, known, .. } = self;
        known.insert_unique(hash, entries.len() - 1, |&at| entries[at].hash);
    }

    fn empty(&mut self) {
        self.entries.clear();
        self.known.clear();
        (self.size, self.misses, self.emptied) = (0, 0, true);
    }
}

/// Appends a literal, whose name is an index in this many bits if the static table has it.
fn literal(out: &mut Vec<u8>, form: u8, bits: u32, name: &str, value: &[u8]) {
    let fixed = match name {
        ":authority" => Some(1),
        ":path" => Some(4),
        _ => FIXED[HEADERS - 1..].iter().position(|(fixed, _)| *fixed == name).map(|at| HEADERS + at),
    };
    match fixed {
        Some(index) => integer(out, form, bits, index),
        None => {
            out.push(form);
            string(out, name.as_bytes());
        }
    }
    string(out, value);
}

fn hash(name: &str, value: &[u8]) -> u64 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    hasher.write(name.as_bytes());
    hasher.write(value);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::{
        super::{Decoder, Field},
        *,
    };

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Vec<String> {
        let mut fields = Vec::new();
        let each = |field: Field, _| {
            fields.push(match field {
                Field::Method(method) => format!(":method {method}"),
                Field::Scheme(scheme) => format!(":scheme {scheme}"),
                Field::Authority(authority) => format!(":authority {authority}"),
                Field::Path(path) => format!(":path {path}"),
                Field::Header(name, value) => format!("{name} {}", String::from_utf8_lossy(value.as_bytes())),
                other => format!("{other:?}"),
            });
        };
        decoder.decode(block, each).expect("a block");
        fields
    }

    fn headers(pairs: &[(&'static str, String)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, String)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
        };
        pairs.iter().map(pair).collect()
    }

    fn expected(path: &str, pairs: &[(&'static str, String)]) -> Vec<String> {
        let mut all =
            vec![":method POST".into(), ":scheme http".into(), format!(":path {path}"), ":authority a:1".into()];
        all.extend(pairs.iter().map(|(name, value)| format!("{name} {value}")));
        all
    }

    #[test]
    fn a_call_like_the_one_before_costs_a_byte_a_field_and_secrets_are_sent_each_time() {
        let (mut compressor, mut decoder) = (Compressor::new(), Decoder::new(TABLE));
        let pairs = [
            ("content-type", "application/grpc".to_owned()),
            ("user-agent", "one".to_owned()),
            ("token", "secret".to_owned()),
        ];
        let mut lens = Vec::new();
        for _ in 0..3 {
            let mut out = Vec::new();
            compressor.request(&mut out, false, "a:1", "/p", &headers(&pairs));
            assert_eq!(decoded(&mut decoder, &out), expected("/p", &pairs));
            lens.push(out.len());
        }
        let secret = 1 + 1 + "token".len() + 1 + "secret".len();
        assert_eq!(lens[1..], [2 + 4 + secret; 2]);
        assert_eq!(decoder.table().entries().count(), 4);
    }

    #[test]
    fn a_table_that_junk_has_filled_is_emptied_and_what_the_peer_allows_is_kept() {
        for limit in [TABLE as u32, 100, 0] {
            let (mut compressor, mut decoder) = (Compressor::new(), Decoder::new(TABLE));
            compressor.allow(limit);
            for round in 0..3000 {
                let mut out = Vec::new();
                let pairs = [("user-agent", format!("junk {round}"))];
                compressor.request(&mut out, false, "a:1", "/p", &headers(&pairs));
                assert_eq!(decoded(&mut decoder, &out), expected("/p", &pairs));
                assert!(decoder.table().size() <= limit as usize);
            }
            let before = compressor.entries.len();
            for _ in 0..MISSES + 1 {
                let mut out = Vec::new();
                compressor.request(&mut out, false, "a:1", "/p", &headers(&[("user-agent", "same".to_owned())]));
                decoded(&mut decoder, &out);
            }
            assert!(compressor.entries.len() <= before || limit == 0, "junk does not stay");
        }
    }
}
