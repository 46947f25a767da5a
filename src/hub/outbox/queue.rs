//! [`DeliveryQueue`]: what a stream has still to send, in order, with its bytes counted.
//!
//! Not here: which watches may still be given something, see `state`. Always holds: the byte count is that of the
//! deliveries in the queue.

use std::collections::VecDeque;

use super::OutboxLimits;
use crate::hub::delivery::Delivery;

/// An emptied queue keeps the memory for this many deliveries.
const KEPT: usize = 16;
/// A queue with memory for more deliveries than this gives it back: a burst is over.
const LARGE: usize = 256;

/// The deliveries of a stream; see the module.
#[derive(Debug, Default)]
pub(in crate::hub) struct DeliveryQueue {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
}

impl DeliveryQueue {
    pub(super) fn add(&mut self, delivery: Delivery) {
        self.bytes += delivery.bytes();
        self.deliveries.push_back(delivery);
    }

    /// Moves what waits into `batch`, up to about `most_bytes` of events, but at least one delivery.
    pub(super) fn take(&mut self, batch: &mut Vec<Delivery>, most_bytes: usize) {
        let mut taken = 0;
        while let Some(next) = self.deliveries.front() {
            taken += next.bytes();
            if !batch.is_empty() && taken > most_bytes {
                return;
            }
            if let Some(delivery) = self.deliveries.pop_front() {
                self.bytes -= delivery.bytes();
                batch.push(delivery);
            }
        }
        // The next delivery goes to the start of the buffer, which is still in the CPU's cache.
        self.deliveries.clear();
        if self.deliveries.capacity() > LARGE {
            self.deliveries.shrink_to(KEPT);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(in crate::hub) fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    pub(in crate::hub) fn len(&self) -> usize {
        self.deliveries.len()
    }

    pub(in crate::hub) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no more should be added.
    pub(super) fn is_full(&self, limits: &OutboxLimits) -> bool {
        self.bytes >= limits.bytes || self.deliveries.len() >= limits.deliveries
    }

    /// Whether there is room for parked watches, and for tasks that wait for room.
    pub(super) fn is_low(&self, limits: &OutboxLimits) -> bool {
        self.bytes <= limits.bytes / 2 && self.deliveries.len() <= limits.deliveries / 2
    }
}
