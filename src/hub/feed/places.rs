//! [`Places`]: the streams with a watch in a feed. Each has a place, by which the feed's index names it.
//!
//! Changed under the feed's lock. Publishing copies the list there and pushes to the streams of that copy afterwards,
//! when a place may already belong to another stream. Always holds: a stream that joins gets the lowest place that is
//! free, and the last place is not free, so the memory of a burst of streams is given back from the end.

use std::{collections::BTreeSet, sync::Arc};

use crate::hub::{chunks::Chunks, outbox::Outbox};

/// Streams by their places. A stream that joins or leaves during a publication copies as many pointers as a chunk has.
type Seats = Chunks<Option<Arc<Outbox>>, 256>;

/// The streams of a feed; see the module.
#[derive(Debug, Default)]
pub(in crate::hub) struct Places {
    /// Behind a pointer, so that the copy for a publication costs the same however many streams there are.
    seats: Arc<Seats>,
    free: BTreeSet<u32>,
}

/// The streams of a feed at one moment.
#[derive(Clone, Debug)]
pub(super) struct Seated(Arc<Seats>);

impl Places {
    /// Gives a stream a place.
    pub(in crate::hub) fn insert(&mut self, outbox: Arc<Outbox>) -> u32 {
        let seats = Arc::make_mut(&mut self.seats);
        let place = self.free.pop_first().unwrap_or(seats.len() as u32);
        match seats.get_mut(place as usize) {
            Some(seat) => *seat = Some(outbox),
            None => seats.push(Some(outbox)),
        }
        place
    }

    /// The stream at `place` leaves.
    pub(in crate::hub) fn remove(&mut self, place: u32) {
        let seats = Arc::make_mut(&mut self.seats);
        if let Some(seat) = seats.get_mut(place as usize)
            && seat.take().is_some()
        {
            self.free.insert(place);
        }
        while seats.last().is_some_and(Option::is_none) {
            seats.pop();
            self.free.remove(&(seats.len() as u32));
        }
    }

    pub(in crate::hub) fn get(&self, place: u32) -> Option<&Arc<Outbox>> {
        self.seats.get(place as usize)?.as_ref()
    }

    /// All streams, in the order of their places.
    pub(in crate::hub) fn iter(&self) -> impl Iterator<Item = &Arc<Outbox>> {
        self.seats.iter().flatten()
    }

    pub(in crate::hub) fn len(&self) -> usize {
        self.seats.len() - self.free.len()
    }

    pub(in crate::hub) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// The streams as they are now.
    pub(super) fn seated(&self) -> Seated {
        Seated(self.seats.clone())
    }
}

impl Seated {
    pub(super) fn get(&self, place: u32) -> Option<&Arc<Outbox>> {
        self.0.get(place as usize)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{OutboxLimits, shares::Counted},
        types::ClientKey,
    };

    fn stream() -> Arc<Outbox> {
        Outbox::new(OutboxLimits { bytes: 1, deliveries: 1, watches: 1 }, ClientKey::RELAY, Counted::default())
    }

    #[test]
    fn places_are_given_again_and_what_was_copied_before_stays_as_it_was() {
        let mut places = Places::default();
        let streams: Vec<_> = (0..1_000).map(|_| stream()).collect();
        for (place, stream) in (0..).zip(&streams) {
            assert_eq!(places.insert(stream.clone()), place);
        }
        let before = places.seated();
        places.remove(700);
        places.remove(3);
        places.remove(3);
        assert_eq!((places.len(), places.iter().count()), (998, 998));
        assert!(places.get(3).is_none() && places.get(1_000).is_none());
        let new = stream();
        assert_eq!(places.insert(new.clone()), 3, "the lowest place");
        assert!(places.get(3).is_some_and(|there| Arc::ptr_eq(there, &new)));
        assert!(
            (0..).zip(&streams).all(|(place, stream)| before.get(place).is_some_and(|was| Arc::ptr_eq(was, stream)))
        );
    }

    #[test]
    fn a_burst_of_streams_leaves_no_memory_behind() {
        let mut places = Places::default();
        (0..10_000).for_each(|place| assert_eq!(places.insert(stream()), place));
        // In no particular order.
        (0..10_000_u32)
            .map(|number| number * 7 % 10_000)
            .filter(|place| *place != 5)
            .for_each(|place| places.remove(place));
        assert_eq!((places.len(), places.seats.len(), places.free.len()), (1, 6, 5));
        places.remove(5);
        assert!(places.is_empty() && places.free.is_empty());
        assert_eq!(places.insert(stream()), 0);
    }
}
