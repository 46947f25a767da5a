//! What the environment says about the service manager that started the program, systemd above all: see sd_notify(3) and systemd.exec(5).
//!
//! Not here: what the manager is told, see `crate::service`. These variables are the manager's, so they are no flags.

use std::{env, ffi::OsString, os::unix::fs::MetadataExt as _, time::Duration};

use crate::service::{ServiceConfig, ServiceManager};

/// The manager, if one wants to be told. What cannot be used is logged: the relay serves in any case.
pub(super) fn manager() -> Option<ServiceManager> {
    let config = config(|name| env::var_os(name), std::process::id())?;
    match ServiceManager::new(&config) {
        Ok(manager) => Some(manager),
        Err(error) => {
            tracing::warn!(%error, "Cannot tell the service manager how the relay is");
            None
        }
    }
}

/// Whether standard error is a stream to systemd's journal: `JOURNAL_STREAM` names its device and inode, since a variable alone would be true of a
/// program whose output was redirected as well.
pub(super) fn logs_to_journal() -> bool {
    let Some(stream) = env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(file) = std::fs::metadata("/dev/stderr") else { return false };
    stream.to_str().is_some_and(|stream| stream == format!("{}:{}", file.dev(), file.ino()))
}

fn config(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Option<ServiceConfig> {
    let socket = variable("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
    let number = |name| variable(name).and_then(|value| value.to_str()?.parse::<u64>().ok());
    // Without the process's id, the time is meant for whoever reads it.
    let is_meant = number("WATCHDOG_PID").is_none_or(|meant| meant == u64::from(pid));
    let watchdog = number("WATCHDOG_USEC").filter(|micros| is_meant && *micros > 0).map(Duration::from_micros);
    Some(ServiceConfig { socket, watchdog })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_one_that_names_a_socket_and_its_watchdog_one_for_this_process() {
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
