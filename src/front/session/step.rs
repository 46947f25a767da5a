//! [`Step`]: one parsed request of a watch session.
//!
//! Permission and execution are elsewhere. Always holds: a create that could not be checked again later is refused.

use crate::{
    front::access::WireRange,
    hub::{Subscribe, WatchOptions},
    pb::etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType, watch_request::RequestUnion},
    telemetry::names::Refusal,
    types::{KeyRange, Revision},
};

/// etcd's error for a create with a negative start revision.
const NEGATIVE_START: &str = "etcdserver: mvcc: required revision has been compacted";
/// The relay's own error for a create that could not be checked again.
const TOO_LARGE: &str = "etcd-relay: key and range_end are too large to check with etcd whether this client may read \
    them; use shorter ones";

/// See the module.
#[derive(Debug)]
pub(super) enum Step {
    /// A create, with the client's exact bytes of the range, for which permission is checked.
    Create(WireRange, Subscribe),
    /// A create with an empty range. It is refused, but only to a client that may read the range.
    Empty(WireRange),
    Refuse(String, Refusal),
    Cancel(i64),
    Progress,
}

impl Step {
    /// The range that the client wants to read.
    pub(super) fn range(&self) -> Option<&WireRange> {
        match self {
            Self::Create(range, _) | Self::Empty(range) => Some(range),
            Self::Refuse(..) | Self::Cancel(_) | Self::Progress => None,
        }
    }
}

/// Parses a request.
pub(super) fn step(request: RequestUnion) -> Step {
    match request {
        RequestUnion::CreateRequest(create) => parse(create),
        RequestUnion::CancelRequest(cancel) => Step::Cancel(cancel.watch_id),
        RequestUnion::ProgressRequest(_) => Step::Progress,
    }
}

fn parse(create: WatchCreateRequest) -> Step {
    // An empty key means the first possible key.
    let key = if create.key.is_empty() { bytes::Bytes::from_static(&[0]) } else { create.key };
    if create.start_revision < 0 {
        return Step::Refuse(NEGATIVE_START.into(), Refusal::NegativeStart);
    }
    let wire = WireRange { key: key.clone(), range_end: create.range_end.clone() };
    if !wire.can_be_asked() {
        // This holds even while authentication is off, because it can be enabled while the watch exists.
        return Step::Refuse(format!("{TOO_LARGE} ({} bytes)", wire.bytes()), Refusal::TooLarge);
    }
    let Ok(range) = KeyRange::from_wire(key, create.range_end) else { return Step::Empty(wire) };
    let filtered = |filter: FilterType| create.filters.contains(&(filter as i32));
    let subscribe = Subscribe {
        watch_id: create.watch_id,
        range,
        options: WatchOptions {
            no_put: filtered(FilterType::Noput),
            no_delete: filtered(FilterType::Nodelete),
            prev_kv: create.prev_kv,
        },
        start_revision: Revision::new(create.start_revision),
        progress_notify: create.progress_notify,
        fragment: create.fragment,
        known: Revision::ZERO,
        compacted: false,
    };
    Step::Create(wire, subscribe)
}
