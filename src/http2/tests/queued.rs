//! Tests of the queue for long turns.

use std::{io::IoSlice, sync::atomic::AtomicIsize, task::Waker};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    super::queue::Place,
    turns::{Greedy, burn, open_wide},
    *,
};
use crate::types::ClientKey;

/// Whose connections they are, where it does not matter.
const CLIENT: ClientKey = ClientKey::new(1);

/// A queue with one place, and the number of connections that wait in it.
fn queue() -> (TurnQueue, impl Fn() -> isize) {
    let waiting = Arc::new(AtomicIsize::new(0));
    let count = waiting.clone();
    let report = move |wait| {
        waiting.fetch_add(if wait == TurnWait::Began { 1 } else { -1 }, Ordering::Relaxed);
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
    (connection.sharing(queue.clone(), CLIENT), sent)
}

/// Polls a connection once. It may take a few polls until it runs.
fn poll(connection: &mut (impl Future<Output = Result<(), Ended>> + Unpin)) {
    let polled = Pin::new(connection).poll(&mut Context::from_waker(Waker::noop()));
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
    let mut held = queue.join(CLIENT);
    assert!(held.poll_held(&mut Context::from_waker(Waker::noop())).is_ready());

    let (client, io) = tokio::io::duplex(10_000);
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let service = move |_: Request<Body>| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok::<_, Failure>(Response::new(bytes("done"))))
    };
    let connection = Connection::new(io, service, LIMITS, std::future::pending(), std::future::pending());
    let _task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection.sharing(queue.clone(), CLIENT)));
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

    let mut held = queue.join(CLIENT);
    assert!(held.poll_held(&mut Context::from_waker(Waker::noop())).is_ready(), "the turn is over");
    raw.post(3, true).await;
    raw.until(Kind::Data).await;
    assert_eq!((served.load(Ordering::Relaxed), waiting()), (2, 0));
}

/// Takes the only place of a queue.
fn take(queue: &TurnQueue) -> Place {
    let mut place = queue.join(CLIENT);
    assert!(place.poll_held(&mut Context::from_waker(Waker::noop())).is_ready(), "there is a place");
    place
}

/// Lets other tasks run until this holds.
async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000_000 {
        if holds() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never holds");
}

#[tokio::test(start_paused = true)]
async fn there_are_more_places_while_a_place_is_long_before_its_turn_and_fewer_afterwards() {
    let (queue, _) = queue();
    // One turn, while all other places are taken and somebody waits.
    let turn = |waited: Duration| {
        let mut place = take(&queue);
        let others: Vec<_> = (1..queue.places()).map(|_| take(&queue)).collect();
        let mut waits = queue.join(CLIENT);
        assert!(waits.poll_held(&mut Context::from_waker(Waker::noop())).is_pending());
        burn(waited);
        place.begin_turn();
        burn(Duration::from_millis(1));
        drop(place);
        drop((others, waits));
    };
    // Of ten milliseconds, a turn takes one. With five places, that is half of the time.
    for _ in 0..20 {
        turn(Duration::from_millis(9));
    }
    assert_eq!(queue.places(), 5);
    for _ in 0..20 {
        turn(Duration::ZERO);
    }
    assert_eq!(queue.places(), 1);
}

/// All tasks share one thread, and only they advance the clock.
#[tokio::test(start_paused = true)]
async fn connections_in_the_queue_get_a_good_part_of_the_time_beside_others_that_are_always_ready() {
    const LISTS: usize = 20;
    let (queue, _) = queue();
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        tasks.spawn(std::future::poll_fn(|cx| {
            burn(Duration::from_micros(50));
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
    }
    let spent = Arc::new(AtomicUsize::new(0));
    for _ in 0..LISTS {
        let spent = spent.clone();
        let service = move |_: Request<Body>| {
            let spent = spent.clone();
            async move {
                let pieces = std::iter::repeat_with(move || {
                    burn(Duration::from_micros(50));
                    spent.fetch_add(50, Ordering::Relaxed);
                    Ok::<_, Failure>(Frame::data(Bytes::from_static(&[7; 1 << 10])))
                });
                let pieces = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
                Ok::<_, Failure>(Response::new(pieces.boxed_unsync()))
            }
        };
        let connection =
            Connection::new(Greedy(asks()), service, LIMITS, std::future::pending(), std::future::pending());
        let connection = connection.sharing(queue.clone(), CLIENT);
        tasks.spawn(async move { drop(connection.await) });
    }
    while begun.elapsed() < Duration::from_secs(2) {
        tokio::task::yield_now().await;
    }
    let part = spent.load(Ordering::Relaxed) as f64 / begun.elapsed().as_micros() as f64;
    assert!((0.3..0.8).contains(&part), "{part:.2} of the time");
}

#[tokio::test]
async fn a_connection_that_waits_for_its_turn_sends_its_settings_and_ends_when_it_must() {
    let (queue, waiting) = queue();
    let _held = take(&queue);
    let (client, io) = tokio::io::duplex(10_000);
    let mut raw = Raw::greet(client).await;
    raw.post(1, true).await;
    let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
    let told = |token: &CancellationToken| Box::pin(token.clone().cancelled_owned());
    let service = |_: Request<Body>| std::future::ready(Ok::<_, Failure>(Response::new(bytes("done"))));
    let connection = Connection::new(io, service, LIMITS, told(&stop), told(&abort));
    let task = tokio::spawn(connection.sharing(queue.clone(), CLIENT));
    raw.until(Kind::Settings).await;
    until(|| waiting() > 0).await;
    abort.cancel();
    task.await.expect("no panic").expect("it ends without an error");
    assert_eq!(waiting(), 0);
}

/// A socket that takes one write at a time.
struct Filling {
    input: Bytes,
    sent: Arc<AtomicUsize>,
    room: Arc<Mutex<(bool, Option<Waker>)>>,
}

impl AsyncRead for Filling {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.input.is_empty() {
            return Poll::Pending;
        }
        let count = buf.remaining().min(self.input.len());
        buf.put_slice(&self.input.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Filling {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let mut room = self.room.lock();
        if !std::mem::take(&mut room.0) {
            room.1 = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = bufs.iter().map(|buf| buf.len()).sum::<usize>() - 1;
        self.sent.fetch_add(taken, Ordering::Relaxed);
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A connection that has sent a part of a long answer and waits for its socket, which takes a write for each call of the
/// function. Its next turn will be a long one.
async fn full(
    queue: &TurnQueue,
    abort: &CancellationToken,
) -> (tokio_util::task::AbortOnDropHandle<Result<(), Ended>>, impl Fn(), Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let room = Arc::new(Mutex::new((true, None::<Waker>)));
    let io = Filling { input: asks(), sent: sent.clone(), room: room.clone() };
    let service = |_: Request<Body>| {
        let body = http_body_util::Full::new(Bytes::from(vec![7; 64 << 20])).map_err(|never| match never {});
        std::future::ready(Ok::<_, Failure>(Response::new(body.boxed_unsync())))
    };
    let told = |token: &CancellationToken| Box::pin(token.clone().cancelled_owned());
    let connection = Connection::new(io, service, LIMITS, told(&CancellationToken::new()), told(abort));
    let connection = connection.sharing(queue.clone(), CLIENT);
    let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let socket = room.clone();
    let takes_a_write = move || {
        let mut room = socket.lock();
        room.0 = true;
        room.1.take().into_iter().for_each(Waker::wake);
    };
    // The preface, and the first long turns.
    for _ in 0..5 {
        until(|| room.lock().1.is_some()).await;
        takes_a_write();
    }
    until(|| room.lock().1.is_some()).await;
    assert!(sent.load(Ordering::Relaxed) > 128 << 10);
    (task, takes_a_write, sent)
}

#[tokio::test]
async fn a_list_that_waits_for_its_socket_waits_for_its_turn_as_well() {
    let (queue, waiting) = queue();
    let abort = CancellationToken::new();
    let (_task, takes_a_write, sent) = full(&queue, &abort).await;
    let held = take(&queue);
    let before = sent.load(Ordering::Relaxed);
    takes_a_write();
    until(|| waiting() > 0).await;
    assert_eq!(sent.load(Ordering::Relaxed), before, "another connection has the place");
    drop(held);
    until(|| sent.load(Ordering::Relaxed) > before).await;
}

#[tokio::test]
async fn a_list_that_waits_for_its_socket_ends_without_a_turn_when_it_must() {
    let (queue, waiting) = queue();
    let abort = CancellationToken::new();
    let (task, ..) = full(&queue, &abort).await;
    let _held = take(&queue);
    assert_eq!(waiting(), 0, "it would wait only when it is woken");
    abort.cancel();
    until(|| task.is_finished()).await;
    task.await.expect("no panic").expect("it ends without an error");
    assert_eq!(waiting(), 0);
}

/// Polls places until none of them gets one any more. Returns the numbers of those that hold one now, in their order.
fn held(places: &mut [Option<Place>]) -> Vec<usize> {
    let cx = &mut Context::from_waker(Waker::noop());
    let held = |place: &mut Option<Place>| place.as_mut().is_some_and(|place| place.poll_held(cx).is_ready());
    places.iter_mut().map(held).enumerate().filter_map(|(number, is_held)| is_held.then_some(number)).collect()
}

#[tokio::test]
async fn places_go_round_the_clients_however_many_connections_one_has() {
    let (queue, waiting) = queue();
    let join = |client| Some(queue.join(ClientKey::new(client)));
    let mut places: Vec<_> = [2; 1000].map(join).into();
    assert_eq!(held(&mut places), [0]);
    // Others come when a thousand wait.
    places.extend([3, 1, 3].map(join));
    assert_eq!(held(&mut places), [0]);
    let mut order = Vec::new();
    for _ in 0..8 {
        let [next] = held(&mut places)[..] else { panic!("one has the place") };
        order.push(next);
        places[next] = None;
    }
    assert_eq!(order, [0, 1000, 1, 1001, 2, 3, 4, 1002], "a round of the clients, and every second place by arrival");
    assert_eq!(waiting(), 1003 - 8, "the next one does not know of its place yet");
    // Who leaves keeps no place, given or not.
    places.truncate(10);
    let [next] = held(&mut places)[..] else { panic!("one has the place") };
    places[next] = None;
    let (given, left) = (next + 1, next + 2);
    places[left] = None;
    places[given] = None;
    assert_eq!(held(&mut places), [left + 1]);
    drop(places);
    assert_eq!(waiting(), 0);
    drop(take(&queue));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn nobody_is_forgotten_in_the_queue_whoever_leaves_it() {
    let seed: u64 = rand::rng().random();
    let waiting = Arc::new(AtomicIsize::new(0));
    let count = waiting.clone();
    let report = move |wait| {
        count.fetch_add(if wait == TurnWait::Began { 1 } else { -1 }, Ordering::Relaxed);
    };
    let queue = TurnQueue::new(2, report);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64_u64 {
        let queue = queue.clone();
        tasks.spawn(async move {
            let mut random = StdRng::seed_from_u64(seed ^ number);
            let mut turns = 0;
            while turns < 100 {
                let mut place = queue.join(ClientKey::new(1 + number % 5));
                // It polls only when it is woken, unless it leaves before.
                let mut polls = random.random_range(0..6);
                let leaves = random.random_bool(0.3);
                let got = std::future::poll_fn(|cx| {
                    if leaves && polls == 0 {
                        return Poll::Ready(false);
                    }
                    polls -= i32::from(leaves);
                    let polled = place.poll_held(cx).map(|()| true);
                    if leaves && polled.is_pending() {
                        cx.waker().wake_by_ref();
                    }
                    polled
                })
                .await;
                if got {
                    turns += 1;
                    if random.random_bool(0.8) {
                        place.begin_turn();
                    }
                    if random.random_bool(0.5) {
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
    }
    let all = tokio::time::timeout(Duration::from_secs(60), tasks.join_all()).await;
    assert!(all.is_ok(), "seed {seed}: some wait for ever: {queue:?}");
    assert_eq!(waiting.load(Ordering::Relaxed), 0);
    let all: Vec<_> = (0..queue.places()).map(|_| take(&queue)).collect();
    assert!(held(&mut [Some(queue.join(CLIENT))]).is_empty(), "seed {seed}: there are more places than that");
    drop(all);
}

#[tokio::test]
async fn clients_that_return_after_each_turn_have_at_least_their_parts_of_the_round() {
    let (queue, _) = queue();
    let clients: Vec<_> = [1; 10].into_iter().chain([2, 3]).chain([4; 5]).collect();
    let join = |client: &u64| Some(queue.join(ClientKey::new(*client)));
    let mut places: Vec<_> = clients.iter().map(join).collect();
    let mut turns = [0; 5];
    for _ in 0..800 {
        let [next] = held(&mut places)[..] else { panic!("one has the place") };
        turns[clients[next] as usize] += 1;
        places[next] = None;
        places[next] = join(&clients[next]);
    }
    // Half of the turns go round the four clients.
    assert!(turns[1..].iter().all(|turns| *turns >= 800 / 2 / 4 - 1), "{turns:?}");
}
