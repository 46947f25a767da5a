//! [`Room`]: limits the memory of many requests together, and each client's share of it.
//!
//! The limit of a single request is not here. It is used for large request bodies of the JSON gateway and of v2, for
//! listings of v2, and for reads of a v2 store outside every feed. Always holds: a [`Place`] keeps its part of the room
//! until it is dropped. A client gets no more than what remains free afterwards, so one client has at most half of the
//! room, and a client without any always finds some. No request waits for room longer than `PATIENCE`.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use crate::types::ClientKey;

/// The unit in which room is taken. Shorter texts need none, since the number of requests limits them.
const BLOCK: usize = 64 << 10;
/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Room {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The error for a client that gets no room in time.
    full: &'static str,
}

/// All counts are in blocks.
#[derive(Debug)]
struct State {
    /// Below zero if more was counted than there is.
    free: i64,
    /// The clients that have room or wait for it.
    clients: BTreeMap<ClientKey, Share>,
    /// Number of waiting requests.
    waiting: usize,
    /// The client that got room last.
    last: Option<ClientKey>,
    last_number: u64,
}

#[derive(Debug, Default)]
struct Share {
    taken: i64,
    /// In order of arrival.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    blocks: i64,
    granted: oneshot::Sender<()>,
}

/// There was no room in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full(
    /// The error for the client.
    pub &'static str,
);

/// A part of the room; empty at first.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    client: ClientKey,
    blocks: i64,
}

/// A request that waits for room. Dropping it ends the wait, and returns room that was granted but not noticed.
struct Ticket<'a> {
    shared: &'a Shared,
    client: ClientKey,
    number: u64,
    blocks: i64,
    is_taken: bool,
}

impl Room {
    /// Room for so many bytes, and the error for a client that gets none in time.
    #[must_use]
    pub fn new(bytes: usize, full: &'static str) -> Self {
        let (clients, last) = (BTreeMap::new(), None);
        let state = State { free: blocks_of(bytes), clients, waiting: 0, last, last_number: 0 };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), full }) }
    }

    /// A place for a text of this client.
    #[must_use]
    pub fn place(&self, client: ClientKey) -> Place {
        Place { shared: self.shared.clone(), client, blocks: 0 }
    }

    /// A place for a text of `len` bytes that already exists. It counts even if there is no room.
    #[must_use]
    pub fn count(&self, client: ClientKey, len: usize) -> Place {
        let mut place = self.place(client);
        place.blocks = blocks_of(len);
        if place.blocks > 0 {
            let mut state = self.shared.state.lock();
            state.free -= place.blocks;
            state.clients.entry(client).or_default().taken += place.blocks;
        }
        place
    }

    /// Bytes that a client occupies.
    #[cfg(test)]
    pub(crate) fn taken(&self, client: ClientKey) -> usize {
        let taken = self.shared.state.lock().clients.get(&client).map_or(0, |share| share.taken);
        usize::try_from(taken).expect("not less than nothing") * BLOCK
    }

    /// Bytes that are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        usize::try_from(self.shared.state.lock().free).expect("some") * BLOCK
    }
}

impl Place {
    /// The client that it counts for.
    #[must_use]
    pub fn client(&self) -> ClientKey {
        self.client
    }

    /// Whether it is empty, which is enough for a short text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// Whether it is large enough for a text of `len` bytes.
    #[must_use]
    pub fn fits(&self, len: usize) -> bool {
        blocks_of(len) <= self.blocks
    }

    /// Grows it for a text of `len` bytes, if its client may have that now.
    pub fn try_grow(&mut self, len: usize) -> bool {
        let more = (blocks_of(len) - self.blocks).max(0);
        let is_enough = more == 0 || self.shared.state.lock().take(self.client, more);
        self.blocks += if is_enough { more } else { 0 };
        is_enough
    }

    /// Grows it for a text of `len` bytes, and waits if necessary.
    ///
    /// # Errors
    /// Fails if there is no room in time.
    pub async fn grow(&mut self, len: usize) -> Result<(), Full> {
        if self.try_grow(len) {
            return Ok(());
        }
        let blocks = blocks_of(len) - self.blocks;
        let (granted, is_granted) = oneshot::channel();
        let mut ticket = {
            let mut state = self.shared.state.lock();
            let number = state.wait(self.client, blocks, granted);
            Ticket { shared: &self.shared, client: self.client, number, blocks, is_taken: false }
        };
        let in_time = timeout(PATIENCE, is_granted).await;
        ticket.is_taken = matches!(in_time, Ok(Ok(())));
        if !ticket.is_taken {
            return Err(Full(self.shared.full));
        }
        drop(ticket);
        self.blocks += blocks;
        Ok(())
    }

    /// Returns what a text of `len` bytes does not need.
    pub fn shrink(&mut self, len: usize) {
        let less = (self.blocks - blocks_of(len)).max(0);
        self.blocks -= less;
        self.shared.give_back(self.client, less);
    }

    /// Lets it count for another client, even beyond that client's share.
    pub fn pass_to(&mut self, client: ClientKey) {
        let mut state = self.shared.state.lock();
        state.clients.entry(client).or_default().taken += self.blocks;
        state.leave(self.client, self.blocks);
        self.client = client;
        state.grant();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.give_back(self.client, self.blocks);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.is_taken {
            return;
        }
        if !self.shared.state.lock().withdraw(self.client, self.number) {
            self.shared.give_back(self.client, self.blocks);
        }
    }
}

impl Shared {
    fn give_back(&self, client: ClientKey, blocks: i64) {
        if blocks > 0 {
            let mut state = self.state.lock();
            state.free += blocks;
            state.leave(client, blocks);
            state.grant();
        }
    }
}

impl State {
    /// Takes blocks for a client, if it may have them.
    fn take(&mut self, client: ClientKey, blocks: i64) -> bool {
        let taken = self.clients.get(&client).map_or(0, |share| share.taken);
        let may = may_take(self.free, taken, blocks);
        if may {
            self.free -= blocks;
            self.clients.entry(client).or_default().taken += blocks;
        }
        may
    }

    /// Adds a request to the end of its client's queue.
    fn wait(&mut self, client: ClientKey, blocks: i64, granted: oneshot::Sender<()>) -> u64 {
        self.last_number += 1;
        self.waiting += 1;
        let number = self.last_number;
        self.clients.entry(client).or_default().waiting.push_back(Waiting { number, blocks, granted });
        // The room that it waits for may have become free.
        self.grant();
        number
    }

    /// Removes a request from its client's queue. Returns false if it has already been granted its room.
    fn withdraw(&mut self, client: ClientKey, number: u64) -> bool {
        let Some(share) = self.clients.get_mut(&client) else { return false };
        let Ok(at) = share.waiting.binary_search_by_key(&number, |waiting| waiting.number) else { return false };
        share.waiting.remove(at);
        self.waiting -= 1;
        // Other requests of this client may have waited behind it for less room.
        self.leave(client, 0);
        self.grant();
        true
    }

    /// Gives free room to waiting requests: clients in turn, and the first request of each.
    fn grant(&mut self) {
        while self.waiting > 0 {
            let free = self.free;
            let may = |(client, share): (&ClientKey, &Share)| {
                let first = share.waiting.front()?;
                may_take(free, share.taken, first.blocks).then_some(*client)
            };
            let after = self.clients.range((self.last.map_or(Unbounded, Excluded), Unbounded)).find_map(may);
            let Some(client) = after.or_else(|| self.clients.iter().find_map(may)) else { return };
            let Some(share) = self.clients.get_mut(&client) else { return };
            let Some(first) = share.waiting.pop_front() else { return };
            share.taken += first.blocks;
            self.free -= first.blocks;
            self.waiting -= 1;
            self.last = Some(client);
            // If the request is gone, its ticket returns the room.
            let _ = first.granted.send(());
        }
    }

    /// Blocks no longer count for a client.
    fn leave(&mut self, client: ClientKey, blocks: i64) {
        let Some(share) = self.clients.get_mut(&client) else { return };
        share.taken -= blocks;
        if share.taken == 0 && share.waiting.is_empty() {
            self.clients.remove(&client);
        }
    }
}

/// Whether a client that has `taken` may have `more`: at most as much as then remains free.
fn may_take(free: i64, taken: i64, more: i64) -> bool {
    taken + more <= free - more
}

/// The number of blocks for this many bytes.
fn blocks_of(bytes: usize) -> i64 {
    i64::try_from(bytes / BLOCK).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    const ONE: ClientKey = ClientKey::new(1);
    const TWO: ClientKey = ClientKey::new(2);
    const THREE: ClientKey = ClientKey::new(3);

    fn room(blocks: usize) -> Room {
        Room::new(blocks * BLOCK, "full")
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_finds_no_room_is_refused_until_another_lets_go() {
        let room = room(8);
        let (mut one, mut another) = (room.place(ONE), room.place(ONE));
        one.grow(BLOCK).await.expect("room");
        one.grow(3 * BLOCK).await.expect("room");
        assert_eq!(room.free(), 5 * BLOCK, "earlier room counts");
        another.grow(BLOCK - 1).await.expect("none is needed");
        assert!(another.grow(2 * BLOCK).await.is_err());
        drop(one);
        another.grow(2 * BLOCK).await.expect("room");
        another.shrink(BLOCK);
        assert_eq!(room.free(), 7 * BLOCK);
        drop(another);
        assert_eq!(room.free(), 8 * BLOCK);
        assert!(room.shared.state.lock().clients.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_client_takes_the_room_of_another() {
        let room = room(16);
        let mut all: Vec<_> = (0..100).map(|_| room.place(ONE)).collect();
        let taken = all.iter_mut().map(|place| place.try_grow(BLOCK)).filter(|grown| *grown).count();
        assert_eq!(taken, 8, "half of the room, however many requests it has");
        let mut another = room.place(TWO);
        another.grow(4 * BLOCK).await.expect("half of the rest");
        let mut third = room.place(THREE);
        third.grow(2 * BLOCK).await.expect("half of what is left then");
        assert!(!all[99].try_grow(BLOCK));
    }

    #[tokio::test(start_paused = true)]
    async fn what_becomes_free_goes_round_the_clients() {
        let room = room(4);
        let mut held: Vec<_> = [ONE, TWO].map(|client| room.place(client)).into();
        assert!(held[0].try_grow(2 * BLOCK) && held[1].try_grow(BLOCK));
        let wait = |client: ClientKey| {
            let mut place = room.place(client);
            async move { place.grow(BLOCK).await.map(|()| place) }
        };
        let mut first = Box::pin(wait(ONE));
        let mut second = Box::pin(wait(ONE));
        let mut other = Box::pin(wait(TWO));
        for waits in [&mut first, &mut second, &mut other] {
            assert!(futures_util::poll!(waits).is_pending());
        }
        drop(held.remove(0));
        let Poll::Ready(Ok(_kept)) = futures_util::poll!(&mut first) else {
            panic!(
                "the first request is served \
            first"
            )
        };
        assert!(futures_util::poll!(&mut other).is_pending(), "the client would have more than is left");
        drop(held);
        assert!(futures_util::poll!(&mut other).is_ready());
        assert!(second.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_gives_back_what_it_has_not_noticed() {
        let room = room(4);
        let mut held = room.place(ONE);
        assert!(held.try_grow(2 * BLOCK));
        let mut place = room.place(TWO);
        let mut waits = Box::pin(place.grow(2 * BLOCK));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(held);
        assert_eq!(room.free(), 2 * BLOCK);
        drop(waits);
        assert_eq!(room.free(), 4 * BLOCK);
        assert!(room.shared.state.lock().clients.is_empty());
    }

    #[tokio::test]
    async fn what_is_there_already_counts_although_there_is_no_room() {
        let room = room(8);
        let counted = room.count(ONE, 10 * BLOCK);
        assert!(!room.place(ONE).try_grow(BLOCK) && !room.place(TWO).try_grow(BLOCK));
        drop(counted);
        assert_eq!(room.free(), 8 * BLOCK);
    }

    #[tokio::test]
    async fn a_place_that_is_passed_on_counts_for_the_other_client() {
        let room = room(8);
        let mut place = room.place(ONE);
        assert!(place.try_grow(4 * BLOCK) && !room.place(ONE).try_grow(BLOCK));
        place.pass_to(TWO);
        assert!(room.place(ONE).try_grow(2 * BLOCK) && !room.place(TWO).try_grow(BLOCK));
        drop(place);
        assert_eq!(room.free(), 8 * BLOCK);
    }
}
