//! Tests of clients that break the protocol, or try to cause useless work.

use super::*;

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_with_its_reason() {
    use Reason as R;
    // Sent after the preface and one open stream, number 1.
    let cases: &[(&str, &[Sent], Reason)] = &[
        ("DATA on no stream", &[(0, 0, 0, &[1])], R::PROTOCOL_ERROR),
        ("DATA on a stream that was never opened", &[(0, 0, 9, &[1])], R::PROTOCOL_ERROR),
        ("DATA with more padding than bytes", &[(0, 8, 1, &[9, 0])], R::PROTOCOL_ERROR),
        ("HEADERS on no stream", &[(1, 4, 0, POST)], R::PROTOCOL_ERROR),
        ("HEADERS on an even stream", &[(1, 4, 2, POST)], R::PROTOCOL_ERROR),
        ("HEADERS of a lower stream number", &[(1, 5, 7, POST), (1, 5, 5, POST)], R::PROTOCOL_ERROR),
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
        let Served { client, calls: _calls, task, open, .. } = serve(LIMITS);
        let mut raw = Raw::greet(client).await;
        raw.post(1, false).await;
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
    // Sent on stream 3, beside stream 1.
    let cases: &[(&str, &[Sent], Reason)] = &[
        ("no path", &[(1, 5, 3, &[0x83, 0x86])], Reason::PROTOCOL_ERROR),
        ("a header of HTTP/1.1", &[(1, 5, 3, b"\x83\x86\x84\0\x0aconnection\x01x")], Reason::PROTOCOL_ERROR),
        ("a name in capitals", &[(1, 5, 3, b"\x83\x86\x84\0\x01A\x01x")], Reason::PROTOCOL_ERROR),
        ("more bytes than declared", &[(1, 4, 3, LONG), (0, 0, 3, b"abc")], Reason::PROTOCOL_ERROR),
        ("fewer bytes than declared", &[(1, 4, 3, LONG), (0, END, 3, b"a")], Reason::PROTOCOL_ERROR),
        ("trailers that do not end", &[(1, 4, 3, POST), (1, 4, 3, b"\0\x01a\x01x")], Reason::PROTOCOL_ERROR),
        ("DATA after the end", &[(1, 5, 3, POST), (0, 0, 3, b"a")], Reason::STREAM_CLOSED),
        ("WINDOW_UPDATE of nothing", &[(1, 4, 3, POST), (8, 0, 3, &[0; 4])], Reason::PROTOCOL_ERROR),
        (
            "WINDOW_UPDATE beyond the largest",
            &[(1, 4, 3, POST), (8, 0, 3, &[0x7f, 0xff, 0xff, 0xff])],
            Reason::FLOW_CONTROL_ERROR,
        ),
    ];
    for (what, frames, reason) in cases {
        let Served { client, mut calls, open, .. } = serve(LIMITS);
        let mut raw = Raw::greet(client).await;
        raw.post(1, false).await;
        let first = calls.recv().await.expect("a request");
        for (kind, flags, stream, payload) in *frames {
            raw.frame(*kind, *flags, *stream, payload).await;
        }
        let reset = raw.until(Kind::Reset).await;
        assert_eq!((reset.stream, reset.reason()), (3, *reason), "{what}");
        // Frames that were already under way are not an error.
        raw.frame(0, END, 3, b"late").await;
        raw.frame(0, END, 1, b"hello").await;
        echo(first);
        let data = raw.until(Kind::Data).await;
        assert_eq!((data.stream, &data.payload[..]), (1, &b"hello"[..]), "{what}");
        assert_eq!(open.load(Ordering::SeqCst), 0, "{what}: no handler is left");
    }
}

#[tokio::test]
async fn too_many_streams_are_refused_and_the_others_stay() {
    let Served { client, mut calls, refused, .. } = serve(Limits { max_streams: 2, ..LIMITS });
    let mut raw = Raw::greet(client).await;
    for stream in [1, 3, 5] {
        raw.post(stream, true).await;
    }
    let reset = raw.until(Kind::Reset).await;
    assert_eq!((reset.stream, reset.reason()), (5, Reason::REFUSED_STREAM));
    assert_eq!(*refused.lock(), [Refused::Streams]);
    for _ in 0..2 {
        echo(calls.recv().await.expect("a request"));
    }
    assert_eq!(raw.until(Kind::Headers).await.stream, 1);
    assert_eq!(raw.until(Kind::Headers).await.stream, 3);
    raw.post(7, true).await;
    echo(calls.recv().await.expect("a request"));
    assert_eq!(raw.until(Kind::Headers).await.stream, 7);
}

#[tokio::test]
async fn fields_beyond_the_limit_are_refused_alone_or_end_an_endless_block() {
    let Served { client, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    // One entry of the table, referenced over and over: small on the wire, large when decoded.
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
    let Served { client, mut calls, .. } = serve(LIMITS);
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
    while calls.recv().await.is_some() {
        given += 1;
    }
    assert!(given < 1_000, "{given} handlers were called for nothing");
}

/// Returns a ping with each read, forever, and accepts no output.
struct Pinging {
    read: usize,
}

impl tokio::io::AsyncRead for Pinging {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        assert!(self.read < 10_000_000, "the connection never ends");
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

#[tokio::test]
async fn a_client_that_sends_little_at_a_time_without_end_is_not_read_from_for_ever() {
    let mut connection = std::pin::pin!(by_hand(Pinging { read: 0 }, LIMITS));
    assert!(futures_util::poll!(connection.as_mut()).is_pending());
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_not_read_from_for_ever() {
    let Served { client, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    let mut ping = Vec::new();
    frame::put_ping(&mut ping, false, [1; 8]);
    let pings = ping.repeat(1_000_000);
    // Each ping asks for an answer of its own size.
    let sent = tokio::time::timeout(Duration::from_millis(500), raw.io.write_all(&pings)).await;
    assert!(sent.is_err(), "all of it was taken");
}

/// A body that panics.
struct Panicking;

impl http_body::Body for Panicking {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        panic!("the test makes it panic")
    }
}

#[tokio::test]
async fn a_panic_in_an_answer_ends_its_stream_alone() {
    let Served { client, mut calls, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.post(1, true).await;
    let first = calls.recv().await.expect("a request");
    raw.post(3, true).await;
    let (_, answer) = calls.recv().await.expect("a request");
    let _ = answer.send(Response::new(Panicking.boxed_unsync()));
    let reset = raw.until(Kind::Reset).await;
    assert_eq!((reset.stream, reset.reason()), (3, Reason::INTERNAL_ERROR));
    echo(first);
    assert_eq!(raw.until(Kind::Headers).await.stream, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_bytes_make_it_panic(
        frames in prop::collection::vec((0..11_u8, any::<u8>(), 0..8_u32, prop::collection::vec(any::<u8>(), 0..40)), 0..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let Served { client, mut calls, task, .. } = serve(LIMITS);
            tokio::spawn(async move {
                while let Some(calls) = calls.recv().await {
                    echo(calls);
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
            prop_assert!(task.await.is_ok(), "it ends without a panic");
            Ok(())
        })?;
    }
}
