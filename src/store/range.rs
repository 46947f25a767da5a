//! Range requests over the store's own data.
//!
//! Not here: the data (`mvcc`), and the meaning of each option (`ranges`). Called by `state`, for single requests and
//! within transactions.
//! Always holds: an answer shows one revision.

use super::{StoreError, convert, mvcc::Mvcc};
use crate::{
    pb::etcdserverpb::{RangeRequest, RangeResponse},
    ranges::{self, InvalidSort},
    types::KeyValueFields,
};

/// Refuses a request that no store could answer.
pub(super) fn check(request: &RangeRequest) -> Result<(), StoreError> {
    if request.key.is_empty() {
        return Err(StoreError::EmptyKey);
    }
    ranges::check(request).map_err(|InvalidSort| StoreError::InvalidSortOption)
}

/// Answers a request that [`check`] accepted. The header has only the revision.
pub(super) fn answer(mvcc: &Mvcc, request: &RangeRequest) -> Result<RangeResponse, StoreError> {
    let at = mvcc.readable(request.revision)?;
    let kvs: Vec<&KeyValueFields> = match convert::range(&request.key, &request.range_end) {
        Some(range) => mvcc.scan(&range, at).collect(),
        None => Vec::new(),
    };
    let answer = ranges::answer(request, kvs.into_iter()).map_err(|InvalidSort| StoreError::InvalidSortOption)?;
    Ok(RangeResponse { header: convert::revision_header(mvcc.visible()), ..answer })
}
