//! [`Handshakes`]: the threads that compute clients' handshakes, separate from those that deliver events.
//!
//! A handshake takes a few hundred microseconds of computation. A thousand clients that come back at once would delay
//! all deliveries by a thousand times that. So handshakes have their own threads with a lower priority, which yield
//! after each step of a handshake and get the CPU time that deliveries leave. Only the computation is here: the sockets
//! stay with the threads that serve them.
//! Always holds: a handshake ends within [`TIME`]; no more than [`MOST`] are under way. If all places are taken, the
//! next handshake waits for a place, and costs only a socket meanwhile. It gets the place of one that has waited too
//! long for its peer, see `places`.

mod places;

use std::{
    fmt, io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::places::Places;

/// The longest time from a client's first byte to the end of its handshake: a few round trips, of which the slowest
/// take a second.
pub(super) const TIME: Duration = Duration::from_secs(10);
/// Each takes some 20 KiB of memory. A storm of clients has fewer under way at a time, since an honest client waits for
/// a round trip at most.
pub(super) const MOST: usize = 4096;
/// How often the first in line checks whether a handshake has waited too long for its peer: one that begins to wait
/// meanwhile may have little time left.
const LOOK: Duration = Duration::from_millis(100);
/// How far the threads give way to those that serve connections. See nice(2).
const NICE: i32 = 10;

/// Why there is no connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The client's certificate is missing, or is not accepted.
    #[error("the client's certificate is not accepted: {0}")]
    Refused(String),
    /// The client did not continue in time.
    #[error("no TLS handshake within {}", humantime::format_duration(TIME))]
    Timeout,
    /// Too many handshakes were under way: the relay had waited longest for this client, or the client got no place in
    /// time.
    #[error(
        "more than {MOST} TLS handshakes were under way, and this client was slow to answer or got no place in time"
    )]
    Crowded,
    /// The client went away, or its TLS does not fit the relay's.
    #[error("the TLS handshake failed: {0}")]
    Failed(String),
}

/// The threads and their places; see the module.
pub(super) struct Handshakes {
    runtime: Option<Runtime>,
    room: Arc<Semaphore>,
    places: Arc<Mutex<Places>>,
    /// Held by the first of the handshakes that wait for a place.
    line: tokio::sync::Mutex<()>,
}

/// A place, which is free again when this is dropped.
struct Turn {
    number: u64,
    ended: CancellationToken,
    places: Arc<Mutex<Places>>,
    _room: OwnedSemaphorePermit,
}

impl Handshakes {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub(super) fn start() -> io::Result<Self> {
        Self::with_room(MOST)
    }

    fn with_room(most: usize) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(thread::available_parallelism().map_or(1, usize::from))
            .thread_name("tls-handshake")
            .enable_time()
            .on_thread_start(|| {
                if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                    tracing::debug!(%error, "Cannot lower the priority of the threads for TLS handshakes");
                }
            })
            .build()?;
        let room = Arc::new(Semaphore::new(most));
        Ok(Self { runtime: Some(runtime), room, places: Arc::default(), line: tokio::sync::Mutex::new(()) })
    }

    /// Runs one handshake, which waits for nothing but its peer. Cancel safe: it ends when it is dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        handshake: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, HandshakeError> {
        let runtime = self.runtime.as_ref().expect("it is taken only by drop");
        let turn = timeout(TIME, self.turn()).await.map_err(|_| HandshakeError::Crowded)?;
        let handshake = Measured::new(handshake, &turn);
        let task = AbortOnDropHandle::new(runtime.spawn(async move { timeout(TIME, handshake).await }));
        match turn.ended.run_until_cancelled(task).await {
            None => Err(HandshakeError::Crowded),
            Some(Ok(Ok(ended))) => Ok(ended),
            Some(Ok(Err(_))) => Err(HandshakeError::Timeout),
            // Only its handle could have ended it, so it has panicked, which has been logged.
            Some(Err(_)) => Err(HandshakeError::Failed("a fault of the relay".to_owned())),
        }
    }

    /// Waits for a place, in line with the others. Cancel safe.
    async fn turn(&self) -> Turn {
        let _first = self.line.lock().await;
        let mut room = pin!(self.room.clone().acquire_owned());
        loop {
            let look = {
                let look = Instant::now() + LOOK;
                self.places.lock().next().map_or(look, |over| over.min(look))
            };
            tokio::select! {
                biased;
                room = &mut room => return self.take(room.expect("the semaphore is never closed")),
                () = sleep_until(look) => {
                    if self.places.lock().end_one(Instant::now()) {
                        // Nobody else is in line for the place that it leaves.
                        return self.take(room.await.expect("the semaphore is never closed"));
                    }
                }
            }
        }
    }

    fn take(&self, room: OwnedSemaphorePermit) -> Turn {
        let ended = CancellationToken::new();
        let number = self.places.lock().take(ended.clone());
        Turn { number, ended, places: self.places.clone(), _room: room }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.places.lock().leave(self.number);
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Handshakes that are left when the process ends are dropped with it.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshakes").field("under_way", &self.places.lock().len()).finish()
    }
}

/// A handshake that reports when it begins to wait for its peer, and when the peer has answered.
struct Measured<F> {
    handshake: Pin<Box<F>>,
    answer: Arc<Answer>,
    waker: Waker,
}

/// Wakes the handshake when its peer's answer comes.
struct Answer {
    number: u64,
    places: Arc<Mutex<Places>>,
    /// Whether an answer has come since the handshake was last polled. It is set under the lock of `places`, and
    /// cleared without it.
    has_come: AtomicBool,
    task: AtomicWaker,
}

impl<F> Measured<F> {
    fn new(handshake: F, turn: &Turn) -> Self {
        let answer = Arc::new(Answer {
            number: turn.number,
            places: turn.places.clone(),
            has_come: AtomicBool::new(false),
            task: AtomicWaker::new(),
        });
        Self { handshake: Box::pin(handshake), waker: Waker::from(answer.clone()), answer }
    }
}

impl<F: Future> Future for Measured<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        this.answer.task.register(cx.waker());
        this.answer.has_come.store(false, Ordering::Release);
        let polled = this.handshake.as_mut().poll(&mut Context::from_waker(&this.waker));
        if polled.is_pending() {
            this.answer.is_missing();
        }
        // A lower priority is not enough: a thread may use its time slice for milliseconds while others wait.
        thread::yield_now();
        polled
    }
}

impl Answer {
    /// The handshake cannot continue without its peer's answer.
    fn is_missing(&self) {
        let mut places = self.places.lock();
        if !self.has_come.load(Ordering::Acquire) {
            places.waits(self.number, Instant::now());
        }
    }
}

impl Wake for Answer {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        {
            let mut places = self.places.lock();
            self.has_come.store(true, Ordering::Release);
            places.goes_on(self.number, Instant::now());
        }
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use super::{places::PATIENCE, *};

    async fn until(handshakes: &Handshakes, waiting: usize) {
        while handshakes.places.lock().waiting() != waiting {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_more_than_may_be_under_way_waits_and_then_ends_the_oldest_and_no_other() {
        let handshakes = Arc::new(Handshakes::with_room(8).expect("threads"));
        let begin = || {
            let handshakes = handshakes.clone();
            tokio::spawn(async move { handshakes.run(pending::<()>()).await })
        };
        let oldest = begin();
        until(&handshakes, 1).await;
        let others: Vec<_> = (1..8).map(|_| begin()).collect();
        until(&handshakes, 8).await;
        assert!(!oldest.is_finished());
        let begun = Instant::now();
        handshakes.run(async {}).await.expect("the oldest handshake gives up its place");
        assert!(begun.elapsed() >= PATIENCE, "not before its time was over");
        assert!(matches!(oldest.await.expect("no panic"), Err(HandshakeError::Crowded)));
        assert!(others.iter().all(|other| !other.is_finished()));
        others.iter().for_each(tokio::task::JoinHandle::abort);
        until(&handshakes, 0).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_for_the_relay_keeps_its_place_and_one_that_waits_for_its_peer_does_not() {
        let handshakes = Arc::new(Handshakes::with_room(2).expect("threads"));
        let (told, tells) = tokio::sync::oneshot::channel();
        // Its peer has answered, and the relay has not handled that yet: the handshake is polled, and wakes itself,
        // again and again.
        let busy = tokio::spawn({
            let handshakes = handshakes.clone();
            async move {
                let mut tells = pin!(tells);
                let handshake = poll_fn(move |cx| {
                    cx.waker().wake_by_ref();
                    Poll::<()>::Pending
                });
                let run = handshakes.run(handshake);
                tokio::select! {
                    ended = run => Err(ended),
                    _ = &mut tells => Ok(()),
                }
            }
        });
        while handshakes.places.lock().len() != 1 {
            tokio::task::yield_now().await;
        }
        let silent = tokio::spawn({
            let handshakes = handshakes.clone();
            async move { handshakes.run(pending::<()>()).await }
        });
        until(&handshakes, 1).await;
        handshakes.run(async {}).await.expect("the silent one gives up its place");
        assert!(matches!(silent.await.expect("no panic"), Err(HandshakeError::Crowded)));
        told.send(()).expect("it is there");
        busy.await.expect("no panic").expect("nobody took its place");
    }
}
