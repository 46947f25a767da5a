//! The program: reads flags, starts logging and metrics, binds ports, runs, ends. No logic.

use std::process::ExitCode;

use anyhow::Context as _;
use etcd_relay::{
    cli::{self, BenchTask, Build, Commit, Start, Task},
    critical::Failure,
    relay::Relay,
    shutdown::Shutdown,
    telemetry::{logging, recorder::Metrics},
    top::Ended,
};

/// A thread of jemalloc returns memory to the system some ten seconds after it was freed, so an idle relay does not
/// keep what a burst took. The C library never returns most of it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The build script sets this variable to the file to which git adds a line whenever it moves to another commit. Only
/// this file is compiled again then.
static COMMIT: Commit = Commit::last_of(include_bytes!(env!("ETCD_RELAY_REFLOG")));

fn main() -> ExitCode {
    let build = Build { commit: option_env!("ETCD_RELAY_COMMIT").or_else(|| COMMIT.hash()) };
    let ended = match cli::parse(std::env::args_os(), build) {
        Ok(Task::Relay(start)) => run(*start, build),
        Ok(Task::Bench(task)) => bench(&task),
        Ok(Task::Top(task)) => return cli::end(task.run().map(Ended::code)),
        Ok(Task::Health(task)) => return cli::end(task.run().and_then(|verdict| verdict.print())),
        Ok(Task::Manual(pages)) => return cli::end(pages.write().map(|()| 0)),
        Err(exit) => return exit.report(),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "Cannot continue");
            ExitCode::FAILURE
        }
    }
}

fn bench(task: &BenchTask) -> anyhow::Result<ExitCode> {
    logging::install(&logging::LoggingConfig::default())?;
    Ok(if task.run()? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(start: Start, build: Build) -> anyhow::Result<ExitCode> {
    logging::install(&start.logging)?;
    let metrics = Metrics::install()?;
    start.log(build);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::new();
        tokio::spawn(shutdown.on_signals().context("cannot handle signals")?);
        let relay = Relay::build(start.config.clone(), metrics)?.managed_by(start.service_manager());
        start.announce(&relay);
        anyhow::Ok(relay.run(shutdown).await)
    })?;
    Ok(match ended {
        Ok(_drained) => ExitCode::SUCCESS,
        Err(_logged) => {
            // Running threads are not waited for, since their state cannot be trusted.
            runtime.shutdown_background();
            ExitCode::from(Failure::EXIT_CODE)
        }
    })
}
