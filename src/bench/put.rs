//! `bench put`: puts through a server, as fast as it takes them, each of them acknowledged and found again.
//!
//! A run puts with a given number of simultaneous calls, lists all keys, and then deletes them. Always holds: each key
//! must have the value and the revision of the newest put that was acknowledged, and have been put exactly as often as
//! was acknowledged. So a put that is lost, or made twice, is found.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use prost::Message as _;
use thiserror::Error;
use tokio::task::JoinSet;

use super::{
    BenchError, Endpoint,
    calls::{self, Calls, PUT, RANGE},
    message,
    plan::Plan,
    progress::Progress,
    report::{self, Findings, Report},
    runtime,
    steady::{self, Span, Steady},
    usage::Watched,
};
use crate::pb::etcdserverpb as pb;

/// Most bytes of values that are listed at a time.
const LISTED_BYTES: usize = 16 << 20;

/// The load of puts.
#[derive(Clone, Debug)]
pub struct Put {
    /// The server to write to.
    pub endpoint: Endpoint,
    /// The server to list the keys from.
    pub check_endpoint: Endpoint,
    /// Number of keys, which are put in turn.
    pub keys: u64,
    /// Connections.
    pub connections: u64,
    /// Most simultaneous calls over all connections.
    pub concurrency: u64,
    /// How long to put.
    pub duration: Duration,
    /// Bytes per value.
    pub value_size: usize,
    /// Longest time without progress.
    pub patience: Duration,
    /// The prefix to write below.
    pub prefix: String,
    /// Whether to leave the keys in the store.
    pub keep: bool,
    /// Processes to measure.
    pub processes: Vec<Watched>,
}

/// An error in an answer, or in the store.
#[derive(Debug, Error, PartialEq, Eq)]
enum Wrong {
    #[error(transparent)]
    Unreadable(#[from] message::Unreadable),
    #[error("a put was acknowledged with revision {revision}, but the store was at {base} before the run")]
    Revision { revision: i64, base: i64 },
    #[error("key {key} has revision {found}, but its newest put was acknowledged with revision {newest}")]
    Newest { key: u64, found: i64, newest: i64 },
    #[error("key {key} does not have the value of its newest put")]
    Value { key: u64 },
    #[error("key {key} was put {made} times, but {acknowledged} puts were acknowledged")]
    Count { key: u64, made: i64, acknowledged: i64 },
    #[error("key {0:?} is not one of the run")]
    Key(String),
    #[error("key {0} is not there")]
    Missing(u64),
}

/// What was acknowledged for a key.
#[derive(Clone, Copy, Debug, Default)]
struct Acknowledged {
    revision: i64,
    number: u64,
    puts: i64,
}

/// What all connections share.
struct Putting {
    plan: Plan,
    options: Put,
    /// The number of the next put.
    next: AtomicU64,
    steady: Steady,
}

/// What a connection saw.
struct Seen {
    delays: Histogram<u64>,
    keys: Vec<Acknowledged>,
    findings: Findings,
}

impl Put {
    pub(super) fn run(&self) -> Result<Report, BenchError> {
        let runtime = runtime()?;
        let base = runtime.block_on(calls::revision(&self.check_endpoint))?;
        let plan = Plan::new(Plan::prefix_below(&self.prefix), self.keys, self.value_size, 1, base);
        let measured = runtime.block_on(self.measure(plan.clone()));
        if self.keep {
            return measured;
        }
        let deleted = runtime.block_on(calls::delete(&self.check_endpoint, &plan));
        measured.and_then(|report| deleted.map(|()| report))
    }

    async fn measure(&self, plan: Plan) -> Result<Report, BenchError> {
        let progress = Progress::new();
        progress.stage("put", None);
        let putting =
            Arc::new(Putting { plan, options: self.clone(), next: AtomicU64::new(0), steady: Steady::default() });
        let mut connections = JoinSet::new();
        let number = self.connections.min(self.concurrency);
        for at in 0..number {
            connections.spawn(putting.clone().put(steady::share(self.concurrency, number, at)));
        }
        let mut all = Seen::nothing(self.keys);
        let (duration, patience) = (self.duration, self.patience);
        let span = Span { what: "puts", duration, patience, processes: &self.processes };
        let cost = putting.steady.measure(connections, span, &progress, |seen| all.add(seen)).await?;
        progress.stage("list", Some(self.keys));
        putting.check(&mut all, &progress).await?;

        let mut report = Report::new("put");
        report.setting("endpoint", self.endpoint.to_string());
        report.setting("keys", self.keys);
        report.setting("connections", number);
        report.setting("concurrency", self.concurrency);
        report.setting("value_size", self.value_size);
        cost.report("puts", &mut report);
        report.quantiles("latency", &all.delays);
        report.wrong(all.findings);
        Ok(report)
    }
}

impl Putting {
    /// Keeps a number of puts under way over one connection.
    async fn put(self: Arc<Self>, calls_at_a_time: u64) -> Result<Seen, BenchError> {
        let calls = Calls::connect(&self.options.endpoint).await?;
        let mut seen = Seen::nothing(self.plan.keys);
        let next = |calls: &mut Calls<(u64, u64)>| {
            let (number, now) = (self.next.fetch_add(1, Ordering::Relaxed), self.plan.now());
            let key = self.plan.key(number % self.plan.keys).into();
            let request = pb::PutRequest { key, value: self.plan.value(number, now).into(), ..Default::default() };
            calls.start(PUT, &request.encode_to_vec(), (number, now));
        };
        let answer = |(number, at): (u64, u64), bytes: &[u8]| {
            report::note(&mut seen.delays, self.plan.now().saturating_sub(at));
            seen.note(&self.plan, number, bytes);
        };
        self.steady.keep(calls, calls_at_a_time, next, answer).await?;
        Ok(seen)
    }

    /// Lists all keys, and compares them with what was acknowledged.
    async fn check(&self, seen: &mut Seen, progress: &Progress) -> Result<(), BenchError> {
        let at_a_time = (LISTED_BYTES / self.options.value_size.max(1)).clamp(1, 10_000) as u64;
        let mut first = 0;
        while first < self.plan.keys {
            let behind = self.plan.keys.min(first + at_a_time);
            // The key behind the last one is its own with a zero byte.
            let range_end = [&self.plan.key(behind - 1)[..], &[0]].concat();
            let request = pb::RangeRequest {
                key: self.plan.key(first).into(),
                range_end: range_end.into(),
                ..Default::default()
            };
            let listed = calls::once(&self.options.check_endpoint, RANGE, &request.encode_to_vec()).await?;
            seen.compare(&self.plan, first..behind, &listed);
            first = behind;
            progress.at(first);
        }
        Ok(())
    }
}

impl Seen {
    fn nothing(keys: u64) -> Self {
        let keys = vec![Acknowledged::default(); keys as usize];
        Self { delays: report::histogram(), keys, findings: Findings::default() }
    }

    /// Adds what another connection saw.
    fn add(&mut self, other: Self) -> Result<(), BenchError> {
        self.findings.join(other.findings);
        for (key, other) in self.keys.iter_mut().zip(other.keys) {
            key.add(other);
        }
        self.delays.add(&other.delays).map_err(|_| BenchError::Lost)
    }

    /// Notes the answer to a put.
    fn note(&mut self, plan: &Plan, number: u64, bytes: &[u8]) {
        match message::answered_revision(bytes) {
            Err(error) => self.findings.add(Wrong::from(error)),
            Ok(revision) => {
                if revision <= plan.base {
                    self.findings.add(Wrong::Revision { revision, base: plan.base });
                }
                self.keys[(number % plan.keys) as usize].add(Acknowledged { revision, number, puts: 1 });
            }
        }
    }

    /// Compares a list of these keys with what was acknowledged.
    fn compare(&mut self, plan: &Plan, keys: std::ops::Range<u64>, listed: &[u8]) {
        let mut next = keys.start;
        for kv in message::key_values(listed) {
            let kv = match kv {
                Ok(kv) => kv,
                Err(error) => return self.findings.add(Wrong::from(error)),
            };
            let Some(key) = plan.index_of(kv.key).filter(|key| (next..keys.end).contains(key)) else {
                self.findings.add(Wrong::Key(String::from_utf8_lossy(kv.key).into_owned()));
                continue;
            };
            self.missing(next..key);
            next = key + 1;
            let Acknowledged { revision: newest, number, puts: acknowledged } = self.keys[key as usize];
            let (found, made) = (kv.mod_revision, kv.version);
            if found != newest {
                self.findings.add(Wrong::Newest { key, found, newest });
            } else if plan.read_value(kv.value).is_none_or(|put| put.number != number) {
                self.findings.add(Wrong::Value { key });
            }
            if made != acknowledged {
                self.findings.add(Wrong::Count { key, made, acknowledged });
            }
        }
        self.missing(next..keys.end);
    }

    /// These keys are not there, which is right only for those that were never put.
    fn missing(&mut self, keys: std::ops::Range<u64>) {
        for key in keys.filter(|key| self.keys[*key as usize].puts > 0).collect::<Vec<_>>() {
            self.findings.add(Wrong::Missing(key));
        }
    }
}

impl Acknowledged {
    fn add(&mut self, other: Self) {
        self.puts += other.puts;
        if other.revision > self.revision {
            (self.revision, self.number) = (other.revision, other.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb;

    /// An answer to a put.
    fn acknowledged(revision: i64) -> Vec<u8> {
        let header = Some(pb::ResponseHeader { revision, ..Default::default() });
        pb::PutResponse { header, ..Default::default() }.encode_to_vec()
    }

    /// A list of keys, given as (key, number of the put, revision, version).
    fn list(plan: &Plan, keys: &[(u64, u64, i64, i64)]) -> Vec<u8> {
        let kv = |(key, number, mod_revision, version): &(u64, u64, i64, i64)| mvccpb::KeyValue {
            key: plan.key(*key).into(),
            value: plan.value(*number, 0).into(),
            mod_revision: *mod_revision,
            version: *version,
            ..Default::default()
        };
        pb::RangeResponse { kvs: keys.iter().map(kv).collect(), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn puts_that_were_lost_or_made_twice_are_found() {
        let plan = Plan::new(b"/t/".to_vec(), 3, 64, 1, 10);
        let judged = |listed: &[(u64, u64, i64, i64)]| {
            // The third key is never put, and of the first one, the answers come in another order.
            let mut seen = Seen::nothing(3);
            for (number, revision) in [(3, 14), (0, 11), (1, 12)] {
                seen.note(&plan, number, &acknowledged(revision));
            }
            seen.compare(&plan, 0..3, &list(&plan, listed));
            seen.findings.first()
        };
        let found = |wrong: Wrong| Some(wrong.to_string());
        let (first, second) = ((0, 3, 14, 2), (1, 1, 12, 1));
        assert_eq!(judged(&[first, second]), None);
        assert_eq!(judged(&[first]), found(Wrong::Missing(1)));
        assert_eq!(judged(&[second]), found(Wrong::Missing(0)));
        assert_eq!(judged(&[(0, 0, 11, 1), second]), found(Wrong::Newest { key: 0, found: 11, newest: 14 }));
        assert_eq!(judged(&[(0, 0, 14, 2), second]), found(Wrong::Value { key: 0 }));
        assert_eq!(judged(&[(0, 3, 14, 3), second]), found(Wrong::Count { key: 0, made: 3, acknowledged: 2 }));
        assert_eq!(judged(&[second, first]), found(Wrong::Missing(0)));
        assert_eq!(judged(&[first, second, (2, 2, 13, 1)]), found(Wrong::Newest { key: 2, found: 13, newest: 0 }));
    }

    #[test]
    fn an_answer_from_before_the_run_is_found() {
        let plan = Plan::new(b"/t/".to_vec(), 3, 64, 1, 10);
        let mut seen = Seen::nothing(3);
        seen.note(&plan, 0, &acknowledged(10));
        assert_eq!(seen.findings.first(), Some(Wrong::Revision { revision: 10, base: 10 }.to_string()));
        let mut seen = Seen::nothing(3);
        seen.note(&plan, 0, &[0xff]);
        assert_eq!(seen.findings.first(), Some(Wrong::from(message::Unreadable).to_string()));
    }
}
