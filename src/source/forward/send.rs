//! [`Sending`]: sends one call to a member, and waits for the head of the answer.
//!
//! Members are tried in the order that `members` gives. A call that provably was not sent goes to the next member, and
//! if none can be reached it waits for one, as etcd's own clients do. A write also waits while it is in question
//! whether the cluster can agree. A call that was sent waits until it is answered or its member is left for another
//! one. Then a read is sent to that one, and a write ends with etcd's words for a call whose outcome is unknown. A read
//! that a member refuses because it has no leader or no time also goes to the next member. Not here: the answer's body,
//! see `body`. Always holds: a call that may have been sent is sent again only if it only reads; each member answers it
//! at most once; the request of a read is kept in memory, and is no longer than the port accepts (`MAX_KEPT`).

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use h2::Reason;
use http::response;
use http_body_util::{BodyExt as _, Full, Limited};
use metrics::counter;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Status, body::Body};

use super::{ForwardInner, Method, method, status};
use crate::{
    source::{
        members::race::race,
        pool::{Answer, Head, LinkError, Place, SendError},
    },
    telemetry::{HeldForward, names},
    types::ClientKey,
};

/// The largest request of a read that is kept to be sent again. It is what etcd accepts by default.
const MAX_KEPT: usize = 2 << 20;
/// After this long without an answer, the member of a short call is put in doubt.
const SLOW: Duration = Duration::from_millis(200);
/// The pause between two attempts of a call that waits for a member.
const AGAIN: Duration = Duration::from_millis(50);
/// How often a connection may turn out to be closed before that counts as a failure. It says nothing about the member.
const CLOSED: usize = 3;

/// etcd's refusals that another member may not give.
const ELSEWHERE: [&str; 5] = [
    "etcdserver: no leader",
    "etcdserver: leader changed",
    "etcdserver: request timed out",
    "etcdserver: request timed out, possibly due to previous leader failure",
    "etcdserver: request timed out, possibly due to connection lost",
];

/// A call that is being sent.
pub(super) struct Sending<'a> {
    pub(super) shared: &'a ForwardInner,
    pub(super) method: Method,
    pub(super) lane: names::Lane,
    pub(super) client: ClientKey,
    pub(super) head: Head<'a>,
    /// How long it may wait to be sent.
    pub(super) until: Instant,
}

/// The head of an answer.
pub(super) struct Sent {
    pub(super) head: response::Parts,
    pub(super) body: Answer,
    pub(super) member: usize,
}

/// The body of the request.
enum Payload {
    /// Kept, so that it can be sent again.
    Kept(Bytes),
    /// Passed on as it comes; `None` once it has been sent.
    Passing(Option<Body>),
}

/// How an attempt at a member ended.
enum Tried {
    Answered(Sent),
    /// Nothing was sent.
    Unsent(LinkError),
    /// Sent, and not answered.
    Unanswered(Status),
    /// The member ended it when the time that the client had set was over.
    Late,
}

impl Sending<'_> {
    /// Sends the call, and waits for the head of its answer.
    ///
    /// # Errors
    /// The status for the client, if there is no answer.
    pub(super) async fn send(self, body: Body) -> Result<Sent, Status> {
        let mut payload = if self.method.repeatable {
            let whole = Limited::new(body, MAX_KEPT).collect().await;
            Payload::Kept(whole.map_err(|error| status::unreadable(&*error))?.to_bytes())
        } else {
            Payload::Passing(Some(body))
        };
        let members = &self.shared.members;
        // The members that did not answer, or refused.
        let mut tried = Vec::new();
        // Boxed, because there rarely is one.
        let mut refusal: Option<Result<Box<Sent>, Status>> = None;
        let mut closed = 0;
        loop {
            if self.method.proposes && members.is_in_question() {
                Box::pin(self.wait_agreement()).await;
            }
            let Some(best) = members.best(&tried) else {
                return refusal.map_or_else(|| Err(status::unreachable()), unboxed);
            };
            let (member, place) = match self.shared.link(best).pool(self.lane).place_at_once(self.client) {
                Some(place) => (best, place),
                // Boxed, because otherwise all calls would be as large.
                None => match Box::pin(self.place(&tried)).await {
                    Ok(place) => place,
                    Err(failures) => match refusal {
                        Some(refusal) => return unboxed(refusal),
                        None => {
                            Box::pin(self.wait(&failures)).await?;
                            continue;
                        }
                    },
                },
            };
            match self.attempt(member, place, &mut payload).await {
                Tried::Answered(sent) => {
                    let refused = is_refusal(&sent.head);
                    if refused {
                        members.doubt(member);
                    }
                    // If no member has an answer, the next one would take as long to refuse it.
                    if !refused || !self.method.repeatable || members.has_lost_quorum() {
                        return Ok(sent);
                    }
                    refusal = Some(Ok(Box::new(sent)));
                }
                Tried::Unsent(error) => {
                    closed += 1;
                    if closed >= CLOSED {
                        Box::pin(self.wait(&[(member, error)])).await?;
                    }
                    continue;
                }
                Tried::Late => return Err(status::late()),
                Tried::Unanswered(status) => {
                    if !self.method.repeatable {
                        return Err(status);
                    }
                    // An answer says more, even if it is a refusal.
                    refusal.get_or_insert(Err(status));
                }
            }
            tried.push(member);
            counter!(names::FORWARD_RETRIES).increment(1);
        }
    }

    /// Finds a place for the call at the first member that can be reached.
    async fn place(&self, tried: &[usize]) -> Result<(usize, Place), Vec<(usize, LinkError)>> {
        let shared = self.shared;
        let rest = shared.members.ranked().into_iter().filter(|member| !tried.contains(member));
        let place = async |member: usize| {
            let link = shared.link(member);
            let pool = link.pool(self.lane);
            // Cancel safe: the wait for a place ends when it is dropped.
            tokio::select! {
                place = pool.place(self.client) => {
                    if place.is_err() {
                        shared.members.broken(member);
                    }
                    place
                }
                () = shared.members.left(member) => Err(pool.silent()),
            }
        };
        // A member whose connections are full is no worse than another.
        let is_late = |member: usize| !shared.link(member).pool(self.lane).is_connected();
        race(rest, place, is_late).await
    }

    async fn attempt(&self, member: usize, place: Place, payload: &mut Payload) -> Tried {
        let members = &self.shared.members;
        let body = match payload {
            Payload::Kept(bytes) => Body::new(Full::new(bytes.clone())),
            Payload::Passing(body) => body.take().unwrap_or_else(Body::empty),
        };
        let sent = Instant::now();
        // Both branches are cancel safe: a call whose answer is not needed any more is reset when it is dropped.
        let answer = tokio::select! {
            biased;
            answer = place.send(self.head, body) => answer,
            status = self.give_up_once_overdue(member, sent) => return Tried::Unanswered(status),
        };
        match answer {
            Ok(response) => {
                let (head, body) = response.into_parts();
                Tried::Answered(Sent { head, body, member })
            }
            Err(SendError::Unsent(unsent, error)) => {
                if let Payload::Passing(body) = payload {
                    *body = Some(unsent);
                }
                Tried::Unsent(error)
            }
            // The member's clock began after this one.
            Err(SendError::Broken(error))
                if status::reset(&error) == Some(Reason::CANCEL)
                    && method::timeout_in(self.head.headers).is_some_and(|timeout| sent.elapsed() >= timeout) =>
            {
                Tried::Late
            }
            Err(SendError::Broken(error)) => {
                if status::reset(&error).is_some() {
                    members.doubt(member);
                } else if !error.is_by_request() {
                    members.broken(member);
                }
                Tried::Unanswered(status::broken(&members.endpoint(member), &error))
            }
        }
    }

    /// Waits while it is in question whether the cluster can agree. A write that is sent during an election is lost.
    async fn wait_agreement(&self) {
        let members = &self.shared.members;
        let _held = HeldForward::count();
        // All branches are cancel safe.
        tokio::select! {
            () = members.out_of_question() => {}
            () = sleep_until(self.until) => {}
            () = self.shared.drain.cancelled() => {}
        }
    }

    /// As `give_up`, without a timer until the call is overdue: nearly all calls are answered before.
    async fn give_up_once_overdue(&self, member: usize, sent: Instant) -> Status {
        self.shared.overdue.wait().await;
        // Boxed, because otherwise all calls would be as large.
        Box::pin(self.give_up(member, sent)).await
    }

    /// Waits until a call that was sent to a member should not wait for its answer any more. A member that is slow is
    /// put in doubt meanwhile.
    async fn give_up(&self, member: usize, sent: Instant) -> Status {
        let members = &self.shared.members;
        let slow = async {
            sleep_until(sent + SLOW).await;
            if self.lane != names::Lane::Waiting {
                members.doubt(member);
            }
            std::future::pending::<Infallible>().await
        };
        // All branches are cancel safe.
        tokio::select! {
            () = members.left(member), if self.method.leaves => status::left(),
            () = members.lost_with_leader(member, sent), if self.method.proposes => status::lost_with_leader(),
            never = slow => match never {},
        }
    }

    /// Waits until a member may be reached again. Nothing was sent.
    async fn wait(&self, failures: &[(usize, LinkError)]) -> Result<(), Status> {
        if Instant::now() >= self.until {
            for (_, error) in failures {
                tracing::debug!(%error, "A call could not be sent to etcd");
            }
            return Err(status::unreachable());
        }
        let _held = HeldForward::count();
        let again = async {
            sleep(AGAIN).await;
            self.shared.members.reached().await;
        };
        // All branches are cancel safe.
        tokio::select! {
            () = again => Ok(()),
            () = sleep_until(self.until) => Err(status::unreachable()),
            () = self.shared.drain.cancelled() => Err(status::stopped()),
        }
    }
}

fn unboxed(refusal: Result<Box<Sent>, Status>) -> Result<Sent, Status> {
    refusal.map(|sent| *sent)
}

/// Whether the answer is a refusal that another member may not give. etcd sends it without a message.
fn is_refusal(head: &response::Parts) -> bool {
    Status::from_header_map(&head.headers).is_some_and(|status| ELSEWHERE.contains(&status.message()))
}
