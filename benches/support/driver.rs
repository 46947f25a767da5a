//! Sends changes at an even rate, records each before it is written, and measures their cost for the servers.
//!
//! The changes are in `cluster` and the scenarios.

use std::time::Duration;

use anyhow::{Context as _, Result};
use etcd_client::KvClient;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    cluster::Change,
    fleet::{Clock, Fleet, Scopes, Tally},
    process::Process,
};

/// The number and rate of changes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Changes a second.
    pub rate: u32,
    /// Duration in seconds.
    pub seconds: u32,
}

/// The cost of a period.
#[derive(Debug)]
pub struct Cost {
    /// Its duration, from the first change to the last message.
    pub time: Duration,
    /// CPU time of the relay, of user and system.
    pub relay: Duration,
    /// CPU time of etcd.
    pub etcd: Duration,
}

/// The result of changes.
#[derive(Debug)]
pub struct Measured {
    /// Number of changes.
    pub changes: u32,
    /// Their cost.
    pub cost: Cost,
    /// What the watchers saw.
    pub tally: Tally,
}

/// The servers that are measured.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The relay, if there is one.
    pub relay: Option<&'a Process>,
    /// Its etcd.
    pub etcd: &'a Process,
}

impl Subject<'_> {
    /// Measures the cost of an idle period.
    pub async fn idle(self, seconds: u32) -> Result<Cost> {
        self.cost(sleep(Duration::from_secs(seconds.into()))).await.map(|(cost, ())| cost)
    }

    /// Measures the cost of a future.
    pub async fn cost<T>(self, what: impl Future<Output = T>) -> Result<(Cost, T)> {
        let usage = || -> Result<_> { Ok((self.relay.map(Process::usage).transpose()?, self.etcd.usage()?)) };
        let start = Instant::now();
        let before = usage()?;
        let done = what.await;
        let after = usage()?;
        let relay = after.0.zip(before.0).map_or(Duration::ZERO, |(after, before)| after.since(&before));
        Ok((Cost { time: start.elapsed(), relay, etcd: after.1.since(&before.1) }, done))
    }

    /// Sends changes, waits until all watchers have received them, and compares their states with a GET.
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

/// Sends changes and returns the revision of the last one.
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
