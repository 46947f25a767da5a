//! Watchers: each has some watches on a stream for a while, then continues at another relay; some do not read for a
//! while.
//!
//! They behave like careful clients: a watch that ends is resumed after its last revision. If that is compacted, or if
//! the cluster was replaced, the client lists the keys and watches from there. Always holds: everything that a stream
//! received is checked at its end by all rules of `support::validate`.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use etcd_relay::pb::etcdserverpb::{RangeRequest, WatchCreateRequest, watch_create_request::FilterType};
use fastrand::Rng;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    gaps::{Beat, What},
    link::{self, DEADLINE},
    scene::{ANY, DEMAND, PREFIX, Place, RELAYS, Scene},
    support::{
        client::{self, WatchStream, event_revision, header_revision, is_progress},
        kv::Kv,
        validate::{Expected, Operation, validate},
    },
    truth::Epoch,
    writers::key,
};

/// Watchers that read all the time, and watchers that do not.
const STEADY: usize = 15;
const SLOW: usize = 6;
/// How long a client waits before it checks whether a silent stream is still open.
const LOOK: Duration = Duration::from_millis(100);
/// Pause between two streams.
const PACE: Duration = Duration::from_millis(50);
/// The lifetime of a stream.
const LIFE: std::ops::Range<u64> = 3_000..20_000;

/// All of them.
pub fn spawn(scene: &Arc<Scene>, seed: &mut Rng, clients: &mut JoinSet<()>) {
    for number in 0..STEADY + SLOW {
        let slow = number >= STEADY;
        let watcher = Watcher {
            at: number % RELAYS.len(),
            wants: wants(number).into_iter().map(Want::new).collect(),
            slow,
            place: (!slow).then(|| scene.place()),
            // Only keys that are written all the time can reveal a gap.
            beat: (!slow && number % 5 == 0).then(|| scene.gaps.beat(What::Event, ANY)),
            dice: seed.fork(),
            scene: Arc::clone(scene),
        };
        clients.spawn(watcher.run());
    }
}

struct Watcher {
    scene: Arc<Scene>,
    dice: Rng,
    at: usize,
    wants: Vec<Want>,
    slow: bool,
    place: Option<Arc<Place>>,
    beat: Option<Arc<Beat>>,
}

/// A watch that continues over several streams.
struct Want {
    request: WatchCreateRequest,
    /// The epoch's number and the next revision that it needs; `None` if it has to list.
    next: Option<(usize, i64)>,
}

/// The watches of the watcher with this number.
fn wants(number: usize) -> Vec<WatchCreateRequest> {
    let all = || client::prefix(PREFIX);
    match number % 5 {
        0 => vec![all()],
        1 => vec![WatchCreateRequest { prev_kv: true, ..all() }, client::prefix(format!("{PREFIX}k1"))],
        2 => vec![
            client::key(key(7)),
            WatchCreateRequest { filters: vec![FilterType::Nodelete.into()], ..all() },
            WatchCreateRequest { progress_notify: true, ..client::prefix(format!("{PREFIX}k1")) },
        ],
        3 => vec![WatchCreateRequest { fragment: true, ..all() }, client::prefix(DEMAND)],
        _ => (0..8).map(|index| client::key(key(index))).chain([all()]).collect(),
    }
}

impl Want {
    fn new(request: WatchCreateRequest) -> Self {
        Self { request, next: None }
    }
}

impl Watcher {
    async fn run(mut self) {
        loop {
            let _without_a_stream = self.live().await;
            tokio::time::sleep(PACE).await;
            self.at = self.dice.usize(..RELAYS.len());
        }
    }

    /// One stream, from its lists to its end; `None` if it was never opened.
    async fn live(&mut self) -> Option<()> {
        let channel = link::connect(&self.scene.relays[self.at]).await?;
        let kv = Kv::over(channel.clone());
        for index in 0..self.wants.len() {
            if self.wants[index].next.is_none() {
                // Sometimes it starts from now on, without a list.
                self.wants[index].next =
                    if self.dice.u8(..4) == 0 { Some((0, 0)) } else { self.list(&kv, index).await };
                self.wants[index].next?;
            }
        }
        let mut stream = self.scene.token.stream(channel);
        let creates: Vec<_> = self
            .wants
            .iter()
            .map(|want| WatchCreateRequest {
                start_revision: want.next.map_or(0, |next| next.1),
                ..want.request.clone()
            })
            .collect();
        creates.iter().for_each(|create| stream.create(create.clone()));
        self.read(&mut stream, &creates).await;
        self.beat.iter().for_each(|beat| beat.rest());
        self.judge(&creates, &stream).await;
        Some(())
    }

    /// The current keys, for a watch from there on.
    async fn list(&self, kv: &Kv, index: usize) -> Option<(usize, i64)> {
        let WatchCreateRequest { key, range_end, .. } = self.wants[index].request.clone();
        let request = RangeRequest { key, range_end, ..RangeRequest::default() };
        let floor = self.scene.truth.floor();
        let mut kv = kv.raw.clone();
        let answer = timeout(DEADLINE, kv.range(self.scene.token.on(request.clone()))).await.ok()?.ok()?.into_inner();
        self.scene.judge().read(RELAYS[self.at], &request, &answer, floor).await;
        let header = answer.header?;
        Some((self.scene.truth.of(header.cluster_id).await?.number, header.revision + 1))
    }

    /// Reads, or does not, until the stream ends or its time is over.
    async fn read(&mut self, stream: &mut WatchStream, creates: &[WatchCreateRequest]) {
        let scene = Arc::clone(&self.scene);
        let end = Instant::now() + Duration::from_millis(self.dice.u64(LIFE));
        // Everything before its start was received or listed earlier.
        let mut told: Vec<i64> = creates.iter().map(|create| create.start_revision - 1).collect();
        let mut created = 0;
        let mut epoch: Option<Arc<Epoch>> = None;
        while Instant::now() < end {
            let crowd = scene.crowd.load(Ordering::Relaxed);
            if self.slow && (crowd || self.dice.u8(..30) == 0) {
                stream.pause();
                tokio::time::sleep(Duration::from_millis(self.dice.u64(200..5_000))).await;
                stream.resume();
            }
            let Some(recorded) = stream.take_within(LOOK).await else {
                if stream.has_ended() {
                    return self.was_ended();
                }
                continue;
            };
            let response = recorded.response;
            if response.canceled {
                return self.was_ended();
            }
            if let Some(header) = &response.header
                && epoch.as_ref().is_none_or(|epoch| epoch.cluster_id != header.cluster_id)
            {
                epoch = scene.truth.of(header.cluster_id).await;
            }
            if response.created {
                // From now on: earlier events do not concern this watch.
                told[created] = if told[created] < 0 { header_revision(&response) } else { told[created] };
                created += 1;
            }
            let last = response.events.last().filter(|_| !response.fragment).map(event_revision);
            let to = last.or_else(|| is_progress(&response).then(|| header_revision(&response)));
            if let Some(to) = to {
                match usize::try_from(response.watch_id) {
                    Ok(watch) => told[watch] = told[watch].max(to),
                    Err(_) => told.iter_mut().for_each(|told| *told = to.max(*told)),
                }
            }
            if created == creates.len() {
                self.beat.iter().for_each(|beat| beat.now());
            }
            if let (Some(place), Some(epoch)) = (&self.place, &epoch) {
                let all = if created == creates.len() { told.iter().copied().min().unwrap_or(0) } else { 0 };
                place.set(epoch.number, all);
            }
        }
    }

    /// Records that the relay ended the stream or one of its watches. A client that did not read may notice this much
    /// later.
    fn was_ended(&self) {
        self.scene.ended.fetch_add(usize::from(!self.slow), Ordering::Relaxed);
    }

    /// Compares everything that the stream received with the truth, and computes where the watches continue.
    async fn judge(&mut self, creates: &[WatchCreateRequest], stream: &WatchStream) {
        let scene = Arc::clone(&self.scene);
        let record = stream.record();
        let mut operations = Operation::of_stream(creates, &record);
        // Creates without an answer begin at their requested revision.
        for (operation, want) in operations.iter_mut().zip(&mut self.wants) {
            // A part of a revision does not count if the rest is missing.
            while operation.responses.last().is_some_and(|response| response.fragment) {
                operation.responses.pop();
            }
            let Some(created) = operation.responses.first().filter(|created| created.created) else { continue };
            let by = RELAYS[self.at];
            if created.canceled {
                // Refused: the client currently has no user, or the past is gone.
                want.next = want.next.filter(|_| created.compact_revision == 0);
                continue;
            }
            let Some(epoch) = scene.truth.of(created.header.as_ref().map_or(0, |header| header.cluster_id)).await
            else {
                scene.findings.add(&format!("{by}: a watch of a cluster that is not there: {created:?}"));
                continue;
            };
            // The only response that may come from another cluster is the cancel of a watch whose own cluster was
            // replaced.
            let replaced = was_replaced(&scene, operation, &epoch).await;
            if replaced {
                operation.responses.pop();
            }
            let told = operation.last_told();
            if !epoch.reach(told).await {
                scene.findings.add(&format!("{by}: a watch is told of {told}, and etcd is at {}", epoch.reached()));
                continue;
            }
            let mut wrong: Vec<String> = {
                let replay = epoch.replay.read();
                validate(operation, &replay, Expected::default()).iter().map(ToString::to_string).collect()
            };
            let compacted = operation.responses.iter().map(|response| response.compact_revision).max().unwrap_or(0);
            if compacted > epoch.compacted() {
                wrong.push(format!("told that {compacted} is compacted, where {} is", epoch.compacted()));
            }
            for wrong in wrong {
                let shape: Vec<_> = operation.responses.iter().map(shape).collect();
                let last = shape[shape.len().saturating_sub(6)..].join(" ");
                scene.findings.add(&format!("{by}: {wrong} ({:?}; … {last})", operation.request));
            }
            let events: usize = operation.responses.iter().map(|response| response.events.len()).sum();
            scene.findings.judged("events", events);
            scene.findings.judged("watches", 1);
            let start = match operation.request.start_revision {
                0 => header_revision(&operation.responses[0]) + 1,
                start => start,
            };
            let same_cluster = want.next.is_some_and(|(number, start)| start == 0 || number == epoch.number);
            let goes_on = same_cluster && !replaced && !was_canceled(operation);
            want.next = goes_on.then(|| (epoch.number, start.max(told + 1)));
        }
    }
}

/// Whether the watch was canceled by a cluster that came after its own.
async fn was_replaced(scene: &Scene, operation: &Operation, epoch: &Epoch) -> bool {
    let Some(last) = operation.responses.last().filter(|last| last.canceled) else { return false };
    let Some(cluster_id) = last.header.as_ref().map(|header| header.cluster_id) else { return false };
    cluster_id != epoch.cluster_id && scene.truth.of(cluster_id).await.is_some_and(|later| later.number > epoch.number)
}

fn was_canceled(operation: &Operation) -> bool {
    operation.responses.iter().any(|response| response.canceled)
}

fn shape(response: &etcd_relay::pb::etcdserverpb::WatchResponse) -> String {
    let revisions = client::revisions(response);
    let flags = (response.created, response.canceled, response.compact_revision);
    format!("[{} {flags:?} {:?}..{:?}]", header_revision(response), revisions.first(), revisions.last())
}
