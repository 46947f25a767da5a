//! [`Model`]: what a relay's CPU time and memory consist of, fitted on half of the measured points and checked on the
//! others.
//!
//! Pure calculation on the data of the curves; `explain` writes it down. Always holds: the points of a curve go to the
//! two halves in turns, and a point that a cost was fitted on never counts as a check.

use super::{
    data::{Data, Load, Measured, Metric, Point},
    fit,
};

/// What is predicted.
#[derive(Debug)]
pub struct Model {
    /// CPU time of a write with all its deliveries, in microseconds.
    pub cpu: Fit,
    /// Memory without clients, in KiB.
    pub idle: Fit,
    /// Memory of all connections and watches, in KiB.
    pub grown: Fit,
    /// CPU time of opening all connections and watches, in microseconds.
    pub opening: Fit,
}

/// A sum of costs.
#[derive(Debug)]
pub struct Fit {
    pub costs: Vec<Cost>,
    pub checks: Vec<Check>,
}

/// A term, and what one of it costs.
#[derive(Clone, Debug)]
pub struct Cost {
    pub what: &'static str,
    pub value: f64,
}

/// A measured value and its prediction.
#[derive(Clone, Debug)]
pub struct Check {
    pub curve: String,
    pub label: &'static str,
    pub x: f64,
    pub measured: f64,
    pub predicted: f64,
    /// Whether the costs were fitted on it.
    pub is_fitted: bool,
}

/// What a relay does, as far as its cost depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub load: Load,
    pub tls: bool,
    /// Seconds between two writes.
    pub interval: f64,
}

/// The connections that a core's caches are taken to hold, and the watches.
const CACHED: f64 = 1_000.0;
const CACHED_WATCHES: f64 = 10_000.0;
/// A thread that had nothing to do for about this long sleeps, and what it needs next is no longer in its core's
/// caches.
const PAUSE_SECONDS: f64 = 0.002;

pub const CPU_TERMS: [&str; 11] = [
    "a second, without any write (µs)",
    "a write (µs)",
    "a write after a pause (µs)",
    "each connection that a write reaches (µs)",
    "the same, for each factor of e above 1,000 connections (µs)",
    "each further watch of a connection that a write reaches (µs)",
    "the same, for each factor of e above 10,000 watches (µs)",
    "each KiB delivered (µs)",
    "TLS, each connection that a write reaches (µs)",
    "TLS, the same, for each factor of e above 1,000 connections (µs)",
    "TLS, each KiB delivered (µs)",
];

pub const IDLE_TERMS: [&str; 2] = ["the program (KiB)", "a key of 256 B (KiB)"];

pub const GROWN_TERMS: [&str; 6] = [
    "once, when clients come (KiB)",
    "a connection with a stream and a watch (KiB)",
    "each further watch (KiB)",
    "a watch with a range of its own (KiB)",
    "TLS, once (KiB)",
    "TLS, a connection (KiB)",
];

pub const OPENING_TERMS: [&str; 6] = [
    "once, when clients come (µs)",
    "a connection with a stream and a watch (µs)",
    "each further watch (µs)",
    "a watch with a range of its own (µs)",
    "TLS, once (µs)",
    "TLS, a connection with certificates on both sides (µs)",
];

impl Model {
    /// `None` if a term has too few points.
    pub fn of(data: &Data) -> Option<Self> {
        let cpu = Fit::of(data, &CPU_TERMS, cpu_terms, |label, point| {
            point.figure(label, Metric::CpuPerWrite).map(|spread| spread.median)
        })?;
        let idle = Fit::of(data, &IDLE_TERMS, idle_terms, |label, point| {
            point.figure(label, Metric::IdleMemory).map(|spread| spread.median * 1024.0)
        })?;
        let grown = Fit::of(data, &GROWN_TERMS, grown_terms, |label, point| {
            // The growth by few connections is lost among the pages of the program. After many keys were read, clients
            // get the memory that reading them has left.
            let shows = point.load.connections >= 100 && point.load.keys <= 1_000;
            let each = point.figure(label, Metric::MemoryPerConnection).filter(|_| shows)?;
            Some(each.median * point.load.connections as f64)
        })?;
        let opening = Fit::of(data, &OPENING_TERMS, opening_terms, |label, point| {
            let each = point.figure(label, Metric::OpeningCpu)?;
            Some(each.median * point.load.connections as f64)
        })?;
        Some(Self { cpu, idle, grown, opening })
    }

    /// The prediction of a figure of a relay; `None` for other servers and figures.
    pub fn predict(&self, label: &str, metric: Metric, point: &Point) -> Option<f64> {
        let work = Work::of(label, point)?;
        let watches = (point.load.connections * point.load.watches) as f64;
        match metric {
            Metric::CpuPerWrite => Some(self.cpu.predict(&cpu_terms(&work))),
            Metric::CpuPerDelivery => Some(self.cpu.predict(&cpu_terms(&work)) / work.load.deliveries()),
            Metric::IdleMemory => Some(self.idle.predict(&idle_terms(&work)) / 1024.0),
            Metric::MemoryPerConnection => {
                Some(self.grown.predict(&grown_terms(&work)) / point.load.connections as f64)
            }
            Metric::MemoryPerWatch => Some(self.grown.predict(&grown_terms(&work)) * 1024.0 / watches),
            Metric::OpeningCpu => Some(self.opening.predict(&opening_terms(&work)) / point.load.connections as f64),
            Metric::FirstCpuPerWrite | Metric::EtcdCpuPerWrite | Metric::Delay50 | Metric::Delay99 => None,
        }
    }
}

impl Work {
    /// The work of a relay with clients at a point; `None` for another server.
    pub fn of(label: &str, point: &Point) -> Option<Self> {
        let tls = match label {
            "relay" | "relay behind a relay" => false,
            "relay, TLS" => true,
            _ => return None,
        };
        Some(Self { load: point.load, tls, interval: 1.0 / point.load.rate })
    }
}

impl Fit {
    fn of(
        data: &Data,
        names: &[&'static str],
        terms: impl Fn(&Work) -> Vec<f64>,
        value: impl Fn(&str, &Point) -> Option<f64>,
    ) -> Option<Self> {
        let (mut rows, mut checks) = (Vec::new(), Vec::new());
        for (name, measured) in &data.curves {
            for (label, x, is_fitted, work, measured) in observations(measured, &value) {
                rows.push(terms(&work));
                checks.push(Check { curve: name.clone(), label, x, measured, predicted: 0.0, is_fitted });
            }
        }
        let fitted = |index: &usize| checks[*index].is_fitted;
        let chosen: Vec<usize> = (0..rows.len()).filter(fitted).collect();
        if chosen.len() < names.len() {
            return None;
        }
        let values: Vec<f64> = chosen.iter().map(|index| checks[*index].measured).collect();
        let known: Vec<Vec<f64>> = chosen.iter().map(|index| rows[*index].clone()).collect();
        let costs = fit::costs(&known, &values);
        let costs = names.iter().zip(costs).map(|(what, value)| Cost { what, value }).collect();
        let mut fit = Self { costs, checks: Vec::new() };
        for (check, row) in checks.iter_mut().zip(&rows) {
            check.predicted = fit.predict(row);
        }
        fit.checks = checks;
        Some(fit)
    }

    pub fn predict(&self, terms: &[f64]) -> f64 {
        self.costs.iter().zip(terms).map(|(cost, term)| cost.value * term).sum()
    }

    /// The relative errors of one half: the median, the ninth of ten, and the largest, and the share within 20 %.
    pub fn errors(&self, is_fitted: bool) -> Option<Errors> {
        let mut errors: Vec<f64> =
            self.checks.iter().filter(|check| check.is_fitted == is_fitted).map(|check| check.error().abs()).collect();
        errors.sort_unstable_by(f64::total_cmp);
        let last = errors.len().checked_sub(1)?;
        let at = |share: f64| errors[(last as f64 * share).round() as usize];
        let within = errors.iter().filter(|error| **error <= 0.2).count();
        Some(Errors { count: errors.len(), median: at(0.5), ninth: at(0.9), most: errors[last], within })
    }
}

/// Relative errors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Errors {
    pub count: usize,
    pub median: f64,
    pub ninth: f64,
    pub most: f64,
    /// How many are at most 0.2.
    pub within: usize,
}

impl Check {
    /// How much more is predicted than was measured, as a share of it.
    pub fn error(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }
}

/// What a relay did at each point of a curve, alternately to fit on and to check.
fn observations(
    measured: &Measured,
    value: impl Fn(&str, &Point) -> Option<f64>,
) -> Vec<(&'static str, f64, bool, Work, f64)> {
    let mut all = Vec::new();
    for (number, point) in measured.points.iter().enumerate() {
        for label in ["relay", "relay, TLS", "relay behind a relay"] {
            if let (Some(work), Some(value)) = (Work::of(label, point), value(label, point)) {
                all.push((label, point.x, number % 2 == 0, work, value));
            }
        }
    }
    all
}

pub fn cpu_terms(work: &Work) -> Vec<f64> {
    let load = &work.load;
    let (reached, deliveries) = (load.reached(), load.deliveries());
    let (kib, further) = (deliveries * load.value_size as f64 / 1024.0, deliveries - reached);
    let (connections, watches) = (load.connections as f64, (load.connections * load.watches) as f64);
    let factors = (connections / CACHED).max(1.0).ln();
    let tls = f64::from(work.tls);
    vec![
        work.interval,
        1.0,
        work.interval / (work.interval + PAUSE_SECONDS),
        reached,
        reached * factors,
        further,
        further * (watches / CACHED_WATCHES).max(1.0).ln(),
        kib,
        tls * reached,
        tls * reached * factors,
        tls * kib,
    ]
}

pub fn idle_terms(work: &Work) -> Vec<f64> {
    vec![1.0, work.load.keys as f64]
}

pub fn grown_terms(work: &Work) -> Vec<f64> {
    let load = &work.load;
    let (connections, watches) = (load.connections as f64, (load.connections * load.watches) as f64);
    let own = if load.ranges == 0 { watches } else { 0.0 };
    let tls = f64::from(work.tls);
    vec![1.0, connections, watches - connections, own, tls, tls * connections]
}

pub fn opening_terms(work: &Work) -> Vec<f64> {
    grown_terms(work)
}
