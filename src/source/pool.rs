//! [`Pool`]: the connections to one member for one kind of call, as many as are needed.
//!
//! Not here: which member to use, and what is sent. A member accepts a limited number of calls at once on a connection
//! (its HTTP/2 setting MAX_CONCURRENT_STREAMS; etcd's flag `--max-concurrent-streams`). When they are used up another
//! connection is made, up to [`MAX_LINKS`]; after that, calls wait for a [`Place`], in fair turns by client (`turns`).
//! Always holds: no connection has more calls than its member accepts; there is at most one connection attempt at a
//! time; all callers that wait for an attempt get its error if it fails, so that a hundred waiting calls wait one
//! connect timeout and not a hundred.

mod answer;
mod channel;
mod link;
mod request;
mod turns;
mod unary;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, uri::PathAndQuery};
use hyper::client::conn::http2::SendRequest;
use metrics::{counter, gauge};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use thiserror::Error;
use tonic::body::Body;

pub(super) use self::{
    answer::Answer,
    link::{Kind, LinkError, Settings, WIDE},
    unary::framed,
};
use self::{
    answer::Incoming,
    link::{Opened, Sender},
    request::RequestBody,
    turns::Turns,
};
use super::{Endpoint, causes};
use crate::{http2::client, telemetry::names, types::ClientKey};

/// The most connections of a pool. With etcd's `--max-concurrent-streams` at a hundred, they carry as many calls as a
/// relay has in a bad moment; without that limit, one connection carries all calls. Each costs etcd up to three
/// goroutines and some ten KiB.
pub(super) const MAX_LINKS: usize = 16;
/// A connection with more calls than this gets another beside it, even if the member accepts more: one task drives a
/// connection, and so does one goroutine at the member.
const COMFORTABLE: usize = 1_000;
/// The pause before a further connection is tried again while others work.
const RETRY: Duration = Duration::from_secs(1);

/// Pings that check whether the other side is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Time between pings.
    pub interval: Duration,
    /// A connection without an answer for this long is closed.
    pub timeout: Duration,
    /// Whether to ping while no call is running.
    pub while_idle: bool,
}

/// The connections to one member; see the module. Cheap to clone; clones share connections.
#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<PoolInner>,
}

struct PoolInner {
    endpoint: Endpoint,
    settings: Settings,
    lane: names::Lane,
    kind: Kind,
    /// A plain mutex: nothing waits and no task is woken under it.
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    links: Vec<Link>,
    links_made: u64,
    /// An attempt to connect is running, or the pause before the next one.
    growing: bool,
    /// The last attempt failed.
    failing: bool,
    turns: Turns<Waiter>,
}

type Waiter = oneshot::Sender<Result<Place, LinkError>>;

struct Link {
    id: u64,
    sender: Sender,
    /// The number of calls with a place here.
    busy: usize,
}

/// A call's place on a connection. It is free again when this is dropped.
#[must_use]
pub(super) struct Place {
    pool: Arc<PoolInner>,
    link: u64,
    client: ClientKey,
    sender: Sender,
    held: bool,
}

/// The head of a call. The rest of its URI is the member's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a PathAndQuery,
    pub(super) headers: &'a HeaderMap,
}

/// Why a call was not answered.
pub(super) enum SendError {
    /// The connection had closed before, so nothing was sent. The request's body is returned.
    Unsent(Body, LinkError),
    /// The connection broke, or the member reset the call. It may have acted on it.
    Broken(CallError),
}

/// Why the answer to a call broke off.
#[derive(Debug, Error)]
pub(super) enum CallError {
    /// On a connection for streams.
    #[error(transparent)]
    Streams(#[from] hyper::Error),
    /// On a connection for short calls.
    #[error(transparent)]
    Calls(#[from] client::Lost),
}

impl CallError {
    /// Whether the client's request broke off, which says nothing about the member.
    pub(super) fn is_by_request(&self) -> bool {
        match self {
            Self::Calls(lost) => *lost == client::Lost::Request,
            // hyper's client resets the call then.
            Self::Streams(error) => {
                let reset = causes::http2(error).is_some_and(|error| error.is_reset() && !error.is_remote());
                error.is_user() || reset
            }
        }
    }
}

impl Pool {
    /// A pool that connects when it is first used.
    pub(super) fn new(endpoint: Endpoint, settings: Settings, lane: names::Lane, kind: Kind) -> Self {
        Self { shared: Arc::new(PoolInner { endpoint, settings, lane, kind, state: Mutex::default() }) }
    }

    /// The member.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    /// A place for a call of `client`, as soon as there is one. It waits without a limit while the member is busy.
    /// Cancel safe.
    ///
    /// # Errors
    /// If there is no connection and none can be made.
    pub(super) async fn place(&self, client: ClientKey) -> Result<Place, LinkError> {
        let shared = &self.shared;
        let (waiter, answer) = oneshot::channel();
        let (ticket, granted) = {
            let mut state = shared.state.lock();
            if let Some(place) = shared.at_once(&mut state, client) {
                return Ok(place);
            }
            (state.turns.wait(client, waiter), shared.serve(&mut state))
        };
        let _waiting = Waiting::start(shared, client, ticket);
        shared.settle(granted);
        match answer.await {
            Ok(result) => result,
            // A dropped waiter was answered before, unless the runtime is ending.
            Err(_) => Err(LinkError::Http2 { endpoint: shared.endpoint.clone(), cause: "the relay stops".into() }),
        }
    }

    /// A place for a call of `client` if there is one now and no other call waits.
    pub(super) fn place_at_once(&self, client: ClientKey) -> Option<Place> {
        self.shared.at_once(&mut self.shared.state.lock(), client)
    }

    /// Whether a connection is open, however many calls it has.
    pub(super) fn is_connected(&self) -> bool {
        self.shared.state.lock().links.iter().any(|link| !link.sender.is_closed())
    }

    /// The error for a member that is not waited for any longer.
    pub(super) fn silent(&self) -> LinkError {
        LinkError::Http2 {
            endpoint: self.endpoint().clone(),
            cause: "it does not answer, and another member does".into(),
        }
    }

    /// Open connections, each as the number of its calls; for tests.
    #[cfg(test)]
    pub(super) fn busy(&self) -> Vec<usize> {
        let open = |link: &&Link| !link.sender.is_closed();
        self.shared.state.lock().links.iter().filter(open).map(|link| link.busy).collect()
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("endpoint", &self.shared.endpoint).finish_non_exhaustive()
    }
}

impl Place {
    /// Sends a call and waits for the head of its answer, which keeps the place. Cancel safe: a call that is dropped is
    /// reset.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(super) async fn send(self, head: Head<'_>, body: Body) -> Result<Response<Answer>, SendError> {
        match &self.sender {
            Sender::Calls(client) => {
                let endpoint = &self.pool.endpoint;
                let head = client::CallHead {
                    secure: endpoint.is_secure(),
                    authority: endpoint.authority().as_str(),
                    path: head.path.as_str(),
                    headers: head.headers,
                };
                match client.call(head, body).await {
                    Ok(Ok(response)) => Ok(response.map(|call| Answer::new(Incoming::Call(call), self))),
                    Ok(Err(lost)) => Err(SendError::Broken(lost.into())),
                    Err(unsent) => {
                        if client.is_closed() {
                            self.pool.lost(self.link);
                        }
                        let client::Unsent { upload, lost } = *unsent;
                        Err(SendError::Unsent(Body::new(upload), link::broken(&self.pool.endpoint, &lost)))
                    }
                }
            }
            // Boxed, because otherwise short calls would be as large.
            Sender::Streams(sender, _) => {
                let sender = sender.clone();
                Box::pin(self.send_stream(sender, head, body)).await
            }
        }
    }

    /// The same on a connection for streams.
    async fn send_stream(
        self,
        mut sender: SendRequest<RequestBody>,
        head: Head<'_>,
        body: Body,
    ) -> Result<Response<Answer>, SendError> {
        let (body, guard) = RequestBody::new(body);
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = head.headers.clone();
        *request.uri_mut() = channel::uri(&self.pool.endpoint, head.path.clone());
        match sender.try_send_request(request).await {
            Ok(response) => Ok(response.map(|body| Answer::new(Incoming::Stream { body, _guard: guard }, self))),
            Err(mut error) => Err(match error.take_message() {
                Some(unsent) => {
                    self.pool.lost(self.link);
                    let error = link::broken(&self.pool.endpoint, error.error());
                    SendError::Unsent(unsent.into_body().into_inner(), error)
                }
                None => SendError::Broken(error.into_error().into()),
            }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::mem::take(&mut self.held) {
            let granted = self.pool.release(self.link, self.client);
            self.pool.settle(granted);
        }
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("link", &self.link).finish_non_exhaustive()
    }
}

impl PoolInner {
    /// A place without waiting, if no call waits.
    fn at_once(self: &Arc<Self>, state: &mut PoolState, client: ClientKey) -> Option<Place> {
        state.drop_closed();
        if !state.turns.is_empty() || !state.turns.may_take(client, state.free()) {
            return None;
        }
        let index = state.roomy()?;
        state.turns.take(client);
        let place = self.give(state, index, client);
        self.grow_if_wanted(state);
        Some(place)
    }

    /// Gives free places to waiting calls, and starts another connection if there are too few.
    fn serve(self: &Arc<Self>, state: &mut PoolState) -> Vec<(Waiter, Place)> {
        state.drop_closed();
        let mut granted = Vec::new();
        while let Some(index) = state.roomy() {
            let free = state.free();
            let Some((client, waiter)) = state.turns.next(free) else { break };
            granted.push((waiter, self.give(state, index, client)));
        }
        self.grow_if_wanted(state);
        granted
    }

    /// Hands places over. Not to be called under the lock, since it wakes tasks.
    fn settle(self: &Arc<Self>, mut granted: Vec<(Waiter, Place)>) {
        while let Some((waiter, place)) = granted.pop() {
            // The caller has just gone away, and the next one gets its place. This is a loop, since there may be many
            // of them.
            if let Err(Ok(mut place)) = waiter.send(Ok(place)) {
                place.held = false;
                granted.extend(self.release(place.link, place.client));
            }
        }
    }

    fn give(self: &Arc<Self>, state: &mut PoolState, index: usize, client: ClientKey) -> Place {
        let link = &mut state.links[index];
        link.busy += 1;
        Place { pool: self.clone(), link: link.id, client, sender: link.sender.clone(), held: true }
    }

    #[must_use]
    fn release(self: &Arc<Self>, link: u64, client: ClientKey) -> Vec<(Waiter, Place)> {
        let mut state = self.state.lock();
        state.turns.release(client);
        if let Some(link) = state.links.iter_mut().find(|known| known.id == link) {
            link.busy -= 1;
        }
        let granted = self.serve(&mut state);
        // One idle connection stays for the next call.
        let mut idle = 0;
        state.links.retain(|link| {
            idle += usize::from(link.busy == 0);
            link.busy > 0 || idle == 1
        });
        granted
    }

    /// A connection cannot take new calls any more. Running calls go on.
    fn lost(self: &Arc<Self>, link: u64) {
        let granted = {
            let mut state = self.state.lock();
            state.links.retain(|known| known.id != link);
            self.serve(&mut state)
        };
        self.settle(granted);
    }

    fn grow_if_wanted(self: &Arc<Self>, state: &mut PoolState) {
        if state.wants_link() {
            state.growing = true;
            tokio::spawn(grow(self.clone()));
        }
    }

    async fn connect(&self) -> Result<Opened, LinkError> {
        let result = link::open(&self.endpoint, &self.settings, self.lane, self.kind).await;
        let outcome = if result.is_ok() { names::Connect::Ok } else { names::Connect::Error };
        counter!(names::UPSTREAM_CONNECTS, names::Connect::LABEL => outcome.as_str()).increment(1);
        match &result {
            Ok(opened) => {
                tracing::debug!(endpoint = %self.endpoint, lane = self.lane.as_str(), calls = opened.sender.most(), "Connected upstream");
            }
            Err(error) => tracing::debug!(%error, "Cannot connect upstream"),
        }
        result
    }
}

/// Makes a connection. It does not give up while calls wait and other connections work.
async fn grow(shared: Arc<PoolInner>) {
    loop {
        let attempt = shared.connect().await;
        let (granted, refused, error) = {
            let mut state = shared.state.lock();
            match attempt {
                Ok(Opened { sender, end }) => {
                    state.links_made += 1;
                    let id = state.links_made;
                    state.links.push(Link { id, sender, busy: 0 });
                    (state.growing, state.failing) = (false, false);
                    tokio::spawn(forget_at(end, id, Arc::downgrade(&shared)));
                    (shared.serve(&mut state), Vec::new(), None)
                }
                Err(error) => {
                    state.failing = true;
                    state.drop_closed();
                    let refused = if state.links.is_empty() { state.turns.drain() } else { Vec::new() };
                    state.growing = !state.turns.is_empty();
                    (Vec::new(), refused, Some((error, state.growing)))
                }
            }
        };
        shared.settle(granted);
        let Some((error, again)) = error else { return };
        for waiter in refused {
            // A caller that went away needs no answer.
            let _ = waiter.send(Err(error.clone()));
        }
        if !again {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Removes a connection from its pool when it has ended.
async fn forget_at(end: oneshot::Receiver<()>, link: u64, pool: Weak<PoolInner>) {
    // It ends by being dropped.
    let _ = end.await;
    if let Some(pool) = pool.upgrade() {
        pool.lost(link);
    }
}

impl PoolState {
    fn drop_closed(&mut self) {
        self.links.retain(|link| !link.sender.is_closed());
    }

    /// The connection for the next call: the first one that is not too busy, so that the later ones can end; otherwise
    /// the least busy.
    fn roomy(&self) -> Option<usize> {
        let comfortable = self.links.iter().position(|link| link.busy < link.comfortable());
        comfortable.or_else(|| {
            let roomy = self.links.iter().enumerate().filter(|(_, link)| link.room() > 0);
            roomy.min_by_key(|(_, link)| link.busy).map(|(index, _)| index)
        })
    }

    /// How many places are free, including those on connections that could still be made.
    fn free(&self) -> usize {
        let open = self.links.iter().fold(0, |sum: usize, link| sum.saturating_add(link.room()));
        match self.links.last() {
            Some(link) if !self.failing => {
                open.saturating_add(link.sender.most().saturating_mul(MAX_LINKS.saturating_sub(self.links.len())))
            }
            _ => open,
        }
    }

    fn wants_link(&self) -> bool {
        let full = || self.links.iter().all(|link| link.busy >= link.comfortable());
        let waiting = !self.turns.is_empty();
        let wanted = if self.links.is_empty() { waiting } else { full() && (waiting || !self.failing) };
        !self.growing && self.links.len() < MAX_LINKS && wanted
    }
}

impl Link {
    fn room(&self) -> usize {
        self.sender.most().saturating_sub(self.busy)
    }

    fn comfortable(&self) -> usize {
        self.sender.most().min(COMFORTABLE)
    }
}

/// A waiting call. It stops waiting when this is dropped.
struct Waiting<'a> {
    pool: &'a PoolInner,
    client: ClientKey,
    ticket: u64,
}

impl<'a> Waiting<'a> {
    fn start(pool: &'a PoolInner, client: ClientKey, ticket: u64) -> Self {
        gauge!(names::UPSTREAM_WAITING, names::Lane::LABEL => pool.lane.as_str()).increment(1.0);
        Self { pool, client, ticket }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        gauge!(names::UPSTREAM_WAITING, names::Lane::LABEL => self.pool.lane.as_str()).decrement(1.0);
        self.pool.state.lock().turns.cancel(self.client, self.ticket);
    }
}
