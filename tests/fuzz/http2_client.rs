//! A server of any kind on a connection of the HTTP/2 client: random bytes, or frames with decodable fields.
//!
//! Checks that the connection does not panic or spin, that each call ends with the connection at the latest, that a
//! call whose answer arrived whole has it, and that memory is bounded. The exact answer to each error is checked in
//! `src/http2/tests/calling.rs`.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use etcd_relay::http2::{
    Limits,
    client::{CallHead, Client, ClientLimits, Pings},
};
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Runtime,
};

use crate::{
    draw::Draw,
    engine::within,
    http2::{frame, string},
};

const LIMITS: ClientLimits = ClientLimits {
    stream_window: 16 << 10,
    max_header_list: 4 << 10,
    keepalive: Some(Pings { interval: Duration::from_secs(10), timeout: Duration::from_secs(5), while_idle: true }),
};
const CALLS: usize = 8;
/// Most memory of a connection: its buffers, what waits for the socket, and for each call its request, its answer as
/// far as the window goes, and fields.
const MOST: usize = 6 * Limits::OUTPUT + CALLS * (5 * LIMITS.stream_window as usize + 100_000) + (512 << 10);
/// Bytes under way in each direction.
const SOCKET: usize = 3_000;
/// Longer than any timeout. The clock is simulated.
const LONG: Duration = Duration::from_secs(600);

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

/// Any bytes, usually after the settings.
fn raw(draw: &mut Draw<'_>) -> Vec<u8> {
    let settings: &[u8] = if draw.seldom() { &[] } else { &[0, 0, 0, 4, 0, 0, 0, 0, 0] };
    [settings, draw.0].concat()
}

/// Frames of a server that mostly follows the protocol.
fn frames(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    frame(&mut out, 4, 0, 0, &settings(draw));
    while !draw.is_done() && out.len() < 200_000 {
        // Usually a stream that the client opens.
        let stream = if draw.seldom() { draw.number() } else { u32::from(draw.byte()) % CALLS as u32 * 2 + 1 };
        match draw.byte() % 16 {
            0..4 => headers(draw, &mut out, stream, true),
            4..6 => headers(draw, &mut out, stream, false),
            6..10 => {
                let data = vec![b'd'; usize::from(draw.of(&[0_u16, 1, 100, 1_000, 5_000, 16_384, 16_385]))];
                frame(&mut out, 0, draw.byte() & 1, stream, &data);
            }
            10 => frame(&mut out, 3, 0, stream, &draw.number().to_be_bytes()),
            11 => frame(&mut out, 4, 0, 0, &settings(draw)),
            12 => frame(&mut out, 6, draw.of(&[0, 0, 1]), 0, b"in a row"),
            13 => {
                let step = draw.of(&[1, 100, 65_535, 1 << 20, 0x7fff_ffff, 0]);
                frame(&mut out, 8, 0, draw.of(&[0, stream]), &u32::to_be_bytes(step));
            }
            14 => frame(&mut out, 7, 0, 0, &[&stream.to_be_bytes()[..], &draw.number().to_be_bytes()].concat()),
            _ => frame(&mut out, draw.byte() % 12, draw.byte(), draw.of(&[0, stream]), draw.some()),
        }
    }
    out
}

fn settings(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..draw.byte() % 4 {
        let (id, value) = (draw.of(&[1_u16, 3, 4, 4, 5, 6, 99]), draw.of(&[0, 1, 100, 4_096, 65_535, 16_384, 1 << 24]));
        let value = if id == 5 && !draw.seldom() { 16_384 + value % 1_000_000 } else { value };
        out.extend(id.to_be_bytes());
        out.extend(u32::to_be_bytes(value));
    }
    out
}

/// The head of an answer or trailers, possibly split into several frames.
fn headers(draw: &mut Draw<'_>, out: &mut Vec<u8>, stream: u32, is_head: bool) {
    let mut block = Vec::new();
    if is_head {
        block.push(draw.of(&[0x88, 0x88, 0x88, 0x8d]));
        if draw.seldom() {
            block = [&[0x08][..], &string(draw.of(&[&b"103"[..], b"2000", b""]))].concat();
        }
    }
    for _ in 0..draw.byte() % 4 {
        match draw.byte() % 6 {
            0 => block.push(0x80 | draw.byte()),
            1 => block.extend([&[0x40][..], &string(b"kept"), &string(draw.some())].concat()),
            2 => block.extend([&[0][..], &string(b"grpc-status"), &string(b"0")].concat()),
            3 => block.extend([&[0][..], &string(b"long"), &string(&[b'x'; 2_000])].concat()),
            4 => block.extend([&[0][..], &string(draw.some()), &string(draw.some())].concat()),
            _ => block.extend([&[0][..], &string(b"content-length"), &string(b"100")].concat()),
        }
    }
    let end = if is_head { u8::from(draw.seldom()) } else { 1 };
    let size = block.len() / (usize::from(draw.of(&[0_u8, 0, 0, 1, 2])) + 1) + 1;
    let ends = !draw.seldom();
    let flags = |last: bool| if last && ends { 4 } else { 0 };
    let mut chunks = block.chunks(size).peekable();
    let first = chunks.next().unwrap_or_default();
    frame(out, 1, end | flags(chunks.peek().is_none()), stream, first);
    while let Some(chunk) = chunks.next() {
        frame(out, 9, flags(chunks.peek().is_none()), stream, chunk);
    }
}

/// What the two sides do besides that, by the bits of `terms`.
async fn converse(terms: u8, sent: &[u8]) {
    let (reads, hangs_up, drops) = (terms & 2 == 0, terms & 4 == 0, terms & 8 != 0);
    let (io, server) = tokio::io::duplex(SOCKET);
    let (mut reading, mut writing) = tokio::io::split(server);
    let (client, driver, greeting) = Client::start(io, LIMITS);
    let polls = Arc::new(AtomicUsize::new(0));
    let task = tokio::spawn(Counted { inner: Box::pin(driver), polls: polls.clone() });
    let calls: Vec<_> = (0..CALLS)
        .map(|number| {
            let client = client.clone();
            let body = Full::new(Bytes::from(vec![b'r'; [0, 1, 1_000, 70_000][number % 4]]));
            let call = async move {
                let headers = HeaderMap::new();
                let head = CallHead { secure: false, authority: "host", path: "/", headers: &headers };
                let Ok(Ok(response)) = client.call(head, body).await else { return };
                if drops && number % 2 == 1 {
                    return;
                }
                let mut body = response.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    drop(frame);
                }
            };
            Box::pin(call)
        })
        .collect();
    let calling = tokio::spawn(async move {
        // Calls are made once there are settings, if there ever are.
        let _ = greeting.await;
        futures_util::future::join_all(calls).await;
    });
    drop(client);
    let received = Arc::new(AtomicUsize::new(0));
    let counted = received.clone();
    let read = tokio::spawn(async move {
        let mut buffer = [0; 4_096];
        while reads
            && let Ok(1..) = reading.read(&mut buffer).await.inspect(|read| {
                counted.fetch_add(*read, Ordering::SeqCst);
            })
        {}
        reading
    });
    // The client opens its streams first.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let _ = tokio::time::timeout(LONG, writing.write_all(sent)).await;
    if hangs_up {
        let _ = writing.shutdown().await;
    }
    // A server that does not answer pings is given up.
    tokio::time::timeout(LONG, calling).await.expect("all calls end").expect("no panic");
    let _ = tokio::time::timeout(LONG, task).await.expect("it ends").expect("it does not panic");
    let polls = polls.load(Ordering::SeqCst);
    let received = received.load(Ordering::SeqCst);
    assert!(polls < 2_000 + sent.len() + received, "{polls} polls for {} bytes", sent.len());
    read.abort();
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
