//! Lets a feed begin again, with a gap before its new snapshot: each of its watches goes on, is served from the past,
//! or ends.
//!
//! Called by the driver. Not here: what the feed has afterwards, see `feed`. Always holds: no watch misses a revision
//! without being told.

use std::{sync::Arc, task::Waker};

use super::{Feed, Reset, backfill, delivery::Cancellation, feed::PastTasks, outbox::Phase, snapshot::KeyMap};
use crate::types::{Cluster, Revision};

/// Sent to every watch when the relay's cluster, or the cluster's past, has been replaced. A relay behind this one
/// recognises this text.
pub const REPLACED: &str =
    "etcd-relay: the etcd cluster was replaced or restored to an older revision; list again and watch from there";

impl Feed {
    /// Installs a new snapshot, with a gap before it. Each watch goes on if it needs only future revisions, is served
    /// from the past if upstream still has it, and is ended otherwise.
    pub fn reset(self: &Arc<Self>, cluster: &Arc<Cluster>, map: KeyMap, revision: Revision, reset: &Reset) {
        let mut wakers: Vec<Waker> = Vec::new();
        let mut tasks = PastTasks::default();
        let mut inner = self.lock_settled();
        // From here on, messages carry the new cluster's name; those in queues keep the name of the cluster that they
        // came from.
        inner.cluster = cluster.clone();
        let was = inner.revision;
        let outboxes: Vec<_> = inner.outboxes.iter().cloned().collect();
        for outbox in outboxes {
            let slots = {
                let mut state = outbox.lock();
                if *reset == Reset::Replaced {
                    state.watches.forget_newest(self.id());
                }
                state.watches.slots_in(self.id())
            };
            for slot in slots {
                let mut state = outbox.lock();
                let Some(watch) = state.watches.get(slot) else { continue };
                let (watch_id, phase) = (watch.id, watch.phase());
                let needs = match phase {
                    // A watch that is ahead may have been reached without an event for it.
                    Phase::Live | Phase::Ahead => watch.next().max(was.next()),
                    // Upstream will report it to the fill itself, unless the cluster is another one.
                    Phase::Filling if *reset != Reset::Replaced => continue,
                    Phase::Parked | Phase::Behind | Phase::Unfilled | Phase::Filling => watch.next(),
                    Phase::Compacted | Phase::Failed => continue,
                };
                let (compact_revision, reason) = match reset {
                    Reset::Compacted { .. } if needs > revision => {
                        if phase != Phase::Ahead {
                            state.outlast(slot, needs);
                        }
                        continue;
                    }
                    Reset::Compacted { compact_revision } if needs >= *compact_revision => {
                        // The new history has room.
                        if phase != Phase::Behind {
                            tasks |= inner.lag_near(&mut state, slot, needs);
                        }
                        continue;
                    }
                    Reset::Compacted { compact_revision } => (*compact_revision, String::new()),
                    // The watch begins after everything that was missed.
                    Reset::Missed if phase == Phase::Ahead && watch.next() > was.max(revision) => continue,
                    Reset::Missed => (revision.next(), String::new()),
                    Reset::Replaced => (revision.max(Revision::new(1)), REPLACED.to_owned()),
                };
                let header = cluster.at(Revision::ZERO);
                let cancellation = Cancellation { watch_id, refused: false, header, compact_revision, reason };
                let why = cancellation.why();
                wakers.extend(inner.end_watch(state, slot, cancellation, why));
            }
        }
        let replaced = self.replace(&mut inner, map, revision);
        drop(inner);
        self.announce(revision);
        replaced.free();
        self.forget_part();
        backfill::start(tasks, self, []);
        wakers.into_iter().for_each(Waker::wake);
    }
}
