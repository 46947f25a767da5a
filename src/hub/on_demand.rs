//! [`OnDemand`]: what the feeds on demand hold together, whose they are, and which of them go when that is too much.
//!
//! Not here: opening feeds, see [`super::Hub`]; what a feed does about it, see `feed::demand`.
//!
//! Feeds whose ranges overlap share the key-values that they both have: what one holds already, another takes over, when it reads its
//! snapshot and at each change. So the second copy of a range costs pointers, no watch has to move, and no key is kept that nobody asked
//! for. What all hold is counted in the same way: each piece of the key space once, however many feeds have it, and not at all where a
//! configured feed has it anyway.
//!
//! A feed is on the account of the client that opened it, until it ends. One client may take all but an eighth of what there is. Of that
//! last eighth a client gets more only while it has less than is still free, so something is left for one that has nothing. Before anyone is
//! refused, feeds that nobody uses end, the longest unused first.
//! Always holds: the list has every feed that runs; each feed is counted at one moment, but not all feeds at the same one.

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

/// The part of everything, feeds and bytes, that no client may take alone: one in so many.
const RESERVED: usize = 8;
/// About what a key-value takes beside its encoded bytes.
const KEY_OVERHEAD: usize = 160;
/// About what a key-value takes in each further feed that has it.
const POINTER: usize = 24;
/// What a feed takes beside its keys and its history.
const FEED_OVERHEAD: usize = 8 << 10;
/// A feed that was opened or left just now may be about to be used.
const GRACE: Duration = Duration::from_secs(5);
/// Time between two looks at what all hold, where nobody opens a feed: it takes a millisecond or two for a thousand.
const LOOK: Duration = Duration::from_secs(5);
/// How long a range is refused that was too large: its clients would have it read again at once.
const REFUSED: Duration = Duration::from_secs(10);
/// Most of these ranges; the oldest are forgotten.
const MOST_REFUSED: usize = 64;
/// Pages of snapshots that are asked for and taken over at the same time. Each takes some MiB in several forms, and many at once would
/// make etcd too slow to answer any in time.
const PAGES: usize = 4;
/// How many feeds are looked at for what a piece of the key space takes: one may not have read it yet.
const WITNESSES: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct OnDemand {
    bytes: usize,
    feeds: RwLock<Vec<Weak<Feed>>>,
    /// Rises when a feed opens, has read its snapshot, or ends.
    generation: AtomicU64,
    held: AtomicUsize,
    looked: Mutex<Option<Instant>>,
    /// Ranges whose feeds ended before their time, the newest last.
    refused: Mutex<VecDeque<Ended>>,
    /// Held by the feed that takes over a page of its snapshot: two that did so at once would keep the same keys twice.
    sharing: tokio::sync::Mutex<()>,
    /// For pages of snapshots that are asked for.
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

    /// Room to ask for a page of a snapshot, in turns.
    pub(super) async fn room_for_page(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.pages.acquire().await.ok()
    }

    /// A turn to take over a page of a snapshot.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.sharing.lock().await
    }

    /// A feed has ended before its time.
    pub(super) fn ended(&self, feed: &Feed, reason: NoFeed) {
        let mut refused = self.refused.lock();
        if refused.len() >= MOST_REFUSED {
            refused.pop_front();
        }
        refused.push_back(Ended { range: feed.range().clone(), client: feed.client(), reason, at: Instant::now() });
    }

    /// Why a range cannot be had now, if one within it could not just now.
    pub(super) fn refuses(&self, range: &KeyRange, client: ClientKey) -> Option<NoFeed> {
        let mut refused = self.refused.lock();
        while refused.front().is_some_and(|ended| ended.at.elapsed() >= REFUSED) {
            refused.pop_front();
        }
        // What is too much for one client may not be for another.
        let same = |ended: &&Ended| ended.reason != NoFeed::ClientBytes || ended.client == client;
        refused.iter().filter(same).find(|ended| range.covers(&ended.range)).map(|ended| ended.reason)
    }

    /// What all held at the last look.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Says that feeds may share more, or less, than before.
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

    /// All feeds that run.
    pub(super) fn running(&self) -> Vec<Arc<Feed>> {
        self.feeds.read().iter().filter_map(Weak::upgrade).filter(|feed| !feed.is_closed()).collect()
    }

    /// Whether `client` may open one more, of `most`. Ends feeds that nobody uses where that makes room.
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
            // Where a client has its share, it gives up its own first.
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

    /// Whether a feed that reads its snapshot may go on with what it has by now. Ends feeds that nobody uses where that makes room.
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

    /// Ends feeds where they have grown to more than all may hold: those that nobody uses; then, of the client that holds most, the one
    /// that holds most. Looks now and then; called by feeds' drivers.
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
                    "Feeds on demand hold more than --on-demand-bytes; ended the largest of the client that holds most");
                largest.end(NoFeed::Bytes);
            }
            self.changed();
        }
    }
}

fn on_demand(feeds: &[Arc<Feed>]) -> impl Iterator<Item = &Arc<Feed>> {
    feeds.iter().filter(|feed| feed.kind() == FeedKind::OnDemand && !feed.is_closed())
}

/// Ends the feed that has been of no use for the longest time, of those that `may` go. False where there is none.
fn end_idle(feeds: &[Arc<Feed>], may: impl Fn(&Feed) -> bool) -> bool {
    let mut idle: Vec<_> = on_demand(feeds)
        .filter(|feed| may(feed))
        .filter_map(|feed| Some((feed.idle_for().filter(|idle| *idle >= GRACE)?, feed)))
        .collect();
    idle.sort_unstable_by_key(|(idle, _)| std::cmp::Reverse(*idle));
    idle.into_iter().any(|(_, feed)| feed.close_if_idle(GRACE))
}

/// What feeds on demand hold, each piece of the key space counted once.
struct Census {
    total: usize,
    /// What each feed is charged with, in the order of the feeds: what is its own, and the keys that no older feed has.
    charges: Vec<usize>,
}

impl Census {
    fn of(feeds: &[Arc<Feed>]) -> Self {
        let maps: Vec<KeyMap> = feeds.iter().map(|feed| feed.map()).collect();
        let mut charges = vec![0; feeds.len()];
        // Where a feed begins (true) or ends, in key order; `None` is behind all keys.
        let mut cuts: Vec<(Option<Bytes>, bool, usize)> = Vec::with_capacity(2 * feeds.len());
        for (index, feed) in feeds.iter().enumerate() {
            if feed.kind() == FeedKind::OnDemand {
                charges[index] = FEED_OVERHEAD + feed.history_bytes() + maps[index].len() * POINTER;
            }
            cuts.push((Some(feed.range().start().clone()), true, index));
            cuts.push((feed.range().before(), false, index));
        }
        cuts.sort_unstable_by(|(one, _, _), (other, _, _)| match (one, other) {
            (Some(one), Some(other)) => one.cmp(other),
            (one, other) => one.is_none().cmp(&other.is_none()),
        });
        // Those that are always on first, then the oldest.
        let mut here: BTreeSet<(bool, usize)> = BTreeSet::new();
        let mut from: Option<&Bytes> = None;
        for (at, begins, index) in &cuts {
            if let (Some(from), Some((true, oldest))) = (from, here.first())
                && Some(from) != at.as_ref()
            {
                let piece = here.iter().take(WITNESSES).map(|(_, index)| maps[*index].between(from, at.as_deref()));
                charges[*oldest] += piece.map(|(keys, bytes)| bytes + keys * KEY_OVERHEAD).max().unwrap_or(0);
            }
            let entry = (feeds[*index].kind() == FeedKind::OnDemand, *index);
            if *begins {
                here.insert(entry);
            } else {
                here.remove(&entry);
            }
            from = at.as_ref();
        }
        Self { total: charges.iter().sum(), charges }
    }

    /// What the feeds of one client are charged with.
    fn of_client(&self, feeds: &[Arc<Feed>], client: ClientKey) -> usize {
        feeds.iter().zip(&self.charges).filter(|(feed, _)| feed.client() == client).map(|(_, charge)| charge).sum()
    }

    /// Of the client that is charged with most, the feed that is.
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
