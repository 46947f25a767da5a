//! Writers: puts, deletes, transactions over several keys and sometimes a large value, at one relay after the other.
//!
//! Always holds: each value is written once, so a value that appears twice was duplicated by a server.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_relay::pb::etcdserverpb::{RequestOp, TxnRequest};
use fastrand::Rng;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    link::{self, DEADLINE},
    scene::{DEMAND, PREFIX, RELAYS, Scene},
    support::kv::{Kv, op_delete, op_put},
};

/// Time between two writes.
const PACE: Duration = Duration::from_millis(60);
/// Keys that are written.
pub const KEYS: usize = 24;
/// A large value, which fills a slow client's queue.
const LARGE: usize = 24 << 10;

/// Starts one writer per relay.
pub fn spawn(scene: &Arc<Scene>, seed: &mut Rng, clients: &mut JoinSet<()>) {
    for place in 0..RELAYS.len() {
        clients.spawn(write(Arc::clone(scene), place, seed.fork()));
    }
}

/// A key of the feed.
pub fn key(index: usize) -> String {
    format!("{PREFIX}k{index:02}")
}

async fn write(scene: Arc<Scene>, place: usize, mut dice: Rng) {
    let channel = link::lasting(&scene.relays[place]);
    let mut ticks = tokio::time::interval(PACE);
    for round in 0_u64.. {
        ticks.tick().await;
        let values = changes(&mut dice, place, round);
        let success = values.iter().map(|(key, value)| operation(key, value.as_ref())).collect();
        let request = TxnRequest { success, ..Default::default() };
        let writing = scene.write().await;
        let mut kv = Kv::over(channel.clone()).raw;
        let answer = timeout(DEADLINE, kv.txn(scene.token.on(request))).await;
        drop(writing);
        match answer {
            Ok(Ok(answer)) => scene.judge().wrote(RELAYS[place], answer.into_inner().header, &values).await,
            // Requests without a pause would take CPU time that others need.
            _ => tokio::time::sleep(PACE).await,
        }
    }
}

fn operation(key: &Bytes, value: Option<&Bytes>) -> RequestOp {
    value.map_or_else(|| op_delete(key), |value| op_put(key, value))
}

/// Usually a put, sometimes a delete, sometimes several keys at once; each key once.
fn changes(dice: &mut Rng, place: usize, round: u64) -> Vec<(Bytes, Option<Bytes>)> {
    let value = format!("{place}-{round}");
    let first = dice.usize(..KEYS);
    let put = |index: usize| (Bytes::from(key(index % KEYS)), Some(Bytes::from(value.clone())));
    match dice.u8(..20) {
        0..3 => vec![(key(first).into(), None)],
        3..6 => (0..dice.usize(2..6)).map(|more| put(first + more)).collect(),
        6 => vec![put(first), (key((first + 1) % KEYS).into(), None), put(first + 2)],
        7..10 => vec![(format!("{DEMAND}{}", first % 5).into(), Some(value.into()))],
        10 => {
            let large = format!("{value}{}", "x".repeat(LARGE));
            vec![(format!("{PREFIX}large/{}", first % 3).into(), Some(large.into()))]
        }
        _ => vec![put(first)],
    }
}
