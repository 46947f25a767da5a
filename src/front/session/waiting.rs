//! [`Waiting`]: the requests of a session that wait for a feed's first snapshot, in order.
//!
//! The first of them is a create whose feed has no snapshot. etcd executes the requests of a stream one after the
//! other, and its clients rely on that. clientv3 takes the next `created` as the answer to its first unanswered create
//! (`client/v3/watch.go`, `w.resuming[0]`). No answer to a create names its create, least of all refusals, which have
//! id -1. So no create overtakes another. clientv3 itself sends the next create only after the answer to the previous
//! one. Other clients send many at once, and those behind a slow one wait with it.
//!
//! A progress request may overtake, since etcd also answers it while a `created` is pending. So may the cancel of an
//! existing watch, unless a waiting create has the same id: that create would be refused if it came first. Always
//! holds: number and bytes are bounded; when it is full, the session stops reading.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::step::Step;
use crate::{
    hub::{Hub, WaitError, WatchStream},
    types::{ClientKey, Cluster, Revision},
};

/// At this many requests, or this many bytes of their keys, reading stops. Requests that were read together can exceed
/// it once.
const FULL: (usize, usize) = (1024, 1 << 20);

/// Pause before a create is tried again whose feed has ended.
const ENDED_PAUSE: Duration = Duration::from_millis(50);

/// A request, and until when it waits for a snapshot.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) step: Step,
    pub(super) until: Instant,
    /// The first answer after it had arrived. A watch "from now" begins there.
    pub(super) first: Option<Confirmed>,
}

impl Wanted {
    /// Whether it creates a watch that begins where the cluster is now.
    pub(super) fn begins_now(&self) -> bool {
        matches!(&self.step, Step::Create(_, subscribe) if subscribe.start_revision == Revision::ZERO)
    }
}

/// The revision that a cluster confirmed as its current one.
#[derive(Clone, Debug)]
pub(super) struct Confirmed {
    pub(super) cluster: Arc<Cluster>,
    pub(super) revision: Revision,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    wanted: VecDeque<Wanted>,
    bytes: usize,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.wanted.len() < FULL.0 && self.bytes < FULL.1
    }

    pub(super) fn add(&mut self, wanted: Wanted) {
        self.bytes += wanted.step.range().map_or(0, |range| range.bytes());
        self.wanted.push_back(wanted);
    }

    /// Takes all of them, in order.
    pub(super) fn take(&mut self) -> Vec<Wanted> {
        self.bytes = 0;
        std::mem::take(&mut self.wanted).into()
    }

    /// Whether a step may overtake the waiting requests; see the module.
    pub(super) fn may_be_overtaken_by(&self, step: &Step, stream: &WatchStream) -> bool {
        match step {
            Step::Progress => true,
            Step::Cancel(watch_id) => stream.feed_of(*watch_id).is_some() && !self.names(*watch_id),
            Step::Create(..) | Step::Empty(_) | Step::Refuse(..) => false,
        }
    }

    /// Waits until the first one can be handled: its feed serves, has failed, or took too long. Cancel safe.
    pub(super) async fn due(&self, hub: &Hub, client: ClientKey) {
        let Some(Wanted { step: Step::Create(_, subscribe), until, .. }) = self.wanted.front() else { return };
        let Ok(feed) = hub.feed(&subscribe.range, client) else { return };
        // The create is tried again in any case, but not at once if the feed has ended.
        if feed.wait_serving(until.saturating_duration_since(Instant::now())).await == Err(WaitError::Unknown) {
            tokio::time::sleep(ENDED_PAUSE).await;
        }
    }

    /// Whether a create asks for this id. Zero lets the server choose.
    fn names(&self, watch_id: i64) -> bool {
        self.wanted
            .iter()
            .any(|wanted| matches!(&wanted.step, Step::Create(_, subscribe) if watch_id != 0 && subscribe.watch_id == watch_id))
    }
}
