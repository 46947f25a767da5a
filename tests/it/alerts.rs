//! The alerts for Prometheus, the board for Grafana and the runbooks: they are right by themselves, they name what a
//! relay has, and alerts fire on trouble that real relays are in.
//!
//! Not here: the unit tests of the rules, which are `deploy/alerts_test.yaml`. Where promtool cannot be had
//! (`scripts/promtool`), what needs it says so and passes.

mod names;
mod pages;
mod recording;
mod trouble;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const RULES: &str = "deploy/alerts.yaml";
const TESTS: &str = "deploy/alerts_test.yaml";
const BOARD: &str = "deploy/grafana/etcd-relay.json";
const RUNBOOKS: &str = "docs/runbooks.md";

#[test]
fn the_rules_are_valid_and_their_unit_tests_pass() {
    let Some(promtool) = promtool() else { return };
    run(&promtool, &["check", "rules"], &root().join(RULES));
    run(&promtool, &["test", "rules"], &root().join(TESTS));
}

/// The program, or `None` where it cannot be had.
fn promtool() -> Option<PathBuf> {
    let found = Command::new(root().join("scripts/promtool")).output().expect("the script runs");
    if found.status.success() {
        return Some(Path::new(String::from_utf8_lossy(&found.stdout).trim()).join("promtool"));
    }
    eprintln!("promtool is left out: {}", String::from_utf8_lossy(&found.stderr));
    None
}

/// Runs promtool on a file, and fails with its words.
#[track_caller]
fn run(promtool: &Path, command: &[&str], file: &Path) {
    let output = Command::new(promtool).args(command).arg(file).output().expect("promtool runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {}: {said}", command.join(" "));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of all alerts, each as often as there are rules of that name.
fn alerts(rules: &str) -> Vec<&str> {
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}
