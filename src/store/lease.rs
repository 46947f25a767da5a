//! The leases: how long each lasts, and the keys attached to it.
//!
//! Not here: deleting the keys of a lease that ended (`state`), and waiting for its end (`store`). Pure: the time is an
//! argument.
//! Always holds: a key is attached to at most one lease, the one that its newest version names.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::StoreError;

/// The shortest time to live, in seconds: that of an etcd member with the default election timeout. Shorter times are
/// raised to it.
pub(super) const MIN_TTL: i64 = 2;
/// The longest time to live, in seconds, as in etcd.
const MAX_TTL: i64 = 9_000_000_000;

/// All leases.
#[derive(Debug, Default)]
pub(super) struct Leases {
    leases: BTreeMap<i64, Lease>,
}

/// One lease.
#[derive(Debug)]
pub(super) struct Lease {
    /// Seconds granted.
    pub(super) ttl: i64,
    pub(super) keys: BTreeSet<Bytes>,
    deadline: Instant,
}

impl Lease {
    /// Whole seconds that are left.
    pub(super) fn remaining(&self, now: Instant) -> i64 {
        self.deadline.saturating_duration_since(now).as_secs() as i64
    }

    /// Whether its time is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.deadline <= now
    }
}

impl Leases {
    /// Begins a lease; with the id 0 the store chooses one. Returns the id and the seconds granted.
    pub(super) fn grant(&mut self, id: i64, ttl: i64, now: Instant) -> Result<(i64, i64), StoreError> {
        if ttl > MAX_TTL {
            return Err(StoreError::LeaseTtlTooLarge);
        }
        let id = if id == 0 { self.unused_id() } else { id };
        if self.exists(id) {
            return Err(StoreError::LeaseExists);
        }
        let ttl = ttl.max(MIN_TTL);
        self.leases.insert(id, Lease { ttl, keys: BTreeSet::new(), deadline: now + seconds(ttl) });
        Ok((id, ttl))
    }

    /// Ends a lease and returns it, with the keys that were attached to it.
    pub(super) fn remove(&mut self, id: i64) -> Result<Lease, StoreError> {
        self.leases.remove(&id).ok_or(StoreError::LeaseNotFound)
    }

    /// Starts the time of a lease again, unless it is over. Returns the seconds.
    pub(super) fn renew(&mut self, id: i64, now: Instant) -> Result<i64, StoreError> {
        let lease = self.leases.get_mut(&id).filter(|lease| !lease.is_over(now)).ok_or(StoreError::LeaseNotFound)?;
        lease.deadline = now + seconds(lease.ttl);
        Ok(lease.ttl)
    }

    pub(super) fn get(&self, id: i64) -> Option<&Lease> {
        self.leases.get(&id)
    }

    pub(super) fn exists(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// The ids, beginning with the lease that ends first.
    pub(super) fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<_> = self.leases.iter().map(|(id, lease)| (lease.deadline, *id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// Moves a key from one lease to another; 0 means none.
    pub(super) fn rebind(&mut self, key: &Bytes, from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.leases.get_mut(&to) {
            lease.keys.insert(key.clone());
        }
    }

    /// When the next lease ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.deadline).min()
    }

    /// The leases whose time is over, the oldest first.
    pub(super) fn expired(&self, now: Instant) -> Vec<i64> {
        self.ids().into_iter().take_while(|id| self.leases[id].is_over(now)).collect()
    }

    fn unused_id(&self) -> i64 {
        loop {
            let id = rand::random_range(1..i64::MAX);
            if !self.exists(id) {
                return id;
            }
        }
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(ttl.unsigned_abs())
}
