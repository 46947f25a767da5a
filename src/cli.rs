//! The command line: flags and environment variables become a [`relay::RelayConfig`], a load to run, a look at a relay, or a text about the program.
//!
//! Not here: anything that runs. Called by `main` alone.
//! Always holds: a value that makes no sense ends the start with exit code 64 and a text that names the flag, before a port is
//! bound.

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
    telemetry::logging,
    top::Top,
};

/// The exit code for wrong usage (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

/// What to do.
#[derive(Debug)]
pub enum Task {
    /// Run a relay.
    Relay(Box<Start>),
    /// Run a load.
    Bench(Box<BenchTask>),
    /// Show a relay's state.
    Top(Box<Top>),
    /// Ask whether a relay is well.
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
    /// To be logged once, at the start.
    warnings: Vec<String>,
    announce: Announce,
}

/// Why a load has no report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchFailure {
    /// It could not be run.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The report could not be written.
    #[error("cannot write the report")]
    Write(#[from] std::io::Error),
}

/// What to say before ending, and with which code.
#[derive(Debug)]
pub enum Exit {
    /// Help or version was asked for, or clap found the flags wrong.
    Clap(clap::Error),
    /// A text for standard output was asked for.
    Text(Vec<u8>),
    /// A value makes no sense.
    Usage(String),
}

/// One upstream etcd watch per key prefix, fanned out to thousands of subscribers over etcd's own v3 API.
#[derive(Debug, Parser)]
#[command(name = "etcd-relay", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Relay an etcd cluster, or another relay
    Serve(Box<serve::Serve>),
    /// Try it out: relay a store in memory with example data that keeps changing
    Demo(Box<demo::Demo>),
    /// Load any server of etcd's API, or Lainlet's views, check every answer, and report the cost
    Bench(Box<bench::BenchCommand>),
    /// Show a relay's state in a terminal, or once as text
    Top(Box<look::TopCommand>),
    /// Ask whether a relay is ready or alive, for probes
    Health(Box<look::HealthCommand>),
    /// Write the version, and the commit that it was built from
    Version,
    /// Write a script that completes commands and flags in a shell
    Completions(pages::CompletionsCommand),
    /// Write manual pages
    Man(pages::ManCommand),
    /// Take the place of `etcd grpc-proxy start`: the same command and flags
    #[command(disable_help_flag = true)]
    GrpcProxy {
        /// `start`, and the flags of `etcd grpc-proxy start`; see `grpc-proxy start --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Reads a command line, the program's name first, of a program that was built so.
///
/// # Errors
/// Where there is nothing to run.
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

/// The exit code of a command that does not log: its own, or that of an error, which is written to standard error.
pub fn end(ended: Result<u8, impl std::error::Error>) -> ExitCode {
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let mut text = format!("error: {error}");
            for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
                text += &format!(": {cause}");
            }
            // Where not even this can be written, nothing is left to do but to end.
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

impl Start {
    /// Logs what runs, and what the operator should know about the flags.
    pub fn log(&self, build: Build) {
        announce::starting(&self.config, build);
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
    }

    /// Tells that the ports are bound, in the words that each command's users wait for.
    pub fn announce(&self, relay: &Relay) {
        self.announce.say(relay);
    }
}

impl BenchTask {
    /// Runs it, and writes the report to standard output. Whether nothing was wrong.
    ///
    /// # Errors
    /// Where it cannot be run, or the report cannot be written.
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
    /// Says it, and gives the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        // Where not even this can be written, nothing is left to do but to end.
        match self {
            Self::Clap(error) => {
                let _ = error.print();
                if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
            }
            Self::Text(text) => {
                let mut out = std::io::stdout().lock();
                match out.write_all(text).and_then(|()| out.flush()) {
                    // Whoever wanted only the beginning has it.
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

    /// The text of a refusal.
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
