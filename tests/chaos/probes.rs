//! Short calls, ten per second of each kind at each relay, independent of earlier calls. The longest time without a
//! success is the cost of a fault.
//!
//! Other clients are in `writers`, `readers` and `watchers`. Always holds: each answer is checked as well.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use etcd_relay::pb::etcdserverpb::{PutRequest, RangeRequest};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tonic::transport::Channel;

use crate::{
    gaps::{Beat, What},
    link::{self, DEADLINE},
    scene::{ANY, OUTSIDE, PREFIX, RELAYS, Scene},
    support::{
        client,
        kv::{Kv, put},
    },
};

/// Time between two calls.
const PACE: Duration = Duration::from_millis(120);
/// Most calls of a kind that wait for an answer: more than are started within a deadline.
const UNDER_WAY: usize = 64;
/// How long a client of etcd waits before it tries another member.
const DIRECT: Duration = Duration::from_millis(500);

/// All of them.
pub fn spawn(scene: &Arc<Scene>, clients: &mut JoinSet<()>) {
    for what in [What::Put, What::Read, What::Forward, What::Watch] {
        let any = scene.gaps.beat(what, ANY);
        for place in 0..RELAYS.len() {
            let beats = [scene.gaps.beat(what, place), Arc::clone(&any)];
            clients.spawn(probe(Arc::clone(scene), what, place, beats));
        }
    }
    clients.spawn(direct(Arc::clone(scene)));
}

async fn probe(scene: Arc<Scene>, what: What, place: usize, beats: [Arc<Beat>; 2]) {
    let channel = link::lasting(&scene.relays[place]);
    let places = Arc::new(Semaphore::new(UNDER_WAY));
    let mut ticks = tokio::time::interval(PACE);
    let mut calls = JoinSet::new();
    for round in 0_u64.. {
        ticks.tick().await;
        while let Some(ended) = calls.try_join_next() {
            ended.expect("a probe does not panic");
        }
        if let Ok(free) = Arc::clone(&places).try_acquire_owned() {
            let (scene, beats, channel) = (Arc::clone(&scene), beats.clone(), channel.clone());
            calls.spawn(async move {
                call(&scene, what, place, round, channel, &beats).await;
                drop(free);
            });
        }
    }
}

async fn call(scene: &Scene, what: What, place: usize, round: u64, channel: Channel, beats: &[Arc<Beat>]) {
    let by = RELAYS[place];
    match what {
        What::Put | What::Direct => {
            put_once(scene, by, &format!("{PREFIX}probe/{place}/{}", round % 4), round, channel, DEADLINE, beats).await;
        }
        What::Read | What::Forward | What::Event => {
            let key = if what == What::Read { format!("{PREFIX}probe/{place}/0") } else { OUTSIDE.to_owned() };
            let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
            let floor = scene.truth.floor();
            let mut kv = Kv::over(channel).raw;
            let Ok(Ok(answer)) = timeout(DEADLINE, kv.range(scene.token.on(request.clone()))).await else { return };
            beats.iter().for_each(|beat| beat.now());
            scene.judge().read(by, &request, answer.get_ref(), floor).await;
        }
        What::Watch => {
            let mut stream = scene.token.stream(channel);
            stream.create(client::prefix(format!("{PREFIX}probe/{place}/")));
            if stream
                .take_within(DEADLINE)
                .await
                .is_some_and(|created| created.response.created && !created.response.canceled)
            {
                beats.iter().for_each(|beat| beat.now());
            }
        }
    }
}

/// Puts like a client that has all members and no other knowledge: each call to one of them, and then to the next if it
/// is not answered.
async fn direct(scene: Arc<Scene>) {
    let beats = [scene.gaps.beat(What::Direct, ANY)];
    let channels: Vec<Channel> = scene.members.iter().map(|member| link::lasting(member)).collect();
    let at = Arc::new(AtomicUsize::new(0));
    let mut ticks = tokio::time::interval(PACE);
    let mut calls = JoinSet::new();
    for round in 0_u64.. {
        ticks.tick().await;
        while let Some(ended) = calls.try_join_next() {
            ended.expect("a probe does not panic");
        }
        if calls.len() < UNDER_WAY {
            let (scene, beats, at) = (Arc::clone(&scene), beats.clone(), Arc::clone(&at));
            let member = at.load(Ordering::SeqCst);
            let channel = channels[member].clone();
            calls.spawn(async move {
                let key = format!("{PREFIX}probe/direct/{}", round % 4);
                if !put_once(&scene, "a member", &key, round, channel, DIRECT, &beats).await {
                    let _another_call_moved_on =
                        at.compare_exchange(member, (member + 1) % 3, Ordering::SeqCst, Ordering::SeqCst);
                }
            });
        }
    }
}

async fn put_once(
    scene: &Scene,
    by: &str,
    key: &str,
    round: u64,
    channel: Channel,
    deadline: Duration,
    beats: &[Arc<Beat>],
) -> bool {
    let writing = scene.write().await;
    // A repeated value would not be a different write.
    let value = format!("{round}");
    let request: PutRequest = put(key, &value);
    let mut kv = Kv::over(channel).raw;
    let answer = timeout(deadline, kv.put(scene.token.on(request))).await;
    drop(writing);
    let Ok(Ok(answer)) = answer else { return false };
    beats.iter().for_each(|beat| beat.now());
    let values = [(Bytes::from(key.to_owned()), Some(Bytes::from(value)))];
    scene.judge().wrote(by, answer.into_inner().header, &values).await;
    true
}
