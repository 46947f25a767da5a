//! Lainlet's answers over gRPC: versions of views as messages, and refusals as statuses.
//!
//! Always holds: all clients share the bytes of a reply; only replies below a KiB are copied.

use http::{HeaderMap, HeaderValue};
use prost::Message;
use tonic::{Code, Status};

use crate::{
    front::grpc::pieces::{Pieces, Writer},
    telemetry::names::Answer,
    types::Revision,
    view::{Refusal, Version, ViewError},
};

/// Metadata: the etcd revision up to which a reply, or a stream's first reply, reflects all changes.
const REVISION: &str = "x-etcd-index";

/// The content of a version as one gRPC message.
///
/// # Errors
/// Returns the status with the reason if the version shows nothing.
pub(super) fn message(version: &Version) -> Result<Pieces, Status> {
    let parts = version.body.as_ref().map_err(|error| lost(*error))?.message();
    if u32::try_from(parts.len()).is_err() {
        return Err(Status::resource_exhausted("etcd-relay: the reply is larger than gRPC's 4 GiB; ask for less"));
    }
    let mut writer = Writer::default();
    writer.message(parts.len(), |_| {});
    parts.pieces().iter().for_each(|piece| writer.shared(piece));
    Ok(writer.finish())
}

/// A message for this answer alone.
pub(super) fn own(message: &impl Message) -> Pieces {
    let mut writer = Writer::with_capacity(message.encoded_len() + 5);
    writer.message(0, |own| message.encode_raw(own));
    writer.finish()
}

/// Adds the revision that an answer reflects to its metadata.
pub(super) fn put_revision(headers: &mut HeaderMap, revision: Revision) {
    headers.insert(REVISION, HeaderValue::from(revision.get()));
}

/// The status for a refused request, in Lainlet's words. Lainlet's code was always Unknown; its clients ignore the
/// code.
pub(super) fn status(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Forbidden(_) => Status::permission_denied(refusal.to_string()),
        // Lainlet's own spelling error, which only its gRPC API has.
        Refusal::Missing("appname") => Status::invalid_argument("appname reequired"),
        Refusal::Missing(_) | Refusal::EmptyKey => Status::invalid_argument(refusal.to_string()),
        Refusal::UnknownAddress(_) => Status::not_found(refusal.to_string()),
        Refusal::View(error) => lost(*error),
        Refusal::NotReady(_) | Refusal::Behind { .. } => Status::unavailable(refusal.to_string()),
    }
}

/// The status for a view that cannot show the cluster's state.
pub(super) fn lost(error: ViewError) -> Status {
    Status::failed_precondition(error.to_string())
}

/// The metrics label of a refusal with this code.
pub(super) fn label(code: Code) -> Answer {
    match code {
        Code::PermissionDenied => Answer::Forbidden,
        Code::FailedPrecondition => Answer::Unshowable,
        Code::Unavailable => Answer::NotReady,
        _ => Answer::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pb::lainlet::VersionReply;
    use bytes::Buf as _;

    #[test]
    fn refusals_have_lainlets_words_and_a_code_that_says_what_to_do() {
        let behind = Refusal::Behind { wanted: Revision::new(9), at: Revision::new(7), waited: Duration::from_secs(5) };
        for (refusal, code, text) in [
            (
                Refusal::Forbidden("authorize failed, super required"),
                Code::PermissionDenied,
                "authorize failed, super required",
            ),
            (Refusal::Missing("appname"), Code::InvalidArgument, "appname reequired"),
            (Refusal::EmptyKey, Code::InvalidArgument, "empty key"),
            (Refusal::UnknownAddress("10.9.9.9".into()), Code::NotFound, "unkown address 10.9.9.9"),
            (
                Refusal::View(ViewError::ContainersLost),
                Code::FailedPrecondition,
                "over half of the containers lost their IPs",
            ),
            (Refusal::NotReady("why".into()), Code::Unavailable, "etcd-relay: not ready: why"),
            (behind.clone(), Code::Unavailable, &behind.to_string()),
        ] {
            let status = status(&refusal);
            assert_eq!((status.code(), status.message()), (code, text), "{refusal:?}");
        }
    }

    #[test]
    fn a_message_has_its_length_before_it() {
        let reply = VersionReply { version: "2.4.3".into(), api_version: "2.4".into() };
        let mut pieces = own(&reply);
        let bytes = pieces.copy_to_bytes(pieces.remaining());
        assert_eq!(bytes[..5], [0, 0, 0, 0, bytes.len() as u8 - 5]);
        assert_eq!(VersionReply::decode(&bytes[5..]), Ok(reply));
    }
}
