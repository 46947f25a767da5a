//! [`History`]: the bounded window of past revisions of a feed, newest last.
//!
//! Not here: current values, see `snapshot`. Written by `feed`; read by parked subscriptions and by reads at a past revision.
//! Always holds: revisions strictly rise; an entry is a whole revision; every revision of the range from `start()` on is
//! here; `start()` never falls. Memory: at most the bytes and entries of its limits, or the newest entry alone.

use std::{collections::VecDeque, sync::Arc};

use crate::types::{Entry, Revision};

/// How much history a feed keeps. A subscriber that falls further behind costs etcd a watch of its own.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// Most bytes, counting encoded events and what they replaced.
    pub bytes: usize,
    /// Most revisions.
    pub entries: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct History {
    entries: VecDeque<(Arc<Entry>, usize)>,
    start: Revision,
    bytes: usize,
    limits: HistoryLimits,
}

impl History {
    /// An empty window that begins at `start`.
    #[must_use]
    pub(super) fn new(start: Revision, limits: HistoryLimits) -> Self {
        Self { entries: VecDeque::new(), start, bytes: 0, limits }
    }

    /// The first revision from which on nothing is missing.
    #[must_use]
    pub(super) fn start(&self) -> Revision {
        self.start
    }

    /// Revisions in the window.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes in the window, by [`Entry::cost`] at the time of the push.
    #[must_use]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the next revision and lets go of the oldest ones that no longer fit.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        debug_assert!(self.entries.back().is_none_or(|(last, _)| last.revision < entry.revision));
        let cost = entry.cost();
        self.bytes += cost;
        self.entries.push_back((entry, cost));
        while self.entries.len() > 1 && (self.bytes > self.limits.bytes || self.entries.len() > self.limits.entries) {
            if let Some((evicted, cost)) = self.entries.pop_front() {
                self.start = evicted.revision.next();
                self.bytes -= cost;
            }
        }
    }

    /// Up to `most` entries from revision `from` on, oldest first; `None` where the window no longer reaches back that far.
    #[must_use]
    pub(super) fn read(&self, from: Revision, most: usize) -> Option<Vec<Arc<Entry>>> {
        (from >= self.start).then(|| self.since(from).take(most).cloned().collect())
    }

    /// All entries from revision `from` on that the window has, oldest first.
    pub(super) fn since(&self, from: Revision) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        let first = self.entries.partition_point(|(entry, _)| entry.revision < from);
        self.entries.range(first..).map(|(entry, _)| entry)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::types::{EventFields, EventKind, KeyValueFields};

    fn entry(revision: i64, value: usize) -> Arc<Entry> {
        let kv = KeyValueFields { key: "k".into(), value: vec![0; value].into(), ..KeyValueFields::default() };
        let changes = [EventFields { kind: EventKind::Put, kv }];
        Arc::new(Entry::encode(Revision::new(revision), Instant::now(), &changes, |_| None))
    }

    fn history(limits: HistoryLimits, revisions: impl IntoIterator<Item = i64>) -> History {
        let mut history = History::new(Revision::new(1), limits);
        revisions.into_iter().for_each(|revision| history.push(entry(revision, 100)));
        history
    }

    fn revisions(entries: &[Arc<Entry>]) -> Vec<i64> {
        entries.iter().map(|entry| entry.revision.get()).collect()
    }

    #[test]
    fn the_window_ends_where_its_entries_do_not_fit() {
        let history = history(HistoryLimits { bytes: usize::MAX, entries: 3 }, [2, 4, 6, 8, 10]);
        assert_eq!(history.start(), Revision::new(5));
        assert_eq!(history.read(Revision::new(4), 10).map(|e| revisions(&e)), None);
        assert_eq!(history.read(Revision::new(5), 10).map(|e| revisions(&e)), Some(vec![6, 8, 10]));
        assert_eq!(history.read(Revision::new(7), 1).map(|e| revisions(&e)), Some(vec![8]));
        assert_eq!(history.read(Revision::new(11), 1).map(|e| revisions(&e)), Some(vec![]));
    }

    #[test]
    fn bytes_bound_the_window_but_the_newest_revision_stays() {
        let one = entry(1, 100).cost();
        let mut history = history(HistoryLimits { bytes: one * 2, entries: 100 }, [2, 3, 4]);
        assert_eq!((history.len(), history.start()), (2, Revision::new(3)));
        history.push(entry(5, one * 10));
        assert_eq!((history.len(), history.start()), (1, Revision::new(5)));
        history.push(entry(6, 100));
        assert_eq!((history.len(), history.bytes()), (1, one));
    }
}
