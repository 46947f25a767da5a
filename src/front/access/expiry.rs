//! How long the relay believes that authentication is off while etcd does not confirm it.
//!
//! An answer counts for [`LIMIT`] while etcd's events come: authentication may have been enabled since. While etcd is away the answer keeps
//! counting, since nothing new comes, and everyone could read what is in memory. It ends when etcd is heard again, by a feed
//! (here) or by an answer of another kind ([`Access::heard`]).
//! Not here: what follows, which is the same as after any doubt.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Access, Auth, INTERVAL, LIMIT};
use crate::hub::{FeedState, Hub};

/// An answer is overdue after this.
const OVERDUE: Duration = INTERVAL.saturating_add(Duration::from_secs(1));
/// Between two looks at the feeds while an answer is overdue.
const LOOK: Duration = Duration::from_millis(500);

impl Access {
    /// Stops believing that authentication is off when it is time. Run it as a task.
    pub async fn expire(self, hub: Arc<Hub>) {
        let mut known = self.watch();
        loop {
            if known.wait_for(|known| known.auth == Auth::Off).await.is_err() {
                return;
            }
            let asked = self.known().since;
            sleep_until(asked + OVERDUE).await;
            // From then on etcd's events have come without its answer.
            let mut since = asked;
            while self.known().auth == Auth::Off && self.known().since == asked {
                let away = !hub.feeds().iter().any(|feed| feed.state() == FeedState::Live);
                if away {
                    since = Instant::now();
                }
                match (asked.elapsed() >= LIMIT, away) {
                    (true, true) => self.off_once(asked),
                    (true, false) => {
                        tracing::warn!(
                            "etcd sends events, but does not say whether its authentication is still off; checking clients until it does"
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
