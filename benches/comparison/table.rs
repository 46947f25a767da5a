//! Writes the measurements as Markdown: the goals of the relay, and the data behind them.
//!
//! Not here: any measurement.

use std::{fmt::Write as _, fs, process::Command, thread, time::SystemTime};

use anyhow::Result;

use super::{
    cases::{Bound, Case, Figure, Goal},
    run::{Lab, Measured, Outcome},
};

/// The columns of the measurements.
const COLUMNS: [(&str, Figure); 27] = [
    ("deliveries/s", Figure::Run("deliveries_per_second")),
    ("reads/s", Figure::Run("reads_per_second")),
    ("delay 50 % ms", Figure::Run("delay_50_ms")),
    ("99 %", Figure::Run("delay_99_ms")),
    ("99.9 %", Figure::Run("delay_99_9_ms")),
    ("worst subscriber", Figure::Run("subscriber_mean_delay_worst_ms")),
    ("list 50 % ms", Figure::Run("list_50_ms")),
    ("join 50 % ms", Figure::Run("join_50_ms")),
    ("join most", Figure::Run("join_max_ms")),
    ("all joined s", Figure::Run("joining_seconds")),
    ("delay meanwhile 99 %", Figure::Run("joining_delay_99_ms")),
    ("delay meanwhile most", Figure::Run("joining_delay_max_ms")),
    ("feed waits most", Figure::Metric("etcd_relay_publish_seconds{part=\"waiting\"}", "max_at_most_ms")),
    ("feed works most", Figure::Metric("etcd_relay_publish_seconds{part=\"pushing\"}", "max_at_most_ms")),
    ("task waits most", Figure::Metric("etcd_relay_turn_seconds", "max_at_most_ms")),
    ("puts/s", Figure::Run("puts_per_second")),
    ("read after s", Figure::Run("read_seconds")),
    ("latency 99 % ms", Figure::Run("latency_99_ms")),
    ("CPU µs each", Figure::Server("cpu_us_each")),
    ("of it system", Figure::Server("system_us_each")),
    ("create s", Figure::Run("create_seconds")),
    ("CPU s", Figure::Server("cpu_seconds")),
    ("RSS MiB", Figure::Server("rss_mib")),
    ("RSS of keys and values", Figure::Server("rss_of_data")),
    ("etcd CPU %", Figure::Etcd("cpu_percent")),
    ("etcd CPU µs per write", Figure::Etcd("cpu_us_per_write")),
    ("etcd CPU s", Figure::Etcd("cpu_seconds")),
];

/// The whole document.
pub fn markdown(measured: &[(Case, Vec<Outcome>)], lab: &Lab, quick: bool) -> Result<String> {
    let mut text = String::from("# Benchmarks\n\n");
    writeln!(
        text,
        "etcd, etcd's grpc-proxy, the relay, and bare sockets (a plain program that writes the same bytes to as many sockets)\n\
         under the same loads, one after the other on one machine that the load shares. `make bench` writes this file.\n\
         CPU is per delivery, read or put, of the server alone; writes go to etcd, except those that are measured. Compare figures within one run.\n\n\
         [README](../README.md) · what the figures mean: [Performance](performance.md) · how to take your own: [Measuring it](measuring.md)\n\n\
         Each run has servers of its own. Where a label says `3 ×`, each server ran the case three times, in turns, so that\n\
         whatever else the machine does affects all of them alike. The figure is the median, with the least and the most beside it, and the\n\
         ratio is that of the medians. Of a pause, the worst run counts. Delays are those of healthy subscribers only.\n"
    )?;
    if quick {
        writeln!(text, "**A smoke run: small and short. Its figures mean nothing.**\n")?;
    }
    writeln!(text, "{}\n", machine(lab)?)?;
    writeln!(text, "## Targets\n")?;
    writeln!(
        text,
        "| case | figure | against | theirs | relay | now | must reach | |\n|---|---|---|--:|--:|--:|--:|---|"
    )?;
    for (case, outcomes) in measured {
        for (index, goal) in case.goals.iter().enumerate() {
            let what = if index == 0 { &case.what } else { "the same" };
            writeln!(text, "| {what} | {}", goal_row(goal, outcomes))?;
        }
    }
    writeln!(text, "\n## Figures\n")?;
    for (case, outcomes) in measured {
        writeln!(text, "### {}: {}\n", case.name, case.what)?;
        figures(&mut text, outcomes)?;
        for outcome in outcomes {
            for finding in outcome.findings() {
                writeln!(text, "- {}: {finding}", outcome.label)?;
            }
        }
        writeln!(text)?;
    }
    Ok(text)
}

fn goal_row(goal: &Goal, outcomes: &[Outcome]) -> String {
    let find = |label: &str| outcomes.iter().find(|outcome| outcome.label == label);
    let ours = find(goal.of).and_then(|outcome| outcome.figure(goal.figure));
    let theirs = goal.against.and_then(find).and_then(|outcome| outcome.figure(goal.theirs));
    let now = match (ours, goal.against) {
        // The longest pause of all runs.
        (Some(ours), None) if matches!(goal.figure, Figure::Metric(..)) => Some(ours.most),
        (Some(ours), None) => Some(ours.median),
        (Some(ours), Some(_)) => theirs.filter(|theirs| theirs.median > 0.0).map(|theirs| ours.median / theirs.median),
        (None, _) => None,
    };
    let (sign, bound) = match goal.bound {
        Bound::Most(bound) => ("≤", bound),
        Bound::Least(bound) => ("≥", bound),
    };
    let verdict = match (now, goal.bound) {
        (None, _) => "not measured",
        (Some(now), Bound::Most(bound)) if now <= bound => "reached",
        (Some(now), Bound::Least(bound)) if now >= bound => "reached",
        (Some(_), _) => "**not reached**",
    };
    let against = goal.against.unwrap_or("–");
    format!(
        "{} | {against} | {} | {} | {} | {sign} {} | {verdict} |",
        goal.what,
        with_spread(theirs),
        with_spread(ours),
        shown(now),
        shown(Some(bound))
    )
}

/// A table of the columns that any run has.
fn figures(text: &mut String, outcomes: &[Outcome]) -> Result<()> {
    let columns: Vec<_> =
        COLUMNS.iter().filter(|(_, figure)| outcomes.iter().any(|outcome| outcome.figure(*figure).is_some())).collect();
    writeln!(text, "| |{}", columns.iter().map(|(name, _)| format!(" {name} |")).collect::<String>())?;
    writeln!(text, "|---|{}", "--:|".repeat(columns.len()))?;
    for outcome in outcomes.iter().filter(|outcome| outcome.is_measured()) {
        let cells = columns.iter().map(|(_, figure)| {
            let median = outcome.figure(*figure).map(|measured| measured.median);
            format!(" {} |", shown(median))
        });
        let times = match outcome.reports.len() {
            1 => String::new(),
            times => format!(" ({times} ×)"),
        };
        writeln!(text, "| {}{times} |{}", outcome.label, cells.collect::<String>())?;
    }
    writeln!(text)?;
    Ok(())
}

/// The median, with the smallest and the largest of several values.
fn with_spread(measured: Option<Measured>) -> String {
    match measured {
        Some(Measured { median, least, most, of }) if of > 1 => {
            format!("{} ({}–{})", shown(Some(median)), shown(Some(least)), shown(Some(most)))
        }
        measured => shown(measured.map(|measured| measured.median)),
    }
}

/// Three significant digits.
fn shown(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.is_infinite() => "∞".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

/// The machine, the versions and the time, in a sentence.
pub fn in_short(lab: &Lab) -> Result<String> {
    let lines = machine(lab)?;
    let parts = lines.lines().filter_map(|line| line.split_once(": ")).map(|(_, value)| value);
    Ok(format!("Measured on {}.", parts.collect::<Vec<_>>().join("; ")))
}

fn machine(lab: &Lab) -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let unknown = || "unknown".to_owned();
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown);
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_else(unknown);
    let cores = thread::available_parallelism().map_or_else(|_| unknown(), |cores| cores.to_string());
    let commit = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok();
    let commit = commit
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    Ok(format!(
        "- Machine: {cores} cores ({model}), {memory}, Linux {}; load average before the first run {}\n- Versions: {}; commit {}\n- Date: {}",
        read("/proc/sys/kernel/osrelease").trim(),
        lab.load_average(),
        lab.versions()?.join("; "),
        commit.unwrap_or_else(unknown),
        humantime::format_rfc3339_seconds(SystemTime::now()),
    ))
}
