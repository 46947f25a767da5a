//! Example data for the store: the configuration and pods of a small LAIN cluster, and continuous small changes to it.
//!
//! Not here: running the relay. `demo` calls it, and tests that want data that looks real.
//! Always holds: the changes repeat in a cycle; each leaves a state that such a cluster could be in, and none makes the
//! data grow.

use std::{
    num::NonZeroUsize,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::Deserialize;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::{Store, StoreError};
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};

/// The data, one JSON object with `key` and `value` on each line.
const SEED: &str = include_str!("../../tests/fixtures/lain/small.jsonl");
/// The prefix of pod groups.
const POD_GROUPS: &str = "/lain/deployd/pod_groups/";
/// The prefix of feature switches, which are `True` or `False`.
const FEATURES: &str = "/lain/config/features/";
/// The prefix of machines.
const NODES: &str = "/lain/nodes/nodes/";
/// The field of a pod group with the time of its last change.
const UPDATED_AT: &str = "\"UpdatedAt\":\"";
/// The field of a pod group with a container's address. Its third number changes when the container is moved, from 0 to
/// 1 and back.
const CONTAINER_IP: &str = "\"ContainerIp\":\"172.20.";

/// How often the data changes.
#[derive(Clone, Copy, Debug)]
pub struct DemoConfig {
    /// Mean time from one change to the next; each is up to a quarter shorter or longer. Default 1 s.
    pub interval: Duration,
}

impl Default for DemoConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1) }
    }
}

/// The example data could not be put into the store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SeedError {
    /// The data built into the program is broken.
    #[error("line {line} of the example data is not a JSON object with key and value")]
    Malformed {
        /// From 1.
        line: usize,
        /// The parser's message.
        source: serde_json::Error,
    },
    /// The store refuses a key.
    #[error("the store refuses the example data: give it a larger quota")]
    Refused(#[from] StoreError),
}

#[derive(Deserialize)]
struct Seed {
    key: String,
    value: String,
}

/// Puts the example data into a store, one key in each revision. Returns the number of keys.
///
/// # Errors
/// [`SeedError::Refused`] if the store has no room.
pub fn seed(store: &Store) -> Result<usize, SeedError> {
    let mut keys = 0;
    for (index, line) in SEED.lines().enumerate() {
        let Seed { key, value } =
            serde_json::from_str(line).map_err(|source| SeedError::Malformed { line: index + 1, source })?;
        store.put(&PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() })?;
        keys += 1;
    }
    Ok(keys)
}

/// Makes small changes to a store that was seeded, until `cancel`. Most of them rewrite a pod group, sometimes with a
/// container at another address; some flip a switch; some remove a machine and bring it back.
pub async fn keep_changing(store: Store, config: DemoConfig, cancel: CancellationToken) {
    let mut changes = Changes::default();
    loop {
        let pause = config.interval.mul_f64(rand::random_range(0.75..1.25));
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if let Err(error) = changes.next(&store) {
            // Another client may have filled the store; the next change may find room again.
            tracing::warn!(%error, "The store refused a change of the example data");
        }
    }
}

/// The state of the changes.
#[derive(Default)]
struct Changes {
    made: usize,
    /// A machine that was removed.
    away: Option<PutRequest>,
}

impl Changes {
    /// Of five changes one flips a switch, one moves a container, and one removes or returns a machine.
    fn next(&mut self, store: &Store) -> Result<(), StoreError> {
        let turn = self.made / 5;
        let kind = self.made % 5;
        self.made += 1;
        match kind {
            2 => flip_feature(store, turn),
            4 => self.move_node(store, turn),
            3 => move_container(store, turn),
            _ => update_pod_group(store, turn * 3 + kind),
        }
    }

    fn move_node(&mut self, store: &Store, turn: usize) -> Result<(), StoreError> {
        if let Some(back) = &self.away {
            store.put(back)?;
            self.away = None;
        } else if let Some((key, value)) = pick(store, NODES, turn)? {
            store.delete_range(&DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() })?;
            self.away = Some(PutRequest { key, value, ..PutRequest::default() });
        }
        Ok(())
    }
}

fn flip_feature(store: &Store, turn: usize) -> Result<(), StoreError> {
    let Some((key, value)) = pick(store, FEATURES, turn)? else { return Ok(()) };
    let value = Bytes::from_static(if &value[..] == b"True" { b"False" } else { b"True" });
    store.put(&PutRequest { key, value, ..PutRequest::default() }).map(|_| ())
}

fn move_container(store: &Store, turn: usize) -> Result<(), StoreError> {
    let Some((key, value)) = pick(store, POD_GROUPS, turn)? else { return Ok(()) };
    let value = with_first_container_moved(&String::from_utf8_lossy(&value)).into();
    store.put(&PutRequest { key, value, ..PutRequest::default() }).map(|_| ())
}

/// The value with its first container at another address; unchanged if it has no container.
fn with_first_container_moved(value: &str) -> String {
    let Some((before, rest)) = value.split_once(CONTAINER_IP) else { return value.to_owned() };
    let Some((network, after)) = rest.split_once('.') else { return value.to_owned() };
    let network = if network == "0" { "1" } else { "0" };
    format!("{before}{CONTAINER_IP}{network}.{after}")
}

fn update_pod_group(store: &Store, turn: usize) -> Result<(), StoreError> {
    let Some((key, value)) = pick(store, POD_GROUPS, turn)? else { return Ok(()) };
    let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    let value = with_updated_at(&String::from_utf8_lossy(&value), &now).into();
    store.put(&PutRequest { key, value, ..PutRequest::default() }).map(|_| ())
}

/// The value with its first `UpdatedAt` set; unchanged if it has none.
fn with_updated_at(value: &str, now: &str) -> String {
    let Some((before, rest)) = value.split_once(UPDATED_AT) else { return value.to_owned() };
    let Some((_, after)) = rest.split_once('"') else { return value.to_owned() };
    format!("{before}{UPDATED_AT}{now}\"{after}")
}

/// The key under a prefix whose turn it is.
fn pick(store: &Store, prefix: &'static str, turn: usize) -> Result<Option<(Bytes, Bytes)>, StoreError> {
    let (key, range_end) = crate::types::KeyRange::prefix(Bytes::from_static(prefix.as_bytes())).to_wire();
    let mut found = store.range(&RangeRequest { key, range_end, ..RangeRequest::default() })?.kvs;
    Ok(NonZeroUsize::new(found.len()).map(|len| {
        let kv = found.swap_remove(turn % len);
        (kv.key, kv.value)
    }))
}
