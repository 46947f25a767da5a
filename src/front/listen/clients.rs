//! How many connections each client has on a port, so that none can take all of them.
//!
//! Not here: who a client is, see [`ClientKey`]: an address, so clients behind one are one. Always holds: there is an entry for each client
//! with a connection and for no other; without a limit nothing is counted.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc};

use parking_lot::Mutex;

use crate::types::ClientKey;

/// See the module.
#[derive(Debug)]
pub(super) struct Clients {
    limit: Option<NonZeroUsize>,
    open: Mutex<HashMap<ClientKey, usize>>,
}

/// A connection of a client; dropped, it has one fewer.
#[derive(Debug)]
pub(super) struct Counted {
    clients: Arc<Clients>,
    client: ClientKey,
}

impl Clients {
    /// Clients that may have so many connections each.
    pub(super) fn new(limit: Option<NonZeroUsize>) -> Arc<Self> {
        Arc::new(Self { limit, open: Mutex::default() })
    }

    /// Counts one more connection of `client`. An error where it has as many as it may; nothing to count where there is no limit.
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

/// The client has as many connections as it may.
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
        let other = clients.count(two).expect("the room of another");
        drop(first);
        let third = clients.count(one).expect("room again");
        drop((second, third, other));
        assert!(clients.open.lock().is_empty());
    }
}
