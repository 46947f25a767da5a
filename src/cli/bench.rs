//! `etcd-relay bench`: puts load on a server, checks the answers and measures the cost.
//!
//! The load itself is in [`crate::bench`]. Always holds: an impossible load, for example with more slow connections
//! than connections, is refused before anything connects.

use std::{num::NonZeroU64, time::Duration};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use super::{Exit, Task, tls::UpstreamTls, values::PositiveTime};
use crate::{
    bench::{self, Bench, Encoding, Endpoint, KEYS_MAX, Load, MetricsUrl, TEXT_MIN, VALUE_MIN, ViewWrites, Watched},
    tls::{self, ServerOptions, Source, Suites},
};

/// Puts load on a server of etcd's API or of Lainlet's views, and checks every answer. A wrong answer is reported and
/// gives exit code 1. A slow result is not an error.
#[derive(Debug, Args)]
pub(super) struct BenchCommand {
    #[command(subcommand)]
    load: LoadCommand,
}

#[derive(Debug, Subcommand)]
enum LoadCommand {
    /// Many watches and a writer: each watch must get every write once, in order, in whole revisions
    Watch(Box<WatchFlags>),
    /// Reads of one key or of all keys, linearizable or serializable
    Range(Box<RangeFlags>),
    /// Puts, as fast as the server takes them: each must be there in the end, and none twice
    Put(Box<PutFlags>),
    /// Clients that keep leases alive; some disconnect, and their leases must expire on time
    Leases(Box<LeasesFlags>),
    /// Lainlet's views over HTTP: single answers or streams of server-sent events
    Views(Box<ViewsFlags>),
    /// The lowest possible cost: a program that only writes the same bytes to as many sockets
    Floor(Box<FloorFlags>),
    /// The time that many simultaneous TLS handshakes take on this machine, with a server that does nothing else
    Handshakes(Box<HandshakeFlags>),
}

/// A benchmark that is ready to run.
#[derive(Clone, Debug)]
pub struct BenchTask {
    /// What to run.
    pub bench: Bench,
    /// Whether to print the report as JSON.
    pub json: bool,
}

#[derive(Debug, Args)]
struct Common {
    /// URL of the server to measure: http:// or https://
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:2379")]
    endpoint: Endpoint,

    #[command(flatten)]
    tls: UpstreamTls,

    /// Process on this machine to measure as well (CPU time per delivery or answer, and memory); repeatable
    #[arg(long, value_name = "[NAME=]PID")]
    pid: Vec<Watched>,

    /// End the run after this time without any progress. What has not arrived by then counts as missing
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_secs(10)))]
    patience: PositiveTime,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Writes {
    /// URL of the server to write to. Default: the server to measure
    #[arg(long, value_name = "URL")]
    put_endpoint: Option<Endpoint>,

    #[command(flatten)]
    keys: Keys,
}

#[derive(Debug, Args)]
struct Keys {
    /// Prefix under which the run creates its own prefix
    #[arg(long, value_name = "PREFIX", default_value = "/etcd-relay-bench/")]
    prefix: String,

    /// Leave the keys in the store at the end
    #[arg(long)]
    keep: bool,

    /// Bytes per value; at least 24, since that many identify the put
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(VALUE_MIN as i64..=1_000_000))]
    value_size: u32,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("end").args(["puts", "duration"]).multiple(true))]
struct WatchFlags {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    writes: Writes,

    /// Watch over plain HTTP, as server-sent events (`GET /v1/watch`). --endpoint is then the relay's HTTP port, and
    /// each connection has one watch. Without an encoding it is `text`. Default: watch over gRPC
    #[arg(
        long,
        value_name = "ENCODING",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text",
        requires = "put_endpoint",
        conflicts_with_all = ["streams", "watches", "ranges", "join", "storm"]
    )]
    sse: Option<SseEncoding>,

    /// Number of connections
    #[arg(long, value_name = "NUMBER", default_value = "10")]
    connections: NonZeroU64,

    /// Watch streams per connection
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    streams: NonZeroU64,

    /// Watches per stream
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    watches: NonZeroU64,

    /// Let each watch follow a single key, in turn, instead of the whole prefix
    #[arg(long)]
    distinct: bool,

    /// Number of different ranges that the watches cover, in turn. Each contains all keys
    #[arg(long, value_name = "NUMBER", default_value = "1", conflicts_with = "distinct")]
    ranges: NonZeroU64,

    /// Number of keys to write, in turn
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=KEYS_MAX))]
    keys: u64,

    /// Writes per second. Default: as many as the server accepts
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,

    /// Total number of writes. With --duration, the limit that is reached first ends the writes
    #[arg(long, value_name = "NUMBER")]
    puts: Option<u64>,

    /// How long to write. Default: 10s, unless --puts is given
    #[arg(long, value_name = "TIME")]
    duration: Option<PositiveTime>,

    /// Largest number of unanswered writes at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,

    /// Puts per transaction, and so events per revision
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=128))]
    puts_per_write: u64,

    /// Writes to make before the watches are created. The watches start at the first of them
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    history: u64,

    /// Connections that read nothing until all writes are done, and must then receive everything
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    slow: u64,

    /// Connections that disconnect and reconnect repeatedly, and resume where they stopped
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    reconnect: u64,

    /// How long the connections of --reconnect stay connected each time
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_millis(500)))]
    reconnect_every: PositiveTime,

    /// Connections that join during the writes. Each lists all keys, which exist beforehand, and watches from the
    /// revision of its list. The writes go on until all have joined
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    join: u64,

    /// Connections that all arrive at once during the writes, as after a network failure. Each watches a key that is
    /// never written. They run at the lowest priority on this machine, as if they were on other machines. The writes go
    /// on until all have their watches
    #[arg(long, value_name = "NUMBER", default_value_t = 0, conflicts_with = "join")]
    storm: u64,

    /// How long after the first write the connections of --join or --storm arrive
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_secs(1)))]
    join_after: PositiveTime,

    /// Largest number of keys per page of a list of --join, as Kubernetes' API server uses; 0 reads all in one
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    join_page: u64,

    /// URL of a server's metrics to read before the writes and after everything has arrived, such as
    /// relay=http://127.0.0.1:9001/metrics; repeatable
    #[arg(long, value_name = "[NAME=]URL", requires = "metric")]
    metrics_url: Vec<MetricsUrl>,

    /// Name of a metric whose change to report; repeatable
    #[arg(long, value_name = "METRIC", requires = "metrics_url")]
    metric: Vec<String>,

    /// Number of threads that read
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: u64,
}

/// How keys and values are written in server-sent events.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SseEncoding {
    /// Values are text, and are sent as they are
    Text,
    /// Values are any bytes; keys and values are sent in base64
    Base64,
}

#[derive(Debug, Args)]
struct RangeFlags {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    writes: Writes,

    /// Number of keys
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=KEYS_MAX))]
    keys: u64,

    /// Read all keys each time instead of a single one
    #[arg(long)]
    all: bool,

    /// Make the reads serializable: the member answers from its own data
    #[arg(long)]
    serializable: bool,

    /// Number of connections
    #[arg(long, value_name = "NUMBER", default_value = "16")]
    connections: NonZeroU64,

    /// Largest number of unanswered reads at a time, over all connections
    #[arg(long, value_name = "NUMBER", default_value = "160")]
    concurrency: NonZeroU64,

    /// How long to read
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(DURATION))]
    duration: PositiveTime,

    /// Writes per second during the reads. Default: none
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,
}

#[derive(Debug, Args)]
struct PutFlags {
    #[command(flatten)]
    common: Common,

    /// URL of the server to list the keys from and to delete them at. Default: the server to measure
    #[arg(long, value_name = "URL")]
    check_endpoint: Option<Endpoint>,

    #[command(flatten)]
    written: Keys,

    /// Number of keys to put, in turn
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    keys: u64,

    /// Number of connections
    #[arg(long, value_name = "NUMBER", default_value = "10")]
    connections: NonZeroU64,

    /// Largest number of unanswered puts at a time, over all connections
    #[arg(long, value_name = "NUMBER", default_value = "80")]
    concurrency: NonZeroU64,

    /// How long to put
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(DURATION))]
    duration: PositiveTime,
}

#[derive(Debug, Args)]
struct LeasesFlags {
    #[command(flatten)]
    common: Common,

    /// Number of clients. Each has a lease and a stream that keeps it alive
    #[arg(long, value_name = "NUMBER", default_value = "1000")]
    clients: NonZeroU64,

    /// Number of connections, which the clients share
    #[arg(long, value_name = "NUMBER", default_value = "100")]
    connections: NonZeroU64,

    /// Time to live of each lease, in seconds. Clients renew it every third of that time
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=86_400))]
    ttl: u32,

    /// How long to keep the leases alive
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(DURATION))]
    duration: PositiveTime,

    /// Connections that end after half of the time, together with their clients. The leases of these clients must
    /// expire, and not too early
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    stop: u64,

    /// URL of the server to ask for the leases that are left. Default: the server to measure
    #[arg(long, value_name = "URL")]
    check_endpoint: Option<Endpoint>,
}

#[derive(Debug, Args)]
struct ViewsFlags {
    #[command(flatten)]
    common: Common,

    /// Path and query of the view, such as `/v2/configwatcher?target=x`
    #[arg(long, value_name = "PATH")]
    path: String,

    /// Watch the view instead of requesting it repeatedly
    #[arg(long)]
    watch: bool,

    /// Number of connections
    #[arg(long, value_name = "NUMBER", default_value = "10")]
    connections: NonZeroU64,

    /// How long to run
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(DURATION))]
    duration: PositiveTime,

    /// Key to write. It must not exist yet, and the view must show it. With this flag delays are reported, and the last
    /// value must arrive
    #[arg(long, value_name = "KEY", requires = "put_endpoint")]
    put_key: Option<String>,

    /// URL of the etcd to write that key to
    #[arg(long, value_name = "URL", requires = "put_key")]
    put_endpoint: Option<Endpoint>,

    /// Writes of that key per second
    #[arg(long, value_name = "NUMBER", default_value_t = 10.0, requires = "put_key")]
    rate: f64,
}

#[derive(Debug, Args)]
struct FloorFlags {
    /// Number of sockets
    #[arg(long, value_name = "NUMBER", default_value = "10")]
    connections: NonZeroU64,

    /// Responses on each socket per write, sent together
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    watches: NonZeroU64,

    /// Bytes per value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(VALUE_MIN as i64..=1_000_000))]
    value_size: u32,

    /// Writes per second. Default: as many as possible
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,

    /// How long to run
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(DURATION))]
    duration: PositiveTime,

    /// How long to wait for the next delivery after the last write
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_secs(10)))]
    patience: PositiveTime,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct HandshakeFlags {
    /// Number of simultaneous handshakes
    #[arg(long, value_name = "NUMBER", default_value = "2000")]
    connections: NonZeroU64,

    #[command(flatten)]
    tls: UpstreamTls,

    /// How long all handshakes may take together
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_secs(60)))]
    patience: PositiveTime,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// How long to write by default.
const DURATION: Duration = Duration::from_secs(10);

impl BenchCommand {
    pub(super) fn task(self) -> Result<Task, Exit> {
        let (bench, json) = match self.load {
            LoadCommand::Watch(flags) => (Bench::Watch(flags.watch()?), flags.common.json),
            LoadCommand::Range(flags) => (Bench::Range(flags.range()?), flags.common.json),
            LoadCommand::Put(flags) => (Bench::Put(flags.put()?), flags.common.json),
            LoadCommand::Leases(flags) => (Bench::Leases(flags.leases()?), flags.common.json),
            LoadCommand::Views(flags) => (Bench::Views(flags.views()?), flags.common.json),
            LoadCommand::Floor(flags) => (Bench::Floor(flags.floor()?), flags.json),
            LoadCommand::Handshakes(flags) => (Bench::Handshakes(flags.handshakes()?), flags.json),
        };
        Ok(Task::Bench(Box::new(BenchTask { bench, json })))
    }
}

impl WatchFlags {
    fn watch(&self) -> Result<bench::Watch, Exit> {
        if self.slow.saturating_add(self.reconnect) >= self.connections.get() {
            return Err(Exit::Usage(format!(
                "--slow {} and --reconnect {} leave no connection to measure of --connections {}",
                self.slow, self.reconnect, self.connections
            )));
        }
        if self.puts_per_write > self.keys {
            let (puts, keys) = (self.puts_per_write, self.keys);
            return Err(Exit::Usage(format!(
                "--puts-per-write {puts} needs at least as many --keys, but there are only \
                {keys}"
            )));
        }
        let sse = self.sse.map(|encoding| match encoding {
            SseEncoding::Text => Encoding::Text,
            SseEncoding::Base64 => Encoding::Base64,
        });
        if sse == Some(Encoding::Text) && (self.writes.keys.value_size as usize) < TEXT_MIN {
            return Err(Exit::Usage(format!(
                "--value-size {} is too small for --sse: a value that is text has at least {TEXT_MIN} bytes; \
                --sse=base64 needs {VALUE_MIN}",
                self.writes.keys.value_size
            )));
        }
        let rate = rate(self.rate)?;
        let duration = match (self.puts, self.duration) {
            (None, None) => Some(DURATION),
            (_, duration) => duration.map(|duration| duration.0),
        };
        let (endpoint, put_endpoint) = self.common.endpoints(self.writes.put_endpoint.as_ref())?;
        Ok(bench::Watch {
            endpoint,
            sse,
            put_endpoint,
            connections: self.connections.get(),
            streams: self.streams.get(),
            watches: self.watches.get(),
            distinct: self.distinct,
            ranges: self.ranges.get(),
            keys: self.keys,
            value_size: self.writes.keys.value_size as usize,
            puts_per_write: self.puts_per_write,
            history: self.history,
            load: Load { rate, writes: self.puts, duration, in_flight: usize::from(self.in_flight) },
            slow: self.slow,
            reconnecting: self.reconnect,
            reconnect_every: self.reconnect_every.0,
            join: self.join,
            storm: self.storm,
            join_after: self.join_after.0,
            join_page: self.join_page,
            threads: self.threads,
            patience: self.common.patience.0,
            prefix: self.writes.keys.prefix.clone(),
            keep: self.writes.keys.keep,
            processes: self.common.pid.clone(),
            metrics: self.metrics_url.iter().map(|url| url.clone().of(&self.metric)).collect(),
        })
    }
}

impl Common {
    /// The server to measure and the server to write to, each with its certificates.
    fn endpoints(&self, put: Option<&Endpoint>) -> Result<(Endpoint, Endpoint), Exit> {
        let put = put.unwrap_or(&self.endpoint);
        let is_secure = self.endpoint.is_secure() || put.is_secure();
        // Warnings are dropped: whoever runs a benchmark knows which servers to trust.
        let tls = self.tls.clone().client(is_secure, "--endpoint", None, &mut Vec::new())?;
        Ok((self.endpoint.clone().with(tls.as_ref()), put.clone().with(tls.as_ref())))
    }
}

impl RangeFlags {
    fn range(&self) -> Result<bench::Range, Exit> {
        let (endpoint, put_endpoint) = self.common.endpoints(self.writes.put_endpoint.as_ref())?;
        Ok(bench::Range {
            endpoint,
            put_endpoint,
            keys: self.keys,
            all: self.all,
            serializable: self.serializable,
            connections: self.connections.get(),
            concurrency: self.concurrency.get(),
            duration: self.duration.0,
            rate: rate(self.rate)?,
            value_size: self.writes.keys.value_size as usize,
            patience: self.common.patience.0,
            prefix: self.writes.keys.prefix.clone(),
            keep: self.writes.keys.keep,
            processes: self.common.pid.clone(),
        })
    }
}

impl PutFlags {
    fn put(&self) -> Result<bench::Put, Exit> {
        let (endpoint, check_endpoint) = self.common.endpoints(self.check_endpoint.as_ref())?;
        Ok(bench::Put {
            endpoint,
            check_endpoint,
            keys: self.keys,
            connections: self.connections.get(),
            concurrency: self.concurrency.get(),
            duration: self.duration.0,
            value_size: self.written.value_size as usize,
            patience: self.common.patience.0,
            prefix: self.written.prefix.clone(),
            keep: self.written.keep,
            processes: self.common.pid.clone(),
        })
    }
}

impl LeasesFlags {
    fn leases(&self) -> Result<bench::Leases, Exit> {
        let connections = self.connections.min(self.clients);
        if self.stop > connections.get() {
            return Err(Exit::Usage(format!(
                "--stop {} is more than the number of connections ({connections})",
                self.stop
            )));
        }
        let (endpoint, check_endpoint) = self.common.endpoints(self.check_endpoint.as_ref())?;
        Ok(bench::Leases {
            endpoint,
            check_endpoint,
            clients: self.clients.get(),
            connections: connections.get(),
            ttl: self.ttl,
            duration: self.duration.0,
            stop: self.stop,
            patience: self.common.patience.0,
            processes: self.common.pid.clone(),
        })
    }
}

impl ViewsFlags {
    fn views(&self) -> Result<bench::Views, Exit> {
        if !self.path.starts_with('/') || self.path.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Exit::Usage(format!("--path {:?} is not a path; write it like /v2/nodes", self.path)));
        }
        let rate = rate(Some(self.rate))?.unwrap_or(self.rate);
        let (view_endpoint, put_endpoint) = self.common.endpoints(self.put_endpoint.as_ref())?;
        let writes = match (&self.put_key, &self.put_endpoint.as_ref().map(|_| put_endpoint)) {
            (Some(key), Some(endpoint)) => Some(ViewWrites { endpoint: endpoint.clone(), key: key.clone(), rate }),
            _ => None,
        };
        Ok(bench::Views {
            endpoint: view_endpoint,
            path: self.path.clone(),
            watch: self.watch,
            connections: self.connections.get(),
            duration: self.duration.0,
            writes,
            patience: self.common.patience.0,
            processes: self.common.pid.clone(),
        })
    }
}

impl FloorFlags {
    fn floor(&self) -> Result<bench::Floor, Exit> {
        Ok(bench::Floor {
            connections: self.connections.get(),
            watches: self.watches.get(),
            value_size: self.value_size as usize,
            rate: rate(self.rate)?,
            duration: self.duration.0,
            patience: self.patience.0,
        })
    }
}

impl HandshakeFlags {
    fn handshakes(&self) -> Result<bench::Handshakes, Exit> {
        let (Some(ca), Some(cert), Some(key)) = (&self.tls.cacert, &self.tls.cert, &self.tls.key) else {
            return Err(Exit::Usage(
                "bench handshakes needs --cacert, --cert and --key: the server and the clients present the same \
                 certificate, which must be valid for 127.0.0.1"
                    .to_owned(),
            ));
        };
        let options = ServerOptions {
            source: Source::Files { cert: cert.clone(), key: key.clone() },
            trusted_ca: Some(ca.clone()),
            crl: None,
            allowed_hostnames: Vec::new(),
            suites: Suites::default(),
        };
        let server =
            tls::Server::load(options).map_err(|error| Exit::Usage(format!("--cacert, --cert, --key: {error}")))?;
        let client = self.tls.clone().client(true, "--endpoint", None, &mut Vec::new())?;
        let client = client.expect("a TLS client for https://");
        Ok(bench::Handshakes { connections: self.connections.get(), server, client, patience: self.patience.0 })
    }
}

/// Checks that a rate is a usable number.
fn rate(rate: Option<f64>) -> Result<Option<f64>, Exit> {
    match rate {
        Some(rate) if !(rate.is_finite() && rate >= 0.001) => {
            Err(Exit::Usage(format!("--rate {rate} is not a valid number of writes per second; the smallest is 0.001")))
        }
        rate => Ok(rate),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Task, parse, tests::refused};
    use super::*;

    fn task(line: &[&str]) -> BenchTask {
        let line = ["etcd-relay", "bench"].iter().chain(line).map(std::ffi::OsString::from);
        match parse(line, super::super::Build::default()) {
            Ok(Task::Bench(task)) => *task,
            other => panic!("no load: {other:?}"),
        }
    }

    #[test]
    fn a_load_is_as_asked() {
        let task = task(&[
            "watch",
            "--endpoint",
            "http://a:1",
            "--connections",
            "9",
            "--slow",
            "2",
            "--reconnect",
            "3",
            "--rate",
            "50",
            "--puts",
            "7",
            "--pid",
            "relay=12",
            "--json",
        ]);
        assert!(task.json);
        let Bench::Watch(watch) = task.bench else { panic!("{task:?}") };
        assert_eq!((watch.endpoint.addr(), watch.put_endpoint.addr()), ("a:1", "a:1"));
        assert_eq!((watch.connections, watch.slow, watch.reconnecting), (9, 2, 3));
        assert_eq!((watch.load.rate, watch.load.writes, watch.load.duration), (Some(50.0), Some(7), None));
        assert_eq!(watch.processes, ["relay=12".parse().expect("a process")]);
    }

    #[test]
    fn server_sent_events_have_an_encoding() {
        for (flag, sse) in
            [("--sse", Encoding::Text), ("--sse=text", Encoding::Text), ("--sse=base64", Encoding::Base64)]
        {
            let Bench::Watch(watch) = task(&["watch", flag, "--put-endpoint", "a:1"]).bench else { panic!("a watch") };
            assert_eq!(watch.sse, Some(sse), "{flag}");
        }
        let Bench::Watch(watch) = task(&["watch"]).bench else { panic!("a watch") };
        assert_eq!(watch.sse, None);
    }

    #[test]
    fn without_an_end_there_is_one() {
        let Bench::Watch(watch) = task(&["watch"]).bench else { panic!("a watch") };
        assert_eq!((watch.load.writes, watch.load.duration), (None, Some(DURATION)));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (line, named) in [
            (&["watch", "--connections", "4", "--slow", "2", "--reconnect", "2"][..], "--slow"),
            (&["watch", "--keys", "2", "--puts-per-write", "3"], "--puts-per-write"),
            (&["watch", "--rate", "0"], "--rate"),
            (&["watch", "--value-size", "8"], "--value-size"),
            (&["watch", "--sse"], "--put-endpoint"),
            (&["watch", "--sse=other", "--put-endpoint", "a:1"], "--sse"),
            (&["watch", "--sse", "--put-endpoint", "a:1", "--value-size", "39"], "--value-size"),
            (&["watch", "--sse", "--put-endpoint", "a:1", "--watches", "2"], "--watches"),
            (&["watch", "--sse", "--put-endpoint", "a:1", "--join", "2"], "--join"),
            (&["watch", "--endpoint", "https://a:1", "--cacert", "/nowhere"], "/nowhere"),
            (&["watch", "--cacert", "/nowhere"], "https://"),
            (&["views", "--endpoint", "https://a:1", "--path", "/v2/nodes", "--cacert", "/nowhere"], "/nowhere"),
            (&["handshakes", "--cacert", "/nowhere"], "--cacert, --cert and --key"),
            (&["watch", "--storm", "2", "--join", "2"], "--join"),
            (&["range", "--keys", "0"], "--keys"),
            (&["leases", "--clients", "3", "--stop", "4"], "--stop"),
            (&["leases", "--ttl", "1"], "--ttl"),
            (&["views", "--path", "nodes"], "--path"),
            (&["views", "--path", "/v2/nodes", "--put-key", "/a"], "--put-endpoint"),
            (&["floor", "--rate=-1"], "--rate"),
        ] {
            let line = [&["bench"], line].concat();
            assert!(refused(&line).contains(named), "{line:?}: {}", refused(&line));
        }
    }
}
