//! Sends bytes as requests of etcd's API over a connection of a whole relay: ranges, watches, and forwarded calls.
//!
//! Checks that nothing panics and that each request is answered or refused. A range must be answered like the store
//! itself answers it. Forwarded calls must be unchanged, and without the sort options that crash a member of etcd 3.5.
//! Deliveries of watches are checked in `tests/relay_sim`.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc};

use bytes::Bytes;
use etcd_relay::{
    pb::etcdserverpb::{
        Compare, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, WatchCancelRequest,
        WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, request_op, watch_request::RequestUnion,
    },
    rpc::GrpcService,
};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use prost::Message as _;
use tonic::{Code, Status, body::Body};
use tower::service_fn;

use crate::{
    draw::Draw,
    relay::{self, framed},
};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// One range request, or bytes instead of one.
pub(crate) fn range(input: &[u8]) {
    let mut draw = Draw(input);
    let body = match draw.byte() % 8 {
        0 => draw.0.to_vec(),
        1 | 2 => framed(draw.0),
        3 => [framed(&draw_range(&mut draw).encode_to_vec()), draw.0.to_vec()].concat(),
        _ => framed(&draw_range(&mut draw).encode_to_vec()),
    };
    relay::with(None, |relay| async move {
        let (messages, status) = relay.call(RANGE, body.clone().into()).await;
        assert_eq!(messages.len(), usize::from(status.code() == Code::Ok), "{status}");
        // If it is not exactly one message, gRPC decides.
        let Some((prefix, message)) = body.split_first_chunk::<5>() else { return };
        let whole = *prefix == framed(message)[..5];
        let Some(request) = RangeRequest::decode(message).ok().filter(|_| whole) else { return };
        match relay.store.range(&request) {
            Ok(response) => {
                assert_eq!(status.code(), Code::Ok, "{status} for {request:?}");
                let answer = RangeResponse::decode(messages[0].clone()).expect("an answer");
                assert_eq!(answer, response, "{request:?}");
            }
            Err(error) => {
                let wanted = Status::from(error);
                assert_eq!((status.code(), status.message()), (wanted.code(), wanted.message()), "{request:?}");
            }
        }
    });
}

/// The messages of one watch stream, with changes between them. At the end, the client closes its half of the stream or
/// keeps it open; etcd continues the watches of a half-closed stream.
pub(crate) fn watch(input: &[u8]) {
    relay::with(None, |relay| async move {
        let mut draw = Draw(input);
        let half_closes = draw.flip();
        let (mut send, answer) = relay.open(WATCH).await;
        let mut body = Vec::new();
        while !draw.is_done() {
            let bytes = match draw.byte() % 16 {
                0 => draw.some().to_vec(),
                1 => framed(draw.some()),
                2..6 => {
                    let put =
                        PutRequest { key: key(&mut draw).to_vec().into(), value: "new".into(), ..Default::default() };
                    // An empty key is refused.
                    let _ = relay.store.put(&put);
                    tokio::task::yield_now().await;
                    continue;
                }
                _ => framed(&WatchRequest { request_union: Some(draw_watch(&mut draw)) }.encode_to_vec()),
            };
            body.extend_from_slice(&bytes);
            // If the relay has ended the call, it accepts no more data.
            let _ = send.send_data(bytes.into(), false);
            if draw.flip() {
                tokio::task::yield_now().await;
            }
        }
        if half_closes {
            let _ = send.send_data(Bytes::new(), true);
        }
        let (messages, status) = answer.all().await;
        let (wanted, all_good) = creates(&body);
        let (mut answered, mut ids) = (0, BTreeSet::new());
        for message in messages {
            let response = WatchResponse::decode(message).expect("a response");
            let id = response.watch_id;
            if response.created {
                answered += 1;
                assert!(response.canceled || ids.insert(id), "watch {id} was created twice");
            } else if response.canceled && response.compact_revision == 0 {
                assert!(ids.remove(&id), "watch {id} ended but does not exist");
            } else {
                assert!(
                    id == -1 && response.events.is_empty() || ids.contains(&id),
                    "watch {id} does not exist but \
                    got a response"
                );
            }
        }
        assert!(answered <= wanted, "{answered} of {wanted} creates were answered");
        if all_good {
            assert_eq!(answered, wanted, "each create is answered");
            assert!(status.is_none(), "the stream goes on: {status:?}");
        }
    });
}

/// The number of watches that the messages request before the first invalid message, and whether all messages are
/// valid.
fn creates(mut body: &[u8]) -> (usize, bool) {
    let mut count = 0;
    while let Some((prefix, rest)) = body.split_first_chunk::<5>() {
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let Some((message, rest)) = rest.split_at_checked(len) else { return (count, false) };
        let Ok(request) = WatchRequest::decode(message) else { return (count, false) };
        if prefix[0] != 0 {
            return (count, false);
        }
        count += usize::from(matches!(request.request_union, Some(RequestUnion::CreateRequest(_))));
        body = rest;
    }
    (count, body.is_empty())
}

/// A call that is forwarded if it does no harm to members.
pub(crate) fn forwarded(input: &[u8]) {
    let mut draw = Draw(input);
    let path = draw.of(&[TXN, RANGE, "/etcdserverpb.Maintenance/Alarm", "/etcdserverpb.Auth/RoleGrantPermission"]);
    let body = match draw.byte() % 4 {
        0 => draw.0.to_vec(),
        1 => framed(draw.0),
        _ => [framed(&draw_txn(&mut draw, 0).encode_to_vec()), draw.some().to_vec()].concat(),
    };
    let passed = Arc::new(Mutex::new(Vec::new()));
    let to = passed.clone();
    let etcd: GrpcService = GrpcService::new(service_fn(move |request: Request<Body>| {
        let to = to.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            to.lock().push((path, body));
            Ok::<Response<Body>, Infallible>(Status::unavailable("passed").into_http())
        }
    }));
    let sent = Bytes::from(body);
    relay::with(Some(etcd), |relay| async move {
        let (_, status) = relay.call(path, sent.clone()).await;
        let passed = passed.lock();
        let passed: Vec<_> = passed.iter().filter(|(to, _)| to == path).collect();
        assert!(passed.len() <= 1, "passed {} times", passed.len());
        let Some((_, body)) = passed.first() else { return };
        assert_eq!((*body == sent, status.message()), (true, "passed"));
        // A member reads only the first message.
        let Some((prefix, rest)) = body.split_first_chunk::<5>() else { return };
        let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        let Some(message) = rest.get(..len) else { return };
        match path {
            TXN => assert!(!TxnRequest::decode(message).is_ok_and(|txn| !harmless(&txn)), "{message:?}"),
            RANGE => assert!(!RangeRequest::decode(message).is_ok_and(|range| !sorts(&range)), "{message:?}"),
            _ => {}
        }
    });
}

fn harmless(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| match &op.request {
        Some(request_op::Request::RequestRange(range)) => sorts(range),
        Some(request_op::Request::RequestTxn(txn)) => harmless(txn),
        _ => true,
    })
}

fn sorts(range: &RangeRequest) -> bool {
    (0..=2).contains(&range.sort_order) && (0..=4).contains(&range.sort_target)
}

fn key<'a>(draw: &mut Draw<'a>) -> &'a [u8] {
    if draw.seldom() {
        return draw.some();
    }
    draw.of(&[b"a", b"a/", b"a/1", b"b", b"c", b"c\0", b"\0", b"zz", b""])
}

fn draw_range(draw: &mut Draw<'_>) -> RangeRequest {
    RangeRequest {
        key: key(draw).to_vec().into(),
        range_end: key(draw).to_vec().into(),
        limit: small(draw),
        revision: if draw.flip() { 0 } else { small(draw) },
        sort_order: choice(draw),
        sort_target: choice(draw),
        serializable: draw.flip(),
        keys_only: draw.seldom(),
        count_only: draw.seldom(),
        min_mod_revision: if draw.seldom() { small(draw) } else { 0 },
        max_mod_revision: if draw.seldom() { small(draw) } else { 0 },
        min_create_revision: if draw.seldom() { small(draw) } else { 0 },
        max_create_revision: if draw.seldom() { small(draw) } else { 0 },
    }
}

fn draw_watch(draw: &mut Draw<'_>) -> RequestUnion {
    match draw.byte() % 8 {
        0 => RequestUnion::CancelRequest(WatchCancelRequest { watch_id: small(draw) }),
        1 => RequestUnion::ProgressRequest(WatchProgressRequest {}),
        _ => RequestUnion::CreateRequest(WatchCreateRequest {
            key: key(draw).to_vec().into(),
            range_end: key(draw).to_vec().into(),
            start_revision: small(draw),
            progress_notify: draw.flip(),
            filters: draw.some().iter().take(4).map(|filter| i32::from(*filter % 4)).collect(),
            prev_kv: draw.flip(),
            watch_id: if draw.flip() { 0 } else { small(draw) },
            fragment: draw.flip(),
        }),
    }
}

fn draw_txn(draw: &mut Draw<'_>, depth: usize) -> TxnRequest {
    let mut txn = TxnRequest::default();
    for _ in 0..draw.byte() % 4 {
        let request = match draw.byte() % 4 {
            0 => request_op::Request::RequestRange(draw_range(draw)),
            1 => request_op::Request::RequestPut(PutRequest { key: key(draw).to_vec().into(), ..Default::default() }),
            _ if depth < 20 => request_op::Request::RequestTxn(draw_txn(draw, depth + 1)),
            _ => break,
        };
        let list = if draw.flip() { &mut txn.success } else { &mut txn.failure };
        list.push(RequestOp { request: Some(request) });
    }
    if draw.flip() {
        txn.compare.push(Compare { key: key(draw).to_vec().into(), ..Default::default() });
    }
    txn
}

/// Usually a number close to existing revisions and numbers.
fn small(draw: &mut Draw<'_>) -> i64 {
    if draw.seldom() {
        return draw.of(&[i64::MAX, i64::MIN, -1, i64::from(i32::MAX), 1 << 40]);
    }
    i64::from(draw.byte() % 24)
}

/// Usually an existing choice.
fn choice(draw: &mut Draw<'_>) -> i32 {
    if draw.seldom() { draw.number() as i32 } else { i32::from(draw.byte() % 3) }
}
