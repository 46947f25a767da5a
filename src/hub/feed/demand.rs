//! What only feeds on demand have: a client that opened them, an early end, and key-values that they share with feeds
//! of overlapping ranges.
//!
//! Not here: when such a feed has to end, see `on_demand`. Always holds: what is shared is byte for byte the same, and
//! of the same cluster.

use std::{
    sync::{Arc, Weak},
    task::Waker,
    time::Duration,
};

use tokio::sync::{MutexGuard, SemaphorePermit};

use super::{Feed, FeedKind, FeedState};
use crate::{
    hub::{
        NoFeed,
        delivery::Cancellation,
        snapshot::{KeyMap, Kv, Snapshot, free},
    },
    telemetry::names::CancelReason,
    types::{ClientKey, KeyValue},
};

/// The most feeds that one feed shares with: those that have most in common with it.
const TWINS: usize = 8;

/// The content of feeds with overlapping ranges. Held for a page or a batch of changes.
#[derive(Debug)]
pub struct Twins(Vec<Arc<Snapshot>>);

/// The feeds that one feed shares with, and when they were looked up.
#[derive(Debug, Default)]
pub(in crate::hub) struct Known {
    generation: u64,
    feeds: Vec<Weak<Feed>>,
}

impl Twins {
    /// The same key-value, as another feed has it.
    #[must_use]
    pub fn share(&self, cluster_id: u64, kv: &KeyValue) -> Option<Arc<KeyValue>> {
        let mut of_cluster = self.0.iter().filter(|snapshot| snapshot.cluster.id() == cluster_id);
        of_cluster.find_map(|snapshot| match snapshot.map.get(kv.key()) {
            Some(Kv::Shared(known)) if known.mod_revision == kv.mod_revision && known.encoded() == kv.encoded() => {
                Some(known.clone())
            }
            _ => None,
        })
    }
}

impl Feed {
    /// The client that opened it.
    #[must_use]
    pub fn client(&self) -> ClientKey {
        self.client
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state() == FeedState::Closed
    }

    /// For how long nobody has used it; `None` while somebody does.
    pub(in crate::hub) fn idle_for(&self) -> Option<Duration> {
        let inner = self.lock();
        let in_use = !inner.index.is_empty() || !inner.outboxes.is_empty() || self.is_awaited();
        (!in_use).then(|| inner.idle_since.elapsed())
    }

    /// Its keys: its snapshot, or the part of it that was read so far.
    pub(in crate::hub) fn map(&self) -> KeyMap {
        let snapshot = self.snapshot();
        let partial = self.partial.load();
        if snapshot.map.len() >= partial.map.len() { snapshot.map.clone() } else { partial.map.clone() }
    }

    pub(in crate::hub) fn history_bytes(&self) -> usize {
        let inner = self.lock();
        inner.history.bytes() + inner.history.run_bytes()
    }

    /// The content of other feeds on demand in its range. Feeds that are always on share with nobody, since they pack
    /// their key-values.
    #[must_use]
    pub fn twins(&self) -> Twins {
        if self.kind != FeedKind::OnDemand {
            return Twins(Vec::new());
        }
        let generation = self.shared.on_demand.generation();
        let mut known = self.twins.lock();
        if known.generation != generation {
            *known = Known { generation, feeds: self.overlapping() };
        }
        let of = |feed: Arc<Self>| [feed.snapshot(), feed.partial.load_full()];
        let snapshots = known.feeds.iter().filter_map(Weak::upgrade).flat_map(of);
        Twins(snapshots.filter(|snapshot| !snapshot.map.is_empty()).collect())
    }

    fn overlapping(&self) -> Vec<Weak<Self>> {
        let mut others: Vec<(usize, Arc<Self>)> = self
            .shared
            .on_demand
            .running()
            .into_iter()
            .filter(|feed| feed.kind == FeedKind::OnDemand && !std::ptr::eq(&raw const **feed, self))
            .filter_map(|feed| {
                let from = self.range.start().max(feed.range.start()).clone();
                let to = match (self.range.before(), feed.range.before()) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
                let overlaps = to.as_ref().is_none_or(|to| from < *to);
                overlaps.then(|| (feed.map().between(&from, to.as_deref()).0, feed))
            })
            .collect();
        others.sort_by_key(|(keys, _)| std::cmp::Reverse(*keys));
        others.truncate(TWINS);
        others.iter().map(|(_, feed)| Arc::downgrade(feed)).collect()
    }

    /// A permit to read a page of the snapshot. Feeds on demand take turns, since clients may open many at once.
    pub async fn room_for_page(&self) -> Option<SemaphorePermit<'_>> {
        match self.kind {
            FeedKind::OnDemand => self.shared.on_demand.room_for_page().await,
            FeedKind::Prefix => None,
        }
    }

    /// A turn to take over a page of the snapshot. Feeds on demand do this one after the other, so that each finds what
    /// the one before took over.
    pub async fn turn_to_load(&self) -> Option<MutexGuard<'_, ()>> {
        match self.kind {
            FeedKind::OnDemand => Some(self.shared.on_demand.turn().await),
            FeedKind::Prefix => None,
        }
    }

    /// A part of the snapshot was read. Returns false if there is no room for it; the feed has then ended with that
    /// reason.
    #[must_use]
    pub fn loads(&self, part: Snapshot) -> bool {
        if self.kind != FeedKind::OnDemand {
            return true;
        }
        self.partial.store(Arc::new(part));
        match self.shared.on_demand.loads(self.client) {
            Ok(()) => !self.is_closed(),
            Err(refusal) => {
                tracing::warn!(range = %self.range, "A feed on demand is too large: {refusal}");
                self.end(refusal);
                false
            }
        }
    }

    /// What was read is in the snapshot now, or is not needed any more.
    pub(in crate::hub) fn forget_part(&self) {
        if self.kind == FeedKind::OnDemand {
            let part = self.partial.swap(Arc::default());
            let keys = part.map.len();
            free(part, keys);
            self.shared.on_demand.changed();
        }
    }

    /// Checks whether feeds on demand have grown too large.
    pub fn enforce(&self) {
        if self.kind == FeedKind::OnDemand {
            self.shared.on_demand.enforce();
        }
    }

    /// Ends the feed, and cancels each of its watches with the reason.
    pub(in crate::hub) fn end(&self, reason: NoFeed) {
        let mut wakers: Vec<Waker> = Vec::new();
        // Each watch is given what was published before it is told the feed's revision.
        let mut inner = self.lock_settled();
        if std::mem::replace(&mut inner.closed, true) {
            return;
        }
        let header = inner.cluster.at(inner.revision);
        let outboxes: Vec<_> = inner.outboxes.iter().cloned().collect();
        for outbox in outboxes {
            let slots = outbox.lock().watches.slots_in(self.id);
            for slot in slots {
                let state = outbox.lock();
                let Some(watch) = state.watches.get(slot).filter(|watch| !watch.phase().is_over()) else { continue };
                let cancellation =
                    Cancellation { watch_id: watch.id, header, reason: reason.to_string(), ..Cancellation::default() };
                wakers.extend(inner.end_watch(state, slot, cancellation, CancelReason::FeedEnded));
            }
        }
        drop(inner);
        // Before any client comes back for it.
        self.shared.on_demand.ended(self, reason);
        wakers.into_iter().for_each(Waker::wake);
        self.close();
    }

    /// Tells everyone, including its driver, that the feed has ended, and drops its data. It accepts no subscription
    /// any more.
    pub(in crate::hub) fn close(&self) {
        // This comes first, so that nobody who still holds the feed takes it for one without keys. Then its data is
        // dropped.
        self.set_state(FeedState::Closed);
        self.drop_data();
        self.forget_part();
        self.nudge.notify_one();
    }
}
