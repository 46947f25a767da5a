//! What the curves consist of: [`Load`], which a point puts on a server, and the samples that were taken, as they are
//! kept in `docs/benchmarks/curves.json`.
//!
//! Measuring is in `measure`; plots and tables are made from this data alone, so they can be made again without a run.
//! Always holds: every sample of every round is kept, and a figure of a point is the median of its samples.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All curves, by name.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Data {
    pub curves: BTreeMap<String, Measured>,
}

/// One curve as it was measured.
#[derive(Debug, Deserialize, Serialize)]
pub struct Measured {
    /// The machine, the versions and the time.
    pub taken: String,
    /// Why the curve has no further point.
    pub ended_by: String,
    pub points: Vec<Point>,
}

/// One load, and what each server did under it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Point {
    pub x: f64,
    pub load: Load,
    /// By the label of the server.
    pub series: BTreeMap<String, Series>,
}

/// A load of `etcd-relay bench watch`, and the servers that it runs on.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Load {
    pub connections: u64,
    /// Watches on the one stream of each connection.
    pub watches: u64,
    /// Different ranges that contain every key. Zero if each watch follows a key of its own.
    pub ranges: u64,
    /// Keys that exist beforehand.
    pub keys: u64,
    /// Writes per second.
    pub rate: f64,
    /// Bytes per value.
    pub value_size: u64,
    /// Relays behind a first relay. One of them has the clients; zero if the first one has them.
    pub leaves: u64,
}

/// The samples of a server at a point.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Series {
    pub samples: Vec<Sample>,
    /// Why rounds have no sample.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

/// The figures of one run.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Sample {
    pub writes: f64,
    pub deliveries: f64,
    /// How long the writes and the deliveries took.
    pub seconds: f64,
    /// CPU time of the server with the clients.
    pub cpu_us: f64,
    /// CPU time of the relay of the first tier, if there are two.
    pub first_cpu_us: Option<f64>,
    /// CPU time of etcd.
    pub etcd_cpu_us: Option<f64>,
    pub delay_50_ms: Option<f64>,
    pub delay_99_ms: Option<f64>,
    /// Memory of the server before there were connections, and how much it grew by them and their watches.
    pub idle_mib: Option<f64>,
    pub grown_kib: Option<f64>,
    /// CPU time of the server while all connections and watches were made.
    pub opening_cpu_us: Option<f64>,
    /// CPU time of the load generator, in percent of a core.
    pub own_percent: Option<f64>,
}

/// A figure of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    CpuPerDelivery,
    CpuPerWrite,
    /// Of the relay of the first tier.
    FirstCpuPerWrite,
    EtcdCpuPerWrite,
    Delay50,
    Delay99,
    IdleMemory,
    MemoryPerConnection,
    MemoryPerWatch,
    /// CPU of a connection with its watches until they are there.
    OpeningCpu,
}

/// The median of the samples, with the least and the most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Load {
    /// Deliveries of one write.
    pub fn deliveries(&self) -> f64 {
        if self.ranges == 0 { 1.0 } else { (self.connections * self.watches) as f64 }
    }

    /// Connections that get something by one write.
    pub fn reached(&self) -> f64 {
        if self.ranges == 0 { 1.0 } else { self.connections as f64 }
    }
}

impl Metric {
    /// What it is, with its unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::CpuPerDelivery => "CPU of a delivery, µs",
            Self::CpuPerWrite => "CPU of a write with all its deliveries, µs",
            Self::FirstCpuPerWrite => "CPU of the first tier per write, µs",
            Self::EtcdCpuPerWrite => "CPU of etcd per write, µs",
            Self::Delay50 => "median delay, ms",
            Self::Delay99 => "99 % delay, ms",
            Self::IdleMemory => "memory without clients, MiB",
            Self::MemoryPerConnection => "memory of a connection, KiB",
            Self::MemoryPerWatch => "memory of a watch, bytes",
            Self::OpeningCpu => "CPU of opening a connection, µs",
        }
    }

    /// A short name for files.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuPerDelivery => "cpu",
            Self::CpuPerWrite => "cpu-write",
            Self::FirstCpuPerWrite => "cpu-first",
            Self::EtcdCpuPerWrite => "cpu-etcd",
            Self::Delay50 => "delay-50",
            Self::Delay99 => "delay-99",
            Self::IdleMemory => "memory-idle",
            Self::MemoryPerConnection => "memory-connection",
            Self::MemoryPerWatch => "memory-watch",
            Self::OpeningCpu => "cpu-open",
        }
    }

    /// This figure of a sample, if the sample has it.
    pub fn of(self, sample: &Sample, load: &Load) -> Option<f64> {
        let per = |value: f64, count: f64| (count > 0.0).then(|| value / count);
        let figure = match self {
            Self::CpuPerDelivery => per(sample.cpu_us, sample.deliveries),
            Self::CpuPerWrite => per(sample.cpu_us, sample.writes),
            Self::FirstCpuPerWrite => per(sample.first_cpu_us?, sample.writes),
            Self::EtcdCpuPerWrite => per(sample.etcd_cpu_us?, sample.writes),
            Self::Delay50 => sample.delay_50_ms,
            Self::Delay99 => sample.delay_99_ms,
            Self::IdleMemory => sample.idle_mib,
            Self::MemoryPerConnection => per(sample.grown_kib?, load.connections as f64),
            Self::OpeningCpu => per(sample.opening_cpu_us?, load.connections as f64),
            Self::MemoryPerWatch => per(sample.grown_kib? * 1024.0, (load.connections * load.watches) as f64),
        };
        // A figure of zero has no place on a logarithmic axis, and means that it was too small to be measured.
        figure.filter(|value| value.is_finite() && *value > 0.0)
    }
}

impl Point {
    /// A figure of a server at this point.
    pub fn figure(&self, label: &str, metric: Metric) -> Option<Spread> {
        let samples = &self.series.get(label)?.samples;
        Spread::of(samples.iter().filter_map(|sample| metric.of(sample, &self.load)).collect())
    }
}

impl Spread {
    /// `None` of no values. Of an even number of values, the lower one of the two in the middle.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        Some(Self { median: values[(values.len() - 1) / 2], least, most })
    }
}

/// Three significant digits.
pub fn shown(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    match value.abs() {
        0.0..0.001 => format!("{value:.4}"),
        0.001..1.0 => format!("{value:.3}"),
        1.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        100.0..10_000.0 => format!("{value:.0}"),
        _ => grouped(value),
    }
}

/// A whole number in groups of three digits.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", &*digits), |digits| ("-", digits));
    let mut text = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
