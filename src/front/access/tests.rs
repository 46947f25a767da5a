//! Tests of `Access` with a small model of etcd's permission check.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body_util::BodyExt as _;
use prost::Message as _;
use tonic::{Status, body::Body};
use tower::service_fn;

use super::*;
use crate::{
    hub::{FeedState, KeyMap, OutboxLimits, testing, upstream::Agreement},
    pb::etcdserverpb::RangeRequest,
    types::Revision,
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Tokens with the ranges that each may read.
type Users = HashMap<&'static str, Vec<KeyRange>>;

/// Has the tokens and their ranges; `None` while authentication is off.
#[derive(Clone, Default)]
struct FakeEtcd {
    users: Arc<Mutex<Option<Users>>>,
    away: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    /// Largest accepted request, like etcd's `--max-request-bytes`.
    largest: Arc<AtomicUsize>,
}

impl FakeEtcd {
    fn with(users: &[(&'static str, &[KeyRange])]) -> Self {
        let etcd = Self::default();
        etcd.largest.store(usize::MAX, Ordering::Relaxed);
        etcd.set(users);
        etcd
    }

    fn set(&self, users: &[(&'static str, &[KeyRange])]) {
        *self.users.lock() = Some(users.iter().map(|(token, ranges)| (*token, ranges.to_vec())).collect());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn service(&self) -> GrpcService {
        let etcd = self.clone();
        GrpcService::new(service_fn(move |request: Request<Body>| {
            let etcd = etcd.clone();
            async move { Ok::<_, std::convert::Infallible>(etcd.answer(request).await) }
        }))
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        if request.uri().path() != "/etcdserverpb.KV/Range" {
            return Status::ok("").into_http::<Body>();
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.away.load(Ordering::Relaxed) {
            return Status::unavailable("away").into_http();
        }
        let token = request.headers().get("token").map(|token| token.to_str().expect("a token").to_owned());
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        if body.len() > self.largest.load(Ordering::Relaxed).max(1024) {
            return Status::resource_exhausted("grpc: received message larger than max").into_http();
        }
        let range = RangeRequest::decode(&body[5..]).expect("a request");
        assert!(range.serializable && range.count_only && range.revision == i64::MAX);
        let range = KeyRange::from_wire(range.key, range.range_end).expect("a range with keys");
        let users = self.users.lock();
        let status = match (&*users, token) {
            (None, _) => Status::out_of_range("future"),
            (Some(_), None) => Status::invalid_argument("etcdserver: user name is empty"),
            (Some(users), Some(token)) => match users.get(&token[..]) {
                None => Status::unauthenticated("etcdserver: invalid auth token"),
                Some(granted) if granted.iter().any(|granted| granted.covers(&range)) => Status::out_of_range("future"),
                Some(_) => Status::permission_denied("etcdserver: permission denied"),
            },
        };
        status.into_http()
    }
}

fn caller(token: &str) -> Client {
    let headers = HeaderMap::from_iter([(HeaderName::from_static("token"), token.parse().expect("a value"))]);
    Client::of(&headers, &http::Extensions::new())
}

fn keys(keys: &[&str]) -> Vec<WireRange> {
    keys.iter().map(|key| WireRange { key: Bytes::copy_from_slice(key.as_bytes()), range_end: Bytes::new() }).collect()
}

fn prefix(prefix: &'static str) -> KeyRange {
    KeyRange::prefix(prefix.into())
}

async fn known(etcd: &FakeEtcd, auth: Auth) -> (Access, tokio::task::JoinHandle<()>) {
    let access = Access::new(etcd.service(), PATIENCE);
    let task = tokio::spawn(access.clone().run(ReadyBoard::new()));
    assert_eq!(access.wait_known(PATIENCE).await, auth);
    (access, task)
}

#[tokio::test(start_paused = true)]
async fn before_etcd_answers_nothing_is_permitted_and_readiness_is_held_back() {
    let etcd = FakeEtcd::default();
    etcd.away.store(true, Ordering::Relaxed);
    let access = Access::new(etcd.service(), PATIENCE);
    let ready = ReadyBoard::new();
    let task = tokio::spawn(access.clone().run(ready.clone()));
    assert_eq!(access.wait_known(PATIENCE).await, Auth::Unknown);
    assert!(!access.is_off() && !ready.is_ready());
    assert!(!access.permits(&Client::relay(), &keys(&["a"])[0]).await);
    etcd.away.store(false, Ordering::Relaxed);
    assert_eq!(access.wait_known(PATIENCE * 2).await, Auth::Off);
    ready.wait_for(true).await;
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn what_was_known_stays_while_etcd_is_away_and_a_doubt_ends_it() {
    let etcd = FakeEtcd::default();
    let (access, task) = known(&etcd, Auth::Off).await;
    etcd.away.store(true, Ordering::Relaxed);
    let before = etcd.asked();
    tokio::time::sleep(INTERVAL * 3).await;
    assert!(etcd.asked() > before && access.is_off());
    access.doubt();
    assert!(!access.is_off());
    assert_eq!(access.known().auth, Auth::Unknown);
    etcd.away.store(false, Ordering::Relaxed);
    assert_eq!(access.wait_known(INTERVAL * 3).await, Auth::Off);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn that_authentication_is_off_is_not_believed_for_long_while_events_come_and_answers_do_not() {
    let limits = OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 };
    let hub = testing::hub(limits);
    let feed = hub.open(prefix("/a/"));
    let etcd = FakeEtcd::default();
    let (access, task) = known(&etcd, Auth::Off).await;
    let expiry = tokio::spawn(access.clone().expire(hub.clone()));
    etcd.away.store(true, Ordering::Relaxed);
    feed.install(Arc::default(), KeyMap::default(), Revision::new(1));
    feed.set_state(FeedState::Live);
    let asked = access.known().since;
    tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
    assert!(access.is_off(), "there is time to answer");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(access.known().auth, Auth::Unknown);
    assert_eq!(access.known().off_until, asked, "nothing was certainly heard after the last answer");
    etcd.away.store(false, Ordering::Relaxed);
    assert_eq!(access.wait_known(INTERVAL * 3).await, Auth::Off);
    tokio::time::sleep(LIMIT * 3).await;
    assert!(access.is_off(), "etcd answers");
    task.abort();
    expiry.abort();
}

#[tokio::test(start_paused = true)]
async fn that_authentication_was_off_before_etcd_went_away_counts_until_it_is_heard_again() {
    let hub = testing::hub(OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 });
    let feed = hub.open(prefix("/a/"));
    let etcd = FakeEtcd::default();
    let (access, task) = known(&etcd, Auth::Off).await;
    let expiry = tokio::spawn(access.clone().expire(hub.clone()));
    let by_feed = || {
        feed.install(Arc::default(), KeyMap::default(), Revision::new(1));
        feed.set_state(FeedState::Live);
    };
    let by_answer = || access.heard();
    let by_error = || access.failed(&UpstreamError::NoLeader);
    let ways: [(&str, &dyn Fn()); 3] = [("a feed", &by_feed), ("an answer", &by_answer), ("an error", &by_error)];
    for (way, hear) in ways {
        access.heard();
        assert!(access.is_off(), "the answer is valid");
        etcd.away.store(true, Ordering::Relaxed);
        tokio::time::sleep(LIMIT * 10).await;
        assert!(access.is_off(), "etcd is away, and nothing new comes");
        let back = Instant::now();
        access.failed(&UpstreamError::Unavailable("away".into()));
        assert!(access.is_off(), "that is not an answer of etcd");
        hear();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((access.is_off(), access.known().auth), (false, Auth::Unknown), "{way}");
        let since = access.known().off_until.duration_since(back);
        assert!(since <= Duration::from_millis(500), "the time for live watches starts when etcd is back: {since:?}");
        feed.set_state(FeedState::Resuming);
        etcd.away.store(false, Ordering::Relaxed);
        assert_eq!(access.wait_known(INTERVAL * 3).await, Auth::Off);
    }
    task.abort();
    expiry.abort();
}

/// Its connections stay open, so feeds stay live for a while.
#[tokio::test(start_paused = true)]
async fn that_authentication_is_off_is_believed_while_all_of_etcd_is_frozen() {
    let upstream = Arc::new(testing::Agreeing::default());
    let hub = testing::hub_over(upstream.clone(), OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 });
    let feed = hub.open(prefix("/a/"));
    let etcd = FakeEtcd::default();
    let (access, task) = known(&etcd, Auth::Off).await;
    let expiry = tokio::spawn(access.clone().expire(hub.clone()));
    feed.install(Arc::default(), KeyMap::default(), Revision::new(1));
    feed.set_state(FeedState::Live);
    etcd.away.store(true, Ordering::Relaxed);
    upstream.0.send_replace(Agreement::Silent);
    tokio::time::sleep(LIMIT * 10).await;
    assert!(access.is_off(), "nothing new comes");
    feed.advance(Revision::new(2));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((access.is_off(), access.known().auth), (false, Auth::Unknown), "it is heard again");
    task.abort();
    expiry.abort();
}

#[tokio::test(start_paused = true)]
async fn authentication_enabled_elsewhere_is_found_within_the_interval() {
    let etcd = FakeEtcd::default();
    let (access, task) = known(&etcd, Auth::Off).await;
    etcd.set(&[]);
    let mut changes = access.watch();
    tokio::time::timeout(INTERVAL + Duration::from_millis(1), changes.wait_for(|known| known.auth == Auth::On))
        .await
        .expect("in time")
        .expect("alive");
    assert!(!access.is_off());
    task.abort();
}

#[tokio::test]
async fn many_ranges_take_few_questions_and_each_gets_its_own_answer() {
    let etcd = FakeEtcd::with(&[("alice", &[prefix("/a/"), prefix("/c/")])]);
    let access = Access::new(etcd.service(), PATIENCE);
    let names: Vec<String> = (0..1000).map(|number| format!("/a/{number}")).collect();
    let inside: Vec<&str> = names.iter().map(String::as_str).collect();
    let results = access.check(&caller("alice"), &keys(&inside), Instant::now(), Denials::New).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(etcd.asked(), 1);

    let results =
        access.check(&caller("alice"), &keys(&["/c/1", "/b/1", "/a/1", "/b/2"]), Instant::now(), Denials::New).await;
    let denied: Vec<bool> = results.iter().map(Result::is_err).collect();
    assert_eq!(denied, [false, true, false, true]);

    let before = etcd.asked();
    let results = access.check(&caller("mallory"), &keys(&inside), Instant::now(), Denials::New).await;
    assert!(results.iter().all(|result| matches!(result, Err(Refused::Denied(denial)) if denial.is_of_caller())));
    assert_eq!(etcd.asked(), before + 1, "etcd denies every range to an unknown client");
}

#[tokio::test]
async fn a_grant_is_remembered_for_its_caller_alone_and_not_past_a_change() {
    let etcd = FakeEtcd::with(&[("alice", &[prefix("/a/")]), ("bob", &[])]);
    let access = Access::new(etcd.service(), PATIENCE);
    let range = &keys(&["/a/1"])[0];
    assert!(access.permits(&caller("alice"), range).await && access.permits(&caller("alice"), range).await);
    assert_eq!(etcd.asked(), 1);
    assert!(!access.permits(&caller("bob"), range).await && !access.permits(&Client::relay(), range).await);
    etcd.set(&[("alice", &[])]);
    let forward = access.noticing(etcd.service());
    let revoke = Request::post("/etcdserverpb.Auth/RoleRevokePermission").body(Body::empty()).expect("a request");
    let Ok(_) = tower::ServiceExt::oneshot(forward, revoke).await;
    assert!(!access.permits(&caller("alice"), range).await);
}

#[tokio::test]
async fn where_etcd_does_not_answer_nothing_is_permitted() {
    let etcd = FakeEtcd::with(&[("alice", &[prefix("/a/")])]);
    let access = Access::new(etcd.service(), PATIENCE);
    etcd.away.store(true, Ordering::Relaxed);
    let results = access.check(&caller("alice"), &keys(&["/a/1", "/a/2"]), Instant::now(), Denials::New).await;
    assert!(results.iter().all(|result| matches!(result, Err(Refused::Unknown(_)))));
}

#[tokio::test]
async fn what_is_too_much_for_one_question_is_asked_in_parts_and_no_denial_is_missed() {
    let etcd = FakeEtcd::with(&[("alice", &[prefix("/a/")])]);
    etcd.largest.store(64 << 10, Ordering::Relaxed);
    let access = Access::new(etcd.service(), PATIENCE);
    let long = |start: &str, end: char| format!("{start}{}{end}", "x".repeat(40 << 10));
    let names = [long("/a/", '1'), long("/a/", '2'), long("/b/", '1'), "/a/3".to_owned()];
    let ranges = keys(&names.each_ref().map(String::as_str));
    let results = access.check(&caller("alice"), &ranges, Instant::now(), Denials::New).await;
    let denied: Vec<bool> = results.iter().map(|result| matches!(result, Err(Refused::Denied(_)))).collect();
    assert_eq!(denied, [false, false, true, false], "{results:?}");
    // A range that is too large alone gets an error, and the others are still checked.
    let names = [long("/a/", '1').repeat(2), "/b/2".to_owned(), "/a/3".to_owned()];
    let ranges = keys(&names.each_ref().map(String::as_str));
    let results = access.check(&caller("alice"), &ranges, Instant::now(), Denials::New).await;
    assert!(matches!(results[..], [Err(Refused::Unanswerable(_)), Err(Refused::Denied(_)), Ok(())]), "{results:?}");
}

#[tokio::test]
async fn streams_of_one_client_share_their_questions_and_what_was_denied_together_is_asked_apart() {
    let names: Vec<String> = (0..60).map(|number| format!("/k/{number:02}")).collect();
    let granted: Vec<KeyRange> = names.iter().map(|name| KeyRange::single(name.clone().into())).collect();
    let etcd = FakeEtcd::with(&[("alice", &granted)]);
    let access = Access::new(etcd.service(), PATIENCE);
    let ranges = keys(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let round = async || {
        let (since, before) = (Instant::now(), etcd.asked());
        let client = caller("alice");
        let checks = (0..400).map(|_| access.check(&client, &ranges, since, Denials::Known));
        let results = futures_util::future::join_all(checks).await;
        assert!(results.iter().flatten().all(Result::is_ok));
        etcd.asked() - before
    };
    let first = round().await;
    assert!(first <= 120, "{first} questions for 60 keys and their spans");
    let second = round().await;
    assert_eq!(second, 60, "one question a key");
}

#[tokio::test]
async fn a_denial_is_not_believed_by_who_comes_later() {
    let etcd = FakeEtcd::with(&[("alice", &[])]);
    let access = Access::new(etcd.service(), PATIENCE);
    let range = &keys(&["/a/1"])[0];
    let since = Instant::now();
    assert!(access.check(&caller("alice"), std::slice::from_ref(range), since, Denials::New).await[0].is_err());
    etcd.set(&[("alice", &[prefix("/a/")])]);
    assert!(access.check(&caller("alice"), std::slice::from_ref(range), since, Denials::New).await[0].is_ok());
}
