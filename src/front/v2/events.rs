//! Converts v3 events into v2 events for waits.
//!
//! Waits are in `waits`. The actions of this process's own writes are known exactly (`made`). For other writes only the
//! effect on the node is known, and the action is guessed. Always holds: a mark that was put together with a key below
//! it is not an event; the end of a whole tree is a single event.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use metrics::counter;

use super::{
    answer::{Action, Event, Node},
    made::Told,
    path::{is_sayable, kids, mark},
    time::Expiry,
    tree::of_mark,
};
use crate::{
    hub::Snapshot,
    telemetry::names,
    types::{Entry, Event as V3Event, EventKind, KeyRange, KeyValue, Revision},
};

/// A deletion this long before the end of its lease's time still counts as an expiry, because clocks differ.
const EARLY: std::time::Duration = std::time::Duration::from_secs(1);
/// Most keys of a directory that are read to find out whether the whole directory was deleted.
const LOOKED: usize = 1_024;

/// A change in its final text, made once for all waits.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) revision: Revision,
    pub(super) path: Bytes,
    /// A directory was deleted with everything below it.
    pub(super) is_tree_gone: bool,
    /// The keys that were deleted with it, sorted, because thousands of waits may concern a directory with as many
    /// keys.
    gone: Vec<Bytes>,
    pub(super) body: Bytes,
}

impl Logged {
    /// Approximate memory use.
    pub(super) fn cost(&self) -> usize {
        let gone: usize = self.gone.iter().map(|path| path.len() + size_of::<Bytes>()).sum();
        size_of::<Self>() + self.path.len() + self.body.len() + gone
    }

    /// Whether something at `path` was deleted with the tree.
    pub(super) fn took(&self, path: &[u8]) -> bool {
        let below = mark(path);
        let first_below = self.gone.partition_point(|gone| gone[..] < below[..]);
        self.gone.binary_search_by(|gone| gone[..].cmp(path)).is_ok()
            || self.gone.get(first_below).is_some_and(|gone| gone.starts_with(&below))
    }

    #[cfg(test)]
    pub(super) fn of_test(revision: Revision, path: &str) -> Self {
        let path = Bytes::copy_from_slice(path.as_bytes());
        Self { revision, path, is_tree_gone: false, gone: Vec::new(), body: Bytes::new() }
    }

    fn new(revision: Revision, event: &Event, mut gone: Vec<Bytes>) -> Self {
        gone.sort_unstable();
        let is_tree_gone = event.action.removes() && event.node.dir;
        Self { revision, path: event.node.path.clone(), is_tree_gone, gone, body: event.body() }
    }
}

/// The v2 events of a revision: as its writer reported it, or derived from its v3 events. `newest` is the state after
/// it, or a later one.
pub(super) fn tell(entry: &Entry, newest: &Snapshot, told: Option<Told>) -> Vec<Arc<Logged>> {
    let sayable: Vec<&V3Event> = entry.events().iter().filter(|event| is_sayable(event.kv.key())).collect();
    match told {
        // Some keys have no v2 path.
        _ if sayable.is_empty() => return Vec::new(),
        Some(Told::Nothing) => return Vec::new(),
        Some(Told::Event(event)) => {
            let is_tree_gone = event.action.removes() && event.node.dir;
            let deleted = sayable.iter().filter(|event| is_tree_gone && event.kind == EventKind::Delete);
            let gone = deleted.map(|event| path_of(event.kv.key())).collect();
            return vec![Arc::new(Logged::new(entry.revision, &event, gone))];
        }
        None => {}
    }
    let keys = Keys::of(&sayable);
    let trees = trees_gone(&sayable, entry.revision, newest);
    let mut told = Vec::new();
    for event in &sayable {
        let (key, path) = (event.kv.key(), path_of(event.kv.key()));
        // If the key is in a deleted tree, the last mark before it is that of the tree: nothing else lies between them.
        match trees
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .filter(|mark| key.starts_with(mark))
        {
            Some(mark) if mark == key => {
                let below = within(&keys.deleted, kids(&path));
                let gone = below.filter(|(below, _)| **below != key).map(|(below, _)| path_of(below)).collect();
                let removal = match &event.prev {
                    Some(prev) => removal(of_mark(path, prev), entry.revision),
                    None => unknown(path, true, entry.revision),
                };
                told.push(Logged::new(entry.revision, &removal, gone));
            }
            // Reported with the tree.
            Some(_) => {}
            None => {
                let event = of_key(event, &path, &keys);
                told.extend(event.map(|event| Logged::new(entry.revision, &event, Vec::new())));
            }
        }
    }
    if told.len() > 1 {
        counter!(names::FACADE_JOINED).increment(1);
    }
    told.into_iter().map(Arc::new).collect()
}

/// The keys that a revision changed. It may have deleted all keys, so a key is never found by a walk over the others.
struct Keys<'a> {
    put: BTreeMap<&'a [u8], &'a V3Event>,
    deleted: BTreeMap<&'a [u8], &'a V3Event>,
}

impl<'a> Keys<'a> {
    fn of(events: &[&'a V3Event]) -> Self {
        let all = |kind| events.iter().filter(move |event| event.kind == kind).map(|event| (event.kv.key(), *event));
        Self { put: all(EventKind::Put).collect(), deleted: all(EventKind::Delete).collect() }
    }
}

/// The keys that are in `range`.
fn within<'k, 'a>(
    keys: &'k BTreeMap<&'a [u8], &'a V3Event>,
    range: KeyRange,
) -> impl Iterator<Item = (&'k &'a [u8], &'k &'a V3Event)> {
    let from = keys.range::<[u8], _>((Bound::Included(&range.start()[..]), Bound::Unbounded));
    from.take_while(move |(key, _)| range.contains(key))
}

/// The marks of directories that were deleted with everything below them, only the topmost of each tree.
fn trees_gone(events: &[&V3Event], at: Revision, newest: &Snapshot) -> BTreeSet<Bytes> {
    let deleted = events.iter().filter(|event| event.kind == EventKind::Delete && is_mark(event.kv.key()));
    let mut marks: Vec<Bytes> = deleted.map(|event| event.kv.key_bytes()).collect();
    marks.sort();
    let mut trees: BTreeSet<Bytes> = BTreeSet::new();
    let mut last: Option<Bytes> = None;
    for mark in marks {
        // In this order, the marks below a mark follow it directly.
        let is_covered = last.as_ref().is_some_and(|last| mark.starts_with(last));
        // Keys that exist now may be newer, but keys from before would have stayed.
        let below = kids(&path_of(&mark));
        let stayed = || newest.map.range(&below).take(LOOKED).any(|kv| kv.create_revision <= at);
        if !is_covered && !stayed() {
            trees.insert(mark.clone());
            last = Some(mark);
        }
    }
    trees
}

fn of_key(event: &V3Event, path: &Bytes, keys: &Keys<'_>) -> Option<Event> {
    let key = event.kv.key();
    let at = event.kv.mod_revision;
    let prev = event.prev.as_deref();
    let shown = |kv: &KeyValue| if is_mark(kv.key()) { of_mark(path_of(kv.key()), kv) } else { Node::file(kv) };
    match event.kind {
        EventKind::Delete if is_mark(key) => None,
        EventKind::Delete => {
            // A file that became a directory is reported as that.
            if keys.put.contains_key(&mark(path)[..]) {
                None
            } else {
                Some(prev.map_or_else(|| unknown(path.clone(), false, at), |prev| removal(shown(prev), at)))
            }
        }
        EventKind::Put if is_mark(key) => {
            let is_on_the_way = within(&keys.put, kids(path)).any(|(other, _)| *other != key);
            let was_file = keys.deleted.get(&path[..]);
            let prev = was_file.and_then(|file| file.prev.as_deref()).or(prev).map(shown);
            (!is_on_the_way).then(|| Event { action: Action::Set, node: shown(&event.kv), prev })
        }
        EventKind::Put => Some(Event { action: Action::Set, node: shown(&event.kv), prev: prev.map(shown) }),
    }
}

/// The end of a node: an expiry if its lease shows that its time had come, otherwise a delete.
fn removal(prev: Node, at: Revision) -> Event {
    let is_due = prev.expiry.is_some_and(|expiry| expiry.wait(SystemTime::now()) <= EARLY);
    let prev = Node { tells_ttl: !is_due, ..prev };
    Event { action: if is_due { Action::Expire } else { Action::Delete }, node: prev.removed(at), prev: Some(prev) }
}

/// The end of a node that etcd has compacted, so only its name is known.
fn unknown(path: Bytes, dir: bool, at: Revision) -> Event {
    let node = Node { dir, ..Node::directory(path, at, at, None) };
    Event { action: Action::Delete, node, prev: None }
}

fn is_mark(key: &[u8]) -> bool {
    key.ends_with(b"/")
}

pub(super) fn path_of(key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(key.strip_suffix(b"/").unwrap_or(key))
}

/// An expiry event does not show how long the key had left.
pub(super) fn expired(prev: Node, at: Revision) -> Event {
    let prev = Node { tells_ttl: false, ..prev };
    Event { action: Action::Expire, node: prev.removed(at), prev: Some(prev) }
}

/// The time of expiry in a key's lease.
pub(super) fn end_of(kv: &KeyValue) -> Option<Expiry> {
    Expiry::of_lease(kv.lease)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::types::{EventFields, KeyValueFields};

    const AT: Revision = Revision::new(9);

    fn entry(changes: &[(EventKind, String)]) -> Entry {
        let changes: Vec<EventFields> = changes
            .iter()
            .map(|(kind, key)| {
                let key = Bytes::copy_from_slice(key.as_bytes());
                let fields = KeyValueFields { key, mod_revision: AT, ..KeyValueFields::default() };
                let (create_revision, version) = if *kind == EventKind::Put { (AT, 1) } else { (Revision::ZERO, 0) };
                EventFields { kind: *kind, kv: KeyValueFields { create_revision, version, ..fields } }
            })
            .collect();
        Entry::encode(&Arc::default(), AT, Instant::now(), &changes, |_| None)
    }

    fn told(changes: &[(EventKind, String)]) -> Vec<Arc<Logged>> {
        tell(&entry(changes), &Snapshot::default(), None)
    }

    fn deleted(key: impl Into<String>) -> (EventKind, String) {
        (EventKind::Delete, key.into())
    }

    fn put(key: &str) -> (EventKind, String) {
        (EventKind::Put, key.to_owned())
    }

    #[test]
    fn a_tree_that_goes_is_one_event_and_concerns_what_was_in_it() {
        let told = told(&[
            deleted("/d-x"),
            deleted("/d/"),
            deleted("/d/a"),
            deleted("/d/a-b"),
            deleted("/d/s/"),
            deleted("/d/s/b"),
        ]);
        let paths: Vec<_> = told.iter().map(|logged| &logged.path[..]).collect();
        assert_eq!(paths, [&b"/d-x"[..], b"/d"]);
        let tree = &told[1];
        assert!(tree.is_tree_gone);
        for took in ["/d/a", "/d/a-b", "/d/s", "/d/s/b"] {
            assert!(tree.took(took.as_bytes()), "{took}");
        }
        for kept in ["/d/b", "/d/a/b", "/d/s/a", "/d-x"] {
            assert!(!tree.took(kept.as_bytes()), "{kept}");
        }
    }

    #[test]
    fn a_file_that_becomes_a_directory_and_a_mark_beside_its_key_are_told_once() {
        let told = told(&[deleted("/f"), put("/f/"), put("/g/"), put("/g/h")]);
        let paths: Vec<_> = told.iter().map(|logged| &logged.path[..]).collect();
        assert_eq!(paths, [&b"/f"[..], b"/g/h"]);
    }

    #[test]
    fn keys_that_are_too_deep_for_v2_are_not_told() {
        let deep = "/d".repeat(500_000);
        assert!(told(&[put(&deep)]).is_empty() && told(&[deleted(deep)]).is_empty());
    }

    /// Keys must not be compared with all others; that would take this test minutes.
    #[test]
    fn a_revision_that_deletes_everything_is_told_in_one_pass() {
        const KEYS: usize = 100_000;
        let keys: Vec<_> = (0..KEYS).map(|key| deleted(format!("/keys/{key:06}"))).collect();
        assert_eq!(told(&keys).len(), KEYS);
        let trees: Vec<_> =
            (0..KEYS / 2).flat_map(|key| [deleted(format!("/{key:06}/")), deleted(format!("/{key:06}/k"))]).collect();
        assert_eq!(told(&trees).len(), KEYS / 2);
        let one: Vec<_> =
            std::iter::once(deleted("/d/")).chain((0..KEYS).map(|key| deleted(format!("/d/{key:06}")))).collect();
        let told = told(&one);
        assert!((0..KEYS).all(|key| told[0].took(format!("/d/{key:06}").as_bytes())));
    }
}
