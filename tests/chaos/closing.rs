//! The final check: when nobody writes any more, every relay's memory must equal etcd's content, byte for byte.

use std::time::Duration;

use etcd_relay::pb::etcdserverpb::{RangeRequest, RangeResponse};
use foldhash::fast::FixedState;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};

use crate::{
    scene::{PREFIX, RELAYS},
    support::{
        eventually_within,
        kv::{Kv, bytes, prefix_end},
    },
    world::World,
};

/// A relay that is complete by then stays complete.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until all are equal; reports a finding if they never are.
pub async fn all_have_the_same(world: &World) {
    world.barrier().await;
    let scene = world.scene.clone();
    let mut members = Vec::new();
    for member in &scene.members {
        members.push(hash(&read(world, member, false).await));
    }
    let truth = scene.truth.now().await;
    let owed = hash_of(truth.replay.read().at(|key| key.starts_with(PREFIX.as_bytes()), truth.reached()).into_iter());
    if members.iter().any(|member| *member != owed) {
        scene.findings.add(&format!("etcd's members have {members:?}, and its watch told {owed}"));
    }
    for (relay, name) in scene.relays.iter().zip(RELAYS) {
        // From memory: it may be behind for a moment, and nobody writes any more.
        let what = format!("{name} has what etcd has");
        eventually_within(DEADLINE, &what, async || (hash(&read(world, relay, true).await) == owed).then_some(()))
            .await;
        scene.findings.judged("caches", 1);
    }
}

async fn read(world: &World, endpoint: &str, serializable: bool) -> RangeResponse {
    let request =
        RangeRequest { key: bytes(PREFIX), range_end: prefix_end(PREFIX), serializable, ..RangeRequest::default() };
    let mut kv = Kv::connect(endpoint).await.raw;
    kv.range(world.scene.token.on(request)).await.expect("a read while all is well").into_inner()
}

fn hash(answer: &RangeResponse) -> u64 {
    hash_of(answer.kvs.iter())
}

/// A hash over all fields of each key.
fn hash_of<'a>(kvs: impl Iterator<Item = &'a etcd_relay::pb::mvccpb::KeyValue>) -> u64 {
    let mut hasher = FixedState::default().build_hasher();
    for kv in kvs {
        (&kv.key, &kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease).hash(&mut hasher);
    }
    hasher.finish()
}
