//! What the hub and the feeds' drivers ask of whatever holds the data: an etcd cluster, another relay, the embedded store.
//!
//! Not here: retries and state; one call is one attempt. Implemented by `source::etcd` and `store`; called by the feed driver,
//! by the filling of gaps behind the history, and by readers that need the current revision.
//! Always holds: a message carries whole revisions in rising order; `Progress` says that every event up to its revision was
//! delivered on this stream before it.

use std::{fmt, sync::Arc, time::Instant};

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::watch;

use crate::types::{Cluster, Entry, EventFields, Header, KeyRange, KeyValue, KeyValueFields, Revision};

/// An etcd v3 key space with history, as far as the hub needs it.
#[async_trait]
pub trait Upstream: fmt::Debug + Send + Sync + 'static {
    /// Reads about `limit` key-values of `range` in key order, at `revision` or, where `None`, at the current one.
    ///
    /// # Errors
    /// [`UpstreamError::Compacted`] where `revision` is gone; the others as the transport fails.
    async fn page(&self, range: &KeyRange, revision: Option<Revision>, limit: usize) -> Result<Page, UpstreamError>;

    /// The same as one member has it, which may be behind the cluster: for when no member says what the cluster agrees on.
    ///
    /// # Errors
    /// As [`Self::page`], and [`UpstreamError::Future`] where the member does not have `revision` yet.
    async fn page_of_member(
        &self,
        range: &KeyRange,
        revision: Option<Revision>,
        limit: usize,
    ) -> Result<Page, UpstreamError> {
        self.page(range, revision, limit).await
    }

    /// Opens a watch on a stream of its own and waits until it is registered.
    ///
    /// # Errors
    /// As the transport fails. A `start_revision` that is compacted shows as [`WatchMessage::Compacted`] on the stream.
    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError>;

    /// Asks for the current revision, agreed by the cluster (linearizable), and whether `oldest` is still readable.
    ///
    /// # Errors
    /// As the transport fails, or where no leader answers in time.
    async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError>;

    /// Whether the cluster can say what it agrees on; changes are told. Upstreams that cannot tell never have a change.
    fn agreement(&self) -> watch::Receiver<Agreement> {
        watch::Sender::default().subscribe()
    }

    /// Whether it can be asked about revisions of the past: a page at one, and a watch from one that was told before. etcd's v2 store cannot.
    fn has_past(&self) -> bool {
        true
    }

    /// Whether a feed can have `range`. etcd's v2 store has directories and single keys only.
    fn can_follow(&self, _range: &KeyRange) -> bool {
        true
    }
}

/// Whether a cluster can say what it agrees on, as far as upstream knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Agreement {
    /// It can, or nobody has asked yet.
    #[default]
    Reached,
    /// No member says what the cluster agrees on. Some may serve what they have.
    Silent,
    /// The members that answer have no leader.
    Leaderless,
    /// They have had none for about as long as etcd waits before it ends the streams that want one.
    LeaderLost,
}

/// One page of a range.
#[derive(Clone, Debug)]
pub struct Page {
    /// Who answered, and the store revision of the answer (not of the page).
    pub header: Header,
    /// In key order.
    pub kvs: Vec<KeyValueFields>,
    /// Whether the range has more keys after these.
    pub more: bool,
}

/// What to watch.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    /// The keys.
    pub range: KeyRange,
    /// The first revision wanted.
    pub start_revision: Revision,
    /// Whether each event brings what it replaced. Feeds never ask for it; filling a gap for a subscriber may.
    pub prev_kv: bool,
}

/// A watch that is open.
#[async_trait]
pub trait UpstreamWatch: Send {
    /// The next message. Cancel safe.
    ///
    /// # Errors
    /// When the stream ends, for whatever reason; it is of no use afterwards.
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError>;

    /// Asks for a [`WatchMessage::Progress`] now. It may never come: etcd is silent while the watch is behind.
    ///
    /// # Errors
    /// When the stream has ended.
    async fn request_progress(&mut self) -> Result<(), UpstreamError>;

    /// Whether progress on this stream can be believed. etcd before 3.4.31 and 3.5.13 can report progress ahead of events
    /// (etcd issue 15220).
    fn trusts_progress(&self) -> bool;

    /// Whether progress costs upstream so little that it may be asked for when nobody waits for it.
    fn has_cheap_progress(&self) -> bool {
        true
    }

    /// What the cluster has does not come on this watch. Whether another one may do better: then it goes elsewhere where it can.
    fn is_late(&mut self) -> bool {
        true
    }

    /// Where the member is that the watch is open on; `None` where the upstream has no members.
    fn member(&self) -> Option<Arc<str>> {
        None
    }

    /// The header of the `created` answer: who serves this watch, and its store revision at registration.
    fn created(&self) -> Header;
}

/// A message on an upstream watch.
#[derive(Clone, Debug)]
pub enum WatchMessage {
    /// Whole revisions with events, rising.
    Events {
        /// The header of the response; its revision is the store's, not that of the events.
        header: Header,
        /// The revisions.
        revisions: Vec<Changes>,
    },
    /// Every event up to the header's revision has been delivered.
    Progress(Header),
    /// The wanted revision is gone; `compact_revision` is the oldest that is left. The stream gives nothing more.
    Compacted {
        /// The oldest revision that is left.
        compact_revision: Revision,
    },
    /// Upstream ended the watch, with its reason. The stream gives nothing more.
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
    /// In etcd's order.
    pub events: Vec<EventFields>,
    /// What each event replaced, where [`WatchRequest::prev_kv`] asked for it; as long as `events`, or empty.
    pub prev: Vec<Option<KeyValueFields>>,
    /// When the relay received it.
    pub received: Instant,
}

impl Changes {
    /// The same as a revision of the past, with what it replaced as far as upstream told.
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
    /// Whether the `oldest` revision that was asked about is compacted.
    pub compacted: bool,
}

/// Why upstream did not answer.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// No connection, a broken one, or an answer that says to come again.
    #[error("etcd is unavailable: {0}")]
    Unavailable(String),
    /// The member has no leader.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// The member's leader changed while it was asked: it knows no answer, and may know one at once.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// The revision is gone.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision is still to come.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    Future,
    /// The relay's own identity may not read this range, or is not known.
    #[error(
        "etcd denies the relay access: {0}. Name an etcd user that may read every --prefix with --upstream-user and \
         --upstream-password-file"
    )]
    Denied(String),
    /// Upstream ended the watch, with its reason.
    #[error("etcd canceled the watch: {0}")]
    Canceled(String),
    /// The watch told a change after progress had passed it.
    #[error("etcd told a change late, which subscribers had gone past")]
    Missed,
    /// The relay upstream has found another cluster, or another past of it.
    #[error("the relay upstream has begun anew, since its etcd cluster was replaced or restored")]
    Replaced,
    /// Upstream broke the protocol; says how.
    #[error("etcd sent what its protocol does not allow: {0}")]
    Protocol(String),
    /// The answer would have more bytes than are read.
    #[error("etcd's answer has more than {0} bytes")]
    TooLarge(usize),
    /// A watch did not bring what the cluster has.
    #[error("the watch brought nothing for {0:?} though the cluster has more")]
    Behind(std::time::Duration),
    /// No answer in time.
    #[error("etcd did not answer within {0:?}")]
    Timeout(std::time::Duration),
}
