//! [`Streams`]: the open streams of a connection, and whose turn it is.
//!
//! Always holds: a stream has a number for the peer and a place here, and is listed under both or neither; it is queued once at a time,
//! whatever calls it.

use std::collections::VecDeque;

use hashbrown::HashMap;
use http::Response;
use slab::Slab;

use super::stream::Stream;
use crate::front::body::BoxError;

/// See the module.
pub(super) struct Streams<F, B: http_body::Body> {
    pub(super) all: Slab<Stream<F, B>>,
    pub(super) places: HashMap<u32, usize>,
    runnable: VecDeque<usize>,
    /// Those that wait for the connection's window, first come first served.
    waiting: VecDeque<usize>,
}

impl<F, B> Streams<F, B>
where
    F: Future<Output = Result<Response<B>, BoxError>>,
    B: http_body::Body<Error: Into<BoxError>> + Unpin,
{
    pub(super) fn new() -> Self {
        Self { all: Slab::new(), places: HashMap::new(), runnable: VecDeque::new(), waiting: VecDeque::new() }
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<(usize, &mut Stream<F, B>)> {
        let place = *self.places.get(&id)?;
        Some((place, &mut self.all[place]))
    }

    /// Gives the stream at `place` a turn, if there is one.
    pub(super) fn queue(&mut self, place: usize) {
        if let Some(stream) = self.all.get_mut(place)
            && !std::mem::replace(&mut stream.queued, true)
        {
            self.runnable.push_back(place);
        }
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<usize> {
        loop {
            let place = self.runnable.pop_front()?;
            // One that was queued may be gone, and another be in its place.
            if let Some(stream) = self.all.get_mut(place)
                && std::mem::replace(&mut stream.queued, false)
            {
                return Some(place);
            }
        }
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.runnable.is_empty()
    }

    /// The stream at `place` goes on when the connection's window is wider.
    pub(super) fn wait(&mut self, place: usize) {
        if let Some(stream) = self.all.get_mut(place)
            && !std::mem::replace(&mut stream.waits_for_connection, true)
        {
            self.waiting.push_back(place);
        }
    }

    /// The connection's window is wider.
    pub(super) fn queue_waiting(&mut self) {
        while let Some(place) = self.waiting.pop_front() {
            if let Some(stream) = self.all.get_mut(place)
                && std::mem::replace(&mut stream.waits_for_connection, false)
            {
                self.queue(place);
            }
        }
    }

    /// Changes how much the peer takes on each stream. False where that is more than may be.
    pub(super) fn widen_all(&mut self, more: i64) -> bool {
        let places: Vec<usize> = self.all.iter().map(|(place, _)| place).collect();
        places.into_iter().all(|place| {
            self.queue(place);
            self.all.get_mut(place).is_none_or(|stream| stream.widen(more))
        })
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Stream<F, B>> {
        let place = self.places.remove(&id)?;
        let stream = self.all.try_remove(place);
        if self.all.is_empty() {
            // A burst is over: its memory goes back.
            *self = Self::new();
        }
        stream
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}
