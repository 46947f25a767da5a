//! [`Target`]: one selection of one view, for all who asked for the same; and [`Subscription`], one of those who watch it.
//!
//! Not here: documents and when they change, see `engine`, which is the only writer.
//! Always holds:
//! - a version is told only if it shows something else than the one before it;
//! - a subscriber is given the newest version, and never one that shows what it was given last; what it missed in between is
//!   gone, so it costs a pointer however slow it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::{
    listing::{Listing, Row},
    payload::{Kind, Payload, Version},
    projection::{Pods, ViewError},
    select::Select,
};
use crate::latest::{Follower, Latest};

/// What those see who asked for it.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) select: Select,
    versions: Latest<Arc<Version>>,
    /// Whether anyone asked for it since the last look.
    used: AtomicBool,
}

impl Target {
    /// The newest version.
    pub(super) fn version(&self) -> Arc<Version> {
        self.used.store(true, Ordering::Relaxed);
        self.versions.get()
    }

    pub(super) fn subscribe(&self) -> Subscription {
        self.used.store(true, Ordering::Relaxed);
        Subscription { versions: self.versions.follow(), given: None }
    }

    pub(super) fn subscribers(&self) -> usize {
        self.versions.followers()
    }

    /// Whether nobody watches it and nobody asked for it since this was asked last.
    pub(super) fn is_idle(&self) -> bool {
        !self.used.swap(false, Ordering::Relaxed) && self.subscribers() == 0
    }
}

/// The versions of a target for one subscriber, the current one first. Cancel safe.
#[derive(Debug)]
pub struct Subscription {
    versions: Follower<Arc<Version>>,
    /// What the version showed that was given last.
    given: Option<Result<u128, ViewError>>,
}

impl Subscription {
    /// The next version that shows something else than the last one; `None` when there are no more, as the relay ends.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arc<Version>>> {
        loop {
            match self.versions.poll_next(cx) {
                Poll::Ready(Some(version)) if self.given == Some(version.state()) => {}
                Poll::Ready(Some(version)) => {
                    self.given = Some(version.state());
                    return Poll::Ready(Some(version));
                }
                other => return other,
            }
        }
    }

    /// As [`Subscription::poll_next`], to await. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<Version>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

/// What the engine keeps of a target.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) target: Arc<Target>,
    /// Rows of the key that was asked for; while there are any, nothing else is shown.
    exact: Listing,
    /// Rows of the keys that begin with it.
    others: Listing,
    /// The rows of each cache key.
    rows: HashMap<Bytes, SmallVec<[Arc<Row>; 1]>>,
    /// What was touched since the last version.
    touched: Option<(Kind, Instant)>,
}

/// What a view says of the pods behind a reply.
pub(super) type Verdict<'a> = &'a dyn Fn(Pods) -> Result<(), ViewError>;

impl Shown {
    /// A target with the rows of documents as they are.
    pub(super) fn new(
        select: Select,
        rows: impl Iterator<Item = (Bytes, SmallVec<[Row; 1]>)>,
        verdict: Verdict<'_>,
        now: Instant,
    ) -> Self {
        let mut shown = Self {
            target: Arc::new(Target {
                select,
                versions: Latest::new(Arc::new(Version {
                    kind: Kind::Update,
                    body: Err(ViewError::ContainersLost),
                    received: now,
                })),
                used: AtomicBool::new(true),
            }),
            exact: Listing::default(),
            others: Listing::default(),
            rows: HashMap::new(),
            touched: None,
        };
        for (key, rows) in rows {
            shown.replace(&key, rows.into_iter().map(Arc::new).collect(), Kind::Update, now);
        }
        let version = shown.version(verdict, (Kind::Update, now));
        shown.target.versions.replace(Arc::new(version));
        shown.touched = None;
        shown
    }

    /// About how much memory its rows take.
    pub(super) fn bytes(&self) -> usize {
        self.exact.bytes() + self.others.bytes()
    }

    /// Puts the rows of a key in the place of those that it had.
    pub(super) fn replace(&mut self, key: &Bytes, rows: SmallVec<[Arc<Row>; 1]>, kind: Kind, received: Instant) {
        let old = self.rows.remove(key).unwrap_or_default();
        if old.len() == rows.len() && old.iter().zip(&rows).all(|(old, new)| old.is_same(new)) {
            if !old.is_empty() {
                self.rows.insert(key.clone(), old);
            }
            return;
        }
        let listing = if self.target.select.is_exactly(key) { &mut self.exact } else { &mut self.others };
        old.iter().for_each(|row| listing.remove(row));
        rows.iter().for_each(|row| listing.insert(row.clone()));
        if !rows.is_empty() {
            self.rows.insert(key.clone(), rows);
        }
        let since = self.touched.map_or(received, |(_, since)| since);
        self.touched = Some((kind, since));
    }

    /// Tells a new version, if it shows something else. Gives whether it does.
    pub(super) fn publish(&mut self, verdict: Verdict<'_>) -> bool {
        let Some(touched) = self.touched.take() else { return false };
        let version = self.version(verdict, touched);
        let changed = version.state() != self.target.versions.get().state();
        if changed {
            self.target.versions.replace(Arc::new(version));
        }
        changed
    }

    fn version(&self, verdict: Verdict<'_>, (kind, received): (Kind, Instant)) -> Version {
        let listing = if self.exact.is_empty() { &self.others } else { &self.exact };
        let body = verdict(listing.pods()).map(|()| Payload::new(self.target.select.spec.shape, listing));
        Version { kind, body, received }
    }
}
