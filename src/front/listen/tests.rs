//! Tests of a port with clients of all kinds.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::{
    batch::{Batcher, Io},
    critical::Tasks,
    front::body::RequestBody,
    http2::tests::sockets::{Buffering, Delaying},
};

/// A port whose answers name the client, and can be delayed.
struct Served {
    addr: SocketAddr,
    connections: Arc<Connections>,
    stop: Stop,
    task: tokio::task::JoinHandle<()>,
    /// One message per waiting request. Dropping it lets the request continue.
    waiting: mpsc::Receiver<tokio::sync::oneshot::Sender<()>>,
    /// One message per lasting answer, which sends what is sent here.
    streams: mpsc::Receiver<mpsc::Sender<Bytes>>,
}

fn serve(configure: impl FnOnce(&mut PortConfig)) -> Served {
    let mut config = PortConfig::new(names::Port::Http, SocketAddr::from(([127, 0, 0, 1], 0)));
    configure(&mut config);
    let connections = Arc::new(Connections::default());
    let bound = Bound::bind(config, connections.clone()).expect("bound");
    let stop = Stop::default();
    let (wait, waiting) = mpsc::channel(8);
    let (open, streams) = mpsc::channel(8);
    let service = service_fn(move |request: Request<RequestBody>| {
        let (wait, open) = (wait.clone(), open.clone());
        async move { Ok::<_, Infallible>(answer(request, wait, open).await) }
    });
    Served {
        addr: bound.addr(),
        connections,
        stop: stop.clone(),
        task: tokio::spawn(bound.serve(service, stop)),
        waiting,
        streams,
    }
}

/// Length of the answer to `/held`.
const HELD: usize = 32 << 20;

async fn answer(
    request: Request<RequestBody>,
    wait: mpsc::Sender<tokio::sync::oneshot::Sender<()>>,
    open: mpsc::Sender<mpsc::Sender<Bytes>>,
) -> Response<BoxBody<Bytes, Infallible>> {
    match request.uri().path() {
        "/wait" => {
            let (go_on, gone_on) = tokio::sync::oneshot::channel();
            wait.send(go_on).await.expect("the test waits");
            let _ = gone_on.await;
        }
        "/held" => {
            // Answers at once with more than any socket accepts, and frees the body later.
            tokio::spawn(request.into_body().collect());
            let mut response = Response::new(Full::default().boxed());
            let value = HeaderValue::from_bytes(&vec![b'x'; HELD]).expect("a header value");
            response.headers_mut().insert("x-large", value);
            return response;
        }
        path @ ("/lasting" | "/large") => {
            let (send, sent) = mpsc::channel(1);
            open.send(send).await.expect("the test waits");
            let frames = ReceiverStream::new(sent).map(|bytes| Ok(Frame::data(bytes)));
            let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            response.headers_mut().insert("x-etcd-index", HeaderValue::from_static("7"));
            if path == "/lasting" {
                response.extensions_mut().insert(Lasting);
            }
            return response;
        }
        _ => {}
    }
    let ClientAddr(peer) = ClientAddr::of(request.extensions()).expect("the peer's address");
    Response::new(Full::new(Bytes::from(peer.to_string())).boxed())
}

async fn connect(served: &Served) -> TcpStream {
    TcpStream::connect(served.addr).await.expect("connected")
}

/// Reads until the other side closes. The test's timeout limits it.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A connection that is cut off may end with a reset.
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

async fn ask(stream: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
}

#[tokio::test]
async fn both_protocols_on_one_port_with_the_clients_address() {
    let served = serve(|_| {});
    let mut one = connect(&served).await;
    let peer = one.local_addr().expect("an address").to_string();
    ask(&mut one, "/").await;
    assert!(rest(&mut one).await.ends_with(&peer));

    let two = connect(&served).await;
    let peer = two.local_addr().expect("an address").to_string();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(two)).await.expect("HTTP/2");
    let driver = tokio::spawn(connection);
    let request = Request::get(format!("http://{}/", served.addr)).body(Full::<Bytes>::default()).expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    assert!(!response.headers().contains_key("date"), "etcd sends no date over gRPC");
    assert_eq!(response.into_body().collect().await.expect("a body").to_bytes(), peer);
    let listed = served.connections.after(ConnectionId(0), 10);
    assert!(listed.iter().any(|seen| seen.stats().peer == peer), "{listed:?}");
    driver.abort();
}

#[tokio::test]
async fn the_first_requests_of_connections_that_come_at_once_wait_in_the_queue_of_their_port() {
    let (waited, waiting) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (waited.clone(), waiting.clone());
    let queue = http2::TurnQueue::new(1, move |wait| match wait {
        http2::TurnWait::Began => {
            counts.0.fetch_add(1, Ordering::Relaxed);
            counts.1.fetch_add(1, Ordering::Relaxed);
        }
        http2::TurnWait::Ended(_) => {
            counts.1.fetch_sub(1, Ordering::Relaxed);
        }
    });
    let served = serve(|config| config.turns = Some(queue));
    let senders = join_all((0..20).map(|_| async {
        let io = TokioIo::new(connect(&served).await);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
        (sender, tokio::spawn(connection))
    }));
    let answers = senders.await.into_iter().map(|(mut sender, driver)| async move {
        let request = Request::get("http://x/").body(Full::<Bytes>::default()).expect("a request");
        assert!(sender.send_request(request).await.expect("an answer").status().is_success());
        driver.abort();
    });
    join_all(answers).await;
    assert!(waited.load(Ordering::Relaxed) > 0, "none of them has waited");
    assert_eq!(waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_client_that_comes_after_a_hundred_connections_of_another_one_does_not_wait_for_them_all() {
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let served = order.clone();
    let service = service_fn(move |request: Request<RequestBody>| {
        let ClientAddr(peer) = ClientAddr::of(request.extensions()).expect("the peer's address");
        served.lock().push(peer.ip());
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
    });
    let turns = http2::TurnQueue::new(1, |_| ());
    let config =
        PortConfig { turns: Some(turns), ..PortConfig::new(names::Port::Http, SocketAddr::from(([127, 0, 0, 1], 0))) };
    let bound = Bound::bind(config, Arc::default()).expect("bound");
    let (addr, stop) = (bound.addr(), Stop::default());
    let _task = AbortOnDropHandle::new(tokio::spawn(bound.serve(service, stop)));
    let open = async |from: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((from, 0))).expect("an address of this machine");
        let mut stream = socket.connect(addr).await.expect("connected");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
        // Once our settings are here, the connection waits for its first request.
        stream.read_exact(&mut [0; 9]).await.expect("settings");
        stream
    };
    let mut streams = Vec::new();
    for last in [2; 100].into_iter().chain([3]) {
        streams.push(open([127, 0, 0, last]).await);
    }
    for stream in &mut streams {
        // GET, http, and the path /.
        let sent = stream.try_write(b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84").expect("sent");
        assert_eq!(sent, 12);
    }
    let all = async {
        while order.lock().len() < streams.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("all are served");
    let place = order.lock().iter().position(|ip| *ip == std::net::Ipv4Addr::new(127, 0, 0, 3)).expect("it was served");
    assert!(place < 50, "it was served after {place} connections of another client");
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_stay() {
    let served = serve(|config| config.max_connections = NonZeroUsize::MIN);
    let mut first = connect(&served).await;
    // A request is sent, so that this connection is served before the next one arrives.
    first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut answer = [0; 12];
    first.read_exact(&mut answer).await.expect("an answer");
    let mut second = connect(&served).await;
    assert_eq!(rest(&mut second).await, "");
    drop(first);
    while !served.connections.is_empty() {
        tokio::task::yield_now().await;
    }
    let mut third = connect(&served).await;
    ask(&mut third, "/").await;
    assert!(rest(&mut third).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_with_its_largest_number_of_connections_is_refused_one_more_and_no_other_client() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let service =
        service_fn(|_: Request<RequestBody>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let addr = |last| SocketAddr::from(([127, 0, 0, last], 7));
    let config =
        PortConfig { max_connections_per_client: NonZeroUsize::new(2), ..PortConfig::new(names::Port::Http, addr(1)) };
    let stop = Stop::default();
    let connections = Arc::new(Connections::default());
    let server = Server::new(service, config, connections.clone(), stop);
    let (first, second, other) = (tokio::io::duplex(64), tokio::io::duplex(64), tokio::io::duplex(64));
    server.serve(first.0, addr(2)).expect("room");
    server.serve(second.0, addr(2)).expect("room");
    let refused = server.serve(tokio::io::duplex(1).0, addr(2));
    assert_eq!(refused, Err(Refused::Client(addr(2).ip())));
    server.serve(other.0, addr(3)).expect("the places of another client");
    drop(first.1);
    soon("the first connection is closed", async {
        while connections.len() > 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The place is returned shortly after the entry in the list is removed.
    soon("room again", async {
        while server.serve(tokio::io::duplex(1).0, addr(2)).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let counted = recorder.handle().render();
    assert!(counted.contains(r#"turned_away_total{port="http",reason="client"}"#), "{counted}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_or_half_a_word_is_closed() {
    let served = serve(|_| {});
    for first in [&b""[..], b"PRI * HTTP"] {
        let mut stream = connect(&served).await;
        stream.write_all(first).await.expect("sent");
        let begun = tokio::time::Instant::now();
        assert_eq!(rest(&mut stream).await, "");
        assert!(begun.elapsed() >= PortConfig::FIRST_BYTES, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_stop_lets_calls_finish_and_takes_no_new_ones() {
    let mut served = serve(|_| {});
    let mut stream = connect(&served).await;
    ask(&mut stream, "/wait").await;
    let go_on = served.waiting.recv().await.expect("a request");
    let mut idle = connect(&served).await;
    while served.connections.len() < 2 {
        tokio::task::yield_now().await;
    }
    served.stop.accept.cancel();
    assert_eq!(rest(&mut idle).await, "", "a connection without a request is closed at once");
    assert!(!served.task.is_finished());
    drop(go_on);
    assert!(rest(&mut stream).await.starts_with("HTTP/1.1 200"));
    served.task.await.expect("ended");
    assert!(TcpStream::connect(served.addr).await.is_err(), "nobody listens");
}

/// Otherwise a client that knows no other relay is refused for as long as a drain takes.
#[tokio::test]
async fn a_client_that_comes_back_while_others_are_asked_to_leave_is_served() {
    let mut served = serve(|config| config.leave_spread = Duration::from_secs(60));
    // It takes four seconds to ask them.
    let mut first = Vec::new();
    for _ in 0..100 {
        first.push(connect(&served).await);
    }
    while served.connections.len() < first.len() {
        tokio::task::yield_now().await;
    }
    served.stop.leave.cancel();
    let mut back = connect(&served).await;
    ask(&mut back, "/wait").await;
    drop(served.waiting.recv().await.expect("a request"));
    assert!(rest(&mut back).await.starts_with("HTTP/1.1 200"));
    served.stop.abort.cancel();
    served.task.await.expect("ended");
}

#[tokio::test]
async fn a_port_closes_when_all_connections_were_asked_to_leave() {
    let served = serve(|_| {});
    let mut idle = connect(&served).await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    while served.connections.is_empty() {
        tokio::task::yield_now().await;
    }
    served.stop.leave.cancel();
    soon("the port ends", served.task).await.expect("ended");
    rest(&mut idle).await;
    assert!(TcpStream::connect(served.addr).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn an_abort_cuts_off_what_does_not_finish() {
    let mut served = serve(|_| {});
    let mut stream = connect(&served).await;
    ask(&mut stream, "/wait").await;
    let _go_on = served.waiting.recv().await.expect("a request");
    served.stop.accept.cancel();
    served.stop.abort.cancel();
    served.task.await.expect("ended");
    assert_eq!(rest(&mut stream).await, "");
    assert!(served.connections.is_empty());
}

/// The head of a [`Lasting`] answer.
const LASTING_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Etcd-Index: 7\r\n\r\n";

async fn read_exactly(stream: &mut TcpStream, expected: &str) {
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).await.expect("as many bytes");
    assert_eq!(String::from_utf8_lossy(&read), expected);
}

/// Waits with a timeout for something that must happen soon.
async fn soon<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), awaited).await.unwrap_or_else(|_| panic!("{what}"))
}

async fn until_closed(served: &Served) {
    soon("the connection is closed", async {
        while !served.connections.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_lasting_answer_ignores_what_the_client_sends_and_ends_as_it_closes() {
    let mut served = serve(|_| {});
    for reset in [false, true] {
        let mut client = connect(&served).await;
        // The early bytes come with the request, as another request, and as more than any buffer holds.
        client.write_all(b"GET /lasting HTTP/1.1\r\nhost: x\r\n\r\nearly").await.expect("sent");
        let send = served.streams.recv().await.expect("an answer");
        read_exactly(&mut client, LASTING_HEAD).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        soon("everything is read", client.write_all(&vec![b'x'; 16 << 20])).await.expect("sent");
        send.send(Bytes::from_static(b"one")).await.expect("taken");
        send.send(Bytes::from_static(b"two")).await.expect("taken");
        read_exactly(&mut client, "onetwo").await;
        if reset {
            client.set_zero_linger().expect("a reset as it closes");
        }
        drop(client);
        soon("the close is noticed", send.closed()).await;
        until_closed(&served).await;
    }
}

#[tokio::test]
async fn a_lasting_answer_that_ends_closes_the_connection() {
    let mut served = serve(|_| {});
    let mut client = connect(&served).await;
    client.write_all(b"GET /lasting HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let send = served.streams.recv().await.expect("an answer");
    send.send(Bytes::from_static(b"one")).await.expect("taken");
    drop(send);
    assert_eq!(soon("the end", rest(&mut client)).await, format!("{LASTING_HEAD}one"));
    until_closed(&served).await;
}

#[tokio::test]
async fn a_lasting_answer_comes_after_the_answers_to_earlier_requests() {
    let mut served = serve(|_| {});
    let mut client = connect(&served).await;
    let peer = client.local_addr().expect("an address").to_string();
    // The handler does not read the body of the first request.
    let requests = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbodyGET / HTTP/1.1\r\nhost: x\r\n\r\nGET /lasting HTTP/1.1\r\nhost: x\r\n\r\n";
    client.write_all(requests.as_bytes()).await.expect("sent");
    let send = soon("the last request is answered", served.streams.recv()).await.expect("an answer");
    send.send(Bytes::from_static(b"one")).await.expect("taken");
    drop(send);
    let answers = soon("the end", rest(&mut client)).await;
    assert_eq!(answers.matches(&format!("\r\n\r\n{peer}")).count(), 2, "{answers}");
    assert!(answers.ends_with(&format!("{peer}{LASTING_HEAD}one")), "{answers}");
}

#[tokio::test]
async fn a_lasting_answer_waits_until_the_one_before_it_is_written() {
    let mut served = serve(|_| {});
    let mut client = connect(&served).await;
    let requests =
        "POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbodyGET /lasting HTTP/1.1\r\nhost: x\r\n\r\n";
    client.write_all(requests.as_bytes()).await.expect("sent");
    let end = async { drop(served.streams.recv().await.expect("an answer")) };
    let (answers, ()) = soon("the end", async { tokio::join!(rest(&mut client), end) }).await;
    assert!(answers.len() > HELD, "{} bytes", answers.len());
    assert!(answers.ends_with(&format!("\r\n\r\n{LASTING_HEAD}")), "{}", &answers[answers.len() - 200..]);
}

#[tokio::test]
async fn a_lasting_answer_over_http2_is_one_stream_of_many() {
    let mut served = serve(|_| {});
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(connect(&served).await))
            .await
            .expect("HTTP/2");
    let driver = tokio::spawn(connection);
    let request =
        |path| Request::get(format!("http://{}{path}", served.addr)).body(Full::<Bytes>::default()).expect("a request");
    let lasting = sender.send_request(request("/lasting")).await.expect("an answer");
    let send = served.streams.recv().await.expect("an answer");
    let other = sender.send_request(request("/")).await.expect("an answer");
    assert_eq!(other.status(), 200);
    send.send(Bytes::from_static(b"one")).await.expect("taken");
    let mut body = lasting.into_body();
    let frame = body.frame().await.expect("a frame").expect("no error");
    assert_eq!(frame.into_data().expect("data"), "one");
    drop(body);
    soon("the end of the stream is noticed", send.closed()).await;
    assert_eq!(served.connections.len(), 1);
    driver.abort();
}

#[tokio::test]
async fn an_abort_cuts_off_a_lasting_answer() {
    let mut served = serve(|_| {});
    let mut client = connect(&served).await;
    client.write_all(b"GET /lasting HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let send = served.streams.recv().await.expect("an answer");
    read_exactly(&mut client, LASTING_HEAD).await;
    served.stop.accept.cancel();
    served.stop.abort.cancel();
    soon("the port ends", served.task).await.expect("ended");
    assert_eq!(rest(&mut client).await, "");
    assert!(send.is_closed() && served.connections.is_empty());
}

/// Asks for `/large` over HTTP/2. Nobody reads the connection after the head of the answer, but it stays open.
async fn idle_http2(client: TcpStream) -> (Response<h2::RecvStream>, h2::client::Connection<TcpStream>) {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let (mut sender, mut connection) = builder.handshake::<_, Bytes>(client).await.expect("HTTP/2");
    let request = Request::get("http://x/large").body(()).expect("a request");
    let (answer, _) = sender.send_request(request, true).expect("sent");
    let answer = tokio::select! {
        answer = answer => answer.expect("an answer"),
        _ = &mut connection => panic!("closed"),
    };
    (answer, connection)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_bytes_is_closed_and_counted() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let limit = Duration::from_secs(7);
    let mut served = serve(|config| config.write_stall = limit);
    let block = Bytes::from(vec![b'x'; 1 << 20]);
    for path in ["/lasting", "/large", "http2"] {
        let mut client = connect(&served).await;
        let mut http1 = None;
        let mut http2 = None;
        if path == "http2" {
            http2 = Some(idle_http2(client).await);
        } else {
            client.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("sent");
            http1 = Some(client);
        }
        let send = served.streams.recv().await.expect("an answer");
        let mut last = tokio::time::Instant::now();
        soon("the connection is closed", async {
            while send.send(block.clone()).await.is_ok() {
                last = tokio::time::Instant::now();
            }
        })
        .await;
        let stalled = last.elapsed();
        assert!(stalled >= limit && stalled < limit * 2, "{path}: {stalled:?}");
        drop((http1, http2));
    }
    let counted = recorder.handle().render();
    assert!(counted.contains(r#"turned_away_total{port="http",reason="stalled"} 3"#), "{counted}");
}

/// The writes are small and have company, so they leave by io_uring and are not seen to fail when they are made.
#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_bytes_is_closed_when_writes_are_joined() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let Ok(batcher) = Batcher::new(Io::Auto) else { unreachable!("auto does not fail") };
    if let Some(batcher) = &batcher {
        batcher.start(&Tasks::new());
    }
    let joins = batcher.is_some();
    let limit = Duration::from_secs(7);
    let mut served = serve(|config| {
        config.write_stall = limit;
        config.batcher = batcher;
    });
    let block = Bytes::from(vec![b'x'; 1000]);
    for path in ["/lasting", "http2"] {
        let mut reader = connect(&served).await;
        reader.write_all(b"GET /lasting HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let company = served.streams.recv().await.expect("an answer");
        let reading = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
        let mut client = connect(&served).await;
        let mut http1 = None;
        let mut http2 = None;
        if path == "http2" {
            http2 = Some(idle_http2(client).await);
        } else {
            client.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("sent");
            http1 = Some(client);
        }
        let send = served.streams.recv().await.expect("an answer");
        let mut last = tokio::time::Instant::now();
        soon("the connection is closed", async {
            while send.send(block.clone()).await.is_ok() {
                company.send(block.clone()).await.expect("the other client reads");
                last = tokio::time::Instant::now();
            }
        })
        .await;
        let stalled = last.elapsed();
        assert!(stalled >= limit && stalled < limit * 2, "{path}: {stalled:?}");
        company.send(block.clone()).await.expect("the other client is served");
        drop((http1, http2, company));
        reading.await.expect("no panic").expect("it was served to the end");
    }
    let counted = recorder.handle().render();
    assert!(counted.contains(r#"turned_away_total{port="http",reason="stalled"} 2"#), "{counted}");
    let joined = counted
        .lines()
        .any(|line| line.strip_prefix("etcd_relay_batched_sends_total ").is_some_and(|count| count != "0"));
    assert_eq!(joined, joins, "{counted}");
}

#[tokio::test]
async fn what_a_stream_could_not_send_of_a_lasting_answer_leaves_although_nothing_follows() {
    let (data, sent) = mpsc::channel(1);
    let sent = Arc::new(parking_lot::Mutex::new(Some(sent)));
    let service = service_fn(move |_: Request<RequestBody>| {
        let sent = sent.lock().take().expect("one request");
        let frames = ReceiverStream::new(sent).map(|data: Bytes| Ok::<_, Infallible>(Frame::data(data)));
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
        response.extensions_mut().insert(Lasting);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let peer = SocketAddr::from(([127, 0, 0, 1], 7));
    let config = PortConfig::new(names::Port::Http, peer);
    let server = Server::new(service, config, Arc::default(), Stop::default());
    let (mut client, stream) = tokio::io::duplex(64);
    server.serve(Delaying::over(stream), peer).expect("room for one");
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    let mut told = Vec::new();
    for part in ["one", "two"] {
        data.send(Bytes::from(part)).await.expect("the stream is open");
        soon("the data", async {
            while !told.ends_with(part.as_bytes()) {
                client.read_buf(&mut told).await.expect("open");
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_stream_in_memory_that_buffers_is_served_as_a_socket_is() {
    let service = service_fn(|request: Request<RequestBody>| async move {
        let mut response = Response::new(Full::new(Bytes::from_static(b"hello")).boxed());
        if request.uri().path() == "/lasting" {
            response.extensions_mut().insert(Lasting);
        }
        Ok::<_, Infallible>(response)
    });
    let peer = SocketAddr::from(([127, 0, 0, 1], 7));
    let stop = Stop::default();
    let config = PortConfig { max_connections: NonZeroUsize::MIN, ..PortConfig::new(names::Port::Http, peer) };
    let connections = Arc::new(Connections::default());
    let server = Server::new(service, config, connections.clone(), stop.clone());
    for path in ["/", "/lasting", "http2"] {
        let (mut client, stream) = tokio::io::duplex(64);
        server.serve(Buffering::over(stream), peer).expect("room for one");
        let one_more = server.serve(tokio::io::duplex(1).0, peer);
        assert_eq!(one_more, Err(Refused::Limit));
        let told = soon("all of the answer", async {
            if path == "http2" {
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await?;
                let driver = tokio::spawn(connection);
                let request = Request::get("http://x/").body(Full::<Bytes>::default()).expect("a request");
                let body = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
                drop(sender);
                driver.await.expect("no panic")?;
                return hyper::Result::Ok(body.to_vec());
            }
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            client.write_all(request.as_bytes()).await.expect("sent");
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.expect("all of it");
            Ok(told)
        });
        let told = told.await.expect("no error");
        let told = if path == "http2" { &told } else { told.strip_suffix(Buffering::GOODBYE).expect("shut down") };
        assert!(told.ends_with(b"hello"), "{path}: {}", String::from_utf8_lossy(told));
        soon("the connection is closed", async {
            while !connections.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    stop.accept.cancel();
    server.finish().await;
}

/// The kernel's limit decides how many may wait. One more would try again after a second, and again in vain.
#[tokio::test]
async fn clients_that_come_at_once_are_connected_before_any_is_accepted() {
    let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux");
    let clients = limit.trim().parse().map_or(500, |limit: usize| limit.min(500));
    let config = PortConfig::new(names::Port::Http, SocketAddr::from(([127, 0, 0, 1], 0)));
    let bound = Bound::bind(config, Arc::default()).expect("bound");
    let addr = bound.addr();
    let all = join_all((0..clients).map(|_| TcpStream::connect(addr)));
    let all = tokio::time::timeout(Duration::from_secs(30), all).await.expect("each has its place");
    assert!(all.iter().all(Result::is_ok));
}

#[tokio::test]
async fn accepted_connections_are_probed_by_tcp() {
    let config = PortConfig::new(names::Port::Http, SocketAddr::from(([127, 0, 0, 1], 0)));
    let bound = Bound::bind(config, Arc::default()).expect("bound");
    let (_client, accepted) = tokio::join!(TcpStream::connect(bound.addr()), bound.listeners[0].socket.accept());
    let (accepted, _) = accepted.expect("accepted");
    assert!(sockopt::socket_keepalive(&accepted).expect("an option"));
    assert_eq!(sockopt::tcp_keepidle(&accepted).expect("an option"), PortConfig::KEEPALIVE.interval);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let served = serve(|_| {});
    let config = PortConfig::new(names::Port::Grpc, served.addr);
    let error = Bound::bind(config, Arc::default()).expect_err("taken").to_string();
    assert!(error.contains(&served.addr.to_string()) && error.contains("grpc"), "{error}");
}
