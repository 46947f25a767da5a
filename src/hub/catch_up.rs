//! Reads history for the parked watches of a stream, as far as its queue has room, and makes them live again when they
//! reach its end.
//!
//! [`super::WatchStream::poll_drain`] calls this when the queue is low, in the task of the stream, so a stream that
//! lags does this work itself. The queue need not be empty, since the live watches of the stream may never let it be.
//! Watches of ranges get runs: a chunk of history filtered for their group, built by the first watch that needs it and
//! kept for the others. Watches of single keys share little, so one step goes through the entries once for all of them.
//! The watches that are furthest behind come first, so that none waits for another that is ahead of it.
//! Always holds: a watch is made live under the feed's lock, at the very revision up to which it was given everything.
//! The feed's lock is held for copying pointers, never while events are matched or copied.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{
    Feed, backfill,
    feed::{Inner, PastTasks},
    history::{Ahead, Task},
    index::WatchOptions,
    outbox::{FeedId, Outbox, OutboxLimits, Phase, State, Watch},
    payload::{Payload, Picks},
    runs::{Run, RunKey},
};
use crate::types::{Entry, KeyRange, Revision};

/// The most revisions that one step reads for single keys.
const STEP_ENTRIES: usize = 512;
/// The most watches that one step serves, those furthest behind. This bounds how long the feed's lock is held.
const STEP_WATCHES: usize = 4096;
/// The most runs that a step builds before it checks again.
const STEP_MADE: usize = 4;
/// The most runs that one step passes on. If a watch wants little, most of them are empty.
const STEP_RUNS: usize = 512;

/// A parked watch of a single key, as it was when the step began.
struct Single {
    slot: usize,
    serial: u64,
    next: Revision,
    range: KeyRange,
    options: WatchOptions,
}

/// A run that does not exist yet, and how its group wants it.
struct Missing {
    key: RunKey,
    task: Task,
    range: KeyRange,
    options: WatchOptions,
}

/// Runs that were built, with their feed and its history.
struct Made {
    feed: Arc<Feed>,
    epoch: u64,
    runs: Vec<(RunKey, Run)>,
}

/// What to do once the locks are released.
enum Next {
    /// Nothing: there is something to send, or no watch is parked.
    Done,
    /// Read these entries for these watches.
    Read(Vec<Single>, Vec<Arc<Entry>>),
    /// Build these runs, and come again.
    Make(u64, Vec<Missing>),
}

/// One step for one feed: parked watches come closer to live, or are handed to a fill.
pub(super) fn step(outbox: &Arc<Outbox>, feed_of: impl Fn(FeedId) -> Option<Arc<Feed>>) {
    let mut made = None;
    // Each pass uses the runs that the one before was missing. The last pass builds none, since nothing would use them.
    for may_make in [true, true, false] {
        // Not under the feed's lock: with a million parked watches this takes a while.
        let Some((feed, slots)) = outbox.lock().watches.furthest_parked(STEP_WATCHES) else { return };
        let Some(feed) = feed_of(feed) else { return };
        match serve(&feed, outbox, slots, made.take()) {
            Next::Done => return,
            Next::Read(watches, entries) => {
                let mut payloads = Vec::new();
                let through = read(&watches, &entries, &outbox.limits, &mut payloads);
                return finish(&feed, outbox, &watches, through, payloads);
            }
            Next::Make(..) if !may_make => return,
            Next::Make(epoch, missing) => {
                let run = |Missing { key, task, range, options }: &Missing| (*key, task.make(range, *options));
                made = Some(Made { feed, epoch, runs: missing.iter().map(run).collect() });
            }
        }
    }
}

/// Passes existing runs on to the watches that are furthest behind, or takes the entries for single keys if those are
/// furthest behind. Watches that the history no longer reaches will be filled.
fn serve(feed: &Arc<Feed>, outbox: &Arc<Outbox>, slots: Vec<u32>, made: Option<Made>) -> Next {
    let mut inner = feed.lock();
    let mut state = outbox.lock();
    // Otherwise the history that they belong to is gone, or it is another feed's turn.
    if let Some(made) = made.filter(|made| made.epoch == inner.epoch && Arc::ptr_eq(&made.feed, feed)) {
        made.runs.into_iter().for_each(|(key, run)| inner.history.keep(key, run));
    }
    let mut tasks = PastTasks::default();
    let (mut singles, mut ranges) = (Vec::new(), Vec::new());
    for slot in slots {
        // The watch may have been cancelled meanwhile.
        let parked = |watch: &&Watch| watch.phase() == Phase::Parked;
        let Some(watch) = state.watches.get(slot as usize).filter(parked) else { continue };
        let next = watch.next();
        if state.watches.feed_of(slot as usize) != Some(feed.id()) {
            continue;
        }
        if next < inner.history.start() {
            tasks |= inner.lag(&mut state, slot as usize, next);
        } else if inner.index.group(watch.group()).range.is_single() {
            singles.push((next, slot));
        } else {
            ranges.push((next, slot));
        }
    }
    // A slot may hold another watch by now, so the order is not certain.
    singles.sort_unstable();
    ranges.sort_unstable();
    let next = match (singles.first(), ranges.first()) {
        (Some((single, _)), Some((range, _))) if range < single => pass(&inner, &mut state, outbox, ranges),
        (Some((from, _)), _) => {
            let entries = inner.history.read(*from, STEP_ENTRIES).unwrap_or_default();
            let watches = singles.drain(..).filter_map(|(_, slot)| single(&inner, &state, slot as usize)).collect();
            Next::Read(watches, entries)
        }
        _ => pass(&inner, &mut state, outbox, ranges),
    };
    drop(state);
    drop(inner);
    backfill::start(tasks, feed, [outbox]);
    next
}

/// Gives each watch one run at a time, in turns, until the queue is full. Watches that have reached the end of the
/// history are live from here on. Those that wait for a run, or for room, stay parked.
fn pass(inner: &Inner, state: &mut State, outbox: &Outbox, mut ranges: Vec<(Revision, u32)>) -> Next {
    let furthest = ranges.first().map(|(_, slot)| *slot);
    let mut missing: Vec<Missing> = Vec::new();
    let mut furthest_waits = false;
    let mut passed = 0;
    while !ranges.is_empty() && passed < STEP_RUNS && !state.is_full(&outbox.limits) {
        for (next, slot) in std::mem::take(&mut ranges) {
            if passed == STEP_RUNS || state.is_full(&outbox.limits) {
                break;
            }
            passed += 1;
            let Some(watch) = state.watches.get(slot as usize) else { continue };
            let group = inner.index.group(watch.group());
            match inner.history.ahead(next, group.serial) {
                Ahead::Nothing => state.catch_up(slot as usize),
                Ahead::Run(run) => {
                    if let Some(payload) = &run.payload {
                        state.give(slot as usize, payload.clone(), inner.revision);
                    }
                    state.pass(slot as usize, run.through);
                    ranges.push((run.through.next().max(next), slot));
                }
                Ahead::Missing(key) => {
                    furthest_waits |= Some(slot) == furthest;
                    if missing.len() < STEP_MADE && missing.iter().all(|missing| missing.key != key) {
                        let (range, options) = (group.range.clone(), group.options);
                        missing.push(Missing { key, task: inner.history.task(key), range, options });
                    }
                }
            }
        }
    }
    // What can be sent at once does not wait for runs that have to be built. But the queue of a stream with live
    // watches may never be empty, so the watch that is furthest behind does not wait for that.
    let make = !missing.is_empty() && (furthest_waits || state.queue.is_empty());
    if make { Next::Make(inner.epoch, missing) } else { Next::Done }
}

fn single(inner: &Inner, state: &State, slot: usize) -> Option<Single> {
    let watch = state.watches.get(slot)?;
    let group = inner.index.group(watch.group());
    Some(Single { slot, serial: watch.serial, next: watch.next(), range: group.range.clone(), options: group.options })
}

/// Matches entries with watches until it has found about as much as `limits` allow, in whole revisions. Returns the
/// last revision that was matched.
fn read(
    watches: &[Single],
    entries: &[Arc<Entry>],
    limits: &OutboxLimits,
    payloads: &mut Vec<(usize, Arc<Payload>)>,
) -> Option<Revision> {
    let mut exact: HashMap<&[u8], SmallVec<[usize; 2]>> = HashMap::new();
    for (index, watch) in watches.iter().enumerate() {
        exact.entry(&watch.range.start()[..]).or_default().push(index);
    }
    let mut bytes = 0;
    let mut through = None;
    for entry in entries {
        let mut concerned: HashMap<usize, Picks, FixedState> = HashMap::default();
        for (pick, event) in entry.events().iter().enumerate() {
            let concern = |index: usize| {
                if watches[index].next <= entry.revision && watches[index].options.wants(event.kind) {
                    concerned.entry(index).or_default().push(pick as u32);
                }
            };
            exact.get(event.kv.key()).into_iter().flatten().copied().for_each(concern);
        }
        for (index, picks) in concerned {
            let payload = Payload::some(entry, watches[index].options.prev_kv, picks);
            bytes += payload.size(0);
            payloads.push((index, payload));
        }
        through = Some(entry.revision);
        if bytes >= limits.bytes || payloads.len() >= limits.deliveries {
            break;
        }
    }
    through
}

/// Queues what was found. Watches that have reached the feed's revision are live from here on.
fn finish(
    feed: &Feed,
    outbox: &Outbox,
    watches: &[Single],
    through: Option<Revision>,
    payloads: Vec<(usize, Arc<Payload>)>,
) {
    let inner = feed.lock();
    let mut state = outbox.lock();
    // A watch that was cancelled, ended or moved meanwhile does not belong to this step any more.
    let ours: Vec<bool> = watches
        .iter()
        .map(|single| {
            state.watches.get(single.slot).is_some_and(|watch| {
                watch.serial == single.serial && watch.phase() == Phase::Parked && watch.next() == single.next
            })
        })
        .collect();
    for (index, payload) in payloads {
        if ours[index] {
            state.give(watches[index].slot, payload, inner.revision);
        }
    }
    for single in watches.iter().zip(&ours).filter(|(_, ours)| **ours).map(|(single, _)| single) {
        if let Some(through) = through {
            state.pass(single.slot, through);
        }
        let next = state.watches.get(single.slot).map(Watch::next);
        if next.is_some_and(|next| inner.history.ends_before(next)) {
            state.catch_up(single.slot);
        }
    }
}

#[cfg(test)]
mod tests;
