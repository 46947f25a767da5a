//! etcd's `Watch` service, the request side: reads creates, cancels and progress requests and acts on them in the hub.
//!
//! The response side is `watch_body`. One task a stream. Before requests are acted on, the relay asks for the cluster's
//! current revision, once for all requests that came together (and for all streams that ask at the time), and waits until the
//! feed has it: so that answers name the revision that etcd would name, and a watch "from now" shows no write made before.
//! Where upstream does not answer, requests are served from what the feed has, as by an etcd member without a leader.
//! Always holds: answers come in the order of the requests; a client that does not read is not read from.
//! Source of the semantics: docs/promises.md, section 2; etcd's v3rpc/watch.go.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::join_all};
use metrics::counter;
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::watch_access::StreamAccess;
use crate::{
    front::access::WireRange,
    hub::{
        Feed, FeedKind, Hub, NoFeed, Outbox, ProgressAnswer, StreamEnd, Subscribe, SubscribeError, WaitError,
        WatchOptions, upstream::UpstreamError,
    },
    pb::etcdserverpb::{
        WatchCreateRequest, WatchRequest, watch_create_request::FilterType, watch_request::RequestUnion,
    },
    telemetry::names::{self, Refusal},
    types::{Header, KeyRange, Revision},
};

/// Most requests that are acted on together, and about how many bytes of them.
const BATCH: (usize, usize) = (1024, 1 << 20);
/// How long upstream may take to name the current revision, and a feed to reach it, before requests are served from what the
/// feed has.
const CURRENT_PATIENCE: Duration = Duration::from_secs(1);
/// How long requests that came together wait for their feeds' snapshots before those whose feed is there are served.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a create then waits for its feed's first snapshot before it is refused; on a stream without watches, before the
/// stream is ended, for the client to try elsewhere.
const SERVING_PATIENCE: Duration = Duration::from_secs(30);
/// How often a progress request on several feeds is tried while one is ahead of another.
const PROGRESS_TRIES: usize = 10;

/// etcd's texts for creates that it refuses.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const NEGATIVE_START: &str = "etcdserver: mvcc: required revision has been compacted";

/// One stream's requests.
pub(super) struct Requests {
    pub(super) hub: Arc<Hub>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) requests: Streaming<WatchRequest>,
    pub(super) access: StreamAccess,
    /// The client sent `hasleader`: it wants the stream to end where there is no leader.
    pub(super) requires_leader: bool,
    pub(super) progress_interval: Duration,
    /// The relay stops.
    pub(super) stop: CancellationToken,
    /// Who answered when the cluster's revision was last asked, and what it was.
    pub(super) current: Header,
}

/// One request, parsed.
enum Step {
    /// With the range as the client gave it, which is what permission is checked for.
    Create(WireRange, Subscribe),
    /// A create with an empty range: refused, but only to a client that may read it.
    Empty(WireRange),
    Refuse(String, Refusal),
    Cancel(i64),
    Progress,
}

/// Requests that came together, and what came behind them.
#[derive(Default)]
struct Batch {
    requests: Vec<WatchRequest>,
    bytes: usize,
    /// The end of the requests: the client's word that it has no more, or the error that broke them off.
    end: Option<Result<(), Status>>,
}

impl Batch {
    fn add(&mut self, message: Result<Option<WatchRequest>, Status>) {
        match message {
            Ok(Some(request)) => {
                self.bytes += request.encoded_len();
                self.requests.push(request);
            }
            Ok(None) => self.end = Some(Ok(())),
            Err(status) => self.end = Some(Err(status)),
        }
    }

    fn has_room(&self) -> bool {
        self.end.is_none() && self.requests.len() < BATCH.0 && self.bytes < BATCH.1
    }
}

impl Requests {
    /// Serves the stream until it is gone.
    pub(super) async fn run(mut self) {
        let gone = self.outbox.gone().clone();
        let access = self.access.clone();
        // Side by side: a client that holds up its requests does not hold up the check of its watches.
        let both = pin!(async { tokio::join!(self.serve(), access.keep()) });
        gone.run_until_cancelled(both).await;
    }

    async fn serve(&mut self) {
        let mut leaderless = self.hub.leaderless();
        let mut tick = tokio::time::interval_at(Instant::now() + self.progress_interval, self.progress_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut half_closed = false;
        let stop = self.stop.clone();
        loop {
            // Cancel safe: each arm says so.
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.outbox.end(StreamEnd::Stopping, true),
                () = lost_leader(&mut leaderless), if self.requires_leader => {
                    return self.outbox.end(StreamEnd::NoLeader, false);
                }
                batch = self.read(), if !half_closed => {
                    // What is not acted on when the relay stops, the client asks elsewhere.
                    // In a box while it lasts: thousands of streams wait here, and few act.
                    let act = Box::pin(self.act(batch.requests));
                    if stop.run_until_cancelled(act).await.is_none() {
                        return self.outbox.end(StreamEnd::Stopping, true);
                    }
                    match batch.end {
                        None => {}
                        // The client says no more, and wants to hear all the same.
                        Some(Ok(())) => half_closed = true,
                        Some(Err(status)) => return self.outbox.end(ended_by(&status), false),
                    }
                }
                _ = tick.tick() => {
                    if self.outbox.wants_progress() {
                        let feeds = self.outbox.feeds();
                        let current = Box::pin(self.reach_current(&feeds, None));
                        if stop.run_until_cancelled(current).await.is_some() {
                            self.outbox.notify_progress(false);
                        }
                    }
                }
            }
        }
    }

    /// The next request, once the client has read enough of its answers, and those that have arrived with it. Cancel safe.
    async fn read(&mut self) -> Batch {
        self.outbox.wait_room().await;
        let mut batch = Batch::default();
        batch.add(self.requests.message().await);
        while batch.has_room() {
            match self.requests.message().now_or_never() {
                Some(message) => batch.add(message),
                None => break,
            }
        }
        batch
    }

    async fn act(&mut self, requests: Vec<WatchRequest>) {
        // Requests of no known kind are ignored, as etcd ignores them.
        let steps: Vec<Step> = requests.into_iter().filter_map(|request| request.request_union).map(step).collect();
        if steps.is_empty() {
            return;
        }
        let Some(steps) = self.authorized(steps).await else { return };
        let starts: BTreeSet<Revision> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Create(_, subscribe) => Some(subscribe.start_revision),
                _ => None,
            })
            .filter(|start| *start > Revision::ZERO)
            .collect();
        let mut feeds = self.outbox.feeds();
        for step in &steps {
            if let Step::Create(_, subscribe) = step
                && let Ok(feed) = self.hub.feed(&subscribe.range)
                && !feeds.iter().any(|known| Arc::ptr_eq(known, &feed))
            {
                feeds.push(feed);
            }
        }
        let off = self.access.access.is_off();
        let some_compacted = self.reach_current(&feeds, starts.first().copied()).await;
        let steps = if off && !self.access.access.is_off() {
            // Authentication was enabled meanwhile.
            let Some(steps) = self.authorized(steps).await else { return };
            steps
        } else {
            steps
        };
        let compacted = if some_compacted { self.compacted(starts).await } else { BTreeSet::new() };
        for step in steps {
            match step {
                Step::Create(_, mut subscribe) => {
                    subscribe.compacted = compacted.contains(&subscribe.start_revision);
                    if !self.create(subscribe).await {
                        return;
                    }
                }
                Step::Empty(_) => self.refuse(EMPTY_RANGE.into(), Refusal::EmptyRange),
                Step::Refuse(text, why) => self.refuse(text, why),
                Step::Cancel(watch_id) => self.outbox.cancel(watch_id),
                Step::Progress => self.progress().await,
            }
        }
    }

    /// The steps with refusals in place of creates that the client may not do. `None` where the stream has ended.
    async fn authorized(&self, steps: Vec<Step>) -> Option<Vec<Step>> {
        if self.access.access.is_off() {
            return Some(steps);
        }
        let ranges: Vec<WireRange> = steps.iter().filter_map(Step::range).cloned().collect();
        match self.access.check(&ranges).await {
            Ok(results) => {
                let mut results = results.into_iter();
                let decided = steps.into_iter().map(|step| match step.range().and_then(|_| results.next()) {
                    Some(Err(reason)) => Step::Refuse(reason, Refusal::Denied),
                    _ => step,
                });
                Some(decided.collect())
            }
            Err(end) => {
                self.outbox.end(end, false);
                None
            }
        }
    }

    /// Asks for the current revision and waits until the feeds have it, within bounds. Whether `oldest` is compacted.
    async fn reach_current(&mut self, feeds: &[Arc<Feed>], oldest: Option<Revision>) -> bool {
        // A snapshot read before the ask would be older than it.
        join_all(feeds.iter().map(|feed| feed.wait_serving(SNAPSHOT_PATIENCE))).await;
        let marks: Vec<_> = feeds.iter().map(|feed| feed.mark()).collect();
        let confirm = self.hub.confirmer().confirm(oldest);
        let confirmed = match tokio::time::timeout(CURRENT_PATIENCE, confirm).await {
            Ok(Ok(confirmed)) => confirmed,
            Ok(Err(error)) => {
                tracing::debug!(%error, "Watch requests are served without the current revision");
                if matches!(error, UpstreamError::Denied(_)) && self.access.access.is_off() {
                    self.access.access.doubt();
                }
                return false;
            }
            Err(_) => {
                tracing::debug!("Watch requests are served without the current revision: no answer in time");
                return false;
            }
        };
        self.current = confirmed.header;
        // A feed of another cluster does not serve until it has begun again; creates wait for that.
        let waits = feeds.iter().zip(marks).map(|(feed, mark)| feed.reach(mark, &confirmed.header, CURRENT_PATIENCE));
        for waited in join_all(waits).await {
            if let Err(error) = waited {
                tracing::debug!(%error, "Watch requests are served from an older revision than the current one");
            }
        }
        confirmed.compacted
    }

    /// Which of `starts` are compacted at etcd. Asked together, they cost few questions.
    async fn compacted(&self, starts: BTreeSet<Revision>) -> BTreeSet<Revision> {
        let ask = async |start: Revision| {
            let confirmed = self.hub.confirmer().confirm(Some(start)).await;
            confirmed.is_ok_and(|confirmed| confirmed.compacted).then_some(start)
        };
        join_all(starts.into_iter().map(ask)).await.into_iter().flatten().collect()
    }

    /// False where the stream has ended.
    async fn create(&self, subscribe: Subscribe) -> bool {
        let patience = Instant::now() + SERVING_PATIENCE;
        loop {
            let feed = match self.hub.feed(&subscribe.range) {
                Ok(feed) => feed,
                Err(error) => {
                    let why = match error {
                        NoFeed::Denied => Refusal::OutsideFeeds,
                        NoFeed::Limit => Refusal::Limit,
                    };
                    self.refuse(error.to_string(), why);
                    return true;
                }
            };
            match feed.subscribe(&self.outbox, &subscribe) {
                Ok(()) => return true,
                Err(error @ SubscribeError::DuplicateId) => {
                    self.refuse(error.to_string(), Refusal::DuplicateId);
                    return true;
                }
                Err(error @ SubscribeError::TooMany) => {
                    self.refuse(error.to_string(), Refusal::Limit);
                    return true;
                }
                Err(SubscribeError::Gone) => return false,
                Err(SubscribeError::NotServing) => {
                    let left = patience.saturating_duration_since(Instant::now());
                    let waited = feed.wait_serving(left).await;
                    if waited == Err(WaitError::Denied) && feed.kind() == FeedKind::OnDemand {
                        // It will not get better by coming again, and the stream's other watches are none the worse for it.
                        let why = feed.last_error().unwrap_or_default();
                        self.refuse(format!("etcd-relay: {why}"), Refusal::RelayDenied);
                        return true;
                    }
                    if left.is_zero() || matches!(waited, Err(WaitError::Timeout | WaitError::Denied)) {
                        let why = feed.last_error().map_or_else(String::new, |error| format!(": {error}"));
                        let text = format!("etcd-relay: no snapshot of {} from etcd yet; try again{why}", feed.range());
                        if self.outbox.watches() > 0 {
                            // The stream's other watches must not end for this one.
                            self.refuse(text, Refusal::Late);
                            return true;
                        }
                        self.outbox.end(StreamEnd::Unavailable(text), false);
                        return false;
                    }
                }
            }
        }
    }

    async fn progress(&mut self) {
        for _ in 0..PROGRESS_TRIES {
            if self.outbox.answer_progress() != ProgressAnswer::Later {
                return;
            }
            self.reach_current(&self.outbox.feeds(), None).await;
        }
    }

    fn refuse(&self, text: String, why: Refusal) {
        counter!(names::WATCHES_REFUSED, Refusal::LABEL => why.as_str()).increment(1);
        self.outbox.refuse(self.current, text);
    }
}

/// Waits until the cluster has no leader. Cancel safe.
async fn lost_leader(leaderless: &mut watch::Receiver<bool>) {
    if leaderless.wait_for(|leaderless| *leaderless).await.is_err() {
        // The hub is gone, and with it all who could tell.
        std::future::pending().await
    }
}

impl Step {
    /// What the client asks to read.
    fn range(&self) -> Option<&WireRange> {
        match self {
            Self::Create(range, _) | Self::Empty(range) => Some(range),
            Self::Refuse(..) | Self::Cancel(_) | Self::Progress => None,
        }
    }
}

fn step(request: RequestUnion) -> Step {
    match request {
        RequestUnion::CreateRequest(create) => parse(create),
        RequestUnion::CancelRequest(cancel) => Step::Cancel(cancel.watch_id),
        RequestUnion::ProgressRequest(_) => Step::Progress,
    }
}

fn parse(create: WatchCreateRequest) -> Step {
    // An empty key stands for the first key there is.
    let key = if create.key.is_empty() { bytes::Bytes::from_static(&[0]) } else { create.key };
    if create.start_revision < 0 {
        return Step::Refuse(NEGATIVE_START.into(), Refusal::NegativeStart);
    }
    let wire = WireRange { key: key.clone(), range_end: create.range_end.clone() };
    let Ok(range) = KeyRange::from_wire(key, create.range_end) else { return Step::Empty(wire) };
    let filtered = |filter: FilterType| create.filters.contains(&(filter as i32));
    let subscribe = Subscribe {
        watch_id: create.watch_id,
        range,
        options: WatchOptions {
            no_put: filtered(FilterType::Noput),
            no_delete: filtered(FilterType::Nodelete),
            prev_kv: create.prev_kv,
        },
        start_revision: Revision::new(create.start_revision),
        progress_notify: create.progress_notify,
        fragment: create.fragment,
        compacted: false,
    };
    Step::Create(wire, subscribe)
}

/// The client's side broke off: a request that is too large or cannot be decoded, with etcd's codes; or the connection, and then
/// nobody is there to hear.
fn ended_by(status: &Status) -> StreamEnd {
    let text = format!("etcd-relay: the watch request cannot be read: {}", status.message());
    // tonic's code for a message over its limit.
    if status.code() == tonic::Code::OutOfRange { StreamEnd::TooLarge(text) } else { StreamEnd::Malformed(text) }
}
