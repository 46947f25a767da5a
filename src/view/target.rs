//! [`Target`]: one selection of one view, shared by all clients that request it, and [`Subscription`], one of its
//! watchers.
//!
//! Documents and their changes are in `engine`, which is the only writer. Always holds:
//! - a version is published only if it differs from the previous one;
//! - a subscriber gets the newest version, and never one with the same content as its last one. Versions that it missed
//!   are gone, so it costs only a pointer, however slow it is.

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

/// The part of a target that clients see.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) select: Select,
    versions: Latest<Arc<Version>>,
    /// Whether it was requested since the last check.
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

    /// Whether it is not watched, and was not requested since the last call.
    pub(super) fn is_idle(&self) -> bool {
        !self.used.swap(false, Ordering::Relaxed) && self.subscribers() == 0
    }
}

/// The versions of a target for one subscriber, beginning with the current one. Cancel safe.
#[derive(Debug)]
pub struct Subscription {
    versions: Follower<Arc<Version>>,
    /// The content of the last version that was given.
    given: Option<Result<u128, ViewError>>,
}

impl Subscription {
    /// The next version with a different content; `None` at the end of the relay.
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

    /// Like [`Subscription::poll_next`], to await. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<Version>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

/// The part of a target that the engine keeps.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) target: Arc<Target>,
    /// Rows of exactly the requested key. While there are any, no others are shown.
    exact: Listing,
    /// Rows of the keys that have it as a prefix.
    others: Listing,
    /// The rows of each cache key.
    rows: HashMap<Bytes, SmallVec<[Arc<Row>; 1]>>,
    /// The last change since the last version.
    touched: Option<(Kind, Instant)>,
}

/// Whether a reply with these pods may be shown.
pub(super) type Verdict<'a> = &'a dyn Fn(Pods) -> Result<(), ViewError>;

impl Shown {
    /// A target with the rows of the current documents.
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

    /// Approximate memory of its rows.
    pub(super) fn bytes(&self) -> usize {
        self.exact.bytes() + self.others.bytes()
    }

    /// Replaces the rows of a key.
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

    /// Publishes a new version if its content differs. Returns whether it does.
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
