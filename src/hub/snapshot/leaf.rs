//! [`Leaf`]: neighbouring key-values of a map, and their page.
//!
//! Always holds: the page has exactly the leaf's entries.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::size;
use crate::{
    hub::pages::{Pages, Slot},
    types::KeyValue,
};

/// Neighbouring key-values. A change of the entries removes the slot, since its page has the entries from before.
#[derive(Debug, Default)]
pub(in crate::hub) struct Leaf {
    entries: Vec<Arc<KeyValue>>,
    page: OnceLock<Arc<Slot>>,
}

/// A leaf is cloned in order to be changed, so the clone has no page.
impl Clone for Leaf {
    fn clone(&self) -> Self {
        Self::of(self.entries.clone())
    }
}

impl Leaf {
    pub(super) fn of(entries: Vec<Arc<KeyValue>>) -> Self {
        Self { entries, page: OnceLock::new() }
    }

    /// The key-values.
    pub(in crate::hub) fn entries(&self) -> &[Arc<KeyValue>] {
        &self.entries
    }

    /// The key-values, to be changed.
    pub(super) fn entries_mut(&mut self) -> &mut Vec<Arc<KeyValue>> {
        self.page.take();
        &mut self.entries
    }

    /// All key-values encoded side by side; `None` if they are better taken one by one.
    pub(in crate::hub) fn page(&self, pages: &Pages) -> Option<Bytes> {
        let slot = match self.page.get() {
            Some(slot) => slot,
            None if Pages::are_worth_it(size(&self.entries)) => self.page.get_or_init(Slot::new),
            None => return None,
        };
        Some(pages.page(slot, &self.entries))
    }
}
