//! Writes the model down: its costs, its errors, and what they add up to for large machines and fleets.
//!
//! The calculation is in `model`. Always holds: every number of the text comes from the fit, so the text is right after
//! a new measurement too.

use std::fmt::Write as _;

use anyhow::Result;

use super::{
    data::{Load, grouped, shown},
    model::{Fit, Model, Work, cpu_terms, grown_terms, opening_terms},
};

/// The share of the cores that is planned with, so that bursts and a lost neighbour's clients find room.
const BUSY: f64 = 0.6;
/// The cores of the large machine.
const CORES: f64 = 32.0;
/// The connections of the fleet.
const FLEET: f64 = 1e6;
/// Most connections of one relay in a fleet: what a process may open is a setting, but all of its clients come back at
/// once when it ends.
const CONNECTIONS_OF_A_RELAY: f64 = 250_000.0;
/// Relays of a fleet are counted up to this number.
const MOST_RELAYS: u64 = 100_000;

/// The section of `docs/performance.md`.
pub fn text(model: &Model) -> Result<String> {
    let mut text = String::new();
    costs(&mut text, "CPU of the relay", &model.cpu)?;
    costs(&mut text, "Memory of the relay without clients", &model.idle)?;
    costs(&mut text, "Memory of connections and watches", &model.grown)?;
    costs(&mut text, "CPU until connections and watches are open", &model.opening)?;
    errors(&mut text, model)?;
    large_machine(&mut text, model)?;
    fleet(&mut text, model)?;
    Ok(text)
}

fn fits(model: &Model) -> [(&'static str, &Fit); 4] {
    [
        ("CPU", &model.cpu),
        ("memory without clients", &model.idle),
        ("memory of clients", &model.grown),
        ("CPU of opening", &model.opening),
    ]
}

fn costs(text: &mut String, title: &str, fit: &Fit) -> Result<()> {
    writeln!(text, "| {title} | |\n|---|--:|")?;
    for cost in &fit.costs {
        writeln!(text, "| {} | {} |", cost.what, shown(cost.value))?;
    }
    writeln!(text)?;
    Ok(())
}

fn errors(text: &mut String, model: &Model) -> Result<()> {
    writeln!(
        text,
        "| error of the prediction | points | median | 9 of 10 | largest | within 20 % |\n|---|--:|--:|--:|--:|--:|"
    )?;
    for (what, fit) in fits(model) {
        for (half, is_fitted) in [("fitted on", true), ("checked", false)] {
            let Some(errors) = fit.errors(is_fitted) else { continue };
            let percent = |share: f64| format!("{:.0} %", share * 100.0);
            writeln!(
                text,
                "| {what}, {half} | {} | {} | {} | {} | {} of {} |",
                errors.count,
                percent(errors.median),
                percent(errors.ninth),
                percent(errors.most),
                errors.within,
                errors.count
            )?;
        }
    }
    writeln!(text)?;
    let mut missed: Vec<_> = fits(model)
        .into_iter()
        .flat_map(|(what, fit)| fit.checks.iter().map(move |check| (what, check)))
        .filter(|(_, check)| check.error().abs() > 0.2)
        .collect();
    missed.sort_by(|(_, one), (_, other)| other.error().abs().total_cmp(&one.error().abs()));
    if missed.is_empty() {
        return Ok(());
    }
    writeln!(text, "| missed by more than 20 % | of | at | measured | predicted |\n|---|---|--:|--:|--:|")?;
    for (what, check) in missed {
        let half = if check.is_fitted { ", fitted on" } else { "" };
        let (measured, predicted) = (shown(check.measured), shown(check.predicted));
        writeln!(
            text,
            "| {what}{half} | {}, {} | {} | {measured} | {predicted} |",
            check.curve,
            check.label,
            shown(check.x)
        )?;
    }
    writeln!(text)?;
    Ok(())
}

/// The work of a relay whose connections have a watch each on one prefix, with values of 256 bytes.
fn fan_out(connections: f64, tls: bool, writes_per_second: f64) -> Work {
    let load = Load {
        connections: connections as u64,
        watches: 1,
        ranges: 1,
        keys: 0,
        rate: writes_per_second,
        value_size: 256,
        leaves: 0,
    };
    Work { load, tls, interval: 1.0 / writes_per_second }
}

/// Microseconds of CPU of a write that reaches all connections.
fn write_us(model: &Model, connections: f64, tls: bool, writes_per_second: f64) -> f64 {
    model.cpu.predict(&cpu_terms(&fan_out(connections, tls, writes_per_second)))
}

fn memory_gib(model: &Model, connections: f64, tls: bool) -> f64 {
    model.grown.predict(&grown_terms(&fan_out(connections, tls, 1.0))) / f64::from(1 << 20)
}

fn large_machine(text: &mut String, model: &Model) -> Result<()> {
    let costs: Vec<f64> = model.cpu.costs.iter().map(|cost| cost.value).collect();
    let (each, factor, bytes) = (costs[3], costs[4], costs[7] / 4.0);
    writeln!(text, "### What a relay with 32 cores needs\n")?;
    writeln!(
        text,
        "All connections watch one prefix, once each, and values have 256 B. By the terms above, a write to *C* connections costs {} µs, and for each connection {} µs,\n\
         {} µs × ln(*C* / 1,000), and {} µs for a quarter of a KiB; with TLS {} µs, {} µs × ln(*C* / 1,000) and {} µs more. For 100,000 connections without TLS this is\n\
         {} + 100,000 × ({} + {} × 4.61 + {}) = {} µs. Of 32 cores, 60 % are planned with: 19.2 s of CPU a second. The time until all have a write is its CPU\n\
         time divided by 32, if the work divides evenly; so is the time until all have connected, with TLS.\n",
        shown(costs[1]),
        shown(each),
        shown(factor),
        shown(bytes),
        shown(costs[8]),
        shown(costs[9]),
        shown(costs[10] / 4.0),
        shown(costs[1]),
        shown(each),
        shown(factor),
        shown(bytes),
        grouped(write_us(model, 1e5, false, 1e9)),
    )?;
    writeln!(
        text,
        "| connections | CPU of a write, ms | writes/s at 60 % | all have it after, ms | memory, GiB | with TLS: CPU, ms | writes/s | memory, GiB | all connect in, s |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    for connections in [20_000.0, 50_000.0, 100_000.0, 250_000.0, 500_000.0] {
        let one = |tls| write_us(model, connections, tls, 1e9);
        let writes = |tls| BUSY * CORES * 1e6 / one(tls);
        let opening = model.opening.predict(&opening_terms(&fan_out(connections, true, 1.0))) / 1e6 / CORES;
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            grouped(connections),
            shown(one(false) / 1e3),
            shown(writes(false)),
            shown(one(false) / 1e3 / CORES),
            shown(memory_gib(model, connections, false)),
            shown(one(true) / 1e3),
            shown(writes(true)),
            shown(memory_gib(model, connections, true)),
            shown(opening),
        )?;
    }
    writeln!(text)?;
    Ok(())
}

fn fleet(text: &mut String, model: &Model) -> Result<()> {
    writeln!(text, "### What a fleet for 1,000,000 connections needs\n")?;
    writeln!(
        text,
        "With TLS, and one relay more than the load needs: the others carry everything when one is away. A relay gets at most 250,000 connections even then, and 60 % of\n\
         its cores are planned with. The smallest *n* is taken for which a write to 1,000,000 / (*n* − 1) connections, times the writes a second, fits into that.\n\
         The relays' own watches of the first tier, or of etcd, are *n* connections more for the servers there.\n"
    )?;
    writeln!(
        text,
        "| writes/s, each to everybody | relays of 32 cores | connections of each | cores in use, all | memory of each, GiB | relays of 8 cores | connections of each | CPU of the first tier, ms/s |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    for writes in [0.1, 1.0, 10.0, 100.0] {
        let relays = |cores: f64| {
            (2..MOST_RELAYS).find(|relays| {
                let connections = FLEET / (*relays - 1) as f64;
                let busy = writes * write_us(model, connections, true, writes) / 1e6;
                connections <= CONNECTIONS_OF_A_RELAY && busy <= BUSY * cores
            })
        };
        let count = |relays: Option<u64>| relays.map_or("–".to_owned(), |relays| grouped(relays as f64));
        let each = |relays: Option<u64>| relays.map(|relays| FLEET / relays as f64);
        let (large, small) = (relays(CORES), relays(8.0));
        let used = large
            .zip(each(large))
            .map(|(relays, each)| relays as f64 * writes * write_us(model, each, true, writes) / 1e6);
        let told = |value: Option<f64>| value.map_or("–".to_owned(), shown);
        let first = small.map(|relays| writes * write_us(model, relays as f64, false, writes) / 1e3);
        writeln!(
            text,
            "| {writes} | {} | {} | {} | {} | {} | {} | {} |",
            count(large),
            each(large).map_or("–".to_owned(), grouped),
            told(used),
            told(each(large).map(|each| memory_gib(model, each, true))),
            count(small),
            each(small).map_or("–".to_owned(), grouped),
            told(first),
        )?;
    }
    let opening = model.opening.predict(&opening_terms(&fan_out(FLEET, true, 1.0))) / 1e6;
    writeln!(
        text,
        "\nWhen everybody connects at once, the handshakes and watches are {} s of CPU: divided by the cores of all relays, that is how long it takes at least.\n",
        shown(opening)
    )?;
    Ok(())
}
