//! [`Turns`]: how many calls each client has on the connections of a pool, and which client gets the next free place.
//!
//! Not here: the places themselves, see `pool`. Plain data, without locks or tasks.
//!
//! The client with the fewest places comes first, and of several the one that has waited longest, so a client with one
//! call never waits behind a backlog. A client may take a place only if it has fewer places than are free. So a single
//! client takes half of a full pool, two take a third each, and there is always a place left for a client that has
//! none, even if calls never end, such as those that wait for a lock. The relay itself may take all places, and waits
//! like a client without any. It shares its pools with nobody, except for the streams of keep-alives, and a client can
//! open only a few of these.
//! Always holds: `order` has exactly the clients with a waiting call; a client without a place or a waiting call is
//! forgotten.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;

use crate::types::ClientKey;

/// The clients of a pool; see the module. `T` is a waiting call.
#[derive(Debug)]
pub(super) struct Turns<T> {
    clients: HashMap<ClientKey, Client<T>>,
    /// By places held (the relay's own do not count), then by how long a client has waited. If the first client may not
    /// take a place, no client may.
    order: BTreeSet<(usize, u64, ClientKey)>,
    tickets: u64,
}

#[derive(Debug)]
struct Client<T> {
    held: usize,
    /// The ticket of its last turn, or of its first call.
    since: u64,
    /// By ticket, so that a call that gives up leaves nothing behind.
    waiting: BTreeMap<u64, T>,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { clients: HashMap::new(), order: BTreeSet::new(), tickets: 0 }
    }
}

impl<T> Turns<T> {
    /// Whether no call waits.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether `client` may take one of `free` places.
    pub(super) fn may_take(&self, client: ClientKey, free: usize) -> bool {
        free > 0 && (client == ClientKey::RELAY || self.clients.get(&client).map_or(0, |client| client.held) < free)
    }

    /// A client took a place.
    pub(super) fn take(&mut self, client: ClientKey) {
        self.change(client, |client, _| client.held += 1);
    }

    /// A client gave a place back.
    pub(super) fn release(&mut self, client: ClientKey) {
        self.change(client, |client, _| client.held = client.held.saturating_sub(1));
    }

    /// A call waits for a place. The ticket removes it again.
    pub(super) fn wait(&mut self, client: ClientKey, call: T) -> u64 {
        self.change(client, |client, ticket| {
            client.waiting.insert(ticket, call);
            ticket
        })
    }

    /// A call has stopped waiting.
    pub(super) fn cancel(&mut self, client: ClientKey, ticket: u64) {
        self.change(client, |client, _| drop(client.waiting.remove(&ticket)));
    }

    /// The call that gets one of `free` places; its client then holds that place.
    pub(super) fn next(&mut self, free: usize) -> Option<(ClientKey, T)> {
        let (_, _, client) = *self.order.first()?;
        if !self.may_take(client, free) {
            return None;
        }
        let call = self.change(client, |client, ticket| {
            client.held += 1;
            client.since = ticket;
            client.waiting.pop_first().map(|(_, call)| call)
        });
        call.map(|call| (client, call))
    }

    /// Removes and returns all waiting calls.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let waiting: Vec<ClientKey> = self.order.iter().map(|(_, _, client)| *client).collect();
        let mut calls = Vec::new();
        for client in waiting {
            calls.extend(self.change(client, |client, _| std::mem::take(&mut client.waiting)).into_values());
        }
        calls
    }

    /// Changes a client, with a new ticket available, and keeps the order.
    fn change<R>(&mut self, key: ClientKey, with: impl FnOnce(&mut Client<T>, u64) -> R) -> R {
        self.tickets += 1;
        let ticket = self.tickets;
        let client =
            self.clients.entry(key).or_insert_with(|| Client { held: 0, since: ticket, waiting: BTreeMap::new() });
        let place = |client: &Client<T>| (if key == ClientKey::RELAY { 0 } else { client.held }, client.since, key);
        self.order.remove(&place(client));
        let result = with(client, ticket);
        if !client.waiting.is_empty() {
            self.order.insert(place(client));
        } else if client.held == 0 {
            self.clients.remove(&key);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: ClientKey = ClientKey::new(1);
    const MODEST: ClientKey = ClientKey::new(2);

    fn backlog(turns: &mut Turns<i32>, client: ClientKey, calls: i32) {
        for call in 0..calls {
            turns.wait(client, call);
        }
    }

    #[test]
    fn a_client_with_one_call_is_before_a_backlog() {
        let mut turns = Turns::default();
        (0..3).for_each(|_| turns.take(GREEDY));
        backlog(&mut turns, GREEDY, 1000);
        turns.wait(MODEST, 7777);
        assert_eq!(turns.next(10), Some((MODEST, 7777)));
        assert_eq!(turns.next(10), Some((GREEDY, 0)), "its own calls stay in order");
    }

    #[test]
    fn the_relays_own_calls_wait_behind_no_client_that_may_have_no_more_places() {
        let mut turns = Turns::default();
        (0..8).for_each(|_| turns.take(GREEDY));
        (0..16).for_each(|_| turns.take(ClientKey::RELAY));
        backlog(&mut turns, GREEDY, 10);
        turns.wait(ClientKey::RELAY, 7777);
        assert_eq!(turns.next(8), Some((ClientKey::RELAY, 7777)));
        assert_eq!(turns.next(7), None);
    }

    #[test]
    fn one_client_leaves_places_for_those_who_have_none() {
        let mut turns = Turns::default();
        let mut free = 100;
        backlog(&mut turns, GREEDY, 1000);
        while turns.next(free).is_some() {
            free -= 1;
        }
        assert_eq!(free, 50);
        backlog(&mut turns, MODEST, 1000);
        while let Some((client, _)) = turns.next(free) {
            assert_eq!(client, MODEST);
            free -= 1;
        }
        assert_eq!(free, 25);
        turns.wait(ClientKey::new(3), 0);
        assert!(turns.next(free).is_some());
    }

    #[test]
    fn clients_with_as_many_places_take_turns() {
        let mut turns = Turns::default();
        for client in [GREEDY, MODEST] {
            backlog(&mut turns, client, 2);
        }
        let order: Vec<_> = (0..4).map(|_| turns.next(100).expect("a call").0).collect();
        assert_eq!(order, [GREEDY, MODEST, GREEDY, MODEST]);
    }

    #[test]
    fn the_relay_may_take_every_place() {
        let mut turns = Turns::default();
        backlog(&mut turns, ClientKey::RELAY, 5);
        (0..4).for_each(|taken| assert!(turns.next(4 - taken).is_some()));
        assert_eq!(turns.next(0), None);
    }

    #[test]
    fn calls_that_give_up_and_clients_that_leave_are_not_kept() {
        let mut turns = Turns::default();
        let tickets: Vec<_> = (0..10).map(|call| turns.wait(GREEDY, call)).collect();
        tickets.into_iter().for_each(|ticket| turns.cancel(GREEDY, ticket));
        assert!(turns.is_empty() && turns.clients.is_empty());
        turns.wait(MODEST, 1);
        assert!(turns.next(5).is_some());
        turns.release(MODEST);
        assert!(turns.clients.is_empty());
        turns.wait(MODEST, 1);
        turns.wait(GREEDY, 2);
        assert_eq!(turns.drain(), [1, 2]);
        assert!(turns.is_empty() && turns.clients.is_empty());
    }
}
