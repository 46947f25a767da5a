//! [`Slack`]: gives back what a slab took for a burst. Slabs never do so by themselves.
//!
//! Used by the index, its ranges and the feed's list of streams, after each removal. The slab keeps its keys, so only what lies behind
//! the last entry in use can go.
//! Always holds: a slab is looked at when it is down to a quarter of its capacity, and then each time it has halved. So a look, which goes
//! over the whole slab, is paid for by the removals before it, and is no longer than the growth that came before.

use slab::Slab;

/// A smaller slab is left alone, unless it is empty.
const KEPT: usize = 64;

/// See the module. One for each slab.
#[derive(Debug, Default)]
pub(super) struct Slack {
    /// How few entries are left at the next look.
    next: usize,
}

impl Slack {
    /// Something was removed from `slab`.
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
