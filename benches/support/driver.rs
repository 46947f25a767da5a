//! The sender: changes at an even pace, each noted before it is written, and what they cost the servers.
//!
//! Not here: which changes; see `cluster` and the scenarios.

use std::time::Duration;

use anyhow::{Context as _, Result};
use etcd_client::KvClient;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    cluster::Change,
    fleet::{Clock, Fleet, Scopes, Tally},
    process::Process,
};

/// How many changes, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Changes a second.
    pub rate: u32,
    /// For so many seconds.
    pub seconds: u32,
}

/// What a time cost.
#[derive(Debug)]
pub struct Cost {
    /// How long it was, from the first change to the last message.
    pub time: Duration,
    /// CPU time of the relay, of user and system.
    pub relay: Duration,
    /// CPU time of etcd.
    pub etcd: Duration,
}

/// What came of changes.
#[derive(Debug)]
pub struct Measured {
    /// How many there were.
    pub changes: u32,
    /// What they cost.
    pub cost: Cost,
    /// What the watchers saw.
    pub tally: Tally,
}

/// What is measured, and who watches.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The relay, where there is one.
    pub relay: Option<&'a Process>,
    /// Its etcd.
    pub etcd: &'a Process,
}

impl Subject<'_> {
    /// What nothing costs, for some seconds.
    pub async fn idle(self, seconds: u32) -> Result<Cost> {
        self.cost(sleep(Duration::from_secs(seconds.into()))).await.map(|(cost, ())| cost)
    }

    /// What something costs.
    pub async fn cost<T>(self, what: impl Future<Output = T>) -> Result<(Cost, T)> {
        let usage = || -> Result<_> { Ok((self.relay.map(Process::usage).transpose()?, self.etcd.usage()?)) };
        let start = Instant::now();
        let before = usage()?;
        let done = what.await;
        let after = usage()?;
        let relay = after.0.zip(before.0).map_or(Duration::ZERO, |(after, before)| after.since(&before));
        Ok((Cost { time: start.elapsed(), relay, etcd: after.1.since(&before.1) }, done))
    }

    /// Sends changes, waits until all watchers have what comes of them, and compares what they have with a GET.
    pub async fn drive(
        self,
        client: &mut KvClient,
        fleet: &Fleet,
        clock: Clock,
        pace: Pace,
        next: impl FnMut() -> Change,
    ) -> Result<Measured> {
        fleet.begin();
        let scopes = fleet.scopes();
        let sent = async {
            let revision = send(client, &scopes, clock, pace, next).await?;
            fleet.settle().await?;
            anyhow::Ok(revision)
        };
        let (cost, revision) = self.cost(sent).await?;
        let revision = revision?;
        let tally = fleet.tally()?;
        fleet.verify(revision).await?;
        Ok(Measured { changes: pace.rate * pace.seconds, cost, tally })
    }
}

/// Sends changes, and gives the revision of the last.
pub async fn send(
    client: &mut KvClient,
    scopes: &Scopes,
    clock: Clock,
    pace: Pace,
    mut next: impl FnMut() -> Change,
) -> Result<i64> {
    let start = Instant::now();
    let mut revision = 0;
    for number in 0..pace.rate * pace.seconds {
        sleep_until(start + Duration::from_secs(1) * number / pace.rate).await;
        let change = next();
        scopes.note(&change, clock.nanos());
        let header = match change.value {
            Some(value) => client.put(change.key, value, None).await.context("put")?.take_header(),
            None => client.delete(change.key, None).await.context("delete")?.take_header(),
        };
        revision = header.context("an answer of etcd without a header")?.revision();
    }
    Ok(revision)
}
