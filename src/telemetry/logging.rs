//! Log lines on standard error, as text or as JSON.
//!
//! Not here: what is logged at which level; that is decided where it is logged. Set up once, by `main`.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use thiserror::Error;
use tracing_subscriber::{EnvFilter, filter::ParseError, util::TryInitError};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text where standard error is a terminal, JSON where it is not
    #[default]
    Auto,
    /// One line of text each, for people
    Text,
    /// One JSON object each, for machines
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingConfig {
    /// The look of a line.
    pub format: Format,
    /// A level (`info`) or a filter by module (`info,etcd_relay::hub=debug`).
    pub filter: String,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { format: Format::default(), filter: "info".to_owned() }
    }
}

/// Why nothing can be logged.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoggingError {
    /// The filter does not parse.
    #[error("`{filter}` is not a log level or filter: {cause}; try `info`, or `info,etcd_relay::hub=debug`")]
    Filter {
        /// What was asked.
        filter: String,
        /// What the parser says.
        cause: ParseError,
    },
    /// The process logs already.
    #[error("cannot set up logging")]
    Install(#[from] TryInitError),
}

/// Parses a level or filter.
///
/// # Errors
/// [`LoggingError::Filter`] where it is neither.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder().parse(filter).map_err(|cause| LoggingError::Filter { filter: filter.to_owned(), cause })
}

/// Starts logging.
///
/// # Errors
/// Where the filter does not parse or logging was started before.
pub fn install(config: &LoggingConfig) -> Result<(), LoggingError> {
    use tracing_subscriber::util::SubscriberInitExt as _;

    let filter = parse_filter(&config.filter)?;
    let terminal = io::stderr().is_terminal();
    // Whoever read standard error may be gone. The library would say so on standard error, and panic in the task that logs.
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    match (config.format, terminal) {
        (Format::Text, _) | (Format::Auto, true) => base.with_ansi(terminal).finish().try_init()?,
        (Format::Json, _) | (Format::Auto, false) => base.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let error = parse_filter("info,=lots").expect_err("not a filter");
        assert!(error.to_string().contains("`info,=lots`"), "{error}");
        parse_filter("info,etcd_relay::hub=debug").expect("a filter");
    }
}
