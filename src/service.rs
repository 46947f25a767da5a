//! [`ServiceManager`]: systemd, or whatever else speaks its notification protocol, is told when the relay serves, what it waits for, and that it ends.
//!
//! - `READY=1` once all ports accept connections. An etcd that is away holds nothing back: what the relay waits for is in `STATUS`, so a start never
//!   runs into a time limit.
//! - `STOPPING=1` when the end begins, with `EXTEND_TIMEOUT_USEC` for as long as the drain may take.
//! - `WATCHDOG=1`, where it is asked for, each time that a look at the whole relay has returned. The look runs on the threads that serve clients and takes
//!   the lock of each feed, so threads or feeds that are stuck end the messages.
//!
//! There is no `RELOADING=1`: changed TLS files are taken without a reload, see `tls::follow`.
//!
//! Not here: the environment that names the socket, which `cli` reads, and what the texts say, which comes from `relay`.
//! Always holds: nobody waits for the manager. A message that its socket does not take is sent again with the next look.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use thiserror::Error;

/// Bytes of a status: systemd reads 4 KiB of a message, and shows one line.
const STATUS_MAX: usize = 500;
/// Between two looks at the relay, unless the watchdog wants more of them.
const LOOK: Duration = Duration::from_secs(1);
/// Messages within the time after which the watchdog would act: two may be late or lost.
const PER_WATCHDOG: u32 = 3;

/// What the environment says about the service manager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceConfig {
    /// `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    pub socket: OsString,
    /// `WATCHDOG_USEC`, where it is meant for this process.
    pub watchdog: Option<Duration>,
}

/// Why the service manager cannot be told anything.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The variable names no socket that is supported.
    #[error("NOTIFY_SOCKET={0:?} is neither an absolute path nor an abstract name, which begins with @")]
    Address(OsString),
    /// There is no socket to send from.
    #[error("cannot make a socket to the service manager")]
    Socket(#[from] io::Error),
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServiceManager {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
    words: Mutex<Words>,
}

/// What has been said, and what is still to be said.
#[derive(Debug, Default)]
struct Words {
    ready: bool,
    /// The first message of the end, until it has been sent.
    stopping: Option<String>,
    is_ending: bool,
    status: String,
    failed: bool,
}

impl ServiceManager {
    /// Prepares to tell it. Nothing is sent yet.
    ///
    /// # Errors
    /// Where the socket's name is not of a kind that is supported, or the system gives no socket.
    pub fn new(config: &ServiceConfig) -> Result<Self, ServiceError> {
        let address = address(&config.socket)?;
        // Not connected, so that a manager that was started anew is found again.
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let words = Mutex::new(Words::default());
        Ok(Self { shared: Arc::new(Shared { socket, address, watchdog: config.watchdog, words }) })
    }

    /// Says that all ports accept connections, and then, for ever, how the relay is. `look` looks at the whole of it and gives one line.
    pub async fn keep_told(self, look: impl Fn() -> String) {
        let period = self.shared.watchdog.map_or(LOOK, |watchdog| LOOK.min(watchdog / PER_WATCHDOG));
        loop {
            self.tick(&look);
            tokio::time::sleep(period).await;
        }
    }

    /// Says that the end has begun, and that it may take so long. From then on `STATUS` is about the end.
    pub fn stopping(&self, most: Duration) {
        let mut words = self.shared.words.lock();
        words.is_ending = true;
        words.stopping =
            Some(format!("STOPPING=1\nSTATUS=Draining\nEXTEND_TIMEOUT_USEC={}", most.as_micros().min(u64::MAX.into())));
        self.say_stopping(&mut words);
    }

    fn tick(&self, look: &impl Fn() -> String) {
        let was_ending = self.shared.words.lock().is_ending;
        let status = one_line(&look());
        let mut words = self.shared.words.lock();
        self.say_stopping(&mut words);
        // What was seen before the end began is no longer true.
        let status = Some(status).filter(|status| was_ending == words.is_ending && *status != words.status);
        let mut message = Vec::new();
        if !words.ready && !words.is_ending {
            message.push("READY=1".to_owned());
        }
        message.extend(status.iter().map(|status| format!("STATUS={status}")));
        if self.shared.watchdog.is_some() {
            message.push("WATCHDOG=1".to_owned());
        }
        if !message.is_empty() && self.send(&mut words, &message.join("\n")) {
            words.ready = true;
            words.status = status.unwrap_or(std::mem::take(&mut words.status));
        }
    }

    fn say_stopping(&self, words: &mut Words) {
        if let Some(message) = words.stopping.take()
            && !self.send(words, &message)
        {
            words.stopping = Some(message);
        }
    }

    /// Whether it was taken. The first failure in a row is logged.
    fn send(&self, words: &mut Words, message: &str) -> bool {
        let sent = self.shared.socket.send_to_addr(message.as_bytes(), &self.shared.address);
        if let Err(error) = &sent
            && !words.failed
        {
            tracing::warn!(%error, "Cannot tell the service manager how the relay is; retrying every second");
        }
        words.failed = sent.is_err();
        sent.is_ok()
    }
}

fn address(name: &OsStr) -> Result<SocketAddr, ServiceError> {
    match name.as_bytes() {
        [b'/', ..] => Ok(SocketAddr::from_pathname(name)?),
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt as _;
            Ok(SocketAddr::from_abstract_name(name)?)
        }
        _ => Err(ServiceError::Address(name.to_owned())),
    }
}

/// Whoever chooses a prefix or an error's text must not be able to add a line, which would be another message.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(STATUS_MAX));
    for char in text.chars() {
        let char = if char.is_control() { ' ' } else { char };
        if line.len() + char.len_utf8() > STATUS_MAX - '…'.len_utf8() {
            line.push('…');
            break;
        }
        line.push(char);
    }
    line
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Systemd {
        socket: UnixDatagram,
        _folder: tempfile::TempDir,
        config: ServiceConfig,
    }

    impl Systemd {
        fn new(watchdog: Option<Duration>) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("notify");
            let socket = UnixDatagram::bind(&path).expect("a socket");
            socket.set_nonblocking(true).expect("a socket that does not block");
            Self { socket, _folder: folder, config: ServiceConfig { socket: path.into(), watchdog } }
        }

        fn heard(&self) -> Vec<String> {
            let mut buffer = [0; 4096];
            let mut heard = Vec::new();
            while let Ok(bytes) = self.socket.recv(&mut buffer) {
                heard.push(String::from_utf8(buffer[..bytes].to_vec()).expect("UTF-8"));
            }
            heard
        }
    }

    #[test]
    fn a_status_is_said_when_it_changes_and_never_after_the_end_began() {
        let systemd = Systemd::new(None);
        let manager = ServiceManager::new(&systemd.config).expect("a manager");
        let feeds = Cell::new(0);
        let look = || format!("{} feeds", feeds.get());
        manager.tick(&look);
        manager.tick(&look);
        feeds.set(1);
        manager.tick(&look);
        assert_eq!(systemd.heard(), ["READY=1\nSTATUS=0 feeds", "STATUS=1 feeds"]);
        // The end begins while somebody looks.
        manager.tick(&|| {
            manager.stopping(Duration::from_secs(7));
            "serving".to_owned()
        });
        manager.tick(&|| "1 connection left".to_owned());
        assert_eq!(
            systemd.heard(),
            ["STOPPING=1\nSTATUS=Draining\nEXTEND_TIMEOUT_USEC=7000000", "STATUS=1 connection left"]
        );
    }

    #[test]
    fn the_watchdog_hears_of_each_look_that_returned_and_of_no_other() {
        let systemd = Systemd::new(Some(Duration::from_secs(30)));
        let manager = ServiceManager::new(&systemd.config).expect("a manager");
        manager.tick(&|| "well".to_owned());
        manager.tick(&|| "well".to_owned());
        assert_eq!(systemd.heard(), ["READY=1\nSTATUS=well\nWATCHDOG=1", "WATCHDOG=1"]);
        let stuck = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            manager.tick(&|| -> String { std::panic::resume_unwind(Box::new("stuck")) });
        }));
        assert!(stuck.is_err() && systemd.heard().is_empty());
    }

    #[test]
    fn what_a_full_socket_did_not_take_is_said_later() {
        let systemd = Systemd::new(None);
        let manager = ServiceManager::new(&systemd.config).expect("a manager");
        let filler = UnixDatagram::unbound().expect("a socket");
        filler.set_nonblocking(true).expect("a socket that does not block");
        while filler.send_to_addr(b"X=1", &manager.shared.address).is_ok() {}
        manager.tick(&|| "well".to_owned());
        assert!(systemd.heard().iter().all(|message| message == "X=1"));
        manager.tick(&|| "well".to_owned());
        assert_eq!(systemd.heard(), ["READY=1\nSTATUS=well"]);
        while filler.send_to_addr(b"X=1", &manager.shared.address).is_ok() {}
        manager.stopping(Duration::ZERO);
        systemd.heard();
        manager.tick(&|| "Draining".to_owned());
        assert_eq!(systemd.heard()[0], "STOPPING=1\nSTATUS=Draining\nEXTEND_TIMEOUT_USEC=0");
    }

    #[test]
    fn no_text_adds_a_message_and_none_is_too_long() {
        assert_eq!(one_line("a\nMAINPID=1\r\u{85}b"), "a MAINPID=1  b");
        let long = one_line(&"ä".repeat(1000));
        assert!(long.len() <= STATUS_MAX && long.ends_with("ä…"), "{long}");
    }

    #[test]
    fn a_socket_that_is_no_path_and_no_abstract_name_is_refused() {
        for name in ["", "notify", "vsock:2:1234"] {
            let error = address(OsStr::new(name)).expect_err(name).to_string();
            assert!(error.contains("NOTIFY_SOCKET"), "{error}");
        }
    }
}
