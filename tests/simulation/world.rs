//! [`World`]: a simulated upstream in memory that remembers everything it did. It is the relay's upstream and the
//! reference for the checks.
//!
//! The checks are in `check`. It behaves as etcd may: it answers in pages and batches of any size, is away, behind,
//! silent or slow, breaks and cancels watches, compacts, and is replaced by another cluster. Always holds: the
//! revisions of each cluster have their own range, so a revision shows which cluster made it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_relay::{
    hub::{
        WatchOptions,
        upstream::{Changes, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchMessage, WatchRequest},
    },
    pb::mvccpb,
    types::{EventFields, EventKind, Header, KeyRange, KeyValueFields, Revision},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::watch;

/// Most revisions of one cluster.
const BAND: i64 = 100_000;
/// The reason for a watch that the world cancels.
pub(crate) const CANCELED: &str = "the world canceled it";

/// A simulated upstream; see the module.
#[derive(Debug)]
pub(crate) struct World {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    rng: StdRng,
    clusters: Vec<Cluster>,
    /// Whether its progress can be trusted. If not, it is false.
    trusted: bool,
    /// Calls are not answered, and open watches break.
    down: bool,
    /// Calls sometimes fail, progress is missing, members are behind.
    rough: bool,
    watches: u64,
    broken: HashSet<u64>,
    canceled: HashSet<u64>,
    stalled: HashSet<u64>,
    open: BTreeSet<u64>,
}

/// One cluster, from its first to its last revision.
#[derive(Debug)]
struct Cluster {
    id: u64,
    base: i64,
    compact_revision: i64,
    compactions: BTreeSet<i64>,
    /// The events of revision `base + 1 + index`.
    events: Vec<Vec<Happened>>,
    /// The state after revision `base + index`.
    states: Vec<BTreeMap<Bytes, KeyValueFields>>,
}

#[derive(Clone, Debug)]
struct Happened {
    event: EventFields,
    prev: Option<KeyValueFields>,
}

impl Cluster {
    fn new(id: u64, base: i64) -> Self {
        let states = vec![BTreeMap::new()];
        Self { id, base, compact_revision: base, compactions: BTreeSet::new(), events: Vec::new(), states }
    }

    fn revision(&self) -> i64 {
        self.base + self.events.len() as i64
    }

    fn header(&self) -> Header {
        self.header_at(self.revision())
    }

    fn header_at(&self, revision: i64) -> Header {
        Header { cluster_id: self.id, member_id: 7, revision: Revision::new(revision), raft_term: 3 }
    }

    fn at(&self, revision: i64) -> &[Happened] {
        let index = revision - self.base - 1;
        usize::try_from(index).ok().and_then(|index| self.events.get(index)).map_or(&[], Vec::as_slice)
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let inner = Inner {
            clusters: vec![Cluster::new(1, 50 * BAND)],
            trusted: rng.random_bool(0.8),
            rng,
            down: false,
            rough: true,
            watches: 0,
            broken: HashSet::new(),
            canceled: HashSet::new(),
            stalled: HashSet::new(),
            open: BTreeSet::new(),
        };
        Arc::new(Self { inner: Mutex::new(inner), changed: watch::Sender::new(0) })
    }

    /// Executes a transaction: each key is put, or deleted if it exists and its flag is set. Does nothing if nothing
    /// changes.
    pub(crate) fn write(&self, changes: &BTreeMap<Bytes, bool>) {
        self.change(|inner| {
            let cluster = inner.cluster_mut();
            let mut state = cluster.states.last().cloned().unwrap_or_default();
            let revision = Revision::new(cluster.revision() + 1);
            let mut events = Vec::new();
            for (key, delete) in changes {
                let prev = state.get(key).cloned();
                let kv = KeyValueFields { key: key.clone(), mod_revision: revision, ..KeyValueFields::default() };
                let event = match (&prev, delete) {
                    (None, true) => continue,
                    (Some(_), true) => {
                        state.remove(key);
                        EventFields { kind: EventKind::Delete, kv }
                    }
                    (_, false) => {
                        let kv = KeyValueFields {
                            value: format!("{revision}").into(),
                            create_revision: prev.as_ref().map_or(revision, |prev| prev.create_revision),
                            version: prev.as_ref().map_or(0, |prev| prev.version) + 1,
                            ..kv
                        };
                        state.insert(key.clone(), kv.clone());
                        EventFields { kind: EventKind::Put, kv }
                    }
                };
                events.push(Happened { event, prev });
            }
            if !events.is_empty() {
                cluster.events.push(events);
                cluster.states.push(state);
            }
        });
    }

    /// Compacts at `share` of the way from the last compaction to now.
    pub(crate) fn compact(&self, share: f64) {
        self.change(|inner| {
            let cluster = inner.cluster_mut();
            let from = cluster.compact_revision;
            let to = from + ((cluster.revision() - from) as f64 * share) as i64;
            if to > from {
                cluster.compact_revision = to;
                cluster.compactions.insert(to);
            }
        });
    }

    /// Replaces the cluster by another one, or restores it to an older revision.
    pub(crate) fn replace(&self) {
        self.change(|inner| {
            let newer = inner.rng.random_bool(0.5);
            let (id, base) =
                inner.clusters.iter().fold((0, if newer { 0 } else { i64::MAX }), |(id, base), cluster| {
                    (id.max(cluster.id), if newer { base.max(cluster.base) } else { base.min(cluster.base) })
                });
            let restored = !newer && inner.rng.random_bool(0.5);
            let id = if restored { inner.cluster().id } else { id + 1 };
            inner.clusters.push(Cluster::new(id, if newer { base + BAND } else { base - BAND }));
            inner.break_all();
        });
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.change(|inner| {
            inner.down = down;
            if down {
                inner.break_all();
            }
        });
    }

    /// Causes a fault of one of the open watches.
    pub(crate) fn harm(&self, how: Harm) {
        self.change(|inner| {
            let index = inner.rng.random_range(0..inner.open.len().max(1));
            let Some(id) = inner.open.iter().nth(index).copied() else { return };
            match how {
                Harm::Break => inner.broken.insert(id),
                Harm::Cancel => inner.canceled.insert(id),
                Harm::Stall => inner.stalled.insert(id),
            };
        });
    }

    pub(crate) fn unstall(&self) {
        self.change(|inner| inner.stalled.clear());
    }

    /// Ends all faults.
    pub(crate) fn settle(&self) {
        self.change(|inner| {
            inner.rough = false;
            inner.down = false;
            inner.stalled.clear();
        });
    }

    pub(crate) fn is_down(&self) -> bool {
        self.inner.lock().down
    }

    pub(crate) fn trusted(&self) -> bool {
        self.inner.lock().trusted
    }

    pub(crate) fn revision(&self) -> i64 {
        self.inner.lock().cluster().revision()
    }

    pub(crate) fn compact_revision(&self) -> i64 {
        self.inner.lock().cluster().compact_revision
    }

    /// The index of the current cluster, in order of appearance.
    pub(crate) fn epoch(&self) -> usize {
        self.inner.lock().clusters.len() - 1
    }

    /// Which cluster made a revision.
    pub(crate) fn epoch_of(&self, revision: i64) -> Option<usize> {
        self.inner.lock().clusters.iter().position(|cluster| (cluster.base..cluster.base + BAND).contains(&revision))
    }

    /// The id of the cluster that made a revision.
    pub(crate) fn cluster_of(&self, revision: i64) -> Option<u64> {
        self.epoch_of(revision).map(|epoch| self.inner.lock().clusters[epoch].id)
    }

    /// Whether a cluster was ever compacted at exactly this revision.
    pub(crate) fn was_compacted_at(&self, epoch: usize, revision: i64) -> bool {
        self.inner.lock().clusters[epoch].compactions.contains(&revision)
    }

    /// The first revision in `from..=to` with an event for a watch.
    pub(crate) fn first_wanted(
        &self,
        epoch: usize,
        from: i64,
        to: i64,
        range: &KeyRange,
        options: WatchOptions,
    ) -> Option<i64> {
        let inner = self.inner.lock();
        let cluster = &inner.clusters[epoch];
        let wants = |happened: &Happened| options.wants(happened.event.kind) && range.contains(&happened.event.kv.key);
        (from.max(cluster.base)..=to.min(cluster.revision())).find(|revision| cluster.at(*revision).iter().any(wants))
    }

    /// What a watch must get of a revision, and whether the previous state is compacted, so that `prev_kv` may be
    /// missing.
    pub(crate) fn wanted(&self, revision: i64, range: &KeyRange, options: WatchOptions) -> (Vec<mvccpb::Event>, bool) {
        let inner = self.inner.lock();
        let Some(cluster) =
            inner.clusters.iter().find(|cluster| (cluster.base..cluster.base + BAND).contains(&revision))
        else {
            return (Vec::new(), false);
        };
        let events = cluster
            .at(revision)
            .iter()
            .filter(|happened| options.wants(happened.event.kind) && range.contains(&happened.event.kv.key))
            .map(|happened| mvccpb::Event {
                r#type: i32::from(happened.event.kind == EventKind::Delete),
                kv: Some(message(&happened.event.kv)),
                prev_kv: happened.prev.as_ref().filter(|_| options.prev_kv).map(message),
            })
            .collect();
        (events, revision - 1 < cluster.compact_revision)
    }

    /// The state of a range at a revision.
    pub(crate) fn state(&self, revision: i64, range: &KeyRange) -> Option<Vec<KeyValueFields>> {
        let inner = self.inner.lock();
        let cluster = inner.clusters.iter().find(|cluster| (cluster.base..cluster.base + BAND).contains(&revision))?;
        let state = cluster.states.get((revision - cluster.base) as usize)?;
        Some(state.values().filter(|kv| range.contains(&kv.key)).cloned().collect())
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Sometimes lets others run first, sometimes fails.
    async fn trouble(&self) -> Result<(), UpstreamError> {
        let (yields, fails) = {
            let mut inner = self.inner.lock();
            let fails = inner.down || inner.rough && inner.rng.random_bool(0.05);
            (inner.rng.random_range(0..4), fails)
        };
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        if fails { Err(UpstreamError::Unavailable("trouble".into())) } else { Ok(()) }
    }
}

/// A fault of a watch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Harm {
    Break,
    Cancel,
    Stall,
}

impl Inner {
    fn cluster(&self) -> &Cluster {
        self.clusters.last().expect("there is always a cluster")
    }

    fn cluster_mut(&mut self) -> &mut Cluster {
        self.clusters.last_mut().expect("there is always a cluster")
    }

    fn break_all(&mut self) {
        let open = std::mem::take(&mut self.open);
        self.broken.extend(open);
    }
}

/// The world as the relay sees it.
#[derive(Debug)]
pub(crate) struct WorldUpstream(pub(crate) Arc<World>);

#[async_trait]
impl Upstream for WorldUpstream {
    async fn page(&self, range: &KeyRange, revision: Option<Revision>, limit: usize) -> Result<Page, UpstreamError> {
        self.0.trouble().await?;
        let mut inner = self.0.inner.lock();
        let limit = limit.min(inner.rng.random_range(1..6));
        let cluster = inner.cluster();
        let at = revision.map_or(cluster.revision(), Revision::get);
        if at < cluster.compact_revision {
            return Err(UpstreamError::Compacted);
        }
        let Some(state) = cluster.states.get((at - cluster.base) as usize) else {
            return Err(UpstreamError::Unavailable("future".into()));
        };
        let mut found = state.values().filter(|kv| range.contains(&kv.key)).cloned();
        let kvs: Vec<_> = found.by_ref().take(limit).collect();
        Ok(Page {
            header: cluster.header(),
            count: Some(kvs.len() + found.clone().count()),
            kvs,
            more: found.next().is_some(),
        })
    }

    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        self.0.trouble().await?;
        let changed = self.0.changed.subscribe();
        let mut inner = self.0.inner.lock();
        inner.watches += 1;
        let id = inner.watches;
        inner.open.insert(id);
        // A member that is behind.
        let behind = if inner.rough && inner.rng.random_bool(0.1) { inner.rng.random_range(1..4) } else { 0 };
        let revision = (inner.cluster().revision() - behind).max(inner.cluster().base);
        let created = inner.cluster().header_at(revision);
        let trusted = inner.trusted;
        let next = request.start_revision.get();
        Ok(Box::new(WorldWatch {
            world: self.0.clone(),
            changed,
            id,
            created,
            behind,
            trusted,
            range: request.range,
            prev_kv: request.prev_kv,
            next,
            asked: false,
        }))
    }

    async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        self.0.trouble().await?;
        let inner = self.0.inner.lock();
        let cluster = inner.cluster();
        let compacted = oldest.is_some_and(|oldest| oldest.get() < cluster.compact_revision);
        Ok(Confirmed { header: cluster.header(), compacted })
    }
}

struct WorldWatch {
    world: Arc<World>,
    changed: watch::Receiver<u64>,
    id: u64,
    created: Header,
    behind: i64,
    trusted: bool,
    range: KeyRange,
    prev_kv: bool,
    next: i64,
    asked: bool,
}

impl WorldWatch {
    fn look(&mut self) -> Option<Result<WatchMessage, UpstreamError>> {
        let mut inner = self.world.inner.lock();
        if inner.broken.contains(&self.id) || inner.down {
            return Some(Err(UpstreamError::Unavailable("broken".into())));
        }
        if inner.canceled.contains(&self.id) {
            return Some(Ok(WatchMessage::Canceled { reason: CANCELED.into() }));
        }
        if inner.stalled.contains(&self.id) {
            return None;
        }
        if !inner.rough || inner.rng.random_bool(0.2) {
            self.behind = 0;
        }
        let most = inner.rng.random_range(1..5);
        let silent = inner.rough && inner.rng.random_bool(0.2);
        let cluster = inner.cluster();
        let revision = cluster.revision() - self.behind;
        if self.asked && !self.trusted {
            // Ahead of the events, like an old bug in etcd.
            self.asked = false;
            return Some(Ok(WatchMessage::Progress(cluster.header())));
        }
        if self.next < cluster.compact_revision {
            let compact_revision = Revision::new(cluster.compact_revision);
            return Some(Ok(WatchMessage::Compacted { compact_revision }));
        }
        let mut revisions = Vec::new();
        while self.next <= revision && revisions.len() < most {
            let compacted = self.next - 1 < cluster.compact_revision;
            let mut changes = Changes {
                revision: Revision::new(self.next),
                events: Vec::new(),
                prev: Vec::new(),
                received: Instant::now(),
            };
            for happened in cluster.at(self.next).iter().filter(|it| self.range.contains(&it.event.kv.key)) {
                changes.events.push(happened.event.clone());
                if self.prev_kv {
                    changes.prev.push(happened.prev.clone().filter(|_| !compacted));
                }
            }
            self.next += 1;
            if !changes.events.is_empty() {
                revisions.push(changes);
            }
        }
        if !revisions.is_empty() {
            return Some(Ok(WatchMessage::Events { header: cluster.header(), revisions }));
        }
        if self.asked && self.next == revision + 1 {
            self.asked = false;
            if !silent {
                return Some(Ok(WatchMessage::Progress(cluster.header_at(revision))));
            }
        }
        None
    }
}

#[async_trait]
impl UpstreamWatch for WorldWatch {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        loop {
            self.changed.mark_unchanged();
            // Nothing is awaited after this has taken something.
            if let Some(message) = self.look() {
                return message;
            }
            self.changed.changed().await.map_err(|_| UpstreamError::Unavailable("the world has ended".into()))?;
        }
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        self.asked = true;
        Ok(())
    }

    fn trusts_progress(&self) -> bool {
        self.trusted
    }

    fn created(&self) -> Header {
        self.created
    }
}

impl Drop for WorldWatch {
    fn drop(&mut self) {
        self.world.inner.lock().open.remove(&self.id);
    }
}

fn message(kv: &KeyValueFields) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key.clone(),
        value: kv.value.clone(),
        create_revision: kv.create_revision.get(),
        mod_revision: kv.mod_revision.get(),
        version: kv.version,
        lease: kv.lease,
    }
}
