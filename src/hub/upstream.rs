//! What the hub and the drivers of feeds need from the source of the data: an etcd cluster, another relay, or the
//! embedded store.
//!
//! Not here: retries and state; one call is one attempt. Implemented by `source::etcd` and `store`; called by the feed
//! driver, by fills of the gap behind the history, and by readers that need the current revision.
//! Always holds: a message carries whole revisions in rising order; `Progress` means that every event up to its
//! revision was delivered on this stream before it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::watch;

use crate::types::{Cluster, Entry, EventFields, Header, KeyRange, KeyValue, KeyValueFields, Revision};

/// An etcd v3 key space with history, as far as the hub needs it.
#[async_trait]
pub trait Upstream: fmt::Debug + Send + Sync + 'static {
    /// Reads about `limit` key-values of `range` in key order, at `revision`, or at the current one if it is `None`.
    ///
    /// # Errors
    /// [`UpstreamError::Compacted`] if `revision` is compacted; other errors as the transport fails.
    async fn page(&self, range: &KeyRange, revision: Option<Revision>, limit: usize) -> Result<Page, UpstreamError>;

    /// The same as one member has it, which may be behind the cluster. Used when no member knows what the cluster
    /// agrees on.
    ///
    /// # Errors
    /// As [`Self::page`], and [`UpstreamError::Future`] if the member does not have `revision` yet.
    async fn page_of_member(
        &self,
        range: &KeyRange,
        revision: Option<Revision>,
        limit: usize,
    ) -> Result<Page, UpstreamError> {
        self.page(range, revision, limit).await
    }

    /// Opens a watch on its own stream and waits until it is registered.
    ///
    /// # Errors
    /// As the transport fails. A `start_revision` that is compacted is reported as [`WatchMessage::Compacted`] on the
    /// stream.
    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError>;

    /// Asks for the current revision, agreed on by the cluster (linearizable), and whether `oldest` is still readable.
    ///
    /// # Errors
    /// As the transport fails, or if no leader answers in time.
    async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError>;

    /// Waits until feeds should watch at another member than this one. Upstreams that cannot know never return. Cancel
    /// safe.
    async fn left(&self, _member: &str) {
        std::future::pending().await
    }

    /// Whether the cluster can reach agreement. The receiver is notified of changes; upstreams that cannot know never
    /// send one.
    fn agreement(&self) -> watch::Receiver<Agreement> {
        watch::Sender::default().subscribe()
    }

    /// Whether past revisions can be read: a page at one, and a watch that begins at one. etcd's v2 store has none.
    fn has_past(&self) -> bool {
        true
    }

    /// Whether a feed can watch `range`. etcd's v2 store has only directories and single keys.
    fn can_follow(&self, _range: &KeyRange) -> bool {
        true
    }
}

/// Whether a cluster can reach agreement, as far as upstream knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Agreement {
    /// It can, or nobody has asked yet.
    #[default]
    Reached,
    /// No member has answered for a moment. It may be an election, or a slow cluster.
    Late,
    /// No member knows what the cluster agrees on. Some may serve what they have.
    Silent,
    /// The members that answer have no leader.
    Leaderless,
    /// They have had none for about as long as etcd waits before it ends the streams that require one.
    LeaderLost,
}

/// One page of a range.
#[derive(Clone, Debug)]
pub struct Page {
    /// Who answered, and the store's revision when it did (not the revision of the page).
    pub header: Header,
    /// The key-values, in key order.
    pub kvs: Vec<KeyValueFields>,
    /// Whether the range has more keys after these.
    pub more: bool,
    /// How many keys the range has, those after these included, if upstream counts them. Such an upstream looks at all
    /// keys of the range, so it is asked for short ones. It decides nothing else.
    pub count: Option<usize>,
}

/// What to watch.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    /// The keys.
    pub range: KeyRange,
    /// The first revision wanted.
    pub start_revision: Revision,
    /// Whether each event includes what it replaced. Feeds never request it; fills for a subscriber may.
    pub prev_kv: bool,
}

/// An open watch.
#[async_trait]
pub trait UpstreamWatch: Send {
    /// The next message. Cancel safe.
    ///
    /// # Errors
    /// When the stream ends, for whatever reason. It must not be used afterwards.
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError>;

    /// Requests a [`WatchMessage::Progress`] now. It may never come: etcd is silent while the watch is behind.
    ///
    /// # Errors
    /// When the stream has ended.
    async fn request_progress(&mut self) -> Result<(), UpstreamError>;

    /// Whether progress on this stream can be trusted. etcd before 3.4.31 and 3.5.13 can report progress ahead of
    /// events (etcd issue 15220).
    fn trusts_progress(&self) -> bool;

    /// Whether progress costs upstream so little that it may be requested when nobody waits for it.
    fn has_cheap_progress(&self) -> bool {
        true
    }

    /// Called when the cluster has revisions that do not arrive on this watch. Returns whether another watch may do
    /// better; that one is then opened elsewhere if possible.
    fn is_late(&mut self) -> bool {
        true
    }

    /// The address of the member on which the watch is open; `None` if the upstream has no members.
    fn member(&self) -> Option<Arc<str>> {
        None
    }

    /// The header of the `created` answer: who serves this watch, and the store's revision at registration.
    fn created(&self) -> Header;
}

/// A message on an upstream watch.
#[derive(Clone, Debug)]
pub enum WatchMessage {
    /// Whole revisions with events, in rising order.
    Events {
        /// The header of the response; its revision is the store's, not that of the events.
        header: Header,
        /// The revisions.
        revisions: Vec<Changes>,
    },
    /// Every event up to the header's revision has been delivered.
    Progress(Header),
    /// The wanted revision is compacted; `compact_revision` is the oldest that is left. Nothing more comes on the
    /// stream.
    Compacted {
        /// The oldest revision that is left.
        compact_revision: Revision,
    },
    /// Upstream ended the watch, for the given reason. Nothing more comes on the stream.
    Canceled {
        /// In upstream's words.
        reason: String,
    },
}

/// The changes of one whole revision.
#[derive(Clone, Debug)]
pub struct Changes {
    /// The revision.
    pub revision: Revision,
    /// The events, in etcd's order.
    pub events: Vec<EventFields>,
    /// What each event replaced, if [`WatchRequest::prev_kv`] requested it; as long as `events`, or empty.
    pub prev: Vec<Option<KeyValueFields>>,
    /// When the relay received it.
    pub received: Instant,
}

impl Changes {
    /// The entry of a past revision, with what it replaced as far as upstream reported it.
    pub(super) fn entry(&self, cluster: &Arc<Cluster>) -> Arc<Entry> {
        let mut prev = self.prev.iter();
        Arc::new(Entry::encode(cluster, self.revision, self.received, &self.events, |_| {
            prev.next().and_then(Option::as_ref).map(|fields| Arc::new(KeyValue::new(fields)))
        }))
    }
}

/// The answer to [`Upstream::confirm`].
#[derive(Clone, Copy, Debug)]
pub struct Confirmed {
    /// Who answered, and the current revision.
    pub header: Header,
    /// Whether the `oldest` revision in the request is compacted.
    pub compacted: bool,
}

/// Why upstream did not answer.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// There is no connection, it broke, or the answer says to try again.
    #[error("etcd is unavailable: {0}")]
    Unavailable(String),
    /// The member has no leader.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// The member's leader changed during the request. The member has no answer now, and may have one at once.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// The revision is compacted.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision is in the future.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    Future,
    /// The relay's own user may not read this range, or is not known.
    #[error(
        "etcd denies the relay access: {0}. Name an etcd user that may read every --prefix with --upstream-user and \
         --upstream-password-file"
    )]
    Denied(String),
    /// Upstream ended the watch, for the given reason.
    #[error("etcd canceled the watch: {0}")]
    Canceled(String),
    /// The watch reported a change after progress had passed it.
    #[error("etcd reported a change late, after subscribers had gone past it")]
    Missed,
    /// The relay upstream has found another cluster, or another past of its cluster.
    #[error("the relay upstream has started again, because its etcd cluster was replaced or restored")]
    Replaced,
    /// Upstream violated the protocol; the text says how.
    #[error("etcd sent a message that its protocol does not allow: {0}")]
    Protocol(String),
    /// The answer is larger than the relay accepts.
    #[error("etcd's answer is larger than {0} bytes")]
    TooLarge(usize),
    /// A watch did not bring what the cluster has.
    #[error("the watch brought nothing for {} although the cluster has newer changes", readable(*.0))]
    Behind(Duration),
    /// No answer in time.
    #[error("etcd did not answer within {}", readable(*.0))]
    Timeout(Duration),
}

/// Rounded to milliseconds: the fraction in `999.958382ms` tells nobody anything.
fn readable(time: Duration) -> impl fmt::Display {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(micros.saturating_add(500) / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_in_an_error_is_readable() {
        let late = UpstreamError::Timeout(Duration::from_micros(999_958));
        assert_eq!(late.to_string(), "etcd did not answer within 1s");
        let behind = UpstreamError::Behind(Duration::from_micros(1_500_499));
        assert_eq!(behind.to_string(), "the watch brought nothing for 1s 500ms although the cluster has newer changes");
    }
}
