//! What an outbox keeps under its lock: the queue, the watches, and whether the stream goes on.
//!
//! Not here: the position of each watch, see `watches`; the callers, see `outbox`. Always holds: what is queued for a
//! watch and its position change together; nothing is queued on a stream that has ended.

use std::{collections::BTreeSet, sync::Arc, task::Waker};

use super::{
    OutboxLimits, Watches,
    handover::Resting,
    position::{Impossible, Phase, Transition},
    queue::DeliveryQueue,
    watches::{FeedId, Left},
};
use crate::{
    hub::{
        delivery::{Cancellation, Delivery, NO_WATCH_ID, ProgressAnswer, StreamEnd},
        payload::Payload,
        shares::Counted,
        stats,
    },
    telemetry::names::CancelReason,
    types::{Revision, Stamp},
};

/// Sent to the client of a watch that the relay has lost track of.
const FAILED: &str =
    "etcd-relay: this watch failed because of a fault in the relay; watch again from the last revision that you have";

/// The most watches that become live at once because the revisions that they begin at have arrived.
const STEP_ARRIVE: usize = 1024;

/// Guarded by the outbox's lock.
#[derive(Debug, Default)]
pub(in crate::hub) struct State {
    pub(in crate::hub) queue: DeliveryQueue,
    pub(in crate::hub) watches: Watches,
    /// The stream's task.
    pub(super) task: Resting,
    /// Tasks that wait for room in the queue, in the order in which they came. Otherwise a task that writes often would
    /// always come first.
    pub(super) waiting: BTreeSet<u64>,
    pub(super) next_waiting: u64,
    pub(in crate::hub) end: Option<StreamEnd>,
    pub(super) gone: bool,
    /// Where the last tick of the progress timer stopped because the queue was full.
    pub(in crate::hub) notify_from: Option<(FeedId, usize)>,
}

impl State {
    pub(super) fn new(counted: Counted) -> Self {
        Self { watches: Watches::counted(counted), ..Self::default() }
    }
}

impl AsMut<Resting> for State {
    fn as_mut(&mut self) -> &mut Resting {
        &mut self.task
    }
}

/// What happens to a watch. If a transition is not allowed, the watch is ended.
impl State {
    /// Queues a live watch's next events, or parks the watch if the queue is full. Returns a task to wake.
    pub(in crate::hub) fn push(
        &mut self,
        feed: FeedId,
        slot: usize,
        payload: &Arc<Payload>,
        limits: &OutboxLimits,
    ) -> Option<Waker> {
        let full = self.queue.is_full(limits);
        let over = self.is_over();
        // The watch for which this is meant may have left. Another watch of this feed in its slot has these revisions,
        // or begins above them; one of another feed may still need revisions with these numbers.
        let watch = self.watches.get_mut(slot).filter(|watch| watch.is_of(feed))?;
        let through = payload.revision();
        if watch.phase() == Phase::Ahead {
            return self.push_first(feed, slot, payload, limits);
        }
        let pushable = watch.pushable(through).filter(|_| !over)?;
        let from = payload.before(pushable.next());
        if full {
            // What is missed is read from the history once the client reads again.
            self.shift(slot, Transition::Miss, payload.revision_at(from));
            return None;
        }
        pushable.push(through);
        watch.quiet = false;
        let delivery = Delivery::Events {
            watch_id: watch.id,
            payload: payload.clone(),
            from: from as u32,
            fragment: watch.fragment,
            as_of: None,
            replay: false,
        };
        self.watches.pushed(slot, through);
        self.enqueue(delivery)
    }

    /// Does the same for a watch that was ahead of its feed until now.
    #[cold]
    fn push_first(
        &mut self,
        feed: FeedId,
        slot: usize,
        payload: &Arc<Payload>,
        limits: &OutboxLimits,
    ) -> Option<Waker> {
        let next = self.watches.get(slot)?.next();
        if payload.revision() < next || self.is_over() || !self.shift(slot, Transition::Arrive, next) {
            return None;
        }
        self.push(feed, slot, payload, limits)
    }

    /// The history has what the watch needs next.
    pub(in crate::hub) fn park(&mut self, slot: usize) {
        self.stay(slot, Transition::Park);
    }

    /// See [`Transition::FallBehind`].
    pub(in crate::hub) fn fall_behind(&mut self, slot: usize, needs: Revision) {
        self.shift(slot, Transition::FallBehind, needs);
    }

    /// See [`Transition::AwaitFill`].
    pub(in crate::hub) fn await_fill(&mut self, slot: usize, needs: Revision) {
        self.shift(slot, Transition::AwaitFill, needs);
    }

    /// The watch's turn to be filled has come.
    pub(in crate::hub) fn begin_fill(&mut self, slot: usize) {
        self.stay(slot, Transition::BeginFill);
    }

    /// A watch that was catching up has everything that the feed has.
    pub(in crate::hub) fn catch_up(&mut self, slot: usize) {
        self.stay(slot, Transition::CatchUp);
    }

    /// See [`Transition::Outlast`].
    pub(in crate::hub) fn outlast(&mut self, slot: usize, needs: Revision) {
        self.shift(slot, Transition::Outlast, needs);
    }

    /// Adds the events of a watch that is parked or filling, from the revision that it needs next. The caller must wake
    /// the task, unless it runs in that task.
    pub(in crate::hub) fn give(&mut self, slot: usize, payload: Arc<Payload>, as_of: Revision) {
        let Some(watch) = self.watches.get_mut(slot) else { return };
        let from = payload.before(watch.next());
        if from == payload.revisions() {
            return;
        }
        watch.quiet = false;
        let (watch_id, fragment, replay, through) = (watch.id, watch.fragment, watch.replay, payload.revision());
        if self.pass(slot, through) {
            self.append(Delivery::Events {
                watch_id,
                payload,
                from: from as u32,
                fragment,
                as_of: Some(as_of),
                replay,
            });
        }
    }

    /// A watch that is parked or filling has everything up to `through`. Returns false if it was ended.
    pub(in crate::hub) fn pass(&mut self, slot: usize, through: Revision) -> bool {
        let next = self.watches.get(slot).map(|watch| watch.next().max(through.next()));
        next.is_some_and(|next| self.shift(slot, Transition::Pass, next))
    }

    /// Ends a watch with `cancellation`. After a compaction the id stays in use until the client cancels it. Returns
    /// what the feed has to take out, and the task to wake.
    pub(in crate::hub) fn end_watch(
        &mut self,
        slot: usize,
        cancellation: Cancellation,
        why: CancelReason,
    ) -> (Left, Option<Waker>) {
        let left = if cancellation.compact_revision == Revision::ZERO {
            stats::unsubscribed(1, why);
            self.watches.remove(slot)
        } else {
            let compacted = self.watches.compact(slot);
            debug_assert!(compacted.is_ok(), "a fault of the relay: {compacted:?}");
            match compacted {
                Ok(left) => {
                    stats::canceled(why);
                    left
                }
                Err(impossible) => {
                    self.fail(slot, &impossible);
                    return (Left { link: None, place: None }, None);
                }
            }
        };
        (left, self.enqueue(Delivery::Canceled(Box::new(cancellation))))
    }

    fn stay(&mut self, slot: usize, transition: Transition) {
        if let Some(next) = self.watches.get(slot).map(super::Watch::next) {
            self.shift(slot, transition, next);
        }
    }

    /// Returns false if the transition was not allowed.
    fn shift(&mut self, slot: usize, transition: Transition, next: Revision) -> bool {
        let shifted = self.watches.shift(slot, transition, next);
        debug_assert!(shifted.is_ok(), "a fault of the relay: {shifted:?}");
        if let Err(impossible) = &shifted {
            self.fail(slot, impossible);
        }
        shifted.is_ok()
    }

    /// Ends a watch that the relay has lost track of. The client is told, and nothing more is queued for it. Its id
    /// stays in use until the client cancels it or the stream ends, since the feed can only take it out then.
    pub(in crate::hub) fn fail(&mut self, slot: usize, impossible: &Impossible) {
        let Some(watch) = self.watches.get(slot) else { return };
        let (watch_id, next) = (watch.id, watch.next());
        tracing::error!(watch_id, %impossible, "A fault of the relay ended a watch; please report it");
        if self.watches.shift(slot, Transition::Fail, next).is_ok() {
            stats::canceled(CancelReason::Fault);
            let cancellation = Cancellation { watch_id, reason: FAILED.to_owned(), ..Cancellation::default() };
            // This is the only wake-up under the lock, since the caller does not expect one. The woken task finds the
            // lock taken for a moment.
            if let Some(waker) = self.enqueue(Delivery::Canceled(Box::new(cancellation))) {
                waker.wake();
            }
        }
    }
}

/// Progress.
impl State {
    /// Queues the stream's progress if etcd would report it: there are watches, all of them are live, and none waits
    /// for a future revision. `reached` has the revision of each feed. This takes a moment, however many watches there
    /// are.
    pub(in crate::hub) fn progress(
        &mut self,
        stamp: &Stamp,
        reached: &[(FeedId, Revision)],
    ) -> (ProgressAnswer, Option<Waker>) {
        let arrived = reached.iter().all(|(feed, revision)| self.watches.arrive(*feed, *revision, STEP_ARRIVE));
        if !arrived || self.watches.newest() > stamp.revision {
            // A watch in a feed that is ahead was already told of later revisions, or began after this one.
            return (ProgressAnswer::Later, None);
        }
        let behind = self.watches.parked() + self.watches.catching_up() + self.watches.compacted() > 0;
        if behind || self.watches.some_ahead() || self.watches.is_empty() {
            return (ProgressAnswer::Silence, None);
        }
        self.watches.told(stamp.revision);
        let waker = self.enqueue(Delivery::Progress { watch_id: NO_WATCH_ID, stamp: stamp.clone() });
        (ProgressAnswer::Sent, waker)
    }

    /// The progress timer's tick for some of the watches of a feed that is at `stamp`, namely those in slots from
    /// `from` on. Each live watch that asked for notifications and got nothing since the last tick is told its
    /// progress, while the queue has room. With `all`, so are those that got something, and the room does not matter.
    pub(in crate::hub) fn notify_progress(
        &mut self,
        feed: FeedId,
        stamp: &Stamp,
        all: bool,
        from: usize,
        limits: &OutboxLimits,
    ) -> (Notified, Option<Waker>) {
        let due = self.watches.due_for_progress(feed, stamp.revision, all, from);
        let mut waker = None;
        for (slot, watch_id) in due.watches {
            if self.queue.is_full(limits) && !all {
                self.watches.ticked(feed, from..slot);
                return (Notified::Full(slot), waker);
            }
            if self.shift(slot, Transition::TellProgress, stamp.revision.next()) {
                waker = self.enqueue(Delivery::Progress { watch_id, stamp: stamp.clone() }).or(waker);
            }
        }
        self.watches.ticked(feed, from..due.looked_through);
        let is_last = due.looked_through >= self.watches.slots();
        (if is_last { Notified::All } else { Notified::Some(due.looked_through) }, waker)
    }
}

/// How far [`State::notify_progress`] got.
#[derive(Clone, Copy, Debug)]
pub(in crate::hub) enum Notified {
    /// Through all slots.
    All,
    /// To this slot; the next ones may follow.
    Some(usize),
    /// To this slot, because the client does not read.
    Full(usize),
}

/// The queue, and the stream as a whole.
impl State {
    /// Adds a delivery and returns the task to wake. Nothing is added to a stream that has ended: its client resumes
    /// from the last revision that it got, and a busy feed must not put off the end for ever.
    pub(in crate::hub) fn enqueue(&mut self, delivery: Delivery) -> Option<Waker> {
        self.append(delivery).then(|| self.task.take()).flatten()
    }

    /// Does the same if the task needs no wake-up. Returns whether it was added.
    fn append(&mut self, delivery: Delivery) -> bool {
        let open = !self.is_over();
        if open {
            self.queue.add(delivery);
        }
        open
    }

    /// Returns the stream's task to wake when nothing was queued but there is something to do.
    pub(in crate::hub) fn wake(&mut self) -> Option<Waker> {
        self.task.take()
    }

    /// Whether the stream has ended or is gone, so that nothing new may begin on it.
    pub(in crate::hub) fn is_over(&self) -> bool {
        self.gone || self.end.is_some()
    }

    /// Whether it is the parked watches' turn: there is room, and no fill waits for it that serves a watch which is
    /// further behind. If the parked watches always came first, such a fill would find no room. If they never did,
    /// fills that cannot catch up would hold them up for ever.
    pub(super) fn are_parked_next(&self, limits: &OutboxLimits) -> bool {
        self.watches.parked() > 0
            && self.queue.is_low(limits)
            && (self.waiting.is_empty() || self.watches.is_a_parked_one_behind_the_filling())
    }

    /// Whether no more should be queued.
    pub(in crate::hub) fn is_full(&self, limits: &OutboxLimits) -> bool {
        self.queue.is_full(limits)
    }

    /// Whether a task may add something that others do not wait to add, or that it has waited for itself.
    pub(in crate::hub) fn has_room(&self, limits: &OutboxLimits, is_next: bool) -> bool {
        (is_next || self.waiting.is_empty()) && !self.is_full(limits)
    }

    /// The slot of a watch that is being filled; `None` if it is not any more, or its stream has ended.
    pub(in crate::hub) fn filling(&self, watch_id: i64, serial: u64) -> Option<usize> {
        if self.is_over() { None } else { self.watches.filling(watch_id, serial) }
    }
}
