//! Tests of how long one connection may keep its thread, on a clock that only the handlers advance.

use std::{
    cell::{Cell, RefCell},
    io,
    io::IoSlice,
    pin::pin,
    rc::Rc,
    task::Waker,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

use super::{super::wake::WakeSource, *};

/// Advances the paused clock.
pub(super) fn burn(time: Duration) {
    let mut advance = pin!(tokio::time::advance(time));
    let _ = advance.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

/// A handler that counts its runs and takes `time` for each.
struct Slow {
    time: Duration,
    polled: Rc<Cell<usize>>,
    dropped: Option<Rc<Cell<usize>>>,
    answers: bool,
}

impl Future for Slow {
    type Output = Result<Answer, Failure>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        self.polled.update(|polled| polled + 1);
        if self.dropped.is_none() {
            burn(self.time);
        }
        if self.answers { Poll::Ready(Ok(Response::new(bytes("done")))) } else { Poll::Pending }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        if let Some(dropped) = &self.dropped {
            dropped.update(|dropped| dropped + 1);
            burn(self.time);
        }
    }
}

/// What a client sends first, followed by this many requests.
fn requests(count: u32) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame::put_head(&mut out, 0, 4, 0, 0);
    for number in 0..count {
        frame::put_headers(&mut out, POST, true, number * 2 + 1, 16_384);
    }
    out
}

/// Polls until `count` reaches `done`. Returns by how much it grew in each turn.
async fn turns(
    connection: &mut (impl Future<Output = Result<(), Ended>> + Unpin),
    count: &Cell<usize>,
    done: usize,
) -> Vec<usize> {
    let mut grown = Vec::new();
    while count.get() < done {
        let before = count.get();
        let wakes = super::super::wake::WakeList::new(1);
        let flag = wakes.flag(WakeSource::READ);
        let woken = Waker::from(flag);
        let polled = Pin::new(&mut *connection).poll(&mut Context::from_waker(&woken));
        grown.push(count.get() - before);
        // It is woken at once, or after the next check of the sockets.
        tokio::task::yield_now().await;
        let is_woken = wakes.look(&mut super::super::wake::WakeSources::new(), &Context::from_waker(Waker::noop()));
        assert!(polled.is_ready() || count.get() == done || is_woken, "it stopped with {} of {done}", count.get());
    }
    grown
}

#[tokio::test(start_paused = true)]
async fn costly_handlers_of_one_connection_leave_time_to_others_after_each() {
    let (mut client, io) = tokio::io::duplex(1 << 20);
    let polled = Rc::new(Cell::new(0));
    let count = polled.clone();
    let service =
        move |_: Request<Body>| Slow { time: Limits::TURN, polled: count.clone(), dropped: None, answers: true };
    let limits = Limits { max_streams: 1000, unanswered: usize::MAX, ..LIMITS };
    let mut connection = Connection::new(io, service, limits, std::future::pending(), std::future::pending());
    client.write_all(&requests(100)).await.expect("sent");
    let turns = turns(&mut connection, &polled, 100).await;
    assert!(turns.iter().all(|polls| *polls <= 1), "handlers in a turn: {turns:?}");
}

#[tokio::test(start_paused = true)]
async fn what_many_streams_leave_is_dropped_in_turns_however_they_end() {
    /// The most handlers in a turn: each takes a tenth of the turn, and the clock is read only now and then.
    const MOST: usize = 10 + 16;
    for how in ["closed", "aborted", "at fault", "reset"] {
        let (mut client, io) = tokio::io::duplex(1 << 20);
        let (polled, dropped) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (polls, drops) = (polled.clone(), dropped.clone());
        let time = Limits::TURN / 10;
        let service =
            move |_: Request<Body>| Slow { time, polled: polls.clone(), dropped: Some(drops.clone()), answers: false };
        let limits = Limits { max_streams: 1000, unanswered: usize::MAX, ..LIMITS };
        let abort = CancellationToken::new();
        let told = |token: &CancellationToken| Box::pin(token.clone().cancelled_owned());
        let mut connection = Connection::new(io, service, limits, told(&CancellationToken::new()), told(&abort));
        client.write_all(&requests(1000)).await.expect("sent");
        turns(&mut connection, &polled, 1000).await;
        let mut out = Vec::new();
        match how {
            "aborted" => abort.cancel(),
            "at fault" => frame::put_head(&mut out, 0, 0, 0, 0),
            "reset" => (0..1000).for_each(|number| frame::put_reset(&mut out, number * 2 + 1, Reason::CANCEL)),
            _ => client.shutdown().await.expect("closed"),
        }
        client.write_all(&out).await.expect("sent");
        let turns = turns(&mut connection, &dropped, 1000).await;
        assert!(turns.iter().all(|drops| *drops <= MOST), "{how}: streams dropped in a turn: {turns:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_are_not_read_faster_than_their_handlers_are_called() {
    const STREAMS: u32 = 20_000;
    let (mut client, io) = tokio::io::duplex(4 << 20);
    let polled = Rc::new(Cell::new(0));
    let count = polled.clone();
    // Each turn calls only a few handlers, but could read thousands of requests.
    let time = Limits::TURN / 4;
    let service = move |_: Request<Body>| Slow { time, polled: count.clone(), dropped: None, answers: true };
    // All streams that are requested at once would not fit.
    let limits = Limits { max_streams: STREAMS, unanswered: 8 << 20, ..LIMITS };
    let mut connection = Connection::new(io, service, limits, std::future::pending(), std::future::pending());
    client.write_all(&requests(STREAMS)).await.expect("sent");
    let reading = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
        client
    });
    while polled.get() < STREAMS as usize {
        tokio::task::yield_now().await;
        let polled = Pin::new(&mut connection).poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "{polled:?}");
    }
    reading.abort();
}

#[tokio::test]
async fn all_streams_of_a_connection_that_are_called_at_once_are_looked_at_in_turns_and_none_is_missed() {
    const STREAMS: u32 = 20_000;
    let (mut client, io) = tokio::io::duplex(4 << 20);
    let polled = Rc::new(Cell::new(0));
    let count = polled.clone();
    let wakers = Rc::new(RefCell::new(Vec::new()));
    let kept = wakers.clone();
    let service = move |_: Request<Body>| {
        let (count, kept) = (count.clone(), kept.clone());
        std::future::poll_fn(move |cx| -> Poll<Result<Answer, Failure>> {
            count.update(|polled| polled + 1);
            kept.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
    };
    let limits = Limits { max_streams: STREAMS, unanswered: usize::MAX, ..LIMITS };
    let mut connection = Connection::new(io, service, limits, std::future::pending(), std::future::pending());
    client.write_all(&requests(STREAMS)).await.expect("sent");
    turns(&mut connection, &polled, STREAMS as usize).await;
    wakers.take().into_iter().for_each(Waker::wake);
    turns(&mut connection, &polled, 2 * STREAMS as usize).await;
}

/// What a client sends first that accepts any amount of data.
pub(super) fn open_wide() -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame::put_head(&mut out, 6, 4, 0, 0);
    out.extend([0, 4, 0x7f, 0xff, 0xff, 0xff]);
    frame::put_window_update(&mut out, 0, 0x7fff_0000);
    out
}

/// A client that accepts everything, but only so much at once.
struct Accepting {
    at_once: usize,
    noted: Rc<RefCell<Noted>>,
}

#[derive(Default)]
struct Noted {
    /// What the client has sent and the connection has not read.
    sent: Vec<u8>,
    reader: Option<Waker>,
    /// The bytes of each write.
    writes: Vec<usize>,
}

impl AsyncRead for Accepting {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut noted = self.noted.borrow_mut();
        if noted.sent.is_empty() {
            noted.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        buf.put_slice(&std::mem::take(&mut noted.sent));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Accepting {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let count = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(self.at_once);
        self.noted.borrow_mut().writes.push(count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The clock stands still, so only the writes end turns.
#[tokio::test(start_paused = true)]
async fn a_turn_ends_with_a_large_write_and_an_answer_that_ends_soon_is_one_if_the_socket_takes_much() {
    const KIB: usize = 1 << 10;
    let sizes = [200 * KIB, 300 * KIB, 300 * KIB, 700 * KIB];
    // The second row is a socket that takes no large write at once, as with TLS.
    for (at_once, turns) in [(usize::MAX, [2, 1, 1, 3]), (64 * KIB, [2, 3, 3, 6])] {
        let noted = Rc::new(RefCell::new(Noted { sent: open_wide(), ..Noted::default() }));
        let left = RefCell::new(sizes.into_iter());
        let service = move |_: Request<Body>| {
            let data = Bytes::from(vec![7; left.borrow_mut().next().unwrap_or(0)]);
            let body = http_body_util::Full::new(data).map_err(|never| match never {}).boxed_unsync();
            std::future::ready(Ok::<_, Failure>(Response::new(body)))
        };
        let io = Accepting { at_once, noted: noted.clone() };
        let mut connection = Connection::new(io, service, LIMITS, std::future::pending(), std::future::pending());
        let mut written_by_turns = || {
            let mut writes = Vec::new();
            // More than there can be, each of which needs a second poll.
            for _ in 0..40 {
                let polled = Pin::new(&mut connection).poll(&mut Context::from_waker(Waker::noop()));
                assert!(polled.is_pending());
                writes.extend(Some(std::mem::take(&mut noted.borrow_mut().writes)).filter(|writes| !writes.is_empty()));
            }
            writes
        };
        written_by_turns();
        for (number, (size, turns)) in (0..).zip(sizes.into_iter().zip(turns)) {
            frame::put_headers(&mut noted.borrow_mut().sent, POST, true, number * 2 + 1, 16_384);
            let reader = noted.borrow_mut().reader.take().expect("it reads");
            reader.wake();
            let writes = written_by_turns();
            assert_eq!(writes.len(), turns, "{size} bytes, {at_once} at once: {writes:?}");
            let written = writes.iter().flatten().sum::<usize>();
            assert!((size..size + KIB).contains(&written), "{written} of {size} bytes");
            if at_once == usize::MAX {
                assert!(writes.iter().all(|writes| writes.len() == 1), "one write a turn: {writes:?}");
            }
        }
    }
}

/// A client that sends its requests at once and accepts everything that it gets.
pub(super) struct Greedy(pub(super) Bytes);

impl AsyncRead for Greedy {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            // It sends nothing more.
            return Poll::Pending;
        }
        let count = buf.remaining().min(self.0.len());
        buf.put_slice(&self.0.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Greedy {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Data on a socket is noticed after one turn of each connection that always has more to do. Without the measure in
/// `give_way`, the runtime would check for it once in 61 turns.
#[test]
fn connections_that_always_have_more_to_do_hold_up_what_comes_to_sockets_for_a_turn_of_each() {
    const GREEDY: usize = 3;
    let mut asks = open_wide();
    frame::put_headers(&mut asks, POST, true, 1, 16_384);
    let asks = Bytes::from(asks);
    let polls = Arc::new(AtomicUsize::new(0));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let entered = runtime.enter();
    for _ in 0..GREEDY {
        let service = |_: Request<Body>| async {
            // Only the connection's own turns may make it run again.
            let piece = Bytes::from_static(&[7; 16 << 10]);
            let pieces = std::iter::repeat_with(move || Ok::<_, Failure>(Frame::data(piece.clone())));
            let pieces = http_body_util::StreamBody::new(futures_util::stream::iter(pieces));
            Ok::<_, Failure>(Response::new(pieces.boxed_unsync()))
        };
        let io = Greedy(asks.clone());
        let connection = Connection::new(io, service, LIMITS, std::future::pending(), std::future::pending());
        let (mut connection, count) = (Box::pin(connection), polls.clone());
        runtime.spawn(std::future::poll_fn(move |cx| {
            count.fetch_add(1, Ordering::Relaxed);
            connection.as_mut().poll(cx)
        }));
    }
    drop(entered);
    let waited = runtime.block_on(runtime.spawn(async move {
        let (mut here, mut there) = UnixStream::pair().expect("a pair of sockets");
        let mut waited = Vec::new();
        for _ in 0..100 {
            let before = polls.load(Ordering::Relaxed);
            there.write_all(b"x").await.expect("sent");
            // Less than there is room for, so nobody reads again before the runtime reports new data.
            assert_eq!(here.read(&mut [0; 8]).await.expect("read"), 1);
            waited.push(polls.load(Ordering::Relaxed) - before);
        }
        waited
    }));
    let waited = waited.expect("it ends");
    assert!(waited.iter().sum::<usize>() > 0, "the connections had something to do all the time");
    // One turn of each, and the wake-up that puts it behind the others.
    assert!(
        waited.iter().all(|polls| *polls <= 2 * GREEDY),
        "calls of connections before what came was read: {waited:?}"
    );
    runtime.shutdown_background();
}
