//! Tests of how much each side may send.

use super::*;

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

#[tokio::test]
async fn more_than_the_windows_allow_is_refused() {
    let Served { client, calls: _calls, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.post(1, false).await;
    for _ in 0..5 {
        // Nobody reads the body, so the window is not widened.
        raw.frame(0, 0, 1, &[0; 16_000]).await;
    }
    assert_eq!(raw.until(Kind::Reset).await.reason(), Reason::FLOW_CONTROL_ERROR);

    let Served { client, calls: _calls, .. } = serve(Limits { stream_window: 1 << 20, ..LIMITS });
    let mut raw = Raw::greet(client).await;
    raw.post(1, false).await;
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
    let Served { client, mut calls, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    // A window of 2,500 bytes per stream.
    raw.frame(4, 0, 0, &[0, 4, 0, 0, 9, 196]).await;
    raw.post(1, true).await;
    let polled = Arc::new(AtomicUsize::new(0));
    let (_, answer) = calls.recv().await.expect("a request");
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
    let Served { client, mut calls, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.frame(4, 0, 0, &[0, 4, 0, 16, 0, 0]).await;
    for stream in [1, 3] {
        raw.post(stream, true).await;
        let (_, answer) = calls.recv().await.expect("a request");
        let _ = answer.send(Response::new(Endless(Arc::default()).boxed_unsync()));
    }
    let mut got = 0;
    while got < 65_535 {
        got += raw.until(Kind::Data).await.payload.len();
    }
    assert_eq!(got, 65_535);
    // Each time as much as one of them could take alone.
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
    let Served { client, mut calls, .. } = serve(LIMITS);
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
        let (_, answer) = calls.recv().await.expect("a request");
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
    let Served { client, calls: _calls, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    // More than the window of the connection, in total.
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
    let Served { client, calls: _calls, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.post(1, false).await;
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
