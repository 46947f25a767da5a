//! `etcd-relay health`: whether a relay is ready, or at least alive, for probes of containers and for scripts.
//!
//! Not here: flags, see `cli::health`. Called by `main`. Always holds: one request, one line, and an end within the patience, whatever the relay does.

use std::io::{self, Write as _};

use thiserror::Error;

use crate::fetch::Fetcher;

/// Most of the relay's answer that is shown.
const MOST: usize = 1024;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether the process answers.
    Live,
    /// Whether it is of use to clients.
    Ready,
}

/// A relay to ask.
#[derive(Debug)]
pub struct Health {
    /// Asks it.
    pub fetcher: Fetcher,
    /// What.
    pub question: Question,
}

/// The answer, as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is a yes.
    pub is_well: bool,
    line: String,
}

/// Why nobody can be asked or told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HealthError {
    /// The system gives no timers.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// Standard output takes nothing.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

impl Health {
    /// Asks.
    ///
    /// # Errors
    /// Where the system gives no timers. That nobody answers is a verdict.
    pub fn run(mut self) -> Result<Verdict, HealthError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(HealthError::Start)?;
        Ok(runtime.block_on(self.ask()))
    }

    async fn ask(&mut self) -> Verdict {
        let path = match self.question {
            Question::Live => "/live",
            Question::Ready => "/ready",
        };
        match self.fetcher.get(path).await {
            Ok(answer) => {
                let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(MOST)]);
                Verdict::of(answer.status, &text)
            }
            Err(error) => Verdict { is_well: false, line: one_line(&error.to_string()) },
        }
    }
}

impl Verdict {
    /// Writes the line to standard output, and gives the exit code: 0 for a yes.
    ///
    /// # Errors
    /// Where standard output takes nothing.
    pub fn tell(&self) -> Result<u8, HealthError> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", self.line).and_then(|()| out.flush()).map_err(HealthError::Write)?;
        Ok(u8::from(!self.is_well))
    }

    fn of(status: u16, text: &str) -> Self {
        match status {
            200 => Self { is_well: true, line: one_line(text) },
            // `not ready:` and a line for each reason.
            503 => Self { is_well: false, line: one_line(text) },
            _ => Self { is_well: false, line: format!("answered {status}: {}", one_line(text)) },
        }
    }
}

/// The lines beside each other, with what is not printable escaped.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if !line.is_empty() {
            line.push_str(if line.ends_with(':') { " " } else { "; " });
        }
        line.extend(part.chars().flat_map(|char| {
            let escaped = (char.is_control() || !char.is_ascii()).then(|| char.escape_unicode());
            escaped.into_iter().flatten().chain(Some(char).filter(|char| !char.is_control() && char.is_ascii()))
        }));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ready_is_one_line_that_steers_no_terminal() {
        let verdict =
            Verdict::of(503, "not ready:\nfeed [\"/a/\", \"/a0\"): starting\nno member \u{1b}[2J\u{202e}answers\n");
        assert!(!verdict.is_well);
        assert_eq!(verdict.line, "not ready: feed [\"/a/\", \"/a0\"): starting; no member \\u{1b}[2J\\u{202e}answers");
        assert_eq!(Verdict::of(200, "ready\n"), Verdict { is_well: true, line: "ready".to_owned() });
        assert_eq!(Verdict::of(404, "No such\n").line, "answered 404: No such");
    }
}
