//! Compares etcd, etcd's grpc-proxy, the relay and bare sockets under the same loads on this machine, one after the
//! other, and writes a table. `make bench`, or `cargo bench --bench compare -- --help`.
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

/// Compares etcd, etcd's grpc-proxy, the relay and bare sockets under the same loads. It takes about a quarter of an
/// hour and needs the machine for itself.
#[derive(Debug, Parser)]
#[command(name = "compare", max_term_width = 120)]
struct Args {
    /// Cases to run. Default: all
    cases: Vec<String>,

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
    let text = table::markdown(&measured, &lab, args.quick)?;
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

fn names(cases: &[cases::Case]) -> String {
    cases.iter().map(|case| case.name).collect::<Vec<_>>().join(", ")
}
