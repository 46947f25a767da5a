//! The command line: flags and environment variables become a [`relay::Config`].
//!
//! Not here: anything that runs. Always holds: a value that makes no sense ends the start with exit code 64 and a text that
//! names the flag, before a port is bound.

mod serve;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    relay::{self, Relay},
    telemetry::logging,
};

/// The exit code for wrong usage (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

/// What to run.
#[derive(Clone, Debug)]
pub struct Start {
    /// The relay.
    pub config: relay::Config,
    /// What is logged, and how.
    pub logging: logging::Config,
    /// To be logged once, at the start.
    warnings: Vec<String>,
}

/// What to say before ending, and with which code.
#[derive(Debug)]
pub enum Exit {
    /// Help or version was asked for, or clap found the flags wrong.
    Clap(clap::Error),
    /// A value makes no sense.
    Usage(String),
}

#[derive(Debug, Parser)]
#[command(name = "etcd-relay", version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Relay an etcd cluster
    Serve(Box<serve::Serve>),
}

/// Reads a command line.
///
/// # Errors
/// Where there is nothing to run.
pub fn parse<I>(arguments: I) -> Result<Start, Exit>
where
    I: IntoIterator<Item = OsString>,
{
    match Cli::try_parse_from(arguments).map_err(Exit::Clap)?.command {
        Command::Serve(serve) => serve.start(),
    }
}

impl Start {
    /// Logs what the operator should know about the flags.
    pub fn warn(&self) {
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
    }

    /// Tells that the ports are bound, in the words that each command's users wait for.
    pub fn announce(&self, _relay: &Relay) {}
}

impl Exit {
    /// Says it, and gives the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Clap(error) => {
                // Nothing is left to do where even this cannot be written.
                let _ = error.print();
                if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
            }
            Self::Usage(text) => {
                let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("error: {text}\n").as_bytes());
                ExitCode::from(USAGE)
            }
        }
    }
}
