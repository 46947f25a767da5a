//! The command line: turns flags and environment variables into the task that `main` runs.
//!
//! A task is a relay ([`relay::RelayConfig`]), a benchmark, a look at a running relay, or a text about the program.
//! Nothing runs here. Only `main` calls this module. Always holds: an invalid value ends the process with exit code 64
//! and a message that names the flag, before any port is bound.

mod announce;
mod bench;
mod demo;
mod discovery;
mod fleet;
mod groups;
mod grpc_proxy;
mod identity;
mod lainlet;
mod listen;
mod look;
mod pages;
mod serve;
mod service;
mod tls;
mod v2;
mod values;

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};
use thiserror::Error;

use self::announce::Announce;
pub use self::{
    bench::BenchTask,
    pages::{Build, Commit, ManualError, ManualPages, commands},
};
use crate::{
    bench::BenchError,
    health::Health,
    relay::{self, Relay},
    service::ServiceManager,
    telemetry::logging,
    top::Top,
};

/// The exit code for wrong usage (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

/// What the command line asked for.
#[derive(Debug)]
pub enum Task {
    /// Run a relay.
    Relay(Box<Start>),
    /// Run a benchmark.
    Bench(Box<BenchTask>),
    /// Show a relay's state.
    Top(Box<Top>),
    /// Check whether a relay is healthy.
    Health(Box<Health>),
    /// Write manual pages.
    Manual(ManualPages),
}

/// A relay to run.
#[derive(Clone, Debug)]
pub struct Start {
    /// The relay.
    pub config: relay::RelayConfig,
    /// What is logged, and how.
    pub logging: logging::LoggingConfig,
    /// Logged once, at the start.
    warnings: Vec<String>,
    announce: Announce,
}

/// Why a benchmark produced no report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchFailure {
    /// The benchmark could not be run.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The report could not be written.
    #[error("cannot write the report")]
    Write(#[from] std::io::Error),
}

/// Why the process ends without a task: what it prints, and with which exit code.
#[derive(Debug)]
pub enum Exit {
    /// Help or version was requested, or clap rejected the flags.
    Clap(clap::Error),
    /// A text for standard output was requested.
    Text(Vec<u8>),
    /// A value is not valid.
    Usage(String),
}

/// Relays etcd: one upstream watch per key prefix serves thousands of subscribers, over etcd's own v3 API.
#[derive(Debug, Parser)]
#[command(name = "etcd-relay", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a relay of an etcd cluster, or of another relay
    Serve(Box<serve::Serve>),
    /// Try it out: run a relay over an in-memory store whose example data keeps changing
    Demo(Box<demo::Demo>),
    /// Put load on a server of etcd's API or of Lainlet's views, check every answer, and report the cost
    Bench(Box<bench::BenchCommand>),
    /// Show a relay's state in a terminal, or print it once as text
    Top(Box<look::TopCommand>),
    /// Check whether a relay is ready or alive, for probes
    Health(Box<look::HealthCommand>),
    /// Print the version and the commit it was built from
    Version,
    /// Print a shell script that completes commands and flags
    Completions(pages::CompletionsCommand),
    /// Print or write the manual pages
    Man(pages::ManCommand),
    /// Replace `etcd grpc-proxy start`: takes the same command and flags
    #[command(disable_help_flag = true)]
    GrpcProxy {
        /// `start` and the flags of `etcd grpc-proxy start`; see `grpc-proxy start --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Parses a command line, whose first item is the program's name. `build` is what `version` prints.
///
/// # Errors
/// Returns an [`Exit`] if there is nothing to run: a text was requested, or the command line is wrong.
pub fn parse<I>(arguments: I, build: Build) -> Result<Task, Exit>
where
    I: IntoIterator<Item = OsString>,
{
    let start = match Cli::try_parse_from(arguments).map_err(Exit::Clap)?.command {
        Command::Serve(serve) => serve.start(),
        Command::Demo(demo) => demo.start(),
        Command::Bench(bench) => return bench.task(),
        Command::Top(top) => return top.task(),
        Command::Health(health) => return health.task(),
        Command::Version => return Err(build.exit()),
        Command::Completions(completions) => return Err(completions.exit()),
        Command::Man(man) => return man.task(),
        Command::GrpcProxy { arguments } => grpc_proxy::start(&arguments),
    };
    start.map(|start| Task::Relay(Box::new(start)))
}

/// Returns the exit code of a command that does not log. An error is written to standard error and gives exit code 1.
pub fn end(ended: Result<u8, impl std::error::Error>) -> ExitCode {
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let mut text = format!("error: {error}");
            for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
                text += &format!(": {cause}");
            }
            // If standard error is closed too, there is no way left to report it.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

impl Start {
    /// Logs what is about to run, and any warnings about the flags.
    pub fn log(&self, build: Build) {
        announce::starting(&self.config, build);
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
    }

    /// The service manager that started the program, if it asked for notifications.
    #[must_use]
    pub fn service_manager(&self) -> Option<ServiceManager> {
        service::manager()
    }

    /// Announces that the ports are bound, in the words that users of each command expect.
    pub fn announce(&self, relay: &Relay) {
        self.announce.say(relay);
    }
}

impl BenchTask {
    /// Runs the benchmark and writes the report to standard output. Returns whether every check passed.
    ///
    /// # Errors
    /// Fails if the benchmark cannot run or the report cannot be written.
    pub fn run(&self) -> Result<bool, BenchFailure> {
        let report = self.bench.run()?;
        let mut out = std::io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, &report).map_err(std::io::Error::from)?;
            writeln!(out)?;
        } else {
            write!(out, "{report}")?;
        }
        out.flush()?;
        Ok(report.passed())
    }
}

impl Exit {
    /// Prints the text and returns the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        // If the output is closed, there is no way left to report it.
        match self {
            Self::Clap(error) => {
                let _ = error.print();
                if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
            }
            Self::Text(text) => {
                let mut out = std::io::stdout().lock();
                match out.write_all(text).and_then(|()| out.flush()) {
                    // The reader closed the pipe early, for example `head`: that is not an error.
                    Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
                    _ => ExitCode::SUCCESS,
                }
            }
            Self::Usage(text) => {
                let _ = writeln!(std::io::stderr(), "error: {text}\n\nFor more information, try '--help'.");
                ExitCode::from(USAGE)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn arguments<'a>(line: &'a [&'a str]) -> impl Iterator<Item = OsString> + 'a {
        std::iter::once("etcd-relay").chain(line.iter().copied()).map(OsString::from)
    }

    /// The text with which the command line is refused.
    pub(super) fn refused(line: &[&str]) -> String {
        match parse(arguments(line), Build::default()).expect_err("refused") {
            Exit::Clap(error) => {
                assert!(error.use_stderr(), "{line:?} is refused");
                error.to_string()
            }
            Exit::Usage(text) => text,
            Exit::Text(_) => panic!("{line:?} is answered with a text"),
        }
    }

    pub(super) fn started(line: &[&str]) -> Start {
        match parse(arguments(line), Build::default()) {
            Ok(Task::Relay(start)) => *start,
            Ok(task) => panic!("{line:?} runs no relay: {task:?}"),
            Err(Exit::Clap(error)) => panic!("{line:?}: {error}"),
            Err(exit) => panic!("{line:?}: {exit:?}"),
        }
    }

    #[test]
    fn help_and_version_are_no_errors_and_all_else_is() {
        for line in [&["--help"][..], &["--version"], &["serve", "--help"], &["demo", "--help"]] {
            let Err(Exit::Clap(error)) = parse(arguments(line), Build::default()) else { panic!("{line:?} runs") };
            assert!(!error.use_stderr(), "{line:?}");
        }
        for line in [&[][..], &["fly"], &["serve", "--fly"], &["grpc-proxy"], &["grpc-proxy", "stop"]] {
            assert!(!refused(line).is_empty(), "{line:?}");
        }
    }

    #[test]
    fn the_flags_are_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
