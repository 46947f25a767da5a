//! [`RangeQuery`]: etcd's `Range` over a snapshot, option by option as etcd answers it.
//!
//! Not here: the wire form and the wait for a revision, see `front`. A read at a past revision undoes, in the range alone,
//! what the history says happened since. Always holds: a reply is of one revision. Source of the semantics: etcd's
//! server/etcdserver/txn/range.go and docs/promises.md, section 5.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use smallvec::SmallVec;
use thiserror::Error;

use super::{Feed, Listing, Snapshot, pages::Pages};
use crate::types::{Header, KeyRange, KeyValue, Revision};

/// What to sort by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the field's names say it")]
pub enum SortTarget {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "etcd's names")]
pub enum SortOrder {
    None,
    Ascend,
    Descend,
}

/// A `Range` request, parsed.
#[derive(Clone, Debug)]
pub struct RangeQuery {
    /// The keys.
    pub range: KeyRange,
    /// Most key-values to give; zero for all.
    pub limit: usize,
    /// The revision to read at; zero for the current one.
    pub revision: Revision,
    /// Which way to sort.
    pub sort_order: SortOrder,
    /// What to sort by.
    pub sort_target: SortTarget,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Lowest mod revision to give; zero for any.
    pub min_mod_revision: Revision,
    /// Highest mod revision to give; zero for any.
    pub max_mod_revision: Revision,
    /// Lowest create revision to give; zero for any.
    pub min_create_revision: Revision,
    /// Highest create revision to give; zero for any.
    pub max_create_revision: Revision,
}

/// The answer.
#[derive(Clone, Debug)]
pub struct RangeReply {
    /// The feed's cluster and revision, also of a read at a past revision.
    pub header: Header,
    /// The key-values, sorted and limited. Values are there even for `keys_only`.
    pub kvs: Listing,
    /// Whether the limit left some out.
    pub more: bool,
    /// Keys in the range, whatever limit and filters say.
    pub count: usize,
}

/// From this limit on the rest of a reply is believed to be asked for next.
const PAGE: usize = 100;

/// Why the feed cannot answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// The revision is after the feed's.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    Future,
    /// The history does not reach back that far; upstream's may.
    #[error("the history does not reach back to the revision")]
    BeforeHistory,
}

impl RangeQuery {
    /// Answers from what `feed` has now.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, feed: &Feed) -> Result<RangeReply, ReadError> {
        let pages = &feed.shared.pages;
        if self.revision <= Revision::ZERO {
            let snapshot = feed.snapshot();
            let reply = self.current(snapshot.clone(), pages);
            if reply.more && self.limit >= PAGE {
                feed.pins.keep(&snapshot);
            }
            return Ok(reply);
        }
        if let Some(past) = feed.pins.at(self.revision) {
            let newest = feed.snapshot();
            // One of another epoch may come from another cluster.
            if past.epoch == newest.epoch {
                return Ok(RangeReply { header: newest.header(), ..self.current(past, pages) });
            }
        }
        let (snapshot, entries) = feed.since(self.revision);
        match self.revision.cmp(&snapshot.revision) {
            Ordering::Greater => Err(ReadError::Future),
            Ordering::Equal => Ok(self.current(snapshot, pages)),
            Ordering::Less => {
                let entries = entries.ok_or(ReadError::BeforeHistory)?;
                let mut before: BTreeMap<&[u8], Option<&Arc<KeyValue>>> = BTreeMap::new();
                for event in entries.iter().flat_map(|entry| entry.events()) {
                    if self.range.contains(event.kv.key()) {
                        // The first change since then tells what the key was then.
                        if let Entry::Vacant(first) = before.entry(event.kv.key()) {
                            if event.prev.is_none() && !event.is_create() {
                                // Compacted when the relay read it.
                                return Err(ReadError::BeforeHistory);
                            }
                            first.insert(event.prev.as_ref());
                        }
                    }
                }
                let count = count_before(&snapshot, &self.range, &before);
                let most = if self.count_only { 0 } else { self.fetched() };
                let past = undo(&snapshot, &self.range, before, most);
                Ok(self.answer(snapshot.header(), count, past))
            }
        }
    }

    fn current(&self, snapshot: Arc<Snapshot>, pages: &Arc<Pages>) -> RangeReply {
        let header = snapshot.header();
        if self.range.is_single() {
            // The most frequent question: one look.
            let kv = snapshot.map.get(self.range.start());
            return self.answer(header, usize::from(kv.is_some()), kv.cloned().into_iter().collect());
        }
        let mut places = snapshot.map.places(&self.range);
        let count = places.len();
        let by_key =
            matches!((self.sort_target, self.sort_order), (SortTarget::Key, SortOrder::None | SortOrder::Ascend));
        if self.count_only {
            return self.answer(header, count, SmallVec::new());
        }
        if by_key && !self.is_filtered() {
            let more = self.limit > 0 && count > self.limit;
            if more {
                places.end = places.start + self.limit;
            }
            return RangeReply { header, kvs: Listing::neighbours(snapshot, pages.clone(), places), more, count };
        }
        let kvs = snapshot.map.range(&self.range).filter(|kv| self.keeps(kv)).take(self.fetched()).cloned().collect();
        self.answer(header, count, kvs)
    }

    /// Of `kvs`, which are in the order of their keys, those that the query wants.
    fn answer(&self, header: Header, count: usize, mut kvs: SmallVec<[Arc<KeyValue>; 1]>) -> RangeReply {
        if self.count_only {
            return RangeReply { header, kvs: Listing::picked(SmallVec::new()), more: false, count };
        }
        kvs.truncate(self.fetched());
        kvs.retain(|kv| self.keeps(kv));
        self.sort(&mut kvs);
        let more = self.limit > 0 && kvs.len() > self.limit;
        if more {
            kvs.truncate(self.limit);
        }
        RangeReply { header, kvs: Listing::picked(kvs), more, count }
    }

    /// How many key-values are looked at, in the order of their keys: where all must be seen first, the limit comes last. One more
    /// than the limit tells whether there is more.
    fn fetched(&self) -> usize {
        match self.limit {
            0 => usize::MAX,
            _ if self.sort_order != SortOrder::None || self.is_filtered() => usize::MAX,
            limit => limit.saturating_add(1),
        }
    }

    fn is_filtered(&self) -> bool {
        [self.min_mod_revision, self.max_mod_revision, self.min_create_revision, self.max_create_revision]
            .iter()
            .any(|bound| *bound != Revision::ZERO)
    }

    fn keeps(&self, kv: &KeyValue) -> bool {
        let above = |bound: Revision, value: Revision| bound == Revision::ZERO || value >= bound;
        let below = |bound: Revision, value: Revision| bound == Revision::ZERO || value <= bound;
        above(self.min_mod_revision, kv.mod_revision)
            && below(self.max_mod_revision, kv.mod_revision)
            && above(self.min_create_revision, kv.create_revision)
            && below(self.max_create_revision, kv.create_revision)
    }

    /// etcd sorts ascending where a target other than the key is given without an order.
    fn sort(&self, kvs: &mut [Arc<KeyValue>]) {
        let order = match (self.sort_target, self.sort_order) {
            (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => return,
            (_, SortOrder::None) => SortOrder::Ascend,
            (_, order) => order,
        };
        let compare = |a: &Arc<KeyValue>, b: &Arc<KeyValue>| match self.sort_target {
            SortTarget::Key => a.key().cmp(b.key()),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value().cmp(b.value()),
        };
        match order {
            SortOrder::Descend => kvs.sort_by(|a, b| compare(b, a)),
            SortOrder::None | SortOrder::Ascend => kvs.sort_by(compare),
        }
    }
}

/// How many keys the range had before the changes: those that it has, with those that are gone since and without those that are new.
fn count_before(snapshot: &Snapshot, range: &KeyRange, before: &BTreeMap<&[u8], Option<&Arc<KeyValue>>>) -> usize {
    let is = |key: &[u8]| usize::from(snapshot.map.get(key).is_some());
    before.iter().fold(snapshot.map.count(range), |count, (key, was)| count + usize::from(was.is_some()) - is(key))
}

/// The range as it was before the changes, as far as `most` keys: a page of a long list must not cost the rest of it.
fn undo(
    snapshot: &Snapshot,
    range: &KeyRange,
    before: BTreeMap<&[u8], Option<&Arc<KeyValue>>>,
    most: usize,
) -> SmallVec<[Arc<KeyValue>; 1]> {
    let mut past = SmallVec::new();
    let mut changed = before.into_iter().peekable();
    for kv in snapshot.map.range(range) {
        if past.len() >= most {
            return past;
        }
        while let Some((_, was)) = changed.next_if(|(key, _)| *key < kv.key()) {
            past.extend(was.cloned());
        }
        match changed.next_if(|(key, _)| *key == kv.key()) {
            Some((_, was)) => past.extend(was.cloned()),
            None => past.push(kv.clone()),
        }
    }
    changed.for_each(|(_, was)| past.extend(was.cloned()));
    past
}
