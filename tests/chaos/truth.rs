//! [`Truth`]: what really happened in etcd, read from its members by a watch that no relay has a part in.
//!
//! Not here: the judging; see `judge`. Each cluster that there was is an [`Epoch`], in their order: a restore begins a new one. Always holds:
//! an epoch's log has every revision from the first to [`Epoch::reached`], since nothing is compacted that is not in it.

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

/// A member that says nothing for as long is left for the next one.
const SILENT: Duration = Duration::from_millis(1_500);
/// How often it is asked how far it is.
const ASK: Duration = Duration::from_millis(200);
/// How long an answer waits for the truth about it. No fault lasts for as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// All clusters that there were.
#[derive(Debug)]
pub struct Truth {
    epochs: watch::Sender<Vec<Arc<Epoch>>>,
}

/// One cluster.
#[derive(Debug)]
pub struct Epoch {
    /// Its place among them.
    pub number: usize,
    /// Its id.
    pub cluster_id: u64,
    /// What happened.
    pub replay: RwLock<Replay>,
    reached: watch::Sender<i64>,
    /// The newest revision of a write that was answered.
    acknowledged: AtomicI64,
    /// The newest revision that compaction was asked for, before it was.
    compacted: AtomicI64,
    /// Every key with every value that it was given, each of which is written once.
    written: Mutex<HashSet<(Bytes, Bytes)>>,
}

/// What had been acknowledged at some moment: the epoch's number and the revision.
pub type Floor = (usize, i64);

impl Truth {
    /// Nothing so far.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { epochs: watch::Sender::new(Vec::new()) })
    }

    /// The present cluster, once anything was read from it.
    pub async fn now(&self) -> Arc<Epoch> {
        let mut epochs = self.epochs.subscribe();
        let found = epochs.wait_for(|epochs| !epochs.is_empty()).await.expect("the sender lives as long as this");
        Arc::clone(&found[found.len() - 1])
    }

    /// The cluster of a header, which may be so new that nothing was read from it yet; none where there is no such cluster.
    pub async fn of(&self, cluster_id: u64) -> Option<Arc<Epoch>> {
        let mut epochs = self.epochs.subscribe();
        let known = |epochs: &Vec<Arc<Epoch>>| epochs.iter().any(|epoch| epoch.cluster_id == cluster_id);
        let found = tokio::time::timeout(PATIENCE, epochs.wait_for(known)).await.ok()?.ok()?;
        found.iter().find(|epoch| epoch.cluster_id == cluster_id).cloned()
    }

    /// What was acknowledged until now.
    pub fn floor(&self) -> Floor {
        let epochs = self.epochs.borrow();
        let known = epochs.iter().rev().map(|epoch| (epoch.number, epoch.acknowledged.load(Ordering::SeqCst)));
        known.into_iter().find(|(_, revision)| *revision > 0).unwrap_or((0, 0))
    }

    /// A write was answered.
    pub async fn acknowledge(&self, header: &ResponseHeader) -> Option<Arc<Epoch>> {
        let epoch = self.of(header.cluster_id).await?;
        epoch.acknowledged.fetch_max(header.revision, Ordering::SeqCst);
        Some(epoch)
    }

    /// Reads on and on, from one of these members and then another.
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
    /// Everything to here is in the log.
    pub fn reached(&self) -> i64 {
        *self.reached.borrow()
    }

    /// Waits until everything to `revision` is in the log; whether it came to that.
    pub async fn reach(&self, revision: i64) -> bool {
        let mut reached = self.reached.subscribe();
        tokio::time::timeout(PATIENCE, reached.wait_for(|reached| *reached >= revision)).await.is_ok()
    }

    /// Compaction to here is about to be asked for.
    pub fn compacts(&self, revision: i64) {
        self.compacted.fetch_max(revision, Ordering::SeqCst);
    }

    /// Nothing after here was compacted so far.
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

/// A cluster that is not known yet. What it has compacted is taken from the one before it, of whose snapshot it was made.
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
        // Where it is compacted, that comes at once; progress, where it is not.
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
