//! Checks whether any member of a v2 cluster answers, for `/ready`, and other things that have to be checked from time
//! to time.
//!
//! Not here: feeds, which report by themselves whether they serve; a relay without feeds is not ready either while no
//! member answers. Always holds: the check needs the cluster's agreement, so a member without a quorum does not count.

use std::{sync::Arc, time::Duration};

use super::V2Upstream;
use crate::{
    hub::upstream::Upstream as _,
    telemetry::{Hold, ReadyBoard},
};

/// Time between two checks while a member answers.
const STEADY: Duration = Duration::from_secs(10);
/// Time between two checks while none does.
const RETRY: Duration = Duration::from_secs(1);

impl V2Upstream {
    /// Keeps the process not ready while no member answers, with the reason; spawn it as a task.
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
