//! [`Held`]: the feed's content, for comparison with what its upstream says it was, and what is done if the two differ.
//!
//! Read by the driver when its watch resumes, and by the audit. Not here: the comparison, see `source`. Always holds:
//! what was found out about one snapshot of the feed is ignored once the feed has read another.

use std::sync::{Arc, atomic::Ordering};

use super::{Feed, FeedState, Permission, Snapshot};
use crate::{
    hub::standing::Doubt,
    types::{Entry, Revision},
};

/// The content of a feed at one moment.
#[derive(Clone, Debug)]
pub struct Held {
    /// All its keys. Its revision is the feed's.
    pub snapshot: Arc<Snapshot>,
    /// The last change in its range that it knows. The history always keeps it.
    pub newest: Option<Arc<Entry>>,
    /// From this revision on it knows every change, so there was none after `newest`.
    pub since: Revision,
}

impl Feed {
    /// The feed's content now.
    #[must_use]
    pub fn held(&self) -> Held {
        let inner = self.lock();
        let newest = inner.history.since(Revision::ZERO).next_back().cloned();
        Held { snapshot: self.snapshot.load_full(), newest, since: inner.history.start() }
    }

    /// The feed's content may differ from its upstream's: the audit should check it soon.
    pub fn suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
        self.shared.suspects.notify_one();
    }

    /// The audit could not check it yet.
    pub fn still_suspect(&self) {
        self.suspected.store(true, Ordering::Relaxed);
    }

    /// Whether the audit should check it soon.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspected.load(Ordering::Relaxed)
    }

    /// The audit checks it now. Later signs against it count as new ones.
    pub fn trust(&self) {
        self.suspected.store(false, Ordering::Relaxed);
    }

    /// Whether it follows its upstream undisturbed, and the relay may read its range.
    #[must_use]
    pub fn is_steady(&self) -> bool {
        let standing = self.standing.borrow();
        standing.state == FeedState::Live && standing.permission == Permission::Granted && standing.doubt.is_none()
    }

    /// Upstream, asked about the same revision, has other content than this snapshot of the feed. The driver starts
    /// again from a new snapshot.
    pub fn differs(&self, snapshot: &Snapshot) {
        self.raise(Doubt::Differs, snapshot.epoch);
    }
}
