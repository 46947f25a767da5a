//! The table of what the relay does with each flag of `etcd grpc-proxy start`.

use std::time::Duration;

use super::go_duration;

/// etcd's defaults that differ from the relay's own.
pub(super) const LISTEN_ADDR: &str = "127.0.0.1:23790";
pub(super) const ENDPOINTS: &str = "127.0.0.1:2379";
pub(super) const GRPC_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);
pub(super) const GRPC_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// One of etcd's flags.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) means: Means,
    /// The help text of a flag that works.
    about: &'static str,
}

/// The type of a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    String,
    Strings,
    Duration,
    Int,
    Uint32,
}

/// What the relay does with a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// It does the same as in etcd's proxy.
    Works,
    /// The relay does something else, and a warning says what.
    Accepted(&'static str),
    /// The relay refuses to start.
    Refused(&'static str),
}

impl Flag {
    /// The text for the help.
    pub(super) fn meaning(&self) -> &'static str {
        match self.means {
            Means::Works => self.about,
            Means::Accepted(text) | Means::Refused(text) => text,
        }
    }
}

impl Kind {
    /// Checks that a value has this type.
    pub(super) fn check(self, value: &str) -> Result<(), String> {
        match self {
            Self::Bool if !is_true(value) && !is_false(value) => Err(format!("`{value}` is neither true nor false")),
            Self::Duration => go_duration(value).map(|_| ()),
            Self::Int => value.parse::<i64>().map(|_| ()).map_err(|_| format!("`{value}` is not a number")),
            Self::Uint32 => {
                value.parse::<u32>().map(|_| ()).map_err(|_| format!("`{value}` is not a number up to 4294967295"))
            }
            Self::Bool | Self::String | Self::Strings => Ok(()),
        }
    }

    /// Whether a value is the harmless default: empty, zero or false.
    pub(super) fn is_nothing(self, value: &str) -> bool {
        match self {
            Self::Bool => is_false(value),
            Self::String | Self::Strings => value.is_empty(),
            Self::Duration => go_duration(value) == Ok(Duration::ZERO),
            Self::Int | Self::Uint32 => value.parse() == Ok(0_i64),
        }
    }
}

/// Like Go's `strconv.ParseBool`.
pub(super) fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn is_false(value: &str) -> bool {
    matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False")
}

const fn works(name: &'static str, kind: Kind, about: &'static str) -> Flag {
    Flag { name, kind, means: Means::Works, about }
}

const fn accepted(name: &'static str, kind: Kind, instead: &'static str) -> Flag {
    Flag { name, kind, means: Means::Accepted(instead), about: "" }
}

const fn refused(name: &'static str, kind: Kind, reason: &'static str) -> Flag {
    Flag { name, kind, means: Means::Refused(reason), about: "" }
}

/// All flags of `etcd grpc-proxy start` except `--help`, in the order of etcd's help.
pub(super) const FLAGS: &[Flag] = &[
    works("advertise-client-url", Kind::String, "URL at which clients reach the relay; member lists name it"),
    works("auto-tls", Kind::Bool, "serve TLS with a self-signed certificate, generated at each start and not stored"),
    works(
        "cacert",
        Kind::String,
        "certificate authorities for etcd's members (default: those that this machine \
        trusts)",
    ),
    works("cert", Kind::String, "the relay's own certificate, for members that ask for one"),
    works("cert-file", Kind::String, "the relay's server certificate; clients must then use TLS"),
    works("client-crl-file", Kind::String, "list of revoked client certificates"),
    accepted("data-dir", Kind::String, "the relay keeps nothing on disk; the directory is not used"),
    works("debug", Kind::Bool, "log at level debug"),
    works("dial-keepalive-time", Kind::Duration, "time between pings to etcd; 0 sends none (default 10s)"),
    works("dial-keepalive-timeout", Kind::Duration, "how long etcd may take to answer a ping (default 5s)"),
    works("discovery-srv", Kind::String, "domain whose DNS SRV records name etcd's members, in place of --endpoints"),
    works("discovery-srv-name", Kind::String, "name of the cluster, if the domain has several"),
    refused("enable-pprof", Kind::Bool, "the relay has no Go profiles; use perf, and /metrics"),
    works("endpoints", Kind::Strings, "client URLs of etcd's members, separated by commas (default 127.0.0.1:2379)"),
    works(
        "endpoints-auto-sync-interval",
        Kind::Duration,
        "how often to ask the cluster for its members and switch to them; 0 never asks (default 0)",
    ),
    accepted("experimental-enable-grpc-logging", Kind::Bool, "the relay does not log individual calls"),
    refused("experimental-leasing-prefix", Kind::String, "the relay keeps no leasing metadata in etcd"),
    accepted(
        "experimental-serializable-ordering",
        Kind::Bool,
        "while the cluster has a quorum, the relay never answers with an older revision than before",
    ),
    works("grpc-keepalive-interval", Kind::Duration, "time between pings to clients; 0 sends none (default 2h0m0s)"),
    accepted(
        "grpc-keepalive-min-time",
        Kind::Duration,
        "the relay answers all pings and never closes a connection because a client sends many",
    ),
    works(
        "grpc-keepalive-timeout",
        Kind::Duration,
        "how long a client may take to answer a ping; 0 sends none (default 20s)",
    ),
    works("insecure-discovery", Kind::Bool, "also use members without TLS from the SRV records"),
    works("insecure-skip-tls-verify", Kind::Bool, "accept any certificate from a member; for tests"),
    works("key", Kind::String, "private key of --cert"),
    works("key-file", Kind::String, "private key of --cert-file"),
    works("listen-addr", Kind::String, "address to listen on (default 127.0.0.1:23790)"),
    works(
        "listen-cipher-suites",
        Kind::Strings,
        "cipher suites of TLS 1.2 for clients, separated by commas (default: all that are supported)",
    ),
    works(
        "max-concurrent-streams",
        Kind::Uint32,
        "largest number of streams that a client may have open (default 100000; 0 is 4294967295)",
    ),
    accepted(
        "max-recv-bytes",
        Kind::Int,
        "answers of any size pass through the relay in pieces; only the client's own limit applies",
    ),
    accepted(
        "max-send-bytes",
        Kind::Int,
        "requests pass through the relay in pieces, except those that it checks (up to 32 MiB); etcd's \
         --max-request-bytes applies",
    ),
    works(
        "metrics-addr",
        Kind::String,
        "additional address for /metrics, /health, /live and /ready, such as http://127.0.0.1:4001",
    ),
    refused(
        "namespace",
        Kind::String,
        "the relay serves keys under their real names; configure the prefix in the \
        clients",
    ),
    works("permit-without-stream", Kind::Bool, "also ping etcd while no call is running (default true)"),
    works("resolver-prefix", Kind::String, "prefix of the etcd keys under which relays register"),
    works("resolver-ttl", Kind::Int, "how long the registration of a crashed relay remains, in seconds"),
    works("self-signed-cert-validity", Kind::Int, "validity of the certificate of --auto-tls in years (default 1)"),
    works("tls-max-version", Kind::String, "newest TLS version for clients: TLS1.2 or TLS1.3 (default TLS1.3)"),
    works("tls-min-version", Kind::String, "oldest TLS version for clients: TLS1.2 or TLS1.3 (default TLS1.2)"),
    works("trusted-ca-file", Kind::String, "certificate authorities for clients; each client then needs a certificate"),
];
