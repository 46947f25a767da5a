//! [`StreamCheck`]: checks each delivery on a watch stream against etcd's guarantees, and at the end of a schedule
//! whether everything was delivered.
//!
//! The checks are named after those of etcd's robustness tests (docs/promises.md, section 6). `reliable` finds each gap
//! as it appears, and `overdue` finds the one that is left. The schedules call it with the deliveries of an outbox, in
//! order.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use etcd_relay::{
    hub::{Cancellation, Delivery, NO_WATCH_ID, Payload, WatchOptions, Whole},
    pb::etcdserverpb::WatchResponse,
    types::{Header, KeyRange},
};
use prost::Message as _;

use crate::world::{CANCELED, World};

/// The properties of a watch.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) id: i64,
    pub(crate) range: KeyRange,
    pub(crate) options: WatchOptions,
    pub(crate) start: i64,
    pub(crate) progress_notify: bool,
    pub(crate) epoch: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    None,
    Compacted,
    Canceled,
}

#[derive(Debug)]
struct Watch {
    spec: Spec,
    /// Everything before this revision was delivered or not requested.
    position: i64,
    last_event: i64,
    last_progress: i64,
    end: End,
    cancel_asked: bool,
}

/// A cluster's data must be shown under its own name.
fn named(world: &World, header: &Header) -> Result<(), String> {
    let made_by = world.cluster_of(header.revision.get());
    ensure(made_by == Some(header.cluster_id), || format!("{header:?} of what cluster {made_by:?} had"))
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct StreamCheck {
    /// Creates without an answer, and whether the client has canceled what they will create.
    pending: VecDeque<(Spec, bool)>,
    watches: HashMap<i64, Watch>,
    pub(crate) events: usize,
    /// Number of payloads with several revisions.
    pub(crate) runs: usize,
    pub(crate) progress: usize,
    pub(crate) compacted: usize,
}

impl StreamCheck {
    /// Adds a create that will be sent; `Created`s come in this order.
    pub(crate) fn expect(&mut self, spec: Spec) {
        self.pending.push_back((spec, false));
    }

    /// The create was refused.
    pub(crate) fn refused(&mut self) {
        self.pending.pop_back();
    }

    /// Whether the id is in use, as far as the client can know.
    pub(crate) fn is_taken(&self, id: i64) -> bool {
        self.pending.iter().any(|(spec, _)| spec.id == id)
            || self.watches.get(&id).is_some_and(|watch| watch.end != End::Canceled && !watch.cancel_asked)
    }

    /// Ids that the client may cancel.
    pub(crate) fn cancelable(&self) -> Vec<i64> {
        let mut ids: Vec<i64> =
            self.watches.iter().filter(|(_, w)| w.end != End::Canceled && !w.cancel_asked).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// The client cancels a watch.
    pub(crate) fn cancel(&mut self, id: i64) {
        if let Some(watch) = self.watches.get_mut(&id) {
            watch.cancel_asked = true;
        }
        // Upstream may have ended that one without the client having read it yet; then the next watch with this id is
        // meant. A request for id 0 lets the server choose, and never returns a used one.
        self.pending
            .iter_mut()
            .filter(|(spec, _)| id != 0 && spec.id == id)
            .for_each(|(_, cancel_asked)| *cancel_asked = true);
    }

    /// Whether etcd would answer a progress request on the stream, once all watches have reached `revision`.
    pub(crate) fn answers_progress(&self, revision: i64) -> bool {
        let mut watches = self.watches.values().filter(|watch| watch.end != End::Canceled).peekable();
        watches.peek().is_some() && watches.all(|watch| watch.end == End::None && watch.spec.start <= revision)
    }

    /// Checks one delivery.
    pub(crate) fn take(&mut self, world: &World, delivery: &Delivery) -> Result<(), String> {
        match delivery {
            Delivery::Created { watch_id, stamp } => {
                named(world, &stamp.header())?;
                self.created(world, *watch_id, stamp.revision.get())
            }
            Delivery::Events { watch_id, payload, from, .. } => {
                named(world, &payload.cluster().at(payload.revision()))?;
                self.events(world, *watch_id, payload, *from as usize)
            }
            Delivery::Progress { watch_id: NO_WATCH_ID, stamp } => {
                named(world, &stamp.header())?;
                self.stream_progress(world, stamp.revision.get())
            }
            Delivery::Progress { watch_id, stamp } => {
                named(world, &stamp.header())?;
                let watch = self.live(*watch_id)?;
                ensure(watch.spec.progress_notify, || format!("progress for {watch_id}, which did not ask for it"))?;
                watch.bookmarkable(world, stamp.revision.get())
            }
            Delivery::Canceled(cancellation) => self.canceled(world, cancellation),
        }
    }

    /// What is still missing when everything has settled.
    pub(crate) fn overdue(&self, world: &World) -> Option<String> {
        if let Some((spec, _)) = self.pending.front() {
            return Some(format!("no answer to {spec:?}"));
        }
        self.watches.values().find_map(|watch| {
            if watch.end != End::Canceled && watch.cancel_asked {
                return Some(format!("no answer to the cancel of {watch:?}"));
            }
            if watch.end != End::None {
                return None;
            }
            if watch.spec.epoch != world.epoch() {
                return Some(format!("not told that the cluster is another one: {watch:?}"));
            }
            let Spec { epoch, range, options, .. } = &watch.spec;
            world
                .first_wanted(*epoch, watch.position, i64::MAX, range, *options)
                .map(|revision| format!("revision {revision} never came to {watch:?}"))
        })
    }

    fn created(&mut self, world: &World, id: i64, revision: i64) -> Result<(), String> {
        let (spec, cancel_asked) = self.pending.pop_front().ok_or_else(|| format!("created {id} without a create"))?;
        ensure(spec.id == 0 || spec.id == id, || format!("created {id} for {spec:?}"))?;
        let taken = self.watches.get(&id).is_some_and(|watch| watch.end != End::Canceled);
        ensure(!taken, || format!("created {id} twice"))?;
        ensure(world.epoch_of(revision) == Some(spec.epoch), || {
            format!("created {id} at {revision} of another cluster")
        })?;
        let position = if spec.start == 0 { revision + 1 } else { spec.start };
        let watch = Watch { spec, position, last_event: 0, last_progress: 0, end: End::None, cancel_asked };
        self.watches.insert(id, watch);
        Ok(())
    }

    fn live(&mut self, id: i64) -> Result<&mut Watch, String> {
        let watch = self.watches.get_mut(&id).ok_or_else(|| format!("a delivery for {id}, which was not created"))?;
        ensure(watch.end == End::None, || format!("a delivery after the end of {watch:?}"))?;
        Ok(watch)
    }

    fn events(&mut self, world: &World, id: i64, payload: &Payload, from: usize) -> Result<(), String> {
        let watch = self.live(id)?;
        let mut bytes = Vec::new();
        let mut events = 0;
        for whole in payload.each(from) {
            watch.events(world, &whole).map_err(|error| format!("{error}: {watch:?}"))?;
            bytes.extend_from_slice(whole.bytes);
            events += whole.events;
        }
        self.events += payload.revisions() - from;
        self.runs += usize::from(payload.revisions() > 1);
        let sent = payload.bytes(from);
        ensure(sent == bytes && sent.len() == payload.size(from), || {
            format!("what is sent is not the revisions one after the other: {payload:?} from {from}")
        })?;
        ensure(events > 0 && events == payload.events(from), || format!("length of {payload:?} from {from}"))?;
        if payload.revisions() == 1 {
            let pieces: Vec<u8> = payload.pieces().flatten().collect();
            ensure(pieces == bytes, || format!("the pieces of {payload:?} are not the whole"))?;
        }
        Ok(())
    }

    fn stream_progress(&mut self, world: &World, revision: i64) -> Result<(), String> {
        let mut any = false;
        for watch in self.watches.values_mut().filter(|watch| watch.end != End::Canceled) {
            any = true;
            ensure(watch.end == End::None, || format!("progress {revision} although there is {watch:?}"))?;
            watch.bookmarkable(world, revision)?;
        }
        ensure(any, || "progress on a stream without watches".into())?;
        self.progress += 1;
        Ok(())
    }

    fn canceled(&mut self, world: &World, cancellation: &Cancellation) -> Result<(), String> {
        let id = cancellation.watch_id;
        let watch = self.watches.get_mut(&id).ok_or_else(|| format!("{cancellation:?} of an unknown watch"))?;
        let Spec { epoch, .. } = watch.spec;
        ensure(watch.end != End::Canceled, || format!("{cancellation:?} of {watch:?}"))?;
        let compact_revision = cancellation.compact_revision.get();
        if compact_revision != 0 {
            ensure(watch.end == End::None, || format!("{cancellation:?} of {watch:?}"))?;
            if cancellation.reason.is_empty() {
                let true_one = world.was_compacted_at(epoch, compact_revision) && watch.position < compact_revision;
                // A fill may hear it from the next cluster before the feed knows about that.
                ensure(true_one || world.epoch() != epoch, || format!("not true: {cancellation:?} of {watch:?}"))?;
            } else {
                ensure(world.epoch() != epoch, || format!("not replaced: {cancellation:?} of {watch:?}"))?;
            }
            ensure(cancellation.header.revision.get() == 0, || {
                format!("a compaction with a revision: {cancellation:?}")
            })?;
            watch.end = End::Compacted;
            self.compacted += 1;
            return Ok(());
        }
        let by_client = watch.cancel_asked && cancellation.reason.is_empty();
        ensure(by_client || cancellation.reason == CANCELED, || {
            format!("nobody asked for {cancellation:?} of {watch:?}")
        })?;
        watch.end = End::Canceled;
        Ok(())
    }
}

impl Watch {
    fn events(&mut self, world: &World, whole: &Whole<'_>) -> Result<(), String> {
        let Spec { range, options, epoch, .. } = &self.spec;
        let revision = whole.revision.get();
        let events = WatchResponse::decode(whole.bytes).map_err(|error| error.to_string())?.events;
        ensure(!events.is_empty() && events.len() == whole.events, || format!("length of {revision}"))?;
        ensure(world.epoch_of(revision) == Some(*epoch), || format!("revision {revision} of another cluster"))?;
        // Filter.
        let key =
            |event: &etcd_relay::pb::mvccpb::Event| event.kv.as_ref().map_or_else(Bytes::new, |kv| kv.key.clone());
        ensure(events.iter().all(|event| range.contains(&key(event))), || format!("filter: {revision}"))?;
        // Ordered, unique, atomic: a revision comes once, complete, after the previous one.
        ensure(revision > self.last_event, || format!("ordered, unique: {revision} after {}", self.last_event))?;
        ensure(revision >= self.position, || format!("bookmarkable, resumable: {revision} before {}", self.position))?;
        // Reliable.
        if let Some(lost) = world.first_wanted(*epoch, self.position, revision - 1, range, *options) {
            return Err(format!("reliable: {revision} came before {lost}"));
        }
        let (mut wanted, prev_may_be_absent) = world.wanted(revision, range, *options);
        for (event, wanted) in events.iter().zip(&mut wanted) {
            if prev_may_be_absent && event.prev_kv.is_none() {
                wanted.prev_kv = None;
            }
        }
        // Atomic, is_create, prev_kv: the same events, field by field.
        ensure(events == wanted, || format!("atomic, prev_kv: {events:?}, not {wanted:?}"))?;
        self.last_event = revision;
        self.position = revision + 1;
        Ok(())
    }

    fn bookmarkable(&mut self, world: &World, revision: i64) -> Result<(), String> {
        let Spec { range, options, epoch, .. } = &self.spec;
        let rises = revision >= self.last_event && revision >= self.last_progress;
        ensure(rises, || format!("bookmarkable: progress {revision} for {self:?}"))?;
        ensure(self.spec.start <= revision, || format!("bookmarkable: progress {revision} before {self:?} begins"))?;
        ensure(world.epoch_of(revision) == Some(*epoch), || format!("progress {revision} of another cluster"))?;
        if let Some(lost) = world.first_wanted(*epoch, self.position, revision, range, *options) {
            return Err(format!("bookmarkable: progress {revision} before {lost} for {self:?}"));
        }
        self.last_progress = revision;
        self.position = self.position.max(revision + 1);
        Ok(())
    }
}

pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
