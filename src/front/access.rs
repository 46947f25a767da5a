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
//! Who may read a range may read each part of it, so the ranges of a stream are asked about together, and apart only where etcd says
//! no to all of them, or cannot answer for them. Whoever asks what another asks gets the same answer (`memo`), and no client can make
//! another's questions wait (`turns`).
//!
//! Always holds: unknown means no; while authentication is off the cost is one atomic load; a grant is believed for
//! [`INTERVAL`] from the moment the question was put, and never across a change that the relay saw; a denial is never believed by
//! a read or a create that came after it.

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
    front::{client::Client, grpc::GrpcService},
    hub::upstream::UpstreamError,
    telemetry::{
        ReadyBoard,
        names::{self, Check},
    },
    types::KeyRange,
};

/// How long an answer of etcd is believed, and between two looks at whether authentication is on. Longer costs etcd fewer
/// questions, but a client whose permission was taken away, or one without a name after authentication was enabled, sees for longer
/// what it saw before.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// How long a live watch goes on without etcd's word that its client may read it, while etcd's events come: nothing is sent later than
/// this after a permission was taken away. Longer than [`INTERVAL`] and an answer take together.
pub const LIMIT: Duration = Duration::from_secs(9);
/// Between failures to learn whether authentication is on, doubled up to the interval.
const RETRY: Duration = Duration::from_millis(200);
/// Longest wait for one answer, where the relay's requests may not wait for less: several have to fit into [`LIMIT`].
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a range of several watches that etcd denied is not asked about again as a whole: its parts are.
const SPLIT: Duration = Duration::from_secs(60);
/// Most ranges, and bytes of them, that are looked at together: bounds the time that it takes to put them in order.
const TOGETHER: (usize, usize) = (1024, 1 << 20);
/// Ranges of more bytes take long to read, so others get their turn first.
const LARGE: usize = 64 << 10;

/// Authentication is on, or it is not known whether it is.
const NOT_OFF: u8 = 0;
/// It is off by an answer that still counts.
const OFF: u8 = 1;
/// It was off by an answer that is older than [`LIMIT`], and etcd has been away since. This counts until etcd is heard again.
const OFF_ONCE: u8 = 2;

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
    /// Until when authentication was off for sure, where it was.
    pub off_until: Instant,
}

/// Why a client does not get what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// etcd says no.
    Denied(Denial),
    /// etcd answers, but cannot say for this range; in words for a log or a client.
    Unanswerable(String),
    /// etcd did not say; in words for a log or a client.
    Unknown(String),
}

/// Which denials count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denials {
    /// Those to questions that are put from now on: the client may have been given permission a moment ago.
    New,
    /// Those that grants would count from too.
    Known,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access {
    shared: Arc<AccessInner>,
}

struct AccessInner {
    upstream: GrpcService,
    /// How long one answer may take.
    patience: Duration,
    /// One of [`NOT_OFF`], [`OFF`] and [`OFF_ONCE`], as `known` has it, for the hot path.
    off: AtomicU8,
    known: watch::Sender<Known>,
    memo: Mutex<Memo>,
    hasher: RandomState,
    turns: Turns,
    doubt: Notify,
}

impl Access {
    /// Asks `upstream`, which passes calls to etcd, with `patience` for one answer. Knows nothing until [`Access::run`] runs.
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

    /// Learns again and again whether authentication is on. Run it as a task; `ready` is held back until it is known.
    pub async fn run(self, ready: ReadyBoard) {
        let mut hold = Some(ready.hold("it is not known yet whether etcd's authentication is on"));
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
                // Something changed while etcd was asked.
                Ok(false) => continue,
                Err(why) => {
                    if pause == RETRY {
                        tracing::debug!(why, "Cannot learn whether etcd's authentication is on; asking again");
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
        self.shared.off.load(Ordering::Acquire) != NOT_OFF
    }

    /// etcd answered a question of another kind. If it was away for so long that authentication may have been enabled meanwhile, the
    /// belief that it is off ends: the caller has to look at [`Access::is_off`] again.
    pub fn heard(&self) {
        if self.shared.off.load(Ordering::Acquire) == OFF_ONCE {
            self.doubt_since(Instant::now());
        }
    }

    /// etcd, or the way to it, answered a question of another kind with this error.
    pub fn failed(&self, error: &UpstreamError) {
        match error {
            UpstreamError::Denied(_) if self.is_off() => self.doubt(),
            // Its member answers.
            UpstreamError::NoLeader => self.heard(),
            _ => {}
        }
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

    /// What was known may no longer be true: nothing that was learned before counts, and etcd is asked again now. Until it
    /// answers, nobody reads without a check.
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

    /// Authentication is not known to be off any more, and was off for sure until `since`.
    fn doubt_since(&self, since: Instant) {
        self.shared.known.send_modify(|known| self.not_off(known, since));
        self.shared.doubt.notify_one();
    }

    /// Nothing newer than the answer to the question put at `asked` says that authentication is off, and that one is too old.
    fn off_once(&self, asked: Instant) {
        self.shared.known.send_if_modified(|known| {
            if known.auth == Auth::Off && known.since == asked {
                self.shared.off.store(OFF_ONCE, Ordering::Release);
            }
            false
        });
    }

    fn not_off(&self, known: &mut Known, off_until: Instant) {
        // Where names were asked for, each check tells by itself if that has ended.
        if known.auth == Auth::Off {
            self.shared.off.store(NOT_OFF, Ordering::Release);
            known.auth = Auth::Unknown;
            known.off_until = off_until;
        }
    }

    /// From when on an answer counts in a look at live watches now: the same moment for all who look in the same [`INTERVAL`], so that
    /// they share their questions.
    #[must_use]
    pub fn round(&self) -> Instant {
        let since = self.known().since;
        let rounds = since.elapsed().as_secs() / INTERVAL.as_secs();
        u32::try_from(rounds).ok().and_then(|rounds| since.checked_add(INTERVAL * rounds)).unwrap_or_else(Instant::now)
    }

    /// Checks that `client` may read `range`: true only where etcd said so within [`INTERVAL`].
    pub async fn permits(&self, client: &Client, range: &WireRange) -> bool {
        let now = Instant::now();
        let since = now.checked_sub(INTERVAL).unwrap_or(now);
        self.is_off() || self.verdict(client, range, since, now).await == Verdict::Granted
    }

    /// Checks each of `ranges` for `client`, by grants of questions put at or after `since`. As few questions as will do: who may
    /// read a range may read each part of it.
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
        // Ranges without a key cannot be spanned; etcd is asked about each.
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
                // No member answers: asking about each part would only take longer.
                Verdict::Unknown(why) => Refused::Unknown(why),
            };
            slice.iter().for_each(|(_, index)| results[*index] = Err(refused.clone()));
        }
    }

    /// Whether etcd denied a span of several ranges lately.
    fn is_split(&self, client: &Client, span: &WireRange) -> bool {
        let now = Instant::now();
        let question = Question::new(&self.shared.hasher, &client.credentials, span);
        self.shared.memo.lock().denied(&question, now.checked_sub(SPLIT).unwrap_or(now))
    }

    /// What etcd says, or said to a question put at `since` or later; where it denies, at `denied_since` or later.
    async fn verdict(&self, client: &Client, range: &WireRange, mut since: Instant, denied_since: Instant) -> Verdict {
        if !range.can_be_asked() {
            return Verdict::Unanswerable(format!("the range is too large to be asked about: {}", range.bytes()));
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
                // Another asked before this client came, and may do now what it could not do then.
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

    /// Takes note of what was learned by a question put at `asked`. False where it was overtaken by a doubt.
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
            // Live watches are looked at again each time that names are asked for.
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

/// Two parts of a slice of two and more.
fn halves<T>(slice: &[T]) -> [&[T]; 2] {
    slice.split_at(slice.len() / 2).into()
}

/// The smallest range that has all of `slice`.
fn span(slice: &[(Option<KeyRange>, usize)]) -> Option<WireRange> {
    let whole = slice.iter().filter_map(|(range, _)| range.clone()).reduce(|one, another| one.span(&another))?;
    Some(WireRange::of(&whole))
}

#[cfg(test)]
mod tests;
