//! Access of a watch stream's client: to what it asks to watch, and, for as long as it watches, to what it watches.
//!
//! Not here: how etcd is asked, see `front::access`. etcd checks a watch when it is created and never again; the relay checks
//! each live watch again whenever what is known about authentication may have changed.
//! Always holds: a stream's watches are checked with the token that the stream was opened with; checks of live watches do not
//! wait for the client to read or to write.

use std::{sync::Arc, time::Duration};

use crate::{
    front::access::{Access, Auth, Caller, Refused, WireRange},
    hub::{Outbox, StreamEnd},
};

/// How long a create waits until it is known whether authentication is on.
const KNOWN_PATIENCE: Duration = Duration::from_secs(5);

/// The client of one stream.
#[derive(Clone, Debug)]
pub(super) struct StreamAccess {
    pub(super) access: Access,
    pub(super) caller: Caller,
    pub(super) outbox: Arc<Outbox>,
}

impl StreamAccess {
    /// What etcd says to each of `ranges`, in etcd's words where it says no.
    ///
    /// # Errors
    /// Where etcd did not answer: the stream is to end with this.
    pub(super) async fn check(&self, ranges: &[WireRange]) -> Result<Vec<Result<(), String>>, StreamEnd> {
        if self.access.is_off() || ranges.is_empty() {
            return Ok(vec![Ok(()); ranges.len()]);
        }
        match self.access.wait_known(KNOWN_PATIENCE).await {
            Auth::Off => return Ok(vec![Ok(()); ranges.len()]),
            Auth::On => {}
            Auth::Unknown => {
                let text = "etcd-relay: etcd does not tell whether its authentication is on; try again";
                return Err(StreamEnd::Unavailable(text.into()));
            }
        }
        let known = self.access.known();
        let results = self.access.check(&self.caller, ranges, known.since).await;
        results
            .into_iter()
            .map(|result| match result {
                Ok(()) => Ok(Ok(())),
                Err(Refused::Denied(denial)) => Ok(Err(denial.reason())),
                Err(Refused::Unknown(why)) => Err(StreamEnd::Unavailable(format!(
                    "etcd-relay: cannot ask etcd for this client's permission: {why}"
                ))),
            })
            .collect()
    }

    /// Checks the stream's live watches for ever; run it beside the stream and drop it when that is gone.
    pub(super) async fn keep(&self) {
        let mut known = self.access.watch();
        loop {
            let now = *known.borrow_and_update();
            if now.auth == Auth::On {
                // In a box while it lasts: thousands of streams wait here.
                Box::pin(self.look_again(now.since)).await;
            }
            if known.changed().await.is_err() {
                return;
            }
        }
    }

    async fn look_again(&self, since: tokio::time::Instant) {
        if let Some(feed) = self.outbox.feeds().into_iter().find(|feed| feed.is_denied()) {
            let why = feed.last_error().unwrap_or_default();
            self.outbox.cut(StreamEnd::Unavailable(format!("etcd-relay: {why}")));
            return;
        }
        let watches = self.outbox.live_watches();
        let ranges: Vec<_> = watches.iter().map(|watch| WireRange::of(&watch.range)).collect();
        let results = self.access.check(&self.caller, &ranges, since).await;
        for (watch, result) in watches.iter().zip(results) {
            let (watch_id, range) = (watch.watch_id, &watch.range);
            match result {
                Ok(()) => {}
                Err(Refused::Denied(denial)) if denial.is_of_caller() && !self.caller.is_nobody() => {
                    // The token is of no use any more, its user may be: the client shall come again with a new one.
                    let text =
                        format!("etcd-relay: etcd does not accept this stream's token any more: {}", denial.reason());
                    tracing::info!(
                        reason = denial.reason(),
                        "Ended a watch stream whose token etcd does not accept any more"
                    );
                    self.outbox.cut(StreamEnd::Unavailable(text));
                    return;
                }
                Err(Refused::Denied(denial)) => {
                    tracing::info!(%range, watch_id, reason = denial.reason(), "Ended a watch that its client may not have any more");
                    self.outbox.revoke(watch, &denial.reason());
                }
                // Whoever cannot ask etcd gets no news from it either.
                Err(Refused::Unknown(why)) => {
                    tracing::debug!(%range, watch_id, why, "Cannot check a live watch again; trying on");
                    return;
                }
            }
        }
    }
}
