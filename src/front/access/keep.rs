//! [`Access::keep`]: checks repeatedly that a client may still see what it is shown, for as long as it is shown.
//!
//! The caller supplies the check, which knows what is shown and what follows a denial. Used for watch streams
//! (`front::session`) and for waits of etcd's v2 API. Always holds: while etcd's events come, nothing continues for
//! longer than [`LIMIT`] without etcd's confirmation.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{Access, Auth, INTERVAL, LIMIT};

/// Time of the next check if nothing else triggers one: a little after the start of the round that all checks share.
const NEXT: Duration = INTERVAL.saturating_add(Duration::from_secs(1));
/// Time of the next check if etcd did not answer everything.
const RETRY: Duration = Duration::from_millis(500);

/// The result of a check.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// Everything that is left is permitted; the rest was ended.
    Confirmed,
    /// etcd did not answer, for this reason.
    Unknown(String),
    /// Nothing is left to check.
    Ended,
}

impl Access {
    /// Checks until nothing is left to check. `look` receives the time from which on answers are valid. `hears_etcd`
    /// tells whether etcd's events come: if they do not because etcd is away, there is nothing new to hide.
    ///
    /// # Errors
    /// Returns the reason if etcd's events come, but it has not confirmed the permission for [`LIMIT`].
    pub async fn keep<F>(&self, look: impl Fn(Instant) -> F, hears_etcd: impl Fn() -> bool) -> Result<(), String>
    where
        F: Future<Output = Look>,
    {
        let mut known = self.watch();
        // When etcd last confirmed everything, or had no events. What begins now may rely on a grant of this round.
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
            // Cancel safe: a question that is given up is continued by the others who wait for it.
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
            // Both arms are cancel safe.
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
