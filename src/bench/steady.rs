//! [`Steady`]: calls that are kept under way for a while, over several connections, and what they cost.
//!
//! What the calls are, and what is right about their answers, is with the loads: `range` and `put`. Always holds: a
//! call begins only once another one of its connection was answered. Costs are taken before the last answers, so the
//! end of the load, when fewer calls are under way, is not part of them.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    BenchError,
    calls::Calls,
    link::READ_BYTES,
    progress::{Progress, TICK},
    report::{Report, Taken},
    usage::{Usage, Watched},
};

/// What the connections of a load share.
#[derive(Debug, Default)]
pub(super) struct Steady {
    answers: AtomicU64,
    is_over: AtomicBool,
}

/// How long to keep calls under way, and what to measure meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<'a> {
    /// What the answers are called.
    pub(super) what: &'static str,
    pub(super) duration: Duration,
    /// Longest time without an answer.
    pub(super) patience: Duration,
    pub(super) processes: &'a [Watched],
}

/// What a load came to.
#[derive(Debug)]
pub(super) struct Cost {
    pub(super) answers: u64,
    elapsed: Duration,
    processes: Vec<(Watched, Taken)>,
}

/// How many of `all` calls connection `number` of `connections` keeps under way.
pub(super) fn share(all: u64, connections: u64, number: u64) -> u64 {
    all / connections + u64::from(number < all % connections)
}

impl Steady {
    /// Whether the load has ended. Nothing more is begun then.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Keeps `at_a_time` calls under way over one connection until the load is over and the last one is answered.
    /// `next` begins a call; `answer` gets the answers.
    pub(super) async fn keep<T>(
        &self,
        mut calls: Calls<T>,
        at_a_time: u64,
        mut next: impl FnMut(&mut Calls<T>),
        mut answer: impl FnMut(T, &[u8]),
    ) -> Result<(), BenchError> {
        let mut buffer = vec![0; READ_BYTES];
        poll_fn(|context| {
            loop {
                let over = self.is_over();
                if over && calls.in_flight() == 0 {
                    return Poll::Ready(Ok(()));
                }
                while !over && (calls.in_flight() as u64) < at_a_time {
                    next(&mut calls);
                }
                let mut answered = false;
                let polled = calls.poll(context, &mut buffer, &mut |context, bytes| {
                    answered = true;
                    self.answers.fetch_add(1, Ordering::Relaxed);
                    answer(context, bytes);
                    Ok(())
                });
                match polled {
                    Poll::Ready(error) => return Poll::Ready(Err(error)),
                    Poll::Pending if answered => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Lets the connections, which call [`Self::keep`], go on for the span, and gives what each returned to `each`.
    pub(super) async fn measure<T: 'static>(
        &self,
        mut connections: JoinSet<Result<T, BenchError>>,
        span: Span<'_>,
        progress: &Progress,
        mut each: impl FnMut(T) -> Result<(), BenchError>,
    ) -> Result<Cost, BenchError> {
        let measured = self.wait(&mut connections, span, progress, &mut each).await;
        self.is_over.store(true, Ordering::Release);
        measured
    }

    async fn wait<T: 'static>(
        &self,
        connections: &mut JoinSet<Result<T, BenchError>>,
        span: Span<'_>,
        progress: &Progress,
        each: &mut impl FnMut(T) -> Result<(), BenchError>,
    ) -> Result<Cost, BenchError> {
        let own = Watched { name: "bench".to_owned(), pid: std::process::id() };
        let watched: Vec<Watched> = span.processes.iter().cloned().chain([own]).collect();
        let usages = || watched.iter().map(|process| Usage::of(process.pid)).collect::<Result<Vec<_>, _>>();
        let (begun, begin) = (Instant::now(), usages()?);
        let mut last = (0, Instant::now());
        let mut cost = None;
        loop {
            tokio::select! {
                connection = connections.join_next() => match connection {
                    None => return cost.ok_or(BenchError::Lost),
                    Some(ended) => each(ended.map_err(|_| BenchError::Lost)??)?,
                },
                () = tokio::time::sleep(TICK) => {
                    let answers = self.answers.load(Ordering::Relaxed);
                    progress.at(answers);
                    if answers != last.0 {
                        last = (answers, Instant::now());
                    } else if last.1.elapsed() > span.patience {
                        let Span { what, patience: waited, .. } = span;
                        return Err(BenchError::Stalled { what, done: answers, all: answers, waited });
                    }
                    if cost.is_none() && begun.elapsed() >= span.duration {
                        let taken = begin.iter().zip(usages()?).map(|(begin, end)| Taken { idle: None, begin: *begin, end });
                        let processes = watched.iter().cloned().zip(taken).collect();
                        cost = Some(Cost { answers, elapsed: begun.elapsed(), processes });
                        self.is_over.store(true, Ordering::Release);
                    }
                }
            }
        }
    }
}

impl Cost {
    /// Adds the number of answers, their rate, and what the processes used for each.
    pub(super) fn report(&self, what: &'static str, report: &mut Report) {
        report.count(what, self.answers);
        report.figure(&format!("{what}_per_second"), self.answers as f64 / self.elapsed.as_secs_f64().max(1e-9));
        for (process, taken) in &self.processes {
            report.process(process, *taken, self.answers, self.elapsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_the_calls() {
        let shares =
            |all, connections| (0..connections).map(|number| share(all, connections, number)).collect::<Vec<_>>();
        assert_eq!(shares(8, 3), [3, 3, 2]);
        assert_eq!(shares(4, 4), [1, 1, 1, 1]);
    }
}
