//! How clients leave a relay: one after the other, each with its progress, so that they continue elsewhere without a
//! gap and without a storm.

use std::time::{Duration, Instant};

use etcd_relay::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, MemberListRequest, cluster_client::ClusterClient,
    lease_client::LeaseClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::support::{
    client::{self, WatchStream, header_revision, is_progress},
    etcd::Etcd,
    eventually, http,
    kv::{self, Kv},
    patience,
    relay::{Relay, RelayCommand},
};

/// Connections, each with a watch.
const CLIENTS: usize = 600;
/// At least this many are still there when the test looks: at 45 per second, more than ten seconds after the signal.
const LATER: usize = CLIENTS / 10;

async fn watching(relay: &Relay, count: usize) -> Vec<WatchStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = WatchStream::open(&relay.endpoint()).await;
        stream.created(client::prefix("/a/")).await;
        streams.push(stream);
    }
    streams
}

/// Checks that a stream has ended so that its client resumes elsewhere from this revision.
async fn ended_with_progress(stream: &mut WatchStream, revision: i64) {
    let status = stream.ended().await.expect_err("a watch does not end by itself");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let record = stream.record();
    let last = &record[record.len() - 1].response;
    assert!(is_progress(last) && header_revision(last) >= revision, "a last progress, to resume from: {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_connections_leave_one_after_the_other() {
    let etcd = Etcd::start().await;
    let command = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").arg("--drain-time=20s");
    let mut relay = command.start().await;
    let mut streams = watching(&relay, CLIENTS).await;
    let revision = Kv::connect(&etcd.endpoint()).await.put("/a/k", "1").await;
    for stream in &mut streams {
        stream.until_revision(revision).await;
    }
    relay.terminate();
    // A client that has not been asked yet is served as before.
    assert!(streams.iter().filter(|stream| !stream.has_ended()).count() > LATER);
    let still = Kv::connect(&etcd.endpoint()).await.put("/a/k", "2").await;
    let mut told = 0;
    for stream in &mut streams {
        ended_with_progress(stream, revision).await;
        told += usize::from(stream.record().iter().any(|at| client::revisions(&at.response).contains(&still)));
    }
    assert!(told > LATER, "{told} of {CLIENTS} got what was written while others left");
    assert_eq!(relay.exit_code(Duration::from_secs(20)).await, 0);
    relay.assert_log_has_only(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_connections_are_asked_to_leave_whatever_they_do() {
    let etcd = Etcd::start().await;
    let command = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").arg("--max-connection-age=2s");
    let relay = command.start().await;
    let revision = Kv::connect(&etcd.endpoint()).await.put("/a/k", "1").await;
    let mut watch = watching(&relay, 1).await.remove(0);
    let mut leases = LeaseClient::new(kv::channel(&relay.endpoint()).await);
    let granted = leases.lease_grant(LeaseGrantRequest { id: 0, ttl: 60 }).await.expect("granted").into_inner();
    let requests = tokio_stream::iter([LeaseKeepAliveRequest { id: granted.id }]).chain(tokio_stream::pending());
    let mut kept = leases.lease_keep_alive(requests).await.expect("a stream").into_inner();
    let mut view = TcpStream::connect(relay.http_addr()).await.expect("connected");
    view.write_all(b"GET /v2/nodes?watch=1 HTTP/1.1\r\nHost: relay\r\n\r\n").await.expect("asked");
    ended_with_progress(&mut watch, revision).await;
    let ended = loop {
        match kept.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a keep-alive does not end well by itself"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    let mut events = String::new();
    timeout(patience(), view.read_to_string(&mut events))
        .await
        .expect("a view over HTTP/1.1 ends as well")
        .expect("in order");
    assert!(events.contains("event: init"), "{events}");
    // A client that comes back is served.
    drop(watching(&relay, 1).await);
    let asked = relay.metrics().await;
    let asked = http::metric(&asked, "etcd_relay_connections_asked_to_leave_total").expect("a metric");
    assert!(asked >= 3.0, "{asked}");
}

/// A client that knows no other relay comes back at once. If it were refused, it would wait longer and longer, and its
/// leases would end. A client that knows another one goes there. Either way, clients leave one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_stops_serves_those_who_come_back_unless_there_is_another() {
    for others in [false, true] {
        let etcd = Etcd::start().await;
        let command = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").arg("--drain-time=20s");
        let command = command.arg("--advertise-client-url=http://127.0.0.1:1").arg("--resolver-prefix=/relays");
        let mut relay = command.start().await;
        relay.follows().await;
        let direct = Kv::connect(&etcd.endpoint()).await;
        if others {
            direct
                .put(
                    "/relays/http://127.0.0.1:2",
                    r#"{"Op":0,"Addr":"http://127.0.0.1:2","Metadata":"{\"name\":\"other\"}"}"#,
                )
                .await;
        }
        let known = if others { 2 } else { 1 };
        eventually("the relay knows all relays", async || {
            let list = ClusterClient::new(kv::channel(&relay.endpoint()).await);
            let list = list.clone().member_list(MemberListRequest { linearizable: true }).await.ok()?.into_inner();
            (list.members.len() == known).then_some(())
        })
        .await;
        let streams = watching(&relay, CLIENTS).await;
        let began = Instant::now();
        relay.terminate();
        eventually("it stops", async || (relay.ready_status().await != Some(200)).then_some(())).await;
        if others {
            eventually("it accepts nobody", async || {
                TcpStream::connect(relay.grpc_addr()).await.is_err().then_some(())
            })
            .await;
        } else {
            let mut back = watching(&relay, 1).await;
            let revision = direct.put("/a/k", "1").await;
            back[0].until_revision(revision).await;
        }
        assert!(streams.iter().filter(|stream| !stream.has_ended()).count() > LATER, "most were not asked yet");
        eventually("half of them were asked", async || {
            (streams.iter().filter(|stream| stream.has_ended()).count() >= CLIENTS / 2).then_some(())
        })
        .await;
        // Two thirds of the drain time are for all of them. A busy machine takes longer.
        assert!(began.elapsed() > Duration::from_secs(4), "asked within {:?}", began.elapsed());
    }
}
