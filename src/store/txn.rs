//! Transactions: what etcd refuses before it looks at the data, and which operations it then executes.
//!
//! Not here: executing them, which `state` does. Always holds: all comparisons, including those of nested transactions,
//! use the data from before the first operation; once [`choose`] has returned, a chosen operation cannot fail.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashSet},
};

use bytes::Bytes;

use super::{StoreError, convert, lease::Leases, mvcc::Mvcc, range};
use crate::{
    pb::etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
    },
    types::{KeyValueFields, Revision},
};

/// etcd's default of `--max-txn-ops`.
const MAX_OPS: usize = 128;

/// The branch of a transaction that its comparisons chose.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    pub(super) succeeded: bool,
    pub(super) steps: Vec<Step<'a>>,
}

/// One operation of it.
#[derive(Debug)]
pub(super) enum Step<'a> {
    Range(&'a RangeRequest),
    Put(&'a PutRequest),
    Delete(&'a DeleteRangeRequest),
    Txn(Chosen<'a>),
}

/// Refuses a transaction that is malformed, too large, or changes a key twice.
pub(super) fn check(request: &TxnRequest) -> Result<(), StoreError> {
    check_size(request, MAX_OPS)?;
    changes(&request.success)?;
    changes(&request.failure)?;
    Ok(())
}

/// Compares, chooses the branches, and refuses operations in them that could not be executed.
pub(super) fn choose<'a>(mvcc: &Mvcc, leases: &Leases, request: &'a TxnRequest) -> Result<Chosen<'a>, StoreError> {
    let chosen = take_branch(mvcc, request);
    check_puts(mvcc, leases, &chosen)?;
    check_ranges(mvcc, &chosen)?;
    Ok(chosen)
}

/// Checks that the key exists if a put keeps its value or lease.
pub(super) fn check_kept(mvcc: &Mvcc, put: &PutRequest) -> Result<(), StoreError> {
    let keeps = put.ignore_value || put.ignore_lease;
    if keeps && mvcc.get(&put.key).is_none() { Err(StoreError::KeyNotFound) } else { Ok(()) }
}

/// Checks that the lease of a put exists.
pub(super) fn check_lease(leases: &Leases, put: &PutRequest) -> Result<(), StoreError> {
    if put.lease != 0 && !leases.exists(put.lease) { Err(StoreError::LeaseNotFound) } else { Ok(()) }
}

/// Refuses a put that contradicts itself.
pub(super) fn check_put(put: &PutRequest) -> Result<(), StoreError> {
    if put.key.is_empty() {
        Err(StoreError::EmptyKey)
    } else if put.ignore_value && !put.value.is_empty() {
        Err(StoreError::ValueProvided)
    } else if put.ignore_lease && put.lease != 0 {
        Err(StoreError::LeaseProvided)
    } else {
        Ok(())
    }
}

/// Refuses a delete without a key.
pub(super) fn check_delete(delete: &DeleteRangeRequest) -> Result<(), StoreError> {
    if delete.key.is_empty() { Err(StoreError::EmptyKey) } else { Ok(()) }
}

/// `max_ops` limits the longest of the three lists; a nested transaction has what its parent leaves.
fn check_size(request: &TxnRequest, max_ops: usize) -> Result<(), StoreError> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > max_ops {
        return Err(StoreError::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(StoreError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(read)) => range::check(read)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(Request::RequestTxn(nested)) => check_size(nested, max_ops - ops)?,
            None => return Err(StoreError::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that a branch may put and delete.
#[derive(Default)]
struct Changed<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Intervals,
}

/// Collects the keys that a branch may change. Refuses a put of a key that the branch also puts or deletes elsewhere. A
/// key may be deleted twice, and both branches of one nested transaction may put it.
fn changes(ops: &[RequestOp]) -> Result<Changed<'_>, StoreError> {
    let mut all = Changed::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            all.deletes.insert(&delete.key, &delete.range_end);
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(nested)) = &op.request else { continue };
        let success = changes(&nested.success)?;
        let failure = changes(&nested.failure)?;
        let mut clash = success.puts.iter().any(|key| all.puts.contains(key) || all.deletes.contains(key));
        clash |= failure.puts.iter().any(|key| all.puts.contains(key) || all.deletes.contains(key));
        if clash {
            return Err(StoreError::DuplicateKey);
        }
        all.puts.extend(success.puts);
        all.puts.extend(failure.puts);
        all.deletes.extend(success.deletes);
        all.deletes.extend(failure.deletes);
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request
            && (all.deletes.contains(&put.key) || !all.puts.insert(&put.key))
        {
            return Err(StoreError::DuplicateKey);
        }
    }
    Ok(all)
}

/// Disjoint intervals, each from its start (the map's key) to its end.
#[derive(Default)]
struct Intervals(BTreeMap<Bytes, Bytes>);

impl Intervals {
    /// Takes `range_end` for a key even if it is `"\0"`, as etcd does here: etcd does not see a put and a delete of
    /// "all keys from this one on" as duplicates.
    fn insert(&mut self, key: &Bytes, range_end: &Bytes) {
        if range_end.is_empty() {
            let after = [&key[..], &[0]].concat();
            self.merge(key.clone(), after.into());
        } else if key < range_end {
            self.merge(key.clone(), range_end.clone());
        }
    }

    fn merge(&mut self, mut start: Bytes, mut end: Bytes) {
        while let Some((before, until)) = self.0.range(..=end.clone()).next_back() {
            if *until < start {
                break;
            }
            start = start.min(before.clone());
            end = end.max(until.clone());
            let before = before.clone();
            self.0.remove(&before);
        }
        self.0.insert(start, end);
    }

    fn extend(&mut self, other: Self) {
        for (start, end) in other.0 {
            self.merge(start, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        let up_to = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        self.0.range::<[u8], _>(up_to).next_back().is_some_and(|(_, end)| key < &end[..])
    }
}

fn take_branch<'a>(mvcc: &Mvcc, request: &'a TxnRequest) -> Chosen<'a> {
    let succeeded = request.compare.iter().all(|compare| holds(mvcc, compare));
    let ops = if succeeded { &request.success } else { &request.failure };
    let steps = ops
        .iter()
        .filter_map(|op| op.request.as_ref())
        .map(|request| match request {
            Request::RequestRange(read) => Step::Range(read),
            Request::RequestPut(put) => Step::Put(put),
            Request::RequestDeleteRange(delete) => Step::Delete(delete),
            Request::RequestTxn(nested) => Step::Txn(take_branch(mvcc, nested)),
        })
        .collect();
    Chosen { succeeded, steps }
}

/// Whether every key of the range satisfies the comparison. For an empty range, whether a key without version,
/// revisions and lease does.
fn holds(mvcc: &Mvcc, compare: &Compare) -> bool {
    let range = convert::range(&compare.key, &compare.range_end);
    let mut kvs = range.iter().flat_map(|range| mvcc.scan(range, mvcc.visible())).peekable();
    if kvs.peek().is_some() {
        return kvs.all(|kv| holds_for(compare, kv));
    }
    // A missing value neither equals nor differs from any value.
    compare.target != CompareTarget::Value as i32 && holds_for(compare, &KeyValueFields::default())
}

fn holds_for(compare: &Compare, kv: &KeyValueFields) -> bool {
    let union = &compare.target_union;
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => match union {
            Some(TargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value[..].cmp(&[]),
        },
        Ok(CompareTarget::Version) => kv.version.cmp(&match union {
            Some(TargetUnion::Version(version)) => *version,
            _ => 0,
        }),
        Ok(CompareTarget::Create) => kv.create_revision.get().cmp(&match union {
            Some(TargetUnion::CreateRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Mod) => kv.mod_revision.get().cmp(&match union {
            Some(TargetUnion::ModRevision(revision)) => *revision,
            _ => 0,
        }),
        Ok(CompareTarget::Lease) => kv.lease.cmp(&match union {
            Some(TargetUnion::Lease(lease)) => *lease,
            _ => 0,
        }),
        // What etcd does with a target or a result that it does not know.
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

fn check_puts(mvcc: &Mvcc, leases: &Leases, chosen: &Chosen<'_>) -> Result<(), StoreError> {
    chosen.steps.iter().try_for_each(|step| match step {
        Step::Put(put) => check_kept(mvcc, put).and_then(|()| check_lease(leases, put)),
        Step::Txn(nested) => check_puts(mvcc, leases, nested),
        Step::Range(_) | Step::Delete(_) => Ok(()),
    })
}

fn check_ranges(mvcc: &Mvcc, chosen: &Chosen<'_>) -> Result<(), StoreError> {
    chosen.steps.iter().try_for_each(|step| match step {
        Step::Range(read) if read.revision == 0 => Ok(()),
        Step::Range(read) if read.revision > mvcc.current().get() => Err(StoreError::FutureRevision),
        Step::Range(read) if Revision::new(read.revision) < mvcc.compacted() => Err(StoreError::Compacted),
        Step::Txn(nested) => check_ranges(mvcc, nested),
        Step::Range(_) | Step::Put(_) | Step::Delete(_) => Ok(()),
    })
}
