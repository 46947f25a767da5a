//! [`Pins`]: the snapshots that lists in pages are read from.
//!
//! A client that lists in pages reads the later ones at the revision of the first (Kubernetes' API server does), so
//! that the list shows one moment. A snapshot of which a part was returned is kept for a while, and the other pages are
//! then as cheap as the first. Without it, they are made by undoing the history (`read`). Always holds: there are at
//! most [`MOST`] snapshots, and when the feed's revision rises those are dropped that were not used within [`KEPT`].
//! Snapshots share what did not change, so one keeps only what was replaced since.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Snapshot, snapshot::free};
use crate::types::Revision;

/// How many lists are read at the same time, each at its own revision.
const MOST: usize = 64;
/// The longest time between two pages of a list.
const KEPT: Duration = Duration::from_secs(30);

/// The kept snapshots; see the module.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<Vec<Pin>>);

#[derive(Debug)]
struct Pin {
    snapshot: Arc<Snapshot>,
    used: Instant,
}

impl Pin {
    /// The most keys that only this snapshot keeps in memory.
    fn keys(&self) -> usize {
        self.snapshot.map.len()
    }
}

impl Pins {
    /// Keeps a snapshot of which only a part was returned.
    pub(super) fn keep(&self, snapshot: &Arc<Snapshot>) {
        let mut pins = self.0.lock();
        let used = Instant::now();
        if let Some(pin) = pins.iter_mut().find(|pin| pin.snapshot.revision == snapshot.revision) {
            pin.used = used;
            return;
        }
        let oldest = (0..pins.len()).min_by_key(|at| pins[*at].used).filter(|_| pins.len() >= MOST);
        let gone = oldest.map(|oldest| pins.swap_remove(oldest));
        pins.push(Pin { snapshot: snapshot.clone(), used });
        drop(pins);
        let keys = gone.as_ref().map_or(0, Pin::keys);
        free(gone, keys);
    }

    /// The snapshot of exactly this revision, if it is kept.
    pub(super) fn at(&self, revision: Revision) -> Option<Arc<Snapshot>> {
        let mut pins = self.0.lock();
        let pin = pins.iter_mut().find(|pin| pin.snapshot.revision == revision)?;
        pin.used = Instant::now();
        Some(pin.snapshot.clone())
    }

    /// Drops snapshots that nobody reads any more. It does not read the clock if there is none.
    pub(super) fn expire(&self) {
        let expired: Vec<Pin> = {
            let mut pins = self.0.lock();
            if pins.is_empty() {
                return;
            }
            let now = Instant::now();
            pins.extract_if(.., |pin| now.duration_since(pin.used) >= KEPT).collect()
        };
        let keys = expired.iter().map(Pin::keys).sum();
        free(expired, keys);
    }

    /// Drops all snapshots, since they belong to another history.
    pub(super) fn clear(&self) {
        let gone = std::mem::take(&mut *self.0.lock());
        let keys = gone.iter().map(Pin::keys).sum();
        free(gone, keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(revision: i64) -> Arc<Snapshot> {
        Arc::new(Snapshot { revision: Revision::new(revision), epoch: 1, ..Snapshot::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_is_found_by_its_revision_until_it_is_no_longer_used() {
        let pins = Pins::default();
        let kept = snapshot(5);
        pins.keep(&kept);
        assert!(pins.at(Revision::new(5)).is_some_and(|found| Arc::ptr_eq(&found, &kept)));
        assert!(pins.at(Revision::new(6)).is_none());
        tokio::time::advance(KEPT - Duration::from_millis(1)).await;
        pins.expire();
        assert!(pins.at(Revision::new(5)).is_some());
        tokio::time::advance(KEPT).await;
        pins.expire();
        assert!(pins.at(Revision::new(5)).is_none());
    }

    #[test]
    fn beyond_the_most_the_one_that_was_not_used_longest_goes() {
        let pins = Pins::default();
        for revision in 0..MOST as i64 {
            pins.keep(&snapshot(revision));
        }
        pins.at(Revision::new(0)).expect("kept");
        pins.keep(&snapshot(1_000));
        assert!(pins.at(Revision::new(0)).is_some() && pins.at(Revision::new(1)).is_none());
        pins.clear();
        assert!(pins.at(Revision::new(1_000)).is_none());
    }
}
