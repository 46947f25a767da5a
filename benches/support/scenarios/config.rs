//! Many watchers of one configuration value that keeps changing.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::Lab;
use crate::support::{
    args::Args,
    cluster::{CONFIG, Change, Size, shown},
    driver::{Pace, Subject},
    fleet::{Fleet, Sent, Watch},
    http,
    report::{Report, Table, figure, micros_each, percent, quantile_ms},
};

const VIEW: &str = "/v2/configwatcher?target=load";
const WATCHERS: usize = 1_000;
const RATE: u32 = 20;

/// Runs the scenario.
pub async fn run(args: &Args) -> Result<Report> {
    let mut lab = Lab::new(args, Size { apps: 10, nodes: 3, procs: 3, instances: 2 }).await?;
    let key = format!("{CONFIG}load");
    let header = lab.client.put(key.as_str(), "0", None).await?.take_header().context("an answer without a header")?;
    let uri = format!("{VIEW}&min_revision={}", header.revision());
    let first = http::get(lab.relay.addr(), &uri).await?;
    ensure!(first.status == 200, "GET {uri}: {}", first.status);

    let watch =
        Watch { uri: VIEW.to_owned(), heartbeat: 0, shows: shown("configwatcher", "load"), sent: Sent::InPayload };
    let watchers = args.watchers.unwrap_or(WATCHERS);
    let pace = Pace { rate: args.rate.unwrap_or(RATE), seconds: args.seconds };
    // A relay that has already sent something has its buffers and threads, so the rest is the cost of connections.
    let warm = Fleet::open(lab.relay.addr(), vec![watch.clone()], lab.clock).await?;
    drop(warm);
    let before = lab.relay.process().resident_bytes()?;
    let fleet = Fleet::open(lab.relay.addr(), vec![watch; watchers], lab.clock).await?;
    let opened = lab.relay.process().resident_bytes()?;
    let clock = lab.clock;
    let next = || Change {
        key: key.clone(),
        value: Some(clock.nanos().to_string()),
        shown_by: vec![shown("configwatcher", "load")],
    };
    let subject = Subject { relay: Some(lab.relay.process()), etcd: lab.etcd.process() };
    let measured = subject.drive(&mut lab.client, &fleet, clock, pace, next).await?;
    let after = lab.relay.process().resident_bytes()?;

    let each = |bytes: u64| figure(bytes.saturating_sub(before) as f64 / 1e3 / watchers as f64);
    let (tally, cost) = (&measured.tally, &measured.cost);
    let mut table = Table::new(&[
        "watchers",
        "changes",
        "messages",
        "conflated",
        "relay CPU %",
        "µs/message",
        "etcd µs/change",
        "p50 ms",
        "p99 ms",
        "max ms",
        "kB/connection open",
        "kB/connection after",
    ]);
    table.row([
        json!(watchers),
        json!(measured.changes),
        json!(tally.states),
        json!(tally.expected - tally.states),
        percent(cost.relay, cost.time),
        micros_each(cost.relay, tally.states),
        micros_each(cost.etcd, measured.changes.into()),
        quantile_ms(&tally.delays, 0.5),
        quantile_ms(&tally.delays, 0.99),
        quantile_ms(&tally.delays, 1.0),
        each(opened),
        each(after),
    ]);
    let title = format!("config: {watchers} watchers of {VIEW}, {} changes a second for {} s", pace.rate, pace.seconds);
    Ok(Report::new(title).table(table))
}
