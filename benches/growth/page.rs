//! Writes the curves into the documentation: tables and slopes into `docs/benchmarks.md`, drawings into
//! `docs/benchmarks`, and the model's tables into `docs/performance.md`.
//!
//! Always holds: only what stands between the marks of a section is replaced. So the pages around it are written by
//! people, or by the other half of `make bench`.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{
    curves::{Curve, LOOKS},
    data::{Data, Measured, Metric, Spread, grouped, shown},
    explain, fit,
    model::Model,
    plot::{Line, Plot},
    section::{self, GROWTH},
};

/// The name of the section with the model.
const MODEL: &str = "model";
/// The folder of the drawings and of the data, beside the page.
const FOLDER: &str = "benchmarks";
const DATA: &str = "curves.json";

/// Reads the data of earlier runs; nothing if there was none.
pub fn read(docs: &Path) -> Result<Data> {
    let path = docs.join(FOLDER).join(DATA);
    match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("{}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Data::default()),
        Err(error) => Err(error).with_context(|| format!("{}", path.display())),
    }
}

/// Writes everything that is made from the data, and the data.
pub fn write(docs: &Path, curves: &[Curve], data: &Data) -> Result<()> {
    let folder = docs.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    put(&folder.join(DATA), &format!("{}\n", serde_json::to_string_pretty(data)?))?;
    let model = Model::of(data);
    let mut text = intro();
    for curve in curves {
        let Some(measured) = data.curves.get(curve.name) else { continue };
        tables(&mut text, curve, measured)?;
        for metric in curve.figures {
            if let Some(svg) = drawing(curve, measured, *metric, model.as_ref()).svg() {
                put(&folder.join(file(curve, *metric)), &svg)?;
            }
        }
    }
    replace(&docs.join("benchmarks.md"), GROWTH, &text)?;
    if let Some(model) = &model {
        replace(&docs.join("performance.md"), MODEL, &explain::text(model)?)?;
    }
    Ok(())
}

/// Replaces the section of a page, or adds it at the end.
fn replace(path: &Path, name: &str, text: &str) -> Result<()> {
    let page = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    put(path, &section::replaced(&page, name, text))
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{}", path.display()))
}

fn intro() -> String {
    "## Growth\n\n\
     How cost and delay grow with one number at a time. `make bench ARGS=--curves` measures the curves again, and writes this section, the drawings\n\
     and [the data](benchmarks/curves.json) with every sample; `make bench ARGS='--curves watches keys'` does so for the curves that it names. What explains them is\n\
     [a model](performance.md#a-model-of-the-cost).\n\n\
     Each figure is the median of the rounds; the drawings show the least and the most too. In a round, the servers of a point run one after the other, each newly started.\n\
     Both axes are logarithmic. **Slope** is the exponent: 0 if a figure does not grow, 1 if it grows in proportion. **Steepest** is the largest slope between two neighbouring\n\
     points, and where it begins: a knee would show there. If the load average before a curve is above the number of cores, other programs used the machine at that time. CPU and\n\
     memory can be compared even then; delays cannot.\n\n\
     **The load generator is not part of the figures.** CPU is the kernel's account of the server's own threads. The rates are low enough that the generator has a core to\n\
     spare. Where it took more than 80 % of a core, delays would be its own and are left out. Its work is the same for all servers, and the delay of bare sockets shows what it and the kernel\n\
     add. What cannot be separated: on one machine, a write to a socket also pays for the reader's wake-up, and both share the caches.\n"
        .to_owned()
}

/// The tables and drawings of a curve.
fn tables(text: &mut String, curve: &Curve, measured: &Measured) -> Result<()> {
    writeln!(text, "\n### {}\n", curve.title)?;
    writeln!(text, "{}. {} {}\n", capitalized(curve.what), measured.ended_by, measured.taken)?;
    for metric in curve.figures {
        let title = capitalized(metric.title());
        writeln!(text, "![{title} by {}](benchmarks/{})\n", curve.across, file(curve, *metric))?;
        let places: String = measured.points.iter().map(|point| format!(" {} |", grouped(point.x))).collect();
        writeln!(text, "| {title} |{places} slope | steepest |\n|---|{}", "--:|".repeat(measured.points.len() + 2))?;
        for label in labels(curve, measured) {
            let spreads = spreads(measured, label, *metric);
            if spreads.values().all(Option::is_none) {
                continue;
            }
            let cells: String = spreads.values().map(|spread| format!(" {} |", cell(*spread))).collect();
            let points: Vec<_> = measured
                .points
                .iter()
                .zip(spreads.values())
                .filter_map(|(point, spread)| Some((point.x, (*spread)?.median)))
                .collect();
            let slope = fit::slope(&points).map_or("–".to_owned(), |slope| format!("{slope:.2}"));
            let steepest = fit::steepest(&points)
                .map_or("–".to_owned(), |(place, slope)| format!("{slope:.2} from {}", grouped(place)));
            writeln!(text, "| {label} |{cells} {slope} | {steepest} |")?;
        }
        writeln!(text)?;
    }
    for point in &measured.points {
        for (label, series) in &point.series {
            if let Some(reason) = series.failed.first() {
                writeln!(
                    text,
                    "- {label} at {}: {} of its runs failed: {reason}",
                    grouped(point.x),
                    series.failed.len()
                )?;
            }
        }
    }
    Ok(())
}

/// A figure at each point, by the point's number.
fn spreads(measured: &Measured, label: &str, metric: Metric) -> BTreeMap<usize, Option<Spread>> {
    measured.points.iter().map(|point| point.figure(label, metric)).enumerate().collect()
}

fn cell(spread: Option<Spread>) -> String {
    spread.map_or("–".to_owned(), |spread| shown(spread.median))
}

/// The servers of a curve, in the order of all drawings.
fn labels<'a>(curve: &'a Curve, measured: &'a Measured) -> impl Iterator<Item = &'static str> + use<'a> {
    LOOKS.into_iter().filter(|label| {
        curve.servers.iter().any(|server| server.label == *label)
            && measured.points.iter().any(|point| point.series.contains_key(*label))
    })
}

fn drawing<'a>(curve: &'a Curve, measured: &'a Measured, metric: Metric, model: Option<&Model>) -> Plot<'a> {
    let mut lines = Vec::new();
    for label in labels(curve, measured) {
        let look = LOOKS.iter().position(|known| *known == label).unwrap_or(0);
        let at = |spread: Option<Spread>, x: f64| spread.map(|spread| (x, spread));
        let points: Vec<_> =
            measured.points.iter().filter_map(|point| at(point.figure(label, metric), point.x)).collect();
        let predicted: Vec<_> = measured
            .points
            .iter()
            .filter(|point| point.figure(label, metric).is_some())
            .filter_map(|point| {
                let value = model?.predict(label, metric, point)?;
                Some((point.x, Spread { median: value, least: value, most: value }))
            })
            .collect();
        if !points.is_empty() {
            lines.push(Line { label, look, is_model: false, points });
        }
        if !predicted.is_empty() {
            let label = if label == "relay" { "the model" } else { "the model, TLS" };
            lines.push(Line { label, look, is_model: true, points: predicted });
        }
    }
    Plot { title: capitalized(metric.title()), across: curve.across, lines }
}

fn file(curve: &Curve, metric: Metric) -> String {
    format!("{}-{}.svg", curve.name, metric.name())
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
