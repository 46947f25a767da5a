//! [`Gaps`]: the longest times without a success, by operation and place.
//!
//! What counts as a success is decided by the callers. Always holds: an open gap counts up to the present.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// An operation that is tried all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A put directly to etcd's members, as their own clients make it, for comparison.
    Direct,
    /// A put through a relay.
    Put,
    /// A read that the relay answers from memory.
    Read,
    /// A read that the relay forwards.
    Forward,
    /// A watch that is created.
    Watch,
    /// An existing watch receives something.
    Event,
}

/// A client that keeps trying: its last success (`None` while it pauses), and its longest gap in the current window.
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
    /// Adds a client that tries at the relay with this number. It begins with its first success.
    pub fn beat(&self, what: What, place: usize) -> Arc<Beat> {
        let beat = Arc::new(Beat { what, place, state: Mutex::default() });
        self.beats.lock().push(Arc::clone(&beat));
        beat
    }

    /// Starts a window.
    pub fn open(&self) {
        for beat in self.beats.lock().iter() {
            let mut state = beat.state.lock();
            *state = (state.0.map(|_| Instant::now()), Duration::ZERO);
        }
    }

    /// The longest gap of the window at these relays.
    pub fn longest(&self, what: What, places: &[usize]) -> Duration {
        let beats = self.beats.lock();
        let counted = beats.iter().filter(|beat| beat.what == what && places.contains(&beat.place));
        counted.map(|beat| beat.longest()).max().unwrap_or_default()
    }
}

impl Beat {
    /// Records a success.
    pub fn now(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        let gap = state.0.map_or(Duration::ZERO, |last| now - last);
        *state = (Some(now), state.1.max(gap));
    }

    /// Pauses until the next success. The gap so far counts.
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
