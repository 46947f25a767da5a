//! Hostile clients crowd the relay over a healthy cluster: prompt clients get everything in time, and none of a slow
//! client's watches waits while the others continue.
//!
//! The checks are in `check`. Always holds: writes continue at the same rate until the end, so a watch that is passed
//! over stays behind.

use std::time::Duration;

use rand::{Rng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::{Failure, Schedule, simulate};
use crate::{
    check::Counts,
    hostile::Hostile,
    relay::Terms,
    watcher::{Order, Reading},
};

/// How long the hostile clients stay.
const LASTS: Duration = Duration::from_secs(8);

/// Runs a schedule. Returns what was seen, or what was wrong.
pub(crate) fn run(seed: u64) -> Result<Counts, Failure> {
    // The history is short, so that older revisions have to be filled.
    let terms = |rng: &mut StdRng| {
        let history = (rng.random_range(300..3_000), rng.random_range(2..12));
        Terms { prefixes: vec![""], history, ..Terms::random(rng) }
    };
    simulate(seed, |seed| Schedule::with(seed, terms, false), async |schedule| schedule.crowd().await)
        .map(|(counts, _)| counts)
}

impl Schedule {
    async fn crowd(&mut self) -> Result<Counts, String> {
        for reading in [Reading::Prompt, Reading::Steady] {
            self.join_as(None, reading);
        }
        for _ in 0..self.rng.random_range(10..40) {
            self.create();
        }
        let until = Instant::now() + LASTS;
        while Instant::now() < until {
            for _ in 0..self.rng.random_range(0..3) {
                self.write();
            }
            match self.rng.random_range(0..12) {
                0 => {
                    let streams = self.rng.random_range(50..400);
                    self.attack(Hostile::Floods { streams });
                }
                1 | 2 => self.hostile(),
                3 | 4 => self.create(),
                5 => self.prompt_comes_again(),
                6 => drop(self.cluster.compact(0.3)),
                7 => self.read().await,
                _ => {}
            }
            sleep(Duration::from_millis(self.rng.random_range(1..60))).await;
            self.failure()?;
        }
        self.settle().await?;
        self.relay.stop();
        Ok(self.counts())
    }

    /// It continues from its position, in the past of its feeds.
    fn prompt_comes_again(&mut self) {
        if let Some(watcher) = self.watchers.iter().find(|watcher| watcher.reading == Reading::Prompt) {
            watcher.order(Order::Break);
        }
    }
}
