//! [`Gaps`]: for how long nothing succeeded, by what was tried and where.
//!
//! Not here: what counts as a success. Always holds: a gap that has not ended counts as far as it goes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// What is tried all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A put straight to etcd's members, as a client of theirs does: what is to be had at the time.
    Direct,
    /// A put through a relay.
    Put,
    /// A read that the relay answers from memory.
    Read,
    /// A read that the relay forwards.
    Forward,
    /// A watch that is created.
    Watch,
    /// A watch that is there hears something.
    Event,
}

/// One of those who try: when it succeeded last, or none while it does not try, and the longest gap of the present window.
#[derive(Debug)]
pub struct Beat {
    what: What,
    place: usize,
    state: Mutex<(Option<Instant>, Duration)>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Gaps {
    beats: Mutex<Vec<Arc<Beat>>>,
}

impl Gaps {
    /// One more who tries, at the relay of this number. It begins with its first success.
    pub fn beat(&self, what: What, place: usize) -> Arc<Beat> {
        let beat = Arc::new(Beat { what, place, state: Mutex::default() });
        self.beats.lock().push(Arc::clone(&beat));
        beat
    }

    /// A window begins.
    pub fn open(&self) {
        for beat in self.beats.lock().iter() {
            let mut state = beat.state.lock();
            *state = (state.0.map(|_| Instant::now()), Duration::ZERO);
        }
    }

    /// The longest gap of the window, at these relays.
    pub fn longest(&self, what: What, places: &[usize]) -> Duration {
        let beats = self.beats.lock();
        let counted = beats.iter().filter(|beat| beat.what == what && places.contains(&beat.place));
        counted.map(|beat| beat.longest()).max().unwrap_or_default()
    }
}

impl Beat {
    /// It succeeded.
    pub fn now(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        let gap = state.0.map_or(Duration::ZERO, |last| now - last);
        *state = (Some(now), state.1.max(gap));
    }

    /// It does not try until it succeeds again; what it waited for in vain until here counts.
    pub fn rest(&self) {
        let mut state = self.state.lock();
        let gap = state.0.take().map_or(Duration::ZERO, |last| last.elapsed());
        state.1 = state.1.max(gap);
    }

    fn longest(&self) -> Duration {
        let (last, longest) = *self.state.lock();
        longest.max(last.map_or(Duration::ZERO, |last| last.elapsed()))
    }
}
