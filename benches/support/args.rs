//! The command line of the benchmark.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::cluster::Size;

/// Puts load on Lainlet's views: a real etcd, the relay, a generated cluster that changes, and thousands of watchers
/// that check what they get. It fails only if one of them got something wrong, never because of a measurement.
#[derive(Debug, Parser)]
#[command(name = "views", max_term_width = 120)]
pub struct Args {
    /// Scenarios to measure. Default: all
    #[arg(value_enum)]
    pub scenarios: Vec<Scenario>,

    /// Apps of the cluster
    #[arg(long, default_value_t = 1_000)]
    pub apps: usize,

    /// Nodes of the cluster
    #[arg(long, default_value_t = 100)]
    pub nodes: usize,

    /// Process types of an app
    #[arg(long, default_value_t = 3)]
    pub procs: usize,

    /// Instances of a process type
    #[arg(long, default_value_t = 2)]
    pub instances: usize,

    /// Number of watchers. Default: 1000 in `config`, 2000 in `cluster`
    #[arg(long)]
    pub watchers: Option<usize>,

    /// Changes per second. Default: 20 in `config`, 100 in `cluster`, 200 in `scale`
    #[arg(long)]
    pub rate: Option<u32>,

    /// Duration of each part in seconds
    #[arg(long, default_value_t = 15)]
    pub seconds: u32,

    /// Seed of the cluster and its changes
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Relay to use instead of the one built with this benchmark
    #[arg(long, value_name = "PATH")]
    pub relay: Option<PathBuf>,

    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,

    /// Passed by `cargo bench`; ignored
    #[arg(long, hide = true)]
    bench: bool,
}

/// A scenario to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// 1,000 watchers of one configuration value that changes 20 times a second
    Config,
    /// GETs of small views over 64 connections, as fast as possible
    Get,
    /// 2,000 watchers of all views with their usual targets, with 100 changes per second of which few are visible
    Cluster,
    /// The cost of a change with 100, 1,000 and 5,000 apps
    Scale,
}

impl Args {
    /// What to measure.
    pub fn scenarios(&self) -> Vec<Scenario> {
        if self.scenarios.is_empty() { Scenario::value_variants().to_vec() } else { self.scenarios.clone() }
    }

    /// The cluster.
    pub fn size(&self) -> Size {
        Size { apps: self.apps, nodes: self.nodes, procs: self.procs, instances: self.instances }
    }
}
