//! A client whose requests never pause still gets the progress of its quiet watch, and a create that waits for its feed
//! does not delay a cancel.
//!
//! The checks are in `check`. Always holds: the relay needs longer for a request than the client needs to send the next
//! one.

use std::time::Duration;

use rand::{Rng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::{Failure, Schedule, simulate};
use crate::{
    check::{CANCELED, Counts, Spec},
    cluster::Faults,
    relay::Terms,
    watcher::{Order, Reading},
};

/// How long the requests continue.
const LASTS: Duration = Duration::from_secs(10);

/// Runs a schedule. Returns what was seen, or what was wrong.
pub(crate) fn run(seed: u64) -> Result<Counts, Failure> {
    let terms = |rng: &mut StdRng| Terms { prefixes: vec!["a/"], ..Terms::random(rng) };
    simulate(seed, |seed| Schedule::with(seed, terms, false), async |schedule| schedule.busy().await)
        .map(|(counts, _)| counts)
}

impl Schedule {
    async fn busy(&mut self) -> Result<Counts, String> {
        // Each request waits for a feed that is slightly behind.
        let lag = Duration::from_millis(self.rng.random_range(50..100));
        self.cluster.set_faults(Faults { lag, latency: lag, ..Faults::NONE });
        self.join_as(None, Reading::Prompt);
        self.tell(Order::Create(Spec { progress_notify: true, ..Spec::of("a/quiet") }));
        sleep(Duration::from_secs(1)).await;
        let until = Instant::now() + LASTS;
        while Instant::now() < until {
            self.write();
            self.tell(Order::Progress);
            sleep(Duration::from_millis(1)).await;
            self.failure()?;
        }
        // Keys of the feed are served without a leader; other keys wait for one.
        self.cluster.set_faults(Faults { leaderless: true, ..Faults::NONE });
        sleep(Duration::from_secs(3)).await;
        self.tell(Order::Create(Spec::of("b/1")));
        sleep(Duration::from_millis(self.rng.random_range(0..2_000))).await;
        self.tell(Order::Cancel(0));
        let until = Instant::now() + CANCELED + LASTS;
        while Instant::now() < until {
            sleep(Duration::from_millis(100)).await;
            self.failure()?;
        }
        self.settle().await?;
        self.relay.stop();
        Ok(self.counts())
    }

    fn tell(&self, order: Order) {
        self.watchers.iter().for_each(|watcher| watcher.order(order.clone()));
    }
}
