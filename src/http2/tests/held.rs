//! Tests of how much memory a peer can occupy by unfinished requests, and for how long.

use super::*;

/// A `POST` with three hundred fields in as many bytes: all but the first are in the table.
fn many_fields() -> Vec<u8> {
    [POST, b"\x40\x01a\x00", &[0xbe; 300]].concat()
}

#[tokio::test]
async fn unanswered_requests_take_no_more_than_their_bound_in_fields_and_leave_it_to_others_when_they_end() {
    let Served { client, mut calls, open, refused: told, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    let mut out = Vec::new();
    for number in 0..100 {
        frame::put_headers(&mut out, &many_fields(), false, number * 2 + 1, 16_384);
    }
    frame::put_ping(&mut out, false, [1; 8]);
    raw.send(&out).await;
    let mut refused = 0;
    loop {
        let got = raw.next().await.expect("open");
        match got.kind {
            Kind::Reset => {
                assert_eq!(got.reason(), Reason::REFUSED_STREAM);
                refused += 1;
            }
            Kind::Ping => break,
            _ => {}
        }
    }
    let mut taken = Vec::new();
    while let Ok(calls) = calls.try_recv() {
        taken.push(calls);
    }
    assert_eq!(taken.len() + refused, 100);
    assert_eq!(*told.lock(), vec![Refused::Unanswered; refused], "each refusal is reported, so that it can be counted");
    assert_eq!(taken.len(), open.load(Ordering::SeqCst));
    // Each field takes about two hundred bytes of memory, not the few that were sent.
    let room = LIMITS.unanswered / (300 * 200);
    assert!((room / 2..=room).contains(&taken.len()), "{} of them, and room for some {room}", taken.len());
    // When one request ends, one more is served.
    raw.frame(3, 0, 1, &[0, 0, 0, 8]).await;
    raw.frame(1, 5, 201, &many_fields()).await;
    echo(calls.recv().await.expect("a request"));
    assert_eq!(raw.until(Kind::Headers).await.stream, 201);
}

#[tokio::test]
async fn unfinished_bodies_take_no_more_than_their_bound_though_their_handlers_have_read_them() {
    let Served { client, mut calls, refused, .. } = serve(LIMITS);
    let collect = tokio::spawn(async move {
        let mut answers = Vec::new();
        while let Some((request, answer)) = calls.recv().await {
            answers.push(answer);
            tokio::spawn(request.into_body().collect());
        }
        answers
    });
    let mut raw = Raw::greet(client).await;
    let mut sent = 0;
    let reset = 'all: loop {
        for number in 0..90 {
            if sent == number {
                raw.post(number * 2 + 1, false).await;
            }
            raw.frame(0, 0, number * 2 + 1, &[0; 16_000]).await;
            sent += 1;
            assert!(sent < 1000, "all of them are held");
            raw.frame(6, 0, 0, &[1; 8]).await;
            loop {
                let got = raw.next().await.expect("open");
                match got.kind {
                    Kind::Reset => break 'all got,
                    Kind::Ping => break,
                    _ => {}
                }
            }
        }
    };
    assert_eq!(reset.reason(), Reason::ENHANCE_YOUR_CALM);
    assert_eq!(*refused.lock(), [Refused::Unanswered]);
    let room = LIMITS.unanswered as u32 / 16_000;
    assert!((room / 2..=room + 1).contains(&sent), "{sent} pieces, and room for {room}");
    drop(raw);
    drop(collect.await);
}

#[tokio::test]
async fn what_comes_on_a_stream_that_is_answered_is_not_counted() {
    let (client, _abort) = echoing(LIMITS);
    let mut raw = Raw::greet(client).await;
    raw.post(1, false).await;
    let mut echoed = 0;
    while echoed < 3 * LIMITS.unanswered {
        raw.frame(0, 0, 1, &[0; 16_000]).await;
        let mut back = 0;
        while back < 16_000 {
            back += raw.until(Kind::Data).await.payload.len();
        }
        raw.frame(8, 0, 0, &(back as u32).to_be_bytes()).await;
        raw.frame(8, 0, 1, &(back as u32).to_be_bytes()).await;
        echoed += back;
    }
}

/// Sends a byte of `frames` every twenty seconds until the connection ends.
async fn drip(limits: Limits, frames: &[u8]) -> (Result<(), Ended>, Duration) {
    let Served { client, calls: _calls, task, .. } = serve(limits);
    let mut raw = Raw::greet(client).await;
    let begun = tokio::time::Instant::now();
    for byte in frames {
        raw.send(&[*byte]).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        if task.is_finished() {
            return (task.await.expect("no panic"), begun.elapsed());
        }
    }
    panic!("the connection stays open while a byte comes now and then");
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_is_no_sign_of_life() {
    let mut frames = Vec::new();
    frame::put_data(&mut frames, 100, false, 1);
    frames.resize(50, 0);
    let keepalive = Keepalive { interval: Duration::from_secs(30), timeout: Duration::from_secs(20) };
    let (ended, after) = drip(Limits { keepalive: Some(keepalive), ..LIMITS }, &frames).await;
    assert!(matches!(ended, Err(Ended::Silent)), "{ended:?}");
    assert!(after <= Duration::from_secs(80), "{after:?}");
    let (ended, after) = drip(LIMITS, &frames).await;
    assert!(matches!(ended, Err(Ended::Unfinished)), "{ended:?}");
    assert!(after <= 2 * Limits::UNFINISHED + Duration::from_secs(20), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn fields_that_do_not_end_in_time_end_the_connection_though_each_frame_is_whole() {
    let Served { client, calls: _calls, task, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    let begun = tokio::time::Instant::now();
    raw.frame(1, 0, 1, POST).await;
    while !task.is_finished() {
        raw.frame(9, 0, 1, &[]).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    assert!(matches!(task.await.expect("no panic"), Err(Ended::Unfinished)));
    assert!(begun.elapsed() <= 2 * Limits::UNFINISHED + Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_body_of_which_nothing_more_comes_is_reset_and_no_other_stream() {
    let Served { client, mut calls, task, .. } = serve(LIMITS);
    let mut raw = Raw::greet(client).await;
    // Four requests: begun and abandoned; begun and answered, like a watch; not begun; begun and continued.
    let mut requests = Vec::new();
    for stream in [1, 3, 5, 7] {
        raw.post(stream, false).await;
        requests.push(calls.recv().await.expect("a request"));
    }
    for stream in [1, 3, 7] {
        raw.frame(0, 0, stream, b"begun").await;
    }
    echo(requests.remove(1));
    let mut reset = Vec::new();
    for _ in 0..20 {
        raw.frame(0, 0, 7, b"more").await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        raw.frame(6, 0, 0, &[1; 8]).await;
        loop {
            let got = raw.next().await.expect("open");
            match got.kind {
                Kind::Reset => reset.push((got.stream, got.reason())),
                Kind::Ping => break,
                _ => {}
            }
        }
    }
    assert_eq!(reset, [(1, Reason::CANCEL)]);
    let error = requests.remove(0).0.into_body().collect().await.expect_err("reset");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert!(!task.is_finished());
}
