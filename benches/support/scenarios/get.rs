//! GETs of small views over connections that stay open. Each connection sends the next request as soon as it has its
//! answer.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::{runtime::Builder, task::JoinSet};

use super::Lab;
use crate::support::{
    args::Args,
    cluster::Size,
    http::Connection,
    report::{Report, Table, figure, micros_each, percent, quantile_ms},
};

const CONNECTIONS: usize = 64;
/// Not counted, because connections and tables are still being set up.
const WARM_UP: Duration = Duration::from_secs(1);

/// Runs the scenario.
pub async fn run(args: &Args) -> Result<Report> {
    let lab = Lab::new(args, Size { apps: 10, nodes: 3, procs: 3, instances: 2 }).await?;
    let app = lab.cluster.apps()[0];
    let mut table = Table::new(&["view", "bytes", "requests/s", "relay CPU %", "µs/request", "p50 ms", "p99 ms"]);
    for uri in ["/v2/configwatcher?target=domain".to_owned(), format!("/v2/proxywatcher?appname={app}")] {
        let seconds = Duration::from_secs(args.seconds.into());
        let expected = answer(lab.relay.addr(), &uri).await?;
        ask(lab.relay.addr(), &uri, &expected, WARM_UP).await?;
        let (cost, delays) = lab.subject().cost(ask(lab.relay.addr(), &uri, &expected, seconds)).await?;
        let delays = delays?;
        let requests = delays.len() as u64;
        table.row([
            json!(uri),
            json!(expected.len()),
            figure(requests as f64 / cost.time.as_secs_f64()),
            percent(cost.relay, cost.time),
            micros_each(cost.relay, requests),
            quantile_ms(&delays, 0.5),
            quantile_ms(&delays, 0.99),
        ]);
    }
    let title = format!("get: {CONNECTIONS} connections, one thread that asks, {} s for each view", args.seconds);
    Ok(Report::new(title).table(table))
}

async fn answer(addr: &str, uri: &str) -> Result<Vec<u8>> {
    let mut connection = Connection::open(addr).await?;
    let status = connection.get(uri).await?;
    ensure!(status == 200, "GET {uri}: {status}: {}", String::from_utf8_lossy(&connection.body));
    Ok(connection.body)
}

/// Sends requests for `time`. Returns the delay of each answer in microseconds, sorted.
async fn ask(addr: &str, uri: &str, expected: &[u8], time: Duration) -> Result<Vec<u32>> {
    let (addr, uri, expected) = (addr.to_owned(), uri.to_owned(), expected.to_owned());
    // It has its own runtime, because it needs a whole core.
    let asking = tokio::task::spawn_blocking(move || {
        let runtime = Builder::new_current_thread().enable_all().build().context("a runtime")?;
        runtime.block_on(async {
            let end = Instant::now() + time;
            let mut asking = JoinSet::new();
            for _ in 0..CONNECTIONS {
                let mut connection = Connection::open(&addr).await?;
                let (uri, expected) = (uri.clone(), expected.clone());
                asking.spawn(async move {
                    let mut delays = Vec::new();
                    let mut start = Instant::now();
                    while start < end {
                        let status = connection.get(&uri).await?;
                        ensure!(status == 200 && connection.body == expected, "GET {uri}: {status}, or another body");
                        let now = Instant::now();
                        delays.push(u32::try_from((now - start).as_micros()).unwrap_or(u32::MAX));
                        start = now;
                    }
                    Ok(delays)
                });
            }
            let mut delays = Vec::new();
            while let Some(done) = asking.join_next().await {
                delays.extend(done.context("a task ended")??);
            }
            delays.sort_unstable();
            Ok(delays)
        })
    });
    asking.await.context("the asking thread ended")?
}
