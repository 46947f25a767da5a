//! [`Findings`]: what was wrong, told at once and kept for the end, and how much was looked at.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Kept in full; what is found beyond that is counted.
const KEPT: usize = 20;

/// Characters of it that are shown at once.
const SHOWN: usize = 160;

/// What was wrong so far.
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

    /// Something is wrong.
    pub fn add(&self, text: &str) {
        let text = format!("{:7.2} s: {text}", self.clock().as_secs_f64());
        let mut found = self.found.lock();
        found.0 += 1;
        if found.1.len() < KEPT {
            println!("WRONG {}", text.chars().take(SHOWN).collect::<String>());
            found.1.push(text);
        }
    }

    /// Something was looked at, and counted as such.
    pub fn judged(&self, what: &'static str, count: usize) {
        *self.judged.lock().entry(what).or_default() += count as u64;
    }

    /// How many things are wrong.
    pub fn wrong(&self) -> usize {
        self.found.lock().0
    }

    /// What was looked at, in a line.
    pub fn summary(&self) -> String {
        let judged = self.judged.lock();
        judged.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    }

    /// All that is wrong.
    pub fn report(&self) -> String {
        let found = self.found.lock();
        let mut text = found.1.join("\n");
        if found.0 > found.1.len() {
            let _to_a_string = write!(text, "\nand {} more", found.0 - found.1.len());
        }
        text
    }
}
