//! `etcd-relay health`: reports whether a relay is ready, or at least alive, for probes of containers and for scripts.
//!
//! Not here: flags, see `cli::health`. Called by `main`. Always holds: it makes one request, writes one line, and ends
//! within the timeout, whatever the relay does.

use std::io::{self, Write as _};

use thiserror::Error;

use crate::fetch::Fetcher;

/// The most bytes of the relay's answer that are shown.
const MOST: usize = 1024;

/// What to ask the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether the process answers.
    Live,
    /// Whether it is ready to serve clients.
    Ready,
}

/// A relay, and what to ask it.
#[derive(Debug)]
pub struct Health {
    /// Sends the request.
    pub fetcher: Fetcher,
    /// What to ask.
    pub question: Question,
}

/// The answer, as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the answer is yes.
    pub is_well: bool,
    line: String,
}

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HealthError {
    /// The system gives no timers.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

impl Health {
    /// Asks the relay.
    ///
    /// # Errors
    /// If the system gives no timers. If the relay does not answer, that is a verdict.
    pub fn run(mut self) -> Result<Verdict, HealthError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(HealthError::Start)?;
        Ok(runtime.block_on(self.request()))
    }

    async fn request(&mut self) -> Verdict {
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
    /// Writes the line to standard output, and returns the exit code, which is 0 for yes.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub fn print(&self) -> Result<u8, HealthError> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", self.line).and_then(|()| out.flush()).map_err(HealthError::Write)?;
        Ok(u8::from(!self.is_well))
    }

    fn of(status: u16, text: &str) -> Self {
        match status {
            200 => Self { is_well: true, line: one_line(text) },
            // `not ready:` and one line for each reason.
            503 => Self { is_well: false, line: one_line(text) },
            _ => Self { is_well: false, line: format!("answered {status}: {}", one_line(text)) },
        }
    }
}

/// Joins the lines, and escapes characters that are not printable.
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
