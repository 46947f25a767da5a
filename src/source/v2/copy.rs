//! [`struct@Copy`]: the keys of a directory with their indexes. With it the end of a whole tree, which is one event in
//! v2, can be reported key by key.
//!
//! Not here: values, which the feed has; a hash of each shows whether it changed. Called by the watch that owns it.
//! Always holds: the copy shows the directory at [`Copy::revision`], except for indexes that a refresh moved, since v2
//! does not report refreshes.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    answer::{Effect, Event},
    listing::Listed,
    place::{Place, prefix_of},
    walk::Silence,
};
use crate::types::{EventFields, EventKind, KeyRange, KeyValueFields, Revision};

/// For how long after a listing an earlier change may still be on its way from a wait.
const SETTLES: Duration = Duration::from_secs(5);
/// How many keys are compared before other tasks may run. This takes a few hundred microseconds.
const STEP: usize = 1024;

/// The keys of a directory; see the module.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) range: KeyRange,
    pub(super) place: Place,
    pub(super) cluster_id: u64,
    /// The revision that the copy shows.
    pub(super) revision: Revision,
    /// Where waits continue: every change up to here was reported, or was in the listing that the copy began with.
    pub(super) walked: Revision,
    /// The last revision with a change.
    changed: Revision,
    keys: BTreeMap<Bytes, Meta>,
    hasher: RandomState,
    /// Keys that a listing had with another index and the same value. They were either refreshed, or set to the same
    /// value by a change that is on its way. Those that the next listing has unchanged were refreshed.
    suspects: BTreeMap<Bytes, Revision>,
    /// Shared with the task that waits.
    pub(super) agreed: Arc<Agreed>,
}

/// The newest listing that equalled the copy, of a member with an open wait, and when it came.
#[derive(Debug)]
pub(super) struct Agreed(Mutex<(Revision, Instant)>);

impl Agreed {
    /// A position after `walked` from which a wait may begin if etcd's history does not reach back to `walked`: the
    /// index of a listing that equalled the copy, so long ago that no earlier change can still be on its way.
    pub(super) fn settled(&self, walked: Revision) -> Option<Revision> {
        let (revision, at) = *self.0.lock();
        (revision > walked && at.elapsed() >= SETTLES).then_some(revision)
    }
}

/// What is known about a key.
#[derive(Clone, Debug)]
struct Meta {
    created: Revision,
    modified: Revision,
    version: i64,
    value: u64,
}

/// A listing that is being compared with the copy, a part at a time, since a directory may have a million keys.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) revision: Revision,
    pub(super) silence: Silence,
    listed: Vec<Listed>,
    /// How many keys were compared.
    at: usize,
    refreshed: BTreeMap<Bytes, Revision>,
}

/// The difference between a listing and the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// There is none.
    Same,
    /// Only indexes of keys with unchanged values differ; the next listing shows why.
    PerhapsRefreshed,
    /// Changes that were not reported.
    Different,
}

impl Copy {
    /// A copy that begins with a listing. Keys that `before` had at the same index keep what v2 does not report: when
    /// they were created, and how often they have changed since.
    pub(super) fn new(
        range: KeyRange,
        place: Place,
        cluster_id: u64,
        revision: Revision,
        listed: &[Listed],
        before: Option<Self>,
    ) -> Self {
        let mut before = before.filter(|before| before.cluster_id == cluster_id).map(|before| before.keys);
        let hasher = RandomState::new();
        let keys = listed.iter().map(|listed| {
            let known = before.as_mut().and_then(|keys| keys.remove(&listed.key));
            let known = known.filter(|known| known.modified == listed.modified);
            let (created, version) = known.map_or((listed.created, 1), |known| (known.created, known.version));
            let value = hasher.hash_one(&listed.value[..]);
            (listed.key.clone(), Meta { created, modified: listed.modified, version, value })
        });
        let keys = keys.collect();
        let (walked, changed, agreed) = (revision, revision, Arc::new(Agreed(Mutex::new((revision, Instant::now())))));
        Self { range, place, cluster_id, revision, walked, changed, keys, hasher, suspects: BTreeMap::new(), agreed }
    }

    /// Whether a watch may begin here at `start`: nothing has changed from there on.
    pub(super) fn can_begin_at(&self, start: Revision) -> bool {
        self.changed < start && start <= self.revision.next()
    }

    /// The keys with the values of a listing.
    pub(super) fn fields(&self, listed: Listed) -> KeyValueFields {
        let known = self.keys.get(&listed.key).map(|meta| (meta.created, meta.version));
        let fields = listed.fields();
        let (create_revision, version) = known.unwrap_or((fields.create_revision, fields.version));
        KeyValueFields { create_revision, version, ..fields }
    }

    /// What an event changes, in key order. Empty if it does not concern the keys of this copy.
    pub(super) fn apply(&mut self, event: &Event) -> Vec<EventFields> {
        let index = event.index();
        let changes = self.changes(event);
        for change in &changes {
            let KeyValueFields { key, value, create_revision, version, .. } = &change.kv;
            match change.kind {
                EventKind::Put => {
                    let value = self.hasher.hash_one(&value[..]);
                    let meta = Meta { created: *create_revision, modified: index, version: *version, value };
                    self.keys.insert(key.clone(), meta);
                }
                EventKind::Delete => drop(self.keys.remove(key)),
            }
        }
        self.revision = self.revision.max(index);
        self.walked = self.walked.max(index);
        if !changes.is_empty() {
            self.changed = index;
        }
        changes
    }

    /// What an event would change.
    pub(super) fn changes(&self, event: &Event) -> Vec<EventFields> {
        let index = event.index();
        let path = &*event.node.key;
        if self.place.hides(path) {
            // Waits leave these out, but a search of the history does not.
            return Vec::new();
        }
        let gone = |key: &Bytes| EventFields {
            kind: EventKind::Delete,
            kv: KeyValueFields { key: key.clone(), mod_revision: index, ..KeyValueFields::default() },
        };
        match event.effect() {
            Effect::Put(value) if self.range.contains(path.as_bytes()) => {
                let known = self.keys.get_key_value(path.as_bytes());
                let key = known.map_or_else(|| Bytes::copy_from_slice(path.as_bytes()), |(key, _)| key.clone());
                // v2 creates a key again with each `set`; for v3 clients it is created once.
                let (created, version) = known.map_or((index, 1), |(_, meta)| (meta.created, meta.version + 1));
                let value = Bytes::copy_from_slice(value.as_bytes());
                let kv =
                    KeyValueFields { key, value, create_revision: created, mod_revision: index, version, lease: 0 };
                vec![EventFields { kind: EventKind::Put, kv }]
            }
            Effect::Put(_) => Vec::new(),
            Effect::Gone => self.keys.get_key_value(path.as_bytes()).map(|(key, _)| gone(key)).into_iter().collect(),
            Effect::TreeGone if self.place.is_within(path) => self.keys.keys().map(gone).collect(),
            Effect::TreeGone => {
                let below = prefix_of(path);
                let from = (Bound::Included(&below[..]), Bound::Unbounded);
                let keys = self.keys.range::<[u8], _>(from).map(|(key, _)| key);
                keys.take_while(|key| key.starts_with(&below)).map(gone).collect()
            }
        }
    }

    /// Compares some more keys with a listing. Returns the result once all were compared, or as soon as one differs.
    pub(super) fn compare(&mut self, comparison: &mut Comparison) -> Option<Compared> {
        let Comparison { silence, listed, at, refreshed, .. } = comparison;
        if listed.len() != self.keys.len() {
            return Some(Compared::Different);
        }
        let step = &listed[*at..listed.len().min(*at + STEP)];
        for Listed { key, value, modified, .. } in step {
            match self.keys.get(key) {
                Some(meta) if meta.modified == *modified => {}
                Some(meta) if meta.value == self.hasher.hash_one(&value[..]) && meta.modified < *modified => {
                    refreshed.insert(key.clone(), *modified);
                }
                _ => return Some(Compared::Different),
            }
        }
        *at += step.len();
        if *at < listed.len() {
            return None;
        }
        let all_known = *silence == Silence::Unheard
            || refreshed.iter().all(|(key, modified)| self.suspects.get(key) == Some(modified));
        if !all_known {
            self.suspects = std::mem::take(refreshed);
            return Some(Compared::PerhapsRefreshed);
        }
        self.suspects.clear();
        for (key, modified) in refreshed {
            if let Some(meta) = self.keys.get_mut(key) {
                meta.modified = *modified;
            }
        }
        Some(Compared::Same)
    }

    /// A listing of `revision` equalled the copy: nothing has changed up to there.
    pub(super) fn agree(&mut self, revision: Revision, silence: Silence) {
        self.revision = self.revision.max(revision);
        if silence != Silence::Unknown {
            *self.agreed.0.lock() = (revision, Instant::now());
        }
        if silence == Silence::Unheard {
            self.walked = self.walked.max(revision);
        }
    }
}

impl Comparison {
    pub(super) fn new(revision: Revision, silence: Silence, listed: Vec<Listed>) -> Self {
        Self { revision, silence, listed, at: 0, refreshed: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(key: &str, value: &str, index: i64) -> Listed {
        let index = Revision::new(index);
        Listed { key: key.to_owned().into(), value: value.to_owned().into(), created: index, modified: index }
    }

    fn copy(keys: &[(&str, i64)], revision: i64) -> Copy {
        let range = KeyRange::prefix("/a/".into());
        let place = Place::of(&range).expect("a place");
        let listed: Vec<_> = keys.iter().map(|(key, index)| listed(key, "x", *index)).collect();
        Copy::new(range, place, 1, Revision::new(revision), &listed, None)
    }

    fn compare(copy: &mut Copy, revision: Revision, listed: &[Listed], unheard: bool) -> Compared {
        let silence = if unheard { Silence::Unheard } else { Silence::Settles };
        let mut comparison = Comparison::new(revision, silence, listed.to_vec());
        loop {
            if let Some(compared) = copy.compare(&mut comparison) {
                if compared == Compared::Same {
                    copy.agree(revision, silence);
                }
                return compared;
            }
        }
    }

    fn event(action: &str, key: &str, rest: &str, index: i64) -> Event {
        let text = format!(
            r#"{{"action":"{action}","node":{{"key":"{key}",{rest}"modifiedIndex":{index},"createdIndex":1}}}}"#
        );
        serde_json::from_str(&text).expect("an event")
    }

    fn changes(copy: &mut Copy, event: &Event) -> Vec<(EventKind, String, i64, i64)> {
        let changes = copy.apply(event);
        let shown = |change: EventFields| {
            let key = String::from_utf8_lossy(&change.kv.key).into_owned();
            (change.kind, key, change.kv.create_revision.get(), change.kv.version)
        };
        changes.into_iter().map(shown).collect()
    }

    #[test]
    fn a_key_is_created_once_and_its_changes_are_counted() {
        let mut copy = copy(&[("/a/x", 5)], 9);
        let set = |key: &str, index| event("set", key, r#""value":"y","#, index);
        assert_eq!(changes(&mut copy, &set("/a/x", 10)), [(EventKind::Put, "/a/x".into(), 5, 2)]);
        assert_eq!(changes(&mut copy, &set("/a/n", 11)), [(EventKind::Put, "/a/n".into(), 11, 1)]);
        assert_eq!(changes(&mut copy, &event("delete", "/a/n", "", 12)), [(EventKind::Delete, "/a/n".into(), 0, 0)]);
        assert_eq!(changes(&mut copy, &set("/a/n", 13)), [(EventKind::Put, "/a/n".into(), 13, 1)]);
        assert_eq!(copy.revision.get(), 13);
    }

    #[test]
    fn the_end_of_a_tree_is_the_end_of_each_of_its_keys() {
        let keys = [("/a/b", 1), ("/a/b/c", 2), ("/a/b/d/e", 3), ("/a/bc", 4), ("/a/f", 5)];
        let gone = |action: &str, key: &str| {
            let changed = changes(&mut copy(&keys, 9), &event(action, key, r#""dir":true,"#, 10));
            changed.into_iter().map(|(_, key, ..)| key).collect::<Vec<_>>()
        };
        assert_eq!(gone("delete", "/a/b"), ["/a/b/c", "/a/b/d/e"]);
        assert_eq!(gone("expire", "/a/b/d"), ["/a/b/d/e"]);
        assert_eq!(gone("delete", "/a").len(), 5);
        assert_eq!(gone("set", "/a/b"), ["/a/b"], "a file that became a directory");
        assert_eq!(gone("set", "/a/q"), [""; 0]);
        assert_eq!(gone("delete", "/ab"), [""; 0]);
    }

    #[test]
    fn what_is_hidden_or_elsewhere_changes_nothing_but_the_position() {
        let mut copy = copy(&[("/a/x", 5)], 9);
        let set = |key: &str, index| event("set", key, r#""value":"y","#, index);
        for (index, key) in ["/a/_h", "/a/b/_h/c", "/b", "/ab/c"].into_iter().enumerate() {
            assert_eq!(changes(&mut copy, &set(key, 10 + index as i64)), [], "{key}");
        }
        assert_eq!((copy.revision.get(), copy.walked.get()), (13, 13));
        assert!(copy.can_begin_at(Revision::new(10)) && copy.can_begin_at(Revision::new(14)));
        assert!(!copy.can_begin_at(Revision::new(9)) && !copy.can_begin_at(Revision::new(15)));
    }

    #[test]
    fn a_listing_that_differs_is_not_taken_for_the_copy() {
        let at = Revision::new;
        let mut copy = copy(&[("/a/x", 5), ("/a/y", 6)], 9);
        assert_eq!(compare(&mut copy, at(20), &[listed("/a/x", "x", 5)], true), Compared::Different);
        assert_eq!(
            compare(&mut copy, at(20), &[listed("/a/x", "x", 5), listed("/a/z", "x", 6)], true),
            Compared::Different
        );
        assert_eq!(
            compare(&mut copy, at(20), &[listed("/a/x", "x", 5), listed("/a/y", "z", 16)], true),
            Compared::Different
        );
        assert_eq!((copy.revision, copy.walked), (at(9), at(9)));
        assert_eq!(
            compare(&mut copy, at(20), &[listed("/a/x", "x", 5), listed("/a/y", "x", 6)], false),
            Compared::Same
        );
        assert_eq!((copy.revision, copy.walked), (at(20), at(9)), "a change may be on its way from the wait");
        assert_eq!(compare(&mut copy, at(30), &[listed("/a/x", "x", 5), listed("/a/y", "x", 6)], true), Compared::Same);
        assert_eq!((copy.revision, copy.walked), (at(30), at(30)));
    }

    #[test]
    fn a_refresh_shows_in_two_listings_alike() {
        let at = Revision::new;
        let mut copy = copy(&[("/a/x", 5)], 9);
        assert_eq!(compare(&mut copy, at(20), &[listed("/a/x", "x", 15)], false), Compared::PerhapsRefreshed);
        assert_eq!(compare(&mut copy, at(21), &[listed("/a/x", "x", 21)], false), Compared::PerhapsRefreshed);
        assert_eq!(copy.revision, at(9));
        assert_eq!(compare(&mut copy, at(22), &[listed("/a/x", "x", 21)], false), Compared::Same);
        assert_eq!(copy.revision, at(22));
    }

    #[test]
    fn a_large_listing_is_compared_in_parts() {
        let keys: Vec<_> = (0..3 * STEP).map(|key| format!("/a/{key:06}")).collect();
        let keys: Vec<_> = keys.iter().map(|key| (&**key, 5)).collect();
        let mut copy = copy(&keys, 9);
        let all: Vec<_> = keys.iter().map(|(key, index)| listed(key, "x", *index)).collect();
        let mut comparison = Comparison::new(Revision::new(20), Silence::Unheard, all);
        let parts = std::iter::repeat_with(|| copy.compare(&mut comparison)).position(|compared| compared.is_some());
        assert_eq!(parts, Some(2));
    }
}
