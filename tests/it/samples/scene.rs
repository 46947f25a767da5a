//! [`Scene`]: an etcd, relays that keep their ports, and for each language a registration, a discovery and a
//! configuration.
//!
//! Not here: what happens to them, see `samples`. Changes and checks of keys go to etcd directly. Always holds:
//! registrations are members of the service `web`, named after their language; [`Scene::end`] compares each discovery
//! with etcd's history, line by line.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use etcd_relay::pb::{
    etcdserverpb::{LeaseTimeToLiveRequest, RangeRequest, lease_client::LeaseClient},
    mvccpb::{KeyValue, event::EventType},
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{
    etcd::Etcd,
    eventually, free_port,
    kv::{self, Kv, bytes, prefix_end},
    patience,
    relay::{Relay, RelayCommand},
    replay::Replay,
};

use super::kit::{Kit, Sample};

const SERVICE: &str = "/services/web/";

/// The samples and the servers that they use.
#[derive(Debug)]
pub struct Scene {
    /// The etcd behind the relays.
    pub etcd: Etcd,
    /// A registration for each language.
    pub registers: Vec<Sample>,
    /// A discovery for each language.
    pub discovers: Vec<Sample>,
    /// A configuration for each language.
    pub configs: Vec<Sample>,
    /// Whether the test removed some of etcd's history.
    pub history_is_lost: bool,
    commands: Vec<RelayCommand>,
    relays: Vec<Option<Relay>>,
    env: Vec<(String, String)>,
    /// The member that is used to change and read keys.
    member: usize,
    visitors: usize,
    folder: TempDir,
}

impl Scene {
    /// Starts an etcd, and relays in front of it. Leases have a TTL of `ttl` seconds.
    pub async fn start(etcd: Etcd, relays: usize, ttl: u64) -> Self {
        let mut commands = Vec::new();
        let (mut grpc, mut http) = (Vec::new(), Vec::new());
        for _ in 0..relays {
            let (grpc_addr, http_addr) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
            let command = RelayCommand::serve(&etcd.endpoints()).prefix("/services/").prefix("/config/");
            commands.push(command.arg("--drain-time=2s").listen_grpc(&grpc_addr).listen_http(&http_addr));
            grpc.push(format!("http://{grpc_addr}"));
            http.push(format!("http://{http_addr}"));
        }
        let env = [("ETCD_ENDPOINTS", grpc.join(",")), ("RELAY_HTTP", http.join(",")), ("TTL", ttl.to_string())];
        let mut scene = Self {
            etcd,
            registers: Vec::new(),
            discovers: Vec::new(),
            configs: Vec::new(),
            history_is_lost: false,
            relays: commands.iter().map(|_| None).collect(),
            commands,
            env: env.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            member: 0,
            visitors: 0,
            folder: tempfile::Builder::new().prefix("etcd-relay-test-").tempdir().expect("a temporary folder"),
        };
        for relay in 0..relays {
            scene.start_relay(relay).await;
        }
        scene
    }

    /// Starts all samples, and waits until all are registered and discovered.
    pub async fn everything(&mut self) {
        for kit in tokio::task::spawn_blocking(Kit::all).await.expect("kits") {
            let mut env = self.env.clone();
            env.push(("INSTANCE".to_owned(), kit.language.to_owned()));
            let folder = self.folder.path();
            self.registers.push(kit.start("register", &["web", &format!("http://{}", kit.language)], &env, folder));
            self.discovers.push(kit.start("discover", &["web"], &env, folder));
            self.configs.push(kit.start("config", &["web"], &env, folder));
        }
        for config in &self.configs {
            config.until("it has asked etcd", |line| !line.text.starts_with("following")).await;
        }
        self.until_all_registered().await;
        self.until_discovered().await;
    }

    /// Starts a relay on its ports, and waits until it is ready.
    pub async fn start_relay(&mut self, index: usize) {
        self.relays[index] = Some(self.commands[index].clone().start().await);
    }

    /// Sends SIGKILL to a relay.
    pub fn kill_relay(&mut self, index: usize) {
        self.relay(index).kill();
        self.relays[index] = None;
    }

    /// Sends SIGTERM to a relay, and waits for its end.
    pub async fn drain_relay(&mut self, index: usize) {
        let relay = self.relay(index);
        relay.terminate();
        assert_eq!(relay.exit_code(patience()).await, 0, "the relay drains");
        self.relays[index] = None;
    }

    /// Sends SIGSTOP to a relay: its connections stay open, and it answers nothing.
    pub fn freeze_relay(&mut self, index: usize) {
        self.signal_relay(index, Signal::STOP);
    }

    /// Sends SIGCONT to a relay.
    pub fn thaw_relay(&mut self, index: usize) {
        self.signal_relay(index, Signal::CONT);
    }

    fn signal_relay(&mut self, index: usize, signal: Signal) {
        let pid = Pid::from_raw(self.relay(index).pid().cast_signed()).expect("a process id is not 0");
        kill_process(pid, signal).expect("the relay is there");
    }

    fn relay(&mut self, index: usize) -> &mut Relay {
        self.relays[index].as_mut().expect("a relay that runs")
    }

    /// Uses another member of etcd from now on to change and read keys.
    pub fn reads_from(&mut self, member: usize) {
        self.member = member;
    }

    /// A connection to etcd without a relay.
    pub async fn etcd_kv(&self) -> Kv {
        Kv::connect(&self.etcd.member_endpoint(self.member)).await
    }

    /// Puts a configuration, and returns its revision.
    pub async fn configure(&self, value: &str) -> i64 {
        self.put("/config/web", value).await
    }

    /// Waits until all use the configuration of this revision. Returns for each how long after `since` that was seen.
    pub async fn until_configured(&self, revision: i64, since: Instant) -> Vec<(String, Duration)> {
        let mut seen = BTreeMap::new();
        eventually(&format!("all use the configuration of revision {revision}"), async || {
            for config in &self.configs {
                if config.lines().iter().filter_map(|line| line.configured()).next_back() == Some(revision) {
                    seen.entry(config.name.clone()).or_insert_with(|| since.elapsed());
                }
            }
            (seen.len() == self.configs.len()).then_some(())
        })
        .await;
        seen.into_iter().collect()
    }

    /// The members of the service in etcd, by name.
    pub async fn members(&self) -> BTreeMap<String, KeyValue> {
        let request = RangeRequest { key: bytes(SERVICE), range_end: prefix_end(SERVICE), ..Default::default() };
        // During an election the answer comes later.
        let kv = self.etcd_kv().await;
        let answer = eventually("etcd answers a read", async || kv.raw.clone().range(request.clone()).await.ok()).await;
        let named = answer.into_inner().kvs.into_iter();
        named.map(|kv| (String::from_utf8_lossy(&kv.key[SERVICE.len()..]).into_owned(), kv)).collect()
    }

    /// The lease of each registration.
    pub async fn leases(&self) -> BTreeMap<String, i64> {
        let members = self.members().await;
        let lease = |register: &Sample| Some((register.member.clone(), members.get(&register.member)?.lease));
        self.registers.iter().filter_map(lease).collect()
    }

    /// Waits until each registration that runs is in etcd.
    pub async fn until_all_registered(&self) {
        eventually("all are registered", async || {
            let leases = self.leases().await;
            (leases.len() == self.registers.len() && leases.values().all(|lease| *lease != 0)).then_some(())
        })
        .await;
    }

    /// Waits until each lease of a registration was renewed since this was called.
    pub async fn until_all_renewed(&self) {
        let mut waiting = BTreeMap::new();
        for (name, lease) in self.leases().await {
            waiting.insert(name, (lease, self.left(lease).await, Instant::now()));
        }
        eventually("all leases are renewed", async || {
            for (name, (lease, left, since)) in waiting.clone() {
                // etcd truncates both times to whole seconds.
                if self.left(lease).await > left - since.elapsed().as_secs_f64() + 2.0 {
                    waiting.remove(&name);
                }
            }
            waiting.is_empty().then_some(())
        })
        .await;
    }

    /// The remaining seconds of a lease.
    async fn left(&self, id: i64) -> f64 {
        let channel = kv::channel(&self.etcd.member_endpoint(self.member)).await;
        let request = LeaseTimeToLiveRequest { id, keys: false };
        let answer = LeaseClient::new(channel).lease_time_to_live(request).await.expect("an answer").into_inner();
        f64::from(i32::try_from(answer.ttl).expect("a short time"))
    }

    /// Waits until each discovery shows what etcd has.
    pub async fn until_discovered(&self) {
        for discover in &self.discovers {
            let what = format!("{} shows what etcd has", discover.name);
            eventually(&what, async || {
                let members = self.members().await;
                let members = members.iter().map(|(name, kv)| (name.clone(), value(kv)));
                (shown(discover) == members.collect()).then_some(())
            })
            .await;
        }
    }

    /// Adds a member, waits until all discoveries show it, and removes it again.
    pub async fn a_member_comes_and_goes(&mut self) {
        self.visitors += 1;
        let name = format!("visitor-{}", self.visitors);
        self.put(&format!("{SERVICE}{name}"), "http://visitor").await;
        for discover in &self.discovers {
            discover.until("a member came", |line| line.text.starts_with(&format!("+ {name} http://visitor"))).await;
        }
        let request = etcd_relay::pb::etcdserverpb::DeleteRangeRequest {
            key: bytes(format!("{SERVICE}{name}")),
            ..Default::default()
        };
        let kv = self.etcd_kv().await;
        eventually("etcd deletes", async || kv.raw.clone().delete_range(request.clone()).await.ok()).await;
        for discover in &self.discovers {
            discover.until("a member went", |line| line.text.starts_with(&format!("- {name} "))).await;
        }
    }

    /// Compares all discoveries with etcd's history, and ends all samples.
    pub async fn end(mut self) {
        let last = self.put(&format!("{SERVICE}the-end"), "http://end").await;
        self.until_discovered().await;
        if !self.history_is_lost {
            let history = Replay::read_prefix(&self.etcd.member_endpoint(self.member), SERVICE, 1, last).await;
            for discover in &self.discovers {
                assert_told_all(discover, &history, last);
            }
        }
        for sample in self.registers.iter_mut().chain(&mut self.discovers).chain(&mut self.configs) {
            sample.stop().await;
        }
        assert!(self.leases().await.is_empty(), "a registration that was told to stop takes its key away");
        self.relays.iter().flatten().for_each(Relay::assert_no_panic);
    }

    /// Puts a key in etcd, even during an election, and returns the revision.
    async fn put(&self, key: &str, value: &str) -> i64 {
        let kv = self.etcd_kv().await;
        let put = kv::put(key, value);
        let answer = eventually("etcd takes a put", async || kv.raw.clone().put(put.clone()).await.ok()).await;
        answer.into_inner().header.expect("a header").revision
    }
}

/// The members that a discovery shows, and their addresses.
fn shown(discover: &Sample) -> BTreeMap<String, String> {
    let mut members = BTreeMap::new();
    for line in discover.lines().iter().filter(|line| line.is_change()) {
        let mut words = line.text.split(' ').skip(1);
        let name = words.next().expect("a name").to_owned();
        if line.text.starts_with('-') {
            assert!(members.remove(&name).is_some(), "{}: {} was not there", discover.name, line.text);
        } else {
            let address = words.next().expect("an address").trim_end_matches(',').to_owned();
            let before = members.insert(name, address);
            assert_eq!(before.is_some(), line.text.starts_with('~'), "{}: {}", discover.name, line.text);
        }
    }
    members
}

/// Fails unless a discovery has shown each change from its list to the revision `last`, once and in order, and nothing
/// else.
fn assert_told_all(discover: &Sample, history: &Replay, last: i64) {
    let lists: Vec<i64> = discover.lines().iter().filter_map(|line| line.listed()).collect();
    let [listed] = lists[..] else {
        // In that case its last state was compared with etcd's.
        return;
    };
    let mut members = BTreeMap::new();
    let mut expected = Vec::new();
    for kv in history.at(|_| true, listed) {
        members.insert(name(kv), value(kv));
        expected.push(format!("+ {} {} (revision {})", name(kv), value(kv), kv.mod_revision));
    }
    for event in history.events_from(listed + 1) {
        let kv = event.kv.as_ref().expect("an event has a key");
        let (name, value, revision) = (name(kv), value(kv), kv.mod_revision);
        if event.r#type() == EventType::Delete {
            members.remove(&name);
            expected.push(format!("- {name} (revision {revision})"));
            continue;
        }
        match members.insert(name.clone(), value.clone()) {
            None => expected.push(format!("+ {name} {value} (revision {revision})")),
            Some(old) if old != value => expected.push(format!("~ {name} {value}, was {old} (revision {revision})")),
            Some(_) => {}
        }
    }
    // After a freeze, a registration may still come back.
    let told = discover.lines().into_iter().filter(|line| line.is_change() && line.changed_in() <= Some(last));
    let told: Vec<_> = told.map(|line| line.text).collect();
    assert_eq!(told, expected, "{} told something else than what happened", discover.name);
}

fn name(kv: &KeyValue) -> String {
    String::from_utf8_lossy(&kv.key[SERVICE.len()..]).into_owned()
}

fn value(kv: &KeyValue) -> String {
    String::from_utf8_lossy(&kv.value).into_owned()
}
