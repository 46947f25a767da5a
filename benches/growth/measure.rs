//! Takes the samples of a curve.
//!
//! Always holds: the rounds of a point alternate between its servers, so that other work on the machine affects all of
//! them alike; each sample has servers of its own; and no sample is left out. A round that fails is kept as a reason.
//!
//! **The load generator is not measured.** CPU is the kernel's account of the server's threads alone. Rates are such
//! that the generator has processors to spare, and each sample says what share of a core it took; where that was too
//! much, the sample's delays are not used, because they would be its own.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::{
    curves::{Curve, Server},
    data::{Load, Measured, Point, Sample, Series},
};
use crate::comparison::{
    cases::Run,
    run::{Lab, Target},
};

/// The writes of a sample take at least this long, and long enough for some of them.
const SECONDS: f64 = 2.0;
const WRITES: f64 = 6.0;
const QUICK_SECONDS: f64 = 0.5;
/// A run that takes longer is a failure. No server needs as much for any of the loads.
const PATIENCE: Duration = Duration::from_secs(90);
/// Most percent of a core that the load generator may take for its delays to count.
const OWN_PERCENT: f64 = 80.0;

/// Measures all points of a curve.
pub async fn curve(lab: &Lab, curve: &Curve, taken: String, rounds: usize, quick: bool) -> Measured {
    let mut points: Vec<Point> = Vec::new();
    for (x, load) in &curve.points {
        let mut point = Point { x: *x, load: *load, series: Default::default() };
        for _ in 0..rounds {
            for server in curve.servers.iter().filter(|server| *x <= server.until) {
                let series: &mut Series = point.series.entry(server.label.to_owned()).or_default();
                match sample(lab, server, load, quick).await {
                    Ok(sample) => series.samples.push(sample),
                    Err(error) => series.failed.push(format!("{error:#}")),
                }
            }
        }
        tell(curve, &point);
        points.push(point);
    }
    Measured { taken, ended_by: curve.ended_by.clone(), points }
}

async fn sample(lab: &Lab, server: &Server, load: &Load, quick: bool) -> Result<Sample> {
    let seconds = if quick { QUICK_SECONDS } else { f64::max(SECONDS, WRITES / load.rate) };
    let run = Run {
        label: server.label,
        target: server.target,
        args: load.args(server.target, seconds),
        times: 1,
        tls: server.tls,
        filled: load.keys,
        reads_once: false,
        leaves: load.leaves_of(server),
        patience: PATIENCE,
    };
    let report = lab.report(&run).await?;
    if let Some(wrong) = report["wrong"]["first"][0].as_str() {
        anyhow::bail!("wrong: {wrong}");
    }
    Ok(sample_of(&report, server.target, load))
}

fn sample_of(report: &Value, target: Target, load: &Load) -> Sample {
    let run = |name: &str| report["figures"][name].as_f64();
    let process = |process: &str, name: &str| report["processes"][process][name].as_f64();
    let (writes, deliveries) = (run("writes").unwrap_or(0.0), run("deliveries").unwrap_or(0.0));
    let per_write = |name: &str| process(name, "cpu_us_per_write").map(|each| each * writes);
    let cpu_us = match target {
        // The sender of bare sockets is a thread of the load generator, with an account of its own.
        Target::Floor => run("cpu_us_each").unwrap_or(0.0) * deliveries,
        _ => per_write("server").unwrap_or(0.0),
    };
    let own_percent = process("bench", "cpu_percent");
    // With bare sockets, that includes the sender.
    let is_free = target == Target::Floor || own_percent.is_none_or(|percent| percent <= OWN_PERCENT);
    let delay = |name: &str| run(name).filter(|_| is_free);
    let seconds =
        process("server", "cpu_percent").filter(|percent| *percent > 0.0).map(|percent| cpu_us / percent / 1e4);
    Sample {
        writes,
        deliveries,
        seconds: seconds.unwrap_or(writes / load.rate),
        cpu_us,
        first_cpu_us: per_write("first"),
        etcd_cpu_us: per_write("etcd"),
        delay_50_ms: delay("delay_50_ms"),
        delay_99_ms: delay("delay_99_ms"),
        idle_mib: process("server", "rss_idle_mib"),
        grown_kib: process("server", "kib_per_connection").map(|each| each * load.connections as f64),
        opening_cpu_us: process("server", "create_cpu_us_per_watch")
            .map(|each| each * (load.connections * load.watches) as f64),
        own_percent,
    }
}

/// Says on standard error what came out, for whoever waits.
fn tell(curve: &Curve, point: &Point) {
    eprintln!("{} at {}:", curve.name, point.x);
    for server in &curve.servers {
        let Some(series) = point.series.get(server.label) else { continue };
        let figures = curve.figures.iter().filter_map(|metric| {
            let spread = point.figure(server.label, *metric)?;
            Some(format!("{} {:.3} ({:.3}–{:.3})", metric.title(), spread.median, spread.least, spread.most))
        });
        eprintln!("  {}: {}", server.label, figures.collect::<Vec<_>>().join("; "));
        for reason in &series.failed {
            eprintln!("    failed: {reason}");
        }
    }
}
