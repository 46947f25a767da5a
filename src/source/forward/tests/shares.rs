//! Tests of who gets a place when a member accepts few calls at once: no client's calls keep another client waiting.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_stream::StreamExt as _;

use super::*;
use crate::{
    pb::etcdserverpb::{LeaseKeepAliveRequest, lease_client::LeaseClient},
    source::pool::MAX_LINKS,
};

const LOCK: &str = "/v3lockpb.Lock/Lock";
const PUT: &str = "/etcdserverpb.KV/Put";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// A member that accepts two calls at once on a connection, reports each call that came, and answers waiting calls when
/// the test says so.
struct Busy {
    server: Server,
    came: mpsc::Receiver<String>,
    unlock: Arc<Semaphore>,
}

impl Busy {
    const STREAMS: usize = 2;
    const PLACES: usize = Self::STREAMS * MAX_LINKS;

    async fn new() -> Self {
        let (sender, came) = mpsc::channel(10_000);
        let unlock = Arc::new(Semaphore::new(0));
        let until = unlock.clone();
        let server = Server::with_streams(Some(Self::STREAMS as u32), move |request: Request<Incoming>| {
            let (sender, until) = (sender.clone(), until.clone());
            async move {
                let path = request.uri().path().to_owned();
                let waits = [LOCK, KEEP_ALIVE].contains(&&*path);
                sender.send(path).await.expect("room");
                if waits {
                    until.acquire().await.expect("open").forget();
                }
                Response::new(full(b"done"))
            }
        })
        .await;
        Self { server, came, unlock }
    }

    /// Waits until `count` more calls have come.
    async fn came(&mut self, count: usize) {
        for _ in 0..count {
            self.came.recv().await.expect("the server runs");
        }
    }
}

/// Starts calls of a client whose answers nobody reads.
fn start(forward: &Forward, client: u64, path: &'static str, count: usize) -> tokio::task::JoinSet<Bytes> {
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..count {
        let forward = forward.clone();
        calls.spawn(async move { answer(&forward, client, path).await });
    }
    calls
}

async fn answer(forward: &Forward, client: u64, path: &str) -> Bytes {
    let mut request = request(path, Body::empty());
    Caller::of_client(ClientKey::new(client)).mark(request.extensions_mut());
    forward.call(request).await.into_body().collect().await.expect("an answer").to_bytes()
}

fn waiting(forward: &Forward) -> Vec<usize> {
    forward.shared.link(0).waiting.busy()
}

fn config() -> ForwardConfig {
    ForwardConfig {
        dialler: Dialler::default(),
        connect_timeout: Duration::from_secs(5),
        keepalive: None,
        stream_window: ForwardConfig::STREAM_WINDOW,
        max_per_client: ForwardConfig::MAX_PER_CLIENT,
        wait: Duration::ZERO,
    }
}

#[tokio::test]
async fn calls_that_wait_hold_up_no_call_that_ends_and_no_question_of_the_relays_own() {
    let mut member = Busy::new().await;
    let forward = forward(&[&member.server.endpoint], &CancellationToken::new());
    let _locks = start(&forward, 1, LOCK, 300);
    member.came(Busy::PLACES / 2).await;
    assert_eq!(answer(&forward, 1, PUT).await, "done");
    assert_eq!(answer(&forward, 2, PUT).await, "done");
    let question = request("/etcdserverpb.Auth/AuthStatus", Body::empty());
    let response = tower::ServiceExt::oneshot(forward.own(), question).await.expect("never fails");
    assert_eq!(response.into_body().collect().await.expect("an answer").to_bytes(), "done");
    assert_eq!(forward.shared.link(0).own.busy(), [0], "over a connection of its own");
}

#[tokio::test]
async fn as_many_connections_are_made_as_are_needed_and_those_that_are_idle_go() {
    let mut member = Busy::new().await;
    let forward = forward(&[&member.server.endpoint], &CancellationToken::new());
    let mut locks = start(&forward, 1, LOCK, 5);
    member.came(5).await;
    let open = waiting(&forward);
    assert_eq!(open.iter().sum::<usize>(), 5);
    assert!(open.len() >= 3 && open.iter().all(|busy| *busy <= Busy::STREAMS), "{open:?}");
    member.unlock.add_permits(5);
    while let Some(answer) = locks.join_next().await {
        assert_eq!(answer.expect("a call"), "done");
    }
    assert_eq!(waiting(&forward), [0]);
}

#[tokio::test]
async fn one_client_with_calls_that_never_end_leaves_places_for_others() {
    let mut member = Busy::new().await;
    let forward = forward(&[&member.server.endpoint], &CancellationToken::new());
    let mut calls = Vec::new();
    let mut left = Busy::PLACES;
    // Each takes half of what the one before left, however much it wants.
    for client in 1..=4 {
        calls.push(start(&forward, client, LOCK, 300));
        member.came(left / 2).await;
        left -= left / 2;
    }
    calls.push(start(&forward, 5, LOCK, 1));
    member.came(1).await;
    assert_eq!(waiting(&forward).iter().sum::<usize>(), Busy::PLACES - left + 1);
}

#[tokio::test]
async fn one_client_that_keeps_leases_alive_under_many_names_leaves_places_for_others() {
    const SHARED: usize = 16;
    let mut member = Busy::new().await;
    let forward = forward(&[&member.server.endpoint], &CancellationToken::new());
    let service = forward.clone().sharing_keepalives(Tasks::new());
    let keep_alive = |client: u64, token: String| {
        let mut leases = LeaseClient::new(service.clone());
        let ask = tokio_stream::once(LeaseKeepAliveRequest { id: 7 }).chain(tokio_stream::pending());
        let mut request = tonic::Request::new(ask);
        Caller::of_client(ClientKey::new(client)).mark(request.extensions_mut());
        request.metadata_mut().insert("token", token.parse().expect("a token"));
        async move { leases.lease_keep_alive(request).await?.into_inner().message().await }
    };
    let mut streams = tokio::task::JoinSet::new();
    let named = |name: usize| keep_alive(1, format!("name-{name}"));
    (0..SHARED).for_each(|name| drop(streams.spawn(named(name))));
    member.came(SHARED).await;
    // The further streams are only for itself, and take its share of the places that are left.
    (SHARED..300).for_each(|name| drop(streams.spawn(named(name))));
    let own = (Busy::PLACES - SHARED) / 2;
    member.came(own).await;
    streams.spawn(keep_alive(2, "another".to_owned()));
    member.came(1).await;
    let _lock = start(&forward, 3, LOCK, 1);
    assert_eq!(member.came.recv().await.expect("the server runs"), LOCK);
    assert_eq!(waiting(&forward).iter().sum::<usize>(), SHARED + own + 2);
}

#[tokio::test]
async fn a_client_has_a_bounded_number_of_calls() {
    let mut member = Busy::new().await;
    let most = NonZeroUsize::new(3).expect("not zero");
    let config = ForwardConfig { max_per_client: most, ..config() };
    let forward = Forward::new(&config, Members::new(&[member.server.endpoint.clone()]), CancellationToken::new());
    let _locks = start(&forward, 1, LOCK, 3);
    member.came(3).await;
    let mut fourth = request(PUT, Body::empty());
    Caller::of_client(ClientKey::new(1)).mark(fourth.extensions_mut());
    let refused = status_of(forward.call(fourth).await.headers());
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(refused.message().contains("--max-forwarded-per-client"), "{refused}");
    assert_eq!(answer(&forward, 2, PUT).await, "done");
}

#[tokio::test]
async fn calls_that_give_up_while_they_wait_leave_nothing_behind() {
    let mut member = Busy::new().await;
    let forward = forward(&[&member.server.endpoint], &CancellationToken::new());
    let mut locks = start(&forward, 1, LOCK, 300);
    member.came(Busy::PLACES / 2).await;
    locks.shutdown().await;
    assert_eq!(waiting(&forward).iter().sum::<usize>(), 0);
    let _after = start(&forward, 2, LOCK, 3);
    member.came(3).await;
}

#[tokio::test]
async fn a_member_that_never_says_its_settings_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = endpoint(listener.local_addr().expect("an address"));
    let config = ForwardConfig { connect_timeout: Duration::from_millis(50), ..config() };
    let forward = Forward::new(&config, Members::new(&[silent]), CancellationToken::new());
    let response = forward.call(request(PUT, Body::empty())).await;
    let status = status_of(response.headers());
    assert_eq!(status.code(), tonic::Code::Unavailable);
}
