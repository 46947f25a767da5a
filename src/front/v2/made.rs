//! [`Made`]: this process's writes by revision, so that waits get their exact actions.
//!
//! v3 shows that a key was put. Only the writer knows whether that was a `set` or a `compareAndSwap`. Other relays
//! guess, and clients treat both alike. Always holds: a write is registered under its path before etcd can report its
//! event.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    answer::Event,
    events::path_of,
    operation::MAX_DEPTH,
    path::{ancestors, mark},
};
use crate::types::{Entry, Revision};

/// Most writes that are remembered until their event comes: as many as can be under way.
const KEPT: usize = 10_000;
/// How long an event waits for the answer of its write. After that, the action is guessed.
const PATIENCE: Duration = Duration::from_secs(2);

/// What waits are told about a write.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Event(Arc<Event>),
    /// Nothing: a refresh is not reported.
    Nothing,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Made {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// When the pending writes of a path began.
    under_way: BTreeMap<Bytes, BTreeMap<u64, Instant>>,
    last_id: u64,
    done: BTreeMap<Revision, Told>,
}

/// A pending write.
#[derive(Debug)]
pub(super) struct UnderWay<'a> {
    made: &'a Made,
    path: Bytes,
    id: u64,
}

impl Made {
    /// Registers a write to `path` that is about to begin.
    pub(super) fn begin(&self, path: Bytes) -> UnderWay<'_> {
        let mut state = self.state.lock();
        state.last_id += 1;
        let id = state.last_id;
        state.under_way.entry(path.clone()).or_default().insert(id, Instant::now());
        UnderWay { made: self, path, id }
    }

    /// What this process did at the revision of `entry`. It waits for answers that may tell.
    pub(super) async fn at(&self, entry: &Entry) -> Option<Told> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let deadline = {
                let mut state = self.state.lock();
                if let Some(told) = state.done.remove(&entry.revision) {
                    return Some(told);
                }
                if state.under_way.is_empty() {
                    return None;
                }
                // A write that began after the event did not cause it, and a write that takes too long is not waited
                // for.
                let begun = state.concerned(entry).flat_map(BTreeMap::values).filter(|begun| **begun <= entry.received);
                begun.map(|begun| *begun + PATIENCE).max().filter(|deadline| *deadline > Instant::now())?
            };
            tokio::time::timeout_at(deadline.into(), changed).await.ok()?;
        }
    }
}

impl State {
    /// The writes that may have caused an entry: those to its keys' paths and to the directories above them, since the
    /// end of a tree may show only in its keys. There may be as many writes as keys, so they are not compared one by
    /// one.
    fn concerned(&self, entry: &Entry) -> impl Iterator<Item = &BTreeMap<u64, Instant>> {
        let events = entry.events();
        let mut found = Vec::new();
        if events.len() < self.under_way.len() {
            for event in events {
                let path = path_of(event.kv.key());
                // No deeper path is ever written.
                let above = ancestors(&path).take(MAX_DEPTH).filter_map(|above| self.under_way.get(above));
                found.extend(above.chain(self.under_way.get(&path)));
            }
        } else {
            let mut keys: Vec<&[u8]> = events.iter().map(|event| event.kv.key()).collect();
            keys.sort_unstable();
            for (path, begun) in &self.under_way {
                let from = |key: &[u8]| keys.get(keys.partition_point(|other| *other < key)).copied();
                let is_below = |key: &[u8]| key.starts_with(path) && key.get(path.len()) == Some(&b'/');
                if from(path) == Some(&path[..]) || from(&mark(path)).is_some_and(is_below) {
                    found.push(begun);
                }
            }
        }
        found.into_iter()
    }
}

impl UnderWay<'_> {
    /// Records what was done, and at which revision.
    pub(super) fn done(&self, revision: Revision, told: Told) {
        let mut state = self.made.state.lock();
        state.done.insert(revision, told);
        while state.done.len() > KEPT {
            state.done.pop_first();
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.made.state.lock();
            if let Some(begun) = state.under_way.get_mut(&self.path) {
                begun.remove(&self.id);
                if begun.is_empty() {
                    state.under_way.remove(&self.path);
                }
            }
        }
        self.made.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EventFields, EventKind, KeyValueFields};

    fn entry(keys: &[String]) -> Entry {
        let events: Vec<EventFields> = keys
            .iter()
            .map(|key| {
                let key = Bytes::copy_from_slice(key.as_bytes());
                let kv = KeyValueFields { key, mod_revision: Revision::new(9), ..KeyValueFields::default() };
                EventFields { kind: EventKind::Delete, kv }
            })
            .collect();
        Entry::encode(&Arc::default(), Revision::new(9), Instant::now(), &events, |_| None)
    }

    fn concerned(made: &Made, keys: &[&str]) -> usize {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        made.state.lock().concerned(&entry(&keys)).count()
    }

    #[test]
    fn a_write_concerns_its_path_and_what_is_below_it() {
        let made = Made::default();
        let _writes = ["/a", "/a/b", "/a-b", "/c"].map(|path| made.begin(Bytes::from(path)));
        for (keys, want) in [
            (&["/a"][..], 1),
            (&["/a/b"], 2),
            (&["/a/b/c"], 2),
            (&["/a/"], 1),
            (&["/ab"], 0),
            (&["/a-b"], 1),
            (&["/"], 0),
            // More keys than writes.
            (&["/x/1", "/x/2", "/x/3", "/x/4", "/a/b/c"], 2),
            (&["/x/1", "/x/2", "/a-b", "/a/", "/x/5"], 2),
            (&["/a0", "/a-", "/ab", "/b", "/x"], 0),
        ] {
            assert_eq!(concerned(&made, keys), want, "{keys:?}");
        }
    }

    /// Writes and keys must not be compared one by one; that would take this test minutes.
    #[test]
    fn many_writes_and_keys_are_matched_in_one_pass() {
        const MANY: usize = 100_000;
        let made = Made::default();
        let _writes: Vec<_> = (0..MANY).map(|at| made.begin(Bytes::from(format!("/w/{at:06}")))).collect();
        let keys: Vec<String> = (0..MANY).map(|at| format!("/k/{at:06}")).collect();
        assert_eq!(made.state.lock().concerned(&entry(&keys)).count(), 0);
        let state = made.state.lock();
        for _ in 0..MANY {
            assert_eq!(state.concerned(&entry(&keys[..1])).count(), 0);
        }
    }
}
