//! [`Findings`]: everything that was wrong, printed at once and kept for the end, and the number of checks.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Most findings that are kept in full; further ones are only counted.
const KEPT: usize = 20;

/// Most characters that are printed at once.
const SHOWN: usize = 160;

/// The findings so far.
#[derive(Debug)]
pub struct Findings {
    began: Instant,
    found: Mutex<(usize, Vec<String>)>,
    judged: Mutex<BTreeMap<&'static str, u64>>,
}

impl Findings {
    /// Nothing so far.
    pub fn new() -> Self {
        Self { began: Instant::now(), found: Mutex::default(), judged: Mutex::default() }
    }

    /// Since the run began.
    pub fn clock(&self) -> Duration {
        self.began.elapsed()
    }

    /// Records a finding.
    pub fn add(&self, text: &str) {
        let text = format!("{:7.2} s: {text}", self.clock().as_secs_f64());
        let mut found = self.found.lock();
        found.0 += 1;
        if found.1.len() < KEPT {
            println!("WRONG {}", text.chars().take(SHOWN).collect::<String>());
            found.1.push(text);
        }
    }

    /// Counts a check.
    pub fn judged(&self, what: &'static str, count: usize) {
        *self.judged.lock().entry(what).or_default() += count as u64;
    }

    /// The number of findings.
    pub fn wrong(&self) -> usize {
        self.found.lock().0
    }

    /// The number of checks, in one line.
    pub fn summary(&self) -> String {
        let judged = self.judged.lock();
        judged.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    }

    /// All findings.
    pub fn report(&self) -> String {
        let found = self.found.lock();
        let mut text = found.1.join("\n");
        if found.0 > found.1.len() {
            let _to_a_string = write!(text, "\nand {} more", found.0 - found.1.len());
        }
        text
    }
}
