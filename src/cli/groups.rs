//! Flags that several commands share, in one group per part of the relay.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{
    Exit,
    listen::ListenUrl,
    service::logs_to_journal,
    tls::PortTls,
    values::{ByteCount, PositiveTime, Time},
};
use crate::{
    batch::Io,
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
    /// Address at which to serve etcd's v3 API: http://host:port, https://host:port, or host:port, which means http://.
    /// Repeatable, or separated by commas. Without a host, it listens on all of the machine's addresses. Port 0 picks a
    /// free port, which the log names
    #[arg(
        long,
        env = "ETCD_RELAY_LISTEN_GRPC",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "127.0.0.1:23790"
    )]
    listen_grpc: Vec<ListenUrl>,

    /// Address at which to serve keys (/v1/keys, /v1/watch), Lainlet's views, /metrics, /live, /ready and /debug/state
    /// over HTTP. Same form as --listen-grpc
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

    /// Additional address that serves only /metrics, /health, /live and /ready over HTTP. Same form as --listen-grpc.
    /// It answers until the relay has ended, also while the relay drains. The other ports keep these paths as well;
    /// --metrics-from limits who may scrape there. Default: none
    #[arg(long, env = "ETCD_RELAY_LISTEN_METRICS", value_name = "URL", value_delimiter = ',')]
    listen_metrics: Vec<ListenUrl>,

    /// Who may read /debug/state, which shows clients' addresses and the key ranges that they watch. `trusted` allows
    /// callers from 127.0.0.1, ::1, --node-ip and each --trusted-net, unless they come through an HTTP proxy. Use
    /// `nobody` if all callers come through a proxy on the relay's own machine that adds no header
    #[arg(long, env = "ETCD_RELAY_DEBUG_FROM", value_name = "WHO", value_enum, default_value_t = Who::Trusted)]
    debug_from: Who,

    /// Who may read /metrics on --listen-http and --listen-grpc; same choices as --debug-from. Metrics contain no keys,
    /// clients or addresses. --listen-metrics is open to anyone who can reach it
    #[arg(long, env = "ETCD_RELAY_METRICS_FROM", value_name = "WHO", value_enum, default_value_t = Who::Any)]
    metrics_from: Who,

    /// Who may read keys over HTTP (/v1/keys and /v1/watch on --listen-http) while etcd's authentication is off; same
    /// choices as --debug-from. While it is on, etcd's permissions apply to each user instead. `nobody` closes these
    /// paths in both cases
    #[arg(long, env = "ETCD_RELAY_KEYS_FROM", value_name = "WHO", value_enum, default_value_t = Who::Trusted)]
    keys_from: Who,

    /// Origins whose pages may read /v1/keys and /v1/watch in a browser, such as `https://example.org`, or * for all.
    /// Repeatable, or separated by commas. Default: none
    #[arg(long, env = "ETCD_RELAY_CORS", value_name = "ORIGIN", value_delimiter = ',')]
    cors: Vec<Origin>,

    /// Largest number of connections on each port. A further connection is closed at once, so that its client can try
    /// another relay. Each costs an open file and a few KiB; the limit on open files may lower this number
    #[arg(long, env = "ETCD_RELAY_MAX_CONNECTIONS", value_name = "NUMBER", default_value_t = listen::PortConfig::MAX_CONNECTIONS)]
    max_connections: NonZeroUsize,

    /// Largest number of connections of one client on each port. A further connection is closed at once. A client is an
    /// IPv4 address or an IPv6 /64 network, so clients behind one address share the limit. 0 sets no limit; one client
    /// can then take all connections
    #[arg(long, env = "ETCD_RELAY_MAX_CONNECTIONS_PER_CLIENT", value_name = "NUMBER", default_value_t = 0)]
    max_connections_per_client: usize,

    /// Largest number of calls and watch streams that one connection may have open. At the limit the client waits
    /// before it opens another
    #[arg(
        long,
        env = "ETCD_RELAY_MAX_STREAMS_PER_CONNECTION",
        value_name = "NUMBER",
        default_value_t = listen::PortConfig::MAX_STREAMS
    )]
    max_streams_per_connection: NonZeroU32,

    /// Bytes of one stream that may wait in memory for a slow client. Beyond that, its watches are kept as positions in
    /// the history. A larger buffer absorbs bursts with fewer wake-ups, but costs more memory for each slow stream
    #[arg(
        long,
        env = "ETCD_RELAY_STREAM_BUFFER_BYTES",
        value_name = "BYTES",
        default_value_t = ByteCount(listen::PortConfig::STREAM_BUFFER)
    )]
    stream_buffer_bytes: ByteCount,

    /// How bytes are sent to clients. `uring` joins what a thread sends to many clients into one system call, by
    /// Linux's io_uring, and does not start where that is not allowed, as in many containers. `epoll` makes a system
    /// call for each send. `auto` uses io_uring if it can; the log and etcd_relay_send_rings tell which it is
    #[arg(long, env = "ETCD_RELAY_IO", value_name = "METHOD", value_enum, default_value_t = Method::Auto)]
    io: Method,

    /// Time between pings to clients. 0s sends none; a client that vanished then stays until TCP notices. A shorter
    /// time notices it sooner, but costs more pings for each connection
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

    /// Age at which a client is asked to reconnect, varied by up to a quarter. Its watches end with their progress, so
    /// they resume elsewhere without a gap. This balances relays behind one address after one of them was away. A
    /// shorter age balances sooner, but makes each client reconnect more often. 0s sets no limit
    #[arg(long, env = "ETCD_RELAY_MAX_CONNECTION_AGE", value_name = "TIME", default_value_t = Time(Duration::ZERO))]
    max_connection_age: Time,

    /// Longest wait for clients to finish after SIGTERM or SIGINT, before their connections are cut. 0s waits for none.
    /// Clients are asked to leave one after the other: at least 25 per second, and all within two thirds of this time.
    /// If the relay knows no other (--resolver-prefix), it serves those that come back, and asks them again at the end.
    /// A longer time spares the relays that take over, and lets longer calls finish, but a restart takes longer
    #[arg(long, env = "ETCD_RELAY_DRAIN_TIME", value_name = "TIME", default_value_t = Time(relay::DRAIN_TIME))]
    pub(super) drain_time: Time,
}

impl Ports {
    /// For the demo: with `--auto-tls`, all addresses use TLS without an explicit https://.
    pub(super) fn speak_tls_if_asked(&mut self) {
        if self.tls.is_auto() {
            for url in self.listen_grpc.iter_mut().chain(&mut self.listen_http) {
                url.0.secure = true;
            }
        }
    }

    /// The TLS settings of the ports; `None` if no address uses https://, neither here nor in `more`.
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

    pub(super) fn io(&self) -> Io {
        self.io.into()
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

    /// A port for etcd's v2 API; `None` if there is no address for it.
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
enum Method {
    /// io_uring if the kernel allows it, else epoll
    Auto,
    /// A system call for each send
    Epoll,
    /// io_uring
    Uring,
}

impl From<Method> for Io {
    fn from(method: Method) -> Self {
        match method {
            Method::Auto => Self::Auto,
            Method::Epoll => Self::Epoll,
            Method::Uring => Self::Uring,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Who {
    /// Callers from this machine and from each --trusted-net
    Trusted,
    /// Anyone
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
    /// Size of each feed's history, in bytes. A watch that starts or falls behind within the history costs etcd
    /// nothing. The oldest revisions are dropped first
    #[arg(
        long,
        env = "ETCD_RELAY_HISTORY_BYTES",
        value_name = "BYTES",
        default_value_t = ByteCount(Feeds::HISTORY_BYTES)
    )]
    pub(super) history_bytes: ByteCount,

    /// Size of each feed's history, in revisions. The limit that is reached first applies, this or --history-bytes
    #[arg(
        long,
        env = "ETCD_RELAY_HISTORY_ENTRIES",
        value_name = "NUMBER",
        default_value_t = Feeds::HISTORY_ENTRIES
    )]
    pub(super) history_entries: NonZeroUsize,

    /// Largest number of watches on one stream. A further watch is refused. Each costs a few hundred bytes
    #[arg(
        long,
        env = "ETCD_RELAY_MAX_WATCHES_PER_STREAM",
        value_name = "NUMBER",
        default_value_t = Watches::MAX_PER_STREAM
    )]
    max_watches_per_stream: NonZeroUsize,

    /// Largest number of watches of one client over all its streams. A further watch is refused. A client is an address
    /// (for IPv6 a /64 network) and, if the stream has a token, also a user; both are counted. 0 sets no limit
    #[arg(long, env = "ETCD_RELAY_MAX_WATCHES_PER_CLIENT", value_name = "NUMBER", default_value_t = 0)]
    max_watches_per_client: usize,

    /// Longest time between progress notifications to watches that asked for them. If etcd notifies its clients more
    /// often, so does the relay. A shorter time lets clients resume from a later revision. Each notification costs one
    /// message per watch, and one to etcd per feed
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
    /// Format of the log lines, which go to standard error
    #[arg(long, env = "ETCD_RELAY_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    log_format: Format,

    /// What to log: error, warn, info, debug, trace or off, or a level per module, such as info,etcd_relay::hub=debug.
    /// debug and trace apply to the relay's own modules; libraries stay at info unless they are named, as in
    /// debug,h2=debug. At debug the log shows who connects and what they watch
    #[arg(long, env = "ETCD_RELAY_LOG_LEVEL", value_name = "LEVEL", default_value_t = logging::LoggingConfig::default().filter)]
    log_level: String,
}

impl Log {
    pub(super) fn config(self) -> Result<logging::LoggingConfig, Exit> {
        logging::parse_filter(&self.log_level).map_err(|error| Exit::Usage(format!("--log-level: {error}")))?;
        Ok(logging::LoggingConfig { format: self.log_format, filter: self.log_level, journal: logs_to_journal() })
    }
}
