//! Sends the same `RangeStream` calls to etcd 3.7 and to a relay over it.
//!
//! Both must send the same key-values in the same order, the same last message, the same kind of messages before it,
//! and the same error after the same key-values. The number of messages may differ. Skipped if there is no etcd 3.7.

use etcd_relay::pb::etcdserverpb::{
    RangeRequest, RangeResponse,
    range_request::{SortOrder, SortTarget},
};
use tonic::{Code, Request, metadata::MetadataValue};

use crate::{
    access::users::Users,
    support::{
        etcd::{Etcd, Http},
        kv::{self, Kv},
        relay::RelayCommand,
        target::Line,
    },
};

/// Keys below `/a/`. etcd's first message has ten, and each later one twice as many as the one before while they are
/// small.
const KEYS: usize = 300;

/// The answer to a call, as clients see it.
#[derive(Debug, PartialEq)]
struct Told {
    /// All key-values, and the other fields of the last message; default if there was no last message.
    whole: RangeResponse,
    error: Option<(Code, String)>,
}

/// The answer to a call, and its number of messages.
async fn told(kv: &Kv, request: RangeRequest, token: Option<&str>) -> (Told, usize) {
    let mut request = Request::new(request);
    if let Some(token) = token {
        request.metadata_mut().insert("token", MetadataValue::try_from(token).expect("a token"));
    }
    let mut told = Told { whole: RangeResponse::default(), error: None };
    let mut messages = 0;
    let error = |status: tonic::Status| Some((status.code(), status.message().to_owned()));
    let mut stream = match kv.raw.clone().range_stream(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (Told { error: error(status), ..told }, 0),
    };
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                let part = message.range_response.expect("each message has a response");
                assert!(told.whole.header.is_none(), "nothing comes after the message with the header");
                if part.header.is_none() {
                    assert!(!part.kvs.is_empty(), "a message before the last has key-values");
                    assert_eq!((part.count, part.more), (0, false), "and nothing else");
                }
                let mut kvs = std::mem::take(&mut told.whole.kvs);
                kvs.extend(part.kvs);
                told.whole = RangeResponse { kvs, ..part };
                messages += 1;
            }
            Ok(None) => break,
            Err(status) => {
                told.error = error(status);
                break;
            }
        }
    }
    assert!(told.error.is_some() || told.whole.header.is_some(), "the last message has the header");
    (told, messages)
}

fn below_a() -> RangeRequest {
    RangeRequest { key: kv::bytes("/a/"), range_end: kv::prefix_end("/a/"), ..Default::default() }
}

fn sorted(order: SortOrder, target: SortTarget) -> RangeRequest {
    RangeRequest { sort_order: order.into(), sort_target: target.into(), ..below_a() }
}

/// Writes keys with values of all sizes, some changed, some deleted. Returns the revision before the last changes.
async fn fill(etcd: &Kv) -> i64 {
    for key in 0..KEYS {
        // Every tenth is large, so that the size of messages varies.
        let size = if key % 10 == 0 { 100 << 10 } else { key };
        etcd.put(format!("/a/{key:04}"), vec![b'x'; size]).await;
    }
    etcd.put("/b/outside", "1").await;
    let past = etcd.revision().await;
    etcd.put("/a/0000", "new").await;
    etcd.put("/a/later", "1").await;
    etcd.delete("/a/0001").await;
    past
}

/// Requests of every kind for this data.
fn requests(past: i64) -> Vec<RangeRequest> {
    let single = |key: &str| RangeRequest { key: kv::bytes(key), ..Default::default() };
    let between = |key: &str, end: &str| RangeRequest { range_end: kv::bytes(end), ..single(key) };
    let mut requests = vec![
        below_a(),
        RangeRequest { serializable: true, ..below_a() },
        RangeRequest { revision: past, ..below_a() },
        RangeRequest { revision: past, serializable: true, ..below_a() },
        RangeRequest { revision: past, limit: 15, ..below_a() },
        RangeRequest { revision: past + 1_000, ..below_a() },
        RangeRequest { revision: -1, ..below_a() },
        RangeRequest { keys_only: true, ..below_a() },
        RangeRequest { keys_only: true, limit: 25, ..below_a() },
        RangeRequest { count_only: true, ..below_a() },
        RangeRequest { count_only: true, limit: 5, ..below_a() },
        RangeRequest { count_only: true, revision: past, ..below_a() },
        RangeRequest { count_only: true, keys_only: true, ..below_a() },
        single("/a/0000"),
        RangeRequest { limit: 1, ..single("/a/0000") },
        RangeRequest { keys_only: true, ..single("/a/0000") },
        RangeRequest { revision: past, ..single("/a/0001") },
        single("/a/0001"),
        single("/a/none"),
        RangeRequest { count_only: true, ..single("/a/none") },
        single("/b/outside"),
        between("/a/0100", "/a/0100"),
        between("/a/0200", "/a/0100"),
        between("/a/0100", "/a/0200"),
        between("/a/0100", "/b/p"),
        between("/a/0290", "\0"),
        between("\0", "\0"),
        RangeRequest::default(),
        RangeRequest { sort_order: 9, ..below_a() },
        RangeRequest { sort_order: SortOrder::Ascend.into(), sort_target: 9, ..below_a() },
        RangeRequest { sort_order: 9, ..Default::default() },
        RangeRequest { min_mod_revision: 3, ..below_a() },
        RangeRequest { max_mod_revision: 3, ..below_a() },
        RangeRequest { min_create_revision: 3, ..below_a() },
        RangeRequest { max_create_revision: -3, ..below_a() },
        RangeRequest { min_mod_revision: 3, ..sorted(SortOrder::Descend, SortTarget::Key) },
    ];
    let keys = i64::try_from(KEYS).expect("few");
    for limit in [-1, 1, 9, 10, 11, 30, keys - 1, keys, keys + 1, i64::MAX, i64::MIN] {
        requests.push(RangeRequest { limit, ..below_a() });
    }
    for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
        let targets = [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
        requests.extend(targets.map(|target| sorted(order, target)));
    }
    requests
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_a_second_reader_costs_etcd_nothing() {
    let Some(etcd) = Etcd::of_version(Line::V3_7.newest(), &[], Http::Shared).await else { return };
    let relay = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").start().await;
    relay.follows().await;
    let (direct, through) = (Kv::connect(&etcd.endpoint()).await, Kv::connect(&relay.endpoint()).await);
    let past = fill(&direct).await;
    let mut several = 0;
    for request in requests(past) {
        let (expected, messages) = told(&direct, request.clone(), None).await;
        let (answer, own) = told(&through, request.clone(), None).await;
        assert_eq!(answer, expected, "{request:?}");
        several += usize::from(messages > 1 && own > 1);
    }
    assert!(several > 10, "{several} answers came in several messages from both");

    // A compacted revision is refused with etcd's error before the first message, and the compact revision itself can
    // be read.
    direct.compact(past).await;
    for request in [
        RangeRequest { revision: past - 1, ..below_a() },
        RangeRequest { revision: past - 1, count_only: true, serializable: true, ..below_a() },
        RangeRequest { revision: past, ..below_a() },
    ] {
        let (expected, _) = told(&direct, request.clone(), None).await;
        assert_eq!(expected.error.is_some(), request.revision < past, "{expected:?}");
        assert_eq!(told(&through, request.clone(), None).await.0, expected, "{request:?}");
    }

    // A second reader: etcd is asked for its revision, but sends no list.
    let streams = etcd.calls("RangeStream").await;
    let sent = etcd.metric("etcd_network_client_grpc_sent_bytes_total").await;
    let (_, messages) = told(&through, below_a(), None).await;
    assert!(messages > 3, "{messages}");
    let sent = etcd.metric("etcd_network_client_grpc_sent_bytes_total").await - sent;
    assert!(sent < 10_000.0, "etcd sent {sent} bytes for a list of three million");
    assert_eq!(etcd.calls("RangeStream").await, streams);
    relay.assert_log_has_only(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_each_client_reads_what_it_may_read() {
    let Some(etcd) = Etcd::of_version(Line::V3_7.newest(), &["--bcrypt-cost=4"], Http::Shared).await else { return };
    let direct = Kv::connect(&etcd.endpoint()).await;
    let past = fill(&direct).await;
    let users = Users::on(&etcd).await;
    let relay = users.relay(&etcd).await;
    relay.follows().await;
    let through = Kv::connect(&relay.endpoint()).await;
    let (alice, bob) = (users.token("alice").await, users.token("bob").await);
    for (token, reads) in [(Some(&*alice), true), (Some(&*bob), false), (Some("made.up"), false), (None, false)] {
        for request in [
            below_a(),
            RangeRequest { revision: past, limit: 20, ..below_a() },
            RangeRequest { count_only: true, serializable: true, ..below_a() },
            sorted(SortOrder::Descend, SortTarget::Key),
        ] {
            let (expected, _) = told(&direct, request.clone(), token).await;
            let is_read = reads && request.sort_order() != SortOrder::Descend;
            assert_eq!(expected.error.is_none(), is_read, "{request:?} with {token:?}: {:?}", expected.error);
            assert_eq!(told(&through, request.clone(), token).await.0, expected, "{request:?} with {token:?}");
        }
    }
    let served = relay.metric_of("etcd_relay_range_streams_total", "outcome=\"confirmed\"").await;
    assert!(served >= 1.0, "what alice may read comes from memory");
}
