//! The views under load: a real etcd, the relay as it is built for use, a generated LAIN cluster that changes, and
//! thousands of watchers that check what they get. `make bench-views`, or `cargo bench --bench views -- --help`.
//!
//! Parts of it alone are measured in `projection`. Measurements are printed and never judged; only wrong data is an
//! error.

// For the JSON of a docker inspection.
#![recursion_limit = "256"]
#![expect(unreachable_pub, reason = "in a program, `pub` marks what other files use; nothing is visible outside")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints measurements")]

mod support;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{
    args::{Args, Scenario},
    report::Report,
    scenarios,
};

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all scenarios passed.
fn run(args: &Args) -> Result<bool> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let mut reports = Vec::new();
    let mut passed = true;
    for scenario in args.scenarios() {
        match runtime.block_on(measure(scenario, args)) {
            Ok(report) if args.json => reports.push(report.json()),
            Ok(report) => println!("{report}"),
            Err(error) => {
                eprintln!("error: {scenario:?}: {error:#}");
                passed = false;
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    }
    Ok(passed)
}

async fn measure(scenario: Scenario, args: &Args) -> Result<Report> {
    match scenario {
        Scenario::Config => scenarios::config::run(args).await,
        Scenario::Get => scenarios::get::run(args).await,
        Scenario::Cluster => scenarios::cluster::run(args).await,
        Scenario::Scale => scenarios::scale::run(args).await,
    }
}

/// Each connection needs a file here and one in the relay, which inherits the limit. If the limit cannot be raised, the
/// first connection that does not fit reports it.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
