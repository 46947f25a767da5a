//! What a feed keeps under its lock, and what is done there: taking over revisions, and taking watches out.
//!
//! Not here: who calls this and when, see `feed` and `driven`; how revisions get to the watches that want them, see
//! `handouts`. Always holds: nothing here waits or wakes a task; one outbox is locked at a time; publishing locks none,
//! so the time that it takes here does not grow with the number of streams.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    task::Waker,
    thread,
};

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use parking_lot::MutexGuard;
use tokio::time::Instant;

use super::{PublishError, Twins, handouts::Handouts, lag::Past, places::Places, sequence::Pushing};
use crate::{
    critical::Tasks,
    hub::{
        delivery::Cancellation,
        history::History,
        index::Index,
        outbox::{Left, State},
        payload::{Payload, Picks},
        runs::{RUN_BYTES, RUN_REVISIONS, is_large, weight},
        snapshot::KeyMap,
        upstream::Changes,
    },
    telemetry::names::CancelReason,
    types::{Cluster, Entry, EventFields, EventKind, Revision, Stamp},
};

#[derive(Debug)]
pub(in crate::hub) struct Inner {
    /// The cluster that all of the content came from.
    pub(in crate::hub) cluster: Arc<Cluster>,
    pub(in crate::hub) map: KeyMap,
    pub(in crate::hub) history: History,
    pub(in crate::hub) index: Index,
    pub(in crate::hub) outboxes: Places,
    pub(in crate::hub) past: Past,
    pub(in crate::hub) revision: Revision,
    /// See [`crate::hub::Snapshot::epoch`].
    pub(in crate::hub) epoch: u64,
    pub(in crate::hub) closed: bool,
    pub(in crate::hub) idle_since: Instant,
}

impl Inner {
    /// The header data for responses with this content.
    pub(in crate::hub) fn stamp(&self) -> Stamp {
        Stamp { cluster: self.cluster.clone(), revision: self.revision }
    }

    /// Takes over the next revisions, and adds what they mean for the watches that they concern to `handouts`, which
    /// the caller pushes. Revisions that arrived together are one piece, so that a burst costs a watch little more than
    /// one revision. On an error, the revisions before it are taken over. Key-values that `twins` already have are
    /// shared with them.
    pub(super) fn publish(
        &mut self,
        batch: &[Changes],
        twins: &Twins,
        handouts: &mut Handouts,
    ) -> Result<(), PublishError> {
        let mut together = Vec::new();
        let mut bytes = 0;
        let mut result = Ok(());
        for changes in batch {
            if changes.revision <= self.revision {
                result = Err(PublishError::Stale { got: changes.revision, at: self.revision });
                break;
            }
            let entry = self.apply(changes, twins);
            let (alone, weight) = (is_large(&entry), weight(&entry));
            if alone || bytes + weight > RUN_BYTES || together.len() >= RUN_REVISIONS {
                self.dispatch(&mut together, handouts);
                bytes = 0;
            }
            together.push(entry);
            bytes += weight;
            if alone {
                self.dispatch(&mut together, handouts);
                bytes = 0;
            }
        }
        self.dispatch(&mut together, handouts);
        result
    }

    /// Makes the entry of a revision and puts it into the map.
    fn apply(&mut self, changes: &Changes, twins: &Twins) -> Arc<Entry> {
        let prev = |change: &EventFields| {
            if change.is_create() { None } else { self.map.get(&change.kv.key).map(|kv| kv.kept()) }
        };
        let entry = Arc::new(Entry::encode(&self.cluster, changes.revision, changes.received, &changes.events, prev));
        for event in entry.events() {
            match event.kind {
                EventKind::Put => {
                    let shared = twins.share(self.cluster.id(), &event.kv);
                    self.map.insert(shared.unwrap_or_else(|| event.kv.clone()));
                }
                EventKind::Delete => _ = self.map.remove(event.kv.key()),
            }
        }
        self.revision = changes.revision;
        entry
    }

    /// Finds the groups that the revisions concern, and adds them to the history.
    fn dispatch(&mut self, entries: &mut Vec<Arc<Entry>>, handouts: &mut Handouts) {
        match &entries[..] {
            [] => {}
            [entry] => self.dispatch_one(entry, handouts),
            entries => self.dispatch_run(entries, handouts),
        }
        // After the dispatch, so that the cost includes the second encoding if somebody needed it.
        entries.drain(..).for_each(|entry| self.history.push(entry));
    }

    /// Only groups that match cost any work. The relay numbers the groups itself, so a fixed hash is no risk, and the
    /// same groups are given their events in the same order in every process. That makes simulations repeatable.
    fn dispatch_one(&self, entry: &Arc<Entry>, handouts: &mut Handouts) {
        if let [event] = entry.events() {
            // Nearly every revision has one event: each of its two forms is made at most once for all groups.
            let mut made: [Option<Arc<Payload>>; 2] = [None, None];
            self.index.matches(event.kv.key(), |id| {
                let group = self.index.group(id);
                if group.options.wants(event.kind) {
                    let prev_kv = group.options.prev_kv;
                    let payload = made[usize::from(prev_kv)].get_or_insert_with(|| Payload::whole(entry, prev_kv));
                    handouts.add(group, payload.clone());
                }
            });
            return;
        }
        let mut concerned: HashMap<u32, Picks, FixedState> = HashMap::default();
        self.each_match(entry, |id, pick| concerned.entry(id).or_default().push(pick));
        for (id, picks) in concerned {
            let group = self.index.group(id);
            handouts.add(group, Payload::some(entry, group.options.prev_kv, picks));
        }
    }

    /// Does the same for several revisions, and gives each group's events in one piece.
    fn dispatch_run(&self, entries: &[Arc<Entry>], handouts: &mut Handouts) {
        let mut concerned: HashMap<u32, Vec<(&Arc<Entry>, Picks)>, FixedState> = HashMap::default();
        for entry in entries {
            self.each_match(entry, |id, pick| {
                let found = concerned.entry(id).or_default();
                match found.last_mut() {
                    Some((last, picks)) if last.revision == entry.revision => picks.push(pick),
                    _ => found.push((entry, Picks::from_iter([pick]))),
                }
            });
        }
        for (id, found) in concerned {
            let group = self.index.group(id);
            if let Some(payload) = Payload::run(found, group.options.prev_kv) {
                handouts.add(group, payload);
            }
        }
    }

    fn each_match(&self, entry: &Entry, mut found: impl FnMut(u32, u32)) {
        for (index, event) in entry.events().iter().enumerate() {
            self.index.matches(event.kv.key(), |id| {
                if self.index.group(id).options.wants(event.kind) {
                    found(id, index as u32);
                }
            });
        }
    }

    /// Ends a watch that is here, sends its client the reason, and takes it out. Returns the task to wake.
    pub(in crate::hub) fn end_watch(
        &mut self,
        mut state: MutexGuard<'_, State>,
        slot: usize,
        cancellation: Cancellation,
        why: CancelReason,
    ) -> Option<Waker> {
        let (left, waker) = state.end_watch(slot, cancellation, why);
        drop(state);
        self.unlink(left);
        waker
    }

    /// Takes out what a watch that left its outbox had here. The caller holds no outbox's lock.
    pub(in crate::hub) fn unlink(&mut self, left: Left) {
        if let Some(link) = left.link
            && let Some(moved) = self.index.remove(link.group, link.place)
            && let Some(outbox) = self.outboxes.get(moved.outbox)
        {
            outbox.lock().watches.moved(moved.watch, link.place);
        }
        if let Some(place) = left.place {
            self.past.forget(place);
            self.outboxes.remove(place);
        }
        if self.index.is_empty() {
            self.idle_since = Instant::now();
        }
    }
}

/// A feed's content, locked. After a panic it may be half changed, which nobody could detect later.
#[derive(Debug)]
pub(in crate::hub) struct Locked<'a> {
    pub(super) inner: MutexGuard<'a, Inner>,
    /// See [`super::Feed::lock_settled`]. Released after the lock itself.
    pub(super) _turn: Option<Pushing<'a>>,
    pub(super) tasks: &'a Tasks,
}

impl Locked<'_> {
    /// Passes the lock to those who wait for it, and takes it again.
    pub(in crate::hub) fn bump(this: &mut Self) {
        MutexGuard::bump(&mut this.inner);
    }
}

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.tasks.fail("change of a feed", "while the feed was locked".to_owned());
        }
    }
}
