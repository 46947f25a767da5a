//! [`Turns`]: whose watches are filled next, so that no client waits for another client's fills.
//!
//! Not here: what is done in a turn, see `fill`. Each client has its own queue. Turns go round the clients, and
//! round each client's queue.
//! Always holds: there are never more turns out than exist; a client has at most half of them (or the only one), so
//! that another client finds one free or soon will; a dropped ticket has no place in the queue any more.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::types::ClientKey;

/// Something that waits for a turn.
pub(super) trait Candidate: fmt::Debug + Send {
    /// Its turn has come.
    fn begin(self: Box<Self>, turn: Turn);
}

/// The queues for turns; see the module.
#[derive(Debug)]
pub(super) struct Turns {
    state: Mutex<TurnsState>,
    most: usize,
}

#[derive(Debug, Default)]
struct TurnsState {
    clients: BTreeMap<ClientKey, Client>,
    /// The client that had the last turn.
    last: Option<ClientKey>,
    out: usize,
    waiting: usize,
    next_ticket: u64,
}

/// Exists for each client that waits or has a turn.
#[derive(Debug, Default)]
struct Client {
    waiting: BTreeMap<u64, Box<dyn Candidate>>,
    out: usize,
}

/// A place in the queue, given up when it is dropped.
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
    /// Allows this many turns at once.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), most: most.max(1) })
    }

    /// Puts a candidate at the end of its client's queue.
    pub(super) fn queue(self: &Arc<Self>, client: ClientKey, candidate: Box<dyn Candidate>) -> Ticket {
        let mut state = self.state.lock();
        let number = state.next_ticket;
        state.next_ticket += 1;
        state.waiting += 1;
        state.clients.entry(client).or_default().waiting.insert(number, candidate);
        Ticket { turns: self.clone(), client, number }
    }

    /// Lets candidates begin as long as a turn is free. Their tickets have no effect any more.
    pub(super) fn give(self: &Arc<Self>) {
        while let Some((turn, candidate)) = self.next() {
            candidate.begin(turn);
        }
    }

    /// The next candidate, if a turn is free.
    fn next(self: &Arc<Self>) -> Option<(Turn, Box<dyn Candidate>)> {
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
        let (_, candidate) = entry.waiting.pop_first()?;
        entry.out += 1;
        state.out += 1;
        state.waiting -= 1;
        state.last = Some(client);
        Some((Turn { turns: self.clone(), client }, candidate))
    }

    /// Whether anybody waits for a turn.
    pub(super) fn is_awaited(&self) -> bool {
        self.state.lock().waiting > 0
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut guard = self.turns.state.lock();
        let state = &mut *guard;
        let withdrawn = state.clients.get_mut(&self.client).and_then(|client| client.waiting.remove(&self.number));
        if withdrawn.is_some() {
            state.waiting -= 1;
            state.tidy(self.client);
        }
        drop(guard);
        // Not under the lock, since it may hold the last reference to something large.
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

    /// Notes the client that got a turn.
    #[derive(Debug)]
    struct Noted(u64, Arc<Mutex<Vec<(u64, Turn)>>>);

    impl Candidate for Noted {
        fn begin(self: Box<Self>, turn: Turn) {
            self.1.lock().push((self.0, turn));
        }
    }

    #[derive(Default)]
    struct Game {
        begun: Arc<Mutex<Vec<(u64, Turn)>>>,
    }

    impl Game {
        fn queue(&self, turns: &Arc<Turns>, client: u64, count: usize) -> Vec<Ticket> {
            let candidate = || Box::new(Noted(client, self.begun.clone()));
            (0..count).map(|_| turns.queue(ClientKey::new(client), candidate())).collect()
        }

        /// The clients that have a turn.
        fn at_work(&self, turns: &Arc<Turns>) -> Vec<u64> {
            turns.give();
            self.begun.lock().iter().map(|(client, _)| *client).collect()
        }

        fn end_first(&self) {
            let ended = self.begun.lock().remove(0);
            drop(ended);
        }
    }

    #[test]
    fn a_client_with_one_stream_does_not_wait_for_one_with_a_thousand() {
        let (turns, game) = (Turns::new(4), Game::default());
        let _many = game.queue(&turns, 1, 1000);
        assert_eq!(game.at_work(&turns), [1, 1], "half of the turns, and no more");
        let _others = (game.queue(&turns, 2, 1), game.queue(&turns, 3, 1));
        assert_eq!(game.at_work(&turns), [1, 1, 2, 3]);
    }

    #[test]
    fn turns_go_round_the_clients_and_round_their_streams() {
        let (turns, game) = (Turns::new(1), Game::default());
        let _tickets: Vec<_> = (1..=3).map(|client| game.queue(&turns, client, 2)).collect();
        let mut order = Vec::new();
        // Each turn ends before the next one begins.
        while let [client] = game.at_work(&turns)[..] {
            order.push(client);
            game.end_first();
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn who_leaves_leaves_no_place_behind() {
        let (turns, game) = (Turns::new(1), Game::default());
        let tickets = game.queue(&turns, 1, 10);
        assert_eq!(game.at_work(&turns), [1]);
        assert!(turns.is_awaited());
        drop(tickets);
        assert!(!turns.is_awaited());
        game.end_first();
        assert!(game.at_work(&turns).is_empty() && turns.state.lock().clients.is_empty());
    }
}
