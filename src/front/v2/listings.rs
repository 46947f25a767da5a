//! [`Listings`]: directories as JSON, made once for all who ask for the same one at the same time.
//!
//! Not here: how the text is made (`listing`). Always holds: what is shown is the snapshot that was asked for; a long listing lets others go
//! on while it is made; all listings in memory, those on their way to slow clients included, have a bound together.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::{answer::Refusal, listing::Listing, path::kids};
use crate::{
    front::room::{Full, Place, Room},
    hub::Snapshot,
    types::Revision,
};

/// Keys that are shown before others go on.
const STEP: usize = 512;
/// Listings that are kept for the next client: in a storm, all ask for the same few.
const KEPT: usize = 32;
/// How long a listing that shows how much time keys have left is good for.
const TICK: Duration = Duration::from_millis(250);
/// The room for all listings.
const ROOM: usize = 512 << 20;
/// What a client is told for whose listing there is none in time.
const FULL: &str = "etcd-relay: too many large listings are being sent; try again";
/// The longest listing.
const MOST: usize = 128 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Listings {
    kept: Mutex<VecDeque<Kept>>,
    room: Room,
}

/// A listing that is made, or being made.
#[derive(Clone, Debug)]
struct Kept {
    path: Bytes,
    recursive: bool,
    revision: Revision,
    epoch: u64,
    text: Arc<OnceCell<Made>>,
}

#[derive(Clone, Debug)]
struct Made {
    text: Bytes,
    /// None where it does not depend on the time.
    since: Option<Instant>,
}

/// A text and its part of the room, which it gives back when its last reader is done.
struct Held {
    text: Vec<u8>,
    _place: Place,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

impl Listings {
    pub(super) fn new() -> Self {
        Self { kept: Mutex::default(), room: Room::new(ROOM) }
    }

    /// The listing of a directory that is in the snapshot.
    ///
    /// # Errors
    /// Where it is too long, or there is no room for it in time.
    pub(super) async fn show(&self, snapshot: &Snapshot, path: &Bytes, recursive: bool) -> Result<Bytes, Refusal> {
        let text = self.cell(snapshot, path, recursive);
        let made = text.get_or_try_init(|| self.make(snapshot, path, recursive)).await?;
        Ok(made.text.clone())
    }

    fn cell(&self, snapshot: &Snapshot, path: &Bytes, recursive: bool) -> Arc<OnceCell<Made>> {
        let (revision, epoch) = (snapshot.revision, snapshot.epoch);
        let mut kept = self.kept.lock();
        // Nobody will ask for a listing of an older moment again.
        kept.retain(|kept| {
            let is_old = |made: &Made| made.since.is_some_and(|since| since.elapsed() >= TICK);
            (kept.revision, kept.epoch) == (revision, epoch) && !kept.text.get().is_some_and(is_old)
        });
        let same = |kept: &&Kept| kept.path == *path && kept.recursive == recursive;
        if let Some(found) = kept.iter().find(same) {
            return found.text.clone();
        }
        let text = Arc::new(OnceCell::new());
        let path = path.clone();
        kept.push_back(Kept { path, recursive, revision, epoch, text: text.clone() });
        if kept.len() > KEPT {
            kept.pop_front();
        }
        text
    }

    async fn make(&self, snapshot: &Snapshot, path: &Bytes, recursive: bool) -> Result<Made, Refusal> {
        let mut listing = Listing::of(path, recursive);
        let mut place = Place::default();
        let since = Instant::now();
        for (at, kv) in snapshot.map.range(&kids(path)).enumerate() {
            listing.add(kv);
            if at % STEP == STEP - 1 {
                self.take_room(&mut place, listing.len()).await?;
                tokio::task::yield_now().await;
            }
        }
        let since = listing.ticks.then_some(since);
        let text = listing.finish();
        self.take_room(&mut place, text.len()).await?;
        Ok(Made { text: Bytes::from_owner(Held { text, _place: place }), since })
    }

    /// Lets `room` be enough for a text that is so long. Short ones need none.
    async fn take_room(&self, place: &mut Place, len: usize) -> Result<(), Refusal> {
        if len > MOST {
            let cause = format!("etcd-relay: the directory has more than {MOST} bytes; ask for a part of it");
            return Err(Refusal::new(210, cause));
        }
        self.room.grow(place, len).await.map_err(|Full| Refusal::unavailable(FULL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::KeyMap,
        types::{KeyValue, KeyValueFields},
    };

    fn snapshot(revision: i64, keys: usize) -> Snapshot {
        let mut map = KeyMap::default();
        for key in 0..keys {
            map.insert(Arc::new(KeyValue::new(&KeyValueFields {
                key: format!("/d/{key:06}").into(),
                value: "x".repeat(100).into(),
                create_revision: Revision::new(1),
                mod_revision: Revision::new(1),
                version: 1,
                lease: 0,
            })));
        }
        Snapshot { revision: Revision::new(revision), map, ..Snapshot::default() }
    }

    #[tokio::test]
    async fn all_who_ask_for_the_same_get_the_same_bytes() {
        let listings = Listings::new();
        let (path, snapshot) = (Bytes::from("/d"), snapshot(7, 2_000));
        let first = listings.show(&snapshot, &path, true).await.expect("a listing");
        let second = listings.show(&snapshot, &path, true).await.expect("a listing");
        assert_eq!(first.as_ptr(), second.as_ptr());
        let flat = listings.show(&snapshot, &path, false).await.expect("a listing");
        assert_eq!(first, flat, "the same keys");
        assert_ne!(first.as_ptr(), flat.as_ptr());
        let later = Snapshot { revision: Revision::new(8), ..snapshot.clone() };
        let later = listings.show(&later, &path, true).await.expect("a listing");
        assert_ne!(first.as_ptr(), later.as_ptr());
    }

    #[tokio::test]
    async fn a_long_listing_has_its_part_of_the_room_until_its_last_reader_is_done() {
        let listings = Listings::new();
        let (path, snapshot) = (Bytes::from("/d"), snapshot(7, 5_000));
        let text = listings.show(&snapshot, &path, true).await.expect("a listing");
        let taken = ROOM - listings.room.free();
        assert!((text.len() - (64 << 10)..=text.len()).contains(&taken), "{taken} of {}", text.len());
        listings.kept.lock().clear();
        assert!(listings.room.free() < ROOM);
        drop(text);
        assert_eq!(listings.room.free(), ROOM);
    }
}
