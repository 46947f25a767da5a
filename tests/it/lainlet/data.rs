//! The fixture: the keys of a small cluster, changes to it, and the answers of the original; and functions to write
//! them to etcd.
//!
//! The files are those of LAIN's maintainers. While they are read, the pods' addresses are moved into 127.0.0.0/8 in
//! keys, values, URIs and answers, so that a client on this host can act as each pod.

use std::{fs, path::Path};

use serde::Deserialize;
use serde_json::json;

use crate::support::kv::{Kv, op_put};

/// etcd's default limit on operations per transaction.
const OPERATIONS: usize = 128;
/// Well below etcd's default limit on requests, 1.5 MiB.
const BYTES: usize = 1 << 20;
/// Addresses of the fixture, and the loopback addresses that replace them here.
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

/// The 137 answers with the original addresses.
pub(super) fn expected_as_recorded() -> Vec<Expected> {
    parse(&read("expected.jsonl"))
}

/// A handmade entry.
pub(super) fn entry(key: &str, value: &str) -> Entry {
    Entry { key: key.to_owned(), value: value.to_owned() }
}

/// A handmade container: its node's name and address, and its own address.
pub(super) type Place<'a> = (&'a str, &'a str, &'a str);

/// A handmade pod group, with one pod of one container per place. `name` is `<app>.<type>.<short>`.
pub(super) fn group(name: &str, places: &[Place<'_>]) -> Entry {
    let app = app_of(name);
    let spec = json!({"Image": "image", "Env": ["LAIN_APP_RELEASE_VERSION=1"], "Command": null, "Volumes": [],
        "CpuLimit": 1, "MemoryLimit": 2, "Expose": 80});
    let pods: Vec<_> = places
        .iter()
        .zip(1..)
        .map(|((node, node_ip, ip), number)| {
            let container = json!({"Id": id_of(ip), "Runtime": {"Config": {"Env": ["LAIN_PROCNAME=short"]}},
                "NodeName": node, "NodeIp": node_ip, "ContainerIp": ip, "ContainerPort": 80});
            json!({"InstanceNo": number, "Containers": [container], "State": 2})
        })
        .collect();
    let value = json!({"Spec": {"Name": name, "Namespace": app, "Pod": {"Containers": [spec], "Dependencies": [],
        "Annotation": r#"{"mountpoint": ["a.lain"]}"#}}, "Pods": pods});
    entry(&group_key(name), &value.to_string())
}

/// The key of the pod group `<app>.<type>.<short>`.
pub(super) fn group_key(name: &str) -> String {
    format!("/lain/deployd/pod_groups/{}/{name}", app_of(name))
}

/// A handmade portal, with one container on one node for one client.
pub(super) fn portal(name: &str, client: &str, (node, node_ip, ip): Place<'_>) -> Entry {
    let container = json!({"Id": id_of(ip), "NodeIp": node_ip, "ContainerIp": ip, "ContainerPort": 80});
    let item = json!({"RefCount": 1, "Spec": {"Annotation": "{}"}, "Pod": {"Containers": [container]}});
    entry(&format!("/lain/deployd/depends/pods/{name}"), &json!({node: {client: item}}).to_string())
}

fn app_of(name: &str) -> &str {
    let (rest, _) = name.rsplit_once('.').unwrap_or_else(|| panic!("{name}"));
    rest.rsplit_once('.').unwrap_or_else(|| panic!("{name}")).0
}

/// 64 hexadecimal digits that differ for each address.
fn id_of(ip: &str) -> String {
    let digits: String = ip.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits:0<64}")
}

/// Puts all entries in as few transactions as possible.
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

/// Makes one change. Returns its revision.
pub(super) async fn apply(kv: &Kv, change: &Change) -> i64 {
    match change {
        Change::Put { key, value } => kv.put(key, value).await,
        Change::Delete { key } => kv.delete(key).await,
    }
}

fn lines<T: for<'a> Deserialize<'a>>(name: &str) -> Vec<T> {
    let moved = ON_LOOPBACK.iter().fold(read(name), |text, (from, to)| text.replace(from, to));
    parse(&moved)
}

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lain").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse<T: for<'a> Deserialize<'a>>(text: &str) -> Vec<T> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:.200}"));
    text.lines().map(parse).collect()
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
