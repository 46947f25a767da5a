//! [`Joiners`]: the connections that arrive while the others watch. Each lists the whole prefix and watches from its
//! list on, like a cache that starts.
//!
//! Earlier watches are in `subscriber`; checks are in `listed` and `check`. All arrive at once on a separate thread, so
//! that their reads do not delay the watches whose delays are measured. Later pages are read at the revision of the
//! first, as in Kubernetes' API server. Always holds: a joiner that fails is a finding, and ends no other.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    thread::{self, JoinHandle},
};

use hdrhistogram::Histogram;
use prost::Message as _;
use tokio::{sync::watch, task::LocalSet};

use super::{Counts, Watch, fleet::Stage, subscriber::WATCH};
use crate::{
    bench::{
        BenchError,
        calls::RANGE,
        check::{Scope, Seen, Truth, Wrong},
        link::{Link, READ_BYTES},
        listed::Listed,
        message,
        plan::Plan,
        report::{self, Findings},
        runtime,
        wire::{Event, STREAM_WINDOW, Sender, Status},
    },
    pb::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest, watch_request::RequestUnion},
    types::KeyRange,
};

/// The thread of the joiners.
#[derive(Debug)]
pub(super) struct Joiners(JoinHandle<Result<Joined, BenchError>>);

/// The results of the joiners.
#[derive(Debug)]
pub(super) struct Joined {
    /// From connecting to the last key.
    pub(super) lists: Histogram<u64>,
    /// From connecting to the watch's creation.
    pub(super) joins: Histogram<u64>,
    pub(super) findings: Findings,
}

/// What they share.
#[derive(Debug)]
struct Hall {
    options: Watch,
    plan: Plan,
    counts: Arc<Counts>,
    buffer: Vec<u8>,
    lists: Histogram<u64>,
    joins: Histogram<u64>,
}

/// One joiner.
#[derive(Debug)]
struct Joiner {
    number: u64,
    begun: u64,
    /// The newest acknowledged revision before its list.
    acknowledged: i64,
    listed: Listed,
    /// The page that was requested and has not arrived.
    asked: Option<u32>,
    /// The stream of the watch, and its check once it was created.
    watch: Option<u32>,
    seen: Option<Seen>,
    delivered: u64,
    failed: Option<Wrong>,
}

impl Joiners {
    /// Starts the thread. The joiners arrive after `join_after`.
    pub(super) fn start(
        options: &Watch,
        plan: &Plan,
        counts: &Arc<Counts>,
        stages: watch::Receiver<Stage>,
    ) -> Result<Self, BenchError> {
        let hall = Hall {
            options: options.clone(),
            plan: plan.clone(),
            counts: counts.clone(),
            buffer: vec![0; READ_BYTES],
            lists: report::histogram(),
            joins: report::histogram(),
        };
        let run = move || runtime()?.block_on(LocalSet::new().run_until(join(hall, stages)));
        thread::Builder::new().name("joiners".to_owned()).spawn(run).map(Self).map_err(BenchError::Thread)
    }

    /// Their results. Called when everything is over.
    pub(super) fn finish(self) -> Result<Joined, BenchError> {
        self.0.join().map_err(|_| BenchError::Lost)?
    }
}

async fn join(hall: Hall, mut stages: watch::Receiver<Stage>) -> Result<Joined, BenchError> {
    tokio::time::sleep(hall.options.join_after).await;
    let (options, plan, counts) = (hall.options.clone(), hall.plan.clone(), hall.counts.clone());
    counts.joining_from.store(plan.now(), Ordering::Release);
    let hall = Rc::new(RefCell::new(hall));
    let mut joiners = Vec::new();
    for number in 0..options.join {
        let joiner = Rc::new(RefCell::new(Joiner::new(number, &plan, &counts)));
        joiners.push(joiner.clone());
        let (life, counts, all) = (live(joiner.clone(), hall.clone()), counts.clone(), options.join);
        let clock = plan.clone();
        tokio::task::spawn_local(async move {
            let Err(wrong) = life.await;
            let mut joiner = joiner.borrow_mut();
            if joiner.seen.is_none() {
                counts.joined(all, clock.now());
            }
            joiner.failed = Some(wrong);
        });
    }
    let settling =
        stages.wait_for(|stage| !matches!(stage, Stage::Writing)).await.map_err(|_| BenchError::Lost)?.clone();
    if let Stage::Settling(truth) = settling {
        let expected = joiners.iter().map(|joiner| joiner.borrow().expected(&truth)).sum();
        counts.expected.fetch_add(expected, Ordering::Release);
        counts.judges.fetch_add(1, Ordering::Release);
    }
    let done = stages.wait_for(|stage| matches!(stage, Stage::Done(_))).await.map_err(|_| BenchError::Lost)?.clone();
    let mut findings = Findings::default();
    if let Stage::Done(truth) = done {
        for joiner in &joiners {
            let joiner = joiner.borrow();
            if let Err(wrong) = joiner.conclude(&plan, &truth) {
                findings.add(format_args!("joiner {}: {wrong}", joiner.number));
            }
        }
    }
    let hall = hall.borrow();
    Ok(Joined { lists: hall.lists.clone(), joins: hall.joins.clone(), findings })
}

/// Runs one joiner as long as there is no error.
async fn live(joiner: Rc<RefCell<Joiner>>, hall: Rc<RefCell<Hall>>) -> Result<std::convert::Infallible, Wrong> {
    let endpoint = hall.borrow().options.endpoint.clone();
    let mut link = Link::connect(&endpoint, STREAM_WINDOW).await?;
    {
        let (hall, mut joiner) = (hall.borrow(), joiner.borrow_mut());
        joiner.acknowledged = hall.counts.acknowledged.load(Ordering::Acquire);
        joiner.ask(link.sender(), &hall);
    }
    let wrong = poll_fn(|context| poll(&mut link, &mut joiner.borrow_mut(), &mut hall.borrow_mut(), context)).await;
    Err(wrong)
}

fn poll(link: &mut Link, joiner: &mut Joiner, hall: &mut Hall, context: &mut Context<'_>) -> Poll<Wrong> {
    let mut buffer = std::mem::take(&mut hall.buffer);
    let polled = link.poll(context, &mut buffer, &mut |sender, event| joiner.event(sender, event, hall));
    hall.buffer = buffer;
    polled
}

impl Joiner {
    fn new(number: u64, plan: &Plan, counts: &Counts) -> Self {
        Self {
            number,
            begun: plan.now(),
            acknowledged: counts.acknowledged.load(Ordering::Acquire),
            listed: Listed::default(),
            asked: None,
            watch: None,
            seen: None,
            delivered: 0,
            failed: None,
        }
    }

    /// Requests the next page.
    fn ask(&mut self, sender: &mut Sender, hall: &Hall) {
        let (mut key, range_end) = KeyRange::prefix(hall.plan.prefix.clone().into()).to_wire();
        if self.listed.keys() > 0 {
            // The first key after the last one that arrived.
            key = [&hall.plan.key(self.listed.keys() - 1)[..], &[0]].concat().into();
        }
        let limit = i64::try_from(hall.options.join_page).unwrap_or(0);
        let request = RangeRequest { key, range_end, limit, revision: self.listed.revision(), ..Default::default() };
        self.asked = Some(sender.call(RANGE, &request.encode_to_vec()));
    }

    fn event(&mut self, sender: &mut Sender, event: Event<'_>, hall: &mut Hall) -> Result<(), Wrong> {
        match event {
            Event::Ended(_, Status::Failed(reason)) => Err(Wrong::Ended(reason)),
            Event::Ended(id, Status::Ok) if self.watch == Some(id) || self.asked == Some(id) => {
                Err(Wrong::Ended("the server ended the stream".to_owned()))
            }
            Event::Ended(..) => Ok(()),
            Event::Message(id, bytes) if self.watch == Some(id) => self.told(bytes, hall),
            Event::Message(_, bytes) => self.page(sender, bytes, hall),
        }
    }

    fn page(&mut self, sender: &mut Sender, bytes: &[u8], hall: &mut Hall) -> Result<(), Wrong> {
        self.asked = None;
        let before = self.listed.keys();
        self.listed.page(&hall.plan, self.acknowledged, bytes)?;
        hall.counts.listed.fetch_add(self.listed.keys() - before, Ordering::Release);
        if !self.listed.is_done() {
            self.ask(sender, hall);
            return Ok(());
        }
        report::note(&mut hall.lists, hall.plan.now().saturating_sub(self.begun));
        let id = sender.open(WATCH);
        let (key, range_end) = KeyRange::prefix(hall.plan.prefix.clone().into()).to_wire();
        let start_revision = self.listed.revision() + 1;
        let create = WatchCreateRequest { key, range_end, start_revision, ..Default::default() };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        sender.send(id, &request.encode_to_vec());
        self.watch = Some(id);
        Ok(())
    }

    /// Handles a response of the watch.
    fn told(&mut self, bytes: &[u8], hall: &mut Hall) -> Result<(), Wrong> {
        let head = message::watch_response(bytes)?;
        if head.canceled {
            let reason = String::from_utf8_lossy(head.cancel_reason).into_owned();
            return Err(Wrong::Canceled { compact_revision: head.compact_revision, reason });
        }
        if head.watch_id != 0 {
            return Err(Wrong::UnknownWatch(head.watch_id));
        }
        let now = hall.plan.now();
        if head.created {
            self.seen = Some(Seen::after(&hall.plan, self.listed.revision()));
            report::note(&mut hall.joins, now.saturating_sub(self.begun));
            hall.counts.joined(hall.options.join, now);
            return Ok(());
        }
        let seen = self.seen.as_mut().ok_or(Wrong::UnknownWatch(head.watch_id))?;
        let events = seen.response(&hall.plan, Scope::All, bytes, |_, _| {})?;
        self.delivered += events;
        hall.counts.delivered(events, now);
        Ok(())
    }

    /// The number of expected deliveries; for one that failed, as many as it received.
    fn expected(&self, truth: &Truth) -> u64 {
        match (&self.failed, &self.seen) {
            (None, Some(seen)) => seen.expected(truth, Scope::All),
            _ => self.delivered,
        }
    }

    fn conclude(&self, plan: &Plan, truth: &Truth) -> Result<(), Wrong> {
        if let Some(wrong) = &self.failed {
            return Err(wrong.clone());
        }
        self.listed.conclude(plan, truth)?;
        let seen = self.seen.as_ref().ok_or_else(|| Wrong::Ended("the watch was never created".to_owned()))?;
        seen.conclude(plan, truth, Scope::All)
    }
}
