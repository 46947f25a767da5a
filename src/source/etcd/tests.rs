//! Tests of the requests that are made all the time, seen from both sides. A member is a plain HTTP/2 server that does
//! what each test says.

use std::sync::atomic::AtomicUsize;

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Code;

use super::*;
use crate::{
    pb::etcdserverpb::{AuthenticateRequest, AuthenticateResponse, RangeRequest, ResponseHeader},
    source::{
        pool::framed,
        testing::{Server, UpstreamBody, fed},
    },
};

mod hostile;

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
const REVISION: i64 = 42;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a member gets.
struct Asked {
    path: String,
    headers: HeaderMap,
    /// Without its prefix.
    message: Bytes,
}

/// What it does.
enum Reply {
    /// Sends a message and success.
    Message(Bytes),
    Refusal(Code, &'static str),
    /// Sends the beginning of an answer and nothing more. Reports that the call was reset.
    Freeze(mpsc::Sender<()>),
    Raw(Response<UpstreamBody>),
}

/// The answer to a question, from a member of this cluster.
fn header_from(cluster_id: u64) -> Reply {
    let header = ResponseHeader { cluster_id, member_id: 2, revision: REVISION, raft_term: 3 };
    Reply::Message(framed(&RangeResponse { header: Some(header), ..RangeResponse::default() }))
}

fn token(token: usize) -> Reply {
    Reply::Message(framed(&AuthenticateResponse { token: format!("token.{token}"), ..AuthenticateResponse::default() }))
}

fn success() -> Frame<Bytes> {
    Frame::trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]))
}

async fn member(answer: impl Fn(Asked) -> Reply + Clone + Send + Sync + 'static) -> Server {
    Server::new(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (head, body) = request.into_parts();
            let message = body.collect().await.expect("the request").to_bytes().slice(5..);
            match answer(Asked { path: head.uri.path().to_owned(), headers: head.headers, message }) {
                Reply::Message(message) => {
                    let (sender, body) = fed();
                    tokio::spawn(async move {
                        for frame in [Frame::data(message), success()] {
                            // The relay may have given up.
                            let _ = sender.send(Ok(frame)).await;
                        }
                    });
                    Response::new(body)
                }
                Reply::Refusal(code, text) => {
                    let status = Status::new(code, text);
                    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed());
                    status.add_header(response.headers_mut()).expect("a status");
                    response
                }
                Reply::Freeze(reset) => {
                    let (sender, body) = fed();
                    tokio::spawn(async move {
                        let Reply::Message(message) = header_from(1) else { return };
                        sender.send(Ok(Frame::data(message.slice(..8)))).await.expect("the relay reads");
                        sender.closed().await;
                        reset.send(()).await.expect("the test waits");
                    });
                    Response::new(body)
                }
                Reply::Raw(response) => response,
            }
        }
    })
    .await
}

fn upstream(members: &[&Server], identity: Option<Identity>, request_timeout: Duration) -> Arc<EtcdUpstream> {
    upstream_at(members.iter().map(|member| member.endpoint.clone()).collect(), identity, request_timeout)
}

fn upstream_at(endpoints: Vec<Endpoint>, identity: Option<Identity>, request_timeout: Duration) -> Arc<EtcdUpstream> {
    EtcdUpstream::new(EtcdConfig {
        endpoints,
        dialler: Dialler::default(),
        connect_timeout: PATIENCE,
        request_timeout,
        keepalive: None,
        identity,
        probe_key: Bytes::from_static(b"/probe"),
    })
}

fn root() -> Option<Identity> {
    Some(Identity { user: "root".into(), password: "secret".into() })
}

fn revision_of(answer: Result<Confirmed, UpstreamError>) -> i64 {
    answer.expect("an answer").header.revision.get()
}

#[test]
fn what_every_member_would_say_is_no_failure_of_the_member() {
    let error = |text: &str| refused(&Error::GRpcStatus(tonic::Status::out_of_range(text)));
    let future = error("etcdserver: mvcc: required revision is a future revision");
    let compacted = error("etcdserver: mvcc: required revision has been compacted");
    assert!(matches!(future, UpstreamError::Future), "{future:?}");
    assert!(matches!(compacted, UpstreamError::Compacted), "{compacted:?}");
    let denied = |status: tonic::Status| refused(&Error::GRpcStatus(status));
    let not_permitted = denied(tonic::Status::permission_denied("etcdserver: permission denied"));
    assert!(lacks_permission(&not_permitted), "{not_permitted:?}");
    assert!([future, compacted, not_permitted].iter().all(|error| !is_of_member(error)));
    let stale_token = denied(tonic::Status::unauthenticated("etcdserver: invalid auth token"));
    assert!(!lacks_permission(&stale_token) && is_of_member(&stale_token), "{stale_token:?}");
}

#[tokio::test]
async fn a_question_counts_one_key_at_the_cluster_and_needs_a_leader() {
    let (seen, mut questions) = mpsc::channel(10);
    let server = member(move |asked| {
        seen.try_send(asked).expect("room");
        header_from(1)
    })
    .await;
    let upstream = upstream(&[&server], None, PATIENCE);
    for (oldest, serializable) in [(None, false), (Some(7), false), (None, true)] {
        if serializable {
            upstream.reach(0, PATIENCE).await.expect("an answer");
        } else {
            let confirmed = upstream.confirm(oldest.map(Revision::new)).await.expect("an answer");
            assert!(!confirmed.compacted);
            let Header { cluster_id, member_id, revision, raft_term } = confirmed.header;
            assert_eq!((cluster_id, member_id, revision, raft_term), (1, 2, Revision::new(REVISION), 3));
        }
        let Asked { path, headers, message } = questions.recv().await.expect("a question");
        assert_eq!(path, "/etcdserverpb.KV/Range");
        assert_eq!(
            [&headers["hasleader"], &headers["te"], &headers["content-type"]],
            ["true", "trailers", "application/grpc"]
        );
        let expected = RangeRequest {
            key: Bytes::from_static(b"/probe"),
            revision: oldest.unwrap_or_default(),
            count_only: true,
            serializable,
            ..RangeRequest::default()
        };
        assert_eq!(RangeRequest::decode(message).expect("a request"), expected);
    }
    assert_eq!(upstream.link(0).ask.pool.busy(), [0], "one connection, and no call is left on it");
}

#[tokio::test]
async fn a_compacted_revision_is_told_apart_from_one_that_is_still_there_or_not_there_yet() {
    let server = member(|asked| {
        let question = RangeRequest::decode(asked.message).expect("a request");
        match question.revision {
            1..10 => Reply::Refusal(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            100.. => Reply::Refusal(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
            _ => header_from(1),
        }
    })
    .await;
    let upstream = upstream(&[&server], None, PATIENCE);
    for (oldest, compacted) in [(5, true), (10, false), (100, false)] {
        let confirmed = upstream.confirm(Some(Revision::new(oldest))).await.expect("an answer");
        assert_eq!((confirmed.compacted, confirmed.header.revision), (compacted, Revision::new(REVISION)), "{oldest}");
    }
}

#[tokio::test]
async fn a_member_that_freezes_in_the_middle_of_an_answer_is_overtaken_and_its_call_is_reset() {
    let (reset, mut resets) = mpsc::channel(1);
    let frozen = member(move |_| Reply::Freeze(reset.clone())).await;
    let other = member(|_| header_from(1)).await;
    let upstream = upstream(&[&frozen, &other], None, PATIENCE);
    assert_eq!(revision_of(upstream.confirm(None).await), REVISION);
    resets.recv().await.expect("the call at the frozen member was reset");
    assert_eq!(upstream.link(0).ask.pool.busy(), [0]);
}

#[tokio::test]
async fn the_only_member_may_freeze_no_longer_than_the_request_timeout() {
    let (reset, mut resets) = mpsc::channel(1);
    let frozen = member(move |_| Reply::Freeze(reset.clone())).await;
    let upstream = upstream(&[&frozen], None, Duration::from_millis(100));
    let answer = upstream.confirm(None).await;
    assert!(matches!(answer, Err(UpstreamError::Timeout(_))), "{answer:?}");
    resets.recv().await.expect("the call was reset");
}

#[tokio::test]
async fn a_connection_that_is_asked_to_leave_costs_no_question() {
    let server = member(|_| header_from(1)).await;
    let upstream = upstream(&[&server], None, PATIENCE);
    for _ in 0..20 {
        assert_eq!(revision_of(upstream.confirm(None).await), REVISION);
        // The next question may come before the relay has heard of this, or after.
        server.leave();
    }
}

#[tokio::test]
async fn a_member_that_dies_in_the_middle_of_an_answer_is_unavailable() {
    let (reset, _resets) = mpsc::channel(1);
    let (came, mut arrived) = mpsc::channel(1);
    let server = member(move |_| {
        came.try_send(()).expect("room");
        Reply::Freeze(reset.clone())
    })
    .await;
    let upstream = upstream(&[&server], None, PATIENCE);
    let asking = tokio::spawn(async move { upstream.confirm(None).await });
    arrived.recv().await.expect("a question");
    server.task.abort();
    let answer = asking.await.expect("no panic");
    assert!(matches!(&answer, Err(UpstreamError::Unavailable(text)) if text.contains("127.0.0.1")), "{answer:?}");
}

#[tokio::test]
async fn those_whose_token_has_expired_authenticate_once_and_ask_again() {
    let issued = Arc::new(AtomicUsize::new(0));
    let valid = Arc::new(AtomicUsize::new(1));
    let (known, counter) = (valid.clone(), issued.clone());
    let server = member(move |asked| {
        if asked.path == AUTHENTICATE {
            let request = AuthenticateRequest::decode(asked.message).expect("a request");
            assert_eq!((&*request.name, &*request.password), ("root", "secret"));
            assert!(!asked.headers.contains_key("token"));
            return token(counter.fetch_add(1, Ordering::SeqCst) + 1);
        }
        if asked.headers["token"] == format!("token.{}", known.load(Ordering::SeqCst)) {
            header_from(1)
        } else {
            Reply::Refusal(Code::Unauthenticated, "etcdserver: invalid auth token")
        }
    })
    .await;
    let upstream = upstream(&[&server], root(), PATIENCE);
    for tokens in 1..=2 {
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let upstream = upstream.clone();
                tokio::spawn(async move { upstream.confirm(None).await })
            })
            .collect();
        for asked in asking {
            assert_eq!(revision_of(asked.await.expect("no panic")), REVISION);
        }
        assert_eq!(issued.load(Ordering::SeqCst), tokens);
        valid.store(2, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn when_authentication_is_turned_on_the_second_question_has_a_token() {
    let on = Arc::new(AtomicUsize::new(0));
    let is_on = on.clone();
    let server = member(move |asked| match (is_on.load(Ordering::SeqCst), &*asked.path) {
        (0, AUTHENTICATE) => Reply::Refusal(Code::FailedPrecondition, "etcdserver: authentication is not enabled"),
        (0, _) => {
            assert!(!asked.headers.contains_key("token"));
            header_from(1)
        }
        (_, AUTHENTICATE) => token(1),
        _ if asked.headers.get("token").is_some_and(|token| token == "token.1") => header_from(1),
        _ => Reply::Refusal(Code::InvalidArgument, "etcdserver: user name is empty"),
    })
    .await;
    let upstream = upstream(&[&server], root(), PATIENCE);
    assert_eq!(revision_of(upstream.confirm(None).await), REVISION);
    on.store(1, Ordering::SeqCst);
    let refused = upstream.confirm(None).await;
    assert!(matches!(refused, Err(UpstreamError::Denied(_))), "{refused:?}");
    assert_eq!(revision_of(upstream.confirm(None).await), REVISION);
    // The judge asks without a name, and a refusal for that says that the member is in touch with its cluster.
    upstream.question(0, PATIENCE).await.expect("it answers");
}

/// With a token from the cluster before, a restored one lets questions wait.
#[tokio::test]
async fn a_token_is_forgotten_when_the_cluster_was_replaced_or_lets_the_question_wait() {
    let issued = Arc::new(AtomicUsize::new(0));
    let cluster = Arc::new(AtomicUsize::new(1));
    let (counter, serves) = (issued.clone(), cluster.clone());
    let (reset, mut resets) = mpsc::channel(1);
    let server = member(move |asked| {
        let cluster = serves.load(Ordering::SeqCst);
        if asked.path == AUTHENTICATE {
            return token(counter.fetch_add(1, Ordering::SeqCst) + 1);
        }
        // The third cluster is a restored one.
        if cluster == 3 && asked.headers["token"] != "token.3" {
            return Reply::Freeze(reset.clone());
        }
        header_from(cluster as u64)
    })
    .await;
    let upstream = upstream(&[&server], root(), Duration::from_millis(500));
    let ids = async |id| {
        cluster.store(id, Ordering::SeqCst);
        upstream.confirm(None).await.map(|confirmed| confirmed.header.cluster_id)
    };
    assert!(matches!(ids(1).await, Ok(1)));
    assert!(matches!(ids(2).await, Ok(2)), "the first answer of another cluster counts");
    assert!(matches!(ids(2).await, Ok(2)));
    assert_eq!(issued.load(Ordering::SeqCst), 2, "its cluster id drops the token");
    let waited = ids(3).await;
    assert!(matches!(waited, Err(UpstreamError::Timeout(_))), "{waited:?}");
    resets.recv().await.expect("the call was reset");
    assert!(matches!(ids(3).await, Ok(3)));
    assert_eq!(issued.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_new_leader_is_asked_again_and_no_leader_is_an_error() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let server = member(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Refusal(Code::Unavailable, "etcdserver: leader changed"),
        1 => header_from(1),
        _ => Reply::Refusal(Code::Unavailable, "etcdserver: no leader"),
    })
    .await;
    let upstream = upstream(&[&server], None, PATIENCE);
    assert_eq!(revision_of(upstream.confirm(None).await), REVISION);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let answer = upstream.confirm(None).await;
    assert!(matches!(answer, Err(UpstreamError::NoLeader)), "{answer:?}");
}

#[tokio::test]
async fn an_answer_that_is_not_one_whole_message_is_an_error() {
    let (seen, mut turns) = mpsc::channel::<&'static str>(1);
    let next = Arc::new(Mutex::new(None));
    let given = next.clone();
    let server = member(move |_| {
        seen.try_send("asked").expect("room");
        given.lock().take().unwrap_or_else(|| header_from(1))
    })
    .await;
    let upstream = upstream(&[&server], None, PATIENCE);
    let Reply::Message(message) = header_from(1) else { return };
    let twice = Bytes::from([message.clone(), message.clone()].concat());
    let mut compressed = message.to_vec();
    compressed[0] = 1;
    let raw = |status: u16, frames: Vec<Frame<Bytes>>| {
        let (sender, body) = fed();
        tokio::spawn(async move {
            for frame in frames {
                let _ = sender.send(Ok(frame)).await;
            }
        });
        let mut response = Response::new(body);
        *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
        Reply::Raw(response)
    };
    let headless = framed(&RangeResponse::default());
    let cases = [
        ("no status", raw(200, vec![Frame::data(message.clone())])),
        ("no message", raw(200, vec![success()])),
        ("two messages", Reply::Message(twice)),
        ("a part of a message", Reply::Message(message.slice(..message.len() - 1))),
        ("compressed", Reply::Message(compressed.into())),
        ("not protobuf", Reply::Message(Bytes::from_static(b"\0\0\0\0\x02\xff\xff"))),
        ("no header", Reply::Message(headless)),
        ("too long", Reply::Message(vec![0; 2 << 20].into())),
        ("not gRPC", raw(503, vec![Frame::data(message.clone())])),
        ("an error of HTTP", raw(503, vec![Frame::data(message.clone()), success()])),
        ("whole", Reply::Message(message)),
    ];
    for (name, reply) in cases {
        *next.lock() = Some(reply);
        let answer = upstream.confirm(None).await;
        assert_eq!(answer.is_ok(), name == "whole", "{name}: {answer:?}");
        turns.recv().await.expect("it was asked");
    }
    assert_eq!(upstream.link(0).ask.pool.busy(), [0]);
}

/// Of two questions with one token, the second is refused when the relay has authenticated again already.
#[tokio::test]
async fn a_late_refusal_of_an_old_token_costs_no_new_one() {
    let issued = Arc::new(AtomicUsize::new(0));
    let counter = issued.clone();
    let (came, mut waits) = mpsc::channel(1);
    let server = member(move |asked| {
        if asked.path == AUTHENTICATE {
            return token(counter.fetch_add(1, Ordering::SeqCst) + 1);
        }
        if asked.headers["token"] != "token.1" {
            return header_from(1);
        }
        let (sender, body) = fed();
        // The first one waits, and there is no room for the second.
        if came.try_send(sender).is_ok() {
            return Reply::Raw(Response::new(body));
        }
        Reply::Refusal(Code::Unauthenticated, "etcdserver: invalid auth token")
    })
    .await;
    let upstream = upstream(&[&server], root(), PATIENCE);
    let asking = upstream.clone();
    let first = tokio::spawn(async move { asking.confirm(None).await });
    while waits.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(revision_of(upstream.confirm(None).await), REVISION);
    let first_answer = waits.recv().await.expect("its answer");
    let status = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("16"))]);
    first_answer.send(Ok(Frame::trailers(status))).await.expect("the relay reads");
    assert_eq!(revision_of(first.await.expect("no panic")), REVISION);
    assert_eq!(revision_of(upstream.confirm(None).await), REVISION);
    assert_eq!(issued.load(Ordering::SeqCst), 2);
}
