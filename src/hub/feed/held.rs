//! [`Held`]: what a feed has, to be compared with what its upstream says it had; and what is done where the two differ.
//!
//! Read by the driver when its watch resumes, and by the audit. Not here: the comparing, see `source`. Always holds: what was found about one
//! snapshot of the feed is no ground for anything once the feed has read another.

use std::sync::{Arc, atomic::Ordering};

use super::{Feed, FeedState, Permission, Snapshot};
use crate::{
    hub::standing::Doubt,
    types::{Entry, Revision},
};

/// What a feed has, as of one moment.
#[derive(Clone, Debug)]
pub struct Held {
    /// All its keys. Its revision is the feed's.
    pub snapshot: Arc<Snapshot>,
    /// The last change in its range that it knows of. The history always keeps it.
    pub newest: Option<Arc<Entry>>,
    /// From this revision on it knows of every change, so that after `newest` there was none.
    pub since: Revision,
}

impl Feed {
    /// What it has.
    #[must_use]
    pub fn held(&self) -> Held {
        let inner = self.lock();
        let newest = inner.history.since(Revision::ZERO).next_back().cloned();
        Held { snapshot: self.snapshot.load_full(), newest, since: inner.history.start() }
    }

    /// What it has may not be what its upstream has: the audit is to look at it soon.
    pub fn suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
        self.shared.suspects.notify_one();
    }

    /// The audit could not look at it yet.
    pub fn still_suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
    }

    /// Whether the audit is to look at it.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspected.load(Ordering::Relaxed)
    }

    /// The audit looks at it now: what speaks against it from now on is something new.
    pub fn trust(&self) {
        self.suspected.store(false, Ordering::Relaxed);
    }

    /// Whether it follows its upstream undisturbed, which lets the relay read its range.
    #[must_use]
    pub fn is_steady(&self) -> bool {
        let standing = self.standing.borrow();
        standing.state == FeedState::Live && standing.permission == Permission::Granted && standing.doubt.is_none()
    }

    /// Its upstream, asked about the same revision, has something else than this snapshot of the feed: the driver begins anew.
    pub fn differs(&self, snapshot: &Snapshot) {
        self.raise(Doubt::Differs, snapshot.epoch);
    }
}
