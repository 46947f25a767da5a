//! Parses a call of Lainlet's API: its method from the path, its only parameter from the message, and its metadata.
//!
//! Always holds: nothing that a client sends is assumed to be valid; invalid input gets a gRPC status.

use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use tonic::Status;

use crate::{
    front::grpc::pieces::PREFIX,
    types::Revision,
    view::{Lainlet, Spec},
};

/// Metadata: the etcd revision that the reply must at least reflect.
pub(super) const MIN_REVISION: &str = "min-revision";
/// Metadata: the node whose part is requested, for a view of one node.
pub(super) const NODE_NAME: &str = "nodename";

/// A method of Lainlet's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// A view, once.
    Get(&'static Spec),
    /// A view, sent again whenever it changes.
    Watch(&'static Spec),
    /// The application that an address belongs to.
    Appname,
    Version,
    Status,
}

impl Method {
    /// The method of a path, without its prefix `/message.`.
    ///
    /// # Errors
    /// Returns Unimplemented, in the words of Go's gRPC, if there is no such method.
    pub(super) fn of(path: &str, views: &Lainlet) -> Result<Self, Status> {
        let (service, method) = path.split_once('/').unwrap_or((path, ""));
        let view = views.view_of(service);
        let found = match (service, method) {
            ("Lainlet", "Version") => Some(Self::Version),
            ("Lainlet", "Status") => Some(Self::Status),
            ("Appname", "Get") => Some(Self::Appname),
            (_, "Get") => view.map(Self::Get),
            (_, "Watch") => view.filter(|view| view.watch).map(Self::Watch),
            _ => None,
        };
        found.ok_or_else(|| {
            Status::unimplemented(if view.is_some() || matches!(service, "Lainlet" | "Appname") {
                format!("unknown method {method} for service message.{service}")
            } else {
                format!("unknown service message.{service}")
            })
        })
    }
}

/// The wire form of every request of Lainlet's API: nothing, or one text.
#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, tag = "1")]
    text: String,
}

/// The text in the single message of a request's body; `None` if it is empty, which means the same as no text.
///
/// # Errors
/// Returns Internal if the message cannot be read, as gRPC does.
pub(super) fn text(body: &Bytes) -> Result<Option<String>, Status> {
    let unreadable = |why: &str| Status::internal(format!("etcd-relay: the request cannot be read: {why}"));
    let (prefix, message) = body.split_at_checked(PREFIX).ok_or_else(|| unreadable("there is no message"))?;
    let [flag, a, b, c, d] = *prefix else { return Err(unreadable("there is no message")) };
    if flag != 0 {
        return Err(unreadable("it is marked as compressed, but names no compression"));
    }
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(unreadable("it is not one complete message"));
    }
    let asked = Asked::decode(body.slice(PREFIX..)).map_err(|error| unreadable(&error.to_string()))?;
    Ok(Some(asked.text).filter(|text| !text.is_empty()))
}

/// The revision that the reply must have reached.
///
/// # Errors
/// Returns InvalidArgument if it is not a decimal number.
pub(super) fn min_revision(metadata: &HeaderMap) -> Result<Option<Revision>, Status> {
    let Some(value) = metadata.get(MIN_REVISION) else { return Ok(None) };
    let revision = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|revision| *revision >= 0);
    match revision {
        Some(revision) => Ok(Some(Revision::new(revision))),
        None => Err(Status::invalid_argument(format!("etcd-relay: {MIN_REVISION} must be a revision, not {value:?}"))),
    }
}

/// The requested node, for a view of one node.
///
/// # Errors
/// Returns InvalidArgument if the name is not text.
pub(super) fn node_name<'a>(metadata: &'a HeaderMap, spec: &Spec) -> Result<Option<&'a str>, Status> {
    let value = metadata.get(NODE_NAME).filter(|value| spec.of_node && !value.is_empty());
    value.map(|value| value.to_str()).transpose().map_err(|_| {
        Status::invalid_argument(format!("etcd-relay: {NODE_NAME} must be the name of a node, in printable ASCII"))
    })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tonic::Code;

    use super::*;
    use crate::pb::lainlet::{AppsRequest, ConfigRequest, PodgroupRequest};

    fn framed(flag: u8, message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
        [&[flag], &length[..], message].concat().into()
    }

    #[test]
    fn one_way_of_reading_does_for_all_requests() {
        let config = ConfigRequest { target: "vips/".into() }.encode_to_vec();
        assert_eq!(text(&framed(0, &config)).expect("readable").as_deref(), Some("vips/"));
        let group = PodgroupRequest { appname: "hello".into() }.encode_to_vec();
        assert_eq!(text(&framed(0, &group)).expect("readable").as_deref(), Some("hello"));
        assert_eq!(text(&framed(0, &AppsRequest {}.encode_to_vec())).expect("readable"), None);
        // An explicitly empty text, and an unknown field.
        assert_eq!(text(&framed(0, &[0x0a, 0, 0x10, 7])).expect("readable"), None);
    }

    #[test]
    fn what_is_not_one_message_is_refused_with_the_reason() {
        let two = [framed(0, b""), framed(0, b"")].concat().into();
        let cut = framed(0, b"\x0a\x01x").slice(..6);
        for (body, why) in [
            (Bytes::new(), "there is no message"),
            (cut, "it is not one complete message"),
            (two, "it is not one complete message"),
            (framed(1, b""), "it is marked as compressed"),
            (framed(0, b"\x0a\x05x"), "failed to decode"),
            (framed(0, b"\x0a\x01\xff"), "failed to decode"),
        ] {
            let status = text(&body).expect_err(why);
            assert_eq!(status.code(), Code::Internal, "{body:?}");
            assert!(status.message().contains(why), "{body:?}: {}", status.message());
        }
    }

    #[test]
    fn a_revision_is_a_decimal_number() {
        let read = |value: &str| {
            let mut metadata = HeaderMap::new();
            metadata.insert(MIN_REVISION, value.parse().expect("a header value"));
            min_revision(&metadata)
        };
        assert_eq!(min_revision(&HeaderMap::new()).expect("none"), None);
        assert_eq!(read("42").expect("a number"), Some(Revision::new(42)));
        for wrong in ["", "-1", "4.2", "0x1", "9223372036854775808", "é"] {
            let status = read(wrong).expect_err(wrong);
            assert_eq!(status.code(), Code::InvalidArgument, "{wrong}");
            assert!(status.message().contains(MIN_REVISION), "{}", status.message());
        }
    }
}
