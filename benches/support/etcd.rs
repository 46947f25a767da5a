//! [`Etcd`]: a real etcd on the loopback interface with its data in a temporary folder, and the writes to it.
//!
//! The content is in `cluster`. The program is the one that `ETCD` names, or else `etcd` on `PATH`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use etcd_client::{Client, GetOptions, KvClient, Txn, TxnOp, WatchOptions, WatchStream};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{
    http,
    process::{Process, free_port},
};

/// Longest wait until etcd answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between requests to a server that is starting.
const PAUSE: Duration = Duration::from_millis(50);
/// Limits of a loading transaction, below etcd's 1.5 MiB and 128 operations.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_KEYS: usize = 100;

/// A running etcd.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    addr: String,
    /// Its address with TLS, if it has one.
    secure_addr: Option<String>,
    _folder: TempDir,
}

impl Etcd {
    /// Starts one member and waits until it answers.
    pub async fn start() -> Result<Self> {
        Self::start_with(None).await
    }

    /// The same, and also with TLS if there is a folder with `ca.pem`, `pair.pem` and `pair.key`. Clients then need a
    /// certificate.
    pub async fn start_with(certificates: Option<&Path>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("etcd-relay-bench-").tempdir().context("a temporary folder")?;
        let addr = format!("127.0.0.1:{}", free_port()?);
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let secure_addr = certificates.map(|_| free_port().map(|port| format!("127.0.0.1:{port}"))).transpose()?;
        let (url, data) = (format!("http://{addr}"), folder.path().join("data").display().to_string());
        let mut command = vec![program()?.display().to_string()];
        for (flag, value) in [
            ("--name", "bench"),
            ("--data-dir", &data),
            ("--listen-client-urls", &url),
            ("--advertise-client-urls", &url),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &format!("bench={peer}")),
            ("--log-level", "warn"),
            // The disk is not part of the measurement.
            ("--unsafe-no-fsync", "true"),
            ("--quota-backend-bytes", "8589934592"),
        ] {
            command.push(format!("{flag}={value}"));
        }
        if let (Some(folder), Some(addr)) = (certificates, &secure_addr) {
            command.push(format!("--listen-client-urls={url},https://{addr}"));
            command.push("--client-cert-auth".to_owned());
            for (flag, file) in [("cert-file", "pair.pem"), ("key-file", "pair.key"), ("trusted-ca-file", "ca.pem")] {
                command.push(format!("--{flag}={}", folder.join(file).display()));
            }
        }
        let mut process = Process::spawn(&command, &folder.path().join("etcd.log"))?;
        let deadline = Instant::now() + PATIENCE;
        while !http::get(&addr, "/health").await.is_ok_and(|answer| answer.status == 200) {
            if !process.is_running() || Instant::now() > deadline {
                bail!("etcd does not serve; its log:\n{}", process.log());
            }
            sleep(PAUSE).await;
        }
        Ok(Self { process, addr, secure_addr, _folder: folder })
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Its URL with TLS, if it has one.
    pub fn secure_endpoint(&self) -> Option<String> {
        self.secure_addr.as_ref().map(|addr| format!("https://{addr}"))
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// A client for writes.
    pub async fn client(&self) -> Result<KvClient> {
        Ok(self.connect().await?.kv_client())
    }

    /// Writes all entries, many at a time. Returns their number and size.
    pub async fn load(&self, entries: impl Iterator<Item = (String, String)>) -> Result<(usize, usize)> {
        let mut client = self.client().await?;
        let (mut keys, mut bytes) = (0, 0);
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        for (key, value) in entries {
            keys += 1;
            bytes += value.len();
            if batch_bytes + value.len() > BATCH_BYTES || batch.len() == BATCH_KEYS {
                client.txn(Txn::new().and_then(std::mem::take(&mut batch))).await.context("load")?;
                batch_bytes = 0;
            }
            batch_bytes += value.len();
            batch.push(TxnOp::put(key, value, None));
        }
        client.txn(Txn::new().and_then(batch)).await.context("load")?;
        Ok((keys, bytes))
    }

    /// Reads all keys with a prefix in one call, however many there are. Returns their number.
    #[allow(dead_code, reason = "only one of the benchmarks that share this file uses it")]
    pub async fn read_at_once(&self, prefix: &str) -> Result<u64> {
        let mut client = self.client().await?.max_decoding_message_size(usize::MAX);
        let options = GetOptions::new().with_prefix();
        let answer = client.get(prefix, Some(options)).await.with_context(|| format!("read {prefix}"))?;
        Ok(answer.kvs().len() as u64)
    }

    /// Watches a prefix like a plain client.
    pub async fn watch(&self, prefix: &str) -> Result<WatchStream> {
        let options = WatchOptions::new().with_prefix();
        self.connect().await?.watch(prefix, Some(options)).await.with_context(|| format!("watch {prefix}"))
    }

    /// The number of watches in this etcd.
    pub async fn watchers(&self) -> Result<u64> {
        const NAME: &str = "etcd_debugging_mvcc_watcher_total ";
        let answer = http::get(&self.addr, "/metrics").await?;
        let text = String::from_utf8_lossy(&answer.body);
        let value =
            text.lines().find_map(|line| line.strip_prefix(NAME)).context("etcd does not count its watchers")?;
        value.parse().with_context(|| format!("{NAME}{value}"))
    }

    async fn connect(&self) -> Result<Client> {
        Client::connect([self.endpoint()], None).await.context("connect to etcd")
    }
}

/// The program.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ETCD") {
        return Ok(path.into());
    }
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join("etcd"))
        .find(|path| path.is_file())
        .context(
            "there is no etcd; run `make bench` or `make bench-views`, which download one, or set ETCD to the \
            program",
        )
}
