//! Whether any member of a v2 cluster answers, for `/ready`, and what else is to be looked at from time to time.
//!
//! Not here: feeds, which say for themselves whether they serve; a relay without one is not ready either while nobody answers. Always
//! holds: what is asked for is agreed by the cluster, so a member without a quorum does not count.

use std::{sync::Arc, time::Duration};

use super::V2Upstream;
use crate::{
    hub::upstream::Upstream as _,
    telemetry::{Hold, ReadyBoard},
};

/// Between two looks while a member answers.
const STEADY: Duration = Duration::from_secs(10);
/// Between two looks while none does.
const RETRY: Duration = Duration::from_secs(1);

impl V2Upstream {
    /// Holds `ready` back while no member answers, with the reason; run it as a task.
    pub async fn keep_ready(self: Arc<Self>, ready: ReadyBoard) {
        let mut held: Option<Hold> = Some(ready.hold("etcd: not asked yet"));
        loop {
            match (self.confirm(None).await, &held) {
                (Ok(_), _) => held = None,
                (Err(error), Some(hold)) => hold.explain(format!("etcd: {error}")),
                (Err(error), None) => {
                    tracing::warn!(%error, "No member of the etcd v2 cluster answers");
                    held = Some(ready.hold(format!("etcd: {error}")));
                }
            }
            self.copies.forget_old();
            tokio::time::sleep(if held.is_some() { RETRY } else { STEADY }).await;
        }
    }
}
