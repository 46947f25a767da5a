//! [`Process`]: a server as a child process that never outlives this program, and [`Usage`]: what it has used of the machine.
//!
//! Not here: what the server is; see `etcd` and `relay`. Linux only: the figures are from `/proc`. Always holds: only what was
//! started here is ever signalled, by its id.
//!
//! The server's parent is a small shell that holds a pipe from this program. When the pipe closes, for whatever reason, the
//! shell kills the server; `Drop` alone would leave it behind where this program is killed.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rand::Rng;

/// `$1` is the log, the rest the command. Prints the id of the server, and ends with it.
const SUPERVISOR: &str = r#"
exec 3<&0
log=$1
shift
"$@" 3<&- >>"$log" 2>&1 </dev/null &
server=$!
echo $server
(read -r _ <&3; kill -KILL $server) >/dev/null 2>&1 &
guard=$!
wait $server
kill $guard 2>/dev/null
"#;

/// Attempts to find a free port.
const PORT_ATTEMPTS: usize = 1_000;

/// A running server.
#[derive(Debug)]
pub struct Process {
    supervisor: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with stdout and stderr appended to `log`.
    pub fn spawn(command: &[String], log: &Path) -> Result<Self> {
        let mut supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR, "sh"])
            .arg(log)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // The shell would say that the server was killed.
            .stderr(Stdio::null())
            .spawn()
            .context("start sh")?;
        let mut line = String::new();
        BufReader::new(supervisor.stdout.take().expect("stdout is piped")).read_line(&mut line)?;
        let pid = line.trim().parse().with_context(|| format!("start {}: no process id: {line:?}", command[0]))?;
        Ok(Self { supervisor, pid, log: log.to_owned() })
    }

    /// Its id.
    #[allow(dead_code, reason = "only one of the benchmarks that share this file asks for it")]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.supervisor.try_wait(), Ok(None))
    }

    /// Everything it printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it has used up to now.
    pub fn usage(&self) -> Result<Usage> {
        let threads = cpu_of_threads(self.pid).with_context(|| format!("/proc/{}: the server has ended", self.pid))?;
        Ok(Usage { threads })
    }

    /// Memory that it has now, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid);
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("{path}: no VmRSS"))? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // The guard kills the server now, and the shell ends with it. An error means that there is nothing to wait for.
        let _ended = self.supervisor.wait();
    }
}

/// CPU time of a process, by thread.
#[derive(Clone, Debug)]
pub struct Usage {
    threads: HashMap<u64, Duration>,
}

impl Usage {
    /// CPU time since then, of user and system together. What a thread used that has ended since is not in it; the servers here
    /// keep theirs.
    pub fn since(&self, then: &Self) -> Duration {
        let used = |(thread, now): (&u64, &Duration)| {
            now.saturating_sub(then.threads.get(thread).copied().unwrap_or_default())
        };
        self.threads.iter().map(used).sum()
    }
}

/// A port on 127.0.0.1 that nobody listens on, below those that the kernel gives to outgoing connections.
pub fn free_port() -> Result<u16> {
    for _ in 0..PORT_ATTEMPTS {
        let port = rand::rng().random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port on 127.0.0.1")
}

/// From the scheduler's own account in nanoseconds where the kernel keeps one, since the hundredths of a second of `stat` are too
/// coarse for what one change costs.
fn cpu_of_threads(pid: u32) -> Option<HashMap<u64, Duration>> {
    let mut threads = HashMap::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let thread = thread.ok()?;
        let id = thread.file_name().to_str()?.parse().ok()?;
        // A thread may end between the listing and the reading.
        if let Some(used) = scheduled(&thread.path()).or_else(|| ticked(&thread.path())) {
            threads.insert(id, used);
        }
    }
    Some(threads)
}

fn scheduled(thread: &Path) -> Option<Duration> {
    let text = fs::read_to_string(thread.join("schedstat")).ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

fn ticked(thread: &Path) -> Option<Duration> {
    let stat = fs::read_to_string(thread.join("stat")).ok()?;
    // The name, in parentheses, may itself have spaces; utime and stime are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(") ")?;
    let ticks = rest.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(Duration::from_millis(ticks * 10))
}
