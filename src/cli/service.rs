//! The environment variables by which a service manager, such as systemd, describes itself to the program: see
//! sd_notify(3) and systemd.exec(5).
//!
//! Not here: the notifications to the manager, see `crate::service`. The manager defines these variables, so there are
//! no flags for them.

use std::{env, ffi::OsString, os::unix::fs::MetadataExt as _, time::Duration};

use crate::service::{ServiceConfig, ServiceManager};

/// The service manager, if it asked for notifications. A variable that cannot be used is logged, and the relay serves
/// without notifications.
pub(super) fn manager() -> Option<ServiceManager> {
    let config = config(|name| env::var_os(name), std::process::id())?;
    match ServiceManager::new(&config) {
        Ok(manager) => Some(manager),
        Err(error) => {
            tracing::warn!(%error, "Cannot notify the service manager");
            None
        }
    }
}

/// Whether standard error goes to systemd's journal. `JOURNAL_STREAM` names the device and inode of the journal's
/// stream; the variable is also set if the output was redirected elsewhere, so both are compared.
pub(super) fn logs_to_journal() -> bool {
    let Some(stream) = env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(file) = std::fs::metadata("/dev/stderr") else { return false };
    stream.to_str().is_some_and(|stream| stream == format!("{}:{}", file.dev(), file.ino()))
}

fn config(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Option<ServiceConfig> {
    let socket = variable("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
    let number = |name| variable(name).and_then(|value| value.to_str()?.parse::<u64>().ok());
    // Without a process id, the time is meant for any process.
    let is_meant = number("WATCHDOG_PID").is_none_or(|meant| meant == u64::from(pid));
    let watchdog = number("WATCHDOG_USEC").filter(|micros| is_meant && *micros > 0).map(Duration::from_micros);
    Some(ServiceConfig { socket, watchdog })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_needs_a_socket_and_a_watchdog_is_for_one_process() {
        let of = |variables: &[(&str, &str)]| {
            config(|name| variables.iter().find(|(found, _)| *found == name).map(|(_, value)| value.into()), 7)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("NOTIFY_SOCKET", ""), ("WATCHDOG_USEC", "5")]), None);
        let socket = ("NOTIFY_SOCKET", "/run/systemd/notify");
        let config = |watchdog| Some(ServiceConfig { socket: socket.1.into(), watchdog });
        assert_eq!(of(&[socket]), config(None));
        for (pid, watchdog) in [("7", Some(Duration::from_secs(30))), ("8", None)] {
            assert_eq!(of(&[socket, ("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", pid)]), config(watchdog), "{pid}");
        }
        assert_eq!(of(&[socket, ("WATCHDOG_USEC", "30000000")]), config(Some(Duration::from_secs(30))));
        assert_eq!(of(&[socket, ("WATCHDOG_USEC", "0")]), config(None));
        assert_eq!(of(&[socket, ("WATCHDOG_USEC", "soon")]), config(None));
    }
}
