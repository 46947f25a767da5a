//! `etcd-relay top` and `etcd-relay health`: commands that query a relay through its HTTP port.
//!
//! What they do is in [`crate::top`] and [`crate::health`]. Always holds: the variables for etcd (`ETCD_RELAY_CACERT`
//! and so on) do not apply to the connection to the relay, so a probe works in the relay's own container.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{
    Exit, Task,
    values::{PositiveTime, Time},
};
use crate::{
    fetch::{Fetcher, RelayUrl},
    health::{Health, Question},
    tls::{self, ClientOptions},
    top::Top,
};

/// The shortest refresh interval of `top`. Each refresh costs the relay some milliseconds.
const LEAST_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
struct Target {
    /// URL of the relay's HTTP port: http://host:port, https://host:port or host:port. The environment variable is the
    /// relay's own: of several addresses the first is used, and an address that stands for all of the machine's
    /// addresses means this machine
    #[arg(long, env = "ETCD_RELAY_LISTEN_HTTP", value_name = "URL", default_value = "http://127.0.0.1:9001")]
    endpoint: RelayUrl,

    /// File with the certificate authorities for a relay with https://, in PEM form. Default: those that this machine
    /// trusts
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// File with a client certificate, for a relay that requires one (--trusted-ca-file), followed by any intermediate
    /// certificates
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,

    /// File with the private key of --cert
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// Accept any certificate from the relay
    #[arg(long)]
    insecure_skip_tls_verify: bool,
}

/// Shows a relay's state in a terminal: etcd's members, feeds, connections, what they watch and how far they are
/// behind.
///
/// It also shows deliveries and CPU time. `top` reads /debug/state, which by default is open to this machine and to
/// each --trusted-net. If standard output is not a terminal, it prints the state once as plain text and ends. Press `?`
/// for the keys.
#[derive(Debug, Args)]
pub(super) struct TopCommand {
    #[command(flatten)]
    target: Target,

    /// Refresh interval, at least 250ms. Lists of more than 500 rows are read over several refreshes
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_secs(1)))]
    interval: PositiveTime,

    /// Longest wait for an answer from the relay
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_secs(5)))]
    timeout: PositiveTime,

    /// Show only rows that contain this text in the address, user, agent or keys
    #[arg(long, value_name = "TEXT", default_value = "")]
    find: String,

    /// Print the state once as plain text, with all rows, and end
    #[arg(long)]
    once: bool,
}

/// Checks whether a relay is ready: prints `ready` and exits with 0, or prints the reason and exits with 1.
#[derive(Debug, Args)]
pub(super) struct HealthCommand {
    #[command(flatten)]
    target: Target,

    /// Check whether the process answers, like /live, for a liveness probe
    #[arg(long, conflicts_with = "ready")]
    live: bool,

    /// Check whether every configured feed serves and etcd was reached, like /ready. This is the default
    #[arg(long)]
    ready: bool,

    /// Longest wait for the answer
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_secs(2)))]
    timeout: PositiveTime,
}

impl Target {
    fn fetcher(self, patience: Duration) -> Result<Fetcher, Exit> {
        let is_told = self.cacert.is_some() || self.cert.is_some() || self.insecure_skip_tls_verify;
        if !self.endpoint.is_secure() {
            if is_told {
                return Err(Exit::Usage(format!(
                    "--cacert, --cert, --key and --insecure-skip-tls-verify need an https:// URL, but --endpoint is {}",
                    self.endpoint
                )));
            }
            return Ok(Fetcher::new(self.endpoint, None, patience));
        }
        let options = ClientOptions {
            cacert: self.cacert,
            pair: self.cert.zip(self.key),
            insecure_skip_verify: self.insecure_skip_tls_verify,
            server_name: None,
        };
        let tls =
            tls::Client::load(options).map_err(|error| Exit::Usage(format!("--cacert, --cert, --key: {error}")))?;
        Ok(Fetcher::new(self.endpoint, Some(tls), patience))
    }
}

impl TopCommand {
    pub(super) fn task(self) -> Result<Task, Exit> {
        let every = self.interval.0;
        if every < LEAST_INTERVAL {
            return Err(Exit::Usage(format!(
                "--interval {} is too short; the shortest is {}",
                self.interval,
                Time(LEAST_INTERVAL)
            )));
        }
        let fetcher = self.target.fetcher(self.timeout.0)?;
        Ok(Task::Top(Box::new(Top { fetcher, every, once: self.once, find: self.find })))
    }
}

impl HealthCommand {
    pub(super) fn task(self) -> Result<Task, Exit> {
        let question = if self.live && !self.ready { Question::Live } else { Question::Ready };
        Ok(Task::Health(Box::new(Health { fetcher: self.target.fetcher(self.timeout.0)?, question })))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{arguments, refused};
    use super::super::{Build, parse};
    use super::*;

    fn task(line: &[&str]) -> Task {
        parse(arguments(line), Build::default()).expect("a task")
    }

    #[test]
    fn the_relay_is_that_of_this_machine_unless_told_otherwise() {
        let Task::Health(health) = task(&["health", "--endpoint", "0.0.0.0:7,10.0.0.1:8"]) else { panic!("no health") };
        assert_eq!(
            (health.fetcher.url().to_string().as_str(), health.question),
            ("http://127.0.0.1:7", Question::Ready)
        );
        let Task::Health(health) = task(&["health", "--live"]) else { panic!("no health") };
        assert_eq!(health.question, Question::Live);
        let Task::Top(top) = task(&["top", "--find", "x", "--once", "--interval", "2s"]) else { panic!("no top") };
        assert_eq!((&*top.find, top.once, top.every), ("x", true, Duration::from_secs(2)));
        let secure = ["top", "--endpoint", "https://relay:1", "--insecure-skip-tls-verify"];
        let Task::Top(top) = task(&secure) else { panic!("no top") };
        assert!(top.fetcher.url().is_secure());
    }

    #[test]
    fn bad_values_are_refused_by_the_name_of_their_flag() {
        for (line, named) in [
            (&["top", "--interval", "1ms"][..], "--interval"),
            (&["top", "--endpoint", "ftp://relay"], "--endpoint"),
            (&["health", "--live", "--ready"], "--ready"),
            (&["health", "--timeout", "0s"], "--timeout"),
            (&["health", "--cacert", "ca.pem"], "https://"),
            (&["health", "--endpoint", "https://relay", "--cert", "cert.pem"], "--key"),
            (&["health", "--endpoint", "https://relay", "--cacert", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        ] {
            let text = refused(line);
            assert!(text.contains(named), "{line:?}: {text}");
        }
    }
}
