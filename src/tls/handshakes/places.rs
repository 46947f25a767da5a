//! [`Places`]: which handshakes are under way, and which of them gives up its place to the next one if all places are
//! taken.
//!
//! Not here: the handshakes themselves. `handshakes` calls this for each step of a handshake.
//! Always holds: a handshake is measured by how long it has waited **for its peer**, all waits together. The time in
//! which the relay computes, or in which other handshakes use the CPU, does not count, so a peer that answers at once
//! keeps its place however busy the relay is. The time does not start again with each byte, so a peer that sends a byte
//! now and then uses it up like one that is silent. Only a handshake that is waiting for its peer at this moment can
//! lose its place.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a handshake may wait for its peer in all while others wait for its place: some round trips.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The handshakes under way; see the module.
#[derive(Debug, Default)]
pub(super) struct Places {
    last: u64,
    all: HashMap<u64, Place>,
    /// Those that wait for their peers, ordered by when their time ends.
    waiting: BTreeSet<(Instant, u64)>,
}

/// One handshake.
#[derive(Debug)]
struct Place {
    ended: CancellationToken,
    /// How much longer it may wait for its peer.
    left: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It computes, or is about to.
    Runs,
    /// It waits for its peer; its time ends at this moment.
    Waits(Instant),
}

impl Places {
    /// Begins a handshake, which loses its place when `ended` is cancelled. Returns its number.
    pub(super) fn take(&mut self, ended: CancellationToken) -> u64 {
        self.last += 1;
        self.all.insert(self.last, Place { ended, left: PATIENCE, state: State::Runs });
        self.last
    }

    /// The handshake has ended.
    pub(super) fn leave(&mut self, number: u64) {
        if let Some(Place { state: State::Waits(until), .. }) = self.all.remove(&number) {
            self.waiting.remove(&(until, number));
        }
    }

    /// The handshake needs something from its peer.
    pub(super) fn waits(&mut self, number: u64, now: Instant) {
        let Some(place) = self.all.get_mut(&number) else { return };
        if place.state == State::Runs {
            let until = now + place.left;
            place.state = State::Waits(until);
            self.waiting.insert((until, number));
        }
    }

    /// Something has come from its peer.
    pub(super) fn goes_on(&mut self, number: u64, now: Instant) {
        let Some(place) = self.all.get_mut(&number) else { return };
        if let State::Waits(until) = place.state {
            place.state = State::Runs;
            place.left = until.saturating_duration_since(now);
            self.waiting.remove(&(until, number));
        }
    }

    /// When the time of the first one ends; `None` if none waits for its peer.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Ends the handshake whose time ended first, if there is one.
    pub(super) fn end_one(&mut self, now: Instant) -> bool {
        let over = self.waiting.first().copied().filter(|(until, _)| *until <= now);
        let Some((until, number)) = over else { return false };
        self.waiting.remove(&(until, number));
        if let Some(place) = self.all.remove(&number) {
            place.ended.cancel();
        }
        true
    }

    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// How many of them wait for their peers.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn begin(places: &mut Places) -> (u64, CancellationToken) {
        let ended = CancellationToken::new();
        (places.take(ended.clone()), ended)
    }

    #[test]
    fn a_peer_that_drips_bytes_uses_up_its_time_like_one_that_is_silent() {
        let (mut places, start) = (Places::default(), Instant::now());
        let (dripping, dripping_ended) = begin(&mut places);
        let (silent, silent_ended) = begin(&mut places);
        let mut now = start;
        places.waits(silent, now);
        // A byte each second that needs no answer.
        for _ in 0..2 {
            places.waits(dripping, now);
            now += 1000 * MS;
            places.goes_on(dripping, now);
        }
        assert!(places.end_one(now) && silent_ended.is_cancelled());
        assert!(!places.end_one(now), "no other handshake waits at this moment");
        places.waits(dripping, now);
        assert!(places.end_one(now) && dripping_ended.is_cancelled());
        assert_eq!((places.len(), places.waiting.len()), (0, 0));
    }

    #[test]
    fn time_in_which_the_relay_is_busy_counts_for_nobody() {
        let (mut places, start) = (Places::default(), Instant::now());
        let (number, ended) = begin(&mut places);
        let mut now = start;
        // Three round trips of a client that answers within 100 ms, with a relay that takes 3 s for each of its own
        // steps.
        for _ in 0..3 {
            now += 3000 * MS;
            assert!(!places.end_one(now));
            places.waits(number, now);
            now += 100 * MS;
            assert!(!places.end_one(now), "{:?} after its beginning", now - start);
            places.goes_on(number, now);
        }
        places.waits(number, now);
        assert_eq!(places.next(), Some(now + PATIENCE - 300 * MS));
        assert!(!places.end_one(now + PATIENCE - 301 * MS));
        assert!(places.end_one(now + PATIENCE - 300 * MS) && ended.is_cancelled());
    }

    #[test]
    fn the_one_whose_patience_ended_first_goes_first() {
        let (mut places, now) = (Places::default(), Instant::now());
        let all: Vec<_> = (0..4).map(|_| begin(&mut places)).collect();
        for (after, (number, _)) in [3, 1, 4, 2].into_iter().zip(&all) {
            places.waits(*number, now + after * MS);
        }
        // A handshake that has ended holds no place.
        places.leave(all[1].0);
        let later = now + PATIENCE + 3 * MS;
        assert!(places.end_one(later) && all[3].1.is_cancelled());
        assert!(places.end_one(later) && all[0].1.is_cancelled());
        assert!(!places.end_one(later) && !all[2].1.is_cancelled());
    }
}
