//! The content of answers: nodes, events and errors in the JSON of etcd's v2 API, byte for byte.
//!
//! Heads of answers are in `reply`. Always holds: an answer is one object and a newline, and leaves out exactly what
//! etcd leaves out.

use std::borrow::Cow;

use bytes::Bytes;

use super::time::Expiry;

use crate::{
    front::gojson::{put_string, string_len},
    hub::room::Full,
    types::{KeyValue, Revision},
};

/// The code of errors about permissions.
pub(super) const DENIED: u32 = 110;

/// Longest text of a node without its path and its value: names, times and indexes.
const NUMBERS_LEN: usize = 256;

/// An error of v2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u32,
    pub(super) cause: Cow<'static, str>,
    /// The cause as bytes, if it is not text.
    bytes: Option<Bytes>,
    /// The store's index at that time; zero if the request itself was invalid.
    pub(super) index: Revision,
}

impl From<Full> for Refusal {
    fn from(Full(text): Full) -> Self {
        Self::unavailable(text)
    }
}

impl Refusal {
    pub(super) fn new(code: u32, cause: impl Into<Cow<'static, str>>) -> Self {
        Self { code, cause: cause.into(), bytes: None, index: Revision::ZERO }
    }

    /// An error about a path or values, as of an index.
    pub(super) fn about(code: u32, cause: impl AsRef<[u8]>, index: Revision) -> Self {
        Self { code, cause: Cow::Borrowed(""), bytes: Some(Bytes::copy_from_slice(cause.as_ref())), index }
    }

    /// etcd could not be reached.
    pub(super) fn unavailable(cause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(300, cause)
    }

    /// The same error as of another index.
    pub(super) fn at(self, index: Revision) -> Self {
        Self { index, ..self }
    }

    pub(super) fn status(&self) -> u16 {
        match self.code {
            100 => 404,
            101 | 105 => 412,
            102 | 108 => 403,
            110 => 401,
            300 | 301 => 500,
            _ => 400,
        }
    }

    pub(super) fn body(&self) -> Bytes {
        let mut out = format!(r#"{{"errorCode":{},"message":"{}""#, self.code, message(self.code)).into_bytes();
        let cause = self.bytes.as_deref().unwrap_or(self.cause.as_bytes());
        if !cause.is_empty() {
            out.extend_from_slice(br#","cause":"#);
            put_string(&mut out, cause);
        }
        out.extend_from_slice(format!(",\"index\":{}}}\n", self.index).as_bytes());
        out.into()
    }
}

fn message(code: u32) -> &'static str {
    match code {
        100 => "Key not found",
        101 => "Compare failed",
        102 => "Not a file",
        104 => "Not a directory",
        105 => "Key already exists",
        107 => "Root is read only",
        108 => "Directory not empty",
        110 => "The request requires user authentication",
        201 => "PrevValue is Required in POST form",
        202 => "The given TTL in POST form is not a number",
        203 => "The given index in POST form is not a number",
        209 => "Invalid field",
        210 => "Invalid POST form",
        211 => "Value provided on refresh",
        212 => "A TTL must be provided on refresh",
        300 => "Raft Internal Error",
        401 => "The event in requested index is outdated and cleared",
        _ => "unknown error",
    }
}

/// A node without its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) path: Bytes,
    /// `None` for directories, and for what was removed.
    pub(super) value: Option<Bytes>,
    pub(super) dir: bool,
    pub(super) expiry: Option<Expiry>,
    /// Whether the remaining time is shown in addition to the time of expiry.
    pub(super) tells_ttl: bool,
    pub(super) modified: Revision,
    pub(super) created: Revision,
}

impl Node {
    /// A stored file.
    pub(super) fn file(kv: &KeyValue) -> Self {
        Self {
            path: kv.key_bytes(),
            value: Some(kv.value_bytes()),
            dir: false,
            expiry: Expiry::of_lease(kv.lease),
            tells_ttl: true,
            modified: kv.mod_revision,
            created: kv.create_revision,
        }
    }

    /// A directory.
    pub(super) fn directory(path: Bytes, modified: Revision, created: Revision, expiry: Option<Expiry>) -> Self {
        Self { path, value: None, dir: true, expiry, tells_ttl: true, modified, created }
    }

    /// The same node after its removal at an index.
    pub(super) fn removed(&self, at: Revision) -> Self {
        Self { value: None, expiry: None, modified: at, ..self.clone() }
    }

    /// The length of its text without children, or a little more.
    pub(super) fn text_len(&self) -> usize {
        NUMBERS_LEN + string_len(&self.path) + self.value.as_ref().map_or(0, |value| string_len(value))
    }

    /// Writes everything before the children.
    pub(super) fn put_head(&self, out: &mut Vec<u8>, now: std::time::SystemTime) {
        out.extend_from_slice(br#"{"key":"#);
        put_string(out, &self.path);
        if let Some(value) = &self.value {
            out.extend_from_slice(br#","value":"#);
            put_string(out, value);
        }
        if self.dir {
            out.extend_from_slice(br#","dir":true"#);
        }
        if let Some(expiry) = self.expiry {
            out.extend_from_slice(format!(r#","expiration":"{expiry}""#).as_bytes());
            let left = expiry.seconds_left(now);
            if self.tells_ttl && left != 0 {
                out.extend_from_slice(format!(r#","ttl":{left}"#).as_bytes());
            }
        }
    }

    /// Writes everything after the children.
    pub(super) fn put_tail(&self, out: &mut Vec<u8>) {
        let Self { modified, created, .. } = self;
        out.extend_from_slice(format!(r#","modifiedIndex":{modified},"createdIndex":{created}}}"#).as_bytes());
    }

    fn put(&self, out: &mut Vec<u8>, now: std::time::SystemTime) {
        self.put_head(out, now);
        self.put_tail(out);
    }
}

/// The action of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Set,
    Create,
    Update,
    CompareAndSwap,
    Delete,
    CompareAndDelete,
    Expire,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Set => "set",
            Self::Create => "create",
            Self::Update => "update",
            Self::CompareAndSwap => "compareAndSwap",
            Self::Delete => "delete",
            Self::CompareAndDelete => "compareAndDelete",
            Self::Expire => "expire",
        }
    }

    /// Whether the node no longer exists afterwards.
    pub(super) fn removes(self) -> bool {
        matches!(self, Self::Delete | Self::CompareAndDelete | Self::Expire)
    }
}

/// A change, as reported to its writer and to waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) action: Action,
    pub(super) node: Node,
    pub(super) prev: Option<Node>,
}

impl Event {
    /// The part that `noValueOnSuccess` keeps.
    pub(super) fn bare(&self) -> Bytes {
        format!("{{\"action\":\"{}\"}}\n", self.action.name()).into()
    }

    pub(super) fn body(&self) -> Bytes {
        let now = std::time::SystemTime::now();
        let mut out = format!(r#"{{"action":"{}","node":"#, self.action.name()).into_bytes();
        self.node.put(&mut out, now);
        if let Some(prev) = &self.prev {
            out.extend_from_slice(br#","prevNode":"#);
            prev.put(&mut out, now);
        }
        out.extend_from_slice(b"}\n");
        out.into()
    }
}
