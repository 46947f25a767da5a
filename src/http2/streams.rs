//! [`Streams`]: the open streams of a connection, and whose turn it is.
//!
//! Always holds: a stream has a number for the peer and a place here, and is listed under both or neither; it is queued once at a time,
//! whatever calls it; it waits for the connection's window once at a time, and those that wait go on in their order, as far as the window
//! goes: so none takes all of it, and room for one costs no look at the others; all of them are dropped in steps, for one turn may be too
//! short for it.

use std::collections::VecDeque;

use hashbrown::HashMap;
use http::Response;
use slab::Slab;
use tokio::time::Instant;

use super::{Failure, limits::Limits, stream::Stream, turn::Turn};

/// Streams for which a connection without any keeps room, so that one call after the other makes none anew.
const KEPT: usize = 8;

/// See the module.
pub(super) struct Streams<F, B: http_body::Body> {
    pub(super) all: Slab<Stream<F, B>>,
    pub(super) places: HashMap<u32, usize>,
    runnable: VecDeque<usize>,
    /// The numbers of those that wait for the connection's window, first come first served. Some may be gone.
    waiting: VecDeque<u32>,
    /// How many were opened whose handler was not called yet.
    pub(super) fresh: usize,
    /// Bytes that requests take which were not answered yet.
    pub(super) held: usize,
    /// The numbers of those whose body has begun, with the time to look whether more of it came. Some may be gone, or whole.
    bodies: VecDeque<(u32, Instant)>,
    /// Those that are dropped, as far as they are not yet.
    leaving: Option<slab::IntoIter<Stream<F, B>>>,
}

impl<F, B> Streams<F, B>
where
    F: Future<Output = Result<Response<B>, Failure>>,
    B: http_body::Body<Error: Into<Failure>> + Unpin,
{
    pub(super) fn new() -> Self {
        Self {
            all: Slab::new(),
            places: HashMap::new(),
            runnable: VecDeque::new(),
            waiting: VecDeque::new(),
            fresh: 0,
            held: 0,
            bodies: VecDeque::new(),
            leaving: None,
        }
    }

    /// Makes room for one more. Most connections have one stream, so the first gets no room for others beside it.
    pub(super) fn make_room(&mut self) {
        if self.all.capacity() == 0 {
            self.all.reserve_exact(1);
        }
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

    /// Whose turn it is, where the connection's window has `room` or none: those that have waited for it come first.
    pub(super) fn next(&mut self, room: bool) -> Option<usize> {
        while room && let Some(id) = self.waiting.pop_front() {
            if let Some((place, stream)) = self.get_mut(id) {
                stream.waits_for_connection = false;
                return Some(place);
            }
        }
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

    pub(super) fn is_at_rest(&self, room: bool) -> bool {
        self.runnable.is_empty() && (!room || self.waiting.is_empty())
    }

    /// The stream at `place` goes on when the connection's window is wider.
    pub(super) fn wait(&mut self, place: usize) {
        if let Some(stream) = self.all.get_mut(place)
            && !std::mem::replace(&mut stream.waits_for_connection, true)
        {
            self.waiting.push_back(stream.id);
            if self.waiting.len() > 2 * self.all.len() {
                // A peer that gives no room could else leave as many behind as it likes.
                self.waiting.retain(|id| self.places.contains_key(id));
            }
        }
    }

    /// So many bytes of a body came for stream `id`.
    pub(super) fn hold(&mut self, id: u32, more: usize) {
        let Some((_, stream)) = self.get_mut(id) else { return };
        let before = stream.held();
        let is_first = stream.hold(more);
        self.held += stream.held() - before;
        if is_first {
            self.bodies.push_back((id, Instant::now() + Limits::UNFINISHED));
            if self.bodies.len() > 2 * self.all.len() + KEPT {
                self.bodies.retain(|(id, _)| self.places.contains_key(id));
            }
        }
    }

    /// The next stream of whose body nothing came for too long.
    pub(super) fn stalled(&mut self, now: Instant) -> Option<u32> {
        while let Some(&(id, at)) = self.bodies.front()
            && at <= now
        {
            self.bodies.pop_front();
            let since = self.get_mut(id).and_then(|(_, stream)| stream.waits_since());
            match since.map(|since| since + Limits::UNFINISHED) {
                Some(over) if over <= now => return Some(id),
                Some(over) => self.bodies.push_back((id, over.max(at))),
                None => {}
            }
        }
        None
    }

    /// Changes how much the peer takes on each stream. False where that is more than may be.
    pub(super) fn widen_all(&mut self, more: i64) -> bool {
        let Self { all, runnable, .. } = self;
        all.iter_mut().all(|(place, stream)| {
            let had_room = stream.has_room();
            let fits = stream.widen(more, 0);
            if !had_room && stream.has_room() && !std::mem::replace(&mut stream.queued, true) {
                runnable.push_back(place);
            }
            fits
        })
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Stream<F, B>> {
        let place = self.places.remove(&id)?;
        let stream = self.all.try_remove(place);
        self.held -= stream.as_ref().map_or(0, Stream::held);
        self.fresh -= usize::from(stream.as_ref().is_some_and(Stream::is_new));
        if self.all.is_empty() {
            self.runnable.clear();
            self.waiting.clear();
            self.bodies.clear();
            if self.all.capacity() > KEPT {
                // A burst is over: its memory goes back.
                *self = Self::new();
            }
        }
        stream
    }

    /// Whether there are none, and none is left to be dropped.
    pub(super) fn are_gone(&self) -> bool {
        self.all.is_empty() && self.leaving.is_none()
    }

    /// Drops streams as far as `turn` goes. True once all are gone; nothing may be opened or run meanwhile.
    pub(super) fn clear(&mut self, turn: &mut Turn) -> bool {
        if !self.all.is_empty() {
            let Self { all, .. } = std::mem::replace(self, Self::new());
            self.leaving = Some(all.into_iter());
        }
        let Some(leaving) = &mut self.leaving else { return true };
        while turn.step() {
            if leaving.next().is_none() {
                self.leaving = None;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;
    use http_body_util::Full;

    use super::{
        super::{request::Asked, wake::Calls},
        *,
    };

    type Never = std::future::Pending<Result<Response<Full<Bytes>>, Failure>>;

    #[test]
    fn those_that_wait_for_the_connection_go_on_in_order_and_leave_nothing_behind() {
        let calls = Calls::new(1000);
        let mut streams = Streams::<Never, Full<Bytes>>::new();
        let open = |streams: &mut Streams<_, _>, id| {
            let entry = streams.all.vacant_entry();
            let place = entry.key();
            let asked = Asked { request: Request::new(()), length: None, cost: 0 };
            let stream = Stream::new(id, &calls, place, asked, (1000, 1000));
            streams.held += stream.held();
            streams.fresh += 1;
            entry.insert(stream);
            streams.places.insert(id, place);
            streams.wait(place);
            place
        };
        let first = open(&mut streams, 1);
        for id in (3..10_000).step_by(2) {
            open(&mut streams, id);
            streams.remove(id);
        }
        assert!(streams.waiting.len() < 10, "{}", streams.waiting.len());
        let last = open(&mut streams, 10_001);
        assert!(streams.is_at_rest(false) && !streams.is_at_rest(true));
        assert_eq!(streams.next(false), None);
        assert_eq!([streams.next(true), streams.next(true), streams.next(true)], [Some(first), Some(last), None]);
        assert!(streams.is_at_rest(true));
        streams.wait(first);
        assert_eq!(streams.next(true), Some(first));
        for id in 11..21 {
            open(&mut streams, id);
        }
        assert!(streams.all.capacity() > KEPT);
        let all: Vec<u32> = streams.places.keys().copied().collect();
        all.into_iter().for_each(|id| drop(streams.remove(id)));
        assert!(streams.is_at_rest(true) && streams.all.capacity() == 0, "a burst leaves nothing behind");
        open(&mut streams, 23);
        streams.remove(23);
        assert!(streams.is_at_rest(true) && streams.all.capacity() > 0, "there is room for the next call");
    }
}
