//! A progress bar on standard error while a run goes on, if that is a terminal.
//!
//! Counting is done elsewhere. Always holds: the bar is removed before the report is written.

use std::{
    io::{IsTerminal as _, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between two updates.
pub(super) const TICK: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn new() -> Self {
        let target =
            if stderr().is_terminal() { ProgressDrawTarget::stderr_with_hz(5) } else { ProgressDrawTarget::hidden() };
        Self(ProgressBar::with_draw_target(None, target))
    }

    /// Begins a stage of `all` items, or of an unknown number.
    pub(super) fn stage(&self, name: &'static str, all: Option<u64>) {
        let bar = if all.is_some() {
            "{msg:10} {wide_bar} {human_pos}/{human_len} {per_sec}"
        } else {
            "{msg:10} {spinner} {human_pos} {per_sec}"
        };
        if let Ok(style) = ProgressStyle::with_template(bar) {
            self.0.set_style(style);
        }
        self.0.reset();
        match all {
            Some(all) => self.0.set_length(all),
            None => self.0.unset_length(),
        }
        self.0.set_message(name);
    }

    pub(super) fn at(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
