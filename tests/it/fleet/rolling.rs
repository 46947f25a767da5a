//! Two relays are restarted one after the other, while their clients continue at the other relay.
//!
//! The load on the neighbour is printed. Speed is not tested, because the machine may be slow; `tests/fleet_sim` has
//! the limits.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_relay::pb::etcdserverpb::WatchCreateRequest;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::task::JoinSet;

use crate::support::{
    client::{self, WatchStream, event_revision, header_revision, is_progress},
    etcd::Etcd,
    eventually, free_port,
    kv::Kv,
    relay::{Relay, RelayCommand},
};

/// The number of clients, each with a connection and a watch; the size of a fleet on request.
fn clients() -> usize {
    if is_full() { 2_000 } else { 100 }
}

pub(super) fn is_full() -> bool {
    std::env::var("ETCD_RELAY_TEST_SCALE").is_ok_and(|scale| scale == "full")
}

async fn start(etcd: &Etcd, addr: &str) -> Relay {
    let command = RelayCommand::serve(&etcd.endpoints()).prefix("/a/").listen_grpc(addr);
    let relay = command.start().await;
    relay.follows().await;
    relay
}

/// The results of all clients.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// When they connected.
    pub(super) connects: Mutex<Vec<Instant>>,
    /// The number of clients connected to each relay.
    pub(super) at: [AtomicUsize; 2],
    /// The first error.
    pub(super) wrong: Mutex<Option<String>>,
    stop: AtomicBool,
    /// The last expected revision; zero while it is unknown.
    pub(super) last: AtomicI64,
}

/// Where a client goes when its stream has ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// To the other relay.
    Other,
    /// To a random one.
    Any,
}

/// Watches from `from` on, at one relay and then at the next, until the last revision came. Every event is a put below
/// `/a/` to a key that did not exist before `from`, so versions reveal missing and duplicate events.
pub(super) async fn watch(endpoints: [String; 2], mut at: usize, from: i64, seen: Arc<Seen>, goes: Next) {
    let (mut next, mut told) = (from, 0);
    let mut versions = HashMap::<Bytes, i64>::new();
    loop {
        // A relay that is restarting accepts no connection.
        let Ok(target) = tonic::transport::Endpoint::from_shared(endpoints[at].clone()) else { return };
        let Ok(channel) = target.connect().await else {
            at = 1 - at;
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        seen.connects.lock().push(Instant::now());
        let _here = Here::new(&seen.at[at]);
        let mut stream = WatchStream::over(channel, &[]);
        stream.create(WatchCreateRequest { start_revision: next, ..client::prefix("/a/") });
        while let Some(recorded) = stream.take_within(Duration::from_secs(60)).await {
            let response = recorded.response;
            let mut wrong = response.canceled.then(|| format!("a watch from {next} on was canceled"));
            for event in &response.events {
                let kv = event.kv.clone().unwrap_or_default();
                told = event_revision(event);
                let before = versions.insert(kv.key.clone(), kv.version).unwrap_or(0);
                if kv.version != before + 1 || told < next {
                    wrong = Some(format!(
                        "version {} of {:?} came at {told} after {before}, {next} was next",
                        kv.version, kv.key
                    ));
                }
                next = told + 1;
            }
            if is_progress(&response) {
                next = next.max(header_revision(&response) + 1);
            }
            if let Some(wrong) = wrong {
                seen.wrong.lock().get_or_insert(wrong);
                return;
            }
            let last = seen.last.load(Ordering::SeqCst);
            if last > 0 && told >= last {
                return;
            }
        }
        at = match goes {
            Next::Other => 1 - at,
            Next::Any => rand::rng().random_range(0..2),
        };
    }
}

/// Counts a client of a relay while it exists.
struct Here<'a>(&'a AtomicUsize);

impl<'a> Here<'a> {
    fn new(at: &'a AtomicUsize) -> Self {
        at.fetch_add(1, Ordering::SeqCst);
        Self(at)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_nothing_and_repeats_nothing() {
    let etcd = Etcd::start().await;
    let addr = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let mut relays = [start(&etcd, &addr[0]).await, start(&etcd, &addr[1]).await];
    let endpoints = [relays[0].endpoint(), relays[1].endpoint()];
    let seen = Arc::new(Seen::default());
    let kv = Kv::connect(&etcd.endpoint()).await;
    let from = kv.revision().await + 1;
    let mut watching = JoinSet::new();
    for client in 0..clients() {
        watching.spawn(watch(endpoints.clone(), client % 2, from, seen.clone(), Next::Other));
    }
    eventually("all have connected", async || (seen.connects.lock().len() >= clients()).then_some(())).await;
    let writing = tokio::spawn({
        let (kv, seen) = (kv.clone(), seen.clone());
        async move {
            for round in 0_u64.. {
                if seen.stop.load(Ordering::SeqCst) {
                    break;
                }
                kv.put(format!("/a/{}", round % 7), "x").await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let begun = Instant::now();
    for (index, relay) in relays.iter_mut().enumerate() {
        let connected = seen.connects.lock().len();
        relay.terminate();
        assert_eq!(relay.exit_code(Duration::from_secs(60)).await, 0);
        // Half of them were at the first relay; all of them are at the second by then.
        let moved = if index == 0 { clients() / 2 } else { clients() };
        eventually("all go on at the other one, or wait for it", async || {
            (index == 1 || seen.connects.lock().len() >= connected + moved).then_some(())
        })
        .await;
        *relay = start(&etcd, &addr[index]).await;
    }
    seen.stop.store(true, Ordering::SeqCst);
    writing.await.expect("the writer ends");
    seen.last.store(kv.put("/a/last", "x").await, Ordering::SeqCst);
    // For clients that got the last event before they could know that it was the last.
    kv.put("/a/last", "y").await;
    tokio::time::timeout(crate::support::patience() * 2, async { while watching.join_next().await.is_some() {} })
        .await
        .expect("all get to the last revision");
    assert_eq!(*seen.wrong.lock(), None);
    let connects = seen.connects.lock();
    let mut seconds = std::collections::BTreeMap::<u64, usize>::new();
    for at in connects.iter().filter(|at| **at > begun) {
        *seconds.entry((*at - begun).as_secs()).or_default() += 1;
    }
    let worst = seconds.values().max().copied().unwrap_or(0) * 100 / clients();
    println!("{} clients; connections by second of the restart: {seconds:?}; worst {worst} %", clients());
}
