//! [`Slack`]: gives back the memory that a slab took in a burst. Slabs never do so by themselves.
//!
//! Used by the index, its ranges and the feed's list of streams, after each removal. The slab keeps its keys, so only
//! the memory after the last entry in use can be freed.
//! Always holds: a slab is checked when it is down to a quarter of its capacity, and then each time it has halved. A
//! check goes over the whole slab, so its cost is spread over the removals before it, and it takes no longer than the
//! growth before them.

use slab::Slab;

/// A smaller slab is left alone, unless it is empty.
const KEPT: usize = 64;

/// Tracks when to shrink one slab; see the module.
#[derive(Debug, Default)]
pub(super) struct Slack {
    /// The number of entries at which the next check is due.
    next: usize,
}

impl Slack {
    /// An entry was removed from `slab`.
    pub(super) fn removed<T>(&mut self, slab: &mut Slab<T>) {
        let (len, capacity) = (slab.len(), slab.capacity());
        if len == 0 {
            *slab = Slab::new();
        } else if len > capacity / 2 {
            self.next = capacity / 4;
        } else if capacity > KEPT && len <= self.next {
            self.next = len / 2;
            slab.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_shrinks_after_a_burst_whichever_entry_stays() {
        const MANY: usize = 100_000;
        for stays in [0, 1, MANY / 100] {
            for backwards in [false, true] {
                let (mut slab, mut slack) = (Slab::new(), Slack::default());
                for entry in 0..MANY {
                    slab.insert(entry);
                }
                let mut leave: Vec<usize> = (0..MANY).filter(|entry| *entry != stays).collect();
                if backwards {
                    leave.reverse();
                }
                for entry in leave {
                    slab.remove(entry);
                    slack.removed(&mut slab);
                }
                assert_eq!(slab[stays], stays);
                assert!(slab.capacity() <= KEPT.max(2 * (stays + 1)), "{} for {stays}", slab.capacity());
            }
        }
    }

    #[test]
    fn a_slab_that_is_empty_has_no_memory() {
        let (mut slab, mut slack) = (Slab::new(), Slack::default());
        for entry in 0..1_000 {
            slab.insert(entry);
        }
        for entry in 0..1_000 {
            slab.remove(entry);
            slack.removed(&mut slab);
        }
        assert_eq!(slab.capacity(), 0);
    }
}
