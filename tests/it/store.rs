//! Compares the embedded store with a real etcd: the same random requests must give the same answers, errors and
//! events.
//!
//! Watches of clients over the store are tested in `conformance`. Always holds: a run depends only on its seed, which a
//! failure prints; `ETCD_RELAY_TEST_SEED` repeats it.

mod generate;

use std::collections::BTreeMap;

use etcd_relay::{
    hub::upstream::{Upstream, UpstreamWatch, WatchMessage, WatchRequest},
    pb::{
        etcdserverpb::{
            LeaseTimeToLiveResponse, ResponseHeader, WatchCreateRequest, WatchRequest as WireRequest,
            kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient, watch_request::RequestUnion,
        },
        mvccpb,
    },
    store::Store,
    types::{EventFields, EventKind, KeyRange, KeyValueFields, Revision},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tonic::{Response, Status, transport::Channel};

use self::generate::Op;
use crate::support::{etcd::Etcd, kv::channel};

/// Requests per run, which take a few seconds.
const REQUESTS: usize = 3000;
/// Results that each run must have seen; otherwise it tests little.
const MUST_HAPPEN: [&str; 12] = [
    "RangeResponse",
    "PutResponse",
    "DeleteRangeResponse",
    "TxnResponse",
    "CompactionResponse",
    "LeaseRevokeResponse",
    "InvalidArgument: etcdserver: duplicate key given in txn request",
    "InvalidArgument: etcdserver: key not found",
    "InvalidArgument: etcdserver: key is not provided",
    "NotFound: etcdserver: requested lease not found",
    "OutOfRange: etcdserver: mvcc: required revision has been compacted",
    "OutOfRange: etcdserver: mvcc: required revision is a future revision",
];

#[tokio::test]
async fn the_store_answers_as_etcd_does() {
    let seed = match std::env::var("ETCD_RELAY_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ETCD_RELAY_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    let etcd = Etcd::start().await;
    let channel = channel(&etcd.endpoint()).await;
    let (mut kv, mut lease) = (KvClient::new(channel.clone()), LeaseClient::new(channel.clone()));
    let store = Store::default();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut outcomes = BTreeMap::<String, usize>::new();
    for number in 0..REQUESTS {
        let op = generate::op(&mut rng, store.header().revision.get());
        let expected = ask_etcd(&mut kv, &mut lease, op.clone()).await;
        assert_eq!(ask_store(&store, &op), expected, "request {number} of seed {seed}: {op:?}");
        // A response is counted by its type, an error by its text.
        let outcome = if expected.contains(" {") { expected.split(' ').next().unwrap_or_default() } else { &expected };
        *outcomes.entry(outcome.to_owned()).or_default() += 1;
    }
    for outcome in MUST_HAPPEN {
        assert!(outcomes.contains_key(outcome), "no request of seed {seed} ended with {outcome}: {outcomes:#?}");
    }
    let last = store.header().revision;
    let oldest = match next(&mut *watch(&store, Revision::new(1)).await).await {
        WatchMessage::Compacted { compact_revision } => compact_revision,
        other => panic!("seed {seed}: nothing was compacted: {other:?}"),
    };
    for start in [oldest, Revision::new(rng.random_range(oldest.get()..=last.get()))] {
        let expected = events_of_etcd(channel.clone(), start, last).await;
        assert_eq!(events_of_store(&store, start, last).await, expected, "events from revision {start} of seed {seed}");
    }
}

/// The answer without the identity of the member, or the error with its code, as text.
fn told<T: std::fmt::Debug>(
    answer: Result<T, impl Into<Status>>,
    header: impl FnOnce(&mut T) -> &mut Option<ResponseHeader>,
) -> String {
    match answer {
        Ok(mut response) => {
            if let Some(header) = header(&mut response) {
                (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
            }
            format!("{response:?}")
        }
        Err(error) => {
            let status = error.into();
            format!("{:?}: {}", status.code(), status.message())
        }
    }
}

/// Time passes between the two answers, and etcd does not sort the keys.
fn without_time(mut response: LeaseTimeToLiveResponse) -> LeaseTimeToLiveResponse {
    response.ttl = response.ttl.min(0);
    response.keys.sort();
    response
}

async fn ask_etcd(kv: &mut KvClient<Channel>, lease: &mut LeaseClient<Channel>, op: Op) -> String {
    match op {
        Op::Range(request) => told(kv.range(request).await.map(Response::into_inner), |r| &mut r.header),
        Op::Put(request) => told(kv.put(request).await.map(Response::into_inner), |r| &mut r.header),
        Op::Delete(request) => told(kv.delete_range(request).await.map(Response::into_inner), |r| &mut r.header),
        Op::Txn(request) => told(kv.txn(request).await.map(Response::into_inner), |r| &mut r.header),
        Op::Compact(request) => told(kv.compact(request).await.map(Response::into_inner), |r| &mut r.header),
        Op::Grant(request) => told(lease.lease_grant(request).await.map(Response::into_inner), |r| &mut r.header),
        Op::Revoke(request) => told(lease.lease_revoke(request).await.map(Response::into_inner), |r| &mut r.header),
        Op::TimeToLive(request) => {
            let answer = lease.lease_time_to_live(request).await;
            told(answer.map(|response| without_time(response.into_inner())), |r| &mut r.header)
        }
    }
}

fn ask_store(store: &Store, op: &Op) -> String {
    match op {
        Op::Range(request) => told(store.range(request), |r| &mut r.header),
        Op::Put(request) => told(store.put(request), |r| &mut r.header),
        Op::Delete(request) => told(store.delete_range(request), |r| &mut r.header),
        Op::Txn(request) => told(store.txn(request), |r| &mut r.header),
        Op::Compact(request) => told(store.compact(request), |r| &mut r.header),
        Op::Grant(request) => told(store.lease_grant(request), |r| &mut r.header),
        Op::Revoke(request) => told(store.lease_revoke(request), |r| &mut r.header),
        Op::TimeToLive(request) => {
            told(Ok::<_, Status>(without_time(store.lease_time_to_live(request))), |r| &mut r.header)
        }
    }
}

/// An event with the value that it replaced.
type Change = (EventFields, Option<KeyValueFields>);

async fn events_of_etcd(channel: Channel, start: Revision, last: Revision) -> Vec<Change> {
    let create = WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision: start.get(),
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    let request = WireRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut responses = WatchClient::new(channel).watch(requests).await.expect("a watch").into_inner();
    let mut changes = Vec::<Change>::new();
    while changes.last().is_none_or(|(event, _)| event.kv.mod_revision < last) {
        let response = responses.message().await.expect("a response").expect("an open watch");
        assert!(!response.canceled, "{response:?}");
        for event in response.events {
            let kind = if event.r#type == 0 { EventKind::Put } else { EventKind::Delete };
            changes.push((EventFields { kind, kv: fields(event.kv.expect("a key-value")) }, event.prev_kv.map(fields)));
        }
    }
    changes
}

async fn events_of_store(store: &Store, start: Revision, last: Revision) -> Vec<Change> {
    let mut watch = watch(store, start).await;
    let mut changes = Vec::new();
    let mut seen = start.previous();
    while seen < last {
        let WatchMessage::Events { revisions, .. } = next(&mut *watch).await else { panic!("only events") };
        for revision in revisions {
            assert!(revision.revision > seen, "revision {} after {seen}", revision.revision);
            seen = revision.revision;
            assert!(revision.events.iter().all(|event| event.kv.mod_revision == seen), "a revision's own events");
            changes.extend(revision.events.into_iter().zip(revision.prev));
        }
    }
    changes
}

async fn watch(store: &Store, start_revision: Revision) -> Box<dyn UpstreamWatch> {
    let request = WatchRequest { range: KeyRange::prefix("".into()), start_revision, prev_kv: true };
    store.watch(request).await.expect("a watch")
}

async fn next(watch: &mut dyn UpstreamWatch) -> WatchMessage {
    watch.next().await.expect("an open watch")
}

fn fields(kv: mvccpb::KeyValue) -> KeyValueFields {
    KeyValueFields {
        key: kv.key,
        value: kv.value,
        create_revision: Revision::new(kv.create_revision),
        mod_revision: Revision::new(kv.mod_revision),
        version: kv.version,
        lease: kv.lease,
    }
}
