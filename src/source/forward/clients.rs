//! [`Clients`]: how many forwarded calls each client has under way, and the metrics of all of them.
//!
//! Not here: the order in which calls get a place, see `pool`. Always holds: a call is counted from before it is sent
//! until it has ended; a client without a call is forgotten; the relay's own calls are not limited here.

use std::{num::NonZeroUsize, sync::Arc};

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::counts::Counts;
use crate::types::ClientKey;

/// Counts each client's forwarded calls; see the module.
#[derive(Debug)]
pub(super) struct Clients {
    most: usize,
    /// A plain mutex, since it is only held for a look-up.
    calls: Mutex<HashMap<ClientKey, usize>>,
    pub(super) counts: Counts,
}

/// A call, which counts while this lives.
#[derive(Debug)]
pub(super) struct Counted {
    clients: Arc<Clients>,
    client: ClientKey,
}

impl Clients {
    pub(super) fn new(most: NonZeroUsize) -> Arc<Self> {
        Arc::new(Self { most: most.get(), calls: Mutex::default(), counts: Counts::default() })
    }

    /// The most calls of a client.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Counts a call; `None` if its client has as many as it may.
    pub(super) fn enter(self: &Arc<Self>, client: ClientKey) -> Option<Counted> {
        let mut calls = self.calls.lock();
        let running = calls.entry(client).or_default();
        if *running >= self.most && client != ClientKey::RELAY {
            return None;
        }
        *running += 1;
        Some(Counted { clients: self.clone(), client })
    }
}

impl Counted {
    pub(super) fn counts(&self) -> &Counts {
        &self.clients.counts
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut calls = self.clients.calls.lock();
        if let Some(running) = calls.get_mut(&self.client) {
            *running -= 1;
            if *running == 0 {
                calls.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_as_many_calls_as_it_may_and_others_have_theirs() {
        let clients = Clients::new(NonZeroUsize::new(2).expect("not zero"));
        let (one, another) = (ClientKey::new(1), ClientKey::new(2));
        let held = [clients.enter(one), clients.enter(one), clients.enter(another)];
        assert!(held.iter().all(Option::is_some));
        assert!(clients.enter(one).is_none());
        assert!((0..10).map(|_| clients.enter(ClientKey::RELAY)).collect::<Vec<_>>().iter().all(Option::is_some));
        drop(held);
        assert!(clients.calls.lock().is_empty(), "a client without a call is forgotten");
        assert!(clients.enter(one).is_some());
    }
}
