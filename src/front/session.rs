//! [`Session`]: the watches of one stream, from its requests to the queue of its answers. It is independent of the
//! transport: a front passes requests in as a stream, and sends what the [`WatchStream`] yields.
//!
//! A request is parsed (`step`), checked (`permission`), waits until the feeds have the cluster's current revision, and
//! is executed in the hub. The relay asks for the current revision once for all requests that arrived together, and for
//! all streams that need it at that time. So answers name the revision that etcd would name, and a watch "from now"
//! shows no earlier write. If upstream does not answer, requests are served from the feed's data, as by an etcd member
//! without a leader; a watch "from now" then begins above the newest known revision of the cluster.
//!
//! A create whose feed has no snapshot yet waits, and later requests wait behind it (`waiting`), except cancels of
//! other watches and progress requests. Always holds: answers to creates come in the order of the creates. Requests of
//! a client that does not read are not read. A client that sends requests without a pause still gets its progress
//! notifications. The semantics follow docs/promises.md, section 2, and etcd's v3rpc/watch.go.

mod permission;
mod step;
mod waiting;

use std::{collections::BTreeSet, future::poll_fn, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _, Stream, StreamExt as _,
    future::{join, join_all},
};
use metrics::counter;
use prost::Message as _;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use self::{
    permission::Permission,
    step::{Step, step},
    waiting::{Confirmed, Waiting, Wanted},
};
use super::{
    access::{Access, WireRange},
    client::Client,
    order::Arrivals,
};
use crate::{
    hub::{
        Answered, Beat, Feed, FeedKind, FeedState, Hub, Mark, NoFeed, Pace, ProgressAnswer, Shares, StreamEnd,
        Subscribe, SubscribeError, WatchStream,
        upstream::{Agreement, Confirmed as Answer},
    },
    pb::etcdserverpb::WatchRequest,
    telemetry::names::{self, Refusal},
    types::{Header, Revision},
};

/// Most requests that are executed together, and approximately their most bytes.
const BATCH: (usize, usize) = (1024, 1 << 20);
/// How long upstream may take to name the current revision, and a feed to reach it, before requests are served from the
/// feed's data.
const CURRENT_PATIENCE: Duration = Duration::from_secs(1);
/// How long a create waits for its feed's first snapshot before it is refused. On a stream without watches, the stream
/// then ends, so that the client tries elsewhere.
const SERVING_PATIENCE: Duration = Duration::from_secs(30);
/// Pause before progress notifications continue for which the client's queue had no room.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);
/// How often a progress request for several feeds is tried while one is ahead of another.
const PROGRESS_TRIES: usize = 10;

/// etcd's error for a create with an empty range.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

/// The end of a stream whose requests are no longer handled.
const PANICKED: &str = "etcd-relay: this stream failed by a fault of the relay; open another";

/// What all sessions of a relay share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// The hub with the feeds.
    pub hub: Arc<Hub>,
    /// Decides what a client may watch.
    pub access: Access,
    /// The number of watches that a client may have.
    pub shares: Arc<Shares>,
    /// The interval of progress notifications.
    pub pace: Arc<Pace>,
    /// Cancelled when the relay stops, for sessions without a connection.
    pub stop: CancellationToken,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    shared: Sessions,
    stream: Arc<WatchStream>,
    permission: Permission,
    /// The stream must end if there is no leader.
    requires_leader: bool,
    /// Some watch has asked for progress, and may still exist.
    wants_progress: bool,
    stop: CancellationToken,
    /// The last answer about the cluster's current revision.
    current: Header,
    /// The same, if the last question about it was answered.
    confirmed: Option<Confirmed>,
    waiting: Waiting,
    /// What has arrived of the requests, if writes of the connection wait for their creates.
    arrivals: Option<Arrivals>,
    /// How far they were read, as `arrivals` counts.
    read_to: u64,
}

/// Requests that arrived together, and what came after them.
#[derive(Default)]
struct Batch {
    requests: Vec<WatchRequest>,
    bytes: usize,
    /// The end of the requests: the client has no more, or the reason why they ended early.
    end: Option<Result<(), StreamEnd>>,
    /// How far the requests were read, as [`Arrivals`] counts.
    read_to: u64,
}

/// The ticks of a stream's progress timer.
struct Ticks {
    beat: watch::Receiver<Beat>,
    /// When the last tick began, or when the first watch asked for progress.
    last: Instant,
    /// Some watch has asked for progress.
    wanted: bool,
    /// The client's queue had no room for all notifications of the last tick.
    more: bool,
}

/// The result of a request.
enum Acted {
    /// It was answered, or needs no answer.
    Done,
    /// Its feed has no snapshot yet.
    Waits,
    /// The stream has ended.
    Ended,
}

impl Sessions {
    /// Opens a session of this client. It ends with a last progress notification when `stop` is cancelled. Its answers
    /// are read from [`Session::stream`].
    #[must_use]
    pub fn open(&self, client: Client, requires_leader: bool, stop: CancellationToken) -> Session {
        let clients = std::iter::once(client.key()).chain(client.user_key());
        let counted = self.shares.count_for(clients);
        let stream = WatchStream::counted(self.hub.limits().outbox, client.key(), counted);
        Session {
            permission: Permission { access: self.access.clone(), client, stream: stream.clone() },
            shared: self.clone(),
            stream,
            requires_leader,
            wants_progress: false,
            stop,
            current: self.hub.header().at(Revision::ZERO),
            confirmed: None,
            waiting: Waiting::default(),
            arrivals: None,
            read_to: 0,
        }
    }
}

impl Session {
    /// The same session; writes of the connection wait for its creates, if there are `arrivals`.
    #[must_use]
    pub fn keeping(self, arrivals: Option<Arrivals>) -> Self {
        Self { arrivals, ..self }
    }

    /// The stream of its answers and events.
    #[must_use]
    pub fn stream(&self) -> &Arc<WatchStream> {
        &self.stream
    }

    /// Serves the requests until the stream is gone. An error among the requests ends the session.
    #[expect(
        clippy::manual_async_fn,
        reason = "an `async fn` stores its arguments twice, in each of thousands of streams"
    )]
    pub fn run(
        mut self,
        mut requests: impl Stream<Item = Result<WatchRequest, StreamEnd>> + Unpin,
    ) -> impl Future<Output = ()> {
        async move {
            let stream = self.stream.clone();
            let permission = self.permission.clone();
            let (client, connection) = self.permission.client.named();
            tracing::debug!(client, connection, "Watch stream opened");
            // Both run concurrently, so a client that delays its requests does not delay the check of its watches.
            let serve = async {
                self.serve(&mut requests).await;
                self.arrivals = None;
            };
            // An `async` block with `tokio::join!` would have room for both of them twice.
            let both = pin!(AssertUnwindSafe(join(serve, permission.keep())).catch_unwind());
            // A client must not wait for a task that is gone: a panic ends the stream with an error.
            if let Some(Err(_)) = stream.gone().run_until_cancelled(both).await {
                stream.cut(StreamEnd::Unavailable(PANICKED.to_owned()));
            }
            tracing::debug!(client, connection, "Watch stream ended");
        }
    }

    async fn serve(&mut self, requests: &mut (impl Stream<Item = Result<WatchRequest, StreamEnd>> + Unpin)) {
        let mut agreement = self.shared.hub.agreement();
        if self.requires_leader && *agreement.borrow() >= Agreement::Leaderless {
            // As in etcd, a new stream is refused. An open stream may outlast an election.
            return self.stream.end(StreamEnd::NoLeader, false);
        }
        let mut ticks = Ticks { beat: self.shared.pace.beat(), last: Instant::now(), wanted: false, more: false };
        let mut half_closed = false;
        let stop = self.stop.clone();
        loop {
            ticks.want(self.wants_progress);
            // Each arm is cancel safe. Work that a client can produce without a pause comes last.
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.stream.end(StreamEnd::Stopping, true),
                () = lost_leader(&mut agreement), if self.requires_leader => {
                    return self.stream.end(StreamEnd::NoLeader, false);
                }
                // Boxed, like the one below: few streams want progress, and this future contains a timer.
                () = async { Box::pin(ticks.due(&self.stream)).await }, if ticks.wanted => {
                    ticks.tick(&self.stream);
                    self.wants_progress = self.stream.wants_progress();
                }
                // Boxed while it lasts: thousands of streams wait here, but few of them have a waiting create.
                () = async { Box::pin(self.waiting.due(&self.shared.hub, self.stream.client())).await }, if !self.waiting.is_empty() => {
                    let act = Box::pin(self.act_on_waiting());
                    match stop.run_until_cancelled(act).await {
                        Some(true) => {}
                        Some(false) => return,
                        None => return self.stream.end(StreamEnd::Stopping, true),
                    }
                }
                batch = read(requests, &self.stream, self.arrivals.as_ref()), if !half_closed && self.waiting.has_room() => {
                    self.read_to = batch.read_to;
                    // The client repeats elsewhere what is not executed when the relay stops.
                    let act = Box::pin(self.act(batch.requests));
                    match stop.run_until_cancelled(act).await {
                        Some(true) => {}
                        Some(false) => return,
                        None => return self.stream.end(StreamEnd::Stopping, true),
                    }
                    match batch.end {
                        None => {}
                        // The client sends nothing more, but still reads.
                        Some(Ok(())) => half_closed = true,
                        Some(Err(why)) => return self.stream.end(why, false),
                    }
                }
            }
        }
    }

    /// Executes requests. Returns false if the stream has ended.
    async fn act(&mut self, requests: Vec<WatchRequest>) -> bool {
        let until = Instant::now() + SERVING_PATIENCE;
        // Like etcd, it ignores requests of an unknown kind.
        let wanted = requests
            .into_iter()
            .filter_map(|request| request.request_union)
            .map(|request| Wanted { step: step(request), until, first: None })
            .collect();
        let is_open = self.act_on(wanted).await;
        self.let_writes_go();
        is_open
    }

    /// It is known where the watches begin whose creates were read, or they begin at a revision that the client named.
    fn let_writes_go(&self) {
        if let Some(arrivals) = &self.arrivals {
            arrivals.clear(self.read_to);
        }
    }

    /// Handles the first waiting create, whose snapshot is there or which has waited long enough. Returns false if the
    /// stream has ended.
    async fn act_on_waiting(&mut self) -> bool {
        let wanted = self.waiting.take();
        self.act_on(wanted).await
    }

    async fn act_on(&mut self, wanted: Vec<Wanted>) -> bool {
        if wanted.is_empty() {
            return true;
        }
        if !wanted.iter().any(Wanted::begins_now) {
            self.let_writes_go();
        }
        let Some(wanted) = self.authorized(wanted).await else { return false };
        let starts: BTreeSet<Revision> = wanted
            .iter()
            .filter_map(|wanted| match &wanted.step {
                Step::Create(_, subscribe) => Some(subscribe.oldest_needed()),
                _ => None,
            })
            .filter(|start| *start > Revision::ZERO)
            .collect();
        let mut feeds = self.stream.feeds();
        let mut all_tell = true;
        for wanted in &wanted {
            if let Step::Create(_, subscribe) = &wanted.step
                && let Ok(feed) = self.shared.hub.feed(&subscribe.range, self.stream.client())
            {
                all_tell &= !wanted.begins_now() || can_tell(&feed);
                if !feeds.iter().any(|known| Arc::ptr_eq(known, &feed)) {
                    feeds.push(feed);
                }
            }
        }
        let off = self.permission.access.is_off();
        let asked = marked(feeds);
        let confirmed = self.confirm(starts.first().copied()).await;
        let some_compacted = confirmed.as_ref().is_some_and(|confirmed| confirmed.compacted);
        if let Some(confirmed) = &confirmed {
            if all_tell {
                // What happens until the watches are created is shown to them.
                self.let_writes_go();
            }
            reach(&asked, &confirmed.header).await;
        }
        let wanted = if off && !self.permission.access.is_off() {
            // Authentication was enabled meanwhile.
            let Some(wanted) = self.authorized(wanted).await else { return false };
            wanted
        } else {
            wanted
        };
        let compacted = if some_compacted { self.compacted(starts).await } else { BTreeSet::new() };
        for mut wanted in wanted {
            if let Step::Create(_, subscribe) = &mut wanted.step {
                subscribe.compacted = compacted.contains(&subscribe.oldest_needed());
                wanted.first = wanted.first.take().or_else(|| self.confirmed.clone());
            }
            if !self.waiting.is_empty() && !self.waiting.may_be_overtaken_by(&wanted.step, &self.stream) {
                self.waiting.add(wanted);
                continue;
            }
            match self.take(&wanted, &asked).await {
                Acted::Done => {}
                Acted::Waits => self.waiting.add(wanted),
                Acted::Ended => return false,
            }
        }
        true
    }

    /// Executes a request. `asked` are the feeds that served when the current revision was requested.
    async fn take(&mut self, wanted: &Wanted, asked: &[Marked]) -> Acted {
        match &wanted.step {
            Step::Create(_, subscribe) => return self.create(subscribe, wanted, asked),
            Step::Empty(_) => self.refuse(EMPTY_RANGE.into(), Refusal::EmptyRange),
            Step::Refuse(text, why) => self.refuse(text.clone(), *why),
            Step::Cancel(watch_id) => {
                let (client, connection) = self.permission.client.named();
                tracing::debug!(client, connection, watch_id, "Watch cancelled by its client");
                self.stream.cancel(*watch_id);
            }
            Step::Progress => self.progress().await,
        }
        Acted::Done
    }

    /// Replaces creates that the client may not do by refusals. `None` if the stream has ended.
    async fn authorized(&self, mut wanted: Vec<Wanted>) -> Option<Vec<Wanted>> {
        if self.permission.access.is_off() {
            return Some(wanted);
        }
        let ranges: Vec<WireRange> = wanted.iter().filter_map(|wanted| wanted.step.range()).cloned().collect();
        match self.permission.check(&ranges).await {
            Ok(results) => {
                let asked = wanted.iter_mut().filter(|wanted| wanted.step.range().is_some());
                for (wanted, result) in asked.zip(results) {
                    if let Err(reason) = result {
                        wanted.step = Step::Refuse(reason, Refusal::Denied);
                    }
                }
                Some(wanted)
            }
            Err(end) => {
                self.stream.end(end, false);
                None
            }
        }
    }

    /// Asks for the current revision and whether `oldest` is compacted. `None` if there is no answer within a limited
    /// time.
    async fn confirm(&mut self, oldest: Option<Revision>) -> Option<Answer> {
        let known = self.shared.hub.header().newest();
        let connection = self.permission.client.named().1;
        let confirm = self.shared.hub.confirmer().confirm_for_watches(oldest, connection);
        self.confirmed = None;
        let mut agreement = self.shared.hub.agreement();
        // Both branches are cancel safe.
        let confirmed = tokio::select! {
            biased;
            confirmed = tokio::time::timeout(CURRENT_PATIENCE, confirm) => confirmed,
            // A cluster that is back after a long time may have enabled authentication, which its answer shows.
            () = no_agreement(&mut agreement), if !self.permission.access.is_unheard() => {
                tracing::debug!("Watch requests are served without the current revision: no member knows it now");
                return None;
            }
        };
        let confirmed = match confirmed {
            Ok(Ok(confirmed)) => confirmed,
            Ok(Err(error)) => {
                tracing::debug!(%error, "Watch requests are served without the current revision");
                self.permission.access.failed(&error);
                return None;
            }
            Err(_) => {
                tracing::debug!("Watch requests are served without the current revision: no answer in time");
                return None;
            }
        };
        self.permission.access.heard();
        self.current = confirmed.header;
        // If it has begun again meanwhile, the answer may be from before that.
        let cluster = if known.id() == confirmed.header.cluster_id { known } else { self.shared.hub.header().newest() };
        self.confirmed = Some(Confirmed { cluster, revision: confirmed.header.revision });
        Some(confirmed)
    }

    /// Which of `starts` are compacted at etcd. They are checked together, which needs few questions.
    async fn compacted(&self, starts: BTreeSet<Revision>) -> BTreeSet<Revision> {
        let connection = self.permission.client.named().1;
        let ask = async |start: Revision| {
            let confirmed = self.shared.hub.confirmer().confirm_for_watches(Some(start), connection).await;
            confirmed.is_ok_and(|confirmed| confirmed.compacted).then_some(start)
        };
        join_all(starts.into_iter().map(ask)).await.into_iter().flatten().collect()
    }

    fn create(&mut self, subscribe: &Subscribe, wanted: &Wanted, asked: &[Marked]) -> Acted {
        let feed = match self.shared.hub.feed(&subscribe.range, self.stream.client()) {
            Ok(feed) => feed,
            Err(error) => {
                let why = match error {
                    NoFeed::Denied => Refusal::OutsideFeeds,
                    NoFeed::Limit | NoFeed::ClientLimit | NoFeed::Bytes | NoFeed::ClientBytes => Refusal::Limit,
                    NoFeed::Unsupported => Refusal::Unsupported,
                };
                self.refuse(error.to_string(), why);
                return Acted::Done;
            }
        };
        let may_wait = Instant::now() < wanted.until;
        let mark = asked.iter().find(|(known, _)| Arc::ptr_eq(known, &feed)).map(|(_, mark)| *mark);
        if feed.is_serving() && mark.is_none() && may_wait {
            // The snapshot came while the current revision was requested, and may be older than it, so the request
            // waits for another answer.
            return Acted::Waits;
        }
        let answered = Answered { mark: mark.filter(|_| may_wait), current: self.begins_above(&feed, wanted) };
        let subscribe = &Subscribe { known: self.known(&feed), ..subscribe.clone() };
        match self.stream.subscribe_after(&feed, answered, subscribe) {
            Ok(()) => {
                let (client, connection) = self.permission.client.named();
                let (range, start_revision) = (&subscribe.range, subscribe.start_revision.get());
                tracing::debug!(client, connection, %range, start_revision, "Watch created");
                if subscribe.progress_notify {
                    self.wants_progress = true;
                    self.shared.pace.want();
                }
                Acted::Done
            }
            Err(error @ SubscribeError::DuplicateId) => {
                self.refuse(error.to_string(), Refusal::DuplicateId);
                Acted::Done
            }
            Err(error @ SubscribeError::TooMany) => {
                self.refuse(error.to_string(), Refusal::Limit);
                Acted::Done
            }
            Err(error @ SubscribeError::ClientFull) => {
                self.refuse(error.to_string(), Refusal::ClientLimit);
                Acted::Done
            }
            Err(SubscribeError::Gone) => Acted::Ended,
            // The answer may be from before that, and of a cluster that has gone back since. The revision that it named
            // must not count as one that the feed will reach.
            Err(SubscribeError::BegunAgain) => Acted::Waits,
            Err(SubscribeError::NotServing) => self.without_snapshot(&feed, wanted.until),
        }
    }

    /// The revision above which a watch "from now" begins, if the cluster has confirmed one since its create arrived.
    /// The client may have written meanwhile without waiting for `created`, and expects to see that, as at a member.
    fn begins_above(&self, feed: &Feed, wanted: &Wanted) -> Option<Revision> {
        let Confirmed { cluster, revision } = wanted.first.as_ref()?;
        // Otherwise the cluster has begun again, or is another one.
        let holds = Arc::ptr_eq(cluster, &self.shared.hub.header().newest()) && cluster.id() == feed.cluster().id();
        (holds && can_tell(feed)).then_some(*revision)
    }

    /// The newest known revision of the feed's cluster, for a watch "from now" if the cluster has confirmed none. It
    /// must show nothing that its client may have seen before, even if the feed is behind or nobody can be asked.
    fn known(&self, feed: &Feed) -> Revision {
        let id = feed.cluster().id();
        match &self.confirmed {
            None => self.shared.hub.header().newest_of(id),
            Some(_) if !can_tell(feed) => Revision::ZERO,
            // The cluster's answer counts more than what was known before, since the cluster may have gone back.
            Some(confirmed) if confirmed.cluster.id() == id => confirmed.revision,
            Some(_) => Revision::ZERO,
        }
    }

    /// Lets a create wait whose feed has no snapshot, or refuses it.
    fn without_snapshot(&self, feed: &Feed, until: Instant) -> Acted {
        if feed.is_denied() && feed.kind() == FeedKind::OnDemand {
            // Retrying would not help, and the stream's other watches need not suffer.
            let why = feed.last_error().unwrap_or_default();
            self.refuse(format!("etcd-relay: {why}"), Refusal::RelayDenied);
            return Acted::Done;
        }
        if !feed.is_denied() && Instant::now() < until {
            return Acted::Waits;
        }
        let why = feed.last_error().map_or_else(String::new, |error| format!(": {error}"));
        let text = format!("etcd-relay: no snapshot of {} from etcd yet; retry{why}", feed.range());
        if self.stream.watches() > 0 {
            // The stream's other watches must not end because of this one.
            self.refuse(text, Refusal::Late);
            return Acted::Done;
        }
        self.stream.end(StreamEnd::Unavailable(text), false);
        Acted::Ended
    }

    async fn progress(&mut self) {
        // The stream's other requests wait meanwhile, so a silent member is not waited for repeatedly.
        let until = Instant::now() + CURRENT_PATIENCE;
        for _ in 0..PROGRESS_TRIES {
            if self.stream.answer_progress() != ProgressAnswer::Later || Instant::now() >= until {
                return;
            }
            let asked = marked(self.stream.feeds());
            match self.confirm(None).await {
                Some(confirmed) => reach(&asked, &confirmed.header).await,
                None => level(&self.stream.feeds()).await,
            }
        }
    }

    fn refuse(&self, text: String, why: Refusal) {
        let (client, connection) = self.permission.client.named();
        tracing::debug!(client, connection, reason = why.as_str(), text, "Watch refused");
        counter!(names::WATCHES_REFUSED, Refusal::LABEL => why.as_str()).increment(1);
        self.stream.refuse(self.current, text);
    }
}

impl Ticks {
    fn want(&mut self, wanted: bool) {
        if wanted && !self.wanted {
            self.last = Instant::now();
        }
        self.wanted = wanted;
    }

    /// Waits for the next tick, and then until the client has room for it. Cancel safe.
    async fn due(&mut self, stream: &WatchStream) {
        loop {
            let interval = self.beat.borrow_and_update().interval;
            let at = self.last + if self.more { interval.min(PROGRESS_PAUSE) } else { interval };
            // Both are cancel safe. The sender of the interval lives as long as the relay.
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(at) => return stream.wait_room().await,
                Ok(()) = self.beat.changed() => {}
            }
        }
    }

    fn tick(&mut self, stream: &WatchStream) {
        self.last = Instant::now();
        let stale = self.beat.borrow().stale;
        stream.feeds().iter().for_each(|feed| feed.refresh(stale));
        self.more = !stream.notify_progress(false);
    }
}

impl Batch {
    fn add(&mut self, message: Option<Result<WatchRequest, StreamEnd>>) {
        match message {
            Some(Ok(request)) => {
                self.bytes += request.encoded_len();
                self.requests.push(request);
            }
            None => self.end = Some(Ok(())),
            Some(Err(why)) => self.end = Some(Err(why)),
        }
    }

    fn has_room(&self) -> bool {
        self.end.is_none() && self.requests.len() < BATCH.0 && self.bytes < BATCH.1
    }
}

/// Whether the feed can tell when it reaches a revision without events. Otherwise a watch that begins above that would
/// get no progress, and one that begins before the history would keep its fill until its keys change.
fn can_tell(feed: &Feed) -> bool {
    let standing = feed.standing();
    standing.state != FeedState::Live || standing.trusts_progress
}

/// A feed, and its position before upstream was asked.
type Marked = (Arc<Feed>, Mark);

/// The feeds that serve. A snapshot that is still to come may be older than an answer to a question sent now.
fn marked(feeds: Vec<Arc<Feed>>) -> Vec<Marked> {
    feeds.into_iter().filter(|feed| feed.is_serving()).map(|feed| (feed.clone(), feed.mark())).collect()
}

/// Waits, for a limited time, until the feeds have the revision that upstream named.
async fn reach(asked: &[Marked], current: &Header) {
    // A feed of another cluster does not serve until it has restarted; creates wait for that.
    let waits = asked.iter().map(|(feed, mark)| feed.reach(*mark, current, CURRENT_PATIENCE));
    for waited in join_all(waits).await {
        if let Err(error) = waited {
            tracing::debug!(%error, "Watch requests are served from an older revision than the current one");
        }
    }
}

/// Waits until the feeds have the newest revision among them, for when the current one is unknown.
async fn level(feeds: &[Arc<Feed>]) {
    let newest = feeds.iter().map(|feed| feed.revision()).max().unwrap_or_default();
    // If a feed cannot, its client gets no progress, as from a member that is behind.
    let _ = join_all(feeds.iter().map(|feed| feed.wait_for(newest, CURRENT_PATIENCE))).await;
}

/// The next request, once the client has read enough of its answers, and those that arrived with it. Cancel safe.
async fn read(
    requests: &mut (impl Stream<Item = Result<WatchRequest, StreamEnd>> + Unpin),
    stream: &WatchStream,
    arrivals: Option<&Arrivals>,
) -> Batch {
    stream.wait_room().await;
    let mut batch = Batch::default();
    let first = poll_fn(|cx| {
        let next = requests.poll_next_unpin(cx);
        if next.is_pending()
            && let Some(arrivals) = arrivals
        {
            // What has arrived contains no complete request.
            arrivals.clear(arrivals.decoded());
        }
        next
    });
    batch.add(first.await);
    while batch.has_room() {
        match requests.next().now_or_never() {
            Some(message) => batch.add(message),
            None => break,
        }
    }
    batch.read_to = arrivals.map_or(0, Arrivals::decoded);
    batch
}

/// Waits until the cluster has lost its leader for good. Cancel safe.
async fn lost_leader(agreement: &mut watch::Receiver<Agreement>) {
    until(agreement, |agreement| *agreement == Agreement::LeaderLost).await;
}

/// Waits until no member answers for the cluster, for instance during an election. Cancel safe.
async fn no_agreement(agreement: &mut watch::Receiver<Agreement>) {
    until(agreement, |agreement| *agreement > Agreement::Reached).await;
}

async fn until(agreement: &mut watch::Receiver<Agreement>, holds: impl FnMut(&Agreement) -> bool) {
    if agreement.wait_for(holds).await.is_err() {
        // The sender is gone, so nothing will change.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
