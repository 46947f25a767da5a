//! [`Follow`]: a watch with its own session, from its request to the first answer of the hub. [`Watching`]
//! describes what a stream follows.
//!
//! A stream opens a watch, and another one if the first cannot continue: its past is compacted, or it wants only the
//! newest values and is far behind. Each is a complete session, so permission, the current revision and the feed are
//! handled as for gRPC.
//!
//! What is sent is in `stream`. Always holds: a dropped watch leaves the hub. If a stream continues with a snapshot,
//! its watch was created before the snapshot was read, so nothing in between is missed.

use std::{future::poll_fn, sync::Arc, time::Duration};

use futures_util::stream;
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    begin::Begin,
    query::{Mode, Watch},
    reply::Failure,
};
use crate::{
    front::{client::Client, grpc::Listed},
    hub::{Delivery, Drained, WatchStream},
    pb::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request::RequestUnion},
    types::{Cluster, Revision},
};

/// Approximate number of event bytes taken from the queue at a time.
pub(super) const FRAME_BYTES: usize = 64 << 10;
/// How long a snapshot waits until its feed has reached the cluster's revision at the creation of the watch.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a stream follows while it is open.
#[derive(Debug)]
pub(super) struct Watching {
    pub(super) shared: Arc<Shared>,
    pub(super) watch: Watch,
    pub(super) client: Client,
    /// Cancelled when its connection is asked to leave.
    pub(super) leave: CancellationToken,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// At the next change.
    Now,
    /// After this revision.
    After(Revision),
    /// With all keys.
    All,
    /// With the keys that changed since this revision.
    Newest(Revision),
}

/// A watch, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Follow {
    pub(super) stream: Arc<WatchStream>,
    _listed: Option<Listed>,
}

/// A watch that has been created.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) follow: Follow,
    pub(super) cluster_id: u64,
    /// Deliveries that came directly after the creation.
    pub(super) waiting: Vec<Delivery>,
    /// What must be sent before them; `None` if the reader continues from its past.
    pub(super) begin: Option<Begin>,
}

impl Watching {
    /// Where the stream begins.
    pub(super) fn wanted(&self) -> Wanted {
        match (self.watch.since, self.watch.snapshot) {
            (Some(since), _) => Wanted::After(since),
            (None, true) => Wanted::All,
            (None, false) => Wanted::Now,
        }
    }

    /// Whether it wants only the newest values.
    pub(super) fn wants_newest(&self) -> bool {
        self.watch.mode == Mode::State
    }

    /// Opens a watch. Cancel safe.
    ///
    /// # Errors
    /// Fails if the watch is refused, or its first content cannot be read.
    pub(super) async fn open(self: Arc<Self>, wanted: Wanted) -> Result<Opened, Failure> {
        let follow = self.follow(wanted);
        let mut waiting = Vec::new();
        if let Drained::End(end) = poll_fn(|cx| follow.stream.poll_drain(cx, &mut waiting, FRAME_BYTES)).await {
            return Err(Failure::of_end(end));
        }
        // The answer to the create comes first.
        let (watch_id, stamp) = match waiting.remove(0) {
            Delivery::Created { watch_id, stamp } => (watch_id, stamp),
            Delivery::Canceled(refused) => return Err(Failure::of_watch(&refused.reason)),
            Delivery::Events { .. } | Delivery::Progress { .. } => return Err(moved_on()),
        };
        let begin = match wanted {
            Wanted::Now => Some(Begin::After(stamp.revision)),
            Wanted::After(_) => None,
            Wanted::All | Wanted::Newest(_) => {
                let feed = follow.stream.feed_of(watch_id).ok_or_else(moved_on)?;
                // The watch begins after this revision, even if the feed does not have it yet.
                feed.wait_for(stamp.revision, PATIENCE).await.map_err(|_| moved_on())?;
                let begin = match wanted {
                    Wanted::Newest(since) => Begin::newest(&feed, &self.watch.range, since).await,
                    _ => Begin::all(&feed, &self.watch.range),
                };
                Some(begin.map_err(|_| moved_on())?)
            }
        };
        Ok(Opened { follow, cluster_id: Cluster::id(&stamp.cluster), waiting, begin })
    }

    fn follow(&self, wanted: Wanted) -> Follow {
        let (key, range_end) = self.watch.range.to_wire();
        let start_revision = if let Wanted::After(since) = wanted { since.next().get() } else { 0 };
        let create = WatchCreateRequest { key, range_end, start_revision, ..WatchCreateRequest::default() };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let Shared { sessions, streams, tasks, .. } = &*self.shared;
        let session = sessions.open(self.client.clone(), false, self.leave.clone());
        let stream = session.stream().clone();
        let listed = self.client.connection.map(|connection| streams.list(connection, &stream));
        let follow = Follow { stream, _listed: listed };
        tasks.spawn(session.run(stream::iter([Ok(request)])));
        follow
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.stream.leave();
    }
}

fn moved_on() -> Failure {
    Failure::unavailable("etcd-relay: these keys are being read from etcd again; reconnect")
}
