//! [`Etcd`]: a real etcd with one member or three, on the loopback interface, with its data in a temporary folder.
//!
//! The binary is the one that `ETCD` names, or else `etcd` on `PATH`. Other versions are in the folder that
//! `ETCD_VERSIONS` names, or else in the cache that `scripts/etcd-versions` fills. Always holds: a member keeps its
//! ports and data over kill and restart; everything ends and is removed with the value.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use etcd_relay::pb::etcdserverpb::{
    MemberAddRequest, MemberRemoveRequest, MoveLeaderRequest, StatusRequest, cluster_client::ClusterClient,
    maintenance_client::MaintenanceClient,
};
use rustix::process::Signal;
use tempfile::TempDir;

use super::{
    eventually, free_port, http, kv,
    peers::{Fault, Peers},
    process::Process,
};

/// Attempts to start, in case another process takes a port before it is bound.
const START_ATTEMPTS: usize = 5;

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    program: PathBuf,
    members: Vec<Member>,
    flags: Vec<String>,
    cluster_token: String,
    root: TempDir,
    /// The forwarders between the members, if a test may interrupt them.
    peers: Option<Peers>,
}

/// Where a member serves plain HTTP, such as `/version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// On the port for gRPC, as it does by default.
    Shared,
    /// On a separate port, set by `--listen-client-http-urls`.
    Apart,
}

#[derive(Debug)]
struct Member {
    name: String,
    client_port: u16,
    /// The port for plain HTTP: the client port, unless there is a separate one.
    http_port: u16,
    peer_port: u16,
    /// It joins an existing cluster.
    joins: bool,
    process: Option<Process>,
}

impl Member {
    fn new(index: usize, http: Http, joins: bool) -> Self {
        let client_port = free_port();
        Self {
            name: format!("m{index}"),
            client_port,
            http_port: if http == Http::Apart { free_port() } else { client_port },
            peer_port: free_port(),
            joins,
            process: None,
        }
    }
}

impl Etcd {
    /// One member, with its default flags.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// One member with these additional flags.
    pub async fn start_with(flags: &[&str]) -> Self {
        Self::new(tool("ETCD", "etcd"), 1, flags, Http::Shared, None).await
    }

    /// One member of this version, such as `3.5.31`. `None`, with the reason printed, if this machine does not have it.
    pub async fn of_version(version: &str, flags: &[&str], http: Http) -> Option<Self> {
        let folder = match std::env::var_os("ETCD_VERSIONS") {
            Some(folder) => PathBuf::from(folder),
            None => match std::env::var_os("XDG_CACHE_HOME") {
                Some(cache) => PathBuf::from(cache).join("etcd-relay"),
                None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/etcd-relay"),
            },
        };
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let program = folder.join(format!("etcd-{version}-{arch}/etcd"));
        if !program.is_file() {
            println!("SKIPPED: there is no etcd {version} at {}; scripts/etcd-versions installs it", program.display());
            return None;
        }
        Some(Self::new(program, 1, flags, http, None).await)
    }

    /// One member whose client port is only for gRPC.
    pub async fn with_http_apart() -> Self {
        Self::new(tool("ETCD", "etcd"), 1, &[], Http::Apart, None).await
    }

    /// Three members.
    pub async fn cluster_of_three() -> Self {
        Self::new(tool("ETCD", "etcd"), 3, &[], Http::Shared, None).await
    }

    /// Three members with forwarders between them; see [`Self::between_peers`].
    pub async fn cluster_of_three_that_can_be_cut() -> Self {
        Self::cluster_of_three_that_can_be_cut_with(&[]).await
    }

    /// The same with additional flags.
    pub async fn cluster_of_three_that_can_be_cut_with(flags: &[&str]) -> Self {
        for attempt in 1.. {
            let peers = Peers::new(3).await;
            let mut etcd = Self::made_of(tool("ETCD", "etcd"), 3, flags, Http::Shared, Some(peers));
            (0..3).for_each(|index| etcd.spawn(index));
            if etcd.wait_ready().await {
                etcd.tell_peers_who_is_who().await;
                return etcd;
            }
            assert!(attempt < START_ATTEMPTS, "etcd did not start; log:\n{}", etcd.log());
        }
        unreachable!("the loop ends by return or panic")
    }

    /// Tells the forwarders the members' ids, by which they know who opened a connection.
    async fn tell_peers_who_is_who(&self) {
        let mut ids = Vec::new();
        for endpoint in self.endpoints() {
            let status = MaintenanceClient::new(kv::channel(&endpoint).await).status(StatusRequest {}).await;
            ids.push(status.expect("status").into_inner().header.expect("a header").member_id);
        }
        self.peers.iter().for_each(|peers| peers.know(ids.clone()));
    }

    /// Sets the fault between the members.
    pub fn between_peers(&self, fault: Fault) {
        self.peers.as_ref().expect("a cluster that can be cut").set(fault);
    }

    /// Three members with these additional flags.
    pub async fn cluster_of_three_with(flags: &[&str]) -> Self {
        Self::new(tool("ETCD", "etcd"), 3, flags, Http::Shared, None).await
    }

    /// One member of a new cluster with the data of a snapshot from [`Self::save_snapshot`], like an operator's restore
    /// from a backup. The cluster has another id.
    pub async fn restored_from(snapshot: &Path) -> Self {
        Self::new(tool("ETCD", "etcd"), 1, &[], Http::Shared, Some(snapshot)).await
    }

    async fn new(program: PathBuf, size: usize, flags: &[&str], http: Http, snapshot: Option<&Path>) -> Self {
        for attempt in 1.. {
            let mut etcd = Self::made_of(program.clone(), size, flags, http, None);
            if let Some(snapshot) = snapshot {
                etcd.restore(0, snapshot);
            }
            for index in 0..size {
                etcd.spawn(index);
            }
            if etcd.wait_ready().await {
                return etcd;
            }
            assert!(attempt < START_ATTEMPTS, "etcd did not start; log:\n{}", etcd.log());
        }
        unreachable!("the loop ends by return or panic")
    }

    fn made_of(program: PathBuf, size: usize, flags: &[&str], http: Http, peers: Option<Peers>) -> Self {
        let root = tempfile::Builder::new().prefix("etcd-relay-test-").tempdir().expect("a temporary folder");
        let members: Vec<_> = (0..size).map(|index| Member::new(index, http, false)).collect();
        if let Some(peers) = &peers {
            peers.lead_to(members.iter().map(|member| member.peer_port).collect());
        }
        let cluster_token = root.path().file_name().expect("a folder has a name").to_string_lossy().into_owned();
        let flags = flags.iter().map(ToString::to_string).collect();
        Self { program, members, flags, cluster_token, root, peers }
    }

    /// The URL of the first member.
    pub fn endpoint(&self) -> String {
        self.member_endpoint(0)
    }

    /// The URL of one member.
    pub fn member_endpoint(&self, index: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[index].client_port)
    }

    /// The URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|index| self.member_endpoint(index)).collect()
    }

    /// `host:port` of the first member.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.members[0].client_port)
    }

    /// `kill -9` of every member.
    pub fn kill(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                process.kill();
            }
        }
    }

    /// `kill -9` of one member.
    pub fn kill_member(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill();
        }
    }

    /// Starts every killed member with its data and ports, and waits until they serve.
    pub async fn restart(&mut self) {
        for index in 0..self.members.len() {
            if self.members[index].process.is_none() {
                self.spawn(index);
            }
        }
        assert!(self.wait_ready().await, "etcd did not start again; log:\n{}", self.log());
    }

    /// Adds a member and waits until all serve. Returns its index.
    pub async fn add_member(&mut self) -> usize {
        let member = Member::new(self.members.len(), Http::Shared, true);
        let cluster = ClusterClient::new(kv::channel(&self.endpoint()).await);
        let request = MemberAddRequest { peer_ur_ls: vec![peer_url(&member)], is_learner: false };
        // A cluster accepts none while one of its members is new.
        eventually("the cluster takes another member", async || cluster.clone().member_add(request.clone()).await.ok())
            .await;
        self.members.push(member);
        let index = self.members.len() - 1;
        self.spawn(index);
        assert!(self.wait_ready().await, "the member did not start; log:\n{}", self.log());
        index
    }

    /// Removes a member from the cluster and ends it. The indices after it decrease by one.
    pub async fn remove_member(&mut self, index: usize) {
        let channel = kv::channel(&self.member_endpoint(index)).await;
        let status = MaintenanceClient::new(channel).status(StatusRequest {}).await.expect("status").into_inner();
        let request = MemberRemoveRequest { id: status.header.expect("a header").member_id };
        let other = usize::from(index == 0);
        let cluster = ClusterClient::new(kv::channel(&self.member_endpoint(other)).await);
        eventually("the cluster lets the member go", async || cluster.clone().member_remove(request).await.ok()).await;
        drop(self.members.remove(index));
    }

    /// Starts a killed member with its data and ports, without waiting.
    pub fn start_member(&mut self, index: usize) {
        if self.members[index].process.is_none() {
            self.spawn(index);
        }
    }

    /// Creates a new cluster with the data of a snapshot, on the ports of the current one, whose members were killed,
    /// and waits until it serves. This is an operator's restore from a backup; the cluster has another id.
    pub async fn restart_from(&mut self, snapshot: &Path) {
        self.cluster_token.push_str("-restored");
        for index in 0..self.members.len() {
            std::fs::remove_dir_all(self.data_dir(&self.members[index])).expect("remove the data");
            self.restore(index, snapshot);
        }
        self.restart().await;
        self.tell_peers_who_is_who().await;
    }

    /// SIGSTOP of every member: connections stay open, but nobody answers.
    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
    }

    /// SIGSTOP of one member.
    pub fn pause_member(&mut self, index: usize) {
        if let Some(process) = &mut self.members[index].process {
            process.signal(Signal::STOP);
        }
    }

    /// SIGCONT of one member.
    pub fn resume_member(&mut self, index: usize) {
        if let Some(process) = &mut self.members[index].process {
            process.signal(Signal::CONT);
        }
    }

    /// SIGCONT of every member.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// The index of the leader.
    pub async fn leader(&self) -> usize {
        eventually("the cluster has a leader", async || {
            for index in 0..self.members.len() {
                let channel = kv::channel(&self.member_endpoint(index)).await;
                let status = MaintenanceClient::new(channel).status(StatusRequest {}).await.ok()?.into_inner();
                if status.leader != 0 && status.leader == status.header?.member_id {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// Moves the leadership to another member and waits until it leads.
    pub async fn move_leader(&self, to: usize) {
        let from = self.leader().await;
        assert_ne!(from, to, "a leader cannot be moved to itself");
        let target = MaintenanceClient::new(kv::channel(&self.member_endpoint(to)).await);
        let target_id = target.clone().status(StatusRequest {}).await.expect("status").into_inner();
        let target_id = target_id.header.expect("a header").member_id;
        MaintenanceClient::new(kv::channel(&self.member_endpoint(from)).await)
            .move_leader(MoveLeaderRequest { target_id })
            .await
            .expect("move leader");
        eventually("the other member leads", async || (self.leader().await == to).then_some(())).await;
    }

    /// A metric of the first member, summed over its series.
    pub async fn metric(&self, name: &str) -> f64 {
        let addr = format!("127.0.0.1:{}", self.members[0].http_port);
        let text = http::get(&addr, "/metrics").await.expect("etcd answers /metrics").body;
        http::metric(&text, name).unwrap_or_else(|| panic!("etcd has no metric {name}"))
    }

    /// How often a method was called at the first member, by any client.
    pub async fn calls(&self, method: &str) -> u64 {
        let addr = format!("127.0.0.1:{}", self.members[0].http_port);
        let text = http::get(&addr, "/metrics").await.expect("etcd answers /metrics").body;
        let label = format!(r#"grpc_method="{method}""#);
        let of_method = http::series(&text, "grpc_server_started_total").filter(|(labels, _)| labels.contains(&label));
        count(of_method.map(|(_, value)| value).sum())
    }

    /// The number of watches at the first member.
    pub async fn watchers(&self) -> u64 {
        count(self.metric("etcd_debugging_mvcc_watcher_total").await)
    }

    /// Saves a snapshot of the first member for [`Self::restored_from`]. The file is removed with this value.
    pub fn save_snapshot(&self) -> PathBuf {
        let path = self.root.path().join("snapshot.db");
        // An old file would remain if the new one cannot be written.
        let _none = std::fs::remove_file(&path);
        run(Command::new(etcdctl())
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint(), "snapshot", "save"])
            .arg(&path));
        path
    }

    /// A copy of a killed member's data for [`Self::roll_back`]. The copy is removed with this value.
    pub fn copy_data(&self) -> PathBuf {
        let copy = self.root.path().join("copy");
        run(Command::new("cp").arg("-a").arg(self.data_dir(&self.members[0])).arg(&copy));
        copy
    }

    /// Replaces a killed member's data by a copy: its cluster returns to that state and keeps its id.
    pub fn roll_back(&self, copy: &Path) {
        let data = self.data_dir(&self.members[0]);
        std::fs::remove_dir_all(&data).expect("remove the data");
        run(Command::new("cp").arg("-a").arg(copy).arg(&data));
    }

    /// Restores a killed member from a snapshot of [`Self::save_snapshot`], under its own name and token: its cluster
    /// returns to that state and keeps its id.
    pub fn restore_in_place(&self, snapshot: &Path) {
        std::fs::remove_dir_all(self.data_dir(&self.members[0])).expect("remove the data");
        self.restore(0, snapshot);
    }

    /// The output of a member over all its starts.
    pub fn member_log(&self, index: usize) -> String {
        let path = self.root.path().join(format!("{}.log", self.members[index].name));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// The output of all members.
    pub fn log(&self) -> String {
        self.members.iter().filter_map(|member| member.process.as_ref()).map(Process::log).collect()
    }

    /// Prints the end of the log of each member.
    pub fn print_log(&self) {
        self.members.iter().filter_map(|member| member.process.as_ref()).for_each(Process::print_log);
    }

    fn signal(&mut self, signal: Signal) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            process.signal(signal);
        }
    }

    fn restore(&self, index: usize, snapshot: &Path) {
        let member = &self.members[index];
        run(Command::new(etcdutl())
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .arg("--data-dir")
            .arg(self.data_dir(member))
            .args(["--name", &member.name, "--initial-cluster-token", &self.cluster_token])
            .args(["--initial-advertise-peer-urls", &self.advertised(index)])
            .args(["--initial-cluster", &self.initial_cluster()]));
    }

    fn spawn(&mut self, index: usize) {
        let member = &self.members[index];
        let client_url = self.member_endpoint(index);
        let data_dir = self.data_dir(member).display().to_string();
        let mut command = vec![self.program.display().to_string()];
        for (flag, value) in [
            ("--name", member.name.as_str()),
            ("--data-dir", &data_dir),
            ("--listen-client-urls", &client_url),
            ("--advertise-client-urls", &client_url),
            ("--listen-peer-urls", &peer_url(member)),
            ("--initial-advertise-peer-urls", &self.advertised(index)),
            ("--initial-cluster", &self.initial_cluster()),
            ("--initial-cluster-token", &self.cluster_token),
            ("--log-level", "warn"),
        ] {
            command.push(format!("{flag}={value}"));
        }
        if !self.program.to_string_lossy().contains("etcd-3.4.") {
            // The page cache survives the death of a process, and these tests do not simulate a power failure.
            command.push("--unsafe-no-fsync".to_owned());
        }
        if member.joins {
            command.push("--initial-cluster-state=existing".to_owned());
        }
        if member.http_port != member.client_port {
            command.push(format!("--listen-client-http-urls=http://127.0.0.1:{}", member.http_port));
        }
        // The flag without the prefix exists since etcd 3.6, and is the only one since 3.7.
        let experimental = if self.program.to_string_lossy().contains("etcd-3.7.") { "--" } else { "--experimental-" };
        // For an additional address, for example with TLS.
        let own = |flag: &String| flag.replace("{client-url}", &client_url).replace("--experimental-", experimental);
        command.extend(self.flags.iter().map(own));
        let log = self.root.path().join(format!("{}.log", member.name));
        let process = Process::spawn(&format!("etcd {}", member.name), &command, &[], &log);
        self.members[index].process = Some(process);
    }

    /// Waits until every member serves. Returns false if one has ended.
    async fn wait_ready(&mut self) -> bool {
        let members = &mut self.members;
        eventually("etcd is healthy", async || {
            for member in members.iter_mut() {
                if !member.process.as_mut().is_some_and(Process::is_running) {
                    return Some(false);
                }
                let answer = http::get(&format!("127.0.0.1:{}", member.http_port), "/health").await.ok()?;
                // etcd 2 writes a space.
                if !answer.body.replace(' ', "").contains(r#""health":"true""#) {
                    return None;
                }
            }
            Some(true)
        })
        .await
    }

    fn data_dir(&self, member: &Member) -> PathBuf {
        self.root.path().join(&member.name)
    }

    /// The address at which the others reach a member.
    fn advertised(&self, index: usize) -> String {
        self.peers.as_ref().map_or_else(|| peer_url(&self.members[index]), |peers| peers.url(index))
    }

    fn initial_cluster(&self) -> String {
        let members: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(i, member)| format!("{}={}", member.name, self.advertised(i)))
            .collect();
        members.join(",")
    }
}

/// The real `etcdctl`: the one that `ETCDCTL` names, or else the one beside `ETCD`, or else the one on `PATH`.
pub fn etcdctl() -> PathBuf {
    tool("ETCDCTL", "etcdctl")
}

/// Real `etcdutl`, found in the same way.
pub fn etcdutl() -> PathBuf {
    tool("ETCDUTL", "etcdutl")
}

/// The program that the variable names, or else `name` beside the one that `ETCD` names, or else `name` on `PATH`.
fn tool(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return PathBuf::from(path);
    }
    if let Some(beside) = std::env::var_os("ETCD").map(|etcd| PathBuf::from(etcd).with_file_name(name))
        && beside.is_file()
    {
        return beside;
    }
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "there is no {name}; run `make test`, which downloads etcd, or set {variable} to the \
            program"
            )
        })
}

fn peer_url(member: &Member) -> String {
    format!("http://127.0.0.1:{}", member.peer_port)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count in a Prometheus text")]
fn count(value: f64) -> u64 {
    value.max(0.0) as u64
}
