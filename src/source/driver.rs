//! [`Driver`]: keeps each feed up to date with its upstream, through all failures of the upstream.
//!
//! There is one task for each feed, and only that task writes to the feed. Its states are: `starting` (reads a snapshot
//! in pages, all at one revision); `live` (watches from the next revision on); `resuming` (the watch broke, and the
//! feed watches again from the last change that it knows, which must still be the same (`past`); the delay before each
//! attempt is jittered and grows to a limit, and falls back once upstream has sent something); `resyncing` (upstream no
//! longer has the next revision, or is not what the feed followed, so a new snapshot is read).
//! Always holds: the feed's revision follows only event revisions and trusted progress, never a header. It goes back
//! only at a reset, when the cluster is another one or was restored; every subscriber is told then. Nothing that the
//! feed had is published again.

mod load;
mod outage;
mod past;
mod terms;

use std::{pin::Pin, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::FutureExt as _;
use metrics::counter;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub(super) use self::past::is_same;
use self::{
    outage::Outage,
    past::{Differs, Past, Progress},
    terms::Terms,
};
use crate::{
    critical::Tasks,
    hub::{
        Doubt, Feed, FeedRunner, FeedState, Reset,
        upstream::{Agreement, Changes, Upstream, UpstreamError, UpstreamWatch, WatchMessage, WatchRequest},
    },
    telemetry::names::{self, ReconnectReason, ResyncReason},
    types::{Cluster, Header, KeyRange, KeyValue, Revision, UpstreamHeader},
};

/// How long to wait for requested progress before requesting it again. etcd is silent while a watch is behind.
const PROGRESS_PATIENCE: Duration = Duration::from_millis(100);
/// How often an idle feed requests progress, so that it can resume after a compaction that other parts of the key space
/// have caused.
const PROGRESS_IDLE: Duration = Duration::from_secs(30);

/// How long a watch may bring nothing while the cluster is known to have more: at first, and at most. The time doubles
/// whenever another watch did no better, since etcd sends nothing while it reads a long past. If there is no other
/// member, a watch is kept for the longest time.
const BEHIND: (Duration, Duration) = (Duration::from_millis(1500), Duration::from_secs(24));

/// Once this many revisions or bytes were read, they are published. This bounds how long the feed's lock is held.
const TOGETHER: (usize, usize) = (256, 1 << 20);
/// A cluster that replaced another one less than this ago is replaced only after a delay. If two clusters answer in
/// turns at one address, a feed then reads only as many snapshots as the delays after failures allow.
const REPLACED_PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of a key that a log line shows.
const SAMPLE: usize = 128;

/// The settings of drivers.
#[derive(Clone, Copy, Debug)]
pub struct DriverConfig {
    /// First delay after a failure.
    pub min_delay: Duration,
    /// Longest delay after failures in a row.
    pub max_delay: Duration,
    /// A feed on demand ends when it was not used for this long.
    pub idle: Duration,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self { min_delay: Duration::from_millis(50), max_delay: Duration::from_secs(2), idle: Duration::from_secs(300) }
    }
}

/// Keeps feeds up to date; see the module. Cloned into each feed's task.
#[derive(Clone, Debug)]
pub struct Driver {
    config: DriverConfig,
    upstream: Arc<dyn Upstream>,
    header: Arc<UpstreamHeader>,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Driver {
    /// A driver for feeds of `upstream`, which ends with `stop`. It writes the newest header into `header`.
    #[must_use]
    pub fn new(
        config: DriverConfig,
        upstream: Arc<dyn Upstream>,
        header: Arc<UpstreamHeader>,
        tasks: Tasks,
        stop: CancellationToken,
    ) -> Self {
        Self { config, upstream, header, tasks, stop }
    }
}

impl FeedRunner for Driver {
    fn run(&self, feed: Arc<Feed>) {
        let stop = self.stop.clone();
        let driver = Driving {
            driver: self.clone(),
            delays: delays(&self.config),
            cluster: feed.cluster(),
            feed,
            outage: Outage::default(),
            denied: false,
            at: None,
            replaced: None,
            patience: BEHIND.0,
            fresh: false,
            newest: None,
            oldest: Revision::ZERO,
            past: None,
            terms: Terms::default(),
        };
        self.tasks.spawn("feed driver", async move {
            stop.run_until_cancelled(driver.run()).await;
        });
    }
}

/// The running driver of one feed.
struct Driving {
    driver: Driver,
    feed: Arc<Feed>,
    /// The cluster that the feed's data came from.
    cluster: Arc<Cluster>,
    delays: ExponentialBackoff,
    outage: Outage,
    /// The last failure was a refusal of the relay's user.
    denied: bool,
    /// The member of the last watch, until the pause after it.
    at: Option<Arc<str>>,
    /// When the cluster was last replaced by another one, and the delays before the next replacement.
    replaced: Option<(Instant, ExponentialBackoff)>,
    /// How long a watch may bring nothing while the cluster has more.
    patience: Duration,
    /// The snapshot was read just now, so there is no past to compare.
    fresh: bool,
    /// The key-value of the snapshot with the latest change.
    newest: Option<Arc<KeyValue>>,
    /// The oldest revision that upstream has, as far as it reported one since the snapshot was read.
    oldest: Revision,
    /// What the open watch still has to repeat of what the feed had.
    past: Option<Past>,
    terms: Terms,
}

/// Upstream's answer to a doubt.
enum Verdict {
    /// No answer was needed: it is proved that the cluster went back.
    Proved,
    /// The cluster that answers now, and its revision.
    Answer(Header),
    /// The relay may read the range.
    Permitted,
    /// Upstream did not accept the request, or did not answer it.
    Failed(UpstreamError),
}

/// A request about a doubt that is under way.
type Asking = Pin<Box<dyn Future<Output = (Doubt, Verdict)> + Send>>;

/// Why a watch ended.
enum Ended {
    Failed(UpstreamError),
    Canceled(String),
    Gone(Reset, ResyncReason),
    /// The changes that were to be compared with the feed are compacted up to this revision, but the next revision that
    /// the feed needs is not.
    Forgotten(Revision),
    Idle,
}

impl Ended {
    /// The cluster that answers is not the one that the feed followed.
    const fn replaced(why: ResyncReason) -> Self {
        Self::Gone(Reset::Replaced, why)
    }
}

impl Driving {
    async fn run(mut self) {
        let mut reset = None;
        loop {
            if !self.load(reset.take()).await {
                return;
            }
            // Until upstream no longer has the next revision.
            let (gone, why) = loop {
                match self.follow().await {
                    Ended::Idle => {
                        tracing::info!(range = %self.feed.range(), "Feed on demand ended after its idle time");
                        return;
                    }
                    Ended::Gone(gone, why) => break (gone, why),
                    Ended::Forgotten(oldest) => self.oldest = oldest,
                    Ended::Failed(error) => self.pause(FeedState::Resuming, &error).await,
                    Ended::Canceled(reason) => {
                        self.pause(FeedState::Resuming, &UpstreamError::Canceled(reason)).await;
                    }
                }
                if self.feed.close_if_idle(self.driver.config.idle) {
                    return;
                }
            };
            tracing::warn!(range = %self.feed.range(), revision = self.feed.revision().get(), reason = why.as_str(),
                "Feed needs a new snapshot; watches that miss revisions are cancelled");
            self.feed.set_state(FeedState::Resyncing);
            if gone == Reset::Replaced {
                self.wait_replaced().await;
            }
            reset = Some((gone, why));
        }
    }

    /// Watches from the last change that the feed knows, until the watch ends.
    async fn follow(&mut self) -> Ended {
        while let Some(doubt) = self.feed.doubted() {
            let verdict = ask(self.driver.upstream.clone(), self.feed.range().clone(), doubt).await;
            if let Some(ended) = self.judge(verdict) {
                return ended;
            }
        }
        let fresh = std::mem::take(&mut self.fresh) || !self.driver.upstream.has_past();
        self.past = (!fresh).then(|| Past::of(self.feed.held(), self.newest.clone(), self.oldest));
        let start_revision = self.past.as_ref().map_or_else(|| self.feed.revision().next(), Past::start);
        let request = WatchRequest { range: self.feed.range().clone(), start_revision, prev_kv: false };
        let mut upstream = match self.driver.upstream.watch(request).await {
            Ok(upstream) => upstream,
            Err(error) => return Ended::Failed(error),
        };
        let created = upstream.created();
        if !self.cluster.observe(&created) {
            return Ended::replaced(ResyncReason::ClusterReplaced);
        }
        self.look_at_term(&created);
        if created.revision < self.feed.revision() {
            // Either this member is behind, and will send what follows when it gets there, or the cluster itself went
            // back.
            match self.driver.upstream.confirm(None).await {
                Ok(confirmed) if self.is_another(&confirmed.header) => {
                    return Ended::replaced(ResyncReason::RevisionFell);
                }
                Ok(_) => {
                    tracing::info!(range = %self.feed.range(), member = created.revision.get(), feed = self.feed.revision().get(),
                        "The member is behind the feed; waiting for it to catch up");
                }
                Err(error) => return Ended::Failed(error),
            }
        }
        self.denied = false;
        self.at = upstream.member();
        self.feed.follows(upstream.trusts_progress(), upstream.member());
        if let Some(failures) = self.outage.ended() {
            tracing::info!(range = %self.feed.range(), revision = self.feed.revision().get(), failures,
                "Feed follows etcd again");
        }
        self.read(&mut *upstream).await
    }

    async fn read(&mut self, upstream: &mut dyn UpstreamWatch) -> Ended {
        let trusts_progress = upstream.trusts_progress();
        // Requested at the start, since a feed may be far behind others.
        let mut unanswered = trusts_progress && (upstream.has_cheap_progress() || self.feed.is_awaited());
        if unanswered && let Err(error) = upstream.request_progress().await {
            return Ended::Failed(error);
        }
        // When progress was last requested.
        let mut asked = unanswered.then(Instant::now);
        // Somebody came after the last request, and its answer does not serve them.
        let mut newcomers = false;
        let mut idle =
            tokio::time::interval((self.driver.config.idle / 4).clamp(Duration::from_millis(10), PROGRESS_IDLE));
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut ahead = None;
        let mut asking: Option<Asking> = None;
        // The feed's revision when it was found to be behind, or when it last moved while it was behind.
        let mut behind: Option<(Revision, Instant)> = None;
        loop {
            if self.feed.is_closed() {
                return Ended::Idle;
            }
            let revision = self.feed.revision();
            let is_behind = trusts_progress && self.feed.lag().is_some();
            if behind.is_some_and(|(at, _)| at != revision) {
                // The watch brings something.
                self.patience = BEHIND.0;
                behind = None;
            }
            if !is_behind {
                behind = None;
            } else if behind.is_none() {
                behind = Some((revision, Instant::now()));
            }
            let late = behind.map(|(_, since)| since + self.patience);
            if asking.is_none()
                && let Some(doubt) = self.feed.doubted()
            {
                asking = Some(Box::pin(ask(self.driver.upstream.clone(), self.feed.range().clone(), doubt)));
            }
            let ask_again = asked.map(|at| at + PROGRESS_PATIENCE);
            // Cancel safe: every branch is. The order is fixed, so that a simulation repeats. Messages come last
            // because they may never pause, whereas each of the other branches is idle after it was taken once or
            // twice.
            let ask_progress = tokio::select! {
                biased;
                () = self.feed.nudged(), if !newcomers => {
                    newcomers = unanswered;
                    !unanswered
                }
                () = async { tokio::time::sleep_until(ask_again.unwrap_or(heard)).await },
                    if ask_again.is_some() && self.feed.is_awaited() => true,
                () = async { tokio::time::sleep_until(late.unwrap_or(heard)).await }, if late.is_some() => {
                    let patience = self.patience;
                    self.patience = (patience * 2).min(BEHIND.1);
                    if upstream.is_late() || patience == BEHIND.1 {
                        return Ended::Failed(UpstreamError::Behind(patience));
                    }
                    behind = None;
                    true
                }
                () = self.feed.in_doubt(), if asking.is_none() => false,
                verdict = async { asking.as_mut().expect("the branch is disabled while nothing is asked").await },
                    if asking.is_some() =>
                {
                    asking = None;
                    if let Some(ended) = self.judge(verdict) {
                        return ended;
                    }
                    false
                }
                _ = idle.tick() => {
                    self.feed.enforce();
                    if self.feed.close_if_idle(self.driver.config.idle) {
                        return Ended::Idle;
                    }
                    heard.elapsed() >= PROGRESS_IDLE && upstream.has_cheap_progress()
                }
                message = next(upstream, &mut ahead) => {
                    heard = Instant::now();
                    match message {
                        Ok(message) => match self.take(message, trusts_progress) {
                            Ok(answered) => {
                                unanswered &= !answered;
                                // The others wait for a member that is behind. Asking it without a pause does not make
                                // it faster.
                                answered && std::mem::take(&mut newcomers) && self.feed.is_awaited()
                            }
                            Err(ended) => return ended,
                        },
                        Err(UpstreamError::Replaced) => return Ended::replaced(ResyncReason::HistoryChanged),
                        Err(UpstreamError::Missed) => return Ended::Gone(Reset::Missed, ResyncReason::Missed),
                        Err(error) => return Ended::Failed(error),
                    }
                }
            };
            if ask_progress && trusts_progress {
                if let Err(error) = upstream.request_progress().await {
                    return Ended::Failed(error);
                }
                asked = Some(Instant::now());
                unanswered = true;
            }
        }
    }

    /// Writes a message into the feed. Returns true if it was progress.
    fn take(&mut self, message: WatchMessage, trusts_progress: bool) -> Result<bool, Ended> {
        // Upstream works, so the delays start again from the shortest.
        self.delays = delays(&self.driver.config);
        match message {
            WatchMessage::Events { header, revisions } => {
                if !self.cluster.observe(&header) {
                    return Err(Ended::replaced(ResyncReason::ClusterReplaced));
                }
                let news = self.compare(&revisions)?;
                for batch in batches(news) {
                    self.feed
                        .publish(batch)
                        .map_err(|error| Ended::Failed(UpstreamError::Protocol(error.to_string())))?;
                }
                Ok(false)
            }
            WatchMessage::Progress(header) => {
                if !self.cluster.observe(&header) {
                    return Err(Ended::replaced(ResyncReason::ClusterReplaced));
                }
                self.look_at_term(&header);
                if trusts_progress {
                    self.passed(header.revision.next())?;
                    self.feed.advance(header.revision);
                }
                Ok(true)
            }
            WatchMessage::Compacted { compact_revision } => {
                Err(match self.past.as_ref().is_some_and(|past| past.goes_on_from(compact_revision)) {
                    true => Ended::Forgotten(compact_revision),
                    false => Ended::Gone(Reset::Compacted { compact_revision }, ResyncReason::Compacted),
                })
            }
            WatchMessage::Canceled { reason } => Err(Ended::Canceled(reason)),
        }
    }

    /// Compares what the feed had with what the watch repeats of it, and returns what is new.
    fn compare<'a>(&mut self, revisions: &'a [Changes]) -> Result<&'a [Changes], Ended> {
        let Some(past) = &mut self.past else { return Ok(revisions) };
        let end = past.end();
        let (old, news) = revisions.split_at(revisions.partition_point(|changes| changes.revision <= end));
        past.reported(old).map_err(|differs| self.is_not_the_past(&differs))?;
        if let Some(first) = news.first() {
            self.passed(first.revision)?;
        }
        Ok(news)
    }

    /// The watch has sent everything that it has before `next`.
    fn passed(&mut self, next: Revision) -> Result<(), Ended> {
        let Some(past) = &mut self.past else { return Ok(()) };
        match past.passed(next).map_err(|differs| self.is_not_the_past(&differs))? {
            Progress::Open => {}
            Progress::Proved => self.past = None,
            Progress::Unproved => {
                self.past = None;
                self.feed.suspect();
            }
        }
        Ok(())
    }

    fn look_at_term(&mut self, header: &Header) {
        if self.terms.fell(header) {
            tracing::warn!(range = %self.feed.range(), member_id = header.member_id, raft_term = header.raft_term,
                "An etcd member is in an earlier raft term than before, as after a restore; the feed is audited");
            self.feed.suspect();
        }
    }

    fn is_not_the_past(&self, differs: &Differs) -> Ended {
        tracing::error!(range = %self.feed.range(), revision = differs.revision.get(), key = sample(&differs.key),
            "etcd's past differs from what the feed had, as after a restore under the same cluster id");
        Ended::replaced(ResyncReason::HistoryChanged)
    }

    /// Whether an answer that its cluster agreed on, to a request made now, shows that the cluster is another one or
    /// went back.
    fn is_another(&self, answer: &Header) -> bool {
        answer.cluster_id != self.cluster.id() || answer.revision < self.feed.revision()
    }

    /// Acts on upstream's answer to a doubt. Returns how the watch has to end, if it does.
    fn judge(&mut self, (doubt, verdict): (Doubt, Verdict)) -> Option<Ended> {
        match verdict {
            Verdict::Proved => {
                let why = if doubt == Doubt::Differs { ResyncReason::Audit } else { ResyncReason::RevisionFell };
                return Some(Ended::replaced(why));
            }
            Verdict::Answer(header) if self.is_another(&header) => {
                return Some(Ended::replaced(ResyncReason::RevisionFell));
            }
            Verdict::Answer(_) => {
                tracing::warn!(range = %self.feed.range(), cluster_id = self.cluster.id(),
                    "Another cluster answered, and now the one that the feed follows does again; do all of --etcd name members \
                     of one cluster?");
            }
            Verdict::Permitted => self.feed.permission(None),
            Verdict::Failed(UpstreamError::Denied(why)) if doubt == Doubt::Permission => {
                let error = UpstreamError::Denied(why);
                if self.feed.standing().error().is_none() {
                    tracing::warn!(range = %self.feed.range(), %error,
                        "The feed's watch goes on, but etcd would refuse the next one");
                }
                self.feed.permission(Some(error.to_string()));
            }
            // It is asked again at the next change of permissions, and when the watch breaks.
            Verdict::Failed(error) if doubt == Doubt::Permission => {
                tracing::debug!(range = %self.feed.range(), %error, "Cannot check whether the relay may still read the feed's range");
            }
            Verdict::Failed(error) => return Some(Ended::Failed(error)),
        }
        self.feed.settled(doubt);
        None
    }

    /// Waits if the cluster was already replaced a moment ago.
    async fn wait_replaced(&mut self) {
        match &mut self.replaced {
            Some((at, delays)) if at.elapsed() < REPLACED_PATIENCE => {
                *at = Instant::now();
                let delay = delays.next().unwrap_or(self.driver.config.max_delay);
                tokio::time::sleep(delay).await;
            }
            other => *other = Some((Instant::now(), delays(&self.driver.config))),
        }
    }

    /// Waits before the next attempt. It does not wait for a doubt, since upstream answers then. It stops waiting when
    /// the cluster reaches agreement again, or loses it.
    async fn pause(&mut self, state: FeedState, error: &UpstreamError) {
        let reason = match error {
            UpstreamError::NoLeader => ReconnectReason::NoLeader,
            UpstreamError::Denied(_) => ReconnectReason::Denied,
            UpstreamError::Canceled(_) => ReconnectReason::Canceled,
            UpstreamError::Protocol(_) => ReconnectReason::Protocol,
            UpstreamError::Timeout(_) => ReconnectReason::Timeout,
            UpstreamError::Behind(_) => ReconnectReason::Behind,
            _ => ReconnectReason::Unavailable,
        };
        counter!(names::UPSTREAM_RECONNECTS, ReconnectReason::LABEL => reason.as_str()).increment(1);
        let delay = self.delays.next().unwrap_or(self.driver.config.max_delay);
        // A number in JSON too, which a u128 would not be.
        let retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        if self.outage.failed(reason) {
            tracing::warn!(range = %self.feed.range(), revision = self.feed.revision().get(), %error, retry_in_ms,
                failures = self.outage.failures(), "Feed cannot follow etcd, retrying");
        } else {
            tracing::debug!(range = %self.feed.range(), revision = self.feed.revision().get(), %error, retry_in_ms,
                "Feed cannot follow etcd, retrying");
        }
        // A single refusal may come from a token that etcd forgot at its restart; the next attempt uses a new one.
        let denied = matches!(error, UpstreamError::Denied(_));
        let denied_before = std::mem::replace(&mut self.denied, denied);
        let doubted = self.feed.doubted();
        self.feed.failed(state, error.to_string(), denied && denied_before);
        let doubts = async {
            while self.feed.doubted() <= doubted {
                self.feed.in_doubt().await;
            }
        };
        let mut agreement = self.driver.upstream.agreement();
        let before = *agreement.borrow();
        let agreed = async {
            let changed = |now: &Agreement| (*now > Agreement::Late) != (before > Agreement::Late);
            if agreement.wait_for(changed).await.is_err() {
                // This upstream never reports it.
                std::future::pending().await
            }
        };
        let at = self.at.take();
        let elsewhere = async {
            match &at {
                Some(member) => self.driver.upstream.left(member).await,
                None => std::future::pending().await,
            }
        };
        // All branches are cancel safe. If there was a doubt before, the request about it may be what failed.
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = elsewhere => {}
            () = doubts => {}
            () = agreed => {}
        }
    }
}

/// A key as a log line shows it, cut if it is long.
pub(super) fn sample(key: &[u8]) -> String {
    key[..key.len().min(SAMPLE)].escape_ascii().to_string()
}

/// Asks upstream about a doubt.
async fn ask(upstream: Arc<dyn Upstream>, range: KeyRange, doubt: Doubt) -> (Doubt, Verdict) {
    let verdict = match doubt {
        // The cluster may be ahead again by now.
        Doubt::WentBack | Doubt::Differs => Verdict::Proved,
        Doubt::Cluster => match upstream.confirm(None).await {
            Ok(confirmed) => Verdict::Answer(confirmed.header),
            Err(error) => Verdict::Failed(error),
        },
        Doubt::Permission => match may_read(&*upstream, &range).await {
            // A single refusal may come from an expired token; the next request uses a new one.
            Err(UpstreamError::Denied(_)) => may_read(&*upstream, &range).await,
            answer => answer,
        }
        .map_or_else(Verdict::Failed, |()| Verdict::Permitted),
    };
    (doubt, verdict)
}

/// Whether the relay may read a range. etcd checks permission before the revision, and no store reaches this revision,
/// so nothing is read.
async fn may_read(upstream: &dyn Upstream, range: &KeyRange) -> Result<(), UpstreamError> {
    match upstream.page(range, Some(Revision::new(i64::MAX)), 1).await {
        Ok(_) | Err(UpstreamError::Future | UpstreamError::Compacted) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The next message. If it has events, those that have arrived after them are included, so that a burst is published
/// together. What was read beyond them stays in `ahead`. Cancel safe.
async fn next(
    upstream: &mut dyn UpstreamWatch,
    ahead: &mut Option<Result<WatchMessage, UpstreamError>>,
) -> Result<WatchMessage, UpstreamError> {
    let first = match ahead.take() {
        Some(read) => read,
        None => upstream.next().await,
    };
    let Ok(WatchMessage::Events { mut header, mut revisions }) = first else { return first };
    let mut gathered: usize = revisions.iter().map(bytes).sum();
    while revisions.len() < TOGETHER.0 && gathered < TOGETHER.1 {
        match upstream.next().now_or_never() {
            Some(Ok(WatchMessage::Events { header: newer, revisions: more })) => {
                header = newer;
                gathered += more.iter().map(bytes).sum::<usize>();
                revisions.extend(more);
            }
            other => {
                *ahead = other;
                break;
            }
        }
    }
    Ok(WatchMessage::Events { header, revisions })
}

/// Splits revisions into parts that are published together: etcd sends a thousand in one response to a watch that is
/// behind.
fn batches(mut revisions: &[Changes]) -> impl Iterator<Item = &[Changes]> {
    std::iter::from_fn(move || {
        let mut gathered = 0;
        let fits = |changes: &&Changes| {
            let room = gathered < TOGETHER.1;
            gathered += bytes(changes);
            room
        };
        let together = revisions.iter().take(TOGETHER.0).take_while(fits).count();
        let batch = revisions.split_off(..together)?;
        (!batch.is_empty()).then_some(batch)
    })
}

/// Bytes of keys and values.
fn bytes(changes: &Changes) -> usize {
    changes.events.iter().map(|event| event.kv.key.len() + event.kv.value.len()).sum()
}

fn delays(config: &DriverConfig) -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(config.min_delay)
        .with_max_delay(config.max_delay)
        .with_jitter()
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests;
