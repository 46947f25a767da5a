//! The effect of a `Range` request's options on the keys of its range: every option as an etcd member handles it,
//! quirks included.
//!
//! Not here: which keys exist. Used by the embedded store, and for reads that are answered from a listing of etcd's v2
//! store; feeds have `hub::RangeQuery`, which works on snapshots. Always holds: `count` is that of the whole range,
//! whatever the limit and the filters.

use std::cmp::Ordering;

use bytes::Bytes;
use thiserror::Error;

use crate::{
    pb::{
        etcdserverpb::{
            RangeRequest, RangeResponse,
            range_request::{SortOrder, SortTarget},
        },
        mvccpb,
    },
    types::KeyValueFields,
};

/// The request asks for an order that etcd does not have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("etcdserver: invalid sort option")]
pub(crate) struct InvalidSort;

/// Refuses an order that etcd does not have.
///
/// # Errors
/// [`InvalidSort`].
pub(crate) fn check(request: &RangeRequest) -> Result<(), InvalidSort> {
    sorting(request).map(drop)
}

/// The answer, without its header. `kvs` are the keys of the request's range, in their order.
///
/// # Errors
/// [`InvalidSort`].
pub(crate) fn answer<'a>(
    request: &RangeRequest,
    kvs: impl Iterator<Item = &'a KeyValueFields>,
) -> Result<RangeResponse, InvalidSort> {
    let (order, target) = sorting(request)?;
    let mut kvs: Vec<&KeyValueFields> = kvs.collect();
    let count = kvs.len() as i64;
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
    if request.count_only {
        kvs.clear();
    }
    // Without an order and filters, etcd reads only one key more than the limit. If it sorts by a target other than the
    // key, it sorts those.
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
    let kvs = kvs.into_iter().map(|kv| key_value(kv, !request.keys_only)).collect();
    Ok(RangeResponse { header: None, kvs, more, count })
}

/// A key-value, with or without its value.
pub(crate) fn key_value(kv: &KeyValueFields, with_value: bool) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key.clone(),
        create_revision: kv.create_revision.get(),
        mod_revision: kv.mod_revision.get(),
        version: kv.version,
        value: if with_value { kv.value.clone() } else { Bytes::new() },
        lease: kv.lease,
    }
}

fn sorting(request: &RangeRequest) -> Result<(SortOrder, SortTarget), InvalidSort> {
    let order = SortOrder::try_from(request.sort_order).map_err(|_| InvalidSort)?;
    let target = SortTarget::try_from(request.sort_target).map_err(|_| InvalidSort)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    /// Keys `a`, `b` and so on with these mod revisions.
    fn kvs(revisions: &[i64]) -> Vec<KeyValueFields> {
        let kv = |(at, revision): (usize, &i64)| KeyValueFields {
            key: vec![b'a' + at as u8].into(),
            mod_revision: Revision::new(*revision),
            ..KeyValueFields::default()
        };
        revisions.iter().enumerate().map(kv).collect()
    }

    fn keys(request: &RangeRequest, kvs: &[KeyValueFields]) -> (String, bool, i64) {
        let answer = answer(request, kvs.iter()).expect("an answer");
        let keys = answer.kvs.iter().flat_map(|kv| kv.key.to_vec()).map(char::from).collect();
        (keys, answer.more, answer.count)
    }

    #[test]
    fn a_limit_without_an_order_is_taken_before_the_sort() {
        let kvs = kvs(&[9, 8, 7, 6]);
        let by_mod = RangeRequest { limit: 2, sort_target: SortTarget::Mod.into(), ..RangeRequest::default() };
        assert_eq!(keys(&by_mod, &kvs), ("cb".to_owned(), true, 4), "the first three were read, and sorted");
        let ascending = RangeRequest { sort_order: SortOrder::Ascend.into(), ..by_mod.clone() };
        assert_eq!(keys(&ascending, &kvs), ("dc".to_owned(), true, 4));
        let filtered = RangeRequest { max_mod_revision: 8, ..by_mod };
        assert_eq!(keys(&filtered, &kvs), ("dc".to_owned(), true, 4), "with a filter all keys are read");
    }
}
