//! One run of `etcdctl`, until it ends or has printed the expected number of lines.

use std::{fmt, process::Stdio};

use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
    time::timeout,
};

use super::mask::masked;
use crate::support::{
    etcd::{etcdctl, etcdutl},
    patience, quiet_time,
};

/// A command to run on both sides.
#[derive(Clone, Debug)]
pub struct Step {
    /// The arguments. `$LEASE` and `$DIR` stand for values of each side.
    pub args: Vec<String>,
    /// Its input.
    pub stdin: Option<String>,
    /// The number of lines to wait for if it runs forever; `None` if it ends.
    pub lines: Option<usize>,
    /// Whether it fails at etcd.
    pub may_fail: bool,
}

/// What it printed, masked, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    stdout: Vec<String>,
    stderr: Vec<String>,
    /// `None` if the test ended it.
    code: Option<i32>,
}

/// One endpoint.
#[derive(Debug)]
pub struct Side {
    endpoint: String,
    folder: TempDir,
    lease: Mutex<String>,
}

impl Step {
    /// A command that succeeds.
    pub fn new(args: &str) -> Self {
        let args = args.split_whitespace().map(ToOwned::to_owned).collect();
        Self { args, stdin: None, lines: None, may_fail: false }
    }

    /// Sets its input.
    pub fn stdin(self, text: &str) -> Self {
        Self { stdin: Some(text.to_owned()), ..self }
    }
}

impl Outcome {
    /// Whether it failed.
    pub fn failed(&self) -> bool {
        self.code.is_some_and(|code| code != 0)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stdout, stderr, code } = self;
        write!(formatter, "{}\n{}\nexit code {code:?}", stdout.join("\n"), stderr.join("\n"))
    }
}

impl Side {
    /// At this endpoint.
    pub fn new(endpoint: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("etcd-relay-test-").tempdir().expect("a temporary folder");
        Self { endpoint: endpoint.to_owned(), folder, lease: Mutex::default() }
    }

    /// Runs a step.
    pub async fn run(&self, step: &Step) -> Outcome {
        let own = |arg: &String| {
            let folder = self.folder.path().display().to_string();
            arg.replace("$LEASE", &self.lease.lock()).replace("$DIR", &folder)
        };
        let mut command = Command::new(etcdctl());
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint, "--command-timeout=20s"]);
        command.args(step.args.iter().map(own));
        let outcome = timeout(patience() * 2, execute(command, step)).await;
        let (stdout, stderr, code) =
            outcome.unwrap_or_else(|_| panic!("etcdctl {:?} at {} hangs", step.args, self.endpoint));
        self.remember_lease(&stdout);
        let folder = self.folder.path().display().to_string();
        let masked_lines =
            |lines: Vec<String>| lines.iter().map(|line| masked(&line.replace(&folder, "<dir>"))).collect();
        // The client logs its retries; the error itself is on a separate line.
        let stderr = stderr.into_iter().filter(|line| !line.starts_with("{\"level\"")).collect();
        Outcome { stdout: masked_lines(stdout), stderr: masked_lines(stderr), code }
    }

    /// The output of `etcdutl snapshot status` for a file from an earlier step.
    pub async fn snapshot_status(&self, name: &str) -> Value {
        let output = Command::new(etcdutl())
            .args(["snapshot", "status", "-w=json"])
            .arg(self.folder.path().join(name))
            .output()
            .await
            .expect("etcdutl starts");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// The id of the member at this endpoint, in hex.
    pub async fn member_id(&self) -> String {
        let args = ["--endpoints", &self.endpoint, "endpoint", "status", "-w=json"];
        let output = Command::new(etcdctl()).env("ETCDCTL_API", "3").args(args).output().await.expect("etcdctl starts");
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        format!("{:x}", status[0]["Status"]["header"]["member_id"].as_u64().expect("a number"))
    }

    fn remember_lease(&self, stdout: &[String]) {
        let granted = stdout.iter().find_map(|line| line.strip_prefix("lease ")?.split_once(" granted"));
        if let Some((lease, _)) = granted {
            lease.clone_into(&mut self.lease.lock());
        }
    }
}

async fn execute(mut command: Command, step: &Step) -> (Vec<String>, Vec<String>, Option<i32>) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("etcdctl starts");
    let mut stdin = child.stdin.take().expect("piped");
    if let Some(text) = &step.stdin {
        stdin.write_all(text.as_bytes()).await.expect("etcdctl reads");
    }
    let mut stdout = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut printed = Vec::new();
    let Some(lines) = step.lines else {
        drop(stdin);
        let mut complained = Vec::new();
        tokio::join!(
            async {
                while let Ok(Some(line)) = stdout.next_line().await {
                    printed.push(line);
                }
            },
            async {
                while let Ok(Some(line)) = stderr.next_line().await {
                    complained.push(line);
                }
            },
        );
        let status = child.wait().await.expect("etcdctl ends");
        return (printed, complained, status.code());
    };
    while printed.len() < lines {
        match stdout.next_line().await {
            Ok(Some(line)) => printed.push(line),
            _ => break,
        }
    }
    // Extra output would be wrong as well.
    while let Ok(Ok(Some(line))) = timeout(quiet_time(), stdout.next_line()).await {
        printed.push(line);
    }
    let code = child.try_wait().expect("etcdctl is a child").and_then(|status| status.code());
    (printed, Vec::new(), code)
}
