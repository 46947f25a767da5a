//! The embedded store: etcd's data model in the memory of this process, behind the same [`Upstream`] trait as etcd itself.
//!
//! What `demo` runs on, what tests run on where no etcd is needed, and the model that simulations compare the relay with. It is
//! not a database: nothing outlives the process, nothing is replicated, and old revisions go when there are too many.
//!
//! Always holds: revisions, events, options and errors are those that an etcd member would give for the same requests; a watch
//! delivers whole revisions in rising order or says which are gone. Nothing is queued for a watch: it has a position in the one
//! log, so a slow one costs nothing.
//!
//! [`Upstream`]: crate::hub::upstream::Upstream

mod convert;
pub mod demo;
mod error;
mod lease;
mod mvcc;
mod range;
mod service;
mod state;
#[cfg(test)]
mod tests;
mod txn;
mod upstream;

use std::{fmt, num::NonZeroUsize, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::state::StoreState;
pub use self::{
    error::StoreError,
    service::{ETCD_API_VERSION, ForwardService},
};
use crate::{
    pb::etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
        LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeRequest,
        LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, PutResponse,
        RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
    },
    types::{Header, Revision},
};

/// How large a [`Store`] may become.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Revisions that can be watched from and read at; with more, the store compacts the oldest away. Default 100,000.
    pub history_revisions: NonZeroUsize,
    /// Bytes of the events of these revisions, about; with more, the store compacts the oldest away but keeps at least one
    /// revision. Default 64 MiB.
    pub history_bytes: usize,
    /// Bytes of the newest version of all keys, about; what would exceed them is refused with [`StoreError::NoSpace`]. Default
    /// 256 MiB.
    pub quota_bytes: usize,
    /// What the store says its client URLs are when asked for the members of its cluster. Default none.
    pub client_urls: Vec<String>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            history_revisions: NonZeroUsize::new(100_000).expect("not zero"),
            history_bytes: 64 << 20,
            quota_bytes: 256 << 20,
            client_urls: Vec::new(),
        }
    }
}

/// A store in memory. Clones are handles of the same store.
#[derive(Clone)]
pub struct Store {
    shared: Arc<StoreInner>,
}

struct StoreInner {
    config: StoreConfig,
    cluster_id: u64,
    member_id: u64,
    /// Held for the length of one request, never while waiting.
    state: Mutex<StoreState>,
    /// The current revision, told after the lock is released: what watches wait for.
    revision: watch::Sender<Revision>,
    /// A lease was granted, which may be the next that ends.
    granted: Notify,
}

/// A store that is alone had one election: the term after etcd's first.
const RAFT_TERM: u64 = 2;

impl Store {
    /// An empty store, at revision 1, with ids of its own.
    #[must_use]
    pub fn new(config: StoreConfig) -> Self {
        let state = StoreState::new(&config);
        let revision = watch::Sender::new(state.mvcc.current());
        let id = || rand::random_range(1..u64::MAX);
        let (state, granted) = (Mutex::new(state), Notify::new());
        Self { shared: Arc::new(StoreInner { config, cluster_id: id(), member_id: id(), state, revision, granted }) }
    }

    /// Who the store is, and where it stands.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header_at(self.shared.state.lock().mvcc.current())
    }

    /// `KV.Range`.
    ///
    /// # Errors
    /// As etcd: no key, an unknown sort order or target, a revision compacted or to come.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
        let mut response = self.shared.state.lock().range(request)?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `KV.Put`.
    ///
    /// # Errors
    /// As etcd: no key, options that contradict each other, an unknown lease, nothing there to keep, too large, no space.
    pub fn put(&self, request: &PutRequest) -> Result<PutResponse, StoreError> {
        let mut response = self.change(|state| state.put(request))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `KV.DeleteRange`.
    ///
    /// # Errors
    /// As etcd: no key.
    pub fn delete_range(&self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, StoreError> {
        let mut response = self.change(|state| state.delete_range(request))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `KV.Txn`.
    ///
    /// # Errors
    /// As etcd: more than 128 operations, a key put twice, and what [`Store::range`], [`Store::put`] and
    /// [`Store::delete_range`] refuse. Nothing is changed then.
    pub fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, StoreError> {
        let mut response = self.change(|state| state.txn(request))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `KV.Compact`.
    ///
    /// # Errors
    /// As etcd: a revision compacted before or to come.
    pub fn compact(&self, request: &CompactionRequest) -> Result<CompactionResponse, StoreError> {
        let mut response = self.change(|state| state.compact(request))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `Lease.LeaseGrant`. Leases end only while [`Store::expire_leases`] runs.
    ///
    /// # Errors
    /// As etcd: the id is in use, or the time to live above 9,000,000,000 s. One below 2 s is raised to that.
    pub fn lease_grant(&self, request: &LeaseGrantRequest) -> Result<LeaseGrantResponse, StoreError> {
        let mut response = self.change(|state| state.grant(request, Instant::now()))?;
        self.shared.granted.notify_one();
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `Lease.LeaseRevoke`: the keys of the lease are deleted, in one revision.
    ///
    /// # Errors
    /// As etcd: there is no such lease.
    pub fn lease_revoke(&self, request: &LeaseRevokeRequest) -> Result<LeaseRevokeResponse, StoreError> {
        let mut response = self.change(|state| state.revoke(request.id))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// One request of `Lease.LeaseKeepAlive`. A TTL of 0 in the answer says that there is no such lease.
    #[must_use]
    pub fn lease_keep_alive(&self, request: &LeaseKeepAliveRequest) -> LeaseKeepAliveResponse {
        let mut state = self.shared.state.lock();
        let ttl = state.leases.renew(request.id, Instant::now()).unwrap_or(0);
        let header = self.header_at(state.mvcc.current());
        LeaseKeepAliveResponse { header: Some(convert::header(header)), id: request.id, ttl }
    }

    /// `Lease.LeaseTimeToLive`. A TTL of -1 in the answer says that there is no such lease.
    #[must_use]
    pub fn lease_time_to_live(&self, request: &LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse {
        let mut response = self.shared.state.lock().time_to_live(request, Instant::now());
        self.sign(&mut response.header);
        response
    }

    /// `Lease.LeaseLeases`, the lease that ends first before the others.
    #[must_use]
    pub fn leases(&self) -> LeaseLeasesResponse {
        let state = self.shared.state.lock();
        let header = Some(convert::header(self.header_at(state.mvcc.current())));
        let leases = state.leases.ids().into_iter().map(|id| LeaseStatus { id }).collect();
        LeaseLeasesResponse { header, leases }
    }

    /// Rough bytes of the newest version of all keys, and of the events of the revisions that are kept.
    fn sizes(&self) -> (usize, usize) {
        let state = self.shared.state.lock();
        (state.mvcc.live_bytes(), state.mvcc.log_bytes())
    }

    fn client_urls(&self) -> &[String] {
        &self.shared.config.client_urls
    }

    /// Ends leases when their time is over, each as a revision of its own, until `cancel`. Whoever makes a store runs it.
    pub async fn expire_leases(self, cancel: CancellationToken) {
        loop {
            let next = self.shared.state.lock().leases.next_deadline();
            let end_of_next = async {
                match next {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            // All three are cancel safe: a notification that no one waits for is kept.
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.shared.granted.notified() => {}
                () = end_of_next => self.revoke_expired(),
            }
        }
    }

    fn revoke_expired(&self) {
        let expired = self.shared.state.lock().leases.expired(Instant::now());
        for id in expired {
            // Between the two locks the lease may have been revoked or, its id chosen by a client, granted anew.
            let now = Instant::now();
            let ended = self.change(|state| {
                if state.leases.get(id).is_some_and(|lease| lease.is_over(now)) {
                    state.revoke(id).map(|_| ())
                } else {
                    Ok(())
                }
            });
            match ended {
                Ok(()) => tracing::debug!(lease.id = id, "Lease ended"),
                Err(error) => tracing::error!(lease.id = id, %error, "Lease could not be ended"),
            }
        }
    }

    /// Runs a change and, after the lock is released, wakes the watches where it made a revision.
    fn change<T>(&self, change: impl FnOnce(&mut StoreState) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let (result, current) = {
            let mut state = self.shared.state.lock();
            (change(&mut state), state.mvcc.current())
        };
        self.shared.revision.send_if_modified(|told| {
            let rises = current > *told;
            *told = current.max(*told);
            rises
        });
        result
    }

    /// Adds who answers to a header that has the revision.
    fn sign(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(Revision::ZERO, |header| Revision::new(header.revision));
        *header = Some(convert::header(self.header_at(revision)));
    }

    fn header_at(&self, revision: Revision) -> Header {
        Header { cluster_id: self.shared.cluster_id, member_id: self.shared.member_id, revision, raft_term: RAFT_TERM }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new(StoreConfig::default())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Store")
            .field("revision", &state.mvcc.current())
            .field("compacted", &state.mvcc.compacted())
            .finish_non_exhaustive()
    }
}
