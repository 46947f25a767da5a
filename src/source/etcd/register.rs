//! [`Registration`]: a key in etcd that the relay keeps under a lease while it serves, and a second key whose value
//! changes.
//!
//! Not here: the content of the keys, see `front::grpc::members` and `front::balance`. Run by `relay` as a task. Always
//! holds: the keys disappear at most the lease's time after the relay has ended, however it ended; if the lease or the
//! member is lost, the relay registers again.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::PutOptions;
use metrics::gauge;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{EtcdUpstream, Lane, refused};
use crate::{hub::upstream::UpstreamError, telemetry::names};

/// The pause between attempts to register, as in etcd's proxy.
const RETRY: Duration = Duration::from_secs(1);
/// How long the relay's shutdown waits for etcd to delete the key.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// How often the lease is renewed within its time.
const RENEWALS: u32 = 3;

/// What is written, and how long it outlives the relay.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease's time, in whole seconds.
    pub ttl: Duration,
    /// A second key under the same lease.
    pub load: Option<LoadKey>,
}

/// A key whose value changes. Nothing is written while the value is empty.
#[derive(Clone, Debug)]
pub struct LoadKey {
    /// The key.
    pub key: Bytes,
    /// The current value. Its sender bounds how often it changes.
    pub value: watch::Receiver<Bytes>,
}

impl EtcdUpstream {
    /// Keeps the key in etcd until `stop`, and deletes it then.
    pub async fn keep_registered(self: Arc<Self>, registration: Registration, stop: CancellationToken) {
        let mut failing = false;
        loop {
            gauge!(names::REGISTERED).set(0.0);
            // A lease that was granted before `stop` and is not used expires by itself.
            let Some(registered) = stop.run_until_cancelled(Box::pin(self.register(&registration))).await else {
                return;
            };
            match registered {
                Ok(lease) => {
                    failing = false;
                    gauge!(names::REGISTERED).set(1.0);
                    tracing::info!(key = %registration.key.escape_ascii(), ttl = ?registration.ttl, "Registered in etcd");
                    let kept = stop.run_until_cancelled(Box::pin(self.keep(lease, &registration))).await;
                    if kept.is_none() {
                        gauge!(names::REGISTERED).set(0.0);
                        return self.revoke(lease).await;
                    }
                    tracing::warn!(key = %registration.key.escape_ascii(), "The registration in etcd was lost, registering again");
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(key = %registration.key.escape_ascii(), %error, "Cannot register in etcd, retrying");
                }
                Err(error) => tracing::debug!(%error, "Cannot register in etcd"),
            }
            if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                return;
            }
        }
    }

    /// The id of the lease that holds the key.
    async fn register(&self, registration: &Registration) -> Result<i64, UpstreamError> {
        let ttl = registration.ttl.as_secs().max(1);
        let lease = self
            .call(self.members.preferred(), Lane::Ask, async |client| {
                let granted = client.lease_client().grant(i64::try_from(ttl).unwrap_or(i64::MAX), None).await;
                granted.map(|granted| granted.id()).map_err(|error| refused(&error))
            })
            .await?;
        if let Err(error) = self.put_under(lease, &registration.key, &registration.value).await {
            self.revoke(lease).await;
            return Err(error);
        }
        Ok(lease)
    }

    async fn put_under(&self, lease: i64, key: &Bytes, value: &Bytes) -> Result<(), UpstreamError> {
        self.call(self.members.preferred(), Lane::Ask, async |client| {
            let options = PutOptions::new().with_lease(lease);
            let put = client.kv_client().put(key.clone(), value.clone(), Some(options)).await;
            put.map(|_| ()).map_err(|error| refused(&error))
        })
        .await
    }

    /// Keeps the registration alive until its lease has ended, or may have.
    async fn keep(&self, lease: i64, registration: &Registration) {
        // What either of them has under way is dropped: the lease decides.
        tokio::select! {
            () = self.keep_lease(lease, registration.ttl) => {}
            () = self.keep_load(lease, registration.load.as_ref()) => {}
        }
    }

    /// Writes the second key whenever its value changes. Never returns.
    async fn keep_load(&self, lease: i64, load: Option<&LoadKey>) {
        let mut failing = false;
        if let Some(LoadKey { key, value }) = load {
            let mut values = value.clone();
            loop {
                let value = values.borrow_and_update().clone();
                let put = if value.is_empty() { Ok(()) } else { self.put_under(lease, key, &value).await };
                match put {
                    Ok(()) => {
                        failing = false;
                        if values.changed().await.is_err() {
                            break;
                        }
                        continue;
                    }
                    Err(error) if !failing => {
                        failing = true;
                        tracing::warn!(key = %key.escape_ascii(), %error, "Cannot write the number of connections to etcd, so relays cannot balance them; retrying");
                    }
                    Err(error) => tracing::debug!(%error, "Cannot write the number of connections to etcd"),
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        std::future::pending().await
    }

    /// Renews a lease until it has ended, or may have.
    async fn keep_lease(&self, lease: i64, ttl: Duration) {
        let mut renewed = Instant::now();
        let mut pause = ttl / RENEWALS;
        while renewed.elapsed() < ttl {
            tokio::time::sleep(pause).await;
            let asked = Instant::now();
            // A new stream each time, so that any member can serve it.
            let left = self
                .call(self.members.preferred(), Lane::Ask, async |client| {
                    let mut leases = client.lease_client();
                    let (mut keeper, mut answers) = leases.keep_alive(lease).await.map_err(|error| refused(&error))?;
                    keeper.keep_alive().await.map_err(|error| refused(&error))?;
                    let answer = answers.message().await.map_err(|error| refused(&error))?;
                    Ok(answer.map_or(0, |answer| answer.ttl()))
                })
                .await;
            match left {
                Ok(left) if left > 0 => (renewed, pause) = (asked, ttl / RENEWALS),
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(%error, "Cannot renew the lease of the registration");
                    pause = RETRY.min(ttl / RENEWALS);
                }
            }
        }
    }

    async fn revoke(&self, lease: i64) {
        let revoke = self.call(self.members.preferred(), Lane::Ask, async |client| {
            client.lease_client().revoke(lease).await.map_err(|error| refused(&error))
        });
        let revoked = tokio::time::timeout(LAST_PATIENCE, revoke).await;
        if let Err(error) = revoked.unwrap_or(Err(UpstreamError::Timeout(LAST_PATIENCE))) {
            tracing::debug!(%error, "Cannot revoke the lease of the registration; it will expire by itself");
        }
    }
}
