//! [`Waits`]: the clients that wait for a change, found by path.
//!
//! One task follows the feed, makes each change's text once, and gives it to all matching waits. A wait ends with its
//! first change. A stream has a place in the log and continues from there when its client has read. Changes are defined
//! in `events` and kept in `log`. Always holds: a wait gets the first matching change at or after its index, or the
//! error that this is no longer known. Nothing is woken under the lock. A slow stream holds only its place.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use metrics::gauge;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    answer::Refusal,
    events::{self, Logged},
    log::Log,
    made::Made,
    path::{ancestors, hides_below, kids},
};
use crate::{hub::Feed, telemetry::names, types::Revision};

/// Changes that are processed in one step.
const STEP: usize = 512;

/// See the module.
#[derive(Debug)]
pub(super) struct Waits {
    state: Mutex<State>,
    at: watch::Sender<Revision>,
}

#[derive(Debug)]
struct State {
    log: Log,
    /// Everything up to this revision was reported.
    at: Revision,
    /// Increases when the log restarts.
    epoch: u64,
    waiting: BTreeMap<Bytes, BTreeMap<u64, Waiting>>,
    last_id: u64,
}

#[derive(Debug)]
struct Waiting {
    recursive: bool,
    from: Revision,
    teller: Teller,
}

#[derive(Debug)]
enum Teller {
    Once(oneshot::Sender<Bytes>),
    Stream {
        /// The place up to which the stream has read; `None` if nothing has come for it since.
        place: Option<u64>,
        waker: Option<Waker>,
    },
}

/// What a client waits for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) path: Bytes,
    pub(super) recursive: bool,
    pub(super) stream: bool,
    /// Zero means the next change.
    pub(super) index: u64,
}

/// A registered wait. Dropping it removes the registration.
#[derive(Debug)]
pub(super) struct Waiter {
    /// The index at its registration.
    pub(super) registered: Revision,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The change from the log; `None` once it was given.
    Told(Option<Bytes>),
    Once {
        told: oneshot::Receiver<Bytes>,
        _registered: Registered,
    },
    Stream {
        registered: Registered,
        recursive: bool,
        /// Changes that were read but not given yet.
        read: VecDeque<Bytes>,
    },
    Over,
}

#[derive(Debug)]
struct Registered {
    waits: Arc<Waits>,
    path: Bytes,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut state = self.waits.state.lock();
        let ended = state.forget(&self.path, self.id);
        drop(state);
        drop(ended);
        gauge!(names::FACADE_WAITS).decrement(1.0);
    }
}

/// The result of a registration.
#[derive(Debug)]
pub(super) enum Entered {
    Waiter(Waiter),
    /// The log begins after the requested index. Contains the log's start and the current index.
    TooOld(Revision, Revision),
}

/// Whether a change matches a wait for a path.
fn concerns(path: &[u8], recursive: bool, logged: &Logged) -> bool {
    let below = |above: &[u8], path: &[u8]| {
        above == b"/" || path.len() > above.len() && path.starts_with(above) && path[above.len()] == b'/'
    };
    logged.path == path
        || recursive && below(path, &logged.path) && !hides_below(path, &logged.path)
        || logged.is_tree_gone && below(&logged.path, path) && logged.took(path)
}

impl Waits {
    pub(super) fn new() -> Arc<Self> {
        let state =
            State { log: Log::new(Revision::ZERO), at: Revision::ZERO, epoch: 0, waiting: BTreeMap::new(), last_id: 0 };
        Arc::new(Self { state: Mutex::new(state), at: watch::Sender::new(Revision::ZERO) })
    }

    /// Follows the feed until `stop`.
    pub(super) async fn follow(self: Arc<Self>, feed: Arc<Feed>, made: Arc<Made>, stop: CancellationToken) {
        let mut revisions = feed.watch_revision();
        let mut known = (Revision::ZERO, 0);
        while let Some(Ok(())) = stop.run_until_cancelled(revisions.changed()).await {
            let (snapshot, entries) = feed.since(known.0);
            match entries.filter(|_| known.0 > Revision::ZERO && snapshot.epoch == known.1) {
                Some(entries) => {
                    for entry in entries {
                        let told = made.at(&entry).await;
                        self.publish(events::tell(&entry, &snapshot, told), entry.revision);
                    }
                    self.publish(Vec::new(), snapshot.revision);
                }
                None => self.begin(snapshot.revision),
            }
            known = (snapshot.revision, snapshot.epoch);
        }
        self.begin(known.0);
    }

    /// Waits until everything up to `revision` was reported.
    pub(super) async fn reach(&self, revision: Revision) {
        // The sender lives as long as `self`.
        let _ = self.at.subscribe().wait_for(|at| *at >= revision).await;
    }

    /// Registers a wait, or returns what the log already has for it.
    pub(super) async fn enter(self: &Arc<Self>, wanted: &Wanted) -> Entered {
        let index = i64::try_from(wanted.index).map_or(Revision::new(i64::MAX), Revision::new);
        let mut looked: Option<(u64, u64, Revision)> = None;
        loop {
            let step = {
                let mut state = self.state.lock();
                let at = state.at;
                if index > Revision::ZERO && index <= at && index < state.log.start() {
                    return Entered::TooOld(state.log.start(), at);
                }
                let (epoch, place, first) = looked.unwrap_or_else(|| {
                    let place = if index == Revision::ZERO { state.log.end() } else { state.log.place_of(index) };
                    (state.epoch, place, at)
                });
                let step = if wanted.stream { Some(Vec::new()) } else { state.log.read(place, STEP) };
                let Some(step) = step.filter(|_| epoch == state.epoch) else {
                    return Entered::TooOld(state.log.start(), at);
                };
                if step.is_empty() {
                    let source = self.register(&mut state, wanted, index, place);
                    return Entered::Waiter(Waiter { registered: first, source });
                }
                looked = Some((epoch, place + step.len() as u64, first));
                step
            };
            if let Some(logged) = step.iter().find(|logged| concerns(&wanted.path, wanted.recursive, logged)) {
                let registered = looked.map_or(Revision::ZERO, |(_, _, first)| first);
                return Entered::Waiter(Waiter { registered, source: Source::Told(Some(logged.body.clone())) });
            }
            tokio::task::yield_now().await;
        }
    }

    fn register(self: &Arc<Self>, state: &mut State, wanted: &Wanted, index: Revision, place: u64) -> Source {
        state.last_id += 1;
        let id = state.last_id;
        let registered = Registered { waits: self.clone(), path: wanted.path.clone(), id };
        let recursive = wanted.recursive;
        let (teller, source) = if wanted.stream {
            let teller = Teller::Stream { place: (place < state.log.end()).then_some(place), waker: None };
            (teller, Source::Stream { registered, recursive, read: VecDeque::new() })
        } else {
            let (sender, told) = oneshot::channel();
            (Teller::Once(sender), Source::Once { told, _registered: registered })
        };
        let waiting = Waiting { recursive, from: index.max(state.at.next()), teller };
        state.waiting.entry(wanted.path.clone()).or_default().insert(id, waiting);
        gauge!(names::FACADE_WAITS).increment(1.0);
        source
    }

    /// Restarts the log. Earlier changes are unknown, so all waits end and their clients retry.
    pub(super) fn begin(&self, revision: Revision) {
        let ended = {
            let mut state = self.state.lock();
            state.log = Log::new(revision.next());
            state.at = revision;
            state.epoch += 1;
            std::mem::take(&mut state.waiting)
        };
        for waiting in ended.into_values().flat_map(BTreeMap::into_values) {
            if let Teller::Stream { waker: Some(waker), .. } = waiting.teller {
                waker.wake();
            }
        }
        self.at.send_replace(revision);
    }

    fn publish(&self, told: Vec<Arc<Logged>>, revision: Revision) {
        let mut out = Out::default();
        {
            let mut state = self.state.lock();
            for logged in told {
                state.give(&logged, &mut out);
                state.log.push(logged);
            }
            state.at = state.at.max(revision);
        }
        for (sender, body) in out.once {
            // The client may be gone.
            let _ = sender.send(body);
        }
        out.streams.into_iter().for_each(Waker::wake);
        self.at.send_replace(revision);
    }

    /// How far back the log may grow, with its start and its epoch; `None` if it cannot.
    pub(super) fn room(&self) -> Option<((usize, usize), Revision, u64)> {
        let state = self.state.lock();
        state.log.room().map(|room| (room, state.log.start(), state.epoch))
    }

    /// Whether something has changed since the start of the log.
    pub(super) fn has_changes(&self) -> bool {
        !self.state.lock().log.is_empty()
    }

    /// The first revision whose changes are known.
    pub(super) fn start(&self) -> Revision {
        self.state.lock().log.start()
    }

    /// Adds older changes to the log if it still begins at `to`: all from `from` on, of what was `asked` for.
    pub(super) fn put_before(
        &self,
        from: Revision,
        asked: Revision,
        to: Revision,
        epoch: u64,
        older: Vec<Arc<Logged>>,
    ) {
        let mut state = self.state.lock();
        if state.epoch == epoch && state.log.start() == to && state.log.room().is_some() {
            state.log.prepend(from, asked, older);
        }
    }
}

/// The waits to answer after the lock is released.
#[derive(Default)]
struct Out {
    once: Vec<(oneshot::Sender<Bytes>, Bytes)>,
    streams: Vec<Waker>,
}

impl State {
    /// Takes out the waits that match a change.
    fn give(&mut self, logged: &Logged, out: &mut Out) {
        let mut paths: Vec<Bytes> = vec![Bytes::from_static(b"/"), logged.path.clone()];
        paths.extend(ancestors(&logged.path).map(Bytes::copy_from_slice));
        if logged.is_tree_gone {
            let below = kids(&logged.path);
            let from = (Bound::Included(&below.start()[..]), Bound::Unbounded);
            let found = self.waiting.range::<[u8], _>(from).map(|(path, _)| path);
            paths.extend(found.take_while(|path| below.contains(path)).cloned());
        }
        let place = self.log.end();
        for path in paths {
            let Some(waiting) = self.waiting.get_mut(&path) else { continue };
            let is_told =
                |waiting: &Waiting| logged.revision >= waiting.from && concerns(&path, waiting.recursive, logged);
            let mut told = Vec::new();
            for (id, waiting) in waiting.iter_mut().filter(|(_, waiting)| is_told(waiting)) {
                match &mut waiting.teller {
                    Teller::Once(_) => told.push(*id),
                    Teller::Stream { place: unread, waker } => {
                        unread.get_or_insert(place);
                        out.streams.extend(waker.take());
                    }
                }
            }
            for id in told {
                if let Some(Waiting { teller: Teller::Once(sender), .. }) = waiting.remove(&id) {
                    out.once.push((sender, logged.body.clone()));
                }
            }
            if waiting.is_empty() {
                self.waiting.remove(&path);
            }
        }
    }

    fn forget(&mut self, path: &Bytes, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.get_mut(path)?;
        let ended = waiting.remove(&id);
        if waiting.is_empty() {
            self.waiting.remove(path);
        }
        ended
    }

    /// The next changes for a stream; `None` if it cannot continue.
    fn read(&mut self, registered: &Registered, cx: &Context<'_>) -> Option<Poll<Vec<Arc<Logged>>>> {
        let waiting = self.waiting.get_mut(&registered.path)?.get_mut(&registered.id)?;
        let Teller::Stream { place, waker } = &mut waiting.teller else { return None };
        if let Some(from) = *place {
            let step = self.log.read(from, STEP)?;
            if !step.is_empty() {
                *place = Some(from + step.len() as u64);
                return Some(Poll::Ready(step));
            }
            *place = None;
        }
        match waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Some(Poll::Pending)
    }
}

impl Waiter {
    /// The next change, and whether it is the last; `None` at the end.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let next = match &mut self.source {
                Source::Over => return Poll::Ready(None),
                Source::Told(body) => body.take(),
                Source::Once { told, .. } => match told.poll_unpin(cx) {
                    Poll::Ready(told) => told.ok(),
                    Poll::Pending => return Poll::Pending,
                },
                Source::Stream { registered, recursive, read } => {
                    if let Some(body) = read.pop_front() {
                        return Poll::Ready(Some(body));
                    }
                    let step = registered.waits.state.lock().read(registered, cx);
                    match step {
                        Some(Poll::Ready(step)) => {
                            let concerning =
                                step.iter().filter(|logged| concerns(&registered.path, *recursive, logged));
                            read.extend(concerning.map(|logged| logged.body.clone()));
                            if read.is_empty() {
                                // Other tasks run before the next part of the log is read.
                                cx.waker().wake_by_ref();
                                return Poll::Pending;
                            }
                            continue;
                        }
                        Some(Poll::Pending) => return Poll::Pending,
                        None => None,
                    }
                }
            };
            self.source = Source::Over;
            return Poll::Ready(next);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.source, Source::Over)
    }
}

/// The answer if the changes from an index on are no longer known.
pub(super) fn cleared(start: Revision, asked: u64, at: Revision) -> Refusal {
    Refusal::about(401, format!("the requested history has been cleared [{start}/{asked}]"), at)
}
