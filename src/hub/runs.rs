//! [`Runs`]: a group's part of a chunk of history, prepared once for all watches of the group that read it.
//!
//! Not here: where the history is cut and who reads it, see `history` and `catch_up`. Kept under the feed's lock, and
//! made outside of it.
//! Always holds: a run has everything that its group wants from `from` to `through`; when all runs together exceed the
//! bound, the oldest are dropped, but the newest run stays.

use std::{collections::VecDeque, sync::Arc};

use hashbrown::HashMap;

use super::payload::Payload;
use crate::types::{Entry, Revision};

/// The most bytes of a run, by [`weight`]: so large that the overhead of a run does not matter, and so small that a
/// slow client keeps little in memory.
pub(super) const RUN_BYTES: usize = 64 << 10;
/// The most revisions of a run.
pub(super) const RUN_REVISIONS: usize = 512;
/// A revision of this size or more is sent as it is: a copy would cost more than one more buffer in a system call.
const LARGE: usize = 8 << 10;
/// Bytes of a run in addition to its payload, and of a payload in addition to what it keeps in memory.
const RUN_OVERHEAD: usize = 128;

/// The most that an entry can add to a run.
pub(super) fn weight(entry: &Entry) -> usize {
    let replaced = entry.events().iter().filter_map(|event| event.prev.as_ref());
    entry.encoded(false).len() + replaced.map(|prev| prev.encoded().len() + 8).sum::<usize>()
}

/// Whether an entry is sent as it is, and not as a part of a run.
pub(super) fn is_large(entry: &Entry) -> bool {
    weight(entry) >= LARGE
}

/// The runs of a history; see the module.
#[derive(Debug)]
pub(super) struct Runs {
    runs: HashMap<RunKey, Kept>,
    /// The keys of all runs, oldest first.
    order: VecDeque<RunKey>,
    bytes: usize,
    most: usize,
}

/// Identifies a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RunKey {
    /// The number of the chunk's first entry.
    pub(super) chunk: u64,
    /// The serial of the group.
    pub(super) group: u64,
}

/// A group's part of a chunk; see the module.
#[derive(Debug)]
pub(super) struct Run {
    /// The first revision that it covers.
    pub(super) from: Revision,
    /// The last revision that it covers.
    pub(super) through: Revision,
    /// `None` if the group wants none of them.
    pub(super) payload: Option<Arc<Payload>>,
}

#[derive(Debug)]
struct Kept {
    run: Run,
    /// The cost as it was counted, since an entry may get a second encoding later.
    cost: usize,
}

impl Runs {
    /// An empty set, with room for this many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { runs: HashMap::new(), order: VecDeque::new(), bytes: 0, most }
    }

    pub(super) fn get(&self, key: RunKey) -> Option<&Run> {
        self.runs.get(&key).map(|kept| &kept.run)
    }

    /// Bytes of all runs.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a run, and replaces an older one of the same chunk and group: a run is made again when its chunk has
    /// grown.
    pub(super) fn insert(&mut self, key: RunKey, run: Run) {
        let cost = cost(&run);
        self.bytes += cost;
        match self.runs.insert(key, Kept { run, cost }) {
            Some(old) => self.bytes -= old.cost,
            None => self.order.push_back(key),
        }
        while self.bytes > self.most && self.runs.len() > 1 {
            let Some(oldest) = self.order.pop_front() else { break };
            if oldest == key {
                // Its maker has not used it yet.
                self.order.push_back(oldest);
            } else if let Some(old) = self.runs.remove(&oldest) {
                self.bytes -= old.cost;
            }
        }
    }
}

fn cost(run: &Run) -> usize {
    RUN_OVERHEAD + run.payload.as_ref().map_or(0, |payload| RUN_OVERHEAD + payload.cost())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        hub::index::WatchOptions,
        types::{EventFields, EventKind, KeyRange, KeyValueFields},
    };

    fn run(revision: i64) -> Run {
        run_of(revision, 100)
    }

    fn run_of(revision: i64, value: usize) -> Run {
        let kv = KeyValueFields { key: "k".into(), value: vec![0; value].into(), ..KeyValueFields::default() };
        let changes = [EventFields { kind: EventKind::Put, kv }];
        let revision = Revision::new(revision);
        let entry = Arc::new(Entry::encode(&Arc::default(), revision, Instant::now(), &changes, |_| None));
        let payload = Payload::matching(&[entry], &KeyRange::prefix("".into()), WatchOptions::default());
        Run { from: revision, through: revision, payload }
    }

    fn key(chunk: u64) -> RunKey {
        RunKey { chunk, group: 0 }
    }

    #[test]
    fn the_oldest_runs_make_room() {
        let one = cost(&run(1));
        let mut runs = Runs::new(2 * one);
        (1..=3).for_each(|number| runs.insert(key(number), run(number as i64)));
        assert!(runs.get(key(1)).is_none() && runs.get(key(2)).is_some() && runs.get(key(3)).is_some());
        assert_eq!(runs.bytes(), 2 * one);
        // A run that was made again keeps its age.
        runs.insert(key(2), run(4));
        assert_eq!(runs.get(key(2)).map(|run| run.through), Some(Revision::new(4)));
        runs.insert(key(5), run(5));
        assert!(runs.get(key(2)).is_none() && runs.get(key(3)).is_some());
        assert_eq!(runs.bytes(), 2 * one);
    }

    #[test]
    fn what_is_made_again_and_again_leaves_nothing_behind() {
        let mut runs = Runs::new(usize::MAX);
        (0..10_000).for_each(|number| runs.insert(key(number % 2), run(number as i64)));
        assert_eq!(runs.bytes(), 2 * cost(&run(1)));
        assert_eq!(runs.order.len(), 2);
    }

    #[test]
    fn the_newest_run_stays_whatever_its_size() {
        let mut runs = Runs::new(0);
        (1..=2).for_each(|number| runs.insert(key(number), run(number as i64)));
        assert!(runs.get(key(1)).is_none() && runs.get(key(2)).is_some());
    }

    #[test]
    fn a_run_that_was_just_made_anew_stays_though_it_is_the_oldest() {
        let mut runs = Runs::new(2 * cost(&run(1)));
        (1..=2).for_each(|number| runs.insert(key(number), run(number as i64)));
        runs.insert(key(1), run_of(3, 200));
        assert!(runs.get(key(2)).is_none());
        assert_eq!(runs.get(key(1)).map(|run| run.through), Some(Revision::new(3)));
    }

    #[test]
    fn a_few_events_of_a_large_revision_count_as_all_that_they_keep_alive() {
        let change = |key: &'static str, value: usize| {
            let kv = KeyValueFields { key: key.into(), value: vec![0; value].into(), ..KeyValueFields::default() };
            EventFields { kind: EventKind::Put, kv }
        };
        let changes = [change("small", 1), change("large", 100_000)];
        let entry = Arc::new(Entry::encode(&Arc::default(), Revision::new(1), Instant::now(), &changes, |_| None));
        let payload = Payload::matching(&[entry], &KeyRange::prefix("s".into()), WatchOptions::default());
        let run = Run { from: Revision::new(1), through: Revision::new(1), payload };
        assert!(cost(&run) > 100_000, "{} bytes", cost(&run));
    }
}
