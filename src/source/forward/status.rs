//! What a client is told when a call could not be forwarded or broke on the way.
//!
//! Not here: etcd's own errors, which pass untouched.

use std::{error::Error, fmt::Write as _, iter};

use h2::Reason;
use tonic::{Code, Status};

use crate::source::{Endpoint, causes::chain, pool::LinkError};

/// etcd's own words when a member stops; its clients then go on elsewhere.
pub(super) fn stopped() -> Status {
    Status::unavailable("etcdserver: server stopped")
}

/// The request makes no sense.
pub(super) fn malformed(what: &str) -> Status {
    Status::invalid_argument(format!("etcd-relay: {what}"))
}

/// The client has as many calls under way as it may; nothing was sent.
pub(super) fn too_many(most: usize) -> Status {
    Status::resource_exhausted(format!(
        "etcd-relay: {most} calls from this client's address are under way to etcd, as many as --max-forwarded-per-client allows; \
         wait for some to end, or raise it"
    ))
}

/// No member could be reached; nothing was sent.
pub(super) fn unreachable(failures: &[LinkError]) -> Status {
    let mut text = String::from("etcd-relay cannot reach etcd");
    for failure in failures {
        // Writing to a String cannot fail.
        let _ = write!(text, "; {failure}");
    }
    text.push_str(". Check that etcd runs there and that the relay's endpoints name its client URLs");
    Status::unavailable(text)
}

/// The connection broke, or etcd reset the call, before it answered: etcd may or may not have acted on it.
pub(super) fn broken(endpoint: &Endpoint, error: &hyper::Error) -> Status {
    let code = match reset(error) {
        // The mapping of gRPC's HTTP/2 specification.
        Some(Reason::REFUSED_STREAM) | None => Code::Unavailable,
        Some(Reason::CANCEL) => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        Some(_) => Code::Internal,
    };
    Status::new(code, format!("etcd-relay lost the call to etcd at {endpoint}: {}", chain(error)))
}

/// Why etcd reset the stream, where it did; `None` where the connection broke.
pub(super) fn reset(error: &(dyn Error + 'static)) -> Option<Reason> {
    iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref::<h2::Error>())
        .filter(|error| error.is_reset() && error.is_remote())
        .and_then(h2::Error::reason)
}
