//! A hub whose feeds are driven by a test: nothing comes from upstream.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    Feed, FeedRunner, HistoryLimits, Hub, Limits, OutboxLimits,
    upstream::{Agreement, Confirmed, Page, Upstream, UpstreamError, UpstreamWatch, WatchRequest},
};
use crate::{
    critical::Tasks,
    types::{Entry, EventFields, EventKind, KeyRange, KeyValueFields, Revision, UpstreamHeader},
};

/// A put of a key with a value of this length.
pub(crate) fn entry_of(revision: i64, key: &'static str, value: usize) -> Arc<Entry> {
    let kv = KeyValueFields { key: key.into(), value: vec![0; value].into(), ..KeyValueFields::default() };
    let (changes, received) = ([EventFields { kind: EventKind::Put, kv }], std::time::Instant::now());
    Arc::new(Entry::encode(&Arc::default(), Revision::new(revision), received, &changes, |_| None))
}

#[derive(Debug)]
struct Nothing;

/// The same, of which a test says whether its cluster can agree.
#[derive(Debug, Default)]
pub(crate) struct Agreeing(pub(crate) watch::Sender<Agreement>);

#[async_trait]
impl Upstream for Agreeing {
    async fn page(&self, range: &KeyRange, at: Option<Revision>, limit: usize) -> Result<Page, UpstreamError> {
        Nothing.page(range, at, limit).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        Nothing.watch(request).await
    }

    async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        Nothing.confirm(oldest).await
    }

    fn agreement(&self) -> watch::Receiver<Agreement> {
        self.0.subscribe()
    }
}

#[async_trait]
impl Upstream for Nothing {
    async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for in this test".into()))
    }

    async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for in this test".into()))
    }

    async fn confirm(&self, _: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        Err(UpstreamError::Unavailable("not asked for in this test".into()))
    }
}

/// Counts how often a task was woken.
#[derive(Debug, Default)]
pub(crate) struct Woken(AtomicUsize);

impl Woken {
    pub(crate) fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct NoDriver;

impl FeedRunner for NoDriver {
    fn run(&self, _: Arc<Feed>) {}
}

/// Its histories keep 100 revisions; feeds on demand are off.
pub(crate) fn hub(outbox: OutboxLimits) -> Arc<Hub> {
    build(Arc::new(Nothing), |limits| Limits { outbox, ..limits })
}

/// The same, with an upstream that answers some requests.
pub(crate) fn hub_over(upstream: Arc<dyn Upstream>, outbox: OutboxLimits) -> Arc<Hub> {
    build(upstream, |limits| Limits { outbox, ..limits })
}

/// The same, with other limits.
pub(crate) fn hub_with(bounds: impl FnOnce(Limits) -> Limits) -> Arc<Hub> {
    build(Arc::new(Nothing), bounds)
}

fn build(upstream: Arc<dyn Upstream>, bounds: impl FnOnce(Limits) -> Limits) -> Arc<Hub> {
    let limits = bounds(Limits {
        history: HistoryLimits { bytes: 1 << 20, entries: 100 },
        outbox: OutboxLimits { bytes: 1 << 20, deliveries: 100, watches: 100 },
        on_demand: None,
        on_demand_bytes: 1 << 30,
        fills: 1,
        confirm_patience: Duration::from_secs(1),
    });
    Hub::new(limits, upstream, Arc::new(UpstreamHeader::default()), &Tasks::new(), Box::new(NoDriver))
}
