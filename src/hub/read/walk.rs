//! [`Walk`]: a read that looks at many key-values or at many changes, in steps.
//!
//! Not here: where it runs, see `work`; reads that need no walk, see `read`. A read at a past revision first collects
//! from the history what the changes since then replaced, and then looks at the keys as they were.
//! Always holds: a step takes about a millisecond at most, whatever the request, the snapshot and the history are like;
//! the reply is of one revision.

use std::{
    cell::Cell,
    collections::{BTreeMap, VecDeque, btree_map},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    RangeQuery, RangeReply, ReadError,
    sort::{Finishing, Sorter},
};
use crate::{
    hub::{
        Feed, Listing, Snapshot,
        snapshot::{Kv, Pick},
    },
    types::{Entry, EventKind, Header, KeyValue, Revision},
};

/// How many key-values or changes a step looks at.
const STEP: usize = 2048;
/// The memory of a reply's list for each key-value, in addition to its encoding.
const POINTER: usize = size_of::<Pick>();

/// A read in steps; see the module.
#[derive(Debug)]
pub(super) struct Walk {
    query: RangeQuery,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Beginning,
    Undoing(Changes),
    Looking(Box<Look>),
    Finishing(End),
}

/// What a reply has besides its key-values.
#[derive(Clone, Copy, Debug)]
struct Terms {
    header: Header,
    /// The epoch of the snapshot that is read.
    epoch: u64,
    count: usize,
}

#[derive(Debug)]
struct End {
    terms: Terms,
    finishing: Box<Finishing>,
}

/// The changes since a past revision.
#[derive(Debug)]
struct Changes {
    /// The first revision that was not taken from the history yet.
    from: Revision,
    epoch: Option<u64>,
    /// Entries that were taken and not looked at yet.
    entries: VecDeque<Arc<Entry>>,
    /// How many events of the first of these were looked at.
    seen: usize,
    /// The snapshot at the end of the changes, once all are taken.
    newest: Option<Arc<Snapshot>>,
    before: Before,
    /// How many more keys the range had at the past revision than it has now.
    more: isize,
}

/// The value of each key before it changed, `None` if it did not exist; and whether the key exists now.
type Before = BTreeMap<Bytes, (Option<Arc<KeyValue>>, bool)>;

/// A pass over keys, one after the other.
#[derive(Debug)]
struct Look {
    snapshot: Arc<Snapshot>,
    terms: Terms,
    /// The places of the keys that were not looked at yet.
    places: Range<usize>,
    before: Before,
    sorter: Sorter,
}

impl Walk {
    pub(super) fn new(query: RangeQuery) -> Self {
        Self { query, stage: Stage::Beginning }
    }

    /// Continues for about a millisecond. Returns the reply, or an error, once it is done.
    pub(super) fn step(&mut self, feed: &Feed) -> Option<Result<RangeReply, ReadError>> {
        match &mut self.stage {
            Stage::Beginning => {
                let now = feed.snapshot();
                self.stage = match self.query.snapshot(feed, &now) {
                    Ok(Some(snapshot)) => {
                        if let Some(reply) = self.query.at_once(feed, &snapshot, now.header()) {
                            return Some(Ok(reply));
                        }
                        let count = snapshot.map.count(&self.query.range);
                        let terms = Terms { header: now.header(), epoch: snapshot.epoch, count };
                        Stage::Looking(Box::new(Look::new(&self.query, snapshot, terms, Before::new())))
                    }
                    Ok(None) => Stage::Undoing(Changes::since(self.query.revision, now.epoch)),
                    Err(error) => return Some(Err(error)),
                };
            }
            Stage::Undoing(changes) => {
                let snapshot = match changes.step(feed, &self.query) {
                    Ok(None) => return None,
                    Ok(Some(snapshot)) => snapshot,
                    Err(error) => return Some(Err(error)),
                };
                let count = snapshot.map.count(&self.query.range).saturating_add_signed(changes.more);
                if self.query.count_only {
                    return Some(Ok(RangeReply::of_none(snapshot.header(), count)));
                }
                let terms = Terms { header: snapshot.header(), epoch: snapshot.epoch, count };
                let before = std::mem::take(&mut changes.before);
                self.stage = Stage::Looking(Box::new(Look::new(&self.query, snapshot, terms, before)));
            }
            Stage::Looking(look) => {
                if look.step(&self.query) {
                    let sorter = std::mem::replace(&mut look.sorter, Sorter::new(&self.query));
                    let finishing = Box::new(sorter.finish());
                    if finishing.more {
                        self.query.goes_on(feed, &look.snapshot);
                    }
                    self.stage = Stage::Finishing(End { terms: look.terms, finishing });
                }
            }
            Stage::Finishing(End { terms: Terms { header, epoch, count }, finishing }) => {
                let sorted = finishing.step(STEP)?;
                if feed.snapshot().epoch != *epoch {
                    return Some(Err(ReadError::Overtaken));
                }
                let kvs = Listing::picked_of(sorted.kvs, sorted.bytes, self.query.keys_only);
                return Some(Ok(RangeReply { header: *header, kvs, more: finishing.more, count: *count }));
            }
        }
        None
    }

    /// About how much memory a reply takes that it does not share with the snapshot.
    pub(super) fn memory(reply: &RangeReply) -> usize {
        reply.kvs.len() * POINTER
    }
}

impl Changes {
    /// All changes since a revision of the feed's history in this epoch. In another epoch the revision may still be in
    /// the future.
    fn since(revision: Revision, epoch: u64) -> Self {
        let (entries, before) = (VecDeque::new(), Before::new());
        Self { from: revision.next(), epoch: Some(epoch), entries, seen: 0, newest: None, before, more: 0 }
    }

    /// Looks at some changes. When it has looked at all of them, it returns the snapshot that they lead to.
    fn step(&mut self, feed: &Feed, query: &RangeQuery) -> Result<Option<Arc<Snapshot>>, ReadError> {
        for _ in 0..STEP {
            let Some(entry) = self.entries.front() else {
                if self.newest.is_some() {
                    return Ok(self.newest.take());
                }
                let (entries, newest) = feed.since_step(self.from, &mut self.epoch).ok_or(ReadError::BeforeHistory)?;
                self.from = entries.last().map_or(self.from, |last| last.revision.next());
                self.entries.extend(entries);
                self.newest = newest;
                continue;
            };
            let Some(event) = entry.events().get(self.seen) else {
                self.entries.pop_front();
                self.seen = 0;
                continue;
            };
            self.seen += 1;
            if query.range.contains(event.kv.key()) {
                let is_there = event.kind == EventKind::Put;
                // The first change since then shows the key's value at that time, and the last one whether it exists
                // now.
                let change = match self.before.entry(event.kv.key_bytes()) {
                    btree_map::Entry::Occupied(known) => known.into_mut(),
                    // The value was compacted when the relay read the change.
                    btree_map::Entry::Vacant(_) if event.prev.is_none() && !event.is_create() => {
                        return Err(ReadError::BeforeHistory);
                    }
                    btree_map::Entry::Vacant(first) => {
                        self.more += isize::from(event.prev.is_some());
                        first.insert((event.prev.clone(), false))
                    }
                };
                self.more += isize::from(change.1) - isize::from(is_there);
                change.1 = is_there;
            }
        }
        Ok(None)
    }
}

impl Look {
    fn new(query: &RangeQuery, snapshot: Arc<Snapshot>, terms: Terms, before: Before) -> Self {
        let places = snapshot.map.places(&query.range);
        Self { snapshot, terms, places, before, sorter: Sorter::new(query) }
    }

    /// Looks at some keys. Returns true when it has looked at all that are needed.
    fn step(&mut self, query: &RangeQuery) -> bool {
        let Self { snapshot, places, before, sorter, .. } = self;
        let mut left = STEP;
        let enough = Cell::new(false);
        let mut take = |kv: Kv<'_>| {
            enough.set(query.keeps(&kv) && !sorter.offer(kv));
            enough.get()
        };
        let mut next = places.start;
        snapshot.map.leaves(places.clone(), |leaf, places| {
            for kv in leaf.iter(places) {
                // Deleted keys that came before this one.
                while let Some(gone) = before.first_entry().filter(|gone| &gone.key()[..] < kv.key()) {
                    if left == 0 || gone.remove().0.is_some_and(|was| take(Kv::Shared(&was))) {
                        return false;
                    }
                    left -= 1;
                }
                if left == 0 {
                    return false;
                }
                left -= 1;
                next += 1;
                let is_enough = match before.first_entry().filter(|changed| &changed.key()[..] == kv.key()) {
                    Some(changed) => changed.remove().0.is_some_and(|was| take(Kv::Shared(&was))),
                    None => take(kv),
                };
                if is_enough {
                    return false;
                }
            }
            true
        });
        places.start = next;
        if !enough.get() && places.start == places.end {
            while left > 0
                && let Some((_, (was, _))) = before.pop_first()
            {
                left -= 1;
                if was.is_some_and(|was| take(Kv::Shared(&was))) {
                    break;
                }
            }
        }
        enough.get() || places.start == places.end && before.is_empty()
    }
}
