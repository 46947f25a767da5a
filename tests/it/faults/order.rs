//! A write that arrives after a create on the same connection is shown by the watch, although its client did not wait
//! for `created`. jetcd's users write such programs, and rely on it.
//!
//! The client here puts its frames on the wire in the order in which it is told to, which a client library does not
//! promise.

mod misuse;

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use bytes::{Buf as _, Bytes, BytesMut};
use etcd_relay::pb::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, LeaseRevokeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse, lease_client::LeaseClient, watch_request::RequestUnion,
};
use h2::{RecvStream, SendStream, client::SendRequest};
use http::Request;
use prost::Message;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{OUTSIDE, PREFIX};
use crate::support::{
    client::{self, event_revision},
    etcd::Etcd,
    kv::{self, Kv},
    patience,
    relay::RelayCommand,
};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
/// Watch streams of the client that creates all the time.
const STREAMS: usize = 50;

/// A connection, and what has come of its watch streams.
struct Connection {
    requests: SendRequest<Bytes>,
    pings: h2::PingPong,
    addr: String,
}

/// A stream of a connection.
struct Stream {
    send: SendStream<Bytes>,
    answer: Option<h2::client::ResponseFuture>,
    body: Option<RecvStream>,
    received: BytesMut,
}

impl Connection {
    async fn open(endpoint: &str) -> Self {
        let addr = endpoint.trim_start_matches("http://").to_owned();
        let socket = TcpStream::connect(&addr).await.expect("accepted");
        socket.set_nodelay(true).expect("a socket option");
        // h2 gives a connection up that has many small frames to read, by the size of its window.
        let mut builder = h2::client::Builder::new();
        let handshake = builder.initial_connection_window_size(16 << 20).handshake(socket).await;
        let (requests, mut connection) = handshake.expect("HTTP/2");
        let pings = connection.ping_pong().expect("it is taken once");
        tokio::spawn(connection);
        Self { requests, pings, addr }
    }

    /// Waits until the relay has read what was sent.
    async fn is_read(&mut self) {
        self.pings.ping(h2::Ping::opaque()).await.expect("an answer");
    }

    /// Sends the head of a call.
    async fn call(&mut self, path: &str) -> Stream {
        self.call_as("application/grpc", path).await
    }

    async fn call_as(&mut self, content_type: &str, path: &str) -> Stream {
        self.call_with(content_type, path, &[]).await
    }

    async fn call_with(&mut self, content_type: &str, path: &str, headers: &[(&str, &str)]) -> Stream {
        let mut request = Request::post(format!("http://{}{path}", self.addr))
            .header("content-type", content_type)
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let mut requests = self.requests.clone().ready().await.expect("room for a stream");
        let (answer, send) = requests.send_request(request, false).expect("an open connection");
        Stream { send, answer: Some(answer), body: None, received: BytesMut::new() }
    }
}

impl Stream {
    /// Sends a message.
    fn send(&mut self, message: &impl Message, end: bool) {
        let mut framed = vec![0];
        let length = u32::try_from(message.encoded_len()).expect("a length for gRPC");
        framed.extend_from_slice(&length.to_be_bytes());
        message.encode(&mut framed).expect("room");
        self.send.send_data(framed.into(), end).expect("an open stream");
    }

    fn create(&mut self, create: WatchCreateRequest) {
        self.send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }, false);
    }

    fn cancel(&mut self, watch_id: i64) {
        let cancel = WatchCancelRequest { watch_id };
        self.send(&WatchRequest { request_union: Some(RequestUnion::CancelRequest(cancel)) }, false);
    }

    async fn next<M: Message + Default>(&mut self) -> M {
        timeout(patience(), self.message()).await.expect("an answer in time")
    }

    async fn message<M: Message + Default>(&mut self) -> M {
        if let Some(answer) = self.answer.take() {
            let answer = answer.await.expect("an answer");
            assert!(!answer.headers().contains_key("grpc-status"), "{:?}", answer.headers());
            self.body = Some(answer.into_body());
        }
        let body = self.body.as_mut().expect("a body");
        loop {
            if let Some(prefix) = self.received.get(1..5) {
                let length = u32::from_be_bytes(prefix.try_into().expect("four bytes")) as usize;
                if self.received.len() >= 5 + length {
                    self.received.advance(5);
                    return M::decode(self.received.split_to(length)).expect("a message");
                }
            }
            let data = body.data().await.expect("more of the stream").expect("no reset");
            body.flow_control().release_capacity(data.len()).expect("what was received");
            self.received.extend_from_slice(&data);
        }
    }

    /// Waits until this text has come.
    async fn until_text(&mut self, text: &str) {
        let answer = self.answer.take().expect("it is asked once");
        let mut body = answer.await.expect("an answer").into_body();
        let mut received = String::new();
        while !received.contains(text) {
            let data = timeout(patience(), body.data()).await;
            let data = data.unwrap_or_else(|_| panic!("{text} does not come after {received}"));
            received.push_str(&String::from_utf8_lossy(&data.expect("more of the stream").expect("no reset")));
        }
    }

    /// Whether the watch of this key shows an event of the revision. A later write shows that it has shown everything.
    async fn shows(&mut self, watch_id: i64, key: &str, revision: i64, etcd: &Kv) -> bool {
        let (mut shown, mut last) = (false, None);
        loop {
            let response: WatchResponse = self.next().await;
            assert!(!response.canceled, "{response:?}");
            if response.watch_id != watch_id {
                continue;
            }
            shown |= response.events.iter().any(|event| event_revision(event) == revision);
            if response.created {
                last = Some(etcd.put(key, "last").await);
            }
            if response.events.iter().any(|event| Some(event_revision(event)) == last) {
                return shown;
            }
        }
    }
}

/// The write of a round and its path. Each changes `key`.
async fn write(round: usize, key: &str, lease: i64, connection: &mut Connection) -> Stream {
    let (path, body) = match round % 4 {
        0 => (PUT, kv::put(key, "new").encode_to_vec()),
        1 => (
            "/etcdserverpb.KV/DeleteRange",
            DeleteRangeRequest { key: kv::bytes(key), ..Default::default() }.encode_to_vec(),
        ),
        2 => {
            let txn = TxnRequest { success: vec![kv::op_put(key, "new")], ..Default::default() };
            ("/etcdserverpb.KV/Txn", txn.encode_to_vec())
        }
        _ => ("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id: lease }.encode_to_vec()),
    };
    let mut stream = connection.call(path).await;
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(body.len()).expect("a length for gRPC").to_be_bytes());
    framed.extend_from_slice(&body);
    stream.send.send_data(framed.into(), true).expect("an open stream");
    stream
}

/// The rounds in which a watch does not show the write right after its create, on one connection.
async fn missed(endpoint: &str, origin: &str, prefix: &str, rounds: usize) -> Vec<usize> {
    let etcd = Kv::connect(origin).await;
    let mut leases = LeaseClient::new(kv::channel(origin).await);
    let mut connection = Connection::open(endpoint).await;
    let mut lasting = connection.call("/etcdserverpb.Watch/Watch").await;
    let mut missed = Vec::new();
    for round in 0..rounds {
        let key = format!("{prefix}{round}");
        let lease = LeaseGrantRequest { ttl: 600, id: 0 };
        let lease = leases.lease_grant(lease).await.expect("a lease").into_inner().id;
        etcd.put_request(PutRequest { lease, ..kv::put(&key, "old") }).await;
        let watch_id = 1 + round as i64;
        let create = WatchCreateRequest { watch_id, ..client::key(&key) };
        // Half of the creates come on a stream that is there, and the others with a new one.
        let mut new;
        let stream = if round % 8 < 4 {
            &mut lasting
        } else {
            new = connection.call("/etcdserverpb.Watch/Watch").await;
            &mut new
        };
        let mut written = if round / 8 % 2 == 0 || round % 4 != 0 {
            stream.create(create);
            write(round, &key, lease, &mut connection).await
        } else {
            // The head of the write overtakes the create, as with clients that send heads at once.
            let mut write = connection.call(PUT).await;
            connection.is_read().await;
            stream.create(create);
            write.send(&kv::put(&key, "new"), true);
            write
        };
        // The answers to all writes have the header first, and this one has nothing else.
        let revision = written.next::<LeaseRevokeResponse>().await.header.expect("a header").revision;
        if !stream.shows(watch_id, &key, revision, &etcd).await {
            missed.push(round);
        }
    }
    missed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_right_after_a_create_on_its_connection_is_shown() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    relay.follows().await;
    let missed = missed(&relay.endpoint(), &etcd.endpoint(), PREFIX, 200).await;
    assert!(missed.is_empty(), "{} writes were not shown: {missed:?}", missed.len());
    relay.assert_log_has_only(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_right_after_a_create_is_shown_through_two_relays_and_on_demand() {
    let etcd = Etcd::start().await;
    let first = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    first.follows().await;
    let second = RelayCommand::serve(&[first.endpoint()]).prefix(PREFIX).start().await;
    second.follows().await;
    let missed = missed(&second.endpoint(), &etcd.endpoint(), OUTSIDE, 24).await;
    assert!(missed.is_empty(), "{} writes were not shown: {missed:?}", missed.len());
}

/// Over TLS, clients of etcd's JSON gateway may use one connection for both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_right_after_a_create_is_shown_as_json() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    relay.follows().await;
    let mut connection = Connection::open(&relay.endpoint()).await;
    for round in 0..50 {
        let key = BASE64.encode(format!("{PREFIX}{round}"));
        let mut watch = connection.call_as("application/json", "/v3/watch").await;
        let create = format!(r#"{{"create_request":{{"key":"{key}"}}}}"#);
        watch.send.send_data(create.into(), false).expect("an open stream");
        let mut put = connection.call_as("application/json", "/v3/kv/put").await;
        let body = format!(r#"{{"key":"{key}","value":"{key}"}}"#);
        put.send.send_data(body.into(), true).expect("an open stream");
        put.until_text("revision").await;
        watch.until_text("mod_revision").await;
    }
}

/// A member in this state would neither create the watch nor execute the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_after_a_create_that_nobody_confirms_ends_with_its_client_and_harms_no_other_call() {
    let mut etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    relay.follows().await;
    let key = format!("{PREFIX}k");
    let kv = Kv::connect(&etcd.endpoint()).await;
    kv.put(&key, "old").await;
    let mut connection = Connection::open(&relay.endpoint()).await;
    let mut stream = connection.call("/etcdserverpb.Watch/Watch").await;
    etcd.pause();
    stream.create(WatchCreateRequest { watch_id: 1, ..client::key(&key) });
    let mut write = connection.call(PUT).await;
    write.send(&kv::put(&key, "lost"), true);
    // A read on the same connection, after both.
    let mut read = connection.call(RANGE).await;
    read.send(&RangeRequest { key: kv::bytes(&key), serializable: true, ..Default::default() }, true);
    let read: RangeResponse = read.next().await;
    assert_eq!(read.kvs.first().map(|kv| &kv.value[..]), Some(&b"old"[..]));
    let created: WatchResponse = stream.next().await;
    assert!(created.created && !created.canceled, "as at a member without a leader: {created:?}");
    // Its client's deadline.
    write.send.send_reset(h2::Reason::CANCEL);
    etcd.resume();
    stream.create(WatchCreateRequest { watch_id: 2, ..client::key(&key) });
    let mut write = connection.call(PUT).await;
    write.send(&kv::put(&key, "new"), true);
    let revision = write.next::<PutResponse>().await.header.expect("a header").revision;
    assert!(stream.shows(2, &key, revision, &kv).await);
}

/// Its writes, and those of others, are still executed. Each of them waits for the creates before it, not for those
/// after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_stops_creating_starves_neither_its_own_writes_nor_those_of_others() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    relay.follows().await;
    let mut connection = Connection::open(&relay.endpoint()).await;
    let others = Kv::connect(&relay.endpoint()).await;
    let stop = CancellationToken::new();
    let mut creating = JoinSet::new();
    for number in 0..STREAMS {
        let mut stream = connection.call("/etcdserverpb.Watch/Watch").await;
        let key = format!("{PREFIX}created/{number}");
        let stop = stop.clone();
        creating.spawn(async move {
            let mut created = 0;
            // A watch of each round ends the one before.
            while !stop.is_cancelled() {
                stream.create(WatchCreateRequest { watch_id: 1, ..client::key(&key) });
                stream.cancel(1);
                loop {
                    let response: WatchResponse = stream.next().await;
                    created += usize::from(response.created);
                    if response.canceled {
                        break;
                    }
                }
            }
            created
        });
    }
    for round in 0..20 {
        let key = format!("{PREFIX}{round}");
        let mut write = connection.call(PUT).await;
        write.send(&kv::put(&key, "own"), true);
        let _: PutResponse = write.next().await;
        others.put(&key, "other").await;
    }
    stop.cancel();
    let created: Vec<usize> = creating.join_all().await;
    assert!(created.iter().all(|created| *created > 0), "{created:?}");
}
