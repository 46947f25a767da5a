//! [`Fleet`]: many watchers of views, each on its own connection, and what they received.
//!
//! Changes are in `cluster` and `driver`. All watchers run on one thread beside the one that writes. Always holds: a
//! watcher that received something wrong, or whose connection ended, is an error of the next tally.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    runtime::{Builder, Runtime},
    sync::Semaphore,
    time::sleep,
};

use super::{
    cluster::Change,
    http::{Connection, Framing, Head},
    sse::{Event, Events},
};

/// Watches that are being opened at the same time.
const OPENING: usize = 64;
/// Longest wait for all watches to be open.
const OPEN_PATIENCE: Duration = Duration::from_secs(120);
/// After this time without a message, everything has arrived.
const QUIET: Duration = Duration::from_millis(300);
/// Longest wait for that, and until a stream shows the same as a GET.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes per read.
const READ: usize = 256 << 10;
/// Most faulty streams that are listed.
const SHOWN: usize = 5;

/// The clock that sender and receivers share.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts it.
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since it was started.
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A watch to open.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Path and query, without `watch`.
    pub uri: String,
    /// Seconds between heartbeats, 0 for none.
    pub heartbeat: u32,
    /// What it shows, named by `cluster::shown`.
    pub shows: String,
    /// Where the sending time of a state is found.
    pub sent: Sent,
}

/// Where the sending time of a state is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// From the sender: the time of the newest change that the watch shows. It is correct as long as the changes of a
    /// target are further apart than the delays.
    WithSender,
    /// In the one value of the payload: `{"<key>":"<nanoseconds>"}`.
    InPayload,
}

/// When each target was last changed, and how often. The sender writes it and the watchers read it.
#[derive(Debug, Default)]
pub struct Scopes {
    index: HashMap<String, usize>,
    scopes: Vec<Scope>,
}

#[derive(Debug, Default)]
struct Scope {
    sent: AtomicU64,
    changes: AtomicU64,
}

impl Scopes {
    /// Records that a change is being sent.
    pub fn note(&self, change: &Change, now: u64) {
        for scope in change.shown_by.iter().filter_map(|name| self.index.get(name)) {
            self.scopes[*scope].sent.store(now, Ordering::Relaxed);
            self.scopes[*scope].changes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Many watchers.
#[derive(Debug)]
pub struct Fleet {
    addr: String,
    scopes: Arc<Scopes>,
    watchers: Vec<Arc<Watcher>>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Watcher {
    watch: Watch,
    scope: usize,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Since the last [`Fleet::begin`].
    states: u64,
    heartbeats: u64,
    bytes: u64,
    /// In microseconds.
    delays: Vec<u32>,
    last: Option<Vec<u8>>,
    last_sent: u64,
    failure: Option<String>,
}

/// What all watchers received since [`Fleet::begin`].
#[derive(Debug, Default)]
pub struct Tally {
    /// Number of states that there would be without conflation.
    pub expected: u64,
    /// Number of received states.
    pub states: u64,
    /// Number of received heartbeats.
    pub heartbeats: u64,
    /// Bytes of states.
    pub bytes: u64,
    /// Delays of watchers of one target, from before the write to after the read, in microseconds, sorted.
    pub delays: Vec<u32>,
    /// The same for watchers of everything.
    pub delays_of_all: Vec<u32>,
}

impl Fleet {
    /// Opens these watches at `addr` and waits until each has its first state.
    pub async fn open(addr: &str, watches: Vec<Watch>, clock: Clock) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().context("a runtime")?;
        let mut scopes = Scopes::default();
        let watchers: Vec<_> = watches
            .into_iter()
            .map(|watch| {
                let next = scopes.index.len();
                let scope = *scopes.index.entry(watch.shows.clone()).or_insert(next);
                Arc::new(Watcher { watch, scope, seen: Mutex::default() })
            })
            .collect();
        scopes.scopes.resize_with(scopes.index.len(), Scope::default);
        let scopes = Arc::new(scopes);
        let opening = Arc::new(Semaphore::new(OPENING));
        for watcher in &watchers {
            let (watcher, scopes, opening) = (watcher.clone(), scopes.clone(), opening.clone());
            let addr = addr.to_owned();
            runtime.spawn(async move {
                if let Err(error) = watcher.follow(&addr, &opening, &scopes, clock).await {
                    watcher.seen.lock().failure = Some(format!("{error:#}"));
                }
            });
        }
        let fleet = Self { addr: addr.to_owned(), scopes, watchers, runtime: Some(runtime) };
        let deadline = Instant::now() + OPEN_PATIENCE;
        while !fleet.all(|seen| seen.last.is_some())? {
            ensure!(Instant::now() < deadline, "not all watches were open after {OPEN_PATIENCE:?}");
            sleep(PAUSE).await;
        }
        Ok(fleet)
    }

    /// Where the sender records what it sends.
    pub fn scopes(&self) -> Arc<Scopes> {
        self.scopes.clone()
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.watchers.len()
    }

    /// Starts a new tally.
    pub fn begin(&self) {
        for watcher in &self.watchers {
            let seen = &mut *watcher.seen.lock();
            (seen.states, seen.heartbeats, seen.bytes) = (0, 0, 0);
            seen.delays.clear();
        }
        for scope in &self.scopes.scopes {
            scope.changes.store(0, Ordering::Relaxed);
        }
    }

    /// Waits until no more messages arrive.
    pub async fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + SETTLE_PATIENCE;
        let (mut last, mut since) = (self.states(), Instant::now());
        while since.elapsed() < QUIET {
            ensure!(Instant::now() < deadline, "states still came after {SETTLE_PATIENCE:?}");
            sleep(PAUSE).await;
            let states = self.states();
            if states != last {
                (last, since) = (states, Instant::now());
            }
        }
        Ok(())
    }

    /// The tally since [`Self::begin`].
    ///
    /// # Errors
    /// Fails if a watcher failed, got more states than there were changes for it, or got none although there was a
    /// change.
    pub fn tally(&self) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut wrong = Vec::new();
        for watcher in &self.watchers {
            let seen = &*watcher.seen.lock();
            let uri = &watcher.watch.uri;
            let expected = self.scopes.scopes[watcher.scope].changes.load(Ordering::Relaxed);
            if let Some(failure) = &seen.failure {
                wrong.push(format!("{uri}: {failure}"));
            } else if seen.states > expected || (seen.states == 0 && expected > 0) {
                wrong.push(format!("{uri}: {} states, after {expected} changes that it shows", seen.states));
            }
            tally.expected += expected;
            tally.states += seen.states;
            tally.heartbeats += seen.heartbeats;
            tally.bytes += seen.bytes;
            let of_all = watcher.watch.shows.ends_with(" *");
            let delays = if of_all { &mut tally.delays_of_all } else { &mut tally.delays };
            delays.extend_from_slice(&seen.delays);
        }
        fail_with("did not receive the right states", &wrong)?;
        tally.delays.sort_unstable();
        tally.delays_of_all.sort_unstable();
        Ok(tally)
    }

    /// Compares the last state of each watch with a GET as of `revision` or later.
    ///
    /// # Errors
    /// Fails if they stay different.
    pub async fn verify(&self, revision: i64) -> Result<()> {
        let mut by_uri: BTreeMap<&str, Vec<&Watcher>> = BTreeMap::new();
        for watcher in &self.watchers {
            by_uri.entry(&watcher.watch.uri).or_default().push(watcher);
        }
        let mut connection = Connection::open(&self.addr).await?;
        let mut wrong = Vec::new();
        let deadline = Instant::now() + SETTLE_PATIENCE;
        for (uri, watchers) in by_uri {
            let uri = with_parameter(uri, &format!("min_revision={revision}"));
            let status = connection.get(&uri).await.with_context(|| format!("GET {uri}"))?;
            if status != 200 {
                bail!("GET {uri}: {status}: {}", String::from_utf8_lossy(&connection.body));
            }
            for watcher in watchers {
                while !watcher.shows(&connection.body) && Instant::now() < deadline {
                    sleep(PAUSE).await;
                }
                if !watcher.shows(&connection.body) {
                    let length = watcher.seen.lock().last.as_ref().map(Vec::len);
                    wrong.push(format!("{uri}: {length:?} bytes, and a GET has {}", connection.body.len()));
                }
            }
        }
        fail_with("do not show what a GET shows", &wrong)
    }

    fn states(&self) -> u64 {
        self.watchers.iter().map(|watcher| watcher.seen.lock().states).sum()
    }

    fn all(&self, holds: impl Fn(&Seen) -> bool) -> Result<bool> {
        for watcher in &self.watchers {
            let seen = watcher.seen.lock();
            if let Some(failure) = &seen.failure {
                bail!("{}: {failure}", watcher.watch.uri);
            }
            if !holds(&seen) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plain drop would block, which a task of another runtime must not do.
            runtime.shutdown_background();
        }
    }
}

impl Watcher {
    async fn follow(&self, addr: &str, opening: &Semaphore, scopes: &Scopes, clock: Clock) -> Result<()> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
        }
        let mut permit = Some(opening.acquire().await.context("the semaphore is never closed")?);
        let mut stream = TcpStream::connect(addr).await.with_context(|| format!("connect to {addr}"))?;
        let mut uri = with_parameter(&self.watch.uri, "watch=1");
        if self.watch.heartbeat > 0 {
            uri = with_parameter(&uri, &format!("heartbeat={}", self.watch.heartbeat));
        }
        stream.write_all(format!("GET {uri} HTTP/1.1\r\nHost: {addr}\r\n\r\n").as_bytes()).await?;
        let mut reading = Reading::Head(Vec::new());
        let mut events = Events::default();
        loop {
            stream.readable().await?;
            // All watchers share the buffer, so it is never held across an await.
            BUFFER.with_borrow_mut(|buffer| match stream.try_read(buffer) {
                Ok(0) => bail!("the server closed the watch"),
                Ok(read) => {
                    reading.read(&buffer[..read], |part| events.read(part, |event| self.note(event, scopes, clock)))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                Err(error) => Err(error.into()),
            })?;
            if events.count() > 0 {
                permit.take();
            }
        }
    }

    fn note(&self, event: Event<'_>, scopes: &Scopes, clock: Clock) -> Result<()> {
        let now = clock.nanos();
        let seen = &mut *self.seen.lock();
        let Event::State(payload) = event else {
            seen.heartbeats += 1;
            return Ok(());
        };
        let sent = match self.watch.sent {
            Sent::WithSender => scopes.scopes[self.scope].sent.load(Ordering::Relaxed),
            Sent::InPayload => sent_in(payload).with_context(|| format!("no time in {payload:?}"))?,
        };
        ensure!(sent >= seen.last_sent, "an older state came after a newer one");
        seen.last_sent = sent;
        let last = seen.last.get_or_insert_with(Vec::new);
        // The first state was not sent because of a change.
        if events_before(last) {
            seen.states += 1;
            seen.bytes += payload.len() as u64;
            let delay = Duration::from_nanos(now.saturating_sub(sent)).as_micros();
            seen.delays.push(u32::try_from(delay).unwrap_or(u32::MAX));
            ensure!(last != payload, "the same state once more");
        }
        last.clear();
        last.extend_from_slice(payload);
        Ok(())
    }

    fn shows(&self, state: &[u8]) -> bool {
        self.seen.lock().last.as_deref() == Some(state)
    }
}

/// Whether there was a state before. A payload is never empty.
fn events_before(last: &[u8]) -> bool {
    !last.is_empty()
}

/// The position of a watcher in an answer.
enum Reading {
    Head(Vec<u8>),
    Body(Framing),
}

impl Reading {
    fn read(&mut self, bytes: &[u8], body: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let after_head;
        let bytes = match self {
            Self::Body(_) => bytes,
            Self::Head(head) => {
                head.extend_from_slice(bytes);
                let Some((length, parsed)) = Head::parse(head)? else { return Ok(()) };
                ensure!(parsed.status == 200, "status {}: {}", parsed.status, String::from_utf8_lossy(head));
                after_head = head.split_off(length);
                *self = Self::Body(parsed.framing);
                &after_head[..]
            }
        };
        let Self::Body(framing) = self else { return Ok(()) };
        ensure!(!framing.decode(bytes, body)?, "the server ended the watch");
        Ok(())
    }
}

/// The time in `{"<key>":"<nanoseconds>"}`.
fn sent_in(payload: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(payload).ok()?;
    text.split('"').nth(3)?.parse().ok()
}

fn with_parameter(uri: &str, parameter: &str) -> String {
    let separator = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{separator}{parameter}")
}

fn fail_with(what: &str, wrong: &[String]) -> Result<()> {
    ensure!(
        wrong.is_empty(),
        "{} streams {what}; the first of them:\n  {}",
        wrong.len(),
        wrong[..wrong.len().min(SHOWN)].join("\n  ")
    );
    Ok(())
}
