//! Tests of the driver: what it reads together, and how it treats doubts, delays and members that are behind.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::*;
use crate::{
    hub::{
        HistoryLimits, Hub, Limits, OutboxLimits, Standing,
        upstream::{Confirmed, Page},
    },
    types::{EventFields, EventKind, KeyValueFields, Revision},
};

/// A watch on which these messages have arrived, and nothing more comes.
struct Arrived(VecDeque<WatchMessage>);

#[async_trait]
impl UpstreamWatch for Arrived {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        match self.0.pop_front() {
            Some(message) => Ok(message),
            None => std::future::pending().await,
        }
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        Ok(())
    }

    fn trusts_progress(&self) -> bool {
        true
    }

    fn created(&self) -> Header {
        Header::default()
    }
}

fn header(revision: i64) -> Header {
    Header { revision: Revision::new(revision), ..Header::default() }
}

fn put(revision: i64, value: usize) -> WatchMessage {
    let kv = KeyValueFields { key: "k".into(), value: vec![0; value].into(), ..KeyValueFields::default() };
    let events = vec![EventFields { kind: EventKind::Put, kv }];
    let revisions = vec![Changes {
        revision: Revision::new(revision),
        events,
        prev: Vec::new(),
        received: std::time::Instant::now(),
    }];
    WatchMessage::Events { header: header(revision), revisions }
}

/// What is read together, as (newest header, revisions); for other messages, no revisions.
async fn read(upstream: &mut Arrived, ahead: &mut Option<Result<WatchMessage, UpstreamError>>) -> (i64, Vec<i64>) {
    match next(upstream, ahead).await.expect("no failure") {
        WatchMessage::Events { header, revisions } => {
            (header.revision.get(), revisions.iter().map(|changes| changes.revision.get()).collect())
        }
        WatchMessage::Progress(header) => (header.revision.get(), Vec::new()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn events_that_have_arrived_are_read_together_and_nothing_overtakes_them() {
    let messages = [put(1, 1), put(2, 1), WatchMessage::Progress(header(5)), put(6, 1), put(7, 1)];
    let mut upstream = Arrived(messages.into());
    let mut ahead = None;
    assert_eq!(read(&mut upstream, &mut ahead).await, (2, vec![1, 2]));
    assert_eq!(read(&mut upstream, &mut ahead).await, (5, vec![]));
    assert_eq!(read(&mut upstream, &mut ahead).await, (7, vec![6, 7]));
    assert!(ahead.is_none());
}

#[tokio::test]
async fn what_is_read_together_is_bounded() {
    let mut ahead = None;
    let many = TOGETHER.0 as i64 + 10;
    let mut upstream = Arrived((1..=many).map(|revision| put(revision, 1)).collect());
    assert_eq!(read(&mut upstream, &mut ahead).await.1.len(), TOGETHER.0);
    let mut upstream = Arrived((1..=9).map(|revision| put(revision, TOGETHER.1 / 4)).collect());
    assert_eq!(read(&mut upstream, &mut ahead).await.1, [1, 2, 3, 4]);
}

#[test]
fn what_comes_in_one_message_is_published_in_parts_that_leave_nothing_out() {
    let parts = |revisions: std::ops::RangeInclusive<i64>, value: usize| -> Vec<Vec<i64>> {
        let of = |revision| match put(revision, value) {
            WatchMessage::Events { revisions, .. } => revisions,
            other => panic!("{other:?}"),
        };
        let message: Vec<Changes> = revisions.flat_map(of).collect();
        batches(&message).map(|batch| batch.iter().map(|changes| changes.revision.get()).collect()).collect()
    };
    let most = TOGETHER.0 as i64;
    let many = [(1..=most).collect(), (most + 1..=2 * most).collect(), vec![2 * most + 1]];
    assert_eq!(parts(1..=2 * most + 1, 1), many);
    assert_eq!(parts(1..=9, TOGETHER.1 / 4), [vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![9]]);
    assert_eq!(parts(1..=2, 2 * TOGETHER.1), [[1], [2]], "a single one is published whatever its size");
}

/// A simulated cluster: its id and revision, another cluster that may answer instead, and the requests that it got.
#[derive(Debug)]
struct MadeUp {
    answers: Mutex<(u64, i64)>,
    snapshots: AtomicUsize,
    confirms: AtomicUsize,
    watches: AtomicUsize,
    /// There is no other member to move to.
    alone: AtomicBool,
    agreement: watch::Sender<Agreement>,
    /// The revision of the member that is read from when there is no agreement.
    member: AtomicI64,
    /// Whether feeds should watch at another member than the last one.
    left: AtomicBool,
}

#[async_trait]
impl Upstream for MadeUp {
    async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        self.snapshots.fetch_add(1, Ordering::SeqCst);
        if *self.agreement.borrow() > Agreement::Reached {
            return Err(UpstreamError::NoLeader);
        }
        Ok(Page { header: self.header(), kvs: Vec::new(), more: false, count: None })
    }

    async fn page_of_member(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        let revision = Revision::new(self.member.load(Ordering::SeqCst));
        Ok(Page { header: Header { revision, ..self.header() }, kvs: Vec::new(), more: false, count: None })
    }

    fn agreement(&self) -> watch::Receiver<Agreement> {
        self.agreement.subscribe()
    }

    async fn left(&self, member: &str) {
        assert_eq!(member, "the member");
        if !self.left.load(Ordering::SeqCst) {
            std::future::pending().await
        }
    }

    async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        self.watches.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Quiet(self.header(), self.alone.load(Ordering::SeqCst))))
    }

    async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        self.confirms.fetch_add(1, Ordering::SeqCst);
        Ok(Confirmed { header: self.header(), compacted: false })
    }
}

impl MadeUp {
    fn header(&self) -> Header {
        let (cluster_id, revision) = *self.answers.lock();
        Header { cluster_id, ..header(revision) }
    }
}

/// A watch on which nothing happens.
struct Quiet(Header, bool);

#[async_trait]
impl UpstreamWatch for Quiet {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        std::future::pending().await
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        Ok(())
    }

    fn trusts_progress(&self) -> bool {
        true
    }

    fn is_late(&mut self) -> bool {
        !self.1
    }

    fn member(&self) -> Option<Arc<str>> {
        Some("the member".into())
    }

    fn created(&self) -> Header {
        self.0
    }
}

/// A feed that follows cluster 1 at revision 10.
async fn followed() -> (Arc<MadeUp>, Arc<Hub>, Arc<Feed>) {
    followed_when(Agreement::Reached).await
}

async fn followed_when(agreement: Agreement) -> (Arc<MadeUp>, Arc<Hub>, Arc<Feed>) {
    let [snapshots, confirms, watches] = [const { AtomicUsize::new(0) }; 3];
    let (answers, alone, left) = (Mutex::new((1, 10)), AtomicBool::new(false), AtomicBool::new(false));
    let (agreement, member) = (watch::Sender::new(agreement), AtomicI64::new(7));
    let upstream = Arc::new(MadeUp { answers, snapshots, confirms, watches, alone, agreement, member, left });
    let (header, tasks) = (Arc::default(), Tasks::new());
    let config = DriverConfig::default();
    let driver = Driver::new(config, upstream.clone(), Arc::clone(&header), tasks.clone(), CancellationToken::new());
    let outbox = OutboxLimits { bytes: 1, deliveries: 1, watches: 1 };
    let limits = Limits {
        history: HistoryLimits { bytes: 1 << 20, entries: 100 },
        outbox,
        on_demand: None,
        on_demand_bytes: 1 << 30,
        fills: 1,
        confirm_patience: Duration::from_secs(1),
    };
    let hub = Hub::new(limits, upstream.clone(), header, &tasks, Box::new(driver));
    let feed = hub.open(KeyRange::prefix("".into()));
    live(&feed).await;
    (upstream, hub, feed)
}

async fn live(feed: &Feed) {
    let live = |standing: &Standing| standing.state == FeedState::Live && standing.is_serving();
    feed.watch_standing().wait_for(live).await.expect("the feed");
}

#[tokio::test(start_paused = true)]
async fn a_doubt_is_settled_where_upstream_is_what_it_was() {
    let (upstream, _hub, feed) = followed().await;
    let mark = feed.mark();
    assert!(feed.check(mark, &header_of(2, 10)).is_err() && !feed.is_serving());
    live(&feed).await;
    let asked = (upstream.confirms.load(Ordering::SeqCst), upstream.snapshots.load(Ordering::SeqCst));
    assert_eq!((asked, feed.mark()), ((1, 1), mark), "asked once, and no new snapshot was read");
}

#[tokio::test(start_paused = true)]
async fn a_doubt_that_upstream_confirms_ends_in_a_new_snapshot_of_what_answers() {
    let (upstream, _hub, feed) = followed().await;
    *upstream.answers.lock() = (2, 3);
    assert!(feed.check(feed.mark(), &upstream.header()).is_err());
    live(&feed).await;
    assert_eq!((feed.cluster().id(), feed.revision().get()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_went_back_is_read_anew_though_it_is_ahead_by_now() {
    let (upstream, _hub, feed) = followed().await;
    *upstream.answers.lock() = (1, 50);
    assert!(feed.check(feed.mark(), &header_of(1, 4)).is_err());
    live(&feed).await;
    let asked = (upstream.confirms.load(Ordering::SeqCst), upstream.snapshots.load(Ordering::SeqCst));
    assert_eq!((asked, feed.revision().get()), ((0, 2), 50), "it is proved, and asking could only find it ahead");
}

#[tokio::test(start_paused = true)]
async fn clusters_that_answer_in_turns_cost_a_snapshot_for_each_delay_and_not_for_each_answer() {
    let (upstream, _hub, feed) = followed().await;
    let begun = Instant::now();
    for turn in 0..40 {
        let answer = header_of(2 - turn % 2, 10);
        *upstream.answers.lock() = (answer.cluster_id, 10);
        let _ = feed.check(feed.mark(), &answer);
        live(&feed).await;
    }
    // Delays grow to two seconds, each less its jitter.
    assert!(begun.elapsed() > Duration::from_secs(20), "{:?} for 40 snapshots", begun.elapsed());
}

/// How long it takes until the feed watches again.
async fn watched_again(upstream: &MadeUp) -> Duration {
    let (began, before) = (Instant::now(), upstream.watches.load(Ordering::SeqCst));
    while upstream.watches.load(Ordering::SeqCst) == before {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

/// The member hears its leader but gets no entries, or its watch streams stand still. A feed that only listens would
/// wait forever.
#[tokio::test(start_paused = true)]
async fn a_watch_that_brings_nothing_while_the_cluster_has_more_is_left_for_another() {
    let (upstream, _hub, feed) = followed().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(upstream.watches.load(Ordering::SeqCst), 1, "a quiet cluster is no reason");
    *upstream.answers.lock() = (1, 12);
    feed.expect(feed.mark(), &upstream.header());
    assert_eq!(feed.lag().expect("it is behind").revisions, 2);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        pauses.push(watched_again(&upstream).await.as_secs());
    }
    // Each includes the delay before the watch.
    assert!(pauses.is_sorted() && pauses[0] <= 2 && pauses[5] >= BEHIND.1.as_secs(), "{pauses:?}");
    feed.advance(Revision::new(12));
    assert_eq!(feed.lag(), None);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_brings_nothing_is_kept_for_longer_where_there_is_no_other_member() {
    let (upstream, _hub, feed) = followed().await;
    upstream.alone.store(true, Ordering::SeqCst);
    live(&feed).await;
    *upstream.answers.lock() = (1, 12);
    feed.expect(feed.mark(), &upstream.header());
    // The first watch was made before this.
    watched_again(&upstream).await;
    assert!(watched_again(&upstream).await >= BEHIND.1);
}

/// The delay is for a member that may work again. Another one works already.
#[tokio::test(start_paused = true)]
async fn a_feed_goes_on_at_another_member_at_once() {
    let (upstream, _hub, feed) = followed().await;
    upstream.left.store(true, Ordering::SeqCst);
    *upstream.answers.lock() = (1, 12);
    feed.expect(feed.mark(), &upstream.header());
    let first = watched_again(&upstream).await;
    assert!((BEHIND.0..BEHIND.0 + Duration::from_millis(20)).contains(&first), "after {first:?}");
}

#[tokio::test(start_paused = true)]
async fn a_feed_opens_on_what_a_member_has_where_nobody_agrees() {
    let (upstream, hub, feed) = followed_when(Agreement::Silent).await;
    assert_eq!((feed.revision().get(), upstream.snapshots.load(Ordering::SeqCst)), (7, 0));
    assert_eq!(hub.header().newest_of(1).get(), 10, "from the watch's header");
}

/// Otherwise it would look as if the cluster had gone back, and every watch would be cancelled.
#[tokio::test(start_paused = true)]
async fn a_feed_that_begins_again_waits_until_the_cluster_agrees() {
    let (upstream, _hub, feed) = followed().await;
    upstream.agreement.send_replace(Agreement::Leaderless);
    assert!(feed.check(feed.mark(), &header_of(1, 4)).is_err());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((feed.state(), feed.revision().get()), (FeedState::Resyncing, 10), "the member is at revision 7");
    let began = Instant::now();
    upstream.agreement.send_replace(Agreement::Reached);
    live(&feed).await;
    assert_eq!((began.elapsed(), feed.revision().get()), (Duration::ZERO, 10), "at once, whatever the delay was");
}

fn header_of(cluster_id: u64, revision: i64) -> Header {
    Header { cluster_id, ..header(revision) }
}
