//! [`Process`]: a server under test as a child process that never outlives the test binary.
//!
//! The servers are in `etcd` and `relay`. Always holds: only processes that were started here are signalled, by their
//! id. The whole output is kept in one file until the owner drops it, and printed when the owner's test panics.
//!
//! The server's parent is a small shell that holds a pipe from the test binary. When the pipe closes, for whatever
//! reason (the test ends, panics, is interrupted or killed), the shell kills the server. Rust never drops a static that
//! shares a server between tests, so `Drop` alone would leave servers running.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::eventually_within;

/// `$1` is the log, the rest is the command. It prints the id of the server, and ends with its exit code. If the server
/// ends because the test binary no longer needs it, its folder is removed as well, because nobody else removes that of
/// a static. Another server of the same folder may have removed it already; `true` is used because `:` would end the
/// shell if it cannot write.
const SUPERVISOR: &str = r#"
exec 3<&0
log=$1
shift
"$@" 3<&- >>"$log" 2>&1 </dev/null &
server=$!
echo $server
(read -r _ <&3; true >"$log.done"; kill -KILL $server) >/dev/null 2>&1 &
guard=$!
wait $server
code=$?
kill $guard 2>/dev/null
if [ -e "$log.done" ]; then rm -rf "$(dirname "$log")"; fi
exit $code
"#;

/// Lines of a log that are printed when a test panics.
const LINES_ON_PANIC: usize = 120;

/// A running server.
#[derive(Debug)]
pub struct Process {
    name: String,
    supervisor: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with stdout and stderr appended to `log`.
    pub fn spawn(name: &str, command: &[String], env: &[(String, String)], log: &Path) -> Self {
        let mut supervisor = Command::new("sh")
            .args(["-c", SUPERVISOR, "sh"])
            .arg(log)
            .args(command)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Otherwise the shell would print that the server was killed.
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        let mut line = String::new();
        let stdout = supervisor.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).unwrap_or_else(|error| panic!("start {name}: {error}"));
        let pid =
            line.trim().parse().unwrap_or_else(|_| panic!("start {name}: the shell gave no process id: {line:?}"));
        Self { name: name.to_owned(), supervisor, pid, log: log.to_owned() }
    }

    /// The id of the server itself.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.supervisor.try_wait().expect("wait for a child").is_none()
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let pid = Pid::from_raw(self.pid.cast_signed()).expect("a process id is not 0");
            kill_process(pid, signal).unwrap_or_else(|error| panic!("signal {}: {error}", self.name));
        }
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        // `wait` would close the pipe first, which means that the folder may be removed.
        let pipe = self.supervisor.stdin.take();
        self.supervisor.wait().expect("wait for a child");
        drop(pipe);
    }

    /// Waits for the end. Returns 128 + n if signal n ended it.
    pub async fn exit_code(&mut self, deadline: Duration) -> i32 {
        let what = format!("{} ends", self.name);
        let supervisor = &mut self.supervisor;
        eventually_within(deadline, &what, async || supervisor.try_wait().expect("wait for a child"))
            .await
            .code()
            .expect("the shell ends by itself")
    }

    /// Everything it printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Prints the end of the log. Tests that share a server call it from a guard that is dropped with the test.
    pub fn print_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let skipped = lines.len().saturating_sub(LINES_ON_PANIC);
        eprintln!("--- log of {} (pid {}; {skipped} lines before) ---", self.name, self.pid);
        for line in &lines[skipped..] {
            eprintln!("{line}");
        }
        eprintln!("--- end of the log of {} ---", self.name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_log();
        }
        drop(self.supervisor.stdin.take());
        // The guard kills the server now, and the shell ends with it. After an error, there is nothing to wait for.
        let _ended = self.supervisor.wait();
    }
}
