//! A client of the fleet as far as connections are concerned: its relay, since when it is away, and its wait after a
//! refusal.
//!
//! A client knows all relays and connects to a random one that accepts, like a client whose addresses are shuffled
//! (gRPC's `pick_first` with a shuffled list, or a name with one address per relay). Always holds: it has at most one
//! connection.

use std::time::Duration;

use rand::{Rng as _, rngs::StdRng};

/// gRPC's backoff while no relay accepts: the first wait, the factor, and the longest wait, varied by a fifth.
const FIRST: Duration = Duration::from_secs(1);
const FACTOR: f64 = 1.6;
const LONGEST: Duration = Duration::from_secs(120);
const JITTER: f64 = 0.2;
/// How long a client takes to reconnect after it was asked to leave or lost its connection.
const REACTION: std::ops::Range<u64> = 1_000..50_000;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Client {
    /// The relay that it is connected to, and its index among the connections that stay there.
    pub(crate) at: Option<(usize, usize)>,
    /// Counts its connections, so that an event for an earlier one is recognized.
    pub(crate) connection: u32,
    /// Since when it gets no events; `None` while it does.
    pub(crate) away: Option<Duration>,
    attempts: i32,
}

impl Client {
    /// The time from the end of a connection to the next attempt.
    pub(crate) fn reaction(rng: &mut StdRng) -> Duration {
        Duration::from_micros(rng.random_range(REACTION))
    }

    /// The wait after another refusal by all relays.
    pub(crate) fn backoff(&mut self, rng: &mut StdRng) -> Duration {
        let wait = FIRST.mul_f64(FACTOR.powi(self.attempts)).min(LONGEST);
        self.attempts = (self.attempts + 1).min(30);
        wait.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER))
    }

    /// A client that has not connected yet.
    pub(crate) fn new() -> Self {
        Self { away: Some(Duration::ZERO), ..Self::default() }
    }

    /// It connects to this relay and gets this index.
    pub(crate) fn connects(&mut self, relay: usize, place: usize) {
        self.at = Some((relay, place));
        self.connection += 1;
    }

    /// It is served.
    pub(crate) fn connected(&mut self) {
        self.attempts = 0;
    }
}
