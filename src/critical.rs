//! [`Tasks`]: the tasks that hold the relay's state. If one of them panics, the process ends.
//!
//! A feed without its driver stands still and claims to be up to date; a port that accepts no more connections looks
//! open. What such a task held when it panicked cannot be trusted, and nothing else in the process can detect this. So
//! the first panic is logged with the task's name, and the process learns of it ([`Tasks::failed`]) and ends at once
//! with [`Failure::EXIT_CODE`]. A supervisor starts it again, and clients resume elsewhere meanwhile.
//!
//! Not for the tasks of one client: a panic in a handler or a connection ends only that stream. Not for views: an
//! engine that panics on somebody's data ends its streams and reads everything again (`view::engine`). Used by all
//! layers that spawn tasks. Always holds: such a task never ends by a panic unnoticed.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

use futures_util::FutureExt as _;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// The tasks of the process; see the module. Cheap to clone; all clones report the same failures.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    failed: Arc<watch::Sender<Option<Failure>>>,
    has_threads: bool,
}

/// A task that panicked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the task `{task}` panicked: {panic}")]
pub struct Failure {
    /// Its name.
    pub task: &'static str,
    /// The panic's message.
    pub panic: String,
}

impl Failure {
    /// The process's exit code: BSD's code for an internal fault of a program.
    pub const EXIT_CODE: u8 = 70;
}

impl Tasks {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self { tracker: TaskTracker::new(), failed: Arc::new(watch::Sender::new(None)), has_threads: true }
    }

    /// An empty set for a simulation, which has one thread and a clock that advances only when no task is ready. Work
    /// that otherwise has threads of its own is done by tasks, so that the clock does not advance meanwhile and a
    /// schedule can be repeated.
    #[must_use]
    pub fn on_one_thread() -> Self {
        Self { has_threads: false, ..Self::new() }
    }

    /// Whether long work has threads of its own.
    #[must_use]
    pub fn has_threads(&self) -> bool {
        self.has_threads
    }

    /// Spawns a task that the end of the process waits for.
    pub fn spawn(&self, task: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(self.guard(task, future));
    }

    /// Spawns a task that the end of the process does not wait for.
    pub fn detach(&self, task: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.guard(task, future));
    }

    /// Spawns a thread that may block. The end of the process waits for it.
    pub fn spawn_blocking(&self, task: &'static str, work: impl FnOnce() + Send + 'static) {
        let tasks = self.clone();
        self.tracker.spawn_blocking(move || {
            if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(work)) {
                tasks.fail(task, text(&*panic));
            }
        });
    }

    /// Wraps a future, so that a panic in it is a failure of `task`.
    pub fn guard<F: Future<Output = ()>>(&self, task: &'static str, future: F) -> impl Future<Output = ()> + use<F> {
        let tasks = self.clone();
        async move {
            // What the future held is dropped, and not used again.
            if let Err(panic) = AssertUnwindSafe(future).catch_unwind().await {
                tasks.fail(task, text(&*panic));
            }
        }
    }

    /// Reports that a thread panicked while it was changing a part of the relay's state.
    pub fn fail(&self, task: &'static str, panic: String) {
        tracing::error!(
            task,
            panic,
            exit_code = Failure::EXIT_CODE,
            "A task that holds the relay's state panicked, so that state cannot be trusted: the process ends. This is a bug: please report it with the lines before this one. A supervisor should start the process again"
        );
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            if first {
                *failed = Some(Failure { task, panic });
            }
            first
        });
    }

    /// Waits for the first failure. Cancel safe.
    pub async fn failed(&self) -> Failure {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(failure)) => failure.clone(),
            // The sender lives as long as `self`.
            _ => std::future::pending().await,
        }
    }

    /// Accepts no more tasks that the end of the process waits for.
    pub fn close(&self) {
        self.tracker.close();
    }

    /// Waits until the set is closed and all tasks have ended. Cancel safe.
    pub async fn wait(&self) {
        self.tracker.wait().await;
    }

    /// The number of tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether there are no tasks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

/// The message of a panic, which is a text if `panic!` raised it.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_panic_is_told_to_all_and_by_name() {
        let tasks = Tasks::new();
        tasks.spawn("well", async {});
        tasks.spawn("ill", async { panic!("at revision {}", 7) });
        let ill = Failure { task: "ill", panic: "at revision 7".into() };
        assert_eq!(tasks.clone().failed().await, ill);
        tasks.detach("later", async { panic!("as well") });
        tasks.spawn_blocking("last", || panic!("once more"));
        tasks.close();
        tasks.wait().await;
        assert_eq!(tasks.failed().await, ill);
    }
}
