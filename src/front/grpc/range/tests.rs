//! The messages of answers, whole and in parts.

use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::*;
use crate::{
    hub::{FeedState, KeyMap, OutboxLimits, testing},
    pb::etcdserverpb::RangeResponse,
    types::KeyValueFields,
};

const KEYS: usize = 3000;

fn hub() -> (Arc<Hub>, Arc<Feed>) {
    let hub = testing::hub(OutboxLimits { bytes: 1, deliveries: 1, watches: 1 });
    let feed = hub.open(KeyRange::prefix("".into()));
    let mut map = KeyMap::default();
    for key in 0..KEYS {
        let (key, value) = (format!("{key:05}").into(), vec![b'x'; 300].into());
        let (create_revision, mod_revision) = (Revision::new(1), Revision::new(2));
        let fields = KeyValueFields { key, value, create_revision, mod_revision, version: 2, lease: 0 };
        map.insert(Arc::new(KeyValue::new(&fields)));
    }
    feed.install(Arc::default(), map, Revision::new(7));
    feed.set_state(FeedState::Live);
    (hub, feed)
}

/// The answer to a request, and the sizes of the parts in which it comes.
async fn ask((_, feed): &(Arc<Hub>, Arc<Feed>), request: RangeRequest) -> (RangeResponse, Vec<usize>) {
    let query = query(request).expect("a query");
    let mut reply = message(&query, query.read(feed).expect("a reply")).expect("not too large");
    let (mut message, mut parts) = (Vec::new(), Vec::new());
    let trailers = loop {
        assert!(!reply.is_end_stream());
        match reply.frame().await.expect("a frame").expect("no error").into_data() {
            Ok(mut part) => {
                parts.push(bytes::Buf::remaining(&part));
                message.extend_from_slice(&bytes::Buf::copy_to_bytes(&mut part, *parts.last().expect("a part")));
            }
            Err(frame) => break frame.into_trailers().expect("trailers"),
        }
    };
    assert!(reply.is_end_stream());
    assert_eq!(trailers.len(), 1);
    assert_eq!(trailers["grpc-status"], "0");
    let (prefix, message) = message.split_at(PREFIX);
    assert_eq!(prefix, [&[0][..], &(message.len() as u32).to_be_bytes()].concat());
    (RangeResponse::decode(message).expect("a response"), parts)
}

fn everything() -> RangeRequest {
    RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() }
}

#[tokio::test]
async fn a_large_answer_comes_in_parts_and_is_one_message() {
    let hub = hub();
    let (response, parts) = ask(&hub, everything()).await;
    assert!(parts.len() > 1 && parts.iter().all(|part| *part < 2 * PART), "{parts:?}");
    assert_eq!((response.count, response.more), (KEYS as i64, false));
    assert_eq!(response.header.expect("a header").revision, 7);
    let keys: Vec<_> = response.kvs.iter().map(|kv| kv.key.clone()).collect();
    assert_eq!(keys, (0..KEYS).map(|key| Bytes::from(format!("{key:05}"))).collect::<Vec<_>>());
    assert!(response.kvs.iter().all(|kv| kv.value == vec![b'x'; 300] && kv.mod_revision == 2 && kv.version == 2));
}

#[tokio::test]
async fn limits_counts_and_what_is_missing() {
    let hub = hub();
    let (response, parts) = ask(&hub, RangeRequest { limit: 2, ..everything() }).await;
    assert_eq!((response.kvs.len(), response.count, response.more, parts.len()), (2, KEYS as i64, true, 1));
    let (response, _) = ask(&hub, RangeRequest { limit: KEYS as i64, ..everything() }).await;
    assert_eq!((response.kvs.len(), response.count, response.more), (KEYS, KEYS as i64, false));
    let (response, _) = ask(&hub, RangeRequest { count_only: true, ..everything() }).await;
    assert_eq!((response.kvs.len(), response.count, response.more), (0, KEYS as i64, false));
    let (response, _) = ask(&hub, RangeRequest { keys_only: true, ..everything() }).await;
    assert!(response.kvs.len() == KEYS && response.kvs.iter().all(|kv| kv.value.is_empty() && !kv.key.is_empty()));
    let single = |key: &'static str| RangeRequest { key: key.into(), ..RangeRequest::default() };
    let (response, _) = ask(&hub, single("00017")).await;
    assert_eq!((response.kvs[0].key.as_ref(), response.count, response.more), (&b"00017"[..], 1, false));
    let (response, _) = ask(&hub, single("nothing")).await;
    assert_eq!((response.kvs.len(), response.count), (0, 0));
    let (response, _) = ask(&hub, RangeRequest { count_only: true, ..single("00017") }).await;
    assert_eq!((response.kvs.len(), response.count), (0, 1));
    let (response, _) = ask(&hub, RangeRequest { min_mod_revision: 3, ..single("00017") }).await;
    assert_eq!((response.kvs.len(), response.count), (0, 1), "filtered, and counted");
}

#[tokio::test]
async fn an_order_without_a_direction_sorts_what_the_limit_left() {
    // As etcd does it: one more than the limit is read, in the order of the keys, before these are sorted.
    let hub = hub();
    let sort_target = range_request::SortTarget::Value.into();
    let (response, _) = ask(&hub, RangeRequest { limit: 2, sort_target, ..everything() }).await;
    assert_eq!((response.kvs.len(), response.more), (2, true));
    assert_eq!(response.kvs[1].key, "00001");
    let descending = range_request::SortOrder::Descend.into();
    let (response, _) = ask(&hub, RangeRequest { limit: 2, sort_order: descending, ..everything() }).await;
    assert_eq!(response.kvs[0].key, format!("{:05}", KEYS - 1));
}
