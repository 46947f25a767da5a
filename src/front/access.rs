//! [`Access`]: whether a client may read what the relay has in memory. etcd decides, client by client and range by range; the
//! relay asks it with that client's own token and nobody else's.
//!
//! Not here: how etcd is asked (`ask`) and what is remembered (`memo`); what happens to a client that may not, see
//! `front::grpc`. Calls that are forwarded carry their client's token, so etcd decides about those without our help.
//!
//! The question is a `Range` over the very bytes that the client gave, at a revision that no store will reach: etcd checks
//! permission before it looks at the revision, so the answer costs it no read. etcd tells its auth revision to root alone, which
//! a relay should not be; so what is known is asked again every [`INTERVAL`], which is how long a change made elsewhere may take
//! to show. A change made through this relay shows at once.
//!
//! Always holds: unknown means no; while authentication is off the cost is one atomic load; a grant is believed for
//! [`INTERVAL`] from the moment the question was put, and never across a change that the relay saw.

mod ask;
mod changes;
mod memo;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use metrics::counter;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};

pub use self::ask::{Denial, WireRange};
use self::{
    ask::{Verdict, ask},
    memo::Memo,
};
use crate::{
    front::grpc::GrpcService,
    telemetry::{
        ReadyBoard,
        names::{self, Check},
    },
    types::KeyRange,
};

/// How long an answer of etcd is believed, and between two looks at whether authentication is on. Longer costs etcd fewer
/// questions, and lets a client whose permission was taken away, or one without a name after authentication was enabled, see
/// as much longer what it saw before.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Between failures to learn whether authentication is on, doubled up to the interval.
const RETRY: Duration = Duration::from_millis(200);
/// Most questions under way at once: etcd answers each in well under a millisecond.
const ASKS: usize = 64;

/// Whether etcd asks for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// Not learned yet.
    Unknown,
    /// Everyone may do everything.
    Off,
    /// Each client has the permissions of its user.
    On,
}

/// What is known, and since when answers count.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Whether etcd asks for names.
    pub auth: Auth,
    /// Live watches are to be checked again by questions put at or after this moment.
    pub since: Instant,
}

/// Who a client says it is: the metadata by which etcd knows it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    credentials: Arc<[(HeaderName, HeaderValue)]>,
}

/// Why a client does not get what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// etcd says no.
    Denied(Denial),
    /// etcd did not say; in words for a log or a client.
    Unknown(String),
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access {
    shared: Arc<Shared>,
}

struct Shared {
    upstream: GrpcService,
    /// How long one answer may take.
    patience: Duration,
    /// The same as `known.auth == Off`, for the hot path.
    off: AtomicBool,
    known: watch::Sender<Known>,
    memo: Mutex<Memo>,
    asks: Semaphore,
    doubt: Notify,
}

impl Access {
    /// Asks `upstream`, which passes calls to etcd, with `patience` for one answer. Knows nothing until [`Access::run`] runs.
    #[must_use]
    pub fn new(upstream: GrpcService, patience: Duration) -> Self {
        let known = watch::Sender::new(Known { auth: Auth::Unknown, since: Instant::now() });
        Self {
            shared: Arc::new(Shared {
                upstream,
                patience,
                off: AtomicBool::new(false),
                known,
                memo: Mutex::new(Memo::new()),
                asks: Semaphore::new(ASKS),
                doubt: Notify::new(),
            }),
        }
    }

    /// Learns again and again whether authentication is on. Run it as a task; `ready` is held back until it is known.
    pub async fn run(self, ready: ReadyBoard) {
        let mut hold = Some(ready.hold("it is not known yet whether etcd's authentication is on"));
        let mut pause = RETRY;
        let mut said = Auth::Unknown;
        loop {
            let asked = Instant::now();
            let wait = match self.put(&Caller::nobody(), &WireRange::probe()).await {
                Verdict::Granted => self.learned(Auth::Off, asked),
                Verdict::Denied(denial) if denial.is_of_caller() => self.learned(Auth::On, asked),
                Verdict::Denied(denial) => Err(denial.reason()),
                Verdict::Unknown(why) => Err(why),
            };
            let wait = match wait {
                Ok(true) => {
                    pause = RETRY;
                    hold = None;
                    let auth = self.known().auth;
                    if std::mem::replace(&mut said, auth) != auth {
                        tracing::info!(?auth, "Learned whether etcd's authentication is on");
                    }
                    INTERVAL
                }
                // Something changed while etcd was asked.
                Ok(false) => continue,
                Err(why) => {
                    if pause == RETRY {
                        tracing::debug!(why, "Cannot learn whether etcd's authentication is on; trying on");
                    }
                    if let Some(hold) = &hold {
                        hold.explain(format!("etcd does not tell whether its authentication is on: {why}"));
                    }
                    let wait = pause;
                    pause = (pause * 2).min(INTERVAL);
                    wait
                }
            };
            let jitter = 0.8 + 0.2 * fastrand::f64();
            // Cancel safe: both arms leave nothing behind.
            tokio::select! {
                () = tokio::time::sleep(wait.mul_f64(jitter)) => {}
                () = self.shared.doubt.notified() => pause = RETRY,
            }
        }
    }

    /// Whether authentication is known to be off: then everyone may read everything.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.shared.off.load(Ordering::Acquire)
    }

    /// What is known now.
    #[must_use]
    pub fn known(&self) -> Known {
        *self.shared.known.borrow()
    }

    /// What is known, and its changes to come: while authentication is on there is one every [`INTERVAL`] at most, at which
    /// live watches are to be checked.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Known> {
        self.shared.known.subscribe()
    }

    /// Waits until it is known whether authentication is on, for `patience` at most. Cancel safe.
    pub async fn wait_known(&self, patience: Duration) -> Auth {
        let mut known = self.watch();
        let learned = tokio::time::timeout(patience, known.wait_for(|known| known.auth != Auth::Unknown)).await;
        match learned {
            Ok(Ok(known)) => known.auth,
            // The sender lives as long as we do, so this is the timeout.
            _ => Auth::Unknown,
        }
    }

    /// What was known may not be true any more: nothing that was learned before counts, and etcd is asked again now. Until it
    /// answers, nobody reads without a check.
    pub fn doubt(&self) {
        let now = Instant::now();
        self.shared.memo.lock().forget(now);
        self.shared.known.send_modify(|known| {
            // Where names were asked for, each check tells by itself if that has ended.
            if known.auth == Auth::Off {
                self.shared.off.store(false, Ordering::Release);
                known.auth = Auth::Unknown;
            }
            known.since = now;
        });
        self.shared.doubt.notify_one();
    }

    /// Checks that `caller` may read `range`: true only where etcd said so within [`INTERVAL`].
    pub async fn permits(&self, caller: &Caller, range: &WireRange) -> bool {
        let since = Instant::now().checked_sub(INTERVAL).unwrap_or_else(Instant::now);
        self.is_off() || self.verdict(caller, range, since).await == Verdict::Granted
    }

    /// Checks each of `ranges` for `caller`, by answers to questions put at or after `since`. As few questions as will do: who
    /// may read a range may read each part of it.
    pub async fn check(&self, caller: &Caller, ranges: &[WireRange], since: Instant) -> Vec<Result<(), Refused>> {
        let mut results = vec![Ok(()); ranges.len()];
        let mut sorted: Vec<(Option<KeyRange>, usize)> =
            ranges.iter().enumerate().map(|(index, range)| (range.parse(), index)).collect();
        sorted.sort_unstable();
        // Ranges without a key cannot be spanned; etcd is asked about each.
        let (empty, whole) = sorted.split_at(sorted.partition_point(|(range, _)| range.is_none()));
        let mut todo: Vec<&[(Option<KeyRange>, usize)]> = empty.chunks(1).collect();
        if !whole.is_empty() {
            todo.push(whole);
        }
        while let Some(slice) = todo.pop() {
            let verdict = match slice {
                [(_, index)] => self.verdict(caller, &ranges[*index], since).await,
                _ => match span(slice) {
                    Some(span) => self.verdict(caller, &span, since).await,
                    None => continue,
                },
            };
            let refused = match verdict {
                Verdict::Granted => continue,
                Verdict::Denied(denial) if slice.len() > 1 && !denial.is_of_caller() => {
                    let (low, high) = slice.split_at(slice.len() / 2);
                    todo.extend([low, high]);
                    continue;
                }
                Verdict::Denied(denial) => Refused::Denied(denial),
                Verdict::Unknown(why) => Refused::Unknown(why),
            };
            slice.iter().for_each(|(_, index)| results[*index] = Err(refused.clone()));
        }
        results
    }

    /// What etcd says, or said since.
    async fn verdict(&self, caller: &Caller, range: &WireRange, since: Instant) -> Verdict {
        if self.shared.memo.lock().has(caller, range, since) {
            return Verdict::Granted;
        }
        // The semaphore is never closed.
        let Ok(_permit) = self.shared.asks.acquire().await else { return Verdict::Unknown("stopping".into()) };
        let asked = Instant::now();
        let verdict = self.put(caller, range).await;
        let outcome = match &verdict {
            Verdict::Granted => Check::Granted,
            Verdict::Denied(_) => Check::Denied,
            Verdict::Unknown(_) => Check::Unknown,
        };
        counter!(names::ACCESS_CHECKS, Check::LABEL => outcome.as_str()).increment(1);
        if verdict == Verdict::Granted {
            self.shared.memo.lock().remember(caller, range, asked, INTERVAL);
        }
        verdict
    }

    async fn put(&self, caller: &Caller, range: &WireRange) -> Verdict {
        let patience = self.shared.patience;
        let question = ask(self.shared.upstream.clone(), &caller.credentials, range);
        tokio::time::timeout(patience, question).await.unwrap_or_else(|_| {
            Verdict::Unknown(format!("etcd did not answer within {}", humantime::format_duration(patience)))
        })
    }

    /// Takes note of what was learned by a question put at `asked`. False where it was overtaken by a doubt.
    fn learned(&self, auth: Auth, asked: Instant) -> Result<bool, String> {
        let mut noted = false;
        self.shared.known.send_if_modified(|known| {
            noted = known.since <= asked || known.auth == auth;
            if !noted {
                return false;
            }
            let changed = known.auth != auth;
            *known = Known { auth, since: asked.max(known.since) };
            self.shared.off.store(auth == Auth::Off, Ordering::Release);
            // Live watches are looked at again each time that names are asked for.
            changed || auth == Auth::On
        });
        Ok(noted)
    }
}

impl Caller {
    /// The client that sent these headers.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let named = |name: &'static str| {
            headers.get_all(name).into_iter().map(move |value| (HeaderName::from_static(name), value.clone()))
        };
        // etcd takes the first, and the second where the first is not there.
        Self { credentials: named("token").chain(named("authorization")).collect() }
    }

    /// A client without a name.
    #[must_use]
    pub fn nobody() -> Self {
        Self { credentials: Arc::default() }
    }

    /// Whether it gave anything to be known by.
    #[must_use]
    pub fn is_nobody(&self) -> bool {
        self.credentials.is_empty()
    }

    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        self.credentials.iter().map(|(_, value)| value.len() + 64).sum()
    }
}

/// Tokens are secrets.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("is_nobody", &self.is_nobody()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("known", &*self.known.borrow()).finish_non_exhaustive()
    }
}

/// The smallest range that has all of `slice`.
fn span(slice: &[(Option<KeyRange>, usize)]) -> Option<WireRange> {
    let whole = slice.iter().filter_map(|(range, _)| range.clone()).reduce(|one, another| one.span(&another))?;
    Some(WireRange::of(&whole))
}

#[cfg(test)]
mod tests;
