//! `bench leases`: clients that each keep a lease alive like etcd's own clients, and some that disconnect.
//!
//! A run grants each client a lease. The client opens a stream, on which it renews the lease every third of its time to
//! live. If the stream or the connection breaks, the client opens another one. After half of the time some connections
//! end, and their leases are checked until they are gone. At the end all leases are revoked. Always holds: a lease that
//! its client keeps alive must live until the end, whatever breaks meanwhile. A lease whose client is gone must expire,
//! no earlier than its time to live after the last answer, and no later than its time to live and the run's patience
//! after the last request.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hashbrown::HashMap;
use hdrhistogram::Histogram;
use prost::Message as _;
use thiserror::Error;
use tokio::task::JoinSet;

use super::{
    BenchError, Endpoint,
    calls::{Calls, LEASE_GRANT, LEASE_REVOKE, LEASE_TIME_TO_LIVE},
    link::Link,
    progress::{Progress, TICK},
    report::{self, Findings, Report, Taken},
    runtime,
    usage::{Usage, Watched},
    wire::{DEFAULT_WINDOW, Event},
};
use crate::pb::etcdserverpb as pb;

const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
/// Most simultaneous calls to grant, check and revoke leases.
const IN_FLIGHT: usize = 64;
/// Pause between two checks of the leases of clients that are gone.
const LOOK: Duration = Duration::from_millis(100);
/// Pause before a client reconnects whose stream or connection broke.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes per read of a connection; answers are small.
const READ: usize = 16 << 10;

/// The load of leases.
#[derive(Clone, Debug)]
pub struct Leases {
    /// The server to measure.
    pub endpoint: Endpoint,
    /// The server at which leases are checked.
    pub check_endpoint: Endpoint,
    /// Number of clients, each with a lease.
    pub clients: u64,
    /// Number of connections, which the clients share.
    pub connections: u64,
    /// Time to live of a lease in seconds.
    pub ttl: u32,
    /// How long they are kept alive.
    pub duration: Duration,
    /// Number of connections that end after half of the time.
    pub stop: u64,
    /// How long an answer or the end of a lease may take.
    pub patience: Duration,
    /// Processes to measure.
    pub processes: Vec<Watched>,
}

/// An error in an answer or in the life of a lease.
#[derive(Debug, Error, PartialEq, Eq)]
enum Wrong {
    #[error("the answer to a keep-alive cannot be read")]
    Unreadable,
    #[error("an answer for the lease {got:x} went to the client of {asked:x}")]
    Other { asked: i64, got: i64 },
    #[error("the lease {lease:x} was lost, although its client had renewed it {since:?} before")]
    Lost { lease: i64, since: Duration },
    #[error("the client of the lease {lease:x} got no answer for {waited:?}")]
    Silent { lease: i64, waited: Duration },
    #[error("the lease {lease:x} of a client that is gone ended {early:?} too early")]
    Early { lease: i64, early: Duration },
    #[error("the lease {lease:x} of a client that is gone had not ended {late:?} after its time")]
    Late { lease: i64, late: Duration },
}

/// A client with the times of its requests.
#[derive(Clone, Debug)]
struct Client {
    lease: i64,
    /// When it sends the next request.
    due: Instant,
    /// Since when it waits for an answer.
    asked: Option<Instant>,
    /// When it sent its last request.
    last: Instant,
    /// When it sent the last request that was answered.
    kept: Instant,
    /// The lease is gone.
    lost: bool,
}

/// What the clients of a connection saw.
#[derive(Debug)]
struct Seen {
    clients: Vec<Client>,
    latency: Histogram<u64>,
    findings: Findings,
    /// Number of streams and connections that broke.
    broken: u64,
    /// The connection ended after half of the time.
    gone: bool,
}

/// What all connections share.
struct Keeping {
    options: Leases,
    ttl: Duration,
    answers: AtomicU64,
    half: AtomicBool,
    over: AtomicBool,
}

/// Why a connection ended.
enum Left {
    /// The run, or its first half, is over.
    Done,
    Broken,
}

impl Leases {
    pub(super) fn run(&self) -> Result<Report, BenchError> {
        runtime()?.block_on(self.measure())
    }

    async fn measure(&self) -> Result<Report, BenchError> {
        let progress = Progress::new();
        progress.stage("grant", Some(self.clients));
        let leases = self.grant().await?;
        let measured = self.keep(&leases, &progress).await;
        progress.stage("revoke", Some(self.clients));
        let revoked = self.revoke(&leases).await;
        measured.and_then(|report| revoked.map(|()| report))
    }

    /// Revokes the leases that still exist and would live for some time. The others expire by themselves.
    async fn revoke(&self, leases: &[i64]) -> Result<(), BenchError> {
        let left = self.left(leases).await?;
        let alive = leases.iter().zip(left).filter(|(_, left)| *left > 1);
        let requests = alive.map(|(id, _)| pb::LeaseRevokeRequest { id: *id }.encode_to_vec()).collect();
        calls(&self.endpoint, LEASE_REVOKE, requests).await.map(|_| ())
    }

    async fn grant(&self) -> Result<Vec<i64>, BenchError> {
        let request = pb::LeaseGrantRequest { id: 0, ttl: i64::from(self.ttl) }.encode_to_vec();
        let requests = (0..self.clients).map(|_| request.clone()).collect();
        let answers = calls(&self.endpoint, LEASE_GRANT, requests).await?;
        let granted = |answer: Vec<u8>| {
            let answer = pb::LeaseGrantResponse::decode(&answer[..]).map_err(|_| BenchError::Unreadable)?;
            if answer.ttl == i64::from(self.ttl) {
                return Ok(answer.id);
            }
            let why = format!("a lease of {} s was granted instead of {} s", answer.ttl, self.ttl);
            Err(BenchError::Refused(why))
        };
        answers.into_iter().map(granted).collect()
    }

    async fn keep(&self, leases: &[i64], progress: &Progress) -> Result<Report, BenchError> {
        let ttl = Duration::from_secs(self.ttl.into());
        let (answers, half, over) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let keeping = Arc::new(Keeping { options: self.clone(), ttl, answers, half, over });
        let usages = || self.processes.iter().map(|process| Usage::of(process.pid)).collect::<Result<Vec<_>, _>>();
        let (own_begin, begin) = (Usage::of(std::process::id())?, usages()?);
        let begun = Instant::now();
        progress.stage("keep", None);
        let connections = self.connections.min(self.clients);
        let mut running = JoinSet::new();
        for number in 0..connections {
            // Spread over the time between two requests, like those of clients that started one after the other.
            let own = leases.iter().enumerate().skip(number as usize).step_by(connections as usize);
            let clients = own.map(|(index, lease)| {
                let due = begun + (ttl / 3).mul_f64(index as f64 / self.clients as f64);
                Client { lease: *lease, due, asked: None, last: begun, kept: begun, lost: false }
            });
            let stops = number >= connections - self.stop.min(connections);
            running.spawn(keeping.clone().connection(clients.collect(), stops));
        }

        let (mut latency, mut findings, mut broken) = (report::histogram(), Findings::default(), 0);
        let mut kept = Vec::new();
        // The ends of leases are watched from when their clients are gone.
        let (mut ending, mut gone_after) = (FuturesUnordered::new(), report::histogram());
        let mut end = None;
        while !(running.is_empty() && ending.is_empty()) {
            // All branches are cancel safe.
            tokio::select! {
                Some(done) = running.join_next() => {
                    let seen = done.map_err(|_| BenchError::Lost)?;
                    latency.add(&seen.latency).map_err(|_| BenchError::Lost)?;
                    findings.join(seen.findings);
                    broken += seen.broken;
                    let clients = seen.clients.into_iter().filter(|client| !client.lost);
                    if seen.gone { ending.push(self.watch_end(clients.collect(), ttl)) } else { kept.extend(clients) }
                }
                Some(ended) = ending.next() => {
                    let (after, wrong) = ended?;
                    gone_after.add(&after).map_err(|_| BenchError::Lost)?;
                    findings.join(wrong);
                }
                () = tokio::time::sleep(TICK) => {
                    progress.at(keeping.answers.load(Ordering::Relaxed));
                    keeping.half.store(begun.elapsed() >= self.duration / 2, Ordering::Release);
                    if end.is_none() && begun.elapsed() >= self.duration {
                        end = Some((keeping.answers.load(Ordering::Relaxed), begun.elapsed()));
                        keeping.over.store(true, Ordering::Release);
                    }
                }
            }
        }
        let (answers, elapsed) = end.ok_or(BenchError::Lost)?;
        let (own_end, usage) = (Usage::of(std::process::id())?, usages()?);
        // Clients that kept their leases alive to the end must still have them.
        for (client, left) in kept.iter().zip(self.left(&ids(&kept)).await?) {
            if left < 0 {
                findings.add(Wrong::Lost { lease: client.lease, since: client.kept.elapsed() });
            }
        }

        let mut report = Report::new("leases");
        report.setting("endpoint", self.endpoint.to_string());
        report.setting("clients", self.clients);
        report.setting("connections", connections);
        report.setting("ttl_s", self.ttl);
        report.setting("stop", self.stop);
        report.count("keepalives", answers);
        report.figure("keepalives_per_second", answers as f64 / elapsed.as_secs_f64().max(1e-9));
        report.quantiles("latency", &latency);
        report.count("broken_streams", broken);
        report.count("gone", gone_after.len());
        report.quantiles("gone_after_ttl", &gone_after);
        for (process, (begin, end)) in self.processes.iter().zip(begin.into_iter().zip(usage)) {
            report.process(process, Taken { idle: None, begin, end }, answers, elapsed);
        }
        let own = Watched { name: "bench".to_owned(), pid: std::process::id() };
        report.process(&own, Taken { idle: None, begin: own_begin, end: own_end }, answers, elapsed);
        report.wrong(findings);
        Ok(report)
    }

    /// Waits until the leases of clients that are gone have ended. Returns how long after their time they ended, and
    /// those that ended too early or too late.
    async fn watch_end(&self, mut gone: Vec<Client>, ttl: Duration) -> Result<(Histogram<u64>, Findings), BenchError> {
        let (mut after, mut findings) = (report::histogram(), Findings::default());
        while let Some(last) = gone.iter().map(|client| client.last).max() {
            let asked = Instant::now();
            let left = match self.left(&ids(&gone)).await {
                Ok(left) => left,
                // The server may be restarting.
                Err(_) if asked.saturating_duration_since(last + ttl) <= self.patience => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut stay = Vec::new();
            for (client, left) in gone.into_iter().zip(left) {
                let (earliest, latest) = (client.kept + ttl, client.last + ttl);
                if left >= 0 {
                    if asked.saturating_duration_since(latest) > self.patience {
                        findings.add(Wrong::Late { lease: client.lease, late: asked - latest });
                    } else {
                        stay.push(client);
                    }
                    continue;
                }
                // The lease had ended when the answer arrived, at the latest.
                let early = earliest.saturating_duration_since(Instant::now());
                if !early.is_zero() {
                    findings.add(Wrong::Early { lease: client.lease, early });
                }
                report::note(&mut after, asked.saturating_duration_since(latest).as_nanos() as u64);
            }
            gone = stay;
            tokio::time::sleep(LOOK).await;
        }
        Ok((after, findings))
    }

    /// The remaining seconds of each lease; -1 for one that does not exist.
    async fn left(&self, leases: &[i64]) -> Result<Vec<i64>, BenchError> {
        let requests = leases.iter().map(|id| pb::LeaseTimeToLiveRequest { id: *id, keys: false }.encode_to_vec());
        let answers = calls(&self.check_endpoint, LEASE_TIME_TO_LIVE, requests.collect()).await?;
        let left = |answer: Vec<u8>| {
            let answer = pb::LeaseTimeToLiveResponse::decode(&answer[..]);
            answer.map(|answer| answer.ttl).map_err(|_| BenchError::Unreadable)
        };
        answers.into_iter().map(left).collect()
    }
}

impl Keeping {
    /// Keeps the leases of some clients alive over one connection at a time.
    async fn connection(self: Arc<Self>, clients: Vec<Client>, stops: bool) -> Seen {
        let (latency, findings) = (report::histogram(), Findings::default());
        let mut seen = Seen { clients, latency, findings, broken: 0, gone: stops };
        while let Left::Broken = self.serve(&mut seen, stops).await {
            seen.broken += 1;
            // It is unknown whether the last requests on it were handled.
            seen.clients.iter_mut().for_each(|client| client.asked = None);
            tokio::time::sleep(PAUSE).await;
        }
        seen
    }

    fn is_done(&self, stops: bool) -> bool {
        self.over.load(Ordering::Acquire) || stops && self.half.load(Ordering::Acquire)
    }

    /// Keeps the leases alive until the connection breaks. Without a connection, the clients retry until their leases
    /// are lost.
    async fn serve(&self, seen: &mut Seen, stops: bool) -> Left {
        let connected =
            tokio::time::timeout(self.options.patience, Link::connect(&self.options.endpoint, DEFAULT_WINDOW));
        let Ok(Ok(mut link)) = connected.await else {
            return if self.is_done(stops) { Left::Done } else { Left::Broken };
        };
        let mut streams = HashMap::new();
        let mut open = HashMap::new();
        for index in 0..seen.clients.len() {
            let stream = link.sender().open(KEEP_ALIVE);
            streams.insert(stream, index);
            open.insert(index, stream);
        }
        let mut tick = tokio::time::interval(TICK);
        let mut buffer = vec![0; READ];
        poll_fn(|context| {
            while tick.poll_tick(context).is_ready() {
                if self.is_done(stops) {
                    return Poll::Ready(Left::Done);
                }
                self.ask(&mut link, seen, &open);
                // Clients whose stream broke open another one.
                for index in 0..seen.clients.len() {
                    let client = &seen.clients[index];
                    if !client.lost && client.due <= Instant::now() && !open.contains_key(&index) {
                        let stream = link.sender().open(KEEP_ALIVE);
                        streams.insert(stream, index);
                        open.insert(index, stream);
                    }
                }
            }
            let polled = link.poll::<BenchError>(context, &mut buffer, &mut |_, event| {
                match event {
                    Event::Message(stream, bytes) => {
                        let Some(index) = streams.get(&stream) else { return Ok(()) };
                        self.answers.fetch_add(1, Ordering::Relaxed);
                        self.take(seen, *index, bytes);
                    }
                    Event::Ended(stream, _) => {
                        let Some(index) = streams.remove(&stream) else { return Ok(()) };
                        open.remove(&index);
                        seen.broken += 1;
                        let client = &mut seen.clients[index];
                        (client.asked, client.due) = (None, Instant::now() + PAUSE);
                    }
                }
                Ok(())
            });
            polled.map(|_| Left::Broken)
        })
        .await
    }

    /// Sends the requests that are due.
    fn ask(&self, link: &mut Link, seen: &mut Seen, open: &HashMap<usize, u32>) {
        let now = Instant::now();
        for (index, client) in seen.clients.iter_mut().enumerate() {
            let Some(stream) = open.get(&index).filter(|_| !client.lost) else { continue };
            match client.asked {
                Some(asked) if now - asked > self.options.patience => {
                    seen.findings.add(Wrong::Silent { lease: client.lease, waited: now - asked });
                    client.lost = true;
                }
                Some(_) => {}
                None if client.due <= now => {
                    link.sender().send(*stream, &pb::LeaseKeepAliveRequest { id: client.lease }.encode_to_vec());
                    (client.asked, client.last) = (Some(now), now);
                    client.due = now + self.ttl / 3;
                }
                None => {}
            }
        }
    }

    /// Checks an answer.
    fn take(&self, seen: &mut Seen, index: usize, bytes: &[u8]) {
        let client = &mut seen.clients[index];
        let Some(asked) = client.asked.take() else { return };
        match judge(client, bytes) {
            Ok(()) => {
                client.kept = asked;
                report::note(&mut seen.latency, asked.elapsed().as_nanos() as u64);
            }
            Err(wrong) => {
                client.lost = matches!(wrong, Wrong::Lost { .. });
                seen.findings.add(wrong);
            }
        }
    }
}

/// Checks that the answer keeps the client's lease alive.
fn judge(client: &Client, bytes: &[u8]) -> Result<(), Wrong> {
    let answer = pb::LeaseKeepAliveResponse::decode(bytes).map_err(|_| Wrong::Unreadable)?;
    if answer.id != client.lease {
        return Err(Wrong::Other { asked: client.lease, got: answer.id });
    }
    if answer.ttl <= 0 {
        return Err(Wrong::Lost { lease: client.lease, since: client.kept.elapsed() });
    }
    Ok(())
}

fn ids(clients: &[Client]) -> Vec<i64> {
    clients.iter().map(|client| client.lease).collect()
}

/// Makes these calls over a separate connection, several at a time. Returns the answers in the order of the requests.
async fn calls(endpoint: &Endpoint, method: &str, requests: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, BenchError> {
    let mut calls = Calls::connect(endpoint).await?;
    let mut buffer = vec![0; READ];
    let mut answers = vec![Vec::new(); requests.len()];
    let mut waiting = requests.into_iter().enumerate();
    poll_fn(|context| {
        loop {
            while calls.in_flight() < IN_FLIGHT
                && let Some((index, request)) = waiting.next()
            {
                calls.start(method, &request, index);
            }
            let before = calls.in_flight();
            if before == 0 {
                return Poll::Ready(Ok(()));
            }
            let polled = calls.poll(context, &mut buffer, &mut |index, bytes| {
                answers[index] = bytes.to_vec();
                Ok(())
            });
            match polled {
                Poll::Ready(error) => return Poll::Ready(Err(error)),
                Poll::Pending if calls.in_flight() < before => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await?;
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_wrong_are_found() {
        let now = Instant::now();
        let client = Client { lease: 7, due: now, asked: None, last: now, kept: now, lost: false };
        let answer = |id, ttl| pb::LeaseKeepAliveResponse { id, ttl, ..Default::default() }.encode_to_vec();
        assert_eq!(judge(&client, &answer(7, 10)), Ok(()));
        assert_eq!(judge(&client, &answer(8, 10)), Err(Wrong::Other { asked: 7, got: 8 }));
        assert!(matches!(judge(&client, &answer(7, 0)), Err(Wrong::Lost { lease: 7, .. })));
        assert_eq!(judge(&client, &[0xff]), Err(Wrong::Unreadable));
    }
}
