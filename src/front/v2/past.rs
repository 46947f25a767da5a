//! [`Past`]: what was before the log, read from etcd once for all who ask for it, as after a start of the relay, when clients come back
//! with the indexes that they had.
//!
//! Not here: who waits. Always holds: one read is under way at a time; what is put before the log has every change up to its start, and
//! is no more than the log has room for.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::counter;
use tokio::{sync::Mutex, time::timeout};

use super::{
    answer::Refusal,
    events::{Logged, tell},
    waits::{Waits, cleared},
};
use crate::{
    hub::{
        Feed,
        upstream::{Changes, Upstream, UpstreamError, UpstreamWatch, WatchMessage, WatchRequest},
    },
    telemetry::names::{self, FacadePast},
    types::{Cluster, Entry, KeyValue, Revision},
};

/// How long etcd may be silent. It reads all revisions since the start before it says something.
const SILENCE: Duration = Duration::from_secs(30);
/// How often etcd is asked where it stands; it is silent while its watch is behind.
const ASK: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Past {
    upstream: Arc<dyn Upstream>,
    feed: Arc<Feed>,
    waits: Arc<Waits>,
    one: Mutex<()>,
}

/// What a read found.
struct Found {
    /// From here on it has all.
    from: Revision,
    logged: VecDeque<Arc<Logged>>,
}

impl Past {
    pub(super) fn new(upstream: Arc<dyn Upstream>, feed: Arc<Feed>, waits: Arc<Waits>) -> Self {
        Self { upstream, feed, waits, one: Mutex::new(()) }
    }

    /// Lets the log begin at `asked` or before, if etcd and the log's room allow.
    ///
    /// # Errors
    /// 401 where they do not; 300 where etcd cannot be asked.
    pub(super) async fn reach(&self, asked: u64, at: Revision) -> Result<(), Refusal> {
        let _one = self.one.lock().await;
        let Some((room, start, epoch)) = self.waits.room() else {
            return Err(cleared(self.waits.start(), asked, at));
        };
        let index = i64::try_from(asked).map_or(Revision::new(i64::MAX), Revision::new);
        if index >= start {
            return Ok(());
        }
        let outcome = self.read(index, start, room).await;
        let told = match &outcome {
            Ok(_) => FacadePast::Read,
            Err(UpstreamError::Compacted) => FacadePast::Compacted,
            Err(_) => FacadePast::Failed,
        };
        counter!(names::FACADE_PASTS, FacadePast::LABEL => told.as_str()).increment(1);
        match outcome {
            Ok(found) => {
                let from = found.from;
                self.waits.put_before(from, start, epoch, found.logged.into());
                if from > index { Err(cleared(from, asked, at)) } else { Ok(()) }
            }
            Err(UpstreamError::Compacted) => Err(cleared(start, asked, at)),
            Err(error) => Err(Refusal::unavailable(format!("etcd-relay: etcd does not tell its past: {error}"))),
        }
    }

    /// Every change from `from` up to, and without, `to`; of the oldest no more than there is room for.
    async fn read(&self, from: Revision, to: Revision, room: (usize, usize)) -> Result<Found, UpstreamError> {
        let cluster = self.feed.cluster();
        let request = WatchRequest { range: self.feed.range().clone(), start_revision: from, prev_kv: true };
        let mut watch = self.upstream.watch(request).await?;
        if watch.created().cluster_id != cluster.id() {
            return Err(UpstreamError::Unavailable("another cluster answers".to_owned()));
        }
        let mut found = Found { from, logged: VecDeque::new() };
        let mut bytes = 0;
        loop {
            let revisions = match next(&mut *watch).await? {
                WatchMessage::Events { revisions, .. } => revisions,
                WatchMessage::Progress(header) if watch.trusts_progress() && header.revision.next() >= to => {
                    return Ok(found);
                }
                WatchMessage::Progress(_) => continue,
                WatchMessage::Compacted { .. } => return Err(UpstreamError::Compacted),
                WatchMessage::Canceled { reason } => return Err(UpstreamError::Canceled(reason)),
            };
            let newest = self.feed.snapshot();
            for changes in revisions {
                if changes.revision >= to {
                    return Ok(found);
                }
                for logged in tell(&entry(&cluster, &changes), &newest, None) {
                    bytes += logged.cost();
                    found.logged.push_back(logged);
                }
                while found.logged.len() > room.0 || bytes > room.1 {
                    let Some(oldest) = found.logged.pop_front() else { break };
                    bytes -= oldest.cost();
                    found.from = oldest.revision.next();
                }
            }
        }
    }
}

/// The next message of a watch that is asked for progress until it says something.
async fn next(watch: &mut dyn UpstreamWatch) -> Result<WatchMessage, UpstreamError> {
    let since = Instant::now();
    loop {
        if watch.trusts_progress() {
            watch.request_progress().await?;
        }
        // Cancel safe: `next` is.
        match timeout(ASK, watch.next()).await {
            Ok(message) => return message,
            Err(_) if since.elapsed() < SILENCE => {}
            Err(_) => return Err(UpstreamError::Timeout(SILENCE)),
        }
    }
}

fn entry(cluster: &Arc<Cluster>, changes: &Changes) -> Entry {
    let mut prev = changes.prev.iter();
    Entry::encode(cluster, changes.revision, changes.received, &changes.events, |_| {
        prev.next().and_then(Option::as_ref).map(|fields| Arc::new(KeyValue::new(fields)))
    })
}
