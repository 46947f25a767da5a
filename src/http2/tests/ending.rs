//! Tests of answers, and of the end of a connection.

use super::*;

#[tokio::test]
async fn who_resets_a_stream_ends_its_handler_or_its_body() {
    let Served { client, mut calls, open, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.post(1, false).await;
    let (request, _answer) = calls.recv().await.expect("a request");
    raw.frame(3, 0, 1, &[0, 0, 0, 8]).await;
    let error = request.into_body().collect().await.expect_err("reset");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(open.load(Ordering::SeqCst), 0);

    raw.post(3, true).await;
    let (_, answer) = calls.recv().await.expect("a request");
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
    let Served { client, mut calls, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.post(1, false).await;
    let (_, answer) = calls.recv().await.expect("a request");
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
        (Failure::from(h2::Error::from(Reason::ENHANCE_YOUR_CALM)), Reason::ENHANCE_YOUR_CALM),
        (Failure::from("broken"), Reason::INTERNAL_ERROR),
    ] {
        let Served { client, mut calls, .. } = serve(LIMITS);
        let mut raw = Raw::greet(client).await;
        raw.post(1, true).await;
        let (_, answer) = calls.recv().await.expect("a request");
        let frames = tokio_stream::iter([Ok(Frame::data(Bytes::from_static(b"one"))), Err(error)]);
        let _ = answer.send(Response::new(http_body_util::StreamBody::new(frames).boxed_unsync()));
        assert_eq!(raw.until(Kind::Reset).await.reason(), reason);
    }
}

#[tokio::test]
async fn an_answer_to_head_has_the_length_and_no_body() {
    let Served { client, mut calls, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    let head = b"\0\x07:method\x04HEAD\x86\x84";
    raw.frame(1, 5, 1, head).await;
    let (request, answer) = calls.recv().await.expect("a request");
    assert_eq!(request.method(), Method::HEAD);
    let _ = answer.send(Response::new(bytes("four")));
    let head = raw.until(Kind::Headers).await;
    assert_eq!((head.flags & END, &head.payload[..]), (END, &b"\x88\x0f\x0d\x014"[..]));
}

#[tokio::test]
async fn a_smaller_table_of_fields_is_told_to_the_client_once() {
    let Served { client, mut calls, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.frame(4, 0, 0, &[0, 1, 0, 0, 0, 0]).await;
    for (stream, expected) in [(1, &b"\x20\x88"[..]), (3, b"\x88")] {
        raw.post(stream, true).await;
        echo(calls.recv().await.expect("a request"));
        assert!(raw.until(Kind::Headers).await.payload.starts_with(expected));
    }
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
    // As if the process had been delayed meanwhile.
    tokio::time::advance(Duration::from_secs(100)).await;
    assert!(futures_util::poll!(connection.as_mut()).is_pending());
    // It pings again, and this time nobody answers.
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(61)).await;
        if let Poll::Ready(ended) = futures_util::poll!(connection.as_mut()) {
            assert!(matches!(ended, Err(Ended::Silent)));
            return;
        }
    }
    panic!("the connection never ends");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_pings_is_dropped_and_one_that_does_stays() {
    let keepalive = Keepalive { interval: Duration::from_secs(60), timeout: Duration::from_secs(20) };
    let limits = Limits { keepalive: Some(keepalive), ..LIMITS };
    let begun = tokio::time::Instant::now();
    let Served { client, calls: _calls, task, .. } = serve(limits);
    let _raw = Raw::greet(client).await;
    assert!(matches!(task.await.expect("no panic"), Err(Ended::Silent)));
    assert!((79..=81).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());

    let Served { client, mut calls, .. } = serve(limits);
    let mut raw = Raw { io: client, read: BytesMut::new() };
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    raw.frame(4, 0, 0, &[]).await;
    for _ in 0..5 {
        let mut frame = [0; HEAD];
        // Without a timeout, which would advance the paused clock.
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
    raw.post(1, true).await;
    echo(calls.recv().await.expect("a request"));
}

#[tokio::test]
async fn a_stop_serves_what_was_under_way_and_nothing_later() {
    let Served { client, mut calls, stop, task, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.post(1, true).await;
    let first = calls.recv().await.expect("a request");
    stop.cancel();
    let warning = raw.until(Kind::GoAway).await;
    assert_eq!((warning.payload[..4].to_vec(), warning.reason()), (vec![0x7f, 0xff, 0xff, 0xff], Reason::NO_ERROR));
    let ping = raw.until(Kind::Ping).await;
    // Sent before the client knew that the server stops.
    raw.post(3, true).await;
    raw.frame(6, 1, 0, &ping.payload).await;
    assert_eq!(raw.until(Kind::GoAway).await.payload[..4], [0, 0, 0, 3]);
    // Too late to be served, but no reason to drop the streams that are served.
    raw.post(5, false).await;
    raw.frame(0, 0, 5, b"late").await;
    raw.frame(8, 0, 5, &[0, 0, 0, 1]).await;
    raw.frame(3, 0, 5, &[0, 0, 0, 8]).await;
    echo(first);
    echo(calls.recv().await.expect("a request"));
    assert_eq!(raw.until(Kind::Headers).await.stream, 1);
    assert_eq!(raw.until(Kind::Headers).await.stream, 3);
    while let Some(frame) = raw.next().await {
        assert_ne!(frame.stream, 5);
    }
    assert!(task.await.expect("no panic").is_ok());
    assert!(calls.recv().await.is_none());
}

#[tokio::test]
async fn an_abort_drops_everything() {
    let Served { client, mut calls, abort, task, open, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.post(1, true).await;
    let _call = calls.recv().await.expect("a request");
    abort.cancel();
    assert!(task.await.expect("no panic").is_ok());
    assert_eq!(open.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_says_that_it_leaves_is_served_to_the_end() {
    let Served { client, mut calls, task, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.post(1, true).await;
    raw.frame(7, 0, 0, &[0; 8]).await;
    echo(calls.recv().await.expect("a request"));
    assert_eq!(raw.until(Kind::Headers).await.stream, 1);
    assert!(task.await.expect("no panic").is_ok());
}
