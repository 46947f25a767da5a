//! [`Process`]: a server as a child process that never outlives this program, and [`Usage`]: the resources that it has
//! used.
//!
//! The servers are in `etcd` and `relay`. Linux only, because it reads `/proc`. Always holds: only processes that were
//! started here are signalled, by their id.
//!
//! The server's parent is a small shell that holds a pipe from this program. When the pipe closes, for whatever reason,
//! the shell kills the server. `Drop` alone would leave it running if this program is killed.

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

/// `$1` is the log, the rest is the command. It prints the id of the server, and ends together with it.
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
            // Otherwise the shell would print that the server was killed.
            .stderr(Stdio::null())
            .spawn()
            .context("start sh")?;
        let mut line = String::new();
        BufReader::new(supervisor.stdout.take().expect("stdout is piped")).read_line(&mut line)?;
        let pid = line.trim().parse().with_context(|| format!("start {}: no process id: {line:?}", command[0]))?;
        Ok(Self { supervisor, pid, log: log.to_owned() })
    }

    /// Its id.
    #[allow(dead_code, reason = "only one of the benchmarks that share this file uses it")]
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

    /// The resources that it has used so far.
    pub fn usage(&self) -> Result<Usage> {
        let threads = cpu_of_threads(self.pid).with_context(|| format!("/proc/{}: the server has ended", self.pid))?;
        Ok(Usage { threads })
    }

    /// Its current memory in bytes.
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
        // The guard kills the server now, and the shell ends with it. After an error, there is nothing to wait for.
        let _ended = self.supervisor.wait();
    }
}

/// CPU time of a process, by thread.
#[derive(Clone, Debug)]
pub struct Usage {
    threads: HashMap<u64, Duration>,
}

impl Usage {
    /// User and system CPU time since an earlier measurement, without threads that have ended since. The servers here
    /// keep their threads.
    pub fn since(&self, then: &Self) -> Duration {
        let used = |(thread, now): (&u64, &Duration)| {
            now.saturating_sub(then.threads.get(thread).copied().unwrap_or_default())
        };
        self.threads.iter().map(used).sum()
    }

    /// The same since the process began.
    #[allow(dead_code, reason = "only one of the benchmarks that share this file uses it")]
    pub fn total(&self) -> Duration {
        self.threads.values().sum()
    }
}

/// A free port on 127.0.0.1, below those that the kernel uses for outgoing connections.
pub fn free_port() -> Result<u16> {
    for _ in 0..PORT_ATTEMPTS {
        let port = rand::rng().random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no free port on 127.0.0.1")
}

/// From the scheduler's account in nanoseconds if the kernel keeps one, because the hundredths of a second in `stat`
/// are too coarse for the cost of one change.
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
    // The name, in parentheses, may contain spaces; utime and stime are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(") ")?;
    let ticks = rest.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(Duration::from_millis(ticks * 10))
}
