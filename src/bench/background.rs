//! Work of the load generator that stands for other machines, and must not take the processors from what is measured.
//!
//! Clients that shake hands calculate as much as their server. On one machine both share the processors, and a delay would be that of the load
//! generator as much as the server's. So this work has the lowest priority and gives way after each step: it gets what all others leave.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    thread::{self, JoinHandle},
};

use tokio::task::LocalSet;

use super::{BenchError, runtime};

/// The lowest that there is. See nice(2).
const NICE: i32 = 19;

/// Runs this on a thread of its own, with tasks that must not leave it.
pub(super) fn run<F, T>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<Result<T, BenchError>>>
where
    F: Future<Output = Result<T, BenchError>>,
    T: Send + 'static,
{
    let run = move || {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "This part of the load gets as much of the processors as anything else");
        }
        runtime()?.block_on(LocalSet::new().run_until(work()))
    };
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// The same, with everybody else's turn after each of its steps.
pub(super) async fn giving_way<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let polled = work.as_mut().poll(cx);
        thread::yield_now();
        polled
    })
    .await
}
