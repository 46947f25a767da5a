//! [`Permission`]: what a session's client may watch, at creation and as long as it watches.
//!
//! How etcd is asked is in `front::access`. etcd checks a watch only when it is created. The relay checks each live
//! watch again whenever the state of authentication may have changed, and every five seconds while it is on. Always
//! holds: a stream's watches are checked with the token that the stream was opened with. Checks of live watches do not
//! depend on the client's reads and writes. While etcd's events come, a stream continues for at most [`LIMIT`] without
//! etcd's confirmation for each of its watches.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use tokio::time::Instant;

use crate::{
    front::{
        access::{Access, Auth, Denials, LIMIT, Look, Refused, WireRange},
        client::Client,
    },
    hub::{StreamEnd, WatchStream},
    telemetry::names,
};

/// How long a create waits until it is known whether authentication is on.
const KNOWN_PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Permission {
    pub(super) access: Access,
    pub(super) client: Client,
    pub(super) stream: Arc<WatchStream>,
}

impl Permission {
    /// etcd's answer for each of `ranges`, in etcd's words if it is a denial.
    ///
    /// # Errors
    /// Fails if etcd did not answer: the stream must end with this error.
    pub(super) async fn check(&self, ranges: &[WireRange]) -> Result<Vec<Result<(), String>>, StreamEnd> {
        if self.access.is_off() || ranges.is_empty() {
            return Ok(vec![Ok(()); ranges.len()]);
        }
        match self.access.wait_known(KNOWN_PATIENCE).await {
            Auth::Off => return Ok(vec![Ok(()); ranges.len()]),
            Auth::On => {}
            Auth::Unknown => {
                let text = "etcd-relay: cannot check whether etcd's authentication is on; retry";
                return Err(StreamEnd::Unavailable(text.into()));
            }
        }
        // Older grants do not count, even those since authentication was last known to be on: if etcd has stopped
        // answering, that may be long ago.
        let results = self.access.check(&self.client, ranges, self.access.round(), Denials::New).await;
        results
            .into_iter()
            .map(|result| match result {
                Ok(()) => Ok(Ok(())),
                Err(Refused::Denied(denial)) => Ok(Err(denial.reason())),
                Err(Refused::Unanswerable(why)) => {
                    Ok(Err(format!("etcd-relay: cannot ask etcd for this client's permission: {why}")))
                }
                Err(Refused::Unknown(why)) => Err(StreamEnd::Unavailable(format!(
                    "etcd-relay: cannot ask etcd for this client's permission: {why}"
                ))),
            })
            .collect()
    }

    /// Checks the stream's live watches until it ends the stream. Run it beside the stream, and drop it when that is
    /// gone.
    pub(super) async fn keep(&self) {
        // Boxed while it lasts, because thousands of streams wait here.
        let look = |round| Box::pin(self.look_again(round));
        if let Err(why) = self.access.keep(look, || self.hears_etcd()).await {
            self.end_unconfirmed(&why);
        }
    }

    async fn look_again(&self, since: Instant) -> Look {
        if let Some(feed) = self.stream.feeds().into_iter().find(|feed| feed.is_denied()) {
            let why = feed.last_error().unwrap_or_default();
            self.stream.cut(StreamEnd::Unavailable(format!("etcd-relay: {why}")));
            return Look::Ended;
        }
        let watches = self.stream.live_watches();
        let ranges: Vec<_> = watches.iter().map(|watch| WireRange::of(&watch.range)).collect();
        let results = self.access.check(&self.client, &ranges, since, Denials::Known).await;
        let mut unknown = None;
        for (watch, result) in watches.iter().zip(results) {
            let (watch_id, range) = (watch.watch_id, &watch.range);
            match result {
                Ok(()) => {}
                Err(Refused::Denied(denial)) if denial.is_of_caller() && !self.client.credentials.is_none() => {
                    // Its user may still have permission, so the client should reconnect with a new token.
                    let text = format!("etcd-relay: etcd no longer accepts this stream's token: {}", denial.reason());
                    tracing::info!(reason = denial.reason(), "Ended a watch stream whose token etcd no longer accepts");
                    self.stream.cut(StreamEnd::Unavailable(text));
                    return Look::Ended;
                }
                Err(Refused::Denied(denial)) => {
                    tracing::info!(%range, watch_id, reason = denial.reason(), "Ended a watch that its client may no longer read");
                    self.stream.revoke(watch, &denial.reason());
                }
                Err(Refused::Unanswerable(why) | Refused::Unknown(why)) => {
                    tracing::debug!(%range, watch_id, why, "Cannot check a live watch again");
                    unknown.get_or_insert(why);
                }
            }
        }
        unknown.map_or(Look::Confirmed, Look::Unknown)
    }

    /// Whether etcd's events reach the stream. If etcd is away or frozen, the stream must not end.
    fn hears_etcd(&self) -> bool {
        self.stream.feeds().iter().any(|feed| feed.hears_upstream())
    }

    fn end_unconfirmed(&self, why: &str) {
        let limit = humantime::format_duration(LIMIT);
        let (client, connection) = self.client.named();
        tracing::warn!(
            why,
            client,
            connection,
            "Ended a watch stream: etcd did not confirm in time that its client may read it"
        );
        counter!(names::STREAMS_UNCONFIRMED).increment(1);
        let text = format!(
            "etcd-relay: etcd has not confirmed for {limit} that this client may read what it watches ({why}); create \
             the watch again"
        );
        self.stream.cut(StreamEnd::Unavailable(text));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicBool, Ordering},
    };

    use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Request};
    use tonic::{Status, body::Body};
    use tower::service_fn;

    use super::*;
    use crate::{front::access::INTERVAL, hub::OutboxLimits, rpc::GrpcService, telemetry::ReadyBoard, types::KeyRange};

    /// etcd grants a read and then stops answering: its grant ends with the interval.
    #[tokio::test(start_paused = true)]
    async fn a_create_does_not_count_on_a_grant_from_before_etcd_stopped_to_answer() {
        static DEAF: AtomicBool = AtomicBool::new(false);
        let etcd = service_fn(|request: Request<Body>| async move {
            if DEAF.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let status = match request.headers().get("token") {
                Some(_) => Status::out_of_range("future"),
                None => Status::invalid_argument("etcdserver: user name is empty"),
            };
            Ok::<_, Infallible>(status.into_http::<Body>())
        });
        let access = Access::new(GrpcService::new(etcd), Duration::from_secs(5));
        let task = tokio::spawn(access.clone().run(ReadyBoard::new()));
        assert_eq!(access.wait_known(KNOWN_PATIENCE).await, Auth::On);
        let headers = HeaderMap::from_iter([(HeaderName::from_static("token"), HeaderValue::from_static("alice"))]);
        let client = Client::of(&headers, &Extensions::new());
        let limits = OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 };
        let permission = Permission { stream: WatchStream::new(limits, client.key()), access, client };
        let ranges = [WireRange::of(&KeyRange::single("/a/1".into()))];
        assert!(matches!(permission.check(&ranges).await.as_deref(), Ok([Ok(())])));

        DEAF.store(true, Ordering::Relaxed);
        tokio::time::sleep(INTERVAL * 2).await;
        assert!(matches!(permission.check(&ranges).await, Err(StreamEnd::Unavailable(_))));
        task.abort();
    }
}
