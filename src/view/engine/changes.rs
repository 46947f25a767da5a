//! [`Change`]: the parsed change of a key, made from the feed's entries or from the difference to a snapshot.
//!
//! The effect on targets is in `engine`. Always holds: if several events of a key are combined, the result is the same
//! as that of the single events: the last readable value counts, unless the key was deleted after it.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, LazyLock},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::{
    hub::Snapshot,
    types::{Entry, EventKind, KeyValue, Revision},
    view::{
        directory::Directory,
        document::{DecodeError, Document},
        payload::Kind,
    },
};

/// See the module.
pub(super) struct Change<D> {
    /// The cache key.
    pub(super) key: Bytes,
    /// The value in etcd; `None` for a deletion.
    pub(super) seen: Option<Arc<KeyValue>>,
    /// The new document of the key.
    pub(super) becomes: Becomes<D>,
    /// Why the value in etcd could not be used.
    pub(super) refused: Option<DecodeError>,
    /// The kind of event in streams.
    pub(super) kind: Kind,
    /// When the relay received it.
    pub(super) received: Instant,
}

/// The new document of a key.
pub(super) enum Becomes<D> {
    /// This document.
    Document(Arc<D>),
    /// The same document as before.
    AsBefore,
    /// None.
    Gone,
}

/// The last change of a directory.
#[derive(Clone, Debug)]
pub struct LastEvent {
    /// The key in etcd.
    pub key: Bytes,
    /// Its revision.
    pub revision: Revision,
    /// What happened; `None` for a new snapshot.
    pub kind: Option<EventKind>,
    /// When the relay saw it.
    pub at: SystemTime,
}

/// Which value a key had, without the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) revision: Revision,
    /// A hash with a random key, since another cluster may have the same revision with another value.
    hash: u64,
}

impl Seen {
    pub(super) fn of(kv: &KeyValue) -> Self {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self { revision: kv.mod_revision, hash: HASHER.hash_one(&kv.encoded()[..]) }
    }
}

/// The events of one key, oldest first.
struct Events {
    key: Bytes,
    list: SmallVec<[(EventKind, Arc<KeyValue>); 1]>,
    received: Instant,
}

/// The changes of a directory in these entries, each with the key's last event, in the order of these events.
pub(super) fn of_entries<D: Document>(
    directory: Directory,
    entries: &[Arc<Entry>],
) -> (Vec<Change<D>>, Option<LastEvent>) {
    let mut places: HashMap<Bytes, usize> = HashMap::new();
    let mut keys: Vec<Option<Events>> = Vec::new();
    let mut last = None;
    for entry in entries {
        for event in entry.events() {
            let Some(key) = directory.cache_key(&event.kv.key_bytes()) else { continue };
            let earlier = places.insert(key.clone(), keys.len()).and_then(|place| keys[place].take());
            // A copy, so that a key that is kept for long does not keep the value it came with in memory.
            let mut events = earlier.unwrap_or_else(|| Events {
                key: Bytes::copy_from_slice(&key),
                list: SmallVec::new(),
                received: entry.received,
            });
            events.list.push((event.kind, event.kv.clone()));
            keys.push(Some(events));
            last = Some(event);
        }
    }
    let last = last.map(|event| LastEvent {
        key: Bytes::copy_from_slice(event.kv.key()),
        revision: event.kv.mod_revision,
        kind: Some(event.kind),
        at: SystemTime::now(),
    });
    (keys.into_iter().flatten().map(read).collect(), last)
}

/// The changes, by cache key, that lead from what was seen to a snapshot.
pub(super) fn of_snapshot<D: Document>(
    directory: Directory,
    snapshot: &Snapshot,
    mut seen: HashMap<Bytes, Seen>,
) -> (Vec<Change<D>>, LastEvent) {
    let received = Instant::now();
    // After a gap, the kind of the last event is unknown.
    let kind = Kind::Update;
    let mut changes = Vec::new();
    for kv in snapshot.map.range(&directory.range()) {
        let Some(key) = directory.cache_key(&kv.key_bytes()) else { continue };
        if seen.remove(&key).is_some_and(|seen| seen == Seen::of(&kv)) {
            continue;
        }
        let list = SmallVec::from_iter([(EventKind::Put, kv.kept())]);
        let key = Bytes::copy_from_slice(&key);
        changes.push(Change { kind, ..read(Events { key, list, received }) });
    }
    changes.extend(seen.into_keys().map(|key| Change {
        key,
        seen: None,
        becomes: Becomes::Gone,
        refused: None,
        kind,
        received,
    }));
    let last = LastEvent {
        key: Bytes::from_static(directory.prefix().as_bytes()),
        revision: snapshot.revision,
        kind: None,
        at: SystemTime::now(),
    };
    (changes, last)
}

/// Searches backwards for the last readable value, which is usually the last one.
fn read<D: Document>(Events { key, list, received }: Events) -> Change<D> {
    let mut change =
        Change { key, seen: None, becomes: Becomes::AsBefore, refused: None, kind: Kind::Update, received };
    for (index, (kind, kv)) in list.iter().rev().enumerate() {
        let newest = index == 0;
        if *kind == EventKind::Delete {
            change.becomes = Becomes::Gone;
            if newest {
                change.kind = Kind::Delete;
            }
            break;
        }
        if newest {
            change.seen = Some(kv.clone());
        }
        match D::decode(kv.value()) {
            Ok(document) => {
                change.becomes = Becomes::Document(Arc::new(document));
                break;
            }
            Err(error) if newest => change.refused = Some(error),
            Err(_) => {}
        }
    }
    change
}
