//! [`Making`]: the work on a long listing, in steps of about a millisecond.
//!
//! Turns are decided in `Hub::by_turns`, and `listings` waits for the result. Always holds: its memory is covered by
//! its place. It shows one snapshot. If there is no room, it stops and reports how much it needs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    answer::Refusal,
    listing::Listing,
    listings::{Answer, Shared, Wanted},
    ordered::Ordered,
    path::kids,
    text::Text,
    tree::{Found, find, show_file},
};
use crate::{
    hub::{Snapshot, room::Place},
    types::KeyRange,
};

/// Approximate duration of a step.
const STEP: Duration = Duration::from_millis(1);
/// Keys between two readings of the clock.
const LOOK: usize = 32;
/// Bytes that are reordered between two readings of the clock.
const PIECE: usize = 64 << 10;
/// The smallest amount of room that is taken at once.
const LEAST: usize = 1 << 20;
/// The largest amount of room that is taken in advance.
const AHEAD: usize = 16 << 20;
/// The longest listing.
pub(super) const MOST: usize = 128 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Making {
    shared: Arc<Shared>,
    wanted: Wanted,
    snapshot: Arc<Snapshot>,
    /// `None` while it waits for room.
    place: Option<Place>,
    stage: Stage,
    began: Instant,
    /// Whether other requests may get the text.
    is_kept: bool,
}

#[derive(Debug)]
enum Stage {
    Begin,
    /// The keys from here on are still to be read.
    Keys(Box<Listing>, Bytes),
    Order(Ordered, bool),
    Over,
}

/// The result of a step.
#[derive(Debug)]
pub(super) enum Outcome {
    Answer(Answer),
    /// It needs room for this many bytes.
    Lacks(usize, Place),
}

impl Making {
    pub(super) fn of(shared: Arc<Shared>, wanted: Wanted, snapshot: Arc<Snapshot>, place: Place) -> Self {
        Self { shared, wanted, snapshot, place: Some(place), stage: Stage::Begin, began: Instant::now(), is_kept: true }
    }

    /// Makes it for one request alone, from a snapshot that is not the feed's.
    pub(super) fn alone(self) -> Self {
        Self { is_kept: false, ..self }
    }

    /// Continues for about a millisecond.
    pub(super) fn step(&mut self) -> Option<Outcome> {
        let until = Instant::now() + STEP;
        loop {
            if let Some(outcome) = self.part() {
                return Some(outcome);
            }
            if Instant::now() >= until {
                return None;
            }
        }
    }

    fn part(&mut self) -> Option<Outcome> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Begin => self.begin(),
            Stage::Keys(listing, from) => self.keys(listing, from),
            Stage::Order(mut ordered, ticks) => {
                if ordered.step(PIECE) {
                    return self.place.take().map(|place| self.done(ordered.into_text().into(), place, ticks));
                }
                self.stage = Stage::Order(ordered, ticks);
                None
            }
            Stage::Over => Some(Outcome::Answer(Err(Refusal::unavailable("etcd-relay: the listing is over")))),
        }
    }

    fn begin(&mut self) -> Option<Outcome> {
        if let Some(text) = self.shared.made(&self.snapshot, &self.wanted) {
            return Some(Outcome::Answer(Ok((self.snapshot.revision, text))));
        }
        match find(&self.snapshot, &self.wanted.path) {
            Err(refusal) => Some(Outcome::Answer(Err(refusal))),
            // The path became a file while this waited for its turn.
            Ok(Found::File(node)) => {
                let mut place = self.place.take()?;
                let len = node.text_len();
                if !place.try_grow(len) {
                    return Some(Outcome::Lacks(len, place));
                }
                let text = show_file(&node);
                place.shrink(text.len());
                Some(Outcome::Answer(Ok((self.snapshot.revision, Text::new(text, place)))))
            }
            Ok(Found::Directory) => {
                let listing = Box::new(Listing::of(&self.wanted.path, self.wanted.recursive));
                self.stage = Stage::Keys(listing, kids(&self.wanted.path).start().clone());
                None
            }
        }
    }

    fn keys(&mut self, mut listing: Box<Listing>, from: Bytes) -> Option<Outcome> {
        let mut place = self.place.take()?;
        let had = listing.len();
        let end = kids(&self.wanted.path).to_wire().1;
        let mut next = None;
        if let Ok(range) = KeyRange::from_wire(from, end.clone()) {
            for (at, kv) in self.snapshot.map.range(&range).enumerate() {
                listing.add(&kv);
                let passed = listing.goes_on_at();
                if passed.is_some() || at + 1 == LOOK || listing.len() - had >= PIECE {
                    next = Some(passed.unwrap_or_else(|| [kv.key(), b"\0"].concat().into()));
                    break;
                }
            }
        }
        if listing.len() > MOST {
            let cause = format!("etcd-relay: the directory has more than {MOST} bytes; request a part of it");
            return Some(Outcome::Answer(Err(Refusal::new(210, cause))));
        }
        let memory = listing.memory();
        if !place.fits(memory) && !place.try_grow(memory + memory.clamp(LEAST, AHEAD)) && !place.try_grow(memory) {
            self.shared.forget_unread();
            if !place.try_grow(memory) {
                self.stage = Stage::Keys(listing, next.unwrap_or_else(|| end.clone()));
                return Some(Outcome::Lacks(memory + LEAST, place));
            }
        }
        if let Some(next) = next.filter(|next| *next < end) {
            self.stage = Stage::Keys(listing, next);
        } else {
            let ticks = listing.ticks;
            let ordered = listing.finish();
            let memory = ordered.memory();
            self.stage = Stage::Order(ordered, ticks);
            if !place.try_grow(memory) {
                return Some(Outcome::Lacks(memory, place));
            }
        }
        self.place = Some(place);
        None
    }

    fn done(&mut self, text: Bytes, mut place: Place, ticks: bool) -> Outcome {
        place.shrink(text.len());
        let text = Text::new(text, place);
        let at = (self.snapshot.revision, self.snapshot.epoch);
        if self.is_kept {
            self.shared.keep(at, &self.wanted, &text, ticks.then_some(self.began));
        }
        Outcome::Answer(Ok((self.snapshot.revision, text)))
    }
}
