//! [`Survey`]: one round of the judge's questions to all members, and what their answers and their silence say of them.
//!
//! A member that is late is suspected once another has answered, and away once it has had [`PATIENCE`]; so a slow relay or a slow cluster, where all
//! are late, moves nobody. An election is waited through here: a member whose leader has just changed is asked again at once, so the first that
//! can speak for the cluster is known as soon as it can. While none can, all are asked beside that whether they are there at all, so that who
//! is not is known when the first of the others has an answer.
//!
//! Not here: when surveys are made, and what is done about a verdict. Always holds: a member has one question of each of the two kinds at a time;
//! nothing is said against a member but what another one's answer bears out.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Finding, Members};
use crate::{hub::upstream::UpstreamError, telemetry::names::Leave};

/// How long a member may take before it is suspected, from the question and from another member's answer on: a relay that was held up itself
/// gets the late answers within the second of these.
const LATE: (Duration, Duration) = (Duration::from_millis(400), Duration::from_millis(200));
/// How long a member may take at all.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long one may take to say anything at all, where none says what the cluster agrees on. Then the process is not ready.
const SILENCE: Duration = Duration::from_secs(2);
/// The same, once another member says something.
const OTHERS_SILENCE: Duration = Duration::from_millis(600);
/// Before a member whose leader has changed, or that has none, is asked again.
const AGAIN: Duration = Duration::from_millis(30);

/// How members are asked.
pub(super) trait Asking: Sync {
    /// What a member can answer only in touch with its cluster.
    fn question(&self, member: usize, patience: Duration) -> impl Future<Output = Result<(), UpstreamError>> + Send;

    /// Whether a member answers at all, whatever it says.
    fn reach(&self, member: usize, patience: Duration) -> impl Future<Output = Result<(), UpstreamError>> + Send;
}

/// See the module.
pub(super) struct Survey<'a, A> {
    members: &'a Members,
    upstream: &'a A,
    began: Instant,
    asked: Vec<usize>,
    /// Those that have not answered the question in any way.
    silent: Vec<usize>,
    /// Those that failed, while none has answered.
    failed: Vec<(usize, UpstreamError)>,
    /// Those that said that they have no leader, and are asked again.
    without: Vec<usize>,
    /// Those that said anything at all.
    spoke: Vec<usize>,
    /// Who answered first, and when.
    first: Option<(usize, Instant)>,
    /// The others were told to be late.
    told: bool,
    /// Since when they have been asked whether they are there.
    reaching_since: Option<Instant>,
}

impl<'a, A: Asking> Survey<'a, A> {
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
            told: false,
            reaching_since: None,
        }
    }

    /// Asks. Where no member could say what the cluster agrees on: whether each that said anything said that it has no leader.
    pub(super) async fn run(mut self) -> Option<bool> {
        let (upstream, until) = (self.upstream, self.began + PATIENCE);
        let ask =
            |member: usize, pause: Duration| async move { (member, answer(upstream, member, pause, until).await) };
        let reach = |member: &usize| {
            let member = *member;
            async move { (member, upstream.reach(member, SILENCE).await.is_ok()) }
        };
        let mut asking: FuturesUnordered<_> = self.asked.iter().map(|member| ask(*member, Duration::ZERO)).collect();
        // None at first.
        let mut reaching: FuturesUnordered<_> = [].iter().map(reach).collect();
        // Those that said nothing in the last survey, where none had an answer, are not waited for by those that say something.
        let lost = self.members.has_lost_quorum();
        let mute: Vec<usize> = self.asked.iter().copied().filter(|member| self.members.is_mute(*member)).collect();
        let some_speak = mute.len() < self.asked.len();
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
                () = sleep_until(reach_at), if self.first.is_none() && self.reaching_since.is_none() => {
                    self.reaching_since = Some(Instant::now());
                    reaching.extend(self.asked.iter().map(reach));
                }
                () = async { sleep_until(late.unwrap_or(until)).await }, if late.is_some() && !self.told => self.tell_late(),
                () = sleep_until(self.began + LATE.0), if impatient => break,
            }
        }
        drop(asking);
        if self.first.is_some() {
            return None;
        }
        // None could say what the cluster agrees on: who has no leader, and who is not there at all?
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

    /// Whether nothing is waited for any more: while none has answered, all have failed at least once.
    fn is_through(&self, nobody_is_asked: bool) -> bool {
        nobody_is_asked || self.first.is_none() && self.silent.is_empty()
    }

    /// Takes note of an answer. True where the member is to be asked again.
    fn answered(&mut self, member: usize, answer: Result<(), UpstreamError>) -> bool {
        self.silent.retain(|silent| *silent != member);
        self.without.retain(|without| *without != member);
        match answer {
            Ok(()) => {
                let fastest = self.first.get_or_insert_with(|| (member, Instant::now())).0;
                self.members.found([(member, Finding::Answered)], Some(fastest));
                self.tell_mute();
            }
            // It may have one while the others are still waited for.
            Err(UpstreamError::NoLeader) if self.first.is_none() => {
                self.spoke.push(member);
                self.without.push(member);
                return true;
            }
            Err(error) => self.failed.push((member, error)),
        }
        if let Some((fastest, _)) = self.first {
            // What fails at once is known at once, now that another has answered.
            self.members.found(self.failed.drain(..).map(finding), Some(fastest));
        }
        false
    }

    /// Those that are silent, and let the other question wait as well, which others answered long ago, are late.
    fn tell_mute(&self) {
        let long_ago = self.reaching_since.is_some_and(|since| since.elapsed() >= LATE.1);
        if long_ago && !self.spoke.is_empty() {
            self.found_late(self.silent.iter().filter(|silent| !self.spoke.contains(silent)));
        }
    }

    fn tell_late(&mut self) {
        self.told = true;
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

/// What a member says, before `until`. One whose leader has changed while it was asked has said nothing yet.
async fn answer(upstream: &impl Asking, member: usize, pause: Duration, until: Instant) -> Result<(), UpstreamError> {
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

/// What a failure says of a member, where another one answered.
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
