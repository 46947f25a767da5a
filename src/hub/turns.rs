//! [`Turns`]: which stream's watches are filled next, so that no client waits for what another one asked for.
//!
//! Not here: what a fill does, see `fill`. A stream with watches that wait for a fill has one place in the queue of its client. Turns
//! go round the clients, and round each client's streams.
//! Always holds: no more turns are out than there are; a client has at most half of them (one, where there is but one), so that another
//! finds some free or soon to be; a stream is in the queue once, and a place costs the same however many watches it is for.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use parking_lot::Mutex;

use super::outbox::Outbox;
use crate::types::ClientKey;

/// See the module.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<TurnsState>,
    most: usize,
}

#[derive(Debug, Default)]
struct TurnsState {
    clients: BTreeMap<ClientKey, Client>,
    /// Who had the last turn.
    last: Option<ClientKey>,
    out: usize,
    waiting: usize,
    next_ticket: u64,
}

/// There is one for each client that waits or has a turn.
#[derive(Debug, Default)]
struct Client {
    waiting: BTreeMap<u64, Arc<Outbox>>,
    out: usize,
}

/// A stream's place in the queue.
#[derive(Debug)]
pub(super) struct Ticket {
    turns: Arc<Turns>,
    client: ClientKey,
    number: u64,
}

/// The right to one fill, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    client: ClientKey,
}

impl Turns {
    /// So many at once.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), most: most.max(1) })
    }

    /// Puts a stream at the end of its client's queue, which it is not in.
    pub(super) fn queue(self: &Arc<Self>, outbox: &Arc<Outbox>) -> Ticket {
        let mut state = self.state.lock();
        let number = state.next_ticket;
        state.next_ticket += 1;
        state.waiting += 1;
        let client = outbox.client;
        state.clients.entry(client).or_default().waiting.insert(number, outbox.clone());
        Ticket { turns: self.clone(), client, number }
    }

    /// The stream whose turn it is, if one is free. Its ticket is of no use any more.
    pub(super) fn next(self: &Arc<Self>) -> Option<(Turn, Arc<Outbox>)> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.out >= self.most {
            return None;
        }
        let share = (self.most / 2).max(1);
        let may =
            |(key, client): (&ClientKey, &Client)| (client.out < share && !client.waiting.is_empty()).then_some(*key);
        let after = state.last.map_or(Unbounded, Excluded);
        let found = state.clients.range((after, Unbounded)).find_map(may);
        let client = found.or_else(|| state.clients.iter().find_map(may))?;
        let entry = state.clients.get_mut(&client)?;
        let (_, outbox) = entry.waiting.pop_first()?;
        entry.out += 1;
        state.out += 1;
        state.waiting -= 1;
        state.last = Some(client);
        Some((Turn { turns: self.clone(), client }, outbox))
    }

    /// Whether anybody waits for a turn.
    pub(super) fn is_awaited(&self) -> bool {
        self.state.lock().waiting > 0
    }
}

impl Ticket {
    /// Takes the stream out of the queue, if it is still there.
    pub(super) fn withdraw(self) {
        let mut guard = self.turns.state.lock();
        let state = &mut *guard;
        let withdrawn = state.clients.get_mut(&self.client).and_then(|client| client.waiting.remove(&self.number));
        if withdrawn.is_some() {
            state.waiting -= 1;
            state.tidy(self.client);
        }
        drop(guard);
        // Not under the lock, since it may be the last reference to the stream.
        drop(withdrawn);
    }
}

impl TurnsState {
    fn tidy(&mut self, client: ClientKey) {
        if self.clients.get(&client).is_some_and(|client| client.out == 0 && client.waiting.is_empty()) {
            self.clients.remove(&client);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        state.out -= 1;
        if let Some(client) = state.clients.get_mut(&self.client) {
            client.out -= 1;
        }
        state.tidy(self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::OutboxLimits;

    const LIMITS: OutboxLimits = OutboxLimits { bytes: 1, deliveries: 1, watches: 1 };

    fn streams(turns: &Arc<Turns>, client: u64, count: usize) -> Vec<Ticket> {
        (0..count).map(|_| turns.queue(&Outbox::new(LIMITS, ClientKey::new(client)))).collect()
    }

    #[test]
    fn a_client_with_one_stream_does_not_wait_for_one_with_a_thousand() {
        let turns = Turns::new(4);
        streams(&turns, 1, 1000);
        let hogged: Vec<_> = std::iter::from_fn(|| turns.next()).collect();
        assert_eq!(hogged.len(), 2, "half of the turns, and no more");
        streams(&turns, 2, 1);
        streams(&turns, 3, 1);
        let others: Vec<_> = std::iter::from_fn(|| turns.next()).collect();
        let clients: Vec<ClientKey> = others.iter().map(|(_, outbox)| outbox.client).collect();
        assert_eq!(clients, [ClientKey::new(2), ClientKey::new(3)]);
    }

    #[test]
    fn turns_go_round_the_clients_and_round_their_streams() {
        let turns = Turns::new(1);
        (1..=3).for_each(|client| drop(streams(&turns, client, 2)));
        // Each turn is over before the next begins.
        let order: Vec<ClientKey> = std::iter::from_fn(|| turns.next()).map(|(_, outbox)| outbox.client).collect();
        assert_eq!(order, [1, 2, 3, 1, 2, 3].map(ClientKey::new));
    }

    #[test]
    fn who_leaves_leaves_no_place_behind() {
        let turns = Turns::new(1);
        let tickets = streams(&turns, 1, 10);
        let turn = turns.next().expect("the first");
        assert!(turns.is_awaited());
        tickets.into_iter().for_each(Ticket::withdraw);
        assert!(!turns.is_awaited() && turns.next().is_none());
        drop(turn);
        assert!(turns.state.lock().clients.is_empty());
    }
}
