//! [`Fleet`]: the threads that read, each with its share of the connections, and the stages of a run, which they go
//! through together.
//!
//! Reading is in `subscriber`. Always holds: a connection that fails before all watches were created ends the run; a
//! later failure is a finding.

use std::{
    cell::RefCell,
    future::poll_fn,
    ops::Range,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    thread::{self, JoinHandle},
};

use hdrhistogram::Histogram;
use tokio::{
    sync::{Semaphore, watch},
    task::LocalSet,
    time::timeout,
};

use super::{
    Counts, Watch,
    block::Blocks,
    sse::EventStream,
    subscriber::{Role, Subscriber, Wire},
};
use crate::bench::{
    BenchError,
    check::{Truth, Unfinished, Wrong},
    link::{Link, READ_BYTES},
    plan::Plan,
    report::{self, Findings},
    runtime,
    wire::{DEFAULT_WINDOW, STREAM_WINDOW},
};

/// Connections per thread that are being opened at the same time; fewer than the backlog of a listening socket.
const OPENING: usize = 64;

/// The stage of a run.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// The writes are under way or will begin.
    Writing,
    /// All writes are done.
    Settling(Arc<Truth>),
    /// Nothing more is awaited.
    Done(Arc<Truth>),
}

/// The threads that read.
#[derive(Debug)]
pub(super) struct Fleet {
    stage: watch::Sender<Stage>,
    threads: Vec<JoinHandle<Result<Tally, BenchError>>>,
}

/// What a thread's subscribers share.
#[derive(Debug)]
pub(super) struct Thread {
    pub(super) options: Arc<Watch>,
    pub(super) plan: Arc<Plan>,
    pub(super) buffer: Vec<u8>,
    /// Reads the text of server-sent events, if that is what comes.
    pub(super) blocks: Blocks,
    pub(super) delays: Histogram<u64>,
    /// The part of them while others joined.
    pub(super) joining_delays: Histogram<u64>,
    counts: Arc<Counts>,
}

/// The results of all threads.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) delays: Histogram<u64>,
    /// The part of them while others joined.
    pub(super) joining_delays: Histogram<u64>,
    pub(super) findings: Findings,
    /// Mean delay of each healthy subscriber.
    means: Vec<f64>,
}

impl Fleet {
    /// Starts the threads, which connect and create their watches at once.
    pub(super) fn start(options: &Watch, plan: &Arc<Plan>, counts: &Arc<Counts>) -> Result<Self, BenchError> {
        let (stage, stages) = watch::channel(Stage::Writing);
        let options = Arc::new(options.clone());
        let start = |index| {
            let (options, plan, counts) = (options.clone(), plan.clone(), counts.clone());
            let stages = stages.clone();
            let run = move || {
                let (delays, joining_delays) = (report::histogram(), report::histogram());
                let blocks = Blocks::new(options.sse.unwrap_or_default());
                let buffer = vec![0; READ_BYTES];
                let thread = Thread { options, plan, buffer, blocks, delays, joining_delays, counts };
                runtime()?.block_on(LocalSet::new().run_until(read(thread, index, stages)))
            };
            thread::Builder::new().name(format!("reader-{index}")).spawn(run).map_err(BenchError::Thread)
        };
        let threads = (0..options.threads).map(start).collect::<Result<_, _>>()?;
        Ok(Self { stage, threads })
    }

    /// The stage of the run, for other threads.
    pub(super) fn stages(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    pub(super) fn tell(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }

    /// Ends the threads and returns their results.
    pub(super) fn finish(self) -> Result<Tally, BenchError> {
        self.stage.send_modify(|stage| {
            if let Stage::Settling(truth) = stage {
                *stage = Stage::Done(truth.clone());
            }
        });
        let (delays, joining_delays) = (report::histogram(), report::histogram());
        let mut all = Tally { delays, joining_delays, findings: Findings::default(), means: Vec::new() };
        for thread in self.threads {
            let tally = thread.join().map_err(|_| BenchError::Lost)??;
            all.delays.add(&tally.delays).map_err(|_| BenchError::Lost)?;
            all.joining_delays.add(&tally.joining_delays).map_err(|_| BenchError::Lost)?;
            all.findings.join(tally.findings);
            all.means.extend(tally.means);
        }
        all.means.sort_unstable_by(f64::total_cmp);
        Ok(all)
    }
}

impl Tally {
    /// The mean delay of the median subscriber, in nanoseconds.
    pub(super) fn median_subscriber(&self) -> Option<f64> {
        self.means.get(self.means.len() / 2).copied()
    }

    /// The mean delay of the worst subscriber, in nanoseconds.
    pub(super) fn worst_subscriber(&self) -> Option<f64> {
        self.means.last().copied()
    }
}

impl Thread {
    pub(super) fn created(&self) {
        self.counts.created.fetch_add(1, Ordering::Release);
    }

    pub(super) fn delivered(&self, events: u64, now: u64) {
        self.counts.delivered(events, now);
    }

    /// The time in which others joined, in nanoseconds of the run's clock; empty if nobody has.
    pub(super) fn joining(&self) -> Range<u64> {
        let at = |time: &AtomicU64| time.load(Ordering::Relaxed);
        match (at(&self.counts.joining_from), at(&self.counts.joined_at)) {
            (0, _) => 0..0,
            (from, 0) => from..u64::MAX,
            (from, until) => from..until,
        }
    }
}

type Shared<T> = Rc<RefCell<T>>;

/// Runs a thread from its first connection to its results.
async fn read(thread: Thread, index: u64, mut stages: watch::Receiver<Stage>) -> Result<Tally, BenchError> {
    let options = thread.options.clone();
    let (plan, counts) = (thread.plan.clone(), thread.counts.clone());
    let thread = Rc::new(RefCell::new(thread));
    let gate = Rc::new(Semaphore::new(OPENING));
    let mut subscribers = Vec::new();
    // Distributes the numbers over the threads, so that each has a share of the slow ones.
    for number in (index..options.connections).step_by(usize::try_from(options.threads).unwrap_or(1)) {
        let subscriber = Rc::new(RefCell::new(Subscriber::new(&options, number)));
        subscribers.push(subscriber.clone());
        let (thread, counts) = (thread.clone(), counts.clone());
        let life = live(subscriber.clone(), thread, options.clone(), gate.clone(), stages.clone());
        tokio::task::spawn_local(async move {
            let Err(wrong) = life.await;
            if !subscriber.borrow().was_created() {
                counts.failure.lock().get_or_insert(BenchError::Watch(wrong.to_string()));
            }
            subscriber.borrow_mut().fail(wrong);
        });
    }
    let settling =
        stages.wait_for(|stage| !matches!(stage, Stage::Writing)).await.map_err(|_| BenchError::Lost)?.clone();
    if let Stage::Settling(truth) = settling {
        let expected = subscribers.iter().map(|subscriber| subscriber.borrow().expected(&options, &truth)).sum();
        counts.expected.fetch_add(expected, Ordering::Release);
        counts.judges.fetch_add(1, Ordering::Release);
    }
    let done = stages.wait_for(|stage| matches!(stage, Stage::Done(_))).await.map_err(|_| BenchError::Lost)?.clone();
    let mut findings = Findings::default();
    if let Stage::Done(truth) = done {
        for subscriber in &subscribers {
            subscriber.borrow().conclude(&options, &plan, &truth, &mut findings);
        }
    }
    let means = subscribers.iter().filter_map(|subscriber| subscriber.borrow().mean_delay()).collect();
    let thread = thread.borrow();
    Ok(Tally { delays: thread.delays.clone(), joining_delays: thread.joining_delays.clone(), findings, means })
}

/// Runs one connection as long as there is no error.
async fn live(
    subscriber: Shared<Subscriber>,
    thread: Shared<Thread>,
    options: Arc<Watch>,
    gate: Rc<Semaphore>,
    mut stages: watch::Receiver<Stage>,
) -> Result<std::convert::Infallible, Wrong> {
    let is_over = |stage: &Stage| !matches!(stage, Stage::Writing);
    {
        // The gate is never closed.
        let _turn = gate.acquire().await;
        open(&subscriber, &thread, &options).await?;
    }
    let role = subscriber.borrow().role;
    match role {
        Role::Healthy => {}
        // If the sender is gone, the run ends.
        Role::Slow => {
            let _ended = stages.wait_for(is_over).await;
        }
        Role::Reconnecting => {
            while !is_over(&stages.borrow()) {
                let stay = follow(&subscriber, &thread, |_| false);
                if let Ok(Err(wrong)) = timeout(options.reconnect_every, stay).await {
                    return Err(wrong);
                }
                subscriber.borrow_mut().disconnect();
                open(&subscriber, &thread, &options).await?;
                thread.borrow().counts.reconnects.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    loop {
        follow(&subscriber, &thread, |_| false).await?;
    }
}

/// Connects and creates all watches.
async fn open(subscriber: &Shared<Subscriber>, thread: &Shared<Thread>, options: &Watch) -> Result<(), Wrong> {
    let role = subscriber.borrow().role;
    // A slow connection has the smallest window that HTTP/2 allows, so that the server has to keep the rest.
    let window = if role == Role::Slow { DEFAULT_WINDOW } else { STREAM_WINDOW };
    let number = subscriber.borrow().number();
    let wire = match options.sse {
        None => Wire::Grpc(Link::connect_as(&options.endpoint, window, number).await?),
        Some(encoding) => {
            let path = subscriber.borrow().path(encoding, &thread.borrow());
            Wire::Sse(EventStream::open(&options.endpoint, number, &path).await?, Unfinished::default())
        }
    };
    subscriber.borrow_mut().connected(wire, &thread.borrow());
    follow(subscriber, thread, Subscriber::is_created).await
}

/// Reads until the condition holds.
async fn follow(
    subscriber: &Shared<Subscriber>,
    thread: &Shared<Thread>,
    until: impl Fn(&Subscriber) -> bool,
) -> Result<(), Wrong> {
    poll_fn(|context| {
        let mut subscriber = subscriber.borrow_mut();
        match subscriber.poll(context, &mut thread.borrow_mut()) {
            Poll::Ready(wrong) => Poll::Ready(Err(wrong)),
            Poll::Pending if until(&subscriber) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
