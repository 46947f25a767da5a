//! [`Lane`]: one `LeaseKeepAlive` stream at etcd, for the clients that share it.
//!
//! Not here: which clients share a stream, see `keepalive`. Runs in a task of its own as long as it has clients.
//! Always holds: etcd is working on the oldest unanswered request; a request gets one answer, or an error; when a
//! stream ends, requests that etcd has not looked at are sent again, and so are all when there is a new leader, since a
//! follower may have passed them on to the one that is gone; etcd has at most [`WINDOW`] requests at a time,
//! and [`PATIENCE`] for the oldest.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, metadata::MetadataMap};

use super::{Fields, line::Line};
use crate::{
    pb::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, lease_client::LeaseClient},
    source::forward::{Forward, OnBehalfOf, status},
    types::ClientKey,
};

/// The most requests that etcd has at a time: enough that it never waits for one, and so few that turns matter.
const WINDOW: usize = 64;
/// How long etcd may take for one request. It gives up by itself after some seconds; a frozen member does not.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between streams that end without an answer: the first, and the longest.
const DELAY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// etcd's text when a stream requires a leader and there is none.
const NO_LEADER: &str = "etcdserver: no leader";

/// One stream at etcd; see the module.
#[derive(Debug)]
pub(super) struct Lane {
    fields: Fields,
    /// The client whose places on connections it takes; `None` if it takes the relay's own.
    owner: Option<ClientKey>,
    state: Mutex<State>,
    /// Notified when a request has come or a client has left.
    news: Notify,
    /// The reason why all calls here end.
    lost: watch::Sender<Option<Status>>,
}

#[derive(Debug, Default)]
struct State {
    line: Line<Pending>,
    members: usize,
}

/// A request, and the caller that waits for its answer.
#[derive(Debug)]
struct Pending {
    client: ClientKey,
    request: LeaseKeepAliveRequest,
    answer: oneshot::Sender<Result<LeaseKeepAliveResponse, Status>>,
}

/// A client's place on a stream.
#[derive(Debug)]
pub(super) struct Member {
    lane: Arc<Lane>,
    client: ClientKey,
    lost: watch::Receiver<Option<Status>>,
}

/// An open stream at etcd.
struct Open {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    /// Unanswered requests, oldest first.
    unanswered: VecDeque<Pending>,
    /// When the oldest request became the oldest.
    since: Instant,
    /// Whether it gave an answer.
    works: bool,
}

/// How a stream has ended.
struct Ended {
    over: Over,
    /// Whether it gave an answer.
    works: bool,
    /// Whether somebody was waiting for an answer at the end, and got the error.
    was_awaited: bool,
}

/// Why a stream ended.
enum Over {
    /// Nobody needs it.
    Idle,
    /// There is a new leader, and requests wait that were sent before.
    LedAnew,
    Failed(Status),
}

impl Lane {
    pub(super) fn new(fields: &Fields, owner: Option<ClientKey>) -> Arc<Self> {
        let (state, news) = (Mutex::default(), Notify::new());
        Arc::new(Self { fields: fields.clone(), owner, state, news, lost: watch::Sender::new(None) })
    }

    /// Whether it has clients that it can serve.
    pub(super) fn is_wanted(&self) -> bool {
        self.lost.borrow().is_none() && self.state.lock().members > 0
    }

    /// How many clients it has. A stream that has lost its leader accepts no more.
    pub(super) fn members(&self) -> usize {
        if self.lost.borrow().is_some() { usize::MAX } else { self.state.lock().members }
    }

    pub(super) fn join(self: &Arc<Self>, client: ClientKey) -> Member {
        self.state.lock().members += 1;
        Member { lane: self.clone(), client, lost: self.lost.subscribe() }
    }

    /// Serves its clients until the last one has left.
    pub(super) async fn run(&self, forward: &Forward) {
        let mut delays = delays();
        loop {
            if !self.wait_wanted().await {
                return;
            }
            let Ended { over, works, was_awaited } = self.serve(forward).await;
            let Over::Failed(failed) = over else { continue };
            tracing::debug!(%failed, "A stream of lease keep-alives has ended");
            if works {
                delays = self::delays();
            }
            // No request was waiting on it, so the fault is the stream's own.
            let refused = !works && !was_awaited;
            if self.wants_leader() && (refused || failed.message() == NO_LEADER) {
                // This is also how etcd ends their streams. A client that comes back gets another stream.
                self.lost.send_replace(Some(failed));
                return;
            }
            if refused {
                // It failed before anybody used it, so nobody who waits would get further.
                self.refuse(&failed);
            }
            if was_awaited && !is_of_all(&failed) {
                // The client that sent the request is gone, and the others wait.
                continue;
            }
            tokio::time::sleep(delays.next().unwrap_or(DELAY.1)).await;
        }
    }

    /// Waits until a stream is needed. Returns false if the last client has left.
    async fn wait_wanted(&self) -> bool {
        loop {
            {
                let state = self.state.lock();
                if state.members == 0 {
                    return false;
                }
                // A client that requires a leader is told at once that there is none.
                if !state.line.is_empty() || self.wants_leader() {
                    return true;
                }
            }
            self.news.notified().await;
        }
    }

    fn wants_leader(&self) -> bool {
        self.fields.iter().any(|(name, value)| name == "hasleader" && value == "true")
    }

    /// Serves one stream until it ends.
    async fn serve(&self, forward: &Forward) -> Ended {
        let (requests, queue) = mpsc::channel(WINDOW);
        let mut open = Open { requests, unanswered: VecDeque::new(), since: Instant::now(), works: false };
        let mut request = Request::new(ReceiverStream::new(queue));
        *request.metadata_mut() = MetadataMap::from_headers(self.fields.iter().cloned().collect());
        if let Some(owner) = self.owner {
            request.extensions_mut().insert(OnBehalfOf(owner));
        }
        let mut client = LeaseClient::new(forward.clone().boxed());
        // etcd's answer begins with its first message, so requests are sent before that.
        let mut opening = pin!(client.lease_keep_alive(request));
        let mut answers: Option<Streaming<LeaseKeepAliveResponse>> = None;
        let over = loop {
            let waits = !open.unanswered.is_empty();
            // All branches are cancel safe; `opening` continues in the next round.
            tokio::select! {
                biased;
                opened = &mut opening, if answers.is_none() => match opened {
                    Ok(response) => answers = Some(response.into_inner()),
                    Err(status) => break Over::Failed(status),
                },
                answer = next(&mut answers), if answers.is_some() => match answer {
                    Ok(answer) => if let Err(status) = open.take(answer) {
                        break Over::Failed(status);
                    },
                    Err(status) => break Over::Failed(status),
                },
                () = forward.shared.members.led_anew(open.since), if waits => break Over::LedAnew,
                () = tokio::time::sleep_until(open.since + PATIENCE), if waits => {
                    break Over::Failed(Status::unavailable("etcdserver: request timed out"));
                }
                idle = self.send(&mut open), if open.unanswered.len() < WINDOW => if idle {
                    break Over::Idle;
                },
            }
        };
        let was_awaited = !open.unanswered.is_empty();
        match &over {
            Over::Failed(status) => self.fail(std::mem::take(&mut open.unanswered), status),
            Over::LedAnew | Over::Idle => self.again(std::mem::take(&mut open.unanswered)),
        }
        Ended { over, works: open.works, was_awaited }
    }

    /// Sends one waiting request, as soon as there is one. Returns true if the last client has left. Cancel safe.
    async fn send(&self, open: &mut Open) -> bool {
        loop {
            let news = self.news.notified();
            {
                let mut state = self.state.lock();
                if state.members == 0 {
                    return true;
                }
                while let Some((_, pending)) = state.line.pop() {
                    // A client that is gone needs no answer.
                    if pending.answer.is_closed() {
                        continue;
                    }
                    if open.unanswered.is_empty() {
                        open.since = Instant::now();
                    }
                    // The channel has room for all unanswered requests. If the stream has ended, its end says why.
                    let _ = open.requests.try_send(pending.request);
                    open.unanswered.push_back(pending);
                    return false;
                }
            }
            news.await;
        }
    }

    /// Sends the error to all requests that wait for a stream.
    fn refuse(&self, status: &Status) {
        let waiting: Vec<Pending> = {
            let mut state = self.state.lock();
            std::iter::from_fn(|| state.line.pop().map(|(_, pending)| pending)).collect()
        };
        for pending in waiting {
            // A caller that is gone needs no answer.
            let _ = pending.answer.send(Err(status.clone()));
        }
    }

    /// Handles the end of a stream with these requests unanswered, oldest first.
    fn fail(&self, mut unanswered: VecDeque<Pending>, status: &Status) {
        let failed = if is_of_all(status) { unanswered.len() } else { 1 };
        for pending in unanswered.drain(..failed.min(unanswered.len())) {
            // A caller that is gone needs no answer.
            let _ = pending.answer.send(Err(status.clone()));
        }
        self.again(unanswered);
    }

    /// Puts these requests in line again.
    fn again(&self, unanswered: VecDeque<Pending>) {
        let mut state = self.state.lock();
        for pending in unanswered {
            state.line.push(pending.client, pending);
        }
    }
}

impl Open {
    /// Passes an answer to the oldest request.
    fn take(&mut self, answer: LeaseKeepAliveResponse) -> Result<(), Status> {
        let asked = self.unanswered.front().map(|pending| pending.request.id);
        if asked != Some(answer.id) {
            let text = format!("etcd-relay: etcd answered for the lease {:x} to a request for {asked:x?}", answer.id);
            return Err(Status::unavailable(text));
        }
        self.works = true;
        self.since = Instant::now();
        if let Some(pending) = self.unanswered.pop_front() {
            // A caller that is gone needs no answer.
            let _ = pending.answer.send(Ok(answer));
        }
        Ok(())
    }
}

impl Member {
    /// Sends a request to etcd. Cancel safe: whether a request without a waiting caller is sent does not matter.
    pub(super) async fn request(&self, request: LeaseKeepAliveRequest) -> Result<LeaseKeepAliveResponse, Status> {
        let (answer, answered) = oneshot::channel();
        self.lane.state.lock().line.push(self.client, Pending { client: self.client, request, answer });
        self.lane.news.notify_one();
        match answered.await {
            Ok(answer) => answer,
            // The stream has lost its leader, or the relay is stopping.
            Err(_) => Err(self.lost.borrow().clone().unwrap_or_else(status::stopped)),
        }
    }

    /// Waits until all calls of the stream end, and returns the reason. Cancel safe.
    pub(super) async fn lost(&self) -> Status {
        let mut lost = self.lost.clone();
        let told = lost.wait_for(Option::is_some).await.map(|why| why.clone());
        match told {
            Ok(why) => why.unwrap_or_else(status::stopped),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.lane.state.lock().members -= 1;
        self.lane.news.notify_one();
    }
}

/// The next answer. Cancel safe.
async fn next(answers: &mut Option<Streaming<LeaseKeepAliveResponse>>) -> Result<LeaseKeepAliveResponse, Status> {
    let Some(answers) = answers else { return std::future::pending().await };
    answers.message().await?.ok_or_else(|| Status::unavailable("etcd-relay: etcd ended a stream of keep-alives"))
}

/// Whether an error concerns the stream, its member or its user, and so all requests on it. Other errors concern the
/// lease that etcd was working on, for instance that its user may not keep it alive.
fn is_of_all(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::PermissionDenied
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::AlreadyExists
    )
}

fn delays() -> ExponentialBackoff {
    let builder = ExponentialBuilder::default().with_min_delay(DELAY.0).with_max_delay(DELAY.1);
    builder.with_jitter().without_max_times().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answered = oneshot::Receiver<Result<LeaseKeepAliveResponse, Status>>;

    fn open_with(lane: &Lane, ids: &[i64]) -> (Open, Vec<Answered>) {
        let (requests, _queue) = mpsc::channel(WINDOW);
        let mut open = Open { requests, unanswered: VecDeque::new(), since: Instant::now(), works: false };
        let mut answered = Vec::new();
        for id in ids {
            let (answer, receiver) = oneshot::channel();
            let (client, request) = (ClientKey::new(1), LeaseKeepAliveRequest { id: *id });
            open.unanswered.push_back(Pending { client, request, answer });
            answered.push(receiver);
        }
        assert!(lane.state.lock().line.is_empty());
        (open, answered)
    }

    fn left(lane: &Lane) -> Vec<i64> {
        let mut state = lane.state.lock();
        std::iter::from_fn(|| state.line.pop()).map(|(_, pending)| pending.request.id).collect()
    }

    #[tokio::test]
    async fn an_error_about_a_lease_is_its_clients_alone_and_the_others_are_asked_again_in_order() {
        let lane = Lane::new(&Fields::new(), None);
        let (open, mut answered) = open_with(&lane, &[7, 8, 9]);
        lane.fail(open.unanswered, &Status::permission_denied("etcdserver: permission denied"));
        let told = answered.remove(0).await.expect("an answer").expect_err("an error");
        assert_eq!(told.code(), Code::PermissionDenied);
        assert!(answered.iter_mut().all(|answer| answer.try_recv().is_err()), "the others still wait");
        assert_eq!(left(&lane), [8, 9]);
    }

    #[tokio::test]
    async fn who_waits_when_there_is_a_new_leader_is_told_nothing_and_asks_again_in_order() {
        let lane = Lane::new(&Fields::new(), None);
        let (open, mut answered) = open_with(&lane, &[7, 8, 9]);
        lane.again(open.unanswered);
        assert!(answered.iter_mut().all(|answer| answer.try_recv().is_err()), "all still wait");
        assert_eq!(left(&lane), [7, 8, 9]);
    }

    #[tokio::test]
    async fn an_error_about_the_member_is_told_to_all_who_wait() {
        let lane = Lane::new(&Fields::new(), None);
        let (open, answered) = open_with(&lane, &[7, 8, 9]);
        lane.fail(open.unanswered, &Status::unavailable("etcdserver: request timed out"));
        for answer in answered {
            assert_eq!(answer.await.expect("an answer").expect_err("an error").code(), Code::Unavailable);
        }
        assert_eq!(left(&lane), [0_i64; 0]);
    }

    #[tokio::test]
    async fn who_waits_for_a_stream_that_is_refused_is_told() {
        let lane = Lane::new(&Fields::new(), None);
        let (open, answered) = open_with(&lane, &[7, 8]);
        for pending in open.unanswered {
            lane.state.lock().line.push(pending.client, pending);
        }
        lane.refuse(&Status::failed_precondition("it goes round"));
        for answer in answered {
            assert_eq!(answer.await.expect("an answer").expect_err("an error").code(), Code::FailedPrecondition);
        }
        assert_eq!(left(&lane), [0_i64; 0]);
    }

    #[tokio::test]
    async fn an_answer_is_that_of_the_oldest_request_or_of_none() {
        let lane = Lane::new(&Fields::new(), None);
        let (mut open, mut answered) = open_with(&lane, &[7, 8]);
        let answer = |id| LeaseKeepAliveResponse { id, ttl: 10, ..LeaseKeepAliveResponse::default() };
        open.take(answer(7)).expect("the oldest");
        assert_eq!(answered.remove(0).await.expect("told").expect("an answer").id, 7);
        open.take(answer(9)).expect_err("no request was made for this lease");
        assert!(answered.remove(0).try_recv().is_err(), "no caller gets another caller's answer");
    }
}
