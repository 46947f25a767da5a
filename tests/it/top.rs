//! The commands that show a relay, from outside: `top` as text and in a terminal, `health`, `version`, `completions`,
//! `man`.
//!
//! The layout of the page is tested beside `src/top/draw.rs`. Always holds: a program under test ends with its test.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    num::NonZero,
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, Output},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Termios, Winsize, tcgetattr, tcsetwinsize},
};
use tokio::net::TcpListener;

use crate::support::{
    client::{self, WatchStream},
    eventually, eventually_within,
    relay::{Relay, RelayCommand},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_etcd-relay");
/// For busy machines; normally all of it takes milliseconds.
const SOON: Duration = Duration::from_secs(30);

async fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let command = tokio::process::Command::new(PROGRAM).args(args).kill_on_drop(true).output();
    let Output { status, stdout, stderr } =
        tokio::time::timeout(SOON, command).await.expect("it ends").expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

fn url(relay: &Relay) -> String {
    format!("http://{}", relay.http_addr())
}

/// An address on which nobody listens.
async fn nobody() -> String {
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    format!("http://{gone}")
}

#[tokio::test]
async fn one_picture_shows_feeds_and_who_watches_what() {
    let relay = RelayCommand::demo().start().await;
    let mut stream = WatchStream::open(&relay.endpoint()).await;
    stream.create(client::prefix("/seen/by/top/"));
    stream.until(|response| response.created).await;
    let (code, shown, error) = run(&["top", "--endpoint", &url(&relay), "--once", "--interval", "250ms"]).await;
    assert_eq!(code, Some(0), "{error}");
    for text in
        [env!("CARGO_PKG_VERSION"), "ready", "revision ", "Feeds: 1", "live", "Connections: ", "grpc", "WATCHES"]
    {
        assert!(shown.contains(text), "{text} is not in {shown}");
    }
    assert!(!shown.contains('\u{1b}'), "no terminal, no escape sequences: {shown:?}");
    // If standard output is not a terminal, the flag is not needed.
    let (code, piped, _) = run(&["top", "--endpoint", &url(&relay), "--find", "no connection matches"]).await;
    assert_eq!(code, Some(0));
    assert!(piped.contains("Connections: ") && !piped.contains("/seen/by/top/"), "{piped}");
    let (code, _, error) = run(&["top", "--endpoint", &nobody().await, "--once"]).await;
    assert_eq!(code, Some(1));
    assert!(error.starts_with("error: cannot connect to http://127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_refusal_is_shown_in_the_relays_words() {
    let relay = RelayCommand::demo().arg("--debug-from=nobody").start().await;
    let (code, _, error) = run(&["top", "--endpoint", &url(&relay), "--once"]).await;
    assert_eq!(code, Some(1));
    assert!(error.contains("refused the request") && error.contains("--debug-from"), "{error}");
    // A server that is not a relay's HTTP port.
    let grpc = format!("http://{}", relay.grpc_addr());
    let (code, _, error) = run(&["top", "--endpoint", &grpc, "--once"]).await;
    assert_eq!(code, Some(1));
    assert!(error.contains("is it the HTTP port"), "{error}");
}

#[tokio::test]
async fn health_says_in_a_line_what_is_not_ready() {
    let relay = RelayCommand::demo().start().await;
    let at = url(&relay);
    for flags in [&[][..], &["--ready"], &["--live"]] {
        let line = [&["health", "--endpoint", &at][..], flags].concat();
        let (code, told, error) = run(&line).await;
        assert_eq!(code, Some(0), "{told}{error}");
        assert_eq!(told, if flags == ["--live"] { "live\n" } else { "ready\n" });
    }
    let away = RelayCommand::serve(&[nobody().await]).prefix("/a").unready().start().await;
    let (code, told, _) = run(&["health", "--endpoint", &url(&away)]).await;
    assert_eq!(code, Some(1));
    assert!(told.starts_with("not ready: ") && told.contains("/a") && told.lines().count() == 1, "{told}");
    assert_eq!(run(&["health", "--live", "--endpoint", &url(&away)]).await.0, Some(0));
    let (code, told, _) = run(&["health", "--endpoint", &nobody().await]).await;
    assert_eq!(code, Some(1));
    assert!(told.starts_with("cannot connect to ") && told.lines().count() == 1, "{told}");
    // A server that accepts connections and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = silent.local_addr().expect("an address").to_string();
    let (code, told, _) = run(&["health", "--endpoint", &at, "--timeout", "100ms"]).await;
    assert_eq!(code, Some(1));
    assert!(told.contains("did not answer within 100ms"), "{told}");
}

#[tokio::test]
async fn a_relay_with_tls_is_asked_over_tls() {
    let relay = RelayCommand::demo().listen_http("https://127.0.0.1:0").arg("--auto-tls").unready().start().await;
    let secure = format!("https://{}", relay.http_addr());
    let (code, told, _) = run(&["health", "--endpoint", &secure]).await;
    assert_eq!(code, Some(1), "nobody vouches for its certificate");
    assert!(told.contains("TLS handshake") && told.lines().count() == 1, "{told}");
    let unverified = ["health", "--endpoint", &secure, "--insecure-skip-tls-verify"];
    eventually("the relay is ready", async || {
        (run(&unverified).await == (Some(0), "ready\n".to_owned(), String::new())).then_some(())
    })
    .await;
    let once = ["top", "--once", "--interval", "250ms", "--endpoint", &secure, "--insecure-skip-tls-verify"];
    let (code, shown, error) = run(&once).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(shown.contains(&secure), "{shown}");
}

#[tokio::test]
async fn the_version_names_the_commit_of_the_checkout() {
    let (code, told, _) = run(&["version"]).await;
    assert_eq!(code, Some(0));
    let commit = told.trim_end().strip_prefix(concat!("etcd-relay ", env!("CARGO_PKG_VERSION"), " (commit "));
    let commit = commit.and_then(|rest| rest.strip_suffix(")")).unwrap_or_else(|| panic!("{told}"));
    let is_hash = [40, 64].contains(&commit.len()) && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_hash || commit == "unknown", "{commit}");
}

#[tokio::test]
async fn completions_and_manual_pages_are_written() {
    let (code, script, _) = run(&["completions", "bash"]).await;
    assert_eq!(code, Some(0));
    assert!(script.contains("--on-demand-bytes"), "{script}");
    let (code, page, _) = run(&["man", "top"]).await;
    assert_eq!(code, Some(0));
    assert!(page.contains(".TH") && page.contains("insecure"), "{page}");
    let folder = tempfile::tempdir().expect("a folder");
    let (code, told, error) = run(&["man", "--dir", folder.path().to_str().expect("a path")]).await;
    assert_eq!((code, told.as_str(), error.as_str()), (Some(0), "", ""));
    assert!(folder.path().join("etcd-relay-serve.1").is_file());
    let (code, _, error) = run(&["man", "--dir", "/nowhere/at/all"]).await;
    assert_eq!(code, Some(1));
    assert!(error.contains("/nowhere/at/all"), "{error}");
}

const ROWS: NonZero<u16> = NonZero::new(30).unwrap();
const COLUMNS: NonZero<u16> = NonZero::new(120).unwrap();

/// A program in its own terminal.
struct InTerminal {
    child: Child,
    controller: OwnedFd,
    terminal: File,
    told: Arc<Mutex<Vec<u8>>>,
    before: Termios,
}

impl InTerminal {
    fn start(args: &[&str]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&controller).and_then(|()| unlockpt(&controller)).expect("a terminal");
        let name = ptsname(&controller, Vec::new()).expect("a name").into_string().expect("a path");
        let terminal = OpenOptions::new().read(true).write(true).open(name).expect("a terminal");
        let size = Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).expect("a size");
        let before = tcgetattr(terminal.as_fd()).expect("its modes");
        let end = || terminal.try_clone().expect("a file");
        let child = Command::new(PROGRAM).args(args).stdin(end()).stdout(end()).stderr(end()).spawn().expect("it runs");
        let told = Arc::<Mutex<Vec<u8>>>::default();
        let mut read = File::from(controller.try_clone().expect("a file"));
        let heard = told.clone();
        // Ends when no process has the terminal open any more.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = read.read(&mut buffer) {
                heard.lock().extend_from_slice(&buffer[..count]);
            }
        });
        Self { child, controller, terminal, told, before }
    }

    /// The content of the screen. Only changes are written to it.
    fn screen(&self) -> String {
        let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
        terminal.process(&self.told.lock());
        terminal.screen().contents()
    }

    /// Everything it wrote.
    fn told(&self) -> String {
        String::from_utf8_lossy(&self.told.lock()).into_owned()
    }

    async fn shows(&self, text: &str) {
        eventually_within(SOON, &format!("the terminal shows {text:?}"), async || {
            (self.told().contains(text) || self.screen().contains(text)).then_some(())
        })
        .await;
    }

    fn press(&self, keys: &[u8]) {
        File::from(self.controller.try_clone().expect("a file")).write_all(keys).expect("pressed");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("an id");
        kill_process(pid, signal).expect("signalled");
    }

    /// Waits for its end, and checks that the terminal is restored.
    async fn ends_with(mut self, code: i32) {
        let status = eventually_within(SOON, "it ends", async || self.child.try_wait().expect("a child")).await;
        assert_eq!(status.code(), Some(code), "{}", self.told());
        self.shows("\u{1b}[?1049l").await;
        let after = tcgetattr(self.terminal.as_fd()).expect("its modes");
        assert_eq!(after.local_modes, self.before.local_modes, "raw mode is off again");
        assert!(self.told().contains("\u{1b}[?25h"), "the cursor is back");
    }
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        // If it has ended, there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn in_a_terminal_it_takes_keys_and_gives_the_terminal_back() {
    let relay = RelayCommand::demo().start().await;
    let top = InTerminal::start(&["top", "--endpoint", &url(&relay), "--interval", "250ms"]);
    top.shows("\u{1b}[?1049h").await;
    top.shows("Connections:").await;
    top.press(b"?");
    top.shows("show only connections with a watch that is behind").await;
    top.press(b"xq");
    top.ends_with(0).await;
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let top = InTerminal::start(&["top", "--endpoint", &url(&relay)]);
        top.shows("Connections:").await;
        top.signal(signal);
        top.ends_with(code).await;
    }
}

#[tokio::test]
async fn a_relay_that_goes_and_comes_back_is_shown_so() {
    let relay = RelayCommand::demo().start().await;
    let at = relay.http_addr().to_owned();
    let top = InTerminal::start(&["top", "--endpoint", &at, "--interval", "250ms"]);
    // Before that it has nothing that could grow old.
    top.shows("ready").await;
    drop(relay);
    top.shows("No answer for").await;
    let back = RelayCommand::demo().listen_http(&at).start().await;
    eventually_within(SOON, "the error is gone and the state is back", async || {
        let screen = top.screen();
        (!screen.contains("No answer for") && screen.contains("ready")).then_some(())
    })
    .await;
    top.press(b"q");
    top.ends_with(0).await;
    drop(back);
}
