//! `bench views`: Lainlet's views over HTTP, as single answers or as streams, with every answer checked.
//!
//! With a key to write, each value contains its sending time, and so does a view that shows the value. So a state shows
//! its age, and the last state must contain the last value. Always holds: an existing key is not overwritten.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

use super::{
    BenchError, Endpoint, calls,
    http::{Connection, Head, HttpError},
    link::{self, LinkError, Socket},
    progress::{Progress, TICK},
    report::{self, Findings, Report, Taken},
    runtime,
    sse::{Event, Events},
    usage::{Usage, Watched},
};
use crate::{pb::etcdserverpb::PutRequest, tls::Speaks};

/// Connections that are being opened at the same time.
const OPENING: usize = 64;
/// Bytes per read of a stream.
const READ: usize = 16 << 10;
/// The text before the time in a value.
const MARK: &[u8] = b"etcd-relay-bench:";
/// Digits of the time.
const DIGITS: usize = 20;

/// The load of views.
#[derive(Clone, Debug)]
pub struct Views {
    /// The HTTP port with the views.
    pub endpoint: Endpoint,
    /// Path and query of the view.
    pub path: String,
    /// Whether to watch it instead of requesting it repeatedly.
    pub watch: bool,
    /// Connections.
    pub connections: u64,
    /// How long to run.
    pub duration: Duration,
    /// The writes that the view shows.
    pub writes: Option<ViewWrites>,
    /// Longest time without progress.
    pub patience: Duration,
    /// Processes to measure.
    pub processes: Vec<Watched>,
}

/// Writes of one key.
#[derive(Clone, Debug)]
pub struct ViewWrites {
    /// The server to write to.
    pub endpoint: Endpoint,
    /// A key that does not exist yet.
    pub key: String,
    /// Writes per second.
    pub rate: f64,
}

/// What all connections share.
struct LoadState {
    options: Views,
    clock: Instant,
    open: AtomicU64,
    messages: AtomicU64,
    over: AtomicBool,
    /// Number of streams that have the last value.
    newest: AtomicU64,
    /// When the last value was written.
    last: AtomicU64,
    seen: Mutex<(Histogram<u64>, Findings)>,
}

impl Views {
    pub(super) fn run(&self) -> Result<Report, BenchError> {
        runtime()?.block_on(self.load())
    }

    async fn load(&self) -> Result<Report, BenchError> {
        let Some(writes) = &self.writes else { return self.measure().await };
        if calls::exists(&writes.endpoint, &writes.key).await? {
            return Err(BenchError::KeyExists(writes.key.clone()));
        }
        // The view must show something from the start.
        put(writes, 0).await?;
        let measured = self.measure().await;
        let deleted = calls::delete_one(&writes.endpoint, &writes.key).await;
        measured.and_then(|report| deleted.map(|()| report))
    }

    async fn measure(&self) -> Result<Report, BenchError> {
        let progress = Progress::new();
        let shared = Arc::new(LoadState {
            options: self.clone(),
            clock: Instant::now(),
            open: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            over: AtomicBool::new(false),
            newest: AtomicU64::new(0),
            last: AtomicU64::new(0),
            seen: Mutex::new((report::histogram(), Findings::default())),
        });
        let usages = || self.processes.iter().map(|process| Usage::of(process.pid)).collect::<Result<Vec<_>, _>>();
        let idle = usages()?;
        let began = Instant::now();
        progress.stage("open", Some(self.connections));
        let gate = Arc::new(Semaphore::new(OPENING));
        let mut clients = JoinSet::new();
        for number in 0..self.connections {
            clients.spawn(shared.clone().client(number, gate.clone()));
        }
        shared.wait(&progress, "connections", || shared.open.load(Ordering::Relaxed), self.connections).await?;
        let opening = began.elapsed();

        progress.stage("views", None);
        let (own_begin, begin) = (Usage::of(std::process::id())?, usages()?);
        let (begun, before) = (Instant::now(), shared.messages.load(Ordering::Relaxed));
        let writer = self.writes.clone().map(|writes| shared.clone().writer(writes));
        while begun.elapsed() < self.duration {
            tokio::time::sleep(TICK).await;
            progress.at(shared.messages.load(Ordering::Relaxed));
        }
        shared.over.store(true, Ordering::Release);
        let mut written = None;
        if let Some(writer) = writer {
            written = Some(writer.await.map_err(|_| BenchError::Lost)??);
        }
        if self.watch && written.is_some() {
            shared.newest_everywhere().await;
        }
        let elapsed = begun.elapsed();
        let messages = shared.messages.load(Ordering::Relaxed) - before;
        let (own_end, end) = (Usage::of(std::process::id())?, usages()?);
        clients.shutdown().await;

        let (delays, findings) =
            std::mem::replace(&mut *shared.seen.lock(), (report::histogram(), Findings::default()));
        let mut report = Report::new("views");
        report.setting("endpoint", self.endpoint.to_string());
        report.setting("path", self.path.clone());
        report.setting("watch", self.watch);
        report.setting("connections", self.connections);
        report.setting("rate", self.writes.as_ref().map(|writes| writes.rate));
        report.figure("open_seconds", opening.as_secs_f64());
        report.count("messages", messages);
        report.figure("messages_per_second", messages as f64 / elapsed.as_secs_f64().max(1e-9));
        if let Some(written) = written {
            report.count("writes", written);
        }
        report.quantiles(if self.watch { "delay" } else { "latency" }, &delays);
        for (process, ((idle, begin), end)) in self.processes.iter().zip(idle.into_iter().zip(begin).zip(end)) {
            let taken = Taken { idle: Some((idle, self.connections, self.connections)), begin, end };
            report.process(process, taken, messages, elapsed);
        }
        let own = Watched { name: "bench".to_owned(), pid: std::process::id() };
        report.process(&own, Taken { idle: None, begin: own_begin, end: own_end }, messages, elapsed);
        report.wrong(findings);
        Ok(report)
    }
}

impl LoadState {
    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn wait(
        &self,
        progress: &Progress,
        what: &'static str,
        done: impl Fn() -> u64,
        all: u64,
    ) -> Result<(), BenchError> {
        let mut last = (0, Instant::now());
        loop {
            let now = done();
            progress.at(now);
            if now >= all {
                return Ok(());
            }
            if now != last.0 {
                last = (now, Instant::now());
            }
            let waited = self.options.patience;
            let wrong = self.seen.lock().1.first();
            if let Some(wrong) = wrong {
                return Err(BenchError::View(wrong));
            }
            if last.1.elapsed() > waited {
                return Err(BenchError::Stalled { what, done: now, all, waited });
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Waits until each stream has the last value, and reports those that do not get it.
    async fn newest_everywhere(&self) {
        let deadline = Instant::now() + self.options.patience;
        let all = self.options.connections;
        while self.newest.load(Ordering::Acquire) < all {
            if Instant::now() > deadline {
                let missing = all - self.newest.load(Ordering::Acquire);
                self.seen.lock().1.add(format_args!("{missing} of {all} streams did not get the last value"));
                return;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    async fn client(self: Arc<Self>, number: u64, gate: Arc<Semaphore>) {
        let ended = if self.options.watch { self.stream(&gate).await } else { self.ask(&gate).await };
        if let Err(error) = ended {
            self.seen.lock().1.add(format_args!("connection {number}: {error}"));
        }
    }

    /// One GET after the other.
    async fn ask(&self, gate: &Semaphore) -> Result<(), HttpError> {
        let mut connection = {
            let _turn = gate.acquire().await;
            Connection::over(self.connect().await?, self.options.endpoint.addr())
        };
        self.open.fetch_add(1, Ordering::Relaxed);
        while !self.over.load(Ordering::Acquire) {
            let begun = self.now();
            let status = connection.get(&self.options.path).await?;
            if status != 200 {
                let text = String::from_utf8_lossy(&connection.body).into_owned();
                return Err(HttpError::breach(format!("status {status}: {text:?}")));
            }
            serde_json::from_slice::<serde::de::IgnoredAny>(&connection.body)
                .map_err(|_| HttpError::breach("an answer that is not JSON"))?;
            report::note(&mut self.seen.lock().0, self.now().saturating_sub(begun));
            self.messages.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Socket, HttpError> {
        let connected = link::connect(&self.options.endpoint, Speaks::Http1).await;
        connected.map_err(|error| match error {
            LinkError::Connect { source, .. } => HttpError::breach(format!("cannot connect: {source}")),
            error => HttpError::breach(error.to_string()),
        })
    }

    /// One stream.
    async fn stream(&self, gate: &Semaphore) -> Result<(), HttpError> {
        let endpoint = &self.options.endpoint;
        let turn = gate.acquire().await;
        let mut socket = self.connect().await?;
        let sign = if self.options.path.contains('?') { '&' } else { '?' };
        let (path, addr) = (&self.options.path, endpoint.addr());
        let request = format!("GET {path}{sign}watch=1 HTTP/1.1\r\nHost: {addr}\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        socket.flush().await?;
        let mut turn = Some(turn);
        let (mut received, mut framing, mut events) = (Vec::new(), None, Events::default());
        let mut has_newest = false;
        loop {
            let mut part = std::mem::take(&mut received);
            part.reserve(READ);
            if socket.read_buf(&mut part).await? == 0 {
                return Err(HttpError::breach("the server ended the stream"));
            }
            if framing.is_none() {
                let Some((length, head)) = Head::parse(&part)? else {
                    received = part;
                    continue;
                };
                if head.status != 200 {
                    return Err(HttpError::breach(format!("status {}", head.status)));
                }
                part.drain(..length);
                framing = Some(head.framing);
            }
            let Some(framing) = &mut framing else { continue };
            framing.decode(&part, |body| {
                events.read(body, |event| {
                    if let Event::State(data) = event {
                        if turn.take().is_some() {
                            self.open.fetch_add(1, Ordering::Relaxed);
                        }
                        self.messages.fetch_add(1, Ordering::Relaxed);
                        self.note(data, &mut has_newest);
                    }
                    Ok::<(), HttpError>(())
                })
            })?;
        }
    }

    /// Records the age of the value in a state, and whether it is the last value.
    fn note(&self, data: &[u8], has_newest: &mut bool) {
        let Some(written) = written_at(data) else { return };
        // The value from before the writes contains no time.
        if written > 0 {
            report::note(&mut self.seen.lock().0, self.now().saturating_sub(written));
        }
        if !*has_newest && written > 0 && written == self.last.load(Ordering::Acquire) {
            *has_newest = true;
            self.newest.fetch_add(1, Ordering::Release);
        }
    }

    /// Writes until the time is over, then writes the last value. Returns the number of writes.
    fn writer(self: Arc<Self>, writes: ViewWrites) -> JoinHandle<Result<u64, BenchError>> {
        tokio::spawn(async move {
            let begun = tokio::time::Instant::now();
            let mut written = 0;
            loop {
                let over = self.over.load(Ordering::Acquire);
                let now = self.now();
                if over {
                    self.last.store(now, Ordering::Release);
                }
                put(&writes, now).await?;
                written += 1;
                if over {
                    return Ok(written);
                }
                tokio::time::sleep_until(begun + Duration::from_secs_f64(written as f64 / writes.rate)).await;
            }
        })
    }
}

async fn put(writes: &ViewWrites, now: u64) -> Result<(), BenchError> {
    let value = [MARK, format!("{now:0DIGITS$}").as_bytes()].concat();
    let request = PutRequest { key: writes.key.clone().into(), value: value.into(), ..Default::default() };
    calls::once(&writes.endpoint, calls::PUT, &request.encode_to_vec()).await.map(drop)
}

/// The time in a state that shows the value.
fn written_at(data: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(data).ok()?;
    let (_, after) = text.split_once(std::str::from_utf8(MARK).ok()?)?;
    after.get(..DIGITS)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_found_where_it_is_shown() {
        let value = format!("{{\"a/b\":\"etcd-relay-bench:{:020}\"}}", 1234);
        assert_eq!(written_at(value.as_bytes()), Some(1234));
        assert_eq!(written_at(b"{\"a/b\":\"etcd-relay-bench:12"), None);
        assert_eq!(written_at(b"{}"), None);
    }
}
