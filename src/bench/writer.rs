//! The writes of a run, at a given rate or as fast as etcd accepts them, over one connection, with etcd's answer to
//! each.
//!
//! The content is in `plan`. Always holds: the time in a value is its sending time. A refused write ends the run,
//! because it would be unknown whether it takes effect.

use std::{
    future::{Future as _, poll_fn},
    task::Poll,
    time::Duration,
};

use prost::Message as _;
use tokio::time::{Instant, sleep_until};

use super::{
    BenchError, Endpoint,
    calls::{Calls, PUT, TXN},
    check::Write,
    link::READ_BYTES,
    message,
    plan::Plan,
};
use crate::pb::etcdserverpb::{self as pb, request_op::Request};

/// How many writes to make, and how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Writes per second; `None` for as many as etcd accepts.
    pub rate: Option<f64>,
    /// Most writes.
    pub writes: Option<u64>,
    /// Longest time.
    pub duration: Option<Duration>,
    /// Most unanswered writes.
    pub in_flight: usize,
}

/// Makes the writes, starting with put number `first`. `each` is called for each acknowledged write.
pub(super) async fn write(
    endpoint: &Endpoint,
    plan: &Plan,
    load: Load,
    first: u64,
    each: impl FnMut(Write),
) -> Result<(), BenchError> {
    write_while(endpoint, plan, load, first, || false, each).await
}

/// The same, but continues after the load's duration as long as `more` returns true.
pub(super) async fn write_while(
    endpoint: &Endpoint,
    plan: &Plan,
    load: Load,
    first: u64,
    mut more: impl FnMut() -> bool,
    mut each: impl FnMut(Write),
) -> Result<(), BenchError> {
    let mut calls = Calls::connect(endpoint).await?;
    let mut buffer = vec![0; READ_BYTES];
    let begun = Instant::now();
    let end = load.duration.map(|duration| begun + duration);
    let due = |sent: u64| load.rate.map(|rate| begun + Duration::from_secs_f64(sent as f64 / rate));
    let mut timer = Box::pin(sleep_until(begun));
    let mut sent = 0;
    poll_fn(|context| {
        loop {
            let now = Instant::now();
            let late = end.is_some_and(|end| now >= end);
            let over = load.writes.is_some_and(|writes| sent >= writes) || late && !more();
            if over && calls.in_flight() == 0 {
                return Poll::Ready(Ok(()));
            }
            let mut started = false;
            while !over
                && calls.in_flight() < load.in_flight
                && load.writes.is_none_or(|writes| sent < writes)
                && due(sent).is_none_or(|due| due <= now)
            {
                let number = first + sent * plan.puts_per_write;
                let (method, request) = request(plan, number);
                calls.start(method, &request, number);
                sent += 1;
                started = true;
            }
            let mut answered = false;
            let polled = calls.poll(context, &mut buffer, &mut |first, bytes| {
                answered = true;
                each(Write { revision: message::answered_revision(bytes)?, first });
                Ok(())
            });
            if let Poll::Ready(error) = polled {
                return Poll::Ready(Err(error));
            }
            if started || answered {
                continue;
            }
            // The time of the next event. Answers wake the task by themselves.
            let next = due(sent).filter(|_| !over).into_iter().chain(end.filter(|_| !late)).min();
            let Some(next) = next else { return Poll::Pending };
            timer.as_mut().reset(next);
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if calls.in_flight() >= load.in_flight {
                // A write is due but there is no room; an answer wakes the task.
                return Poll::Pending;
            }
        }
    })
    .await
}

/// A put, or a transaction of several.
fn request(plan: &Plan, first: u64) -> (&'static str, Vec<u8>) {
    let put = |number: u64| pb::PutRequest {
        key: plan.key(number % plan.keys).into(),
        value: plan.value(number, plan.now()).into(),
        ..Default::default()
    };
    if plan.puts_per_write == 1 {
        return (PUT, put(first).encode_to_vec());
    }
    let operation = |number| pb::RequestOp { request: Some(Request::RequestPut(put(number))) };
    let success = (first..first + plan.puts_per_write).map(operation).collect();
    (TXN, pb::TxnRequest { success, ..Default::default() }.encode_to_vec())
}
