//! [`EtcdWatch`]: an open watch on an etcd member, in the form that the hub uses.
//!
//! Not here: how and on which member it is opened, see `etcd`. Always holds: revisions come whole and in order, or the
//! watch ends.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use etcd_client::{WatchRequestSender, WatchResponseStream, proto::PbEvent};
use futures_util::future::BoxFuture;

use super::{LEFT, canceled, ended, fields, header, refused};
use crate::{
    hub::{
        REPLACED,
        upstream::{Changes, UpstreamError, UpstreamWatch, WatchMessage},
    },
    source::{
        members::Members,
        version::{Belief, Versions},
    },
    types::{EventFields, EventKind, Header, Revision},
};

/// An open watch on an etcd member.
pub(super) struct EtcdWatch {
    pub(super) sender: WatchRequestSender,
    pub(super) stream: WatchResponseStream,
    /// Events of a response whose last fragment has not come yet.
    pub(super) fragments: Vec<PbEvent>,
    pub(super) versions: Arc<Versions>,
    pub(super) belief: Belief,
    pub(super) created: Header,
    pub(super) member: usize,
    pub(super) members: Members,
    /// Ready when feeds should move to another member.
    pub(super) left: BoxFuture<'static, ()>,
}

#[async_trait]
impl UpstreamWatch for EtcdWatch {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        // Both branches are cancel safe: the part of a message that was read is kept. A message that has arrived comes
        // before an end.
        let message = tokio::select! {
            biased;
            message = Self::read(&mut self.stream, &mut self.fragments) => {
                if let Err(UpstreamError::Unavailable(_)) = &message {
                    self.members.broken(self.member);
                }
                message
            }
            () = &mut self.left => Err(UpstreamError::Unavailable(LEFT.to_owned())),
        };
        if message.is_err() {
            // The member may come back with another version.
            self.versions.outdate(self.belief);
            self.members.doubt(self.member);
        }
        message
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        self.sender.request_progress().await.map_err(|error| refused(&error))
    }

    fn trusts_progress(&self) -> bool {
        self.belief.trusts_progress
    }

    fn is_late(&mut self) -> bool {
        self.members.shun(self.member)
    }

    fn member(&self) -> Option<Arc<str>> {
        Some(self.members.endpoint(self.member).to_string().into())
    }

    fn created(&self) -> Header {
        self.created
    }
}

impl EtcdWatch {
    /// The next message. Cancel safe: the fragments of a response that have arrived are kept.
    async fn read(
        stream: &mut WatchResponseStream,
        fragments: &mut Vec<PbEvent>,
    ) -> Result<WatchMessage, UpstreamError> {
        loop {
            let response = stream.message().await.map_err(|error| refused(&error))?.ok_or_else(ended)?.0;
            if response.created {
                return Err(UpstreamError::Protocol("a watch was created twice".into()));
            }
            if response.canceled {
                if response.cancel_reason == REPLACED {
                    return Err(UpstreamError::Replaced);
                }
                return match response.compact_revision {
                    0 => match canceled(response.cancel_reason) {
                        UpstreamError::Protocol(reason) => Ok(WatchMessage::Canceled { reason }),
                        error => Err(error),
                    },
                    revision => Ok(WatchMessage::Compacted { compact_revision: Revision::new(revision) }),
                };
            }
            fragments.extend(response.events);
            if response.fragment {
                continue;
            }
            let header = header(response.header.as_ref())?;
            let events = std::mem::take(fragments);
            if events.is_empty() {
                return Ok(WatchMessage::Progress(header));
            }
            return Ok(WatchMessage::Events { header, revisions: revisions(events)? });
        }
    }
}

/// Splits a response into its revisions.
fn revisions(events: Vec<PbEvent>) -> Result<Vec<Changes>, UpstreamError> {
    let received = Instant::now();
    let mut revisions: Vec<Changes> = Vec::new();
    for event in events {
        let kv = event.kv.map(fields).ok_or_else(|| UpstreamError::Protocol("an event without a key".into()))?;
        let kind = match event.r#type {
            0 => EventKind::Put,
            1 => EventKind::Delete,
            other => return Err(UpstreamError::Protocol(format!("an event of the unknown type {other}"))),
        };
        let revision = kv.mod_revision;
        if revisions.last().is_none_or(|last| last.revision != revision) {
            if let Some(last) = revisions.last().filter(|last| last.revision > revision) {
                let text = format!("revision {revision} after revision {}", last.revision);
                return Err(UpstreamError::Protocol(text));
            }
            revisions.push(Changes { revision, events: Vec::new(), prev: Vec::new(), received });
        }
        if let Some(changes) = revisions.last_mut() {
            changes.events.push(EventFields { kind, kv });
            changes.prev.push(event.prev_kv.map(fields));
        }
    }
    Ok(revisions)
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbKeyValue;

    use super::*;

    fn event(key: &str, revision: i64) -> PbEvent {
        let kv = PbKeyValue { key: key.into(), mod_revision: revision, ..PbKeyValue::default() };
        PbEvent { kv: Some(kv), ..PbEvent::default() }
    }

    #[test]
    fn a_response_is_cut_into_whole_revisions() {
        let cut = revisions(vec![event("a", 5), event("b", 5), event("a", 7)]).expect("in order");
        let shape: Vec<_> = cut.iter().map(|changes| (changes.revision.get(), changes.events.len())).collect();
        assert_eq!(shape, [(5, 2), (7, 1)]);
    }

    #[test]
    fn what_the_protocol_does_not_allow_is_refused() {
        let falling = revisions(vec![event("a", 5), event("b", 4)]);
        assert!(matches!(falling, Err(UpstreamError::Protocol(_))));
        let unknown = revisions(vec![PbEvent { r#type: 7, ..event("a", 5) }]);
        assert!(matches!(unknown, Err(UpstreamError::Protocol(_))));
        assert!(matches!(revisions(vec![PbEvent::default()]), Err(UpstreamError::Protocol(_))));
    }
}
