//! [`OnDemand`]: what the feeds on demand hold together, which client each counts for, and which of them end when that
//! is too much.
//!
//! Not here: opening feeds, see [`super::Hub`]; what the feed itself does, see `feed::demand`.
//!
//! Feeds with overlapping ranges share the key-values that both have. If one feed holds a key-value already, another
//! takes a pointer to it, when it reads its snapshot and at each change. So the second copy of a range costs pointers,
//! no watch has to move, and the relay keeps no key that no client wanted. Their total size is counted in the same way:
//! each piece of the key space counts once, however many feeds have it. What configured feeds have does not matter,
//! since they pack their key-values and share none.
//!
//! A feed counts for the client that opened it, until it ends. One client may take all but an eighth of what there is.
//! Of that last eighth a client gets more only while it has less than is still free, so something is left for a client
//! that has nothing. Before a client is refused, unused feeds end, the longest unused first.
//! Always holds: the list has every running feed; each feed is counted at one moment, but not all of them at the same
//! one.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::{Feed, FeedKind, KeyMap, NoFeed};
use crate::types::{ClientKey, KeyRange};

/// A single client may not take this part of all feeds and bytes: one in eight.
const RESERVED: usize = 8;
/// About the memory of a key-value in addition to its encoded bytes.
const KEY_OVERHEAD: usize = 160;
/// About the memory of a key-value in each further feed that has it.
const POINTER: usize = 24;
/// The memory of a feed in addition to its keys and its history.
const FEED_OVERHEAD: usize = 8 << 10;
/// A feed that was opened or left less than this ago may be about to be used.
const GRACE: Duration = Duration::from_secs(5);
/// Time between two checks of the total while no client opens a feed. A check takes a millisecond or two for a thousand
/// feeds.
const LOOK: Duration = Duration::from_secs(5);
/// For how long a range that was too large is refused. Otherwise its clients would have it read again at once.
const REFUSED: Duration = Duration::from_secs(10);
/// The most such ranges that are remembered; the oldest are forgotten.
const MOST_REFUSED: usize = 64;
/// How many pages of snapshots are read and taken over at the same time. Each takes some MiB in several forms, and many
/// at once would make etcd too slow to answer any of them in time.
const PAGES: usize = 4;
/// How many feeds are checked for the size of a piece of the key space, since one may not have read it yet.
const WITNESSES: usize = 4;

/// The accounts of feeds on demand; see the module.
#[derive(Debug)]
pub(crate) struct OnDemand {
    bytes: usize,
    feeds: RwLock<Vec<Weak<Feed>>>,
    /// Rises when a feed opens, has read its snapshot, or ends.
    generation: AtomicU64,
    held: AtomicUsize,
    looked: Mutex<Option<Instant>>,
    /// Ranges whose feeds were ended early, the newest last.
    refused: Mutex<VecDeque<Ended>>,
    /// Held by the feed that takes over a page of its snapshot. Two feeds that did so at once would keep the same keys
    /// twice.
    sharing: tokio::sync::Mutex<()>,
    /// Limits the pages of snapshots that are read at the same time.
    pages: Semaphore,
}

#[derive(Debug)]
struct Ended {
    range: KeyRange,
    client: ClientKey,
    reason: NoFeed,
    at: Instant,
}

impl OnDemand {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            feeds: RwLock::default(),
            generation: AtomicU64::new(1),
            held: AtomicUsize::new(0),
            looked: Mutex::default(),
            refused: Mutex::default(),
            sharing: tokio::sync::Mutex::default(),
            pages: Semaphore::new(PAGES),
        }
    }

    /// A permit to read a page of a snapshot. Feeds take turns.
    pub(super) async fn room_for_page(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.pages.acquire().await.ok()
    }

    /// A turn to take over a page of a snapshot.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.sharing.lock().await
    }

    /// Notes that a feed was ended early.
    pub(super) fn ended(&self, feed: &Feed, reason: NoFeed) {
        let mut refused = self.refused.lock();
        if refused.len() >= MOST_REFUSED {
            refused.pop_front();
        }
        refused.push_back(Ended { range: feed.range().clone(), client: feed.client(), reason, at: Instant::now() });
    }

    /// Why a range cannot be served now, if that was so for a range within it a moment ago.
    pub(super) fn refuses(&self, range: &KeyRange, client: ClientKey) -> Option<NoFeed> {
        let mut refused = self.refused.lock();
        while refused.front().is_some_and(|ended| ended.at.elapsed() >= REFUSED) {
            refused.pop_front();
        }
        // What is too much for one client may not be too much for another.
        let same = |ended: &&Ended| ended.reason != NoFeed::ClientBytes || ended.client == client;
        refused.iter().filter(same).find(|ended| range.covers(&ended.range)).map(|ended| ended.reason)
    }

    /// The total at the last check.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Notes that feeds may share more, or less, than before.
    pub(super) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add(&self, feed: &Arc<Feed>) {
        let mut feeds = self.feeds.write();
        feeds.retain(|known| known.strong_count() > 0);
        feeds.push(Arc::downgrade(feed));
        drop(feeds);
        self.changed();
    }

    /// All running feeds.
    pub(super) fn running(&self) -> Vec<Arc<Feed>> {
        self.feeds.read().iter().filter_map(Weak::upgrade).filter(|feed| !feed.is_closed()).collect()
    }

    /// Whether `client` may open one more feed, of at most `most`. Ends unused feeds if that makes room.
    pub(super) fn admit(&self, client: ClientKey, most: usize) -> Result<(), NoFeed> {
        loop {
            let feeds = self.running();
            let all: Vec<_> = on_demand(&feeds).collect();
            let own = all.iter().filter(|feed| feed.client() == client).count();
            let free = most.saturating_sub(all.len());
            let refusal = if free == 0 {
                NoFeed::Limit
            } else if client != ClientKey::RELAY && free <= most / RESERVED && own >= free {
                NoFeed::ClientLimit
            } else {
                match self.room(&feeds, client, FEED_OVERHEAD) {
                    Ok(()) => return Ok(()),
                    Err(refusal) => refusal,
                }
            };
            // A client that has used up its share gives up its own feeds first.
            let its_own = matches!(refusal, NoFeed::ClientLimit | NoFeed::ClientBytes);
            let ended = its_own && end_idle(&feeds, |feed| feed.client() == client);
            if !ended && !end_idle(&feeds, |_| true) {
                return Err(refusal);
            }
            self.changed();
        }
    }

    /// Whether there is room for what `client` holds and `more` bytes.
    fn room(&self, feeds: &[Arc<Feed>], client: ClientKey, more: usize) -> Result<(), NoFeed> {
        let census = Census::of(feeds);
        self.held.store(census.total, Ordering::Relaxed);
        let free = self.bytes.saturating_sub(census.total);
        if free < more {
            Err(NoFeed::Bytes)
        } else if client != ClientKey::RELAY && free <= self.bytes / RESERVED && census.of_client(feeds, client) > free
        {
            Err(NoFeed::ClientBytes)
        } else {
            Ok(())
        }
    }

    /// Whether a feed that reads its snapshot may go on, with what it has by now. Ends unused feeds if that makes room.
    pub(super) fn loads(&self, client: ClientKey) -> Result<(), NoFeed> {
        loop {
            let feeds = self.running();
            let Err(refusal) = self.room(&feeds, client, 1) else { return Ok(()) };
            if !end_idle(&feeds, |_| true) {
                return Err(refusal);
            }
            self.changed();
        }
    }

    /// Ends feeds if they have grown to more than they may hold together: first those that are unused, then the largest
    /// feed of the client that holds most. Checks only now and then; called by the drivers of feeds.
    pub(super) fn enforce(&self) {
        {
            let mut looked = self.looked.lock();
            if looked.is_some_and(|at| at.elapsed() < LOOK) {
                return;
            }
            *looked = Some(Instant::now());
        }
        loop {
            let feeds = self.running();
            let census = Census::of(&feeds);
            self.held.store(census.total, Ordering::Relaxed);
            if census.total <= self.bytes {
                return;
            }
            if !end_idle(&feeds, |_| true) {
                let Some(largest) = census.largest(&feeds) else { return };
                tracing::warn!(range = %largest.range(), held = census.total, bound = self.bytes,
                    "Feeds on demand hold more than --on-demand-bytes, so the largest feed of the client that holds most was ended");
                largest.end(NoFeed::Bytes);
            }
            self.changed();
        }
    }
}

fn on_demand(feeds: &[Arc<Feed>]) -> impl Iterator<Item = &Arc<Feed>> {
    feeds.iter().filter(|feed| feed.kind() == FeedKind::OnDemand && !feed.is_closed())
}

/// Ends the feed that has been unused for the longest time, among those that `may` end. Returns false if there is none.
fn end_idle(feeds: &[Arc<Feed>], may: impl Fn(&Feed) -> bool) -> bool {
    let mut idle: Vec<_> = on_demand(feeds)
        .filter(|feed| may(feed))
        .filter_map(|feed| Some((feed.idle_for().filter(|idle| *idle >= GRACE)?, feed)))
        .collect();
    idle.sort_unstable_by_key(|(idle, _)| std::cmp::Reverse(*idle));
    idle.into_iter().any(|(_, feed)| feed.close_if_idle(GRACE))
}

/// What feeds on demand hold, with each piece of the key space counted once.
struct Census {
    total: usize,
    /// What each feed is charged for, in the order of the feeds: its own memory, and the keys that no older feed has.
    charges: Vec<usize>,
}

impl Census {
    fn of(feeds: &[Arc<Feed>]) -> Self {
        let maps: Vec<KeyMap> = feeds.iter().map(|feed| feed.map()).collect();
        let mut charges = vec![0; feeds.len()];
        // Where a feed begins (true) or ends, in key order; `None` comes after all keys.
        let mut cuts: Vec<(Option<Bytes>, bool, usize)> = Vec::with_capacity(2 * feeds.len());
        for (index, feed) in feeds.iter().enumerate().filter(|(_, feed)| feed.kind() == FeedKind::OnDemand) {
            charges[index] = FEED_OVERHEAD + feed.history_bytes() + maps[index].len() * POINTER;
            cuts.push((Some(feed.range().start().clone()), true, index));
            cuts.push((feed.range().before(), false, index));
        }
        cuts.sort_unstable_by(|(one, _, _), (other, _, _)| match (one, other) {
            (Some(one), Some(other)) => one.cmp(other),
            (one, other) => one.is_none().cmp(&other.is_none()),
        });
        // The oldest comes first.
        let mut here: BTreeSet<usize> = BTreeSet::new();
        let mut from: Option<&Bytes> = None;
        for (at, begins, index) in &cuts {
            if let (Some(from), Some(oldest)) = (from, here.first())
                && Some(from) != at.as_ref()
            {
                let piece = here.iter().take(WITNESSES).map(|index| maps[*index].between(from, at.as_deref()));
                charges[*oldest] += piece.map(|(keys, bytes)| bytes + keys * KEY_OVERHEAD).max().unwrap_or(0);
            }
            if *begins {
                here.insert(*index);
            } else {
                here.remove(index);
            }
            from = at.as_ref();
        }
        Self { total: charges.iter().sum(), charges }
    }

    /// What the feeds of one client are charged for.
    fn of_client(&self, feeds: &[Arc<Feed>], client: ClientKey) -> usize {
        feeds.iter().zip(&self.charges).filter(|(feed, _)| feed.client() == client).map(|(_, charge)| charge).sum()
    }

    /// The feed that is charged for most, of the client that is charged for most.
    fn largest<'a>(&self, feeds: &'a [Arc<Feed>]) -> Option<&'a Arc<Feed>> {
        let mut clients: HashMap<ClientKey, usize> = HashMap::new();
        for (feed, charge) in feeds.iter().zip(&self.charges) {
            *clients.entry(feed.client()).or_default() += charge;
        }
        let running =
            feeds.iter().zip(&self.charges).filter(|(feed, _)| feed.kind() == FeedKind::OnDemand && !feed.is_closed());
        running.max_by_key(|(feed, charge)| (clients[&feed.client()], feed.client(), **charge)).map(|(feed, _)| feed)
    }
}

#[cfg(test)]
mod tests;
