//! The cost of a change as the cluster grows and the watchers stay the same: each watches one app, and later one of
//! them watches all.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Lab, beyond};
use crate::support::{
    args::Args,
    cluster::{Cluster, Size, shown},
    driver::{Measured, Pace, Subject},
    fleet::{Fleet, Sent, Watch},
    report::{Report, Table, mib, micros_each, quantile_ms},
};

const APPS: [usize; 3] = [100, 1_000, 5_000];
/// Number of watched apps, each with a watcher of each of [`VIEWS`]: the same in small and large clusters.
const WATCHED: usize = 100;
const VIEWS: [&str; 3] = ["procwatcher", "proxywatcher", "coreinfowatcher"];
const RATE: u32 = 200;
const IDLE_SECONDS: u32 = 5;

/// Runs the scenario.
pub async fn run(args: &Args) -> Result<Report> {
    let pace = Pace { rate: args.rate.unwrap_or(RATE), seconds: args.seconds };
    let mut table = Table::new(&[
        "apps",
        "watchers",
        "keys",
        "MB",
        "relay MiB",
        "unseen µs/change",
        "seen µs/change",
        "seen µs/message",
        "p99 ms",
        "seen, with one of *: µs/change",
        "MB sent",
    ]);
    for apps in APPS {
        table.row(with(args, apps, pace).await?);
    }
    let title =
        format!("scale: watchers of {WATCHED} apps, {} changes a second for {} s a part", pace.rate, pace.seconds);
    Ok(Report::new(title)
        .table(table)
        .note("changes are of the apps that are watched; unseen ones move times only, seen ones replace an instance")
        .note("µs of the relay are beyond what it uses when nothing changes; the one of * gets the whole of coreinfowatcher"))
}

async fn with(args: &Args, apps: usize, pace: Pace) -> Result<[Value; 11]> {
    let mut lab = Lab::new(args, Size { apps, ..args.size() }).await?;
    let fleet = Fleet::open(lab.relay.addr(), watches(&lab.cluster), lab.clock).await?;
    let subject = Subject { relay: Some(lab.relay.process()), etcd: lab.etcd.process() };
    let cluster = &mut lab.cluster;
    let idle = subject.idle(IDLE_SECONDS).await?;
    let each = |measured: &Measured, of: u64| micros_each(beyond(&measured.cost, &idle), of);

    let refresh = || cluster.refresh_of_first(WATCHED);
    let unseen = subject.drive(&mut lab.client, &fleet, lab.clock, pace, refresh).await?;
    let replace = || cluster.replace_instance_of_first(WATCHED);
    let seen = subject.drive(&mut lab.client, &fleet, lab.clock, pace, replace).await?;
    let watchers = fleet.len();
    drop(fleet);

    let mut all = watches(cluster);
    all.push(Watch {
        uri: "/v2/coreinfowatcher".to_owned(),
        heartbeat: 0,
        shows: shown("coreinfowatcher", "*"),
        sent: Sent::WithSender,
    });
    let fleet = Fleet::open(lab.relay.addr(), all, lab.clock).await?;
    let replace = || cluster.replace_instance_of_first(WATCHED);
    let with_all = subject.drive(&mut lab.client, &fleet, lab.clock, pace, replace).await?;

    Ok([
        json!(apps),
        json!(watchers),
        json!(lab.keys),
        json!(lab.bytes / 1_000_000),
        mib(lab.relay.process().resident_bytes()?),
        each(&unseen, unseen.changes.into()),
        each(&seen, seen.changes.into()),
        each(&seen, seen.tally.states),
        quantile_ms(&seen.tally.delays, 0.99),
        each(&with_all, with_all.changes.into()),
        json!(with_all.tally.bytes / 1_000_000),
    ])
}

fn watches(cluster: &Cluster) -> Vec<Watch> {
    let apps = cluster.apps();
    let watch = |view: &str, app: &str| Watch {
        uri: format!("/v2/{view}?appname={app}"),
        heartbeat: 0,
        shows: shown(view, app),
        sent: Sent::WithSender,
    };
    apps.iter().take(WATCHED).flat_map(|app| VIEWS.map(|view| watch(view, app))).collect()
}
