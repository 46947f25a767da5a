//! [`Scene`]: what all clients share: where the servers are, the truth, and whether they are to go on.
//!
//! Not here: the servers themselves, see `world`; what clients do, see `probes`, `writers`, `readers`, `watchers`, `leases`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{findings::Findings, gaps::Gaps, judge::Judge, link::Token, support::eventually, truth::Truth};

/// The keys of the relays' configured feed.
pub const PREFIX: &str = "/chaos/";
/// Keys of which watches open feeds on demand.
pub const DEMAND: &str = "/demand/";
/// A key of no feed.
pub const OUTSIDE: &str = "/outside/key";
/// The relays: two over etcd, and a tier over these.
pub const RELAYS: [&str; 3] = ["relay a", "relay b", "the tier"];
/// The place of the tier among them.
pub const TIER: usize = 2;
/// In their place, for what any of them did: what a client has that knows them all.
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
    /// What was wrong.
    pub findings: Arc<Findings>,
    /// For how long nothing succeeded.
    pub gaps: Gaps,
    /// Who clients are.
    pub token: Token,
    /// How far each watcher is that reads all the time.
    pub places: Mutex<Vec<Arc<Place>>>,
    /// Streams of those who read all the time that a relay ended, or canceled a watch on, in the present window.
    pub ended: AtomicUsize,
    /// Whether clients stop reading, one after the other.
    pub crowd: AtomicBool,
    /// Whether it is wrong that something takes long. Where not, only what is told is judged.
    pub judges_time: bool,
    /// For each client that lives on with a lease, whether that is kept alive.
    leases: Mutex<Vec<Arc<AtomicBool>>>,
    writes: watch::Sender<Writes>,
}

/// How far a watcher is: the epoch's number, and the revision to which it was told everything.
#[derive(Debug, Default)]
pub struct Place {
    at: Mutex<(usize, i64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Writes {
    held: bool,
    under_way: usize,
}

/// A write that is under way.
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

    /// What answers are held against.
    pub fn judge(&self) -> Judge<'_> {
        Judge { truth: &self.truth, findings: &self.findings }
    }

    /// A watcher that reads all the time.
    pub fn place(&self) -> Arc<Place> {
        let place = Arc::new(Place::default());
        self.places.lock().push(Arc::clone(&place));
        place
    }

    /// A client that lives on with a lease.
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

    /// Waits until writes may be made; the write is under way while the value lives.
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

    /// From now on nobody writes; waits for those writes that are under way.
    pub async fn hold_writes(&self) {
        self.writes.send_modify(|writes| writes.held = true);
        let mut writes = self.writes.subscribe();
        // The sender lives as long as this.
        let _ = writes.wait_for(|writes| writes.under_way == 0).await;
    }

    /// Writes go on.
    pub fn release_writes(&self) {
        self.writes.send_modify(|writes| writes.held = false);
    }

    /// Waits until all who read all the time were told everything to here.
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
    /// It was told everything to here.
    pub fn set(&self, epoch: usize, revision: i64) {
        *self.at.lock() = (epoch, revision);
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writes.send_modify(|writes| writes.under_way -= 1);
    }
}
