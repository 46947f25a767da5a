//! The store's state, which is its data and leases, and the effect of each request on it.
//!
//! Not here: locks, waiting, the network (`store`). Pure and synchronous; requests and answers are the protocol's
//! messages. Always holds: a request is either refused before it changed anything, or carried out completely, as one
//! revision. Headers of answers have only the revision; `store` adds the ids.

use tokio::time::Instant;

use super::{
    StoreConfig, StoreError, convert,
    lease::Leases,
    mvcc::{HistoryLimits, Mvcc},
    range,
    txn::{self, Chosen, Step},
};
use crate::{
    pb::etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
        LeaseGrantResponse, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest,
        PutResponse, RangeRequest, RangeResponse, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
        request_op::Request, response_op::Response,
    },
    types::KeyRange,
};

/// etcd's default of `--max-request-bytes`.
const MAX_REQUEST_BYTES: usize = 1536 * 1024;

/// Data and leases.
#[derive(Debug)]
pub(super) struct StoreState {
    pub(super) mvcc: Mvcc,
    pub(super) leases: Leases,
    quota_bytes: usize,
}

impl StoreState {
    pub(super) fn new(config: &StoreConfig) -> Self {
        let limits = HistoryLimits { revisions: config.history_revisions.get(), bytes: config.history_bytes };
        Self { mvcc: Mvcc::new(limits), leases: Leases::default(), quota_bytes: config.quota_bytes }
    }

    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
        range::check(request)?;
        range::answer(&self.mvcc, request)
    }

    pub(super) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, StoreError> {
        txn::check_put(request)?;
        self.check_room(request)?;
        // In a transaction, etcd checks these in the other order.
        txn::check_lease(&self.leases, request)?;
        txn::check_kept(&self.mvcc, request)?;
        let response = self.apply_put(request);
        self.mvcc.commit();
        Ok(response)
    }

    pub(super) fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, StoreError> {
        txn::check_delete(request)?;
        let response = self.apply_delete(request);
        self.mvcc.commit();
        Ok(response)
    }

    pub(super) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, StoreError> {
        txn::check(request)?;
        if has_put(request) {
            self.check_room(request)?;
        }
        let chosen = txn::choose(&self.mvcc, &self.leases, request)?;
        let mut response = self.apply(&chosen)?;
        response.header = convert::revision_header(self.mvcc.visible());
        self.mvcc.commit();
        Ok(response)
    }

    pub(super) fn compact(&mut self, request: &CompactionRequest) -> Result<CompactionResponse, StoreError> {
        self.mvcc.compact(request.revision)?;
        Ok(CompactionResponse { header: convert::revision_header(self.mvcc.current()) })
    }

    pub(super) fn grant(
        &mut self,
        request: &LeaseGrantRequest,
        now: Instant,
    ) -> Result<LeaseGrantResponse, StoreError> {
        let (id, ttl) = self.leases.grant(request.id, request.ttl, now)?;
        let header = convert::revision_header(self.mvcc.current());
        Ok(LeaseGrantResponse { header, id, ttl, error: String::new() })
    }

    /// Ends a lease; its keys are deleted in one revision.
    pub(super) fn revoke(&mut self, id: i64) -> Result<LeaseRevokeResponse, StoreError> {
        let lease = self.leases.remove(id)?;
        for key in lease.keys {
            self.mvcc.delete(&KeyRange::single(key));
        }
        self.mvcc.commit();
        Ok(LeaseRevokeResponse { header: convert::revision_header(self.mvcc.current()) })
    }

    pub(super) fn time_to_live(&self, request: &LeaseTimeToLiveRequest, now: Instant) -> LeaseTimeToLiveResponse {
        let header = convert::revision_header(self.mvcc.current());
        let Some(lease) = self.leases.get(request.id) else {
            return LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, granted_ttl: 0, keys: Vec::new() };
        };
        LeaseTimeToLiveResponse {
            header,
            id: request.id,
            ttl: lease.remaining(now),
            granted_ttl: lease.ttl,
            keys: if request.keys { lease.keys.iter().cloned().collect() } else { Vec::new() },
        }
    }

    /// Refuses what is too large for a request or for the rest of the quota.
    fn check_room(&self, request: &impl prost::Message) -> Result<(), StoreError> {
        let bytes = request.encoded_len();
        if bytes > MAX_REQUEST_BYTES {
            Err(StoreError::RequestTooLarge)
        } else if self.mvcc.live_bytes() + bytes > self.quota_bytes {
            Err(StoreError::NoSpace)
        } else {
            Ok(())
        }
    }

    fn apply(&mut self, chosen: &Chosen<'_>) -> Result<TxnResponse, StoreError> {
        let mut responses = Vec::with_capacity(chosen.steps.len());
        for step in &chosen.steps {
            let response = match step {
                Step::Range(read) => Response::ResponseRange(range::answer(&self.mvcc, read)?),
                Step::Put(put) => Response::ResponsePut(self.apply_put(put)),
                Step::Delete(delete) => Response::ResponseDeleteRange(self.apply_delete(delete)),
                Step::Txn(nested) => Response::ResponseTxn(self.apply(nested)?),
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        // A nested answer's header stays empty, as in etcd.
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded: chosen.succeeded, responses })
    }

    fn apply_put(&mut self, request: &PutRequest) -> PutResponse {
        let before = self.mvcc.get(&request.key).cloned();
        let old_lease = before.as_ref().map_or(0, |kv| kv.lease);
        let value = match &before {
            Some(kv) if request.ignore_value => kv.value.clone(),
            _ => request.value.clone(),
        };
        let lease = if request.ignore_lease { old_lease } else { request.lease };
        self.mvcc.put(&request.key, &value, lease);
        if let Some(kv) = self.mvcc.get(&request.key) {
            self.leases.rebind(&kv.key, old_lease, lease);
        }
        let prev_kv = before.filter(|_| request.prev_kv).map(|kv| convert::key_value(&kv, true));
        PutResponse { header: convert::revision_header(self.mvcc.visible()), prev_kv }
    }

    fn apply_delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let range = convert::range(&request.key, &request.range_end);
        let deleted = range.map_or_else(Vec::new, |range| self.mvcc.delete(&range));
        for kv in &deleted {
            self.leases.rebind(&kv.key, kv.lease, 0);
        }
        DeleteRangeResponse {
            header: convert::revision_header(self.mvcc.visible()),
            deleted: deleted.len() as i64,
            prev_kvs: if request.prev_kv {
                deleted.iter().map(|kv| convert::key_value(kv, true)).collect()
            } else {
                Vec::new()
            },
        }
    }
}

fn has_put(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => has_put(nested),
        _ => false,
    })
}
