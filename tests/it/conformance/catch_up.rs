//! Watches that begin in the past or in the future.

use etcd_relay::pb::etcdserverpb::WatchCreateRequest;

use crate::support::{
    client::{self, header_revision, revisions},
    kv::{self, Kv, op_put},
    replay::Replay,
    target::Target,
    validate::{Expected, assert_valid},
};

pub async fn a_past_start_replays_from_there(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let written = write(&kv, &ns, 20).await;
    let created = stream.created(WatchCreateRequest { start_revision: written[5], ..client::prefix(&ns) }).await;
    assert!(header_revision(&created) >= written[19]);
    let mut told = Vec::new();
    while told.len() < 15 {
        let response = stream.next().await;
        assert!(header_revision(&response) >= written[19], "the header of a replay is the current revision");
        told.extend(revisions(&response));
    }
    assert_eq!(told, written[5..]);
    stream.expect_silence().await;
}

pub async fn a_future_start_waits_for_its_revision(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    // Other tests write as well. So this revision is far ahead, and if they reach it before the watch is created, another
    // one is chosen.
    let mut attempts = 0..10;
    let (mut stream, start_revision) = loop {
        attempts.next().expect("the revision is in the future when one of ten watches is created");
        let mut stream = target.stream().await;
        let before = kv.put(format!("{ns}a"), "0").await;
        let start_revision = before + 60;
        let created = stream.created(WatchCreateRequest { start_revision, ..client::prefix(&ns) }).await;
        assert!(header_revision(&created) >= before);
        if header_revision(&created) < start_revision {
            break (stream, start_revision);
        }
    };
    let mut first_owed = None;
    while first_owed.is_none() {
        let revision = kv.put(format!("{ns}a"), "1").await;
        first_owed = (revision >= start_revision).then_some(revision);
    }
    assert_eq!(revisions(&stream.next().await), [first_owed.expect("just set")], "nothing before the start");
    let next = kv.put(format!("{ns}a"), "2").await;
    assert_eq!(revisions(&stream.next().await), [next]);
}

/// More revisions than etcd puts into one response (1000), including transactions.
pub async fn many_revisions_are_replayed_without_a_gap(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let first = kv.put(format!("{ns}a"), "first").await;
    for round in 0..25 {
        write(&kv, &ns, 60).await;
        kv.txn((0..4).map(|index| op_put(format!("{ns}txn{index}"), format!("{round}"))).collect()).await;
    }
    let last = kv.put(format!("{ns}a"), "last").await;
    let request = WatchCreateRequest { start_revision: first, ..client::prefix(&ns) };
    stream.created(request.clone()).await;
    stream.until_revision(last).await;
    let replay = Replay::read_prefix(&origin(target), &ns, first, last).await;
    assert_eq!(replay.events().len(), 2 + 25 * 64);
    let expected = Expected { complete_to: Some(last), prev_kv_known: true };
    assert_valid(&[request], &stream.record(), &replay, expected);
}

pub async fn replay_meets_live_events_without_a_seam(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    let first = kv.put(format!("{ns}a"), "first").await;
    write(&kv, &ns, 300).await;
    let writer = tokio::spawn({
        let (kv, ns) = (kv.clone(), ns.clone());
        async move { write(&kv, &ns, 600).await[599] }
    });
    let request = WatchCreateRequest { start_revision: first, prev_kv: true, ..client::prefix(&ns) };
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = target.stream().await;
        stream.created(request.clone()).await;
        streams.push(stream);
    }
    let last = writer.await.expect("the writer does not panic");
    let replay = Replay::read_prefix(&origin(target), &ns, first, last).await;
    for stream in &mut streams {
        stream.until_revision(last).await;
        let expected = Expected { complete_to: Some(last), prev_kv_known: true };
        assert_valid(std::slice::from_ref(&request), &stream.record(), &replay, expected);
    }
}

/// etcd's own proxy merges the late watch into the live one after its first batch, and loses the rest.
pub async fn late_watch_beside_a_live_one_loses_nothing(target: &Target) {
    let (ns, kv) = (target.namespace(), target.kv().await);
    let key = format!("{ns}foo");
    let (mut live, mut late) = (target.stream().await, target.stream().await);
    let first = kv.put(&key, "0").await;
    for round in 1..2_500 {
        kv.put(&key, format!("{round}")).await;
    }
    let live_request = client::key(&key);
    live.created(live_request.clone()).await;
    live.until_revision(kv.put(&key, "live").await).await;
    let late_request = WatchCreateRequest { start_revision: first, ..client::key(&key) };
    late.created(late_request.clone()).await;
    late.until_revision(first + 900).await;
    let mut last = 0;
    for round in 0..5 {
        last = kv.put(&key, format!("live {round}")).await;
        live.until_revision(last).await;
    }
    let replay = Replay::read_prefix(&origin(target), &ns, first, last).await;
    let expected = Expected { complete_to: Some(last), prev_kv_known: true };
    for (stream, request) in [(&mut live, live_request), (&mut late, late_request)] {
        stream.until_revision(last).await;
        assert_valid(&[request], &stream.record(), &replay, expected);
    }
}

/// Where the expected data is read: etcd itself, or the store if there is none.
fn origin(target: &Target) -> String {
    target.etcd().map_or_else(|| target.endpoint(), crate::support::etcd::Etcd::endpoint)
}

/// Writes puts, each in its own revision. Returns the revisions.
async fn write(kv: &Kv, namespace: &str, count: usize) -> Vec<i64> {
    let mut revisions = Vec::with_capacity(count);
    for index in 0..count {
        let key = kv::bytes(format!("{namespace}{}", index % 7));
        revisions.push(kv.put(key, format!("{index}")).await);
    }
    revisions
}
