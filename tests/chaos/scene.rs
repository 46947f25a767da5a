//! [`Scene`]: what all clients share: the addresses of the servers, the truth, and whether to continue.
//!
//! The servers are in `world`; the clients are in `probes`, `writers`, `readers`, `watchers` and `leases`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{findings::Findings, gaps::Gaps, judge::Judge, link::Token, support::eventually, truth::Truth};

/// The prefix of the relays' configured feed.
pub const PREFIX: &str = "/chaos/";
/// Keys whose watches open feeds on demand.
pub const DEMAND: &str = "/demand/";
/// A key outside all feeds.
pub const OUTSIDE: &str = "/outside/key";
/// The relays: two over etcd, and a tier over these.
pub const RELAYS: [&str; 3] = ["relay a", "relay b", "the tier"];
/// The index of the tier.
pub const TIER: usize = 2;
/// The index for actions of any relay, as seen by a client that knows them all.
pub const ANY: usize = 3;

/// What all clients share.
#[derive(Debug)]
pub struct Scene {
    /// The URLs of the relays.
    pub relays: [String; 3],
    /// The URLs of etcd's members.
    pub members: Vec<String>,
    /// What happened.
    pub truth: Arc<Truth>,
    /// The longest times without a success.
    pub findings: Arc<Findings>,
    /// For how long nothing succeeded.
    pub gaps: Gaps,
    /// The credentials of the clients.
    pub token: Token,
    /// The position of each watcher that reads all the time.
    pub places: Mutex<Vec<Arc<Place>>>,
    /// Streams of constantly reading watchers that a relay ended, or on which it canceled a watch, in the current
    /// window.
    pub ended: AtomicUsize,
    /// Whether clients stop reading, one after the other.
    pub crowd: AtomicBool,
    /// Whether a long duration is an error. If not, only correctness is checked.
    pub judges_time: bool,
    /// For each client that stays alive with a lease, whether that is kept alive.
    leases: Mutex<Vec<Arc<AtomicBool>>>,
    writes: watch::Sender<Writes>,
}

/// The position of a watcher: the epoch's number, and the revision up to which it received everything.
#[derive(Debug, Default)]
pub struct Place {
    at: Mutex<(usize, i64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Writes {
    held: bool,
    under_way: usize,
}

/// A write under way.
#[derive(Debug)]
pub struct Writing<'a>(&'a Scene);

impl Scene {
    /// Over these servers.
    pub fn new(relays: [String; 3], members: Vec<String>, token: Token, judges_time: bool) -> Arc<Self> {
        Arc::new(Self {
            relays,
            members,
            truth: Truth::new(),
            findings: Arc::new(Findings::new()),
            gaps: Gaps::default(),
            token,
            places: Mutex::default(),
            ended: AtomicUsize::new(0),
            crowd: AtomicBool::new(false),
            judges_time,
            leases: Mutex::default(),
            writes: watch::Sender::new(Writes::default()),
        })
    }

    /// The checker for answers.
    pub fn judge(&self) -> Judge<'_> {
        Judge { truth: &self.truth, findings: &self.findings }
    }

    /// Adds a watcher that reads all the time.
    pub fn place(&self) -> Arc<Place> {
        let place = Arc::new(Place::default());
        self.places.lock().push(Arc::clone(&place));
        place
    }

    /// Adds a client that stays alive with a lease.
    pub fn kept(&self) -> Arc<AtomicBool> {
        let kept = Arc::new(AtomicBool::new(false));
        self.leases.lock().push(Arc::clone(&kept));
        kept
    }

    /// Waits until each of them has a lease and keeps it alive.
    pub async fn all_leases_are_kept(&self) {
        eventually("all leases are kept alive", async || {
            self.leases.lock().iter().all(|kept| kept.load(Ordering::SeqCst)).then_some(())
        })
        .await;
    }

    /// Waits until writes are allowed. The write is under way while the value exists.
    pub async fn write(&self) -> Writing<'_> {
        let mut writes = self.writes.subscribe();
        loop {
            // The sender lives as long as this.
            let _ = writes.wait_for(|writes| !writes.held).await;
            let begun = self.writes.send_if_modified(|writes| {
                let may = !writes.held;
                writes.under_way += usize::from(may);
                may
            });
            if begun {
                return Writing(self);
            }
        }
    }

    /// Stops writes, and waits for those under way.
    pub async fn hold_writes(&self) {
        self.writes.send_modify(|writes| writes.held = true);
        let mut writes = self.writes.subscribe();
        // The sender lives as long as this.
        let _ = writes.wait_for(|writes| writes.under_way == 0).await;
    }

    /// Allows writes again.
    pub fn release_writes(&self) {
        self.writes.send_modify(|writes| writes.held = false);
    }

    /// Waits until all constantly reading watchers have received everything up to here.
    pub async fn all_are_at(&self, epoch: usize, revision: i64) {
        let what = format!("all watchers are told of revision {revision} of epoch {epoch}");
        eventually(&what, async || {
            let places = self.places.lock();
            places.iter().all(|place| *place.at.lock() >= (epoch, revision)).then_some(())
        })
        .await;
    }
}

impl Place {
    /// Records that everything up to here was received.
    pub fn set(&self, epoch: usize, revision: i64) {
        *self.at.lock() = (epoch, revision);
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writes.send_modify(|writes| writes.under_way -= 1);
    }
}
