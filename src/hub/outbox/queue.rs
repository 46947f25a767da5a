//! [`DeliveryQueue`]: what a stream has still to send, in order, with its bytes counted.
//!
//! Not here: who may still be given something, see `state`. Always holds: the bytes are those of the deliveries that wait.

use std::collections::VecDeque;

use super::OutboxLimits;
use crate::hub::delivery::Delivery;

/// Deliveries for which a queue that was emptied keeps room.
const KEPT: usize = 16;
/// From this room on it goes back: a burst is over.
const LARGE: usize = 256;

/// See the module.
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

    /// Moves what waits into `batch`, up to about `most_bytes` of events, at least one delivery.
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
        // The next goes where the last was, whose memory is at hand.
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

    /// Whether there is room for those that were parked, and for those that wait for room.
    pub(super) fn is_low(&self, limits: &OutboxLimits) -> bool {
        self.bytes <= limits.bytes / 2 && self.deliveries.len() <= limits.deliveries / 2
    }
}
