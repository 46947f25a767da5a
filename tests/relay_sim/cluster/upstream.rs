//! The cluster for the relay's own questions: pages of snapshots, watches, the current revision.
//!
//! Always holds: an answer reflects one moment between its request and its arrival, and may arrive long after that
//! moment.

use std::{pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use etcd_relay::{
    hub::upstream::{
        Agreement, Changes, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchMessage, WatchRequest,
    },
    types::{Header, KeyRange, Revision},
};
use rand::Rng;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{CANCELED, Cluster, Faults};

/// The cluster as the relay's upstream.
#[derive(Debug)]
pub(crate) struct OwnUpstream(pub(crate) Arc<Cluster>);

impl Cluster {
    /// The travel time of a request or an answer.
    pub(super) async fn travel(&self) {
        let (way, yields) = {
            let mut inner = self.inner.lock();
            let most = inner.faults.latency.as_micros() as u64;
            let way = if inner.rng.random_bool(0.5) { 0 } else { inner.rng.random_range(0..=most / 2) };
            (Duration::from_micros(way), inner.rng.random_range(0..3))
        };
        self.log(format!("  travel {way:?} {yields}"));
        if !way.is_zero() {
            sleep(way).await;
        }
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the faults satisfy a condition.
    pub(super) async fn wait_until(&self, holds: impl Fn(&Faults) -> bool) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if holds(&self.faults()) {
                return;
            }
            changed.await;
        }
    }

    /// The arrival of a request. It fails if the cluster is down, or if the request needs a leader and there is none.
    pub(super) async fn arrive(&self, needs_leader: bool) -> Result<(), UpstreamError> {
        self.travel().await;
        self.wait_until(|faults| !faults.frozen).await;
        let mut inner = self.inner.lock();
        let fails = inner.faults.down || inner.faults.rough && inner.rng.random_bool(0.04);
        if fails {
            inner.trouble();
            return Err(UpstreamError::Unavailable("made-up trouble".into()));
        }
        if needs_leader && inner.faults.leaderless {
            inner.trouble();
            return Err(UpstreamError::NoLeader);
        }
        Ok(())
    }
}

#[async_trait]
impl Upstream for OwnUpstream {
    async fn page(&self, range: &KeyRange, revision: Option<Revision>, limit: usize) -> Result<Page, UpstreamError> {
        self.0.log(format!("  page {range} {revision:?} {limit}"));
        self.0.arrive(true).await?;
        let page = {
            let mut inner = self.0.inner.lock();
            let limit = if inner.faults.rough { limit.min(inner.rng.random_range(1..6)) } else { limit };
            let epoch = inner.epoch();
            let at = revision.map_or(epoch.revision(), Revision::get);
            if at < epoch.compact_revision {
                return Err(UpstreamError::Compacted);
            }
            let Some(state) = epoch.state(at) else { return Err(UpstreamError::Future) };
            let mut found = state.values().filter(|kv| range.contains(&kv.key)).cloned();
            let kvs: Vec<_> = found.by_ref().take(limit).collect();
            Page {
                header: epoch.header(),
                count: Some(kvs.len() + found.clone().count()),
                kvs,
                more: found.next().is_some(),
            }
        };
        self.0.travel().await;
        Ok(page)
    }

    /// A page from a member that is far behind.
    async fn page_of_member(
        &self,
        range: &KeyRange,
        revision: Option<Revision>,
        limit: usize,
    ) -> Result<Page, UpstreamError> {
        self.0.log(format!("  page of a member {range} {revision:?} {limit}"));
        self.0.arrive(false).await?;
        let page = {
            let mut inner = self.0.inner.lock();
            let most = inner.faults.lag.as_micros() as u64;
            let lag = Duration::from_micros(inner.rng.random_range(0..=most));
            let epoch = inner.epoch();
            let has = epoch.visible(before(lag)).max(epoch.compact_revision);
            let at = revision.map_or(has, Revision::get);
            if at < epoch.compact_revision {
                return Err(UpstreamError::Compacted);
            }
            let Some(state) = epoch.state(at).filter(|_| at <= has) else { return Err(UpstreamError::Future) };
            let mut found = state.values().filter(|kv| range.contains(&kv.key)).cloned();
            let kvs: Vec<_> = found.by_ref().take(limit).collect();
            Page {
                header: epoch.header_at(has),
                count: Some(kvs.len() + found.clone().count()),
                kvs,
                more: found.next().is_some(),
            }
        };
        self.0.travel().await;
        Ok(page)
    }

    fn agreement(&self) -> watch::Receiver<Agreement> {
        self.0.agreement.subscribe()
    }

    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        self.0.log(format!("  watch {request:?}"));
        self.0.arrive(false).await?;
        let watch = {
            let mut inner = self.0.inner.lock();
            inner.watches += 1;
            let id = inner.watches;
            inner.open.insert(id);
            let most = inner.faults.lag.as_micros() as u64;
            let lag = Duration::from_micros(inner.rng.random_range(0..=most));
            let created = inner.epoch().header_at(inner.epoch().visible(before(lag)));
            let (epoch, trusted) = (inner.epochs.len() - 1, inner.trusted);
            let next = match request.start_revision {
                Revision::ZERO => created.revision.next(),
                start => start,
            };
            OwnWatch {
                cluster: self.0.clone(),
                id,
                epoch,
                created,
                lag,
                trusted,
                range: request.range,
                prev_kv: request.prev_kv,
                next: next.get(),
                asked: false,
            }
        };
        self.0.travel().await;
        Ok(Box::new(watch))
    }

    async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        self.0.log(format!("  confirm {oldest:?}"));
        self.0.arrive(true).await?;
        let confirmed = {
            let inner = self.0.inner.lock();
            let epoch = inner.epoch();
            let compacted = oldest.is_some_and(|oldest| oldest.get() < epoch.compact_revision);
            Confirmed { header: epoch.header(), compacted }
        };
        self.0.travel().await;
        Ok(confirmed)
    }
}

fn before(lag: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(lag).unwrap_or(now)
}

struct OwnWatch {
    cluster: Arc<Cluster>,
    id: u64,
    epoch: usize,
    created: Header,
    /// The delay after which this member learns of changes.
    lag: Duration,
    trusted: bool,
    range: KeyRange,
    prev_kv: bool,
    next: i64,
    asked: bool,
}

enum Look {
    Found(Result<WatchMessage, UpstreamError>),
    /// Nothing until the next change.
    Nothing,
    /// The member will know more at this time.
    Later(Instant),
}

impl OwnWatch {
    fn look(&mut self) -> Look {
        let mut guard = self.cluster.inner.lock();
        let inner = &mut *guard;
        if inner.broken.contains(&self.id) || inner.faults.down {
            return Look::Found(Err(UpstreamError::Unavailable("broken".into())));
        }
        if inner.faults.frozen || inner.faults.leaderless || inner.stalled.contains(&self.id) {
            return Look::Nothing;
        }
        if inner.canceled.contains(&self.id) {
            return Look::Found(Ok(WatchMessage::Canceled { reason: CANCELED.into() }));
        }
        let most = inner.rng.random_range(1..8);
        self.cluster.log(format!("  {} looks from {} lag {:?}", self.id, self.next, self.lag));
        let silent = inner.faults.rough && inner.rng.random_bool(0.2);
        let epoch = &inner.epochs[self.epoch];
        let visible = epoch.visible(before(self.lag));
        if self.asked && !self.trusted {
            // Ahead of the events, like an old bug in etcd.
            self.asked = false;
            return Look::Found(Ok(WatchMessage::Progress(epoch.header())));
        }
        if self.next < epoch.compact_revision {
            let compact_revision = Revision::new(epoch.compact_revision);
            return Look::Found(Ok(WatchMessage::Compacted { compact_revision }));
        }
        let mut revisions = Vec::new();
        while self.next <= visible && revisions.len() < most {
            let Some(changed) = epoch.at(self.next) else {
                self.next = epoch.base + 1;
                continue;
            };
            let compacted = self.next - 1 < epoch.compact_revision;
            let mut changes = Changes {
                revision: Revision::new(self.next),
                events: Vec::new(),
                prev: Vec::new(),
                received: std::time::Instant::now(),
            };
            for happened in changed.events.iter().filter(|it| self.range.contains(&it.event.kv.key)) {
                changes.events.push(happened.event.clone());
                if self.prev_kv {
                    changes.prev.push(happened.prev.clone().filter(|_| !compacted));
                }
            }
            self.next += 1;
            if !changes.events.is_empty() {
                revisions.push(changes);
            }
        }
        if !revisions.is_empty() {
            // As in etcd's catch-up responses, the header is ahead of the events.
            return Look::Found(Ok(WatchMessage::Events { header: epoch.header_at(visible), revisions }));
        }
        if self.asked && self.next == visible + 1 {
            self.asked = false;
            if !silent {
                return Look::Found(Ok(WatchMessage::Progress(epoch.header_at(visible))));
            }
        }
        epoch.at(visible + 1).map_or(Look::Nothing, |changed| Look::Later(changed.when + self.lag))
    }
}

#[async_trait]
impl UpstreamWatch for OwnWatch {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        let cluster = self.cluster.clone();
        loop {
            let mut changed = pin!(cluster.changed.notified());
            changed.as_mut().enable();
            // Nothing is awaited after this has taken something.
            let later = match self.look() {
                Look::Found(message) => return message,
                Look::Nothing => None,
                Look::Later(when) => Some(when),
            };
            // Cancel safe: the result of either is looked at again.
            tokio::select! {
                biased;
                () = changed => {}
                () = async { sleep_until(later.unwrap_or_else(Instant::now)).await }, if later.is_some() => {}
            }
        }
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        self.asked = true;
        Ok(())
    }

    fn trusts_progress(&self) -> bool {
        self.trusted
    }

    fn created(&self) -> Header {
        self.created
    }
}

impl Drop for OwnWatch {
    fn drop(&mut self) {
        self.cluster.inner.lock().open.remove(&self.id);
    }
}
