//! [`Step`]: one request of a watch session, parsed.
//!
//! Not here: whether the client may do it, and what it does. Always holds: a create that could not be checked again later is refused.

use crate::{
    front::access::WireRange,
    hub::{Subscribe, WatchOptions},
    pb::etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType, watch_request::RequestUnion},
    telemetry::names::Refusal,
    types::{KeyRange, Revision},
};

/// etcd's text for creates that it refuses.
const NEGATIVE_START: &str = "etcdserver: mvcc: required revision has been compacted";
/// The relay's own text for one that it could not check again.
const TOO_LARGE: &str = "etcd-relay: key and range_end are too large for etcd to be asked whether this client may read them; take shorter ones";

/// See the module.
#[derive(Debug)]
pub(super) enum Step {
    /// With the range as the client gave it, which is what permission is checked for.
    Create(WireRange, Subscribe),
    /// A create with an empty range: refused, but only to a client that may read it.
    Empty(WireRange),
    Refuse(String, Refusal),
    Cancel(i64),
    Progress,
}

impl Step {
    /// What the client asks to read.
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
    // An empty key stands for the first key there is.
    let key = if create.key.is_empty() { bytes::Bytes::from_static(&[0]) } else { create.key };
    if create.start_revision < 0 {
        return Step::Refuse(NEGATIVE_START.into(), Refusal::NegativeStart);
    }
    let wire = WireRange { key: key.clone(), range_end: create.range_end.clone() };
    if !wire.can_be_asked() {
        // Whether authentication is on or not: it can be enabled while the watch lives.
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
