//! [`Shares`]: how many watches each client has over all its streams, so that no client takes more than its share.
//!
//! Not here: who a client is, which the fronts know. A stream can count for several, such as an address and a user.
//! Always holds: a watch is counted from its create to its end, however it ends; a client without a stream is
//! forgotten; without a limit nothing is counted.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use hashbrown::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::types::ClientKey;

/// Counts the watches of each client; see the module.
#[derive(Debug)]
pub struct Shares {
    limit: Option<NonZeroUsize>,
    clients: Mutex<HashMap<ClientKey, Weak<Share>>>,
}

/// One client's watches.
#[derive(Debug)]
struct Share {
    all: Arc<Shares>,
    client: ClientKey,
    watches: AtomicUsize,
}

/// The shares that the watches of one stream count towards.
#[derive(Debug, Default)]
pub struct Counted {
    shares: SmallVec<[Arc<Share>; 2]>,
    watches: usize,
}

/// A client has as many watches as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Full;

impl Shares {
    /// Shares with this limit of watches for each client.
    #[must_use]
    pub fn new(limit: Option<NonZeroUsize>) -> Arc<Self> {
        Arc::new(Self { limit, clients: Mutex::default() })
    }

    /// The shares of a stream of these clients.
    pub fn count_for(self: &Arc<Self>, clients: impl IntoIterator<Item = ClientKey>) -> Counted {
        if self.limit.is_none() {
            return Counted::default();
        }
        Counted { shares: clients.into_iter().map(|client| self.share(client)).collect(), watches: 0 }
    }

    fn share(self: &Arc<Self>, client: ClientKey) -> Arc<Share> {
        let mut clients = self.clients.lock();
        let known = clients.get(&client).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let share = Arc::new(Share { all: self.clone(), client, watches: AtomicUsize::new(0) });
            clients.insert(client, Arc::downgrade(&share));
            share
        })
    }
}

impl Counted {
    /// Counts one more watch.
    pub(in crate::hub) fn add(&mut self) -> Result<(), Full> {
        for (index, share) in self.shares.iter().enumerate() {
            if share.add().is_err() {
                self.shares[..index].iter().for_each(|share| share.remove(1));
                return Err(Full);
            }
        }
        self.watches += 1;
        Ok(())
    }

    /// Counts one watch less.
    pub(in crate::hub) fn remove(&mut self) {
        self.watches -= 1;
        self.shares.iter().for_each(|share| share.remove(1));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shares.iter().for_each(|share| share.remove(self.watches));
    }
}

impl Share {
    fn add(&self) -> Result<(), Full> {
        let limit = self.all.limit.map_or(usize::MAX, NonZeroUsize::get);
        let add = |watches| (watches < limit).then_some(watches + 1);
        // Relaxed, since the number guards no other memory.
        self.watches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map(drop).map_err(|_| Full)
    }

    fn remove(&self, watches: usize) {
        self.watches.fetch_sub(watches, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut clients = self.all.clients.lock();
        // Another stream of the client may have come meanwhile, with its own share.
        if clients.get(&self.client).is_some_and(|share| share.strong_count() == 0) {
            clients.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: ClientKey = ClientKey::new(1);
    const USER: ClientKey = ClientKey::new(2);
    const OTHER: ClientKey = ClientKey::new(3);

    #[test]
    fn streams_of_a_client_share_its_number_and_others_have_theirs() {
        let shares = Shares::new(NonZeroUsize::new(2));
        let (mut one, mut two) = (shares.count_for([ADDRESS]), shares.count_for([ADDRESS]));
        one.add().expect("room");
        two.add().expect("room");
        assert_eq!(one.add(), Err(Full));
        shares.count_for([OTHER]).add().expect("its own");
        two.remove();
        one.add().expect("room again");
        drop(one);
        assert_eq!(shares.clients.lock().len(), 1);
        two.add().expect("room again");
        two.add().expect("room again");
        drop(two);
        assert!(shares.clients.lock().is_empty(), "nothing stays behind");
    }

    #[test]
    fn what_is_refused_for_one_reason_is_not_counted_for_another() {
        let shares = Shares::new(NonZeroUsize::new(1));
        let mut elsewhere = shares.count_for([OTHER, USER]);
        elsewhere.add().expect("room");
        let mut here = shares.count_for([ADDRESS, USER]);
        assert_eq!(here.add(), Err(Full), "the user has one elsewhere");
        shares.count_for([ADDRESS]).add().expect("the address has none");
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let shares = Shares::new(None);
        let mut counted = shares.count_for([ADDRESS]);
        (0..100).for_each(|_| counted.add().expect("no limit"));
        counted.remove();
        assert!(shares.clients.lock().is_empty());
    }
}
