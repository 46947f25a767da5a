//! Connections whose clients take everything at once, on one thread.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::service::service_fn;
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

/// Bytes in each piece of an answer.
const PIECE: usize = 16 << 10;
/// Most bytes of a turn: hyper may have this much more in its buffer when the last write of a turn begins.
const TURN: usize = 2 * Limits::OUTPUT;
/// Turns in which an answer of a test is over, if each is short.
const TURNS: usize = 100;

/// A client that asks for `/lasting` or something else, takes everything at once, and counts it.
struct Eager {
    request: &'static [u8],
    taken: Arc<AtomicUsize>,
}

impl AsyncRead for Eager {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.request.is_empty() {
            return Poll::Pending;
        }
        let (now, later) = self.request.split_at(self.request.len().min(buf.remaining()));
        buf.put_slice(now);
        self.request = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Eager {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.taken.fetch_add(buf.len(), Ordering::Relaxed);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A port whose answers have `TURNS * TURN` bytes, all of them ready. Those to `/lasting` are [`Lasting`]; those to
/// `/short` have a single piece.
fn port(queue: Option<TurnQueue>) -> (impl Fn(&'static str, u8) -> Arc<AtomicUsize>, Stop) {
    let service = service_fn(|request: Request<RequestBody>| async move {
        let piece = Bytes::from_static(&[b'x'; PIECE]);
        let pieces = if request.uri().path() == "/short" { 1 } else { TURNS * TURN / PIECE };
        let pieces = (0..pieces).map(move |_| Ok::<_, Infallible>(Frame::data(piece.clone())));
        let mut response = Response::new(StreamBody::new(futures_util::stream::iter(pieces)));
        if request.uri().path() == "/lasting" {
            response.extensions_mut().insert(Lasting);
        }
        Ok::<_, Infallible>(response)
    });
    let addr = |last| SocketAddr::new(IpAddr::from([127, 0, 0, last]), 7);
    let config = PortConfig { turns: queue, ..PortConfig::new(names::Port::Http, addr(1)) };
    let stop = Stop::default();
    let server = Server::new(service, config, Arc::default(), stop.clone());
    let connect = move |request: &'static str, last| {
        let taken = Arc::new(AtomicUsize::new(0));
        let client = Eager { request: request.as_bytes(), taken: taken.clone() };
        server.serve(client, addr(last)).expect("room");
        taken
    };
    (connect, stop)
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

const REQUESTS: [&str; 2] = ["GET /list HTTP/1.1\r\nhost: x\r\n\r\n", "GET /lasting HTTP/1.1\r\nhost: x\r\n\r\n"];

#[tokio::test]
async fn the_first_turn_of_each_connection_comes_in_the_order_of_the_queue() {
    let (queue, [joined, left]) = queue();
    let (connect, _stop) = port(Some(queue));
    let all: Vec<_> = (2..7).map(|last| connect("GET /short HTTP/1.1\r\nhost: x\r\n\r\n", last)).collect();
    while all.iter().any(|taken| taken.load(Ordering::Relaxed) < PIECE) {
        tokio::task::yield_now().await;
    }
    // The first one finds the place free.
    assert_eq!([joined, left].map(|count| count.load(Ordering::Relaxed)), [4, 4]);
}

#[tokio::test]
async fn a_long_answer_is_written_in_turns_between_which_other_tasks_run() {
    tokio::spawn(a_long_answer_has_turns()).await.expect("no panic");
}

async fn a_long_answer_has_turns() {
    for queue in [None, Some(queue().0)] {
        for request in REQUESTS {
            let (connect, _stop) = port(queue.clone());
            let taken = connect(request, 2);
            let (mut before, mut steps) = (0, 0);
            while before < TURNS * TURN {
                others_run().await;
                let now = taken.load(Ordering::Relaxed);
                assert!(now - before <= TURN, "{request}: {} bytes at once", now - before);
                steps += 1;
                // A turn may come after 61 others have run.
                assert!(steps < 300 * TURNS, "{request}: stopped after {now} bytes");
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
    for request in REQUESTS {
        let (queue, [joined, left]) = queue();
        let (connect, stop) = port(Some(queue));
        let all: Vec<_> = (2..7).map(|last| connect(request, last)).collect();
        let taken = || all.iter().map(|taken| taken.load(Ordering::Relaxed));
        while taken().sum::<usize>() < TURNS * TURN {
            others_run().await;
            let (least, most) = (taken().min().expect("some"), taken().max().expect("some"));
            assert!(most - least <= 2 * TURN, "{request}: {most} and {least} bytes");
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
