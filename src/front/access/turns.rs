//! [`Turns`]: limits how many questions are asked at once, fairly between clients.
//!
//! Always holds: at most [`ASKS`] questions are under way, at most [`EACH`] of them for one client. Each client has at
//! most [`EACH`] places in the shared queue. So a client with ten thousand questions delays another client no more than
//! one with [`EACH`] questions does.

use std::sync::Arc;

use hashbrown::{HashMap, hash_map::Entry};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::types::ClientKey;

/// Most questions under way at once. etcd answers each in well under a millisecond.
const ASKS: usize = 64;
/// Most of them for one client.
pub(super) const EACH: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    /// The clients that have a question under way or waiting.
    clients: Mutex<HashMap<ClientKey, Arc<Semaphore>>>,
}

/// Permits one question while it exists.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    // The order matters: the shared permit is returned first, and the client leaves the table last.
    _all: SemaphorePermit<'a>,
    _own: OwnedSemaphorePermit,
    _seat: Seat<'a>,
}

/// A client's entry in the table. Dropping the last one removes the entry.
#[derive(Debug)]
struct Seat<'a> {
    turns: &'a Turns,
    key: ClientKey,
    own: Arc<Semaphore>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { all: Semaphore::new(ASKS), clients: Mutex::default() }
    }

    /// Waits until this client may ask. Cancel safe.
    pub(super) async fn take(&self, key: ClientKey) -> Turn<'_> {
        let own = self.clients.lock().entry(key).or_insert_with(|| Arc::new(Semaphore::new(EACH))).clone();
        let seat = Seat { turns: self, key, own: own.clone() };
        let own = own.acquire_owned().await.expect("never closed");
        let all = self.all.acquire().await.expect("never closed");
        Turn { _all: all, _own: own, _seat: seat }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut clients = self.turns.clients.lock();
        // Two references, the table's and this one: the client has no other question.
        if let Entry::Occupied(entry) = clients.entry(self.key)
            && Arc::ptr_eq(entry.get(), &self.own)
            && Arc::strong_count(&self.own) == 2
        {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_client_takes_its_share_and_the_others_theirs() {
        let turns = Turns::new();
        let (greedy, other) = (ClientKey::new(1), ClientKey::new(2));
        let mut taken: Vec<_> = (0..EACH).map(|_| turns.take(greedy).now_or_never().expect("its share")).collect();
        assert!(turns.take(greedy).now_or_never().is_none(), "no more than its share");
        let others = turns.take(other).now_or_never();
        assert!(others.is_some(), "the other clients are not delayed");
        taken.pop();
        assert!(turns.take(greedy).now_or_never().is_some());
    }

    #[tokio::test]
    async fn all_together_are_bounded_and_nothing_stays_behind() {
        let turns = Turns::new();
        let taken: Vec<_> = (0..ASKS)
            .map(|number| turns.take(ClientKey::new((number / EACH) as u64 + 1)).now_or_never().expect("room"))
            .collect();
        let mut waiting = Box::pin(turns.take(ClientKey::new(99)));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(waiting);
        drop(taken);
        assert!(turns.clients.lock().is_empty());
    }
}
