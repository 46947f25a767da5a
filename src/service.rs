//! [`ServiceManager`]: notifications to systemd, or to any other manager with its notification protocol (sd_notify(3)).
//!
//! - `READY=1` once all ports accept connections. It does not wait for etcd, so a start never runs into a time limit.
//!   `STATUS` says what the relay still waits for.
//! - `STOPPING=1` when the relay begins to stop, with `EXTEND_TIMEOUT_USEC` for as long as the drain may take.
//! - `WATCHDOG=1`, if the manager requests it, after each check of the whole relay. The check runs on the threads that
//!   serve clients and takes the lock of each feed, so the notifications end if threads or feeds are stuck.
//!
//! There is no `RELOADING=1`, because changed TLS files are read without a reload; see `tls::follow`.
//!
//! Not here: the environment variables that name the socket, which `cli` reads, and the text of the status, which
//! `relay` writes. Called by `relay`. Always holds: nothing waits for the manager. A notification that its socket does
//! not accept is sent again after the next check.

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

/// Most bytes of a status. systemd reads 4 KiB of a notification, and shows the status in one line.
const STATUS_MAX: usize = 500;
/// Time between two checks of the relay, unless the watchdog needs them more often.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Checks within the watchdog's time limit. Two of three may be late or lost.
const CHECKS_PER_WATCHDOG: u32 = 3;

/// What the environment says about the service manager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceConfig {
    /// `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
    pub socket: OsString,
    /// `WATCHDOG_USEC`, if it is meant for this process.
    pub watchdog: Option<Duration>,
}

/// Why the service manager cannot be notified.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The variable does not name a supported kind of socket.
    #[error("NOTIFY_SOCKET={0:?} is neither an absolute path nor an abstract name, which begins with @")]
    Address(OsString),
    /// The system gave no socket to send from.
    #[error("cannot create a socket for notifications to the service manager")]
    Socket(#[from] io::Error),
}

/// Sends notifications to the service manager; see the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServiceManager {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
    sent: Mutex<Sent>,
}

/// What has been sent, and what is still to be sent.
#[derive(Debug, Default)]
struct Sent {
    ready: bool,
    /// The notification that the relay stops, until it has been sent.
    pending_stop: Option<String>,
    is_stopping: bool,
    status: String,
    failed: bool,
}

impl ServiceManager {
    /// Creates the socket to send from. It sends nothing yet.
    ///
    /// # Errors
    /// If the manager's socket is not of a supported kind, or the system gives no socket.
    pub fn new(config: &ServiceConfig) -> Result<Self, ServiceError> {
        let address = address(&config.socket)?;
        // It is not connected, so it also reaches a manager that was restarted.
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let sent = Mutex::new(Sent::default());
        Ok(Self { shared: Arc::new(Shared { socket, address, watchdog: config.watchdog, sent }) })
    }

    /// Reports that all ports accept connections, and from then on the relay's status, until it is dropped. `check`
    /// examines the whole relay and returns its status in one line.
    pub async fn report(self, check: impl Fn() -> String) {
        let period =
            self.shared.watchdog.map_or(CHECK_INTERVAL, |watchdog| CHECK_INTERVAL.min(watchdog / CHECKS_PER_WATCHDOG));
        loop {
            self.tick(&check);
            tokio::time::sleep(period).await;
        }
    }

    /// Reports that the relay has begun to stop, which takes `most` at the most. From then on `STATUS` is about the
    /// drain.
    pub fn stopping(&self, most: Duration) {
        let mut sent = self.shared.sent.lock();
        sent.is_stopping = true;
        sent.pending_stop =
            Some(format!("STOPPING=1\nSTATUS=Draining\nEXTEND_TIMEOUT_USEC={}", most.as_micros().min(u64::MAX.into())));
        self.send_pending_stop(&mut sent);
    }

    fn tick(&self, check: &impl Fn() -> String) {
        let was_stopping = self.shared.sent.lock().is_stopping;
        let status = one_line(&check());
        let mut sent = self.shared.sent.lock();
        self.send_pending_stop(&mut sent);
        // A status from before the stop is no longer true.
        let status = Some(status).filter(|status| was_stopping == sent.is_stopping && *status != sent.status);
        let mut notification = Vec::new();
        if !sent.ready && !sent.is_stopping {
            notification.push("READY=1".to_owned());
        }
        notification.extend(status.iter().map(|status| format!("STATUS={status}")));
        if self.shared.watchdog.is_some() {
            notification.push("WATCHDOG=1".to_owned());
        }
        if !notification.is_empty() && self.send(&mut sent, &notification.join("\n")) {
            sent.ready = true;
            if let Some(status) = status {
                sent.status = status;
            }
        }
    }

    fn send_pending_stop(&self, sent: &mut Sent) {
        if let Some(notification) = sent.pending_stop.take()
            && !self.send(sent, &notification)
        {
            sent.pending_stop = Some(notification);
        }
    }

    /// Returns whether the manager's socket accepted it. Only the first of several failures in a row is logged.
    fn send(&self, sent: &mut Sent, notification: &str) -> bool {
        let result = self.shared.socket.send_to_addr(notification.as_bytes(), &self.shared.address);
        if let Err(error) = &result
            && !sent.failed
        {
            tracing::warn!(%error, "Cannot notify the service manager, retrying every second");
        }
        sent.failed = result.is_err();
        result.is_ok()
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

/// Replaces control characters and cuts the text to `STATUS_MAX`. Prefixes and error texts come from others, and a line
/// break in one of them would begin another assignment of the protocol.
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

        /// Fills the socket with messages. A sender has a limit of its own, which may be reached first, so there are
        /// several.
        fn fill(&self, address: &SocketAddr) {
            loop {
                let filler = UnixDatagram::unbound().expect("a socket");
                filler.set_nonblocking(true).expect("a socket that does not block");
                if filler.send_to_addr(b"X=1", address).is_err() {
                    return;
                }
                while filler.send_to_addr(b"X=1", address).is_ok() {}
            }
        }

        fn received(&self) -> Vec<String> {
            let mut buffer = [0; 4096];
            let mut received = Vec::new();
            while let Ok(bytes) = self.socket.recv(&mut buffer) {
                received.push(String::from_utf8(buffer[..bytes].to_vec()).expect("UTF-8"));
            }
            received
        }
    }

    #[test]
    fn a_status_is_sent_when_it_changes_and_never_from_before_the_stop() {
        let systemd = Systemd::new(None);
        let manager = ServiceManager::new(&systemd.config).expect("a manager");
        let feeds = Cell::new(0);
        let check = || format!("{} feeds", feeds.get());
        manager.tick(&check);
        manager.tick(&check);
        feeds.set(1);
        manager.tick(&check);
        assert_eq!(systemd.received(), ["READY=1\nSTATUS=0 feeds", "STATUS=1 feeds"]);
        // The stop begins during a check.
        manager.tick(&|| {
            manager.stopping(Duration::from_secs(7));
            "serving".to_owned()
        });
        manager.tick(&|| "1 connection left".to_owned());
        assert_eq!(
            systemd.received(),
            ["STOPPING=1\nSTATUS=Draining\nEXTEND_TIMEOUT_USEC=7000000", "STATUS=1 connection left"]
        );
    }

    #[test]
    fn the_watchdog_is_notified_after_each_check_that_returns_and_after_no_other() {
        let systemd = Systemd::new(Some(Duration::from_secs(30)));
        let manager = ServiceManager::new(&systemd.config).expect("a manager");
        manager.tick(&|| "well".to_owned());
        manager.tick(&|| "well".to_owned());
        assert_eq!(systemd.received(), ["READY=1\nSTATUS=well\nWATCHDOG=1", "WATCHDOG=1"]);
        let stuck = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            manager.tick(&|| -> String { std::panic::resume_unwind(Box::new("stuck")) });
        }));
        assert!(stuck.is_err() && systemd.received().is_empty());
    }

    #[test]
    fn what_a_full_socket_did_not_accept_is_sent_later() {
        let systemd = Systemd::new(None);
        let manager = ServiceManager::new(&systemd.config).expect("a manager");
        systemd.fill(&manager.shared.address);
        manager.tick(&|| "well".to_owned());
        assert!(systemd.received().iter().all(|message| message == "X=1"));
        manager.tick(&|| "well".to_owned());
        assert_eq!(systemd.received(), ["READY=1\nSTATUS=well"]);
        systemd.fill(&manager.shared.address);
        manager.stopping(Duration::ZERO);
        systemd.received();
        manager.tick(&|| "Draining".to_owned());
        assert_eq!(systemd.received()[0], "STOPPING=1\nSTATUS=Draining\nEXTEND_TIMEOUT_USEC=0");
    }

    #[test]
    fn no_text_adds_an_assignment_and_none_is_too_long() {
        assert_eq!(one_line("a\nMAINPID=1\r\u{85}b"), "a MAINPID=1  b");
        let long = one_line(&"ä".repeat(1000));
        assert!(long.len() <= STATUS_MAX && long.ends_with("ä…"), "{long}");
    }

    #[test]
    fn a_socket_that_is_neither_a_path_nor_an_abstract_name_is_refused() {
        for name in ["", "notify", "vsock:2:1234"] {
            let error = address(OsStr::new(name)).expect_err(name).to_string();
            assert!(error.contains("NOTIFY_SOCKET"), "{error}");
        }
    }
}
