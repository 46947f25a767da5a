//! Tests of the queue for long turns.

use std::sync::atomic::AtomicIsize;

use super::{
    turns::{Greedy, open_wide},
    *,
};

/// A queue with one place, and the number of connections that wait in it.
fn queue() -> (TurnQueue, impl Fn() -> isize) {
    let waiting = Arc::new(AtomicIsize::new(0));
    let count = waiting.clone();
    let report = move |waits| {
        waiting.fetch_add(if waits { 1 } else { -1 }, Ordering::Relaxed);
    };
    (TurnQueue::new(1, report), move || count.load(Ordering::Relaxed))
}

/// One request, which is answered without an end.
fn asks() -> Bytes {
    let mut asks = open_wide();
    frame::put_headers(&mut asks, POST, true, 1, 16_384);
    asks.into()
}

/// A connection that always has more to send, and the number of pieces that it has sent.
fn greedy(queue: &TurnQueue) -> (impl Future<Output = Result<(), Ended>> + Send + Unpin, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let service = move |_: Request<Body>| {
        let count = count.clone();
        async move {
            let piece = Bytes::from_static(&[7; 16 << 10]);
            let pieces = std::iter::repeat_with(move || {
                count.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Failure>(Frame::data(piece.clone()))
            });
            let pieces = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
            Ok::<_, Failure>(Response::new(pieces.boxed_unsync()))
        }
    };
    let connection = Connection::new(Greedy(asks()), service, LIMITS, std::future::pending(), std::future::pending());
    (connection.sharing(Some(queue.clone())), sent)
}

/// Polls a connection until it waits for others; it may take a few polls until it runs.
fn poll(connection: &mut (impl Future<Output = Result<(), Ended>> + Unpin)) {
    let polled = Pin::new(connection).poll(&mut Context::from_waker(std::task::Waker::noop()));
    assert!(polled.is_pending(), "{polled:?}");
}

#[tokio::test]
async fn connections_that_always_have_more_to_do_have_a_turn_one_after_the_other() {
    let (queue, waiting) = queue();
    let mut all: Vec<_> = (0..5).map(|_| greedy(&queue)).collect();
    let sent = |all: &[(_, Arc<AtomicUsize>)]| -> Vec<usize> {
        all.iter().map(|(_, sent)| sent.load(Ordering::Relaxed)).collect()
    };
    let mut order = Vec::new();
    while order.len() < 20 {
        for place in 0..all.len() {
            let before = sent(&all);
            poll(&mut all[place].0);
            if sent(&all) != before {
                order.push(place);
            }
        }
        assert!(waiting() + 1 >= all.len() as isize, "at most one has a place");
    }
    assert_eq!(order, [0, 1, 2, 3, 4].repeat(4), "whoever waits longest is next");
    // The place is already its own, but it does not know that yet.
    drop(all.remove(0));
    let before = sent(&all);
    all.iter_mut().for_each(|(connection, _)| poll(connection));
    assert_eq!(waiting() + 1, all.len() as isize, "the next one has the place");
    for _ in 0..2 {
        poll(&mut all[0].0);
    }
    assert!(sent(&all)[0] > before[0], "and its turn");
    drop(all);
    assert_eq!(waiting(), 0);
}

#[tokio::test]
async fn the_first_request_of_a_connection_waits_for_its_turn_and_the_next_ones_do_not() {
    let (queue, waiting) = queue();
    let mut held = queue.join();
    assert!(held.poll_held(&mut Context::from_waker(std::task::Waker::noop())).is_ready());

    let (client, io) = tokio::io::duplex(10_000);
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let service = move |_: Request<Body>| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok::<_, Failure>(Response::new(bytes("done"))))
    };
    let connection = Connection::new(io, service, LIMITS, std::future::pending(), std::future::pending());
    let _task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection.sharing(Some(queue.clone()))));
    let mut raw = Raw::greet(client).await;
    raw.until(Kind::Settings).await;
    raw.post(1, true).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((served.load(Ordering::Relaxed), waiting()), (0, 1));
    drop(held);
    raw.until(Kind::Data).await;
    assert_eq!((served.load(Ordering::Relaxed), waiting()), (1, 0));

    let mut held = queue.join();
    assert!(held.poll_held(&mut Context::from_waker(std::task::Waker::noop())).is_ready(), "the turn is over");
    raw.post(3, true).await;
    raw.until(Kind::Data).await;
    assert_eq!((served.load(Ordering::Relaxed), waiting()), (2, 0));
}
