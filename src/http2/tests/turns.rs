//! How long one connection may keep its thread, on a clock that only the handlers move.

use std::{cell::Cell, pin::pin, rc::Rc, task::Waker};

use super::{super::wake::WakeSource, *};

/// Takes so long, by the paused clock.
fn burn(time: Duration) {
    let mut advance = pin!(tokio::time::advance(time));
    let _ = advance.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

/// A handler that counts what is done of it, and takes `time` for it.
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

/// What a client sends first, and so many requests.
fn requests(count: u32) -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame::put_head(&mut out, 0, 4, 0, 0);
    for number in 0..count {
        frame::put_headers(&mut out, POST, true, number * 2 + 1, 16_384);
    }
    out
}

/// Polls until `done`, and returns by how much `count` grew in each turn.
fn turns(
    connection: &mut (impl Future<Output = Result<(), Ended>> + Unpin),
    count: &Cell<usize>,
    done: usize,
) -> Vec<usize> {
    let mut grown = Vec::new();
    while count.get() < done {
        let before = count.get();
        let calls = super::super::wake::Calls::new(1);
        let bell = calls.bell(WakeSource::READ);
        let woken = Waker::from(bell);
        let polled = Pin::new(&mut *connection).poll(&mut Context::from_waker(&woken));
        grown.push(count.get() - before);
        let is_woken = calls.look(&mut super::super::wake::WakeSources::new(), &Context::from_waker(Waker::noop()));
        assert!(polled.is_ready() || count.get() == done || is_woken, "it rests with {} of {done}", count.get());
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
    let turns = turns(&mut connection, &polled, 100);
    assert!(turns.iter().all(|polls| *polls <= 1), "handlers in a turn: {turns:?}");
}

#[tokio::test(start_paused = true)]
async fn what_many_streams_leave_is_dropped_in_turns_however_they_end() {
    /// Of which a turn has a tenth of its time for each, and looks at the clock now and then.
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
        turns(&mut connection, &polled, 1000);
        let mut out = Vec::new();
        match how {
            "aborted" => abort.cancel(),
            "at fault" => frame::put_head(&mut out, 0, 0, 0, 0),
            "reset" => (0..1000).for_each(|number| frame::put_reset(&mut out, number * 2 + 1, Reason::CANCEL)),
            _ => client.shutdown().await.expect("closed"),
        }
        client.write_all(&out).await.expect("sent");
        let turns = turns(&mut connection, &dropped, 1000);
        assert!(turns.iter().all(|drops| *drops <= MOST), "{how}: streams dropped in a turn: {turns:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_are_not_read_faster_than_their_handlers_are_called() {
    const STREAMS: u32 = 20_000;
    let (mut client, io) = tokio::io::duplex(4 << 20);
    let polled = Rc::new(Cell::new(0));
    let count = polled.clone();
    // Each turn calls a few of them, and could read thousands.
    let time = Limits::TURN / 4;
    let service = move |_: Request<Body>| Slow { time, polled: count.clone(), dropped: None, answers: true };
    // All that are asked for at once would not fit.
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
    let wakers = Rc::new(std::cell::RefCell::new(Vec::new()));
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
    turns(&mut connection, &polled, STREAMS as usize);
    wakers.take().into_iter().for_each(Waker::wake);
    turns(&mut connection, &polled, 2 * STREAMS as usize);
}
