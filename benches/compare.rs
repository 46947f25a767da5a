//! Compares etcd, etcd's grpc-proxy, the relay and bare sockets under the same loads on this machine, one after the
//! other, and writes a table. `make bench`, or `cargo bench --bench compare -- --help`. With `--curves` it measures how
//! cost grows instead, and writes tables, drawings and a model.
//!
//! The loads are those of `etcd-relay bench`; parts of the relay alone are measured in `hub`. Each run has its own
//! servers. A wrong answer of the relay is an error; a measurement never is, and errors of other servers are only
//! reported.

#![expect(unreachable_pub, reason = "in a program, `pub` marks what other files use; nothing is visible outside")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints measurements")]

mod comparison {
    pub mod cases;
    pub mod run;
    pub mod table;
}
mod growth {
    pub mod curves;
    pub mod data;
    pub mod explain;
    pub mod fit;
    pub mod limits;
    pub mod measure;
    pub mod model;
    pub mod page;
    pub mod plot;
    pub mod section;
}
#[expect(dead_code, reason = "shared with the benchmark of the views, which uses the rest")]
mod support {
    pub use etcd_relay::bench::http;

    pub mod etcd;
    pub mod process;
}

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use comparison::{cases, run::Lab, table};
use growth::{curves, data::Data, limits::Limit, measure, page, section};

/// Compares etcd, etcd's grpc-proxy, the relay and bare sockets under the same loads. It takes some twenty
/// minutes, and needs the machine for itself.
#[derive(Debug, Parser)]
#[command(name = "compare", max_term_width = 120)]
struct Args {
    /// Cases to run, or curves. Default: all
    cases: Vec<String>,

    /// Measure how cost and delay grow with connections, watches, keys, ranges, rate, value size and tiers, with a
    /// model. It takes about half an hour
    #[arg(long)]
    curves: bool,

    /// Write the curves' tables, drawings and model from the data of earlier runs, without a new run
    #[arg(long, requires = "curves")]
    from_data: bool,

    /// Rounds of each point of a curve
    #[arg(long, value_name = "NUMBER", default_value_t = 3, requires = "curves")]
    rounds: usize,

    /// Folder of the documentation that the curves are written into. Default: `docs`, or with --quick nowhere
    #[arg(long, value_name = "FOLDER", requires = "curves")]
    docs: Option<PathBuf>,

    /// Make a small and short smoke run, which finds errors but gives no useful measurements
    #[arg(long)]
    quick: bool,

    /// File to write the table to, as Markdown. Default: standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Relay to use instead of the one built with this benchmark
    #[arg(long, value_name = "PATH")]
    relay: Option<PathBuf>,

    /// Passed by `cargo bench`; ignored
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all cases. Returns whether the relay made no errors.
fn run(args: &Args) -> Result<bool> {
    if args.curves {
        return draw(args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let lab = Lab::new(args.relay.clone())?;
    let all = cases::all(args.quick);
    for name in &args.cases {
        anyhow::ensure!(all.iter().any(|case| case.name == name), "unknown case {name}; the cases are {}", names(&all));
    }
    let mut measured = Vec::new();
    for case in all.into_iter().filter(|case| args.cases.is_empty() || args.cases.iter().any(|name| case.name == name))
    {
        eprintln!("{}: {}", case.name, case.what);
        let outcomes = runtime.block_on(lab.measure(&case));
        measured.push((case, outcomes));
    }
    let mut text = table::markdown(&measured, &lab, args.quick)?;
    // The curves stay as they are.
    let before = args.out.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    if let Some(growth) = section::kept(&before, section::GROWTH) {
        text = format!("{}\n\n{growth}\n", text.trim_end());
    }
    match &args.out {
        Some(path) => {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
            }
            fs::write(path, text).with_context(|| format!("{}", path.display()))?;
            eprintln!("The table is in {}.", path.display());
        }
        None => println!("{text}"),
    }
    Ok(measured.iter().flat_map(|(_, outcomes)| outcomes).all(|outcome| outcome.is_right_or_of_others()))
}

/// Measures curves. Returns whether every run of the relay gave a sample.
fn draw(args: &Args) -> Result<bool> {
    let limit = Limit::here();
    let all = curves::all(&limit, args.quick);
    let known = all.iter().map(|curve| curve.name).collect::<Vec<_>>().join(", ");
    for name in &args.cases {
        anyhow::ensure!(all.iter().any(|curve| curve.name == name), "unknown curve {name}; the curves are {known}");
    }
    let docs = args.docs.clone().or_else(|| (!args.quick).then(|| PathBuf::from("docs")));
    let mut data = docs.as_deref().map_or_else(|| Ok(Data::default()), page::read)?;
    if args.from_data {
        page::write(&docs.context("--from-data needs a folder: --docs")?, &all, &data)?;
        return Ok(true);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let lab = Lab::new(args.relay.clone())?;
    let rounds = if args.quick { 1 } else { args.rounds.max(1) };
    let mut is_right = true;
    for curve in all.iter().filter(|curve| args.cases.is_empty() || args.cases.iter().any(|name| curve.name == name)) {
        let taken = table::in_short(&lab)?;
        let measured = runtime.block_on(measure::curve(&lab, curve, taken, rounds, args.quick));
        let ours = measured.points.iter().flat_map(|point| &point.series).filter(|(label, _)| label.contains("relay"));
        is_right &= ours.into_iter().all(|(_, series)| series.failed.is_empty());
        data.curves.insert(curve.name.to_owned(), measured);
        // After each curve, so that a run that is interrupted has not been in vain.
        if let Some(docs) = &docs {
            page::write(docs, &all, &data)?;
        }
    }
    Ok(is_right)
}

fn names(cases: &[cases::Case]) -> String {
    cases.iter().map(|case| case.name).collect::<Vec<_>>().join(", ")
}
