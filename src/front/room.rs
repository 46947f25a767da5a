//! [`Room`]: a bound for what many requests have in memory together.
//!
//! Not here: the bound of a single one. Called for large bodies of requests, and for listings of v2. Always holds: a [`Place`] has its part of the room until it is
//! dropped; nobody waits for room for longer than [`PATIENCE`].

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// What is taken of the room at a time. Shorter texts need none: their number is that of requests.
const BLOCK: usize = 64 << 10;
/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    blocks: Arc<Semaphore>,
}

/// There was no room in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// A part of the room; none at first.
#[derive(Debug, Default)]
pub(super) struct Place(Option<OwnedSemaphorePermit>);

impl Room {
    pub(super) fn new(bytes: usize) -> Self {
        Self { blocks: Arc::new(Semaphore::new(bytes / BLOCK)) }
    }

    /// Lets `place` be enough for a text of `len` bytes.
    ///
    /// # Errors
    /// Where there is no room in time.
    pub(super) async fn grow(&self, place: &mut Place, len: usize) -> Result<(), Full> {
        let had = place.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = (len / BLOCK).saturating_sub(had);
        if more == 0 {
            return Ok(());
        }
        let taken = timeout(PATIENCE, self.blocks.clone().acquire_many_owned(more as u32)).await;
        let taken = taken.map_err(|_| Full)?.map_err(|_| Full)?;
        match &mut place.0 {
            Some(had) => had.merge(taken),
            none => *none = Some(taken),
        }
        Ok(())
    }

    /// Bytes that nobody has.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.blocks.available_permits() * BLOCK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_finds_no_room_is_refused_until_another_lets_go() {
        let room = Room::new(4 * BLOCK);
        let (mut one, mut another) = (Place::default(), Place::default());
        room.grow(&mut one, BLOCK).await.expect("room");
        room.grow(&mut one, 3 * BLOCK).await.expect("room");
        assert_eq!(room.free(), BLOCK, "what it had counts");
        room.grow(&mut another, BLOCK - 1).await.expect("none is needed");
        assert!(room.grow(&mut another, 2 * BLOCK).await.is_err());
        drop(one);
        room.grow(&mut another, 2 * BLOCK).await.expect("room");
        drop(another);
        assert_eq!(room.free(), 4 * BLOCK);
    }
}
