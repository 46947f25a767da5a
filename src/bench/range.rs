//! `bench range`: reads of one key or of all keys, linearizable or serializable, with every answer checked.
//!
//! A run writes the keys, reads with a given number of simultaneous calls, and then deletes the keys. On request it
//! also writes keys during the reads. Always holds: an answer must have all keys, in order, with values that were
//! written. A linearizable answer must not be older than what was acknowledged before its request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use prost::Message as _;
use thiserror::Error;
use tokio::task::JoinSet;

use super::{
    BenchError, Endpoint,
    calls::{self, Calls, RANGE},
    message,
    plan::Plan,
    progress::Progress,
    report::{self, Findings, Report},
    runtime,
    steady::{self, Span, Steady},
    usage::Watched,
    writer::{self, Load},
};
use crate::{pb::etcdserverpb as pb, types::KeyRange};

/// Simultaneous writes of the keys.
const LOADING: usize = 64;

/// The load of reads.
#[derive(Clone, Debug)]
pub struct Range {
    /// The server to read from.
    pub endpoint: Endpoint,
    /// The server to write to.
    pub put_endpoint: Endpoint,
    /// Number of keys.
    pub keys: u64,
    /// Whether a read covers all keys instead of one.
    pub all: bool,
    /// Whether any member may answer from its own data.
    pub serializable: bool,
    /// Connections.
    pub connections: u64,
    /// Most simultaneous calls over all connections.
    pub concurrency: u64,
    /// How long to read.
    pub duration: Duration,
    /// Writes per second during the reads.
    pub rate: Option<f64>,
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

/// An error in an answer.
#[derive(Debug, Error, PartialEq, Eq)]
enum Wrong {
    #[error(transparent)]
    Unreadable(#[from] message::Unreadable),
    #[error("{keys} keys came with count {count}, but there are {expected}")]
    Count { keys: u64, count: i64, expected: u64 },
    #[error("revision {revision}, although {acknowledged} was acknowledged before the read")]
    Stale { revision: i64, acknowledged: i64 },
    #[error("the newest key is of revision {newest}, although {acknowledged} was acknowledged before the read")]
    StaleKeys { newest: i64, acknowledged: i64 },
    #[error("key {0:?} came in place of another one")]
    Key(String),
    #[error("a wrong value of {0:?}")]
    Value(String),
}

/// What is needed to check the answer to a call.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: u64,
    key: u64,
    acknowledged: i64,
}

/// What all readers share.
struct Reading {
    plan: Plan,
    options: Range,
    /// The newest acknowledged revision.
    acknowledged: AtomicI64,
    steady: Steady,
}

impl Range {
    pub(super) fn run(&self) -> Result<Report, BenchError> {
        let runtime = runtime()?;
        let base = runtime.block_on(calls::revision(&self.put_endpoint))?;
        let prefix = Plan::prefix_below(&self.prefix);
        let plan = Plan::new(prefix, self.keys, self.value_size, 1, base);
        let measured = runtime.block_on(self.measure(plan.clone()));
        if self.keep {
            return measured;
        }
        let deleted = runtime.block_on(calls::delete(&self.put_endpoint, &plan));
        measured.and_then(|report| deleted.map(|()| report))
    }

    async fn measure(&self, plan: Plan) -> Result<Report, BenchError> {
        let progress = Progress::new();
        progress.stage("keys", Some(self.keys));
        let (mut newest, mut written) = (plan.base, 0);
        let load = Load { rate: None, writes: Some(self.keys), duration: None, in_flight: LOADING };
        writer::write(&self.put_endpoint, &plan, load, 0, |write| {
            newest = newest.max(write.revision);
            written += 1;
            progress.at(written);
        })
        .await?;
        let reading = Arc::new(Reading {
            plan,
            options: self.clone(),
            acknowledged: AtomicI64::new(newest),
            steady: Steady::default(),
        });
        progress.stage("read", None);
        let writer = self.rate.map(|rate| {
            let reading = reading.clone();
            thread::Builder::new().name("writer".to_owned()).spawn(move || reading.write_on(rate))
        });
        let writer = writer.transpose().map_err(BenchError::Thread)?;

        let mut readers = JoinSet::new();
        let connections = self.connections.min(self.concurrency);
        for number in 0..connections {
            readers.spawn(reading.clone().read(steady::share(self.concurrency, connections, number)));
        }
        let (mut delays, mut findings) = (report::histogram(), Findings::default());
        let (duration, patience) = (self.duration, self.patience);
        let span = Span { what: "reads", duration, patience, processes: &self.processes };
        let measured = reading.steady.measure(readers, span, &progress, |(seen, wrong)| {
            findings.join(wrong);
            delays.add(&seen).map_err(|_| BenchError::Lost)
        });
        let measured = measured.await;
        let wrote = writer.map(|writer| writer.join().map_err(|_| BenchError::Lost)?).transpose();
        let (cost, wrote) = (measured?, wrote?);

        let mut report = Report::new("range");
        report.setting("endpoint", self.endpoint.to_string());
        report.setting("keys", self.keys);
        report.setting("of", if self.all { "all keys" } else { "one key" });
        report.setting("serializable", self.serializable);
        report.setting("connections", connections);
        report.setting("concurrency", self.concurrency);
        report.setting("value_size", self.value_size);
        report.setting("rate", self.rate);
        cost.report("reads", &mut report);
        report.quantiles("latency", &delays);
        if let Some(wrote) = wrote {
            report.count("writes", wrote);
        }
        report.wrong(findings);
        Ok(report)
    }
}

impl Reading {
    /// Writes until the reads are over. Returns the number of writes.
    fn write_on(&self, rate: f64) -> Result<u64, BenchError> {
        let mut writes = 0;
        // In pieces, between which it checks whether the reads are over.
        let piece = Duration::from_millis(100).max(Duration::from_secs_f64(1.0 / rate));
        let runtime = runtime()?;
        while !self.steady.is_over() {
            let load = Load { rate: Some(rate), writes: None, duration: Some(piece), in_flight: 1 };
            let first = self.options.keys + writes;
            runtime.block_on(writer::write(&self.options.put_endpoint, &self.plan, load, first, |write| {
                self.acknowledged.fetch_max(write.revision, Ordering::AcqRel);
                writes += 1;
            }))?;
        }
        Ok(writes)
    }

    /// Keeps a number of calls under way over one connection.
    async fn read(self: Arc<Self>, calls_at_a_time: u64) -> Result<(Histogram<u64>, Findings), BenchError> {
        let calls = Calls::connect(&self.options.endpoint).await?;
        let (mut delays, mut findings) = (report::histogram(), Findings::default());
        let mut key = 0;
        let next = |calls: &mut Calls<Asked>| {
            // Steps through the keys, so that successive reads are not of neighbouring keys.
            key = (key + 7919) % self.options.keys;
            let acknowledged = self.acknowledged.load(Ordering::Acquire);
            calls.start(RANGE, &self.request(key), Asked { at: self.plan.now(), key, acknowledged });
        };
        let answer = |asked: Asked, bytes: &[u8]| {
            report::note(&mut delays, self.plan.now().saturating_sub(asked.at));
            if let Err(wrong) = judge(&self.plan, &self.options, asked, bytes) {
                findings.add(wrong);
            }
        };
        self.steady.keep(calls, calls_at_a_time, next, answer).await?;
        Ok((delays, findings))
    }

    fn request(&self, key: u64) -> Vec<u8> {
        let (key, range_end) = if self.options.all {
            KeyRange::prefix(self.plan.prefix.clone().into()).to_wire()
        } else {
            (self.plan.key(key).into(), Bytes::new())
        };
        let serializable = self.options.serializable;
        pb::RangeRequest { key, range_end, serializable, ..Default::default() }.encode_to_vec()
    }
}

fn judge(plan: &Plan, options: &Range, asked: Asked, bytes: &[u8]) -> Result<(), Wrong> {
    let head = message::range_response(bytes)?;
    let (mut keys, mut newest) = (0, 0);
    for kv in message::key_values(bytes) {
        let kv = kv?;
        let key = || String::from_utf8_lossy(kv.key).into_owned();
        let index = if options.all { keys } else { asked.key };
        if plan.index_of(kv.key) != Some(index) {
            return Err(Wrong::Key(key()));
        }
        if plan.read_value(kv.value).is_none_or(|put| put.number % plan.keys != index) {
            return Err(Wrong::Value(key()));
        }
        newest = newest.max(kv.mod_revision);
        keys += 1;
    }
    let expected = if options.all { plan.keys } else { 1 };
    if keys != expected || head.count != expected as i64 || head.more {
        return Err(Wrong::Count { keys, count: head.count, expected });
    }
    let acknowledged = asked.acknowledged;
    if !options.serializable && head.revision < acknowledged {
        return Err(Wrong::Stale { revision: head.revision, acknowledged });
    }
    if !options.serializable && options.all && newest < acknowledged {
        return Err(Wrong::StaleKeys { newest, acknowledged });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb;

    fn options(all: bool, serializable: bool) -> Range {
        let endpoint: Endpoint = "127.0.0.1:1".parse().expect("an endpoint");
        Range {
            put_endpoint: endpoint.clone(),
            endpoint,
            keys: 3,
            all,
            serializable,
            connections: 1,
            concurrency: 1,
            duration: Duration::from_secs(1),
            rate: None,
            value_size: 64,
            patience: Duration::from_secs(1),
            prefix: "/t/".to_owned(),
            keep: false,
            processes: Vec::new(),
        }
    }

    /// An answer at a revision with these keys, given as (key, number of the put, revision).
    fn answer(plan: &Plan, revision: i64, keys: &[(u64, u64, i64)]) -> Vec<u8> {
        let kv = |(key, number, mod_revision): &(u64, u64, i64)| mvccpb::KeyValue {
            key: plan.key(*key).into(),
            value: plan.value(*number, 0).into(),
            mod_revision: *mod_revision,
            ..Default::default()
        };
        let header = Some(pb::ResponseHeader { revision, ..Default::default() });
        let kvs: Vec<_> = keys.iter().map(kv).collect();
        pb::RangeResponse { header, count: kvs.len() as i64, kvs, more: false }.encode_to_vec()
    }

    #[test]
    fn answers_that_are_wrong_are_found() {
        let plan = Plan::new(b"/t/".to_vec(), 3, 64, 1, 10);
        let asked = Asked { at: 0, key: 1, acknowledged: 14 };
        let whole = [(0, 0, 11), (1, 4, 14), (2, 2, 13)];
        let all = |revision, keys: &[_]| judge(&plan, &options(true, false), asked, &answer(&plan, revision, keys));
        assert_eq!(all(14, &whole), Ok(()));
        assert_eq!(all(13, &whole), Err(Wrong::Stale { revision: 13, acknowledged: 14 }));
        assert_eq!(all(14, &whole[..2]), Err(Wrong::Count { keys: 2, count: 2, expected: 3 }));
        assert!(matches!(all(14, &[whole[1], whole[0], whole[2]]), Err(Wrong::Key(_))));
        assert!(matches!(all(14, &[whole[0], (1, 3, 14), whole[2]]), Err(Wrong::Value(_))));
        let old = [(0, 0, 11), (1, 1, 12), (2, 2, 13)];
        assert_eq!(all(14, &old), Err(Wrong::StaleKeys { newest: 13, acknowledged: 14 }));
        let one = |serializable, revision, keys: &[_]| {
            judge(&plan, &options(false, serializable), asked, &answer(&plan, revision, keys))
        };
        assert_eq!(one(false, 14, &[whole[1]]), Ok(()));
        assert!(matches!(one(false, 14, &[whole[0]]), Err(Wrong::Key(_))));
        assert!(matches!(one(false, 13, &[whole[1]]), Err(Wrong::Stale { .. })));
        assert_eq!(one(true, 13, &[whole[1]]), Ok(()), "a serializable read may be old");
        assert!(matches!(one(true, 13, &[]), Err(Wrong::Count { keys: 0, .. })));
    }
}
