//! Log lines on standard error, as text or as JSON.
//!
//! Not here: what is logged at which level; each caller decides that. Set up once, by `main`.

use std::io::{self, IsTerminal as _};

use clap::ValueEnum;
use thiserror::Error;
use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt::MakeWriter, util::TryInitError};

/// The relay's own modules, as filters name them.
const OWN: &str = "etcd_relay";

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
    /// Whether standard error goes to systemd's journal, which takes the priority of a line from its first characters.
    pub journal: bool,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { format: Format::default(), filter: "info".to_owned(), journal: false }
    }
}

/// Why logging cannot be set up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoggingError {
    /// A part of the filter is neither a level nor a module with a level.
    #[error(
        "`{part}` is not a log level; write error, warn, info, debug, trace or off, or name a module with its level, such as \
         info,etcd_relay::hub=debug"
    )]
    Level {
        /// The part.
        part: String,
    },
    /// The filter does not parse.
    #[error("`{filter}` is not a log filter: {cause}; try `info`, or `info,etcd_relay::hub=debug`")]
    Filter {
        /// The filter that was given.
        filter: String,
        /// The parser's message.
        cause: ParseError,
    },
    /// The process has a logger already.
    #[error("cannot set up logging")]
    Install(#[from] TryInitError),
}

/// Parses a level or a filter: levels, and modules with their levels, separated by commas. A level below `info` applies
/// to the relay's own modules: its libraries, which log a line for each frame, stay at `info` unless they are named.
/// Whatever no part names is logged from `info` on.
///
/// # Errors
/// If a part is neither a level nor a module with one. A misspelt level would be taken for a module, and nothing else
/// would be logged any more.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, LoggingError> {
    let spelled = spell(filter)?;
    EnvFilter::builder().parse(spelled).map_err(|cause| LoggingError::Filter { filter: filter.to_owned(), cause })
}

/// The same filter with a base level, and with the canonical names of levels.
fn spell(filter: &str) -> Result<String, LoggingError> {
    let mut base = "info";
    let mut parts = Vec::new();
    for part in split(filter) {
        let named = part.rsplit_once('=').filter(|(module, _)| !module.trim().is_empty() && is_whole(module));
        let (module, word) = named.map_or((None, part), |(module, word)| (Some(module.trim()), word));
        let level = level(word.trim()).ok_or_else(|| LoggingError::Level { part: part.to_owned() })?;
        match (module, level) {
            (Some(module), level) => parts.push(format!("{module}={level}")),
            (None, "debug" | "trace") => parts.push(format!("{OWN}={level}")),
            (None, level) => base = level,
        }
    }
    parts.insert(0, base.to_owned());
    Ok(parts.join(","))
}

/// Splits at the commas that are not within `[span{fields}]`.
fn split(filter: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    filter
        .split(move |char| {
            match char {
                '[' | '{' => depth += 1,
                ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            char == ',' && depth == 0
        })
        .map(str::trim)
}

/// Whether it ends outside all brackets, so that the `=` after it does not belong to a field.
fn is_whole(module: &str) -> bool {
    module.matches(['[', '{']).count() == module.matches([']', '}']).count()
}

/// The level that a word means, under any of its usual names.
fn level(word: &str) -> Option<&'static str> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let word = if word.eq_ignore_ascii_case("warning") { "warn" } else { word };
    levels.into_iter().find(|level| level.eq_ignore_ascii_case(word))
}

/// Starts logging.
///
/// # Errors
/// If the filter does not parse, or logging was started before.
pub fn install(config: &LoggingConfig) -> Result<(), LoggingError> {
    use tracing_subscriber::util::SubscriberInitExt as _;

    let filter = parse_filter(&config.filter)?;
    let terminal = io::stderr().is_terminal();
    // The reader of standard error may be gone. The library would report that on standard error, and panic in the task
    // that logs.
    let writer = Lines { journal: config.journal };
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).log_internal_errors(false);
    match (config.format, terminal) {
        (Format::Text, _) | (Format::Auto, true) => base.with_ansi(terminal).finish().try_init()?,
        (Format::Json, _) | (Format::Auto, false) => base.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

/// Where lines go.
#[derive(Clone, Copy, Debug)]
struct Lines {
    journal: bool,
}

/// Writes one line, with its priority before it.
#[derive(Debug)]
struct Line {
    priority: &'static str,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { priority: "" }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        Line { priority: if self.journal { priority(*meta.level()) } else { "" } }
    }
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    /// In one piece, so that no other thread's line comes between the priority and its line.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.priority.is_empty() {
            return io::stderr().write_all(bytes);
        }
        let line = [self.priority.as_bytes(), bytes].concat();
        self.priority = "";
        io::stderr().write_all(&line)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// As sd-daemon(3) writes it. What is only of use to those who look for a fault is `debug` to the journal too.
const fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let error = parse_filter("info,a[b{c=d}=debug").expect_err("not a filter");
        assert!(error.to_string().contains("a[b{c=d}"), "{error}");
        parse_filter("info,etcd_relay::hub=debug").expect("a filter");
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_and_would_not_end_all_logging() {
        for filter in ["", " ", "loud", "info,loud", "etcd_relay", "h2=loud", "5", "info,,warn", "=debug", "h2="] {
            let error = parse_filter(filter).expect_err(filter).to_string();
            assert!(error.contains("error, warn, info, debug, trace or off"), "{filter}: {error}");
        }
    }

    #[test]
    fn levels_have_several_names_and_leave_libraries_at_info() {
        for (filter, want) in [
            ("info", "info"),
            ("Warning", "warn"),
            ("off", "off"),
            ("error", "error"),
            ("debug", "info,etcd_relay=debug"),
            ("TRACE,h2=debug", "info,etcd_relay=trace,h2=debug"),
            ("warn, etcd_relay::hub = debug", "warn,etcd_relay::hub=debug"),
            ("etcd_relay::hub=debug", "info,etcd_relay::hub=debug"),
            ("info,etcd_relay[call{id=1}]=trace", "info,etcd_relay[call{id=1}]=trace"),
        ] {
            assert_eq!(spell(filter).expect(filter), want, "{filter}");
            parse_filter(filter).expect(filter);
        }
    }
}
