//! A cluster with two histories under one id, as after a restore from a backup: how the driver treats the second when
//! its watch resumes there, and what the audit finds that no watch showed.
//!
//! Random schedules are in `main`; a real etcd is restored in `tests/it/faults/restored.rs`. Both histories are
//! embedded stores, which keep, compact and replay them like etcd. Always holds: time is paused, so waits cost nothing.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_relay::{
    critical::Tasks,
    hub::{
        Delivery, Drained, Feed, FeedState, HistoryLimits, Hub, Limits, OutboxLimits, Subscribe, WatchOptions,
        WatchStream,
        upstream::{Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchMessage, WatchRequest},
    },
    pb::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest},
    source::{Audit, Driver, DriverConfig},
    store::{Store, StoreConfig},
    types::{ClientKey, Header, KeyRange, Revision, UpstreamHeader},
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// The keys of the feed. Other keys only create revisions.
const PREFIX: &str = "k/";
const ELSEWHERE: &str = "z";
const PATIENCE: Duration = Duration::from_secs(30);

/// Both histories, and which of them answers.
#[derive(Debug)]
struct Forked {
    stores: [Store; 2],
    /// Increases with each break of the watches.
    answers: watch::Sender<(usize, u64)>,
    /// Events of this key are lost on every watch.
    lost: Mutex<Option<&'static str>>,
    raft_term: AtomicU64,
    /// Pages are not answered.
    mute: AtomicBool,
    /// The start revisions of watches, and the keys that were requested in pages, with their times.
    starts: Mutex<Vec<i64>>,
    pages: Mutex<Vec<(Instant, usize)>>,
}

impl Forked {
    fn new() -> Arc<Self> {
        let store = || Store::new(StoreConfig::default());
        Arc::new(Self {
            stores: [store(), store()],
            answers: watch::Sender::new((0, 0)),
            lost: Mutex::default(),
            raft_term: AtomicU64::new(5),
            mute: AtomicBool::new(false),
            starts: Mutex::default(),
            pages: Mutex::default(),
        })
    }

    /// Puts in both histories.
    fn put(&self, key: &str, value: &str) -> i64 {
        self.put_in(0, key, value);
        self.put_in(1, key, value)
    }

    fn put_in(&self, store: usize, key: &str, value: &str) -> i64 {
        let request =
            PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
        self.stores[store].put(&request).expect("a put").header.expect("a header").revision
    }

    fn delete_in(&self, store: usize, key: &str) -> i64 {
        let request = DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() };
        self.stores[store].delete_range(&request).expect("a delete").header.expect("a header").revision
    }

    fn compact(&self, revision: i64) {
        for store in &self.stores {
            store.compact(&CompactionRequest { revision, ..CompactionRequest::default() }).expect("a compaction");
        }
    }

    /// Makes this history answer on new watches.
    fn answer(&self, store: usize) {
        self.answers.send_modify(|(answers, breaks)| (*answers, *breaks) = (store, *breaks + 1));
    }

    fn store(&self) -> &Store {
        &self.stores[self.answers.borrow().0]
    }

    fn sign(&self, header: Header) -> Header {
        Header { cluster_id: 1, member_id: 7, raft_term: self.raft_term.load(Ordering::Relaxed), ..header }
    }
}

#[derive(Debug)]
struct ForkedUpstream(Arc<Forked>);

#[async_trait]
impl Upstream for ForkedUpstream {
    async fn page(&self, range: &KeyRange, revision: Option<Revision>, limit: usize) -> Result<Page, UpstreamError> {
        if self.0.mute.load(Ordering::Relaxed) {
            return Err(UpstreamError::Unavailable("mute".into()));
        }
        let page = self.0.store().page(range, revision, limit).await?;
        self.0.pages.lock().push((Instant::now(), page.kvs.len()));
        Ok(Page { header: self.0.sign(page.header), ..page })
    }

    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        self.0.starts.lock().push(request.start_revision.get());
        let broken = {
            let mut broken = self.0.answers.subscribe();
            broken.mark_unchanged();
            broken
        };
        let watch = self.0.store().watch(request).await?;
        Ok(Box::new(ForkedWatch { forked: self.0.clone(), watch, broken }))
    }

    async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        let confirmed = self.0.store().confirm(oldest).await?;
        Ok(Confirmed { header: self.0.sign(confirmed.header), ..confirmed })
    }
}

struct ForkedWatch {
    forked: Arc<Forked>,
    watch: Box<dyn UpstreamWatch>,
    broken: watch::Receiver<(usize, u64)>,
}

#[async_trait]
impl UpstreamWatch for ForkedWatch {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        loop {
            let message = tokio::select! {
                biased;
                _ = self.broken.changed() => return Err(UpstreamError::Unavailable("broken".into())),
                message = self.watch.next() => message?,
            };
            return Ok(match message {
                WatchMessage::Events { header, mut revisions } => {
                    let lost = *self.forked.lost.lock();
                    for changes in &mut revisions {
                        changes.events.retain(|event| lost.is_none_or(|lost| lost != event.kv.key));
                    }
                    revisions.retain(|changes| !changes.events.is_empty());
                    if revisions.is_empty() {
                        continue;
                    }
                    WatchMessage::Events { header: self.forked.sign(header), revisions }
                }
                WatchMessage::Progress(header) => WatchMessage::Progress(self.forked.sign(header)),
                other => other,
            });
        }
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        self.watch.request_progress().await
    }

    fn trusts_progress(&self) -> bool {
        true
    }

    fn created(&self) -> Header {
        self.forked.sign(self.watch.created())
    }
}

/// A relay's hub over it, with a watch of everything that the feed has.
struct Relay {
    forked: Arc<Forked>,
    hub: Arc<Hub>,
    feed: Arc<Feed>,
    stream: Arc<WatchStream>,
    tasks: Tasks,
}

impl Relay {
    async fn over(forked: &Arc<Forked>) -> Self {
        let limits = Limits {
            history: HistoryLimits { bytes: 1 << 20, entries: 3 },
            outbox: OutboxLimits { bytes: 1 << 20, deliveries: 1_000, watches: 10 },
            on_demand: None,
            on_demand_bytes: 1 << 30,
            fills: 1,
            confirm_patience: Duration::from_secs(1),
        };
        let upstream = Arc::new(ForkedUpstream(forked.clone()));
        let (header, tasks) = (Arc::<UpstreamHeader>::default(), Tasks::new());
        let driver = Driver::new(
            DriverConfig::default(),
            upstream.clone(),
            header.clone(),
            tasks.clone(),
            CancellationToken::new(),
        );
        let hub = Hub::new(limits, upstream, header, &tasks, Box::new(driver));
        let feed = hub.open(KeyRange::prefix(PREFIX.into()));
        feed.wait_serving(PATIENCE).await.expect("the snapshot");
        let stream = WatchStream::new(hub.limits().outbox, ClientKey::RELAY);
        let subscribe = Subscribe {
            watch_id: 1,
            range: feed.range().clone(),
            options: WatchOptions::default(),
            start_revision: Revision::ZERO,
            progress_notify: false,
            fragment: false,
            compacted: false,
            known: Revision::ZERO,
        };
        stream.subscribe(&feed, &subscribe).expect("a watch");
        let relay = Self { forked: forked.clone(), hub, feed, stream, tasks };
        relay.live().await;
        relay
    }

    fn audits(&self, interval: Option<Duration>) {
        self.tasks.spawn("audit", Audit::new(self.hub.clone(), interval).run());
    }

    async fn live(&self) {
        let live = |standing: &etcd_relay::hub::Standing| standing.state == FeedState::Live && standing.is_serving();
        timeout(PATIENCE, self.feed.watch_standing().wait_for(live)).await.expect("in time").expect("the feed");
    }

    /// Waits until the feed has reached the history that answers.
    async fn caught_up(&self) {
        let header = self.forked.store().header();
        self.feed.wait_for(header.revision, PATIENCE).await.expect("the feed follows");
    }

    /// The start revisions of the watches since the last call.
    fn starts(&self) -> Vec<i64> {
        std::mem::take(&mut self.forked.starts.lock())
    }

    /// Makes this history answer; the feed follows it or starts again.
    async fn resume(&self, store: usize) {
        self.starts();
        self.forked.answer(store);
        timeout(PATIENCE, async {
            while self.forked.starts.lock().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("it watches again");
        self.live().await;
        self.caught_up().await;
    }

    /// What the watch received: events by revision, and whether it ended.
    async fn told(&self) -> (Vec<i64>, bool) {
        let (mut revisions, mut ended) = (Vec::new(), false);
        loop {
            let mut batch = Vec::new();
            let drained =
                timeout(Duration::from_millis(50), poll_fn(|cx| self.stream.poll_drain(cx, &mut batch, 1 << 20)));
            let Ok(drained) = drained.await else { return (revisions, ended) };
            assert!(!matches!(drained, Drained::End(_)), "nobody ended the stream");
            for delivery in batch {
                match delivery {
                    Delivery::Events { payload, from, .. } => {
                        revisions.extend(payload.each(from as usize).map(|whole| whole.revision.get()));
                    }
                    Delivery::Canceled(cancellation) => {
                        assert!(cancellation.compact_revision > Revision::ZERO, "clients list again");
                        ended = true;
                    }
                    Delivery::Created { .. } | Delivery::Progress { .. } => {}
                }
            }
        }
    }

    /// Checks that the feed has exactly the data of the history that answers.
    async fn assert_true(&self) {
        self.caught_up().await;
        let snapshot = self.feed.snapshot();
        let page = self.forked.store().page(self.feed.range(), Some(snapshot.revision), usize::MAX).await;
        let there: Vec<_> = page.expect("a page").kvs;
        let here: Vec<_> = snapshot.map.range(self.feed.range()).map(|kv| kv.fields()).collect();
        assert_eq!(here, there);
    }
}

/// Runs a test on a paused clock, with the metrics that it changes.
fn run(test: impl AsyncFnOnce(PrometheusHandle)) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
        runtime.block_on(test(handle));
    });
}

/// All series of a metric, by their labels.
fn series(metrics: &PrometheusHandle, name: &str) -> BTreeMap<String, f64> {
    let text = metrics.render();
    let of_name = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    let counted = of_name.filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'));
    counted.map(|(labels, value)| (labels.to_owned(), value.parse().expect("a number"))).collect()
}

fn resyncs(metrics: &PrometheusHandle) -> BTreeMap<String, f64> {
    series(metrics, "etcd_relay_upstream_resyncs_total")
}

fn one(reason: &str) -> BTreeMap<String, f64> {
    [(format!("{{reason=\"{reason}\"}}"), 1.0)].into()
}

#[test]
fn a_watch_that_resumes_on_the_same_history_begins_at_its_last_change_and_tells_nothing_twice() {
    run(async |metrics| {
        let forked = Forked::new();
        forked.put("k/1", "a");
        let relay = Relay::over(&forked).await;
        let mut written = vec![forked.put("k/1", "b"), forked.put("k/2", "c")];
        let last = forked.put("k/1", "d");
        written.push(last);
        forked.put(ELSEWHERE, "");
        relay.caught_up().await;
        relay.resume(1).await;
        assert_eq!(relay.starts(), [last], "from the last change, not from the feed's revision");
        written.push(forked.put("k/3", "e"));
        // Changes from while it was away come together with what it had, in one message.
        relay.forked.answer(0);
        written.push(forked.put("k/1", "f"));
        relay.caught_up().await;
        assert_eq!(relay.told().await, (written, false));
        relay.assert_true().await;
        assert!(resyncs(&metrics).is_empty() && !relay.feed.is_suspect());
    });
}

#[test]
fn the_first_watch_after_a_snapshot_begins_behind_it() {
    run(async |_| {
        let forked = Forked::new();
        let last = forked.put("k/1", "a");
        let relay = Relay::over(&forked).await;
        assert_eq!(relay.starts(), [last + 1]);
    });
}

/// Tests a difference in the second history, which is ahead of the first in all cases.
fn differs(before: impl FnOnce(&Forked), fork: impl FnOnce(&Forked)) {
    run(async |metrics| {
        let forked = Forked::new();
        forked.put("k/0", "before");
        before(&forked);
        let relay = Relay::over(&forked).await;
        fork(&forked);
        relay.caught_up().await;
        let before = relay.told().await.0;
        while forked.stores[1].header().revision <= forked.stores[0].header().revision {
            forked.put_in(1, ELSEWHERE, "");
        }
        relay.resume(1).await;
        let (after, ended) = relay.told().await;
        assert!(ended, "the watch was told");
        assert!(after.is_empty(), "{after:?} after {before:?}: nothing of the other history came as if it followed");
        relay.assert_true().await;
        assert_eq!(resyncs(&metrics), one("history_changed"));
    });
}

#[test]
fn a_last_change_that_has_another_value_is_another_history() {
    differs(
        |_| {},
        |forked| {
            forked.put_in(0, "k/1", "a");
            forked.put_in(1, "k/1", "b");
        },
    );
}

#[test]
fn a_last_change_of_another_key_is_another_history() {
    differs(
        |_| {},
        |forked| {
            forked.put_in(0, "k/1", "a");
            forked.put_in(1, "k/2", "a");
        },
    );
}

#[test]
fn a_last_change_that_does_not_come_is_another_history() {
    differs(
        |_| {},
        |forked| {
            forked.put_in(0, "k/1", "a");
            forked.put_in(1, ELSEWHERE, "");
        },
    );
}

#[test]
fn a_last_change_of_another_kind_is_another_history() {
    differs(
        |_| {},
        |forked| {
            forked.delete_in(0, "k/0");
            forked.put_in(1, "k/0", "");
        },
    );
}

#[test]
fn a_change_that_the_feed_does_not_know_before_its_revision_is_another_history() {
    differs(
        |_| {},
        |forked| {
            forked.put("k/1", "a");
            forked.put_in(0, ELSEWHERE, "");
            forked.put_in(1, "k/2", "b");
        },
    );
}

/// Nothing has changed since the snapshot, so the history is empty.
#[test]
fn a_snapshot_that_has_another_last_value_is_of_another_history() {
    differs(
        |forked| {
            forked.put_in(0, "k/1", "a");
            forked.put_in(1, "k/1", "b");
        },
        |_| {},
    );
}

#[test]
fn a_change_before_the_snapshot_that_it_does_not_show_is_of_another_history() {
    differs(
        |forked| {
            forked.put_in(0, ELSEWHERE, "");
            forked.put_in(1, "k/0", "changed");
        },
        |_| {},
    );
}

#[test]
fn what_led_to_the_snapshot_is_no_difference() {
    run(async |metrics| {
        let forked = Forked::new();
        forked.put("k/1", "a");
        let newest = forked.put("k/0", "b");
        // Created and deleted again after the last change in the snapshot.
        forked.put("k/2", "c");
        forked.delete_in(0, "k/2");
        forked.delete_in(1, "k/2");
        let relay = Relay::over(&forked).await;
        relay.resume(1).await;
        assert_eq!(relay.starts(), [newest]);
        assert_eq!(relay.told().await, (vec![], false));
        assert!(resyncs(&metrics).is_empty() && !relay.feed.is_suspect());
    });
}

#[test]
fn what_is_compacted_cannot_be_compared_and_is_audited_instead() {
    run(async |metrics| {
        let forked = Forked::new();
        forked.put("k/0", "before");
        let relay = Relay::over(&forked).await;
        relay.audits(None);
        let last = forked.put("k/1", "a");
        for _ in 0..5 {
            forked.put(ELSEWHERE, "");
        }
        relay.caught_up().await;
        forked.compact(last + 3);
        relay.resume(1).await;
        assert_eq!(relay.starts(), [last, last + 3], "from what is left");
        assert_eq!(relay.told().await, (vec![last], false));
        assert!(resyncs(&metrics).is_empty(), "a compaction is no difference");
        tokio::time::sleep(PATIENCE).await;
        assert_eq!(series(&metrics, "etcd_relay_audits_total")["{outcome=\"equal\"}"], 1.0);
        assert!(!relay.feed.is_suspect());
    });
}

/// A deletion at the compacted revision is kept by nobody.
#[test]
fn a_deletion_that_does_not_come_is_audited() {
    run(async |metrics| {
        let forked = Forked::new();
        forked.put("k/0", "before");
        forked.put("k/1", "before");
        let relay = Relay::over(&forked).await;
        relay.audits(None);
        forked.delete_in(0, "k/1");
        relay.caught_up().await;
        forked.put_in(1, ELSEWHERE, "");
        forked.put_in(1, ELSEWHERE, "");
        relay.resume(1).await;
        tokio::time::sleep(PATIENCE).await;
        assert_eq!(relay.told().await, (vec![4], true));
        assert_eq!(resyncs(&metrics), one("audit"), "alone it is no proof");
        relay.assert_true().await;
    });
}

#[test]
fn a_watch_does_not_make_etcd_read_far_back() {
    run(async |_| {
        let forked = Forked::new();
        let relay = Relay::over(&forked).await;
        forked.put("k/1", "a");
        let last = forked.put("k/1", "b") + 3_000;
        for _ in 0..3_000 {
            forked.put(ELSEWHERE, "");
        }
        relay.caught_up().await;
        relay.resume(1).await;
        assert_eq!(relay.starts(), [last - 1_000]);
        assert!(relay.feed.is_suspect(), "nothing was proved");
    });
}

#[test]
fn a_member_in_an_earlier_term_has_the_feed_audited() {
    run(async |metrics| {
        let forked = Forked::new();
        forked.put("k/1", "a");
        let relay = Relay::over(&forked).await;
        relay.audits(None);
        forked.put("k/2", "a");
        relay.caught_up().await;
        relay.resume(0).await;
        tokio::time::sleep(PATIENCE).await;
        assert!(series(&metrics, "etcd_relay_audits_total").is_empty(), "the same term is no reason");
        // The last change is the same, but an earlier one differs.
        forked.put_in(0, "k/1", "lost");
        forked.put_in(1, "k/1", "other");
        forked.put("k/2", "the same");
        relay.caught_up().await;
        forked.raft_term.store(2, Ordering::Relaxed);
        relay.resume(1).await;
        tokio::time::sleep(PATIENCE).await;
        assert_eq!(resyncs(&metrics), one("audit"));
        relay.assert_true().await;
    });
}

#[test]
fn the_audit_finds_a_change_that_no_watch_told() {
    run(async |metrics| {
        let forked = Forked::new();
        forked.put("k/1", "a");
        forked.put("k/2", "a");
        let relay = Relay::over(&forked).await;
        let interval = Duration::from_secs(600);
        relay.audits(Some(interval));
        tokio::time::sleep(interval).await;
        assert_eq!(series(&metrics, "etcd_relay_audits_total")["{outcome=\"equal\"}"], 1.0);
        assert_eq!(series(&metrics, "etcd_relay_audited_keys_total")[""], 2.0);
        assert!(series(&metrics, "etcd_relay_audit_completed_timestamp_seconds")[""] > 0.0);
        assert!(!relay.told().await.1);
        *forked.lost.lock() = Some("k/2");
        forked.put("k/2", "lost");
        forked.put("k/1", "told");
        relay.caught_up().await;
        tokio::time::sleep(interval * 2).await;
        assert!(relay.told().await.1, "the watch is told, which has missed it forever");
        relay.assert_true().await;
        assert_eq!(series(&metrics, "etcd_relay_audit_mismatches_total")[""], 1.0);
        assert_eq!(resyncs(&metrics), one("audit"));
        // It was read again and is correct.
        tokio::time::sleep(interval * 3).await;
        assert_eq!(series(&metrics, "etcd_relay_audit_mismatches_total")[""], 1.0);
    });
}

#[test]
fn an_audit_goes_through_all_keys_within_its_budget_while_they_change_and_are_compacted() {
    run(async |metrics| {
        let forked = Forked::new();
        for number in 0..5_000 {
            forked.put(&format!("k/{number:05}"), "some value");
        }
        let relay = Relay::over(&forked).await;
        forked.pages.lock().clear();
        relay.audits(None);
        relay.feed.suspect();
        let began = Instant::now();
        while relay.feed.is_suspect() || series(&metrics, "etcd_relay_audits_total").is_empty() {
            let last = forked.put("k/00007", "again");
            forked.put(&format!("k/{:05}x", last % 5_000), "new");
            relay.caught_up().await;
            forked.compact(forked.stores[0].header().revision.get());
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(began.elapsed() < Duration::from_secs(60), "it comes to an end");
        }
        assert_eq!(series(&metrics, "etcd_relay_audits_total")["{outcome=\"equal\"}"], 1.0);
        let pages = std::mem::take(&mut *forked.pages.lock());
        let keys: usize = pages.iter().map(|(_, keys)| keys).sum();
        assert!(keys >= 5_000 && pages.iter().all(|(_, keys)| *keys <= 250), "{keys} keys in {} pages", pages.len());
        // 1,000 keys per second.
        for (first, second) in pages.iter().zip(&pages[1..]) {
            assert!(second.0 - first.0 >= Duration::from_millis(first.1 as u64), "{first:?} {second:?}");
        }
        assert!(!relay.told().await.1);
    });
}

#[test]
fn a_feed_that_cannot_be_audited_is_audited_when_it_can_be() {
    run(async |metrics| {
        let forked = Forked::new();
        forked.put("k/1", "a");
        let relay = Relay::over(&forked).await;
        relay.audits(None);
        forked.mute.store(true, Ordering::Relaxed);
        relay.feed.suspect();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let audits = series(&metrics, "etcd_relay_audits_total");
        assert!((1.0..10.0).contains(&audits["{outcome=\"interrupted\"}"]) && audits.len() == 1, "{audits:?}");
        forked.mute.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(series(&metrics, "etcd_relay_audits_total")["{outcome=\"equal\"}"], 1.0);
        assert!(!relay.feed.is_suspect());
    });
}
