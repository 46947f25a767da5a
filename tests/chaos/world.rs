//! [`World`]: the servers: three etcd members, two relays and a tier over these, each behind a gate that can be closed,
//! stopped or delayed.
//!
//! What happens to them is in `faults` and `schedule`. Always holds: addresses stay the same over restarts. The log of
//! a relay that ended is kept until the end of the run.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_relay::pb::etcdserverpb::{CompactionRequest, TxnRequest};
use tokio::time::timeout;

use crate::{
    link::{DEADLINE, Token},
    scene::{DEMAND, PREFIX, RELAYS, Scene, TIER},
    support::{
        etcd::Etcd,
        eventually, free_port,
        gate::Gate,
        http,
        kv::{Kv, op_put},
        relay::{Relay, RelayCommand},
    },
    truth::Epoch,
    users::Users,
    writers::key,
};

/// A history of a few seconds, and a queue for two large values.
const SMALL: [&str; 2] = ["--history-entries=100", "--stream-buffer-bytes=65536"];
/// A relay that is told to stop must do so within this time.
const END: Duration = Duration::from_secs(60);

/// All servers.
#[derive(Debug)]
pub struct World {
    /// What the clients know about them.
    pub scene: Arc<Scene>,
    /// Who clients may be.
    pub users: Users,
    /// The members.
    pub etcd: Etcd,
    /// The gates in front of each member, for each relay over etcd.
    pub gates: [Vec<Gate>; 2],
    /// The gates in front of each relay, for the tier.
    pub tier_gates: Vec<Gate>,
    relays: Vec<Relay>,
    commands: Vec<RelayCommand>,
    folder: PathBuf,
    starts: usize,
    /// Number of values given by `write`.
    written: AtomicUsize,
}

impl World {
    /// Starts everything and waits until it is ready, with this build of the relay if given. Logs are kept in the
    /// folder.
    pub async fn start(folder: &Path, relay: Option<&Path>, judges_time: bool) -> Self {
        let etcd = Etcd::cluster_of_three_that_can_be_cut_with(&["--bcrypt-cost=4"]).await;
        let users = Users::make(&etcd.endpoint()).await;
        let gates = [before(&etcd.endpoints()).await, before(&etcd.endpoints()).await];
        let ports = RELAYS.map(|_| format!("127.0.0.1:{}", free_port()));
        let urls = ports.clone().map(|port| format!("http://{port}"));
        let tier_gates = before(&urls[..TIER]).await;
        let upstreams = [&gates[0], &gates[1], &tier_gates];
        let mut commands: Vec<_> =
            upstreams.iter().zip(&ports).map(|(gates, port)| command(gates, port, &users)).collect();
        // This relay has a short history and small queues, and so serves slow clients from etcd.
        commands[1] = SMALL.iter().fold(commands[1].clone(), |command, arg| command.arg(arg));
        // One relay makes a system call for each send, wherever the kernel would let it join them.
        commands[TIER] = commands[TIER].clone().env("ETCD_RELAY_IO", "epoll");
        if let Some(program) = relay {
            commands = commands.into_iter().map(|command| command.program(program)).collect();
        }
        let mut relays = Vec::new();
        for command in &commands {
            relays.push(command.clone().start().await);
        }
        let scene = Scene::new(urls, etcd.endpoints(), Token::default(), judges_time);
        Self {
            scene,
            users,
            etcd,
            gates,
            tier_gates,
            relays,
            commands,
            folder: folder.to_owned(),
            starts: 0,
            written: AtomicUsize::new(0),
        }
    }

    /// Restarts a relay, either gracefully or after `kill -9`.
    pub async fn restart_relay(&mut self, place: usize, killed: bool) {
        if killed {
            self.relays[place].kill();
        } else {
            self.relays[place].terminate();
            let code = self.relays[place].exit_code(END).await;
            if code != 0 {
                self.scene.findings.add(&format!("{} ended with {code}", RELAYS[place]));
            }
        }
        self.keep_log(place);
        self.starts += 1;
        self.relays[place] = self.commands[place].clone().unready().start().await;
    }

    /// The member that this relay prefers.
    pub async fn preferred(&self, place: usize) -> usize {
        let state = self.relays[place].state().await;
        let members = state["members"].as_array().cloned().unwrap_or_default();
        members.iter().position(|member| member["preferred"] == true).unwrap_or(0)
    }

    /// The HTTP addresses of the relays.
    pub fn http_addrs(&self) -> Vec<String> {
        self.relays.iter().map(|relay| relay.http_addr().to_owned()).collect()
    }

    /// Waits until a relay is ready.
    pub async fn ready(&self, place: usize) {
        let addr = self.relays[place].http_addr();
        eventually(&format!("{} is ready", RELAYS[place]), async || {
            http::get(addr, "/ready").await.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
    }

    /// Writes a revision that every watcher sees, and waits until each has it.
    pub async fn barrier(&self) {
        let keys: Vec<_> = (0..9).chain([10]).map(key).chain([format!("{DEMAND}0")]).collect();
        let (epoch, revision) = self.write(&keys, "barrier").await;
        self.scene.all_are_at(epoch.number, revision).await;
    }

    /// Compacts everything, and waits until it is gone.
    pub async fn compact(&self) {
        // etcd before 3.5.22 would lose a tombstone at this exact revision.
        let (epoch, revision) = self.write(&[key(0)], "compaction").await;
        epoch.compacts(revision);
        let mut kv = self.member().await.raw;
        let request = CompactionRequest { revision, physical: true };
        kv.compact(self.scene.token.on(request)).await.expect("compact at a healthy member");
    }

    /// Makes a backup, then more writes; all members die, and the cluster is restored from the backup.
    pub async fn restore(&mut self) {
        let snapshot = self.etcd.save_snapshot();
        let epoch = self.scene.truth.now().await;
        epoch.reach(epoch.reached() + 20).await;
        self.scene.hold_writes().await;
        self.write(&[key(0)], "before the restore").await;
        self.etcd.kill();
        self.etcd.restart_from(&snapshot).await;
        self.scene.release_writes();
    }

    /// Keeps the log of each server.
    pub fn keep_logs(&self) {
        (0..self.relays.len()).for_each(|place| self.keep_log(place));
        for member in 0..3 {
            self.keep(&format!("etcd-{member}.log"), &self.etcd.member_log(member));
        }
    }

    /// Fails if a relay panicked.
    pub fn no_panic(&self) {
        for (relay, name) in self.relays.iter().zip(RELAYS) {
            if relay.log().contains("panicked") {
                self.scene.findings.add(&format!("{name} panicked"));
            }
        }
    }

    /// A client of the first member.
    async fn member(&self) -> Kv {
        Kv::connect(&self.etcd.endpoint()).await
    }

    /// Gives these keys a new value and waits until the truth has it. A cluster that has just come back may need a
    /// moment.
    async fn write(&self, keys: &[String], what: &str) -> (Arc<Epoch>, i64) {
        let (scene, written) = (&self.scene, &self.written);
        let endpoint = self.etcd.endpoint();
        let header = eventually("etcd takes a write", async || {
            let value = format!("{what} {}", written.fetch_add(1, Ordering::Relaxed));
            let success = keys.iter().map(|key| op_put(key, &value)).collect();
            let mut kv = Kv::connect(&endpoint).await.raw;
            let request = scene.token.on(TxnRequest { success, ..Default::default() });
            timeout(DEADLINE, kv.txn(request)).await.ok()?.ok()?.into_inner().header
        })
        .await;
        let epoch = scene.truth.acknowledge(&header).await.expect("the truth about the cluster");
        assert!(epoch.reach(header.revision).await, "the truth gets to {}", header.revision);
        (epoch, header.revision)
    }

    fn keep_log(&self, place: usize) {
        self.keep(&format!("{}-{}.log", RELAYS[place].replace(' ', "-"), self.starts), &self.relays[place].log());
    }

    fn keep(&self, name: &str, text: &str) {
        let kept = fs::create_dir_all(&self.folder).and_then(|()| fs::write(self.folder.join(name), text));
        if let Err(error) = kept {
            println!("{name} cannot be kept in {}: {error}", self.folder.display());
        }
    }
}

/// One series of a metric; `None` if the relay does not answer.
pub async fn metric(addr: &str, name: &str, labels: &str) -> Option<f64> {
    let text = http::get(addr, "/metrics").await.ok()?.body;
    http::series(&text, name).find(|(found, _)| *found == labels).map(|(_, value)| value)
}

async fn before(endpoints: &[String]) -> Vec<Gate> {
    let mut gates = Vec::new();
    for endpoint in endpoints {
        gates.push(Gate::before(endpoint).await);
    }
    gates
}

fn command(gates: &[Gate], addr: &str, users: &Users) -> RelayCommand {
    let endpoints: Vec<_> = gates.iter().map(Gate::endpoint).collect();
    RelayCommand::serve(&endpoints)
        .prefix(PREFIX)
        .arg("--on-demand=allow")
        .arg("--drain-time=3s")
        .arg("--upstream-user=relay")
        .arg(&format!("--upstream-password-file={}", users.password_file()))
        .listen_grpc(addr)
}
