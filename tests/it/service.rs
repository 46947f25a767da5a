//! Tests the program under a service manager: its messages to systemd's socket, and its log lines in the journal.
//!
//! Not here: the unit and the other files of `deploy`, see `deploy.rs`. The tests play the manager: they bind the
//! socket, or hold the journal's end of a stream.

use std::{
    io::{BufRead as _, BufReader},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr, UnixDatagram, UnixStream},
        },
    },
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    client::{self, WatchStream},
    eventually,
    relay::RelayCommand,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_etcd-relay");
const SOON: Duration = Duration::from_secs(30);

/// The manager's socket, and all messages that it received.
struct Systemd {
    socket: UnixDatagram,
    name: String,
    heard: Vec<String>,
    _folder: TempDir,
}

impl Systemd {
    fn at_a_path() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = path.display().to_string();
        Self::new(UnixDatagram::bind(path).expect("a socket"), name, folder)
    }

    fn with_an_abstract_name() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // No other test has a folder with this name, so the socket's name is unique.
        let name = folder.path().display().to_string();
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        Self::new(UnixDatagram::bind_addr(&address).expect("a socket"), format!("@{name}"), folder)
    }

    fn new(socket: UnixDatagram, name: String, folder: TempDir) -> Self {
        socket.set_nonblocking(true).expect("a socket that does not block");
        Self { socket, name, heard: Vec::new(), _folder: folder }
    }

    /// Lines, each an assignment of the protocol.
    fn listen(&mut self) -> &[String] {
        let mut buffer = [0; 4096];
        while let Ok(bytes) = self.socket.recv(&mut buffer) {
            let text = std::str::from_utf8(&buffer[..bytes]).expect("UTF-8");
            self.heard.extend(text.lines().map(ToOwned::to_owned));
        }
        &self.heard
    }

    async fn hears(&mut self, what: &str) {
        eventually(&format!("systemd hears {what}"), async || {
            self.listen().iter().any(|line| line.starts_with(what)).then_some(())
        })
        .await;
    }

    fn count(&mut self, line: &str) -> usize {
        self.listen().iter().filter(|heard| *heard == line).count()
    }
}

#[tokio::test]
async fn while_etcd_is_away_systemd_hears_ready_and_what_is_waited_for() {
    let mut systemd = Systemd::at_a_path();
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let command = RelayCommand::serve(&[format!("http://{gone}")]).prefix("/a/").unready();
    let mut relay = command.env("NOTIFY_SOCKET", &systemd.name).start().await;
    systemd.hears("READY=1").await;
    systemd.hears("STATUS=Waiting, feeds live: 0 of 1: ").await;
    assert_eq!(relay.ready_status().await, Some(503));
    relay.terminate();
    assert_eq!(relay.exit_code(SOON).await, 0);
    assert_eq!((systemd.count("READY=1"), systemd.count("STOPPING=1")), (1, 1), "{:?}", systemd.heard);
}

#[tokio::test]
async fn a_drain_is_announced_before_it_begins_with_the_time_that_it_may_take() {
    let mut systemd = Systemd::with_an_abstract_name();
    let command = RelayCommand::demo().arg("--drain-time=1h").env("NOTIFY_SOCKET", &systemd.name);
    let mut relay = command.start().await;
    systemd.hears("STATUS=Ready, feeds live: 1 of 1").await;
    // An unfinished call delays the end: the relay waits for its body, which never arrives.
    let mut call = TcpStream::connect(relay.grpc_addr()).await.expect("a connection");
    let head = "POST /v3/kv/put HTTP/1.1\r\nhost: relay\r\nexpect: 100-continue\r\ncontent-length: 100\r\n\r\n";
    call.write_all(head.as_bytes()).await.expect("written");
    let mut asked = [0; 12];
    call.read_exact(&mut asked).await.expect("an interim answer");
    assert_eq!(&asked, b"HTTP/1.1 100");
    assert_eq!(systemd.count("STOPPING=1"), 0);
    relay.terminate();
    systemd.hears("STOPPING=1").await;
    assert_eq!(systemd.count("EXTEND_TIMEOUT_USEC=3610000000"), 1, "{:?}", systemd.heard);
    systemd.hears("STATUS=Draining, connections left: 1").await;
    assert!(relay.is_running());
    drop(call);
    assert_eq!(relay.exit_code(SOON).await, 0);
    let stopping = systemd.listen().iter().position(|line| line == "STOPPING=1").expect("it was heard");
    let after = &systemd.heard[stopping..];
    assert!(after.iter().all(|line| !line.starts_with("STATUS=Ready") && line != "READY=1"), "{after:?}");
}

#[tokio::test]
async fn a_watchdog_is_fed_only_where_it_is_meant_for_this_process() {
    let mut systemd = Systemd::at_a_path();
    let command = RelayCommand::demo().env("NOTIFY_SOCKET", &systemd.name).env("WATCHDOG_USEC", "300000");
    let _fed = command.clone().start().await;
    eventually("the watchdog is fed again and again", async || (systemd.count("WATCHDOG=1") >= 3).then_some(())).await;
    let mut other = Systemd::at_a_path();
    let _unfed = command.env("NOTIFY_SOCKET", &other.name).env("WATCHDOG_PID", "1").start().await;
    other.hears("STATUS=Ready").await;
    assert_eq!(other.count("WATCHDOG=1"), 0);
}

#[tokio::test]
async fn a_manager_that_cannot_be_reached_keeps_nobody_from_being_served() {
    for (name, words) in [("/nowhere/notify", "retrying every second"), ("vsock:2:1", "NOTIFY_SOCKET=")] {
        let relay = RelayCommand::demo().env("NOTIFY_SOCKET", name).start().await;
        eventually("it is logged", async || relay.log().contains(words).then_some(())).await;
        WatchStream::open(&relay.endpoint()).await.created(client::prefix("/served/")).await;
        assert_eq!(relay.log().matches("Cannot notify the service manager").count(), 1, "{}", relay.log());
    }
}

#[tokio::test]
async fn lines_to_the_journal_begin_with_their_priority_and_lines_to_others_do_not() {
    for (format, is_journal) in [("json", true), ("text", true), ("json", false)] {
        let (journal, stderr) = UnixStream::pair().expect("a pair");
        let stream = OwnedFd::from(stderr);
        let file = std::fs::File::from(stream.try_clone().expect("a second descriptor"));
        let about = file.metadata().expect("what it is");
        let inode = about.ino() + u64::from(!is_journal);
        let mut relay = tokio::process::Command::new(PROGRAM)
            .args(["demo", "--seed=none", "--changes-every=none", "--listen-grpc=127.0.0.1:0"])
            .args(["--listen-http=127.0.0.1:0", &format!("--log-format={format}")])
            // Makes the relay log a warning.
            .env("NOTIFY_SOCKET", "vsock:2:1")
            .env("JOURNAL_STREAM", format!("{}:{inode}", about.dev()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(stream))
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        drop(file);
        let pid = Pid::from_raw(relay.id().expect("it runs").cast_signed()).expect("not 0");
        let lines = tokio::task::spawn_blocking(move || {
            let mut lines = Vec::new();
            for line in BufReader::new(journal).lines() {
                let line = line.expect("a line");
                if line.contains("Feed has its snapshot") {
                    kill_process(pid, Signal::TERM).expect("it runs");
                }
                lines.push(line);
            }
            lines
        });
        let lines = tokio::time::timeout(SOON, lines).await.expect("it ends").expect("it was read");
        relay.wait().await.expect("it ends");
        let strip = |line: &str, priority: &str| {
            if is_journal { line.strip_prefix(priority).map(ToOwned::to_owned) } else { Some(line.to_owned()) }
        };
        for line in &lines {
            let is_warning = line.contains("WARN");
            let rest = strip(line, if is_warning { "<4>" } else { "<6>" });
            let rest = rest.unwrap_or_else(|| panic!("{format}: without its priority: {line}"));
            assert!(!rest.starts_with('<'), "{line}");
            assert!(format == "text" || serde_json::from_str::<Value>(&rest).is_ok(), "{line}");
        }
        assert!(lines.iter().any(|line| line.contains("WARN") && line.contains("vsock")), "{lines:?}");
    }
}
