//! Many streams of a few hostile clients want a past that the history cannot hold, and read nothing of it. Another
//! client gets the same past at once, because turns rotate between clients.
//!
//! The checks are in `check`. Always holds: the cluster is healthy, and there are no other clients.

use std::time::Duration;

use rand::{Rng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::{Failure, Schedule, simulate};
use crate::{
    check::Counts,
    hostile::{HOST, Hostile},
    relay::{Host, Terms},
    watcher::Reading,
};

/// How long the others stay.
const LASTS: Duration = Duration::from_secs(6);

/// Runs a schedule. Returns what was seen, or what was wrong.
pub(crate) fn run(seed: u64) -> Result<Counts, Failure> {
    let terms = |rng: &mut StdRng| Terms {
        prefixes: vec![""],
        history: (rng.random_range(300..600), 2),
        stream_buffer: rng.random_range(40..400),
        ..Terms::random(rng)
    };
    simulate(seed, |seed| Schedule::with(seed, terms, false), async |schedule| schedule.queue().await)
        .map(|(counts, _)| counts)
}

impl Schedule {
    async fn queue(&mut self) -> Result<Counts, String> {
        for _ in 0..self.rng.random_range(20..60) {
            self.write();
        }
        sleep(Duration::from_secs(1)).await;
        for number in 0..self.rng.random_range(1..4) {
            let streams = self.rng.random_range(200..500);
            self.attack_from(Host(HOST.0 + number), Hostile::Hoards { streams }, LASTS);
        }
        sleep(Duration::from_millis(self.rng.random_range(20..300))).await;
        self.join_as(None, Reading::Prompt);
        for _ in 0..self.rng.random_range(1..5) {
            self.create_from(Some(self.cluster.oldest()));
        }
        let until = Instant::now() + LASTS;
        while Instant::now() < until {
            self.write();
            sleep(Duration::from_millis(self.rng.random_range(1..200))).await;
            self.failure()?;
        }
        self.settle().await?;
        self.relay.stop();
        Ok(self.counts())
    }
}
