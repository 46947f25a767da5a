//! Chaos: three etcd members, two relays over them and a tier over these, with writers, readers, watchers and holders
//! of leases. Faults of all kinds come in a random order that depends on a seed. `make chaos`, or `cargo test --test
//! chaos -- --help`; `make test` runs it for a minute.
//!
//! A run fails if an answer was not true (see `judge` and `support::validate`; the truth is read from etcd itself), if
//! something was never delivered, or if the caches differ from etcd at the end. How long each kind of call failed is
//! printed as a table, and fails the run only beyond generous limits. Simulated upstreams and clocks are in
//! `tests/simulation` and `tests/relay_sim`.
//!
//! A seed repeats the faults, their order and the actions of clients, but not the exact timing of processes.

#![expect(unreachable_pub, reason = "in a test binary, `pub` marks what other files use; nothing is visible outside")]
#![expect(clippy::print_stdout, reason = "a program that prints measurements")]

mod closing;
mod faults;
mod figures;
mod findings;
mod gaps;
mod judge;
mod leases;
mod link;
mod probes;
mod readers;
mod scene;
mod schedule;
mod truth;
mod users;
mod watchers;
mod world;
mod writers;

/// What the integration tests are made of.
#[path = "../it"]
#[expect(
    dead_code,
    unused_imports,
    clippy::panic,
    clippy::print_stderr,
    reason = "shared with the integration tests, which use the rest"
)]
mod it {
    pub mod support;
}

use std::{
    fs,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use futures_util::FutureExt as _;

use self::{faults::Kind, figures::Figures, it::support, schedule::Plan, world::World};

/// Runs faults in random order on three etcd members, two relays and a tier under load, and checks every answer
#[derive(Debug, Parser)]
#[command(name = "chaos", max_term_width = 120)]
struct Args {
    /// Duration of the faults in minutes
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,

    /// Seed that repeats a run: the faults, their order, and the actions of clients. Default: a new one, which is
    /// printed
    #[arg(long, env = "ETCD_RELAY_CHAOS_SEED")]
    seed: Option<u64>,

    /// Faults to choose from, by name. Default: all
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    only: Vec<Kind>,

    /// Check only correctness, not duration, and use shorter faults: for busy machines
    #[arg(long)]
    truth_only: bool,

    /// Build of etcd-relay to use, for example an optimized one
    #[arg(long, value_name = "PATH")]
    relay: Option<PathBuf>,
}

fn kind(name: &str) -> Result<Kind, String> {
    let known = faults::ALL.map(Kind::name).join(", ");
    faults::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("no such fault; there are: {known}"))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}: ETCD_RELAY_CHAOS_SEED={seed} repeats it");
    let kinds = if args.only.is_empty() { faults::ALL.to_vec() } else { args.only };
    let length = Duration::from_secs_f64(args.minutes * 60.0);
    let plan = Plan { seed, length, kinds, judges_time: !args.truth_only };
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if runtime.block_on(run(&plan, &folder, args.relay.as_deref())) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the plan. Returns whether everything was correct.
async fn run(plan: &Plan, folder: &Path, relay: Option<&Path>) -> bool {
    let _what_an_earlier_run_left = fs::remove_dir_all(folder);
    let mut figures = Figures::default();
    let mut world = World::start(folder, relay, plan.judges_time).await;
    let scene = world.scene.clone();
    // A wait without success panics, as in other tests.
    let went_through = AssertUnwindSafe(schedule::run(plan, &mut world, &mut figures)).catch_unwind().await.is_ok();
    println!("\n{}", figures.table());
    println!(
        "Seconds, median / worst. To be reached with one bad member: 2 for calls, 3 for silence, 5 until the relay tells."
    );
    println!("Judged in {:.0} s: {}.", scene.findings.clock().as_secs_f64(), scene.findings.summary());
    if went_through && scene.findings.wrong() == 0 {
        let _it_was_never_made = fs::remove_dir_all(folder);
        return true;
    }
    world.keep_logs();
    println!("\nFAILED with seed {}. Faults:\n{}", plan.seed, figures.list());
    println!("\n{} things were wrong:\n{}", scene.findings.wrong(), scene.findings.report());
    if !went_through {
        println!("and the run came to no end: see the panic above.");
    }
    println!("\nLogs: {}", folder.display());
    false
}
