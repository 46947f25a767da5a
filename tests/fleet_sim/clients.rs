//! What a client of the fleet is, as far as it connects: where it is, since when it is away, and how long it waits after it was refused.
//!
//! A client knows all relays and goes to one of those that accept, by chance, as one does whose addresses come in no order (gRPC's `pick_first`
//! with a shuffled list, or a name with an address a relay). Not here: what it watches. Always holds: it has one connection at most.

use std::time::Duration;

use rand::{Rng as _, rngs::StdRng};

/// gRPC's backoff between attempts where nobody accepts: the first wait, how much longer each is, and the longest; give or take a fifth.
const FIRST: Duration = Duration::from_secs(1);
const FACTOR: f64 = 1.6;
const LONGEST: Duration = Duration::from_secs(120);
const JITTER: f64 = 0.2;
/// Until a client that was told to leave, or lost its connection, begins the next one.
const REACTION: std::ops::Range<u64> = 1_000..50_000;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Client {
    /// Where it is connected, and where it stands among the connections there that stay.
    pub(crate) at: Option<(usize, usize)>,
    /// Counts its connections, so that what was meant for an earlier one is known.
    pub(crate) connection: u32,
    /// Since when it gets no events; none while it does.
    pub(crate) away: Option<Duration>,
    attempts: i32,
}

impl Client {
    /// How long after the end of a connection the next one begins.
    pub(crate) fn reaction(rng: &mut StdRng) -> Duration {
        Duration::from_micros(rng.random_range(REACTION))
    }

    /// How long it waits after it was refused everywhere once more.
    pub(crate) fn backoff(&mut self, rng: &mut StdRng) -> Duration {
        let wait = FIRST.mul_f64(FACTOR.powi(self.attempts)).min(LONGEST);
        self.attempts = (self.attempts + 1).min(30);
        wait.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER))
    }

    /// One that has not come yet.
    pub(crate) fn new() -> Self {
        Self { away: Some(Duration::ZERO), ..Self::default() }
    }

    /// It is connected to this relay, in this place.
    pub(crate) fn connects(&mut self, relay: usize, place: usize) {
        self.at = Some((relay, place));
        self.connection += 1;
    }

    /// It is served.
    pub(crate) fn connected(&mut self) {
        self.attempts = 0;
    }
}
