//! Readers: lists and single keys, present and past, in parts and sorted, linearizable and serializable, at one relay
//! after the other.

use std::{sync::Arc, time::Duration};

use etcd_relay::pb::etcdserverpb::{
    RangeRequest,
    range_request::{SortOrder, SortTarget},
};
use fastrand::Rng;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    link::{self, DEADLINE},
    scene::{DEMAND, PREFIX, RELAYS, Scene},
    support::kv::{Kv, bytes, prefix_end},
    writers::{KEYS, key},
};

/// Time between two reads.
const PACE: Duration = Duration::from_millis(80);
/// How many revisions back reads of the past go.
const PAST: i64 = 300;

/// Starts one reader per relay.
pub fn spawn(scene: &Arc<Scene>, seed: &mut Rng, clients: &mut JoinSet<()>) {
    for place in 0..RELAYS.len() {
        clients.spawn(read(Arc::clone(scene), place, seed.fork()));
    }
}

async fn read(scene: Arc<Scene>, place: usize, mut dice: Rng) {
    let mut kv = Kv::over(link::lasting(&scene.relays[place])).raw;
    let mut ticks = tokio::time::interval(PACE);
    loop {
        ticks.tick().await;
        let epoch = scene.truth.now().await;
        let floor = scene.truth.floor();
        let request = request(&mut dice, floor.1);
        match timeout(DEADLINE, kv.range(scene.token.on(request.clone()))).await {
            Ok(Ok(answer)) => scene.judge().read(RELAYS[place], &request, answer.get_ref(), floor).await,
            // Possibly another cluster has this revision and has compacted it.
            Ok(Err(status)) if scene.truth.now().await.number == epoch.number => {
                scene.judge().refused(RELAYS[place], &request, &status, &epoch);
            }
            _ => {}
        }
    }
}

fn request(dice: &mut Rng, newest: i64) -> RangeRequest {
    let prefix = [PREFIX.to_owned(), format!("{PREFIX}k1"), DEMAND.to_owned()];
    let prefix = dice.choice(&prefix).expect("not empty");
    let all = RangeRequest { key: bytes(prefix), range_end: prefix_end(prefix), ..RangeRequest::default() };
    let mut request = match dice.u8(..8) {
        0..2 => RangeRequest { key: key(dice.usize(..KEYS)).into(), ..RangeRequest::default() },
        2 => RangeRequest { limit: dice.i64(1..8), ..all },
        3 => RangeRequest { count_only: true, ..all },
        4 => RangeRequest { keys_only: true, ..all },
        5 => RangeRequest { sort_order: SortOrder::Descend.into(), sort_target: SortTarget::Key.into(), ..all },
        6 => RangeRequest { revision: (newest - dice.i64(0..PAST)).max(1), ..all },
        _ => all,
    };
    request.serializable = dice.u8(..4) == 0;
    request
}
