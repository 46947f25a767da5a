//! Tests of the messages of answers, whole and in parts.

use http_body::Body as _;
use http_body_util::BodyExt as _;

use std::sync::atomic::Ordering;

use super::*;
use crate::{
    hub::{
        FeedState, KeyMap, OutboxLimits, Reset, testing,
        upstream::{Changes, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest},
    },
    pb::etcdserverpb::{RangeResponse, RangeStreamResponse},
    rpc::GrpcService,
    types::{Cluster, EventFields, EventKind, KeyValue, KeyValueFields},
};

const KEYS: usize = 3000;

fn hub() -> (Arc<Hub>, Arc<Feed>) {
    hub_of(KEYS)
}

fn hub_of(keys: usize) -> (Arc<Hub>, Arc<Feed>) {
    let hub = testing::hub(OutboxLimits { bytes: 1, deliveries: 1, watches: 1 });
    let feed = hub.open(KeyRange::prefix("".into()));
    let mut map = KeyMap::default();
    for key in 0..keys {
        let (key, value) = (format!("{key:05}").into(), vec![b'x'; 300].into());
        let (create_revision, mod_revision) = (Revision::new(1), Revision::new(2));
        let fields = KeyValueFields { key, value, create_revision, mod_revision, version: 2, lease: 0 };
        map.insert(KeyValue::new(&fields));
    }
    feed.install(Arc::default(), map, Revision::new(7));
    feed.set_state(FeedState::Live);
    (hub, feed)
}

/// The answer to a request, and the sizes of its parts.
async fn ask((_, feed): &(Arc<Hub>, Arc<Feed>), request: RangeRequest) -> (RangeResponse, Vec<usize>) {
    let query = query(request).expect("a query");
    let mut reply = message(query.read(feed).expect("a reply")).expect("not too large");
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

/// The head of a request.
fn parts() -> Parts {
    http::Request::new(()).into_parts().0
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
async fn a_list_of_keys_alone_comes_in_parts_and_is_made_as_it_is_taken() {
    let hub = hub_of(10 * KEYS);
    let (response, parts) = ask(&hub, RangeRequest { keys_only: true, ..everything() }).await;
    assert!(parts.len() > 2, "{parts:?}");
    assert_eq!((response.count, response.kvs.len()), (10 * KEYS as i64, 10 * KEYS));
    assert!(response.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision == 2 && kv.version == 2));
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
    // As in etcd: one key more than the limit is read in key order before the keys are sorted.
    let hub = hub();
    let sort_target = range_request::SortTarget::Value.into();
    let (response, _) = ask(&hub, RangeRequest { limit: 2, sort_target, ..everything() }).await;
    assert_eq!((response.kvs.len(), response.more), (2, true));
    assert_eq!(response.kvs[1].key, "00001");
    let descending = range_request::SortOrder::Descend.into();
    let (response, _) = ask(&hub, RangeRequest { limit: 2, sort_order: descending, ..everything() }).await;
    assert_eq!(response.kvs[0].key, format!("{:05}", KEYS - 1));
}

/// An upstream that is asked for its revision once, and answers when the test says so.
#[derive(Debug)]
struct Asked {
    answer: tokio::sync::Semaphore,
    asked: tokio::sync::Semaphore,
    compact_revision: std::sync::atomic::AtomicI64,
}

#[async_trait::async_trait]
impl Upstream for Asked {
    async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for here".into()))
    }

    async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for here".into()))
    }

    async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        let compacted = oldest.is_some_and(|oldest| oldest.get() < self.compact_revision.load(Ordering::SeqCst));
        self.asked.add_permits(1);
        self.answer.acquire().await.expect("open").forget();
        let header = Header { cluster_id: 7, revision: Revision::new(5), ..Header::default() };
        Ok(Confirmed { header, compacted })
    }
}

/// A feed of cluster 7 with the revisions 1 to `revision` of the key `k`. Each value is its revision.
fn following(revision: i64) -> (Arc<Asked>, Arc<Hub>, Arc<Feed>) {
    let upstream = Arc::new(Asked {
        answer: tokio::sync::Semaphore::new(0),
        asked: tokio::sync::Semaphore::new(0),
        compact_revision: 0.into(),
    });
    let hub = testing::hub_over(upstream.clone(), OutboxLimits { bytes: 1, deliveries: 1, watches: 1 });
    let feed = hub.open(KeyRange::prefix("".into()));
    let cluster = Arc::new(Cluster::of(&Header { cluster_id: 7, ..Header::default() }));
    feed.install(cluster, KeyMap::default(), Revision::ZERO);
    feed.follows(true, None);
    put(&feed, 1..=revision);
    (upstream, hub, feed)
}

fn put(feed: &Feed, revisions: std::ops::RangeInclusive<i64>) {
    let changes = |revision: i64| {
        let mod_revision = Revision::new(revision);
        let (key, value) = ("k".into(), revision.to_string().into());
        let kv =
            KeyValueFields { key, value, create_revision: Revision::new(1), mod_revision, version: revision, lease: 0 };
        let events = vec![EventFields { kind: EventKind::Put, kv }];
        Changes { revision: mod_revision, events, prev: Vec::new(), received: std::time::Instant::now() }
    };
    feed.publish(&revisions.map(changes).collect::<Vec<_>>()).expect("in order");
}

/// The result of reading `k` at a past revision, as (revision of the header, value). The feed advances to `later`, and
/// the past revision is compacted right after etcd confirmed that it was not.
async fn read_past(serializable: bool, later: i64) -> (i64, Bytes) {
    let (upstream, hub, feed) = following(4);
    let access = Access::new(GrpcService::new(tower::service_fn(|_| std::future::pending())), Duration::from_secs(1));
    let request = RangeRequest { key: "k".into(), revision: 2, ..RangeRequest::default() };
    let query = query(request).expect("a query");
    let parts = parts();
    let found = look(&hub, &access, &feed, &query, Origin { serializable, parts: &parts });
    let meanwhile = async {
        upstream.asked.acquire().await.expect("open").forget();
        upstream.compact_revision.store(3, Ordering::SeqCst);
        put(&feed, 5..=later);
        upstream.answer.add_permits(1);
    };
    let (found, ()) = tokio::join!(found, meanwhile);
    let (reply, how) = found.expect("answered from memory");
    assert_eq!(how, Read::History);
    let value = reply.kvs.kvs()[0].value().to_vec();
    (reply.header.revision.get(), value.into())
}

#[tokio::test]
async fn a_past_read_is_never_of_what_is_compacted_at_the_revision_in_its_header() {
    // At revision 5 etcd confirmed that it was not compacted; at 6 it is.
    assert_eq!(read_past(false, 6).await, (5, "2".into()));
    assert_eq!(read_past(true, 6).await, (5, "2".into()));
}

#[tokio::test(start_paused = true)]
async fn a_past_read_without_a_word_of_etcd_speaks_for_the_past_alone() {
    let (_silent, hub, feed) = following(4);
    let access = Access::new(GrpcService::new(tower::service_fn(|_| std::future::pending())), Duration::from_secs(1));
    let request = RangeRequest { key: "k".into(), revision: 2, ..RangeRequest::default() };
    let query = query(request).expect("a query");
    let (reply, _) = look(&hub, &access, &feed, &query, Origin { serializable: true, parts: &parts() })
        .await
        .expect("answered from memory");
    assert_eq!(reply.header.revision.get(), 2);
}

#[tokio::test]
async fn a_read_that_another_cluster_confirms_is_forwarded() {
    for (cluster_id, revision) in [(8, 4), (8, 5), (8, 9), (7, 6)] {
        let (upstream, hub, _) = following(4);
        let feed = &hub.feeds()[0];
        // The feed has another cluster than the one that answers, or a higher revision than that one.
        let cluster = Arc::new(Cluster::of(&Header { cluster_id, ..Header::default() }));
        feed.reset(&cluster, KeyMap::default(), Revision::new(revision), &Reset::Replaced);
        feed.follows(true, None);
        upstream.answer.add_permits(1);
        let access =
            Access::new(GrpcService::new(tower::service_fn(|_| std::future::pending())), Duration::from_secs(1));
        let query = query(RangeRequest { key: "k".into(), ..RangeRequest::default() }).expect("a query");
        let why = look(&hub, &access, feed, &query, Origin { serializable: false, parts: &parts() })
            .await
            .expect_err("forwarded");
        assert_eq!(why, Read::ForwardedLate, "{cluster_id} at {revision}");
        assert!(!feed.is_serving() && feed.doubted().is_some());
    }
}

/// The decoded messages of a stream.
async fn ask_stream((_, feed): &(Arc<Hub>, Arc<Feed>), request: RangeRequest) -> Vec<RangeResponse> {
    let query = query(request).and_then(streamed).expect("a query that can be streamed");
    let mut reply = messages(query.read(feed).expect("a reply"));
    let mut bytes = bytes::BytesMut::new();
    while let Some(frame) = reply.frame().await {
        if let Ok(mut part) = frame.expect("no error").into_data() {
            let length = bytes::Buf::remaining(&part);
            bytes.extend_from_slice(&bytes::Buf::copy_to_bytes(&mut part, length));
        }
    }
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let prefix = bytes.split_to(PREFIX);
        let length = u32::from_be_bytes(prefix[1..].try_into().expect("four bytes")) as usize;
        let message = RangeStreamResponse::decode(bytes.split_to(length)).expect("a message");
        messages.push(message.range_response.expect("a response"));
    }
    messages
}

#[tokio::test]
async fn a_stream_is_the_answer_in_several_messages() {
    let hub = hub();
    let limited = RangeRequest { limit: 2_500, ..everything() };
    let counted = RangeRequest { count_only: true, ..everything() };
    let bare = RangeRequest { keys_only: true, ..everything() };
    let nothing = RangeRequest { key: "x".into(), ..RangeRequest::default() };
    for (request, several) in [(everything(), true), (limited, true), (counted, false), (bare, false), (nothing, false)]
    {
        let (whole, _) = ask(&hub, request.clone()).await;
        let mut messages = ask_stream(&hub, request).await;
        assert_eq!(messages.len() > 1, several, "{} messages", messages.len());
        let mut last = messages.pop().expect("a last message");
        let mut kvs = Vec::new();
        for message in messages {
            assert_eq!((message.header, message.count, message.more), (None, 0, false), "the last message has them");
            assert!(!message.kvs.is_empty());
            kvs.extend(message.kvs);
        }
        kvs.append(&mut last.kvs);
        assert_eq!(RangeResponse { kvs, ..last }, whole);
    }
}

#[test]
fn what_etcd_does_not_stream_as_one_list_is_not_streamed_here() {
    let by = |order, target| RangeRequest { sort_order: order as i32, sort_target: target as i32, ..everything() };
    use range_request::{SortOrder as Order, SortTarget as Target};
    for (request, is_streamed) in [
        (everything(), true),
        (by(Order::Ascend, Target::Key), true),
        (by(Order::Descend, Target::Key), false),
        (by(Order::None, Target::Mod), false),
        (by(Order::Ascend, Target::Mod), false),
        (RangeRequest { min_mod_revision: 3, ..everything() }, false),
        (RangeRequest { max_create_revision: 3, ..everything() }, false),
    ] {
        let query = query(request.clone()).and_then(streamed);
        assert_eq!(query.is_some(), is_streamed, "{request:?}");
    }
}
