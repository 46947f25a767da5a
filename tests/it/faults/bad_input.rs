//! Invalid input on every port: the sender gets an error, others are not affected, and nothing panics.
//!
//! Each test has a healthy watcher, which must get its events without disturbance.

mod raw;

use std::time::Duration;

use etcd_relay::pb::etcdserverpb::{
    AlarmRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

use super::{PREFIX, full_scale};
use crate::support::{
    client::{self, WatchStream, revisions},
    etcd::Etcd,
    http,
    kv::{self, Kv},
    patience,
    relay::{Relay, RelayCommand},
};

/// HTTP/2's preface and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// How long a connection with invalid input may stay open before the test fails.
const FORGOTTEN: Duration = Duration::from_secs(20);

/// A relay and a watcher that must not be affected.
struct Scene {
    etcd: Etcd,
    relay: Relay,
    kv: Kv,
    healthy: WatchStream,
}

impl Scene {
    async fn new() -> Self {
        let etcd = Etcd::start().await;
        let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
        let mut healthy = WatchStream::open(&relay.endpoint()).await;
        healthy.created(client::prefix(PREFIX)).await;
        let kv = Kv::connect(&etcd.endpoint()).await;
        Self { etcd, relay, kv, healthy }
    }

    /// Checks that the watcher gets an event, the ports answer, and nothing panicked.
    async fn unharmed(&mut self) {
        let revision = self.kv.put(format!("{PREFIX}healthy"), "x").await;
        assert_eq!(revisions(&self.healthy.next().await), [revision]);
        assert_eq!(self.relay.ready_status().await, Some(200));
        let read = Kv::connect(&self.relay.endpoint()).await.get(format!("{PREFIX}healthy")).await;
        assert_eq!(read.expect("just put").mod_revision, revision);
        assert!(self.relay.is_running());
        self.relay.assert_no_panic();
    }

    fn ports(&self) -> [String; 2] {
        [self.relay.grpc_addr().to_owned(), self.relay.http_addr().to_owned()]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_protocol_end_their_connection_alone() {
    let mut scene = Scene::new().await;
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_vec();
    // With the flag 4, which means END_HEADERS on HEADERS.
    let frame = |length: [u8; 3], kind: u8, stream: u8, payload: &[u8]| {
        [PREFACE, &length, &[kind, 4, 0, 0, 0, stream], payload].concat()
    };
    for addr in scene.ports() {
        for bytes in [
            b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
            b"\xff\xfe\xfd\xfc\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n".to_vec(),
            b"NONSENSE / HTTP/7.3\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n".to_vec(),
            tls.clone(),
            // DATA on a stream that was never opened; an unknown frame of 16 MiB; a HEADERS frame with invalid HPACK; a
            // SETTINGS frame whose length is not a multiple of 6; WINDOW_UPDATE by 0; PUSH_PROMISE from a client.
            frame([0, 0, 1], 0, 5, b"x"),
            frame([0xff, 0xff, 0xff], 0x77, 1, &[0; 64]),
            frame([0, 0, 4], 1, 1, b"\xff\xff\xff\xff"),
            frame([0, 0, 5], 4, 0, b"\0\0\0\0\0"),
            frame([0, 0, 4], 8, 0, b"\0\0\0\0"),
            frame([0, 0, 4], 5, 1, b"\0\0\0\x02"),
        ] {
            raw::closes(&addr, &bytes, FORGOTTEN).await;
            scene.unharmed().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_on_the_grpc_port_and_the_reverse_are_answered() {
    let mut scene = Scene::new().await;
    let [grpc, http] = scene.ports();
    let unknown = http::get(&grpc, "/no/such/path").await.expect("HTTP/1 is answered on the gRPC port");
    assert_eq!(unknown.status, 404, "{}", unknown.body);
    // As on a member's client port.
    assert!(http::get(&grpc, "/health").await.expect("health").body.contains("\"health\":\"true\""));
    assert_eq!(http::get(&http, "/no/such/path").await.expect("an answer").status, 404);
    // gRPC on the HTTP port: clients soon get an error that they understand.
    let status = tokio::time::timeout(patience(), async {
        let channel = kv::channel(&format!("http://{http}")).await;
        Kv::over(channel)
            .raw
            .range(RangeRequest { key: "a".into(), ..Default::default() })
            .await
            .expect_err("no etcd here")
    });
    let status = status.await.expect("an answer");
    assert!(
        matches!(status.code(), Code::Unimplemented | Code::Unknown | Code::Internal | Code::NotFound),
        "{status:?}"
    );
    scene.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_are_refused() {
    let mut scene = Scene::new().await;
    let mut different = Vec::new();
    let malformed: [&[u8]; 4] =
        [b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0a\xff\xff\xff\x0f", b"\x0a\x05abc", b"\x07"];
    for path in [
        "/etcdserverpb.Watch/Watch",
        "/etcdserverpb.KV/Range",
        "/etcdserverpb.KV/Put",
        "/etcdserverpb.Lease/LeaseKeepAlive",
    ] {
        for bytes in malformed {
            let status = raw::call(&scene.relay.endpoint(), path, bytes.to_vec()).await.expect_err("malformed");
            let direct = raw::call(&scene.etcd.endpoint(), path, bytes.to_vec()).await.expect_err("malformed");
            if status.code() != direct.code() {
                different.push(format!("{path} {bytes:?}: {status:?} where etcd says {direct:?}"));
            }
        }
        scene.unharmed().await;
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    let status = raw::call(&scene.relay.endpoint(), "/no.such.Service/Method", vec![]).await.expect_err("unknown");
    assert_eq!(status.code(), Code::Unimplemented);
    scene.unharmed().await;
}

/// Requests that arrive together are read together, and the error after the valid ones must not be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_request_behind_good_ones_is_told() {
    let mut scene = Scene::new().await;
    // WatchRequest { create_request: { key: "a" } }, twice, followed by an invalid one.
    let body = b"\0\0\0\0\x05\x0a\x03\x0a\x01a\0\0\0\0\x05\x0a\x03\x0a\x01a\0\0\0\0\x01\x07";
    let path = "/etcdserverpb.Watch/Watch";
    let status = raw::call_framed(&scene.relay.endpoint(), path, body).await.expect_err("malformed");
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    scene.unharmed().await;
}

/// Its fields exceed the limit, although they are smaller when compressed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_meets_a_bound_of_its_connection_is_counted() {
    let mut scene = Scene::new().await;
    let path = "/etcdserverpb.KV/Range";
    raw::call_with_field_of(&scene.relay.endpoint(), path, 80 << 10).await.expect_err("too many fields");
    let refused = scene.relay.metric_of("etcd_relay_requests_refused_total", r#"reason="fields""#).await;
    assert_eq!(refused, 1.0);
    scene.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_100_mib_is_refused_without_memory_for_it() {
    let mut scene = Scene::new().await;
    let before = scene.relay.resident_bytes();
    let big = vec![0x0a; 100 << 20];
    for path in ["/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put"] {
        let status = raw::call(&scene.relay.endpoint(), path, big.clone()).await.expect_err("far too large");
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}: {status:?}");
        scene.unharmed().await;
    }
    let growth = scene.relay.resident_bytes().saturating_sub(before);
    assert!(growth < 64 << 20, "grew by {growth} bytes");
}

/// The length claims 4 GiB, for which no memory may be reserved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_claims_4_gib_is_refused() {
    let mut scene = Scene::new().await;
    let before = scene.relay.resident_bytes();
    for path in ["/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Range"] {
        let status =
            raw::call_framed(&scene.relay.endpoint(), path, b"\0\xff\xff\xff\xffabc").await.expect_err("too large");
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}: {status:?}");
        // A compressed message, although no compression was agreed.
        let status =
            raw::call_framed(&scene.relay.endpoint(), path, b"\x01\0\0\0\x03abc").await.expect_err("compressed");
        assert!(matches!(status.code(), Code::Unimplemented | Code::Internal), "{path}: {status:?}");
        // A flag that does not exist.
        let status =
            raw::call_framed(&scene.relay.endpoint(), path, b"\x07\0\0\0\x03abc").await.expect_err("unknown flag");
        assert_ne!(status.code(), Code::Ok, "{path}");
    }
    let growth = scene.relay.resident_bytes().saturating_sub(before);
    assert!(growth < 64 << 20, "grew by {growth} bytes");
    scene.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_1_mib_are_refused() {
    let mut scene = Scene::new().await;
    let long = "x".repeat(1 << 20);
    for addr in scene.ports() {
        let request = format!("GET /health HTTP/1.1\r\nHost: a\r\nX-Long: {long}\r\n\r\n");
        raw::closes(&addr, request.as_bytes(), FORGOTTEN).await;
        let request = format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n");
        raw::closes(&addr, request.as_bytes(), FORGOTTEN).await;
        scene.unharmed().await;
    }
    let mut stream = WatchStream::open_with(&scene.relay.endpoint(), &[("long", &long)]).await;
    stream.create(client::prefix(PREFIX));
    let status = stream.ended().await.expect_err("headers too long");
    assert_ne!(status.code(), Code::Ok);
    scene.unharmed().await;
}

/// A client that creates watches endlessly and never reads an answer: only its own stream stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_without_end_stop_their_own_stream_alone() {
    let mut scene = Scene::new().await;
    let before = scene.relay.resident_bytes();
    let creates = if full_scale() { 1_000_000 } else { 50_000 };
    let mut greedy = WatchStream::open(&scene.relay.endpoint()).await;
    greedy.created(client::key(format!("{PREFIX}0"))).await;
    greedy.pause();
    for number in 0..creates {
        greedy.create(client::key(format!("{PREFIX}{number}")));
        if number % 10_000 == 0 {
            scene.unharmed().await;
        }
    }
    scene.unharmed().await;
    greedy.resume();
    // It is served once it reads, up to the limit for one stream, and is refused beyond that.
    let mut refused = 0;
    for _ in 0..creates.min(20_000) {
        match greedy.take_within(patience()).await {
            Some(recorded) => refused += u32::from(recorded.response.canceled),
            None => break,
        }
    }
    scene.unharmed().await;
    drop(greedy);
    let growth = scene.relay.resident_bytes().saturating_sub(before);
    println!("{creates} creates, {refused} refused, growth {} KiB", growth >> 10);
    assert!(growth < 512 << 20, "grew by {growth} bytes");
}

/// Connections that send nothing, half of a preface, or an incomplete request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_hold_nobody_up() {
    let mut scene = Scene::new().await;
    let mut held = Vec::new();
    for addr in scene.ports() {
        for index in 0..150_usize {
            let mut stream = TcpStream::connect(&addr).await.expect("accepted");
            let opening: &[u8] = match index % 4 {
                0 => b"",
                1 => &PREFACE[..10],
                2 => PREFACE,
                _ => b"GET /health HTTP/1.1\r\nHost: a\r\n",
            };
            stream.write_all(opening).await.expect("written");
            held.push(stream);
        }
    }
    scene.unharmed().await;
    drop(held.drain(..100));
    scene.unharmed().await;
}

/// Many connections that open and close at once, with and without data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_off_leave_nothing_behind() {
    let mut scene = Scene::new().await;
    for round in 0..200_usize {
        for addr in scene.ports() {
            let mut stream = TcpStream::connect(&addr).await.expect("accepted");
            if round % 2 == 0 {
                stream.write_all(PREFACE).await.expect("written");
                let mut answer = [0; 9];
                stream.read_exact(&mut answer).await.expect("HTTP/2 settings");
            }
            // Closes with a reset instead of an orderly close.
            stream.set_zero_linger().expect("linger");
        }
    }
    scene.unharmed().await;
    let connections = async || (scene.relay.metric("etcd_relay_connections").await <= 3.0).then_some(());
    crate::support::eventually("the connections are forgotten", connections).await;
}

/// Requests that crash one member, or every member at each start: the relay does not forward them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_ends_etcd() {
    let mut scene = Scene::new().await;
    let endpoint = scene.relay.endpoint();
    let framed = |message: &[u8]| [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat();
    let sorted = RangeRequest { key: kv::bytes("k"), sort_target: 9, ..RangeRequest::default() };
    let range = RequestOp { request: Some(request_op::Request::RequestRange(sorted.clone())) };
    let nested = TxnRequest { success: vec![range.clone()], ..TxnRequest::default() };
    let nested = RequestOp { request: Some(request_op::Request::RequestTxn(nested)) };
    let from = DeleteRangeRequest { key: kv::bytes("a"), range_end: kv::bytes("\0"), ..DeleteRangeRequest::default() };
    let from = RequestOp { request: Some(request_op::Request::RequestDeleteRange(from)) };
    let keep = PutRequest { ignore_value: true, ..kv::put("k", "") };
    let keep = RequestOp { request: Some(request_op::Request::RequestPut(keep)) };
    let txn = |success| TxnRequest { success, ..TxnRequest::default() }.encode_to_vec();
    scene.kv.put("k", "v").await;
    for (path, message) in [
        ("/etcdserverpb.KV/Range", sorted.encode_to_vec()),
        ("/etcdserverpb.KV/Txn", txn(vec![range])),
        ("/etcdserverpb.KV/Txn", txn(vec![kv::op_put("x", "y"), nested])),
        ("/etcdserverpb.KV/Txn", txn(vec![from, keep])),
        ("/etcdserverpb.Maintenance/Alarm", AlarmRequest { action: 1, alarm: 9, member_id: 0 }.encode_to_vec()),
        ("/etcdserverpb.Maintenance/Alarm", AlarmRequest { action: 9, alarm: 1, member_id: 0 }.encode_to_vec()),
        ("/etcdserverpb.Auth/RoleGrantPermission", vec![]),
    ] {
        // Alone, and followed by an empty message, which a member ignores.
        for body in [framed(&message), [framed(&message), framed(&[])].concat()] {
            let refused = raw::call_framed(&endpoint, path, &body).await.expect_err("refused");
            assert_eq!(refused.code(), Code::InvalidArgument, "{path}: {refused}");
        }
        scene.unharmed().await;
    }
    let compressed = raw::call_compressed(&endpoint, "/etcdserverpb.KV/Range", &[1, 0, 0, 0, 1, 0]).await;
    assert_eq!(compressed.expect_err("refused").code(), Code::Unimplemented);
    scene.unharmed().await;
}
