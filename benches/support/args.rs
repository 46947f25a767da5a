//! The command line of the benchmark.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::cluster::Size;

/// Lainlet's views under load: a real etcd, the relay, a made-up cluster that changes, and thousands of watchers that check what
/// they get. Ends with an error where one got what it should not have, and whatever the figures are.
#[derive(Debug, Parser)]
#[command(name = "views", max_term_width = 120)]
pub struct Args {
    /// What to measure; all where none is named
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

    /// Watchers; 1000 in `config`, 2000 in `cluster`
    #[arg(long)]
    pub watchers: Option<usize>,

    /// Changes a second; 20 in `config`, 100 in `cluster`, 200 in `scale`
    #[arg(long)]
    pub rate: Option<u32>,

    /// How long each part goes on
    #[arg(long, default_value_t = 15)]
    pub seconds: u32,

    /// What the cluster and its changes are made from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Another relay than the one built with this benchmark
    #[arg(long, value_name = "PATH")]
    pub relay: Option<PathBuf>,

    /// One JSON document instead of tables
    #[arg(long)]
    pub json: bool,

    /// What `cargo bench` always says
    #[arg(long, hide = true)]
    bench: bool,
}

/// A thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// 1,000 watchers of one configuration value that changes 20 times a second
    Config,
    /// GETs of small views over 64 connections, as fast as they go
    Get,
    /// 2,000 watchers over all views and their usual targets, 100 changes a second of which few are seen
    Cluster,
    /// What a change costs with 100, 1,000 and 5,000 apps
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
