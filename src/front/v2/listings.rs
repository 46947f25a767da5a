//! [`Listings`]: answers to reads of files and directories, made once for all clients that request the same at the same
//! time.
//!
//! The text is made in `listing`, and the work of a long one is in `making`. A short listing is made at once; a long
//! one takes turns with the long reads of all clients (`Hub::by_turns`). Always holds: an answer shows one snapshot,
//! that of its index. A client waits only for its own listings. All listings in memory share a limit, including those
//! on their way to slow clients, and each client has a share of it.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::{
    answer::Refusal,
    making::{Making, Outcome},
    path::kids,
    text::Text,
    tree::{Found, find, show_file},
};
use crate::{
    hub::{
        Asker, Feed, Hub, Snapshot,
        room::{Place, Room},
    },
    types::{ClientKey, Revision},
};

/// A listing of at most this many keys and bytes is made at once, in about a tenth of a millisecond.
const SHORT: (usize, usize) = (512, 256 << 10);
/// Most listings, and most of their bytes, that are kept without a reader: in a storm, all clients request the same
/// few.
const KEPT: (usize, usize) = (64, 32 << 20);
/// How long a listing that shows remaining times is valid.
const TICK: Duration = Duration::from_millis(250);
/// Memory for all listings.
const ROOM: usize = 512 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Listings {
    hub: Arc<Hub>,
    feed: Arc<Feed>,
    shared: Arc<Shared>,
}

/// The state that is shared with the work on long listings.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) room: Room,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The snapshot of the entries in `made`.
    at: (Revision, u64),
    made: HashMap<(Bytes, bool), Made>,
    /// The number of entries at which `made` is searched for entries whose text is gone.
    look_at: usize,
    /// The newest is last.
    kept: VecDeque<Arc<Text>>,
    kept_bytes: usize,
    asked: HashMap<Wanted, Weak<Flight>>,
}

#[derive(Debug)]
struct Made {
    text: Weak<Text>,
    /// When it was made; `None` if it does not depend on the time.
    since: Option<Instant>,
}

/// A requested listing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) client: ClientKey,
    pub(super) path: Bytes,
    pub(super) recursive: bool,
}

/// An answer that several requests of one client wait for.
#[derive(Debug)]
pub(super) struct Flight {
    shared: Arc<Shared>,
    wanted: Wanted,
    answer: OnceCell<Answer>,
}

/// The result of making a short answer.
#[derive(Debug)]
enum Short {
    Answer(Revision, Arc<Text>),
    /// It needs room for this many bytes.
    Lacks(usize, Place),
    /// It is too long to be made at once.
    Long,
}

/// An answer with its index.
pub(super) type Answer = Result<(Revision, Arc<Text>), Refusal>;

impl Listings {
    pub(super) fn new(hub: Arc<Hub>, feed: Arc<Feed>) -> Self {
        let room = Room::new(ROOM, "etcd-relay: too many large answers are being sent; retry");
        Self { hub, feed, shared: Arc::new(Shared { room, state: Mutex::default() }) }
    }

    /// What is at a path, and as of which index.
    ///
    /// # Errors
    /// Fails if nothing is there, if it is too long to be shown, or if there is no room in time.
    pub(super) async fn read(&self, asker: Asker, path: &Bytes, recursive: bool) -> Result<(Revision, Bytes), Refusal> {
        let client = asker.client;
        let wanted = Wanted { client, path: path.clone(), recursive };
        let mut place = self.shared.room.place(client);
        loop {
            match self.at_once(&wanted, place)? {
                Short::Answer(at, text) => return Ok((at, text.read_by(client))),
                // It is made again from the new state. A request that waits for room has nothing else in memory.
                Short::Lacks(len, lacking) => {
                    place = lacking;
                    place.grow(len).await?;
                }
                Short::Long => break,
            }
        }
        let flight = self.shared.flight(wanted);
        let answer = flight.answer.get_or_init(|| Box::pin(self.by_turns(asker, &flight))).await.clone();
        answer.map(|(revision, text)| (revision, text.read_by(client)))
    }

    /// Makes an answer that takes no more than a moment, if its place is large enough or can grow.
    fn at_once(&self, wanted: &Wanted, mut place: Place) -> Result<Short, Refusal> {
        let snapshot = self.feed.snapshot();
        let revision = snapshot.revision;
        if let Found::File(node) = find(&snapshot, &wanted.path)? {
            let len = node.text_len();
            if !place.try_grow(len) {
                return Ok(Short::Lacks(len, place));
            }
            let text = show_file(&node);
            place.shrink(text.len());
            return Ok(Short::Answer(revision, Text::new(text, place)));
        }
        if let Some(text) = self.shared.made(&snapshot, wanted) {
            return Ok(Short::Answer(revision, text));
        }
        let (keys, bytes) = snapshot.map.weigh(&kids(&wanted.path));
        if keys > SHORT.0 || bytes > SHORT.1 {
            return Ok(Short::Long);
        }
        let mut making = Making::of(self.shared.clone(), wanted.clone(), snapshot, place);
        loop {
            match making.step() {
                None => {}
                Some(Outcome::Answer(answer)) => return answer.map(|(at, text)| Short::Answer(at, text)),
                Some(Outcome::Lacks(len, place)) => return Ok(Short::Lacks(len, place)),
            }
        }
    }

    /// What a snapshot that is not the feed's has at a path. It is short enough to be made without turns.
    ///
    /// # Errors
    /// As [`Listings::read`].
    pub(super) async fn of(
        &self,
        snapshot: Arc<Snapshot>,
        client: ClientKey,
        path: &Bytes,
        recursive: bool,
    ) -> Result<(Revision, Bytes), Refusal> {
        let wanted = Wanted { client, path: path.clone(), recursive };
        let mut place = self.shared.room.place(client);
        loop {
            let mut making = Making::of(self.shared.clone(), wanted.clone(), snapshot.clone(), place).alone();
            let (len, lacking) = loop {
                match making.step() {
                    None => tokio::task::yield_now().await,
                    Some(Outcome::Answer(answer)) => return answer.map(|(at, text)| (at, text.read_by(client))),
                    Some(Outcome::Lacks(len, place)) => break (len, place),
                }
            };
            place = lacking;
            place.grow(len).await?;
        }
    }

    /// Room for the answer to a write, before anything is written: a client that does not read its answers writes no
    /// more.
    ///
    /// # Errors
    /// Fails if there is no room in time.
    pub(super) async fn reserve(&self, client: ClientKey, len: usize) -> Result<Place, Refusal> {
        let mut place = self.shared.room.place(client);
        place.grow(len).await?;
        Ok(place)
    }

    /// Counts an answer to a write, or an error, for its client until it is read, even if there is no room.
    pub(super) fn count(&self, client: ClientKey, answer: Bytes) -> Bytes {
        let place = self.shared.room.count(client, answer.len());
        Text::new(answer, place).read_by(client)
    }

    /// Makes a long listing of the feed's state when its turn comes.
    async fn by_turns(&self, asker: Asker, flight: &Arc<Flight>) -> Answer {
        let mut place = self.shared.room.place(asker.client);
        let bytes = size_of::<Making>() + flight.wanted.path.len();
        loop {
            let (shared, feed) = (self.shared.clone(), self.feed.clone());
            let (wanted, flight) = (flight.wanted.clone(), Arc::downgrade(flight));
            let mut has = Some(place);
            let mut making: Option<Making> = None;
            let step = move || {
                let making = match &mut making {
                    Some(making) => making,
                    none => {
                        // Requests from now on may need a newer listing.
                        shared.begin(&wanted, &flight);
                        let (snapshot, place) = (feed.snapshot(), has.take()?);
                        none.insert(Making::of(shared.clone(), wanted.clone(), snapshot, place))
                    }
                };
                making.step()
            };
            match self.hub.by_turns(asker, bytes, step).await {
                Ok(Outcome::Answer(answer)) => return answer,
                // It starts again with the new state, because waiting with a snapshot would keep that in memory.
                Ok(Outcome::Lacks(len, lacking)) => {
                    place = lacking;
                    place.grow(len).await?;
                }
                Err(why) => return Err(Refusal::unavailable(format!("etcd-relay: {why}"))),
            }
        }
    }
}

impl Shared {
    /// A listing of this snapshot that was made before.
    pub(super) fn made(&self, snapshot: &Snapshot, wanted: &Wanted) -> Option<Arc<Text>> {
        let state = self.state.lock();
        if state.at != (snapshot.revision, snapshot.epoch) {
            return None;
        }
        let made = state.made.get(&(wanted.path.clone(), wanted.recursive))?;
        if made.since.is_some_and(|since| since.elapsed() >= TICK) {
            return None;
        }
        made.text.upgrade()
    }

    /// Keeps a listing for other requests of the same.
    pub(super) fn keep(&self, at: (Revision, u64), wanted: &Wanted, text: &Arc<Text>, since: Option<Instant>) {
        let mut outdated = Vec::new();
        let mut state = self.state.lock();
        if state.at != at {
            if at < state.at && at.1 == state.at.1 {
                // Nobody requests a listing of an older state.
                return;
            }
            state.at = at;
            state.made.clear();
            outdated.extend(state.kept.drain(..));
            state.kept_bytes = 0;
        }
        if state.made.len() >= state.look_at {
            state.made.retain(|_, made| made.text.strong_count() > 0);
            state.look_at = 2 * state.made.len() + KEPT.0;
        }
        let key = (wanted.path.clone(), wanted.recursive);
        state.made.insert(key, Made { text: Arc::downgrade(text), since });
        state.kept_bytes += text.len();
        state.kept.push_back(text.clone());
        while state.kept.len() > KEPT.0 || state.kept_bytes > KEPT.1 {
            let Some(oldest) = state.kept.pop_front() else { break };
            state.kept_bytes -= oldest.len();
            outdated.push(oldest);
        }
        drop(state);
        // Freed outside the lock.
        drop(outdated);
    }

    /// Drops listings without a reader to make room for others.
    pub(super) fn forget_unread(&self) {
        let kept = {
            let mut state = self.state.lock();
            state.kept_bytes = 0;
            std::mem::take(&mut state.kept)
        };
        drop(kept);
    }

    /// The answer that this client already waits for, or a new one.
    fn flight(self: &Arc<Self>, wanted: Wanted) -> Arc<Flight> {
        let mut state = self.state.lock();
        if let Some(flight) = state.asked.get(&wanted).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::new(Flight { shared: self.clone(), wanted: wanted.clone(), answer: OnceCell::new() });
        state.asked.insert(wanted, Arc::downgrade(&flight));
        flight
    }

    /// The snapshot of an answer is taken now, so no further request may join.
    fn begin(&self, wanted: &Wanted, flight: &Weak<Flight>) {
        let mut state = self.state.lock();
        if state.asked.get(wanted).is_some_and(|asked| asked.ptr_eq(flight)) {
            state.asked.remove(wanted);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        // A new one may have started meanwhile.
        if state.asked.get(&self.wanted).is_some_and(|asked| asked.strong_count() == 0) {
            state.asked.remove(&self.wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{KeyMap, OutboxLimits, testing},
        types::{KeyRange, KeyValue, KeyValueFields},
    };

    const ONE: Asker = Asker { client: ClientKey::new(1), connection: 1 };
    const TWO: Asker = Asker { client: ClientKey::new(2), connection: 2 };

    /// Listings of directories, each with a number of keys of a given size, whose text is six times as long.
    fn listings(revision: i64, directories: &[(&str, usize, usize)]) -> Listings {
        let mut map = KeyMap::default();
        for (directory, keys, bytes) in directories {
            for key in 0..*keys {
                map.insert(KeyValue::new(&KeyValueFields {
                    key: format!("{directory}/{key:06}").into(),
                    value: "\u{1}".repeat(*bytes).into(),
                    create_revision: Revision::new(1),
                    mod_revision: Revision::new(1),
                    version: 1,
                    lease: 0,
                }));
            }
        }
        let hub = testing::hub(OutboxLimits { bytes: 1, deliveries: 1, watches: 1 });
        let feed = hub.open(KeyRange::prefix(Bytes::from_static(b"/")));
        feed.install(Arc::default(), map, Revision::new(revision));
        Listings::new(hub, feed)
    }

    async fn read(listings: &Listings, asker: Asker, path: &'static str, recursive: bool) -> Bytes {
        let (at, text) = listings.read(asker, &path.into(), recursive).await.expect("a listing");
        assert_eq!(at, listings.feed.revision());
        text
    }

    fn free(listings: &Listings) -> usize {
        listings.shared.room.free()
    }

    #[tokio::test]
    async fn all_who_ask_for_the_same_get_the_same_bytes() {
        for keys in [10, 2_000] {
            let listings = listings(7, &[("/d", keys, 100)]);
            let first = read(&listings, ONE, "/d", true).await;
            let second = read(&listings, TWO, "/d", true).await;
            assert!(first == second && listings.shared.state.lock().made.len() == 1);
            let flat = read(&listings, ONE, "/d", false).await;
            assert_eq!(first, flat, "the listing has the same keys");
            assert_eq!(listings.shared.state.lock().made.len(), 2);
        }
    }

    #[tokio::test]
    async fn requests_of_one_client_that_come_together_are_one_turn() {
        let listings = listings(7, &[("/d", 2_000, 100)]);
        let path = Bytes::from("/d");
        let all = futures_util::future::join_all((0..2_000).map(|_| listings.read(ONE, &path, true))).await;
        assert!(all.iter().all(Result::is_ok), "none is refused because of the others");
        assert!(listings.shared.state.lock().asked.is_empty());
    }

    #[tokio::test]
    async fn a_long_listing_has_its_part_of_the_room_until_its_last_reader_is_done() {
        let listings = listings(7, &[("/d", 5_000, 100)]);
        let text = read(&listings, ONE, "/d", true).await;
        let taken = ROOM - free(&listings);
        assert!((text.len() - (64 << 10)..=text.len()).contains(&taken), "{taken} of {}", text.len());
        listings.shared.forget_unread();
        assert!(free(&listings) < ROOM);
        drop(text);
        assert_eq!(free(&listings), ROOM);
    }

    /// Directories whose listings have three megabytes each.
    fn many(count: usize) -> (Vec<String>, Listings) {
        let paths: Vec<_> = (0..count).map(|at| format!("/{at:03}")).collect();
        let directories: Vec<_> = paths.iter().map(|path| (&**path, 64, 8 << 10)).collect();
        let listings = listings(7, &directories);
        (paths, listings)
    }

    #[tokio::test]
    async fn listings_that_nobody_reads_do_not_fill_the_room() {
        let (paths, listings) = many(40);
        for path in &paths {
            listings.read(ONE, &path.clone().into(), true).await.expect("room");
            assert!(ROOM - free(&listings) <= KEPT.1, "no more is kept without a reader");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_leaves_room_for_others() {
        let (paths, listings) = many(100);
        let mut unread = Vec::new();
        for path in &paths {
            match listings.read(ONE, &path.clone().into(), true).await {
                Ok(answer) => unread.push(answer),
                Err(refusal) => assert_eq!(refusal.code, 300),
            }
        }
        assert!((75..=85).contains(&unread.len()), "{} are half of the room", unread.len());
        read(&listings, TWO, "/099", true).await;
        // A second client reads the listing of the first, and continues with it alone.
        let shared = read(&listings, TWO, "/000", true).await;
        listings.shared.forget_unread();
        let room = &listings.shared.room;
        assert_eq!(room.taken(TWO.client), 0);
        drop(unread);
        assert!(room.taken(ONE.client) == 0 && room.taken(TWO.client) >= 3 << 20, "the listing counts for its reader");
        drop(shared);
        assert_eq!(free(&listings), ROOM);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_made_for_a_client_before_it_has_room() {
        let listings = listings(7, &[("/d", 3, 64 << 10)]);
        let _unread = listings.shared.room.count(ONE.client, ROOM / 2);
        for path in ["/d/000000", "/d"] {
            let wanted = Wanted { client: ONE.client, path: path.into(), recursive: true };
            let none = listings.shared.room.place(ONE.client);
            let made = listings.at_once(&wanted, none).expect("something is there");
            assert!(matches!(made, Short::Lacks(len, _) if len > 384 << 10), "{path}: {made:?}");
            assert_eq!(listings.read(ONE, &path.into(), true).await.expect_err("no room").code, 300);
            read(&listings, TWO, path, true).await;
        }
        assert!(listings.reserve(ONE.client, 1 << 20).await.is_err(), "nor does it write");
    }

    #[tokio::test]
    async fn a_large_file_has_its_part_of_the_room() {
        let listings = listings(7, &[("/d", 1, 1 << 20)]);
        let text = read(&listings, ONE, "/d/000000", false).await;
        assert!(ROOM - free(&listings) >= 1 << 20);
        drop(text);
        assert_eq!(free(&listings), ROOM);
    }
}
