//! Flags that several commands share, a group for each part of the relay.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{
    Exit,
    listen::ListenUrl,
    tls::PortTls,
    values::{ByteCount, PositiveTime, Time},
};
use crate::{
    front::{
        http::{
            audience::Audience,
            keys::{Cors, Origin},
        },
        listen::{self, Keepalive},
    },
    relay::{self, Feeds, Watches},
    telemetry::{
        logging::{self, Format},
        names::Port,
    },
    tls,
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Ports")]
pub(super) struct Ports {
    /// Where to serve etcd's v3 API: http://host:port, https://host:port, or host:port, which is http://; repeatable, or separated by
    /// commas. Without a host it listens on all of the machine's addresses. Port 0 takes a free one, which the log names
    #[arg(
        long,
        env = "ETCD_RELAY_LISTEN_GRPC",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "127.0.0.1:23790"
    )]
    listen_grpc: Vec<ListenUrl>,

    /// Where to serve keys (/v1/keys, /v1/watch), Lainlet's views, /metrics, /live, /ready and /debug/state over HTTP. Written as --listen-grpc
    #[arg(
        long,
        env = "ETCD_RELAY_LISTEN_HTTP",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "127.0.0.1:9001"
    )]
    listen_http: Vec<ListenUrl>,

    #[command(flatten)]
    tls: PortTls,

    /// Further address for /metrics, /health, /live and /ready over HTTP, and nothing else; written as --listen-grpc. These paths
    /// stay on the other ports too; --metrics-from says who may scrape there. It answers until the relay has ended, also while it
    /// drains. Default: none
    #[arg(long, env = "ETCD_RELAY_LISTEN_METRICS", value_name = "URL", value_delimiter = ',')]
    listen_metrics: Vec<ListenUrl>,

    /// Who may read /debug/state, which shows the key ranges that clients watch and their addresses: only callers from 127.0.0.1, ::1,
    /// --node-ip and each --trusted-net, and not through an HTTP proxy; or everyone; or nobody, for a relay whose callers all come through
    /// a proxy on its own machine that adds no header
    #[arg(long, env = "ETCD_RELAY_DEBUG_FROM", value_name = "WHO", value_enum, default_value_t = Who::Trusted)]
    debug_from: Who,

    /// Who may read /metrics on --listen-http and --listen-grpc: the same choice as for --debug-from. Metrics name no key, no client and no
    /// address. --listen-metrics is open to whoever can reach it
    #[arg(long, env = "ETCD_RELAY_METRICS_FROM", value_name = "WHO", value_enum, default_value_t = Who::Any)]
    metrics_from: Who,

    /// Who may read keys over HTTP (/v1/keys and /v1/watch on --listen-http) while etcd's authentication is off: the same choice as for
    /// --debug-from. While it is on, etcd decides for each user; nobody closes these paths then too
    #[arg(long, env = "ETCD_RELAY_KEYS_FROM", value_name = "WHO", value_enum, default_value_t = Who::Trusted)]
    keys_from: Who,

    /// Origins whose pages may read /v1/keys and /v1/watch in a browser, such as `https://example.org`, or * for all; repeated or separated by
    /// commas. Default: none
    #[arg(long, env = "ETCD_RELAY_CORS", value_name = "ORIGIN", value_delimiter = ',')]
    cors: Vec<Origin>,

    /// Largest number of connections on each port; one more is closed at once, so that its client tries elsewhere. Each
    /// costs an open file and a few KiB; the limit of open files may lower this number
    #[arg(long, env = "ETCD_RELAY_MAX_CONNECTIONS", value_name = "NUMBER", default_value_t = listen::PortConfig::MAX_CONNECTIONS)]
    max_connections: NonZeroUsize,

    /// Largest number of connections of one client on each port; one more is closed at once. A client is an IPv4 address or an IPv6 /64
    /// network, so clients behind one address share the limit. 0 sets no limit, and one client can then take all connections
    #[arg(long, env = "ETCD_RELAY_MAX_CONNECTIONS_PER_CLIENT", value_name = "NUMBER", default_value_t = 0)]
    max_connections_per_client: usize,

    /// Largest number of calls and watch streams that one connection may have open; its client waits before it opens more
    #[arg(
        long,
        env = "ETCD_RELAY_MAX_STREAMS_PER_CONNECTION",
        value_name = "NUMBER",
        default_value_t = listen::PortConfig::MAX_STREAMS
    )]
    max_streams_per_connection: NonZeroU32,

    /// Bytes of one stream that may wait in memory for a slow client; beyond that, its watches wait as positions in the history.
    /// A larger buffer takes bursts with fewer wake-ups, and costs more memory for each slow stream
    #[arg(
        long,
        env = "ETCD_RELAY_STREAM_BUFFER_BYTES",
        value_name = "BYTES",
        default_value_t = ByteCount(listen::PortConfig::STREAM_BUFFER)
    )]
    stream_buffer_bytes: ByteCount,

    /// Time between pings to clients; 0s sends none, and a client that vanished then stays until TCP notices. A shorter
    /// time notices it sooner, and costs more pings for each connection
    #[arg(
        long,
        env = "ETCD_RELAY_KEEPALIVE_INTERVAL",
        value_name = "TIME",
        default_value_t = Time(listen::PortConfig::KEEPALIVE.interval)
    )]
    keepalive_interval: Time,

    /// How long a client may take to answer a ping before its connection is closed
    #[arg(
        long,
        env = "ETCD_RELAY_KEEPALIVE_TIMEOUT",
        value_name = "TIME",
        default_value_t = PositiveTime(listen::PortConfig::KEEPALIVE.timeout)
    )]
    keepalive_timeout: PositiveTime,

    /// How old a connection may be, give or take a quarter; then its client is asked to reconnect, and its watches end with their
    /// progress, so that they go on elsewhere without a gap. Balances the relays behind one address after one of them was away. A shorter
    /// age balances sooner, and makes each client reconnect more often. 0s sets no limit
    #[arg(long, env = "ETCD_RELAY_MAX_CONNECTION_AGE", value_name = "TIME", default_value_t = Time(Duration::ZERO))]
    max_connection_age: Time,

    /// Longest wait for clients to finish after SIGTERM or SIGINT; then connections are cut. 0s waits for none. Connections are asked to
    /// leave one after the other: at least 25 a second, and all of them within two thirds of this time. A longer time spares the relays that
    /// they go to, and lets longer calls finish, but makes a restart take longer
    #[arg(long, env = "ETCD_RELAY_DRAIN_TIME", value_name = "TIME", default_value_t = Time(relay::DRAIN_TIME))]
    pub(super) drain_time: Time,
}

impl Ports {
    /// For a demonstration: with `--auto-tls` all addresses speak TLS, without being told each.
    pub(super) fn speak_tls_if_asked(&mut self) {
        if self.tls.is_auto() {
            for url in self.listen_grpc.iter_mut().chain(&mut self.listen_http) {
                url.0.secure = true;
            }
        }
    }

    /// What TLS is served with, where an address, of these or of `more`, wants it.
    pub(super) fn tls(&self, more: &[ListenUrl]) -> Result<Option<tls::Server>, Exit> {
        let own = self.listen_grpc.iter().chain(&self.listen_http).chain(&self.listen_metrics);
        let urls: Vec<_> = own.chain(more).copied().collect();
        self.tls.server(&urls)
    }

    pub(super) fn grpc(&self, tls: &Option<tls::Server>) -> listen::PortConfig {
        self.port(Port::Grpc, &self.listen_grpc, tls)
    }

    pub(super) fn http(&self, tls: &Option<tls::Server>) -> listen::PortConfig {
        self.port(Port::Http, &self.listen_http, tls)
    }

    pub(super) fn metrics(&self, tls: &Option<tls::Server>) -> Vec<listen::PortConfig> {
        self.listen_metrics.iter().map(|url| self.port(Port::Metrics, std::slice::from_ref(url), tls)).collect()
    }

    pub(super) fn debug_from(&self) -> Audience {
        self.debug_from.into()
    }

    pub(super) fn metrics_from(&self) -> Audience {
        self.metrics_from.into()
    }

    pub(super) fn keys_from(&self) -> Audience {
        self.keys_from.into()
    }

    pub(super) fn cors(&self) -> Cors {
        self.cors.iter().cloned().collect()
    }

    /// A port for etcd's v2 API; `None` where it has no address.
    pub(super) fn v2(&self, urls: &[ListenUrl], tls: &Option<tls::Server>) -> Option<listen::PortConfig> {
        (!urls.is_empty()).then(|| self.port(Port::V2, urls, tls))
    }

    fn port(&self, port: Port, urls: &[ListenUrl], tls: &Option<tls::Server>) -> listen::PortConfig {
        listen::PortConfig {
            max_connections: self.max_connections,
            max_connections_per_client: NonZeroUsize::new(self.max_connections_per_client),
            max_streams: self.max_streams_per_connection,
            max_age: (!self.max_connection_age.0.is_zero()).then_some(self.max_connection_age.0),
            stream_buffer: self.stream_buffer_bytes.0,
            keepalive: (!self.keepalive_interval.0.is_zero())
                .then_some(Keepalive { interval: self.keepalive_interval.0, timeout: self.keepalive_timeout.0 }),
            addresses: urls.iter().map(|url| url.0).collect(),
            tls: tls.clone(),
            ..listen::PortConfig::new(port, urls[0].0.addr)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Who {
    /// Callers from this machine and from each --trusted-net
    Trusted,
    /// Everyone
    Any,
    /// No one
    Nobody,
}

impl From<Who> for Audience {
    fn from(who: Who) -> Self {
        match who {
            Who::Trusted => Self::Trusted,
            Who::Any => Self::Any,
            Who::Nobody => Self::Nobody,
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Memory")]
pub(super) struct Memory {
    /// Bound of each feed's history. A watch that starts within it, or falls behind within it, costs etcd nothing
    #[arg(
        long,
        env = "ETCD_RELAY_HISTORY_BYTES",
        value_name = "BYTES",
        default_value_t = ByteCount(Feeds::HISTORY_BYTES)
    )]
    pub(super) history_bytes: ByteCount,

    /// Bound of each feed's history, in revisions; whichever of the two bounds is reached first counts
    #[arg(
        long,
        env = "ETCD_RELAY_HISTORY_ENTRIES",
        value_name = "NUMBER",
        default_value_t = Feeds::HISTORY_ENTRIES
    )]
    pub(super) history_entries: NonZeroUsize,

    /// Largest number of watches on one stream; a create beyond it is refused. Each costs a few hundred bytes
    #[arg(
        long,
        env = "ETCD_RELAY_MAX_WATCHES_PER_STREAM",
        value_name = "NUMBER",
        default_value_t = Watches::MAX_PER_STREAM
    )]
    max_watches_per_stream: NonZeroUsize,

    /// Largest number of watches of one client over all its streams; a create beyond it is refused. A client is an address (of IPv6 a
    /// /64 network) and, if the stream has a token, also a user: both are counted. 0 sets no limit
    #[arg(long, env = "ETCD_RELAY_MAX_WATCHES_PER_CLIENT", value_name = "NUMBER", default_value_t = 0)]
    max_watches_per_client: usize,

    /// Longest time between progress notifications to watches that asked for them; where etcd notifies its clients more often, the
    /// relay does so too. A shorter time lets clients resume from a later revision; each time costs a message for each such watch, and
    /// one to etcd for each feed
    #[arg(
        long,
        env = "ETCD_RELAY_PROGRESS_NOTIFY_INTERVAL",
        value_name = "TIME",
        default_value_t = PositiveTime(Watches::PROGRESS_NOTIFY_INTERVAL)
    )]
    progress_notify_interval: PositiveTime,
}

impl Memory {
    pub(super) fn watches(&self) -> Watches {
        Watches {
            max_per_stream: self.max_watches_per_stream,
            max_per_client: NonZeroUsize::new(self.max_watches_per_client),
            progress_notify_interval: self.progress_notify_interval.0,
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Log")]
pub(super) struct Log {
    /// How log lines look, on standard error
    #[arg(long, env = "ETCD_RELAY_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    log_format: Format,

    /// What is logged: error, warn, info, debug, trace or off, or by module, such as info,etcd_relay::hub=debug. debug and trace are for the
    /// relay's own modules; libraries stay at info unless they are named, as in debug,h2=debug. At debug it tells who connects and watches what
    #[arg(long, env = "ETCD_RELAY_LOG_LEVEL", value_name = "LEVEL", default_value_t = logging::LoggingConfig::default().filter)]
    log_level: String,
}

impl Log {
    pub(super) fn config(self) -> Result<logging::LoggingConfig, Exit> {
        logging::parse_filter(&self.log_level).map_err(|error| Exit::Usage(format!("--log-level: {error}")))?;
        Ok(logging::LoggingConfig { format: self.log_format, filter: self.log_level })
    }
}
