//! Tests of the client's side: calls over a connection in memory, whose server is h2's, our own, or handmade frames.

use std::{collections::HashSet, io, pin::pin, sync::atomic::AtomicBool, task::Waker};

use http_body_util::{Full, StreamBody};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    super::client::{Call as Calling, CallHead, Client, ClientLimits, Driver, Lost, Pings, Unsent},
    *,
};

type Whole = Full<Bytes>;
type Answered<B> = Result<Result<Response<Calling<B>>, Lost>, Box<Unsent<B>>>;

const TERMS: ClientLimits = ClientLimits { stream_window: 64 << 10, max_header_list: 16 << 10, keepalive: None };

fn whole(bytes: impl Into<Bytes>) -> Whole {
    Full::new(bytes.into())
}

/// A call to `path`.
async fn call<B>(client: &Client, path: &str, body: B) -> Answered<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let headers = HeaderMap::from_iter([(http::header::TE, HeaderValue::from_static("trailers"))]);
    client.call(CallHead { secure: false, authority: "host:1", path, headers: &headers }, body).await
}

/// The same, if it was sent.
async fn sent(client: &Client, path: &str, body: impl Into<Bytes>) -> Result<Response<Calling<Whole>>, Lost> {
    call(client, path, whole(body)).await.expect("sent")
}

/// A connection to a server of bare frames, which has greeted.
async fn raw(terms: ClientLimits, settings: &[u8]) -> (Client, Raw, JoinHandle<Result<(), Lost>>) {
    let (io, server) = tokio::io::duplex(10_000);
    let (client, driver, greeting) = Client::start(io, terms);
    let task = tokio::spawn(driver);
    let mut raw = Raw { io: server, read: BytesMut::new() };
    let mut preface = [0; 24];
    raw.io.read_exact(&mut preface).await.expect("a preface");
    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert_eq!(raw.next().await.expect("a frame").kind, Kind::Settings);
    assert_eq!(client.most(), 0);
    raw.frame(4, 0, 0, settings).await;
    greeting.await.expect("the settings arrived");
    (client, raw, task)
}

/// The head of an answer: `:status 200`.
const OK: &[u8] = &[0x88];
/// Trailers: `grpc-status: 0`.
const TRAILERS: &[u8] = b"\x00\x0bgrpc-status\x010";

async fn text(response: Response<Calling<Whole>>) -> Result<(Bytes, Option<HeaderMap>), Lost> {
    let collected = response.into_body().collect().await?;
    let trailers = collected.trailers().cloned();
    Ok((collected.to_bytes(), trailers))
}

#[tokio::test]
async fn bodies_of_all_sizes_pass_both_ways_whatever_the_windows_are() {
    let seed: u64 = rand::rng().random();
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..12 {
        let (io, server) = tokio::io::duplex(random.random_range(1..30_000));
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(random.random_range(1..100_000))
            .initial_connection_window_size(random.random_range(65_535..300_000))
            .max_frame_size(random.random_range(16_384..50_000))
            .max_concurrent_streams(30);
        let serving = tokio::spawn(async move {
            let mut connection = builder.handshake::<_, Bytes>(server).await.expect("HTTP/2");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/echo"));
                    assert_eq!(request.uri().authority().map(|authority| authority.as_str()), Some("host:1"));
                    let mut body = request.into_body();
                    let mut answer = respond.send_response(Response::new(()), false).expect("open");
                    while let Some(part) = body.data().await {
                        let mut part = part.expect("no error");
                        body.flow_control().release_capacity(part.len()).expect("released");
                        while !part.is_empty() {
                            answer.reserve_capacity(part.len());
                            let room = std::future::poll_fn(|cx| answer.poll_capacity(cx)).await;
                            let room = room.expect("open").expect("room");
                            answer.send_data(part.split_to(room.min(part.len())), false).expect("sent");
                        }
                    }
                    let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("end"))]);
                    answer.send_trailers(trailers).expect("sent");
                });
            }
        });
        let terms = ClientLimits { stream_window: random.random_range(100..100_000), ..TERMS };
        let (client, driver, greeting) = Client::start(io, terms);
        tokio::spawn(driver);
        greeting.await.expect("a server");
        assert_eq!(client.most(), 30);
        let calls = (0..random.random_range(1..20)).map(|_| {
            let mut data = vec![0; random.random_range(0..200_000) * random.random_range(0..2)];
            random.fill(&mut data[..]);
            let (client, data) = (client.clone(), Bytes::from(data));
            let step = random.random_range(1..50_000);
            async move {
                let mut left = data.clone();
                let parts = std::iter::from_fn(move || {
                    let part = left.split_to(step.min(left.len()));
                    (!part.is_empty()).then_some(Ok::<_, Failure>(Frame::data(part)))
                });
                // Parts arrive now and then, as from another client.
                let parts = tokio_stream::iter(parts).then(|part| async move {
                    tokio::task::yield_now().await;
                    part
                });
                let body = StreamBody::new(Box::pin(parts));
                let response = call(&client, "/echo", body).await.expect("sent").expect("an answer");
                assert_eq!(response.status(), 200);
                let got = response.into_body().collect().await.expect("whole");
                assert!(got.trailers().is_some_and(|trailers| trailers["etag"] == "end"));
                assert!(got.to_bytes() == data, "seed {seed}");
            }
        });
        let calls: Vec<_> = calls.collect();
        tokio::time::timeout(Duration::from_secs(60), join_all(calls))
            .await
            .unwrap_or_else(|_| panic!("seed {seed}: round {round} does not end"));
        serving.abort();
    }
}

/// Counts writes.
struct Writes<T>(T, Arc<AtomicUsize>);

impl<T: AsyncRead + Unpin> AsyncRead for Writes<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Writes<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn calls_of_one_turn_leave_in_one_write_and_answers_of_one_read_wake_their_caller_once() {
    const CALLS: usize = 50;
    let writes = Arc::new(AtomicUsize::new(0));
    let (io, server) = tokio::io::duplex(100_000);
    let (client, driver, greeting) = Client::start(Writes(io, writes.clone()), TERMS);
    tokio::spawn(driver);
    let mut raw = Raw { io: server, read: BytesMut::new() };
    raw.io.read_exact(&mut [0; 24]).await.expect("a preface");
    raw.frame(4, 0, 0, &[]).await;
    greeting.await.expect("the settings arrived");
    // The preface, and the answer to the settings.
    raw.until(Kind::Settings).await;
    raw.until(Kind::Settings).await;
    let before = writes.load(Ordering::SeqCst);

    let polls = Arc::new(AtomicUsize::new(0));
    let counted = polls.clone();
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let client = client.clone();
            Box::pin(async move { text(sent(&client, "/", "request").await?).await })
        })
        .collect();
    let mut calls = calls.into_iter().map(Some).collect::<Vec<_>>();
    let caller = tokio::spawn(async move {
        std::future::poll_fn(|cx| {
            counted.fetch_add(1, Ordering::SeqCst);
            for call in &mut calls {
                if let Some(running) = call
                    && let Poll::Ready(answer) = running.as_mut().poll(cx)
                {
                    let (bytes, trailers) = answer.expect("an answer");
                    assert_eq!((bytes, trailers.expect("trailers").len()), (Bytes::from_static(b"answer"), 1));
                    *call = None;
                }
            }
            if calls.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
    let mut answers = Vec::new();
    for at in 0..CALLS as u32 {
        let head = raw.until(Kind::Headers).await;
        let data = raw.next().await.expect("data");
        assert_eq!((head.stream, data.stream, &data.payload[..]), (2 * at + 1, 2 * at + 1, &b"request"[..]));
        assert_eq!(data.flags & END, END);
        for (kind, flags, payload) in [(1, 4, OK), (0, 0, &b"answer"[..]), (1, 5, TRAILERS)] {
            frame::put_head(&mut answers, payload.len(), kind, flags, head.stream);
            answers.extend_from_slice(payload);
        }
    }
    assert_eq!(writes.load(Ordering::SeqCst) - before, 1);
    raw.send(&answers).await;
    caller.await.expect("no panic");
    assert_eq!(polls.load(Ordering::SeqCst), 2, "the first poll sends, and the second has all answers");
}

#[tokio::test]
async fn a_call_that_is_dropped_is_reset_and_the_others_go_on() {
    let (client, mut server, _task) = raw(TERMS, &[]).await;
    {
        let mut dropped = pin!(sent(&client, "/", "a"));
        assert!(dropped.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        server.until(Kind::Data).await;
    }
    let reset = server.until(Kind::Reset).await;
    assert_eq!((reset.stream, reset.reason()), (1, Reason::CANCEL));
    let other = tokio::spawn(async move { text(sent(&client, "/", "b").await?).await });
    assert_eq!(server.until(Kind::Data).await.stream, 3);
    // Frames that were under way to the first one do no harm.
    for (kind, flags, stream, payload) in [(1, 4, 1, OK), (0, 0, 1, &b"late"[..]), (1, 5, 3, OK), (3, 0, 1, &[0; 4])] {
        server.frame(kind, flags, stream, payload).await;
    }
    assert_eq!(other.await.expect("no panic"), Ok((Bytes::new(), None)));
    // A caller that drops an answer after its head.
}

#[tokio::test]
async fn an_answer_that_is_dropped_or_comes_before_the_request_has_ended_resets_the_call() {
    let (client, mut server, _task) = raw(TERMS, &[]).await;
    let open = || StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, Failure>>());
    let calling = client.clone();
    let first = tokio::spawn(async move { call(&calling, "/", open()).await.expect("sent").expect("an answer") });
    assert_eq!(server.until(Kind::Headers).await.flags & END, 0);
    server.frame(1, 4, 1, OK).await;
    drop(first.await.expect("no panic"));
    assert_eq!(server.until(Kind::Reset).await.reason(), Reason::CANCEL);

    let second = tokio::spawn(async move {
        let response = call(&client, "/", open()).await.expect("sent").expect("an answer");
        response.into_body().collect().await.expect("whole").to_bytes()
    });
    server.until(Kind::Headers).await;
    server.frame(1, 4, 3, OK).await;
    server.frame(0, 1, 3, b"early").await;
    assert_eq!(second.await.expect("no panic"), "early");
    let reset = server.until(Kind::Reset).await;
    assert_eq!((reset.stream, reset.reason()), (3, Reason::CANCEL));
}

#[tokio::test]
async fn a_request_that_breaks_off_is_reset() {
    let (client, mut server, _task) = raw(TERMS, &[]).await;
    let (sender, parts) = mpsc::channel::<Result<Frame<Bytes>, Failure>>(1);
    let body = StreamBody::new(ReceiverStream::new(parts));
    let calling = tokio::spawn(async move { call(&client, "/", body).await.expect("sent").err() });
    sender.send(Ok(Frame::data(Bytes::from_static(b"some")))).await.expect("open");
    assert_eq!(server.until(Kind::Data).await.payload, b"some");
    sender.send(Err("broken".into())).await.expect("open");
    assert_eq!(server.until(Kind::Reset).await.reason(), Reason::CANCEL);
    assert_eq!(calling.await.expect("no panic"), Some(Lost::Request));
}

#[tokio::test]
async fn resets_and_the_end_of_the_connection_reach_each_call() {
    let (client, mut server, task) = raw(TERMS, &[]).await;
    let start = |client: &Client| {
        let client = client.clone();
        tokio::spawn(async move { text(sent(&client, "/", "a").await?).await })
    };
    let calls = [start(&client), start(&client), start(&client), start(&client)];
    for _ in &calls {
        server.until(Kind::Data).await;
    }
    server.frame(3, 0, 1, &11_u32.to_be_bytes()).await;
    // Nothing above stream 5 is answered.
    server.frame(7, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 0]).await;
    server.frame(1, 5, 3, OK).await;
    let [reset, answered, open, late] = calls;
    assert_eq!(reset.await.expect("no panic"), Err(Lost::Reset(Reason::ENHANCE_YOUR_CALM)));
    assert!(answered.await.expect("no panic").is_ok());
    assert!(matches!(late.await.expect("no panic"), Err(Lost::Connection(_))));
    assert!(client.is_closed());
    let unsent = call(&client, "/", whole("again")).await.expect_err("no more calls");
    assert_eq!(unsent.upload.collect().await.expect("the body").to_bytes(), "again");
    drop(server);
    assert!(matches!(open.await.expect("no panic"), Err(Lost::Connection(_))));
    assert!(matches!(task.await.expect("no panic"), Err(Lost::Connection(_))));
}

#[tokio::test]
async fn a_peer_that_leaves_and_callers_that_leave_end_the_connection_after_the_last_call() {
    for peer_leaves in [true, false] {
        let (client, mut server, task) = raw(TERMS, &[]).await;
        let calling = client.clone();
        let open = tokio::spawn(async move { text(sent(&calling, "/", "a").await?).await });
        server.until(Kind::Data).await;
        let kept = if peer_leaves {
            server.frame(7, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]).await;
            Some(client)
        } else {
            drop(client);
            None
        };
        server.frame(6, 0, 0, b"in order").await;
        assert_eq!(server.until(Kind::Ping).await.payload, b"in order");
        server.frame(1, 5, 1, OK).await;
        assert!(open.await.expect("no panic").is_ok());
        assert_eq!(server.until(Kind::GoAway).await.reason(), Reason::NO_ERROR);
        assert_eq!(task.await.expect("no panic"), Ok(()));
        assert!(kept.is_none_or(|client| client.is_closed()));
    }
}

#[tokio::test]
async fn no_more_calls_are_open_than_the_peer_accepts() {
    let (client, mut server, _task) = raw(TERMS, &[0, 3, 0, 0, 0, 1]).await;
    assert_eq!(client.most(), 1);
    let calling = client.clone();
    let first = tokio::spawn(async move { text(sent(&calling, "/", "a").await?).await });
    server.until(Kind::Data).await;
    assert!(call(&client, "/", whole("b")).await.is_err());
    assert!(!client.is_closed());
    server.frame(1, 5, 1, OK).await;
    assert!(first.await.expect("no panic").is_ok());
    let calling = client.clone();
    let second = tokio::spawn(async move { text(sent(&calling, "/", "c").await?).await });
    assert_eq!(server.until(Kind::Data).await.payload, b"c");
    server.frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]).await;
    server.frame(1, 5, 3, OK).await;
    assert!(second.await.expect("no panic").is_ok());
    assert_eq!(client.most(), 9);
}

#[tokio::test]
async fn requests_keep_to_the_windows_and_a_full_one_delays_no_other() {
    // A window of ten bytes a stream.
    let (client, mut server, _task) = raw(TERMS, &[0, 4, 0, 0, 0, 10]).await;
    let start = |body: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { text(sent(&client, "/", body).await?).await })
    };
    let large = start("0123456789abcdef");
    assert_eq!(server.until(Kind::Data).await.payload, b"0123456789");
    let small = start("small");
    assert_eq!(server.until(Kind::Data).await.payload, b"small");
    server.frame(8, 0, 1, &3_u32.to_be_bytes()).await;
    assert_eq!(server.until(Kind::Data).await.payload, b"abc");
    // The window of every stream becomes smaller, and then larger than before: 13 were sent, so one is left.
    server.frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
    server.frame(4, 0, 0, &[0, 4, 0, 0, 0, 11]).await;
    let got = server.until(Kind::Data).await;
    assert_eq!((&got.payload[..], got.flags & END), (&b"d"[..], 0));
    server.frame(8, 0, 1, &100_u32.to_be_bytes()).await;
    let got = server.until(Kind::Data).await;
    assert_eq!((&got.payload[..], got.flags & END), (&b"ef"[..], END));
    for stream in [1, 3] {
        server.frame(1, 5, stream, OK).await;
    }
    assert!(large.await.expect("no panic").is_ok() && small.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn data_that_waits_for_the_connection_goes_on_in_turns_though_a_caller_is_gone() {
    let (client, mut server, _task) = raw(TERMS, &[0, 4, 0, 16, 0, 0]).await;
    let start = |byte: u8, len: usize| {
        let (client, body) = (client.clone(), vec![byte; len]);
        tokio::spawn(async move { text(sent(&client, "/", body).await?).await })
    };
    let first = start(b'1', 65_535 + 40_000);
    let mut got = 0;
    while got < 65_535 {
        got += server.until(Kind::Data).await.payload.len();
    }
    let (second, third) = (start(b'2', 30_000), start(b'3', 30_000));
    server.until(Kind::Headers).await;
    server.until(Kind::Headers).await;
    second.abort();
    assert_eq!(server.until(Kind::Reset).await.stream, 3);
    server.frame(8, 0, 0, &100_000_u32.to_be_bytes()).await;
    let mut turns = Vec::new();
    let mut left = 40_000 + 30_000;
    while left > 0 {
        let data = server.until(Kind::Data).await;
        left -= data.payload.len();
        turns.push(data.stream);
    }
    assert_eq!(turns[..4], [1, 5, 1, 5], "they take turns");
    for stream in [1, 5] {
        server.frame(1, 5, stream, OK).await;
    }
    assert!(first.await.expect("no panic").is_ok() && third.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_held_back_and_delays_no_other() {
    let (client, mut server, _task) = raw(TERMS, &[]).await;
    let calling = client.clone();
    let unread = tokio::spawn(async move { sent(&calling, "/", "a").await.expect("an answer") });
    server.until(Kind::Data).await;
    server.frame(1, 4, 1, OK).await;
    let unread = unread.await.expect("no panic");
    for _ in 0..4 {
        server.frame(0, 0, 1, &[7; 16_000]).await;
    }
    let other = tokio::spawn(async move { text(sent(&client, "/", "b").await?).await });
    // No window was given for what nobody has read.
    let next = loop {
        let got = server.next().await.expect("a frame");
        if got.stream != 0 {
            break got;
        }
    };
    assert_eq!((next.kind, next.stream), (Kind::Headers, 3));
    server.frame(1, 5, 3, OK).await;
    assert!(other.await.expect("no panic").is_ok());
    let reading = tokio::spawn(async move {
        let mut body = unread.into_body();
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.into_data().expect("data").len();
        }
        read
    });
    let widened = server.until(Kind::WindowUpdate).await;
    assert_eq!(widened.stream, 1);
    server.frame(0, 1, 1, b"end").await;
    assert_eq!(reading.await.expect("no panic"), 64_003);
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_with_its_reason() {
    use Reason as R;
    // Sent after the settings, while stream 1 is open.
    let cases: &[(&str, &[Sent], Reason)] = &[
        ("DATA on no stream", &[(0, 0, 0, &[1])], R::PROTOCOL_ERROR),
        ("DATA on a stream that was never opened", &[(0, 0, 9, &[1])], R::PROTOCOL_ERROR),
        ("DATA with more padding than bytes", &[(0, 8, 1, &[9, 0])], R::PROTOCOL_ERROR),
        ("HEADERS on no stream", &[(1, 4, 0, OK)], R::PROTOCOL_ERROR),
        ("HEADERS on an even stream", &[(1, 4, 2, OK)], R::PROTOCOL_ERROR),
        ("HEADERS on a stream that was never opened", &[(1, 4, 3, OK)], R::PROTOCOL_ERROR),
        ("fields that cannot be decoded", &[(1, 4, 1, &[0xff, 0xff, 0xff, 0xff])], R::COMPRESSION_ERROR),
        ("PRIORITY of the wrong size", &[(2, 0, 1, &[0; 4])], R::FRAME_SIZE_ERROR),
        ("RST_STREAM of the wrong size", &[(3, 0, 1, &[0; 3])], R::FRAME_SIZE_ERROR),
        ("RST_STREAM of a stream that was never opened", &[(3, 0, 9, &[0; 4])], R::PROTOCOL_ERROR),
        ("SETTINGS on a stream", &[(4, 0, 1, &[])], R::PROTOCOL_ERROR),
        ("SETTINGS of the wrong size", &[(4, 0, 0, &[0; 5])], R::FRAME_SIZE_ERROR),
        ("an answer to SETTINGS with settings", &[(4, 1, 0, &[0; 6])], R::FRAME_SIZE_ERROR),
        ("a window that is too large", &[(4, 0, 0, &[0, 4, 0x80, 0, 0, 0])], R::FLOW_CONTROL_ERROR),
        ("PUSH_PROMISE", &[(5, 4, 1, &[0, 0, 0, 2, 0x82])], R::PROTOCOL_ERROR),
        ("PING of the wrong size", &[(6, 0, 0, &[0; 7])], R::FRAME_SIZE_ERROR),
        ("PING on a stream", &[(6, 0, 1, &[0; 8])], R::PROTOCOL_ERROR),
        ("GOAWAY of the wrong size", &[(7, 0, 0, &[0; 7])], R::FRAME_SIZE_ERROR),
        ("WINDOW_UPDATE of nothing", &[(8, 0, 0, &[0; 4])], R::PROTOCOL_ERROR),
        ("WINDOW_UPDATE beyond the largest", &[(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])], R::FLOW_CONTROL_ERROR),
        ("CONTINUATION of nothing", &[(9, 4, 1, &[])], R::PROTOCOL_ERROR),
        ("something between HEADERS and CONTINUATION", &[(1, 0, 1, OK), (6, 0, 0, &[0; 8])], R::PROTOCOL_ERROR),
        ("CONTINUATION of another stream", &[(1, 0, 1, OK), (9, 4, 3, &[])], R::PROTOCOL_ERROR),
        ("a frame that is too large", &[(0, 0, 1, &[0; 16_385])], R::FRAME_SIZE_ERROR),
    ];
    for (what, frames, reason) in cases {
        let (client, mut server, task) = raw(TERMS, &[]).await;
        let calling = client.clone();
        let open = tokio::spawn(async move { sent(&calling, "/", "a").await.map(drop) });
        server.until(Kind::Data).await;
        for (kind, flags, stream, payload) in *frames {
            server.frame(*kind, *flags, *stream, payload).await;
        }
        assert_eq!(server.until(Kind::GoAway).await.reason(), *reason, "{what}");
        assert!(server.next().await.is_none(), "{what}: closed");
        assert!(matches!(task.await.expect("no panic"), Err(Lost::Connection(_))), "{what}");
        assert!(matches!(open.await.expect("no panic"), Err(Lost::Connection(_))), "{what}");
        assert!(client.is_closed(), "{what}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_the_rules_ends_its_call_alone() {
    use Reason as R;
    let cases: &[(&str, &[Sent], Reason)] = &[
        ("no status", &[(1, 5, 1, TRAILERS)], R::PROTOCOL_ERROR),
        ("a status that ends without an answer", &[(1, 5, 1, b"\x08\x03103")], R::PROTOCOL_ERROR),
        ("a field of a request", &[(1, 5, 1, &[0x88, 0x84])], R::PROTOCOL_ERROR),
        ("a field about the connection", &[(1, 5, 1, b"\x88\x00\x0aconnection\x05close")], R::PROTOCOL_ERROR),
        ("data before the head", &[(0, 0, 1, b"a")], R::PROTOCOL_ERROR),
        ("a second head", &[(1, 4, 1, OK), (1, 4, 1, OK)], R::PROTOCOL_ERROR),
        ("trailers that go on", &[(1, 4, 1, OK), (1, 4, 1, TRAILERS)], R::PROTOCOL_ERROR),
        ("less data than declared", &[(1, 4, 1, b"\x88\x0f\x0d\x012"), (0, 1, 1, b"a")], R::PROTOCOL_ERROR),
        ("more data than declared", &[(1, 4, 1, b"\x88\x0f\x0d\x012"), (0, 0, 1, b"abc")], R::PROTOCOL_ERROR),
        ("no window", &[(8, 0, 1, &[0; 4])], R::PROTOCOL_ERROR),
        ("a window beyond the largest", &[(8, 0, 1, &[0x7f, 0xff, 0xff, 0xff])], R::FLOW_CONTROL_ERROR),
        (
            "more data than the window",
            &[
                (1, 4, 1, OK),
                (0, 0, 1, &[0; 16_384]),
                (0, 0, 1, &[0; 16_384]),
                (0, 0, 1, &[0; 16_384]),
                (0, 0, 1, &[0; 16_384]),
                (0, 0, 1, &[0; 1]),
            ],
            R::FLOW_CONTROL_ERROR,
        ),
        ("fields that are too large", &[(1, 0, 1, &[b'\x88'; 1]), (9, 4, 1, &LARGE)], R::ENHANCE_YOUR_CALM),
    ];
    for (what, frames, reason) in cases {
        let (client, mut server, _task) = raw(TERMS, &[]).await;
        let calling = client.clone();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let broken = tokio::spawn(async move {
            let response = sent(&calling, "/", "a").await?;
            // What comes after the head waits until it breaks the rules.
            let _ = gone.await;
            text(response).await.map(drop)
        });
        server.until(Kind::Data).await;
        for (kind, flags, stream, payload) in *frames {
            server.frame(*kind, *flags, *stream, payload).await;
        }
        let reset = server.until(Kind::Reset).await;
        assert_eq!((reset.stream, reset.reason()), (1, *reason), "{what}");
        drop(go);
        assert_eq!(broken.await.expect("no panic"), Err(Lost::Unusable(*reason)), "{what}");
        let other = tokio::spawn(async move { text(sent(&client, "/", "b").await?).await });
        assert_eq!(server.until(Kind::Data).await.stream, 3, "{what}");
        server.frame(1, 5, 3, OK).await;
        assert!(other.await.expect("no panic").is_ok(), "{what}");
    }
}

/// More than 16 KiB of fields, as they count: `:status 200` and `accept-encoding: gzip, deflate`, over and over.
const LARGE: [u8; 600] = [0x90; 600];

#[tokio::test]
async fn early_hints_are_passed_over() {
    let (client, mut server, _task) = raw(TERMS, &[]).await;
    let calling = tokio::spawn(async move { text(sent(&client, "/", "a").await?).await });
    server.until(Kind::Data).await;
    server.frame(1, 4, 1, b"\x08\x03103").await;
    server.frame(1, 4, 1, OK).await;
    server.frame(0, 9, 1, b"\x02data\0\0").await;
    assert_eq!(calling.await.expect("no panic"), Ok((Bytes::from_static(b"data"), None)));
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_not_read_either() {
    let (_client, mut server, task) = raw(TERMS, &[]).await;
    let mut pings = Vec::new();
    for _ in 0..1000 {
        frame::put_ping(&mut pings, false, *b"answer !");
    }
    let mut sent = 0;
    // The answers fill the connection's own room, and then nothing is accepted any more.
    while tokio::time::timeout(Duration::from_millis(200), server.io.write_all(&pings)).await.is_ok() {
        sent += pings.len();
        assert!(sent < 4 << 20, "the answers to {sent} bytes wait");
    }
    drop(server);
    assert!(task.await.expect("no panic").is_err());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_pings_is_given_up() {
    for while_idle in [true, false] {
        let pings = Pings { interval: Duration::from_secs(10), timeout: Duration::from_secs(5), while_idle };
        let (client, mut server, task) = raw(ClientLimits { keepalive: Some(pings), ..TERMS }, &[]).await;
        let calling = (!while_idle).then(|| {
            let client = client.clone();
            tokio::spawn(async move { sent(&client, "/", "a").await.map(drop) })
        });
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            let ping = server.until(Kind::Ping).await;
            server.frame(6, 1, 0, &ping.payload).await;
        }
        assert!(began.elapsed() >= Duration::from_secs(30) && !client.is_closed());
        server.until(Kind::Ping).await;
        assert!(matches!(task.await.expect("no panic"), Err(Lost::Connection(_))));
        assert!(client.is_closed());
        if let Some(calling) = calling {
            assert!(matches!(calling.await.expect("no panic"), Err(Lost::Connection(_))));
        }
    }
}

#[tokio::test]
async fn a_server_that_is_none_ends_the_attempt() {
    for first in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"", b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0"] {
        let (io, mut server) = tokio::io::duplex(10_000);
        let (client, driver, greeting) = Client::start(io, TERMS);
        let task = tokio::spawn(driver);
        server.write_all(first).await.expect("room");
        server.shutdown().await.expect("open");
        assert!(greeting.await.is_err() && task.await.expect("no panic").is_err());
        assert!(client.is_closed() && call(&client, "/", whole("a")).await.is_err());
    }
}

#[tokio::test]
async fn calls_of_a_driver_that_is_dropped_end() {
    let (io, _server) = tokio::io::duplex(10_000);
    let (client, driver, greeting): (_, Driver<_>, _) = Client::start(io, TERMS);
    drop(driver);
    assert!(greeting.await.is_err() && client.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn callers_on_many_threads_all_get_their_own_answers() {
    let (io, abort) = echoing(LIMITS);
    let (client, driver, greeting) = Client::start(io, TERMS);
    tokio::spawn(driver);
    greeting.await.expect("a server");
    let failed = Arc::new(AtomicBool::new(false));
    let callers = (0..20_u32).map(|caller| {
        let (client, failed) = (client.clone(), failed.clone());
        tokio::spawn(async move {
            for round in 0..200_u32 {
                let request = [caller.to_be_bytes(), round.to_be_bytes()].concat();
                let (answer, _) = text(sent(&client, "/", request.clone()).await.expect("sent")).await.expect("whole");
                failed.fetch_or(answer != request, Ordering::SeqCst);
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    tokio::time::timeout(Duration::from_secs(60), join_all(callers)).await.expect("it ends");
    assert!(!failed.load(Ordering::SeqCst));
    assert_eq!(HashSet::from([client.is_closed()]), HashSet::from([false]));
    abort.cancel();
}
