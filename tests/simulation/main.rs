//! Random schedules for the hub: a simulated upstream (`world`), streams that read irregularly, and a check of each
//! delivery against etcd's guarantees (`check`).
//!
//! Networks and wire formats are in `tests/it`. `ETCD_RELAY_SIM_SEED` runs one seed; `ETCD_RELAY_SIM_ROUNDS` sets the
//! number of runs. The first test has one thread and paused time, so a seed nearly always repeats its schedule; the
//! second looks for races. Always holds: limits are tiny, so that watches are parked, filled and spliced all the time.

#![expect(clippy::panic, clippy::print_stderr, reason = "a test prints what it found and fails by panicking")]

mod check;
mod forked;
mod turns;
mod world;

use std::{
    collections::BTreeMap,
    env,
    future::poll_fn,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use etcd_relay::{
    critical::Tasks,
    hub::{
        Delivery, Drained, Feed, FeedKind, FeedState, HistoryLimits, Hub, Limits, NoFeed, OutboxLimits, RangeQuery,
        ReadError, Subscribe, SubscribeError, WatchOptions, WatchStream,
    },
    source::{Driver, DriverConfig},
    telemetry::names::{self, BackfillOutcome},
    types::{ClientKey, KeyRange, Revision, UpstreamHeader},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    check::{Spec, StreamCheck, ensure},
    world::{Harm, World, WorldUpstream},
};

const KEYS: [&str; 9] = ["a/", "a/0", "a/1", "a/1/x", "a/2", "b/0", "b/1", "c", "d"];
/// Pause between two checks at the end of a schedule.
const LOOK: Duration = Duration::from_millis(20);
/// How long missing deliveries may take if nothing waits for a turn: the delays after failures, and the reading.
const PATIENCE: Duration = Duration::from_secs(12);
/// How long a fill without events may make others wait, according to ARCHITECTURE.
const TURN: Duration = Duration::from_secs(5);

#[test]
fn every_schedule_keeps_etcds_promises() {
    let (mut runs, seeds) = (0, seeds(300));
    let many = seeds.end - seeds.start >= 100;
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        for seed in seeds {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
            runs += runtime.block_on(run(seed, false));
        }
    });
    assert!(runs > 100 || !many, "only {runs} payloads of several revisions: schedules say nothing of them");
    // The same for reads of the feeds' past, and each outcome of these.
    let metrics = recorder.handle().render();
    // A feed that starts again meanwhile is too rare for schedules; see the tests of `backfill`.
    for outcome in BackfillOutcome::ALL.iter().filter(|outcome| **outcome != BackfillOutcome::Moved) {
        let series = format!("{}{{{}=\"{}\"}} ", names::BACKFILLS, BackfillOutcome::LABEL, outcome.as_str());
        let count = metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<u64>().ok()).unwrap_or(0);
        assert!(count > 3 || !many, "only {count} backfills that ended with {outcome:?}:\n{metrics}");
    }
}

#[test]
fn threads_that_race_keep_etcds_promises() {
    for seed in seeds(12) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().expect("runtime");
        runtime.block_on(async { tokio::spawn(run(seed, true)).await.expect("the schedule") });
    }
}

fn seeds(rounds: u64) -> std::ops::Range<u64> {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("ETCD_RELAY_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ETCD_RELAY_SIM_ROUNDS").unwrap_or(rounds),
    }
}

/// Runs one schedule. Returns the number of payloads with several revisions.
async fn run(seed: u64, threads: bool) -> usize {
    let mut sim = Sim::new(seed, threads);
    let result = async {
        for _ in 0..sim.rng.random_range(100..400) {
            sim.step().await?;
            sim.failure()?;
        }
        sim.settle().await?;
        let runs = sim.streams.iter().map(|stream| stream.check.lock().runs).sum();
        sim.leave().await?;
        Ok(runs)
    };
    match result.await {
        Ok(runs) => runs,
        Err::<_, String>(error) => {
            sim.trace.iter().rev().take(40).rev().for_each(|line| eprintln!("{line}"));
            panic!("{error}\nrun again with ETCD_RELAY_SIM_SEED={seed}");
        }
    }
}

struct Sim {
    rng: StdRng,
    world: Arc<World>,
    hub: Arc<Hub>,
    streams: Vec<Stream>,
    /// Streams that have left; nothing may keep them alive.
    left: Vec<Weak<WatchStream>>,
    stop: CancellationToken,
    threads: bool,
    trace: Vec<String>,
}

/// A client's watch stream.
struct Stream {
    inner: Arc<WatchStream>,
    check: Arc<Mutex<StreamCheck>>,
    /// Polled only when woken, so that a missing wake-up is noticed.
    woken: Arc<Woken>,
    /// The reader, if threads are racing.
    reader: Option<JoinHandle<()>>,
    failure: Arc<Mutex<Option<String>>>,
}

#[derive(Debug)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Sim {
    fn new(seed: u64, threads: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let world = World::new(seed);
        // Sometimes long enough for chunks of many revisions.
        let entries = if rng.random_bool(0.5) { 12 } else { 80 };
        let limits = Limits {
            history: HistoryLimits {
                bytes: rng.random_range(300..500 * entries),
                entries: rng.random_range(1..entries),
            },
            outbox: OutboxLimits {
                bytes: rng.random_range(20..600),
                deliveries: rng.random_range(1..8),
                watches: rng.random_range(4..24),
            },
            on_demand: Some(rng.random_range(1..4)),
            on_demand_bytes: 1 << 30,
            fills: rng.random_range(1..4),
            confirm_patience: Duration::from_secs(1),
        };
        let config = DriverConfig {
            min_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(20),
            idle: Duration::ZERO,
        };
        let header = Arc::new(UpstreamHeader::default());
        let stop = CancellationToken::new();
        let upstream = Arc::new(WorldUpstream(world.clone()));
        let tasks = Tasks::new();
        let driver = Driver::new(config, upstream.clone(), header.clone(), tasks.clone(), stop.clone());
        let hub = Hub::new(limits, upstream, header, &tasks, Box::new(driver));
        let prefixes: &[&'static str] = [&["a/"][..], &["a/", "b/"], &[""]][rng.random_range(0..3)];
        for prefix in prefixes {
            hub.open(KeyRange::prefix(Bytes::from_static(prefix.as_bytes())));
        }
        let mut sim = Self { rng, world, hub, streams: Vec::new(), left: Vec::new(), stop, threads, trace: Vec::new() };
        sim.note(format!("seed {seed}: {limits:?}, prefixes {prefixes:?}, trusted {}", sim.world.trusted()));
        for _ in 0..sim.rng.random_range(1..5) {
            sim.open();
        }
        sim
    }

    fn note(&mut self, line: String) {
        self.trace.push(format!("@{} {line}", self.world.revision()));
    }

    fn failure(&self) -> Result<(), String> {
        self.streams.iter().find_map(|stream| stream.failure.lock().clone()).map_or(Ok(()), Err)
    }

    async fn step(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..100) {
            0..26 => self.write(),
            26..44 => self.drain()?,
            44..58 => self.create().await?,
            58..64 => self.cancel(),
            64..76 => {
                for _ in 0..self.rng.random_range(0..12) {
                    tokio::task::yield_now().await;
                }
            }
            76..82 => tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..60))).await,
            82..84 => {
                if let Some(stream) = self.streams.choose(&mut self.rng) {
                    stream.inner.answer_progress();
                }
            }
            84..86 => {
                let all = self.rng.random_bool(0.3);
                if let Some(stream) = self.streams.choose(&mut self.rng) {
                    stream.inner.notify_progress(all);
                }
            }
            86..90 => {
                let how = *[Harm::Break, Harm::Break, Harm::Break, Harm::Stall, Harm::Cancel]
                    .choose(&mut self.rng)
                    .expect("some");
                self.note(format!("{how:?}"));
                self.world.harm(how);
            }
            90..92 => self.world.unstall(),
            92..94 => self.compact(),
            94..95 => self.outage().await,
            95..96 => {
                let down = !self.world.is_down();
                self.note(format!("down {down}"));
                self.world.set_down(down);
            }
            96..97 => self.exchange().await,
            97..98 if self.rng.random_bool(0.2) => {
                self.note("replace".into());
                self.world.replace();
                self.write();
            }
            _ => self.read()?,
        }
        Ok(())
    }

    fn write(&mut self) {
        for _ in 0..self.rng.random_range(1..4) {
            let keys = self.rng.random_range(1..4);
            let changes: BTreeMap<Bytes, bool> = KEYS
                .choose_multiple(&mut self.rng, keys)
                .map(|key| (Bytes::from_static(key.as_bytes()), false))
                .collect::<BTreeMap<_, _>>()
                .into_keys()
                .map(|key| (key, self.rng.random_bool(0.3)))
                .collect();
            self.world.write(&changes);
        }
    }

    fn compact(&mut self) {
        let share = self.rng.random_range(0.0..=1.0);
        self.world.compact(share);
        self.note(format!("compact to {}", self.world.compact_revision()));
    }

    /// An outage, after which some revisions are compacted.
    async fn outage(&mut self) {
        self.note("outage".into());
        self.world.set_down(true);
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.write();
        self.write();
        self.compact();
        self.write();
        self.world.set_down(false);
    }

    fn open(&mut self) {
        let inner = WatchStream::new(self.hub.limits().outbox, ClientKey::RELAY);
        let check = Arc::new(Mutex::new(StreamCheck::default()));
        let failure = Arc::new(Mutex::new(None));
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let reader = self.threads.then(|| {
            tokio::spawn(read_all(inner.clone(), check.clone(), self.world.clone(), failure.clone(), self.rng.random()))
        });
        self.streams.push(Stream { inner, check, woken, reader, failure });
    }

    /// A stream leaves at any point, and another one comes.
    async fn exchange(&mut self) {
        let index = self.rng.random_range(0..self.streams.len());
        let stream = self.streams.swap_remove(index);
        self.note("a stream leaves".into());
        self.left.push(Arc::downgrade(&stream.inner));
        if self.threads {
            // Its requests may be executed while it leaves.
            let inner = stream.inner.clone();
            let ids = stream.check.lock().cancelable();
            let canceling = tokio::task::spawn_blocking(move || ids.into_iter().for_each(|id| inner.cancel(id)));
            stream.inner.leave();
            if let Err(error) = canceling.await {
                *stream.failure.lock() = Some(format!("a cancel failed: {error}"));
            }
        } else {
            stream.inner.leave();
        }
        if let Some(reader) = stream.reader {
            reader.abort();
            let _ = reader.await;
        }
        self.open();
    }

    /// One stream reads a little if it was woken.
    fn drain(&mut self) -> Result<(), String> {
        let polls = self.rng.random_range(1..6);
        let most_bytes = self.rng.random_range(1..400);
        let index = self.rng.random_range(0..self.streams.len());
        let stream = &self.streams[index];
        for _ in 0..polls {
            if stream.reader.is_some() || !stream.poll(&self.world, most_bytes)? {
                break;
            }
        }
        Ok(())
    }

    async fn create(&mut self) -> Result<(), String> {
        let range = self.range();
        let Some(feed) = self.feed(&range).await? else { return Ok(()) };
        let stream = &self.streams[self.rng.random_range(0..self.streams.len())];
        let revision = self.world.revision();
        let start = match self.rng.random_range(0..10) {
            0..3 => 0,
            3..8 => (revision - self.rng.random_range(0..30)).max(1),
            8 => revision + 1,
            _ => revision + self.rng.random_range(1..6),
        };
        let epoch = self.world.epoch();
        let start = if start == 0 || self.world.epoch_of(start) == Some(epoch) { start } else { revision };
        let id = if self.rng.random_bool(0.4) { self.rng.random_range(70..74) } else { 0 };
        let options = WatchOptions {
            no_put: self.rng.random_bool(0.1),
            no_delete: self.rng.random_bool(0.1),
            prev_kv: self.rng.random_bool(0.4),
        };
        let spec = Spec { id, range: range.clone(), options, start, progress_notify: self.rng.random_bool(0.5), epoch };
        // As a front does if its feed is behind the known revision.
        let same = self.world.epoch_of(feed.revision().get()) == Some(epoch) && self.world.trusted();
        let knows = self.rng.random_bool(0.3) && start == 0 && same;
        let subscribe = Subscribe {
            watch_id: id,
            range,
            options,
            start_revision: Revision::new(start),
            progress_notify: spec.progress_notify,
            fragment: false,
            known: if knows { Revision::new(revision) } else { Revision::ZERO },
            // As a front does after it has asked upstream; sometimes upstream does not answer.
            compacted: start != 0 && start < self.world.compact_revision() && self.rng.random_bool(0.8),
        };
        let taken = {
            let mut check = stream.check.lock();
            let taken = id != 0 && check.is_taken(id);
            check.expect(spec.clone());
            taken
        };
        let result = stream.inner.subscribe(&feed, &subscribe);
        if result.is_err() {
            stream.check.lock().refused();
        }
        let full = stream.inner.watches() >= self.hub.limits().outbox.watches;
        self.note(format!("{spec:?}: {result:?}"));
        match result {
            // The order of the answers shows whether it was free: upstream may have ended the watch that had it.
            Ok(()) => Ok(()),
            Err(SubscribeError::DuplicateId) => ensure(taken, || format!("refused although the id is free: {spec:?}")),
            Err(SubscribeError::TooMany) => ensure(full, || format!("refused although there is room: {spec:?}")),
            Err(error) => ensure(self.threads, || format!("{error} for {spec:?}")),
        }
    }

    /// The feed of a range, once it serves the current cluster; `None` if that takes too long.
    async fn feed(&mut self, range: &KeyRange) -> Result<Option<Arc<Feed>>, String> {
        for _ in 0..20 {
            match self.hub.feed(range, ClientKey::RELAY) {
                Ok(feed) => {
                    let current = self.world.epoch_of(feed.revision().get()) == Some(self.world.epoch());
                    if current && feed.is_serving() {
                        return Ok(Some(feed));
                    }
                    let _ = feed.wait_serving(Duration::from_millis(20)).await;
                }
                Err(NoFeed::Limit) => {
                    let open = self
                        .hub
                        .feeds()
                        .iter()
                        .filter(|f| f.kind() == FeedKind::OnDemand && f.state() != FeedState::Closed)
                        .count();
                    let most = self.hub.limits().on_demand.unwrap_or_default();
                    ensure(self.threads || open >= most, || format!("{open} of {most} feeds on demand, and no more"))?;
                    return Ok(None);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(None)
    }

    fn range(&mut self) -> KeyRange {
        let key = |rng: &mut StdRng| Bytes::from_static(KEYS.choose(rng).expect("some").as_bytes());
        match self.rng.random_range(0..10) {
            0..4 => KeyRange::single(key(&mut self.rng)),
            4..6 => KeyRange::prefix(Bytes::from_static(b"a/")),
            6 => {
                KeyRange::prefix(Bytes::from_static(["a/1", "b/", ""].choose(&mut self.rng).expect("some").as_bytes()))
            }
            7 => KeyRange::from_wire(key(&mut self.rng), Bytes::from_static(b"\0")).expect("not empty"),
            _ => {
                let (one, other) = (key(&mut self.rng), key(&mut self.rng));
                let (from, to) = if one < other { (one, other) } else { (other, one) };
                KeyRange::from_wire(from.clone(), to).unwrap_or_else(|_| KeyRange::single(from))
            }
        }
    }

    fn cancel(&mut self) {
        let stream = &self.streams[self.rng.random_range(0..self.streams.len())];
        let mut check = stream.check.lock();
        let Some(id) = check.cancelable().choose(&mut self.rng).copied() else { return };
        check.cancel(id);
        drop(check);
        stream.inner.cancel(id);
        stream.inner.cancel(4711);
        self.note(format!("cancel {id}"));
    }

    /// Checks that the feeds have the correct data.
    fn read(&mut self) -> Result<(), String> {
        for feed in self.hub.feeds().into_iter().filter(|feed| feed.is_serving()) {
            let (snapshot, _) = feed.since(feed.revision());
            if !feed.is_serving() {
                // It ended meanwhile.
                continue;
            }
            let held: Vec<_> = snapshot.map.range(feed.range()).map(|kv| kv.fields()).collect();
            let was = self.world.state(snapshot.revision.get(), feed.range());
            ensure(Some(&held) == was.as_ref(), || format!("snapshot {snapshot:?}, not {was:?}"))?;
            let revision = Revision::new((snapshot.revision.get() - self.rng.random_range(0..12)).max(1));
            if self.world.epoch_of(revision.get()) != self.world.epoch_of(snapshot.revision.get()) {
                // Before there was anything, which upstream reports to everyone.
                continue;
            }
            let query = RangeQuery { revision, ..RangeQuery::all(feed.range().clone()) };
            match query.read(&feed) {
                Ok(reply) => {
                    let held: Vec<_> = reply.kvs.kvs().into_iter().map(|kv| kv.fields()).collect();
                    let was = self.world.state(revision.get(), feed.range());
                    ensure(Some(&held) == was.as_ref(), || format!("at {revision} {held:?}, not {was:?}"))?;
                }
                Err(ReadError::BeforeHistory) => {}
                Err(error) => return Err(format!("{error}: {revision}")),
            }
        }
        Ok(())
    }

    /// Ends all faults; everything that is missing must come.
    async fn settle(&mut self) -> Result<(), String> {
        self.note("settle".into());
        self.world.settle();
        let mut overdue = None;
        for _ in 0..self.patience().as_millis() / LOOK.as_millis() {
            tokio::time::sleep(LOOK).await;
            overdue = None;
            for stream in &self.streams {
                while stream.reader.is_none() && stream.poll(&self.world, 4096)? {}
                overdue = overdue.or(stream.check.lock().overdue(&self.world));
            }
            self.failure()?;
            if overdue.is_none() && self.hub.is_ready() {
                break;
            }
        }
        if let Some(overdue) = overdue {
            return Err(format!("overdue: {overdue}; {}", self.describe()));
        }
        self.read()?;
        if self.world.trusted() { self.progress().await } else { Ok(()) }
    }

    /// How long it may take until everything is delivered. If progress is not trusted, a fill of quiet keys cannot end:
    /// it uses its full turn again and again. Turns go round the streams, once for each feed, and the turns of a stream
    /// go round its watches. So a watch waits until each stream has had a turn for each watch of its own stream.
    fn patience(&self) -> Duration {
        if self.world.trusted() {
            return PATIENCE;
        }
        let watches = self.streams.iter().map(|stream| stream.inner.watches()).max().unwrap_or(0);
        let places: usize = self.streams.iter().map(|stream| stream.inner.feeds().len()).sum();
        // All streams are of one client, which has half of the turns at most. The additional turn is for a watch that
        // falls behind again while its feed catches up.
        let at_once = (self.hub.limits().fills / 2).max(1);
        PATIENCE + TURN * ((watches * places).div_ceil(at_once) as u32 + 1)
    }

    /// Checks that a progress request is answered if etcd would answer it.
    async fn progress(&mut self) -> Result<(), String> {
        let revision = self.world.revision();
        for stream in &self.streams {
            let before = stream.check.lock().progress;
            // Computed again each time: a watch that needs no past events may still be told that its start is
            // compacted, and from then on etcd is silent.
            let owed = || {
                let check = stream.check.lock();
                check.progress == before && check.answers_progress(revision)
            };
            for _ in 0..600 {
                if !owed() {
                    break;
                }
                for feed in stream.inner.feeds() {
                    let _ = feed.wait_for(Revision::new(revision), Duration::from_secs(5)).await;
                }
                stream.inner.answer_progress();
                tokio::time::sleep(LOOK).await;
                while stream.reader.is_none() && stream.poll(&self.world, 4096)? {}
            }
            ensure(!owed(), || format!("no progress on {:?}; {}", stream.inner.stats(), self.describe()))?;
        }
        self.failure()
    }

    /// All streams leave, and nothing of them may remain.
    async fn leave(&mut self) -> Result<(), String> {
        let events: usize = self.streams.iter().map(|stream| stream.check.lock().events).sum();
        for stream in self.streams.drain(..) {
            stream.inner.leave();
            if let Some(reader) = stream.reader {
                reader.abort();
                let _ = reader.await;
            }
            self.left.push(Arc::downgrade(&stream.inner));
        }
        let mut left = String::new();
        for _ in 0..600 {
            tokio::time::sleep(LOOK).await;
            left.clear();
            let streams: usize = self.hub.feeds().iter().map(|feed| feed.stats().streams).sum();
            let held = self.left.iter().filter(|inner| inner.upgrade().is_some()).count();
            let open = self
                .hub
                .feeds()
                .iter()
                .filter(|f| f.kind() == FeedKind::OnDemand && f.state() != FeedState::Closed)
                .count();
            if streams + held + open == 0 {
                self.stop.cancel();
                return Ok(());
            }
            left = format!(
                "{streams} streams in feeds, {held} outboxes held, {open} feeds on demand after {events} events"
            );
        }
        Err(left)
    }

    fn describe(&self) -> String {
        let feeds: Vec<_> = self.hub.feeds().iter().map(|feed| feed.stats()).collect();
        let streams: Vec<_> = self.streams.iter().map(|stream| stream.inner.stats()).collect();
        format!("world at {}, feeds {feeds:#?}, streams {streams:#?}", self.world.revision())
    }
}

impl Stream {
    /// Polls once if woken. Returns true if there may be more.
    fn poll(&self, world: &World, most_bytes: usize) -> Result<bool, String> {
        if !self.woken.0.swap(false, Ordering::SeqCst) {
            return Ok(false);
        }
        let waker = Waker::from(self.woken.clone());
        let mut batch = Vec::new();
        match self.inner.poll_drain(&mut Context::from_waker(&waker), &mut batch, most_bytes) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Drained::Some) => self.woken.0.store(true, Ordering::SeqCst),
            Poll::Ready(Drained::End(end)) => return Err(format!("nobody ended the stream: {end:?}")),
        }
        let mut check = self.check.lock();
        batch.iter().try_for_each(|delivery: &Delivery| check.take(world, delivery)).map(|()| true)
    }
}

/// Reads a stream irregularly in a separate task.
async fn read_all(
    inner: Arc<WatchStream>,
    check: Arc<Mutex<StreamCheck>>,
    world: Arc<World>,
    failure: Arc<Mutex<Option<String>>>,
    seed: u64,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        let most_bytes = rng.random_range(1..400);
        let mut batch = Vec::new();
        poll_fn(|cx| inner.poll_drain(cx, &mut batch, most_bytes)).await;
        let result = {
            let mut check = check.lock();
            batch.iter().try_for_each(|delivery| check.take(&world, delivery))
        };
        if let Err(error) = result {
            *failure.lock() = Some(error);
            return;
        }
        if rng.random_bool(0.1) {
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..5))).await;
        }
    }
}
