//! [`Window`]: what a fill has read last, for those of its watches whose streams had no room for it yet.
//!
//! Not here: who gets what and when, see `fill`. The items have consecutive numbers, and each member of a fill knows
//! the number that it needs next. Always holds: the window has at most [`MOST_BYTES`] besides the message that was
//! added last; it has no gap.

use std::{collections::VecDeque, sync::Arc};

use crate::{hub::payload::Payload, types::Revision};

/// The most bytes that are kept for members that lag. Small streams hold about as much in their sockets, so clients
/// that all read go on together.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Window {
    items: VecDeque<Item>,
    /// The number of the first item.
    first: u64,
    bytes: usize,
}

/// The events of consecutive revisions.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) payload: Arc<Payload>,
    /// The last of these revisions, which may have no events.
    pub(super) through: Revision,
    /// The revision of the store when they were read.
    pub(super) as_of: Revision,
}

impl Window {
    /// The number that the next item will have.
    pub(super) fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// The number of the first item that is still here.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// An item by its number, if it is still here.
    pub(super) fn get(&self, number: u64) -> Option<&Item> {
        self.items.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    pub(super) fn add(&mut self, item: Item) {
        self.bytes += item.payload.size(0);
        self.items.push_back(item);
    }

    /// The revisions after the last item, up to this one, have no events.
    pub(super) fn pass(&mut self, through: Revision) {
        if let Some(last) = self.items.back_mut() {
            last.through = last.through.max(through);
        }
    }

    /// Drops the oldest items above the limit.
    pub(super) fn trim(&mut self) {
        while self.bytes > MOST_BYTES {
            self.drop_first();
        }
    }

    /// Drops the items before a number, which nobody needs any more.
    pub(super) fn drop_before(&mut self, number: u64) {
        while self.first < number && !self.items.is_empty() {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(item) = self.items.pop_front() {
            self.bytes -= item.payload.size(0);
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        hub::{index::WatchOptions, testing},
        types::KeyRange,
    };

    fn item(revision: i64, bytes: usize) -> Item {
        let entry = testing::entry_of(revision, "a", bytes);
        let payload = Payload::matching(&[entry], &KeyRange::prefix(Bytes::new()), WatchOptions::default());
        let (payload, through) = (payload.expect("it matches"), Revision::new(revision));
        Item { payload, through, as_of: through }
    }

    #[test]
    fn it_keeps_the_newest_items_up_to_its_limit_and_what_was_added_since() {
        let mut window = Window::default();
        (1..=10).for_each(|revision| window.add(item(revision, MOST_BYTES / 4)));
        assert_eq!((window.first(), window.end()), (0, 10), "what was just read is whole");
        window.trim();
        assert_eq!((window.first(), window.end()), (7, 10));
        assert!(window.get(6).is_none() && window.get(10).is_none());
        assert_eq!(window.get(7).expect("kept").through, Revision::new(8));
        window.pass(Revision::new(20));
        assert_eq!(window.get(9).expect("the last").through, Revision::new(20));
        window.drop_before(100);
        assert_eq!((window.first(), window.end(), window.bytes), (10, 10, 0));
    }
}
