//! [`Engine`]: keeps the documents of one directory, and the targets of its views, up to date with the directory's
//! feed.
//!
//! Documents, views and permissions are defined elsewhere. `lainlet` runs one engine per directory, each in its own
//! thread, because parsing large values would delay the tasks that deliver. Always holds:
//! - a value is parsed once per change of its key. If the document is unchanged, no view is involved; otherwise only
//!   targets that contain the key do any work;
//! - whole revisions are applied before anything is published;
//! - an unreadable value changes nothing: the previous document stays, if there was one;
//! - a target is created and subscribed to under the lock under which changes are applied, so it misses none.

mod changes;

use std::{
    collections::BTreeMap,
    ops::Bound,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dashmap::DashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

pub use self::changes::LastEvent;
use self::changes::{Becomes, Change, Seen};
use super::{
    directory::Directory,
    document::{DecodeError, Document},
    index::TargetIndex,
    listing::Row,
    payload::Version,
    projection::{Projection, Rows},
    select::{Match, Select},
    stats,
    target::{Shown, Subscription, Target},
};
use crate::{
    hub::{Feed, FeedState, Snapshot},
    telemetry::names::Effect,
    types::Revision,
};

/// Pause between two searches for unused targets.
const SWEEP: Duration = Duration::from_secs(10);
/// Above this number of targets, or this memory for their rows, unwatched targets are dropped at once.
const TARGETS_MAX: usize = 8_192;
const BYTES_MAX: usize = 256 << 20;
/// Pause before everything is read again after a panic.
const AFTER_PANIC: Duration = Duration::from_secs(1);
/// Most unreadable values that are listed by name.
const REFUSED_LISTED: usize = 100;

/// Called under the engine's lock for each change of a document, before any target is changed.
pub(super) type Observer<D> = Box<dyn Fn(&Bytes, Option<&D>, Option<&D>) + Send + Sync>;

/// The engine of a directory; see the module.
pub(super) struct Engine<D> {
    directory: Directory,
    views: Vec<Box<dyn Projection<D>>>,
    observer: Observer<D>,
    state: Mutex<EngineState<D>>,
    /// The same targets as in the state, for repeated requests.
    targets: DashMap<Select, Arc<Target>>,
    /// Every change up to this revision has been published; zero until the first snapshot was read.
    revision: watch::Sender<Revision>,
}

struct EngineState<D> {
    documents: BTreeMap<Bytes, Held<D>>,
    /// The snapshot of the feed that the documents follow.
    epoch: u64,
    shown: Vec<TargetIndex>,
    bytes: usize,
    /// The number of unreadable values.
    unreadable: usize,
    last: Option<LastEvent>,
}

/// The last state of a key.
struct Held<D> {
    /// Which value was the last one, readable or not.
    seen: Seen,
    /// The last readable value.
    document: Option<Arc<D>>,
    refused: Option<DecodeError>,
}

/// An unreadable value.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The key in etcd.
    pub key: String,
    /// The revision of the value.
    pub revision: Revision,
    /// The reason, without any content of the value.
    pub error: String,
}

/// The state behind some of the views.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Open streams.
    pub subscribers: usize,
    /// Keys.
    pub keys: usize,
    /// The last change.
    pub last: Option<LastEvent>,
    /// The first hundred unreadable values.
    pub refused: Vec<Refused>,
    /// The total number of unreadable values.
    pub refused_total: usize,
}

impl<D: Document> Engine<D> {
    pub(super) fn new(directory: Directory, views: Vec<Box<dyn Projection<D>>>, observer: Observer<D>) -> Arc<Self> {
        let shown = views.iter().map(|_| TargetIndex::default()).collect();
        Arc::new(Self {
            directory,
            views,
            observer,
            state: Mutex::new(EngineState {
                documents: BTreeMap::new(),
                epoch: 0,
                shown,
                bytes: 0,
                unreadable: 0,
                last: None,
            }),
            targets: DashMap::new(),
            revision: watch::Sender::new(Revision::ZERO),
        })
    }

    /// Follows `feed` until `stop`, on a thread that may block. A panic in a view is a bug that must not leave other
    /// views outdated, so everything is dropped and read again.
    pub(super) fn follow(&self, runtime: &Handle, feed: &Feed, stop: &CancellationToken) {
        loop {
            let run = || runtime.block_on(self.run(feed, stop));
            if panic::catch_unwind(AssertUnwindSafe(run)).is_ok() {
                return;
            }
            tracing::error!(
                directory = self.directory.prefix(),
                "A view panicked on its data; reading everything \
                again"
            );
            self.reset();
            runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(AFTER_PANIC) => {}
                }
            });
        }
    }

    async fn run(&self, feed: &Feed, stop: &CancellationToken) {
        let mut revisions = feed.watch_revision();
        let mut standing = feed.watch_standing();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            revisions.borrow_and_update();
            let serving = !matches!(standing.borrow_and_update().state, FeedState::Starting | FeedState::Closed);
            if serving {
                self.catch_up(feed);
            }
            // All branches are cancel safe.
            tokio::select! {
                () = stop.cancelled() => return,
                changed = revisions.changed() => if changed.is_err() { return },
                changed = standing.changed() => if changed.is_err() { return },
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    /// Applies what the feed has and the documents lack.
    pub(super) fn catch_up(&self, feed: &Feed) {
        let (epoch, at) = (self.state.lock().epoch, *self.revision.borrow());
        let (snapshot, entries) = feed.since(at);
        let continues = snapshot.epoch == epoch && at != Revision::ZERO;
        match entries.filter(|_| continues) {
            Some(entries) => {
                let (changes, last) = changes::of_entries(self.directory, &entries);
                self.apply(changes, last, &snapshot);
            }
            None => {
                let seen = {
                    let state = self.state.lock();
                    state.documents.iter().map(|(key, held)| (key.clone(), held.seen)).collect()
                };
                let (changes, last) = changes::of_snapshot(self.directory, &snapshot, seen);
                self.apply(changes, Some(last), &snapshot);
            }
        }
    }

    /// Whether a selection is already a target. If not, requesting it needs a walk over its documents.
    pub(super) fn has(&self, select: &Select) -> bool {
        self.targets.contains_key(select)
    }

    /// The newest version of a selection, which becomes a target if it is none yet; `None` while the directory is being
    /// read.
    pub(super) fn version(&self, select: &Select) -> Option<Arc<Version>> {
        match self.targets.get(select) {
            Some(target) => Some(target.version()),
            None => self.with_target(select, |target| target.version()),
        }
    }

    /// The versions of a selection from now on; `None` while the directory is being read.
    pub(super) fn subscribe(&self, select: &Select) -> Option<Subscription> {
        match self.targets.get(select) {
            Some(target) => Some(target.subscribe()),
            None => self.with_target(select, |target| target.subscribe()),
        }
    }

    /// Every change up to this revision has been published; zero until the directory was read.
    pub(super) fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// The revision and its changes.
    pub(super) fn watch_revision(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// The state of the directory, for the views whose rows have their own keys or for the others.
    pub(super) fn stats(&self, of_rows: bool) -> Stats {
        let state = self.state.lock();
        let documents = || state.documents.values().filter_map(|held| held.document.as_deref());
        let keys = match self.views.iter().find(|view| view.spec().matches_rows) {
            Some(view) if of_rows => {
                let mut keys = 0;
                documents().for_each(|document| view.match_keys(document, &mut |_| keys += 1));
                keys
            }
            _ => documents().count(),
        };
        let refused = state.documents.iter().filter_map(|(key, held)| Some((key, held, held.refused.as_ref()?)));
        let mine = |target: &Target| target.select.spec.matches_rows == of_rows;
        Stats {
            subscribers: self.targets.iter().filter(|target| mine(target)).map(|target| target.subscribers()).sum(),
            keys,
            last: state.last.clone(),
            refused: refused
                .take(REFUSED_LISTED)
                .map(|(key, held, error)| Refused {
                    key: format!("{}{}", self.directory.prefix(), String::from_utf8_lossy(key)),
                    revision: held.seen.revision,
                    error: error.to_string(),
                })
                .collect(),
            refused_total: state.unreadable,
        }
    }

    fn apply(&self, changes: Vec<Change<D>>, last: Option<LastEvent>, snapshot: &Snapshot) {
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            state.epoch = snapshot.epoch;
            state.last = last.or(state.last.take());
            let mut touched = Vec::new();
            for change in changes {
                let (old, new) = state.hold(&change);
                let visible = old.as_deref() != new.as_deref();
                stats::change(
                    self.directory,
                    match (&change.refused, visible) {
                        (Some(_), _) => Effect::Refused,
                        (None, true) => Effect::Visible,
                        (None, false) => Effect::Invisible,
                    },
                );
                if visible {
                    (self.observer)(&change.key, old.as_deref(), new.as_deref());
                    self.show(state, &change, (old.as_deref(), new.as_deref()), &mut touched);
                }
            }
            stats::unreadable(self.directory, state.unreadable);
            touched.sort_unstable();
            touched.dedup();
            for (view, slot) in touched {
                let projection = &self.views[view];
                if state.shown[view][slot].publish(&|pods| projection.verdict(pods)) {
                    stats::version(self.directory);
                }
            }
        }
        self.revision.send_replace(snapshot.revision);
    }

    /// Updates the rows of a changed document in the targets that it affects, and adds these to `touched`.
    fn show(
        &self,
        state: &mut EngineState<D>,
        change: &Change<D>,
        documents: (Option<&D>, Option<&D>),
        touched: &mut Vec<(usize, usize)>,
    ) {
        for (view, projection) in self.views.iter().enumerate() {
            let concerned = state.shown[view].concerned(&**projection, &change.key, documents);
            let mut made = Made::default();
            for slot in concerned {
                let shown = &mut state.shown[view][slot];
                let before = shown.bytes();
                let rows = made.rows(&**projection, &shown.target.select, &change.key, documents.1);
                shown.replace(&change.key, rows, change.kind, change.received);
                state.bytes = state.bytes + shown.bytes() - before;
                touched.push((view, slot));
            }
        }
    }

    /// Forgets everything: streams end, and requests wait until everything has been read again.
    pub(super) fn reset(&self) {
        let mut state = self.state.lock();
        self.revision.send_replace(Revision::ZERO);
        for (key, held) in std::mem::take(&mut state.documents) {
            (self.observer)(&key, held.document.as_deref(), None);
        }
        state.shown.fill_with(TargetIndex::default);
        (state.bytes, state.unreadable) = (0, 0);
        self.targets.clear();
    }

    fn with_target<T>(&self, select: &Select, with: impl FnOnce(&Target) -> T) -> Option<T> {
        let mut state = self.state.lock();
        let state = &mut *state;
        // Another request may have created it meanwhile, or everything may have been dropped.
        if let Some(target) = self.targets.get(select) {
            return Some(with(&target));
        }
        if self.revision() == Revision::ZERO {
            return None;
        }
        if self.targets.len() >= TARGETS_MAX || state.bytes >= BYTES_MAX {
            self.drop_idle(state, |target| target.subscribers() == 0);
        }
        let Some(view) = self.views.iter().position(|view| std::ptr::eq(view.spec(), select.spec)) else {
            unreachable!("a selection belongs to the engine of its view's directory")
        };
        let projection = &*self.views[view];
        let rows = documents(&state.documents, select).map(|(key, document)| {
            let mut rows = Rows::new(select, key);
            projection.rows(key, document, &mut rows);
            (key.clone(), rows.finish())
        });
        let verdict = |pods| projection.verdict(pods);
        let shown = Shown::new(select.clone(), rows, &verdict, Instant::now());
        let target = shown.target.clone();
        state.bytes += shown.bytes();
        state.shown[view].insert(shown);
        self.targets.insert(select.clone(), target.clone());
        Some(with(&target))
    }

    /// Drops targets that are not watched and were not requested since the last call.
    pub(super) fn sweep(&self) {
        let mut state = self.state.lock();
        self.drop_idle(&mut state, Target::is_idle);
        stats::targets(self.directory, self.targets.len(), state.bytes);
    }

    fn drop_idle(&self, state: &mut EngineState<D>, is_idle: impl Fn(&Target) -> bool) {
        for index in &mut state.shown {
            // Subscribing needs the lock of the map, so a target cannot get a subscriber while it is removed.
            let taken = |shown: &Shown| self.targets.remove_if(&shown.target.select, |_, target| is_idle(target));
            for shown in index.drop_where(|shown| taken(shown).is_some()) {
                state.bytes -= shown.bytes();
            }
        }
    }
}

impl<D: Document> EngineState<D> {
    /// Records a change. Returns the documents before and after it.
    fn hold(&mut self, change: &Change<D>) -> (Option<Arc<D>>, Option<Arc<D>>) {
        let held = self.documents.get(&change.key);
        let was_refused = held.is_some_and(|held| held.refused.is_some());
        let old = held.and_then(|held| held.document.clone());
        let new = match &change.becomes {
            Becomes::Document(document) => Some(document.clone()),
            Becomes::AsBefore => old.clone(),
            Becomes::Gone => None,
        };
        self.unreadable = self.unreadable + usize::from(change.refused.is_some()) - usize::from(was_refused);
        let Some(seen) = change.seen.clone() else {
            self.documents.remove(&change.key);
            return (old, new);
        };
        // Logged only once, however often such a value is written again.
        if let Some(error) = change.refused.as_ref().filter(|_| !was_refused) {
            tracing::warn!(
                key = %String::from_utf8_lossy(seen.key()),
                revision = seen.mod_revision.get(),
                %error,
                kept = new.is_some(),
                "Cannot read a value; views keep its last readable version"
            );
        }
        if was_refused && change.refused.is_none() {
            tracing::info!(key = %String::from_utf8_lossy(seen.key()), revision = seen.mod_revision.get(), "A value can be read again");
        }
        let held = Held { seen: Seen::of(&seen), document: new.clone(), refused: change.refused.clone() };
        self.documents.insert(change.key.clone(), held);
        (old, new)
    }
}

/// The documents whose rows a selection may contain: all of them if rows have their own keys.
fn documents<'a, D>(
    documents: &'a BTreeMap<Bytes, Held<D>>,
    select: &'a Select,
) -> impl Iterator<Item = (&'a Bytes, &'a D)> {
    let prefix: &[u8] = match &select.keys {
        Match::Key(key) if !select.spec.matches_rows => key,
        _ => &[],
    };
    documents
        .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
        .filter_map(|(key, held)| Some((key, &**held.document.as_ref()?)))
}

/// The rows of one change in one view, made once for all targets with the same rows.
#[derive(Default)]
struct Made {
    list: Vec<(Select, SmallVec<[Arc<Row>; 1]>)>,
}

impl Made {
    fn rows<D: 'static>(
        &mut self,
        projection: &dyn Projection<D>,
        select: &Select,
        key: &Bytes,
        document: Option<&D>,
    ) -> SmallVec<[Arc<Row>; 1]> {
        let Some(document) = document else { return Default::default() };
        let alike = |made: &Select| {
            made.node == select.node && made.public == select.public && (!select.spec.matches_rows || made == select)
        };
        if let Some((_, rows)) = self.list.iter().find(|(made, _)| alike(made)) {
            return rows.clone();
        }
        let mut rows = Rows::new(select, key);
        projection.rows(key, document, &mut rows);
        let rows: SmallVec<[Arc<Row>; 1]> = rows.finish().into_iter().map(Arc::new).collect();
        self.list.push((select.clone(), rows.clone()));
        rows
    }
}

#[cfg(test)]
impl<D: Document> Engine<D> {
    /// Another engine that starts with this one's content: the last readable value of each key.
    pub(super) fn rebuilt(&self, views: Vec<Box<dyn Projection<D>>>) -> Self {
        let state = self.state.lock();
        let documents = state.documents.iter().map(|(key, held)| {
            let held = Held { seen: held.seen, document: held.document.clone(), refused: None };
            (key.clone(), held)
        });
        let state = EngineState {
            documents: documents.collect(),
            epoch: state.epoch,
            shown: views.iter().map(|_| TargetIndex::default()).collect(),
            bytes: 0,
            unreadable: 0,
            last: None,
        };
        Self {
            directory: self.directory,
            views,
            observer: Box::new(|_, _, _| {}),
            state: Mutex::new(state),
            targets: DashMap::new(),
            revision: watch::Sender::new(self.revision()),
        }
    }
}
