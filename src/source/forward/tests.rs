//! Tests of a forwarded call, seen from both sides. Upstream is a plain HTTP/2 server that does what each test says.

use std::{
    convert::Infallible,
    future::pending,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::StreamExt as _;

use super::*;
use crate::{
    pb::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, lease_client::LeaseClient},
    source::{
        Endpoint,
        testing::{Server, endpoint, fed, full, nowhere},
    },
};

mod shares;

fn forward(endpoints: &[&Endpoint], drain: &CancellationToken) -> Forward {
    let endpoints: Vec<Endpoint> = endpoints.iter().map(|endpoint| (*endpoint).clone()).collect();
    let config = ForwardConfig {
        dialler: Dialler::default(),
        connect_timeout: Duration::from_secs(5),
        keepalive: None,
        stream_window: ForwardConfig::STREAM_WINDOW,
        max_per_client: ForwardConfig::MAX_PER_CLIENT,
        wait: Duration::from_millis(200),
    };
    Forward::new(&config, Members::new(&endpoints), drain.clone())
}

fn request(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://relay{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "grpc-go/1.70.0")
        .header("grpc-timeout", "5S")
        .header("token", "secret")
        .header("key-bin", "AAEC")
        .header("key-bin", "AwQF")
        .body(body)
        .expect("a request")
}

fn trailers(status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers.insert("detail-bin", HeaderValue::from_static("AAEC"));
    trailers
}

fn status_of(headers: &HeaderMap) -> tonic::Status {
    tonic::Status::from_header_map(headers).expect("a gRPC status")
}

#[test]
fn the_path_decides_connection_and_end() {
    let of = |path| {
        let Method { service, lane, endless, .. } = Method::of(path);
        (service.as_str(), lane == names::Lane::Waiting, endless)
    };
    assert_eq!(of("/etcdserverpb.KV/Put"), ("kv", false, false));
    assert_eq!(of("/etcdserverpb.Watch/Watch"), ("watch", true, true));
    assert_eq!(of("/etcdserverpb.Maintenance/Snapshot"), ("maintenance", true, false));
    assert_eq!(of("/v3electionpb.Election/Observe"), ("election", true, true));
    assert_eq!(of("/later.Service/New"), ("other", true, false));
    assert_eq!(of("*"), ("other", true, false));
}

#[test]
fn connection_headers_stay_behind_and_metadata_goes_on() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "x-mine, keep-alive"),
        ("x-mine", "1"),
        ("keep-alive", "5"),
        ("host", "relay"),
        ("te", "trailers"),
        ("token", "abc"),
        ("grpc-timeout", "5S"),
    ] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    strip_hop_by_hop(&mut headers);
    let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["grpc-timeout", "token"]);
}

#[tokio::test]
async fn bytes_metadata_and_trailers_pass_as_they_are() {
    let (seen, mut requests) = mpsc::channel(1);
    let server = Server::new(move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("the request").to_bytes();
            seen.send((head, body)).await.expect("the test waits");
            let (sender, body) = fed();
            tokio::spawn(async move {
                for frame in [Frame::data(Bytes::from_static(b"answer")), Frame::trailers(trailers("5"))] {
                    sender.send(Ok(frame)).await.expect("the relay reads");
                }
            });
            Response::builder().header("content-type", "application/grpc").header("m-bin", "AA").body(body).expect("ok")
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let body = Body::new(Full::new(Bytes::from_static(b"\0\0\0\0\x02\xff\xfe")));
    let response = forward.call(request("/later.Service/New", body)).await;

    let (head, body) = requests.recv().await.expect("a request");
    assert_eq!(&body[..], b"\0\0\0\0\x02\xff\xfe");
    assert_eq!(head.uri.path(), "/later.Service/New");
    assert_eq!(head.uri.authority(), Some(server.endpoint.authority()));
    assert_eq!(head.headers["user-agent"], "grpc-go/1.70.0");
    assert_eq!(head.headers["te"], "trailers");
    assert_eq!(head.headers["token"], "secret");
    assert_eq!(head.headers["grpc-timeout"], "5S");
    assert_eq!(head.headers.get_all("key-bin").iter().collect::<Vec<_>>(), ["AAEC", "AwQF"]);

    assert_eq!(response.headers()["m-bin"], "AA");
    let answer = response.into_body().collect().await.expect("an answer");
    let got = answer.trailers().expect("trailers").clone();
    assert_eq!(got, trailers("5"));
    assert_eq!(&answer.to_bytes()[..], b"answer");
}

#[tokio::test]
async fn a_client_that_goes_away_resets_the_call_upstream() {
    let (ended, mut ends) = mpsc::channel(1);
    let server = Server::new(move |request: Request<Incoming>| {
        let ended = ended.clone();
        async move {
            let (_sender, body) = fed();
            let mut from_client = request.into_body();
            tokio::spawn(async move {
                // Keeps the answer open for ever; the test is about the request's end.
                let _sender = _sender;
                let end = from_client.frame().await;
                ended.send(end.map(|frame| frame.map(|_| ()).map_err(|error| error.to_string()))).await.expect("waits");
                pending::<()>().await;
            });
            Response::new(body)
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    // The request never ends by itself, like that of a watch.
    let open = || Body::new(StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, tonic::Status>>()));
    let response = forward.call(request("/etcdserverpb.Watch/Watch", open())).await;
    drop(response);
    assert!(matches!(ends.recv().await, Some(Some(Err(_)))), "the server saw a reset");
}

#[tokio::test]
async fn where_nobody_can_be_reached_the_client_is_told_so_in_etcds_words() {
    let (one, two) = (nowhere().await, nowhere().await);
    let forward = forward(&[&one, &two], &CancellationToken::new());
    for path in ["/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put"] {
        let response = forward.call(request(path, Body::empty())).await;
        assert_eq!(response.status(), http::StatusCode::OK);
        let status = status_of(response.headers());
        assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "there is no connection available"));
    }
}

#[tokio::test]
async fn calls_go_to_the_member_that_can_be_reached() {
    let gone = nowhere().await;
    let server = Server::new(|request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.expect("the request").to_bytes();
        Response::new(Full::new(body).map_err(|never| match never {}).boxed())
    })
    .await;
    let forward = forward(&[&gone, &server.endpoint], &CancellationToken::new());
    for _ in 0..2 {
        let body = Body::new(Full::new(Bytes::from_static(b"whole")));
        let response = forward.call(request("/etcdserverpb.KV/Put", body)).await;
        let answer = response.into_body().collect().await.expect("an answer").to_bytes();
        assert_eq!(&answer[..], b"whole", "the second member got the whole request");
    }
    server.task.abort();
}

/// The member passed it on to a leader that is gone, and would report so only seven seconds later.
#[tokio::test]
async fn a_write_that_was_lost_with_its_leader_ends_soon_after_there_is_another() {
    let (came, mut arrived) = mpsc::channel(2);
    let server = Server::new(move |request: Request<Incoming>| {
        let came = came.clone();
        async move {
            came.send(request.uri().path().to_owned()).await.expect("open");
            pending().await
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let members = forward.shared.members.clone();
    members.in_term(0, 3);
    let put = forward.call(request("/etcdserverpb.KV/Put", Body::empty()));
    let compact = forward.call(request("/etcdserverpb.KV/Compact", Body::empty()));
    let (mut put, mut compact) = (pin!(put), pin!(compact));
    for _ in 0..2 {
        tokio::select! {
            _ = &mut put => panic!("nobody answered"),
            _ = &mut compact => panic!("nobody answered"),
            path = arrived.recv() => assert!(path.is_some()),
        }
    }
    members.in_term(0, 3);
    members.in_term(0, 4);
    let response = tokio::select! {
        response = &mut put => response,
        _ = &mut compact => panic!("it may take longer"),
    };
    let text = "etcdserver: request timed out, possibly due to previous leader failure";
    let status = status_of(response.headers());
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, text));
}

/// The follower has passed it on to a leader that is gone, and would report that after seven seconds.
#[tokio::test]
async fn a_keep_alive_is_sent_again_when_there_is_a_new_leader() {
    let (came, mut streams) = mpsc::channel(4);
    let server = Server::new(move |request| {
        let came = came.clone();
        async move {
            let (frames, body) = fed();
            came.send((request.into_body(), frames)).await.expect("the test waits");
            Response::new(body)
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let members = forward.shared.members.clone();
    members.in_term(0, 3);
    let mut client = LeaseClient::new(forward.sharing_keepalives(Tasks::new()));
    let requests = tokio_stream::iter([LeaseKeepAliveRequest { id: 7 }]).chain(tokio_stream::pending());
    let answer = tokio::spawn(async move { client.lease_keep_alive(requests).await?.into_inner().message().await });
    let (mut silent, _frames) = streams.recv().await.expect("a stream");
    let asked = silent.frame().await.expect("a request").expect("whole").into_data().expect("data");
    members.in_term(0, 4);
    // Without a new stream, etcd would have ten seconds.
    let another = tokio::time::timeout(Duration::from_secs(8), streams.recv()).await.expect("sent again");
    let (mut another, frames) = another.expect("another stream");
    assert_eq!(another.frame().await.expect("a request").expect("whole").into_data().expect("data"), asked);
    let told = LeaseKeepAliveResponse { id: 7, ttl: 10, ..LeaseKeepAliveResponse::default() };
    let mut message = vec![0, 0, 0, 0, told.encoded_len() as u8];
    told.encode(&mut message).expect("room");
    frames.send(Ok(Frame::data(message.into()))).await.expect("it is read");
    assert_eq!(answer.await.expect("it ends").expect("an answer"), Some(told));
}

/// A follower would pass it on to a leader that is gone.
#[tokio::test]
async fn a_write_waits_while_no_member_answers_for_the_cluster_and_a_read_does_not() {
    let (called, mut calls) = mpsc::channel(2);
    let server = Server::new(move |request| {
        let called = called.clone();
        async move {
            called.send(request.uri().path().to_owned()).await.expect("the test waits");
            Response::new(full(b"done"))
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let members = forward.shared.members.clone();
    members.answered(0);
    members.broken(0);
    let put = tokio::spawn({
        let forward = forward.clone();
        async move { forward.call(request("/etcdserverpb.KV/Put", Body::empty())).await }
    });
    forward.call(request("/etcdserverpb.KV/Range", Body::empty())).await;
    assert_eq!(calls.recv().await.expect("a call"), "/etcdserverpb.KV/Range");
    assert!(calls.try_recv().is_err(), "the write waits");
    members.answered(0);
    assert_eq!(calls.recv().await.expect("a call"), "/etcdserverpb.KV/Put");
    assert_eq!(put.await.expect("it ends").status(), 200);
}

/// It may have been the leader's, and then the next write would be passed on to a leader that is gone.
#[tokio::test]
async fn a_connection_that_breaks_or_cannot_be_made_puts_in_question_whether_the_cluster_can_agree() {
    let (came, mut arrived) = mpsc::channel(1);
    let server = Server::new(move |_| {
        let came = came.clone();
        async move {
            came.send(()).await.expect("the test waits");
            pending().await
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let members = forward.shared.members.clone();
    members.answered(0);
    let mut put = pin!(forward.call(request("/etcdserverpb.KV/Put", Body::empty())));
    tokio::select! {
        _ = &mut put => panic!("nobody answered"),
        came = arrived.recv() => assert!(came.is_some()),
    }
    assert!(!members.is_in_question());
    server.task.abort();
    assert_ne!(status_of(put.await.headers()).code(), tonic::Code::Ok);
    assert!(members.is_in_question(), "the connection broke");
    members.answered(0);
    let read = forward.call(request("/etcdserverpb.KV/Range", Body::empty())).await;
    assert_eq!(status_of(read.headers()).code(), tonic::Code::Unavailable);
    assert!(members.is_in_question(), "no connection can be made");
}

#[tokio::test]
async fn a_member_that_was_restarted_is_reached_by_the_next_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = endpoint(listener.local_addr().expect("an address"));
    let forward = forward(&[&endpoint], &CancellationToken::new());
    for round in 0..5 {
        let serve = async {
            let (stream, _) = listener.accept().await.expect("a connection");
            let service = service_fn(|_| async { Ok::<_, Infallible>(Response::new(full(b"done"))) });
            let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
            let _ = connection.await;
        };
        let call = async {
            let response = forward.call(request("/etcdserverpb.KV/Put", Body::empty())).await;
            let answer = response.into_body().collect().await.expect("an answer").to_bytes();
            assert_eq!(&answer[..], b"done", "round {round}");
        };
        // The end of the call closes the connection on the server's side.
        tokio::select! {
            biased;
            () = serve => panic!("round {round}: the connection ended first"),
            () = call => {}
        }
        // A call that is sent before the end is noticed may have been seen, and is not sent again.
        while !forward.shared.link(0).calls.busy().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_member_that_dies_in_the_middle_is_unavailable_and_comes_back_on_its_own() {
    let (started, mut starts) = mpsc::channel(1);
    let server = Server::new(move |_| {
        let started = started.clone();
        async move {
            let (sender, body) = fed();
            sender.send(Ok(Frame::data(Bytes::from_static(b"first")))).await.expect("room");
            started.send(sender).await.expect("the test waits");
            Response::new(body)
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let mut answer = forward.call(request("/etcdserverpb.Maintenance/Snapshot", Body::empty())).await.into_body();
    let _open = starts.recv().await.expect("a call");
    assert_eq!(
        answer.frame().await.expect("a frame").expect("data").into_data().ok(),
        Some(Bytes::from_static(b"first"))
    );
    server.task.abort();
    let last = answer.frame().await.expect("a frame").expect("no reset").into_trailers().expect("trailers");
    assert_eq!(status_of(&last).code(), tonic::Code::Unavailable);
    assert!(answer.frame().await.is_none());
}

#[tokio::test]
async fn a_reset_by_upstream_reaches_the_client_as_a_reset() {
    let (started, mut starts) = mpsc::channel(1);
    let server = Server::new(move |_| {
        let started = started.clone();
        async move {
            let (sender, body) = fed();
            started.send(sender).await.expect("the test waits");
            Response::new(body)
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let mut answer = forward.call(request("/etcdserverpb.Maintenance/Snapshot", Body::empty())).await.into_body();
    let sender = starts.recv().await.expect("a call");
    sender.send(Err(h2::Reason::ENHANCE_YOUR_CALM.into())).await.expect("the relay reads");
    let error = answer.frame().await.expect("a frame").expect_err("a reset");
    assert_eq!(error.code(), tonic::Code::ResourceExhausted, "{error}");
}

#[tokio::test]
async fn a_reset_before_the_answer_is_a_status() {
    let server = Server::new(|_| async move {
        let (sender, body) = fed();
        sender.send(Err(h2::Reason::ENHANCE_YOUR_CALM.into())).await.expect("room");
        Response::new(body)
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let response = forward.call(request("/etcdserverpb.KV/Put", Body::empty())).await;
    let status = status_of(response.headers());
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
    assert!(status.message().contains(&server.endpoint.to_string()), "{status}");
}

#[tokio::test]
async fn a_reset_at_the_end_of_the_clients_time_is_no_cancellation_and_no_fault_of_the_member() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let server = Server::new(move |request: Request<Incoming>| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            // As etcd does it, unless the handler of the call is faster.
            tokio::time::sleep(method::timeout_in(request.headers()).expect("a timeout")).await;
            let (sender, body) = fed();
            sender.send(Err(h2::Reason::CANCEL.into())).await.expect("room");
            Response::new(body)
        }
    })
    .await;
    let forward = forward(&[&server.endpoint, &server.endpoint], &CancellationToken::new());
    for path in ["/etcdserverpb.Maintenance/Snapshot", "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"] {
        let mut request = request(path, Body::empty());
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("20m"));
        let status = status_of(forward.call(request).await.headers());
        assert_eq!(
            (status.code(), status.message()),
            (tonic::Code::DeadlineExceeded, "context deadline exceeded"),
            "{path}"
        );
    }
    assert_eq!(calls.load(Ordering::Relaxed), 3, "none is sent again");
}

#[tokio::test]
async fn when_the_relay_stops_endless_calls_end_in_etcds_words_and_others_finish() {
    let (started, mut starts) = mpsc::channel(2);
    let server = Server::new(move |_| {
        let started = started.clone();
        async move {
            let (sender, body) = fed();
            started.send(sender).await.expect("the test waits");
            Response::new(body)
        }
    })
    .await;
    let drain = CancellationToken::new();
    let forward = forward(&[&server.endpoint], &drain);
    let mut watch = forward.call(request("/etcdserverpb.Watch/Watch", Body::empty())).await.into_body();
    let _watch_sender = starts.recv().await.expect("a watch");
    let mut put = forward.call(request("/etcdserverpb.KV/Put", Body::empty())).await.into_body();
    let put_sender = starts.recv().await.expect("a put");
    drain.cancel();
    let last = watch.frame().await.expect("a frame").expect("no reset").into_trailers().expect("trailers");
    assert_eq!(status_of(&last).message(), "etcdserver: server stopped");
    put_sender.send(Ok(Frame::trailers(trailers("0")))).await.expect("the relay reads");
    let last = put.frame().await.expect("a frame").expect("no reset").into_trailers().expect("trailers");
    assert_eq!(status_of(&last).code(), tonic::Code::Ok);
}

#[tokio::test]
async fn when_its_connection_is_asked_to_leave_an_endless_call_ends_in_etcds_words() {
    let (started, mut starts) = mpsc::channel(1);
    let server = Server::new(move |_| {
        let started = started.clone();
        async move {
            let (sender, body) = fed();
            started.send(sender).await.expect("the test waits");
            Response::new(body)
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let leave = CancellationToken::new();
    let mut observe = request("/v3electionpb.Election/Observe", Body::empty());
    Arc::new(Caller { client: ClientKey::new(1), leave: Some(leave.clone()) }).mark(observe.extensions_mut());
    let mut observe = forward.call(observe).await.into_body();
    let _sender = starts.recv().await.expect("a call");
    leave.cancel();
    let last = observe.frame().await.expect("a frame").expect("no reset").into_trailers().expect("trailers");
    assert_eq!(status_of(&last).message(), "etcdserver: server stopped");
}

/// What is done about a call that is overdue must neither repeat it nor drop its answer.
#[tokio::test]
async fn a_write_that_is_answered_after_it_was_overdue_was_sent_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let (started, mut starts) = mpsc::channel(1);
    let server = Server::new({
        let calls = calls.clone();
        move |_| {
            let (calls, started) = (calls.clone(), started.clone());
            async move {
                calls.fetch_add(1, Ordering::Relaxed);
                let (answer, asked) = tokio::sync::oneshot::channel::<()>();
                started.send(answer).await.expect("the test waits");
                // The test answers by letting go of it.
                let _ = asked.await;
                Response::new(full(b"done"))
            }
        }
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let mut put = pin!(forward.call(request("/etcdserverpb.KV/Put", Body::empty())));
    let answer = tokio::select! {
        answer = starts.recv() => answer.expect("a call"),
        _ = &mut put => panic!("it is not answered yet"),
    };
    tokio::select! {
        _ = &mut put => panic!("it is not answered yet"),
        () = forward.shared.overdue.wait() => {}
    }
    drop(answer);
    assert_eq!(&put.await.into_body().collect().await.expect("an answer").to_bytes()[..], b"done");
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn streams_that_nobody_reads_do_not_hold_up_calls_or_other_streams() {
    const PIECE: &[u8] = &[7; 64 << 10];
    let server = Server::new(|request: Request<Incoming>| async move {
        if request.uri().path().ends_with("/Put") {
            return Response::new(full(b"done"));
        }
        let (sender, body) = fed();
        tokio::spawn(async move { while sender.send(Ok(Frame::data(Bytes::from_static(PIECE)))).await.is_ok() {} });
        Response::new(body)
    })
    .await;
    let forward = forward(&[&server.endpoint], &CancellationToken::new());
    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(forward.call(request("/etcdserverpb.Maintenance/Snapshot", Body::empty())).await);
    }
    let done = forward.call(request("/etcdserverpb.KV/Put", Body::empty())).await;
    assert_eq!(&done.into_body().collect().await.expect("an answer").to_bytes()[..], b"done");
    let mut read = forward.call(request("/etcdserverpb.Maintenance/Snapshot", Body::empty())).await.into_body();
    let mut got = 0;
    while got < 4 << 20 {
        got += read.frame().await.expect("a frame").expect("data").into_data().expect("data").len();
    }
}

/// Each call that is under way has such a future, and it is copied when it is put into its box.
#[tokio::test]
async fn a_call_that_is_forwarded_has_room_for_each_of_its_parts_once() {
    let forward = forward(&[], &CancellationToken::new());
    let request = request("/etcdserverpb.KV/Put", Body::empty());
    let size = size_of_val(&*forward.answer(request));
    assert!(size <= 2_000, "{size} bytes");
}
