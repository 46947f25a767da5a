//! The status that a client gets when a call could not be forwarded or broke on the way.
//!
//! Not here: etcd's own errors, which pass untouched.

use std::error::Error;

use h2::Reason;
use tonic::{Code, Status};

use crate::{
    http2::client::Lost,
    source::{
        Endpoint,
        causes::{chain, http2},
        pool::CallError,
    },
};

/// etcd's own words when a member stops. Its clients then try another one.
pub(super) fn stopped() -> Status {
    Status::unavailable("etcdserver: server stopped")
}

/// The request is malformed.
pub(super) fn malformed(what: &str) -> Status {
    Status::invalid_argument(format!("etcd-relay: {what}"))
}

/// The call has passed this relay before; nothing was sent.
pub(super) fn goes_round() -> Status {
    Status::failed_precondition(
        "etcd-relay: this call has passed this relay before, or too many relays: --etcd leads back to it. Let --etcd name etcd's members, or \
         relays that do not have this one as their upstream",
    )
}

/// The client has as many calls under way as it may; nothing was sent.
pub(super) fn too_many(most: usize) -> Status {
    Status::resource_exhausted(format!(
        "etcd-relay: {most} calls from this client's address are under way to etcd, as many as --max-forwarded-per-client allows; wait for some to end, or raise the limit"
    ))
}

/// The request broke off, or is larger than etcd accepts; nothing was sent.
pub(super) fn unreadable(error: &(dyn Error + 'static)) -> Status {
    if error.is::<http_body_util::LengthLimitError>() {
        return Status::resource_exhausted("etcdserver: request is too large");
    }
    Status::cancelled(format!("etcd-relay: the request broke off: {}", chain(error)))
}

/// No member could be reached; nothing was sent. These are the words by which etcd's clients know that they can send
/// the call again.
pub(super) fn unreachable() -> Status {
    Status::unavailable("there is no connection available")
}

/// The member did not answer, and another one does. It may have acted on the call. In etcd's own words.
pub(super) fn left() -> Status {
    Status::unavailable("etcdserver: request timed out, possibly due to connection lost")
}

/// The time that the client had set is over. etcd then resets the call, or answers in these words of Go's, whichever
/// comes first; Go's client takes such a reset for the same.
pub(super) fn late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// The leader has changed since the call was sent, and the member has everything from the time of the earlier leader:
/// most likely the call was lost with that leader. In etcd's own words.
pub(super) fn lost_with_leader() -> Status {
    Status::unavailable("etcdserver: request timed out, possibly due to previous leader failure")
}

/// The connection broke, or etcd reset the call, before it answered: etcd may or may not have acted on it.
pub(super) fn broken(endpoint: &Endpoint, error: &CallError) -> Status {
    let code = match reset(error) {
        // As in the table of gRPC's HTTP/2 specification.
        Some(Reason::REFUSED_STREAM) | None => Code::Unavailable,
        Some(Reason::CANCEL) => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        Some(_) => Code::Internal,
    };
    Status::new(code, format!("etcd-relay lost the call to etcd at {endpoint}: {}", chain(error)))
}

/// Why etcd reset the stream, if it did; `None` if the connection broke.
pub(super) fn reset(error: &(dyn Error + 'static)) -> Option<Reason> {
    if let Some(CallError::Calls(lost)) = error.downcast_ref() {
        return match lost {
            Lost::Reset(reason) => Some(*reason),
            Lost::Unusable(_) | Lost::Request | Lost::Connection(_) => None,
        };
    }
    http2(error).filter(|error| error.is_reset() && error.is_remote()).and_then(h2::Error::reason)
}
