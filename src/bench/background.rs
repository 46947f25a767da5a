//! Runs work of the load generator that stands for other machines, without taking CPU from what is measured.
//!
//! A TLS handshake costs the client as much CPU as the server. On one machine both share the cores, and a measured
//! delay would include the load generator's own work. So this work has the lowest priority and yields after each step:
//! it gets what everything else leaves.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    thread::{self, JoinHandle},
};

use tokio::task::LocalSet;

use super::{BenchError, runtime};

/// The lowest priority; see nice(2).
const NICE: i32 = 19;

/// Runs this on a separate thread, with tasks that stay on it.
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
            tracing::debug!(%error, "Cannot lower the priority of this part of the load, so its delays may include the \
                load's own CPU time");
        }
        runtime()?.block_on(LocalSet::new().run_until(work()))
    };
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// Runs `work` and yields after each of its steps.
pub(super) async fn giving_way<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let polled = work.as_mut().poll(cx);
        thread::yield_now();
        polled
    })
    .await
}
