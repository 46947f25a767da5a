//! [`Past`]: what a feed had when its watch broke, compared with what the next watch tells of the same revisions.
//!
//! A cluster that was restored under its old id, and has grown beyond the feed's revision since, shows itself in nothing else. So a watch that
//! resumes begins at the last change that the feed knows of, which has to come again as it was, and nothing else up to the feed's revision.
//! Not here: the watch, and what follows from a difference; see `driver`.
//! Always holds: a difference is proof, since of one history each revision is told in one way for ever. What could not be compared is no proof of
//! anything, and is said to be unproved. It holds pointers to what the feed has anyway.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::{
    hub::{Held, upstream::Changes},
    types::{Entry, EventFields, EventKind, KeyValue, KeyValueFields, Revision},
};

/// How far before the feed's revision a watch begins at most. etcd reads all revisions from there on, whosever they are, and so many at a time:
/// a watch that resumes costs it one such read more. What is further back is left to the audit.
const SPAN: i64 = 1_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Past {
    held: Held,
    /// What has to come.
    expected: Expected,
    /// Where the watch begins.
    start: Revision,
    /// Whether what has to come has come, and all of it.
    came: Option<bool>,
}

/// The last change that is known of the feed's range.
#[derive(Debug)]
enum Expected {
    /// All of it.
    Entry(Arc<Entry>),
    /// What the snapshot had left of it.
    Put(Arc<KeyValue>),
    /// None is known, or it is too far back.
    Nothing,
}

/// Where upstream's past is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Differs {
    /// The revision that differs.
    pub(super) revision: Revision,
    /// A key that was changed there, in one of both.
    pub(super) key: Vec<u8>,
}

/// How far the comparison is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more to come.
    Open,
    /// The watch has gone past what the feed had. The last change came as it was.
    Proved,
    /// It has gone past it, and told nothing of the last change, which may be for a good reason.
    Unproved,
}

impl Past {
    /// What is to be compared of `held`. `newest` is the last change in the snapshot that the feed read, and `oldest` the oldest revision that
    /// upstream is known to have.
    pub(super) fn of(held: Held, newest: Option<Arc<KeyValue>>, oldest: Revision) -> Self {
        let at = held.snapshot.revision;
        let first = oldest.max(Revision::new(at.get() - SPAN)).max(Revision::new(1));
        let known = match (&held.newest, newest) {
            (Some(entry), _) => Expected::Entry(entry.clone()),
            (None, Some(kv)) => Expected::Put(kv),
            (None, None) => Expected::Nothing,
        };
        // Between the last change and the feed's revision there was none, so that any is proof as well.
        let (expected, start) = match known.revision() {
            Some(revision) if revision >= first => (known, revision),
            Some(_) => (Expected::Nothing, first),
            None => (Expected::Nothing, held.since.max(first)),
        };
        Self { held, expected, start: start.min(at.next()), came: None }
    }

    /// Where the watch has to begin. It is not after the feed's next revision.
    pub(super) fn start(&self) -> Revision {
        self.start
    }

    /// The feed's revision: what is told up to it is the past.
    pub(super) fn end(&self) -> Revision {
        self.held.snapshot.revision
    }

    /// Whether upstream, which has nothing before `oldest`, still has what the feed needs next, though not all that was to be compared.
    pub(super) fn goes_on_from(&self, oldest: Revision) -> bool {
        oldest > self.start && oldest <= self.end().next()
    }

    /// The watch told these changes, each of a revision up to the feed's, and nothing between them.
    pub(super) fn told(&mut self, changes: &[Changes]) -> Result<(), Differs> {
        for changes in changes {
            self.passed(changes.revision)?;
            self.compare(changes)?;
        }
        Ok(())
    }

    /// The watch has told all that it has before `next`.
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

    /// Whether a change before the feed's snapshot was read can have led to it.
    fn fits(&self, event: &EventFields) -> bool {
        let fields = &event.kv;
        let Some(kv) = self.held.snapshot.map.get(&fields.key) else {
            // Deleted later, as far as the snapshot tells.
            return true;
        };
        match event.kind {
            EventKind::Put => kv.mod_revision > fields.mod_revision || is_same(kv, fields),
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

/// Whether all of a revision has come; fails with the key where another change came, or a key was not put.
fn compare_entry(entry: &Entry, told: &[EventFields]) -> Result<bool, Vec<u8>> {
    // A transaction changes a key once.
    let mut left: HashMap<_, _> = entry.events().iter().map(|event| (event.kv.key(), event)).collect();
    for event in told {
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

/// Whether a key-value is the same to the last field.
pub(in crate::source) fn is_same(kv: &KeyValue, fields: &KeyValueFields) -> bool {
    kv.key() == &fields.key[..]
        && kv.mod_revision == fields.mod_revision
        && kv.create_revision == fields.create_revision
        && kv.version == fields.version
        && kv.lease == fields.lease
        && kv.value() == &fields.value[..]
}
