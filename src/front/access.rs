//! [`Access`]: whether a client may read what the relay has in memory. etcd decides for each client and range: the
//! relay asks it with that client's own token, never with another one.
//!
//! Not here: how etcd is asked (`ask`), what is remembered (`memo`), and what happens to a client that is denied
//! (`front::grpc`). Forwarded calls carry their client's token, so etcd checks those itself.
//!
//! The question is a `Range` with exactly the client's bytes, at a revision that no store will reach. etcd checks
//! permission before it looks at the revision, so the answer costs it no read. etcd reveals its auth revision only to
//! root, which a relay should not be. So answers are asked again after [`INTERVAL`], which is how long a change made
//! elsewhere may take to show. A change made through this relay shows at once.
//!
//! A client that may read a range may read each part of it. So the ranges of a stream are checked together, and
//! separately only if etcd denies all of them or cannot answer for them. Clients with the same question share the
//! answer (`memo`), and no client can delay the questions of another (`turns`).
//!
//! Always holds: unknown means no. While authentication is off, a check costs one atomic load. A grant is valid for
//! [`INTERVAL`] from the time of the question, and never across a change that the relay saw. A denial never applies to
//! a read or create that came after it.

mod ask;
mod changes;
mod expiry;
mod keep;
mod memo;
mod turns;

use std::{
    fmt,
    hash::RandomState,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use metrics::counter;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::coop,
    time::Instant,
};

pub use self::{
    ask::{Denial, WireRange},
    keep::Look,
};
use self::{
    ask::{Verdict, ask},
    memo::{Memo, Question},
    turns::{EACH, Turns},
};
use crate::{
    front::client::Client,
    hub::upstream::UpstreamError,
    rpc::GrpcService,
    telemetry::{
        ReadyBoard,
        names::{self, Check},
    },
    types::KeyRange,
};

/// How long an answer of etcd is valid, and the time between two checks of whether authentication is on. A longer time
/// costs etcd fewer questions. But a client whose permission was revoked, or an anonymous client after authentication
/// was enabled, sees data for longer.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// How long a live watch continues without etcd's confirmation while etcd's events come. Nothing is sent later than
/// this after a permission was revoked. It is longer than [`INTERVAL`] plus the time for an answer.
pub const LIMIT: Duration = Duration::from_secs(9);
/// First pause after a failure to learn whether authentication is on. It doubles up to the interval.
const RETRY: Duration = Duration::from_millis(200);
/// Longest wait for one answer, unless the relay's request timeout is shorter. Several attempts have to fit into
/// [`LIMIT`].
const PATIENCE: Duration = Duration::from_secs(2);
/// For this long after etcd denied a range that covers several watches, the parts are checked instead.
const SPLIT: Duration = Duration::from_secs(60);
/// Most ranges, and most bytes of them, that are checked together. This bounds the time to sort them.
const TOGETHER: (usize, usize) = (1024, 1 << 20);
/// Ranges with more bytes than this take long to process, so other tasks run first.
const LARGE: usize = 64 << 10;

/// Authentication is on, or its state is unknown.
const NOT_OFF: u8 = 0;
/// Authentication is off, by an answer that is still valid.
const OFF: u8 = 1;
/// Authentication was off by an answer older than [`LIMIT`], and etcd has been away since. This is valid until etcd
/// answers again.
const OFF_ONCE: u8 = 2;

/// Whether etcd's authentication is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// Not known yet.
    Unknown,
    /// Everyone may do everything.
    Off,
    /// Each client has the permissions of its user.
    On,
}

/// What is known about authentication, and from when on answers are valid.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Whether etcd's authentication is on.
    pub auth: Auth,
    /// Live watches must be confirmed by questions asked at or after this time.
    pub since: Instant,
    /// Until when authentication was certainly off, if it was.
    pub off_until: Instant,
}

/// Why a client may not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// etcd denied it.
    Denied(Denial),
    /// etcd answered, but cannot decide for this range; the text is for a log or a client.
    Unanswerable(String),
    /// etcd did not answer; the text is for a log or a client.
    Unknown(String),
}

/// Which denials are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denials {
    /// Only denials of questions asked from now on: the client may have been given permission a moment ago.
    New,
    /// The denials that are as recent as grants must be.
    Known,
}

/// Checks permissions; see the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access {
    shared: Arc<AccessInner>,
}

struct AccessInner {
    upstream: GrpcService,
    /// Timeout of one question.
    patience: Duration,
    /// One of [`NOT_OFF`], [`OFF`] and [`OFF_ONCE`]. It mirrors `known` for the hot path.
    off: AtomicU8,
    known: watch::Sender<Known>,
    memo: Mutex<Memo>,
    hasher: RandomState,
    turns: Turns,
    doubt: Notify,
}

impl Access {
    /// Creates an `Access` that asks etcd through `upstream`, with `patience` for one answer. It knows nothing until
    /// [`Access::run`] runs.
    #[must_use]
    pub fn new(upstream: GrpcService, patience: Duration) -> Self {
        let now = Instant::now();
        let known = watch::Sender::new(Known { auth: Auth::Unknown, since: now, off_until: now });
        Self {
            shared: Arc::new(AccessInner {
                upstream,
                patience: patience.min(PATIENCE),
                off: AtomicU8::new(NOT_OFF),
                known,
                memo: Mutex::new(Memo::new()),
                hasher: RandomState::new(),
                turns: Turns::new(),
                doubt: Notify::new(),
            }),
        }
    }

    /// Keeps checking whether authentication is on. Run it as a task. Readiness is held back until the first answer.
    pub async fn run(self, ready: ReadyBoard) {
        let mut hold = Some(ready.hold("it is not yet known whether etcd's authentication is on"));
        let mut pause = RETRY;
        let mut said = Auth::Unknown;
        loop {
            let asked = Instant::now();
            let wait = match self.put(&Client::relay(), &WireRange::probe()).await {
                Verdict::Granted => self.learned(Auth::Off, asked),
                Verdict::Denied(denial) if denial.is_of_caller() => self.learned(Auth::On, asked),
                Verdict::Denied(denial) => Err(denial.reason()),
                Verdict::Unanswerable(why) | Verdict::Unknown(why) => Err(why),
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
                // Something changed while the question was under way.
                Ok(false) => continue,
                Err(why) => {
                    if pause == RETRY {
                        tracing::debug!(why, "Cannot check whether etcd's authentication is on, retrying");
                    }
                    if let Some(hold) = &hold {
                        hold.explain(format!("cannot check whether etcd's authentication is on: {why}"));
                    }
                    let wait = pause;
                    pause = (pause * 2).min(INTERVAL);
                    wait
                }
            };
            let jitter = 0.8 + 0.2 * fastrand::f64();
            // Both arms are cancel safe.
            tokio::select! {
                () = tokio::time::sleep(wait.mul_f64(jitter)) => {}
                () = self.shared.doubt.notified() => pause = RETRY,
            }
        }
    }

    /// Whether authentication is known to be off, so that everyone may read everything.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.shared.off.load(Ordering::Acquire) != NOT_OFF
    }

    /// Whether authentication counts as off only because etcd has been away since it said so. Any answer of etcd ends
    /// this, see [`Access::heard`].
    #[must_use]
    pub fn is_unheard(&self) -> bool {
        self.shared.off.load(Ordering::Acquire) == OFF_ONCE
    }

    /// Reports that etcd answered a request of another kind. If etcd was away so long that authentication may have been
    /// enabled meanwhile, it is no longer assumed to be off, and the caller must check [`Access::is_off`] again.
    pub fn heard(&self) {
        if self.is_unheard() {
            self.doubt_since(Instant::now());
        }
    }

    /// Reports that a request of another kind failed with this error, at etcd or on the way to it.
    pub fn failed(&self, error: &UpstreamError) {
        match error {
            UpstreamError::Denied(_) if self.is_off() => self.doubt(),
            // The member itself answered.
            UpstreamError::NoLeader => self.heard(),
            _ => {}
        }
    }

    /// The current knowledge.
    #[must_use]
    pub fn known(&self) -> Known {
        *self.shared.known.borrow()
    }

    /// The current knowledge and its changes. While authentication is on, there is a change at most every [`INTERVAL`],
    /// at which live watches must be checked.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Known> {
        self.shared.known.subscribe()
    }

    /// Waits, for at most `patience`, until it is known whether authentication is on. Cancel safe.
    pub async fn wait_known(&self, patience: Duration) -> Auth {
        let mut known = self.watch();
        let learned = tokio::time::timeout(patience, known.wait_for(|known| known.auth != Auth::Unknown)).await;
        match learned {
            Ok(Ok(known)) => known.auth,
            // The sender lives as long as `self`, so this is the timeout.
            _ => Auth::Unknown,
        }
    }

    /// Drops everything learned so far, since it may be outdated, and asks etcd again at once. Until etcd answers,
    /// every read is checked.
    pub fn doubt(&self) {
        let now = Instant::now();
        let outdated = self.shared.memo.lock().forget(now);
        drop(outdated);
        self.shared.known.send_modify(|known| {
            self.not_off(known, now);
            known.since = now;
        });
        self.shared.doubt.notify_one();
    }

    /// Marks authentication as possibly on. It was certainly off until `since`.
    fn doubt_since(&self, since: Instant) {
        self.shared.known.send_modify(|known| self.not_off(known, since));
        self.shared.doubt.notify_one();
    }

    /// Marks the last answer as too old: the question asked at `asked` is the newest that said that authentication is
    /// off.
    fn off_once(&self, asked: Instant) {
        self.shared.known.send_if_modified(|known| {
            if known.auth == Auth::Off && known.since == asked {
                self.shared.off.store(OFF_ONCE, Ordering::Release);
            }
            false
        });
    }

    fn not_off(&self, known: &mut Known, off_until: Instant) {
        // If authentication was on, each check notices by itself when that ends.
        if known.auth == Auth::Off {
            self.shared.off.store(NOT_OFF, Ordering::Release);
            known.auth = Auth::Unknown;
            known.off_until = off_until;
        }
    }

    /// The time from which on answers are valid for a check of live watches now. It is the same for all checks in the
    /// same [`INTERVAL`], so that they share their questions.
    #[must_use]
    pub fn round(&self) -> Instant {
        let since = self.known().since;
        let rounds = since.elapsed().as_secs() / INTERVAL.as_secs();
        u32::try_from(rounds).ok().and_then(|rounds| since.checked_add(INTERVAL * rounds)).unwrap_or_else(Instant::now)
    }

    /// Checks that `client` may read `range`. True only if etcd confirmed it within [`INTERVAL`].
    pub async fn permits(&self, client: &Client, range: &WireRange) -> bool {
        let now = Instant::now();
        let since = now.checked_sub(INTERVAL).unwrap_or(now);
        self.is_off() || self.verdict(client, range, since, now).await == Verdict::Granted
    }

    /// Checks each of `ranges` for `client`, with grants of questions asked at or after `since`. It needs few
    /// questions, because a client that may read a range may read each part of it.
    pub async fn check(
        &self,
        client: &Client,
        ranges: &[WireRange],
        since: Instant,
        denials: Denials,
    ) -> Vec<Result<(), Refused>> {
        let mut results = Vec::with_capacity(ranges.len());
        while results.len() < ranges.len() {
            let rest = &ranges[results.len()..];
            let mut bytes = 0;
            let fits = |range: &&WireRange| {
                bytes += range.bytes();
                bytes <= TOGETHER.1
            };
            let together = rest.iter().take(TOGETHER.0).take_while(fits).count().max(1);
            results.extend(self.check_together(client, &rest[..together], since, denials).await);
        }
        results
    }

    async fn check_together(
        &self,
        client: &Client,
        ranges: &[WireRange],
        since: Instant,
        denials: Denials,
    ) -> Vec<Result<(), Refused>> {
        let denied_since = if denials == Denials::New { Instant::now() } else { since };
        let mut results = vec![Ok(()); ranges.len()];
        let mut sorted: Vec<(Option<KeyRange>, usize)> =
            ranges.iter().enumerate().map(|(index, range)| (range.parse(), index)).collect();
        sorted.sort_unstable();
        // Ranges without a key cannot be combined, so etcd is asked about each of them.
        let (empty, whole) = sorted.split_at(sorted.partition_point(|(range, _)| range.is_none()));
        let mut todo: Vec<&[(Option<KeyRange>, usize)]> = empty.chunks(1).collect();
        if !whole.is_empty() {
            todo.push(whole);
        }
        let mut asking = FuturesUnordered::new();
        loop {
            while asking.len() < EACH
                && let Some(slice) = todo.pop()
            {
                coop::consume_budget().await;
                let range = match slice {
                    [(_, index)] => ranges[*index].clone(),
                    _ => match span(slice).filter(|span| span.can_be_asked() && !self.is_split(client, span)) {
                        Some(span) => span,
                        None => {
                            todo.extend(halves(slice));
                            continue;
                        }
                    },
                };
                asking.push(async move { (slice, self.verdict(client, &range, since, denied_since).await) });
            }
            let Some((slice, verdict)) = asking.next().await else { return results };
            let refused = match verdict {
                Verdict::Granted => continue,
                Verdict::Denied(denial) if slice.len() == 1 || denial.is_of_caller() => Refused::Denied(denial),
                Verdict::Unanswerable(why) if slice.len() == 1 => Refused::Unanswerable(why),
                Verdict::Denied(_) | Verdict::Unanswerable(_) => {
                    todo.extend(halves(slice));
                    continue;
                }
                // No member answers, so asking about each part would only take longer.
                Verdict::Unknown(why) => Refused::Unknown(why),
            };
            slice.iter().for_each(|(_, index)| results[*index] = Err(refused.clone()));
        }
    }

    /// Whether etcd recently denied this span of several ranges.
    fn is_split(&self, client: &Client, span: &WireRange) -> bool {
        let now = Instant::now();
        let question = Question::new(&self.shared.hasher, &client.credentials, span);
        self.shared.memo.lock().denied(&question, now.checked_sub(SPLIT).unwrap_or(now))
    }

    /// etcd's answer, new or from a question asked at `since` or later. A denial must be from `denied_since` or later.
    async fn verdict(&self, client: &Client, range: &WireRange, mut since: Instant, denied_since: Instant) -> Verdict {
        if !range.can_be_asked() {
            return Verdict::Unanswerable(format!(
                "the range is too large to check permission for it: {}",
                range.bytes()
            ));
        }
        if range.bytes() > LARGE {
            tokio::task::yield_now().await;
        }
        let question = Question::new(&self.shared.hasher, &client.credentials, range);
        loop {
            let (answer, outdated) = {
                let mut memo = self.shared.memo.lock();
                match memo.find(&question, since, denied_since) {
                    Some(answer) => (answer, None),
                    None => memo.begin(&question, Instant::now()),
                }
            };
            drop(outdated);
            let verdict = answer.verdict(async || self.put_in_turn(client, question.range()).await).await;
            if matches!(verdict, Verdict::Denied(_)) && answer.asked < denied_since {
                // The denial answers an earlier question, and the client may have been given permission since then.
                since = since.max(denied_since);
                continue;
            }
            return verdict;
        }
    }

    async fn put_in_turn(&self, client: &Client, range: &WireRange) -> Verdict {
        let _turn = self.shared.turns.take(client.key()).await;
        let verdict = self.put(client, range).await;
        let outcome = match &verdict {
            Verdict::Granted => Check::Granted,
            Verdict::Denied(_) => Check::Denied,
            Verdict::Unanswerable(_) | Verdict::Unknown(_) => Check::Unknown,
        };
        counter!(names::ACCESS_CHECKS, Check::LABEL => outcome.as_str()).increment(1);
        verdict
    }

    async fn put(&self, client: &Client, range: &WireRange) -> Verdict {
        let patience = self.shared.patience;
        let question = ask(self.shared.upstream.clone(), &client.credentials, range);
        tokio::time::timeout(patience, question).await.unwrap_or_else(|_| {
            Verdict::Unknown(format!("etcd did not answer within {}", humantime::format_duration(patience)))
        })
    }

    /// Records what a question asked at `asked` showed. Returns false if something was in doubt after it was asked.
    fn learned(&self, auth: Auth, asked: Instant) -> Result<bool, String> {
        let mut noted = false;
        self.shared.known.send_if_modified(|known| {
            noted = known.since <= asked || known.auth == auth;
            if !noted {
                return false;
            }
            let changed = known.auth != auth;
            let since = asked.max(known.since);
            let off_until = if auth == Auth::Off { since } else { known.off_until };
            *known = Known { auth, since, off_until };
            self.shared.off.store(if auth == Auth::Off { OFF } else { NOT_OFF }, Ordering::Release);
            // Live watches are checked again after each answer that authentication is on.
            changed || auth == Auth::On
        });
        Ok(noted)
    }
}

impl fmt::Debug for AccessInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessInner").field("known", &*self.known.borrow()).finish_non_exhaustive()
    }
}

/// Splits a slice of at least two elements into two parts.
fn halves<T>(slice: &[T]) -> [&[T]; 2] {
    slice.split_at(slice.len() / 2).into()
}

/// The smallest range that contains all of `slice`.
fn span(slice: &[(Option<KeyRange>, usize)]) -> Option<WireRange> {
    let whole = slice.iter().filter_map(|(range, _)| range.clone()).reduce(|one, another| one.span(&another))?;
    Some(WireRange::of(&whole))
}

#[cfg(test)]
mod tests;
