//! Keys with all their versions, and the log of changes: the store's data and its revisions.
//!
//! Not here: requests and their options (`range`, `txn`), leases, waiting. Pure and synchronous; `state` calls it.
//! Always holds: a transaction that changes something makes one revision, the next one; a transaction that changes
//! nothing makes none. The log has every revision from the compacted one (or from 2, the first with changes) to the
//! current one. Reads at the compacted revision or later see the state at that revision; a read at an earlier one is
//! refused.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
};

use bytes::Bytes;

use super::StoreError;
use crate::types::{EventFields, EventKind, KeyRange, KeyValueFields, RangeEnd, Revision};

/// How much history the store keeps before it compacts itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct HistoryLimits {
    pub(super) revisions: usize,
    pub(super) bytes: usize,
}

/// The keys and the log.
#[derive(Debug)]
pub(super) struct Mvcc {
    /// Versions of a key with rising revisions; at least one.
    keys: BTreeMap<Bytes, VecDeque<Version>>,
    /// One record for each revision, without a gap.
    log: VecDeque<Record>,
    current: Revision,
    compacted: Revision,
    /// Changes of the running transaction, which can read them (see [`Mvcc::visible`]).
    open: Vec<EventFields>,
    live_bytes: usize,
    log_bytes: usize,
    limits: HistoryLimits,
}

/// A key from one revision on.
#[derive(Debug)]
struct Version {
    revision: Revision,
    /// `None` if it was deleted.
    kv: Option<KeyValueFields>,
}

/// The changes of one revision.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) revision: Revision,
    /// In the order of the operations.
    pub(super) events: Vec<EventFields>,
    bytes: usize,
}

/// etcd's first revision: that of a store that was never written to.
const FIRST: Revision = Revision::new(1);
/// What etcd reports as the compacted revision if there is none.
const NOTHING_COMPACTED: Revision = Revision::new(-1);
/// About how much a version or an event takes in addition to its key and value.
const OVERHEAD: usize = 128;

impl Mvcc {
    pub(super) fn new(limits: HistoryLimits) -> Self {
        Self {
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            current: FIRST,
            compacted: NOTHING_COMPACTED,
            open: Vec::new(),
            live_bytes: 0,
            log_bytes: 0,
            limits,
        }
    }

    /// The newest revision.
    pub(super) fn current(&self) -> Revision {
        self.current
    }

    /// The oldest revision that can be read; -1 if nothing was compacted.
    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The revision that reads see: the current one, or the one that a running transaction makes if it changed
    /// something.
    pub(super) fn visible(&self) -> Revision {
        if self.open.is_empty() { self.current } else { self.current.next() }
    }

    /// Approximate bytes of the newest version of every key.
    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    /// Approximate bytes of the log.
    pub(super) fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    /// The revision to read for the one in a request, where 0 and less mean the newest.
    pub(super) fn readable(&self, revision: i64) -> Result<Revision, StoreError> {
        let revision = Revision::new(revision);
        if revision > self.visible() {
            Err(StoreError::FutureRevision)
        } else if revision <= Revision::ZERO {
            Ok(self.visible())
        } else if revision < self.compacted {
            Err(StoreError::Compacted)
        } else {
            Ok(revision)
        }
    }

    /// The newest version of a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<&KeyValueFields> {
        self.keys.get(key)?.back()?.kv.as_ref()
    }

    /// A key as it was at a revision that is still kept.
    pub(super) fn get_at(&self, key: &[u8], revision: Revision) -> Option<&KeyValueFields> {
        version_at(self.keys.get(key)?, revision)
    }

    /// The keys of a range as they were at a revision that is still kept, in key order.
    pub(super) fn scan(&self, range: &KeyRange, revision: Revision) -> impl Iterator<Item = &KeyValueFields> {
        self.keys.range::<[u8], _>(bounds(range)).filter_map(move |(_, versions)| version_at(versions, revision))
    }

    /// Creates or changes a key.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8], lease: i64) {
        let revision = self.current.next();
        let before = self.get(key);
        let (key, create_revision, version, freed) = match before {
            Some(kv) => (kv.key.clone(), kv.create_revision, kv.version + 1, cost(kv)),
            None => (Bytes::copy_from_slice(key), revision, 1, 0),
        };
        // A copy, since a value from the network is a slice of a larger buffer, which it would keep in memory.
        let value = Bytes::copy_from_slice(value);
        let kv = KeyValueFields { key, value, create_revision, mod_revision: revision, version, lease };
        self.live_bytes = self.live_bytes - freed + cost(&kv);
        self.open.push(EventFields { kind: EventKind::Put, kv: kv.clone() });
        self.keys.entry(kv.key.clone()).or_default().push_back(Version { revision, kv: Some(kv) });
    }

    /// Deletes the keys of a range, in key order, and returns their last values.
    pub(super) fn delete(&mut self, range: &KeyRange) -> Vec<KeyValueFields> {
        let revision = self.current.next();
        let mut deleted = Vec::new();
        for (key, versions) in self.keys.range_mut::<[u8], _>(bounds(range)) {
            let Some(before) = versions.back().and_then(|version| version.kv.clone()) else { continue };
            self.live_bytes -= cost(&before);
            versions.push_back(Version { revision, kv: None });
            let kv = KeyValueFields { key: key.clone(), mod_revision: revision, ..KeyValueFields::default() };
            self.open.push(EventFields { kind: EventKind::Delete, kv });
            deleted.push(before);
        }
        deleted
    }

    /// Ends a transaction: its changes become the next revision. Old revisions are dropped if there are too many.
    pub(super) fn commit(&mut self) {
        if self.open.is_empty() {
            return;
        }
        self.current = self.current.next();
        let events = std::mem::take(&mut self.open);
        let record = Record::new(self.current, events);
        self.log_bytes += record.bytes;
        self.log.push_back(record);
        self.enforce_limits();
    }

    /// Drops the revisions before one.
    pub(super) fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        let revision = Revision::new(revision);
        if revision <= self.compacted {
            return Err(StoreError::Compacted);
        }
        if revision > self.current {
            return Err(StoreError::FutureRevision);
        }
        self.forget_before(revision);
        Ok(())
    }

    /// The records from a revision on, oldest first.
    pub(super) fn log_from(&self, revision: Revision) -> impl Iterator<Item = &Record> {
        let skip = self.log.partition_point(|record| record.revision < revision);
        self.log.range(skip..)
    }

    fn enforce_limits(&mut self) {
        let mut forget = 0;
        let mut bytes = self.log_bytes;
        while self.log.len() - forget > 1
            && (self.log.len() - forget > self.limits.revisions || bytes > self.limits.bytes)
        {
            bytes -= self.log[forget].bytes;
            forget += 1;
        }
        if forget > 0 {
            self.forget_before(self.log[forget].revision);
        }
    }

    fn forget_before(&mut self, revision: Revision) {
        self.compacted = revision;
        while self.log.front().is_some_and(|record| record.revision < revision) {
            let Some(record) = self.log.pop_front() else { break };
            self.log_bytes -= record.bytes;
            record.events.iter().for_each(|event| trim(&mut self.keys, &event.kv.key, revision));
        }
        // The events of `revision` stay for watches that begin there, but what they replaced is dropped; even within
        // the revision, if a transaction changed a key twice.
        if let Some(record) = self.log.front_mut().filter(|record| record.revision == revision) {
            record.events.iter().for_each(|event| trim(&mut self.keys, &event.kv.key, revision));
            self.log_bytes -= record.bytes;
            record.keep_last_of_each_key();
            self.log_bytes += record.bytes;
        }
    }
}

impl Record {
    fn new(revision: Revision, events: Vec<EventFields>) -> Self {
        let bytes = events.iter().map(|event| cost(&event.kv)).sum();
        Self { revision, events, bytes }
    }

    fn keep_last_of_each_key(&mut self) {
        let mut last = HashMap::with_capacity(self.events.len());
        for (index, event) in self.events.iter().enumerate() {
            last.insert(event.kv.key.clone(), index);
        }
        if last.len() < self.events.len() {
            let events = std::mem::take(&mut self.events).into_iter().enumerate();
            let kept = events.filter(|(index, event)| last.get(&event.kv.key) == Some(index));
            *self = Self::new(self.revision, kept.map(|(_, event)| event).collect());
        }
    }
}

/// Keeps only the last of a key's versions up to `revision`, and drops that as well if it is a deletion.
fn trim(keys: &mut BTreeMap<Bytes, VecDeque<Version>>, key: &Bytes, revision: Revision) {
    let Some(versions) = keys.get_mut(key) else { return };
    let old = versions.partition_point(|version| version.revision <= revision);
    if old == 0 {
        return;
    }
    versions.drain(..old - 1);
    if versions.front().is_some_and(|version| version.kv.is_none()) {
        versions.pop_front();
    }
    if versions.is_empty() {
        keys.remove(key);
    }
}

fn version_at(versions: &VecDeque<Version>, revision: Revision) -> Option<&KeyValueFields> {
    let newest = versions.partition_point(|version| version.revision <= revision).checked_sub(1)?;
    versions[newest].kv.as_ref()
}

fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let end = match range.end() {
        RangeEnd::Single => Bound::Included(&range.start()[..]),
        RangeEnd::Before(end) => Bound::Excluded(&end[..]),
        RangeEnd::Unbounded => Bound::Unbounded,
    };
    (Bound::Included(&range.start()[..]), end)
}

fn cost(kv: &KeyValueFields) -> usize {
    OVERHEAD + kv.key.len() + kv.value.len()
}
