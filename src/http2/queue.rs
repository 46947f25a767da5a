//! [`TurnQueue`]: the connections that have more to do than one turn allows, and wait for their next turn.
//!
//! A connection that lists a million keys is ready all the time. If fifty of them were ready at once, whatever else
//! becomes ready would wait for fifty long turns. So only a few of them are ready at a time, and the others wait here. The
//! first request of a new connection waits here too: when a thousand clients come at once, their requests are there at
//! the same time, and each takes as long as many deliveries.
//!
//! Not here: how long a turn may last, see `turn`; who shares a queue, see `relay`. Always holds:
//! - every second place goes to the next client in a round of those that wait, for its connection that has waited longest.
//!   So a client has a place after at most two of each other client, however many connections those have;
//! - the other places go to the connection that has waited longest of all. So nobody waits more than twice as long as in
//!   order of arrival, such as the connections of many clients behind one address, which are one client here;
//! - a place is given back when its turn is over. A turn waits for nobody, so nobody waits here for what a client does;
//! - somebody waits only while all places are taken;
//! - there is at least one place for each thread. There are more while the connections with a place wait so long for
//!   their turns, behind others that never wait here, that less than half of the threads' time is spent on these turns.
//!   So those who wait here have about half of the time, however busy the others are;
//! - no waker is woken or dropped under the lock.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    future::poll_fn,
    mem,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::types::ClientKey;

/// Who has waited less than this for a turn whose place it had is no reason for more places: a thread needs as long to
/// look at its sockets, or is not scheduled for as long.
const SOON: Duration = Duration::from_millis(1);
/// How often there may be one place more. A storm of clients keeps threads busy for a moment, but is no reason to let
/// all of them in at once.
const ONE_MORE: Duration = Duration::from_millis(10);
/// Most places for each thread: a thread's own queue has no room for more tasks.
const MOST: usize = 256;

/// See the module. Clones are the same queue.
#[derive(Clone)]
pub struct TurnQueue(Arc<Shared>);

/// What is reported of a connection in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnWait {
    /// It waits.
    Began,
    /// It has waited this long, and has a place now or has left.
    Ended(Duration),
}

struct Shared {
    threads: usize,
    state: Mutex<State>,
    report: Box<dyn Fn(TurnWait) + Send + Sync>,
}

#[derive(Debug)]
struct State {
    /// Places, taken or not.
    places: usize,
    taken: usize,
    /// Who waits, by number, which is the order of arrival.
    waiting: BTreeMap<u64, Waiter>,
    /// Their numbers, by client. A client without a waiting connection has no entry.
    clients: BTreeMap<ClientKey, BTreeSet<u64>>,
    /// The round goes on after this client.
    last: Option<ClientKey>,
    /// The next place goes to whoever has waited longest of all, and not to the next client of the round.
    by_arrival: bool,
    next_number: u64,
    /// When there was one place more.
    grew: Instant,
}

#[derive(Debug)]
struct Waiter {
    client: ClientKey,
    waker: Waker,
}

/// The connections that were given a place, to be woken.
type Given = SmallVec<[Waker; 2]>;

/// The place that a connection waits for, or holds. Dropping it makes way for the next connection.
pub(crate) struct Place {
    queue: TurnQueue,
    client: ClientKey,
    phase: PlacePhase,
}

#[derive(Clone, Copy, Debug)]
enum PlacePhase {
    /// Not asked for.
    New,
    /// In the queue with this number, or it was given a place and does not know yet.
    Waiting {
        number: u64,
        since: Instant,
    },
    Held {
        since: Instant,
        turn_began: Option<Instant>,
    },
}

impl TurnQueue {
    /// A queue for the connections of that many threads, at least one. `report` is called when a connection begins to
    /// wait, and when it does not wait any more.
    #[must_use]
    pub fn new(threads: usize, report: impl Fn(TurnWait) + Send + Sync + 'static) -> Self {
        let threads = threads.clamp(1, usize::MAX / MOST);
        let state = State {
            places: threads,
            taken: 0,
            waiting: BTreeMap::new(),
            clients: BTreeMap::new(),
            last: None,
            by_arrival: false,
            next_number: 0,
            grew: Instant::now(),
        };
        Self(Arc::new(Shared { threads, state: Mutex::new(state), report: Box::new(report) }))
    }

    /// A place at the end of this client's part of the queue, from the first [`Place::poll_held`] on.
    pub(super) fn join(&self, client: ClientKey) -> Place {
        Place { queue: self.clone(), client, phase: PlacePhase::New }
    }

    /// Waits for a turn that may be long, like an HTTP/2 connection does: for a place, and then, unless the task is woken
    /// meanwhile, until the runtime has checked the sockets and the tasks that it found have run. The turn begins when this returns, and ends when the
    /// place is dropped. Cancel safe.
    pub(crate) async fn turn(self, client: ClientKey) -> Place {
        let mut place = self.join(client);
        poll_fn(|cx| place.poll_held(cx)).await;
        tokio::task::yield_now().await;
        let mut is_behind = false;
        poll_fn(|cx| {
            if !mem::replace(&mut is_behind, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        place.begin_turn();
        place
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.0.state.lock().places
    }
}

impl State {
    /// A place for `client` at once, if one is free.
    fn take(&mut self, client: ClientKey) -> bool {
        let is_free = self.taken < self.places;
        if is_free {
            self.taken += 1;
            self.last = Some(client);
        }
        is_free
    }

    /// Puts a connection at the end of its client's part. Returns its number.
    fn enter(&mut self, client: ClientKey, waker: Waker) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.clients.entry(client).or_default().insert(number);
        self.waiting.insert(number, Waiter { client, waker });
        number
    }

    /// Takes a connection out of the queue. `None` if it is not there: it was given a place.
    fn leave(&mut self, number: u64) -> Option<Waker> {
        let Waiter { client, waker } = self.waiting.remove(&number)?;
        if let Entry::Occupied(mut numbers) = self.clients.entry(client) {
            numbers.get_mut().remove(&number);
            if numbers.get().is_empty() {
                numbers.remove();
            }
        }
        Some(waker)
    }

    /// A place is free again.
    fn free(&mut self) -> Given {
        self.taken -= 1;
        self.give()
    }

    /// Gives the free places away.
    fn give(&mut self) -> Given {
        let mut given = Given::new();
        while self.taken < self.places
            && let Some(waker) = self.next()
        {
            self.taken += 1;
            given.push(waker);
        }
        given
    }

    /// Takes whoever is next out of the queue.
    fn next(&mut self) -> Option<Waker> {
        let number = if self.by_arrival {
            *self.waiting.keys().next()?
        } else {
            let after = self.last.map_or(Unbounded, Excluded);
            let mut later = self.clients.range((after, Unbounded));
            let (client, numbers) = later.next().or_else(|| self.clients.iter().next())?;
            self.last = Some(*client);
            *numbers.first()?
        };
        self.by_arrival = !self.by_arrival;
        self.leave(number)
    }
}

impl Shared {
    /// A place is free again, after a wait for the turn and the turn itself.
    fn give_back(&self, waited: Duration, turn: Duration) -> Given {
        let now = Instant::now();
        let mut state = self.state.lock();
        // If it is so with every place: the time that is spent on these turns, and that all threads have meanwhile.
        let spent = turn * state.places as u32;
        let time = (waited + turn) * self.threads as u32;
        let too_few = waited > SOON && spent * 2 < time;
        let too_many = !too_few && (state.waiting.is_empty() || spent * 4 > time * 3);
        if too_few && now.duration_since(state.grew) >= ONE_MORE && state.places < self.threads * MOST {
            state.grew = now;
            state.places += 1;
        }
        if too_many && state.places > self.threads {
            state.places -= 1;
        }
        state.free()
    }
}

impl fmt::Debug for TurnQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnQueue").field("state", &*self.0.state.lock()).finish_non_exhaustive()
    }
}

impl Place {
    /// Waits until the place is this connection's.
    pub(super) fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let shared = &self.queue.0;
        let waited_since = match self.phase {
            PlacePhase::Held { .. } => return Poll::Ready(()),
            PlacePhase::New => {
                let mut state = shared.state.lock();
                if state.take(self.client) {
                    None
                } else {
                    let number = state.enter(self.client, cx.waker().clone());
                    drop(state);
                    self.phase = PlacePhase::Waiting { number, since: Instant::now() };
                    (shared.report)(TurnWait::Began);
                    return Poll::Pending;
                }
            }
            PlacePhase::Waiting { number, since } => {
                let mut state = shared.state.lock();
                if let Some(Waiter { waker, .. }) = state.waiting.get_mut(&number) {
                    if !waker.will_wake(cx.waker()) {
                        let before = mem::replace(waker, cx.waker().clone());
                        drop(state);
                        drop(before);
                    }
                    return Poll::Pending;
                }
                Some(since)
            }
        };
        let now = Instant::now();
        if let Some(since) = waited_since {
            (shared.report)(TurnWait::Ended(now - since));
        }
        self.phase = PlacePhase::Held { since: now, turn_began: None };
        Poll::Ready(())
    }

    /// The turn begins for which this connection has the place.
    pub(super) fn begin_turn(&mut self) {
        if let PlacePhase::Held { turn_began, .. } = &mut self.phase {
            *turn_began = Some(Instant::now());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shared = &self.queue.0;
        let given = match self.phase {
            PlacePhase::New => Given::new(),
            PlacePhase::Waiting { number, since } => {
                (shared.report)(TurnWait::Ended(since.elapsed()));
                let mut state = shared.state.lock();
                let left = state.leave(number);
                let given = if left.is_some() { Given::new() } else { state.free() };
                drop(state);
                drop(left);
                given
            }
            PlacePhase::Held { since, turn_began: Some(began) } => shared.give_back(began - since, began.elapsed()),
            // One without a turn says nothing about how long turns are waited for.
            PlacePhase::Held { turn_began: None, .. } => shared.state.lock().free(),
        };
        given.into_iter().for_each(Waker::wake);
    }
}
