//! The scenarios, one file each. Each starts its own etcd and relay.
//!
//! Measurements are never judged. A scenario fails if a watcher received something wrong, and never because it was
//! slow.

pub mod cluster;
pub mod config;
pub mod get;
pub mod scale;

use std::time::Duration;

use anyhow::{Context as _, Result};
use etcd_client::KvClient;

use super::{
    args::Args,
    cluster::{Cluster, Size},
    driver::{Cost, Subject},
    etcd::Etcd,
    fleet::Clock,
    relay::Relay,
};

/// An etcd with a cluster in it, and a relay in front of it.
struct Lab {
    etcd: Etcd,
    relay: Relay,
    cluster: Cluster,
    client: KvClient,
    clock: Clock,
    keys: usize,
    bytes: usize,
}

impl Lab {
    async fn new(args: &Args, size: Size) -> Result<Self> {
        let cluster = Cluster::new(size, args.seed);
        let etcd = Etcd::start().await?;
        let (keys, bytes) = etcd.load(cluster.entries()).await.context("load the cluster into etcd")?;
        let relay = Relay::start(&etcd, args.relay.as_deref()).await?;
        let client = etcd.client().await?;
        Ok(Self { etcd, relay, cluster, client, clock: Clock::new(), keys, bytes })
    }

    fn subject(&self) -> Subject<'_> {
        Subject { relay: Some(self.relay.process()), etcd: self.etcd.process() }
    }
}

/// The cost of changes for the relay beyond that of an idle period.
fn beyond(cost: &Cost, idle: &Cost) -> Duration {
    cost.relay.saturating_sub(idle.relay.mul_f64(cost.time.as_secs_f64() / idle.time.as_secs_f64()))
}
