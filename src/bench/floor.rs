//! `bench floor`: the cost of a delivery in a program that does nothing else. One thread writes the bytes of a watch
//! response to one socket after the other.
//!
//! Servers are compared with this. The same client reads and checks the data, and a "write" is one revision to all
//! sockets. Always holds: the sender's CPU time is only that of its thread.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use prost::Message as _;
use rustix::time::{ClockId, clock_gettime};
use tokio::task::JoinSet;

use super::{
    BenchError, Endpoint,
    check::{Scope, Seen, Truth, Wrong},
    link::{Link, LinkError, READ_BYTES},
    pause,
    plan::Plan,
    progress::{Progress, TICK},
    report::{self, Findings, Report},
    runtime,
    usage::{Usage, Watched},
    wire::{self, Event},
};
use crate::{
    bench::check::Write,
    pb::{
        etcdserverpb::{ResponseHeader, WatchResponse},
        mvccpb,
    },
};

/// Keys that are written in turn.
const KEYS: u64 = 100;
/// The prefix of their names.
const PREFIX: &str = "/etcd-relay-bench/";

/// The load of bare sockets.
#[derive(Clone, Debug)]
pub struct Floor {
    /// Sockets.
    pub connections: u64,
    /// Responses on each socket per write, written together.
    pub watches: u64,
    /// Bytes per value.
    pub value_size: usize,
    /// Writes per second; `None` for as many as possible.
    pub rate: Option<f64>,
    /// How long to run.
    pub duration: Duration,
    /// Longest time without progress.
    pub patience: Duration,
}

/// What the sender did.
struct Sent {
    /// Kept open until everything was read.
    _sockets: Vec<TcpStream>,
    writes: u64,
    cpu: Duration,
    elapsed: Duration,
}

impl Floor {
    pub(super) fn run(&self) -> Result<Report, BenchError> {
        // The keys are as long as those of a run against a server.
        let plan = Arc::new(Plan::new(Plan::prefix_below(PREFIX), KEYS, self.value_size, 1, 0));
        let progress = Progress::new();
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(LinkError::Io)?;
        let addr = listener.local_addr().map_err(LinkError::Io)?.to_string();
        let endpoint = addr.parse::<Endpoint>().map_err(BenchError::Refused)?;
        let delivered = AtomicU64::new(0);
        let expected = AtomicU64::new(u64::MAX);
        progress.stage("write", None);
        let begin = Usage::of(std::process::id())?;
        let (sent, read) = thread::scope(|scope| {
            let sender = thread::Builder::new().name("sender".to_owned()).spawn_scoped(scope, || {
                let sent = self.send(&plan, &listener);
                // If it failed, nothing more is awaited.
                let writes = sent.as_ref().map_or(0, |sent: &Sent| sent.writes);
                expected.store(writes * self.watches * self.connections, Ordering::Release);
                sent
            });
            let sender = sender.map_err(BenchError::Thread)?;
            let read = || runtime()?.block_on(self.read(&plan, &endpoint, &delivered, &expected));
            let reader = thread::Builder::new().name("reader".to_owned()).spawn_scoped(scope, read);
            let reader = reader.map_err(BenchError::Thread)?;
            while !reader.is_finished() {
                progress.at(delivered.load(Ordering::Relaxed));
                pause(TICK);
            }
            let read = reader.join().map_err(|_| BenchError::Lost)??;
            Ok::<_, BenchError>((sender.join().map_err(|_| BenchError::Lost)?.map_err(LinkError::Io)?, read))
        })?;
        let end = Usage::of(std::process::id())?;

        let (delays, seen, mut findings) = read;
        let writes = (0..sent.writes).map(|number| Write { revision: number as i64 + 1, first: number }).collect();
        let truth = Truth::new(&plan, writes);
        for (number, seen) in seen.iter().enumerate() {
            if let Err(wrong) = seen.conclude(&plan, &truth, Scope::All) {
                findings.add(format_args!("watch {number}: {wrong}"));
            }
        }
        let deliveries = delivered.load(Ordering::Acquire);
        let mut report = Report::new("floor");
        report.setting("connections", self.connections);
        report.setting("watches", self.watches);
        report.setting("value_size", self.value_size);
        report.setting("rate", self.rate);
        report.count("writes", sent.writes);
        report.count("deliveries", deliveries);
        report.figure("deliveries_per_second", deliveries as f64 / sent.elapsed.as_secs_f64().max(1e-9));
        report.figure("cpu_us_each", sent.cpu.as_secs_f64() * 1e6 / deliveries.max(1) as f64);
        report.quantiles("delay", &delays);
        let own = Watched { name: "bench".to_owned(), pid: std::process::id() };
        report.process(&own, report::Taken { idle: None, begin, end }, deliveries, sent.elapsed);
        report.wrong(findings);
        Ok(report)
    }

    /// The program that is measured.
    fn send(&self, plan: &Plan, listener: &TcpListener) -> std::io::Result<Sent> {
        let accept = |_| {
            let (socket, _) = listener.accept()?;
            socket.set_nodelay(true)?;
            Ok(socket)
        };
        let sockets = (0..self.connections).map(accept).collect::<std::io::Result<Vec<TcpStream>>>()?;
        let (begun, cpu) = (Instant::now(), thread_cpu());
        let mut writes = 0;
        while begun.elapsed() < self.duration {
            if let Some(rate) = self.rate {
                let due = begun + Duration::from_secs_f64(writes as f64 / rate);
                pause(due.saturating_duration_since(Instant::now()));
            }
            let bytes = self.frames(plan, writes);
            for mut socket in &sockets {
                socket.write_all(&bytes)?;
            }
            writes += 1;
        }
        let cpu = thread_cpu().saturating_sub(cpu);
        Ok(Sent { _sockets: sockets, writes, cpu, elapsed: begun.elapsed() })
    }

    /// The frames that a server of etcd's API sends on a connection for one put.
    fn frames(&self, plan: &Plan, number: u64) -> Vec<u8> {
        let revision = number as i64 + 1;
        let kv = mvccpb::KeyValue {
            key: plan.key(number % plan.keys).into(),
            value: plan.value(number, plan.now()).into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        };
        let mut response = WatchResponse {
            header: Some(ResponseHeader { cluster_id: u64::MAX, member_id: u64::MAX, revision, raft_term: 2 }),
            events: vec![mvccpb::Event { kv: Some(kv), ..Default::default() }],
            ..Default::default()
        };
        let mut bytes = Vec::new();
        for watch_id in 0..self.watches {
            response.watch_id = watch_id as i64;
            wire::data_frame(&mut bytes, 1, &response.encode_to_vec());
        }
        bytes
    }

    /// Reads all sockets until everything has come, or there is no more progress.
    async fn read(
        &self,
        plan: &Arc<Plan>,
        endpoint: &Endpoint,
        delivered: &AtomicU64,
        expected: &AtomicU64,
    ) -> Result<(Histogram<u64>, Vec<Seen>, Findings), BenchError> {
        let mut state = Reader {
            buffer: vec![0; READ_BYTES],
            delays: report::histogram(),
            links: Vec::new(),
            watches: self.watches,
            seen: vec![Seen::after(plan, 0); usize::try_from(self.connections * self.watches).unwrap_or(0)],
            findings: Findings::default(),
        };
        for _ in 0..self.connections {
            state.links.push(Some(Link::listen(endpoint).await?));
        }
        let shared = Arc::new(parking_lot::Mutex::new(state));
        let counted = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for number in 0..self.connections {
            let (shared, plan, counted) = (shared.clone(), plan.clone(), counted.clone());
            tasks.spawn(std::future::poll_fn(move |context| {
                let mut reader = shared.lock();
                let polled = reader.poll(context, &plan, number, &counted);
                if let std::task::Poll::Ready(wrong) = &polled {
                    reader.findings.add(format_args!("connection {number}: {wrong}"));
                }
                polled.map(drop)
            }));
        }
        let mut last = (0, Instant::now());
        loop {
            tokio::time::sleep(TICK / 4).await;
            let now = counted.load(Ordering::Relaxed);
            delivered.store(now, Ordering::Release);
            if now != last.0 {
                last = (now, Instant::now());
            }
            // There is also no progress while the sender waits for its next write.
            let is_over = expected.load(Ordering::Acquire) != u64::MAX;
            if now >= expected.load(Ordering::Acquire) || is_over && last.1.elapsed() > self.patience {
                break;
            }
        }
        tasks.shutdown().await;
        let mut reader = shared.lock();
        Ok((reader.delays.clone(), std::mem::take(&mut reader.seen), std::mem::take(&mut reader.findings)))
    }
}

/// What the readers share.
struct Reader {
    buffer: Vec<u8>,
    delays: Histogram<u64>,
    links: Vec<Option<Link>>,
    watches: u64,
    seen: Vec<Seen>,
    findings: Findings,
}

impl Reader {
    fn poll(
        &mut self,
        context: &mut std::task::Context<'_>,
        plan: &Plan,
        number: u64,
        counted: &AtomicU64,
    ) -> std::task::Poll<Wrong> {
        let Self { buffer, delays, links, watches, seen, .. } = self;
        let Some(link) = links.get_mut(number as usize).and_then(Option::as_mut) else {
            return std::task::Poll::Pending;
        };
        link.poll(context, buffer, &mut |_, event| {
            let Event::Message(_, bytes) = event else { return Ok(()) };
            let head = super::message::watch_response(bytes)?;
            let watch = u64::try_from(head.watch_id).ok().filter(|watch| *watch < *watches);
            let watch = watch.ok_or(Wrong::UnknownWatch(head.watch_id))?;
            let now = plan.now();
            let seen = &mut seen[(number * *watches + watch) as usize];
            let events =
                seen.response(plan, Scope::All, bytes, |_, sent| report::note(delays, now.saturating_sub(sent)))?;
            counted.fetch_add(events, Ordering::Relaxed);
            Ok(())
        })
    }
}

/// The CPU time of this thread so far.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
