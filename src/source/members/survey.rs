//! [`Survey`]: one round of the judge's requests to all members, and what their answers and their silence show.
//!
//! A late member is suspected once another one has answered, and is away once it has had [`PATIENCE`]. So a slow relay
//! or a slow cluster, where all members are late, moves nobody. The survey also waits through an election: a member
//! whose leader has just changed is asked again at once, so the first member that can answer for the cluster is found
//! as early as possible. While none can, all members are also asked whether they respond at all. A member that does not
//! is then already known when the first of the others has an answer.
//!
//! Not here: when surveys are made, and what follows from a verdict. Always holds: a member has at most one request of
//! each of the two kinds at a time; a member is judged only by comparison with another member's answer.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Finding, Members};
use crate::{hub::upstream::UpstreamError, telemetry::names::Leave};

/// How long a member may take before it is suspected, counted from the request and from another member's answer. If the
/// relay itself was held up, the late answers arrive within the second of these times.
const LATE: (Duration, Duration) = (Duration::from_millis(400), Duration::from_millis(200));
/// After this long without any answer, the others are told that none came. Writes and new watches then do not count on
/// one.
const QUIET: Duration = Duration::from_millis(250);
/// The longest time for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// If no member can answer for the cluster, how long one may take to respond at all. Then the process is not ready.
const SILENCE: Duration = Duration::from_secs(2);
/// The same, once another member has responded.
const OTHERS_SILENCE: Duration = Duration::from_millis(600);
/// The pause before a member whose leader has changed, or that has none, is asked again.
const AGAIN: Duration = Duration::from_millis(30);

/// The requests to members.
pub(super) trait Requests: Sync {
    /// A request that a member can answer only in touch with its cluster.
    fn question(&self, member: usize, patience: Duration) -> impl Future<Output = Result<(), UpstreamError>> + Send;

    /// Whether a member answers at all, whatever the answer is.
    fn reach(&self, member: usize, patience: Duration) -> impl Future<Output = Result<(), UpstreamError>> + Send;
}

/// One round of requests; see the module.
pub(super) struct Survey<'a, A> {
    members: &'a Members,
    upstream: &'a A,
    began: Instant,
    asked: Vec<usize>,
    /// Members that have not responded to the request in any way.
    silent: Vec<usize>,
    /// Members that failed while none has answered.
    failed: Vec<(usize, UpstreamError)>,
    /// Members that reported no leader, and are asked again.
    without: Vec<usize>,
    /// Members that have responded in any way.
    spoke: Vec<usize>,
    /// The member that answered first, and when.
    first: Option<(usize, Instant)>,
    /// Whether the other members were reported as late.
    late_reported: bool,
    /// Since when the members have been asked whether they respond at all.
    reaching_since: Option<Instant>,
}

impl<'a, A: Requests> Survey<'a, A> {
    pub(super) fn of(members: &'a Members, upstream: &'a A) -> Self {
        let asked = members.listed();
        Self {
            members,
            upstream,
            began: Instant::now(),
            silent: asked.clone(),
            asked,
            failed: Vec::new(),
            without: Vec::new(),
            spoke: Vec::new(),
            first: None,
            late_reported: false,
            reaching_since: None,
        }
    }

    /// Runs the survey. If no member could answer for the cluster, returns whether all that responded reported that
    /// they have no leader.
    pub(super) async fn run(mut self) -> Option<bool> {
        let (upstream, until) = (self.upstream, self.began + PATIENCE);
        let ask =
            |member: usize, pause: Duration| async move { (member, answer(upstream, member, pause, until).await) };
        let reach = |member: &usize| {
            let member = *member;
            async move { (member, upstream.reach(member, SILENCE).await.is_ok()) }
        };
        let mut asking: FuturesUnordered<_> = self.asked.iter().map(|member| ask(*member, Duration::ZERO)).collect();
        // Empty at first.
        let mut reaching: FuturesUnordered<_> = [].iter().map(reach).collect();
        // If no member had an answer in the last survey, those that did not respond then are not waited for once others
        // respond.
        let lost = self.members.has_lost_quorum();
        let mute: Vec<usize> = self.asked.iter().copied().filter(|member| self.members.is_mute(*member)).collect();
        let some_speak = mute.len() < self.asked.len();
        let mut quiet = false;
        let reach_at = if lost { self.began } else { self.began + LATE.0 };
        while !self.is_through(asking.is_empty()) {
            let impatient =
                lost && some_speak && self.first.is_none() && self.silent.iter().all(|member| mute.contains(member));
            let late = self.first.map(|(_, at)| (self.began + LATE.0).max(at + LATE.1));
            // Cancel safe: answers stay in their sets.
            tokio::select! {
                biased;
                Some((member, answer)) = asking.next() => {
                    if self.answered(member, answer) {
                        asking.push(ask(member, AGAIN));
                    }
                }
                Some((member, there)) = reaching.next() => self.spoke.extend(there.then_some(member)),
                () = sleep_until(self.began + QUIET), if self.first.is_none() && !quiet => {
                    quiet = true;
                    self.members.late();
                }
                () = sleep_until(reach_at), if self.first.is_none() && self.reaching_since.is_none() => {
                    self.reaching_since = Some(Instant::now());
                    reaching.extend(self.asked.iter().map(reach));
                }
                () = async { sleep_until(late.unwrap_or(until)).await }, if late.is_some() && !self.late_reported => self.report_late(),
                () = sleep_until(self.began + LATE.0), if impatient => break,
            }
        }
        drop(asking);
        if self.first.is_some() {
            return None;
        }
        // No member could answer for the cluster. Which have no leader, and which do not respond at all?
        let since = *self.reaching_since.get_or_insert_with(|| {
            reaching.extend(self.asked.iter().map(reach));
            Instant::now()
        });
        while self.asked.iter().any(|member| !self.spoke.contains(member)) {
            let patience = if self.spoke.is_empty() { SILENCE } else { OTHERS_SILENCE };
            // Cancel safe: answers stay in the set.
            tokio::select! {
                biased;
                answer = reaching.next() => match answer {
                    Some((member, there)) => self.spoke.extend(there.then_some(member)),
                    None => break,
                },
                () = sleep_until(since + patience) => break,
            }
        }
        drop(reaching);
        Some(self.without_an_answer())
    }

    /// Whether there is nothing more to wait for: as long as none has answered, each must have failed at least once.
    fn is_through(&self, nobody_is_asked: bool) -> bool {
        nobody_is_asked || self.first.is_none() && self.silent.is_empty()
    }

    /// Notes an answer. Returns true if the member is to be asked again.
    fn answered(&mut self, member: usize, answer: Result<(), UpstreamError>) -> bool {
        self.silent.retain(|silent| *silent != member);
        self.without.retain(|without| *without != member);
        match answer {
            Ok(()) => {
                let fastest = self.first.get_or_insert_with(|| (member, Instant::now())).0;
                self.members.found([(member, Finding::Answered)], Some(fastest));
                self.report_silent();
            }
            // It may get a leader while the survey waits for the others.
            Err(UpstreamError::NoLeader) if self.first.is_none() => {
                self.spoke.push(member);
                self.without.push(member);
                return true;
            }
            Err(error) => self.failed.push((member, error)),
        }
        if let Some((fastest, _)) = self.first {
            // A failure counts at once, now that another member has answered.
            self.members.found(self.failed.drain(..).map(finding), Some(fastest));
        }
        false
    }

    /// Reports members as late that have answered neither request, although other members have answered one of them
    /// long ago.
    fn report_silent(&self) {
        let long_ago = self.reaching_since.is_some_and(|since| since.elapsed() >= LATE.1);
        if long_ago && !self.spoke.is_empty() {
            self.found_late(self.silent.iter().filter(|silent| !self.spoke.contains(silent)));
        }
    }

    fn report_late(&mut self) {
        self.late_reported = true;
        self.found_late(self.silent.iter());
    }

    fn found_late<'b>(&self, late: impl Iterator<Item = &'b usize>) {
        self.members.found(late.map(|member| (*member, Finding::Late)), self.first.map(|(fastest, _)| fastest));
    }

    /// See [`Survey::run`].
    fn without_an_answer(mut self) -> bool {
        let (since, spoke) = (self.began, std::mem::take(&mut self.spoke));
        let without = self.without.iter().map(|member| (*member, UpstreamError::NoLeader));
        let silent = self.silent.iter().map(|member| (*member, UpstreamError::Timeout(since.elapsed())));
        let findings = self.failed.drain(..).chain(without).chain(silent).map(|failure| match finding(failure) {
            (member, Finding::Failed { why, leave, .. }) => {
                (member, Finding::Failed { why, reached: spoke.contains(&member), leave })
            }
            other => other,
        });
        self.members.found(findings.collect::<Vec<_>>(), None);
        !self.without.is_empty() && spoke.iter().all(|member| self.without.contains(member))
    }
}

/// A member's answer before `until`. A member whose leader changed during the request has not answered yet.
async fn answer(upstream: &impl Requests, member: usize, pause: Duration, until: Instant) -> Result<(), UpstreamError> {
    let mut pause = pause;
    loop {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        let patience = until.saturating_duration_since(Instant::now());
        match upstream.question(member, patience).await {
            Err(UpstreamError::LeaderChanged) if patience > AGAIN => pause = AGAIN,
            answer => return answer,
        }
    }
}

/// What a failure means for a member when another one has answered.
fn finding((member, error): (usize, UpstreamError)) -> (usize, Finding) {
    let (leave, reached) = match &error {
        UpstreamError::NoLeader => (Leave::NoLeader, true),
        UpstreamError::Timeout(_) => (Leave::Late, false),
        _ => (Leave::Failed, false),
    };
    (member, Finding::Failed { why: error.to_string(), reached, leave })
}

#[cfg(test)]
mod tests;
