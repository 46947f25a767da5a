//! [`Waiting`]: the requests of a session that wait for a feed's first snapshot, in their order.
//!
//! The first of them is a create whose feed has none. etcd acts on the requests of a stream one after the other, and its clients count on
//! it: clientv3 takes the next `created` for the answer to the first create that it has not been answered
//! (`client/v3/watch.go`, `w.resuming[0]`), and no answer to a create, refusals with id -1 least of all, says which one it answers. So
//! no create overtakes another. clientv3 itself sends the next create when the one before is answered; other clients send many at once,
//! and those behind a slow one wait with it.
//!
//! A progress request may overtake: etcd, too, answers it while a `created` is still to come. So may the cancel of a watch
//! that is there, unless a create that waits has its id: that one would be refused if it came first.
//! Always holds: bounded in number and bytes; where it is full, the session reads no more.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::step::Step;
use crate::{
    hub::{Hub, WaitError, WatchStream},
    types::ClientKey,
};

/// From how many requests, and how many bytes of their keys, on nothing more is read. What was read together goes beyond it once.
const FULL: (usize, usize) = (1024, 1 << 20);

/// Before a create is tried again whose feed has ended.
const ENDED_PAUSE: Duration = Duration::from_millis(50);

/// A request, and until when it waits for a snapshot.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) step: Step,
    pub(super) until: Instant,
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

    /// All of them, in their order. None is left.
    pub(super) fn take(&mut self) -> Vec<Wanted> {
        self.bytes = 0;
        std::mem::take(&mut self.wanted).into()
    }

    /// Whether a step may be acted on before those that wait. See the module.
    pub(super) fn may_be_overtaken_by(&self, step: &Step, stream: &WatchStream) -> bool {
        match step {
            Step::Progress => true,
            Step::Cancel(watch_id) => stream.feed_of(*watch_id).is_some() && !self.names(*watch_id),
            Step::Create(..) | Step::Empty(_) | Step::Refuse(..) => false,
        }
    }

    /// Waits until there is something to be done about the first: its feed serves, will not, or took too long. Cancel safe.
    pub(super) async fn due(&self, hub: &Hub, client: ClientKey) {
        let Some(Wanted { step: Step::Create(_, subscribe), until }) = self.wanted.front() else { return };
        let Ok(feed) = hub.feed(&subscribe.range, client) else { return };
        // Whatever it says, the create is tried again; where the feed has ended, not at once.
        if feed.wait_serving(until.saturating_duration_since(Instant::now())).await == Err(WaitError::Unknown) {
            tokio::time::sleep(ENDED_PAUSE).await;
        }
    }

    /// Whether a create asks for this id. Zero asks for any.
    fn names(&self, watch_id: i64) -> bool {
        self.wanted
            .iter()
            .any(|wanted| matches!(&wanted.step, Step::Create(_, subscribe) if watch_id != 0 && subscribe.watch_id == watch_id))
    }
}
