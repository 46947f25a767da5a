//! Connections whose clients take everything at once, on one thread.

use std::{
    convert::Infallible,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    task::Waker,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::service::{Service, service_fn};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::{
    front::{
        body::RequestBody,
        listen::{Lasting, PortConfig, Server, Stop},
    },
    http2::TurnWait,
    telemetry::names,
};

type Pieces = UnsyncBoxBody<Bytes, Infallible>;

/// Bytes in each piece of an answer.
const PIECE: usize = 16 << 10;
/// Most bytes of a turn.
const TURN: usize = Limits::OUTPUT + Limits::ANSWER;
/// Bytes of an answer.
const ANSWER: usize = 100 * TURN + PIECE;
/// Ends the part of a request that a client sends at once. It sends the rest when it has received something.
const LATER: u8 = b'|';

/// A client that takes everything at once, and counts it.
struct Eager {
    request: &'static [u8],
    taken: Arc<AtomicUsize>,
    reader: Option<Waker>,
}

impl AsyncRead for Eager {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let request = self.request;
        let part = request.iter().position(|byte| *byte == LATER).unwrap_or(request.len());
        if part == 0 {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let (now, later) = request.split_at(part.min(buf.remaining()));
        buf.put_slice(now);
        self.request = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Eager {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = bufs.iter().map(|buf| buf.len()).sum();
        self.taken.fetch_add(count, Ordering::Relaxed);
        if let Some(rest) = self.request.strip_prefix(&[LATER]) {
            self.request = rest;
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A server whose answers are [`ANSWER`] bytes, all of them ready. Their paths say how they differ: those of `/lasting`
/// are [`Lasting`], those to `/whole` a single piece, and those to `/short` are only one piece long.
fn server(
    queue: Option<TurnQueue>,
) -> (
    Server<impl Service<Request<RequestBody>, Response = Response<Pieces>, Error = Infallible, Future: Send> + Clone>,
    Stop,
) {
    let service = service_fn(|request: Request<RequestBody>| async move {
        let path = request.uri().path();
        let bytes = |count| Bytes::from(vec![b'x'; count]);
        let body = match path {
            "/short" | "/lasting/short" => Full::new(bytes(PIECE)).boxed_unsync(),
            "/whole" | "/lasting/whole" => Full::new(bytes(ANSWER)).boxed_unsync(),
            _ => {
                let pieces = std::iter::repeat_n(bytes(PIECE), ANSWER / PIECE).map(|piece| Ok(Frame::data(piece)));
                StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()
            }
        };
        let mut response = Response::new(body);
        if path.starts_with("/lasting") {
            response.extensions_mut().insert(Lasting);
        }
        Ok::<_, Infallible>(response)
    });
    let config = PortConfig { turns: queue, ..PortConfig::new(names::Port::Http, addr(1)) };
    let stop = Stop::default();
    (Server::new(service, config, Arc::default(), stop.clone()), stop)
}

/// The same, and how clients connect.
fn port(queue: Option<TurnQueue>) -> (impl Fn(&'static str, u8) -> Arc<AtomicUsize>, Stop) {
    let (server, stop) = server(queue);
    let connect = move |request, last| {
        let (client, taken) = eager(request);
        server.serve(client, addr(last)).expect("room");
        taken
    };
    (connect, stop)
}

fn eager(request: &'static str) -> (Eager, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    (Eager { request: request.as_bytes(), taken: taken.clone(), reader: None }, taken)
}

fn addr(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, last]), 7)
}

/// A queue of one thread, and how many connections have joined and left it.
fn queue() -> (TurnQueue, [Arc<AtomicUsize>; 2]) {
    let counts = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    let [joined, left] = counts.clone();
    let queue = TurnQueue::new(1, move |wait| {
        let count = if wait == TurnWait::Began { &joined } else { &left };
        count.fetch_add(1, Ordering::Relaxed);
    });
    (queue, counts)
}

/// Lets each task that is ready run once. During `yield_now`, or while a test's own future waits, tasks may run up to
/// 61 times.
async fn others_run() {
    let mut is_behind = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

const SHORT: &str = "GET /short HTTP/1.1\r\nhost: x\r\n\r\n";
const LONG: [&str; 4] = [
    "GET /pieces HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /lasting/pieces HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /whole HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /lasting/whole HTTP/1.1\r\nhost: x\r\n\r\n",
];

#[tokio::test]
async fn the_first_turn_of_each_connection_and_of_a_lasting_answer_comes_in_the_order_of_the_queue() {
    for request in [SHORT, "GET /lasting/short HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let (queue, [joined, left]) = queue();
        let (connect, _stop) = port(Some(queue));
        let all: Vec<_> = (2..7).map(|last| connect(request, last)).collect();
        while all.iter().any(|taken| taken.load(Ordering::Relaxed) < PIECE) {
            tokio::task::yield_now().await;
        }
        let (joined, left) = (joined.load(Ordering::Relaxed), left.load(Ordering::Relaxed));
        assert_eq!(joined, left);
        // One of them finds the place free.
        assert!(if request == SHORT { joined == 4 } else { joined > 4 }, "{request}: {joined}");
    }
}

#[tokio::test]
async fn a_request_that_waits_for_its_turn_when_its_connection_is_asked_to_leave_is_answered() {
    let (queue, [joined, _]) = queue();
    let (server, _stop) = server(Some(queue.clone()));
    let place = queue.turn(ClientKey::from(addr(2).ip())).await;
    let (client, taken) = eager(SHORT);
    server.serve(client, addr(3)).expect("room");
    while joined.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let finished = tokio::spawn(server.finish());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(taken.load(Ordering::Relaxed), 0, "its turn has not come");
    drop(place);
    tokio::time::timeout(Duration::from_secs(20), finished).await.expect("it leaves").expect("no panic");
    assert!(taken.load(Ordering::Relaxed) > PIECE, "it was not answered");
}

#[tokio::test]
async fn a_request_that_is_read_before_the_answer_to_the_one_before_is_written_is_answered() {
    let (connect, _stop) = port(Some(queue().0));
    // hyper reads the second request while the answer to the first one waits for its turn.
    let taken = connect(
        "POST /whole HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n|1GET /short HTTP/1.1\r\nhost: x\r\n\r\n",
        2,
    );
    let both = async {
        while taken.load(Ordering::Relaxed) <= ANSWER + PIECE {
            tokio::task::yield_now().await;
        }
    };
    let both = tokio::time::timeout(Duration::from_secs(20), both).await;
    both.unwrap_or_else(|_| panic!("only {} bytes", taken.load(Ordering::Relaxed)));
}

#[tokio::test]
async fn a_long_answer_is_written_in_turns_between_which_other_tasks_run() {
    tokio::spawn(a_long_answer_has_turns()).await.expect("no panic");
}

async fn a_long_answer_has_turns() {
    for queue in [None, Some(queue().0)] {
        for request in LONG {
            let (connect, _stop) = port(queue.clone());
            let taken = connect(request, 2);
            let (mut before, mut steps) = (0, 0);
            while before < ANSWER {
                others_run().await;
                let now = taken.load(Ordering::Relaxed);
                assert!(now - before <= TURN, "{request}: {} bytes at once", now - before);
                steps += 1;
                // A turn may come after 61 others have run.
                assert!(steps < 100_000, "{request}: stopped after {now} bytes");
                before = now;
            }
        }
    }
}

#[tokio::test]
async fn connections_with_long_answers_have_turns_one_after_the_other_and_make_way_when_they_are_cut_off() {
    tokio::spawn(connections_make_way()).await.expect("no panic");
}

async fn connections_make_way() {
    for request in LONG {
        let (queue, [joined, left]) = queue();
        let (connect, stop) = port(Some(queue));
        let all: Vec<_> = (2..7).map(|last| connect(request, last)).collect();
        let taken = || all.iter().map(|taken| taken.load(Ordering::Relaxed));
        while taken().sum::<usize>() < ANSWER {
            others_run().await;
            let (least, most) = (taken().min().expect("some"), taken().max().expect("some"));
            // In the queue a client has a place after at most two of each other client.
            assert!(most <= 2 * (least + TURN), "{request}: {most} and {least} bytes");
        }
        assert!(joined.load(Ordering::Relaxed) > left.load(Ordering::Relaxed), "{request}: nobody waits");
        stop.abort.cancel();
        let mut steps = 0;
        while joined.load(Ordering::Relaxed) > left.load(Ordering::Relaxed) {
            others_run().await;
            steps += 1;
            assert!(steps < 1_000, "{request}: cut off connections wait");
        }
    }
}
