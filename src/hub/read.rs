//! [`RangeQuery`]: etcd's `Range` over a snapshot, with every option as etcd answers it.
//!
//! Not here: the wire form and the wait for a revision, see `front`. A query that the counts in the tree can answer is
//! answered at once. Every other one looks at key-values or at the history, which `walk` does in steps: here if it is
//! little work, and otherwise on the threads of `work`. Always holds: a reply is of one revision; a read occupies its
//! caller's thread for a millisecond at most. Source of the semantics: etcd's server/etcdserver/txn/range.go and
//! docs/promises.md, section 5.

mod sort;
mod walk;

use std::{cmp::Ordering, sync::Arc};

use smallvec::SmallVec;
use thiserror::Error;
use tokio::sync::oneshot;

use self::walk::Walk;
use super::{
    Feed, Listing, Snapshot,
    listing::Order,
    work::{Asker, Busy, Job, Share},
};
use crate::types::{Header, KeyRange, KeyValue, RangeEnd, Revision};

/// What to sort by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the field names say it")]
pub enum SortTarget {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// The direction.
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
    /// The most key-values to return; zero for all.
    pub limit: usize,
    /// The revision to read at; zero for the current one.
    pub revision: Revision,
    /// The direction in which to sort.
    pub sort_order: SortOrder,
    /// What to sort by.
    pub sort_target: SortTarget,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Lowest mod revision to return; zero for any.
    pub min_mod_revision: Revision,
    /// Highest mod revision to return; zero for any.
    pub max_mod_revision: Revision,
    /// Lowest create revision to return; zero for any.
    pub min_create_revision: Revision,
    /// Highest create revision to return; zero for any.
    pub max_create_revision: Revision,
}

/// The answer.
#[derive(Debug)]
pub struct RangeReply {
    /// The feed's cluster and revision, even for a read at a past revision.
    pub header: Header,
    /// The key-values, sorted and limited, in the requested form.
    pub kvs: Listing,
    /// Whether the limit left some out.
    pub more: bool,
    /// Keys in the range, regardless of limit and filters.
    pub count: usize,
}

/// From this limit on, the rest of a reply is expected to be requested next.
const PAGE: usize = 100;
/// How many key-values a short read may look at: about a tenth of a millisecond.
const SHORT: usize = 512;
/// The expected steps of a short walk: the beginning, the changes since a revision, the keys, the end.
const SHORT_STEPS: usize = 4;
/// How many revisions a short read of the past may go back.
const SHORT_PAST: i64 = 64;

/// Why the feed cannot answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// The revision is after the feed's.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    Future,
    /// The history does not reach back that far, but upstream's may.
    #[error("the history does not reach back to the revision")]
    BeforeHistory,
    /// The feed began again from another snapshot while the read was under way.
    #[error("the feed began again from another snapshot during the read")]
    Overtaken,
    /// The client has as many long reads under way as it may. The text is etcd's.
    #[error("etcdserver: too many requests")]
    Busy,
    /// The read failed because of a fault in the relay, which the log names.
    #[error("the read failed inside the relay")]
    Failed,
}

impl RangeQuery {
    /// All key-values of a range as they are now, in key order.
    #[must_use]
    pub fn all(range: KeyRange) -> Self {
        Self {
            range,
            limit: 0,
            revision: Revision::ZERO,
            sort_order: SortOrder::None,
            sort_target: SortTarget::Key,
            keys_only: false,
            count_only: false,
            min_mod_revision: Revision::ZERO,
            max_mod_revision: Revision::ZERO,
            min_create_revision: Revision::ZERO,
            max_create_revision: Revision::ZERO,
        }
    }

    /// Answers from what `feed` has now, on this thread, however long that takes.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, feed: &Feed) -> Result<RangeReply, ReadError> {
        let mut walk = match self.begin(feed)? {
            Begun::Reply(reply) => return Ok(reply),
            Begun::Walk(walk) => walk,
        };
        loop {
            if let Some(reply) = walk.step(feed) {
                return reply;
            }
        }
    }

    /// Answers from what `feed` has: at once if that is little work, otherwise in turns with other long reads. When
    /// this future is dropped, the work ends. The reply is of the feed's revision when this was called, or of a later
    /// one.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn answer(&self, feed: &Arc<Feed>, asker: impl FnOnce() -> Asker) -> Result<RangeReply, ReadError> {
        match self.begin(feed)? {
            Begun::Reply(reply) => Ok(reply),
            // Boxed, since otherwise the future of every read would be as large.
            Begun::Walk(walk) => Box::pin(self.go_on(*walk, feed, asker())).await,
        }
    }

    async fn go_on(&self, mut walk: Walk, feed: &Arc<Feed>, asker: Asker) -> Result<RangeReply, ReadError> {
        if self.is_short(feed) {
            // A revision may have more changes than expected.
            for _ in 0..SHORT_STEPS {
                if let Some(reply) = walk.step(feed) {
                    return reply;
                }
            }
        }
        let (answer, answered) = oneshot::channel();
        let job = LongRead { walk, feed: feed.clone(), answer: Some(answer) };
        let place = feed.shared.workers.enter(asker, self.memory(), Box::new(job));
        let _place = place.map_err(|Busy| ReadError::Busy)?;
        answered.await.unwrap_or(Err(ReadError::Failed))
    }

    fn begin(&self, feed: &Feed) -> Result<Begun, ReadError> {
        let now = feed.snapshot();
        if let Some(snapshot) = self.snapshot(feed, &now)?
            && let Some(reply) = self.at_once(feed, &snapshot, now.header())
        {
            return Ok(Begun::Reply(reply));
        }
        Ok(Begun::Walk(Box::new(Walk::new(self.clone()))))
    }

    /// What is read: `now`, a snapshot of exactly the revision, or `None` if the history must be undone.
    fn snapshot(&self, feed: &Feed, now: &Arc<Snapshot>) -> Result<Option<Arc<Snapshot>>, ReadError> {
        if self.revision <= Revision::ZERO {
            return Ok(Some(now.clone()));
        }
        match self.revision.cmp(&now.revision) {
            Ordering::Greater => Err(ReadError::Future),
            Ordering::Equal => Ok(Some(now.clone())),
            // A snapshot of another epoch may come from another cluster.
            Ordering::Less => Ok(feed.pins.at(self.revision).filter(|past| past.epoch == now.epoch)),
        }
    }

    /// The reply, if it needs no more than one key-value. `header` is that of the newest revision.
    fn at_once(&self, feed: &Feed, snapshot: &Arc<Snapshot>, header: Header) -> Option<RangeReply> {
        if self.range.is_single() {
            // The most frequent query: one lookup.
            let kv = snapshot.map.get(self.range.start());
            let count = usize::from(kv.is_some());
            let kv = kv.filter(|kv| !self.count_only && self.keeps(kv)).map(|kv| kv.kept().into());
            let kvs = Listing::picked(kv.into_iter().collect(), self.keys_only);
            return Some(RangeReply { header, kvs, more: false, count });
        }
        let mut places = snapshot.map.places(&self.range);
        let count = places.len();
        if self.count_only {
            return Some(RangeReply::of_none(header, count));
        }
        if self.is_filtered() {
            return None;
        }
        let order = match (self.sort_target, self.sort_order) {
            (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => Order::Rising,
            (SortTarget::Key, SortOrder::Descend) => Order::Falling,
            _ => return None,
        };
        let more = self.limit > 0 && count > self.limit;
        if more {
            match order {
                Order::Rising => places.end = places.start + self.limit,
                Order::Falling => places.start = places.end - self.limit,
            }
            self.goes_on(feed, snapshot);
        }
        let kvs = Listing::neighbours(snapshot.clone(), feed.shared.pages.clone(), places, order, self.keys_only);
        Some(RangeReply { header, kvs, more, count })
    }

    /// The limit left something out, and the client may request it next.
    fn goes_on(&self, feed: &Feed, snapshot: &Arc<Snapshot>) {
        if self.revision <= Revision::ZERO && self.limit >= PAGE {
            feed.pins.keep(snapshot);
        }
    }

    /// Whether a walk is expected to end soon.
    fn is_short(&self, feed: &Feed) -> bool {
        let snapshot = feed.snapshot();
        let back = if self.revision <= Revision::ZERO { 0 } else { snapshot.revision.get() - self.revision.get() };
        let looked_at = if self.count_only { 0 } else { snapshot.map.count(&self.range) };
        back <= SHORT_PAST && looked_at <= SHORT
    }

    /// About how much memory the query takes while it waits. Its range may keep the buffer of its request in memory.
    fn memory(&self) -> usize {
        let end = match self.range.end() {
            RangeEnd::Before(end) => end.len(),
            RangeEnd::Single | RangeEnd::Unbounded => 0,
        };
        size_of::<LongRead>() + self.range.start().len() + end
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
}

impl RangeReply {
    /// A reply with only a count.
    fn of_none(header: Header, count: usize) -> Self {
        Self { header, kvs: Listing::picked(SmallVec::new(), false), more: false, count }
    }
}

enum Begun {
    Reply(RangeReply),
    Walk(Box<Walk>),
}

/// A walk that takes turns with others.
struct LongRead {
    walk: Walk,
    feed: Arc<Feed>,
    answer: Option<oneshot::Sender<Result<RangeReply, ReadError>>>,
}

impl Job for LongRead {
    fn step(&mut self, share: &Share) -> bool {
        let Some(mut reply) = self.walk.step(&self.feed) else { return false };
        if let Ok(reply) = &mut reply {
            let memory = Walk::memory(reply);
            reply.kvs.hold(share.hold(memory));
        }
        if let Some(answer) = self.answer.take() {
            // The caller may be gone.
            drop(answer.send(reply));
        }
        true
    }
}

#[cfg(test)]
mod tests;
