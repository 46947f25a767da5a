//! [`Handshakes`]: the threads on which clients' handshakes are calculated, apart from those that deliver events.
//!
//! A handshake takes some hundred microseconds of calculation, and a thousand clients that come back at once would hold all deliveries up by
//! as many. Here they have threads of their own with a lower priority, so they get what deliveries leave. Only the calculation is here: the
//! sockets stay with the threads that serve them.
//! Always holds: a handshake ends within [`TIME`]; no more than [`MOST`] are under way, and one more ends the one that has been under way
//! longest, which by then waits for a peer that does not go on.

use std::{collections::BTreeMap, fmt, io, sync::Arc, thread, time::Duration};

use parking_lot::Mutex;
use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    task::AbortHandle,
    time::timeout,
};

/// Longest time from a client's first byte to the end of its handshake: a few round trips, of which the slowest take a second.
pub(super) const TIME: Duration = Duration::from_secs(10);
/// Each is some 20 KiB of memory. A storm of clients has fewer under way at a time, since an honest one waits for a round trip at most.
pub(super) const MOST: usize = 4096;
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
    /// Too many were under way, and this was the oldest.
    #[error("more than {MOST} TLS handshakes were under way, and this was the oldest")]
    Crowded,
    /// The client went away, or does not speak TLS as the relay does.
    #[error("the TLS handshake failed: {0}")]
    Failed(String),
}

/// See the module.
pub(super) struct Handshakes {
    runtime: Option<Runtime>,
    under_way: Arc<Mutex<UnderWay>>,
}

#[derive(Default)]
struct UnderWay {
    last: u64,
    /// By age.
    all: BTreeMap<u64, AbortHandle>,
}

/// One that is under way; dropped, it is not any more.
struct Turn {
    number: u64,
    handle: AbortHandle,
    under_way: Arc<Mutex<UnderWay>>,
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
        Ok(Self { runtime: Some(runtime), under_way: Arc::default() })
    }

    /// Runs one. Cancel safe: dropped, it ends.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        handshake: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, HandshakeError> {
        let runtime = self.runtime.as_ref().expect("it is taken when this is dropped");
        let task = runtime.spawn(async move { timeout(TIME, handshake).await });
        let (turn, oldest) = Turn::take(&self.under_way, task.abort_handle());
        if let Some(oldest) = oldest {
            oldest.abort();
        }
        let ended = task.await;
        drop(turn);
        match ended {
            Ok(Ok(ended)) => Ok(ended),
            Ok(Err(_)) => Err(HandshakeError::Timeout),
            Err(error) if error.is_panic() => Err(HandshakeError::Failed("a fault of the relay".to_owned())),
            Err(_) => Err(HandshakeError::Crowded),
        }
    }
}

impl Turn {
    /// The turn of a handshake, and the one that has to end for it.
    fn take(under_way: &Arc<Mutex<UnderWay>>, handle: AbortHandle) -> (Self, Option<AbortHandle>) {
        let mut all = under_way.lock();
        let oldest = if all.all.len() >= MOST { all.all.pop_first().map(|(_, handle)| handle) } else { None };
        all.last += 1;
        let number = all.last;
        all.all.insert(number, handle.clone());
        drop(all);
        (Self { number, handle, under_way: under_way.clone() }, oldest)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.under_way.lock().all.remove(&self.number);
        self.handle.abort();
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
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn one_more_than_may_be_under_way_ends_the_oldest_and_no_other() {
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
        handshakes.run(async {}).await.expect("there is always room for a new one");
        assert!(matches!(oldest.await.expect("no panic"), Err(HandshakeError::Crowded)));
        assert!(others.iter().all(|other| !other.is_finished()));
        others.iter().for_each(tokio::task::JoinHandle::abort);
        until(0).await;
    }
}
