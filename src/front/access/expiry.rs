//! How long it is believed that authentication is off, where etcd does not say so any more.
//!
//! While etcd is away that is believed for as long as it takes: nothing new comes, and what is in memory was for everyone. Where
//! etcd's events come and its answers do not, authentication may have been enabled meanwhile, so that is believed for [`LIMIT`].
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
            // Since when etcd's events have come without its answer.
            let mut deaf = Some(asked);
            while self.known().auth == Auth::Off && self.known().since == asked {
                if hub.feeds().iter().any(|feed| feed.state() == FeedState::Live) {
                    let since = *deaf.get_or_insert_with(Instant::now);
                    if since.elapsed() >= LIMIT {
                        tracing::warn!(
                            "etcd's events come, and it does not say whether its authentication is still off"
                        );
                        self.doubt_since(since);
                        break;
                    }
                } else {
                    deaf = None;
                }
                sleep(LOOK).await;
            }
        }
    }
}
