//! [`Cluster`]: a simulated etcd cluster in memory that remembers everything it did. It is the relay's upstream and the
//! reference for the checks.
//!
//! The relay's own questions use `upstream`, forwarded calls use `service`; the checks are in `watcher` and `reads`. It
//! behaves as etcd may: it answers late, in pages and batches of any size; it is down, frozen, without a leader or
//! behind; it breaks and cancels watches, compacts, is replaced or restored, and changes permissions. Always holds: the
//! revisions of each cluster have their own range, so a revision shows which cluster made it.

mod service;
mod upstream;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use etcd_relay::{
    hub::upstream::Agreement,
    pb::mvccpb,
    types::{EventFields, EventKind, Header, KeyRange, KeyValueFields, Revision},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

pub(crate) use self::upstream::OwnUpstream;

/// Most revisions of one cluster.
const BAND: i64 = 100_000;
/// The reason for a watch that the cluster cancels.
const CANCELED: &str = "the cluster canceled it";
/// How long former permissions are remembered.
const RIGHTS_KEPT: Duration = Duration::from_secs(600);

/// A state of the data: the index of the cluster, in order of appearance, and its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) epoch: usize,
    pub(crate) revision: i64,
}

/// A simulated cluster; see the module.
#[derive(Debug)]
pub(crate) struct Cluster {
    inner: Mutex<Inner>,
    /// Notified of each change. Not a watch channel, because that wakes its receivers in an order that a seed does not
    /// repeat.
    changed: Notify,
    /// Its requests and answers.
    log: Mutex<Vec<String>>,
    /// What its members would report about its agreement.
    agreement: watch::Sender<Agreement>,
}

#[derive(Debug)]
struct Inner {
    rng: StdRng,
    epochs: Vec<Epoch>,
    faults: Faults,
    /// Counts faults, so that a check can find out whether there was one meanwhile.
    troubles: u64,
    last_trouble: Option<Instant>,
    /// Whether its progress can be trusted. If not, it is false.
    trusted: bool,
    watches: u64,
    open: BTreeSet<u64>,
    broken: BTreeSet<u64>,
    canceled: BTreeSet<u64>,
    stalled: BTreeSet<u64>,
    /// The periods in which the relay could not reach it, and the start of the current one.
    away: Vec<(Instant, Instant)>,
    away_since: Option<Instant>,
    /// The permissions with their start times, and the number of earlier ones that were dropped.
    rights: Vec<(Instant, Rights)>,
    forgotten: usize,
}

/// The current faults of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Calls are not answered, and open watches break.
    pub(crate) down: bool,
    /// No member knows a leader: calls that need one fail, watches stay open but silent.
    pub(crate) leaderless: bool,
    /// Nothing moves: calls wait, watches are silent.
    pub(crate) frozen: bool,
    /// The relay's questions for its clients are not answered; feeds continue.
    pub(crate) deaf: bool,
    /// The longest delay of watches and of calls.
    pub(crate) lag: Duration,
    pub(crate) latency: Duration,
    /// Sometimes a call fails, a member is behind, or progress is missing.
    pub(crate) rough: bool,
}

impl Faults {
    /// A healthy cluster.
    pub(crate) const NONE: Self = Self {
        down: false,
        leaderless: false,
        frozen: false,
        deaf: false,
        lag: Duration::from_millis(2),
        latency: Duration::from_millis(2),
        rough: false,
    };
}

/// Permissions. While `on` is false, everyone may read everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rights {
    pub(crate) on: bool,
    /// For each token. Deleted users have none.
    pub(crate) granted: BTreeMap<&'static str, Vec<KeyRange>>,
}

impl Rights {
    /// Whether the holder of `token` may read all of `range`.
    pub(crate) fn permit(&self, token: Option<&str>, range: &KeyRange) -> bool {
        let granted = || token.and_then(|token| self.granted.get(token));
        !self.on || granted().is_some_and(|ranges| ranges.iter().any(|granted| granted.covers(range)))
    }
}

/// One cluster, from its first to its last revision.
#[derive(Debug)]
struct Epoch {
    id: u64,
    base: i64,
    /// There is nothing before its first revision: no keys and no compaction, as if its revisions had begun with one.
    open: bool,
    compact_revision: i64,
    /// Each compaction: its revision, and the newest revision at that time.
    compactions: Vec<(i64, i64)>,
    /// The changes of revision `base + 1 + index`.
    changes: Vec<Changed>,
    /// The state after revision `base + index`.
    states: Vec<BTreeMap<Bytes, KeyValueFields>>,
}

#[derive(Clone, Debug)]
struct Changed {
    when: Instant,
    events: Vec<Happened>,
}

#[derive(Clone, Debug)]
struct Happened {
    event: EventFields,
    prev: Option<KeyValueFields>,
}

impl Epoch {
    fn new(id: u64, base: i64) -> Self {
        let states = vec![BTreeMap::new()];
        Self { id, base, open: false, compact_revision: base, compactions: Vec::new(), changes: Vec::new(), states }
    }

    fn revision(&self) -> i64 {
        self.base + self.changes.len() as i64
    }

    fn header_at(&self, revision: i64) -> Header {
        Header { cluster_id: self.id, member_id: self.id + 7, revision: Revision::new(revision), raft_term: 3 }
    }

    fn header(&self) -> Header {
        self.header_at(self.revision())
    }

    fn at(&self, revision: i64) -> Option<&Changed> {
        usize::try_from(revision - self.base - 1).ok().and_then(|index| self.changes.get(index))
    }

    fn state(&self, revision: i64) -> Option<&BTreeMap<Bytes, KeyValueFields>> {
        let revision = if self.open { revision.max(self.base) } else { revision };
        usize::try_from(revision - self.base).ok().and_then(|index| self.states.get(index))
    }

    /// The newest revision that is at least this old.
    fn visible(&self, before: Instant) -> i64 {
        self.base + self.changes.partition_point(|changed| changed.when <= before) as i64
    }

    /// The revision up to which it had nothing even before any compaction.
    fn forgot(&self) -> i64 {
        if self.open { 0 } else { self.base }
    }

    fn has(&self, revision: i64) -> bool {
        (self.base..self.base + BAND).contains(&revision)
    }
}

/// A fault of an open watch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Harm {
    Break,
    Cancel,
    Stall,
}

/// The changes of a transaction: each key with its new value, or `None` for a delete.
pub(crate) type Changes = BTreeMap<Bytes, Option<Bytes>>;

impl Cluster {
    /// A cluster with more delay than this is not healthy.
    const SLOW: Duration = Duration::from_millis(100);
    /// How long feeds may take to recover: the longest delay between two attempts, and the attempt.
    const RECOVERY: Duration = Duration::from_secs(4);

    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let inner = Inner {
            epochs: vec![Epoch::new(11, 50 * BAND)],
            faults: Faults::NONE,
            troubles: 0,
            last_trouble: None,
            trusted: rng.random_bool(0.9),
            rng,
            watches: 0,
            open: BTreeSet::new(),
            broken: BTreeSet::new(),
            canceled: BTreeSet::new(),
            stalled: BTreeSet::new(),
            away: Vec::new(),
            away_since: None,
            rights: vec![(Instant::now(), Rights::default())],
            forgotten: 0,
        };
        let (changed, log, agreement) = (Notify::new(), Mutex::default(), watch::Sender::default());
        Arc::new(Self { inner: Mutex::new(inner), changed, log, agreement })
    }

    /// Executes a transaction. Deletes of missing keys change nothing; without a change there is no revision.
    pub(crate) fn write(&self, changes: &Changes) -> Place {
        self.change(|inner| inner.write(changes));
        self.now()
    }

    /// Compacts at `share` of the way from the last compaction to now.
    pub(crate) fn compact(&self, share: f64) -> i64 {
        self.change(|inner| {
            let epoch = inner.epoch();
            let from = epoch.compact_revision.max(epoch.base);
            let to = from + ((epoch.revision() - from) as f64 * share) as i64;
            inner.compact(to);
        });
        self.inner.lock().epoch().compact_revision
    }

    /// Replaces the cluster by another one, or restores it to an older revision.
    pub(crate) fn replace(&self) -> Place {
        self.change(|inner| {
            let newer = inner.rng.random_bool(0.5);
            let bases = inner.epochs.iter().map(|epoch| epoch.base);
            let base = if newer { bases.max().unwrap_or(0) + BAND } else { bases.min().unwrap_or(0) - BAND };
            let restored = !newer && inner.rng.random_bool(0.5);
            let highest = inner.epochs.iter().map(|epoch| epoch.id).max().unwrap_or(0);
            let id = if restored { inner.epoch().id } else { highest + 1 };
            inner.epochs.push(Epoch::new(id, base));
            inner.trouble();
            inner.break_all();
        });
        self.now()
    }

    /// Replaces the cluster by another one that has all revisions of the previous one, without any data in them.
    pub(crate) fn replace_by_longer(&self) -> Place {
        self.change(|inner| {
            let base = inner.epochs.iter().map(|epoch| epoch.base).max().unwrap_or(0) + BAND;
            let id = inner.epochs.iter().map(|epoch| epoch.id).max().unwrap_or(0) + 1;
            inner.epochs.push(Epoch { open: true, compact_revision: 0, ..Epoch::new(id, base) });
            inner.trouble();
            inner.break_all();
        });
        self.now()
    }

    /// Sets the faults.
    pub(crate) fn set_faults(&self, faults: Faults) {
        let agreement = if faults.leaderless { Agreement::Leaderless } else { Agreement::Reached };
        self.agreement.send_replace(agreement);
        self.change(|inner| {
            if inner.faults != faults {
                inner.trouble();
            }
            inner.faults = faults;
            let now = Instant::now();
            match (faults.down || faults.frozen, inner.away_since) {
                (true, None) => inner.away_since = Some(now),
                (false, Some(since)) => {
                    inner.away.push((since, now));
                    inner.away_since = None;
                }
                _ => {}
            }
            if faults.down {
                inner.break_all();
            }
        });
    }

    pub(crate) fn faults(&self) -> Faults {
        self.inner.lock().faults
    }

    fn log(&self, line: String) {
        self.log.lock().push(line);
    }

    /// The requests and answers since the last call.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock())
    }

    /// Ends all faults.
    pub(crate) fn settle(&self) {
        self.set_faults(Faults::NONE);
        self.change(|inner| {
            if !std::mem::take(&mut inner.stalled).is_empty() {
                inner.trouble();
            }
        });
    }

    /// Causes a fault of one of the open watches.
    pub(crate) fn harm(&self, how: Harm) {
        self.change(|inner| {
            let index = inner.rng.random_range(0..inner.open.len().max(1));
            let Some(id) = inner.open.iter().nth(index).copied() else { return };
            inner.trouble();
            match how {
                Harm::Break => inner.broken.insert(id),
                Harm::Cancel => inner.canceled.insert(id),
                Harm::Stall => inner.stalled.insert(id),
            };
        });
    }

    /// Changes permissions.
    pub(crate) fn set_rights(&self, change: impl FnOnce(&mut Rights)) {
        self.change(|inner| {
            let now = Instant::now();
            let mut rights = inner.rights.last().map(|(_, rights)| rights.clone()).unwrap_or_default();
            change(&mut rights);
            inner.rights.push((now, rights));
            // The last one before the kept ones shows what held when those began.
            let keep = inner.rights.partition_point(|(since, _)| *since + RIGHTS_KEPT < now);
            inner.forgotten += inner.rights.drain(..keep.saturating_sub(1)).count();
        });
    }

    pub(crate) fn rights(&self) -> Rights {
        self.inner.lock().rights.last().map(|(_, rights)| rights.clone()).unwrap_or_default()
    }

    /// Whether the holder of `token` was allowed to read `range` at any time since `since`.
    pub(crate) fn permitted_since(&self, since: Instant, token: Option<&str>, range: &KeyRange) -> bool {
        let inner = self.inner.lock();
        let first = inner.rights.partition_point(|(from, _)| *from < since).saturating_sub(1);
        inner.rights[first..].iter().any(|(_, rights)| rights.permit(token, range))
    }

    /// Whether the relay could not reach the cluster at some time since `since`.
    pub(crate) fn was_away(&self, since: Instant) -> bool {
        let inner = self.inner.lock();
        inner.away_since.is_some() || inner.away.last().is_some_and(|(_, until)| *until >= since)
    }

    /// The time this long ago, by a clock that stands still while the relay cannot reach the cluster, and until its
    /// feeds follow again.
    pub(crate) fn reachable_ago(&self, ago: Duration) -> Instant {
        let inner = self.inner.lock();
        let (mut at, mut left) = (Instant::now(), ago);
        let running = inner.away_since.map(|since| (since, at));
        for (since, until) in inner.away.iter().copied().chain(running).rev() {
            let until = (until + Self::RECOVERY).min(at);
            let between = at.duration_since(until);
            if between >= left {
                break;
            }
            left -= between;
            at = at.min(since);
        }
        at.checked_sub(left).unwrap_or(at)
    }

    /// The index of the current permissions.
    pub(crate) fn rights_now(&self) -> usize {
        let inner = self.inner.lock();
        inner.forgotten + inner.rights.len() - 1
    }

    /// Whether the holder of `token` was allowed to read `range` under these permissions and all later ones.
    pub(crate) fn permitted_always(&self, since: usize, token: Option<&str>, range: &KeyRange) -> bool {
        let inner = self.inner.lock();
        let first = since.saturating_sub(inner.forgotten);
        inner.rights[first..].iter().all(|(_, rights)| rights.permit(token, range))
    }

    /// If everything is and recently was healthy, the number of faults so far: while it stays the same, everything was
    /// healthy.
    pub(crate) fn health(&self) -> Option<u64> {
        let inner = self.inner.lock();
        let Faults { down, leaderless, frozen, deaf, rough, lag, latency } = inner.faults;
        let slow = lag.max(latency) > Self::SLOW;
        let recovers = inner.last_trouble.is_some_and(|last| last.elapsed() < Self::RECOVERY);
        let ill = down || leaderless || frozen || deaf || rough || slow || recovers || !inner.stalled.is_empty();
        (!ill).then_some(inner.troubles)
    }

    /// Since when everything has been healthy: earlier requests and events have had this time to be answered.
    pub(crate) fn well_since(&self) -> Option<Instant> {
        self.health()?;
        let inner = self.inner.lock();
        inner.last_trouble.map_or(inner.rights.first().map(|(began, _)| *began), |last| Some(last + Self::RECOVERY))
    }

    /// When a cluster made a revision.
    pub(crate) fn made_at(&self, place: Place) -> Option<Instant> {
        let inner = self.inner.lock();
        inner.epochs[place.epoch].at(place.revision).map(|changed| changed.when)
    }

    pub(crate) fn trusted(&self) -> bool {
        self.inner.lock().trusted
    }

    /// The current state of the cluster.
    pub(crate) fn now(&self) -> Place {
        let inner = self.inner.lock();
        Place { epoch: inner.epochs.len() - 1, revision: inner.epoch().revision() }
    }

    pub(crate) fn compact_revision(&self) -> i64 {
        self.inner.lock().epoch().compact_revision
    }

    /// The oldest readable revision of the cluster itself.
    pub(crate) fn oldest(&self) -> i64 {
        let inner = self.inner.lock();
        inner.epoch().compact_revision.max(inner.epoch().base)
    }

    /// The place of this revision in a cluster, its own or another's.
    pub(crate) fn past_of(&self, epoch: usize, revision: i64) -> Option<Place> {
        let inner = self.inner.lock();
        let of = &inner.epochs[epoch];
        let revision = if of.open { revision.max(of.base) } else { revision };
        (of.has(revision) && revision <= of.revision()).then_some(Place { epoch, revision })
    }

    /// Which cluster made a revision.
    pub(crate) fn place_of(&self, revision: i64) -> Option<Place> {
        let inner = self.inner.lock();
        let epoch = inner.epochs.iter().position(|epoch| epoch.has(revision))?;
        (revision <= inner.epochs[epoch].revision()).then_some(Place { epoch, revision })
    }

    /// The id of a cluster.
    pub(crate) fn id_of(&self, epoch: usize) -> u64 {
        self.inner.lock().epochs[epoch].id
    }

    /// Whether a cluster was ever compacted at exactly this revision.
    pub(crate) fn was_compacted_at(&self, epoch: usize, revision: i64) -> bool {
        let inner = self.inner.lock();
        let epoch = &inner.epochs[epoch];
        // A new cluster has nothing before its first revision.
        revision == epoch.forgot() || epoch.compactions.iter().any(|(to, _)| *to == revision)
    }

    /// The revision to which the cluster was compacted before `until` was passed.
    pub(crate) fn compacted_before(&self, epoch: usize, until: i64) -> i64 {
        let inner = self.inner.lock();
        let epoch = &inner.epochs[epoch];
        let before = epoch.compactions.iter().filter(|(_, newest)| *newest < until).map(|(to, _)| *to);
        before.max().unwrap_or(epoch.forgot())
    }

    /// The first revision in `from..=to` with a wanted change in `range`.
    pub(crate) fn first_wanted(
        &self,
        epoch: usize,
        from: i64,
        to: i64,
        range: &KeyRange,
        wants: impl Fn(EventKind) -> bool,
    ) -> Option<i64> {
        let inner = self.inner.lock();
        let epoch = &inner.epochs[epoch];
        let wanted = |happened: &Happened| wants(happened.event.kind) && range.contains(&happened.event.kv.key);
        (from.max(epoch.base + 1)..=to.min(epoch.revision()))
            .find(|revision| epoch.at(*revision).is_some_and(|changed| changed.events.iter().any(wanted)))
    }

    /// What a watch must get of a revision, and whether the previous state may be compacted, so that `prev_kv` may be
    /// missing.
    pub(crate) fn wanted(
        &self,
        place: Place,
        range: &KeyRange,
        prev_kv: bool,
        wants: impl Fn(EventKind) -> bool,
    ) -> (Vec<mvccpb::Event>, bool) {
        let inner = self.inner.lock();
        let epoch = &inner.epochs[place.epoch];
        let happened = epoch.at(place.revision).map_or(&[][..], |changed| &changed.events);
        let events = happened
            .iter()
            .filter(|happened| wants(happened.event.kind) && range.contains(&happened.event.kv.key))
            .map(|happened| mvccpb::Event {
                r#type: i32::from(happened.event.kind == EventKind::Delete),
                kv: Some(message(&happened.event.kv)),
                prev_kv: happened.prev.as_ref().filter(|_| prev_kv).map(message),
            })
            .collect();
        (events, place.revision - 1 < epoch.compact_revision)
    }

    /// The content of a range at a revision.
    pub(crate) fn state(&self, place: Place, range: &KeyRange) -> Vec<mvccpb::KeyValue> {
        let inner = self.inner.lock();
        let state = inner.epochs[place.epoch].state(place.revision);
        state.into_iter().flat_map(BTreeMap::values).filter(|kv| range.contains(&kv.key)).map(message).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.lock());
        self.changed.notify_waiters();
    }
}

impl Inner {
    fn epoch(&self) -> &Epoch {
        self.epochs.last().expect("there is always a cluster")
    }

    fn epoch_mut(&mut self) -> &mut Epoch {
        self.epochs.last_mut().expect("there is always a cluster")
    }

    fn trouble(&mut self) {
        self.troubles += 1;
        self.last_trouble = Some(Instant::now());
    }

    fn break_all(&mut self) {
        let open = std::mem::take(&mut self.open);
        self.broken.extend(open);
    }

    fn write(&mut self, changes: &Changes) {
        let epoch = self.epoch_mut();
        let mut state = epoch.states.last().cloned().unwrap_or_default();
        let revision = Revision::new(epoch.revision() + 1);
        let mut events = Vec::new();
        for (key, value) in changes {
            let prev = state.get(key).cloned();
            let kv = KeyValueFields { key: key.clone(), mod_revision: revision, ..KeyValueFields::default() };
            let event = match (&prev, value) {
                (None, None) => continue,
                (Some(_), None) => {
                    state.remove(key);
                    EventFields { kind: EventKind::Delete, kv }
                }
                (_, Some(value)) => {
                    let kv = KeyValueFields {
                        value: value.clone(),
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
            epoch.changes.push(Changed { when: Instant::now(), events });
            epoch.states.push(state);
        }
    }

    fn compact(&mut self, to: i64) {
        let epoch = self.epoch_mut();
        if to > epoch.compact_revision && to <= epoch.revision() {
            epoch.compact_revision = to;
            let newest = epoch.revision();
            epoch.compactions.push((to, newest));
        }
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
