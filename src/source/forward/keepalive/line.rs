//! [`Line`]: requests that wait for a stream, in turns by client.
//!
//! Plain data, without locks or tasks. Always holds: a client's requests leave in the order in which they came, and
//! between two of them every other waiting client gets a turn; a client without a request is forgotten.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::types::ClientKey;

/// The waiting requests; see the module. `T` is a request.
#[derive(Debug)]
pub(super) struct Line<T> {
    waiting: HashMap<ClientKey, VecDeque<T>>,
    turns: VecDeque<ClientKey>,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), turns: VecDeque::new() }
    }
}

impl<T> Line<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    pub(super) fn push(&mut self, client: ClientKey, request: T) {
        let requests = self.waiting.entry(client).or_default();
        if requests.is_empty() {
            self.turns.push_back(client);
        }
        requests.push_back(request);
    }

    /// The client whose turn it is, with its oldest request.
    pub(super) fn pop(&mut self) -> Option<(ClientKey, T)> {
        let client = self.turns.pop_front()?;
        let requests = self.waiting.get_mut(&client)?;
        let request = requests.pop_front()?;
        if requests.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        Some((client, request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_with_one_request_does_not_wait_for_one_with_a_thousand() {
        let mut line = Line::default();
        let (many, one) = (ClientKey::new(1), ClientKey::new(2));
        (0..1_000).for_each(|index| line.push(many, index));
        line.push(one, 5_000);
        assert_eq!(line.pop(), Some((many, 0)));
        assert_eq!(line.pop(), Some((one, 5_000)));
        for index in 1..1_000 {
            assert_eq!(line.pop(), Some((many, index)));
        }
        assert!(line.is_empty() && line.pop().is_none() && line.waiting.is_empty());
    }
}
