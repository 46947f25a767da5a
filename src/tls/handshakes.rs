//! [`Handshakes`]: the threads on which clients' handshakes are calculated, apart from those that deliver events.
//!
//! A handshake takes some hundred microseconds of calculation, and a thousand clients that come back at once would hold all deliveries up by
//! as many. Here they have threads of their own with a lower priority, so they get what deliveries leave. Only the calculation is here: the
//! sockets stay with the threads that serve them.
//! Always holds: a handshake ends within [`TIME`]; no more than [`MOST`] are under way. One more waits for a place, as a socket and nothing
//! else; where the one that has been under way longest has been so for [`GRACE`], it waits for a peer that does not go on, and gives its place.

use std::{collections::BTreeMap, fmt, future::pending, io, pin::pin, sync::Arc, thread, time::Duration};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Longest time from a client's first byte to the end of its handshake: a few round trips, of which the slowest take a second.
pub(super) const TIME: Duration = Duration::from_secs(10);
/// Each is some 20 KiB of memory. A storm of clients has fewer under way at a time, since an honest one waits for a round trip at most.
pub(super) const MOST: usize = 4096;
/// How long a handshake may take while others wait for its place: some round trips, and its turn behind thousands.
const GRACE: Duration = Duration::from_secs(2);
/// How much the threads stand back behind those that serve connections. See nice(2).
const NICE: i32 = 10;

/// Why there is no connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The client's certificate is missing, or is not accepted.
    #[error("the client's certificate is not accepted: {0}")]
    Refused(String),
    /// The client did not go on in time.
    #[error("no TLS handshake within {}", humantime::format_duration(TIME))]
    Timeout,
    /// Too many were under way: this was the oldest, or got no place in time.
    #[error("more than {MOST} TLS handshakes were under way; this one was the oldest, or got no place in time")]
    Crowded,
    /// The client went away, or does not speak TLS as the relay does.
    #[error("the TLS handshake failed: {0}")]
    Failed(String),
}

/// See the module.
pub(super) struct Handshakes {
    runtime: Option<Runtime>,
    places: Arc<Semaphore>,
    under_way: Arc<Mutex<UnderWay>>,
}

#[derive(Default)]
struct UnderWay {
    last: u64,
    /// By age: since when, and how it is ended.
    all: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// One that is under way; dropped, it is not any more.
struct Turn {
    number: u64,
    ended: CancellationToken,
    under_way: Arc<Mutex<UnderWay>>,
    _place: OwnedSemaphorePermit,
}

impl Handshakes {
    /// Starts the threads.
    ///
    /// # Errors
    /// Where the system gives none.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(thread::available_parallelism().map_or(1, usize::from))
            .thread_name("tls-handshake")
            .enable_time()
            .on_thread_start(|| {
                if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                    tracing::debug!(%error, "TLS handshakes get as much of the cores as anything else");
                }
            })
            .build()?;
        Ok(Self { runtime: Some(runtime), places: Arc::new(Semaphore::new(MOST)), under_way: Arc::default() })
    }

    /// Runs one. Cancel safe: dropped, it ends.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        handshake: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, HandshakeError> {
        let runtime = self.runtime.as_ref().expect("it is taken when this is dropped");
        let turn = timeout(TIME, self.turn()).await.map_err(|_| HandshakeError::Crowded)?;
        let task = AbortOnDropHandle::new(runtime.spawn(async move { timeout(TIME, handshake).await }));
        match turn.ended.run_until_cancelled(task).await {
            None => Err(HandshakeError::Crowded),
            Some(Ok(Ok(ended))) => Ok(ended),
            Some(Ok(Err(_))) => Err(HandshakeError::Timeout),
            // Nobody but its handle ends it, so it has panicked, which is in the log.
            Some(Err(_)) => Err(HandshakeError::Failed("a fault of the relay".to_owned())),
        }
    }

    /// Waits for a place, in line with the others. Cancel safe.
    async fn turn(&self) -> Turn {
        let mut place = pin!(self.places.clone().acquire_owned());
        loop {
            let oldest = self.under_way.lock().all.first_key_value().map(|(number, (since, _))| (*number, *since));
            let patience = async {
                match oldest {
                    Some((_, since)) => sleep_until(since + GRACE).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                place = &mut place => return Turn::take(&self.under_way, place.expect("it is never closed")),
                () = patience => {
                    let gone = oldest.and_then(|(number, _)| self.under_way.lock().all.remove(&number));
                    if let Some((_, ended)) = gone {
                        ended.cancel();
                        // Its place goes to whoever has waited longest, so this one may wait for another.
                        return Turn::take(&self.under_way, place.await.expect("it is never closed"));
                    }
                }
            }
        }
    }
}

impl Turn {
    fn take(under_way: &Arc<Mutex<UnderWay>>, place: OwnedSemaphorePermit) -> Self {
        let ended = CancellationToken::new();
        let mut all = under_way.lock();
        all.last += 1;
        let number = all.last;
        all.all.insert(number, (Instant::now(), ended.clone()));
        drop(all);
        Self { number, ended, under_way: under_way.clone(), _place: place }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.under_way.lock().all.remove(&self.number);
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // What is left of handshakes at the end of the process goes with it.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Handshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshakes").field("under_way", &self.under_way.lock().all.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_more_than_may_be_under_way_waits_and_then_ends_the_oldest_and_no_other() {
        let handshakes = Arc::new(Handshakes::start().expect("threads"));
        let begin = || {
            let handshakes = handshakes.clone();
            tokio::spawn(async move { handshakes.run(pending::<()>()).await })
        };
        let oldest = begin();
        let until = async |count: usize| {
            while handshakes.under_way.lock().all.len() != count {
                tokio::task::yield_now().await;
            }
        };
        until(1).await;
        let others: Vec<_> = (1..MOST).map(|_| begin()).collect();
        until(MOST).await;
        assert!(!oldest.is_finished());
        let begun = Instant::now();
        handshakes.run(async {}).await.expect("the oldest gives its place");
        assert!(begun.elapsed() >= GRACE, "not before it had its time");
        assert!(matches!(oldest.await.expect("no panic"), Err(HandshakeError::Crowded)));
        assert!(others.iter().all(|other| !other.is_finished()));
        others.iter().for_each(tokio::task::JoinHandle::abort);
        until(0).await;
    }
}
