//! `etcd-relay bench`: load on a server, checked and measured.
//!
//! Not here: the load, see [`crate::bench`]. Always holds: a load that cannot be, such as more slow connections than there are, is
//! refused before anything is connected.

use std::{num::NonZeroU64, time::Duration};

use clap::{ArgGroup, Args, Subcommand};

use super::{Exit, Task, values::PositiveTime};
use crate::bench::{self, Bench, Endpoint, KEYS_MAX, Load, VALUE_MIN, Watched};

/// Load on any server of etcd's API, or on Lainlet's views, with every answer checked. Ends with 1 where an answer was wrong, and
/// says what; whatever the figures are, they are no error.
#[derive(Debug, Args)]
pub(super) struct BenchCommand {
    #[command(subcommand)]
    load: LoadCommand,
}

#[derive(Debug, Subcommand)]
enum LoadCommand {
    /// Many watches, and writes that each of them must be sent once, in order, whole revisions at a time
    Watch(Box<WatchFlags>),
}

/// A run, ready.
#[derive(Clone, Debug)]
pub struct BenchTask {
    /// What to run.
    pub bench: Bench,
    /// Whether the report is JSON.
    pub json: bool,
}

#[derive(Debug, Args)]
struct Common {
    /// Server to measure, without TLS
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:2379")]
    endpoint: Endpoint,

    /// Process on this machine to measure with it: its CPU time for each delivery or answer, and its memory; repeatable
    #[arg(long, value_name = "[NAME=]PID")]
    pid: Vec<Watched>,

    /// Longest time in which nothing may happen; then the run ends, and what has not come by then is missing
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_secs(10)))]
    patience: PositiveTime,

    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Writes {
    /// Where to write, if that is not the server to measure
    #[arg(long, value_name = "URL")]
    put_endpoint: Option<Endpoint>,

    /// Prefix below which the run has one of its own
    #[arg(long, value_name = "PREFIX", default_value = "/etcd-relay-bench/")]
    prefix: String,

    /// Leave the keys there at the end
    #[arg(long)]
    keep: bool,

    /// Bytes of a value; the least is 24, for what tells a put from others
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

    /// Connections
    #[arg(long, value_name = "NUMBER", default_value = "10")]
    connections: NonZeroU64,

    /// Watch streams of each connection
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    streams: NonZeroU64,

    /// Watches of each stream
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    watches: NonZeroU64,

    /// Each watch is over one key, going through the keys, instead of all over one prefix
    #[arg(long)]
    distinct: bool,

    /// Keys to write, in turns
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=KEYS_MAX))]
    keys: u64,

    /// Writes a second; without it as many as the server takes
    #[arg(long, value_name = "NUMBER")]
    rate: Option<f64>,

    /// Writes in all; with --duration whatever comes first
    #[arg(long, value_name = "NUMBER")]
    puts: Option<u64>,

    /// How long to write; 10s where --puts says nothing either
    #[arg(long, value_name = "TIME")]
    duration: Option<PositiveTime>,

    /// Most writes without an answer
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,

    /// Puts of one transaction, and so events of one revision
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=128))]
    puts_per_write: u64,

    /// Writes to make before the watches, which begin before them
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    history: u64,

    /// Of the connections, those that read nothing until the writes are over, and must get everything then
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    slow: u64,

    /// Of the connections, those that drop and come back again and again, from where they were
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    reconnect: u64,

    /// How long these stay each time
    #[arg(long, value_name = "TIME", default_value_t = PositiveTime(Duration::from_millis(500)))]
    reconnect_every: PositiveTime,

    /// Threads that read
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: u64,
}

/// How long to write where nothing else is said.
const DURATION: Duration = Duration::from_secs(10);

impl BenchCommand {
    pub(super) fn task(self) -> Result<Task, Exit> {
        let (bench, json) = match self.load {
            LoadCommand::Watch(flags) => (Bench::Watch(flags.watch()?), flags.common.json),
        };
        Ok(Task::Bench(Box::new(BenchTask { bench, json })))
    }
}

impl WatchFlags {
    fn watch(&self) -> Result<bench::Watch, Exit> {
        if self.slow.saturating_add(self.reconnect) >= self.connections.get() {
            return Err(Exit::Usage(format!(
                "--slow {} and --reconnect {} leave none of --connections {} to measure",
                self.slow, self.reconnect, self.connections
            )));
        }
        if self.puts_per_write > self.keys {
            let (puts, keys) = (self.puts_per_write, self.keys);
            return Err(Exit::Usage(format!("--puts-per-write {puts} needs as many --keys; there are {keys}")));
        }
        let rate = rate(self.rate)?;
        let duration = match (self.puts, self.duration) {
            (None, None) => Some(DURATION),
            (_, duration) => duration.map(|duration| duration.0),
        };
        Ok(bench::Watch {
            endpoint: self.common.endpoint.clone(),
            put_endpoint: self.writes.put_endpoint.clone().unwrap_or_else(|| self.common.endpoint.clone()),
            connections: self.connections.get(),
            streams: self.streams.get(),
            watches: self.watches.get(),
            distinct: self.distinct,
            keys: self.keys,
            value_size: self.writes.value_size as usize,
            puts_per_write: self.puts_per_write,
            history: self.history,
            load: Load { rate, writes: self.puts, duration, in_flight: usize::from(self.in_flight) },
            slow: self.slow,
            reconnecting: self.reconnect,
            reconnect_every: self.reconnect_every.0,
            threads: self.threads,
            patience: self.common.patience.0,
            prefix: self.writes.prefix.clone(),
            keep: self.writes.keep,
            processes: self.common.pid.clone(),
        })
    }
}

/// A rate that can be kept.
fn rate(rate: Option<f64>) -> Result<Option<f64>, Exit> {
    match rate {
        Some(rate) if !(rate.is_finite() && rate >= 0.001) => {
            Err(Exit::Usage(format!("--rate {rate} is no number of writes a second")))
        }
        rate => Ok(rate),
    }
}
