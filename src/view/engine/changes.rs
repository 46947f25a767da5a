//! [`Change`]: what became of a key, read. Made of the feed's entries, or of what is different in a snapshot.
//!
//! Not here: what a change means for targets. Always holds: however many events of a key are taken together, the change says
//! what they would have said one by one: the last readable value counts, unless the key was deleted after it.

use std::{
    sync::Arc,
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
    /// What is held of the key from now on.
    pub(super) becomes: Becomes<D>,
    /// Why the value in etcd is not it.
    pub(super) refused: Option<DecodeError>,
    /// What streams call it.
    pub(super) kind: Kind,
    /// When the relay received it.
    pub(super) received: Instant,
}

/// What is held of a key from now on.
pub(super) enum Becomes<D> {
    /// This.
    Document(Arc<D>),
    /// What was held before.
    AsBefore,
    /// Nothing.
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

/// The events of one key, oldest first.
struct Events {
    key: Bytes,
    list: SmallVec<[(EventKind, Arc<KeyValue>); 1]>,
    received: Instant,
}

/// The changes that entries make to a directory, in the order of each key's last event, and that event.
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
            // A copy, so that a long kept key does not hold on to the value that it came with.
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

/// The changes that make what was seen, by cache key, what a snapshot has.
pub(super) fn of_snapshot<D: Document>(
    directory: Directory,
    snapshot: &Snapshot,
    mut seen: HashMap<Bytes, Arc<KeyValue>>,
) -> (Vec<Change<D>>, LastEvent) {
    let received = Instant::now();
    // After a gap nobody knows what came last.
    let kind = Kind::Update;
    let mut changes = Vec::new();
    for kv in snapshot.map.range(&directory.range()) {
        let Some(key) = directory.cache_key(&kv.key_bytes()) else { continue };
        // By value: another cluster may have given another value the same revision.
        if seen.remove(&key).is_some_and(|seen| seen.encoded() == kv.encoded()) {
            continue;
        }
        let list = SmallVec::from_iter([(EventKind::Put, kv.clone())]);
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

/// Reads back to the last readable value, which most often is the last.
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
