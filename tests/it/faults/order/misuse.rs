//! Whatever a client does with its watch streams, the writes that come later on its connection go on, and so does the
//! relay.

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::support::eventually;

/// What a client does with a watch stream before it writes.
const MISUSES: [&str; 19] = [
    "a create in frames of one byte",
    "a part of a create",
    "the end in the middle of a create",
    "the end right after a create",
    "the end and nothing else",
    "a create that is reset at once",
    "a reset and nothing else",
    "a message that is not protobuf",
    "a compressed message",
    "a message of two GiB",
    "a request that is none",
    "an empty range",
    "an id twice",
    "a cancel of nothing",
    "progress",
    "a thousand creates",
    "a create outside the feeds",
    "a compressed stream",
    "a call without a leader",
];

fn framed(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0][..], &u32::try_from(body.len()).expect("a length for gRPC").to_be_bytes(), &body].concat()
}

fn create(key: &str) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(client::key(key))) }
}

/// Does it, and returns what must stay open.
async fn misuse(what: &str, key: &str, connection: &mut Connection) -> Stream {
    let mut headers = Vec::new();
    match what {
        "a compressed stream" => headers.push(("grpc-encoding", "gzip")),
        "a call without a leader" => headers.push(("hasleader", "true")),
        _ => {}
    }
    let mut stream = connection.call_with("application/grpc", "/etcdserverpb.Watch/Watch", &headers).await;
    let mut data = |bytes: &[u8], end: bool| {
        stream.send.send_data(Bytes::copy_from_slice(bytes), end).expect("an open stream");
    };
    let whole = framed(&create(key));
    match what {
        "a create in frames of one byte" => whole.iter().for_each(|byte| data(&[*byte], false)),
        "a part of a create" => data(&whole[..whole.len() - 1], false),
        "the end in the middle of a create" => data(&whole[..whole.len() - 1], true),
        "the end right after a create" => data(&whole, true),
        "the end and nothing else" => data(&[], true),
        "a create that is reset at once" => {
            data(&whole, false);
            stream.send.send_reset(h2::Reason::CANCEL);
        }
        "a reset and nothing else" => stream.send.send_reset(h2::Reason::CANCEL),
        "a message that is not protobuf" => data(&[0, 0, 0, 0, 3, 0xff, 0xff, 0xff], false),
        "a compressed message" => data(&[&[1][..], &whole[1..]].concat(), false),
        "a message of two GiB" => data(&[0, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3], false),
        "a request that is none" => data(&framed(&WatchRequest::default()), false),
        "an empty range" => {
            let create = WatchCreateRequest { range_end: "0".into(), ..client::key("1") };
            data(&framed(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }), false);
        }
        "an id twice" => {
            for _ in 0..2 {
                let create = WatchCreateRequest { watch_id: 7, ..client::key(key) };
                data(&framed(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }), false);
            }
        }
        "a cancel of nothing" => stream.cancel(5),
        "progress" => {
            let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
            data(&framed(&WatchRequest { request_union: Some(progress) }), false);
        }
        "a thousand creates" => (0..1_000).for_each(|_| data(&whole, false)),
        "a create outside the feeds" => data(&framed(&create(OUTSIDE)), false),
        _ => data(&whole, false),
    }
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_comes_on_a_watch_stream_later_writes_go_on() {
    let etcd = Etcd::start().await;
    let relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    relay.follows().await;
    let key = format!("{PREFIX}k");
    for what in MISUSES {
        let mut fastest = Duration::MAX;
        // A machine that is busy may delay one of them.
        for _ in 0..3 {
            let mut connection = Connection::open(&relay.endpoint()).await;
            let _open = misuse(what, &key, &mut connection).await;
            let began = Instant::now();
            let mut write = connection.call(PUT).await;
            write.send(&kv::put(&key, "new"), true);
            let _: PutResponse = write.next().await;
            fastest = fastest.min(began.elapsed());
        }
        assert!(fastest < Duration::from_secs(1), "{what}: the write took {fastest:?}");
    }
    eventually("no write waits", async || (relay.metric(HELD).await == 0.0).then_some(())).await;
    relay.assert_no_panic();
}

const HELD: &str = "etcd_relay_forwards_held";

/// They cost no other connection anything, and those whose clients give up leave nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writes_that_wait_are_counted_and_are_gone_with_their_clients() {
    const WRITES: usize = 1_000;
    let mut etcd = Etcd::start().await;
    let mut relay = RelayCommand::serve(&[etcd.endpoint()]).prefix(PREFIX).start().await;
    relay.follows().await;
    let key = format!("{PREFIX}k");
    let others = Kv::connect(&relay.endpoint()).await;
    let mut connections = Vec::new();
    etcd.pause();
    for _ in 0..2 {
        let mut connection = Connection::open(&relay.endpoint()).await;
        let mut stream = connection.call("/etcdserverpb.Watch/Watch").await;
        stream.create(client::key(&key));
        let mut writes = Vec::new();
        for number in 0..WRITES {
            let mut write = connection.call(PUT).await;
            write.send(&kv::put(&key, number.to_string()), true);
            writes.push(write);
        }
        connections.push((connection, stream, writes));
    }
    let held = async |at_most: usize| {
        eventually("writes wait", async || (relay.metric(HELD).await as usize <= at_most).then_some(())).await;
    };
    let all = || relay.metric(HELD);
    eventually("writes wait", async || (all().await > 0.0).then_some(())).await;
    let read = RangeRequest { key: kv::bytes(&key), serializable: true, ..Default::default() };
    others.range(read).await;
    // One client resets its calls, and the other one is gone.
    let (gone, mut left) = (connections.pop().expect("two"), connections.pop().expect("two"));
    drop(gone);
    for write in left.2.drain(..WRITES / 2) {
        drop(write);
    }
    held(WRITES / 2).await;
    etcd.resume();
    let mut revisions = Vec::new();
    for write in &mut left.2 {
        revisions.push(write.next::<PutResponse>().await.header.expect("a header").revision);
    }
    held(0).await;
    let created: WatchResponse = left.1.next().await;
    assert!(created.created && !created.canceled, "{created:?}");

    // A relay that stops does not wait for them longer than for other calls.
    etcd.pause();
    left.1.create(client::key(&key));
    let mut write = left.0.call(PUT).await;
    write.send(&kv::put(&key, "late"), true);
    relay.terminate();
    relay.exit_code(Duration::from_secs(30)).await;
    relay.assert_no_panic();
}
