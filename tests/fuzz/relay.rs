//! [`Relay`]: a whole relay over the embedded store with in-memory connections, and a client that sends it bytes in
//! gRPC frames.
//!
//! The relay's own composition code wires it. Always holds: the clock is simulated, so no test waits for a timeout. A
//! panic in a task of the relay fails the target.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use etcd_relay::{
    batch::Io,
    front::{
        gateway::Gateway,
        grpc::{GrpcPort, LainletApi, Locals},
        http::{audience::Audience, keys::Cors},
        listen::{self, Connections, Server, Stop},
    },
    pb::etcdserverpb::PutRequest,
    relay::{self, Embedded, Feeds, LainletFeeds, OnDemand, RelayConfig, Upstream, Views, Watches},
    rpc::GrpcService,
    shutdown::Phases,
    store::{Store, StoreConfig},
    telemetry::{ReadyBoard, names::Port},
};
use h2::{
    SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Method, Request, Response};
use tokio::time::timeout;
use tonic::{Status, body::Body};
use tower::service_fn;

/// Longer than any timeout of the relay. The clock is simulated.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// See the module.
pub(crate) struct Relay {
    pub(crate) store: Store,
    phases: Phases,
    requests: SendRequest<Bytes>,
    /// Closes its connections when it is dropped.
    _server: Server<GrpcPort<Locals>>,
}

/// Runs `work` with a relay whose store has some keys. Calls that it does not answer go to `forward`, if there is one.
pub(crate) fn with<W: Future<Output = ()>>(forward: Option<GrpcService>, work: impl FnOnce(Arc<Relay>) -> W) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let relay = Arc::new(Relay::new(forward).await);
        let work = timeout(LONG * 10, work(relay.clone()));
        tokio::select! {
            biased;
            failure = relay.phases.upkeep.failed() => panic!("{failure}"),
            done = work => done.expect("it is answered"),
        }
        let Phases { accept, streams, abort, upstream, .. } = &relay.phases;
        [accept, streams, abort, upstream].into_iter().for_each(|token| token.cancel());
    });
}

impl Relay {
    async fn new(forward: Option<GrpcService>) -> Self {
        let store = Store::new(StoreConfig::default());
        for turn in ["1", "2"] {
            for key in ["a", "a/1", "a/2", "b", "b/3", "c\0", "c\u{fffd}"] {
                let put = PutRequest { key: key.into(), value: format!("{key} {turn}").into(), ..Default::default() };
                store.put(&put).expect("there is room");
            }
        }
        let grpc = listen::PortConfig::new(Port::Grpc, SocketAddr::from((Ipv4Addr::LOCALHOST, 2379)));
        let config = RelayConfig {
            upstream: Upstream::Embedded(Embedded { seeded: false, changes_every: None }),
            feeds: Feeds { prefixes: vec![Bytes::new()], on_demand: OnDemand::Deny, ..Feeds::default() },
            watches: Watches::default(),
            views: Views { feeds: LainletFeeds::Off, ..Views::default() },
            grpc: grpc.clone(),
            http: None,
            metrics: Vec::new(),
            v2: None,
            advertise: None,
            debug_from: Audience::Nobody,
            keys_from: Audience::Nobody,
            cors: Cors::Off,
            metrics_from: Audience::Nobody,
            io: Io::Auto,
            drain_time: LONG,
        };
        let (phases, ready) = (Phases::new(), ReadyBoard::new());
        let own = store.forward_service();
        let forward = forward.unwrap_or_else(|| store.forward_service());
        let core = relay::wire(&config, Arc::new(store.clone()), LONG, forward, own, &phases, &ready);
        let feeds = core.hub.feeds();
        for feed in feeds {
            feed.wait_for(store.header().revision, LONG).await.expect("the feed follows");
        }
        ready.wait_for(true).await;
        let local = Locals { etcd: core.api.clone(), lainlet: LainletApi::new(None, phases.streams.clone()) };
        let port = GrpcPort {
            local,
            forward: core.forward.clone(),
            health: unserved(),
            reflection: unserved(),
            gateway: Gateway::new(etcd_relay::pb::FILE_DESCRIPTOR_SET).expect("descriptors"),
            member: axum::Router::new(),
        };
        let stop = Stop { leave: phases.leave.clone(), accept: phases.accept.clone(), abort: phases.abort.clone() };
        let server = Server::new(port, grpc, Arc::new(Connections::default()), stop);
        let (client, socket) = tokio::io::duplex(10_000);
        server.serve(socket, SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000))).expect("there is room");
        let (requests, connection) = h2::client::handshake(client).await.expect("HTTP/2");
        tokio::spawn(async move { drop(connection.await) });
        Self { store, phases, requests, _server: server }
    }

    /// Makes a call to `path` with this body. Returns its messages and its status.
    pub(crate) async fn call(&self, path: &str, body: Bytes) -> (Vec<Bytes>, Status) {
        let (mut send, answer) = self.open(path).await;
        // If the relay has already refused the call, it accepts no more data.
        let _ = send.send_data(body, true);
        let (messages, status) = answer.all().await;
        (messages, status.expect("a call that is over ends"))
    }

    /// Makes a request without gRPC. Returns its status and its whole answer.
    pub(crate) async fn post(&self, path: &str, body: Bytes) -> (u16, Bytes) {
        let mut requests = self.requests.clone().ready().await.expect("the connection is there");
        let request = Request::builder().method(Method::POST).uri(format!("http://relay{path}"));
        let request = request.body(()).expect("a request");
        let (response, mut send) = requests.send_request(request, false).expect("the connection is there");
        // If the relay has already refused the request, it accepts no more data.
        let _ = send.send_data(body, true);
        let (head, mut body) = response.await.expect("an answer").into_parts();
        let mut bytes = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.expect("the answer is not reset");
            body.flow_control().release_capacity(data.len()).expect("what was received");
            bytes.extend_from_slice(&data);
        }
        (head.status.as_u16(), bytes.freeze())
    }

    /// Opens a call.
    pub(crate) async fn open(&self, path: &str) -> (SendStream<Bytes>, Answer) {
        let mut requests = self.requests.clone().ready().await.expect("the connection is there");
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://relay{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = request.body(()).expect("a request");
        let (response, send) = requests.send_request(request, false).expect("the connection is there");
        (send, Answer(response))
    }
}

/// The answer to a call.
pub(crate) struct Answer(ResponseFuture);

impl Answer {
    /// All messages until the call ends, or until nothing has arrived for [`LONG`]. In that case there is no status.
    pub(crate) async fn all(self) -> (Vec<Bytes>, Option<Status>) {
        let (mut bytes, mut messages) = (BytesMut::new(), Vec::new());
        let Ok(response) = timeout(LONG, self.0).await else { return (messages, None) };
        let (head, mut body) = response.expect("an answer").into_parts();
        assert!(head.status.is_success(), "HTTP {}", head.status);
        if let Some(status) = Status::from_header_map(&head.headers) {
            return (messages, Some(status));
        }
        loop {
            let Ok(data) = timeout(LONG, body.data()).await else { return (messages, None) };
            let Some(data) = data else { break };
            let data = data.expect("the call is not reset");
            body.flow_control().release_capacity(data.len()).expect("what was received");
            bytes.extend_from_slice(&data);
            while let Some(len) =
                bytes.get(1..5).map(|len| u32::from_be_bytes([len[0], len[1], len[2], len[3]]) as usize)
                && bytes.len() >= 5 + len
            {
                bytes.advance(5);
                messages.push(bytes.split_to(len).freeze());
            }
        }
        assert!(bytes.is_empty(), "the answer ends within a message");
        let trailers = body.trailers().await.expect("the call is not reset").expect("trailers");
        (messages, Some(Status::from_header_map(&trailers).expect("a status")))
    }
}

/// A message in gRPC's framing.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

fn unserved() -> GrpcService {
    GrpcService::new(service_fn(|_: Request<Body>| async {
        Ok::<Response<Body>, Infallible>(Status::unimplemented("not here").into_http())
    }))
}
