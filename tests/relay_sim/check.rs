//! [`StreamCheck`]: checks each response on a client's watch streams against etcd's guarantees, and at the end whether
//! everything was delivered.
//!
//! The checks have the names of those in etcd's robustness tests: filter, ordered, unique, atomic, reliable, resumable,
//! bookmarkable, prev_kv. Each applies to a watch as its client sees it, which continues over all streams on which it
//! is created again. Always holds: a watch that the relay ended got one of etcd's errors for a correct reason.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use etcd_relay::{
    pb::{
        etcdserverpb::{WatchCreateRequest, WatchResponse},
        mvccpb,
    },
    types::{EventKind, KeyRange},
};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    cluster::{Cluster, Place},
    ensure,
    reads::{REVOKED, revoked_before},
    trace::Trace,
};

/// How long a create may wait for the current revision before it is served without it.
const CURRENT_PATIENCE: Duration = Duration::from_secs(1);

/// The longest wait of a client that reads at once, for the answer to a create and for events, while everything is
/// healthy.
const ANSWERED: Duration = Duration::from_secs(2);
const TOLD: Duration = Duration::from_secs(2);
/// The longest wait of a client that reads at once for the progress of a quiet watch that asked for it, while
/// everything is healthy: two of the relay's intervals.
const NOTIFIED: Duration = Duration::from_secs(6);
/// The longest wait of a client that reads at once for the answer to a cancel, whatever fails. Shorter than a create's
/// wait for its feed.
pub(crate) const CANCELED: Duration = Duration::from_secs(25);
/// Added if progress cannot be trusted: a fill of quiet keys then keeps its turn for this long while others wait.
const QUIET_FILL: Duration = Duration::from_secs(5);
/// How many responses with newer events other watches of a stream may get, per watch of the stream, while a watch still
/// waits.
const OVERTAKEN: usize = 8;

/// The properties of a watch.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// Key and range end.
    pub(crate) wire: (Bytes, Bytes),
    pub(crate) range: KeyRange,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
    pub(crate) prev_kv: bool,
    pub(crate) progress_notify: bool,
    pub(crate) fragment: bool,
    /// The start, and its cluster; `None` for "from now".
    pub(crate) start: Option<Place>,
}

impl Spec {
    /// A watch of one key from now.
    pub(crate) fn of(key: &'static str) -> Self {
        let key = Bytes::from_static(key.as_bytes());
        Self {
            wire: (key.clone(), Bytes::new()),
            range: KeyRange::single(key),
            no_put: false,
            no_delete: false,
            prev_kv: false,
            progress_notify: false,
            fragment: false,
            start: None,
        }
    }

    fn wants(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requested on the current stream, or to be requested on the next.
    Wanted,
    Created,
    /// Canceled because of compaction; its id stays in use.
    Compacted,
    /// Ended, by the client or by the relay.
    Over,
}

#[derive(Debug)]
struct Watch {
    spec: Spec,
    phase: Phase,
    id: i64,
    /// The cluster of its revisions; `None` until it is created, if it begins now.
    epoch: Option<usize>,
    /// Everything before this revision was delivered or not requested.
    position: i64,
    /// The start that was requested on the current stream; zero for "from now".
    begins: i64,
    last_event: i64,
    last_progress: i64,
    cancel_asked: bool,
    cancel_asked_at: Option<Instant>,
    /// When it last got a response, or was created.
    heard_at: Option<Instant>,
    /// Events of a response that is not complete yet.
    fragments: Vec<mvccpb::Event>,
    /// The permissions at the time of its request.
    rights: usize,
    /// How many responses with newer events others have got since.
    overtaken: usize,
    /// When it was created on the current stream.
    created_at: Option<Instant>,
}

/// A create without an answer.
#[derive(Debug)]
struct Pending {
    number: usize,
    asked: Place,
    asked_at: Instant,
    /// The cluster's health and permissions at the time of the request.
    health: Option<u64>,
    rights: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct StreamCheck {
    cluster: Arc<Cluster>,
    trace: Trace,
    token: Option<&'static str>,
    /// It reads at once, so a response has only just been sent.
    prompt: bool,
    watches: Vec<Watch>,
    pending: VecDeque<Pending>,
    ids: BTreeMap<i64, usize>,
    failure: Option<String>,
    pub(crate) counts: Counts,
}

/// Counts of what was seen, so that a schedule that tests nothing is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) events: usize,
    pub(crate) progress: usize,
    pub(crate) created: usize,
    pub(crate) refused: usize,
    pub(crate) compacted: usize,
    pub(crate) revoked: usize,
    pub(crate) told: usize,
    pub(crate) resumed: usize,
    /// The longest wait of a prompt client while everything was healthy: for the answer to a create, and for events.
    pub(crate) slowest: (Duration, Duration),
    /// The longest wait of such a client's quiet watch for progress.
    pub(crate) quiet: Duration,
    /// The most responses per watch of a stream, rounded up, see [`OVERTAKEN`].
    pub(crate) overtaken: usize,
}

impl StreamCheck {
    pub(crate) fn new(cluster: Arc<Cluster>, trace: Trace, token: Option<&'static str>, prompt: bool) -> Self {
        Self {
            cluster,
            trace,
            token,
            prompt,
            watches: Vec::new(),
            pending: VecDeque::new(),
            ids: BTreeMap::new(),
            failure: None,
            counts: Counts::default(),
        }
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.clone()
    }

    /// Adds a create that will be sent.
    pub(crate) fn expect(&mut self, spec: Spec) -> WatchCreateRequest {
        let start = spec.start.map_or(0, |start| start.revision);
        let request = spec.request(start);
        self.watches.push(Watch {
            epoch: spec.start.map(|start| start.epoch),
            position: start,
            begins: 0,
            phase: Phase::Wanted,
            id: -1,
            last_event: 0,
            last_progress: 0,
            cancel_asked: false,
            cancel_asked_at: None,
            heard_at: None,
            fragments: Vec::new(),
            rights: 0,
            overtaken: 0,
            created_at: None,
            spec,
        });
        self.ask(self.watches.len() - 1);
        request
    }

    fn ask(&mut self, number: usize) {
        self.watches[number].begins = self.watches[number].position;
        let (asked, health, rights) = (self.cluster.now(), self.cluster.health(), self.cluster.rights_now());
        self.pending.push_back(Pending { number, asked, asked_at: Instant::now(), health, rights });
    }

    /// The stream has ended. Its watches that have not ended must be created again.
    pub(crate) fn ended(&mut self) {
        self.pending.clear();
        self.ids.clear();
        for watch in &mut self.watches {
            watch.fragments.clear();
            watch.overtaken = 0;
            watch.phase = match watch.phase {
                Phase::Wanted | Phase::Created if !watch.cancel_asked => Phase::Wanted,
                _ => Phase::Over,
            };
        }
    }

    /// The stream ended with this status.
    pub(crate) fn told(&mut self, why: &Status) {
        self.trace.note(format!("{:?} comes again: {why:?}", self.token));
        self.counts.told += 1;
    }

    /// The creates for a new stream: all watches that continue, from their positions.
    pub(crate) fn resume(&mut self) -> Vec<WatchCreateRequest> {
        let wanted: Vec<usize> =
            (0..self.watches.len()).filter(|number| self.watches[*number].phase == Phase::Wanted).collect();
        wanted
            .into_iter()
            .map(|number| {
                self.counts.resumed += 1;
                self.ask(number);
                self.watches[number].spec.request(self.watches[number].position)
            })
            .collect()
    }

    /// The client cancels one of its watches. Returns its id, if it has one that may be canceled.
    pub(crate) fn cancel(&mut self, number: usize) -> Option<i64> {
        let ids: Vec<(i64, usize)> = self.ids.iter().map(|(id, number)| (*id, *number)).collect();
        let (id, number) = *ids.get(number % ids.len().max(1))?;
        let watch = &mut self.watches[number];
        watch.cancel_asked_at.get_or_insert_with(Instant::now);
        (!std::mem::replace(&mut watch.cancel_asked, true)).then_some(id)
    }

    /// Checks that a client that reads at once gets answers and events in a time that does not depend on other clients.
    pub(crate) fn look_for_delays(&mut self) {
        self.look_for_cancels();
        let Some(well_since) = self.cluster.well_since().filter(|_| self.prompt && self.failure.is_none()) else {
            return;
        };
        let now = Instant::now();
        let waits = |since: Instant| now.saturating_duration_since(since.max(well_since));
        if let Some(pending) = self.pending.front() {
            let waits = waits(pending.asked_at);
            self.counts.slowest.0 = self.counts.slowest.0.max(waits);
            if waits > ANSWERED {
                let watch = &self.watches[pending.number];
                self.failure = Some(format!("starved: no answer for {waits:?} to {pending:?}, {watch:?}"));
                return;
            }
        }
        let Place { epoch: epoch_now, revision: newest } = self.cluster.now();
        for watch in &self.watches {
            let (Some(created_at), Phase::Created, false) = (watch.created_at, watch.phase, watch.cancel_asked) else {
                continue;
            };
            let spec = &watch.spec;
            let Some(epoch) = watch.epoch.filter(|epoch| *epoch == epoch_now) else { continue };
            let owed = self.cluster.first_wanted(epoch, watch.position, i64::MAX, &spec.range, |kind| spec.wants(kind));
            let permitted = self.cluster.permitted_always(watch.rights, self.token, &spec.range);
            if let Some(heard_at) = watch.heard_at
                && spec.progress_notify
                && permitted
                && watch.begins.max(watch.position - 1) <= newest
                // Otherwise a watch that is being filled looks behind to the relay until its keys change.
                && self.cluster.trusted()
            {
                // A watch that begins at a future revision gets nothing before that.
                let revision = watch.begins.max(watch.position - 1);
                let begins = self.cluster.made_at(Place { epoch, revision });
                let waits = waits(begins.map_or(heard_at, |begins| begins.max(heard_at)));
                self.counts.quiet = self.counts.quiet.max(waits);
                if waits > NOTIFIED {
                    self.failure = Some(format!("starved: no progress for {waits:?} to {watch:?}"));
                    return;
                }
            }
            let Some(revision) = owed else { continue };
            if !permitted {
                continue;
            }
            let made_at = self.cluster.made_at(Place { epoch, revision }).unwrap_or(now);
            let waits = waits(made_at.max(created_at));
            self.counts.slowest.1 = self.counts.slowest.1.max(waits);
            let most = if self.cluster.trusted() { TOLD } else { TOLD + QUIET_FILL };
            if waits > most {
                self.failure = Some(format!("starved: revision {revision} has not come for {waits:?} to {watch:?}"));
                return;
            }
        }
    }

    /// Checks that cancels do not wait for what other requests of the client wait for.
    fn look_for_cancels(&mut self) {
        if !self.prompt || self.failure.is_some() {
            return;
        }
        for watch in &self.watches {
            let waits = watch.cancel_asked_at.filter(|_| watch.phase != Phase::Over).map(|asked| asked.elapsed());
            if waits.is_some_and(|waits| waits > CANCELED) {
                self.failure = Some(format!("starved: no answer for {waits:?} to the cancel of {watch:?}"));
                return;
            }
        }
    }

    /// Checks one response. Returns the ids of watches that the client no longer wants.
    pub(crate) fn take(&mut self, response: WatchResponse) -> Vec<i64> {
        if self.failure.is_some() {
            return Vec::new();
        }
        self.trace.note(format!("{:?} hears {}", self.token, brief(&response)));
        let mut unwanted = Vec::new();
        if let Err(error) = self.check(&response, &mut unwanted) {
            let now = self.cluster.now();
            let told = brief(&response);
            self.failure = Some(format!("{error}\n  in {told}\n  to {:?}, with the cluster at {now:?}", self.token));
        }
        unwanted
    }

    fn check(&mut self, response: &WatchResponse, unwanted: &mut Vec<i64>) -> Result<(), String> {
        let header = response.header.as_ref().ok_or("no header")?;
        let id = response.watch_id;
        if response.created {
            return self.created(response, unwanted);
        }
        if response.canceled {
            return self.canceled(response);
        }
        let place = self.cluster.place_of(header.revision).ok_or("the header's revision is none of any cluster's")?;
        ensure(header.cluster_id == self.cluster.id_of(place.epoch), || {
            format!("the header's cluster is not the one of its revision, {place:?}")
        })?;
        if response.events.is_empty() && !response.fragment {
            return if id == -1 { self.stream_progress(place) } else { self.progress(id, place) };
        }
        let number = *self.ids.get(&id).ok_or("events for an unknown watch")?;
        let (cluster, token, prompt) = (self.cluster.clone(), self.token, self.prompt);
        let watch = &mut self.watches[number];
        watch.heard_at = Some(Instant::now());
        if watch.phase == Phase::Over && watch.cancel_asked {
            // No longer wanted, but the relay does not know that yet.
            return Ok(());
        }
        ensure(watch.phase == Phase::Created, || format!("events after the end of {watch:?}"))?;
        ensure(watch.spec.fragment || !response.fragment, || "a fragment to who did not ask for it".into())?;
        watch.fragments.extend(response.events.iter().cloned());
        if prompt {
            for event in &response.events {
                let key = event.kv.as_ref().map(|kv| kv.key.clone()).unwrap_or_default();
                let since = cluster.reachable_ago(REVOKED);
                let range = KeyRange::single(key);
                ensure(cluster.permitted_since(since, token, &range), || {
                    format!("revoked more than {REVOKED:?} ago: {range} for {token:?}")
                })?;
            }
        }
        if response.fragment {
            return Ok(());
        }
        let events = std::mem::take(&mut watch.fragments);
        let mut rest = &events[..];
        while let Some(first) = rest.first() {
            let revision = revision_of(first);
            let len = rest.iter().take_while(|event| revision_of(event) == revision).count();
            watch.events(&cluster, revision, &rest[..len]).map_err(|error| format!("{error}: {watch:?}"))?;
            rest = &rest[len..];
            self.counts.events += 1;
        }
        ensure(place.revision >= watch.last_event, || format!("a header before its events, {place:?}"))?;
        watch.overtaken = 0;
        self.nobody_is_passed_over(number, events.first().map_or(0, revision_of))
    }

    /// The watches of a stream that are furthest behind come first, so none waits while the others continue.
    fn nobody_is_passed_over(&mut self, served: usize, revision: i64) -> Result<(), String> {
        if self.cluster.well_since().is_none() {
            return Ok(());
        }
        let watches = self.ids.len().max(8);
        for number in self.ids.values().copied().filter(|number| *number != served) {
            let watch = &mut self.watches[number];
            let Some(epoch) = watch.epoch.filter(|_| watch.phase == Phase::Created && !watch.cancel_asked) else {
                continue;
            };
            let spec = &watch.spec;
            let waits =
                self.cluster.first_wanted(epoch, watch.position, revision - 1, &spec.range, |kind| spec.wants(kind));
            watch.overtaken = if waits.is_some() { watch.overtaken + 1 } else { 0 };
            self.counts.overtaken = self.counts.overtaken.max(watch.overtaken.div_ceil(watches));
            ensure(watch.overtaken <= OVERTAKEN * watches, || {
                format!("starved by other watches of its stream: {watch:?}")
            })?;
        }
        Ok(())
    }

    fn created(&mut self, response: &WatchResponse, unwanted: &mut Vec<i64>) -> Result<(), String> {
        let pending = self.pending.pop_front().ok_or("created without a create")?;
        let header = response.header.as_ref().ok_or("no header")?;
        let watch = &mut self.watches[pending.number];
        let now = Instant::now();
        if response.canceled {
            ensure(response.watch_id == -1, || "refused with an id".into())?;
            watch.phase = Phase::Over;
            self.counts.refused += 1;
            if response.cancel_reason.starts_with("rpc error") {
                let permitted = self.cluster.permitted_always(pending.rights, self.token, &watch.spec.range);
                ensure(!permitted, || format!("refused what was granted: {watch:?}"))?;
            } else {
                ensure(response.cancel_reason.starts_with("etcd-relay: "), || {
                    format!("refused without a reason: {watch:?}")
                })?;
                let well = self.prompt && self.cluster.health().is_some() && self.cluster.health() == pending.health;
                ensure(!well || response.cancel_reason.contains("--"), || {
                    format!("refused while all was well: {watch:?}")
                })?;
            }
            return Ok(());
        }
        let place = self.cluster.place_of(header.revision).ok_or("created at a revision that no cluster made")?;
        ensure(header.cluster_id == self.cluster.id_of(place.epoch), || {
            format!("the header's cluster is not the one of its revision, {place:?}")
        })?;
        let soon = now.duration_since(pending.asked_at) < CURRENT_PATIENCE;
        let well = self.cluster.trusted() && self.cluster.health().is_some() && self.cluster.health() == pending.health;
        ensure(!(self.prompt && soon && well) || place >= pending.asked, || {
            format!("created at {place:?}, which was old when it was asked for: {pending:?}")
        })?;
        let permitted_since = revoked_before(&self.cluster, pending.asked_at, false);
        ensure(self.cluster.permitted_since(permitted_since, self.token, &watch.spec.range), || {
            format!("created for who may not read it: {watch:?}")
        })?;
        ensure(!self.ids.contains_key(&response.watch_id), || "an id that is taken".into())?;
        self.counts.created += 1;
        self.ids.insert(response.watch_id, pending.number);
        watch.id = response.watch_id;
        watch.phase = Phase::Created;
        watch.rights = pending.rights;
        watch.created_at = Some(now);
        watch.heard_at = Some(now);
        if watch.epoch.is_some_and(|epoch| epoch != place.epoch) {
            // The revisions of another cluster mean nothing, and nothing is guaranteed to a client that requests them.
            watch.phase = Phase::Over;
            watch.cancel_asked = true;
            unwanted.push(response.watch_id);
            return Ok(());
        }
        if watch.epoch.is_none() {
            watch.epoch = Some(place.epoch);
            watch.position = place.revision + 1;
        }
        Ok(())
    }

    fn stream_progress(&mut self, place: Place) -> Result<(), String> {
        let mut any = false;
        for number in self.ids.values() {
            let watch = &mut self.watches[*number];
            any = true;
            if watch.phase == Phase::Over {
                continue;
            }
            ensure(watch.phase == Phase::Created, || format!("progress although there is {watch:?}"))?;
            watch.bookmark(&self.cluster, place)?;
        }
        ensure(any, || "progress on a stream without watches".into())?;
        self.counts.progress += 1;
        Ok(())
    }

    fn progress(&mut self, id: i64, place: Place) -> Result<(), String> {
        let number = *self.ids.get(&id).ok_or("progress of an unknown watch")?;
        let watch = &mut self.watches[number];
        if watch.phase == Phase::Over {
            return Ok(());
        }
        ensure(watch.phase == Phase::Created && watch.spec.progress_notify, || {
            format!("progress that was not asked for: {watch:?}")
        })?;
        self.counts.progress += 1;
        watch.heard_at = Some(Instant::now());
        watch.bookmark(&self.cluster, place)
    }

    fn canceled(&mut self, response: &WatchResponse) -> Result<(), String> {
        let number = *self.ids.get(&response.watch_id).ok_or("the end of an unknown watch")?;
        let watch = &mut self.watches[number];
        let epoch = watch.epoch;
        let of_now = epoch == Some(self.cluster.now().epoch);
        if response.compact_revision != 0 {
            let compact_revision = response.compact_revision;
            ensure(watch.phase != Phase::Compacted, || format!("compacted twice: {watch:?}"))?;
            ensure(response.header.as_ref().is_some_and(|header| header.revision == 0), || {
                "a compaction with a revision, which clients would go on from".into()
            })?;
            let is_true = epoch.is_some_and(|epoch| self.cluster.was_compacted_at(epoch, compact_revision));
            let true_one = is_true && watch.position < compact_revision;
            ensure(true_one || !of_now || watch.phase == Phase::Over, || format!("not compacted: {watch:?}"))?;
            if watch.phase == Phase::Created {
                watch.phase = Phase::Compacted;
            }
            self.counts.compacted += 1;
            return Ok(());
        }
        let reason = &response.cancel_reason;
        if reason.is_empty() {
            ensure(watch.cancel_asked, || format!("an unrequested end of {watch:?}"))?;
        } else if reason.starts_with("rpc error") {
            let permitted = self.cluster.permitted_always(watch.rights, self.token, &watch.spec.range);
            ensure(!permitted, || format!("revoked what was granted: {watch:?}"))?;
            self.counts.revoked += 1;
        } else {
            // Ended with the cluster's error, or with the relay's if that knows more.
            ensure(!of_now || self.cluster.health() != Some(0), || format!("ended although all was well: {watch:?}"))?;
        }
        watch.phase = Phase::Over;
        self.ids.remove(&response.watch_id);
        Ok(())
    }

    /// What is still missing when everything has settled.
    pub(crate) fn overdue(&self) -> Option<String> {
        if let Some(pending) = self.pending.front() {
            return Some(format!("no answer to {:?}", self.watches[pending.number]));
        }
        self.watches.iter().find_map(|watch| {
            if matches!(watch.phase, Phase::Over | Phase::Compacted) {
                return None;
            }
            if watch.cancel_asked {
                return Some(format!("no answer to the cancel of {watch:?}"));
            }
            let epoch = watch.epoch?;
            if epoch != self.cluster.now().epoch {
                return Some(format!("not told that the cluster is another one: {watch:?}"));
            }
            let spec = &watch.spec;
            self.cluster
                .first_wanted(epoch, watch.position, i64::MAX, &spec.range, |kind| spec.wants(kind))
                .map(|revision| format!("revision {revision} never came to {watch:?}"))
        })
    }
}

impl Watch {
    fn events(&mut self, cluster: &Cluster, revision: i64, events: &[mvccpb::Event]) -> Result<(), String> {
        let epoch = self.epoch.ok_or("events before it was created")?;
        let place = cluster.place_of(revision).ok_or_else(|| format!("{revision} was never made"))?;
        ensure(place.epoch == epoch, || format!("{place:?} is of another cluster"))?;
        let spec = &self.spec;
        let key = |event: &mvccpb::Event| event.kv.as_ref().map_or_else(Bytes::new, |kv| kv.key.clone());
        ensure(events.iter().all(|event| spec.range.contains(&key(event))), || format!("filter: {revision}"))?;
        ensure(revision > self.last_event, || format!("ordered, unique, atomic: {revision} again or late"))?;
        ensure(revision >= self.position, || format!("bookmarkable, resumable: {revision}"))?;
        if let Some(lost) =
            cluster.first_wanted(epoch, self.position, revision - 1, &spec.range, |kind| spec.wants(kind))
        {
            return Err(format!("reliable: {revision} came before {lost}"));
        }
        let (mut wanted, may_be_absent) = cluster.wanted(place, &spec.range, spec.prev_kv, |kind| spec.wants(kind));
        for (event, wanted) in events.iter().zip(&mut wanted) {
            if may_be_absent && event.prev_kv.is_none() {
                wanted.prev_kv = None;
            }
        }
        ensure(events == wanted, || format!("atomic, prev_kv: {events:?}, not {wanted:?}"))?;
        self.last_event = revision;
        self.position = revision + 1;
        Ok(())
    }

    fn bookmark(&mut self, cluster: &Cluster, place: Place) -> Result<(), String> {
        let epoch = self.epoch.ok_or("progress before it was created")?;
        ensure(place.epoch == epoch, || format!("progress at {place:?} of another cluster: {self:?}"))?;
        let rises = place.revision >= self.last_event && place.revision >= self.last_progress;
        ensure(rises, || format!("bookmarkable: {place:?} falls: {self:?}"))?;
        ensure(place.revision >= self.begins, || format!("bookmarkable: {place:?} is before it begins: {self:?}"))?;
        let spec = &self.spec;
        if let Some(lost) =
            cluster.first_wanted(epoch, self.position, place.revision, &spec.range, |kind| spec.wants(kind))
        {
            return Err(format!("bookmarkable: progress at {place:?} before {lost}: {self:?}"));
        }
        self.last_progress = place.revision;
        self.position = self.position.max(place.revision + 1);
        Ok(())
    }
}

fn revision_of(event: &mvccpb::Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// A summary of a response in one line.
fn brief(response: &WatchResponse) -> String {
    let WatchResponse { watch_id, created, canceled, compact_revision, cancel_reason, fragment, events, .. } = response;
    let header = response.header.as_ref().map(|header| (header.cluster_id, header.revision));
    let mut line = format!("{watch_id} {header:?}");
    let flags = [(*created, "created"), (*canceled, "canceled"), (*fragment, "fragment")];
    flags.iter().filter(|(is, _)| *is).for_each(|(_, name)| line.extend([" ", name]));
    if *canceled {
        line.push_str(&format!(" {compact_revision} {cancel_reason:?}"));
    }
    let revisions: Vec<i64> = events.iter().map(revision_of).collect();
    if !revisions.is_empty() {
        line.push_str(&format!(" {revisions:?}"));
    }
    line
}
