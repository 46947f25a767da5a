//! `etcd-relay serve`: runs a relay over an etcd cluster, through its v3 API or its v2 API.

use std::{ffi::OsStr, num::NonZeroUsize, path::PathBuf};

use bytes::Bytes;
use clap::{Args, ValueEnum};

use super::{
    Exit, Start,
    announce::Announce,
    discovery::{self, DiscoveryFlags},
    fleet::FleetFlags,
    groups::{Log, Memory, Ports},
    identity::identity,
    lainlet::LainletFlags,
    tls::UpstreamTls,
    v2::V2Flags,
    values::{ByteCount, PositiveTime, Prefixes, Time},
};
use crate::{
    relay::{Etcd, EtcdV2, Feeds, OnDemand, RelayConfig, Upstream},
    source::{Audit, Endpoint, V2Config, V2Upstream, forward},
    types::KeyRange,
};

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    upstream: UpstreamFlags,
    #[command(flatten)]
    feeds: FeedFlags,
    #[command(flatten)]
    memory: Memory,
    #[command(flatten)]
    ports: Ports,
    #[command(flatten)]
    fleet: FleetFlags,
    #[command(flatten)]
    v2: V2Flags,
    #[command(flatten)]
    lainlet: LainletFlags,
    #[command(flatten)]
    log: Log,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Upstream")]
struct UpstreamFlags {
    /// Client URLs of the etcd cluster's members, or of another relay. Repeatable, or separated by commas. The first
    /// one that answers is used until it fails
    #[arg(
        long,
        visible_alias = "endpoints",
        env = "ETCD_RELAY_ETCD",
        value_name = "URL",
        value_delimiter = ',',
        required_unless_present_any = ["etcd_v2", "discovery_srv"],
        conflicts_with_all = ["etcd_v2", "discovery_srv"]
    )]
    etcd: Vec<Endpoint>,

    #[command(flatten)]
    discovery: DiscoveryFlags,

    /// Client URLs of the members of a cluster whose keys are in etcd's v2 store (etcd 2.3 to 3.5), in place of --etcd.
    /// Keys can be watched and read, but not written
    #[arg(
        long,
        env = "ETCD_RELAY_ETCD_V2",
        value_name = "URL",
        value_delimiter = ',',
        conflicts_with_all = ["discovery_srv", "listen_v2"]
    )]
    etcd_v2: Vec<Endpoint>,

    /// How long a v2 wait at --etcd-v2 stays open before it is sent again. A shorter time finds events sooner that a
    /// member failed to report, but costs the cluster more requests for each feed. Default: 20s
    #[arg(long, env = "ETCD_RELAY_ETCD_V2_HOLD", value_name = "TIME")]
    etcd_v2_hold: Option<PositiveTime>,

    /// etcd user for the relay's own reads, needed if etcd's authentication is on. Forwarded calls carry the identity
    /// of their client instead
    #[arg(long, env = "ETCD_RELAY_UPSTREAM_USER", value_name = "NAME", requires = "upstream_password_file")]
    upstream_user: Option<String>,

    /// File with that user's password on its first line
    #[arg(long, env = "ETCD_RELAY_UPSTREAM_PASSWORD_FILE", value_name = "FILE", requires = "upstream_user")]
    upstream_password_file: Option<PathBuf>,

    /// Longest wait for a connection to one member before the next member is tried. A shorter time moves on sooner, but
    /// gives up on distant or busy members
    #[arg(
        long,
        env = "ETCD_RELAY_CONNECT_TIMEOUT",
        value_name = "TIME",
        default_value_t = PositiveTime(forward::ForwardConfig::CONNECT_TIMEOUT)
    )]
    connect_timeout: PositiveTime,

    /// Timeout of the relay's own requests, after which another member is asked. Forwarded calls have only their
    /// client's timeout
    #[arg(
        long,
        env = "ETCD_RELAY_REQUEST_TIMEOUT",
        value_name = "TIME",
        default_value_t = PositiveTime(Etcd::REQUEST_TIMEOUT)
    )]
    request_timeout: PositiveTime,

    /// Largest number of open forwarded calls of one client address, including calls that wait for a lock or keep a
    /// lease alive. A further call is refused. Each costs about 10 KiB in the relay and a stream at etcd
    #[arg(
        long,
        env = "ETCD_RELAY_MAX_FORWARDED_PER_CLIENT",
        value_name = "NUMBER",
        default_value_t = forward::ForwardConfig::MAX_PER_CLIENT
    )]
    max_forwarded_per_client: NonZeroUsize,

    /// How long a forwarded call waits for a reachable member, within its own timeout, as in etcd's own clients. 0s
    /// refuses it at once. With a longer time calls survive a longer restart of etcd, but more of them wait meanwhile.
    /// Writes also wait for an election, for 2.5s at most
    #[arg(long, env = "ETCD_RELAY_FORWARD_WAIT", value_name = "TIME", default_value_t = Time(forward::ForwardConfig::WAIT))]
    forward_wait: Time,

    /// How often to ask the cluster for its members; their advertised client URLs then replace --etcd. For clusters
    /// whose members change while the relay runs. 0s never asks
    #[arg(
        long,
        env = "ETCD_RELAY_ENDPOINTS_AUTO_SYNC_INTERVAL",
        value_name = "TIME",
        default_value_t = Time(std::time::Duration::ZERO),
        conflicts_with = "etcd_v2"
    )]
    endpoints_auto_sync_interval: Time,

    #[command(flatten)]
    tls: UpstreamTls,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Feeds")]
struct FeedFlags {
    /// Key prefix to keep in memory from the start. Repeatable, or separated by commas. Write "\," for a comma within a
    /// prefix. "" is the whole key space. Each prefix costs etcd one watch, and the relay a copy of its keys. Default:
    /// none
    #[arg(long, env = "ETCD_RELAY_PREFIX", value_name = "PREFIX", value_delimiter = '\n')]
    prefix: Vec<Prefixes>,

    /// Whether a watch outside all prefixes opens a feed for its range or is refused
    #[arg(long, env = "ETCD_RELAY_ON_DEMAND", value_name = "WHAT", value_enum, default_value_t)]
    on_demand: OnDemandFlag,

    /// How long a feed on demand is kept after its last watch ended. A longer time saves etcd a snapshot when watches
    /// come back, but keeps the feed's keys in memory for longer. Default: 5m
    #[arg(long, env = "ETCD_RELAY_ON_DEMAND_IDLE", value_name = "TIME")]
    on_demand_idle: Option<Time>,

    /// Largest number of feeds on demand. A watch that would open another one is refused. The last eighth is reserved
    /// for client addresses that have few of them. Default: 1024
    #[arg(long, env = "ETCD_RELAY_ON_DEMAND_MAX", value_name = "NUMBER")]
    on_demand_max: Option<NonZeroUsize>,

    /// Memory for all feeds on demand together; a key that several of them hold counts once. At the limit, unused feeds
    /// end first, then watches are refused. The last eighth is reserved for client addresses that hold little. Default:
    /// 1GiB
    #[arg(long, env = "ETCD_RELAY_ON_DEMAND_BYTES", value_name = "BYTES")]
    on_demand_bytes: Option<ByteCount>,

    /// Pause between two audits of all feeds. An audit compares each key in memory with etcd's, at up to 1,000 keys and
    /// 1 MiB per second. A feed that differs is read again, and its watches are cancelled. A shorter pause finds a
    /// fault sooner, but reads all keys from etcd more often. 0s audits only feeds whose watch resumed without proof
    /// that etcd still has the same history. It has no effect with --etcd-v2
    #[arg(long, env = "ETCD_RELAY_AUDIT_INTERVAL", value_name = "TIME", default_value_t = Time(Audit::INTERVAL))]
    audit_interval: Time,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum OnDemandFlag {
    /// Open a feed for its range
    #[default]
    Allow,
    /// Refuse the watch
    Deny,
}

impl Serve {
    pub(super) fn start(self) -> Result<Start, Exit> {
        let mut warnings = Vec::new();
        let audit_interval = Some(self.feeds.audit_interval.0).filter(|interval| !interval.is_zero());
        let (prefixes, on_demand) = self.feeds.parse(&mut warnings)?;
        let tls = self.ports.tls(&self.v2.listen_v2)?;
        let upstream = self.upstream.parse(&mut warnings)?;
        if matches!(upstream, Upstream::EtcdV2(_)) {
            refuse_unless_directories(&prefixes)?;
        }
        Ok(Start {
            config: RelayConfig {
                upstream,
                feeds: Feeds {
                    prefixes,
                    on_demand,
                    history_bytes: self.memory.history_bytes.0,
                    history_entries: self.memory.history_entries,
                    audit_interval,
                },
                watches: self.memory.watches(),
                views: self.lainlet.views(),
                grpc: self.ports.grpc(&tls),
                http: Some(self.ports.http(&tls)),
                metrics: self.ports.metrics(&tls),
                debug_from: self.ports.debug_from(),
                metrics_from: self.ports.metrics_from(),
                keys_from: self.ports.keys_from(),
                cors: self.ports.cors(),
                advertise: self.fleet.advertise()?,
                v2: self.v2.facade(&self.ports, &tls),
                io: self.ports.io(),
                drain_time: self.ports.drain_time.0,
            },
            logging: self.log.config()?,
            warnings,
            announce: Announce::Nothing,
        })
    }
}

impl UpstreamFlags {
    fn parse(self, warnings: &mut Vec<String>) -> Result<Upstream, Exit> {
        let identity = identity(self.upstream_user, self.upstream_password_file)?;
        let over_v2 = !self.etcd_v2.is_empty();
        let discovery = self.discovery.parse();
        let (mut endpoints, named) = match &discovery {
            Some(discovery) => (discovery::look_up(discovery, warnings)?, "--discovery-srv"),
            None if over_v2 => (self.etcd_v2, "--etcd-v2"),
            None => (self.etcd, "--etcd"),
        };
        let mut seen = std::collections::HashSet::new();
        endpoints.retain(|endpoint| seen.insert(endpoint.clone()));
        let server_name = discovery.as_ref().and_then(discovery::server_name);
        let tls = self.tls.client(endpoints.iter().any(Endpoint::is_secure), named, server_name, warnings)?;
        let etcd = Etcd {
            endpoints,
            tls,
            identity,
            connect_timeout: self.connect_timeout.0,
            request_timeout: self.request_timeout.0,
            keepalive: Some(forward::ForwardConfig::KEEPALIVE),
            max_forwarded_per_client: self.max_forwarded_per_client,
            forward_wait: self.forward_wait.0,
            auto_sync: Some(self.endpoints_auto_sync_interval.0).filter(|interval| !interval.is_zero()),
        };
        if !over_v2 && self.etcd_v2_hold.is_some() {
            return Err(Exit::Usage("--etcd-v2-hold has no effect without --etcd-v2; remove it".to_owned()));
        }
        let hold = self.etcd_v2_hold.map_or(V2Config::HOLD, |PositiveTime(hold)| hold);
        Ok(if over_v2 { Upstream::EtcdV2(EtcdV2 { etcd, hold }) } else { Upstream::Etcd(etcd) })
    }
}

impl FeedFlags {
    fn parse(self, warnings: &mut Vec<String>) -> Result<(Vec<Bytes>, OnDemand), Exit> {
        let prefixes: Vec<String> = self.prefix.into_iter().flat_map(|Prefixes(prefixes)| prefixes).collect();
        warnings.extend(about_empty(std::env::var_os("ETCD_RELAY_PREFIX").as_deref(), &prefixes));
        let prefixes = without_covered(prefixes, warnings);
        let on_demand = match self.on_demand {
            OnDemandFlag::Allow => OnDemand::Allow {
                idle: self.on_demand_idle.map_or(OnDemand::IDLE, |Time(idle)| idle),
                max: self.on_demand_max.unwrap_or(OnDemand::MAX),
                bytes: self.on_demand_bytes.map_or(OnDemand::BYTES, |ByteCount(bytes)| bytes),
            },
            OnDemandFlag::Deny
                if self.on_demand_idle.is_some() || self.on_demand_max.is_some() || self.on_demand_bytes.is_some() =>
            {
                return Err(Exit::Usage(
                    "--on-demand-idle, --on-demand-max and --on-demand-bytes have no effect with --on-demand deny; remove \
                     them, or use --on-demand allow"
                        .to_owned(),
                ));
            }
            OnDemandFlag::Deny if prefixes.is_empty() => {
                return Err(Exit::Usage(
                    "--on-demand deny without any --prefix would refuse every watch; add a --prefix".to_owned(),
                ));
            }
            OnDemandFlag::Deny => OnDemand::Deny,
        };
        Ok((prefixes, on_demand))
    }
}

/// A warning if all keys are kept in memory because a variable is set but empty, which is an easy mistake.
fn about_empty(variable: Option<&OsStr>, prefixes: &[String]) -> Option<String> {
    let is_empty = variable.is_some_and(OsStr::is_empty) && prefixes.iter().any(String::is_empty);
    is_empty.then(|| {
        "ETCD_RELAY_PREFIX is set and empty. An empty prefix stands for all keys, so the relay keeps every key of the \
         cluster in memory; unset the variable if you did not mean this"
            .to_owned()
    })
}

/// Refuses prefixes that are not directories, since etcd's v2 store has only directories.
fn refuse_unless_directories(prefixes: &[Bytes]) -> Result<(), Exit> {
    match prefixes.iter().find(|prefix| !V2Upstream::is_place(&KeyRange::prefix((*prefix).clone()))) {
        None => Ok(()),
        Some(prefix) => Err(Exit::Usage(format!(
            "--prefix {:?} is not a directory of etcd's v2 store, and --etcd-v2 can follow only directories; write it with \
             a slash at its end, such as /lain/",
            String::from_utf8_lossy(prefix)
        ))),
    }
}

/// Drops each prefix that begins with another one, whose feed already has its keys.
fn without_covered(mut prefixes: Vec<String>, warnings: &mut Vec<String>) -> Vec<Bytes> {
    prefixes.sort_unstable();
    let mut kept: Vec<String> = Vec::new();
    for prefix in prefixes {
        // In sorted order, a prefix comes directly before the prefixes that it covers.
        match kept.last() {
            Some(larger) if prefix.starts_with(larger.as_str()) => warnings
                .push(format!("--prefix {prefix:?} is ignored: the feed of --prefix {larger:?} already serves it")),
            _ => kept.push(prefix),
        }
    }
    kept.into_iter().map(Bytes::from).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refused, started};
    use std::fs;

    use super::*;

    const ETCD: &str = "http://127.0.0.1:2379";

    #[test]
    fn bad_values_are_refused_by_the_name_of_their_flag() {
        for (flags, named) in [
            (&[][..], "--etcd"),
            (&["--etcd", ETCD, "--cacert", "ca.pem"], "--cacert"),
            (&["--etcd", "https://etcd", "--cacert", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
            (&["--etcd", "https://etcd", "--cert", "cert.pem"], "--key"),
            (&["--etcd", ETCD, "--listen-grpc", "https://127.0.0.1:1"], "--cert-file"),
            (&["--etcd", ETCD, "--listen-grpc", "unix://etcd.sock"], "`unix`"),
            (&["--etcd", ETCD, "--listen-grpc", "http://127.0.0.1:1/v3"], "--listen-grpc"),
            (&["--etcd", ETCD, "--auto-tls"], "https://"),
            (&["--etcd", ETCD, "--cert-file", "cert.pem"], "--key-file"),
            (&["--etcd", ETCD, "--client-cert-auth"], "--trusted-ca-file"),
            (&["--etcd", ETCD, "--views-allow-san", "name"], "--trusted-ca-file"),
            (
                &["--etcd", ETCD, "--listen-http", "https://127.0.0.1:1", "--auto-tls", "--tls-min-version", "SSL3"],
                "TLS1.2",
            ),
            (
                &["--etcd", ETCD, "--listen-http", "https://127.0.0.1:1", "--auto-tls", "--cipher-suites", "TLS_NULL"],
                "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
            ),
            (&["--etcd", ETCD, "--etcd-v2", ETCD], "--etcd-v2"),
            (&["--etcd-v2", ETCD, "--prefix", "/lain"], "with a slash at its end"),
            (&["--etcd-v2", ETCD, "--prefix", "/a//b/"], "--prefix"),
            (&["--etcd-v2", ETCD, "--etcd-v2-hold", "0s"], "--etcd-v2-hold"),
            (&["--etcd", ETCD, "--etcd-v2-hold", "1s"], "--etcd-v2"),
            (&["--etcd", "ftp://etcd"], "the scheme `ftp` isn't supported"),
            (&["--etcd", ""], "--etcd"),
            (&["--etcd", ETCD, "--max-forwarded-per-client", "0"], "--max-forwarded-per-client"),
            (&["--etcd", ETCD, "--history-bytes", "0"], "--history-bytes"),
            (&["--etcd", ETCD, "--history-entries", "0"], "--history-entries"),
            (&["--etcd", ETCD, "--keys-from", "all"], "--keys-from"),
            (&["--etcd", ETCD, "--cors", "example.org"], "--cors"),
            (&["--etcd", ETCD, "--max-connections", "0"], "--max-connections"),
            (&["--etcd", ETCD, "--max-connections-per-client", "few"], "--max-connections-per-client"),
            (&["--etcd", ETCD, "--listen-grpc", "nowhere"], "--listen-grpc"),
            (&["--etcd", ETCD, "--connect-timeout", "0s"], "--connect-timeout"),
            (&["--etcd", ETCD, "--drain-time", "ten"], "--drain-time"),
            (&["--etcd", ETCD, "--log-level", "=loud"], "--log-level"),
            (&["--etcd", ETCD, "--log-level", "loud"], "error, warn, info, debug, trace or off"),
            (&["--etcd", ETCD, "--log-level", ""], "--log-level"),
            (&["--etcd", ETCD, "--prefix", "/a/,,/b/"], "--prefix"),
            (&["--etcd", ETCD, "--prefix", "/a/,"], "no prefix"),
            (&["--etcd", ETCD, "--trusted-net", "10.0.0.0"], "10.0.0.0/8"),
            (&["--etcd", ETCD, "--upstream-user", "root"], "--upstream-password-file"),
            (&["--etcd", ETCD, "--on-demand", "deny"], "--prefix"),
            (&["--etcd", ETCD, "--advertise-client-url", "10.0.0.1"], "--advertise-client-url"),
            (&["--etcd", ETCD, "--resolver-prefix", "/relays"], "--advertise-client-url"),
            (&["--etcd", ETCD, "--resolver-ttl", "9s"], "--resolver-prefix"),
            (&["--etcd", ETCD, "--shed-connections=false"], "--resolver-prefix"),
            (&["--etcd", ETCD, "--on-demand", "deny", "--prefix", "/", "--on-demand-max", "3"], "--on-demand-max"),
        ] {
            let line: Vec<&str> = std::iter::once("serve").chain(flags.iter().copied()).collect();
            let text = refused(&line);
            assert!(text.contains(named), "{line:?}: {text}");
        }
    }

    #[test]
    fn a_password_file_that_cannot_be_read_or_is_empty_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("a path").to_owned();
        let line = ["serve", "--etcd", ETCD, "--upstream-user", "root", "--upstream-password-file", &path];
        assert!(refused(&line).contains("must not be empty"));
        fs::write(&path, "secret\n").expect("written");
        let Upstream::Etcd(etcd) = started(&line).config.upstream else { panic!("no etcd") };
        assert_eq!(etcd.identity.expect("an identity").password, "secret");
        file.close().expect("removed");
        assert!(refused(&line).contains("cannot read"));
    }

    #[test]
    fn a_prefix_within_another_is_left_out_with_a_warning() {
        let start = started(&[
            "serve", "--etcd", ETCD, "--prefix", "/b", "--prefix", "/a/b", "--prefix", "/a", "--prefix", "/b",
        ]);
        assert_eq!(start.config.feeds.prefixes, ["/a", "/b"]);
        assert_eq!(start.warnings.len(), 2, "{:?}", start.warnings);
        let whole = started(&["serve", "--etcd", ETCD, "--prefix", "", "--prefix", "/a"]);
        assert_eq!(whole.config.feeds.prefixes, [""]);
        assert_eq!(
            whole.warnings.len(),
            1,
            "an empty --prefix flag is deliberate and gives no warning: {:?}",
            whole.warnings
        );
    }

    #[test]
    fn an_empty_variable_that_keeps_all_keys_is_warned_of() {
        let (whole, some) = (vec![String::new()], vec!["/a/".to_owned()]);
        let empty = Some(OsStr::new(""));
        assert!(about_empty(empty, &whole).is_some_and(|text| text.contains("ETCD_RELAY_PREFIX is set and empty")));
        for (variable, prefixes) in [(None, &whole), (Some(OsStr::new("/a/")), &whole), (empty, &some)] {
            assert_eq!(about_empty(variable, prefixes), None);
        }
    }

    #[test]
    fn prefixes_are_separated_by_commas() {
        let start = started(&["serve", "--endpoints", ETCD, "--prefix", r"/b/,/a\,/", "--prefix", "/c/"]);
        assert_eq!(start.config.feeds.prefixes, ["/a,/", "/b/", "/c/"]);
        assert!(start.warnings.is_empty(), "{:?}", start.warnings);
    }

    #[test]
    fn a_v2_cluster_is_named_in_place_of_a_v3_one() {
        let of = |line: &[&str]| match started(line).config.upstream {
            Upstream::EtcdV2(v2) => (v2.etcd.endpoints.len(), v2.hold),
            other => panic!("{other:?}"),
        };
        let line = ["serve", "--etcd-v2", "http://a:1,http://b:2", "--prefix", "/lain/", "--prefix", "/x/"];
        assert_eq!(of(&line), (2, V2Config::HOLD));
        assert_eq!(of(&["serve", "--etcd-v2", ETCD, "--prefix", "", "--etcd-v2-hold", "2s"]).1.as_secs(), 2);
    }

    #[test]
    fn every_flag_changes_the_configuration() {
        let plain = format!("{:?}", started(&["serve", "--etcd", ETCD]));
        for flags in [
            &["--etcd", "http://other:2379"][..],
            &["--connect-timeout", "9s"],
            &["--request-timeout", "9s"],
            &["--max-forwarded-per-client", "9"],
            &["--prefix", "/x"],
            &["--on-demand", "deny", "--prefix", "/"],
            &["--on-demand-idle", "9s"],
            &["--on-demand-max", "9"],
            &["--on-demand-bytes", "9MiB"],
            &["--history-bytes", "9MiB"],
            &["--history-entries", "9"],
            &["--max-watches-per-stream", "9"],
            &["--progress-notify-interval", "9s"],
            &["--listen-grpc", "127.0.0.1:9"],
            &["--listen-http", "127.0.0.1:9"],
            &["--listen-metrics", "127.0.0.1:9"],
            &["--debug-from", "any"],
            &["--metrics-from", "trusted"],
            &["--keys-from", "any"],
            &["--cors", "*"],
            &["--cors", "https://a.example,http://localhost:3000"],
            &["--listen-grpc", "127.0.0.1:23790,localhost:9"],
            &["--listen-grpc", "https://127.0.0.1:23790", "--auto-tls"],
            &["--listen-grpc", "https://127.0.0.1:9", "--auto-tls", "--tls-min-version", "TLS1.3"],
            &["--max-connections", "9"],
            &["--max-connections-per-client", "9"],
            &["--max-streams-per-connection", "9"],
            &["--stream-buffer-bytes", "9KiB"],
            &["--keepalive-interval", "9s"],
            &["--keepalive-timeout", "9s"],
            &["--drain-time", "9s"],
            &["--max-connection-age", "9s"],
            &["--log-format", "json"],
            &["--log-level", "debug"],
            &["--lainlet", "off"],
            &["--advertise-client-url", "http://10.0.0.1:9"],
            &["--advertise-client-url", "http://10.0.0.1:9", "--resolver-prefix", "/relays"],
            &["--advertise-client-url", "http://10.0.0.1:9", "--resolver-prefix", "/relays", "--resolver-ttl", "9s"],
            &[
                "--advertise-client-url",
                "http://10.0.0.1:9",
                "--resolver-prefix",
                "/relays",
                "--shed-connections=false",
            ],
            &["--node-ip", "10.0.0.1"],
            &["--node-name", "node9"],
            &["--no-auth"],
            &["--trusted-net", "10.0.0.0/8"],
            &["--trust-nodes=false"],
        ] {
            let line: Vec<&str> = ["serve", "--etcd", ETCD].iter().chain(flags).copied().collect();
            assert_ne!(format!("{:?}", started(&line)), plain, "{flags:?}");
        }
    }
}
