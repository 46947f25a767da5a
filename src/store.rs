//! The embedded store: etcd's data model in the memory of this process, behind the same [`Upstream`] trait as etcd
//! itself.
//!
//! `demo` runs on it, tests that need no etcd run on it, and simulations compare the relay with it. It is not a
//! database: nothing outlives the process, nothing is replicated, and old revisions are dropped when there are too
//! many.
//!
//! Always holds: revisions, events, options and errors are those that an etcd member would give for the same requests;
//! a watch delivers whole revisions in rising order or reports which are gone. Nothing is queued for a watch: it has a
//! position in the one log, so a slow watch costs nothing.
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
pub use self::{error::StoreError, service::ETCD_API_VERSION};
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
    /// The most revisions that can be watched from and read at; with more, the store compacts the oldest away. Default
    /// 100,000.
    pub history_revisions: NonZeroUsize,
    /// The most bytes of the events of these revisions, approximately; with more, the store compacts the oldest away
    /// but keeps at least one revision. Default 64 MiB.
    pub history_bytes: usize,
    /// The most bytes of the newest version of all keys, approximately; a write that would exceed them is refused with
    /// [`StoreError::NoSpace`]. Default 256 MiB.
    pub quota_bytes: usize,
    /// The client URLs that the store reports for its member. Default none.
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
/// ```
/// use etcd_relay::{
///     pb::etcdserverpb::{PutRequest, RangeRequest},
///     store::{Store, StoreConfig},
/// };
///
/// let store = Store::new(StoreConfig::default());
/// store.put(&PutRequest { key: "/app/a".into(), value: "on".into(), ..PutRequest::default() })?;
/// let answer = store.range(&RangeRequest { key: "/app/a".into(), ..RangeRequest::default() })?;
/// assert_eq!(&answer.kvs[0].value[..], b"on");
/// assert_eq!(store.header().revision.get(), 2);
/// # Ok::<(), etcd_relay::store::StoreError>(())
/// ```
#[derive(Clone)]
pub struct Store {
    shared: Arc<StoreInner>,
}

struct StoreInner {
    config: StoreConfig,
    cluster_id: u64,
    member_id: u64,
    /// Held for the length of one request, never during a wait.
    state: Mutex<StoreState>,
    /// The current revision, sent after the lock is released. Watches wait for it.
    revision: watch::Sender<Revision>,
    /// Notified when a lease was granted, which may be the next one to end.
    granted: Notify,
}

/// A store that is alone has had one election: this is the term after etcd's first.
const RAFT_TERM: u64 = 2;

impl Store {
    /// An empty store, at revision 1, with new ids.
    #[must_use]
    pub fn new(config: StoreConfig) -> Self {
        let state = StoreState::new(&config);
        let revision = watch::Sender::new(state.mvcc.current());
        let id = || rand::random_range(1..u64::MAX);
        let (state, granted) = (Mutex::new(state), Notify::new());
        Self { shared: Arc::new(StoreInner { config, cluster_id: id(), member_id: id(), state, revision, granted }) }
    }

    /// The store's id, and its current revision.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header_at(self.shared.state.lock().mvcc.current())
    }

    /// `KV.Range`.
    ///
    /// # Errors
    /// As in etcd: no key, an unknown sort order or target, a compacted or future revision.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
        let mut response = self.shared.state.lock().range(request)?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `KV.Put`.
    ///
    /// # Errors
    /// As in etcd: no key, options that contradict each other, an unknown lease, no value or lease to keep, too large,
    /// no space.
    pub fn put(&self, request: &PutRequest) -> Result<PutResponse, StoreError> {
        let mut response = self.change(|state| state.put(request))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `KV.DeleteRange`.
    ///
    /// # Errors
    /// As in etcd: no key.
    pub fn delete_range(&self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, StoreError> {
        let mut response = self.change(|state| state.delete_range(request))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `KV.Txn`.
    ///
    /// # Errors
    /// As in etcd: more than 128 operations, a key that is put twice, and whatever [`Store::range`], [`Store::put`] and
    /// [`Store::delete_range`] refuse. Nothing is changed then.
    pub fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, StoreError> {
        let mut response = self.change(|state| state.txn(request))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `KV.Compact`.
    ///
    /// # Errors
    /// As in etcd: a revision that is compacted already or in the future.
    pub fn compact(&self, request: &CompactionRequest) -> Result<CompactionResponse, StoreError> {
        let mut response = self.change(|state| state.compact(request))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `Lease.LeaseGrant`. Leases end only while [`Store::expire_leases`] runs.
    ///
    /// # Errors
    /// As in etcd: the id is in use, or the time to live is above 9,000,000,000 s. A time below 2 s is raised to 2 s.
    pub fn lease_grant(&self, request: &LeaseGrantRequest) -> Result<LeaseGrantResponse, StoreError> {
        let mut response = self.change(|state| state.grant(request, Instant::now()))?;
        self.shared.granted.notify_one();
        self.sign(&mut response.header);
        Ok(response)
    }

    /// `Lease.LeaseRevoke`: deletes the keys of the lease, in one revision.
    ///
    /// # Errors
    /// As in etcd: there is no such lease.
    pub fn lease_revoke(&self, request: &LeaseRevokeRequest) -> Result<LeaseRevokeResponse, StoreError> {
        let mut response = self.change(|state| state.revoke(request.id))?;
        self.sign(&mut response.header);
        Ok(response)
    }

    /// One request of `Lease.LeaseKeepAlive`. A TTL of 0 in the answer means that there is no such lease.
    #[must_use]
    pub fn lease_keep_alive(&self, request: &LeaseKeepAliveRequest) -> LeaseKeepAliveResponse {
        let mut state = self.shared.state.lock();
        let ttl = state.leases.renew(request.id, Instant::now()).unwrap_or(0);
        let header = self.header_at(state.mvcc.current());
        LeaseKeepAliveResponse { header: Some(convert::header(header)), id: request.id, ttl }
    }

    /// `Lease.LeaseTimeToLive`. A TTL of -1 in the answer means that there is no such lease.
    #[must_use]
    pub fn lease_time_to_live(&self, request: &LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse {
        let mut response = self.shared.state.lock().time_to_live(request, Instant::now());
        self.sign(&mut response.header);
        response
    }

    /// `Lease.LeaseLeases`, beginning with the lease that ends first.
    #[must_use]
    pub fn leases(&self) -> LeaseLeasesResponse {
        let state = self.shared.state.lock();
        let header = Some(convert::header(self.header_at(state.mvcc.current())));
        let leases = state.leases.ids().into_iter().map(|id| LeaseStatus { id }).collect();
        LeaseLeasesResponse { header, leases }
    }

    /// Approximate bytes of the newest version of all keys, and of the events of the kept revisions.
    fn sizes(&self) -> (usize, usize) {
        let state = self.shared.state.lock();
        (state.mvcc.live_bytes(), state.mvcc.log_bytes())
    }

    fn client_urls(&self) -> &[String] {
        &self.shared.config.client_urls
    }

    /// Ends leases when their time is over, each in its own revision, until `cancel`. The owner of the store has
    /// to run it.
    pub async fn expire_leases(self, cancel: CancellationToken) {
        loop {
            let next = self.shared.state.lock().leases.next_deadline();
            let end_of_next = async {
                match next {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            // All three branches are cancel safe: a notification that nobody waits for is kept.
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
            // Between the two locks the lease may have been revoked, or granted again under an id that a client chose.
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
                Err(error) => tracing::error!(lease.id = id, %error, "Cannot end a lease whose time is over"),
            }
        }
    }

    /// Runs a change. If it made a revision, wakes the watches after the lock is released.
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

    /// Adds the store's id to a header that has the revision.
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
