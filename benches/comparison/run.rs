//! [`Lab`]: the servers for one run, the load on them, and its report.
//!
//! Runs of a case that are repeated take turns, so that other work on the machine affects all of them alike; the median
//! counts. Always holds: each run has new servers. A run that fails or takes too long is a result with a reason, and
//! ends no other run. No run is left out.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::cases::{Case, Figure, Run};
use crate::support::{
    etcd::{self, Etcd},
    http,
    process::{Process, free_port},
};

/// Data of this many bytes is so much that memory matters. The relay's allocator gives what it freed back to the system
/// within this time.
const MUCH_DATA: u64 = 64 << 20;
const SETTLES: Duration = Duration::from_secs(15);
/// Longest wait until a server answers.
const START_PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);
/// What the load writes is below this prefix, and so are the keys that exist beforehand.
const PREFIX: &str = "/etcd-relay-bench/";
/// The value of each of these: 256 bytes, as the load writes by default.
const FILLER: &str = concat!(
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "0123456789abcdef0123456789abcdef"
);

/// The server under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// etcd itself.
    Etcd,
    /// etcd's grpc-proxy.
    Proxy,
    /// The relay.
    Relay,
    /// The relay with a system call for each send.
    RelayByEpoll,
    /// The relay with only one port, which leaves it as many files for clients as possible.
    RelayAsProxy,
    /// Bare sockets.
    Floor,
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The run's label.
    pub label: &'static str,
    target: Target,
    /// The reports in the order of the runs, or the reason why there is none.
    pub reports: Vec<Result<Value, String>>,
}

/// A measurement from one or more runs.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The median; of an even number of runs, the lower of the two.
    pub median: f64,
    /// The smallest value.
    pub least: f64,
    /// The largest value.
    pub most: f64,
    /// The number of runs.
    pub of: usize,
}

/// A server under load.
struct Server {
    process: Process,
    endpoint: String,
    /// The address of its metrics, if it has any.
    http: Option<String>,
    _folder: TempDir,
}

/// The programs to run.
#[derive(Debug)]
pub struct Lab {
    relay: PathBuf,
    etcd: PathBuf,
    load_average: String,
    /// The certificates of an authority and of all servers and clients.
    certificates: TempDir,
}

impl Lab {
    /// Uses this relay, or the one built with this benchmark, and the etcd that `ETCD` names.
    pub fn new(relay: Option<PathBuf>) -> Result<Self> {
        let relay = relay.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_etcd-relay")));
        let load_average = std::fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
        Ok(Self { relay, etcd: etcd::program()?, load_average, certificates: certificates()? })
    }

    /// The first line of each program's version.
    pub fn versions(&self) -> Result<Vec<String>> {
        let version = |program: &Path| {
            let output = Command::new(program).arg("--version").output().context("ask for a version")?;
            Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
        };
        [&self.etcd, &self.relay].into_iter().map(|program| version(program)).collect()
    }

    /// The load average of the last minute before the first run. Measurements of a busy machine mean little.
    pub fn load_average(&self) -> &str {
        self.load_average.split(' ').next().unwrap_or_default()
    }

    /// Makes all runs of a case.
    pub async fn measure(&self, case: &Case) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = case.runs.iter().map(Outcome::of).collect();
        for turn in 0..case.runs.iter().map(|run| run.times).max().unwrap_or(0) {
            for (run, outcome) in case.runs.iter().zip(&mut outcomes).filter(|(run, _)| turn < run.times) {
                let report = self.report(run).await.map_err(|error| format!("{error:#}"));
                eprintln!("  {}: {}", run.label, in_short(&report));
                outcome.reports.push(report);
            }
        }
        outcomes
    }

    /// Starts the servers of a run, puts its load on them, and returns the report.
    pub async fn report(&self, run: &Run) -> Result<Value> {
        let mut args = vec!["bench".to_owned()];
        args.extend(run.args.iter().cloned());
        args.push("--json".to_owned());
        if run.target == Target::Floor {
            if run.tls {
                args.extend(self.as_client());
            }
            return self.load(&args, run.patience).await;
        }
        let etcd = Etcd::start_with(run.tls.then(|| self.certificates.path())).await?;
        if run.filled > 0 {
            let key = |number| (format!("{PREFIX}filled/{number:08}"), FILLER.to_owned());
            etcd.load((0..run.filled).map(key)).await?;
        }
        let own = etcd.secure_endpoint().unwrap_or_else(|| etcd.endpoint());
        if run.reads_once {
            return self.reading_once(run, &etcd).await;
        }
        let first = self.start(run.target, &own).await?;
        let mut leaves = Vec::new();
        for _ in 0..run.leaves {
            let upstream = first.as_ref().map_or(&own, |first| &first.endpoint);
            leaves.extend(self.start(Target::Relay, upstream).await?);
        }
        if let Some(first) = first.as_ref().filter(|_| run.leaves > 0) {
            args.extend(["--pid".to_owned(), format!("first={}", first.process.pid())]);
        }
        let server = leaves.first().or(first.as_ref());
        let endpoint = server.map_or(own.clone(), |server| server.endpoint.clone());
        if run.tls {
            args.extend(self.as_client());
        }
        let pid = server.map_or(etcd.process().pid(), |server| server.process.pid());
        let http = server.and_then(|server| server.http.as_ref()).filter(|_| run.args.iter().any(|arg| arg == "--sse"));
        let endpoint = http.map_or(endpoint, |http| format!("http://{http}"));
        // Puts that are measured go through the server, and are looked for in etcd.
        let other =
            if run.args.first().is_some_and(|load| load == "put") { "--check-endpoint" } else { "--put-endpoint" };
        args.extend(["--endpoint".to_owned(), endpoint, other.to_owned(), etcd.endpoint()]);
        args.extend(["--pid".to_owned(), format!("server={pid}")]);
        args.extend(["--pid".to_owned(), format!("etcd={}", etcd.process().pid())]);
        if let Some(http) = server.and_then(|server| server.http.as_ref())
            && run.args.first().is_some_and(|load| load == "watch")
        {
            args.extend(["--metrics-url".to_owned(), format!("relay=http://{http}/metrics")]);
            for metric in ["etcd_relay_publish_seconds", "etcd_relay_turn_seconds"] {
                args.extend(["--metric".to_owned(), metric.to_owned()]);
            }
        }
        self.load(&args, run.patience).await
    }

    /// Lets a server start, which reads all keys, or reads them from etcd in one call. Returns what that took.
    async fn reading_once(&self, run: &Run, etcd: &Etcd) -> Result<Value> {
        let data = run.filled * (format!("{PREFIX}filled/00000000").len() + FILLER.len()) as u64;
        let (begun, before) = (Instant::now(), etcd.process().usage()?);
        let server = self.start(run.target, &etcd.endpoint()).await?;
        if server.is_none() {
            let keys = etcd.read_at_once(PREFIX).await?;
            anyhow::ensure!(keys == run.filled, "{keys} keys were read, but there are {}", run.filled);
        }
        let took = begun.elapsed();
        let of_etcd = etcd.process().usage()?.since(&before);
        let mut processes = json!({ "etcd": { "cpu_seconds": of_etcd.as_secs_f64() } });
        if let Some(Server { process, .. }) = &server {
            let cpu = process.usage()?.total();
            if data >= MUCH_DATA {
                sleep(SETTLES).await;
            }
            let resident = process.resident_bytes()? as f64;
            processes["server"] = json!({
                "cpu_seconds": cpu.as_secs_f64(),
                "rss_mib": resident / f64::from(1 << 20),
                "rss_of_data": resident / data as f64,
            });
        }
        Ok(
            json!({ "figures": { "read_seconds": took.as_secs_f64() }, "processes": processes, "wrong": { "count": 0 } }),
        )
    }

    /// Starts a server over the one with this URL; none if the load is for that one or for none.
    async fn start(&self, target: Target, upstream: &str) -> Result<Option<Server>> {
        let folder = tempfile::Builder::new().prefix("etcd-relay-bench-").tempdir().context("a temporary folder")?;
        let addr = format!("127.0.0.1:{}", free_port()?);
        let http = format!("127.0.0.1:{}", free_port()?);
        let program = |path: &Path| path.display().to_string();
        let is_secure = upstream.starts_with("https://");
        let mut command = match target {
            Target::Etcd | Target::Floor => return Ok(None),
            Target::Proxy => vec![
                program(&self.etcd),
                "grpc-proxy".to_owned(),
                "start".to_owned(),
                format!("--endpoints={upstream}"),
                format!("--listen-addr={addr}"),
                "--advertise-client-url=".to_owned(),
                format!("--data-dir={}", folder.path().display()),
            ],
            Target::RelayAsProxy => vec![
                program(&self.relay),
                "grpc-proxy".to_owned(),
                "start".to_owned(),
                format!("--endpoints={upstream}"),
                format!("--listen-addr={addr}"),
            ],
            Target::Relay | Target::RelayByEpoll => vec![
                program(&self.relay),
                "serve".to_owned(),
                format!("--etcd={upstream}"),
                format!("--listen-grpc={}{addr}", if is_secure { "https://" } else { "" }),
                format!("--listen-http={http}"),
                format!("--prefix={PREFIX}"),
                "--lainlet=off".to_owned(),
                "--log-level=warn".to_owned(),
            ],
        };
        if target == Target::RelayByEpoll {
            command.push("--io=epoll".to_owned());
        }
        if is_secure {
            command.extend(self.as_client());
            for (flag, file) in [("cert-file", "pair.pem"), ("key-file", "pair.key"), ("trusted-ca-file", "ca.pem")] {
                command.push(format!("--{flag}={}", self.certificates.path().join(file).display()));
            }
        }
        let mut process = Process::spawn(&command, &folder.path().join("server.log"))?;
        let deadline = Instant::now() + START_PATIENCE;
        let serves = async || match (is_secure, target) {
            // It has read all keys, so reading them is not part of the measurement.
            (_, Target::Relay | Target::RelayByEpoll) => {
                http::get(&http, "/ready").await.is_ok_and(|answer| answer.status == 200)
            }
            (false, _) => http::get(&addr, "/health").await.is_ok_and(|answer| answer.status == 200),
            // With TLS, no request is made here: the proxy is ready once it accepts connections.
            (true, _) => tokio::net::TcpStream::connect(&addr).await.is_ok(),
        };
        while !serves().await {
            if !process.is_running() || Instant::now() > deadline {
                bail!("{target:?} does not serve; its log:\n{}", process.log());
            }
            sleep(PAUSE).await;
        }
        let http = matches!(target, Target::Relay | Target::RelayByEpoll).then_some(http);
        let scheme = if is_secure { "https" } else { "http" };
        Ok(Some(Server { process, endpoint: format!("{scheme}://{addr}"), http, _folder: folder }))
    }

    /// Flags for a client with a certificate.
    fn as_client(&self) -> [String; 3] {
        [("cacert", "ca.pem"), ("cert", "pair.pem"), ("key", "pair.key")]
            .map(|(flag, file)| format!("--{flag}={}", self.certificates.path().join(file).display()))
    }

    /// Runs the load and returns its report.
    async fn load(&self, args: &[String], patience: Duration) -> Result<Value> {
        let mut child = Command::new(&self.relay)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the load")?;
        let deadline = Instant::now() + patience;
        // A report fits into a pipe, so it need not be read before the end.
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("took more than {} s", patience.as_secs());
            }
            sleep(PAUSE).await;
        }
        let (mut out, mut err) = (String::new(), String::new());
        child.stdout.take().context("stdout is piped")?.read_to_string(&mut out)?;
        child.stderr.take().context("stderr is piped")?.read_to_string(&mut err)?;
        if out.is_empty() {
            bail!("no report: {}", reason(&err));
        }
        serde_json::from_str(&out).context("the report is not JSON")
    }
}

/// An authority, and a certificate for this machine that servers and clients share.
fn certificates() -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("etcd-relay-bench-").tempdir().context("a temporary folder")?;
    let write = |name: &str, pem: String| std::fs::write(folder.path().join(name), pem).context("a certificate");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    // etcd's proxy refuses a certificate with a common name.
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate()?;
    write("ca.pem", authority.pem())?;
    write("pair.pem", params.signed_by(&key, &authority)?.pem())?;
    write("pair.key", key.serialize_pem())?;
    Ok(folder)
}

impl Outcome {
    fn of(run: &Run) -> Self {
        Self { label: run.label, target: run.target, reports: Vec::new() }
    }

    /// A measurement from the reports.
    pub fn figure(&self, figure: Figure) -> Option<Measured> {
        let of = |report: &Value| match figure {
            // The sender of bare sockets is a thread with its own measurement.
            Figure::Server(name) if self.target == Target::Floor => report["figures"][name].as_f64(),
            Figure::Run(name) => report["figures"][name].as_f64(),
            Figure::Server(name) => report["processes"]["server"][name].as_f64(),
            Figure::Etcd(name) => report["processes"]["etcd"][name].as_f64(),
            // There is no bound beyond the last bucket.
            Figure::Metric(metric, part) => match &report["metrics"]["relay"][metric][part] {
                Value::String(_) => Some(f64::INFINITY),
                value => value.as_f64(),
            },
        };
        let mut figures: Vec<f64> = self.reports.iter().flatten().filter_map(of).collect();
        figures.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*figures.first()?, *figures.last()?);
        Some(Measured { median: figures[(figures.len() - 1) / 2], least, most, of: figures.len() })
    }

    /// Whether there is a report.
    pub fn is_measured(&self) -> bool {
        self.reports.iter().any(Result::is_ok)
    }

    /// The wrong answers and the failed runs.
    pub fn findings(&self) -> Vec<String> {
        let told = |report: &Result<Value, String>| match report {
            Ok(report) => wrong(report).map(|wrong| format!("**wrong**: {wrong}")),
            Err(error) => Some(format!("not measured: {error}")),
        };
        self.reports.iter().filter_map(told).collect()
    }

    /// Whether the relay made no errors.
    pub fn is_right_or_of_others(&self) -> bool {
        let is_ours = !matches!(self.target, Target::Etcd | Target::Proxy);
        !is_ours || self.findings().is_empty()
    }
}

fn wrong(report: &Value) -> Option<String> {
    let wrong = &report["wrong"];
    let count = wrong["count"].as_u64().filter(|count| *count > 0)?;
    Some(format!("{count} findings, the first: {}", wrong["first"][0].as_str().unwrap_or_default()))
}

fn in_short(report: &Result<Value, String>) -> String {
    match report {
        Err(error) => format!("failed: {error}"),
        Ok(report) => wrong(report).map_or_else(|| report["figures"].to_string(), |wrong| format!("WRONG: {wrong}")),
    }
}

/// The last line of a log.
fn reason(log: &str) -> String {
    let line = log.lines().last().unwrap_or("it said nothing");
    let parsed: Option<Value> = serde_json::from_str(line).ok();
    parsed.and_then(|line| line["error"].as_str().map(ToOwned::to_owned)).unwrap_or_else(|| line.to_owned())
}
