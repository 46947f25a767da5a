//! How watches end: each is taken out of its outbox and of its feed, and its client is told why.
//!
//! Not here: the decision, see `watch_stream`, `fill` and `backfill`; how all watches of a feed end, see `feed` and
//! `reset`. Always holds: the feed is locked before the outbox, and one outbox at a time; no task is woken under a
//! lock; if the watch has gone meanwhile, or its place belongs to another watch, nothing is done.

use std::{sync::Arc, task::Waker};

use super::{
    Feed,
    delivery::{Cancellation, StreamEnd},
    feed::Locked,
    outbox::{Outbox, Watch, wake},
    stats,
};
use crate::{
    telemetry::names::CancelReason,
    types::{Cluster, Revision},
};

/// The most watches of a stream that are cancelled for a compaction while the feed's lock is held.
const STEP_WATCHES: usize = 1024;
/// After this many watches of a stream that has gone, the feed's lock is passed to those who wait for it.
const STEP_FORGOTTEN: usize = 64;

/// Ends a watch of this feed because the client cancelled it.
pub(super) fn cancel(feed: &Feed, outbox: &Outbox, watch_id: i64) {
    let mut inner = feed.lock();
    let header = inner.cluster.at(inner.revision);
    let state = outbox.lock();
    let Some(slot) = state.watches.slot_of(watch_id).filter(|slot| state.watches.feed_of(*slot) == Some(feed.id()))
    else {
        return;
    };
    let cancellation = Cancellation { watch_id, header, ..Cancellation::default() };
    let waker = inner.end_watch(state, slot, cancellation, CancelReason::Client);
    drop(inner);
    wake(waker);
}

/// Ends a watch whose client may not read its range any more, with etcd's reason.
pub(super) fn revoke(feed: &Feed, outbox: &Outbox, watch_id: i64, serial: u64, reason: String) {
    let mut inner = feed.lock();
    let header = inner.cluster.at(inner.revision);
    let state = outbox.lock();
    let Some(slot) = state.watches.slot_of(watch_id) else { return };
    // The same serial means the same watch, so it belongs to this feed.
    let meant = |watch: &Watch| watch.serial == serial && !watch.phase().is_over();
    if !state.watches.get(slot).is_some_and(meant) {
        return;
    }
    let cancellation = Cancellation { watch_id, header, reason, ..Cancellation::default() };
    let waker = inner.end_watch(state, slot, cancellation, CancelReason::Denied);
    drop(inner);
    wake(waker);
}

/// Ends a watch that was being filled, for upstream's reason. After a compaction the id stays in use, as in etcd.
pub(super) fn cancel_filled(feed: &Feed, outbox: &Outbox, serial: u64, cancellation: Cancellation) {
    let mut inner = feed.lock();
    let state = outbox.lock();
    let Some(slot) = state.filling(cancellation.watch_id, serial) else { return };
    let why = cancellation.why();
    let waker = inner.end_watch(state, slot, cancellation, why);
    drop(inner);
    wake(waker);
}

/// Upstream has compacted everything before a revision. Every lagging watch that needs some of it is cancelled,
/// whichever of them found out.
pub(super) fn compacted(feed: &Feed, cluster: &Arc<Cluster>, compact_revision: Revision) {
    let mut place = Some(0);
    while let Some(from) = place {
        let (outboxes, next) = feed.lock().lagging_from(from);
        for (_, outbox) in outboxes {
            while compacted_some(feed, &outbox, cluster, compact_revision) {}
        }
        place = next;
    }
}

/// Does the same for some watches of a stream. Returns true if there may be more.
fn compacted_some(feed: &Feed, outbox: &Outbox, cluster: &Arc<Cluster>, compact_revision: Revision) -> bool {
    let mut inner = feed.lock();
    if inner.cluster.id() != cluster.id() {
        // The compaction does not concern these watches.
        return false;
    }
    let slots = outbox.lock().watches.lagging_before(feed.id(), compact_revision, STEP_WATCHES);
    let mut wakers: Vec<Waker> = Vec::new();
    for slot in &slots {
        let state = outbox.lock();
        // Watches that are behind change their phases under the feed's lock, which is held here. But the stream may
        // end, and then it has no watches.
        let Some(watch_id) = state.watches.get(*slot).map(|watch| watch.id) else { break };
        let header = cluster.at(Revision::ZERO);
        let cancellation = Cancellation { watch_id, header, compact_revision, ..Cancellation::default() };
        let why = cancellation.why();
        // One by one: ending a watch may move the index entry of one that is still to come.
        wakers.extend(inner.end_watch(state, *slot, cancellation, why));
    }
    drop(inner);
    wakers.into_iter().for_each(Waker::wake);
    !slots.is_empty()
}

/// Takes all watches of a stream that has ended out of this feed. No message is sent.
pub(super) fn forget(feed: &Feed, outbox: &Outbox) {
    let mut inner = feed.lock();
    let stopping = outbox.lock().end == Some(StreamEnd::Stopping);
    let mut forgotten = 0;
    let mut from = Some(0);
    while let Some(slot) = from {
        let (slots, next) = outbox.lock().watches.some_slots_in(feed.id(), slot);
        for (done, slot) in slots.into_iter().enumerate() {
            // A cancel may have run while the lock was released. A stream that is gone gets no new watch in its place.
            let left = {
                let mut state = outbox.lock();
                state.watches.get(slot).is_some().then(|| state.watches.remove(slot))
            };
            if let Some(left) = left {
                inner.unlink(left);
                forgotten += 1;
            }
            if done % STEP_FORGOTTEN == STEP_FORGOTTEN - 1 {
                // The end of a stream with a million watches must not hold up the feed.
                Locked::bump(&mut inner);
            }
        }
        from = next;
        if from.is_some() {
            Locked::bump(&mut inner);
        }
    }
    drop(inner);
    if forgotten == 0 {
        return;
    }
    stats::unsubscribed(forgotten, if stopping { CancelReason::Shutdown } else { CancelReason::Client });
}
