//! The hub: one log for each watched range, and many readers at positions in it.
//!
//! Not here: networks, the requests of a protocol, etcd's client. A source writes into feeds; fronts and views read
//! from them. [`Hub`] is the registry: it finds the feed that covers a range, and opens one on demand if that is
//! allowed.
//! Always holds: a configured feed serves every range that it covers; a feed on demand that has ended is never
//! returned.

mod backfill;
mod catch_up;
mod chunks;
mod confirm;
mod delivery;
mod ends;
mod feed;
mod fill;
mod history;
mod index;
mod interval;
mod listing;
mod on_demand;
mod outbox;
mod pace;
mod pages;
mod payload;
mod pins;
pub mod pulse;
mod read;
mod reset;
pub mod room;
mod runs;
mod shares;
mod slack;
mod snapshot;
mod standing;
mod stats;
#[cfg(test)]
pub(crate) mod testing;
mod turns;
pub mod upstream;
mod watch_stream;
mod work;

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::sync::{Notify, Semaphore, watch};

pub use self::{
    confirm::Confirmer,
    delivery::{Cancellation, Delivery, Drained, NO_WATCH_ID, ProgressAnswer, StreamEnd},
    feed::{Feed, FeedKind, FeedStats, Held, Lag, PublishError, Reset, Totals, Twins, WaitError},
    history::HistoryLimits,
    index::WatchOptions,
    listing::Listing,
    outbox::OutboxLimits,
    pace::{Beat, Pace},
    payload::{Payload, TEXTS, Text, Whole},
    read::{RangeQuery, RangeReply, ReadError, SortOrder, SortTarget},
    reset::REPLACED,
    shares::{Counted, Shares},
    snapshot::{KeyMap, Kv, Snapshot},
    standing::{Doubt, FeedState, Mark, Permission, Standing, Trouble, cut_error},
    watch_stream::{Answered, LiveWatch, Subscribe, SubscribeError, WatchStats, WatchStream, WatchStreamStats},
    work::{Asker, NotDone},
};
use self::{
    on_demand::OnDemand,
    pages::Pages,
    turns::Turns,
    upstream::{Agreement, Upstream},
    work::{Bounds, Hands, Workers},
};
use crate::{
    critical::Tasks,
    types::{ClientKey, KeyRange, UpstreamHeader},
};

/// Limits of the hub and of what it serves.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Limits of each feed's history.
    pub history: HistoryLimits,
    /// Limits of each stream's queue.
    pub outbox: OutboxLimits,
    /// Whether feeds are opened on demand, and how many there may be at once.
    pub on_demand: Option<usize>,
    /// The most bytes that feeds on demand may hold together.
    pub on_demand_bytes: usize,
    /// The most fills that run at once; more wait. Each is a watch on etcd.
    pub fills: usize,
    /// The timeout of a request for the current revision.
    pub confirm_patience: Duration,
}

/// What all feeds share.
#[derive(Debug)]
pub(crate) struct FeedContext {
    pub(crate) limits: Limits,
    pub(crate) upstream: Arc<dyn Upstream>,
    pub(crate) tasks: Tasks,
    turns: Arc<Turns>,
    /// Limits the backfills of feeds on demand.
    backfills: Semaphore,
    pub(crate) pages: Arc<Pages>,
    /// Runs the long reads.
    workers: Workers,
    /// Tells the audit that it should check a feed soon.
    suspects: Notify,
    pub(crate) on_demand: OnDemand,
}

/// The history of one feed on demand may take this fraction of `on_demand_bytes`.
const HISTORY_SHARE: usize = 64;

impl FeedContext {
    /// The limits of a feed's history.
    pub(crate) fn history_of(&self, kind: FeedKind) -> HistoryLimits {
        let HistoryLimits { bytes, entries } = self.limits.history;
        match kind {
            FeedKind::Prefix => HistoryLimits { bytes, entries },
            FeedKind::OnDemand => {
                HistoryLimits { bytes: bytes.min(self.limits.on_demand_bytes / HISTORY_SHARE), entries }
            }
        }
    }
}

/// Starts the driver of a new feed. Implemented by `source::driver`.
pub trait FeedRunner: Send + Sync + 'static {
    /// Runs `feed` in its own task until it is closed or the relay stops.
    fn run(&self, feed: Arc<Feed>);
}

/// The registry of feeds; see the module.
pub struct Hub {
    shared: Arc<FeedContext>,
    runner: Box<dyn FeedRunner>,
    feeds: RwLock<Vec<Arc<Feed>>>,
    /// Held while the hub checks whether there is room for one more feed on demand. That check reads all feeds and
    /// waits for the lock of each, so the list itself is not locked meanwhile.
    opening: Mutex<()>,
    header: Arc<UpstreamHeader>,
    confirmer: Arc<Confirmer>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("feeds", &self.feeds.read().len()).finish_non_exhaustive()
    }
}

/// Why no feed serves a range.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NoFeed {
    /// Feeds on demand are off.
    #[error("etcd-relay: the range is outside every --prefix, and --on-demand is deny")]
    Denied,
    /// The largest number of feeds on demand is open.
    #[error("etcd-relay: --on-demand-max feeds are open; configure a --prefix that covers the range, or raise it")]
    Limit,
    /// The client has opened its share of them.
    #[error(
        "etcd-relay: this client's address has its share of --on-demand-max feeds open; configure a --prefix that covers its ranges, \
         or raise it"
    )]
    ClientLimit,
    /// Feeds on demand hold as many bytes as they may.
    #[error(
        "etcd-relay: feeds on demand hold --on-demand-bytes; configure a --prefix that covers the range, or raise it"
    )]
    Bytes,
    /// The client's feeds hold its share of these bytes.
    #[error(
        "etcd-relay: this client's address has its share of --on-demand-bytes in feeds on demand; configure a --prefix that covers its \
         ranges, or raise it"
    )]
    ClientBytes,
    /// Upstream cannot watch such a range.
    #[error(
        "etcd-relay: the upstream speaks etcd v2 only, where the keys of one directory (/a/ to /a0) or one key can be watched"
    )]
    Unsupported,
}

impl Hub {
    /// A hub without feeds over `upstream`.
    #[must_use]
    pub fn new(
        limits: Limits,
        upstream: Arc<dyn Upstream>,
        header: Arc<UpstreamHeader>,
        tasks: &Tasks,
        runner: Box<dyn FeedRunner>,
    ) -> Arc<Self> {
        let confirmer = Confirmer::new(upstream.clone(), header.clone(), limits.confirm_patience, tasks.clone());
        let shared = Arc::new(FeedContext {
            limits,
            upstream,
            turns: Turns::new(limits.fills),
            backfills: Semaphore::new(backfill::ON_DEMAND),
            tasks: tasks.clone(),
            pages: Arc::default(),
            workers: Workers::new(Bounds::default(), Hands::of(tasks)),
            suspects: Notify::new(),
            on_demand: OnDemand::new(limits.on_demand_bytes),
        });
        let (feeds, opening) = (RwLock::default(), Mutex::default());
        Arc::new(Self { shared, runner, feeds, opening, header, confirmer })
    }

    /// Where its data comes from.
    #[must_use]
    pub fn upstream(&self) -> &Arc<dyn Upstream> {
        &self.shared.upstream
    }

    /// Runs a job in steps of about a millisecond, in turns with the long reads of all clients. The job ends with the
    /// first step that has a result, or when this future is dropped. `bytes` is about how much memory it takes while it
    /// waits.
    ///
    /// # Errors
    /// See [`NotDone`].
    pub async fn by_turns<T: Send + 'static>(
        &self,
        asker: Asker,
        bytes: usize,
        step: impl FnMut() -> Option<T> + Send + 'static,
    ) -> Result<T, NotDone> {
        self.shared.workers.run(asker, bytes, step).await
    }

    /// Opens the feed of a configured range.
    pub fn open(&self, range: KeyRange) -> Arc<Feed> {
        self.start(&mut self.feeds.write(), range, FeedKind::Prefix, ClientKey::RELAY)
    }

    /// A feed that covers `range` and is always on: a configured one, or one that is opened now and counts as
    /// configured.
    pub fn always(&self, range: KeyRange) -> Arc<Feed> {
        let mut feeds = self.feeds.write();
        let configured = feeds.iter().find(|feed| feed.kind() == FeedKind::Prefix && feed.range().covers(&range));
        match configured {
            Some(feed) => feed.clone(),
            None => self.start(&mut feeds, range, FeedKind::Prefix, ClientKey::RELAY),
        }
    }

    /// The running feed that covers `range`, if there is one.
    #[must_use]
    pub fn running(&self, range: &KeyRange) -> Option<Arc<Feed>> {
        covering(&self.feeds.read(), range)
    }

    /// The feed that covers `range`. If there is none, one is opened for `client`, provided that feeds on demand are
    /// allowed.
    ///
    /// # Errors
    /// [`NoFeed`], with the reason.
    pub fn feed(&self, range: &KeyRange, client: ClientKey) -> Result<Arc<Feed>, NoFeed> {
        if let Some(feed) = self.running(range) {
            return Ok(feed);
        }
        if !self.shared.upstream.can_follow(range) {
            return Err(NoFeed::Unsupported);
        }
        let most = self.shared.limits.on_demand.ok_or(NoFeed::Denied)?;
        let _opening = self.opening.lock();
        if let Some(feed) = self.running(range) {
            return Ok(feed);
        }
        if let Some(refusal) = self.shared.on_demand.refuses(range, client) {
            return Err(refusal);
        }
        self.shared.on_demand.admit(client, most)?;
        let mut feeds = self.feeds.write();
        feeds.retain(|feed| !feed.is_closed());
        // A copy, so that the range does not keep the buffer of its request in memory.
        Ok(self.start(&mut feeds, range.detached(), FeedKind::OnDemand, client))
    }

    /// All feeds, in the order in which they were opened.
    #[must_use]
    pub fn feeds(&self) -> Vec<Arc<Feed>> {
        self.feeds.read().iter().filter(|feed| feed.state() != FeedState::Closed).cloned().collect()
    }

    /// Permissions may have changed upstream. Every configured feed checks whether the relay itself may still read its
    /// range. A feed on demand finds out when it opens its next watch.
    pub fn doubt_permission(&self) {
        let feeds = self.feeds();
        feeds.iter().filter(|feed| feed.kind() == FeedKind::Prefix).for_each(|feed| feed.doubt(Doubt::Permission));
    }

    /// Whether every configured feed serves.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.feeds.read().iter().all(|feed| feed.kind() == FeedKind::OnDemand || feed.is_serving())
    }

    /// The newest header that upstream sent.
    #[must_use]
    pub fn header(&self) -> &Arc<UpstreamHeader> {
        &self.header
    }

    /// Asks upstream for the current revision.
    #[must_use]
    pub fn confirmer(&self) -> &Arc<Confirmer> {
        &self.confirmer
    }

    /// Whether the cluster can reach agreement. The receiver is notified of changes.
    #[must_use]
    pub fn agreement(&self) -> watch::Receiver<Agreement> {
        self.shared.upstream.agreement()
    }

    /// Waits until the audit should check a feed soon, see [`Feed::suspect`]. Cancel safe.
    pub async fn suspected(&self) {
        self.shared.suspects.notified().await;
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// The totals over all feeds.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals::of(&self.feeds())
    }

    /// Sets the gauges about the content of all feeds. Called before a scrape.
    pub fn refresh_metrics(&self) {
        let feeds: Vec<FeedStats> = self.feeds().iter().map(|feed| feed.stats()).collect();
        FeedStats::set_gauges(&feeds, self.shared.on_demand.held());
    }

    fn start(&self, feeds: &mut Vec<Arc<Feed>>, range: KeyRange, kind: FeedKind, client: ClientKey) -> Arc<Feed> {
        let feed = Feed::new(range, kind, client, self.shared.clone());
        feeds.push(feed.clone());
        self.shared.on_demand.add(&feed);
        self.runner.run(feed.clone());
        feed
    }
}

fn covering(feeds: &[Arc<Feed>], range: &KeyRange) -> Option<Arc<Feed>> {
    let covers = |feed: &&Arc<Feed>| feed.range().covers(range) && feed.state() != FeedState::Closed;
    // A feed that is always on takes precedence over one on demand.
    let always = feeds.iter().filter(|feed| feed.kind() == FeedKind::Prefix).find(covers);
    always.or_else(|| feeds.iter().find(covers)).cloned()
}
