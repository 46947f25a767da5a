//! Tests of the source against a simulated member that does what real members rarely do.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tower::ServiceExt as _;

use super::{link::ID_PATIENCE, *};
use crate::{
    hub::upstream::WatchMessage,
    pb::etcdserverpb::{RangeRequest, kv_client::KvClient},
    rpc::Caller,
    types::ClientKey,
};

/// A member with one directory, `/d`, whose behaviour the test controls.
#[derive(Clone, Debug, Default)]
struct Member {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    index: i64,
    cluster: u64,
    keys: BTreeMap<String, (String, i64)>,
    /// Events by index. Events below `oldest` are gone.
    history: Vec<(i64, String)>,
    oldest: i64,
    /// Open waits get no event.
    mute: bool,
    /// Waits are cut off in the middle of their answer.
    cuts: bool,
    /// Nothing is answered.
    frozen: bool,
    /// It does not report its id.
    nameless: bool,
    /// How often it was asked for its id.
    asked_for_id: usize,
    /// The answers to waits do not end, and this many have not been given up yet.
    lingers: bool,
    lingering: usize,
    /// Listings are not answered before this is notified; how many wait for it.
    gate: Option<Arc<Notify>>,
    gated: usize,
    /// It does not answer when it is asked for its id.
    hides_its_id: bool,
}

impl Member {
    async fn start() -> (Self, Arc<V2Upstream>) {
        let (member, endpoint) = Self::serving().await;
        (member, upstream_of(vec![endpoint], Duration::from_secs(5), Duration::from_millis(100)))
    }

    async fn serving() -> (Self, Endpoint) {
        let member = Self::default();
        *member.state.lock() = State { index: 10, cluster: 7, oldest: 1, ..State::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let serving = member.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        (member, endpoint.parse().expect("an endpoint"))
    }

    fn set(&self, key: &str, value: &str) -> i64 {
        let mut state = self.state.lock();
        state.index += 1;
        let index = state.index;
        state.keys.insert(key.to_owned(), (value.to_owned(), index));
        let event = format!(
            r#"{{"action":"set","node":{{"key":"{key}","value":"{value}","modifiedIndex":{index},"createdIndex":{index}}}}}"#
        );
        state.history.push((index, event));
        drop(state);
        self.changed.notify_waiters();
        index
    }

    /// Simulates writes elsewhere, more than the history has room for.
    fn move_on(&self, by: i64) {
        let mut state = self.state.lock();
        state.index += by;
        state.oldest = state.index;
        state.history.clear();
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut request = [0; 4096];
        let read = stream.read(&mut request).await.unwrap_or(0);
        if self.state.lock().frozen {
            return std::future::pending().await;
        }
        let text = String::from_utf8_lossy(&request[..read]).into_owned();
        let target = text.split(' ').nth(1).unwrap_or_default().to_owned();
        let (index, cluster) = {
            let state = self.state.lock();
            (state.index, state.cluster)
        };
        let head = format!("X-Etcd-Index: {index}\r\nX-Etcd-Cluster-Id: {cluster:x}\r\nX-Raft-Term: 2\r\n");
        let whole = |status: &str, body: &str| {
            format!("HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
        };
        let wanted = target.split("waitIndex=").nth(1).map(|text| text.parse::<i64>().expect("an index"));
        let answer = match wanted {
            _ if target.starts_with("/v2/stats/self") && self.state.lock().hides_its_id => {
                self.state.lock().asked_for_id += 1;
                return std::future::pending().await;
            }
            _ if target.starts_with("/v2/stats/self") => {
                let mut state = self.state.lock();
                state.asked_for_id += 1;
                if state.nameless { whole("404 Not Found", "") } else { whole("200 OK", r#"{"id":"9"}"#) }
            }
            _ if target.starts_with("/v2/auth") => whole("404 Not Found", ""),
            None if target.contains("probe") => {
                whole("404 Not Found", &format!(r#"{{"errorCode":100,"message":"Key not found","index":{index}}}"#))
            }
            None => {
                let gate = self.state.lock().gate.clone();
                if let Some(gate) = gate {
                    self.state.lock().gated += 1;
                    gate.notified().await;
                }
                let index = self.state.lock().index;
                let body = self.listing();
                let head = format!("X-Etcd-Index: {index}\r\nX-Etcd-Cluster-Id: {cluster:x}\r\n");
                format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
            }
            Some(wanted) if wanted < self.state.lock().oldest && wanted <= index => {
                let cause = r#"{"errorCode":401,"message":"cleared","cause":"x","index":"#;
                whole("400 Bad Request", &format!("{cause}{index}}}"))
            }
            Some(wanted) => {
                let begin = format!("HTTP/1.1 200 OK\r\n{head}Transfer-Encoding: chunked\r\n\r\n");
                let _ = stream.write_all(begin.as_bytes()).await;
                let Some(event) = self.next(wanted, wanted > index).await else { return };
                if self.state.lock().lingers {
                    self.state.lock().lingering += 1;
                    let line = format!("{:x}\r\n{event}\n\r\n", event.len() + 1);
                    let _ = stream.write_all(line.as_bytes()).await;
                    // Until the other side closes.
                    let _ = stream.read(&mut request).await;
                    self.state.lock().lingering -= 1;
                    return;
                }
                format!("{:x}\r\n{event}\n\r\n0\r\n\r\n", event.len() + 1)
            }
        };
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    /// The first event at or after an index; `None` if the wait is cut off.
    async fn next(&self, wanted: i64, registered: bool) -> Option<String> {
        let mut registered = registered;
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.lock();
                if state.cuts {
                    return None;
                }
                let found = state.history.iter().find(|(index, _)| *index >= wanted);
                if let Some((_, event)) = found.filter(|_| !(registered && state.mute)) {
                    return Some(event.clone());
                }
            }
            registered = true;
            changed.await;
        }
    }

    fn listing(&self) -> String {
        let node = |(key, (value, index)): (&String, &(String, i64))| {
            format!(r#"{{"key":"{key}","value":"{value}","modifiedIndex":{index},"createdIndex":{index}}}"#)
        };
        let nodes: Vec<String> = self.state.lock().keys.iter().map(node).collect();
        let nodes = nodes.join(",");
        format!(
            r#"{{"action":"get","node":{{"key":"/d","dir":true,"nodes":[{nodes}],"modifiedIndex":1,"createdIndex":1}}}}"#
        )
    }
}

fn upstream_of(endpoints: Vec<Endpoint>, request_timeout: Duration, hold: Duration) -> Arc<V2Upstream> {
    V2Upstream::new(V2Config {
        endpoints,
        dialler: Dialler::default(),
        connect_timeout: Duration::from_secs(5),
        request_timeout,
        identity: None,
        hold,
        probe_prefix: Bytes::from_static(b"/d/"),
    })
}

/// Waits until a condition of the member's state holds.
async fn until(member: &Member, holds: impl Fn(&State) -> bool) {
    while !holds(&member.state.lock()) {
        tokio::task::yield_now().await;
    }
}

fn range() -> KeyRange {
    KeyRange::prefix(Bytes::from_static(b"/d/"))
}

/// A watch from the index of the listing on.
async fn follow(upstream: &V2Upstream) -> Box<dyn UpstreamWatch> {
    let page = upstream.page(&range(), None, 1).await.expect("a listing");
    watch_from(upstream, page.header.revision.next()).await
}

async fn watch_from(upstream: &V2Upstream, start_revision: Revision) -> Box<dyn UpstreamWatch> {
    upstream.watch(WatchRequest { range: range(), start_revision, prev_kv: false }).await.expect("a watch")
}

async fn next(watch: &mut Box<dyn UpstreamWatch>) -> WatchMessage {
    let message = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.expect("a message in time");
    message.expect("a message")
}

async fn next_event(watch: &mut Box<dyn UpstreamWatch>) -> i64 {
    loop {
        match next(watch).await {
            WatchMessage::Events { revisions, .. } => return revisions[0].revision.get(),
            WatchMessage::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_an_open_wait_is_not_told_is_found_when_it_is_asked_again() {
    let (member, upstream) = Member::start().await;
    let mut watch = follow(&upstream).await;
    member.state.lock().mute = true;
    let missed = member.set("/d/a", "1");
    assert_eq!(next_event(&mut watch).await, missed);
}

#[tokio::test]
async fn a_wait_that_is_cut_goes_on_from_the_last_event() {
    let (member, upstream) = Member::start().await;
    let mut watch = follow(&upstream).await;
    let first = member.set("/d/a", "1");
    assert_eq!(next_event(&mut watch).await, first);
    member.state.lock().cuts = true;
    let second = member.set("/d/a", "2");
    let error = loop {
        match watch.next().await {
            Ok(WatchMessage::Progress(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, UpstreamError::Unavailable(_)), "{error:?}");
    drop(watch);
    member.state.lock().cuts = false;
    let mut watch = watch_from(&upstream, Revision::new(first + 1)).await;
    assert_eq!(next_event(&mut watch).await, second);
}

#[tokio::test]
async fn a_quiet_directory_outlives_the_history_and_a_cut_one_does_not() {
    let (member, upstream) = Member::start().await;
    let mut watch = follow(&upstream).await;
    member.move_on(2_000);
    let WatchMessage::Progress(header) = next(&mut watch).await else { panic!("no progress") };
    assert_eq!(header.revision.get(), 2_010);
    let at = member.set("/d/a", "1");
    assert_eq!(next_event(&mut watch).await, at);
    drop(watch);
    member.move_on(2_000);
    let mut watch = watch_from(&upstream, Revision::new(at + 1)).await;
    assert!(
        matches!(next(&mut watch).await, WatchMessage::Compacted { compact_revision } if compact_revision.get() > at + 2_000)
    );
}

#[tokio::test]
async fn a_listing_beside_a_wait_that_has_ended_does_not_stand_for_what_came_after_its_event() {
    let (member, upstream) = Member::start().await;
    let mut watch = follow(&upstream).await;
    let gate = Arc::new(Notify::new());
    member.state.lock().gate = Some(gate.clone());
    // The wait cannot be repeated, so the directory is listed to find out whether it was quiet.
    member.move_on(2_000);
    until(&member, |state| state.gated == 1).await;
    let kept = member.set("/d/k", "1");
    assert_eq!(next_event(&mut watch).await, kept);
    // A key that no listing shows.
    let short = member.set("/d/j", "1");
    {
        let mut state = member.state.lock();
        state.keys.remove("/d/j");
        state.index += 1;
        let gone = format!(
            r#"{{"action":"delete","node":{{"key":"/d/j","modifiedIndex":{},"createdIndex":{short}}}}}"#,
            short + 1
        );
        state.history.push((short + 1, gone));
    }
    gate.notify_one();
    assert_eq!(next_event(&mut watch).await, short);
    assert_eq!(next_event(&mut watch).await, short + 1);
}

#[tokio::test]
async fn the_silence_of_a_member_that_froze_is_not_proved_by_another_member() {
    let (frozen, one) = Member::serving().await;
    let (other, two) = Member::serving().await;
    let upstream = upstream_of(vec![one, two], Duration::from_millis(200), Duration::from_secs(1));
    let mut watch = follow(&upstream).await;
    // Its wait stays open. Meanwhile a key is created and deleted, and the other member's history has moved on.
    frozen.state.lock().frozen = true;
    other.move_on(2_000);
    upstream.confirm(None).await.expect("the other member answers");
    match watch.next().await {
        Err(_) | Ok(WatchMessage::Compacted { .. }) => {}
        other => panic!("nobody knows whether something happened: {other:?}"),
    }
}

#[tokio::test]
async fn a_member_that_hides_its_id_delays_one_caller_for_a_second() {
    let (member, upstream) = Member::start().await;
    member.state.lock().hides_its_id = true;
    // The first caller gives up, as the confirmer does.
    let soon = ID_PATIENCE / 2;
    assert!(tokio::time::timeout(soon, upstream.confirm(None)).await.is_err());
    for _ in 0..3 {
        upstream.confirm(None).await.expect("an answer without an id");
    }
    assert_eq!(member.state.lock().asked_for_id, 1);
}

#[tokio::test]
async fn progress_is_told_when_a_listing_shows_that_nothing_is_under_way() {
    let (member, upstream) = Member::start().await;
    member.set("/d/a", "1");
    let mut watch = follow(&upstream).await;
    member.state.lock().index += 5;
    watch.request_progress().await.expect("asked");
    let WatchMessage::Progress(header) = next(&mut watch).await else { panic!("no progress") };
    assert_eq!(header.revision.get(), 16);
    // A key was created and deleted before that listing, and is reported after it. The watch has missed a step, and
    // says so.
    {
        let mut state = member.state.lock();
        let event = r#"{"action":"set","node":{"key":"/d/t","value":"1","modifiedIndex":14,"createdIndex":14}}"#;
        state.history.push((14, event.to_owned()));
    }
    member.changed.notify_waiters();
    assert!(matches!(watch.next().await, Err(UpstreamError::Missed)));
}

#[tokio::test]
async fn another_cluster_ends_the_watch_and_is_told_by_the_next() {
    let (member, upstream) = Member::start().await;
    let watch = follow(&upstream).await;
    assert_eq!((watch.created().cluster_id, watch.created().member_id), (7, 9));
    member.state.lock().cluster = 8;
    let mut watch = watch;
    assert!(watch.next().await.is_err());
    drop(watch);
    let again = watch_from(&upstream, Revision::new(11)).await;
    assert_eq!(again.created().cluster_id, 8);
}

#[tokio::test]
async fn a_client_that_reads_more_than_it_may_is_refused_before_the_member_is_asked_anything() {
    let (member, upstream) = Member::start().await;
    member.state.lock().frozen = true;
    let service = upstream.forward_service();
    let read = |client: u64| {
        let mut kv = KvClient::new(service.clone());
        let mut request =
            tonic::Request::new(RangeRequest { key: b"/d/a".as_slice().into(), ..RangeRequest::default() });
        Caller::of_client(ClientKey::new(client)).mark(request.extensions_mut());
        async move { kv.range(request).await }
    };
    let mut reads: FuturesUnordered<_> = (0..=calls::CLIENT_READS).map(|_| read(1)).collect();
    let refused = reads.next().await.expect("a read").expect_err("one too many");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(reads.next().now_or_never().is_none(), "the others wait for the member");
    assert!(read(2).now_or_never().is_none(), "and so may another client");
}

#[tokio::test]
async fn an_answer_counts_for_its_client_until_it_was_read() {
    let (member, upstream) = Member::start().await;
    member.set("/d/a", &"x".repeat(600 << 10));
    // An answer counts twice, and a client gets no more than what is left.
    let service = calls::service(upstream, 4 << 20);
    let read = |client: u64| {
        let message = RangeRequest { key: b"/d/a".as_slice().into(), ..RangeRequest::default() }.encode_to_vec();
        let body = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
        let mut request = http::Request::post("http://relay/etcdserverpb.KV/Range")
            .header("content-type", "application/grpc")
            .body(tonic::body::Body::new(http_body_util::Full::from(body)))
            .expect("a request");
        Caller::of_client(ClientKey::new(client)).mark(request.extensions_mut());
        let service = service.clone();
        async move { service.oneshot(request).await.unwrap_or_else(|never| match never {}) }
    };
    let first = read(1).await;
    let mut second = Box::pin(read(1));
    let mut other = Box::pin(read(2));
    let other = tokio::select! {
        biased;
        _ = &mut second => panic!("the client has left an answer unread"),
        other = &mut other => other,
    };
    let answer = other.into_body().collect().await.expect("an answer");
    assert_eq!(answer.trailers().expect("trailers")["grpc-status"], "0");
    drop(answer);
    // A part of an answer counts like all of it.
    let mut first = first.into_body();
    let part = first.frame().await.expect("a part").expect("a part").into_data().expect("bytes");
    assert!(part.len() <= 64 << 10, "{}", part.len());
    drop(first);
    assert!((&mut second).now_or_never().is_none());
    drop(part);
    let second = second.await.into_body().collect().await.expect("an answer");
    assert_eq!(second.trailers().expect("trailers")["grpc-status"], "0");
}

#[tokio::test]
async fn an_event_is_told_although_the_end_of_its_answer_is_late() {
    let (member, upstream) = Member::start().await;
    member.state.lock().lingers = true;
    let mut watch = follow(&upstream).await;
    for value in ["1", "2", "3"] {
        let at = member.set("/d/a", value);
        assert_eq!(next_event(&mut watch).await, at);
        assert!(member.state.lock().lingering > 0, "the answer that reported it was not given up first");
    }
}

#[tokio::test]
async fn a_member_that_does_not_say_its_id_is_asked_for_it_once() {
    let (member, upstream) = Member::start().await;
    member.state.lock().nameless = true;
    let confirmed = futures_util::future::join_all((0..20).map(|_| upstream.confirm(None))).await;
    assert!(confirmed.into_iter().all(|confirmed| confirmed.expect("an answer").header.member_id == 0));
    upstream.confirm(None).await.expect("an answer");
    assert_eq!(member.state.lock().asked_for_id, 1);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_nobody_goes_on_with_is_dropped_although_nothing_happens() {
    let config = V2Config {
        // Nobody listens there.
        endpoints: vec!["http://127.0.0.1:1".parse().expect("an endpoint")],
        dialler: Dialler::default(),
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(1),
        identity: None,
        hold: Duration::from_secs(1),
        probe_prefix: Bytes::from_static(b"/d/"),
    };
    let upstream = V2Upstream::new(config);
    let place = Place::of(&range()).expect("a place");
    upstream.copies.put(Copy::new(range(), place, 1, Revision::new(1), &[], None));
    let board = crate::telemetry::ReadyBoard::new();
    let looks = tokio::spawn(upstream.clone().keep_ready(board));
    tokio::time::sleep(KEPT / 2).await;
    assert_eq!(upstream.copies.0.lock().len(), 1);
    tokio::time::sleep(KEPT).await;
    assert_eq!(upstream.copies.0.lock().len(), 0);
    looks.abort();
}
