//! [`Access::keep`]: looks again and again whether a client may still have what it is shown, for as long as it is shown.
//!
//! Not here: what is shown, and what follows a denial; the caller's look knows both. Called for watch streams (`front::session`) and for
//! the waits of etcd's v2 API. Always holds: while etcd's events come, nothing goes on for longer than [`LIMIT`] without etcd's word.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Access, Auth, INTERVAL, LIMIT};

/// When to look again where nothing else makes us: a little later than the round that all who look share should begin.
const NEXT: Duration = INTERVAL.saturating_add(Duration::from_secs(1));
/// When to look again where etcd did not say all.
const RETRY: Duration = Duration::from_millis(500);

/// What a look found.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// All of it is permitted, or was ended.
    Confirmed,
    /// etcd did not say, for this reason.
    Unknown(String),
    /// Nothing is left to look at.
    Ended,
}

impl Access {
    /// Looks until a look says that nothing is left. A look gets the moment from which on answers count. `hears_etcd` tells whether
    /// etcd's events come: where they do not, because etcd is away, there is nothing to keep from anyone.
    ///
    /// # Errors
    /// Where etcd's events come and it has not confirmed for [`LIMIT`]: the reason.
    pub async fn keep<F>(&self, look: impl Fn(Instant) -> F, hears_etcd: impl Fn() -> bool) -> Result<(), String>
    where
        F: Future<Output = Look>,
    {
        let mut known = self.watch();
        // When etcd last said yes to all, or had no news to give away. What begins now may count on a grant of this round.
        let mut confirmed = self.round();
        loop {
            if known.borrow_and_update().auth == Auth::Off {
                if known.changed().await.is_err() {
                    return Ok(());
                }
                confirmed = known.borrow().off_until;
                continue;
            }
            let round = self.round();
            // Cancel safe: who gives up a question leaves it to the others.
            let looked = tokio::select! {
                looked = look(round) => looked,
                () = sleep_until(confirmed + LIMIT) => Look::Unknown("no answer in time".into()),
            };
            let again = match looked {
                Look::Confirmed => {
                    confirmed = confirmed.max(round);
                    round + NEXT
                }
                Look::Unknown(why) => {
                    if !hears_etcd() {
                        confirmed = Instant::now();
                    } else if confirmed.elapsed() >= LIMIT {
                        return Err(why);
                    }
                    Instant::now() + RETRY
                }
                Look::Ended => return Ok(()),
            };
            // Cancel safe: both arms leave nothing behind.
            tokio::select! {
                changed = known.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = sleep_until(again.min(confirmed + LIMIT)) => {}
            }
        }
    }
}
