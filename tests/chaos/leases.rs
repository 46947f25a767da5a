//! Holders of leases: each keeps one alive, at one relay after the other, like a registered service; some of them die
//! suddenly.
//!
//! An answered keep-alive is a promise for as long as it says. A keep-alive that no client sent must not reach etcd:
//! once a holder is dead, its lease only ages. The keys of the leases are read and watched in `watchers`. Always holds:
//! a holder that stays alive has put its key under its current lease, or is about to.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_relay::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseTimeToLiveRequest, PutRequest,
    StatusRequest, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
};
use fastrand::Rng;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    link::{self, DEADLINE, Token},
    scene::{PREFIX, RELAYS, Scene},
    support::kv::{Kv, put},
};

/// Holders that stay alive, and holders that die again and again.
const LIVING: usize = 6;
const DYING: usize = 3;
/// The time to live of each lease in seconds, longer than any fault.
const TTL: i64 = 15;
/// Time between two keep-alives.
const BEAT: Duration = Duration::from_secs(2);
/// How long a holder waits for an answer before it tries another relay.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Pause between two attempts, and between two checks of a lease.
const PACE: Duration = Duration::from_millis(200);
/// The lifetime of holders that die.
const LIFE: std::ops::Range<u64> = 3_000..10_000;
/// A leader that was cut off may still answer for a moment, and another leader does not know of that.
const ETCDS_OWN: Duration = Duration::from_secs(4);
/// How long a keep-alive may be under way if a frozen member has it.
const ON_ITS_WAY: Duration = Duration::from_secs(20);

/// All of them.
pub fn spawn(scene: &Arc<Scene>, seed: &mut Rng, clients: &mut JoinSet<()>) {
    for number in 0..LIVING + DYING {
        let lives = number < LIVING;
        let holder = Holder {
            scene: Arc::clone(scene),
            dice: seed.fork(),
            number,
            at: number % RELAYS.len(),
            kept: lives.then(|| scene.kept()),
        };
        clients.spawn(holder.run());
    }
}

struct Holder {
    scene: Arc<Scene>,
    dice: Rng,
    number: usize,
    at: usize,
    /// Whether its lease is kept alive, with its key; `None` for one that dies.
    kept: Option<Arc<AtomicBool>>,
}

/// A lease that is held.
struct Lease {
    id: i64,
    cluster_id: u64,
    /// Its promised end.
    until: Instant,
    /// When the last keep-alive remained unanswered.
    unanswered: Option<Instant>,
}

/// Why a holder has no lease any more.
enum End {
    /// It dies.
    Dead,
    /// Its cluster was replaced.
    Replaced,
    /// etcd says that the lease does not exist.
    Gone,
}

impl Holder {
    async fn run(mut self) {
        for round in 0_u64.. {
            if let Some(kept) = &self.kept {
                kept.store(false, Ordering::SeqCst);
            }
            let _without_a_lease = self.live(round).await;
            sleep(PACE).await;
            self.at = self.dice.usize(..RELAYS.len());
        }
    }

    /// One life, from a grant to the end of the lease; `None` if it was not granted.
    async fn live(&mut self, round: u64) -> Option<()> {
        let mut lease = self.grant(round).await?;
        let death = self.kept.is_none().then(|| Instant::now() + Duration::from_millis(self.dice.u64(LIFE)));
        let end = loop {
            if let Some(end) = self.keep(&mut lease, death).await {
                break end;
            }
            sleep(PACE).await;
            self.at = (self.at + 1) % RELAYS.len();
        };
        match end {
            End::Dead => self.look_on(&lease).await,
            End::Replaced => {}
            End::Gone => self.judge_gone(&lease),
        }
        Some(())
    }

    async fn grant(&self, round: u64) -> Option<Lease> {
        let (scene, by) = (&self.scene, RELAYS[self.at]);
        let channel = link::connect(&scene.relays[self.at]).await?;
        let sent = Instant::now();
        let request = scene.token.on(LeaseGrantRequest { id: 0, ttl: TTL });
        let granted = timeout(DEADLINE, LeaseClient::new(channel.clone()).lease_grant(request)).await.ok()?.ok()?;
        let granted = granted.into_inner();
        let cluster_id = granted.header?.cluster_id;
        if self.kept.is_some() {
            let (key, value) = (format!("{PREFIX}lease/{}", self.number), format!("{}-{round}", self.number));
            let writing = scene.write().await;
            let request = PutRequest { lease: granted.id, ..put(&key, &value) };
            let mut kv = Kv::over(channel).raw;
            let answer = timeout(DEADLINE, kv.put(scene.token.on(request))).await;
            drop(writing);
            let header = answer.ok()?.ok()?.into_inner().header;
            scene.judge().wrote(by, header, &[(Bytes::from(key), Some(Bytes::from(value)))]).await;
        }
        Some(Lease { id: granted.id, cluster_id, until: sent + seconds(TTL), unanswered: None })
    }

    /// Keeps the lease alive on one stream, until the lease ends or the stream fails.
    async fn keep(&self, lease: &mut Lease, death: Option<Instant>) -> Option<End> {
        let mut stream: Option<Stream> = None;
        loop {
            if death.is_some_and(|death| Instant::now() >= death) {
                return Some(End::Dead);
            }
            let sent = Instant::now();
            let answer = timeout(PATIENCE, async {
                if stream.is_none() {
                    stream = Some(Stream::open(&self.scene, self.at, lease.id).await?);
                }
                stream.as_mut()?.beat(lease.id).await
            });
            let Some(answer) = answer.await.ok().flatten() else {
                lease.unanswered = Some(Instant::now());
                return None;
            };
            self.scene.findings.judged("keep-alives", 1);
            if answer.header.as_ref().is_none_or(|header| header.cluster_id != lease.cluster_id) {
                return Some(End::Replaced);
            }
            if answer.ttl <= 0 {
                return Some(End::Gone);
            }
            lease.until = sent + seconds(answer.ttl);
            self.kept.iter().for_each(|kept| kept.store(true, Ordering::SeqCst));
            sleep(BEAT).await;
        }
    }

    fn judge_gone(&self, lease: &Lease) {
        let (by, now) = (RELAYS[self.at], Instant::now());
        let early = lease.until.saturating_duration_since(now);
        if early > ETCDS_OWN {
            self.scene.findings.add(&format!("{by}: lease {:x} is gone {early:?} before its time", lease.id));
        } else if self.scene.judges_time {
            self.scene.findings.add(&format!("{by}: lease {:x} of a living client was lost", lease.id));
        }
    }

    /// Nobody keeps the lease alive any more, so its remaining time at one leader must only fall, until the lease is
    /// gone. A new leader begins with the full time.
    async fn look_on(&self, lease: &Lease) {
        let scene = &self.scene;
        let died = Instant::now();
        let late = lease.unanswered.is_some_and(|at| at.elapsed() < ON_ITS_WAY);
        let patience = if late { ON_ITS_WAY } else { Duration::ZERO };
        let channels: Vec<Channel> = scene.members.iter().map(|member| link::lasting(member)).collect();
        let mut left: BTreeMap<u64, i64> = BTreeMap::new();
        for round in 0_usize.. {
            sleep(PACE).await;
            let look = Look { token: &scene.token, member: &channels[round % channels.len()], lease };
            let Ok(Some(seen)) = timeout(PATIENCE, look.by_a_leader()).await else { continue };
            let (term, ttl) = match seen {
                Seen::Replaced => return,
                Seen::Left { ttl, .. } if ttl <= 0 => {
                    scene.findings.judged("leases of the dead", 1);
                    return;
                }
                Seen::Left { term, ttl } => (term, ttl),
            };
            let known = left.insert(term, ttl);
            if let Some(known) = known.filter(|known| ttl > *known && died.elapsed() > patience) {
                let (id, after) = (lease.id, died.elapsed());
                scene.findings.add(&format!(
                    "lease {id:x} was kept alive {after:?} after the death of its client: {known} s left, then {ttl} s, in term {term}"
                ));
                return;
            }
        }
    }
}

/// A question to a member, how much time is left for a lease.
struct Look<'a> {
    token: &'a Token,
    member: &'a Channel,
    lease: &'a Lease,
}

enum Seen {
    /// The member is one of another cluster.
    Replaced,
    /// In seconds, as the leader of that term counts them.
    Left { term: u64, ttl: i64 },
}

impl Look<'_> {
    /// What the member says of the lease, if it leads the cluster, in one term, before it answers and after. Any other
    /// member hands on what a leader told it, which may be the last leader, and puts the newest term beside it.
    async fn by_a_leader(&self) -> Option<Seen> {
        let before = self.term_led().await?;
        let request = self.token.on(LeaseTimeToLiveRequest { id: self.lease.id, keys: false });
        let answer = LeaseClient::new(self.member.clone()).lease_time_to_live(request).await.ok()?.into_inner();
        if answer.header.as_ref()?.cluster_id != self.lease.cluster_id {
            return Some(Seen::Replaced);
        }
        let after = self.term_led().await?;
        (before == after).then_some(Seen::Left { term: before, ttl: answer.ttl })
    }

    async fn term_led(&self) -> Option<u64> {
        let request = self.token.on(StatusRequest {});
        let status = MaintenanceClient::new(self.member.clone()).status(request).await.ok()?.into_inner();
        (status.header?.member_id == status.leader).then_some(status.raft_term)
    }
}

/// A stream of keep-alives.
struct Stream {
    beats: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
    /// The first message was sent with the call.
    first: bool,
}

impl Stream {
    async fn open(scene: &Scene, at: usize, id: i64) -> Option<Self> {
        let channel = link::connect(&scene.relays[at]).await?;
        let (beats, requests) = mpsc::channel(1);
        beats.try_send(LeaseKeepAliveRequest { id }).ok()?;
        let request = scene.token.on(ReceiverStream::new(requests));
        let answers = LeaseClient::new(channel).lease_keep_alive(request).await.ok()?.into_inner();
        Some(Self { beats, answers, first: true })
    }

    /// Sends a keep-alive and waits for its answer.
    async fn beat(&mut self, id: i64) -> Option<LeaseKeepAliveResponse> {
        if !std::mem::take(&mut self.first) {
            self.beats.send(LeaseKeepAliveRequest { id }).await.ok()?;
        }
        self.answers.message().await.ok()?
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}
