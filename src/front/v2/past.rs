//! [`Past`]: reads the changes before the log from etcd, once for all clients that request them, for example when
//! clients come back with old indexes after a restart of the relay.
//!
//! Always holds: one read is under way at a time. The changes that are added to the log are complete up to its start,
//! and fit into the log.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use metrics::counter;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

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

/// How long etcd may send no events. It reads all revisions since the start before it sends anything.
const SILENCE: Duration = Duration::from_secs(30);
/// How often progress is requested, since etcd is silent while its watch is behind.
const ASK: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Past {
    upstream: Arc<dyn Upstream>,
    feed: Arc<Feed>,
    waits: Arc<Waits>,
    one: Mutex<()>,
}

/// The result of a read.
struct Found {
    /// Everything from this revision on.
    from: Revision,
    logged: VecDeque<Arc<Logged>>,
}

impl Past {
    pub(super) fn new(upstream: Arc<dyn Upstream>, feed: Arc<Feed>, waits: Arc<Waits>) -> Self {
        Self { upstream, feed, waits, one: Mutex::new(()) }
    }

    /// Extends the log back to `asked` or earlier, if etcd and the log's room allow it.
    ///
    /// # Errors
    /// Returns 401 if they do not, and 300 if etcd cannot be reached.
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
                self.waits.put_before(from, index, start, epoch, found.logged.into());
                if from > index { Err(cleared(from, asked, at)) } else { Ok(()) }
            }
            Err(UpstreamError::Compacted) => Err(cleared(start, asked, at)),
            Err(error) => Err(Refusal::unavailable(format!("etcd-relay: cannot read etcd's past: {error}"))),
        }
    }

    /// Reads every change from `from` up to `to`, exclusively. Of the oldest, only as much as there is room for.
    async fn read(&self, from: Revision, to: Revision, room: (usize, usize)) -> Result<Found, UpstreamError> {
        let cluster = self.feed.cluster();
        let request = WatchRequest { range: self.feed.range().clone(), start_revision: from, prev_kv: true };
        let mut watch = self.upstream.watch(request).await?;
        if watch.created().cluster_id != cluster.id() {
            return Err(UpstreamError::Unavailable("another cluster answers".to_owned()));
        }
        if !watch.trusts_progress() && !self.waits.has_changes() {
            // Only a later event would show that everything before it has come. Clients that get 401 list again.
            return Err(UpstreamError::Compacted);
        }
        let mut found = Found { from, logged: VecDeque::new() };
        let (mut bytes, mut heard) = (0, Instant::now());
        loop {
            let revisions = match next(&mut *watch, heard).await? {
                WatchMessage::Events { revisions, .. } => revisions,
                WatchMessage::Progress(header) if watch.trusts_progress() && header.revision.next() >= to => {
                    return Ok(found);
                }
                // The member is behind, and others wait for this read.
                WatchMessage::Progress(_) if heard.elapsed() < SILENCE => {
                    sleep(ASK).await;
                    continue;
                }
                WatchMessage::Progress(_) => return Err(UpstreamError::Timeout(SILENCE)),
                WatchMessage::Compacted { .. } => return Err(UpstreamError::Compacted),
                WatchMessage::Canceled { reason } => return Err(UpstreamError::Canceled(reason)),
            };
            heard = Instant::now();
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

/// The next message of a watch whose last event came at `heard`. Progress is requested until there is a message.
async fn next(watch: &mut dyn UpstreamWatch, heard: Instant) -> Result<WatchMessage, UpstreamError> {
    loop {
        if watch.trusts_progress() {
            watch.request_progress().await?;
        }
        // Cancel safe, because `next` is.
        match timeout(ASK, watch.next()).await {
            Ok(message) => return message,
            Err(_) if heard.elapsed() < SILENCE => {}
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::{
        hub::{
            KeyMap, OutboxLimits, testing,
            upstream::{Confirmed, Page},
        },
        types::{Header, KeyRange},
    };

    /// A member that answers, but stays behind the start of the log.
    #[derive(Clone, Debug, Default)]
    struct Behind {
        asked: Arc<AtomicU32>,
        is_distrusted: bool,
    }

    #[async_trait]
    impl Upstream for Behind {
        async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
            Err(UpstreamError::Unavailable("not asked for here".into()))
        }

        async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
            Ok(Box::new(self.clone()))
        }

        async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
            Err(UpstreamError::Unavailable("not asked for here".into()))
        }
    }

    #[async_trait]
    impl UpstreamWatch for Behind {
        async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
            Ok(WatchMessage::Progress(self.created()))
        }

        async fn request_progress(&mut self) -> Result<(), UpstreamError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn trusts_progress(&self) -> bool {
            !self.is_distrusted
        }

        fn created(&self) -> Header {
            Header { revision: Revision::new(3), ..Header::default() }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_member_can_show_to_be_complete_is_refused_at_once() {
        let hub = testing::hub(OutboxLimits { bytes: 1, deliveries: 1, watches: 1 });
        let feed = hub.open(KeyRange::prefix(Bytes::from_static(b"/")));
        feed.install(Arc::default(), KeyMap::default(), Revision::new(9));
        let waits = Waits::new();
        waits.begin(Revision::new(9));
        let upstream = Behind { is_distrusted: true, ..Behind::default() };
        let past = Past::new(Arc::new(upstream), feed, waits);
        let began = Instant::now();
        let refusal = past.reach(2, Revision::new(9)).await.expect_err("nobody knows what happened after 2");
        assert_eq!((refusal.code, began.elapsed()), (401, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_is_behind_holds_the_others_up_for_a_bounded_time_and_is_not_asked_all_the_time() {
        let hub = testing::hub(OutboxLimits { bytes: 1, deliveries: 1, watches: 1 });
        let feed = hub.open(KeyRange::prefix(Bytes::from_static(b"/")));
        feed.install(Arc::default(), KeyMap::default(), Revision::new(9));
        let upstream = Behind::default();
        let asked = upstream.asked.clone();
        let past = Past::new(Arc::new(upstream), feed, Waits::new());
        let read = past.read(Revision::new(2), Revision::new(9), (10, 1 << 20)).await;
        assert!(matches!(read, Err(UpstreamError::Timeout(_))));
        let most = SILENCE.as_millis() / ASK.as_millis() + 1;
        assert!(u128::from(asked.load(Ordering::Relaxed)) <= most, "{asked:?}");
    }
}
