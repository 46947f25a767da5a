//! [`Sequence`]: a feed's content under a lock, and pushes that follow its changes one after the other without it.
//!
//! Not here: what the content is, and how it is pushed, see `inner` and `handouts`. Used only by the feed; `models/`
//! checks it in every order in which threads can interleave. Always holds: what one change gives is pushed before the
//! next change is made; who has the content settled finds nothing left to push. The lock of pushes is taken before that
//! of the content.

use crate::sync::{Mutex, MutexGuard};

/// Content, and the order of its pushes; see the module.
#[derive(Debug)]
pub(crate) struct Sequence<C> {
    pushing: Mutex<()>,
    content: Mutex<C>,
}

/// Held by who may push.
pub(crate) type Pushing<'a> = MutexGuard<'a, ()>;

impl<C> Sequence<C> {
    pub(crate) fn new(content: C) -> Self {
        Self { pushing: Mutex::new(()), content: Mutex::new(content) }
    }

    /// The content. What it gave last may not be pushed yet.
    pub(crate) fn lock(&self) -> MutexGuard<'_, C> {
        self.content.lock()
    }

    /// The turn to change the content and to push what that gives. Until it is dropped, nobody else pushes.
    pub(crate) fn turn(&self) -> Pushing<'_> {
        self.pushing.lock()
    }

    /// Whether nobody holds either lock.
    #[cfg(test)]
    pub(crate) fn is_free(&self) -> bool {
        self.pushing.try_lock().is_some() && self.is_content_free()
    }

    #[cfg(test)]
    pub(crate) fn is_content_free(&self) -> bool {
        self.content.try_lock().is_some()
    }
}
