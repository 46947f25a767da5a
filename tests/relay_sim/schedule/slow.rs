//! A client always reads, but always slower than events come: each of its watches on one stream gets its turn.
//!
//! The checks are in `check`. Always holds: the history has everything that the client waits for, so that nothing is
//! filled, or so little that watches fall out of it. A schedule lasts for many more responses than a watch may be
//! passed over by.

use std::time::Duration;

use rand::{Rng, rngs::StdRng};
use tokio::time::sleep;

use super::{Failure, Schedule, simulate};
use crate::{check::Counts, relay::Terms, watcher::Reading};

/// Number of the client's revisions after which a schedule ends.
const ENOUGH: usize = 6_000;
/// Most changes of a schedule.
const MOST: usize = 20_000;

/// Runs a schedule. Returns what was seen, or what was wrong.
pub(crate) fn run(seed: u64) -> Result<Counts, Failure> {
    let terms = |rng: &mut StdRng| Terms {
        prefixes: vec![""],
        history: if rng.random() { (1 << 30, 1_000_000) } else { (8 << 20, 100_000) },
        stream_buffer: rng.random_range(40..400),
        ..Terms::random(rng)
    };
    simulate(seed, |seed| Schedule::with(seed, terms, false), async |schedule| schedule.slow().await)
        .map(|(counts, _)| counts)
}

impl Schedule {
    async fn slow(&mut self) -> Result<Counts, String> {
        self.join_as(None, Reading::Steady);
        for _ in 0..self.rng.random_range(4..9) {
            self.create_from(None);
        }
        sleep(Duration::from_secs(1)).await;
        for _ in 0..MOST {
            self.write();
            sleep(Duration::from_millis(self.rng.random_range(1..4))).await;
            self.failure()?;
            if self.counts().events > ENOUGH {
                break;
            }
        }
        self.relay.stop();
        Ok(self.counts())
    }
}
