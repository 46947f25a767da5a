//! [`Truth`]: what really happened in etcd, read from its members by a watch without any relay.
//!
//! Checks are in `judge`. Each cluster that existed is an [`Epoch`], in order: a restore begins a new one. Always
//! holds: an epoch's log has every revision from the first to [`Epoch::reached`], since only revisions in the log are
//! compacted.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_relay::pb::{
    etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse},
    mvccpb::{Event, event::EventType},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::{
    findings::Findings,
    link::{self, Token},
    support::{
        client::{self, WatchStream, event_revision, header_revision, is_progress},
        replay::Replay,
    },
};

/// A member that is silent for this long is replaced by the next one.
const SILENT: Duration = Duration::from_millis(1_500);
/// How often a member is asked for its progress.
const ASK: Duration = Duration::from_millis(200);
/// How long an answer waits until the truth has reached it. No fault lasts this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// All clusters that existed.
#[derive(Debug)]
pub struct Truth {
    epochs: watch::Sender<Vec<Arc<Epoch>>>,
}

/// One cluster.
#[derive(Debug)]
pub struct Epoch {
    /// Its index.
    pub number: usize,
    /// Its id.
    pub cluster_id: u64,
    /// What happened.
    pub replay: RwLock<Replay>,
    reached: watch::Sender<i64>,
    /// The newest acknowledged revision.
    acknowledged: AtomicI64,
    /// The newest revision for which a compaction was requested, recorded before the request.
    compacted: AtomicI64,
    /// Every key with each of its values; each pair is written only once.
    written: Mutex<HashSet<(Bytes, Bytes)>>,
}

/// What was acknowledged at some moment: the epoch's number and the revision.
pub type Floor = (usize, i64);

impl Truth {
    /// Nothing so far.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { epochs: watch::Sender::new(Vec::new()) })
    }

    /// The current cluster, once anything was read from it.
    pub async fn now(&self) -> Arc<Epoch> {
        let mut epochs = self.epochs.subscribe();
        let found = epochs.wait_for(|epochs| !epochs.is_empty()).await.expect("the sender lives as long as this");
        Arc::clone(&found[found.len() - 1])
    }

    /// The cluster of a header, even if nothing was read from it yet; `None` if there is no such cluster.
    pub async fn of(&self, cluster_id: u64) -> Option<Arc<Epoch>> {
        let mut epochs = self.epochs.subscribe();
        let known = |epochs: &Vec<Arc<Epoch>>| epochs.iter().any(|epoch| epoch.cluster_id == cluster_id);
        let found = tokio::time::timeout(PATIENCE, epochs.wait_for(known)).await.ok()?.ok()?;
        found.iter().find(|epoch| epoch.cluster_id == cluster_id).cloned()
    }

    /// What has been acknowledged so far.
    pub fn floor(&self) -> Floor {
        let epochs = self.epochs.borrow();
        let known = epochs.iter().rev().map(|epoch| (epoch.number, epoch.acknowledged.load(Ordering::SeqCst)));
        known.into_iter().find(|(_, revision)| *revision > 0).unwrap_or((0, 0))
    }

    /// Records an acknowledged write.
    pub async fn acknowledge(&self, header: &ResponseHeader) -> Option<Arc<Epoch>> {
        let epoch = self.of(header.cluster_id).await?;
        epoch.acknowledged.fetch_max(header.revision, Ordering::SeqCst);
        Some(epoch)
    }

    /// Keeps reading from one of these members and then another.
    pub async fn follow(self: Arc<Self>, members: Vec<String>, token: Token, findings: Arc<Findings>) {
        for round in 0.. {
            let _ended_or_silent = self.follow_one(&members[round % members.len()], &token, &findings).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn follow_one(&self, member: &str, token: &Token, findings: &Findings) -> Option<()> {
        let channel = link::connect(member).await?;
        let mut stream = token.stream(channel);
        let last = self.epochs.borrow().last().cloned();
        let start_revision = last.as_ref().map_or(1, |epoch| epoch.reached() + 1);
        stream.create(WatchCreateRequest { start_revision, ..client::prefix("") });
        let created = stream.take_within(SILENT).await?.response;
        if created.canceled {
            return None;
        }
        let cluster_id = created.header?.cluster_id;
        match last {
            Some(epoch) if epoch.cluster_id == cluster_id => follow_stream(&epoch, stream, findings).await,
            last => {
                let (epoch, stream) = begin(member, token, cluster_id, last.as_deref(), findings).await?;
                self.epochs.send_modify(|epochs| epochs.push(Arc::clone(&epoch)));
                follow_stream(&epoch, stream, findings).await
            }
        }
    }
}

impl Epoch {
    /// The revision up to which the log is complete.
    pub fn reached(&self) -> i64 {
        *self.reached.borrow()
    }

    /// Waits until the log is complete up to `revision`. Returns whether that happened.
    pub async fn reach(&self, revision: i64) -> bool {
        let mut reached = self.reached.subscribe();
        tokio::time::timeout(PATIENCE, reached.wait_for(|reached| *reached >= revision)).await.is_ok()
    }

    /// Records that a compaction will be requested.
    pub fn compacts(&self, revision: i64) {
        self.compacted.fetch_max(revision, Ordering::SeqCst);
    }

    /// The newest revision that may be compacted.
    pub fn compacted(&self) -> i64 {
        self.compacted.load(Ordering::SeqCst)
    }

    fn add(&self, response: &WatchResponse, findings: &Findings) {
        let known = self.reached();
        let new: Vec<Event> = response.events.iter().filter(|event| event_revision(event) > known).cloned().collect();
        for event in new.iter().filter(|event| event.r#type() == EventType::Put) {
            let kv = event.kv.as_ref().expect("an event has a key");
            if !self.written.lock().insert((kv.key.clone(), kv.value.clone())) {
                findings.add(&format!("a write was made twice: {:?} at {}", kv.key, kv.mod_revision));
            }
        }
        let last = new.last().map(event_revision);
        self.replay.write().extend(new);
        let to = last.or_else(|| is_progress(response).then(|| header_revision(response)));
        self.reached.send_if_modified(|reached| {
            to.is_some_and(|to| to > *reached) && {
                *reached = to.unwrap_or(0);
                true
            }
        });
    }
}

/// Begins the epoch of a new cluster. What it has compacted is taken from the previous one, whose snapshot it was made
/// from.
async fn begin(
    member: &str,
    token: &Token,
    cluster_id: u64,
    before: Option<&Epoch>,
    findings: &Findings,
) -> Option<(Arc<Epoch>, WatchStream)> {
    let (mut start_revision, mut replay) = (1, Replay::default());
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let mut stream = token.stream(link::connect(member).await?);
        stream.create(WatchCreateRequest { start_revision, ..client::prefix("") });
        let created = stream.take_within(SILENT).await?.response;
        if created.canceled || created.header?.cluster_id != cluster_id {
            return None;
        }
        // If it is compacted, that is reported at once; if it is not, progress comes.
        stream.progress();
        let first = stream.take_within(SILENT).await?.response;
        if first.compact_revision == 0 {
            let epoch = Arc::new(Epoch {
                number: before.map_or(0, |before| before.number + 1),
                cluster_id,
                replay: RwLock::new(replay),
                reached: watch::Sender::new(start_revision - 1),
                acknowledged: AtomicI64::new(0),
                compacted: AtomicI64::new(start_revision - 1),
                written: Mutex::default(),
            });
            epoch.add(&first, findings);
            return Some((epoch, stream));
        }
        let before = before?.replay.read();
        let base = before.events().iter().take_while(|event| event_revision(event) <= first.compact_revision);
        replay = Replay::from_events(base.cloned().collect());
        start_revision = first.compact_revision + 1;
    }
    None
}

async fn follow_stream(epoch: &Epoch, mut stream: WatchStream, findings: &Findings) -> Option<()> {
    let mut heard = Instant::now();
    while heard.elapsed() < SILENT && !stream.has_ended() {
        if let Some(recorded) = stream.take_within(ASK).await {
            heard = Instant::now();
            if recorded.response.canceled {
                findings.add(&format!("the truth itself was cut short: {:?}", recorded.response));
                return None;
            }
            epoch.add(&recorded.response, findings);
        } else {
            stream.progress();
        }
    }
    None
}
