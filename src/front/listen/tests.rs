//! A port against clients of all kinds.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::*;

/// A port that says who asks, and can be told to take its time.
struct Served {
    addr: SocketAddr,
    connections: Arc<Connections>,
    stop: Stop,
    task: tokio::task::JoinHandle<()>,
    /// One message for each request that waits; dropped, it may go on.
    waiting: mpsc::Receiver<tokio::sync::oneshot::Sender<()>>,
}

fn serve(configure: impl FnOnce(&mut Config)) -> Served {
    let mut config = Config::new(names::Port::Http, SocketAddr::from(([127, 0, 0, 1], 0)));
    configure(&mut config);
    let connections = Arc::new(Connections::default());
    let bound = Bound::bind(config, connections.clone()).expect("bound");
    let stop = Stop { accept: CancellationToken::new(), abort: CancellationToken::new() };
    let (wait, waiting) = mpsc::channel(8);
    let service = service_fn(move |request: Request<Incoming>| {
        let wait = wait.clone();
        async move {
            if request.uri().path() == "/wait" {
                let (go_on, gone_on) = tokio::sync::oneshot::channel();
                wait.send(go_on).await.expect("the test waits");
                let _ = gone_on.await;
            }
            let ClientAddr(peer) = request.extensions().get().expect("the peer's address");
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(peer.to_string()))))
        }
    });
    Served {
        addr: bound.addr(),
        connections,
        stop: stop.clone(),
        task: tokio::spawn(bound.serve(service, stop)),
        waiting,
    }
}

async fn connect(served: &Served) -> TcpStream {
    TcpStream::connect(served.addr).await.expect("connected")
}

/// Reads until the other side closes, which a test's time bounds.
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
    let listed = served.connections.describe(10, |_| serde_json::Map::new());
    assert!(listed.iter().any(|connection| connection["peer"] == peer), "{listed:?}");
    driver.abort();
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_the_others_stay() {
    let served = serve(|config| config.max_connections = NonZeroUsize::MIN);
    let mut first = connect(&served).await;
    // Something said, so that it is served before the next comes.
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

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_or_half_a_word_is_closed() {
    let served = serve(|_| {});
    for first in [&b""[..], b"PRI * HTTP"] {
        let mut stream = connect(&served).await;
        stream.write_all(first).await.expect("sent");
        let begun = tokio::time::Instant::now();
        assert_eq!(rest(&mut stream).await, "");
        assert!(begun.elapsed() >= Config::FIRST_BYTES, "{:?}", begun.elapsed());
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

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let served = serve(|_| {});
    let config = Config::new(names::Port::Grpc, served.addr);
    let error = Bound::bind(config, Arc::default()).expect_err("taken").to_string();
    assert!(error.contains(&served.addr.to_string()) && error.contains("grpc"), "{error}");
}
