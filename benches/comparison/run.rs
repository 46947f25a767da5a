//! [`Lab`]: servers for one run, the load on them, and what it reported.
//!
//! Not here: what is compared. Always holds: a run that fails or takes too long is an outcome with its reason, and ends no other.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::cases::{Case, Figure, Run};
use crate::support::{
    etcd::{self, Etcd},
    http,
    process::{Process, free_port},
};

/// Longest wait for a server to serve.
const START_PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Who is under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// etcd itself.
    Etcd,
    /// etcd's grpc-proxy.
    Proxy,
    /// The relay.
    Relay,
    /// Bare sockets.
    Floor,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The run's label.
    pub label: &'static str,
    target: Target,
    /// The report, or why there is none.
    pub report: Result<Value, String>,
}

/// The programs.
#[derive(Debug)]
pub struct Lab {
    relay: PathBuf,
    etcd: PathBuf,
    load_average: String,
}

impl Lab {
    /// With this relay, or the one that was built with this benchmark, and the etcd that `ETCD` names.
    pub fn new(relay: Option<PathBuf>) -> Result<Self> {
        let relay = relay.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_etcd-relay")));
        let load_average = std::fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
        Ok(Self { relay, etcd: etcd::program()?, load_average })
    }

    /// The first line of what the programs say of their versions.
    pub fn versions(&self) -> Result<Vec<String>> {
        let version = |program: &Path| {
            let output = Command::new(program).arg("--version").output().context("ask for a version")?;
            Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
        };
        [&self.etcd, &self.relay].into_iter().map(|program| version(program)).collect()
    }

    /// That of the last minute before anything ran: figures of a busy machine mean little.
    pub fn load_average(&self) -> &str {
        self.load_average.split(' ').next().unwrap_or_default()
    }

    /// All runs of a case.
    pub async fn measure(&self, case: &Case) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for run in &case.runs {
            let report = self.run(run).await.map_err(|error| format!("{error:#}"));
            let outcome = Outcome { label: run.label, target: run.target, report };
            eprintln!("  {}: {}", run.label, outcome.in_short());
            outcomes.push(outcome);
        }
        outcomes
    }

    async fn run(&self, run: &Run) -> Result<Value> {
        let mut args = vec!["bench".to_owned()];
        args.extend(run.args.iter().cloned());
        args.push("--json".to_owned());
        if run.target == Target::Floor {
            return self.load(&args, run.patience).await;
        }
        let etcd = Etcd::start().await?;
        let folder = tempfile::Builder::new().prefix("etcd-relay-bench-").tempdir().context("a temporary folder")?;
        let server = self.start(run.target, &etcd, &folder).await?;
        let endpoint = server.as_ref().map_or_else(|| etcd.endpoint(), |(_, endpoint)| endpoint.clone());
        let pid = server.as_ref().map_or(etcd.process().pid(), |(process, _)| process.pid());
        args.extend(["--endpoint".to_owned(), endpoint, "--put-endpoint".to_owned(), etcd.endpoint()]);
        args.extend(["--pid".to_owned(), format!("server={pid}")]);
        args.extend(["--pid".to_owned(), format!("etcd={}", etcd.process().pid())]);
        self.load(&args, run.patience).await
    }

    async fn start(&self, target: Target, etcd: &Etcd, folder: &TempDir) -> Result<Option<(Process, String)>> {
        let addr = format!("127.0.0.1:{}", free_port()?);
        let program = |path: &Path| path.display().to_string();
        let command = match target {
            Target::Etcd | Target::Floor => return Ok(None),
            Target::Proxy => vec![
                program(&self.etcd),
                "grpc-proxy".to_owned(),
                "start".to_owned(),
                format!("--endpoints={}", etcd.endpoint()),
                format!("--listen-addr={addr}"),
                "--advertise-client-url=".to_owned(),
                format!("--data-dir={}", folder.path().display()),
            ],
            Target::Relay => vec![
                program(&self.relay),
                "serve".to_owned(),
                format!("--etcd={}", etcd.endpoint()),
                format!("--listen-grpc={addr}"),
                "--listen-http=127.0.0.1:0".to_owned(),
                "--prefix=/etcd-relay-bench/".to_owned(),
                "--lainlet=off".to_owned(),
                "--log-level=warn".to_owned(),
            ],
        };
        let mut process = Process::spawn(&command, &folder.path().join("server.log"))?;
        let deadline = Instant::now() + START_PATIENCE;
        while !http::get(&addr, "/health").await.is_ok_and(|answer| answer.status == 200) {
            if !process.is_running() || Instant::now() > deadline {
                bail!("{target:?} does not serve; its log:\n{}", process.log());
            }
            sleep(PAUSE).await;
        }
        Ok(Some((process, format!("http://{addr}"))))
    }

    /// Runs the load, and gives its report.
    async fn load(&self, args: &[String], patience: Duration) -> Result<Value> {
        let mut child = Command::new(&self.relay)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the load")?;
        let deadline = Instant::now() + patience;
        // A report fits into a pipe, so nobody needs to read before the end.
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
        serde_json::from_str(&out).context("the report is no JSON")
    }
}

impl Outcome {
    /// A figure of the report.
    pub fn figure(&self, figure: Figure) -> Option<f64> {
        let report = self.report.as_ref().ok()?;
        match figure {
            Figure::Run(name) => &report["figures"][name],
            // The sender of bare sockets is a thread, with a figure of its own.
            Figure::Server(name) if self.target == Target::Floor => &report["figures"][name],
            Figure::Server(name) => &report["processes"]["server"][name],
            Figure::Etcd(name) => &report["processes"]["etcd"][name],
        }
        .as_f64()
    }

    /// What was wrong with the answers.
    pub fn wrong(&self) -> Option<String> {
        let wrong = &self.report.as_ref().ok()?["wrong"];
        let count = wrong["count"].as_u64().filter(|count| *count > 0)?;
        Some(format!("{count} findings, the first: {}", wrong["first"][0].as_str().unwrap_or_default()))
    }

    /// Whether nothing was wrong that the relay is to blame for.
    pub fn is_right_or_of_others(&self) -> bool {
        let is_ours = matches!(self.target, Target::Relay | Target::Floor);
        !is_ours || self.report.is_ok() && self.wrong().is_none()
    }

    fn in_short(&self) -> String {
        match (&self.report, self.wrong()) {
            (Err(error), _) => format!("failed: {error}"),
            (Ok(_), Some(wrong)) => format!("WRONG: {wrong}"),
            (Ok(report), None) => report["figures"].to_string(),
        }
    }
}

/// The last thing that was said.
fn reason(log: &str) -> String {
    let line = log.lines().last().unwrap_or("it said nothing");
    let parsed: Option<Value> = serde_json::from_str(line).ok();
    parsed.and_then(|line| line["error"].as_str().map(ToOwned::to_owned)).unwrap_or_else(|| line.to_owned())
}
