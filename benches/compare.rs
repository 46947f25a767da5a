//! etcd, etcd's grpc-proxy, the relay and bare sockets under the same loads on this machine, one after the other, and the table of how
//! they compare. `make bench`, or `cargo bench --bench compare -- --help`.
//!
//! Not here: the loads, which are `etcd-relay bench`'s; what parts of the relay cost alone, see `hub`. Each run has servers of its
//! own. A wrong answer of the relay is an error; a figure never is, and what others do wrong is told.

#![expect(unreachable_pub, reason = "in a program `pub` says what other files use; nothing is reachable from outside")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that tells figures")]

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

/// etcd, etcd's grpc-proxy, the relay and bare sockets under the same loads, and a table of how they compare. Takes about
/// a quarter of an hour, and wants the machine for itself.
#[derive(Debug, Parser)]
#[command(name = "compare", max_term_width = 120)]
struct Args {
    /// Cases to run; all where none is named
    cases: Vec<String>,

    /// A smoke run: small and short, for its errors and not for its figures
    #[arg(long)]
    quick: bool,

    /// Where to write the table as Markdown; without it, standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Another relay than the one built with this benchmark
    #[arg(long, value_name = "PATH")]
    relay: Option<PathBuf>,

    /// What `cargo bench` always says
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

/// Whether the relay did nothing wrong.
fn run(args: &Args) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let lab = Lab::new(args.relay.clone())?;
    let all = cases::all(args.quick);
    for name in &args.cases {
        anyhow::ensure!(all.iter().any(|case| case.name == name), "there is no case {name}; there are {}", names(&all));
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
