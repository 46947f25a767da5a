//! [`Heard`]: when upstream last reported a feed's progress.
//!
//! The feed's driver writes it for each batch and each progress report; the code that sends clients their progress
//! reads it. Always holds: neither waits for the other.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Heard {
    born: Instant,
    /// Milliseconds since then.
    last: AtomicU64,
}

impl Heard {
    pub(super) fn new() -> Self {
        Self { born: Instant::now(), last: AtomicU64::new(0) }
    }

    pub(super) fn now(&self) {
        self.last.store(self.age(), Ordering::Relaxed);
    }

    pub(super) fn is_older_than(&self, age: Duration) -> bool {
        u128::from(self.age().saturating_sub(self.last.load(Ordering::Relaxed))) > age.as_millis()
    }

    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_grows_old() {
        let heard = Heard::new();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(heard.is_older_than(Duration::from_secs(4)));
        heard.now();
        assert!(!heard.is_older_than(Duration::from_secs(4)));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(!heard.is_older_than(Duration::from_secs(4)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(heard.is_older_than(Duration::from_secs(4)));
    }
}
