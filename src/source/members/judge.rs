//! [`Judge`]: asks all members the same question, now and then and whenever somebody has a doubt, and says which of them are of use.
//!
//! The question is a linearizable read that counts one key: a member answers it only when it is in touch with the cluster's leader and has
//! applied what the cluster has agreed on. One that is frozen, cut off, without a leader or behind for good does not.
//! A member that is late is suspected once another has answered, and away once it has had [`PATIENCE`]; so a slow relay or a slow cluster, where all
//! are late, moves nobody.
//!
//! Not here: what is done about it, see `members`. Always holds: one survey at a time, with one question to each member; the process is not ready
//! while no member answers at all.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{Finding, Members};
use crate::{
    hub::upstream::{Agreement, UpstreamError},
    source::EtcdUpstream,
    telemetry::{Hold, ReadyBoard, names::Leave},
};

/// Between surveys while nobody has a doubt: how long a fault of a member that nobody uses stays unknown. Each costs a small
/// linearizable read a member.
const INTERVAL: Duration = Duration::from_secs(2);
/// Between surveys at least, however many doubts there are.
const PAUSE: Duration = Duration::from_millis(100);
/// Between surveys while no member answers, so that calls that wait for one go on at once.
const ALONE: Duration = Duration::from_millis(200);
/// How long a member may take before it is suspected, from the question and from another member's answer on: a relay that was held up itself
/// gets the late answers within the second of these.
const LATE: (Duration, Duration) = (Duration::from_millis(400), Duration::from_millis(200));
/// How long a member may take at all.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long one may take to say anything at all, where none says what the cluster agrees on. Then the process is not ready.
const SILENCE: Duration = Duration::from_secs(2);

/// The same, once another member says something.
const OTHERS_SILENCE: Duration = Duration::from_secs(1);
/// How long all members may be without a leader before that is told to streams that want one. etcd ends its own when it has found none three times
/// in a row, a second apart by default, so that most elections end none.
const LEADER_LOST: Duration = Duration::from_millis(2500);

/// See the module.
#[derive(Debug)]
pub struct Judge {
    members: Members,
    upstream: Arc<EtcdUpstream>,
    ready: ReadyBoard,
    /// Since when the members that answer have had no leader.
    leaderless: Option<Instant>,
}

impl Judge {
    /// A judge of the members of `upstream`. It holds `ready` back while none answers.
    #[must_use]
    pub fn new(upstream: Arc<EtcdUpstream>, ready: ReadyBoard) -> Self {
        Self { members: upstream.members().clone(), upstream, ready, leaderless: None }
    }

    /// Asks for ever; run it as a task.
    pub async fn run(mut self) {
        let mut hold = Some(self.ready.hold("etcd: not asked yet"));
        let mut warned = false;
        loop {
            let answered = self.survey().await;
            self.tell(&mut hold, &mut warned);
            let (soon, late) = if answered { (PAUSE, INTERVAL) } else { (PAUSE, ALONE) };
            tokio::time::sleep(soon).await;
            let jitter = 0.8 + 0.2 * fastrand::f64();
            // Cancel safe, both.
            tokio::select! {
                () = self.members.shared.doubts.notified() => {}
                () = tokio::time::sleep((late - soon).mul_f64(jitter)) => {}
            }
        }
    }

    /// Puts the question to all. False where none could answer.
    async fn survey(&mut self) -> bool {
        let began = Instant::now();
        let asked = self.members.listed();
        let upstream = &self.upstream;
        let mut asking: FuturesUnordered<_> =
            asked.iter().map(async |&member| (member, upstream.question(member, PATIENCE).await)).collect();
        let mut silent = asked.clone();
        let mut failed = Vec::new();
        // Who answered first, and when the others are late.
        let mut first: Option<(usize, Instant)> = None;
        let mut told = false;
        // Those that said nothing in the last survey, where none had an answer, are not waited for by those that say something.
        let lost = self.members.has_lost_quorum();
        let mute: Vec<usize> = asked.iter().copied().filter(|member| self.members.is_mute(*member)).collect();
        let some_speak = mute.len() < asked.len();
        loop {
            let impatient = lost && some_speak && first.is_none() && silent.iter().all(|member| mute.contains(member));
            let late = first.map(|(_, at)| (began + LATE.0).max(at + LATE.1));
            // Cancel safe: answers stay in the set.
            tokio::select! {
                biased;
                answer = asking.next() => {
                    let Some((member, answer)) = answer else { break };
                    silent.retain(|silent| *silent != member);
                    match answer {
                        Ok(()) => {
                            let fastest = first.get_or_insert_with(|| (member, Instant::now())).0;
                            self.members.found([(member, Finding::Answered)], Some(fastest));
                        }
                        Err(error) => failed.push((member, error)),
                    }
                    if let Some((fastest, _)) = first {
                        // What fails at once is known at once, now that another has answered.
                        self.members.found(failed.drain(..).map(finding), Some(fastest));
                    }
                }
                () = async { sleep_until(late.unwrap_or(began)).await }, if late.is_some() && !told => {
                    told = true;
                    let late = silent.iter().map(|member| (*member, Finding::Late));
                    self.members.found(late, first.map(|(fastest, _)| fastest));
                }
                () = sleep_until(began + LATE.0), if impatient => break,
            }
        }
        drop(asking);
        if first.is_some() {
            self.leaderless = None;
        } else {
            self.without_an_answer(failed).await;
        }
        first.is_some()
    }

    /// None could say what the cluster agrees on: who has no leader, and who is not there at all?
    async fn without_an_answer(&mut self, failed: Vec<(usize, UpstreamError)>) {
        let began = Instant::now();
        let (without, others): (Vec<_>, Vec<_>) =
            failed.into_iter().partition(|(_, error)| matches!(error, UpstreamError::NoLeader));
        let mut reached: Vec<usize> = without.iter().map(|(member, _)| *member).collect();
        let ask = async |member: usize| (member, self.upstream.reach(member, SILENCE).await.is_ok());
        let mut asking: FuturesUnordered<_> = others.iter().map(|(member, _)| ask(*member)).collect();
        loop {
            let patience = if reached.is_empty() { SILENCE } else { OTHERS_SILENCE };
            // Cancel safe: answers stay in the set.
            tokio::select! {
                biased;
                answer = asking.next() => match answer {
                    Some((member, true)) => reached.push(member),
                    Some((_, false)) => {}
                    None => break,
                },
                () = sleep_until(began + patience) => break,
            }
        }
        drop(asking);
        let all_without = !without.is_empty() && reached.len() == without.len();
        let findings = without.into_iter().chain(others).map(|(member, error)| {
            let (member, found) = finding((member, error));
            match found {
                Finding::Failed { why, leave, .. } => {
                    (member, Finding::Failed { why, reached: reached.contains(&member), leave })
                }
                other => (member, other),
            }
        });
        self.members.found(findings.collect::<Vec<_>>(), None);
        self.leaderless = all_without.then(|| self.leaderless.unwrap_or(began));
        self.members.without_quorum(match self.leaderless {
            Some(since) if since.elapsed() >= LEADER_LOST => Agreement::LeaderLost,
            Some(_) => Agreement::Leaderless,
            None => Agreement::Silent,
        });
    }

    /// Keeps readiness, and says in the log when all members went away and when one came back.
    fn tell(&self, hold: &mut Option<Hold>, warned: &mut bool) {
        let states = self.members.state();
        if states.iter().any(|member| member.reached) {
            if hold.take().is_some() {
                tracing::info!("Reached etcd");
            }
            *warned = false;
            return;
        }
        let why = |member: &super::MemberState| {
            format!("{}: {}", member.endpoint, member.why.as_deref().unwrap_or("no answer yet"))
        };
        let reason = format!("etcd cannot be reached: {}", states.iter().map(why).collect::<Vec<_>>().join("; "));
        if !std::mem::replace(warned, true) {
            tracing::warn!(reason, "Cannot reach etcd; retrying");
        }
        match hold {
            Some(hold) => hold.explain(reason),
            None => *hold = Some(self.ready.hold(reason)),
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
