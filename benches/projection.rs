//! Micro-benchmarks of the views alone, without a network: reading a cluster, a change that no view shows, a change
//! that one app's views show, and a change that a view of everything shows. `cargo bench --bench projection`.
//!
//! Streams and whole relays under load are measured in `views`. Each change goes through a feed and the thread that
//! follows it, in batches where a single change would be too short to measure. Apps have three process types with two
//! instances each.

// For the JSON of a docker inspection.
#![recursion_limit = "256"]
#![expect(unreachable_pub, reason = "in a program, `pub` marks what other files use; nothing is visible outside")]

#[expect(dead_code, reason = "the benchmark of whole relays uses all of it")]
#[path = "support/cluster/mod.rs"]
mod cluster;
#[path = "support/values.rs"]
mod values;

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use cluster::{Change, Cluster, Size};
use divan::{Bencher, black_box, counter::ItemsCount};
use etcd_relay::{
    critical::Tasks,
    hub::{
        Feed, FeedRunner, FeedState, HistoryLimits, Hub, KeyMap, Limits, OutboxLimits,
        upstream::{Changes, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest},
    },
    types::{EventFields, EventKind, KeyRange, KeyValue, KeyValueFields, Revision, UpstreamHeader},
    view::{Ask, Directory, Kind, Lainlet, LainletConfig, Selected, Trust, Viewer},
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Changes between two checks of their effect.
const BATCH: u32 = 100;
/// Number of apps whose views are requested: the same in small and large clusters.
const WATCHED: usize = 100;
const PROCS: usize = 3;

fn main() {
    divan::main();
}

/// Reads all values of a cluster, from a feed's snapshot to the first reply.
#[divan::bench(args = [100, 1_000], sample_count = 10, sample_size = 1)]
fn read_a_cluster(bencher: Bencher<'_, '_>, apps: usize) {
    let cluster = cluster(apps);
    bencher.counter(ItemsCount::new(apps * PROCS)).with_inputs(|| Views::over(&cluster)).bench_local_values(|views| {
        drop(black_box(views.select("/v2/streamrouter/ports", None, Revision::ZERO)));
        // Its threads end outside the measurement.
        views
    });
}

/// Changes that no view shows. Must not grow with the number of apps.
#[divan::bench(args = [100, 1_000, 5_000])]
fn unseen_changes(bencher: Bencher<'_, '_>, apps: usize) {
    let mut cluster = cluster(apps);
    let mut views = Views::over(&cluster);
    let watched = views.of_apps(&cluster, &["procwatcher", "proxywatcher", "coreinfowatcher"]);
    views.batches(bencher, || cluster.refresh_of_first(WATCHED));
    drop(watched);
}

/// Changes that three views of one app show. Must not grow with the number of apps.
#[divan::bench(args = [100, 1_000, 5_000])]
fn changes_of_one_app(bencher: Bencher<'_, '_>, apps: usize) {
    let mut cluster = cluster(apps);
    let mut views = Views::over(&cluster);
    let watched = views.of_apps(&cluster, &["procwatcher", "proxywatcher", "coreinfowatcher"]);
    views.batches(bencher, || cluster.replace_instance_of_first(WATCHED));
    drop(watched);
}

/// One change that a view of all apps shows, up to its event as it is sent. It grows with the number of pieces of the
/// event, not with its bytes.
#[divan::bench(args = [100, 1_000, 5_000])]
fn change_of_everything(bencher: Bencher<'_, '_>, apps: usize) {
    let mut cluster = cluster(apps);
    let mut views = Views::over(&cluster);
    let all = views.select("/v2/coreinfowatcher", None, Revision::ZERO);
    let (_, mut subscription) = all.subscribe().expect("read");
    let mut next = || views.runtime.block_on(subscription.next()).expect("the views continue");
    // Renders what does not change.
    black_box(next().body.as_ref().expect("a reply").frame(Kind::Update));
    let (feed, revision) = (views.feed.clone(), &mut views.revision);
    bencher.with_inputs(|| changes(revision, cluster.replace_instance())).bench_local_values(|changes| {
        feed.publish(&[changes]).expect("in order");
        let version = next();
        black_box(version.body.as_ref().expect("a reply").frame(version.kind).len())
    });
}

/// Views over a feed that the benchmark writes.
struct Views {
    runtime: Runtime,
    lainlet: Lainlet,
    feed: Arc<Feed>,
    revision: Revision,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Views {
    fn over(cluster: &Cluster) -> Self {
        let hub =
            Hub::new(LIMITS, Arc::new(Nothing), Arc::new(UpstreamHeader::default()), &Tasks::new(), Box::new(NoDriver));
        let mut revision = Revision::ZERO;
        let entries: Vec<_> = cluster.entries().collect();
        let feeds = Directory::ALL.map(|directory| hub.always(directory.range()));
        for (directory, feed) in Directory::ALL.iter().zip(&feeds) {
            let mut map = KeyMap::default();
            for (key, value) in entries.iter().filter(|(key, _)| key.starts_with(directory.prefix())) {
                revision = revision.next();
                map.insert(KeyValue::new(&fields(revision, key.clone(), Some(value.clone()))));
            }
            feed.install(Arc::default(), map, revision);
            feed.set_state(FeedState::Live);
        }
        let [_, feed, ..] = feeds;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let config = LainletConfig { trust: Trust { everyone: true, ..Trust::default() }, ..LainletConfig::default() };
        let (tasks, stop) = (Tasks::new(), CancellationToken::new());
        let lainlet = Lainlet::new(config, hub, tasks.clone(), stop.clone());
        Self { runtime, lainlet, feed, revision, tasks, stop }
    }

    fn select(&self, path: &str, parameter: Option<&str>, revision: Revision) -> Selected {
        let spec = self.lainlet.view_at(path).expect("a view");
        let caller = Viewer::at(Ipv4Addr::LOCALHOST.into());
        let ask = Ask { spec, caller, parameter, node: None, min_revision: Some(revision) };
        self.runtime.block_on(self.lainlet.select(&ask)).expect("a reply")
    }

    /// A subscriber of each of these views of each watched app.
    fn of_apps(&self, cluster: &Cluster, views: &[&str]) -> Vec<etcd_relay::view::Subscription> {
        let watch = |app: &&str, view: &&str| {
            self.select(&format!("/v2/{view}"), Some(app), Revision::ZERO).subscribe().expect("read").1
        };
        let apps = cluster.apps();
        apps.iter().take(WATCHED).flat_map(|app| views.iter().map(move |view| watch(app, view))).collect()
    }

    fn batches(&mut self, bencher: Bencher<'_, '_>, mut next: impl FnMut() -> Change) {
        let mut revision = self.revision;
        let batch = || -> Vec<Changes> { (0..BATCH).map(|_| changes(&mut revision, next())).collect() };
        bencher.counter(ItemsCount::new(BATCH)).with_inputs(batch).bench_local_values(|batch| {
            for changes in &batch {
                self.feed.publish(std::slice::from_ref(changes)).expect("in order");
            }
            let last = batch.last().expect("a batch").revision;
            black_box(self.select("/v2/streamrouter/ports", None, last));
        });
    }
}

impl Drop for Views {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
        self.runtime.block_on(self.tasks.wait());
    }
}

const LIMITS: Limits = Limits {
    history: HistoryLimits { bytes: 64 << 20, entries: 10_000 },
    outbox: OutboxLimits { bytes: 1 << 20, deliveries: 4_096, watches: 1_000 },
    on_demand: None,
    on_demand_bytes: 1 << 30,
    fills: 1,
    confirm_patience: Duration::from_secs(1),
};

fn cluster(apps: usize) -> Cluster {
    Cluster::new(Size { apps, nodes: 100, procs: PROCS, instances: 2 }, 1)
}

fn changes(revision: &mut Revision, change: Change) -> Changes {
    *revision = revision.next();
    let kind = if change.value.is_some() { EventKind::Put } else { EventKind::Delete };
    let events = vec![EventFields { kind, kv: fields(*revision, change.key, change.value) }];
    Changes { revision: *revision, events, prev: Vec::new(), received: Instant::now() }
}

fn fields(revision: Revision, key: String, value: Option<String>) -> KeyValueFields {
    KeyValueFields {
        key: key.into(),
        value: value.unwrap_or_default().into(),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: 0,
    }
}

/// The benchmarks write into feeds directly.
struct NoDriver;

impl FeedRunner for NoDriver {
    fn run(&self, _: Arc<Feed>) {}
}

/// An upstream that is never called.
#[derive(Debug)]
struct Nothing;

fn never<T>() -> Result<T, UpstreamError> {
    Err(UpstreamError::Unavailable("no benchmark calls upstream".into()))
}

#[async_trait]
impl Upstream for Nothing {
    async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        never()
    }

    async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        never()
    }

    async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        never()
    }
}
