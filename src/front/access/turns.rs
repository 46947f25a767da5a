//! [`Turns`]: who may put a question to etcd now.
//!
//! Always holds: at most [`ASKS`] questions are under way, at most [`EACH`] of them for one client; of those that wait, each client
//! has at most [`EACH`] in the line that all share. So a client with ten thousand questions delays another by no more than one with
//! [`EACH`] does.

use std::sync::Arc;

use hashbrown::{HashMap, hash_map::Entry};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::types::ClientKey;

/// Most questions under way at once: etcd answers each in well under a millisecond.
const ASKS: usize = 64;
/// Most of them for one client.
pub(super) const EACH: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    /// Of the clients that have a question or wait with one.
    clients: Mutex<HashMap<ClientKey, Arc<Semaphore>>>,
}

/// A question may be put while this lives.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    // In this order: what is shared is given back first, and the client leaves the table last.
    _all: SemaphorePermit<'a>,
    _own: OwnedSemaphorePermit,
    _seat: Seat<'a>,
}

/// A client's place in the table; the last one that is dropped clears it.
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

    /// Waits for a turn of this client. Cancel safe.
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
        // The table's and this one: nobody else has a question.
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
        assert!(others.is_some(), "the others are not held up");
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
