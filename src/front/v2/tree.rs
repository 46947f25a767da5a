//! Reads a path from a snapshot: v3's keys as the tree of v2.
//!
//! A directory exists if a key is below it, including its mark. Listings are in `listing`. Used by reads, and by writes
//! for their starting state. Always holds: nothing is deeper than [`MAX_DEPTH`], which bounds the number of look-ups
//! per path.

use std::time::SystemTime;

use bytes::Bytes;

use super::{
    answer::{Node, Refusal},
    path::{MAX_DEPTH, ancestors, kids, mark},
    time::Expiry,
};
use crate::{
    hub::Snapshot,
    types::{KeyValue, Revision},
};

/// Most keys of a directory that are read to find its age.
pub(super) const LOOKED: usize = 1_024;

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    File(Node),
    Directory,
}

/// The node at a path.
///
/// # Errors
/// Returns 104 with the file in the path, or 100 with the first missing component.
pub(super) fn find(snapshot: &Snapshot, path: &[u8]) -> Result<Found, Refusal> {
    if path == b"/" {
        return Ok(Found::Directory);
    }
    for (depth, above) in ancestors(path).enumerate() {
        if depth == MAX_DEPTH || !is_directory(snapshot, above) {
            let code = if snapshot.map.get(above).is_some() { 104 } else { 100 };
            return Err(Refusal::about(code, above, snapshot.revision));
        }
    }
    if is_directory(snapshot, path) {
        return Ok(Found::Directory);
    }
    let file = snapshot.map.get(path).ok_or_else(|| Refusal::about(100, path, snapshot.revision))?;
    Ok(Found::File(Node::file(&file)))
}

/// Whether something is below a path.
fn is_directory(snapshot: &Snapshot, path: &[u8]) -> bool {
    snapshot.map.range(&kids(path)).next().is_some()
}

/// Whether a directory has its mark.
pub(super) fn is_marked(snapshot: &Snapshot, path: &[u8]) -> bool {
    snapshot.map.get(&mark(path)).is_some()
}

/// A directory as a node. Without a mark, its indexes are those of its first content, as far as the first thousand keys
/// show.
pub(super) fn directory(snapshot: &Snapshot, path: &[u8]) -> Node {
    let path = Bytes::copy_from_slice(path);
    match snapshot.map.get(&mark(&path)) {
        Some(kv) => of_mark(path, &kv),
        None => {
            let first = snapshot.map.range(&kids(&path)).take(LOOKED);
            let created = first.map(|kv| kv.create_revision).min().unwrap_or(Revision::ZERO);
            Node::directory(path, created, created, None)
        }
    }
}

/// A directory according to its mark.
pub(super) fn of_mark(path: Bytes, kv: &KeyValue) -> Node {
    Node::directory(path, index_of_mark(kv.value(), kv.mod_revision), kv.create_revision, Expiry::of_lease(kv.lease))
}

/// When a directory itself was modified. In-order keys put its mark again; the mark's value is then that index.
pub(super) fn index_of_mark(value: &[u8], at: Revision) -> Revision {
    let index = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    index.map(Revision::new).filter(|index| *index > Revision::ZERO && *index < at).unwrap_or(at)
}

/// The answer to a GET of a file.
pub(super) fn show_file(node: &Node) -> Bytes {
    let mut out = br#"{"action":"get","node":"#.to_vec();
    node.put_head(&mut out, SystemTime::now());
    node.put_tail(&mut out);
    out.extend_from_slice(b"}\n");
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hub::KeyMap, types::KeyValueFields};

    fn snapshot(keys: &[&str]) -> Snapshot {
        let mut map = KeyMap::default();
        for (key, at) in keys.iter().zip(2..) {
            let revision = Revision::new(at);
            map.insert(KeyValue::new(&KeyValueFields {
                key: Bytes::copy_from_slice(key.as_bytes()),
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                ..KeyValueFields::default()
            }));
        }
        Snapshot { revision: Revision::new(99), map, ..Snapshot::default() }
    }

    #[test]
    fn what_is_missing_or_in_the_way_is_named() {
        let at = snapshot(&["/s/a/x", "/s/e/", "/t"]);
        let refused = |path: &str| {
            find(&at, path.as_bytes()).map_err(|refusal| {
                let body: serde_json::Value = serde_json::from_slice(&refusal.body()).expect("JSON");
                (refusal.code, body["cause"].as_str().unwrap_or_default().to_owned())
            })
        };
        assert!(matches!(refused("/t"), Ok(Found::File(_))));
        for directory in ["/", "/s", "/s/a", "/s/e"] {
            assert_eq!(refused(directory), Ok(Found::Directory), "{directory}");
        }
        assert_eq!(refused("/s/q/r"), Err((100, "/s/q".to_owned())));
        assert_eq!(refused("/s/e/f"), Err((100, "/s/e/f".to_owned())));
        assert_eq!(refused("/t/q/r"), Err((104, "/t".to_owned())));
    }

    #[test]
    fn a_path_that_is_too_deep_is_looked_up_so_far_and_no_farther() {
        let deep = "/d".repeat(1_000);
        let at = snapshot(&[&deep]);
        let refusal = find(&at, deep.as_bytes()).expect_err("too deep");
        let body = String::from_utf8(refusal.body().to_vec()).expect("text");
        assert!(refusal.code == 100 && body.contains(&format!("\"{}\"", "/d".repeat(MAX_DEPTH + 1))), "{body}");
    }
}
