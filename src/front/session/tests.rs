//! Tests of a session over a hub whose feeds the test drives, without a transport.

use std::{
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use http::Request;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, body::Body};
use tower::service_fn;

use super::*;
use crate::{
    front::{
        access::LIMIT,
        listen::{Connected, ConnectionId},
        order::{self, Order},
    },
    hub::{
        Delivery, Drained, FeedState, KeyMap, OutboxLimits, Reset, testing,
        upstream::{Changes, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest as UpstreamRequest},
    },
    pb::etcdserverpb::{WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, watch_request::RequestUnion},
    rpc::GrpcService,
    telemetry::ReadyBoard,
    types::{EventFields, EventKind, KeyRange, KeyValueFields},
};

const LIMITS: OutboxLimits = OutboxLimits { bytes: 1 << 20, deliveries: 4096, watches: 10_000 };

/// Sessions over a hub with a feed of `/a/` that serves, and one of `/slow/` that has no snapshot yet.
async fn sessions(progress_interval: Duration) -> (Sessions, Arc<Feed>) {
    sessions_over(testing::hub(LIMITS), progress_interval).await
}

async fn sessions_over(hub: Arc<Hub>, progress_interval: Duration) -> (Sessions, Arc<Feed>) {
    sessions_of(hub, progress_interval, &Etcd::default()).await
}

/// The same, with what etcd says about permissions.
async fn sessions_of(hub: Arc<Hub>, progress_interval: Duration, etcd: &Etcd) -> (Sessions, Arc<Feed>) {
    serve(&hub.open(KeyRange::prefix("/a/".into())));
    let slow = hub.open(KeyRange::prefix("/slow/".into()));
    let etcd = etcd.clone();
    let grants = service_fn(move |request: Request<Body>| {
        let status = etcd.check(&request);
        async move { Ok::<_, std::convert::Infallible>(status.into_http::<Body>()) }
    });
    let access = Access::new(GrpcService::new(grants), Duration::from_secs(5));
    tokio::spawn(access.clone().run(ReadyBoard::new()));
    access.wait_known(Duration::from_secs(5)).await;
    let shares = Shares::new(None);
    let pace = Pace::new(progress_interval);
    (Sessions { hub, access, shares, pace, stop: CancellationToken::new() }, slow)
}

fn serve(feed: &Feed) {
    feed.install(Arc::default(), KeyMap::default(), Revision::new(1));
    feed.set_state(FeedState::Live);
}

/// Answers checks of permissions as etcd does, in one of these ways.
#[derive(Clone, Debug, Default)]
struct Etcd(Arc<Mutex<Says>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Says {
    /// Authentication is off.
    #[default]
    Off,
    /// Whoever has a token may read everything.
    Granted,
    /// Nobody may read anything.
    Denied,
    /// It does not answer.
    Nothing,
}

impl Etcd {
    fn now(&self, says: Says) {
        *self.0.lock() = says;
    }

    fn check(&self, request: &Request<Body>) -> Status {
        let says = *self.0.lock();
        match says {
            Says::Nothing => Status::unavailable("away"),
            Says::Off => Status::out_of_range("future"),
            Says::Granted | Says::Denied if !request.headers().contains_key("token") => {
                Status::invalid_argument("etcdserver: user name is empty")
            }
            Says::Granted => Status::out_of_range("future"),
            Says::Denied => Status::permission_denied("etcdserver: permission denied"),
        }
    }
}

/// Answers that the current revision is 5, or what a test sets, each time the test permits it.
#[derive(Debug)]
struct AtFive {
    lets: Semaphore,
    agreement: watch::Sender<Agreement>,
    revision: AtomicI64,
}

impl AtFive {
    fn that_answers(times: usize) -> Arc<Self> {
        let (lets, agreement, revision) = (Semaphore::new(times), watch::Sender::default(), AtomicI64::new(5));
        Arc::new(Self { lets, agreement, revision })
    }
}

#[async_trait]
impl Upstream for AtFive {
    async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for here".into()))
    }

    fn agreement(&self) -> watch::Receiver<Agreement> {
        self.agreement.subscribe()
    }

    async fn watch(&self, _: UpstreamRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for here".into()))
    }

    async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        self.lets.acquire().await.expect("open").forget();
        let revision = Revision::new(self.revision.load(Ordering::Relaxed));
        Ok(Confirmed { header: Header { revision, ..Header::default() }, compacted: false })
    }
}

/// A client of one session.
struct Client {
    requests: mpsc::Sender<Result<WatchRequest, StreamEnd>>,
    stream: Arc<WatchStream>,
    session: JoinHandle<()>,
}

impl Client {
    fn of(sessions: &Sessions) -> Self {
        Self::who_wants_a_leader(sessions, false)
    }

    fn who_wants_a_leader(sessions: &Sessions, wants: bool) -> Self {
        let (requests, incoming) = mpsc::channel(10 * BATCH.0);
        let session = sessions.open(client(), wants, sessions.stop.clone());
        let stream = session.stream().clone();
        Self { requests, stream, session: tokio::spawn(session.run(ReceiverStream::new(incoming))) }
    }

    /// A client whose first request has arrived, and the extensions of a write that arrives on its connection next.
    fn with_writes(sessions: &Sessions) -> (Self, http::Extensions) {
        let (requests, incoming) = mpsc::channel(10);
        let session = sessions.open(client(), false, sessions.stop.clone());
        let stream = session.stream().clone();
        let order = Order::new();
        let session = session.keeping(Some(Arrivals::of_something(&order)));
        let mut extensions = http::Extensions::new();
        extensions.insert(Connected::for_tests(ConnectionId(1), "127.0.0.1:1", order));
        let session = tokio::spawn(async move {
            let mut incoming = ReceiverStream::new(incoming);
            let first = incoming.next().await.into_iter();
            session.run(futures_util::stream::iter(first).chain(incoming)).await;
        });
        (Self { requests, stream, session }, extensions)
    }

    fn send(&self, request: RequestUnion) {
        self.requests.try_send(Ok(WatchRequest { request_union: Some(request) })).expect("room");
    }

    fn create(&self, watch_id: i64, key: &'static str) {
        self.send(create(watch_id, key));
    }

    fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    /// All answers until nothing has anything left to do.
    async fn hears(&self) -> Vec<String> {
        // The clock is paused, so time passes only when everything else waits.
        tokio::time::sleep(Duration::from_millis(1)).await;
        drain(&self.stream)
    }
}

impl Client {
    /// How the stream has ended, if it sent nothing else.
    async fn end(&self) -> Poll<Drained> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.stream.poll_drain(&mut Context::from_waker(Waker::noop()), &mut Vec::new(), usize::MAX)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stream.leave();
        self.session.abort();
    }
}

fn publish(feed: &Feed, revision: i64) {
    let kv = KeyValueFields { key: "/a/1".into(), ..KeyValueFields::default() };
    let changes = Changes {
        revision: Revision::new(revision),
        events: vec![EventFields { kind: EventKind::Put, kv }],
        prev: Vec::new(),
        received: std::time::Instant::now(),
    };
    feed.publish(&[changes]).expect("in order");
}

/// A client with a token.
fn client() -> crate::front::client::Client {
    let headers =
        http::HeaderMap::from_iter([("token".parse().expect("a name"), http::HeaderValue::from_static("secret"))]);
    crate::front::client::Client::of(&headers, &http::Extensions::new())
}

fn create(watch_id: i64, key: &'static str) -> RequestUnion {
    RequestUnion::CreateRequest(WatchCreateRequest {
        key: key.into(),
        watch_id,
        progress_notify: true,
        ..Default::default()
    })
}

fn drain(stream: &Arc<WatchStream>) -> Vec<String> {
    let mut cx = Context::from_waker(Waker::noop());
    let (mut batch, mut all) = (Vec::new(), Vec::new());
    while stream.poll_drain(&mut cx, &mut batch, usize::MAX) == Poll::Ready(Drained::Some) {
        all.append(&mut batch);
    }
    all.into_iter()
        .map(|delivery| match delivery {
            Delivery::Created { watch_id, stamp } if stamp.revision > Revision::new(1) => {
                format!("created {watch_id} at {}", stamp.revision)
            }
            Delivery::Created { watch_id, .. } => format!("created {watch_id}"),
            Delivery::Canceled(cancellation) if cancellation.refused => "refused".to_owned(),
            Delivery::Canceled(cancellation) => format!("canceled {}", cancellation.watch_id),
            Delivery::Progress { watch_id, .. } => format!("progress {watch_id}"),
            Delivery::Events { .. } => "events".to_owned(),
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_create_that_waits_for_its_snapshot_holds_up_no_cancel_and_no_progress() {
    let (sessions, slow) = sessions(Duration::from_secs(600)).await;
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    client.create(0, "/a/2");
    assert_eq!(client.hears().await, ["created 0", "created 1"]);
    client.create(0, "/slow/1");
    client.cancel(0);
    client.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    assert_eq!(client.hears().await, ["canceled 0", "progress -1"]);
    client.cancel(1);
    assert_eq!(client.hears().await, ["canceled 1"], "later requests are read, too");
    serve(&slow);
    assert_eq!(client.hears().await, ["created 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_came_while_the_current_revision_was_asked_for_is_not_taken_for_the_newest() {
    let upstream = AtFive::that_answers(0);
    let (sessions, slow) = sessions_over(testing::hub_over(upstream.clone(), LIMITS), Duration::from_secs(600)).await;
    let client = Client::of(&sessions);
    client.create(0, "/slow/1");
    assert_eq!(client.hears().await, Vec::<String>::new(), "the current revision has been requested");
    serve(&slow);
    slow.follows(true, None);
    upstream.lets.add_permits(2);
    assert_eq!(client.hears().await, Vec::<String>::new(), "it is 5, which the feed has not reached yet");
    slow.advance(Revision::new(5));
    assert_eq!(client.hears().await, ["created 0 at 5"]);
}

/// A client may write before it has heard `created`, and a member would show it that.
#[tokio::test(start_paused = true)]
async fn a_watch_from_now_on_begins_where_the_cluster_stood_when_it_was_asked() {
    let upstream = AtFive::that_answers(0);
    let (sessions, _slow) = sessions_over(testing::hub_over(upstream.clone(), LIMITS), Duration::from_secs(600)).await;
    let feed = sessions.hub.running(&KeyRange::prefix("/a/".into())).expect("it serves");
    feed.follows(true, None);
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    assert_eq!(client.hears().await, Vec::<String>::new(), "the current revision has been requested");
    publish(&feed, 5);
    publish(&feed, 7);
    upstream.lets.add_permits(1);
    assert_eq!(client.hears().await, ["created 0 at 5", "events"]);
    publish(&feed, 8);
    assert_eq!(client.hears().await, ["events"]);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_counts_for_a_create_that_waits_for_its_snapshot() {
    let upstream = AtFive::that_answers(0);
    let (sessions, slow) = sessions_over(testing::hub_over(upstream.clone(), LIMITS), Duration::from_secs(600)).await;
    // The cluster is known.
    sessions.hub.header().observe(&Header { revision: Revision::new(1), ..Header::default() });
    let client = Client::of(&sessions);
    client.create(0, "/slow/1");
    upstream.lets.add_permits(1);
    assert_eq!(client.hears().await, Vec::<String>::new(), "there is no snapshot");
    slow.install(sessions.hub.header().newest(), KeyMap::default(), Revision::new(5));
    let put = |revision| {
        let kv = KeyValueFields { key: "/slow/1".into(), ..KeyValueFields::default() };
        let events = vec![EventFields { kind: EventKind::Put, kv }];
        let received = std::time::Instant::now();
        slow.publish(&[Changes { revision: Revision::new(revision), events, prev: Vec::new(), received }])
            .expect("in order");
    };
    put(6);
    put(9);
    upstream.revision.store(9, Ordering::Relaxed);
    upstream.lets.add_permits(1);
    slow.follows(true, None);
    assert_eq!(client.hears().await, ["created 0 at 5", "events", "events"]);
}

/// The cluster cannot be asked, and the feed is behind the cluster's known revision.
#[tokio::test(start_paused = true)]
async fn a_watch_from_now_on_begins_above_all_that_its_client_may_have_been_told() {
    let (sessions, _slow) = sessions(Duration::from_secs(600)).await;
    let feed = sessions.hub.running(&KeyRange::prefix("/a/".into())).expect("it serves");
    let at = |revision| Header { revision: Revision::new(revision), ..Header::default() };
    sessions.hub.header().observe(&at(9));
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    assert_eq!(client.hears().await, ["created 0 at 9"]);
    publish(&feed, 5);
    publish(&feed, 9);
    assert_eq!(client.hears().await, Vec::<String>::new(), "earlier events");
    publish(&feed, 10);
    assert_eq!(client.hears().await, ["events"]);
}

#[tokio::test(start_paused = true)]
async fn progress_over_feeds_that_stand_apart_is_told_though_nobody_says_what_is_current() {
    let (sessions, slow) = sessions(Duration::from_secs(600)).await;
    let feed = sessions.hub.running(&KeyRange::prefix("/a/".into())).expect("it serves");
    serve(&slow);
    slow.follows(true, None);
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    client.create(0, "/slow/1");
    assert_eq!(client.hears().await, ["created 0", "created 1"]);
    publish(&feed, 5);
    client.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    assert_eq!(client.hears().await, ["events"]);
    slow.advance(Revision::new(5));
    assert_eq!(client.hears().await, ["progress -1"]);
}

#[tokio::test(start_paused = true)]
async fn progress_that_a_silent_member_keeps_back_holds_up_no_other_request_for_long() {
    let upstream = AtFive::that_answers(0);
    let (sessions, slow) = sessions_over(testing::hub_over(upstream, LIMITS), Duration::from_secs(600)).await;
    let feed = sessions.hub.running(&KeyRange::prefix("/a/".into())).expect("it serves");
    serve(&slow);
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    client.create(1, "/slow/1");
    tokio::time::sleep(2 * CURRENT_PATIENCE).await;
    assert_eq!(client.hears().await, ["created 0", "created 1"]);
    publish(&feed, 5);
    client.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    assert_eq!(client.hears().await, ["events"]);
    client.cancel(0);
    tokio::time::sleep(3 * CURRENT_PATIENCE).await;
    assert_eq!(
        client.hears().await,
        ["canceled 0"],
        "the feeds are at different revisions, and the current one is \
        unknown"
    );
}

/// Otherwise the watch would wait for a revision that the cluster reaches a second time.
#[tokio::test(start_paused = true)]
async fn a_cluster_that_went_back_behind_where_a_watch_began_is_found_out() {
    let (sessions, _slow) = sessions(Duration::from_secs(600)).await;
    let feed = sessions.hub.running(&KeyRange::prefix("/a/".into())).expect("it serves");
    let at = |revision| Header { revision: Revision::new(revision), ..Header::default() };
    sessions.hub.header().observe(&at(9));
    let before = feed.mark();
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    assert_eq!(client.hears().await, ["created 0 at 9"]);
    assert_eq!(feed.check(before, &at(8)), Ok(()), "the first question was asked before");
    assert!(feed.check(feed.mark(), &at(8)).is_err() && !feed.is_serving());
}

/// Otherwise the watch would begin above a revision of a cluster that is gone, and the feed would be taken for one that
/// does not match its cluster.
#[tokio::test(start_paused = true)]
async fn a_create_whose_feed_began_again_while_the_current_revision_was_asked_for_asks_once_more() {
    let upstream = AtFive::that_answers(1);
    let (sessions, _slow) = sessions_over(testing::hub_over(upstream.clone(), LIMITS), Duration::from_secs(600)).await;
    let feed = sessions.hub.running(&KeyRange::prefix("/a/".into())).expect("it serves");
    feed.follows(true, None);
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    assert_eq!(client.hears().await, Vec::<String>::new(), "the feed has not reached 5 yet");
    let cluster = sessions
        .hub
        .header()
        .begin_again(&Header { revision: Revision::new(3), ..sessions.hub.header().at(Revision::ZERO) });
    feed.reset(&cluster, KeyMap::default(), Revision::new(3), &Reset::Replaced);
    feed.follows(true, None);
    let floor = feed.mark();
    tokio::time::sleep(CURRENT_PATIENCE * 3 / 2).await;
    assert_eq!((client.hears().await, feed.mark()), (Vec::new(), floor), "that answer was from before");
    upstream.lets.add_permits(1);
    feed.advance(Revision::new(5));
    tokio::time::sleep(CURRENT_PATIENCE).await;
    assert_eq!(client.hears().await, ["created 0 at 5"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_wants_a_leader_is_refused_without_one_and_ends_when_it_is_lost() {
    let upstream = AtFive::that_answers(0);
    let (sessions, _slow) = sessions_over(testing::hub_over(upstream.clone(), LIMITS), Duration::from_secs(600)).await;
    let [wants, wants_not] = [true, false].map(|wants| Client::who_wants_a_leader(&sessions, wants));
    wants.hears().await;
    upstream.agreement.send_replace(Agreement::Leaderless);
    assert_eq!(wants.end().await, Poll::Pending, "it may be an election");
    let late = Client::who_wants_a_leader(&sessions, true);
    let no_leader = Poll::Ready(Drained::End(StreamEnd::NoLeader));
    assert_eq!(late.end().await, no_leader);
    upstream.agreement.send_replace(Agreement::LeaderLost);
    assert_eq!((wants.end().await, wants_not.end().await), (no_leader, Poll::Pending));
}

#[tokio::test(start_paused = true)]
async fn a_create_does_not_wait_for_a_revision_that_no_member_knows() {
    let upstream = AtFive::that_answers(0);
    let (sessions, _slow) = sessions_over(testing::hub_over(upstream.clone(), LIMITS), Duration::from_secs(600)).await;
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    assert_eq!(client.hears().await, Vec::<String>::new(), "it waits for the current revision");
    upstream.agreement.send_replace(Agreement::Late);
    assert_eq!(client.hears().await, ["created 0"]);
    client.create(0, "/a/2");
    assert_eq!(client.hears().await, ["created 1"], "at once, as long as it lasts");
}

/// Its answer shows whether authentication was enabled meanwhile.
#[tokio::test(start_paused = true)]
async fn a_create_waits_for_etcd_where_authentication_may_have_been_enabled_while_it_was_away() {
    let upstream = AtFive::that_answers(0);
    let etcd = Etcd::default();
    let hub = testing::hub_over(upstream.clone(), LIMITS);
    let (sessions, _slow) = sessions_of(hub.clone(), Duration::from_secs(600), &etcd).await;
    let feed = hub.running(&KeyRange::prefix("/a/".into())).expect("it serves");
    let expiry = tokio::spawn(sessions.access.clone().expire(hub));
    etcd.now(Says::Nothing);
    feed.set_state(FeedState::Resuming);
    upstream.agreement.send_replace(Agreement::Late);
    tokio::time::sleep(2 * LIMIT).await;
    assert!(sessions.access.is_unheard());
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    assert_eq!(client.hears().await, Vec::<String>::new(), "it waits, though no member knows the current revision");
    etcd.now(Says::Denied);
    upstream.lets.add_permits(1);
    feed.advance(Revision::new(5));
    tokio::time::sleep(CURRENT_PATIENCE).await;
    assert_eq!(client.hears().await, ["refused"]);
    expiry.abort();
}

/// Its connections stay open, so feeds stay live, but nothing new comes that a client might not be allowed to read.
#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_while_all_of_etcd_is_frozen() {
    let upstream = Arc::new(testing::Agreeing::default());
    let etcd = Etcd::default();
    etcd.now(Says::Granted);
    let hub = testing::hub_over(upstream.clone(), LIMITS);
    let (sessions, _slow) = sessions_of(hub, Duration::from_secs(600), &etcd).await;
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    tokio::time::sleep(CURRENT_PATIENCE).await;
    assert_eq!(client.hears().await, ["created 0"]);
    etcd.now(Says::Nothing);
    upstream.0.send_replace(Agreement::Silent);
    tokio::time::sleep(10 * LIMIT).await;
    assert_eq!(client.end().await, Poll::Pending);
    upstream.0.send_replace(Agreement::Reached);
    tokio::time::sleep(2 * LIMIT).await;
    let end = client.end().await;
    assert!(matches!(end, Poll::Ready(Drained::End(StreamEnd::Unavailable(_)))), "events may come again: {end:?}");
}

#[tokio::test(start_paused = true)]
async fn answers_to_creates_keep_their_order_behind_one_that_waits() {
    let (sessions, slow) = sessions(Duration::from_secs(600)).await;
    let client = Client::of(&sessions);
    client.create(0, "/slow/1");
    client.create(0, "/a/1");
    client.create(0, "outside all feeds");
    client.create(0, "/a/2");
    assert_eq!(client.hears().await, Vec::<String>::new());
    serve(&slow);
    assert_eq!(client.hears().await, ["created 0", "created 1", "refused", "created 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_does_not_overtake_the_create_that_it_is_for() {
    let (sessions, slow) = sessions(Duration::from_secs(600)).await;
    let client = Client::of(&sessions);
    client.create(7, "/a/1");
    assert_eq!(client.hears().await, ["created 7"]);
    client.create(5, "/slow/1");
    client.create(7, "/slow/2");
    client.cancel(5);
    client.cancel(7);
    assert_eq!(client.hears().await, Vec::<String>::new());
    serve(&slow);
    // The id 7 was in use when the create came, as it would be in etcd.
    assert_eq!(client.hears().await, ["created 5", "refused", "canceled 5", "canceled 7"]);
}

#[tokio::test(start_paused = true)]
async fn a_create_waits_for_its_own_time_and_no_longer_and_the_next_goes_on() {
    let (sessions, _slow) = sessions(Duration::from_secs(600)).await;
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    client.create(0, "/slow/1");
    client.create(0, "/a/2");
    assert_eq!(client.hears().await, ["created 0"]);
    tokio::time::sleep(SERVING_PATIENCE).await;
    assert_eq!(client.hears().await, ["refused", "created 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_queue_of_creates_is_full_reads_no_more() {
    let (sessions, slow) = sessions(Duration::from_secs(600)).await;
    let client = Client::of(&sessions);
    client.create(0, "/a/1");
    for _ in 0..5 * BATCH.0 {
        client.create(0, "/slow/1");
    }
    client.cancel(0);
    assert_eq!(client.hears().await, ["created 0"], "the cancel has not been read yet");
    serve(&slow);
    let mut heard = client.hears().await;
    // Its answers fill the queue, which also stops its requests from being read.
    loop {
        let more = client.hears().await;
        if more.is_empty() {
            break;
        }
        heard.extend(more);
    }
    assert!(heard.contains(&"canceled 0".to_owned()));
    assert_eq!(heard.len(), 5 * BATCH.0 + 1);
}

/// Requests without a pause: one more is always ready.
struct Endless {
    first: Option<RequestUnion>,
    read: Arc<AtomicBool>,
}

impl Stream for Endless {
    type Item = Result<WatchRequest, StreamEnd>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.read.store(true, Ordering::Relaxed);
        let unknown = RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 99 });
        let request = self.first.take().unwrap_or(unknown);
        Poll::Ready(Some(Ok(WatchRequest { request_union: Some(request) })))
    }
}

#[tokio::test]
async fn requests_that_never_pause_do_not_hold_up_progress_notifications() {
    let (sessions, _slow) = sessions(Duration::from_millis(1)).await;
    let session = sessions.open(client(), false, sessions.stop.clone());
    let stream = session.stream().clone();
    let read = Arc::new(AtomicBool::new(false));
    let requests = Endless { first: Some(create(0, "/a/1")), read: read.clone() };
    let running = tokio::spawn(session.run(requests));
    let told = async {
        loop {
            if drain(&stream).contains(&"progress 0".to_owned()) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.expect("progress while requests come");
    assert!(read.load(Ordering::Relaxed));
    stream.leave();
    running.await.expect("the session ends");
}

#[tokio::test(start_paused = true)]
async fn a_client_has_so_many_watches_over_all_its_streams_and_room_again_whatever_ends_them() {
    let (mut sessions, _slow) = sessions(Duration::from_secs(600)).await;
    sessions.shares = Shares::new(std::num::NonZeroUsize::new(3));
    let (one, two) = (Client::of(&sessions), Client::of(&sessions));
    for client in [&one, &two] {
        client.create(5, "/a/1");
        assert_eq!(client.hears().await, ["created 5"]);
    }
    one.create(5, "/a/2");
    assert_eq!(one.hears().await, ["refused"], "a duplicate does not count");
    one.create(0, "/a/2");
    one.create(0, "/a/3");
    assert_eq!(one.hears().await, ["created 0", "refused"]);
    two.create(0, "/a/4");
    assert_eq!(two.hears().await, ["refused"], "the streams of a client share its limit");
    one.cancel(5);
    assert_eq!(one.hears().await, ["canceled 5"]);
    two.create(0, "/a/4");
    assert_eq!(two.hears().await, ["created 0"]);
    drop(two);
    one.create(0, "/a/5");
    one.create(0, "/a/6");
    one.create(0, "/a/7");
    assert_eq!(one.hears().await, ["created 1", "created 2", "refused"]);
}

/// Whether a write would wait.
async fn is_held(write: &http::Extensions) -> bool {
    tokio::time::sleep(Duration::from_millis(1)).await;
    order::hold_whole(write).now_or_never().is_none()
}

#[tokio::test(start_paused = true)]
async fn a_write_waits_until_it_is_known_where_a_create_begins() {
    let upstream = AtFive::that_answers(0);
    let (sessions, _) = sessions_over(testing::hub_over(upstream.clone(), LIMITS), Duration::from_secs(600)).await;
    let feed = sessions.hub.running(&KeyRange::prefix("/a/".into())).expect("it serves");
    feed.follows(true, None);
    let (client, write) = Client::with_writes(&sessions);
    assert!(is_held(&write).await, "nobody has looked at the request yet");
    client.create(0, "/a/1");
    assert!(is_held(&write).await);
    upstream.lets.add_permits(1);
    assert!(!is_held(&write).await, "although the feed has not reached the revision yet");
    assert_eq!(client.hears().await, Vec::<String>::new());

    let (client, write) = Client::with_writes(&sessions);
    client.create(0, "/slow/1");
    assert!(is_held(&write).await);
    upstream.lets.add_permits(1);
    assert!(!is_held(&write).await, "although the feed has no snapshot yet");
}

#[tokio::test(start_paused = true)]
async fn a_write_does_not_wait_longer_than_a_create_that_nobody_confirms() {
    let upstream = AtFive::that_answers(0);
    let (sessions, _) = sessions_over(testing::hub_over(upstream.clone(), LIMITS), Duration::from_secs(600)).await;
    let (mut client, write) = Client::with_writes(&sessions);
    client.create(0, "/a/1");
    // It sends nothing more.
    client.requests = mpsc::channel(1).0;
    assert!(is_held(&write).await);
    let began = Instant::now();
    order::hold_whole(&write).await;
    assert!(began.elapsed() <= CURRENT_PATIENCE, "{:?}", began.elapsed());
    assert_eq!(drain(&client.stream), ["created 0"], "the write follows the create");

    let (client, write) = Client::with_writes(&sessions);
    client.create(0, "/a/1");
    assert!(is_held(&write).await);
    upstream.agreement.send_replace(Agreement::Leaderless);
    assert!(!is_held(&write).await);
    assert_eq!(drain(&client.stream), ["created 0"]);
}

#[tokio::test(start_paused = true)]
async fn a_write_does_not_wait_for_watches_that_name_their_start_nor_for_other_requests() {
    let upstream = AtFive::that_answers(0);
    let (sessions, _) = sessions_over(testing::hub_over(upstream.clone(), LIMITS), Duration::from_secs(600)).await;
    let from = WatchCreateRequest { key: "/a/1".into(), start_revision: 3, ..Default::default() };
    for request in [
        RequestUnion::CreateRequest(from),
        RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 7 }),
        RequestUnion::ProgressRequest(WatchProgressRequest {}),
    ] {
        let (client, write) = Client::with_writes(&sessions);
        client.send(request);
        assert!(!is_held(&write).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_goes_on_when_the_create_is_refused_or_its_session_ends() {
    let etcd = Etcd::default();
    etcd.now(Says::Denied);
    let hub = testing::hub_over(AtFive::that_answers(0), LIMITS);
    let (sessions, _) = sessions_of(hub, Duration::from_secs(600), &etcd).await;
    let (client, write) = Client::with_writes(&sessions);
    client.create(0, "/a/1");
    order::hold_whole(&write).await;

    let (client, write) = Client::with_writes(&sessions);
    assert!(is_held(&write).await);
    drop(client);
    assert!(!is_held(&write).await);

    // Its client has not heard of the end, and its permission is still watched.
    etcd.now(Says::Granted);
    let (client, write) = Client::with_writes(&sessions);
    sessions.stop.cancel();
    assert!(is_held(&write).await);
    client.create(0, "/a/1");
    assert!(!is_held(&write).await);
}

/// There is one for each stream. With its requests and what tokio adds, it takes 2 KiB, and one part more would take it
/// to the allocator's next size, 2.5 KiB.
#[tokio::test(start_paused = true)]
async fn a_session_has_room_for_each_of_its_parts_once() {
    let (sessions, _slow) = sessions(Duration::from_secs(600)).await;
    let session = sessions.open(client(), false, sessions.stop.clone());
    let (session_size, requests) = (size_of_val(&session), tokio_stream::pending());
    let run = size_of_val(&session.run(requests));
    assert!(run <= 1_700, "{run} bytes, {session_size} of them the session itself");
}
