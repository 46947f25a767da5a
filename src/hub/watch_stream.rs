//! [`WatchStream`]: one downstream watch stream, with its outbox and the feeds in which it has watches. This module
//! joins the two: it creates, drains, cancels and revokes watches, and makes sure that a stream that is gone leaves
//! nothing behind.
//!
//! Not here: the wire form, see `front`; what is queued, and the positions of watches, see `outbox`; how watches that
//! are behind get their events, see `catch_up`, `backfill` and `fill`; how watches end, see `ends`. A feed refers to
//! outboxes but not to streams, and an outbox refers to neither, so there are no reference cycles.
//! Always holds: the lock order is feed, then outbox, then the list of feeds; the list has each feed in which the
//! outbox has a watch, and for a while some feeds in which it had one; after [`WatchStream::leave`] it is empty.

mod progress;
mod watching;

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use hashbrown::HashSet;
use parking_lot::Mutex;
use smallvec::SmallVec;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

pub use self::watching::WatchStats;

use super::{
    Feed, backfill, catch_up,
    delivery::{Cancellation, Delivery, Drained, NO_WATCH_ID, ProgressAnswer, StreamEnd},
    ends,
    feed::PastTasks,
    fill,
    index::{Member, WatchOptions},
    outbox::{FeedId, Found, Link, NewWatch, Outbox, OutboxLimits, State, Watch, wake},
    shares::Counted,
    standing::Mark,
    stats,
};
use crate::types::{ClientKey, Header, KeyRange, Revision, Stamp};

/// The most steps of reading for parked watches in one poll: a long history with few matches must not hold up the
/// executor.
const POLL_STEPS: usize = 8;

/// One downstream watch stream; see the module.
#[derive(Debug)]
pub struct WatchStream {
    pub(super) outbox: Arc<Outbox>,
    feeds: Mutex<Feeds>,
}

/// Most streams watch within a single feed.
type Feeds = SmallVec<[Arc<Feed>; 1]>;

/// A request for a watch.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// The id that the client requests; zero for any.
    pub watch_id: i64,
    /// The keys, which lie inside the feed's range.
    pub range: KeyRange,
    /// Filters, and the form of events.
    pub options: WatchOptions,
    /// The first revision wanted; zero for "from now on".
    pub start_revision: Revision,
    /// Whether the client wants progress notifications.
    pub progress_notify: bool,
    /// Whether large responses may be split between events.
    pub fragment: bool,
    /// The newest revision that the cluster is known to have. A watch "from now" begins above it, even if the feed does
    /// not have it yet, and above what the feed has.
    pub known: Revision,
    /// Upstream reported that [`Self::oldest_needed`] is compacted. Then upstream serves the beginning of the watch
    /// instead of the history.
    pub compacted: bool,
}

impl Subscribe {
    /// The oldest revision that this watch concerns. That is the one before its first, if the client wants to know what
    /// the first events replaced. At the compact revision itself etcd sends the events, but no longer what they
    /// replaced.
    #[must_use]
    pub fn oldest_needed(&self) -> Revision {
        let start = self.start_revision;
        if self.options.prev_kv && start > Revision::new(1) { start.previous() } else { start }
    }
}

/// What upstream answered after a create had arrived.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    /// The feed's position before upstream was asked. If the feed has begun again since, no watch is created.
    pub mark: Option<Mark>,
    /// The revision that was current then. A watch "from now" begins above it and gets what the feed has had since, as
    /// at a member that handles the create at that time. `None` if it is not known.
    pub current: Option<Revision>,
}

/// Why a subscription was not made.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SubscribeError {
    /// The feed has ended or has no snapshot. The caller should look for a feed again.
    #[error("the feed is not serving")]
    NotServing,
    /// The feed has begun again since its mark was taken, so what upstream answered may not be about what it has now.
    #[error("the feed has begun again")]
    BegunAgain,
    /// The stream has a watch with this id.
    #[error("mvcc: duplicate watch ID provided on the WatchStream")]
    DuplicateId,
    /// The stream has as many watches as it may.
    #[error("etcd-relay: this stream has as many watches as --max-watches-per-stream allows; open another stream")]
    TooMany,
    /// The client has as many watches as it may, over all its streams.
    #[error(
        "etcd-relay: this client has as many watches as --max-watches-per-client allows, over all streams of its address or of its user"
    )]
    ClientFull,
    /// The stream is gone.
    #[error("the stream is gone")]
    Gone,
}

/// A watch, as [`WatchStream::live_watches`] found it.
#[derive(Clone, Debug)]
pub struct LiveWatch {
    /// Its id.
    pub watch_id: i64,
    /// Distinguishes it from a later watch with the same id.
    serial: u64,
    /// Its keys.
    pub range: KeyRange,
}

/// The figures of [`WatchStream::stats`].
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct WatchStreamStats {
    /// Watches of the stream.
    pub watches: usize,
    /// Those that are parked.
    pub parked: usize,
    /// Those that the history does not reach.
    pub filling: usize,
    /// Deliveries that wait.
    pub queued: usize,
    /// Event bytes that wait.
    pub queued_bytes: usize,
    /// The lowest revision that a watch which is behind still needs.
    pub behind_from: Option<Revision>,
    /// How many revisions that watch is behind its feed; zero if no watch is behind.
    pub lag_revisions: i64,
}

impl WatchStream {
    /// A stream of this client, without watches.
    #[must_use]
    pub fn new(limits: OutboxLimits, client: ClientKey) -> Arc<Self> {
        Self::counted(limits, client, Counted::default())
    }

    /// The same, with watches that count for `counted`.
    #[must_use]
    pub fn counted(limits: OutboxLimits, client: ClientKey, counted: Counted) -> Arc<Self> {
        Arc::new(Self { outbox: Outbox::new(limits, client, counted), feeds: Mutex::default() })
    }

    /// The client of the stream.
    #[must_use]
    pub fn client(&self) -> ClientKey {
        self.outbox.client
    }

    /// Creates a watch: queues its `Created`, then its events follow.
    ///
    /// # Errors
    /// See [`SubscribeError`]; nothing was queued then.
    pub fn subscribe(&self, feed: &Arc<Feed>, subscribe: &Subscribe) -> Result<(), SubscribeError> {
        self.subscribe_after(feed, Answered::default(), subscribe)
    }

    /// The same, after upstream was asked.
    ///
    /// # Errors
    /// See [`SubscribeError`]; nothing was queued then.
    pub fn subscribe_after(
        &self,
        feed: &Arc<Feed>,
        answered: Answered,
        subscribe: &Subscribe,
    ) -> Result<(), SubscribeError> {
        let mut inner = feed.lock();
        if inner.closed || !feed.is_serving() {
            return Err(SubscribeError::NotServing);
        }
        if answered.mark.is_some_and(|mark| mark.epoch != inner.epoch) {
            return Err(SubscribeError::BegunAgain);
        }
        let now = inner.revision;
        let mut state = self.outbox.lock();
        if state.is_over() {
            return Err(SubscribeError::Gone);
        }
        if state.watches.len() >= self.outbox.limits.watches {
            return Err(SubscribeError::TooMany);
        }
        let admitted = state.watches.admit(subscribe.watch_id).map_err(|_| SubscribeError::ClientFull)?;
        let id = admitted.ok_or(SubscribeError::DuplicateId)?;
        let mut has_others = false;
        let (attachment, outbox, watch) = state.watches.attach(feed.id(), || {
            has_others = self.add_feed(feed);
            inner.outboxes.insert(self.outbox.clone())
        });
        let (group, place) = inner.index.insert(&subscribe.range, subscribe.options, Member { outbox, watch });
        let start = subscribe.start_revision;
        let from_now = start == Revision::ZERO;
        let current = match answered.current {
            Some(current) if from_now => current,
            None if from_now => now.max(subscribe.known),
            _ => now,
        };
        let next = if from_now { current.next() } else { start };
        if current > now {
            // The feed will reach it, unless the cluster goes back.
            feed.begun_above(current);
        }
        let past = next <= now;
        let lags = past && (subscribe.compacted || next < inner.history.start());
        let parked = past && !lags && !inner.history.ends_before(next);
        let new = NewWatch {
            id,
            next,
            from_now,
            attachment,
            link: Link { group, place },
            fragment: subscribe.fragment,
            progress_notify: subscribe.progress_notify,
            replay: lags || parked,
        };
        let slot = state.watches.add(new, now);
        let waker =
            state.enqueue(Delivery::Created { watch_id: id, stamp: Stamp { revision: current, ..inner.stamp() } });
        let mut tasks = PastTasks::default();
        if past && subscribe.compacted {
            tasks = inner.lag_far(&mut state, slot, next);
        } else if lags {
            tasks = inner.lag(&mut state, slot, next);
        } else if parked {
            state.park(slot);
        }
        drop(state);
        drop(inner);
        stats::subscribed();
        backfill::start(tasks, feed, [&self.outbox]);
        wake(waker);
        if has_others {
            // Otherwise a stream that goes from feed to feed would keep all feeds in which it ever had a watch.
            self.forget_left();
        }
        Ok(())
    }

    /// Moves what waits into `batch`, up to about `most_bytes` of events, but at least one delivery.
    ///
    /// Ready with [`Drained::Some`] if there was something. Otherwise the task will be woken.
    pub fn poll_drain(&self, cx: &mut Context<'_>, batch: &mut Vec<Delivery>, most_bytes: usize) -> Poll<Drained> {
        for _ in 0..POLL_STEPS {
            match self.outbox.drain(cx, batch, most_bytes) {
                Found::Some { want_turns, parked_next } => {
                    if want_turns {
                        self.feeds().iter().for_each(|feed| fill::enqueue(feed, &self.outbox));
                    }
                    // Not only once the queue is empty, since live watches may never let it be.
                    if parked_next {
                        catch_up::step(&self.outbox, |feed| self.feed(feed));
                    }
                    return Poll::Ready(Drained::Some);
                }
                Found::Parked => catch_up::step(&self.outbox, |feed| self.feed(feed)),
                Found::Nothing => return Poll::Pending,
                Found::End(end) => return Poll::Ready(Drained::End(end)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits until the queue has room, or the stream is gone. Whatever answers the client's requests must not run ahead
    /// of the client's reading. Cancel safe.
    pub async fn wait_room(&self) {
        self.outbox.wait_room().await;
    }

    /// Queues the answer to a create that is refused.
    pub fn refuse(&self, header: Header, reason: String) {
        let cancellation =
            Cancellation { watch_id: NO_WATCH_ID, refused: true, header, reason, ..Cancellation::default() };
        self.outbox.queue(Delivery::Canceled(Box::new(cancellation)));
    }

    /// Ends a watch because the client cancelled it, and queues the answer. An unknown id gets no answer, as in etcd.
    pub fn cancel(&self, watch_id: i64) {
        if let Some(feed) = self.feed_of(watch_id) {
            ends::cancel(&feed, &self.outbox, watch_id);
        }
    }

    /// Ends a watch whose client may not read its range any more, with etcd's reason. It does nothing if the watch is
    /// gone, even if another watch has its id by now.
    pub fn revoke(&self, watch: &LiveWatch, reason: &str) {
        if let Some(feed) = self.feed_of(watch.watch_id) {
            ends::revoke(&feed, &self.outbox, watch.watch_id, watch.serial, reason.to_owned());
        }
    }

    /// Ends the stream once everything that is queued was sent; nothing more is queued. With `progress`, the stream
    /// gets a last progress report if etcd would send one; otherwise each live watch that asked for notifications gets
    /// one. A client that resumes elsewhere then starts where it stopped.
    pub fn end(&self, why: StreamEnd, progress: bool) {
        if progress && self.answer_progress() != ProgressAnswer::Sent {
            self.notify_progress(true);
        }
        self.outbox.end(why);
    }

    /// Ends the stream now: its watches get nothing more, and what is queued is dropped. For a client that may no
    /// longer read it.
    pub fn cut(&self, why: StreamEnd) {
        // This comes first, so that no watch is added meanwhile.
        let waker = self.outbox.cut(why);
        for feed in self.feeds() {
            ends::forget(&feed, &self.outbox);
        }
        wake(waker);
    }

    /// The stream is gone, so its watches are taken out of all feeds. Called once, when the front drops the stream.
    pub fn leave(&self) {
        // This comes first, so that no watch is added meanwhile.
        self.outbox.leave();
        let feeds = std::mem::take(&mut *self.feeds.lock());
        for feed in feeds {
            ends::forget(&feed, &self.outbox);
        }
        let watches = std::mem::take(&mut self.outbox.lock().watches);
        drop(watches);
    }

    /// Cancelled when the stream is gone.
    #[must_use]
    pub fn gone(&self) -> &CancellationToken {
        self.outbox.gone()
    }

    /// The watches that can still receive events, each with its range, in no order.
    #[must_use]
    pub fn live_watches(&self) -> Vec<LiveWatch> {
        self.feeds().iter().flat_map(|feed| self.live_watches_in(feed)).collect()
    }

    fn live_watches_in(&self, feed: &Feed) -> Vec<LiveWatch> {
        let mut watches = Vec::new();
        let mut from = Some(0);
        while let Some(slot) = from {
            let inner = feed.lock();
            let state = self.outbox.lock();
            let (slots, next) = state.watches.some_slots_in(feed.id(), slot);
            from = next;
            let alive = |watch: &&Watch| !watch.phase().is_over();
            watches.extend(slots.iter().filter_map(|slot| state.watches.get(*slot)).filter(alive).map(|watch| {
                LiveWatch {
                    watch_id: watch.id,
                    serial: watch.serial,
                    range: inner.index.group(watch.group()).range.clone(),
                }
            }));
        }
        watches
    }

    /// The feeds in which the stream has watches.
    #[must_use]
    pub fn feeds(&self) -> Vec<Arc<Feed>> {
        self.forget_left();
        self.feeds.lock().to_vec()
    }

    /// Drops the feeds in which the stream has no watch any more.
    fn forget_left(&self) {
        let left = {
            let state = self.outbox.lock();
            prune(&state, &mut self.feeds.lock())
        };
        // Not under a lock, since it may be the last reference to a feed's whole content.
        drop(left);
    }

    /// The feed of a watch.
    #[must_use]
    pub fn feed_of(&self, watch_id: i64) -> Option<Arc<Feed>> {
        let state = self.outbox.lock();
        self.feed(state.watches.feed_of(state.watches.slot_of(watch_id)?)?)
    }

    /// Whether some watch has missed what its feed published, and has to catch up.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        let state = self.outbox.lock();
        state.watches.parked() + state.watches.catching_up() > 0
    }

    /// Number of watches.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.outbox.lock().watches.len()
    }

    /// Figures for `/debug/state`.
    #[must_use]
    pub fn stats(&self) -> WatchStreamStats {
        let state = self.outbox.lock();
        let behind = state.watches.furthest_behind();
        let lag = behind.and_then(|(next, feed)| Some(self.feed(feed)?.revision().get() - next.get() + 1));
        WatchStreamStats {
            watches: state.watches.len(),
            parked: state.watches.parked(),
            filling: state.watches.catching_up(),
            queued: state.queue.len(),
            queued_bytes: state.queue.bytes(),
            behind_from: behind.map(|(next, _)| next),
            lag_revisions: lag.unwrap_or(0).max(0),
        }
    }

    /// A feed in which the stream has a watch.
    fn feed(&self, id: FeedId) -> Option<Arc<Feed>> {
        self.feeds.lock().iter().find(|feed| feed.id() == id).cloned()
    }

    /// Adds a feed, and returns whether there are others in the list.
    fn add_feed(&self, feed: &Arc<Feed>) -> bool {
        let mut feeds = self.feeds.lock();
        if !feeds.iter().any(|known| Arc::ptr_eq(known, feed)) {
            feeds.push(feed.clone());
        }
        feeds.len() > 1
    }
}

/// Removes the feeds in which the stream has no watch any more, and returns them.
fn prune(state: &State, feeds: &mut Feeds) -> Feeds {
    if feeds.len() == state.watches.feeds().count() {
        return Feeds::new();
    }
    let attached: HashSet<FeedId> = state.watches.feeds().collect();
    let (here, left) = std::mem::take(feeds).into_iter().partition(|feed| attached.contains(&feed.id()));
    *feeds = here;
    left
}

#[cfg(test)]
mod tests;
