//! `etcd-relay grpc-proxy start`: the relay under the command and flags of `etcd grpc-proxy start`.
//!
//! Flags are written as Go programs take them: `--flag value`, `--flag=value`, `--debug`, `--debug=false`, `20s`, `2h0m0s`.
//! Always holds: each flag of etcd's works, or is accepted with one warning that says what the relay does instead, or is
//! refused by name; a flag that is given its harmless default changes nothing. The table is [`flags::FLAGS`].

mod flags;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{SocketAddr, ToSocketAddrs as _},
    num::NonZeroU32,
    time::Duration,
};

use self::flags::{FLAGS, Flag, Kind, Means};
use super::{Exit, Start, announce::Announce, values::go_duration};
use crate::{
    front::{http::audience::Audience, listen},
    relay::{DRAIN_TIME, Etcd, Feeds, LainletFeeds, RelayConfig, Upstream, Views, Watches},
    source::{Endpoint, forward},
    telemetry::{logging, names::Port},
};

/// Reads the arguments behind `grpc-proxy`.
pub(super) fn start(arguments: &[OsString]) -> Result<Start, Exit> {
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|argument| argument.to_str().ok_or_else(|| usage(format!("{argument:?} is not UTF-8"))))
        .collect::<Result<_, _>>()?;
    match arguments.split_first() {
        Some((&"start", flags)) => match Given::parse(flags)? {
            None => Err(Exit::Help(help())),
            Some(given) => given.start(),
        },
        Some((&("--help" | "-h" | "help"), _)) => Err(Exit::Help(help())),
        Some((other, _)) => Err(usage(format!("there is no `grpc-proxy {other}`; it is `grpc-proxy start`"))),
        None => Err(usage("`grpc-proxy` does nothing by itself; it is `grpc-proxy start`".to_owned())),
    }
}

/// The flags that were given, by name, and are not their harmless default.
#[derive(Debug, Default)]
struct Given {
    values: BTreeMap<&'static str, String>,
    warnings: Vec<String>,
}

impl Given {
    /// `None` where help is asked for.
    fn parse(arguments: &[&str]) -> Result<Option<Self>, Exit> {
        let mut given: BTreeMap<&'static str, (&'static Flag, String)> = BTreeMap::new();
        let mut rest = arguments.iter();
        while let Some(&argument) = rest.next() {
            if argument == "-h" {
                return Ok(None);
            }
            let Some(flag) = argument.strip_prefix("--") else {
                return Err(usage(format!("`{argument}` is no flag; `grpc-proxy start` takes flags alone")));
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag, None),
            };
            if name == "help" {
                return Ok(None);
            }
            let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) else {
                return Err(usage(format!(
                    "`--{name}` is no flag of `etcd grpc-proxy start`; the relay's own flags belong to `etcd-relay serve`"
                )));
            };
            let value = match (value, flag.kind) {
                (Some(value), _) => value,
                (None, Kind::Bool) => "true",
                (None, _) => rest.next().copied().ok_or_else(|| usage(format!("--{name} needs a value")))?,
            };
            flag.kind.check(value).map_err(|problem| usage(format!("--{name}: {problem}")))?;
            // As in Go, lists grow and all else is what was said last.
            let value = match given.get(flag.name) {
                Some((_, before)) if flag.kind == Kind::Strings => format!("{before},{value}"),
                _ => value.to_owned(),
            };
            given.insert(flag.name, (flag, value));
        }
        let mut parsed = Self::default();
        for (flag, value) in given.into_values() {
            if flag.kind.is_nothing(&value) && flag.means != Means::Works {
                continue;
            }
            match flag.means {
                Means::Works => {
                    parsed.values.insert(flag.name, value);
                }
                Means::Accepted(instead) => parsed.warnings.push(format!("--{}: {instead}", flag.name)),
                Means::Refused(reason) => return Err(usage(format!("--{} is not supported: {reason}", flag.name))),
            }
        }
        Ok(Some(parsed))
    }

    fn start(self) -> Result<Start, Exit> {
        let mut grpc = listen::PortConfig::new(Port::Grpc, self.addr("listen-addr", flags::LISTEN_ADDR)?);
        if let Some(streams) = self.number("max-concurrent-streams")? {
            // As in etcd, zero means no bound of its own.
            grpc.max_streams = NonZeroU32::new(u32::try_from(streams).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MAX);
        }
        grpc.keepalive = keepalive(
            self.duration("grpc-keepalive-interval")?.unwrap_or(flags::GRPC_KEEPALIVE_INTERVAL),
            self.duration("grpc-keepalive-timeout")?.unwrap_or(flags::GRPC_KEEPALIVE_TIMEOUT),
        );
        let metrics = match self.values.get("metrics-addr") {
            Some(url) if !url.is_empty() => {
                let host_and_port = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
                let addr = resolve("metrics-addr", host_and_port)?;
                vec![listen::PortConfig::new(Port::Metrics, addr)]
            }
            _ => Vec::new(),
        };
        let endpoints = self.values.get("endpoints").map_or(flags::ENDPOINTS, String::as_str);
        let endpoints =
            endpoints.split(',').map(|text| self.endpoint("endpoints", text)).collect::<Result<Vec<_>, _>>()?;
        let debug = self.is_set("debug");
        Ok(Start {
            config: RelayConfig {
                upstream: Upstream::Etcd(Etcd {
                    endpoints,
                    identity: None,
                    connect_timeout: forward::ForwardConfig::CONNECT_TIMEOUT,
                    request_timeout: Etcd::REQUEST_TIMEOUT,
                    keepalive: self.dial_keepalive()?,
                    max_forwarded_per_client: forward::ForwardConfig::MAX_PER_CLIENT,
                    forward_wait: forward::ForwardConfig::WAIT,
                }),
                feeds: Feeds::default(),
                watches: Watches::default(),
                // etcd's proxy has no such thing, and neither has its flag.
                views: Views { feeds: LainletFeeds::Off, ..Views::default() },
                grpc,
                http: None,
                metrics,
                debug_from: Audience::Nobody,
                // As etcd's.
                metrics_from: Audience::Any,
                drain_time: DRAIN_TIME,
            },
            logging: logging::LoggingConfig {
                filter: if debug {
                    "info,etcd_relay=debug".to_owned()
                } else {
                    logging::LoggingConfig::default().filter
                },
                ..logging::LoggingConfig::default()
            },
            warnings: self.warnings,
            announce: Announce::GrpcProxy,
        })
    }

    /// etcd's default is no pings at all, and a proxy that never notices that its member vanished; the relay's own serves
    /// where nothing was said.
    fn dial_keepalive(&self) -> Result<Option<forward::Keepalive>, Exit> {
        let own = forward::ForwardConfig::KEEPALIVE;
        let interval = self.duration("dial-keepalive-time")?.unwrap_or(own.interval);
        let timeout = self.duration("dial-keepalive-timeout")?.unwrap_or(own.timeout);
        let while_idle = match self.values.get("permit-without-stream") {
            Some(_) => self.is_set("permit-without-stream"),
            None => own.while_idle,
        };
        Ok(keepalive(interval, timeout).map(|listen::Keepalive { interval, timeout }| forward::Keepalive {
            interval,
            timeout,
            while_idle,
        }))
    }

    fn is_set(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|value| flags::is_true(value))
    }

    fn duration(&self, name: &str) -> Result<Option<Duration>, Exit> {
        self.values
            .get(name)
            .map(|value| go_duration(value))
            .transpose()
            .map_err(|text| usage(format!("--{name}: {text}")))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Exit> {
        let parse = |value: &String| value.parse().map_err(|_| usage(format!("--{name}: `{value}` is no number")));
        self.values.get(name).map(parse).transpose()
    }

    fn endpoint(&self, name: &str, text: &str) -> Result<Endpoint, Exit> {
        text.trim().parse().map_err(|error| usage(format!("--{name}: {error}")))
    }

    fn addr(&self, name: &str, default: &str) -> Result<SocketAddr, Exit> {
        resolve(name, self.values.get(name).map_or(default, String::as_str))
    }
}

/// Host names are resolved as etcd does, and `:23790` is all of the machine's addresses.
fn resolve(name: &str, text: &str) -> Result<SocketAddr, Exit> {
    let all;
    let host_and_port = if text.starts_with(':') {
        all = format!("[::]{text}");
        &all
    } else {
        text
    };
    host_and_port
        .to_socket_addrs()
        .map_err(|error| {
            usage(format!("--{name}: `{text}` is no address to listen at ({error}); write it like 127.0.0.1:23790"))
        })?
        .next()
        .ok_or_else(|| usage(format!("--{name}: `{text}` has no address")))
}

/// Zero disables, as in etcd.
fn keepalive(interval: Duration, timeout: Duration) -> Option<listen::Keepalive> {
    (!interval.is_zero() && !timeout.is_zero()).then_some(listen::Keepalive { interval, timeout })
}

fn usage(text: String) -> Exit {
    Exit::Usage(text)
}

fn help() -> String {
    let mut text = String::from(
        "Runs the relay under the command and flags of `etcd grpc-proxy start`.\n\nUsage: etcd-relay grpc-proxy start [flags]\n",
    );
    let mut section = |title: &str, wanted: fn(&Flag) -> bool| {
        text.push_str(&format!("\n{title}:\n"));
        for flag in FLAGS.iter().filter(|flag| wanted(flag)) {
            text.push_str(&format!("  --{:<38} {}\n", flag.name, flag.meaning()));
        }
    };
    section("Flags", |flag| flag.means == Means::Works);
    section("Accepted with a warning", |flag| matches!(flag.means, Means::Accepted(_)));
    section("Refused when set", |flag| matches!(flag.means, Means::Refused(_)));
    text
}

#[cfg(test)]
mod tests;
