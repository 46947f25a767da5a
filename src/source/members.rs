//! [`Members`]: what the relay knows of each etcd member's health, in one place for all who call one: feeds, forwarded calls, questions
//! about access, confirmations, probes.
//!
//! Whoever calls a member reports what makes it [`doubt`](Members::doubt) that one; the [`judge`] then asks all members the same small
//! question, which only a member with a working cluster can answer, and its verdict is what everybody sees. So no single slow call moves
//! anybody, and a member is left only where another one has answered meanwhile.
//! Feeds have one word more: a member that answers and whose watches bring nothing is [shunned](Members::shun) by them for a while.
//!
//! Not here: what is sent, and what happens to a call whose member is left (`forward`, `etcd`).
//! Always holds: a member is preferred until another one is better, not the one that was listed first; [`Health::Away`] is said of a
//! member only by the judge; where no member answers anything, nobody is told to leave any.

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

/// How long the first calls wait for the first verdict: a cluster in the same network answers within milliseconds.
const FIRST_VERDICT: Duration = Duration::from_secs(1);
/// How long a write may go on after its member has answered under a later leader than that of then. One that was not lost is applied before that
/// answer; etcd itself gives up after seven seconds.
const LOST: Duration = Duration::from_secs(1);
/// What is known of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Health {
    /// It answered the last question that was put to it.
    Healthy,
    /// Nobody has asked it yet.
    Unknown,
    /// It let a question wait that another member has answered: no new call goes to it.
    Suspect,
    /// It does not answer, or says that it has no leader, while another member answers: calls that wait for it are ended.
    Away,
}

/// See the module. Cheap to clone; clones share what they know.
#[derive(Clone, Debug)]
pub struct Members {
    shared: Arc<MembersInner>,
}

#[derive(Debug)]
struct MembersInner {
    view: watch::Sender<View>,
    /// Asks the judge to look now.
    doubts: Notify,
    /// What those who do not care for single members want to know.
    agreement: watch::Sender<Agreement>,
}

/// What `/debug/state` shows of a member.
#[derive(Clone, Debug, Serialize)]
pub struct MemberState {
    endpoint: String,
    health: Health,
    preferred: bool,
    /// Seconds since its health changed.
    for_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// Whether feeds keep away from it.
    shunned_by_feeds: bool,
}

impl Members {
    /// The members at these endpoints, of which nothing is known yet; not empty.
    #[must_use]
    pub fn new(endpoints: &[Endpoint]) -> Self {
        let members: Vec<Member> = endpoints.iter().cloned().map(Member::new).collect();
        (0..members.len()).for_each(|index| healthy_metric(index, Some(false)));
        gauge!(names::UPSTREAM_LEADERLESS).set(0.0);
        let view = View { members, preferred: 0, quorum: Quorum::Unknown };
        let shared =
            MembersInner { view: watch::Sender::new(view), doubts: Notify::new(), agreement: watch::Sender::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Where one is.
    pub(super) fn endpoint(&self, member: usize) -> Endpoint {
        self.shared.view.borrow().members[member].endpoint.clone()
    }

    /// Those that are to be asked how they are.
    fn listed(&self) -> Vec<usize> {
        self.shared.view.borrow().listed().map(|(index, _)| index).collect()
    }

    /// Whether no member could say what the cluster agrees on the last time, and this one said nothing at all.
    fn is_mute(&self, member: usize) -> bool {
        let view = self.shared.view.borrow();
        view.quorum == Quorum::Lost && !view.members[member].reached
    }

    /// The cluster has these members now. Those that are not among them get no call, and the calls that wait for them end. Nothing happens where
    /// there are none.
    pub(super) fn list(&self, endpoints: &[Endpoint]) {
        let changed = self.shared.view.send_if_modified(|view| view.list(endpoints));
        if changed {
            self.shared.doubts.notify_one();
        }
    }

    /// All members, the one that a call should go to first.
    pub(super) fn ranked(&self) -> Vec<usize> {
        let view = self.shared.view.borrow();
        let mut ranked: Vec<usize> = view.listed().map(|(index, _)| index).collect();
        ranked.sort_by_key(|&index| (view.members[index].health, index != view.preferred));
        ranked
    }

    /// The member that a feed's watch goes to.
    pub(super) fn for_watch(&self) -> usize {
        let now = Instant::now();
        let view = self.shared.view.borrow();
        let rank = |&index: &usize| {
            let member = &view.members[index];
            let shunned = member.shunned.until.filter(|until| *until > now);
            // Of those that are shunned, the one that has been so for longest.
            (member.health.max(Health::Unknown), shunned, index != view.preferred)
        };
        view.listed().map(|(index, _)| index).min_by_key(rank).unwrap_or(view.preferred)
    }

    /// The member that a call goes to.
    pub(super) fn preferred(&self) -> usize {
        self.shared.view.borrow().preferred
    }

    /// Waits for the first verdict, for a second at most.
    pub(super) async fn settled(&self) {
        let mut view = self.shared.view.subscribe();
        // Without a verdict the first member is as good as any.
        let _ = tokio::time::timeout(FIRST_VERDICT, view.wait_for(|view| view.quorum != Quorum::Unknown)).await;
    }

    /// Waits until calls that wait for this member had better be ended. Cancel safe.
    pub(super) async fn left(&self, member: usize) {
        self.until(|view| {
            view.health_of(member) == Health::Away && view.has_healthy() || view.is_alone_in_silence(member)
        })
        .await;
    }

    /// Waits until a feed's watch on this member had better be elsewhere. Cancel safe.
    pub(super) async fn left_by_watches(&self, member: usize) {
        self.until(|view| {
            view.health_of(member) >= Health::Suspect && view.has_healthy() || view.is_alone_in_silence(member)
        })
        .await;
    }

    /// Waits until what was proposed to the member at `sent` will hardly be answered any more, since the leader of then has gone with it. The
    /// member has answered under a later one, so it has all that came of the earlier, and has had [`LOST`] to say so. Cancel safe.
    pub(super) async fn lost_with_leader(&self, member: usize, sent: Instant) {
        self.until(|view| view.members[member].led.since.is_some_and(|since| since > sent)).await;
        tokio::time::sleep(LOST).await;
    }

    /// The member answered in this raft term what needs a leader.
    pub(super) fn in_term(&self, member: usize, term: u64) {
        self.shared.view.send_if_modified(|view| {
            let led = &mut view.members[member].led;
            let (known, later) = (led.term > 0, term > led.term);
            if later {
                *led = Led { term, since: known.then(Instant::now) };
            }
            known && later
        });
    }

    /// Waits until a member answers, whichever. Cancel safe.
    pub(super) async fn reached(&self) {
        self.until(View::is_reached).await;
    }

    /// Whether a member answers, whichever.
    fn is_reached(&self) -> bool {
        self.shared.view.borrow().is_reached()
    }

    /// Whether the cluster can say what it agrees on; changes are told.
    pub(super) fn agreement(&self) -> watch::Receiver<Agreement> {
        self.shared.agreement.subscribe()
    }

    /// Whether no member can say what the cluster agrees on.
    pub(super) fn has_lost_quorum(&self) -> bool {
        self.shared.view.borrow().quorum == Quorum::Lost
    }

    /// Waits until no member can say what the cluster agrees on. Cancel safe.
    pub(super) async fn quorum_lost(&self) {
        self.until(|view| view.quorum == Quorum::Lost).await;
    }

    async fn until(&self, holds: impl FnMut(&View) -> bool) {
        // Fails only when the sender is gone, and `self` has one.
        let _ = self.shared.view.subscribe().wait_for(holds).await;
    }

    /// Something that a call to this member saw may be the member's fault: the judge looks now.
    pub(super) fn doubt(&self, member: usize) {
        tracing::trace!(endpoint = %self.endpoint(member), "An etcd member is in doubt");
        self.shared.doubts.notify_one();
    }

    /// A watch on this member brought nothing that another member has: feeds keep away from it for a while. False where they have no
    /// other to go to.
    pub(super) fn shun(&self, member: usize) -> bool {
        let now = Instant::now();
        let mut elsewhere = false;
        self.shared.view.send_modify(|view| {
            let others = view.listed().filter(|(index, _)| *index != member);
            elsewhere = others.map(|(_, other)| other.health).any(|health| health == Health::Healthy);
            let shunned = &mut view.members[member].shunned;
            if shunned.until.is_some_and(|until| until > now) {
                // Another feed said so.
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

    /// Where the member is that calls go to.
    #[must_use]
    pub fn in_use(&self) -> String {
        let view = self.shared.view.borrow();
        view.members[view.preferred].endpoint.to_string()
    }

    /// What is known, for `/debug/state`.
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

    /// Takes note of findings. `fastest` is the member whose answer came first.
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

    /// No member could say what the cluster agrees on, and what they said is this.
    fn without_quorum(&self, agreement: Agreement) {
        self.agree(agreement);
        self.shared.view.send_if_modified(|view| {
            let changed = std::mem::replace(&mut view.quorum, Quorum::Lost) != Quorum::Lost;
            // Who answers at all is better than who does not.
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
                    "etcd has no leader: what needs one fails, and all else is served from what members have"
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
mod tests;
