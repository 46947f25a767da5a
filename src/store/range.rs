//! Range requests: every option as an etcd member answers it, quirks included.
//!
//! Not here: the data (`mvcc`). Called by `state` for a request alone and within a transaction.
//! Always holds: `count` is that of the whole range, whatever the limit and the filters.

use std::cmp::Ordering;

use super::{StoreError, convert, mvcc::Mvcc};
use crate::{
    pb::etcdserverpb::{
        RangeRequest, RangeResponse,
        range_request::{SortOrder, SortTarget},
    },
    types::KeyValueFields,
};

/// Refuses a request that no store could answer.
pub(super) fn check(request: &RangeRequest) -> Result<(), StoreError> {
    if request.key.is_empty() {
        return Err(StoreError::EmptyKey);
    }
    sorting(request).map(|_| ())
}

/// Answers a request that [`check`] let pass. The header has the revision alone.
pub(super) fn answer(mvcc: &Mvcc, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
    let at = mvcc.readable(request.revision)?;
    let (order, target) = sorting(request)?;
    let mut kvs: Vec<&KeyValueFields> = match convert::range(&request.key, &request.range_end) {
        Some(range) => mvcc.scan(&range, at).collect(),
        None => Vec::new(),
    };
    let count = kvs.len() as i64;
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
    if request.count_only {
        kvs.clear();
    }
    // Without an order and filters, etcd reads one key more than the limit and no further; what it then sorts, for a target
    // other than the key, are those.
    if let (SortOrder::None, false, Some(limit)) = (order, has_filters(request), limit) {
        kvs.truncate(limit.saturating_add(1));
    }
    kvs.retain(|kv| passes(request, kv));
    match order {
        SortOrder::None if target == SortTarget::Key => {}
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(|a, b| compare(target, a, b)),
        SortOrder::Descend => kvs.sort_by(|a, b| compare(target, b, a)),
    }
    let more = limit.is_some_and(|limit| kvs.len() > limit);
    if let Some(limit) = limit {
        kvs.truncate(limit);
    }
    let kvs = kvs.into_iter().map(|kv| convert::key_value(kv, !request.keys_only)).collect();
    Ok(RangeResponse { header: convert::revision_header(mvcc.visible()), kvs, more, count })
}

fn sorting(request: &RangeRequest) -> Result<(SortOrder, SortTarget), StoreError> {
    let order = SortOrder::try_from(request.sort_order).map_err(|_| StoreError::InvalidSortOption)?;
    let target = SortTarget::try_from(request.sort_target).map_err(|_| StoreError::InvalidSortOption)?;
    Ok((order, target))
}

fn has_filters(request: &RangeRequest) -> bool {
    [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision]
        != [0; 4]
}

fn passes(request: &RangeRequest, kv: &KeyValueFields) -> bool {
    let within = |revision: i64, min: i64, max: i64| (min == 0 || revision >= min) && (max == 0 || revision <= max);
    within(kv.mod_revision.get(), request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision.get(), request.min_create_revision, request.max_create_revision)
}

fn compare(target: SortTarget, a: &KeyValueFields, b: &KeyValueFields) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}
