//! A rack of watchers of all views, each with the usual targets of its kind of client, while the cluster changes as
//! usual: many writes that no view shows, and a few that some views show.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Lab, beyond};
use crate::support::{
    args::Args,
    cluster::{CONFIG, Change, Cluster, NODES, POD_GROUPS, PORTALS, shown},
    driver::{Cost, Measured, Pace, Subject, send},
    fleet::{Fleet, Scopes, Sent, Watch},
    report::{Report, Table, mib, micros_each, percent, quantile_ms},
};

const WATCHERS: usize = 2_000;
const RATE: u32 = 100;
/// The prefixes that the views read, which is also the number of watches that etcd should have.
const PREFIXES: [&str; 4] = [CONFIG, POD_GROUPS, PORTALS, NODES];
/// Of 1,000 changes, those that are visible in a view.
const SEEN: u32 = 130;
/// Duration of the idle period.
const IDLE_SECONDS: u32 = 10;
/// Longest wait until a plain watcher has everything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the scenario.
pub async fn run(args: &Args) -> Result<Report> {
    let size = args.size();
    let mut lab = Lab::new(args, size).await?;
    let watches = watches(&lab.cluster, args.watchers.unwrap_or(WATCHERS));
    let pace = Pace { rate: args.rate.unwrap_or(RATE), seconds: args.seconds };
    let empty = lab.relay.process().resident_bytes()?;
    let fleet = Fleet::open(lab.relay.addr(), watches, lab.clock).await?;
    let opened = lab.relay.process().resident_bytes()?;
    let watchers = lab.etcd.watchers().await?;
    ensure!(
        watchers <= PREFIXES.len() as u64,
        "etcd holds {watchers} watches for {} watchers of views, and there are {} prefixes",
        fleet.len(),
        PREFIXES.len()
    );

    let mut table = Table::new(&[
        "part",
        "changes",
        "expected",
        "messages",
        "heartbeats",
        "MB sent",
        "relay CPU %",
        "µs/change",
        "µs/message",
        "etcd µs/change",
        "p50 ms",
        "p99 ms",
        "p50 ms of *",
        "p99 ms of *",
    ]);
    let mut rng = StdRng::seed_from_u64(args.seed);
    let subject = Subject { relay: Some(lab.relay.process()), etcd: lab.etcd.process() };
    fleet.begin();
    let idle = subject.idle(IDLE_SECONDS).await?;
    table.row(idle_row(&idle, fleet.tally()?.heartbeats));
    let cluster = &mut lab.cluster;
    let unseen = subject.drive(&mut lab.client, &fleet, lab.clock, pace, || unseen(cluster, &mut rng)).await?;
    table.row(row("unseen changes", &unseen, &idle));
    let mixed = subject.drive(&mut lab.client, &fleet, lab.clock, pace, || usual(cluster, &mut rng)).await?;
    table.row(row("usual changes", &mixed, &idle));
    let after = lab.relay.process().resident_bytes()?;
    let streams = fleet.len();

    drop(fleet);
    drop(lab.relay);
    let plain = plain(&lab.etcd, async |client| {
        let clock = lab.clock;
        send(client, &Scopes::default(), clock, pace, || usual(cluster, &mut rng)).await
    });
    let plain = plain.await?;

    let title = format!(
        "cluster: {} apps, {} nodes, {} keys of {} MB; {streams} watchers over all views; {} changes a second, {} s a part",
        size.apps,
        size.nodes,
        lab.keys,
        lab.bytes / 1_000_000,
        pace.rate,
        pace.seconds
    );
    Ok(Report::new(title)
        .table(table)
        .note(format!(
            "relay memory: {} MiB with no watcher, {} MiB with all open ({:.1} kB each, rows and payloads of all views included), {} MiB at the end, with the history of the changes",
            mib(empty),
            mib(opened),
            opened.saturating_sub(empty) as f64 / 1e3 / streams as f64,
            mib(after),
        ))
        .note(format!(
            "etcd: {watchers} watches; {} µs of CPU for a usual change, and {} with one plain watcher of the same {} prefixes and no relay",
            micros_each(mixed.cost.etcd, mixed.changes.into()),
            micros_each(plain, (pace.rate * pace.seconds).into()),
            PREFIXES.len()
        ))
        .note("µs of the relay are beyond what it uses when nothing changes"))
}

/// A write that no view shows.
fn unseen(cluster: &mut Cluster, rng: &mut StdRng) -> Change {
    // For every dozen groups that are refreshed, one portal is checked.
    if rng.random_ratio(1, 12) { cluster.verify_portal() } else { cluster.refresh() }
}

/// A typical write.
fn usual(cluster: &mut Cluster, rng: &mut StdRng) -> Change {
    if !rng.random_ratio(SEEN, 1_000) {
        return unseen(cluster, rng);
    }
    match rng.random_range(0..SEEN) {
        0..60 => cluster.replace_instance(),
        60..90 => cluster.release_app(),
        90..110 => cluster.configure(),
        110..120 => cluster.replace_portal(),
        120..125 => cluster.move_port(),
        _ => cluster.come_or_go(),
    }
}

/// Watches in the proportions of the known clients: per node the network daemon, the log shipper and its filter; a few
/// that watch everything; and apps that watch themselves.
fn watches(cluster: &Cluster, count: usize) -> Vec<Watch> {
    let watch = |view: &str, path: &str, target: &str, query: &str, heartbeat| Watch {
        uri: if query.is_empty() { format!("/v2/{path}") } else { format!("/v2/{path}?{query}") },
        heartbeat,
        shows: shown(view, target),
        sent: Sent::WithSender,
    };
    let config = |target: &str, heartbeat| {
        watch("configwatcher", "configwatcher", target, &format!("target={target}"), heartbeat)
    };
    let mut watches = Vec::with_capacity(count);
    for (path, view, times) in [
        ("webrouter/webprocs", "webprocs", 3),
        ("coreinfowatcher", "coreinfowatcher", 2),
        ("depends", "depends", 2),
        ("streamrouter/streamprocs", "streamprocs", 2),
        ("backupspec", "backupspec", 1),
        ("appswatcher", "appswatcher", 1),
        ("containers", "containers", 1),
        ("proxywatcher", "proxywatcher", 1),
    ] {
        watches.extend(std::iter::repeat_n(watch(view, path, "*", "", 0), times));
    }
    watches.extend(std::iter::repeat_n(config("tinydns_fqdns", 0), 2));
    // A little over half of the rest belongs to nodes, as with 2,000 watchers and 100 nodes.
    let rest = count.saturating_sub(watches.len());
    let of_nodes = watches.len() + rest * 11 / 20;
    for node in cluster.node_names() {
        if watches.len() >= of_nodes {
            break;
        }
        let targets = [
            "vips",
            "domains",
            "domain_servers",
            "whitelist_ips",
            "whitelist_in_ports",
            "whitelist_ex_ports",
            "streamrouter/vippool",
        ];
        watches.extend(targets.map(|target| config(target, 5)));
        watches.push(watch("ports", "streamrouter/ports", "*", "", 5));
        watches.push(watch("localprocs", "rebellion/localprocs", node, &format!("nodename={node}"), 0));
        watches.push(config("kafka", 0));
        watches.push(watch("containers", "containers", node, &format!("nodename={node}"), 0));
    }
    let apps = cluster.apps();
    for (number, app) in apps.iter().cycle().take(count.saturating_sub(watches.len())).enumerate() {
        let query = format!("appname={app}");
        watches.push(match number % 4 {
            0 | 1 => watch("procwatcher", "procwatcher", app, &query, 0),
            2 => watch("proxywatcher", "proxywatcher", app, &query, 0),
            _ => watch("coreinfowatcher", "coreinfowatcher", app, &query, 0),
        });
    }
    watches
}

fn idle_row(idle: &Cost, heartbeats: u64) -> [Value; 14] {
    let mut row = [const { Value::Null }; 14];
    row[0] = json!("idle");
    row[4] = json!(heartbeats);
    row[6] = percent(idle.relay, idle.time);
    row
}

fn row(part: &str, measured: &Measured, idle: &Cost) -> [Value; 14] {
    let (tally, cost) = (&measured.tally, &measured.cost);
    let changes = measured.changes.into();
    let relay = beyond(cost, idle);
    [
        json!(part),
        json!(changes),
        json!(tally.expected),
        json!(tally.states),
        json!(tally.heartbeats),
        json!(tally.bytes / 1_000_000),
        percent(cost.relay, cost.time),
        micros_each(relay, changes),
        micros_each(relay, tally.states),
        micros_each(cost.etcd, changes),
        quantile_ms(&tally.delays, 0.5),
        quantile_ms(&tally.delays, 0.99),
        quantile_ms(&tally.delays_of_all, 0.5),
        quantile_ms(&tally.delays_of_all, 0.99),
    ]
}

/// The cost of changes for etcd if one plain client watches the prefixes.
async fn plain(
    etcd: &crate::support::etcd::Etcd,
    changes: impl AsyncFnOnce(&mut etcd_client::KvClient) -> Result<i64>,
) -> Result<Duration> {
    let newest = Arc::new(AtomicU64::new(0));
    for prefix in PREFIXES {
        let mut stream = etcd.watch(prefix).await?;
        let newest = newest.clone();
        tokio::spawn(async move {
            while let Ok(Some(response)) = stream.message().await {
                let revision = response.header().map_or(0, |header| header.revision());
                newest.fetch_max(revision.unsigned_abs(), Ordering::Relaxed);
            }
        });
    }
    let mut client = etcd.client().await?;
    let subject = Subject { relay: None, etcd: etcd.process() };
    let (cost, sent) = subject
        .cost(async {
            let revision = changes(&mut client).await?;
            let deadline = Instant::now() + PATIENCE;
            while newest.load(Ordering::Relaxed) < revision.unsigned_abs() {
                ensure!(Instant::now() < deadline, "a plain watcher did not get revision {revision}");
                sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        })
        .await?;
    sent.context("with a plain watcher")?;
    Ok(cost.etcd)
}
