//! [`Streams`]: the open streams of a connection, and the order in which they run.
//!
//! Always holds: a stream is listed under its number and under its place here, or under neither. It is queued at most
//! once, however often it is woken. It waits for the connection's window at most once, and waiting streams continue in
//! order, as far as the window goes. So no stream takes the whole window, and a little room does not cost a look at all
//! streams. All streams are dropped in steps, because one turn may be too short.

use std::collections::VecDeque;

use hashbrown::HashMap;
use http::Response;
use slab::Slab;
use tokio::time::Instant;

use super::{Failure, limits::Limits, stream::Stream, turn::Turn};

/// Number of streams for which an idle connection keeps memory, so that successive calls do not allocate.
const KEPT: usize = 8;

/// The streams of a connection; see the module.
pub(super) struct Streams<F, B: http_body::Body> {
    pub(super) all: Slab<Stream<F, B>>,
    pub(super) places: HashMap<u32, usize>,
    runnable: VecDeque<usize>,
    /// The numbers of streams that wait for the connection's window, in order of arrival. Some may be closed.
    waiting: VecDeque<u32>,
    /// Number of streams whose handler has not been called yet.
    pub(super) fresh: usize,
    /// Memory of unanswered requests, in bytes.
    pub(super) held: usize,
    /// The numbers of streams whose body has begun, with the time at which to check whether more has arrived. Some may
    /// be closed or complete.
    bodies: VecDeque<(u32, Instant)>,
    /// The streams that are being dropped.
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

    /// Makes room for one more stream. Most connections have only one, so the first allocates no room for others.
    pub(super) fn make_room(&mut self) {
        if self.all.capacity() == 0 {
            self.all.reserve_exact(1);
        }
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<(usize, &mut Stream<F, B>)> {
        let place = *self.places.get(&id)?;
        Some((place, &mut self.all[place]))
    }

    /// Queues the stream at `place`, if it exists.
    pub(super) fn queue(&mut self, place: usize) {
        if let Some(stream) = self.all.get_mut(place)
            && !std::mem::replace(&mut stream.queued, true)
        {
            self.runnable.push_back(place);
        }
    }

    /// The next stream to run. If the connection's window has room, streams that have waited for it come first.
    pub(super) fn next(&mut self, room: bool) -> Option<usize> {
        while room && let Some(id) = self.waiting.pop_front() {
            if let Some((place, stream)) = self.get_mut(id) {
                stream.waits_for_connection = false;
                return Some(place);
            }
        }
        loop {
            let place = self.runnable.pop_front()?;
            // The queued stream may be gone, and another one may be in its place.
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

    /// Makes the stream at `place` wait until the connection's window is wider.
    pub(super) fn wait(&mut self, place: usize) {
        if let Some(stream) = self.all.get_mut(place)
            && !std::mem::replace(&mut stream.waits_for_connection, true)
        {
            self.waiting.push_back(stream.id);
            if self.waiting.len() > 2 * self.all.len() {
                // Otherwise a peer that never widens the window could leave any number of closed streams here.
                self.waiting.retain(|id| self.places.contains_key(id));
            }
        }
    }

    /// Adds data of the body of stream `id` to its memory.
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

    /// The next stream whose body has stalled for too long.
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

    /// Changes the peer's window of each stream. Returns false if one would exceed the protocol's limit.
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
                // The burst is over, so its memory is returned.
                *self = Self::new();
            }
        }
        stream
    }

    /// Whether no stream is left, not even one that is being dropped.
    pub(super) fn are_gone(&self) -> bool {
        self.all.is_empty() && self.leaving.is_none()
    }

    /// Drops streams for the rest of `turn`. Returns true once all are gone. Until then, no stream may be opened or
    /// run.
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
        super::{request::RequestHead, wake::WakeList},
        *,
    };

    type Never = std::future::Pending<Result<Response<Full<Bytes>>, Failure>>;

    #[test]
    fn those_that_wait_for_the_connection_go_on_in_order_and_leave_nothing_behind() {
        let wakes = WakeList::new(1000);
        let mut streams = Streams::<Never, Full<Bytes>>::new();
        let open = |streams: &mut Streams<_, _>, id| {
            let entry = streams.all.vacant_entry();
            let place = entry.key();
            let head = RequestHead { request: Request::new(()), length: None, cost: 0 };
            let stream = Stream::new(id, &wakes, place, head, (1000, 1000));
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
