//! The commands from the view of an operator and a service manager: exit codes, expected log lines, shutdown.
//!
//! The effect of each flag is tested beside `cli`. No etcd is needed: upstream is the embedded store, or missing.

use std::{process::Output, time::Duration};

use serde_json::Value;
use tokio::{io::AsyncBufReadExt as _, net::TcpListener, process::Command};

use crate::support::{
    client::{self, WatchStream},
    eventually, http,
    relay::{Relay, RelayCommand},
};

/// A shutdown without clients takes milliseconds; the rest is for busy machines.
const SOON: Duration = Duration::from_secs(10);

async fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let command = Command::new(env!("CARGO_BIN_EXE_etcd-relay")).args(args).kill_on_drop(true).output();
    let Output { status, stdout, stderr } =
        tokio::time::timeout(SOON, command).await.expect("it ends at once").expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[tokio::test]
async fn wrong_usage_ends_with_64_before_a_port_is_bound() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    // If a port were bound first, the error would be about it.
    let listen = taken.local_addr().expect("an address").to_string();
    for (args, named) in [
        (&["serve", "--listen-grpc", &listen][..], "--etcd"),
        (
            &["serve", "--listen-grpc", &listen, "--etcd", "https://etcd:2379", "--cacert", "/nowhere/ca.pem"],
            "/nowhere/ca.pem",
        ),
        (&["serve", "--listen-grpc", &listen, "--etcd", "etcd", "--history-bytes", "0"], "--history-bytes"),
        (&["serve", "--listen-grpc", &listen, "--etcd", "etcd", "--on-demand", "deny"], "--prefix"),
        (&["serve", "--listen-grpc", &listen, "--etcd", "etcd", "--audit-interval", "soon"], "--audit-interval"),
        (&["demo", "--listen-grpc", &listen, "--log-level", "=x"], "--log-level"),
        (&["demo", "--listen-grpc", &listen, "--log-level", "loud"], "`loud` is not a log level"),
        (&["demo", "--listen-grpc", &listen, "--trusted-net", "10.0.0.0"], "10.0.0.0/8"),
        (&["grpc-proxy", "start", "--listen-addr", &listen, "--namespace", "/x"], "--namespace"),
        (&["grpc-proxy", "start", "--listen-addr", &listen, "--cert-file", "x"], "--cert-file"),
    ] {
        let (code, stdout, stderr) = run(args).await;
        assert_eq!(code, Some(64), "{args:?}: {stderr}");
        assert!(stdout.is_empty() && stderr.contains(named), "{args:?}: {stderr}");
    }
}

/// Denies io_uring_setup to the program in the arguments, as the seccomp profiles of containers do.
const WITHOUT_URING: &str = r"
import ctypes, os, platform, struct, sys
SETUP, ALLOW, DENY = 425, 0x7fff0000, 0x00050001
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, SETUP), (0x06, 0, 0, DENY), (0x06, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxP', len(rules), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0, 'no_new_privs'
assert libc.prctl(22, 2, program, 0, 0) == 0, 'seccomp'
os.execv(sys.argv[1], sys.argv[1:])
";

#[tokio::test]
async fn where_io_uring_is_forbidden_auto_does_without_it_and_uring_says_so() {
    if Command::new("python3").arg("--version").output().await.is_err() {
        println!("no python3: io_uring is not forbidden");
        return;
    }
    let under = ["python3", "-c", WITHOUT_URING];
    let relay = RelayCommand::demo().env("ETCD_RELAY_IO", "auto").under(&under).start().await;
    assert!(relay.log().contains(r#""io":"epoll""#), "{}", relay.log());
    assert_eq!(relay.metric("etcd_relay_send_rings").await, 0.0);

    let flags = ["demo", "--io=uring", "--listen-grpc=127.0.0.1:0", "--listen-http=127.0.0.1:0"];
    let program = Command::new(under[0]).args(&under[1..]).arg(env!("CARGO_BIN_EXE_etcd-relay")).args(flags).output();
    let ended = tokio::time::timeout(SOON, program).await.expect("it ends at once").expect("it runs");
    let text = String::from_utf8_lossy(&ended.stderr);
    assert!(
        !ended.status.success() && text.contains("the kernel refuses io_uring") && text.contains("--io epoll"),
        "{text}"
    );
}

#[tokio::test]
async fn help_and_version_end_with_0() {
    for (args, shown) in [
        (&["--version"][..], env!("CARGO_PKG_VERSION")),
        (&["--help"], "grpc-proxy"),
        (&["serve", "--help"], "ETCD_RELAY_HISTORY_BYTES"),
        (&["grpc-proxy", "start", "--help"], "--listen-addr"),
    ] {
        let (code, stdout, stderr) = run(args).await;
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        assert!(stdout.contains(shown), "{args:?}: {stdout}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_ends_the_start_with_its_name() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let listen = taken.local_addr().expect("an address").to_string();
    let (code, _, stderr) = run(&["demo", "--listen-grpc", &listen, "--listen-http", "127.0.0.1:0"]).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains(&listen) && stderr.contains("no other process listens there"), "{stderr}");
}

#[tokio::test]
async fn grpc_proxy_start_says_that_it_started_warns_once_a_flag_and_stops() {
    let store = RelayCommand::demo().start().await;
    let mut proxy = RelayCommand::grpc_proxy(&[store.grpc_addr().to_owned()])
        .arg("--advertise-client-url")
        .arg("")
        .arg("--data-dir=/nowhere")
        .start()
        .await;
    let lines = |log: &str, matches: &dyn Fn(&Value) -> bool| {
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(matches).count()
    };
    let addr = proxy.grpc_addr().to_owned();
    // etcd's proxy serves its own metrics there.
    assert_eq!(http::get(&addr, "/proxy/metrics").await.expect("an answer").status, 200);
    proxy.terminate();
    assert_eq!(proxy.exit_code(SOON).await, 0);
    assert_eq!(lines(&proxy.log(), &|line| line["message"] == "started gRPC proxy" && line["address"] == addr), 1);
    let warnings = &|line: &Value| line["level"] == "WARN" && line["message"].to_string().contains("--data-dir");
    assert_eq!(lines(&proxy.log(), warnings), 1);
    assert_eq!(lines(&proxy.log(), &|line| line["message"].to_string().contains("advertise")), 0);
}

/// The log lines with this message.
fn said(relay: &Relay, message: &str) -> Vec<Value> {
    let log = relay.log();
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["message"] == message)
        .collect()
}

#[tokio::test]
async fn the_log_begins_with_what_runs_and_its_numbers_are_numbers() {
    let relay = RelayCommand::demo().start().await;
    let first: Value = serde_json::from_str(relay.log().lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["message"], "Starting etcd-relay");
    assert_eq!((&first["version"], &first["upstream"]), (&env!("CARGO_PKG_VERSION").into(), &"embedded store".into()));
    assert!(first["commit"].is_string() && first["prefixes"] == "\"\"" && first["on_demand"] == false, "{first}");
    let snapshot = said(&relay, "Feed has its snapshot");
    assert!(snapshot[0]["revision"].is_i64() && snapshot[0]["keys"].is_u64(), "{snapshot:?}");
    assert!(!relay.log().contains("fewer connections"), "more connections were not requested: {}", relay.log());
}

#[tokio::test]
async fn at_debug_the_log_tells_who_watches_what_and_no_frames() {
    let relay = RelayCommand::demo().arg("--log-level=debug").start().await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.created(client::prefix("/told/of/")).await;
    let created = eventually("the watch is in the log", async || said(&relay, "Watch created").pop()).await;
    assert!(created["range"].as_str().is_some_and(|range| range.contains("/told/of/")), "{created}");
    assert_eq!((&created["client"], created["start_revision"].is_i64()), (&"127.0.0.1".into(), true), "{created}");
    let connection = created["connection"].as_u64().expect("a number");
    drop(stream);
    let ended = eventually("its end is in the log", async || said(&relay, "Watch stream ended").pop()).await;
    assert_eq!(ended["connection"].as_u64(), Some(connection));
    let targets = ["\"target\":\"h2", "\"target\":\"hyper", "\"target\":\"rustls"];
    let strange: Vec<_> = targets.iter().filter(|target| relay.log().contains(**target)).collect();
    assert!(strange.is_empty(), "libraries log below info: {strange:?}");
}

#[tokio::test]
async fn an_empty_variable_that_keeps_all_keys_in_memory_is_warned_of() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let command = RelayCommand::serve(&[format!("http://{gone}")]).env("ETCD_RELAY_PREFIX", "");
    let relay = command.unready().start().await;
    assert!(relay.log().contains("ETCD_RELAY_PREFIX is set and empty"), "{}", relay.log());
}

#[tokio::test]
async fn without_etcd_it_listens_is_not_ready_and_ends_when_told() {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let mut relay = RelayCommand::serve(&[format!("http://{gone}")]).prefix("/a").unready().start().await;
    assert_eq!(relay.ready_status().await, Some(503));
    let health = http::get(relay.grpc_addr(), "/health").await.expect("an answer");
    assert!(health.status == 503 && health.body.contains(r#""health":"false""#), "{}", health.body);
    assert_eq!(http::get(relay.http_addr(), "/live").await.expect("an answer").status, 200);
    relay.terminate();
    assert_eq!(relay.exit_code(SOON).await, 0);
}

#[tokio::test]
async fn it_serves_and_ends_when_nobody_reads_its_log_any_more() {
    let mut relay = tokio::process::Command::new(env!("CARGO_BIN_EXE_etcd-relay"))
        .args(["demo", "--listen-grpc", "127.0.0.1:0", "--listen-http", "127.0.0.1:0", "--log-level", "debug"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut log = tokio::io::BufReader::new(relay.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("Feed has its snapshot") {
        line.clear();
        assert_ne!(log.read_line(&mut line).await.expect("a line"), 0, "the log ended");
    }
    drop(log);
    let pid = relay.id().expect("running").to_string();
    let killed = tokio::process::Command::new("kill").args(["-TERM", &pid]).status().await.expect("kill runs");
    assert!(killed.success());
    let ended =
        tokio::time::timeout(SOON, relay.wait()).await.expect("it stops although it cannot log").expect("a status");
    assert_eq!(ended.code(), Some(0));
}
