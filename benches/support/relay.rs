//! [`Relay`]: an optimized build of the relay in front of an etcd, started like an operator would.
//!
//! Requests are made elsewhere. Its address is read from its log.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{etcd::Etcd, http, process::Process};

/// Longest wait for a start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between requests to a server that is starting.
const PAUSE: Duration = Duration::from_millis(20);

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    process: Process,
    addr: String,
    _folder: TempDir,
}

impl Relay {
    /// Starts `program`, or the relay built with this benchmark, and waits until it serves the views.
    pub async fn start(etcd: &Etcd, program: Option<&Path>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("etcd-relay-bench-").tempdir().context("a temporary folder")?;
        let program = program.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_etcd-relay")), Path::to_owned);
        let command = [
            &program.display().to_string(),
            "serve",
            "--etcd",
            &etcd.endpoint(),
            "--listen-grpc=127.0.0.1:0",
            "--listen-http=127.0.0.1:0",
            "--log-format=json",
            "--lainlet=at-start",
            "--no-auth",
        ];
        let process = Process::spawn(&command.map(ToOwned::to_owned), &folder.path().join("relay.log"))?;
        let mut relay = Self { process, addr: String::new(), _folder: folder };
        let deadline = Instant::now() + PATIENCE;
        while !relay.is_ready().await {
            if !relay.process.is_running() || Instant::now() > deadline {
                bail!("the relay does not serve the views; its log:\n{}", relay.process.log());
            }
            sleep(PAUSE).await;
        }
        Ok(relay)
    }

    /// `host:port` of the views.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    async fn is_ready(&mut self) -> bool {
        if self.addr.is_empty() {
            self.addr = self.process.log().lines().find_map(listening).unwrap_or_default();
        }
        // One view of each directory.
        for uri in ["/v2/configwatcher?target=domain", "/v2/streamrouter/ports", "/v2/depends?target=none", "/v2/nodes"]
        {
            if self.addr.is_empty() || !http::get(&self.addr, uri).await.is_ok_and(|answer| answer.status == 200) {
                return false;
            }
        }
        true
    }
}

/// The address for HTTP, if this line contains it.
fn listening(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = line.get("fields").unwrap_or(&line);
    let wanted = fields["message"] == "Listening" && fields["protocol"] == "http";
    wanted.then(|| fields["addr"].as_str().map(ToOwned::to_owned))?
}
