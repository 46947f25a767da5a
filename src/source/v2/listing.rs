//! Parses a listing: etcd's JSON of a directory and everything below it, into its keys.
//!
//! Clients that write to the store decide how deeply directories are nested, so the depth is kept on an explicit stack
//! and not by recursion. serde_json recurses, and refuses more than 63 nested directories.
//! Always holds: an unknown field is skipped, whatever it contains.

use std::borrow::Cow;

use bytes::Bytes;
use thiserror::Error;

use crate::types::{KeyValueFields, Revision};

/// A key of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) key: Bytes,
    pub(super) value: Bytes,
    pub(super) created: Revision,
    pub(super) modified: Revision,
}

impl Listed {
    /// The key as it looks when it is first seen.
    pub(super) fn fields(self) -> KeyValueFields {
        KeyValueFields {
            key: self.key,
            value: self.value,
            create_revision: self.created,
            mod_revision: self.modified,
            version: 1,
            lease: 0,
        }
    }
}

/// The text is not a listing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("not a listing in the form of etcd v2, at byte {0}")]
pub(super) struct Malformed(usize);

/// The keys of a listing, in its order. Directories are not keys.
pub(super) fn read(text: &[u8]) -> Result<Vec<Listed>, Malformed> {
    let mut reader = Reader { text, at: 0 };
    reader.expect(b'{')?;
    if reader.take(b'}') {
        return Err(reader.malformed());
    }
    loop {
        let name = reader.string()?;
        reader.expect(b':')?;
        if name == "node" {
            return reader.node();
        }
        reader.skip()?;
        if !reader.take(b',') {
            return Err(reader.malformed());
        }
    }
}

/// A partly parsed node.
#[derive(Default)]
struct Node {
    key: Option<Bytes>,
    value: Option<Bytes>,
    is_directory: bool,
    created: i64,
    modified: i64,
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A node with everything below it.
    fn node(&mut self) -> Result<Vec<Listed>, Malformed> {
        let mut found = Vec::new();
        self.expect(b'{')?;
        let mut open = vec![Node::default()];
        // Whether a field may come next without a comma.
        let mut first = true;
        while let Some(node) = open.last_mut() {
            if self.take(b'}') {
                found.extend(open.pop().and_then(Node::listed));
                first = false;
                // After a child comes another, or the end of the children.
                if !open.is_empty() {
                    if self.take(b',') {
                        self.expect(b'{')?;
                        open.push(Node::default());
                        first = true;
                    } else {
                        self.expect(b']')?;
                    }
                }
                continue;
            }
            if !std::mem::take(&mut first) {
                self.expect(b',')?;
            }
            let name = self.string()?;
            self.expect(b':')?;
            match &*name {
                "key" => node.key = Some(bytes(self.string()?)),
                "value" => node.value = Some(bytes(self.string()?)),
                "dir" => node.is_directory = self.token() == b"true",
                "createdIndex" => node.created = self.number()?,
                "modifiedIndex" => node.modified = self.number()?,
                "nodes" if self.take(b'[') => {
                    if !self.take(b']') {
                        self.expect(b'{')?;
                        open.push(Node::default());
                        first = true;
                    }
                }
                _ => self.skip()?,
            }
        }
        Ok(found)
    }

    /// Skips a value.
    fn skip(&mut self) -> Result<(), Malformed> {
        let mut depth = 0_usize;
        loop {
            self.space();
            match self.text.get(self.at) {
                Some(b'"') => drop(self.string()?),
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b'}' | b']') if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(b',' | b':') if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                Some(_) if !self.token().is_empty() => {}
                _ => return Err(self.malformed()),
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, Malformed> {
        self.expect(b'"')?;
        let from = self.at;
        let mut escaped = false;
        loop {
            match self.text.get(self.at).ok_or_else(|| self.malformed())? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
        self.at += 1;
        let malformed = || Malformed(from);
        if escaped {
            serde_json::from_slice(&self.text[from - 1..self.at]).map(Cow::Owned).map_err(|_| malformed())
        } else {
            std::str::from_utf8(&self.text[from..self.at - 1]).map(Cow::Borrowed).map_err(|_| malformed())
        }
    }

    fn number(&mut self) -> Result<i64, Malformed> {
        let token = self.token();
        std::str::from_utf8(token).ok().and_then(|token| token.parse().ok()).ok_or_else(|| self.malformed())
    }

    /// A number or a word.
    fn token(&mut self) -> &'a [u8] {
        self.space();
        let rest = &self.text[self.at.min(self.text.len())..];
        let is_of_token = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
        let len = rest.iter().position(|byte| !is_of_token(byte)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let there = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.take(byte) { Ok(()) } else { Err(self.malformed()) }
    }

    fn space(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn malformed(&self) -> Malformed {
        Malformed(self.at)
    }
}

impl Node {
    /// The root and directories are not keys.
    fn listed(self) -> Option<Listed> {
        let (created, modified) = (Revision::new(self.created), Revision::new(self.modified));
        let value = self.value.filter(|_| !self.is_directory)?;
        Some(Listed { key: self.key?, value, created, modified })
    }
}

fn bytes(text: Cow<'_, str>) -> Bytes {
    match text {
        Cow::Borrowed(text) => Bytes::copy_from_slice(text.as_bytes()),
        Cow::Owned(text) => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<(String, String, i64, i64)> {
        let text_of = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let listed = read(text.as_bytes()).expect("a listing");
        listed.iter().map(|l| (text_of(&l.key), text_of(&l.value), l.created.get(), l.modified.get())).collect()
    }

    #[test]
    fn files_are_keys_and_directories_are_not() {
        let text = r#"{"action":"get","node":{"key":"/a","dir":true,"nodes":[
            {"key":"/a/b","value":"\u003c1\u003e \"\n","expiration":"2026-11-21T13:05:36Z","ttl":5,"modifiedIndex":7,"createdIndex":6},
            {"key":"/a/c","dir":true,"modifiedIndex":8,"createdIndex":8},
            {"key":"/a/d","dir":true,"nodes":[{"key":"/a/d/e","value":"","modifiedIndex":9,"createdIndex":9}],"modifiedIndex":9,"createdIndex":9},
            {"key":"/a/f","value":"é","modifiedIndex":11,"createdIndex":10}],"modifiedIndex":4,"createdIndex":4}}"#;
        let want = [("/a/b", "<1> \"\n", 6, 7), ("/a/d/e", "", 9, 9), ("/a/f", "é", 10, 11)];
        assert_eq!(keys(text), want.map(|(key, value, c, m)| (key.to_owned(), value.to_owned(), c, m)));
        assert_eq!(keys(r#"{"action":"get","node":{"dir":true}}"#), []);
        assert_eq!(keys(r#"{"action":"get","node":{"dir":true,"nodes":[]}}"#), []);
        assert_eq!(
            keys(r#"{"action":"get","node":{"key":"/a","value":"x","modifiedIndex":3,"createdIndex":2}}"#).len(),
            1
        );
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let text = r#"{"a":[1,{"b":[[]],"c":"]}"}],"node":{"x":{"y":[{}]},"z":null,"key":"/k","value":"v","modifiedIndex":1,"createdIndex":1}}"#;
        assert_eq!(keys(text).len(), 1);
    }

    #[test]
    fn depth_costs_no_stack() {
        let depth = 200_000;
        let text = format!(
            r#"{{"node":{}{{"key":"/k","value":"v","modifiedIndex":1,"createdIndex":1}}{}}}"#,
            r#"{"dir":true,"nodes":["#.repeat(depth),
            "]}".repeat(depth)
        );
        assert_eq!(keys(&text).len(), 1);
        let deep = format!(r#"{{"x":{}{},"node":{{"dir":true}}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert_eq!(keys(&deep).len(), 0);
    }

    #[test]
    fn what_is_cut_off_or_broken_is_refused() {
        let whole = r#"{"action":"get","node":{"key":"/a","dir":true,"nodes":[{"key":"/a/b","value":"\u003c","modifiedIndex":7,"createdIndex":6}]}}"#;
        for len in 0..whole.len() - 2 {
            assert!(read(&whole.as_bytes()[..len]).is_err(), "{}", &whole[..len]);
        }
        for broken in [
            "",
            "404 page not found\n",
            "{}",
            "[]",
            r#"{"node":5}"#,
            r#"{"node":{"key":5}}"#,
            r#"{"node":{"createdIndex":"x"}}"#,
            r#"{"a":1}"#,
        ] {
            assert!(read(broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
