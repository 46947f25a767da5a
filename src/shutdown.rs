//! The order in which the process stops, and what starts it.
//!
//! Not here: what each part does when its token is cancelled. Run by `relay`; started by a signal or a test.
//! Always holds: phases only go forward, and the last one is reached within the drain time, or at once after a second
//! request.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::critical::Tasks;

/// The phases of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// Not ready any more; connections are asked to leave, streams to end and calls to finish.
    Draining,
    /// All connections have ended, or were cut off at the end of the drain time.
    Drained,
    /// Upstream is closed; nothing runs any more.
    Closed,
}

/// Requests a shutdown. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    begin: CancellationToken,
    at_once: CancellationToken,
}

impl Shutdown {
    /// Nothing is requested yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests an orderly shutdown.
    pub fn begin(&self) {
        self.begin.cancel();
    }

    /// Requests a shutdown that waits for nobody.
    pub fn at_once(&self) {
        self.begin.cancel();
        self.at_once.cancel();
    }

    /// Waits until a shutdown is requested. Cancel safe.
    pub async fn begun(&self) {
        self.begin.cancelled().await;
    }

    /// Turns SIGTERM and SIGINT into an orderly shutdown, and a second signal into an immediate one. The handlers are
    /// installed when this returns; the future waits for signals forever.
    ///
    /// # Errors
    /// If the system does not let the process handle signals.
    pub fn on_signals(&self) -> io::Result<impl Future<Output = ()> + Send + use<>> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        Ok(async move {
            loop {
                // Both branches are cancel safe.
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                if shutdown.begin.is_cancelled() {
                    tracing::warn!(signal = name, "Second signal, stopping at once");
                    shutdown.at_once();
                } else {
                    tracing::info!(signal = name, "Stopping; a second signal stops at once");
                    shutdown.begin();
                }
            }
        })
    }
}

/// The cancellation tokens of a running relay, one for each phase.
#[derive(Debug)]
pub struct Phases {
    phase: watch::Sender<Phase>,
    /// Cancelled first: ports ask their connections to leave, one after the other, and then stop accepting.
    pub leave: CancellationToken,
    /// Cancelled when ports should accept nothing more, although not all connections were asked: when clients are known
    /// to have another relay.
    pub accept: CancellationToken,
    /// Cancelled after the ports had time to ask their connections to leave: streams that are still open send their
    /// last messages.
    pub streams: CancellationToken,
    /// Cancelled when the drain time is over: connections are cut off.
    pub abort: CancellationToken,
    /// Cancelled last: feeds, probes and connections upstream end.
    pub upstream: CancellationToken,
    /// All tasks that serve clients.
    pub clients: TaskTracker,
    /// All tasks that serve the process: feeds, probes, upkeep.
    pub upkeep: Tasks,
}

/// The result of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All clients had left.
    Completely,
    /// Some were cut off.
    CutOff,
}

/// How long tasks may take once they are cut off. They have nothing left to wait for.
const LAST_STEPS: Duration = Duration::from_secs(1);

impl Phases {
    /// Tokens for a relay that runs.
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
            leave: CancellationToken::new(),
            accept: CancellationToken::new(),
            streams: CancellationToken::new(),
            abort: CancellationToken::new(),
            upstream: CancellationToken::new(),
            clients: TaskTracker::new(),
            upkeep: Tasks::new(),
        }
    }

    /// The current phase, and its changes.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Spawns a task of the process, which is dropped when upstream closes.
    pub fn spawn_upkeep(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let upstream = self.upstream.clone();
        self.upkeep.spawn(name, async move {
            upstream.run_until_cancelled(task).await;
        });
    }

    /// Spawns the task that accepts a port's connections. The shutdown waits for it as for a client.
    pub fn spawn_port(&self, name: &'static str, port: impl Future<Output = ()> + Send + 'static) {
        self.clients.spawn(self.upkeep.guard(name, port));
    }

    /// Goes through the phases. `drain_time` is the longest wait for clients; `shutdown` may cut it short. Streams that
    /// have not ended with their connections are told to end after `spread`.
    pub async fn end(&self, drain_time: Duration, spread: Duration, shutdown: &Shutdown) -> Drained {
        self.enter(Phase::Draining);
        self.leave.cancel();
        self.clients.close();
        // In one branch, so that all of it together takes no longer than the drain time.
        let told = async {
            tokio::time::sleep(spread).await;
            self.streams.cancel();
            std::future::pending::<()>().await
        };
        // All branches are cancel safe; what is left is ended by `abort`.
        let drained = tokio::select! {
            biased;
            () = self.clients.wait() => Drained::Completely,
            () = shutdown.at_once.cancelled() => Drained::CutOff,
            () = tokio::time::sleep(drain_time) => Drained::CutOff,
            () = told => Drained::CutOff,
        };
        self.accept.cancel();
        self.streams.cancel();
        self.abort.cancel();
        ended(self.clients.wait(), || self.clients.len()).await;
        self.enter(Phase::Drained);
        self.upstream.cancel();
        self.upkeep.close();
        ended(self.upkeep.wait(), || self.upkeep.len()).await;
        self.enter(Phase::Closed);
        drained
    }

    fn enter(&self, phase: Phase) {
        tracing::debug!(?phase, "Ending");
        self.phase.send_replace(phase);
    }
}

async fn ended(wait: impl Future<Output = ()>, left: impl FnOnce() -> usize) {
    if tokio::time::timeout(LAST_STEPS, wait).await.is_err() {
        tracing::warn!(tasks = left(), "Tasks did not end in time, leaving them");
    }
}

impl Default for Phases {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_that_end_when_told_are_not_cut_off() {
        let phases = Phases::new();
        let streams = phases.streams.clone();
        phases.clients.spawn(async move { streams.cancelled().await });
        let begun = tokio::time::Instant::now();
        assert_eq!(phases.end(Duration::from_secs(10), Duration::ZERO, &Shutdown::new()).await, Drained::Completely);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(*phases.phase().borrow(), Phase::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_stay_are_cut_off_when_the_drain_time_is_over() {
        let phases = Phases::new();
        let abort = phases.abort.clone();
        phases.clients.spawn(async move { abort.cancelled().await });
        let begun = tokio::time::Instant::now();
        assert_eq!(phases.end(Duration::from_secs(10), Duration::ZERO, &Shutdown::new()).await, Drained::CutOff);
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_do_not_end_with_their_connection_are_told_after_the_spread() {
        let phases = Phases::new();
        let streams = phases.streams.clone();
        phases.clients.spawn(async move { streams.cancelled().await });
        let begun = tokio::time::Instant::now();
        let spread = Duration::from_secs(4);
        assert_eq!(phases.end(Duration::from_secs(10), spread, &Shutdown::new()).await, Drained::Completely);
        assert_eq!(begun.elapsed(), spread);
    }

    #[tokio::test(start_paused = true)]
    async fn asked_twice_nobody_is_waited_for() {
        let phases = Phases::new();
        let abort = phases.abort.clone();
        phases.clients.spawn(async move { abort.cancelled().await });
        let shutdown = Shutdown::new();
        shutdown.at_once();
        let begun = tokio::time::Instant::now();
        assert_eq!(phases.end(Duration::from_secs(10), Duration::from_secs(5), &shutdown).await, Drained::CutOff);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
