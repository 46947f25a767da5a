//! Counts the connections of each client on a port, so that no client can take all of them.
//!
//! A client is a [`ClientKey`], which is an address, so clients behind one address count as one. Always holds: there is
//! an entry for each client with a connection and for no other. Without a limit nothing is counted.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc};

use parking_lot::Mutex;

use crate::types::ClientKey;

/// See the module.
#[derive(Debug)]
pub(super) struct Clients {
    limit: Option<NonZeroUsize>,
    open: Mutex<HashMap<ClientKey, usize>>,
}

/// A counted connection of a client. Dropping it reduces the count.
#[derive(Debug)]
pub(super) struct Counted {
    clients: Arc<Clients>,
    client: ClientKey,
}

impl Clients {
    /// Creates a counter with a limit per client.
    pub(super) fn new(limit: Option<NonZeroUsize>) -> Arc<Self> {
        Arc::new(Self { limit, open: Mutex::default() })
    }

    /// Counts one more connection of `client`. Fails if the client has reached the limit. Returns `None` if there is no
    /// limit.
    pub(super) fn count(self: &Arc<Self>, client: ClientKey) -> Result<Option<Counted>, TooMany> {
        let Some(limit) = self.limit else { return Ok(None) };
        let mut open = self.open.lock();
        let count = open.entry(client).or_default();
        if *count >= limit.get() {
            return Err(TooMany);
        }
        *count += 1;
        Ok(Some(Counted { clients: self.clone(), client }))
    }
}

/// The client has reached the limit of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.clients.open.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_number_and_leaves_nothing_behind() {
        let clients = Clients::new(NonZeroUsize::new(2));
        let (one, two) = (ClientKey::new(1), ClientKey::new(2));
        let first = clients.count(one).expect("room");
        let second = clients.count(one).expect("room");
        assert_eq!(clients.count(one).expect_err("full"), TooMany);
        let other = clients.count(two).expect("the place of another connection");
        drop(first);
        let third = clients.count(one).expect("room again");
        drop((second, third, other));
        assert!(clients.open.lock().is_empty());
    }
}
