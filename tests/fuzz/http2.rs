//! A client of any kind on a connection of the HTTP/2 server: random bytes, or frames with decodable fields.
//!
//! The handlers are trivial. Checks that the connection does not panic or spin, that it ends when told to and when its
//! client is gone, and that an error of the protocol is reported with GOAWAY. The number of open requests must stay
//! within its limit and be zero at the end, and memory is bounded. The exact answer to each error is checked in
//! `src/http2/tests` and by h2spec.

use std::{
    convert::Infallible,
    future::pending,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use etcd_relay::http2::{Body, Connection, Ended, Failure, Keepalive, Limits};
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Runtime,
};
use tokio_util::sync::CancellationToken;

use crate::{draw::Draw, engine::within};

const LIMITS: Limits = Limits {
    max_streams: 20,
    max_header_list: 4 << 10,
    stream_window: 16 << 10,
    connection_window: 64 << 10,
    unanswered: 128 << 10,
    keepalive: Some(Keepalive::DEFAULT),
};
/// Most memory of a connection: twice what it may keep of requests, because it allocates ahead, plus what waits for the
/// socket and the bodies of its answers. An input itself has some KiB.
const MOST: usize = 2 * (LIMITS.unanswered + LIMITS.connection_window as usize) + 6 * Limits::OUTPUT + (256 << 10);
/// Bytes under way in each direction.
const SOCKET: usize = 3_000;
/// Longer than any timeout of the server. The clock is simulated.
const LONG: Duration = Duration::from_secs(600);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

type Answer = Response<UnsyncBoxBody<Bytes, Failure>>;

/// See the module.
pub(crate) struct Target {
    runtime: Runtime,
}

impl Target {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        Self { runtime: runtime.expect("a runtime") }
    }

    pub(crate) fn run(&self, input: &[u8]) {
        let mut draw = Draw(input);
        let terms = draw.byte();
        let sent = if terms & 1 == 0 { frames(&mut draw) } else { raw(&mut draw) };
        let most = MOST + 4 * sent.len();
        within(most, || self.runtime.block_on(converse(terms, &sent)));
    }
}

/// Any bytes, usually after the preface.
fn raw(draw: &mut Draw<'_>) -> Vec<u8> {
    let preface: &[u8] = if draw.seldom() { &[] } else { PREFACE };
    let settings: &[u8] = if draw.seldom() { &[] } else { &[0, 0, 0, 4, 0, 0, 0, 0, 0] };
    [preface, settings, draw.0].concat()
}

/// Frames of a client that mostly follows the protocol.
fn frames(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    frame(&mut out, 4, 0, 0, &settings(draw));
    let mut next = 1;
    while !draw.is_done() && out.len() < 200_000 {
        // Usually an open stream.
        let stream = if draw.seldom() { draw.number() } else { (u32::from(draw.byte()) * 2 + 1) % next.max(2) };
        match draw.byte() % 16 {
            0..5 => {
                headers(draw, &mut out, next);
                next += 2;
            }
            5..8 => {
                let data = vec![b'd'; usize::from(draw.of(&[0_u16, 1, 100, 1_000, 5_000, 16_384, 16_385]))];
                frame(&mut out, 0, draw.byte() & 1, stream, &data);
            }
            8 => frame(&mut out, 0, 9, stream, &[draw.byte(), 1, 2, 3, 0, 0]),
            9 => frame(&mut out, 3, 0, stream, &draw.number().to_be_bytes()),
            10 => frame(&mut out, 4, 0, 0, &settings(draw)),
            11 => frame(&mut out, 6, draw.of(&[0, 0, 1]), 0, b"in a row"),
            12 => {
                let step = draw.of(&[1, 100, 65_535, 1 << 20, 0x7fff_ffff, 0]);
                frame(&mut out, 8, 0, draw.of(&[0, stream]), &u32::to_be_bytes(step));
            }
            13 => frame(&mut out, 2, 0, stream, &[0, 0, 0, draw.byte(), 3]),
            // Trailers, or a second head.
            14 => {
                let block = [&[0][..], &string(b"trailer"), &string(draw.some())].concat();
                frame(&mut out, 1, 5, stream, &block);
            }
            _ if draw.seldom() => frame(&mut out, 7, 0, 0, &[0; 8]),
            _ => frame(&mut out, draw.byte() % 12, draw.byte(), draw.of(&[0, stream]), draw.some()),
        }
    }
    out
}

fn settings(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..draw.byte() % 4 {
        let (id, value) = (draw.of(&[1_u16, 3, 4, 4, 5, 6, 99]), draw.of(&[0, 1, 100, 4_096, 65_535, 16_384, 1 << 24]));
        // A client that forbids pushes, and allowed frame sizes.
        let value = if id == 5 && !draw.seldom() { 16_384 + value % 1_000_000 } else { value };
        out.extend(id.to_be_bytes());
        out.extend(u32::to_be_bytes(value));
    }
    out
}

/// A request, possibly split into several frames.
fn headers(draw: &mut Draw<'_>, out: &mut Vec<u8>, stream: u32) {
    let mut block = vec![0x83, 0x86];
    // A literal `:path`, added to the table or not.
    block.push(draw.of(&[0x04, 0x44]));
    block.extend(string(draw.of(&PATHS).as_bytes()));
    for _ in 0..draw.byte() % 4 {
        match draw.byte() % 6 {
            0 => block.push(0x80 | draw.byte()),
            1 => block.extend([&[0x40][..], &string(b"kept"), &string(draw.some())].concat()),
            2 => block.extend([&[0x10][..], &string(b"secret"), &string(b"value")].concat()),
            3 => block.extend([&[0][..], &string(b"long"), &string(&[b'x'; 2_000])].concat()),
            4 => block.extend([&[0][..], &string(draw.some()), &string(draw.some())].concat()),
            _ => block.extend([&[0][..], &string(b"content-length"), &string(b"100")].concat()),
        }
    }
    let end = draw.byte() & 1;
    let parts = if draw.seldom() { draw.byte() } else { draw.of(&[0, 0, 0, 1, 2]) };
    let size = block.len() / (usize::from(parts) + 1) + 1;
    let mut chunks = block.chunks(size).peekable();
    let first = chunks.next().unwrap_or_default();
    let ends = !draw.seldom();
    let flags = |last: bool| if last && ends { 4 } else { 0 };
    let last = chunks.peek().is_none();
    if draw.seldom() {
        // With padding and a priority.
        let payload = [&[2, 0, 0, 0, 0, 16][..], first, &[0, 0]].concat();
        frame(out, 1, end | 0x28 | flags(last), stream, &payload);
    } else {
        frame(out, 1, end | flags(last), stream, first);
    }
    while let Some(chunk) = chunks.next() {
        frame(out, 9, flags(chunks.peek().is_none()), stream, chunk);
    }
}

const PATHS: [&str; 8] = ["/echo", "/now", "/never", "/large", "/fails", "/broken", "/trailers", "/reads"];

pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match u8::try_from(bytes.len()) {
        Ok(len) if len < 127 => out.push(len),
        _ => {
            let rest = bytes.len() - 127;
            out.push(127);
            if rest < 128 {
                out.push(rest as u8);
            } else {
                out.extend([rest as u8 | 0x80, (rest >> 7) as u8]);
            }
        }
    }
    out.extend(bytes);
    out
}

pub(crate) fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// What the client does besides sending, by the bits of `terms`.
async fn converse(terms: u8, sent: &[u8]) {
    let (reads, hangs_up, stops) = (terms & 2 == 0, terms & 4 == 0, terms & 8 != 0);
    let (client, io) = tokio::io::duplex(SOCKET);
    let (mut reading, mut writing) = tokio::io::split(client);
    let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
    let open = Arc::new(AtomicUsize::new(0));
    let told = |token: &CancellationToken| Box::pin(token.clone().cancelled_owned());
    let connection = Connection::new(io, handler(open.clone()), LIMITS, told(&stop), told(&abort));
    let polls = Arc::new(AtomicUsize::new(0));
    let task = tokio::spawn(Counted { inner: Box::pin(connection), polls: polls.clone() });

    let send = async {
        let _ = tokio::time::timeout(LONG, writing.write_all(sent)).await;
        if stops {
            stop.cancel();
        }
        if hangs_up {
            let _ = writing.shutdown().await;
        } else {
            pending::<()>().await;
        }
    };
    let mut received = Vec::new();
    let read = async {
        if reads {
            let _ = reading.read_to_end(&mut received).await;
        }
        pending::<()>().await;
    };
    let conversation = async {
        tokio::join!(send, read);
    };
    let _ = tokio::time::timeout(2 * LONG, conversation).await;
    if !hangs_up || !reads {
        // The connection waits for its client to read, or for requests.
        abort.cancel();
    }
    let ended = tokio::time::timeout(LONG, task).await.expect("it ends").expect("it does not panic");
    assert_eq!(open.load(Ordering::SeqCst), 0, "requests are left behind");
    // Each poll has a reason: received bytes, room for bytes, a handler, a timer.
    let polls = polls.load(Ordering::SeqCst);
    assert!(polls < 2_000 + sent.len() + received.len(), "{polls} polls for {} bytes", sent.len());
    if reads {
        told_why(&received, &ended);
    }
}

/// What was received must be whole frames, and the last one must report an error of the protocol.
fn told_why(mut received: &[u8], ended: &Result<(), Ended>) {
    let mut last = None;
    while let Some((head, rest)) = received.split_first_chunk::<9>() {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(len) else { break };
        last = Some((head[3], payload));
        received = rest;
    }
    if let Err(Ended::Protocol(reason)) = ended {
        assert!(received.is_empty(), "{} bytes of a frame that is not whole", received.len());
        let (kind, payload) = last.expect("a frame");
        let told = payload.get(4..8).and_then(|code| code.try_into().ok()).map(u32::from_be_bytes);
        assert_eq!((kind, told), (7, Some(u32::from(*reason))), "GOAWAY tells {reason}");
    }
}

fn handler(open: Arc<AtomicUsize>) -> impl Fn(Request<Body>) -> BoxFuture<'static, Result<Answer, Failure>> {
    move |request| {
        let now = open.fetch_add(1, Ordering::SeqCst);
        assert!(now < LIMITS.max_streams as usize, "{now} requests are open");
        let open = Open(open.clone());
        Box::pin(async move {
            let _open = open;
            let path = request.uri().path().to_owned();
            let full = |bytes: Bytes| Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync();
            let frames =
                |frames: Vec<Result<Frame<Bytes>, Failure>>| StreamBody::new(tokio_stream::iter(frames)).boxed_unsync();
            let data = Frame::data(Bytes::from_static(b"some"));
            let body = match path.as_str() {
                "/echo" => request.into_body().map_err(Into::into).boxed_unsync(),
                "/never" => pending().await,
                "/large" => full(Bytes::from_static(&[7; 100_000])),
                "/fails" => return Err("as the request wants".into()),
                "/broken" => frames(vec![Ok(data), Err("as the request wants".into())]),
                "/trailers" => {
                    let status = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("0"))]);
                    frames(vec![Ok(data), Ok(Frame::trailers(status))])
                }
                "/reads" => full(request.into_body().collect().await?.to_bytes()),
                _ => full(Bytes::from_static(b"now")),
            };
            Ok(Response::new(body))
        })
    }
}

/// A request whose handler has not finished.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts the polls of the connection.
struct Counted<F> {
    inner: Pin<Box<F>>,
    polls: Arc<AtomicUsize>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.fetch_add(1, Ordering::SeqCst);
        self.inner.as_mut().poll(cx)
    }
}
