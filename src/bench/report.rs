//! [`Report`]: what a run measured and which errors it found, as a table for people or as JSON for programs.
//!
//! Measurements are never judged. Always holds: a measurement has the same name in every report, and its unit is part
//! of the name.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::usage::{Usage, Watched};

/// Most errors that are shown; all are counted.
const SHOWN: usize = 10;
/// Longest delay that is distinguished, in microseconds.
const LONGEST: u64 = 3_600_000_000;

/// What a run measured.
#[derive(Debug, Serialize)]
pub struct Report {
    case: &'static str,
    settings: Map<String, Value>,
    figures: Map<String, Value>,
    processes: Map<String, Value>,
    /// Values of servers' own metrics, by server and metric.
    #[serde(skip_serializing_if = "Map::is_empty")]
    metrics: Map<String, Value>,
    wrong: Findings,
}

/// The errors of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Findings {
    count: u64,
    first: Vec<String>,
}

impl Findings {
    pub(super) fn add(&mut self, what: impl fmt::Display) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(what.to_string());
        }
    }

    pub(super) fn join(&mut self, other: Self) {
        self.count += other.count;
        self.first.extend(other.first);
        self.first.truncate(SHOWN);
    }

    /// The first error.
    pub(super) fn first(&self) -> Option<String> {
        self.first.first().cloned()
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Report {
    pub(super) fn new(case: &'static str) -> Self {
        let (settings, figures, processes, metrics) = Default::default();
        Self { case, settings, figures, processes, metrics, wrong: Findings::default() }
    }

    pub(super) fn setting(&mut self, name: &str, value: impl Into<Value>) {
        self.settings.insert(name.to_owned(), value.into());
    }

    /// Adds a number, rounded to three significant digits.
    pub(super) fn figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), rounded(value));
    }

    pub(super) fn count(&mut self, name: &str, value: u64) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// Adds the quantiles of times in microseconds, in milliseconds.
    pub(super) fn quantiles(&mut self, name: &str, delays: &Histogram<u64>) {
        if delays.is_empty() {
            return;
        }
        for (label, quantile) in [("50", 0.5), ("99", 0.99), ("99_9", 0.999), ("max", 1.0)] {
            self.figure(&format!("{name}_{label}_ms"), delays.value_at_quantile(quantile) as f64 / 1e3);
        }
    }

    /// Adds the resources that a process used while `events` items were handled.
    pub(super) fn process(&mut self, process: &Watched, taken: Taken, events: u64, elapsed: Duration) {
        let each = |time: Duration| per(time.as_secs_f64() * 1e6, events);
        let cpu = taken.end.since(&taken.begin);
        let mut figures = json!({
            "pid": process.pid,
            "cpu_us_each": each(cpu.all()),
            "user_us_each": each(cpu.user),
            "system_us_each": each(cpu.system),
            "cpu_percent": rounded(100.0 * cpu.all().as_secs_f64() / elapsed.as_secs_f64().max(1e-9)),
            "rss_mib": rounded(mib(taken.end.resident)),
        });
        if let Some((idle, watches, connections)) = taken.idle {
            let grown = taken.begin.resident.saturating_sub(idle.resident) as f64;
            figures["rss_idle_mib"] = rounded(mib(idle.resident));
            figures["bytes_per_watch"] = per(grown, watches);
            figures["kib_per_connection"] = per(grown / 1024.0, connections);
            figures["create_cpu_us_per_watch"] = per(taken.begin.since(&idle).all().as_secs_f64() * 1e6, watches);
        }
        self.processes.insert(process.name.clone(), figures);
    }

    /// Adds the resources that a process used per write.
    pub(super) fn per_write(&mut self, process: &Watched, taken: Taken, writes: u64) {
        if let Some(figures) = self.processes.get_mut(&process.name) {
            figures["cpu_us_per_write"] = per(taken.end.since(&taken.begin).all().as_secs_f64() * 1e6, writes);
        }
    }

    /// Adds the values of servers' own metrics.
    pub(super) fn metrics(&mut self, metrics: Map<String, Value>) {
        self.metrics.extend(metrics);
    }

    pub(super) fn wrong(&mut self, findings: Findings) {
        self.wrong.join(findings);
    }

    /// Whether there were no errors.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.wrong.is_empty()
    }
}

/// The usage of a process at three times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// Before anything was opened, with the number of watches and connections that were opened after it.
    pub(super) idle: Option<(Usage, u64, u64)>,
    pub(super) begin: Usage,
    pub(super) end: Usage,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.settings.iter().map(|(name, value)| format!("{name} {}", shown(value)));
        writeln!(f, "{}: {}", self.case, settings.collect::<Vec<_>>().join(", "))?;
        table(f, &self.figures)?;
        for (name, figures) in &self.processes {
            writeln!(f, "\n  process {name}")?;
            table(f, figures.as_object().unwrap_or(&Map::new()))?;
        }
        for (name, metrics) in &self.metrics {
            writeln!(f, "\n  metrics of {name}")?;
            for (metric, value) in metrics.as_object().unwrap_or(&Map::new()) {
                let parts = value.as_object().map(|parts| {
                    parts.iter().map(|(part, value)| format!("{part} {}", shown(value))).collect::<Vec<_>>().join(", ")
                });
                writeln!(f, "    {metric}  {}", parts.unwrap_or_else(|| shown(value)))?;
            }
        }
        if self.passed() {
            return writeln!(f, "\n  Every answer was correct.");
        }
        writeln!(f, "\n  WRONG: {} findings", self.wrong.count)?;
        for finding in &self.wrong.first {
            writeln!(f, "    {finding}")?;
        }
        let more = self.wrong.count.saturating_sub(self.wrong.first.len() as u64);
        if more > 0 { writeln!(f, "    and {more} more") } else { Ok(()) }
    }
}

/// A table with names on the left and numbers on the right.
fn table(f: &mut fmt::Formatter<'_>, figures: &Map<String, Value>) -> fmt::Result {
    let width = figures.keys().map(String::len).max().unwrap_or(0);
    figures.iter().try_for_each(|(name, value)| writeln!(f, "    {name:<width$}  {:>12}", shown(value)))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.as_f64().is_some_and(|value| value.fract() == 0.0) => {
            format!("{:.0}", number.as_f64().unwrap_or_default())
        }
        other => other.to_string(),
    }
}

fn per(value: f64, of: u64) -> Value {
    if of == 0 { Value::Null } else { rounded(value / of as f64) }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Rounds to three significant digits.
pub(super) fn rounded(value: f64) -> Value {
    if value.is_infinite() {
        // JSON has no infinity.
        return json!("∞");
    }
    let scale = match value.abs() {
        0.0..1.0 => 1000.0,
        1.0..100.0 => 100.0,
        100.0..1000.0 => 10.0,
        _ => 1.0,
    };
    json!((value * scale).round() / scale)
}

/// A histogram of microseconds.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are valid")
}

/// Records nanoseconds as microseconds.
pub(super) fn note(histogram: &mut Histogram<u64>, nanos: u64) {
    histogram.saturating_record((nanos / 1000).max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_counted_and_the_first_are_told() {
        let mut report = Report::new("watch");
        assert!(report.passed());
        let mut findings = Findings::default();
        (0..SHOWN + 2).for_each(|number| findings.add(format!("finding {number}")));
        report.wrong(findings);
        assert!(!report.passed());
        let text = report.to_string();
        assert!(
            text.contains("WRONG: 12 findings") && text.contains("finding 9") && text.contains("and 2 more"),
            "{text}"
        );
        assert!(!text.contains("finding 10"), "{text}");
    }

    #[test]
    fn figures_as_json_and_as_a_table() {
        let mut report = Report::new("watch");
        report.setting("connections", 2);
        let mut delays = histogram();
        (1..=1000).for_each(|millis| note(&mut delays, millis * 1_000_000));
        report.quantiles("delay", &delays);
        let usage = |millis, resident| Usage { user: Duration::from_millis(millis), resident, ..Usage::default() };
        let taken =
            Taken { idle: Some((usage(0, 1 << 20), 1024, 2)), begin: usage(10, 3 << 20), end: usage(40, 3 << 20) };
        let process = Watched { name: "relay".to_owned(), pid: 1 };
        report.process(&process, taken, 10_000, Duration::from_secs(1));
        report.per_write(&process, taken, 10);
        let metrics = json!({ "told": { "a_seconds": { "max_at_most_ms": 5.0 } } });
        report.metrics(metrics.as_object().cloned().unwrap_or_default());
        let json = serde_json::to_value(&report).expect("JSON");
        let p99 = json["figures"]["delay_99_ms"].as_f64().expect("a number");
        assert!((989.0..992.0).contains(&p99), "{p99}");
        assert_eq!(json["processes"]["relay"]["cpu_us_each"], 3.0);
        assert_eq!(json["processes"]["relay"]["cpu_us_per_write"], 3000.0);
        assert_eq!(json["metrics"]["told"]["a_seconds"]["max_at_most_ms"], 5.0);
        assert_eq!(json["processes"]["relay"]["bytes_per_watch"], 2048.0);
        assert_eq!(json["processes"]["relay"]["kib_per_connection"], 1024.0);
        let text = report.to_string();
        for shown in ["delay_99_ms", "metrics of told", "a_seconds  max_at_most_ms 5", "Every answer was correct"] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
    }
}
