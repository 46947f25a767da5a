//! [`Writer`]: a load that continues while a test makes servers fail.
//!
//! A write whose answer was lost may have happened, so the truth is read from etcd afterwards; see `replay`. Always
//! holds: it stops with the value.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use etcd_relay::pb::etcdserverpb::{RequestOp, TxnRequest};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use super::kv::{Kv, op_delete, op_put};

/// Pause between two writes.
const INTERVAL: Duration = Duration::from_millis(3);
/// An etcd that does not answer a write within this time counts as unavailable.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Keys that are written.
const KEYS: u64 = 20;

/// A task that keeps writing.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Writer {
    /// Starts to write puts, deletes and transactions under `prefix`, to any endpoint that answers.
    pub fn start(endpoints: &[String], prefix: &str) -> Self {
        let endpoints = endpoints.iter().map(|url| {
            Endpoint::from_shared(url.clone()).expect("a URL").connect_timeout(WRITE_TIMEOUT).timeout(WRITE_TIMEOUT)
        });
        let channels: Vec<Channel> = endpoints.map(|endpoint| endpoint.connect_lazy()).collect();
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn(write(channels, prefix.to_owned(), Arc::clone(&stop), Arc::clone(&written)));
        Self { stop, written, task }
    }

    /// The number of writes that were answered so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Stops the load.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await.expect("the writer does not panic");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn write(channels: Vec<Channel>, prefix: String, stop: Arc<AtomicBool>, written: Arc<AtomicU64>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let (mut round, mut at) = (0_u64, 0);
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let success = changes(&prefix, round);
        let request = TxnRequest { success, ..Default::default() };
        match Kv::over(channels[at].clone()).raw.txn(request).await {
            Ok(_) => drop(written.fetch_add(1, Ordering::Relaxed)),
            Err(_) => at = (at + 1) % channels.len(),
        }
        round += 1;
    }
}

/// Usually a put, sometimes a delete, sometimes several keys at once.
fn changes(prefix: &str, round: u64) -> Vec<RequestOp> {
    let key = |index: u64| format!("{prefix}{:02}", index % KEYS);
    match round % 10 {
        3 => vec![op_delete(key(round / 10))],
        7 => (0..5).map(|index| op_put(key(round + index), format!("{round}"))).collect(),
        _ => vec![op_put(key(round), format!("{round}"))],
    }
}
