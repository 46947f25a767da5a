//! [`Leaf`]: neighbouring key-values of a map, and their page.
//!
//! Always holds: a page is of the entries that the leaf has.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::size;
use crate::{
    hub::pages::{Pages, Slot},
    types::KeyValue,
};

/// Neighbours. Whoever changes the entries takes the slot out, since its page is of the entries before.
#[derive(Debug, Default)]
pub(in crate::hub) struct Leaf {
    entries: Vec<Arc<KeyValue>>,
    page: OnceLock<Arc<Slot>>,
}

/// A clone is made to be changed, so it has no page.
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

    /// To change them.
    pub(super) fn entries_mut(&mut self) -> &mut Vec<Arc<KeyValue>> {
        self.page.take();
        &mut self.entries
    }

    /// All key-values, encoded, side by side; `None` where they are better taken one by one.
    pub(in crate::hub) fn page(&self, pages: &Pages) -> Option<Bytes> {
        let slot = match self.page.get() {
            Some(slot) => slot,
            None if Pages::are_worth_it(size(&self.entries)) => self.page.get_or_init(Slot::new),
            None => return None,
        };
        Some(pages.page(slot, &self.entries))
    }
}
