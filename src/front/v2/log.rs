//! [`Log`]: the recent changes for waits, each with its text, oldest first.
//!
//! Waits are in `waits`, older changes in `past`. Always holds: the log has every change since its start. A place in it
//! keeps referring to the same change, even when older changes are added.

use std::{collections::VecDeque, sync::Arc};

use super::events::Logged;
use crate::types::Revision;

/// Most changes that are kept, and most bytes: a hundred times etcd's own thousand.
const KEPT: (usize, usize) = (100_000, 64 << 20);
/// The place of the first change that arrived. Older changes get lower places.
const MIDDLE: u64 = 1 << 62;

/// See the module.
#[derive(Debug)]
pub(super) struct Log {
    entries: VecDeque<Arc<Logged>>,
    bytes: usize,
    /// The place of the first entry.
    first: u64,
    /// The log is complete from this revision on.
    start: Revision,
    /// Something was dropped or did not fit, so older changes can no longer be added.
    is_full: bool,
}

impl Log {
    /// An empty log that is complete from `start` on.
    pub(super) fn new(start: Revision) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, first: MIDDLE, start, is_full: false }
    }

    pub(super) fn start(&self) -> Revision {
        self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The place after the newest change.
    pub(super) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The place of the first change at or after `revision`.
    pub(super) fn place_of(&self, revision: Revision) -> u64 {
        self.first + self.entries.partition_point(|logged| logged.revision < revision) as u64
    }

    /// Up to `most` changes from `place` on; `None` if they were dropped.
    pub(super) fn read(&self, place: u64, most: usize) -> Option<Vec<Arc<Logged>>> {
        let skip = usize::try_from(place.checked_sub(self.first)?).ok()?;
        Some(self.entries.iter().skip(skip).take(most).cloned().collect())
    }

    /// Adds the newest change, and drops the oldest if there is no room.
    pub(super) fn push(&mut self, logged: Arc<Logged>) {
        self.bytes += logged.cost();
        self.entries.push_back(logged);
        while self.entries.len() > KEPT.0 || self.bytes > KEPT.1 && self.entries.len() > 1 {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.cost();
            self.first += 1;
            // A revision is not split: what is left of it is dropped too.
            self.start = self.start.max(oldest.revision.next());
            self.is_full = true;
        }
    }

    /// How many older changes and bytes can be added; `None` if none can.
    pub(super) fn room(&self) -> Option<(usize, usize)> {
        let room = (KEPT.0.saturating_sub(self.entries.len()), KEPT.1.saturating_sub(self.bytes));
        (!self.is_full && room.0 > 0 && room.1 > 0).then_some(room)
    }

    /// Adds older changes: all from `from` on, up to the log's start. If that is less than `asked`, the rest does not
    /// fit.
    pub(super) fn prepend(&mut self, from: Revision, asked: Revision, older: Vec<Arc<Logged>>) {
        for logged in older.into_iter().rev() {
            self.bytes += logged.cost();
            self.first -= 1;
            self.entries.push_front(logged);
        }
        self.start = from;
        self.is_full |= from > asked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: i64) -> Revision {
        Revision::new(revision)
    }

    fn logged(revision: i64) -> Arc<Logged> {
        Arc::new(Logged::of_test(at(revision), "/a"))
    }

    fn read(log: &Log, place: u64) -> Option<Vec<i64>> {
        log.read(place, usize::MAX).map(|read| read.iter().map(|logged| logged.revision.get()).collect())
    }

    #[test]
    fn a_place_stays_where_it_is_when_older_changes_come_before_it() {
        let mut log = Log::new(at(10));
        (10..13).for_each(|revision| log.push(logged(revision)));
        let place = log.place_of(at(12));
        assert_eq!(read(&log, place), Some(vec![12]));
        log.prepend(at(5), at(5), vec![logged(6), logged(8)]);
        assert_eq!((log.start(), read(&log, place)), (at(5), Some(vec![12])));
        assert_eq!(read(&log, log.place_of(at(5))), Some(vec![6, 8, 10, 11, 12]));
        assert_eq!(read(&log, log.end()), Some(vec![]));
    }

    #[test]
    fn what_did_not_fit_is_not_asked_for_again() {
        let mut log = Log::new(at(10));
        log.prepend(at(5), at(5), vec![logged(6)]);
        assert!(log.room().is_some(), "all requested changes are there");
        log.prepend(at(4), at(2), vec![logged(4)]);
        assert_eq!(log.room(), None, "each wait for older changes would read them from etcd");
    }

    #[test]
    fn what_is_let_go_of_is_not_told_as_nothing_and_does_not_come_back() {
        let mut log = Log::new(at(1));
        let place = log.place_of(at(1));
        assert!(log.room().is_some());
        (1..KEPT.0 as i64 + 3).for_each(|revision| log.push(logged(revision)));
        assert_eq!((read(&log, place), log.start()), (None, at(3)));
        assert_eq!(log.room(), None);
    }
}
