//! `bench watch`: many watches and a writer, with a check that each write reaches each watch.
//!
//! A connection is in `subscriber`, the threads in `fleet`, and later clients in `joiner` and `storm`. Watches are over
//! gRPC or, with `sse` and `block`, over plain HTTP as server-sent events. A run reads the revision, writes the keys to
//! list and the history if requested, and opens all watches. Then it writes, while others join if requested, and waits
//! until everything has come or there is no more progress. Finally it checks the result and deletes the keys.

mod block;
mod fleet;
mod joiner;
mod sse;
mod storm;
mod subscriber;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

pub use self::block::Encoding;
use self::{
    fleet::{Fleet, Stage},
    joiner::Joiners,
    storm::Storm,
};
use super::{
    BenchError, Endpoint, calls,
    check::{Truth, Write},
    pause,
    plan::Plan,
    progress::{Progress, TICK},
    report::Report,
    runtime,
    scrape::{self, Scrape},
    usage::{Usage, Watched},
    writer::{self, Load},
};

/// Simultaneous writes of the history.
const HISTORY_IN_FLIGHT: usize = 64;
/// Most puts of a transaction that writes keys to list, and most bytes: a little less than etcd's default limits.
const FILL_PUTS: u64 = 128;
const FILL_BYTES: usize = 1 << 20;
/// Simultaneous transactions of these.
const FILL_IN_FLIGHT: usize = 8;

/// The load of watches.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The server to watch.
    pub endpoint: Endpoint,
    /// Whether to watch as server-sent events over plain HTTP, with keys and values in this encoding, instead of over
    /// gRPC. Each connection then has a single watch.
    pub sse: Option<Encoding>,
    /// The server to write to.
    pub put_endpoint: Endpoint,
    /// Connections.
    pub connections: u64,
    /// Watch streams per connection.
    pub streams: u64,
    /// Watches per stream.
    pub watches: u64,
    /// Whether each watch follows one key instead of the whole prefix.
    pub distinct: bool,
    /// Number of different ranges that the watches cover in turn, each of which contains all keys, unless `distinct`.
    pub ranges: u64,
    /// Number of keys to write.
    pub keys: u64,
    /// Bytes per value.
    pub value_size: usize,
    /// Puts per transaction.
    pub puts_per_write: u64,
    /// Writes that are made before the watches, which begin before them.
    pub history: u64,
    /// The writes.
    pub load: Load,
    /// Number of connections that do not read until the writes are over.
    pub slow: u64,
    /// Number of connections that disconnect and come back.
    pub reconnecting: u64,
    /// How long these stay connected.
    pub reconnect_every: Duration,
    /// Connections that join during the writes. Each lists all keys, which exist beforehand, and watches from its list
    /// on.
    pub join: u64,
    /// Connections that arrive all at once during the writes. Each watches a key that is never written.
    pub storm: u64,
    /// How long after the first write they arrive.
    pub join_after: Duration,
    /// Most keys per page of their lists; zero reads all in one.
    pub join_page: u64,
    /// Number of threads that read.
    pub threads: u64,
    /// Longest time without progress.
    pub patience: Duration,
    /// The prefix to write below.
    pub prefix: String,
    /// Whether to leave the keys in the store.
    pub keep: bool,
    /// Processes to measure.
    pub processes: Vec<Watched>,
    /// Metrics to read before and after the run.
    pub metrics: Vec<Scrape>,
}

/// Counters that the threads share.
#[derive(Debug, Default)]
pub(super) struct Counts {
    created: AtomicU64,
    delivered: AtomicU64,
    reconnects: AtomicU64,
    /// Deliveries that are expected in the end, set by the threads when they know it.
    expected: AtomicU64,
    judges: AtomicU64,
    /// When the last delivery came, in nanoseconds of the run's clock.
    last: AtomicU64,
    /// The newest acknowledged revision of a write.
    acknowledged: AtomicI64,
    /// Keys that joiners have received, and the number of joiners that are done or have failed.
    listed: AtomicU64,
    joined: AtomicU64,
    /// When the first joiner began and the last one was done, in nanoseconds of the run's clock; zero until then.
    joining_from: AtomicU64,
    joined_at: AtomicU64,
    failure: Mutex<Option<BenchError>>,
}

impl Counts {
    fn delivered(&self, events: u64, now: u64) {
        self.last.store(now, Ordering::Release);
        self.delivered.fetch_add(events, Ordering::Release);
    }

    /// Counts one more of `all` joiners that is done or has failed.
    fn joined(&self, all: u64, now: u64) {
        if self.joined.fetch_add(1, Ordering::AcqRel) + 1 == all {
            self.joined_at.store(now, Ordering::Release);
        }
    }
}

impl Watch {
    pub(super) fn run(&self) -> Result<Report, BenchError> {
        let runtime = runtime()?;
        let base = runtime.block_on(calls::revision(&self.put_endpoint))?;
        let prefix = Plan::prefix_below(&self.prefix);
        let mut plan = Plan::new(prefix, self.keys, self.value_size, self.puts_per_write, base);
        if self.sse == Some(Encoding::Text) {
            plan = plan.with_text();
        }
        let plan = Arc::new(plan);
        let measured = self.measure(&plan);
        // A failed run also deletes its keys; its own error is the one reported.
        if !self.keep {
            let deleted = runtime.block_on(calls::delete(&self.put_endpoint, &plan));
            return measured.and_then(|report| deleted.map(|()| report));
        }
        measured
    }

    fn measure(&self, plan: &Arc<Plan>) -> Result<Report, BenchError> {
        let progress = Progress::new();
        let filled;
        let plan = if self.join > 0 {
            filled = Arc::new(self.fill(plan, &progress)?);
            &filled
        } else {
            plan
        };
        let mut writes = Vec::new();
        let nothing = Counts::default();
        if self.history > 0 {
            progress.stage("history", Some(self.history));
            let load = Load { rate: None, writes: Some(self.history), duration: None, in_flight: HISTORY_IN_FLIGHT };
            writes = self.write(plan, load, self.filled(), &nothing, &progress)?;
        }
        let counts = Arc::new(Counts::default());
        let idle = self.usages()?;
        let begun = Instant::now();
        let fleet = Fleet::start(self, plan, &counts)?;
        let watches = self.connections * self.streams * self.watches;
        progress.stage("create", Some(watches));
        wait(self.patience, "watches created", &counts, &progress, || {
            let created = counts.created.load(Ordering::Acquire);
            (created, watches, created >= watches)
        })?;
        let creating = begun.elapsed();

        let metrics = scrape::all(&self.metrics)?;
        let (own_begin, begin) = (Usage::of(std::process::id())?, self.usages()?);
        let (begun, begun_at) = (Instant::now(), plan.now());
        let before = counts.delivered.load(Ordering::Acquire);
        progress.stage("write", self.load.writes);
        let joiners = (self.join > 0).then(|| Joiners::start(self, plan, &counts, fleet.stages())).transpose()?;
        let storm = (self.storm > 0).then(|| Storm::start(self, plan, &counts, fleet.stages())).transpose()?;
        let new = self.write(plan, self.load, self.first_measured(), &counts, &progress)?;
        let (written, writing) = (new.len() as u64, begun.elapsed());
        writes.extend(new);
        if self.coming() > 0 {
            let all = self.join * self.keys + self.coming();
            progress.stage("join", Some(all));
            // Stuck connections are reported by the check as well.
            not_stalled(wait(self.patience, "keys listed and watches created", &counts, &progress, || {
                let joined = counts.joined.load(Ordering::Acquire);
                (counts.listed.load(Ordering::Acquire) + joined, all, joined >= self.coming())
            }))?;
        }

        let truth = Arc::new(Truth::new(plan, writes));
        fleet.tell(Stage::Settling(truth));
        progress.stage("settle", None);
        let settled = wait(self.patience, "deliveries", &counts, &progress, || {
            let counted = counts.judges.load(Ordering::Acquire) == self.threads + u64::from(self.join > 0);
            let (done, all) = (counts.delivered.load(Ordering::Acquire), counts.expected.load(Ordering::Acquire));
            (done, all, counted && done >= all)
        });
        let (own_end, end) = (Usage::of(std::process::id())?, self.usages()?);
        let metrics = scrape::since(&self.metrics, metrics)?;
        let elapsed = begun.elapsed();
        let delivering = Duration::from_nanos(counts.last.load(Ordering::Acquire).saturating_sub(begun_at));
        let delivered = counts.delivered.load(Ordering::Acquire) - before;
        let tally = fleet.finish()?;
        let joined = joiners.map(Joiners::finish).transpose()?;
        let came = storm.map(Storm::finish).transpose()?;
        // The check reports missing events, watch by watch.
        not_stalled(settled)?;

        let mut report = Report::new("watch");
        self.settings(&mut report);
        report.figure("create_seconds", creating.as_secs_f64());
        report.count("writes", written);
        report.figure("writes_per_second", written as f64 / writing.as_secs_f64().max(1e-9));
        report.count("deliveries", delivered);
        report.figure("deliveries_per_second", delivered as f64 / delivering.as_secs_f64().max(1e-9));
        report.quantiles("delay", &tally.delays);
        if let (Some(median), Some(worst)) = (tally.median_subscriber(), tally.worst_subscriber()) {
            report.figure("subscriber_mean_delay_median_ms", median / 1e6);
            report.figure("subscriber_mean_delay_worst_ms", worst / 1e6);
        }
        if self.reconnecting > 0 {
            report.count("reconnects", counts.reconnects.load(Ordering::Acquire));
        }
        let at = |time: &AtomicU64| time.load(Ordering::Acquire);
        if self.coming() > 0 {
            let joining = at(&counts.joined_at).saturating_sub(at(&counts.joining_from));
            report.figure("joining_seconds", Duration::from_nanos(joining).as_secs_f64());
            report.quantiles("joining_delay", &tally.joining_delays);
        }
        if let Some(joined) = joined {
            report.count("joins", joined.joins.len());
            report.count("listed_keys", at(&counts.listed));
            report.quantiles("list", &joined.lists);
            report.quantiles("join", &joined.joins);
            report.wrong(joined.findings);
        }
        if let Some(came) = came {
            report.count("joins", came.joins.len());
            report.quantiles("join", &came.joins);
            report.wrong(came.findings);
        }
        for (process, ((idle, begin), end)) in self.processes.iter().zip(idle.into_iter().zip(begin).zip(end)) {
            let taken = super::report::Taken { idle: Some((idle, watches, self.connections)), begin, end };
            report.process(process, taken, delivered, elapsed);
            report.per_write(process, taken, written);
        }
        let own = Watched { name: "bench".to_owned(), pid: std::process::id() };
        let taken = super::report::Taken { idle: None, begin: own_begin, end: own_end };
        report.process(&own, taken, delivered, elapsed);
        report.wrong(tally.findings);
        report.metrics(metrics);
        Ok(report)
    }

    /// Writes all keys for the joiners to list. Returns the plan for later writes.
    fn fill(&self, plan: &Plan, progress: &Progress) -> Result<Plan, BenchError> {
        progress.stage("keys", Some(self.keys));
        let runtime = runtime()?;
        let size = FILL_BYTES / (self.value_size + 2 * plan.key(0).len());
        let puts = FILL_PUTS.min(size as u64).clamp(1, self.keys);
        let (mut newest, mut written) = (plan.base, 0);
        for (first, puts) in [(0, puts), (self.keys - self.keys % puts, self.keys % puts)] {
            let writes = if first == 0 { self.keys / puts } else { u64::from(puts > 0) };
            let load = Load { rate: None, writes: Some(writes), duration: None, in_flight: FILL_IN_FLIGHT };
            let each = |write: Write| {
                newest = newest.max(write.revision);
                written += puts;
                progress.at(written);
            };
            runtime.block_on(writer::write(&self.put_endpoint, &plan.in_transactions_of(puts), load, first, each))?;
        }
        Ok(plan.after(newest))
    }

    /// Number of puts that were made for the lists.
    fn filled(&self) -> u64 {
        if self.join > 0 { self.keys } else { 0 }
    }

    /// Number of connections that arrive during the writes.
    fn coming(&self) -> u64 {
        self.join + self.storm
    }

    /// The number of the first put whose delay counts.
    fn first_measured(&self) -> u64 {
        self.filled() + self.history * self.puts_per_write
    }

    /// Whether to go on writing although the time is over: as long as a joiner makes progress, and once more after
    /// that, so that each receives something.
    fn writes_on<'a>(&'a self, counts: &'a Counts, written: &'a AtomicU64) -> impl FnMut() -> bool + use<'a> {
        let mut last = (0, Instant::now());
        let mut written_then = None;
        move || {
            let joined = counts.joined.load(Ordering::Acquire);
            if joined >= self.coming() {
                let now = written.load(Ordering::Relaxed);
                return self.coming() > 0 && now <= *written_then.get_or_insert(now);
            }
            let done = counts.listed.load(Ordering::Acquire) + joined;
            if done != last.0 {
                last = (done, Instant::now());
            }
            last.1.elapsed() < self.join_after + self.patience
        }
    }

    /// Writes from a separate thread, so that reading delays no write.
    fn write(
        &self,
        plan: &Plan,
        load: Load,
        first: u64,
        counts: &Counts,
        progress: &Progress,
    ) -> Result<Vec<Write>, BenchError> {
        let done = AtomicU64::new(0);
        let writes = Mutex::new(Vec::new());
        let write = || {
            let each = |write: Write| {
                counts.acknowledged.fetch_max(write.revision, Ordering::AcqRel);
                writes.lock().push(write);
                done.fetch_add(1, Ordering::Relaxed);
            };
            let more = self.writes_on(counts, &done);
            runtime()?.block_on(writer::write_while(&self.put_endpoint, plan, load, first, more, each))
        };
        thread::scope(|scope| {
            let writer = thread::Builder::new().name("writer".to_owned()).spawn_scoped(scope, write);
            let writer = writer.map_err(BenchError::Thread)?;
            let mut last = (0, Instant::now());
            let mut failed = Ok(());
            while !writer.is_finished() {
                let now = done.load(Ordering::Relaxed);
                progress.at(now);
                if now != last.0 {
                    last = (now, Instant::now());
                }
                if failed.is_ok() {
                    failed = counts.failure.lock().take().map_or(Ok(()), Err);
                }
                pause(TICK);
            }
            writer.join().map_err(|_| BenchError::Lost)??;
            failed
        })?;
        Ok(writes.into_inner())
    }

    fn usages(&self) -> Result<Vec<Usage>, BenchError> {
        self.processes.iter().map(|process| Usage::of(process.pid)).collect()
    }

    fn settings(&self, report: &mut Report) {
        report.setting("endpoint", self.endpoint.to_string());
        if let Some(encoding) = self.sse {
            report.setting("sse", encoding.name());
        }
        report.setting("connections", self.connections);
        report.setting("streams", self.streams);
        report.setting("watches", self.watches);
        report.setting("over", if self.distinct { "keys" } else { "prefix" });
        report.setting("ranges", if self.distinct { self.keys } else { self.ranges });
        report.setting("keys", self.keys);
        report.setting("value_size", self.value_size);
        report.setting("puts_per_write", self.puts_per_write);
        report.setting("history", self.history);
        report.setting("rate", self.load.rate);
        report.setting("slow", self.slow);
        report.setting("reconnecting", self.reconnecting);
        report.setting("join", self.join);
        report.setting("storm", self.storm);
        if self.join > 0 {
            report.setting("join_page", self.join_page);
        }
    }
}

/// A lack of progress is not an error here, because the check reports what is missing.
fn not_stalled(waited: Result<(), BenchError>) -> Result<(), BenchError> {
    match waited {
        Err(BenchError::Stalled { .. }) => Ok(()),
        waited => waited,
    }
}

/// Polls until the work is done or there is no progress for too long. `look` returns the number of items that are done,
/// their total, and whether that is final.
fn wait(
    patience: Duration,
    what: &'static str,
    counts: &Counts,
    progress: &Progress,
    mut look: impl FnMut() -> (u64, u64, bool),
) -> Result<(), BenchError> {
    let mut last = (0, Instant::now());
    loop {
        let (done, all, finished) = look();
        progress.at(done);
        if let Some(failure) = counts.failure.lock().take() {
            return Err(failure);
        }
        if finished {
            return Ok(());
        }
        if done != last.0 {
            last = (done, Instant::now());
        }
        if last.1.elapsed() > patience {
            return Err(BenchError::Stalled { what, done, all, waited: patience });
        }
        pause(TICK / 4);
    }
}
