//! Chaos: three members of etcd, two relays over them and a tier over these, with writers, readers, watchers and holders of leases; then, from a
//! seed, whatever can go wrong, in random order. `make chaos`, or `cargo test --test chaos -- --help`; `make test` has it for a minute.
//!
//! A run fails where something was told that is not true (see `judge` and `support::validate`; the truth is read from etcd itself), where
//! something was not told at all, or where the caches differ from etcd in the end. How long each kind of call did without an answer is told
//! in a table, and fails nothing within generous bounds. Not here: made-up upstreams and clocks, see `tests/simulation` and `tests/relay_sim`.
//!
//! A seed repeats the faults, their order and what clients do, but not the moments at which processes come to it.

#![expect(
    unreachable_pub,
    reason = "in a test binary `pub` says what other files use; nothing is reachable from outside"
)]
#![expect(clippy::print_stdout, reason = "a program that tells figures")]

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

/// Faults in random order on three members of etcd, two relays and a tier, under load, and a check of everything that was told.
#[derive(Debug, Parser)]
#[command(name = "chaos", max_term_width = 120)]
struct Args {
    /// How long faults go on
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,

    /// Repeats a run: the faults, their order, and what clients do. One of its own by default, which is printed
    #[arg(long, env = "ETCD_RELAY_CHAOS_SEED")]
    seed: Option<u64>,

    /// Faults to draw from, by name; all by default
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    only: Vec<Kind>,

    /// Judge what is told, not how long it takes, with faults that are shorter: for machines that do much else
    #[arg(long)]
    truth_only: bool,

    /// Another build of etcd-relay, such as an optimized one
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

/// Whether all was well.
async fn run(plan: &Plan, folder: &Path, relay: Option<&Path>) -> bool {
    let _what_an_earlier_run_left = fs::remove_dir_all(folder);
    let mut figures = Figures::default();
    let mut world = World::start(folder, relay, plan.judges_time).await;
    let scene = world.scene.clone();
    // Waiting in vain panics, as in other tests.
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
