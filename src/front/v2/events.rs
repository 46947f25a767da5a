//! Events of v3 as events of v2, for those who wait.
//!
//! Not here: who waits. What this process wrote it knows exactly (`made`); of the rest it tells what happened to the node, and guesses
//! the word for it. Always holds: a mark that was put beside a key below it is no event; the end of a whole tree is one.

use std::{collections::BTreeSet, ops::Bound, sync::Arc, time::SystemTime};

use bytes::Bytes;
use metrics::counter;

use super::{
    answer::{Action, Event, Node},
    made::Told,
    path::{is_sayable, kids},
    time::Expiry,
    tree::of_mark,
};
use crate::{
    hub::Snapshot,
    telemetry::names,
    types::{Entry, Event as V3Event, EventKind, KeyValue, Revision},
};

/// How long before the end that a lease says a deletion counts as its expiry: clocks differ.
const EARLY: std::time::Duration = std::time::Duration::from_secs(1);
/// Keys of a directory that are looked at to find out whether it went as a whole.
const LOOKED: usize = 1_024;

/// A change as it is told, made once for all who wait for it.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) revision: Revision,
    pub(super) path: Bytes,
    /// A directory went, with all that was below it.
    pub(super) is_tree_gone: bool,
    /// What went with it.
    gone: Vec<Bytes>,
    pub(super) body: Bytes,
}

impl Logged {
    /// About how much memory it takes.
    pub(super) fn cost(&self) -> usize {
        let gone: usize = self.gone.iter().map(|path| path.len() + size_of::<Bytes>()).sum();
        size_of::<Self>() + self.path.len() + self.body.len() + gone
    }

    /// Whether something was at `path` that went with the tree.
    pub(super) fn took(&self, path: &[u8]) -> bool {
        let is_below = |gone: &Bytes| gone.starts_with(path) && gone.get(path.len()) == Some(&b'/');
        self.gone.iter().any(|gone| gone == path || is_below(gone))
    }

    #[cfg(test)]
    pub(super) fn of_test(revision: Revision, path: &str) -> Self {
        let path = Bytes::copy_from_slice(path.as_bytes());
        Self { revision, path, is_tree_gone: false, gone: Vec::new(), body: Bytes::new() }
    }

    fn new(revision: Revision, event: &Event, gone: Vec<Bytes>) -> Self {
        let is_tree_gone = event.action.removes() && event.node.dir;
        Self { revision, path: event.node.path.clone(), is_tree_gone, gone, body: event.body() }
    }
}

/// What a revision tells: what its writer said, or what its events show. `newest` is the state after it, or a later one.
pub(super) fn tell(entry: &Entry, newest: &Snapshot, told: Option<Told>) -> Vec<Arc<Logged>> {
    let sayable: Vec<&V3Event> = entry.events().iter().filter(|event| is_sayable(event.kv.key())).collect();
    let deleted = || -> Vec<Bytes> {
        let gone = sayable.iter().filter(|event| event.kind == EventKind::Delete);
        gone.map(|event| path_of(event.kv.key())).collect()
    };
    match told {
        Some(Told::Nothing) => return Vec::new(),
        Some(Told::Event(event)) => {
            let gone = if event.action.removes() && event.node.dir { deleted() } else { Vec::new() };
            return vec![Arc::new(Logged::new(entry.revision, &event, gone))];
        }
        None => {}
    }
    let trees = trees_gone(&sayable, entry.revision, newest);
    let mut told = Vec::new();
    for event in &sayable {
        let (key, path) = (event.kv.key(), path_of(event.kv.key()));
        // The last mark before a key is that of its tree, if it is in one: nothing else lies between the two.
        match trees
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .filter(|mark| key.starts_with(mark))
        {
            Some(mark) if mark == key => {
                let below = kids(&path);
                let gone = deleted().into_iter().filter(|gone| below.contains(gone)).collect();
                let removal = match &event.prev {
                    Some(prev) => removal(of_mark(path, prev), entry.revision),
                    None => unknown(path, true, entry.revision),
                };
                told.push(Logged::new(entry.revision, &removal, gone));
            }
            // Told with the tree.
            Some(_) => {}
            None => {
                let event = of_key(event, &path, &sayable);
                told.extend(event.map(|event| Logged::new(entry.revision, &event, Vec::new())));
            }
        }
    }
    if told.len() > 1 {
        counter!(names::FACADE_JOINED).increment(1);
    }
    told.into_iter().map(Arc::new).collect()
}

/// The marks of directories that are gone with all that was below them, the topmost of each tree.
fn trees_gone(events: &[&V3Event], at: Revision, newest: &Snapshot) -> BTreeSet<Bytes> {
    let deleted = events.iter().filter(|event| event.kind == EventKind::Delete && is_mark(event.kv.key()));
    let mut marks: Vec<Bytes> = deleted.map(|event| event.kv.key_bytes()).collect();
    marks.sort();
    let mut trees: BTreeSet<Bytes> = BTreeSet::new();
    let mut last: Option<Bytes> = None;
    for mark in marks {
        // In this order those below a mark come right after it.
        let is_covered = last.as_ref().is_some_and(|last| mark.starts_with(last));
        // What is there now may have come later; what was there before has stayed.
        let below = kids(&path_of(&mark));
        let stayed = || newest.map.range(&below).take(LOOKED).any(|kv| kv.create_revision <= at);
        if !is_covered && !stayed() {
            trees.insert(mark.clone());
            last = Some(mark);
        }
    }
    trees
}

fn of_key(event: &V3Event, path: &Bytes, all: &[&V3Event]) -> Option<Event> {
    let key = event.kv.key();
    let at = event.kv.mod_revision;
    let prev = event.prev.as_deref();
    let shown = |kv: &KeyValue| if is_mark(kv.key()) { of_mark(path_of(kv.key()), kv) } else { Node::file(kv) };
    match event.kind {
        EventKind::Delete if is_mark(key) => None,
        EventKind::Delete => {
            // A file that became a directory is told as that.
            let becomes_directory =
                |other: &&&V3Event| other.kind == EventKind::Put && other.kv.key() == [path, &b"/"[..]].concat();
            if all.iter().any(|other| becomes_directory(&other)) {
                None
            } else {
                Some(prev.map_or_else(|| unknown(path.clone(), false, at), |prev| removal(shown(prev), at)))
            }
        }
        EventKind::Put if is_mark(key) => {
            let below = kids(path);
            let is_on_the_way = all
                .iter()
                .any(|other| other.kind == EventKind::Put && other.kv.key() != key && below.contains(other.kv.key()));
            let was_file = all.iter().find(|other| other.kind == EventKind::Delete && other.kv.key() == &path[..]);
            let prev = was_file.and_then(|file| file.prev.as_deref()).or(prev).map(shown);
            (!is_on_the_way).then(|| Event { action: Action::Set, node: shown(&event.kv), prev })
        }
        EventKind::Put => Some(Event { action: Action::Set, node: shown(&event.kv), prev: prev.map(shown) }),
    }
}

/// The end of a node whose time had come is its expiry, as far as its lease says.
fn removal(prev: Node, at: Revision) -> Event {
    let is_due = prev.expiry.is_some_and(|expiry| expiry.wait(SystemTime::now()) <= EARLY);
    let prev = Node { tells_ttl: !is_due, ..prev };
    Event { action: if is_due { Action::Expire } else { Action::Delete }, node: prev.removed(at), prev: Some(prev) }
}

/// The end of a node that etcd has compacted: nothing is known of it but its name.
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

/// Whether an expiry's event shows how long the key had: it does not.
pub(super) fn expired(prev: Node, at: Revision) -> Event {
    let prev = Node { tells_ttl: false, ..prev };
    Event { action: Action::Expire, node: prev.removed(at), prev: Some(prev) }
}

/// The end that a key's lease says.
pub(super) fn end_of(kv: &KeyValue) -> Option<Expiry> {
    Expiry::of_lease(kv.lease)
}
