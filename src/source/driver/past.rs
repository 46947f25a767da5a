//! [`Past`]: what a feed had when its watch broke, compared with what the next watch reports for the same revisions.
//!
//! A cluster that was restored under its old id, and has grown beyond the feed's revision since, shows in no other way.
//! So a watch that resumes begins at the last change that the feed knows. The watch must repeat that change exactly,
//! and report nothing else up to the feed's revision.
//! Not here: the watch, and what follows from a difference; see `driver`.
//! Always holds: a difference is proof, since within one history each revision is always reported in the same way. What
//! could not be compared proves nothing, and is reported as unproved. The comparison holds pointers to what the feed
//! has anyway.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::{
    hub::{Held, upstream::Changes},
    types::{Entry, EventFields, EventKind, KeyValue, KeyValueFields, Revision},
};

/// How far before the feed's revision a watch begins at most. etcd reads all revisions from there on, for whatever
/// keys, in batches of this size, so a watch that resumes costs it one more read. Anything further back is left to the
/// audit.
const SPAN: i64 = 1_000;

/// The comparison of a feed with a new watch; see the module.
#[derive(Debug)]
pub(super) struct Past {
    held: Held,
    /// What the watch must repeat.
    expected: Expected,
    /// Where the watch begins.
    start: Revision,
    /// Whether the expected change has come, and whether it was complete.
    came: Option<bool>,
}

/// The last known change in the feed's range.
#[derive(Debug)]
enum Expected {
    /// The whole revision.
    Entry(Arc<Entry>),
    /// What the snapshot shows of it.
    Put(Arc<KeyValue>),
    /// No change is known, or it is too far back.
    Nothing,
}

/// Upstream's past differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Differs {
    /// The revision that differs.
    pub(super) revision: Revision,
    /// A key that was changed there, by one of the two.
    pub(super) key: Vec<u8>,
}

/// The state of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more to compare.
    Open,
    /// The watch has gone past what the feed had, and repeated the last change exactly.
    Proved,
    /// The watch has gone past what the feed had and did not repeat the last change, for which there may be a good
    /// reason.
    Unproved,
}

impl Past {
    /// What of `held` has to be compared. `newest` is the last change in the snapshot that the feed read, and `oldest`
    /// the oldest revision that upstream is known to have.
    pub(super) fn of(held: Held, newest: Option<Arc<KeyValue>>, oldest: Revision) -> Self {
        let at = held.snapshot.revision;
        let first = oldest.max(Revision::new(at.get() - SPAN)).max(Revision::new(1));
        let known = match (&held.newest, newest) {
            (Some(entry), _) => Expected::Entry(entry.clone()),
            (None, Some(kv)) => Expected::Put(kv),
            (None, None) => Expected::Nothing,
        };
        // There was no change between the last one and the feed's revision, so any such change is proof as well.
        let (expected, start) = match known.revision() {
            Some(revision) if revision >= first => (known, revision),
            Some(_) => (Expected::Nothing, first),
            None => (Expected::Nothing, held.since.max(first)),
        };
        Self { held, expected, start: start.min(at.next()), came: None }
    }

    /// Where the watch has to begin: at the feed's next revision, or before.
    pub(super) fn start(&self) -> Revision {
        self.start
    }

    /// The feed's revision. What is reported up to it is the past.
    pub(super) fn end(&self) -> Revision {
        self.held.snapshot.revision
    }

    /// Whether upstream, which has nothing before `oldest`, still has the next revision that the feed needs, though not
    /// everything that was to be compared.
    pub(super) fn goes_on_from(&self, oldest: Revision) -> bool {
        oldest > self.start && oldest <= self.end().next()
    }

    /// The watch reported these changes, each at a revision up to the feed's, and nothing between them.
    pub(super) fn reported(&mut self, changes: &[Changes]) -> Result<(), Differs> {
        for changes in changes {
            self.passed(changes.revision)?;
            self.compare(changes)?;
        }
        Ok(())
    }

    /// The watch has sent everything that it has before `next`.
    pub(super) fn passed(&mut self, next: Revision) -> Result<Progress, Differs> {
        let is_past = self.expected.revision().is_some_and(|revision| revision < next);
        if is_past && self.came.is_none() {
            match &self.expected {
                // etcd keeps no deletion at the revision up to which it is compacted.
                Expected::Entry(entry) => {
                    if let Some(put) = entry.events().iter().find(|event| event.kind == EventKind::Put) {
                        return Err(Differs { revision: entry.revision, key: put.kv.key().to_vec() });
                    }
                }
                Expected::Put(kv) => return Err(Differs { revision: kv.mod_revision, key: kv.key().to_vec() }),
                Expected::Nothing => {}
            }
        }
        Ok(match next > self.end() {
            false => Progress::Open,
            true if self.came == Some(true) => Progress::Proved,
            true => Progress::Unproved,
        })
    }

    fn compare(&mut self, changes: &Changes) -> Result<(), Differs> {
        let at = changes.revision;
        let differs = |key: &[u8]| Err(Differs { revision: at, key: key.to_vec() });
        if let Expected::Entry(entry) = &self.expected
            && entry.revision == at
        {
            let all = compare_entry(entry, &changes.events).map_err(|key| Differs { revision: at, key })?;
            self.came = Some(all);
            return Ok(());
        }
        if at >= self.held.since {
            // The feed knows of no change there.
            return differs(changes.events.first().map_or(&[], |event| &event.kv.key));
        }
        if let Some(event) = changes.events.iter().find(|event| !self.fits(event)) {
            return differs(&event.kv.key);
        }
        if let Expected::Put(kv) = &self.expected
            && kv.mod_revision == at
        {
            if !changes.events.iter().any(|event| event.kind == EventKind::Put && is_same(kv, &event.kv)) {
                return differs(kv.key());
            }
            self.came = Some(true);
        }
        Ok(())
    }

    /// Whether a change from before the feed's snapshot can have led to it.
    fn fits(&self, event: &EventFields) -> bool {
        let fields = &event.kv;
        let Some(kv) = self.held.snapshot.map.get(&fields.key) else {
            // The key was deleted later, as far as the snapshot shows.
            return true;
        };
        match event.kind {
            EventKind::Put => kv.mod_revision > fields.mod_revision || is_same(&kv, fields),
            EventKind::Delete => kv.create_revision > fields.mod_revision,
        }
    }
}

impl Expected {
    fn revision(&self) -> Option<Revision> {
        match self {
            Self::Entry(entry) => Some(entry.revision),
            Self::Put(kv) => Some(kv.mod_revision),
            Self::Nothing => None,
        }
    }
}

/// Whether the whole revision has come. Fails with a key that was changed differently, or not put at all.
fn compare_entry(entry: &Entry, reported: &[EventFields]) -> Result<bool, Vec<u8>> {
    // A transaction changes a key once.
    let mut left: HashMap<_, _> = entry.events().iter().map(|event| (event.kv.key(), event)).collect();
    for event in reported {
        match left.remove(&event.kv.key[..]) {
            Some(had) if had.kind == event.kind && is_same(&had.kv, &event.kv) => {}
            _ => return Err(event.kv.key.to_vec()),
        }
    }
    match left.values().find(|event| event.kind == EventKind::Put) {
        Some(missing) => Err(missing.kv.key().to_vec()),
        None => Ok(left.is_empty()),
    }
}

/// Whether a key-value is the same in every field.
pub(in crate::source) fn is_same(kv: &KeyValue, fields: &KeyValueFields) -> bool {
    kv.key() == &fields.key[..]
        && kv.mod_revision == fields.mod_revision
        && kv.create_revision == fields.create_revision
        && kv.version == fields.version
        && kv.lease == fields.lease
        && kv.value() == &fields.value[..]
}
