//! One of three members fails in every possible way. The relay serves through the others: calls, new watches and
//! existing ones.
//!
//! The failing member is the one that the relay uses. The time until each kind of call succeeds again is printed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_relay::pb::etcdserverpb::{PutRequest, RangeRequest};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::PREFIX;
use crate::support::{
    client::{self, WatchStream, revisions},
    etcd::Etcd,
    eventually, eventually_within,
    gate::Gate,
    kv::{self, Kv},
    peers::Fault,
    relay::{Relay, RelayCommand},
};

/// A relay over three members, each behind a gate.
struct Scene {
    etcd: Etcd,
    gates: Vec<Gate>,
    relay: Relay,
    /// The member that the relay uses.
    used: usize,
}

/// The time within which calls succeed again and events come: two or three seconds, plus a reserve for a busy machine.
const SOON: Duration = Duration::from_secs(12);

impl Scene {
    async fn new() -> Self {
        let etcd = Etcd::cluster_of_three_that_can_be_cut().await;
        let mut gates = Vec::new();
        for endpoint in etcd.endpoints() {
            gates.push(Gate::before(&endpoint).await);
        }
        let relay = over(&gates).start().await;
        relay.follows().await;
        let used = used(&relay).await;
        // Its loss must not cause an election, which would be another fault.
        if etcd.leader().await == used {
            etcd.move_leader((used + 1) % 3).await;
        }
        Self { etcd, gates, relay, used }
    }

    /// A client of a healthy member.
    async fn other(&self) -> Kv {
        Kv::connect(&self.etcd.member_endpoint((self.used + 1) % 3)).await
    }

    /// Makes the used member fail, and checks that everything continues.
    async fn goes_on(mut self, what: &str, hurt: impl AsyncFnOnce(&mut Self)) -> Self {
        let mut watch = WatchStream::open(&self.relay.endpoint()).await;
        watch.created(client::prefix(PREFIX)).await;
        let load = Load::start(&self.relay.endpoint()).await;
        load.each_has(5).await;
        hurt(&mut self).await;
        let began = Instant::now();
        load.forget();
        let other = self.other().await;
        let last = other.put(format!("{PREFIX}after"), "1").await;
        eventually_within(SOON, "an event after the fault", async || {
            let next = watch.take_within(Duration::from_millis(20)).await?;
            revisions(&next.response).contains(&last).then_some(())
        })
        .await;
        println!("{what}: an event after {:?}", began.elapsed());
        load.each_has(20).await;
        println!("{what}: {}", load.report(began));
        self.relay.assert_no_panic();
        self
    }

    /// Checks that the relay reports the problem and is still ready.
    async fn tells(&self) {
        let labels = format!("member=\"{}\"", self.used + 1);
        eventually("a metric says that the member is of no use", async || {
            (self.relay.metric_of("etcd_relay_member_healthy", &labels).await == 0.0).then_some(())
        })
        .await;
        let state = self.relay.state().await;
        assert_ne!(state["members"][self.used]["health"], "healthy", "{state}");
        assert_eq!(self.relay.ready_status().await, Some(200));
    }
}

fn over(gates: &[Gate]) -> RelayCommand {
    let endpoints: Vec<String> = gates.iter().map(Gate::endpoint).collect();
    RelayCommand::serve(&endpoints).prefix(PREFIX)
}

async fn used(relay: &Relay) -> usize {
    let state = relay.state().await;
    let members = state["members"].as_array().cloned().unwrap_or_default();
    members.iter().position(|member| member["preferred"] == true).unwrap_or(0)
}

/// Calls through the relay, one after the other for each kind.
struct Load {
    kinds: Arc<[Kind]>,
    _tasks: JoinSet<()>,
}

struct Kind {
    name: &'static str,
    done: AtomicUsize,
    failed: AtomicUsize,
    /// When the first call that began after [`Load::forget`] succeeded, and when that was called.
    first: Mutex<(Instant, Option<Instant>)>,
}

impl Load {
    async fn start(endpoint: &str) -> Self {
        let channel = kv::channel(endpoint).await;
        let names = ["put", "read outside", "read inside", "new watch"];
        let kinds: Arc<[Kind]> = names
            .map(|name| Kind {
                name,
                done: AtomicUsize::new(0),
                failed: AtomicUsize::new(0),
                first: Mutex::new((Instant::now(), None)),
            })
            .into();
        let mut tasks = JoinSet::new();
        for index in 0..kinds.len() {
            let (kinds, channel) = (kinds.clone(), channel.clone());
            tasks.spawn(async move {
                let kv = Kv::over(channel.clone());
                loop {
                    let began = Instant::now();
                    // A client's usual timeout for one call.
                    let call = tokio::time::timeout(Duration::from_secs(5), call(index, &kv, &channel)).await;
                    kinds[index].note(began, call.is_ok_and(|well| well));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
        Self { kinds, _tasks: tasks }
    }

    /// Stops counting calls that began earlier.
    fn forget(&self) {
        for kind in &*self.kinds {
            *kind.first.lock() = (Instant::now(), None);
            kind.done.store(0, Ordering::SeqCst);
            kind.failed.store(0, Ordering::SeqCst);
        }
    }

    async fn each_has(&self, calls: usize) {
        for kind in &*self.kinds {
            eventually_within(SOON, &format!("{calls} calls: {}", kind.name), async || {
                (kind.done.load(Ordering::SeqCst) >= calls).then_some(())
            })
            .await;
        }
    }

    fn report(&self, began: Instant) -> String {
        let kind = |kind: &Kind| {
            let first = kind.first.lock().1;
            let after = first.map(|first| first - began);
            let failed = kind.failed.load(Ordering::SeqCst);
            format!("{} after {after:?}, {failed} failed", kind.name)
        };
        self.kinds.iter().map(kind).collect::<Vec<_>>().join("; ")
    }
}

impl Kind {
    fn note(&self, began: Instant, well: bool) {
        let mut first = self.first.lock();
        if began >= first.0 && well {
            self.done.fetch_add(1, Ordering::SeqCst);
            first.1.get_or_insert_with(Instant::now);
        } else if began >= first.0 {
            self.failed.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn call(index: usize, kv: &Kv, channel: &Channel) -> bool {
    let read = |key: String| RangeRequest { key: key.into(), ..RangeRequest::default() };
    match index {
        0 => {
            let put = PutRequest { key: "/outside/put".into(), value: "1".into(), ..PutRequest::default() };
            kv.raw.clone().put(put).await.is_ok()
        }
        1 => kv.raw.clone().range(read("/outside/put".to_owned())).await.is_ok(),
        2 => kv.raw.clone().range(read(format!("{PREFIX}a"))).await.is_ok(),
        _ => {
            let mut stream = WatchStream::over(channel.clone(), &[]);
            stream.create(client::prefix(PREFIX));
            stream.take_within(Duration::from_secs(5)).await.is_some_and(|next| next.response.created)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_killed() {
    let scene = Scene::new().await;
    let used = scene.used;
    scene.goes_on("killed", async |scene| scene.etcd.kill_member(used)).await.tells().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_frozen() {
    let scene = Scene::new().await;
    let used = scene.used;
    scene.goes_on("frozen", async |scene| scene.etcd.pause_member(used)).await.tells().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_network_to_the_relay_says_nothing() {
    let scene = Scene::new().await;
    let used = scene.used;
    scene.goes_on("black hole", async |scene| scene.gates[used].hold()).await.tells().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_from_the_others() {
    let scene = Scene::new().await;
    let used = scene.used;
    scene.goes_on("cut off", async |scene| scene.etcd.between_peers(Fault::CutOff(used))).await.tells().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_hears_its_leader_and_gets_no_entries() {
    let scene = Scene::new().await;
    let used = scene.used;
    scene.goes_on("starved", async |scene| scene.etcd.between_peers(Fault::Starved(used))).await.tells().await;
}

/// The member answers every call, but its watch streams deliver nothing: only feeds leave it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_watch_streams_stand_still() {
    let scene = Scene::new().await;
    let used = scene.used;
    let scene = scene
        .goes_on("watch streams stand still", async |scene| {
            scene.gates[used].hold_carriers_of(b"the last that comes");
            scene.other().await.put(format!("{PREFIX}mark"), "the last that comes").await;
        })
        .await;
    assert_eq!(scene.relay.state().await["members"][used]["shunned_by_feeds"], true);
    assert!(scene.relay.metric_of("etcd_relay_member_left_total", "reason=\"behind\"").await >= 1.0);
    assert_eq!(scene.relay.ready_status().await, Some(200));
}

/// There is no other member: reads are forwarded without waiting each time, and the relay reports that it is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_do_not_wait_for_a_feed_that_is_late() {
    let etcd = Etcd::start().await;
    let gate = Gate::before(&etcd.endpoint()).await;
    let relay = over(std::slice::from_ref(&gate)).start().await;
    relay.follows().await;
    let direct = Kv::connect(&etcd.endpoint()).await;
    gate.hold_carriers_of(b"the last that comes");
    direct.put(format!("{PREFIX}mark"), "the last that comes").await;
    direct.put(format!("{PREFIX}a"), "newest").await;
    let through = Kv::connect(&relay.endpoint()).await;
    let label = "outcome=\"forwarded_late\"";
    for _ in 0..20 {
        let read = RangeRequest { key: format!("{PREFIX}a").into(), ..RangeRequest::default() };
        // Each of them would wait for three seconds.
        let answer = tokio::time::timeout(Duration::from_secs(2), through.raw.clone().range(read)).await;
        let answer = answer.expect("an answer in time").expect("an answer").into_inner();
        assert_eq!(answer.kvs[0].value.as_ref(), b"newest");
    }
    let late = relay.metric_of("etcd_relay_reads_total", label).await;
    assert!(late >= 20.0, "{late} reads were forwarded; {}", relay.metrics().await);
    eventually("the relay says that it is behind, and is not ready", async || {
        let told = relay.metric("etcd_relay_feed_lag_seconds").await >= 3.0
            && relay.metric("etcd_relay_feed_lag_revisions").await >= 1.0;
        (told && relay.ready_status().await == Some(503)).then_some(())
    })
    .await;
}

/// It is used again only after it has answered, and nothing is moved back to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_back_is_known_to_be_well() {
    let scene = Scene::new().await;
    let hurt = scene.used;
    let scene = scene.goes_on("frozen for a while", async |scene| scene.etcd.pause_member(hurt)).await;
    scene.tells().await;
    let mut scene = scene;
    scene.etcd.resume();
    let labels = format!("member=\"{}\"", hurt + 1);
    eventually("the member is well again", async || {
        (scene.relay.metric_of("etcd_relay_member_healthy", &labels).await == 1.0).then_some(())
    })
    .await;
    assert_ne!(used(&scene.relay).await, hurt);
}

/// During a rollout with one hung member, each new relay that tries it first would be down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_starts_though_the_first_member_says_nothing() {
    for frozen in [true, false] {
        let mut etcd = Etcd::cluster_of_three().await;
        if etcd.leader().await == 0 {
            etcd.move_leader(1).await;
        }
        let mut gates = Vec::new();
        for endpoint in etcd.endpoints() {
            gates.push(Gate::before(&endpoint).await);
        }
        if frozen {
            etcd.pause_member(0);
        } else {
            gates[0].hold();
        }
        let relay = over(&gates).unready().start().await;
        let began = Instant::now();
        eventually_within(SOON, "the relay is ready", async || (relay.ready_status().await == Some(200)).then_some(()))
            .await;
        println!("first member frozen ({frozen}): ready after {:?}", began.elapsed());
        let mut watch = WatchStream::open(&relay.endpoint()).await;
        watch.created(client::prefix(PREFIX)).await;
        Kv::connect(&relay.endpoint()).await.put(format!("{PREFIX}a"), "1").await;
        watch.next().await;
        println!("first member frozen ({frozen}): an event after {:?}", began.elapsed());
    }
}
