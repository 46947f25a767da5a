//! Limits how long the relay assumes that authentication is off without etcd's confirmation.
//!
//! An answer is valid for [`LIMIT`] while etcd's events come, because authentication may have been enabled since. While
//! etcd is away or frozen the answer stays valid: nothing new arrives, and everyone could already read what is in
//! memory. This ends when etcd is heard again, by a feed (checked here) or by an answer of another kind
//! ([`Access::heard`]). What follows is the same as after any doubt, and not here.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Access, Auth, INTERVAL, LIMIT};
use crate::hub::Hub;

/// After this time an answer is overdue.
const OVERDUE: Duration = INTERVAL.saturating_add(Duration::from_secs(1));
/// Pause between two looks at the feeds while an answer is overdue.
const LOOK: Duration = Duration::from_millis(500);

impl Access {
    /// Ends the assumption that authentication is off when it is no longer justified. Run it as a task.
    pub async fn expire(self, hub: Arc<Hub>) {
        let mut known = self.watch();
        loop {
            if known.wait_for(|known| known.auth == Auth::Off).await.is_err() {
                return;
            }
            let asked = self.known().since;
            sleep_until(asked + OVERDUE).await;
            // From this time on, etcd's events have come without an answer.
            let mut since = asked;
            while self.known().auth == Auth::Off && self.known().since == asked {
                let away = !hub.feeds().iter().any(|feed| feed.hears_upstream());
                if away {
                    since = Instant::now();
                }
                match (asked.elapsed() >= LIMIT, away) {
                    (true, true) => self.off_once(asked),
                    (true, false) => {
                        tracing::warn!(
                            "etcd sends events, but does not confirm that its authentication is still off; checking \
                             every client until it does"
                        );
                        self.doubt_since(since);
                    }
                    (false, _) => {}
                }
                sleep(LOOK).await;
            }
        }
    }
}
