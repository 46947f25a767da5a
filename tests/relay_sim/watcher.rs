//! [`Watcher`]: a client that watches like etcd's own clients, and checks everything that it receives.
//!
//! It has one watch stream and creates and cancels watches on it. When the stream or its connection breaks, it
//! reconnects and continues after the last revision that it got. The rules for responses are in `check`. Always holds:
//! an error is kept until the schedule collects it, and nothing is checked after it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_relay::pb::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_create_request::FilterType, watch_request::RequestUnion,
};
use h2::SendStream;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::{
    check::{Spec, StreamCheck},
    client::{Answer, Client, Windows, frame},
    relay::{Host, Relay},
};

/// Pause between two attempts to reconnect.
const PAUSE: Duration = Duration::from_millis(100);
/// Most orders that wait for the client.
const ORDERS: usize = 64;

/// How a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Everything at once.
    Prompt,
    /// Now and then, one message at a time, with a small window.
    Slow,
    /// One message at a time without long pauses, with a small window: slower than events come.
    Steady,
}

/// An order for a client.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    Create(Spec),
    /// One of its watches, by number.
    Cancel(usize),
    Progress,
    /// Breaks its connection and reconnects.
    Break,
    /// Ends only the stream and opens another one.
    Reset,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Watcher {
    orders: mpsc::Sender<Order>,
    pub(crate) check: Arc<Mutex<StreamCheck>>,
    pub(crate) token: Option<&'static str>,
    pub(crate) reading: Reading,
    _task: AbortOnDropHandle<()>,
}

impl Watcher {
    pub(crate) fn start(
        relay: Arc<Relay>,
        host: Host,
        check: StreamCheck,
        token: Option<&'static str>,
        reading: Reading,
        seed: u64,
    ) -> Self {
        let (orders, taken) = mpsc::channel(ORDERS);
        let check = Arc::new(Mutex::new(check));
        let task =
            Task { relay, host, token, reading, orders: taken, check: check.clone(), rng: StdRng::seed_from_u64(seed) };
        Self { orders, check, token, reading, _task: AbortOnDropHandle::new(tokio::spawn(task.run())) }
    }

    /// Gives the client an order, if it has room for it.
    pub(crate) fn order(&self, order: Order) {
        // A busy client does less.
        let _ = self.orders.try_send(order);
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.check.lock().failure()
    }
}

struct Task {
    relay: Arc<Relay>,
    host: Host,
    token: Option<&'static str>,
    reading: Reading,
    orders: mpsc::Receiver<Order>,
    check: Arc<Mutex<StreamCheck>>,
    rng: StdRng,
}

/// Why a stream ended.
enum Over {
    /// The client wants another one, on another connection or on the same one.
    Wanted,
    /// The relay or the connection ended it.
    Told(Status),
    /// No more orders will come.
    Done,
}

impl Task {
    async fn run(mut self) {
        loop {
            let over = match self.stream().await {
                Ok(over) => over,
                Err(status) => Over::Told(status),
            };
            self.check.lock().ended();
            match over {
                Over::Done => return,
                Over::Wanted => {}
                Over::Told(status) => {
                    self.check.lock().told(&status);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn stream(&mut self) -> Result<Over, Status> {
        let windows = if self.reading == Reading::Prompt { Windows::WIDE } else { Windows::NARROW };
        let client = Client::connect(&self.relay, self.host, self.token, windows).await?;
        let (mut send, mut answer) = client.open("Watch/Watch").await?;
        let again = self.check.lock().resume();
        for create in again {
            say(&mut send, RequestUnion::CreateRequest(create))?;
        }
        let mut waits: VecDeque<Order> = VecDeque::new();
        loop {
            // Both branches are cancel safe.
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    None => return Ok(Over::Done),
                    Some(order) => waits.push_back(order),
                },
                message = self.reading.next(&mut answer, &mut self.rng) => match message? {
                    None => return Err(Status::unknown("the stream ended without a reason")),
                    Some(response) => {
                        for id in self.check.lock().take(response) {
                            say(&mut send, cancel(id))?;
                        }
                    }
                },
            }
            while let Some(order) = waits.pop_front() {
                match order {
                    Order::Create(spec) => {
                        let create = self.check.lock().expect(spec);
                        say(&mut send, RequestUnion::CreateRequest(create))?;
                    }
                    Order::Cancel(number) => {
                        let id = self.check.lock().cancel(number);
                        if let Some(id) = id {
                            say(&mut send, cancel(id))?;
                        }
                    }
                    Order::Progress => say(&mut send, RequestUnion::ProgressRequest(WatchProgressRequest {}))?,
                    Order::Reset => {
                        send.send_reset(h2::Reason::CANCEL);
                        return Ok(Over::Wanted);
                    }
                    Order::Break => return Ok(Over::Wanted),
                }
            }
        }
    }
}

impl Reading {
    /// The next message. Cancel safe.
    async fn next(self, answer: &mut Answer, rng: &mut StdRng) -> Result<Option<WatchResponse>, Status> {
        match self {
            Self::Slow if rng.random_bool(0.5) => sleep(Duration::from_millis(rng.random_range(0..400))).await,
            Self::Steady => sleep(Duration::from_millis(rng.random_range(5..30))).await,
            Self::Slow | Self::Prompt => {}
        }
        answer.message().await
    }
}

pub(crate) fn cancel(watch_id: i64) -> RequestUnion {
    RequestUnion::CancelRequest(WatchCancelRequest { watch_id })
}

pub(crate) fn say(send: &mut SendStream<Bytes>, request: RequestUnion) -> Result<(), Status> {
    send.send_data(frame(&WatchRequest { request_union: Some(request) }), false)
        .map_err(|error| Status::unavailable(format!("the stream is gone: {error}")))
}

impl Spec {
    /// The request for it, from `start` on.
    pub(crate) fn request(&self, start_revision: i64) -> WatchCreateRequest {
        let mut filters = Vec::new();
        if self.no_put {
            filters.push(FilterType::Noput as i32);
        }
        if self.no_delete {
            filters.push(FilterType::Nodelete as i32);
        }
        WatchCreateRequest {
            key: self.wire.0.clone(),
            range_end: self.wire.1.clone(),
            start_revision,
            progress_notify: self.progress_notify,
            filters,
            prev_kv: self.prev_kv,
            watch_id: 0,
            fragment: self.fragment,
        }
    }
}
