//! `etcd-relay grpc-proxy start`: runs the relay with the command and flags of `etcd grpc-proxy start`.
//!
//! etcd's proxy has no flag for an etcd user, so the relay's user comes from the same environment variables as for
//! `serve` (`identity`). Flags have Go's syntax: `--flag value`, `--flag=value`, `--debug`, `--debug=false`, `20s`,
//! `2h0m0s`. Always holds: each of etcd's flags works, or is accepted with one warning about what the relay does
//! instead, or is refused by name. A flag that is set to its harmless default changes nothing. The table is
//! [`flags::FLAGS`].

mod flags;

use std::{collections::BTreeMap, env, ffi::OsString, num::NonZeroU32, path::PathBuf, time::Duration};

use self::flags::{FLAGS, Flag, Kind, Means};
use super::{
    Exit, Start,
    announce::Announce,
    discovery, fleet,
    identity::{VARIABLES, identity},
    listen::{ListenUrl, resolve},
    service::logs_to_journal,
    tls::{PortTls, UpstreamTls},
    values::go_duration,
};
use crate::{
    batch::Io,
    front::{
        http::{audience::Audience, keys::Cors},
        listen,
    },
    relay::{Advertise, DRAIN_TIME, Etcd, Feeds, LainletFeeds, RelayConfig, Upstream, Views, Watches},
    source::{Discovery, Endpoint, forward},
    telemetry::{logging, names::Port},
    tls,
};

/// Parses the arguments after `grpc-proxy`.
pub(super) fn start(arguments: &[OsString]) -> Result<Start, Exit> {
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|argument| argument.to_str().ok_or_else(|| usage(format!("{argument:?} is not UTF-8"))))
        .collect::<Result<_, _>>()?;
    match arguments.split_first() {
        Some((&"start", flags)) => match Given::parse(flags)? {
            None => Err(Exit::Text(help().into_bytes())),
            Some(given) => given.start(),
        },
        Some((&("--help" | "-h" | "help"), _)) => Err(Exit::Text(help().into_bytes())),
        Some((other, _)) => Err(usage(format!("`grpc-proxy {other}` is not a command; use `grpc-proxy start`"))),
        None => Err(usage("`grpc-proxy` does nothing by itself; use `grpc-proxy start`".to_owned())),
    }
}

/// The flags that were given and differ from their harmless default, by name.
#[derive(Debug, Default)]
struct Given {
    values: BTreeMap<&'static str, String>,
    warnings: Vec<String>,
}

impl Given {
    /// Returns `None` if help was requested.
    fn parse(arguments: &[&str]) -> Result<Option<Self>, Exit> {
        let mut given: BTreeMap<&'static str, (&'static Flag, String)> = BTreeMap::new();
        let mut warnings = Vec::new();
        let mut rest = arguments.iter();
        while let Some(&argument) = rest.next() {
            if argument == "-h" {
                return Ok(None);
            }
            let Some(flag) = argument.strip_prefix("--") else {
                // etcd's proxy reads on, so its command lines can have such words in them.
                warnings.push(format!(
                    "`{argument}` is not a flag and has no effect, as with etcd's proxy; a value of true or false follows its flag after `=`"
                ));
                continue;
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
                    "`--{name}` is not a flag of `etcd grpc-proxy start`; the relay's own flags belong to `etcd-relay serve`"
                )));
            };
            let value = match (value, flag.kind) {
                (Some(value), _) => value,
                (None, Kind::Bool) => "true",
                (None, _) => rest.next().copied().ok_or_else(|| usage(format!("--{name} needs a value")))?,
            };
            flag.kind.check(value).map_err(|problem| usage(format!("--{name}: {problem}")))?;
            // As in Go: values of a list add up, and for other flags the last one wins.
            let value = match given.get(flag.name) {
                Some((_, before)) if flag.kind == Kind::Strings => format!("{before},{value}"),
                _ => value.to_owned(),
            };
            given.insert(flag.name, (flag, value));
        }
        let mut parsed = Self { warnings, ..Self::default() };
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

    fn start(mut self) -> Result<Start, Exit> {
        let port_tls = self.port_tls()?;
        let listen_addr = self.values.get("listen-addr").map_or(flags::LISTEN_ADDR, String::as_str);
        let addr = resolve(listen_addr).map_err(|problem| usage(format!("--listen-addr: {problem}")))?;
        // As in etcd's proxy, a certificate turns TLS on.
        let address = listen::Address { addr, secure: port_tls.is_given() };
        let metrics_address = match self.values.get("metrics-addr") {
            Some(url) if !url.is_empty() => {
                let url: ListenUrl = url.parse().map_err(|problem| usage(format!("--metrics-addr: {problem}")))?;
                Some(url.0)
            }
            _ => None,
        };
        let server = port_tls.server(&[ListenUrl(address)])?;
        let at = |port, address: listen::Address| listen::PortConfig {
            addresses: vec![address],
            tls: server.clone(),
            ..listen::PortConfig::new(port, address.addr)
        };
        if metrics_address.is_some_and(|address| address.secure) && server.is_none() {
            return Err(usage("--metrics-addr: https:// needs --cert-file and --key-file, or --auto-tls".to_owned()));
        }
        let mut grpc = at(Port::Grpc, address);
        if let Some(streams) = self.number("max-concurrent-streams")? {
            // As in etcd, zero means no limit.
            grpc.max_streams = NonZeroU32::new(u32::try_from(streams).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MAX);
        }
        grpc.keepalive = keepalive(
            self.duration("grpc-keepalive-interval")?.unwrap_or(flags::GRPC_KEEPALIVE_INTERVAL),
            self.duration("grpc-keepalive-timeout")?.unwrap_or(flags::GRPC_KEEPALIVE_TIMEOUT),
        );
        let metrics = metrics_address.map(|address| at(Port::Metrics, address)).into_iter().collect();
        let mut warnings = std::mem::take(&mut self.warnings);
        let endpoints = self.values.get("endpoints").map_or(flags::ENDPOINTS, String::as_str);
        let tls = self.upstream_tls();
        // As in etcd's own clients, a URL without a scheme uses TLS if there are TLS settings.
        let scheme = if tls.is_given() { "https://" } else { "" };
        let endpoint = |text: &str| match text.trim() {
            text if text.contains("://") || text.is_empty() => self.endpoint("endpoints", text),
            text => self.endpoint("endpoints", &format!("{scheme}{text}")),
        };
        // As in etcd's proxy, discovery takes precedence over --endpoints.
        let discovery = self.discovery();
        let (endpoints, named) = match &discovery {
            Some(discovery) => (discovery::look_up(discovery, &mut warnings)?, "--discovery-srv"),
            None => (endpoints.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?, "--endpoints"),
        };
        let server_name = discovery.as_ref().and_then(discovery::server_name);
        let is_secure = endpoints.iter().any(Endpoint::is_secure);
        let tls = if tls.is_given() && !is_secure {
            // etcd's proxy ignores them as well, but without a warning.
            warnings.push(format!(
                "--cacert, --cert, --key and --insecure-skip-tls-verify have no effect: no URL of {named} begins with https://"
            ));
            None
        } else {
            tls.client(is_secure, named, server_name, &mut warnings)?
        };
        if let Some(name) = tls.as_ref().and_then(tls::Client::common_name) {
            return Err(usage(format!(
                "--cert: cert has non empty Common Name ({name}). etcd could take that name for a user, so etcd's \
                 grpc-proxy refuses such a certificate too. Use `etcd-relay serve` instead: it never lets a client's \
                 call act under that name"
            )));
        }
        let debug = self.is_set("debug");
        let identity = identity(env::var(VARIABLES.0).ok(), env::var_os(VARIABLES.1).map(PathBuf::from))?;
        Ok(Start {
            config: RelayConfig {
                upstream: Upstream::Etcd(Etcd {
                    endpoints,
                    tls,
                    identity,
                    connect_timeout: forward::ForwardConfig::CONNECT_TIMEOUT,
                    request_timeout: Etcd::REQUEST_TIMEOUT,
                    keepalive: self.dial_keepalive()?,
                    max_forwarded_per_client: forward::ForwardConfig::MAX_PER_CLIENT,
                    forward_wait: forward::ForwardConfig::WAIT,
                    auto_sync: self.duration("endpoints-auto-sync-interval")?.filter(|interval| !interval.is_zero()),
                }),
                feeds: Feeds::default(),
                watches: Watches::default(),
                // etcd's proxy has no views and no flag for them.
                views: Views { feeds: LainletFeeds::Off, ..Views::default() },
                grpc,
                http: None,
                metrics,
                debug_from: Audience::Nobody,
                keys_from: Audience::Nobody,
                cors: Cors::Off,
                // As in etcd's proxy.
                metrics_from: Audience::Any,
                advertise: self.advertise()?,
                v2: None,
                // etcd's proxy has no flag for it.
                io: Io::Auto,
                drain_time: DRAIN_TIME,
            },
            logging: logging::LoggingConfig {
                filter: if debug {
                    "info,etcd_relay=debug".to_owned()
                } else {
                    logging::LoggingConfig::default().filter
                },
                journal: logs_to_journal(),
                ..logging::LoggingConfig::default()
            },
            warnings,
            announce: Announce::GrpcProxy,
        })
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.values.get(name).filter(|value| !value.is_empty()).cloned()
    }

    fn discovery(&self) -> Option<Discovery> {
        let (service_name, insecure) = (self.text("discovery-srv-name"), self.is_set("insecure-discovery"));
        self.text("discovery-srv").map(|domain| Discovery { domain, service_name, insecure })
    }

    fn port_tls(&mut self) -> Result<PortTls, Exit> {
        let (trusted_ca_file, mut client_crl_file) = (self.file("trusted-ca-file"), self.file("client-crl-file"));
        if trusted_ca_file.is_none() && client_crl_file.take().is_some() {
            // etcd's proxy ignores it without a warning.
            self.warnings.push(
                "--client-crl-file has no effect without --trusted-ca-file: clients are not asked for certificates"
                    .to_owned(),
            );
        }
        let version = |name: &str| {
            let parse = |text: String| text.parse().map_err(|problem| usage(format!("--{name}: {problem}")));
            self.text(name).map(parse).transpose()
        };
        let (tls_min_version, tls_max_version) = (version("tls-min-version")?, version("tls-max-version")?);
        let suites = self.values.get("listen-cipher-suites").filter(|names| !names.is_empty());
        Ok(PortTls {
            cert_file: self.file("cert-file"),
            key_file: self.file("key-file"),
            trusted_ca_file,
            client_crl_file,
            tls_min_version,
            tls_max_version,
            auto_tls: self.is_set("auto-tls"),
            cipher_suites: suites.map(|names| names.split(',').map(str::to_owned).collect()).unwrap_or_default(),
            years: self.number("self-signed-cert-validity")?.map(|years| u32::try_from(years).unwrap_or(u32::MAX)),
            ..PortTls::default()
        })
    }

    fn upstream_tls(&self) -> UpstreamTls {
        UpstreamTls {
            cacert: self.file("cacert"),
            cert: self.file("cert"),
            key: self.file("key"),
            insecure_skip_tls_verify: self.is_set("insecure-skip-tls-verify"),
        }
    }

    /// By default, etcd's proxy sends no pings and never notices that its member vanished. So the relay's own defaults
    /// apply here.
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

    /// Makes the same checks as etcd's proxy.
    fn advertise(&self) -> Result<Option<Advertise>, Exit> {
        let is_secure = self.is_set("auto-tls") || self.text("cert-file").is_some();
        let scheme = if is_secure { "https" } else { "http" };
        // As in etcd's proxy, whose own default has no scheme.
        let url = self.text("advertise-client-url").map(|url| match url.parse::<http::uri::Authority>() {
            Ok(authority) if authority.port().is_some() => format!("{scheme}://{url}"),
            _ => url,
        });
        let prefix = self.text("resolver-prefix");
        let ttl = self.number("resolver-ttl")?.unwrap_or(0);
        match (url, prefix, ttl) {
            (_, Some(_), 0) => Err(usage("--resolver-prefix needs --resolver-ttl, in seconds".to_owned())),
            (_, None, 1..) => Err(usage("--resolver-ttl has no effect without --resolver-prefix".to_owned())),
            (None, Some(_), _) => Err(usage("--resolver-prefix needs --advertise-client-url".to_owned())),
            (None, None, 0) => Ok(None),
            (Some(url), None, _) => fleet::advertise(url, None, fleet::TTL).map(Some),
            (Some(url), prefix, ttl) => fleet::advertise(url, prefix, Duration::from_secs(ttl)).map(Some),
        }
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
        let parse = |value: &String| value.parse().map_err(|_| usage(format!("--{name}: `{value}` is not a number")));
        self.values.get(name).map(parse).transpose()
    }

    fn endpoint(&self, name: &str, text: &str) -> Result<Endpoint, Exit> {
        text.trim().parse().map_err(|error| usage(format!("--{name}: {error}")))
    }
}

/// Zero turns pings off, as in etcd.
fn keepalive(interval: Duration, timeout: Duration) -> Option<listen::Keepalive> {
    (!interval.is_zero() && !timeout.is_zero()).then_some(listen::Keepalive { interval, timeout })
}

fn usage(text: String) -> Exit {
    Exit::Usage(text)
}

fn help() -> String {
    let mut text = String::from(
        "Runs the relay with the command and flags of `etcd grpc-proxy start`.\n\nUsage: etcd-relay grpc-proxy start \
         [flags]\n",
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
