//! Conversions between the wire's messages and the crate's types.
//!
//! Not here: checks and meaning. Used by the other files of `store`.

use bytes::Bytes;

pub(super) use crate::ranges::key_value;
use crate::{
    pb::etcdserverpb::ResponseHeader,
    types::{Header, KeyRange, Revision},
};

/// The keys that a request means. `None` if its range is empty, which is not an error for a read or a delete.
pub(super) fn range(key: &Bytes, range_end: &Bytes) -> Option<KeyRange> {
    KeyRange::from_wire(key.clone(), range_end.clone()).ok()
}

/// The header of an answer inside a transaction's, which has only the revision.
#[expect(clippy::unnecessary_wraps, reason = "a message field of a response is an Option")]
pub(super) fn revision_header(revision: Revision) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision: revision.get(), ..ResponseHeader::default() })
}

/// A whole header.
pub(super) fn header(header: Header) -> ResponseHeader {
    ResponseHeader {
        cluster_id: header.cluster_id,
        member_id: header.member_id,
        revision: header.revision.get(),
        raft_term: header.raft_term,
    }
}
