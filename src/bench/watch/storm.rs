//! [`Storm`]: the connections that arrive all at once while the others watch, as after a network failure.
//!
//! Each connects, with TLS if the endpoint has it, and creates a watch of a key that is never written. Measured are the
//! cost for the other connections and the time it takes, not any events. Clients that list and watch the same keys are
//! in `joiner`. Always holds: they stand for other machines (see `background`). A failed one is a finding, and ends no
//! other.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::poll_fn,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use prost::Message as _;
use tokio::sync::watch;

use super::{Counts, Watch, fleet::Stage, subscriber::WATCH};
use crate::{
    bench::{
        BenchError, background,
        check::Wrong,
        link::{Link, READ_BYTES},
        message,
        plan::Plan,
        report::{self, Findings},
        wire::{Event, STREAM_WINDOW, Status},
    },
    pb::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request::RequestUnion},
};

/// The end of the key's name; keys that are written end with digits.
const APART: &[u8] = b"apart";

/// The thread of the storm.
#[derive(Debug)]
pub(super) struct Storm(JoinHandle<Result<Came, BenchError>>);

/// Its results.
#[derive(Debug)]
pub(super) struct Came {
    /// From connecting to the watch's creation.
    pub(super) joins: Histogram<u64>,
    pub(super) findings: Findings,
}

/// What the connections share.
#[derive(Debug)]
struct Shared {
    options: Watch,
    plan: Plan,
    counts: Arc<Counts>,
    buffer: Vec<u8>,
    came: Came,
}

impl Storm {
    /// Starts the thread. The connections arrive after `join_after`.
    pub(super) fn start(
        options: &Watch,
        plan: &Plan,
        counts: &Arc<Counts>,
        stages: watch::Receiver<Stage>,
    ) -> Result<Self, BenchError> {
        let shared = Shared {
            options: options.clone(),
            plan: plan.clone(),
            counts: counts.clone(),
            buffer: vec![0; READ_BYTES],
            came: Came { joins: report::histogram(), findings: Findings::default() },
        };
        background::run("storm", move || come(shared, stages)).map(Self).map_err(BenchError::Thread)
    }

    /// The results. Called when everything is over.
    pub(super) fn finish(self) -> Result<Came, BenchError> {
        self.0.join().map_err(|_| BenchError::Lost)?
    }
}

async fn come(shared: Shared, mut stages: watch::Receiver<Stage>) -> Result<Came, BenchError> {
    tokio::time::sleep(shared.options.join_after).await;
    let (all, begun) = (shared.options.storm, shared.plan.now());
    shared.counts.joining_from.store(begun, Ordering::Release);
    let shared = Rc::new(RefCell::new(shared));
    for number in 0..all {
        let shared = shared.clone();
        tokio::task::spawn_local(background::giving_way(async move {
            let mut created = false;
            let Err(wrong) = live(&shared, begun, &mut created).await;
            let mut shared = shared.borrow_mut();
            if !created {
                shared.counts.joined(all, shared.plan.now());
            }
            shared.came.findings.add(format_args!("connection {number} of the storm: {wrong}"));
        }));
    }
    stages.wait_for(|stage| matches!(stage, Stage::Done(_))).await.map_err(|_| BenchError::Lost)?;
    let mut shared = shared.borrow_mut();
    let mut findings = std::mem::take(&mut shared.came.findings);
    let came = shared.came.joins.len();
    if came < all {
        findings.add(format_args!("{came} of {all} connections of the storm have their watches"));
    }
    Ok(Came { joins: shared.came.joins.clone(), findings })
}

/// Runs one connection as long as there is no error.
async fn live(shared: &RefCell<Shared>, begun: u64, created: &mut bool) -> Result<Infallible, Wrong> {
    let endpoint = shared.borrow().options.endpoint.clone();
    let mut link = Link::connect(&endpoint, STREAM_WINDOW).await?;
    let stream = link.sender().open(WATCH);
    let key = Bytes::from([&shared.borrow().plan.prefix[..], APART].concat());
    let create = WatchCreateRequest { key, ..Default::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    link.sender().send(stream, &request.encode_to_vec());
    let wrong = poll_fn(|context| {
        let shared = &mut *shared.borrow_mut();
        let Shared { options, plan, counts, buffer, came } = shared;
        link.poll(context, buffer, &mut |_, event| {
            let bytes = match event {
                Event::Message(_, bytes) => bytes,
                Event::Ended(_, Status::Ok) => return Err(Wrong::Ended("the server ended the stream".to_owned())),
                Event::Ended(_, Status::Failed(reason)) => return Err(Wrong::Ended(reason)),
            };
            let head = message::watch_response(bytes)?;
            if head.canceled {
                let reason = String::from_utf8_lossy(head.cancel_reason).into_owned();
                return Err(Wrong::Canceled { compact_revision: head.compact_revision, reason });
            }
            if !head.created || *created {
                return Err(Wrong::UnknownWatch(head.watch_id));
            }
            *created = true;
            let now = plan.now();
            report::note(&mut came.joins, now.saturating_sub(begun));
            counts.joined(options.storm, now);
            Ok(())
        })
    });
    let wrong: Wrong = wrong.await;
    Err(wrong)
}
