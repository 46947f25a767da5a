//! [`Members`]: what the relay knows about the health of each etcd member, in one place for all callers: feeds,
//! forwarded calls, permission checks, confirmations, probes.
//!
//! A caller that sees a problem with a member reports a [`doubt`](Members::doubt). The [`judge`] then sends all members
//! the same small request, which only a member with a working cluster can answer, and its verdict applies to everybody.
//! So no single slow call moves anybody, and a member is left only if another one has answered meanwhile. Feeds can
//! also [shun](Members::shun) a member for a while, if it answers requests but its watches bring nothing.
//!
//! Not here: what is sent, and what happens to a call whose member is left (`forward`, `etcd`).
//! Always holds: the preferred member stays preferred until another one is better, whatever the order of the list; only
//! the judge declares a member [`Health::Away`]; if no member answers anything, nobody has to leave any.

pub(super) mod judge;
pub(super) mod race;
mod survey;
pub(super) mod sync;
mod view;

use std::{cmp::Reverse, sync::Arc, time::Duration};

use metrics::{counter, gauge};
use serde::Serialize;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

pub(super) use self::view::healthy_metric;
use self::view::{Finding, Led, Member, Quorum, SHUNNED, Shunned, View};
use super::Endpoint;
use crate::{
    hub::upstream::Agreement,
    telemetry::names::{self, Leave},
};

/// How long the first calls wait for the first verdict. A cluster in the same network answers within milliseconds.
const FIRST_VERDICT: Duration = Duration::from_secs(1);
/// How long a write may still be answered after its member has answered under a later leader than the one at that time.
/// A write that was not lost is applied before that answer. etcd itself gives up after seven seconds.
const LOST: Duration = Duration::from_secs(1);
/// How long writes wait while it is in question whether the cluster can agree. With etcd's default settings an election
/// takes one to two seconds.
const ELECTION: Duration = Duration::from_millis(2500);
/// The health of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Health {
    /// It answered the last request of the judge.
    Healthy,
    /// Nobody has asked it yet.
    Unknown,
    /// Another member has answered a request that this one has not. No new call goes to it.
    Suspect,
    /// It does not answer, or reports that it has no leader, while another member answers. Calls that wait for it are
    /// ended.
    Away,
}

/// The health of all members; see the module. Cheap to clone; clones share their state.
#[derive(Clone, Debug)]
pub struct Members {
    shared: Arc<MembersInner>,
}

#[derive(Debug)]
struct MembersInner {
    view: watch::Sender<View>,
    /// Makes the judge check now.
    doubts: Notify,
    /// The state of the cluster as a whole.
    agreement: watch::Sender<Agreement>,
}

/// A member in `/debug/state`.
#[derive(Clone, Debug, Serialize)]
pub struct MemberState {
    endpoint: String,
    health: Health,
    preferred: bool,
    /// Seconds since its health changed.
    for_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// Whether feeds avoid it.
    shunned_by_feeds: bool,
}

impl Members {
    /// The members at these endpoints, with unknown health. There must be at least one.
    #[must_use]
    pub fn new(endpoints: &[Endpoint]) -> Self {
        let members: Vec<Member> = endpoints.iter().cloned().map(Member::new).collect();
        (0..members.len()).for_each(|index| healthy_metric(index, Some(false)));
        gauge!(names::UPSTREAM_LEADERLESS).set(0.0);
        let view = View { members, preferred: 0, quorum: Quorum::Unknown, in_question: None };
        let shared =
            MembersInner { view: watch::Sender::new(view), doubts: Notify::new(), agreement: watch::Sender::default() };
        Self { shared: Arc::new(shared) }
    }

    /// The address of a member.
    pub(super) fn endpoint(&self, member: usize) -> Endpoint {
        self.shared.view.borrow().members[member].endpoint.clone()
    }

    /// The members that the judge has to ask.
    fn listed(&self) -> Vec<usize> {
        self.shared.view.borrow().listed().map(|(index, _)| index).collect()
    }

    /// Whether no member could answer for the cluster the last time, and this one did not answer at all.
    fn is_mute(&self, member: usize) -> bool {
        let view = self.shared.view.borrow();
        view.quorum == Quorum::Lost && !view.members[member].reached
    }

    /// Sets the cluster's members. Calls go only to these, and calls that wait for others end. An empty list changes
    /// nothing.
    pub(super) fn list(&self, endpoints: &[Endpoint]) {
        let changed = self.shared.view.send_if_modified(|view| view.list(endpoints));
        if changed {
            self.shared.doubts.notify_one();
        }
    }

    /// All members, the best one for a call first.
    pub(super) fn ranked(&self) -> Vec<usize> {
        let view = self.shared.view.borrow();
        let mut ranked: Vec<usize> = view.listed().map(|(index, _)| index).collect();
        ranked.sort_by_key(|&index| (view.members[index].health, index != view.preferred));
        ranked
    }

    /// The best member for a call that was not tried yet.
    pub(super) fn best(&self, tried: &[usize]) -> Option<usize> {
        let view = self.shared.view.borrow();
        let untried = view.listed().filter(|(index, _)| !tried.contains(index));
        untried.min_by_key(|(index, member)| (member.health, *index != view.preferred)).map(|(index, _)| index)
    }

    /// The member for a feed's watch.
    pub(super) fn for_watch(&self) -> usize {
        let now = Instant::now();
        let view = self.shared.view.borrow();
        let rank = |&index: &usize| {
            let member = &view.members[index];
            let shunned = member.shunned.until.filter(|until| *until > now);
            // Of several that are shunned, the one that has been shunned for longest.
            (member.health.max(Health::Unknown), shunned, index != view.preferred)
        };
        view.listed().map(|(index, _)| index).min_by_key(rank).unwrap_or(view.preferred)
    }

    /// The member for a call.
    pub(super) fn preferred(&self) -> usize {
        self.shared.view.borrow().preferred
    }

    /// Waits for the first verdict, but a second at most.
    pub(super) async fn settled(&self) {
        let mut view = self.shared.view.subscribe();
        // Without a verdict the first member is as good as any.
        let _ = tokio::time::timeout(FIRST_VERDICT, view.wait_for(|view| view.quorum != Quorum::Unknown)).await;
    }

    /// Waits until calls should stop waiting for this member. Cancel safe.
    pub(super) async fn left(&self, member: usize) {
        self.until(|view| {
            view.health_of(member) == Health::Away && view.has_healthy() || view.is_alone_in_silence(member)
        })
        .await;
    }

    /// Waits until a feed's watch on this member should move to another. Cancel safe.
    pub(super) async fn left_by_watches(&self, member: usize) {
        self.until(|view| {
            view.health_of(member) >= Health::Suspect && view.has_healthy() || view.is_alone_in_silence(member)
        })
        .await;
    }

    /// Waits until feeds should watch at another member than the one with this address. Cancel safe.
    pub(super) async fn others_for_watch(&self, endpoint: &str) {
        loop {
            let mut view = self.shared.view.subscribe();
            if self.endpoint(self.for_watch()).to_string() != endpoint {
                return;
            }
            // This fails only if the sender is gone, and `self` has one.
            let _ = view.changed().await;
        }
    }

    /// Whether it is in question that the cluster can agree.
    pub(super) fn is_in_question(&self) -> bool {
        self.shared.view.borrow().in_question.is_some_and(|since| since.elapsed() < ELECTION)
    }

    /// Waits until a member answers for the cluster, if that is in question: otherwise a write might be passed on to a
    /// leader that is gone, and be lost with it. Not longer than an election takes. Cancel safe.
    pub(super) async fn out_of_question(&self) {
        let since = self.shared.view.borrow().in_question;
        if let Some(since) = since {
            let answered = self.until(|view| view.in_question.is_none());
            // Without an answer the members' own errors are the best answer.
            let _ = tokio::time::timeout_at(since + ELECTION, answered).await;
        }
    }

    /// Waits until a proposal that was sent to the member at `sent` will hardly be answered any more, because it was
    /// lost with the leader at that time. The member has answered under a later leader, so it has applied everything
    /// from the earlier one, and has had [`LOST`] to report it. Cancel safe.
    pub(super) async fn lost_with_leader(&self, member: usize, sent: Instant) {
        self.until(|view| view.members[member].led.since.is_some_and(|since| since > sent)).await;
        tokio::time::sleep(LOST).await;
    }

    /// Waits until any member answers under a later leader than the one at `sent`. Cancel safe.
    pub(super) async fn led_anew(&self, sent: Instant) {
        self.until(|view| view.listed().any(|(_, member)| member.led.since.is_some_and(|since| since > sent))).await;
    }

    /// The member answered a request that needs a leader, in this raft term.
    pub(super) fn in_term(&self, member: usize, term: u64) {
        self.shared.view.send_if_modified(|view| {
            let led = &mut view.members[member].led;
            let (known, later) = (led.term > 0, term > led.term);
            if later {
                *led = Led { term, since: known.then(Instant::now) };
            }
            let answered = view.in_question.take().is_some();
            known && later || answered
        });
    }

    /// Waits until any member answers. Cancel safe.
    pub(super) async fn reached(&self) {
        self.until(View::is_reached).await;
    }

    /// Whether any member answers.
    fn is_reached(&self) -> bool {
        self.shared.view.borrow().is_reached()
    }

    /// Whether the cluster can reach agreement. The receiver is notified of changes.
    pub(super) fn agreement(&self) -> watch::Receiver<Agreement> {
        self.shared.agreement.subscribe()
    }

    /// Whether no member can answer for the cluster.
    pub(super) fn has_lost_quorum(&self) -> bool {
        self.shared.view.borrow().quorum == Quorum::Lost
    }

    /// Waits until no member can answer for the cluster. Cancel safe.
    pub(super) async fn quorum_lost(&self) {
        self.until(|view| view.quorum == Quorum::Lost).await;
    }

    async fn until(&self, holds: impl FnMut(&View) -> bool) {
        // This fails only if the sender is gone, and `self` has one.
        let _ = self.shared.view.subscribe().wait_for(holds).await;
    }

    /// A call to this member had a problem that may be the member's fault. The judge checks at once.
    pub(super) fn doubt(&self, member: usize) {
        tracing::trace!(endpoint = %self.endpoint(member), "An etcd member is in doubt");
        self.shared.doubts.notify_one();
    }

    /// The connection of a call to this member broke, or could not be made. If it was the leader, nobody knows yet
    /// whether the others can agree.
    pub(super) fn broken(&self, member: usize) {
        self.shared.view.send_if_modified(|view| view.health_of(member) <= Health::Unknown && view.question());
        self.doubt(member);
    }

    /// No member has answered for the cluster for a moment.
    fn late(&self) {
        self.shared.view.send_if_modified(View::question);
        if *self.shared.agreement.borrow() == Agreement::Reached {
            self.agree(Agreement::Late);
        }
    }

    /// A watch on this member did not bring what another member has. Feeds avoid it for a while. Returns false if they
    /// have no other member.
    pub(super) fn shun(&self, member: usize) -> bool {
        let now = Instant::now();
        let mut elsewhere = false;
        self.shared.view.send_modify(|view| {
            let others = view.listed().filter(|(index, _)| *index != member);
            elsewhere = others.map(|(_, other)| other.health).any(|health| health == Health::Healthy);
            let shunned = &mut view.members[member].shunned;
            if shunned.until.is_some_and(|until| until > now) {
                // Another feed reported it already.
                return;
            }
            let soon = shunned.until.is_some_and(|until| now - until < SHUNNED.1);
            let pause = if soon { shunned.pause } else { SHUNNED.0 };
            *shunned = Shunned { until: Some(now + pause), pause: (pause * 2).min(SHUNNED.1) };
            counter!(names::MEMBER_LEFT, Leave::LABEL => Leave::Behind.as_str()).increment(1);
        });
        self.shared.doubts.notify_one();
        elsewhere
    }

    /// The address of the member that calls go to.
    #[must_use]
    pub fn in_use(&self) -> String {
        let view = self.shared.view.borrow();
        view.members[view.preferred].endpoint.to_string()
    }

    /// The members' state, for `/debug/state`.
    #[must_use]
    pub fn state(&self) -> Vec<MemberState> {
        let now = Instant::now();
        let view = self.shared.view.borrow();
        let state = |(index, member): (usize, &Member)| MemberState {
            endpoint: member.endpoint.to_string(),
            health: member.health,
            preferred: index == view.preferred,
            for_seconds: member.since.elapsed().unwrap_or_default().as_secs(),
            why: member.why.clone(),
            shunned_by_feeds: member.shunned.until.is_some_and(|until| until > now),
        };
        view.listed().map(state).collect()
    }

    /// Notes findings. `fastest` is the member whose answer came first.
    fn found(&self, findings: impl IntoIterator<Item = (usize, Finding)>, fastest: Option<usize>) {
        if fastest.is_some() {
            self.agree(Agreement::Reached);
        }
        self.shared.view.send_if_modified(|view| {
            let mut changed = false;
            for (index, finding) in findings {
                changed |= view.note(index, finding, fastest.is_some());
            }
            let quorum = match fastest {
                Some(_) => Quorum::Held,
                None => view.quorum,
            };
            changed |= std::mem::replace(&mut view.quorum, quorum) != quorum;
            changed |= fastest.is_some() && view.in_question.take().is_some();
            let best = |view: &View| view.listed().map(|(_, member)| member.health).min();
            if let Some(fastest) = fastest
                && Some(view.members[view.preferred].health) > best(view)
                && view.members[fastest].health == Health::Healthy
            {
                view.preferred = fastest;
                tracing::debug!(endpoint = %view.members[fastest].endpoint, "Calls go to this etcd member");
                changed = true;
            }
            changed
        });
    }

    /// No member could answer for the cluster; `agreement` says what they did answer.
    fn without_quorum(&self, agreement: Agreement) {
        self.agree(agreement);
        self.shared.view.send_if_modified(|view| {
            let changed = std::mem::replace(&mut view.quorum, Quorum::Lost) != Quorum::Lost;
            // A member that answers at all is better than one that does not.
            let rank = |(index, member): &(usize, &Member)| (member.reached, *index == view.preferred, Reverse(*index));
            let best = view.listed().max_by_key(rank).map_or(view.preferred, |(index, _)| index);
            let moved = std::mem::replace(&mut view.preferred, best) != best;
            changed || moved
        });
    }

    fn agree(&self, agreement: Agreement) {
        let changed = self.shared.agreement.send_if_modified(|known| {
            let before = std::mem::replace(known, agreement);
            match (before >= Agreement::Leaderless, agreement >= Agreement::Leaderless) {
                (false, true) => tracing::warn!(
                    "etcd has no leader: calls that need one fail, and everything else is served from what the members have"
                ),
                (true, false) if agreement == Agreement::Reached => tracing::info!("etcd has a leader again"),
                _ => {}
            }
            before != agreement
        });
        if changed {
            gauge!(names::UPSTREAM_LEADERLESS).set(if agreement >= Agreement::Leaderless { 1.0 } else { 0.0 });
        }
    }
}

#[cfg(test)]
impl Members {
    /// The judge finds that this member answers for the cluster.
    pub(super) fn answered(&self, member: usize) {
        self.found([(member, Finding::Answered)], Some(member));
    }
}

#[cfg(test)]
mod tests;
