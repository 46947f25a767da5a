//! [`Relay`]: the program under test, started like an operator would.
//!
//! Addresses are `127.0.0.1:0`; the real ones are read from its log (`Listening`). Always holds: it stops with the
//! value, and its log is printed when the test that owns it panics.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    eventually, http,
    process::Process,
    tls::{Pair, flag},
};

/// A warning that depends on the shell from which the tests were started.
const ABOUT_THE_MACHINE: &str = "The limit on open files";

/// How a relay is started.
#[derive(Clone, Debug)]
pub struct RelayCommand {
    /// A command that starts the program: its words, before those of the program.
    under: Vec<String>,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    wait_ready: bool,
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    process: Process,
    grpc_addr: String,
    http_addr: Option<String>,
    _folder: TempDir,
}

impl RelayCommand {
    /// `serve` in front of these endpoints.
    pub fn serve(endpoints: &[String]) -> Self {
        Self::new(&["serve", "--etcd", &endpoints.join(",")]).listen()
    }

    /// `serve` in front of the members in a domain's DNS records.
    pub fn discovering(domain: &str) -> Self {
        Self::new(&["serve", "--discovery-srv", domain]).listen()
    }

    /// `serve` over the v2 store of these members.
    pub fn over_v2(endpoints: &[String]) -> Self {
        Self::new(&["serve", "--etcd-v2", &endpoints.join(",")]).listen()
    }

    /// `serve` without any flag: [`RelayCommand::env`] sets everything, also where it listens.
    pub fn told_by_environment() -> Self {
        Self::new(&["serve"])
    }

    /// `demo` with an empty embedded store that does not change by itself.
    pub fn demo() -> Self {
        Self::new(&["demo", "--seed", "none", "--changes-every", "none"]).listen()
    }

    /// `demo` with its example data, which does not change by itself.
    pub fn demo_with_example() -> Self {
        Self::new(&["demo", "--changes-every", "none"]).listen()
    }

    /// `grpc-proxy start` with etcd's own flags.
    pub fn grpc_proxy(endpoints: &[String]) -> Self {
        Self::new(&["grpc-proxy", "start", "--endpoints", &endpoints.join(","), "--listen-addr", "127.0.0.1:0"])
    }

    /// Adds a configured feed.
    pub fn prefix(self, prefix: &str) -> Self {
        self.arg(&format!("--prefix={prefix}"))
    }

    /// Uses another build of the program.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// Starts it through another command, which gets the program as an argument and replaces itself with it.
    pub fn under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(ToString::to_string).collect();
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the address for HTTP.
    pub fn listen_http(mut self, addr: &str) -> Self {
        self.args.retain(|arg| !arg.starts_with("--listen-http="));
        self.arg(&format!("--listen-http={addr}"))
    }

    /// Serves etcd's API over TLS with this certificate.
    pub fn secure(mut self, pair: &Pair) -> Self {
        self.args.retain(|arg| !arg.starts_with("--listen-grpc="));
        self.arg("--listen-grpc=https://127.0.0.1:0")
            .arg(&flag("--cert-file", &pair.cert))
            .arg(&flag("--key-file", &pair.key))
    }

    /// Sets the address for gRPC.
    pub fn listen_grpc(mut self, addr: &str) -> Self {
        self.args.retain(|arg| !arg.starts_with("--listen-grpc="));
        self.arg(&format!("--listen-grpc={addr}"))
    }

    /// Does not wait until `/ready` returns 200.
    pub fn unready(mut self) -> Self {
        self.wait_ready = false;
        self
    }

    /// Starts it, waits until it listens, and by default until it is ready.
    pub async fn start(self) -> Relay {
        let folder = tempfile::Builder::new().prefix("etcd-relay-test-").tempdir().expect("a temporary folder");
        let proxy = self.args[0] == "grpc-proxy";
        let mut command = self.under;
        command.push(self.program.display().to_string());
        command.extend(self.args);
        let mut process = Process::spawn("etcd-relay", &command, &self.env, &folder.path().join("relay.log"));
        let grpc_addr = listening(&mut process, "grpc").await;
        // With `grpc-proxy start`, a single address serves both.
        let http_addr = if proxy { None } else { Some(listening(&mut process, "http").await) };
        let relay = Relay { process, grpc_addr, http_addr, _folder: folder };
        if self.wait_ready && relay.http_addr.is_some() {
            relay.ready().await;
        }
        relay
    }

    fn new(args: &[&str]) -> Self {
        let args = args.iter().map(ToString::to_string).collect();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_etcd-relay"));
        let env = vec![("RUST_BACKTRACE".to_owned(), "1".to_owned())];
        Self { under: Vec::new(), program, args, env, wait_ready: true }
    }

    fn listen(self) -> Self {
        // `grpc-proxy start` has no flag for this, and logs JSON if it does not write to a terminal.
        self.arg("--listen-grpc=127.0.0.1:0").arg("--listen-http=127.0.0.1:0").arg("--log-format=json")
    }
}

impl Relay {
    /// `serve` in front of one endpoint, with the whole key space as its only feed.
    pub async fn over(endpoint: &str) -> Self {
        RelayCommand::serve(&[endpoint.to_owned()]).prefix("").start().await
    }

    /// The URL for etcd clients.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.grpc_addr)
    }

    /// `host:port` for etcd clients.
    pub fn grpc_addr(&self) -> &str {
        &self.grpc_addr
    }

    /// `host:port` of metrics and state.
    pub fn http_addr(&self) -> &str {
        self.http_addr.as_deref().unwrap_or(&self.grpc_addr)
    }

    /// `host:port` of each port for metrics alone.
    pub fn metrics_addrs(&self) -> Vec<String> {
        let log = self.process.log();
        log.lines().filter_map(|line| listens(line, |fields| fields["port"] == "metrics")).collect()
    }

    /// `host:port` of another protocol, such as `v2`.
    pub async fn addr_of(&mut self, protocol: &str) -> String {
        listening(&mut self.process, protocol).await
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Waits until `/ready` returns 200.
    pub async fn ready(&self) {
        eventually("the relay is ready", async || (self.ready_status().await == Some(200)).then_some(())).await;
    }

    /// Waits until the watch of each feed is open. A relay is ready before that, once it has its snapshots.
    pub async fn follows(&self) {
        eventually("the watch of each feed is open", async || {
            let state = self.state().await;
            let feeds = state["feeds"].as_array().expect("a list of feeds");
            (!feeds.is_empty() && feeds.iter().all(|feed| feed["state"] == "live")).then_some(())
        })
        .await;
    }

    /// The status of `/ready`.
    pub async fn ready_status(&self) -> Option<u16> {
        http::get(self.http_addr(), "/ready").await.ok().map(|answer| answer.status)
    }

    /// The sum of all series of a metric; 0 if there is none yet.
    pub async fn metric(&self, name: &str) -> f64 {
        http::metric(&self.metrics().await, name).unwrap_or(0.0)
    }

    /// One series of a metric; 0 if it does not exist yet.
    pub async fn metric_of(&self, name: &str, labels: &str) -> f64 {
        let text = self.metrics().await;
        http::series(&text, name).find(|(found, _)| *found == labels).map_or(0.0, |(_, value)| value)
    }

    /// The whole text of `/metrics`.
    pub async fn metrics(&self) -> String {
        http::get(self.http_addr(), "/metrics").await.expect("the relay answers /metrics").body
    }

    /// `/debug/state`.
    pub async fn state(&self) -> Value {
        let body = http::get(self.http_addr(), "/debug/state").await.expect("the relay answers /debug/state").body;
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("/debug/state is not JSON: {error}\n{body}"))
    }

    /// Memory in use, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = self.proc_file("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS in /proc");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("VmRSS is a number");
        kib * 1024
    }

    /// User and system CPU time used so far, in the kernel's usual hundredths of a second.
    pub fn cpu_time(&self) -> Duration {
        let stat = self.proc_file("stat");
        // The name, in parentheses, may contain spaces; utime and stime are fields 14 and 15, counted from the pid.
        let (_, rest) = stat.rsplit_once(") ").expect("a name in /proc/…/stat");
        let ticks: u64 = rest.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for the end. Returns 128 + n if signal n ended it.
    pub async fn exit_code(&mut self, deadline: Duration) -> i32 {
        self.process.exit_code(deadline).await
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Prints the end of the log.
    pub fn print_log(&self) {
        self.process.print_log();
    }

    /// Fails if it panicked, or logged a warning or an error that contains none of these texts.
    pub fn assert_log_has_only(&self, expected: &[&str]) {
        let unexpected: Vec<_> = self
            .log()
            .lines()
            .filter(|line| {
                let level =
                    serde_json::from_str::<Value>(line).ok().and_then(|line| Some(line["level"].as_str()?.to_owned()));
                match level.as_deref() {
                    Some("WARN" | "ERROR") => {
                        !expected.iter().chain(&[ABOUT_THE_MACHINE]).any(|text| line.contains(text))
                    }
                    Some(_) => false,
                    None => line.contains("panicked"),
                }
            })
            .map(ToOwned::to_owned)
            .collect();
        assert!(unexpected.is_empty(), "unexpected in the relay's log:\n{}", unexpected.join("\n"));
    }

    /// Fails if one of its threads panicked.
    pub fn assert_no_panic(&self) {
        let log = self.log();
        assert!(!log.contains("panicked"), "the relay panicked:\n{log}");
    }

    fn proc_file(&self, name: &str) -> String {
        let path = PathBuf::from(format!("/proc/{}/{name}", self.pid()));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// The address in the log line `Listening` of this protocol.
async fn listening(process: &mut Process, protocol: &str) -> String {
    eventually(&format!("the relay listens for {protocol}"), async || {
        assert!(process.is_running(), "the relay ended at its start; log:\n{}", process.log());
        process.log().lines().find_map(|line| listens(line, |fields| fields["protocol"] == protocol))
    })
    .await
}

/// The address in a line of the log, if it is about a wanted port.
fn listens(line: &str, wanted: impl Fn(&Value) -> bool) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    let wanted = fields["message"] == "Listening" && wanted(fields);
    wanted.then(|| fields["addr"].as_str().expect("an address").to_owned())
}
