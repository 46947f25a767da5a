//! Reads history for the parked watches of a stream, as far as its queue has room, and makes them live again at its end.
//!
//! Called by [`Outbox::poll_drain`] when the queue is low, in the task of the stream: a stream that lags pays for itself.
//! Always holds: a watch is made live under the feed's lock, at the very revision up to which it was given everything; the
//! feed's lock is held for taking pointers, never while events are matched.

use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{
    Feed,
    fill::{self, Filled},
    index::WatchOptions,
    outbox::{Outbox, OutboxLimits, Phase, wake},
    payload::Payload,
};
use crate::types::{Entry, KeyRange, Revision};

/// Most revisions that one step reads.
const STEP_ENTRIES: usize = 512;
/// Most watches that one step serves: bounds how long the feed's lock is held to find them.
const STEP_WATCHES: usize = 4096;

/// A parked watch, as it was when the step began.
struct Parked {
    slot: usize,
    id: i64,
    serial: u64,
    next: Revision,
    range: KeyRange,
    options: WatchOptions,
}

/// One step for one feed: parked watches come closer to live, or are handed to a fill.
pub(super) fn step(outbox: &Arc<Outbox>) {
    let (feed, slots) = {
        let mut state = outbox.lock();
        let slots = state.take_parked(STEP_WATCHES);
        let Some(last) = slots.last() else { return };
        let attachment = state.watches[*last as usize].attachment;
        (state.feeds[attachment as usize].feed.clone(), slots)
    };
    let (watches, entries) = begin(&feed, outbox, &slots);
    let mut payloads = Vec::new();
    let through = read(&watches, &entries, &outbox.limits, &mut payloads);
    finish(&feed, outbox, &watches, through, payloads);
}

/// Takes the entries that the watches need. Watches behind the history are handed to fills, those of other feeds are put back.
fn begin(feed: &Arc<Feed>, outbox: &Arc<Outbox>, slots: &[u32]) -> (Vec<Parked>, Vec<Arc<Entry>>) {
    let inner = feed.lock();
    let mut state = outbox.lock();
    let mut watches = Vec::new();
    let mut behind = Vec::new();
    let mut others = Vec::new();
    for slot in slots {
        // Cancelled meanwhile, perhaps.
        let Some(watch) = state.watches.get(*slot as usize).filter(|watch| watch.phase == Phase::Parked) else {
            continue;
        };
        if !Arc::ptr_eq(&state.feeds[watch.attachment as usize].feed, feed) {
            others.push(*slot);
            continue;
        }
        let group = inner.index.group(watch.group);
        let parked = Parked {
            slot: *slot as usize,
            id: watch.id,
            serial: watch.serial,
            next: watch.next,
            range: group.range.clone(),
            options: group.options,
        };
        if watch.next < inner.history.start() { behind.push(parked) } else { watches.push(parked) }
    }
    state.put_parked(others);
    for watch in &behind {
        state.set_phase(watch.slot, Phase::Filling);
    }
    let from = watches.iter().map(|watch| watch.next).min();
    let entries = from.and_then(|from| inner.history.read(from, STEP_ENTRIES)).unwrap_or_default();
    drop(state);
    drop(inner);
    for watch in behind {
        let Parked { id: watch_id, serial, range, options, .. } = watch;
        fill::spawn(feed.clone(), outbox.clone(), Filled { watch_id, serial, range, options });
    }
    (watches, entries)
}

/// Matches entries with watches until about as much as `limits` allow is found, whole revisions only. Gives back the last revision done.
fn read(
    watches: &[Parked],
    entries: &[Arc<Entry>],
    limits: &OutboxLimits,
    payloads: &mut Vec<(usize, Arc<Payload>)>,
) -> Option<Revision> {
    let mut exact: HashMap<&[u8], SmallVec<[usize; 2]>> = HashMap::new();
    let mut ranges = Vec::new();
    for (index, watch) in watches.iter().enumerate() {
        if watch.range.is_single() {
            exact.entry(&watch.range.start()[..]).or_default().push(index);
        } else {
            ranges.push(index);
        }
    }
    let mut bytes = 0;
    let mut through = None;
    for entry in entries {
        let mut concerned: HashMap<usize, SmallVec<[u32; 4]>> = HashMap::new();
        for (pick, event) in entry.events().iter().enumerate() {
            let mut concern = |index: usize| {
                if watches[index].next <= entry.revision && watches[index].options.wants(event.kind) {
                    concerned.entry(index).or_default().push(pick as u32);
                }
            };
            exact.get(event.kv.key()).into_iter().flatten().copied().for_each(&mut concern);
            ranges
                .iter()
                .copied()
                .filter(|index| watches[*index].range.contains(event.kv.key()))
                .for_each(&mut concern);
        }
        for (index, picks) in concerned {
            let payload = Payload::some(entry, watches[index].options.prev_kv, picks);
            bytes += payload.bytes().len();
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
    watches: &[Parked],
    through: Option<Revision>,
    payloads: Vec<(usize, Arc<Payload>)>,
) {
    let inner = feed.lock();
    let mut state = outbox.lock();
    // Cancelled, ended or moved meanwhile: not ours any more.
    let ours: Vec<bool> = watches
        .iter()
        .map(|parked| {
            state.watches.get(parked.slot).is_some_and(|watch| {
                watch.serial == parked.serial && watch.phase == Phase::Parked && watch.next == parked.next
            })
        })
        .collect();
    let mut waker = None;
    for (index, payload) in payloads {
        if ours[index] {
            waker = state.enqueue_events(watches[index].slot, payload, inner.revision).or(waker);
        }
    }
    for parked in watches.iter().zip(&ours).filter(|(_, ours)| **ours).map(|(parked, _)| parked) {
        let watch = &mut state.watches[parked.slot];
        watch.next = watch.next.max(through.map_or(Revision::ZERO, Revision::next));
        let next = watch.next;
        if inner.history.since(next).next().is_none() {
            state.set_phase(parked.slot, Phase::Live);
        } else {
            state.put_parked([parked.slot as u32]);
        }
    }
    drop(state);
    drop(inner);
    wake(waker);
}
