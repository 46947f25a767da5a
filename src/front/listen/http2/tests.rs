//! A connection against h2's client, and against frames made by hand.

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
    connection::Ended,
    frame::{self, HEAD, Head, Kind},
    *,
};
use crate::front::{body::BoxError, listen::Keepalive, signal::Signal};

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;
/// A frame to send: kind, flags, stream, payload.
type Sent = (u8, u8, u32, &'static [u8]);
type Asked = (Request<Body>, tokio::sync::oneshot::Sender<Answer>);

const LIMITS: Limits = Limits {
    max_streams: 100,
    max_header_list: 16 << 10,
    stream_window: 64 << 10,
    connection_window: 256 << 10,
    keepalive: None,
};

/// A connection whose requests the test answers.
struct Served {
    client: DuplexStream,
    asked: mpsc::Receiver<Asked>,
    stop: CancellationToken,
    abort: CancellationToken,
    task: JoinHandle<Result<(), Ended>>,
    /// Handlers that are not done.
    open: Arc<AtomicUsize>,
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(limits: Limits) -> Served {
    // Smaller than most of what is sent, so that both sides meet a full socket.
    let (client, io) = tokio::io::duplex(10_000);
    let (ask, asked) = mpsc::channel(LIMITS.max_streams as usize);
    let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    let service = move |request: Request<Body>| -> BoxFuture<'static, Result<Answer, BoxError>> {
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
    let (stops, aborts) = (Signal::of(stop.clone()), Signal::of(abort.clone()));
    let connection = Connection::new(io, service, limits, stops.listener(), aborts.listener());
    let task = tokio::spawn(async move {
        let ended = connection.await;
        drop((stops, aborts));
        ended
    });
    Served { client, asked, stop, abort, task, open }
}

/// Answers with the request's own body.
fn echo((request, answer): Asked) {
    let body = request.into_body().map_err(Into::into).boxed_unsync();
    let _ = answer.send(Response::new(body));
}

/// Serves echoes. The client's end, and what ends the task.
fn echoing(limits: Limits) -> (DuplexStream, CancellationToken) {
    let Served { client, mut asked, abort, .. } = serve(limits);
    tokio::spawn(async move {
        while let Some(asked) = asked.recv().await {
            echo(asked);
        }
    });
    (client, abort)
}

fn bytes(text: &'static str) -> UnsyncBoxBody<Bytes, BoxError> {
    http_body_util::Full::new(Bytes::from_static(text.as_bytes()))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// A body that says how often it was asked.
struct Endless(Arc<AtomicUsize>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 1000])))))
    }
}

#[tokio::test]
async fn bodies_of_all_sizes_come_back_whole_whatever_the_windows_are() {
    let seed: u64 = rand::rng().random();
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..12 {
        let (client, abort) = echoing(LIMITS);
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(random.random_range(1..100_000))
            .initial_connection_window_size(random.random_range(65_535..300_000))
            .max_frame_size(random.random_range(16_384..50_000));
        let (sender, connection) = builder.handshake::<_, Bytes>(client).await.expect("HTTP/2");
        let driver = tokio::spawn(connection);
        let streams = (0..random.random_range(1..20)).map(|_| {
            let mut data = vec![0; random.random_range(0..200_000) * random.random_range(0..2)];
            random.fill(&mut data[..]);
            let (sender, data) = (sender.clone(), Bytes::from(data));
            async move {
                let mut sender = sender.ready().await.expect("room");
                let request = Request::post("http://host/").body(()).expect("a request");
                let (response, mut body) = sender.send_request(request, false).expect("sent");
                let sent = data.clone();
                let send = async move {
                    let mut left = sent;
                    while !left.is_empty() {
                        body.reserve_capacity(left.len().min(5_000));
                        let room =
                            std::future::poll_fn(|cx| body.poll_capacity(cx)).await.expect("open").expect("room");
                        body.send_data(left.split_to(room.min(left.len())), false).expect("sent");
                    }
                    body.send_data(Bytes::new(), true).expect("sent");
                };
                let receive = async move {
                    let mut body = response.await.expect("an answer").into_body();
                    let mut got = BytesMut::new();
                    while let Some(part) = body.data().await {
                        let part = part.expect("no error");
                        body.flow_control().release_capacity(part.len()).expect("released");
                        got.extend_from_slice(&part);
                    }
                    got.freeze()
                };
                let ((), got) = tokio::join!(send, receive);
                assert!(got == data, "seed {seed}: {} of {} bytes", got.len(), data.len());
            }
        });
        let streams: Vec<_> = streams.collect();
        tokio::time::timeout(Duration::from_secs(60), join_all(streams))
            .await
            .unwrap_or_else(|_| panic!("seed {seed}: round {round} does not end"));
        abort.cancel();
        driver.abort();
    }
}

/// A client of bare frames.
struct Raw {
    io: DuplexStream,
    read: BytesMut,
}

/// One frame.
#[derive(Debug)]
struct Got {
    kind: Kind,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Got {
    /// The number that is last in RST_STREAM and GOAWAY, or all of WINDOW_UPDATE.
    fn reason(&self) -> Reason {
        let last = self.payload.last_chunk().copied().expect("a number");
        u32::from_be_bytes(last).into()
    }
}

impl Raw {
    /// Says what each client says first.
    async fn greet(io: DuplexStream) -> Self {
        let mut raw = Self { io, read: BytesMut::new() };
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        raw.frame(4, 0, 0, &[]).await;
        raw
    }

    async fn send(&mut self, bytes: &[u8]) {
        // A server that has had enough closes.
        let _ = self.io.write_all(bytes).await;
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut out = Vec::new();
        frame::put_head(&mut out, payload.len(), kind, flags, stream);
        out.extend_from_slice(payload);
        self.send(&out).await;
    }

    /// HEADERS of a POST, with its end where `end`.
    async fn ask(&mut self, stream: u32, end: bool) {
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

    /// The next frame of this kind; others are passed over.
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

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_with_its_reason() {
    use Reason as R;
    // Behind the preface and one open stream, number 1.
    let cases: &[(&str, &[Sent], Reason)] = &[
        ("DATA on no stream", &[(0, 0, 0, &[1])], R::PROTOCOL_ERROR),
        ("DATA on a stream that was never opened", &[(0, 0, 9, &[1])], R::PROTOCOL_ERROR),
        ("DATA with more padding than bytes", &[(0, 8, 1, &[9, 0])], R::PROTOCOL_ERROR),
        ("HEADERS on no stream", &[(1, 4, 0, POST)], R::PROTOCOL_ERROR),
        ("HEADERS on an even stream", &[(1, 4, 2, POST)], R::PROTOCOL_ERROR),
        ("HEADERS that go back", &[(1, 5, 7, POST), (1, 5, 5, POST)], R::PROTOCOL_ERROR),
        ("fields that cannot be decoded", &[(1, 4, 3, &[0xff, 0xff, 0xff, 0xff])], R::COMPRESSION_ERROR),
        ("PRIORITY of the wrong size", &[(2, 0, 1, &[0; 4])], R::FRAME_SIZE_ERROR),
        ("a stream that depends on itself", &[(2, 0, 1, &[0, 0, 0, 1, 0])], R::PROTOCOL_ERROR),
        ("RST_STREAM of the wrong size", &[(3, 0, 1, &[0; 3])], R::FRAME_SIZE_ERROR),
        ("RST_STREAM of a stream that was never opened", &[(3, 0, 9, &[0; 4])], R::PROTOCOL_ERROR),
        ("SETTINGS on a stream", &[(4, 0, 1, &[])], R::PROTOCOL_ERROR),
        ("SETTINGS of the wrong size", &[(4, 0, 0, &[0; 5])], R::FRAME_SIZE_ERROR),
        ("an answer to SETTINGS with settings", &[(4, 1, 0, &[0; 6])], R::FRAME_SIZE_ERROR),
        ("a window that is too large", &[(4, 0, 0, &[0, 4, 0x80, 0, 0, 0])], R::FLOW_CONTROL_ERROR),
        ("frames that are too small", &[(4, 0, 0, &[0, 5, 0, 0, 0, 1])], R::PROTOCOL_ERROR),
        ("PUSH_PROMISE", &[(5, 4, 1, &[0; 4])], R::PROTOCOL_ERROR),
        ("PING of the wrong size", &[(6, 0, 0, &[0; 7])], R::FRAME_SIZE_ERROR),
        ("PING on a stream", &[(6, 0, 1, &[0; 8])], R::PROTOCOL_ERROR),
        ("GOAWAY of the wrong size", &[(7, 0, 0, &[0; 7])], R::FRAME_SIZE_ERROR),
        ("WINDOW_UPDATE of nothing", &[(8, 0, 0, &[0; 4])], R::PROTOCOL_ERROR),
        ("WINDOW_UPDATE beyond the largest", &[(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])], R::FLOW_CONTROL_ERROR),
        ("CONTINUATION of nothing", &[(9, 4, 1, &[])], R::PROTOCOL_ERROR),
        ("something between HEADERS and CONTINUATION", &[(1, 0, 3, POST), (6, 0, 0, &[0; 8])], R::PROTOCOL_ERROR),
        ("CONTINUATION of another stream", &[(1, 0, 3, POST), (9, 4, 5, &[])], R::PROTOCOL_ERROR),
        ("a frame that is too large", &[(0, 0, 1, &[0; 16_385])], R::FRAME_SIZE_ERROR),
    ];
    for (what, frames, reason) in cases {
        let Served { client, asked: _asked, task, open, .. } = serve(LIMITS);
        let mut raw = Raw::greet(client).await;
        raw.ask(1, false).await;
        for (kind, flags, stream, payload) in *frames {
            raw.frame(*kind, *flags, *stream, payload).await;
        }
        assert_eq!(raw.until(Kind::GoAway).await.reason(), *reason, "{what}");
        assert!(raw.next().await.is_none(), "{what}: closed");
        assert!(matches!(task.await.expect("no panic"), Err(Ended::Protocol(ended)) if ended == *reason), "{what}");
        assert_eq!(open.load(Ordering::SeqCst), 0, "{what}: no handler is left");
    }
}

#[tokio::test]
async fn a_client_that_does_not_begin_as_it_must_is_told_so() {
    for first in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let Served { client, .. } = serve(LIMITS);
        let mut raw = Raw { io: client, read: BytesMut::new() };
        raw.send(first).await;
        assert_eq!(raw.until(Kind::GoAway).await.reason(), Reason::PROTOCOL_ERROR);
    }
}

#[tokio::test]
async fn a_fault_of_one_stream_ends_that_stream_alone() {
    const LONG: &[u8] = &[0x83, 0x86, 0x84, 0x0f, 0x0d, 1, b'2'];
    // Each on stream 3, beside stream 1.
    let cases: &[(&str, &[Sent], Reason)] = &[
        ("no path", &[(1, 5, 3, &[0x83, 0x86])], Reason::PROTOCOL_ERROR),
        ("a header of HTTP/1.1", &[(1, 5, 3, b"\x83\x86\x84\0\x0aconnection\x01x")], Reason::PROTOCOL_ERROR),
        ("a name in capitals", &[(1, 5, 3, b"\x83\x86\x84\0\x01A\x01x")], Reason::PROTOCOL_ERROR),
        ("more bytes than were told", &[(1, 4, 3, LONG), (0, 0, 3, b"abc")], Reason::PROTOCOL_ERROR),
        ("fewer bytes than were told", &[(1, 4, 3, LONG), (0, END, 3, b"a")], Reason::PROTOCOL_ERROR),
        ("trailers that do not end", &[(1, 4, 3, POST), (1, 4, 3, b"\0\x01a\x01x")], Reason::PROTOCOL_ERROR),
        ("DATA behind the end", &[(1, 5, 3, POST), (0, 0, 3, b"a")], Reason::STREAM_CLOSED),
        ("WINDOW_UPDATE of nothing", &[(1, 4, 3, POST), (8, 0, 3, &[0; 4])], Reason::PROTOCOL_ERROR),
        (
            "WINDOW_UPDATE beyond the largest",
            &[(1, 4, 3, POST), (8, 0, 3, &[0x7f, 0xff, 0xff, 0xff])],
            Reason::FLOW_CONTROL_ERROR,
        ),
    ];
    for (what, frames, reason) in cases {
        let Served { client, mut asked, open, .. } = serve(LIMITS);
        let mut raw = Raw::greet(client).await;
        raw.ask(1, false).await;
        let first = asked.recv().await.expect("a request");
        for (kind, flags, stream, payload) in *frames {
            raw.frame(*kind, *flags, *stream, payload).await;
        }
        let reset = raw.until(Kind::Reset).await;
        assert_eq!((reset.stream, reset.reason()), (3, *reason), "{what}");
        // What was under way for it is no fault.
        raw.frame(0, END, 3, b"late").await;
        raw.frame(0, END, 1, b"hello").await;
        echo(first);
        let data = raw.until(Kind::Data).await;
        assert_eq!((data.stream, &data.payload[..]), (1, &b"hello"[..]), "{what}");
        assert_eq!(open.load(Ordering::SeqCst), 0, "{what}: no handler is left");
    }
}

#[tokio::test]
async fn more_than_the_windows_allow_is_refused() {
    let Served { client, asked: _asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.ask(1, false).await;
    for _ in 0..5 {
        // Nobody reads, so no room is given.
        raw.frame(0, 0, 1, &[0; 16_000]).await;
    }
    assert_eq!(raw.until(Kind::Reset).await.reason(), Reason::FLOW_CONTROL_ERROR);

    let Served { client, asked: _asked, .. } = serve(Limits { stream_window: 1 << 20, ..LIMITS });
    let mut raw = Raw::greet(client).await;
    raw.ask(1, false).await;
    let mut io = raw.io;
    let (mut reading, mut writing) = tokio::io::split(&mut io);
    let write = async {
        for _ in 0..20 {
            let mut out = Vec::new();
            frame::put_data(&mut out, 16_000, false, 1);
            out.resize(out.len() + 16_000, 0);
            if writing.write_all(&out).await.is_err() {
                break;
            }
        }
    };
    let mut text = Vec::new();
    let (_, _) = tokio::join!(write, reading.read_to_end(&mut text));
    let mut raw = Raw { io: tokio::io::duplex(1).0, read: BytesMut::from(&text[..]) };
    assert_eq!(raw.until(Kind::GoAway).await.reason(), Reason::FLOW_CONTROL_ERROR);
}

#[tokio::test]
async fn a_body_is_not_asked_for_more_than_the_client_has_room_for() {
    let Served { client, mut asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    // Room for 2,500 bytes on a stream.
    raw.frame(4, 0, 0, &[0, 4, 0, 0, 9, 196]).await;
    raw.ask(1, true).await;
    let polled = Arc::new(AtomicUsize::new(0));
    let (_, answer) = asked.recv().await.expect("a request");
    let _ = answer.send(Response::new(Endless(polled.clone()).boxed_unsync()));
    let mut got = 0;
    while got < 2_500 {
        got += raw.until(Kind::Data).await.payload.len();
    }
    raw.frame(6, 0, 0, &[1; 8]).await;
    raw.until(Kind::Ping).await;
    assert_eq!(polled.load(Ordering::SeqCst), 3, "three times 1,000 bytes");
    raw.frame(8, 0, 1, &[0, 0, 1, 244]).await;
    assert_eq!(raw.until(Kind::Data).await.payload.len(), 500);
    raw.frame(8, 0, 1, &[0, 0, 0, 1]).await;
    assert_eq!(raw.until(Kind::Data).await.payload.len(), 1);
    assert_eq!(polled.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_stream_that_waits_for_the_connections_window_goes_on_when_there_is_room() {
    let Served { client, mut asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.frame(4, 0, 0, &[0, 4, 0, 16, 0, 0]).await;
    for stream in [1, 3] {
        raw.ask(stream, true).await;
        let (_, answer) = asked.recv().await.expect("a request");
        let _ = answer.send(Response::new(Endless(Arc::default()).boxed_unsync()));
    }
    let mut got = 0;
    while got < 65_535 {
        got += raw.until(Kind::Data).await.payload.len();
    }
    assert_eq!(got, 65_535);
    // Each time as much as one of them alone could take.
    let mut turns = Vec::new();
    for turn in 1..=4 {
        raw.frame(8, 0, 0, &[0, 0, 0x4e, 0x20]).await;
        while got < 65_535 + turn * 20_000 {
            let data = raw.until(Kind::Data).await;
            got += data.payload.len();
            turns.push(data.stream);
        }
    }
    turns.dedup();
    assert!(turns == [1, 3, 1, 3] || turns == [3, 1, 3, 1], "{turns:?}");
}

#[tokio::test]
async fn windows_are_right_however_often_they_change_at_once() {
    let Served { client, mut asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    let settings = |out: &mut Vec<u8>, window: u8| {
        frame::put_head(out, 6, 4, 0, 0);
        out.extend_from_slice(&[0, 4, 0, 0, 0, window]);
    };
    let mut out = Vec::new();
    settings(&mut out, 50);
    frame::put_headers(&mut out, POST, true, 1, 16_384);
    settings(&mut out, 100);
    frame::put_headers(&mut out, POST, true, 3, 16_384);
    raw.send(&out).await;
    for stream in [1, 3] {
        let (_, answer) = asked.recv().await.expect("a request");
        let _ = answer.send(Response::new(Endless(Arc::default()).boxed_unsync()));
        let data = raw.until(Kind::Data).await;
        assert_eq!((data.stream, data.payload.len()), (stream, 100));
    }
    out.clear();
    settings(&mut out, 0);
    frame::put_window_update(&mut out, 1, 130);
    settings(&mut out, 90);
    frame::put_ping(&mut out, false, [1; 8]);
    raw.send(&out).await;
    let data = raw.until(Kind::Data).await;
    assert_eq!((data.stream, data.payload.len()), (1, 120), "130, and 10 less than before");
    out.clear();
    frame::put_window_update(&mut out, 3, 10);
    settings(&mut out, 91);
    raw.send(&out).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let data = raw.until(Kind::Data).await;
        assert_eq!(data.payload.len(), 1);
        streams.push(data.stream);
    }
    streams.sort_unstable();
    assert_eq!(streams, [1, 3]);
}

#[tokio::test]
async fn a_request_that_is_reset_before_its_handler_is_called_gives_its_window_back() {
    let Served { client, asked: _asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    // More than the window of the connection, in all.
    for stream in 0..400 {
        let (id, end) = (stream * 2 + 1, stream % 2 == 0);
        let mut out = Vec::new();
        frame::put_headers(&mut out, POST, false, id, 16_384);
        frame::put_data(&mut out, 900, end, id);
        out.resize(out.len() + 900, 0);
        frame::put_reset(&mut out, id, Reason::CANCEL);
        raw.send(&out).await;
    }
    raw.frame(6, 0, 0, &[1; 8]).await;
    raw.until(Kind::Ping).await;
}

#[tokio::test]
async fn padding_is_given_back_to_the_stream_that_it_came_on() {
    let Served { client, asked: _asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.ask(1, false).await;
    let padded = [&[255][..], b"abc", &[0; 255]].concat();
    for _ in 0..3 {
        raw.frame(0, 8, 1, &padded).await;
        let update = loop {
            let update = raw.until(Kind::WindowUpdate).await;
            if update.stream == 1 {
                break update;
            }
        };
        assert_eq!(update.payload, [0, 0, 1, 0]);
    }
}

/// Gives a ping with each read, for ever, and takes nothing.
struct Pinging {
    read: usize,
}

impl tokio::io::AsyncRead for Pinging {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        assert!(self.read < 10_000_000, "it does not come to its end");
        let before = buffer.filled().len();
        if self.read == 0 {
            buffer.put_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        } else {
            buffer.put_slice(b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0");
        }
        self.read += buffer.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl tokio::io::AsyncWrite for Pinging {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }
}

type Unanswered = BoxFuture<'static, Result<Answer, BoxError>>;

/// A connection that is polled by hand and whose requests nobody answers.
fn by_hand<T>(io: T, limits: Limits) -> impl Future<Output = Result<(), Ended>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (stop, abort) = (Signal::of(CancellationToken::new()), Signal::of(CancellationToken::new()));
    let service = |_: Request<Body>| -> Unanswered { Box::pin(std::future::pending()) };
    let connection = Connection::new(io, service, limits, stop.listener(), abort.listener());
    async move {
        let ended = connection.await;
        drop((stop, abort));
        ended
    }
}

#[tokio::test]
async fn a_client_that_sends_little_at_a_time_without_end_is_not_read_from_for_ever() {
    let mut connection = std::pin::pin!(by_hand(Pinging { read: 0 }, LIMITS));
    assert!(futures_util::poll!(connection.as_mut()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_ping_that_could_not_be_read_in_time_is_an_answer() {
    let keepalive = Keepalive { interval: Duration::from_secs(60), timeout: Duration::from_secs(20) };
    let (client, io) = tokio::io::duplex(10_000);
    let mut connection = std::pin::pin!(by_hand(io, Limits { keepalive: Some(keepalive), ..LIMITS }));
    let mut raw = Raw::greet(client).await;
    assert!(futures_util::poll!(connection.as_mut()).is_pending());
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(futures_util::poll!(connection.as_mut()).is_pending());
    let ping = raw.until(Kind::Ping).await;
    raw.frame(6, 1, 0, &ping.payload).await;
    // The process was held up meanwhile.
    tokio::time::advance(Duration::from_secs(100)).await;
    assert!(futures_util::poll!(connection.as_mut()).is_pending());
    // It asks again, and this time nobody answers.
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(61)).await;
        if let Poll::Ready(ended) = futures_util::poll!(connection.as_mut()) {
            assert!(matches!(ended, Err(Ended::Silent)));
            return;
        }
    }
    panic!("it stays for ever");
}

#[tokio::test]
async fn who_resets_a_stream_ends_its_handler_or_its_body() {
    let Served { client, mut asked, open, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.ask(1, false).await;
    let (request, _answer) = asked.recv().await.expect("a request");
    raw.frame(3, 0, 1, &[0, 0, 0, 8]).await;
    let error = request.into_body().collect().await.expect_err("reset");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(open.load(Ordering::SeqCst), 0);

    raw.ask(3, true).await;
    let (_, answer) = asked.recv().await.expect("a request");
    let (send, sent) = mpsc::channel(1);
    let body = http_body_util::StreamBody::new(ReceiverStream::new(sent).map(|data| Ok(Frame::data(data))));
    let _ = answer.send(Response::new(body.boxed_unsync()));
    send.send(Bytes::from_static(b"one")).await.expect("taken");
    assert_eq!(raw.until(Kind::Data).await.payload, b"one");
    raw.frame(3, 0, 3, &[0, 0, 0, 8]).await;
    send.closed().await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_its_request_stops_the_client() {
    let Served { client, mut asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.ask(1, false).await;
    let (_, answer) = asked.recv().await.expect("a request");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = bytes("early").with_trailers(async move { Some(Ok(trailers)) });
    let _ = answer.send(Response::new(body.boxed_unsync()));
    let data = raw.until(Kind::Data).await;
    assert_eq!((&data.payload[..], data.flags & END), (&b"early"[..], 0));
    let trailers = raw.until(Kind::Headers).await;
    assert_eq!(trailers.payload, b"\0\x0bgrpc-status\x010");
    assert_eq!(trailers.flags & END, END);
    assert_eq!(raw.until(Kind::Reset).await.reason(), Reason::NO_ERROR);
}

#[tokio::test]
async fn a_body_that_fails_resets_its_stream_with_its_reason() {
    for (error, reason) in [
        (BoxError::from(h2::Error::from(Reason::ENHANCE_YOUR_CALM)), Reason::ENHANCE_YOUR_CALM),
        (BoxError::from("broken"), Reason::INTERNAL_ERROR),
    ] {
        let Served { client, mut asked, .. } = serve(LIMITS);
        let mut raw = Raw::greet(client).await;
        raw.ask(1, true).await;
        let (_, answer) = asked.recv().await.expect("a request");
        let frames = tokio_stream::iter([Ok(Frame::data(Bytes::from_static(b"one"))), Err(error)]);
        let _ = answer.send(Response::new(http_body_util::StreamBody::new(frames).boxed_unsync()));
        assert_eq!(raw.until(Kind::Reset).await.reason(), reason);
    }
}

/// A body with a fault.
struct Panicking;

impl http_body::Body for Panicking {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        panic!("as a test wants")
    }
}

#[tokio::test]
async fn a_panic_in_an_answer_ends_its_stream_alone() {
    let Served { client, mut asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.ask(1, true).await;
    let first = asked.recv().await.expect("a request");
    raw.ask(3, true).await;
    let (_, answer) = asked.recv().await.expect("a request");
    let _ = answer.send(Response::new(Panicking.boxed_unsync()));
    let reset = raw.until(Kind::Reset).await;
    assert_eq!((reset.stream, reset.reason()), (3, Reason::INTERNAL_ERROR));
    echo(first);
    assert_eq!(raw.until(Kind::Headers).await.stream, 1);
}

#[tokio::test]
async fn an_answer_to_head_has_the_length_and_no_body() {
    let Served { client, mut asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    let head = b"\0\x07:method\x04HEAD\x86\x84";
    raw.frame(1, 5, 1, head).await;
    let (request, answer) = asked.recv().await.expect("a request");
    assert_eq!(request.method(), Method::HEAD);
    let _ = answer.send(Response::new(bytes("four")));
    let head = raw.until(Kind::Headers).await;
    assert_eq!((head.flags & END, &head.payload[..]), (END, &b"\x88\x0f\x0d\x014"[..]));
}

#[tokio::test]
async fn too_many_streams_are_refused_and_the_others_stay() {
    let Served { client, mut asked, .. } = serve(Limits { max_streams: 2, ..LIMITS });
    let mut raw = Raw::greet(client).await;
    for stream in [1, 3, 5] {
        raw.ask(stream, true).await;
    }
    let reset = raw.until(Kind::Reset).await;
    assert_eq!((reset.stream, reset.reason()), (5, Reason::REFUSED_STREAM));
    for _ in 0..2 {
        echo(asked.recv().await.expect("a request"));
    }
    assert_eq!(raw.until(Kind::Headers).await.stream, 1);
    assert_eq!(raw.until(Kind::Headers).await.stream, 3);
    raw.ask(7, true).await;
    echo(asked.recv().await.expect("a request"));
    assert_eq!(raw.until(Kind::Headers).await.stream, 7);
}

#[tokio::test]
async fn fields_beyond_the_limit_are_refused_alone_or_end_an_endless_block() {
    let Served { client, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    // One entry of the table, referred to over and over: small on the wire, large when read.
    let entry = [&b"\x40\x01a\x7f\x81\x07"[..], &[b'x'; 1024][..]].concat();
    let bomb = [POST, &entry, &[0xbe; 40]].concat();
    raw.frame(1, 5, 1, &bomb).await;
    let answer = raw.until(Kind::Headers).await;
    assert_eq!((answer.flags & END, &answer.payload[..]), (END, &b"\x08\x03431"[..]));
    raw.frame(1, 0, 3, POST).await;
    for _ in 0..100 {
        raw.frame(9, 0, 3, &[]).await;
    }
    assert_eq!(raw.until(Kind::GoAway).await.reason(), Reason::ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn who_opens_streams_to_reset_them_is_told_to_calm_down() {
    let Served { client, mut asked, .. } = serve(LIMITS);
    let (mut reading, mut writing) = tokio::io::split(client);
    let flood = tokio::spawn(async move {
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frame::put_head(&mut out, 0, 4, 0, 0);
        for stream in 0..5_000 {
            frame::put_headers(&mut out, POST, false, stream * 2 + 1, 16_384);
            frame::put_reset(&mut out, stream * 2 + 1, Reason::CANCEL);
        }
        let _ = writing.write_all(&out).await;
        writing
    });
    let mut text = Vec::new();
    let _ = reading.read_to_end(&mut text).await;
    let mut raw = Raw { io: tokio::io::duplex(1).0, read: BytesMut::from(&text[..]) };
    assert_eq!(raw.until(Kind::GoAway).await.reason(), Reason::ENHANCE_YOUR_CALM);
    drop(flood.await);
    let mut given = 0;
    while asked.recv().await.is_some() {
        given += 1;
    }
    assert!(given < 1_000, "{given} handlers were called for nothing");
}

#[tokio::test]
async fn a_stop_serves_what_was_under_way_and_nothing_later() {
    let Served { client, mut asked, stop, task, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.ask(1, true).await;
    let first = asked.recv().await.expect("a request");
    stop.cancel();
    let warning = raw.until(Kind::GoAway).await;
    assert_eq!((warning.payload[..4].to_vec(), warning.reason()), (vec![0x7f, 0xff, 0xff, 0xff], Reason::NO_ERROR));
    let ping = raw.until(Kind::Ping).await;
    // Sent before the client knew.
    raw.ask(3, true).await;
    raw.frame(6, 1, 0, &ping.payload).await;
    assert_eq!(raw.until(Kind::GoAway).await.payload[..4], [0, 0, 0, 3]);
    // Too late, and no reason to drop those that are served.
    raw.ask(5, false).await;
    raw.frame(0, 0, 5, b"late").await;
    raw.frame(8, 0, 5, &[0, 0, 0, 1]).await;
    raw.frame(3, 0, 5, &[0, 0, 0, 8]).await;
    echo(first);
    echo(asked.recv().await.expect("a request"));
    assert_eq!(raw.until(Kind::Headers).await.stream, 1);
    assert_eq!(raw.until(Kind::Headers).await.stream, 3);
    while let Some(frame) = raw.next().await {
        assert_ne!(frame.stream, 5);
    }
    assert!(task.await.expect("no panic").is_ok());
    assert!(asked.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_pings_is_dropped_and_one_that_does_stays() {
    let keepalive = Keepalive { interval: Duration::from_secs(60), timeout: Duration::from_secs(20) };
    let limits = Limits { keepalive: Some(keepalive), ..LIMITS };
    let begun = tokio::time::Instant::now();
    let Served { client, asked: _asked, task, .. } = serve(limits);
    let _raw = Raw::greet(client).await;
    assert!(matches!(task.await.expect("no panic"), Err(Ended::Silent)));
    assert!((79..=81).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());

    let Served { client, mut asked, .. } = serve(limits);
    let mut raw = Raw { io: client, read: BytesMut::new() };
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    raw.frame(4, 0, 0, &[]).await;
    for _ in 0..5 {
        let mut frame = [0; HEAD];
        // Without a limit of its own, which would move the paused time.
        let ping = loop {
            raw.io.read_exact(&mut frame).await.expect("a frame");
            let head = Head::read(&frame).expect("a head");
            let mut payload = vec![0; head.len];
            raw.io.read_exact(&mut payload).await.expect("a payload");
            if head.kind == Kind::Ping {
                break payload;
            }
        };
        raw.frame(6, 1, 0, &ping).await;
    }
    raw.ask(1, true).await;
    echo(asked.recv().await.expect("a request"));
}

#[tokio::test]
async fn an_abort_drops_everything() {
    let Served { client, mut asked, abort, task, open, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.ask(1, true).await;
    let _asked = asked.recv().await.expect("a request");
    abort.cancel();
    assert!(task.await.expect("no panic").is_ok());
    assert_eq!(open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_says_that_it_leaves_is_served_to_the_end() {
    let Served { client, mut asked, task, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.ask(1, true).await;
    raw.frame(7, 0, 0, &[0; 8]).await;
    echo(asked.recv().await.expect("a request"));
    assert_eq!(raw.until(Kind::Headers).await.stream, 1);
    assert!(task.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn a_smaller_table_of_fields_is_told_to_the_client_once() {
    let Served { client, mut asked, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.frame(4, 0, 0, &[0, 1, 0, 0, 0, 0]).await;
    for (stream, expected) in [(1, &b"\x20\x88"[..]), (3, b"\x88")] {
        raw.ask(stream, true).await;
        echo(asked.recv().await.expect("a request"));
        assert!(raw.until(Kind::Headers).await.payload.starts_with(expected));
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_not_read_from_for_ever() {
    let Served { client, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    let mut ping = Vec::new();
    frame::put_ping(&mut ping, false, [1; 8]);
    let pings = ping.repeat(1_000_000);
    // Each asks for an answer as large as itself.
    let sent = tokio::time::timeout(Duration::from_millis(500), raw.io.write_all(&pings)).await;
    assert!(sent.is_err(), "all of it was taken");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_it_panic(
        frames in prop::collection::vec((0..11_u8, any::<u8>(), 0..8_u32, prop::collection::vec(any::<u8>(), 0..40)), 0..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let Served { client, mut asked, task, .. } = serve(LIMITS);
            tokio::spawn(async move {
                while let Some(asked) = asked.recv().await {
                    echo(asked);
                }
            });
            let (mut reading, mut writing) = tokio::io::split(client);
            let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            frame::put_head(&mut out, 0, 4, 0, 0);
            for (kind, flags, stream, payload) in frames {
                frame::put_head(&mut out, payload.len(), kind, flags, stream);
                out.extend_from_slice(&payload);
            }
            let mut text = Vec::new();
            let send = async {
                let _ = writing.write_all(&out).await;
                let _ = writing.shutdown().await;
            };
            let _ = tokio::join!(send, reading.read_to_end(&mut text));
            prop_assert!(task.await.is_ok(), "it ends, and does not panic");
            Ok(())
        })?;
    }
}
