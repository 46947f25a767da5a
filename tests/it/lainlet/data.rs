//! The fixture: the keys of a small cluster, changes to it, and what the original answered; and the way into etcd.
//!
//! Not here: any expectation. The files are those that LAIN's maintainers keep; the pods' addresses are moved into 127.0.0.0/8
//! while they are read, in keys, values, URIs and answers alike, so that a client on this host can be each pod.

use std::{fs, path::Path};

use serde::Deserialize;

use crate::support::kv::{Kv, op_put};

/// What etcd takes in one transaction by default.
const OPERATIONS: usize = 128;
/// Well below what etcd takes in one request by default, 1.5 MiB.
const BYTES: usize = 1 << 20;
/// Addresses of the fixture, and those on loopback that stand for them here.
const ON_LOOPBACK: [(&str, &str); 2] = [("172.20.0.", "127.20.0."), ("10.9.9.9", "127.9.9.9")];

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: String,
}

/// A change of one key.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum Change {
    Put { key: String, value: String },
    Delete { key: String },
}

impl Change {
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// An answer of the original.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Expected {
    /// `small`, or `final` after all changes.
    pub(super) state: String,
    pub(super) peer: String,
    pub(super) uri: String,
    pub(super) status: u16,
    pub(super) body: String,
}

/// The 68 keys of the small cluster.
pub(super) fn small() -> Vec<Entry> {
    lines("small.jsonl")
}

/// The 42 changes, in order.
pub(super) fn changes() -> Vec<Change> {
    lines("events.jsonl")
}

/// The 137 answers.
pub(super) fn expected() -> Vec<Expected> {
    lines("expected.jsonl")
}

/// The value that the small cluster has at this key.
pub(super) fn value_of(key: &str) -> String {
    small().into_iter().find(|entry| entry.key == key).unwrap_or_else(|| panic!("no {key} in the fixture")).value
}

/// An entry made by hand.
pub(super) fn entry(key: &str, value: &str) -> Entry {
    Entry { key: key.to_owned(), value: value.to_owned() }
}

/// Puts all entries, in as few transactions as etcd takes.
pub(super) async fn load(kv: &Kv, entries: &[Entry]) {
    let mut operations = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let size = entry.key.len() + entry.value.len();
        if operations.len() == OPERATIONS || (bytes + size > BYTES && !operations.is_empty()) {
            kv.txn(std::mem::take(&mut operations)).await;
            bytes = 0;
        }
        bytes += size;
        operations.push(op_put(&entry.key, &entry.value));
    }
    if !operations.is_empty() {
        kv.txn(operations).await;
    }
}

/// Makes one change; its revision.
pub(super) async fn apply(kv: &Kv, change: &Change) -> i64 {
    match change {
        Change::Put { key, value } => kv.put(key, value).await,
        Change::Delete { key } => kv.delete(key).await,
    }
}

fn lines<T: for<'a> Deserialize<'a>>(name: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lain").join(name);
    let mut text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for (from, to) in ON_LOOPBACK {
        text = text.replace(from, to);
    }
    // Not `lines()`: the values have separators of Unicode in them, though none that it would split at.
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", path.display()));
    text.split('\n').filter(|line| !line.is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixture_is_whole() {
        assert_eq!((small().len(), changes().len(), expected().len()), (68, 42, 137));
        assert!(expected().iter().all(|expected| expected.peer.starts_with("127.")), "a peer is not on loopback");
    }
}
