//! Shared code of the tests, which connect to h2's client or send handmade frames.

mod calling;
mod ending;
mod faults;
mod held;
mod queued;
pub(crate) mod sockets;
mod turns;
mod windows;

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, join_all};
use h2::Reason;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use parking_lot::Mutex;
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use super::{
    frame::{self, HEAD, Head, Kind},
    *,
};

type Answer = Response<UnsyncBoxBody<Bytes, Failure>>;
/// A frame to send: kind, flags, stream, payload.
type Sent = (u8, u8, u32, &'static [u8]);
type Call = (Request<Body>, tokio::sync::oneshot::Sender<Answer>);

const LIMITS: Limits = Limits {
    max_streams: 100,
    max_header_list: 16 << 10,
    stream_window: 64 << 10,
    connection_window: 256 << 10,
    unanswered: 1 << 20,
    keepalive: None,
};

/// A connection whose requests the test answers.
struct Served {
    client: DuplexStream,
    calls: mpsc::Receiver<Call>,
    stop: CancellationToken,
    abort: CancellationToken,
    task: JoinHandle<Result<(), Ended>>,
    /// Number of handlers that are not finished.
    open: Arc<AtomicUsize>,
    /// The limits because of which requests were refused.
    refused: Arc<Mutex<Vec<Refused>>>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(limits: Limits) -> Served {
    // Smaller than most messages, so that both sides meet a full socket.
    let (client, io) = tokio::io::duplex(10_000);
    let (ask, calls) = mpsc::channel(LIMITS.max_streams as usize);
    let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    let service = move |request: Request<Body>| -> BoxFuture<'static, Result<Answer, Failure>> {
        count.fetch_add(1, Ordering::SeqCst);
        let open = Open(count.clone());
        let (answer, answered) = tokio::sync::oneshot::channel();
        let _ = ask.try_send((request, answer));
        Box::pin(async move {
            let answer = answered.await;
            drop(open);
            answer.map_err(Into::into)
        })
    };
    let told = |token: &CancellationToken| Box::pin(token.clone().cancelled_owned());
    let refused: Arc<Mutex<Vec<_>>> = Arc::default();
    let refusals = refused.clone();
    let connection = Connection::new(io, service, limits, told(&stop), told(&abort));
    let task = tokio::spawn(connection.on_refusal(move |bound| refusals.lock().push(bound)));
    Served { client, calls, stop, abort, task, open, refused }
}

/// Answers with the request's own body.
fn echo((request, answer): Call) {
    let body = request.into_body().map_err(Into::into).boxed_unsync();
    let _ = answer.send(Response::new(body));
}

/// Serves echoes. Returns the client's end, and the token that ends the task.
fn echoing(limits: Limits) -> (DuplexStream, CancellationToken) {
    let Served { client, mut calls, abort, .. } = serve(limits);
    tokio::spawn(async move {
        while let Some(calls) = calls.recv().await {
            echo(calls);
        }
    });
    (client, abort)
}

fn bytes(text: &'static str) -> UnsyncBoxBody<Bytes, Failure> {
    http_body_util::Full::new(Bytes::from_static(text.as_bytes()))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// An endless body that counts how often it was polled.
struct Endless(Arc<AtomicUsize>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 1000])))))
    }
}

/// A client that sends bare frames.
struct Raw {
    io: DuplexStream,
    read: BytesMut,
}

/// A received frame.
#[derive(Debug)]
struct Got {
    kind: Kind,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Got {
    /// The last number in RST_STREAM and GOAWAY, or the only one in WINDOW_UPDATE.
    fn reason(&self) -> Reason {
        let last = self.payload.last_chunk().copied().expect("a number");
        u32::from_be_bytes(last).into()
    }
}

impl Raw {
    /// Sends what each client sends first.
    async fn greet(io: DuplexStream) -> Self {
        let mut raw = Self { io, read: BytesMut::new() };
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.frame(4, 0, 0, &[]).await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        // The server may have closed the connection.
        let _ = self.io.write_all(bytes).await;
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut out = Vec::new();
        frame::put_head(&mut out, payload.len(), kind, flags, stream);
        out.extend_from_slice(payload);
        self.send(&out).await;
    }

    /// Sends HEADERS of a POST, which end the request if `end` is set.
    async fn post(&mut self, stream: u32, end: bool) {
        self.frame(1, 4 | u8::from(end), stream, POST).await;
    }

    async fn next(&mut self) -> Option<Got> {
        loop {
            if let Some(head) = Head::read(&self.read)
                && self.read.len() >= HEAD + head.len
            {
                let payload = self.read.split_to(HEAD + head.len)[HEAD..].to_vec();
                return Some(Got { kind: head.kind, flags: head.flags, stream: head.stream, payload });
            }
            let read = tokio::time::timeout(Duration::from_secs(20), self.io.read_buf(&mut self.read));
            if !matches!(read.await.expect("something comes"), Ok(1..)) {
                return None;
            }
        }
    }

    /// The next frame of this kind. Other frames are skipped.
    async fn until(&mut self, kind: Kind) -> Got {
        loop {
            let got = self.next().await.unwrap_or_else(|| panic!("closed before {kind:?}"));
            if got.kind == kind {
                return got;
            }
        }
    }
}

/// `:method POST`, `:scheme http`, `:path /`.
const POST: &[u8] = &[0x83, 0x86, 0x84];
const END: u8 = frame::END_STREAM;

type Unanswered = BoxFuture<'static, Result<Answer, Failure>>;

/// A connection that the test polls itself, and whose requests nobody answers.
fn by_hand<T>(io: T, limits: Limits) -> impl Future<Output = Result<(), Ended>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let service = |_: Request<Body>| -> Unanswered { Box::pin(std::future::pending()) };
    Connection::new(io, service, limits, std::future::pending(), std::future::pending())
}
