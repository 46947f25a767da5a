//! [`History`]: the bounded window of a feed's past revisions, newest last.
//!
//! Not here: current values, see `snapshot`. Written by `feed`, and at its old end by `backfill`; read by parked
//! subscriptions and by reads at a past revision.
//! Always holds: revisions strictly rise; an entry is a whole revision; every revision of the range from `start()` on
//! is here; `start()` falls only while nothing has been dropped (`grows_back`), so once it has risen it never falls.
//! Memory: at most the bytes and entries of its limits, or the newest entry alone, and an eighth of the bytes more for
//! runs. Entries are cut into chunks, at the same revisions for all readers, so that a group's part of a chunk is
//! prepared once (`runs`).

use std::{collections::VecDeque, sync::Arc};

use super::{
    index::WatchOptions,
    payload::Payload,
    runs::{RUN_BYTES, RUN_REVISIONS, Run, RunKey, Runs, is_large, weight},
};
use crate::types::{Entry, KeyRange, Revision};

/// The number of the first entry that is pushed. Entries that are put before it have lower numbers.
const ORIGIN: u64 = 1 << 62;
/// The part of its bytes that a history may use in addition for runs.
const RUNS_SHARE: usize = 8;

/// How much history a feed keeps. A subscriber that falls further behind needs its own watch on etcd.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// The most bytes, counting encoded events and what they replaced.
    pub bytes: usize,
    /// The most revisions.
    pub entries: usize,
}

impl HistoryLimits {
    /// Puts an entry that is about to be added into the last, open chunk, or begins another chunk with it.
    fn cut(&self, chunks: &mut VecDeque<Chunk>, number: u64, entry: &Entry) {
        let revisions = (self.entries as u64 / 4).clamp(1, RUN_REVISIONS as u64);
        let most = (self.bytes / 8).min(RUN_BYTES);
        let (weight, alone) = (weight(entry), is_large(entry));
        match chunks.back_mut() {
            Some(open) if !alone && open.weight + weight <= most && number - open.number < revisions => {
                open.weight += weight;
            }
            // A large entry is sent as it is, so its chunk is closed at once.
            _ => {
                let weight = if alone { most } else { weight };
                chunks.push_back(Chunk { number, first: entry.revision, weight });
            }
        }
    }
}

/// A window of past revisions; see the module.
#[derive(Debug)]
pub(super) struct History {
    entries: VecDeque<Kept>,
    /// The number of the first entry in the window.
    first: u64,
    /// Nothing was dropped or rejected yet, so older revisions may still be put before the window.
    grows_back: bool,
    /// The chunks that the entries are cut into; the last one is open.
    chunks: VecDeque<Chunk>,
    runs: Runs,
    start: Revision,
    bytes: usize,
    limits: HistoryLimits,
}

#[derive(Debug)]
struct Kept {
    /// Kept next to the pointer, so that a search touches no entry.
    revision: Revision,
    entry: Arc<Entry>,
    cost: usize,
}

/// Consecutive entries that are combined for every reader that needs all of them.
#[derive(Debug)]
struct Chunk {
    /// The number of its first entry.
    number: u64,
    first: Revision,
    weight: usize,
}

/// What a watch that reads the history gets next.
#[derive(Debug)]
pub(super) enum Ahead<'a> {
    /// Nothing: it is at the end.
    Nothing,
    /// A run with the next revision.
    Run(&'a Run),
    /// A run that has to be made first, see [`History::task`].
    Missing(RunKey),
}

/// What a run is made from.
#[derive(Debug)]
pub(super) struct Task(Vec<Arc<Entry>>);

impl Task {
    /// Builds the run of a group with this range and these options. Do not call it under a lock.
    #[must_use]
    pub(super) fn make(&self, range: &KeyRange, options: WatchOptions) -> Run {
        let (from, through) = match (self.0.first(), self.0.last()) {
            (Some(first), Some(last)) => (first.revision, last.revision),
            _ => (Revision::ZERO, Revision::ZERO),
        };
        Run { from, through, payload: Payload::matching(&self.0, range, options) }
    }
}

impl History {
    /// An empty window that begins at `start`.
    #[must_use]
    pub(super) fn new(start: Revision, limits: HistoryLimits) -> Self {
        let runs = Runs::new(limits.bytes / RUNS_SHARE);
        let (entries, chunks) = (VecDeque::new(), VecDeque::new());
        Self { entries, first: ORIGIN, grows_back: true, chunks, runs, start, bytes: 0, limits }
    }

    /// The first revision from which the window is complete.
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

    /// Bytes of the runs that are kept.
    #[must_use]
    pub(super) fn run_bytes(&self) -> usize {
        self.runs.bytes()
    }

    /// Adds the next revision, and drops the oldest ones that no longer fit.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        debug_assert!(self.entries.back().is_none_or(|last| last.revision < entry.revision));
        let (revision, cost) = (entry.revision, entry.cost());
        self.limits.cut(&mut self.chunks, self.first + self.entries.len() as u64, &entry);
        self.bytes += cost;
        self.entries.push_back(Kept { revision, entry, cost });
        while self.entries.len() > 1 && (self.bytes > self.limits.bytes || self.entries.len() > self.limits.entries) {
            if let Some(evicted) = self.entries.pop_front() {
                self.start = evicted.revision.next();
                self.bytes -= evicted.cost;
                self.first += 1;
                self.grows_back = false;
            }
        }
        while self.chunks.get(1).is_some_and(|second| second.number <= self.first) {
            self.chunks.pop_front();
        }
    }

    /// Whether older revisions may be put before the window, because nothing had to be dropped yet. Numbers of dropped
    /// entries are never used again, so a run always belongs to the same chunk.
    #[must_use]
    pub(super) fn grows_back(&self) -> bool {
        self.grows_back
    }

    /// The older revisions do not fit into the window.
    pub(super) fn close(&mut self) {
        self.grows_back = false;
    }

    /// How many more entries and bytes fit.
    #[must_use]
    pub(super) fn room(&self) -> (usize, usize) {
        (self.limits.entries.saturating_sub(self.entries.len()), self.limits.bytes.saturating_sub(self.bytes))
    }

    /// Puts older entries before the window, as many as fit. They rise, and nothing is missing from `from` to the start
    /// of the window. If one does not fit, the window is full and does not grow backwards any more.
    pub(super) fn prepend(&mut self, from: Revision, older: Vec<Arc<Entry>>) {
        debug_assert!(self.grows_back && from <= self.start);
        debug_assert!(older.last().is_none_or(|last| last.revision < self.start));
        let mut fits = older.len();
        let (entries, bytes) = self.room();
        let (mut added, mut cost) = (0, 0);
        for entry in older.iter().rev() {
            cost += entry.cost();
            if added == entries || cost > bytes {
                break;
            }
            (added, fits) = (added + 1, fits - 1);
        }
        self.start = match fits.checked_sub(1) {
            Some(turned_away) => older[turned_away].revision.next(),
            None => from,
        };
        self.grows_back = fits == 0;
        self.first -= added as u64;
        let mut chunks = VecDeque::new();
        for (number, entry) in (self.first..).zip(&older[fits..]) {
            self.limits.cut(&mut chunks, number, entry);
        }
        chunks.into_iter().rev().for_each(|chunk| self.chunks.push_front(chunk));
        for entry in older.into_iter().skip(fits).rev() {
            let (revision, cost) = (entry.revision, entry.cost());
            self.bytes += cost;
            self.entries.push_front(Kept { revision, entry, cost });
        }
    }

    /// Up to `most` entries from revision `from` on, oldest first; `None` if the window no longer reaches back that
    /// far.
    #[must_use]
    pub(super) fn read(&self, from: Revision, most: usize) -> Option<Vec<Arc<Entry>>> {
        (from >= self.start).then(|| self.since(from).take(most).cloned().collect())
    }

    /// The window's entries from revision `from` on, oldest first.
    pub(super) fn since(&self, from: Revision) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        let first = self.entries.partition_point(|kept| kept.revision < from);
        self.entries.range(first..).map(|kept| &kept.entry)
    }

    /// Whether the window has no revision from `from` on.
    #[must_use]
    pub(super) fn ends_before(&self, from: Revision) -> bool {
        self.entries.back().is_none_or(|last| last.revision < from)
    }

    /// What a watch of this group that needs `next` gets next. The window must reach back to `next`.
    #[must_use]
    pub(super) fn ahead(&self, next: Revision, group: u64) -> Ahead<'_> {
        if self.ends_before(next) {
            return Ahead::Nothing;
        }
        let mut index = self.chunks.partition_point(|chunk| chunk.first <= next).saturating_sub(1);
        if self.entries_of(index).next_back().is_none_or(|last| last.revision < next) {
            // The next revision of the window is the first one of the following chunk.
            index += 1;
        }
        let Some(chunk) = self.chunks.get(index) else { return Ahead::Nothing };
        let key = RunKey { chunk: chunk.number, group };
        let first = self.entries_of(index).next().map_or(next, |first| first.revision);
        let run = self.runs.get(key).filter(|run| run.from <= next.max(first) && run.through >= next);
        run.map_or(Ahead::Missing(key), Ahead::Run)
    }

    /// What is needed to make a missing run.
    #[must_use]
    pub(super) fn task(&self, key: RunKey) -> Task {
        let index = self.chunks.partition_point(|chunk| chunk.number < key.chunk);
        Task(self.entries_of(index).map(|kept| kept.entry.clone()).collect())
    }

    /// Keeps a run for others that need it.
    pub(super) fn keep(&mut self, key: RunKey, run: Run) {
        self.runs.insert(key, run);
    }

    /// The part of a chunk that the window still has.
    fn entries_of(&self, index: usize) -> impl DoubleEndedIterator<Item = &Kept> {
        let place = |chunk: &Chunk| (chunk.number.saturating_sub(self.first) as usize).min(self.entries.len());
        let from = self.chunks.get(index).map_or(self.entries.len(), place);
        let to = self.chunks.get(index + 1).map_or(self.entries.len(), place);
        self.entries.range(from..to)
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
        Arc::new(Entry::encode(&Arc::default(), Revision::new(revision), Instant::now(), &changes, |_| None))
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

    /// What a group that wants everything gets from `next` on, run by run; missing runs are made. Returns the revisions
    /// of each run.
    fn walk(history: &mut History, mut next: Revision) -> Vec<Vec<i64>> {
        let mut runs = Vec::new();
        loop {
            let key = match history.ahead(next, 7) {
                Ahead::Nothing => return runs,
                Ahead::Missing(key) => key,
                Ahead::Run(run) => {
                    let payload = run.payload.as_ref().expect("everything is wanted");
                    runs.push(payload.each(payload.before(next)).map(|whole| whole.revision.get()).collect());
                    next = run.through.next();
                    continue;
                }
            };
            let run = history.task(key).make(&KeyRange::prefix("".into()), WatchOptions::default());
            history.keep(key, run);
        }
    }

    #[test]
    fn runs_leave_nothing_out_and_repeat_nothing_wherever_one_begins() {
        for (bytes, entries) in [(usize::MAX, 40), (3000, 1000), (20_000, 17), (1, 1), (usize::MAX, 3)] {
            let mut history = History::new(Revision::new(1), HistoryLimits { bytes, entries });
            let mut revision = 0;
            for number in 0..300_i64 {
                // With gaps between revisions, and some entries too large for a run.
                revision += 1 + number % 3;
                history.push(entry(revision, if number % 11 == 0 { 9000 } else { 20 + number as usize % 90 }));
                for start in [history.start().get(), revision - 30, revision - 4, revision, revision + 1] {
                    let start = Revision::new(start.max(history.start().get()));
                    let expected = revisions(&history.read(start, usize::MAX).expect("in the window"));
                    let runs = walk(&mut history, start);
                    assert_eq!(runs.concat(), expected, "from {start}, {bytes} bytes, {entries} entries");
                }
            }
        }
    }

    #[test]
    fn what_is_put_before_the_window_is_read_as_if_it_had_been_there() {
        for (bytes, entries) in [(usize::MAX, 400), (usize::MAX, 90), (30_000, 1000), (20_000, 17), (1, 1)] {
            let limits = HistoryLimits { bytes, entries };
            let value = |revision: i64| if revision % 11 == 0 { 9000 } else { 20 + revision as usize % 90 };
            let even = |revisions: std::ops::Range<i64>| revisions.filter(|revision| revision % 2 == 0);
            let mut history = History::new(Revision::new(201), limits);
            let mut last = 200;
            for (from, to) in [(150, 201), (149, 150), (145, 149), (1, 145)] {
                for revision in even(last + 1..last + 9) {
                    history.push(entry(revision, value(revision)));
                }
                last += 8;
                if history.grows_back() && history.start() == Revision::new(to) {
                    let older = even(from..to).map(|revision| entry(revision, value(revision))).collect();
                    history.prepend(Revision::new(from), older);
                    assert!(!history.grows_back() || history.start() == Revision::new(from));
                }
                let start = history.start().get();
                assert!(history.len() == 1 || history.len() <= entries && history.bytes() <= bytes);
                for next in [start, start + 1, start + 7, 150, 199, 201, last].map(|next| next.clamp(start, last + 1)) {
                    let expected: Vec<i64> = even(next..last + 1).collect();
                    let read = history.read(Revision::new(next), usize::MAX).expect("in the window");
                    assert_eq!(revisions(&read), expected, "from {next}, {bytes} bytes, {entries} entries");
                    assert_eq!(walk(&mut history, Revision::new(next)).concat(), expected, "in runs from {next}");
                }
            }
        }
    }

    #[test]
    fn a_window_that_has_let_go_of_something_does_not_grow_back() {
        let limits = HistoryLimits { bytes: usize::MAX, entries: 3 };
        let mut history = History::new(Revision::new(11), limits);
        history.push(entry(11, 100));
        history.prepend(Revision::new(5), vec![entry(6, 100), entry(8, 100)]);
        assert_eq!((history.start(), history.room().0, history.grows_back()), (Revision::new(5), 0, true));
        history.push(entry(12, 100));
        assert_eq!((history.start(), history.grows_back()), (Revision::new(7), false));
        let mut history = History::new(Revision::new(11), limits);
        history.prepend(Revision::new(1), (1..=8).map(|revision| entry(revision, 100)).collect());
        assert_eq!(
            (history.start(), history.grows_back()),
            (Revision::new(6), false),
            "the newest of what came before"
        );
    }

    #[test]
    fn a_chunk_begins_at_the_same_revision_for_all() {
        let limits = HistoryLimits { bytes: usize::MAX, entries: 40 };
        let mut history = history(limits, 1..=35);
        let whole: Vec<i64> = (1..=10).collect();
        assert_eq!(walk(&mut history, Revision::new(1))[0], whole);
        assert_eq!(walk(&mut history, Revision::new(9))[..2], [whole[8..].to_vec(), (11..=20).collect()]);
    }

    #[test]
    fn a_large_revision_is_no_part_of_a_run() {
        let mut history = History::new(Revision::new(1), HistoryLimits { bytes: 1 << 20, entries: 100 });
        for revision in 1..=5 {
            history.push(entry(revision, if revision == 3 { 10_000 } else { 100 }));
        }
        assert_eq!(walk(&mut history, Revision::new(1)), [vec![1, 2], vec![3], vec![4, 5]]);
        let third = history.entries[2].entry.encoded(false).as_ptr();
        let Ahead::Run(run) = history.ahead(Revision::new(3), 7) else { panic!("made before") };
        assert_eq!(run.payload.as_ref().map(|payload| payload.bytes(0).as_ptr()), Some(third), "not copied");
    }
}
