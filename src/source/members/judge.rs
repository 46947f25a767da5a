//! [`Judge`]: asks all members the same question, now and then and whenever somebody has a doubt, and says which of them are of use.
//!
//! The question is a linearizable read that counts one key: a member answers it only when it is in touch with the cluster's leader and has
//! applied what the cluster has agreed on. One that is frozen, cut off, without a leader or behind for good does not.
//! How members are asked at a time is in `survey`; what is done about its verdicts, in `members`. Always holds: one survey at a time; the process
//! is not ready while no member answers at all.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Members,
    survey::{Asking, Survey},
};
use crate::{
    hub::upstream::{Agreement, UpstreamError},
    source::EtcdUpstream,
    telemetry::{Hold, ReadyBoard},
};

/// Between surveys while nobody has a doubt: how long a fault of a member that nobody uses stays unknown. Each costs a small
/// linearizable read a member.
const INTERVAL: Duration = Duration::from_secs(2);
/// Between surveys at least, however many doubts there are; and while those that speak have no answer, so that calls go on as soon as one has.
const PAUSE: Duration = Duration::from_millis(100);
/// Between surveys while no member says anything.
const ALONE: Duration = Duration::from_millis(200);
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
            let late = match answered {
                true => INTERVAL,
                false if self.members.is_reached() => PAUSE,
                false => ALONE,
            };
            tokio::time::sleep(PAUSE).await;
            let jitter = 0.8 + 0.2 * fastrand::f64();
            // Cancel safe, both.
            tokio::select! {
                () = self.members.shared.doubts.notified() => {}
                () = tokio::time::sleep((late - PAUSE).mul_f64(jitter)) => {}
            }
        }
    }

    /// Puts the question to all. False where none could answer.
    async fn survey(&mut self) -> bool {
        let began = Instant::now();
        let Some(all_without) = Survey::of(&self.members, &*self.upstream).run().await else {
            self.leaderless = None;
            return true;
        };
        self.leaderless = all_without.then(|| self.leaderless.unwrap_or(began));
        self.members.without_quorum(match self.leaderless {
            Some(since) if since.elapsed() >= LEADER_LOST => Agreement::LeaderLost,
            Some(_) => Agreement::Leaderless,
            None => Agreement::Silent,
        });
        false
    }

    /// Keeps readiness, and says in the log when all members went away and when one came back.
    fn tell(&self, hold: &mut Option<Hold>, warned: &mut bool) {
        if self.members.is_reached() {
            if hold.take().is_some() {
                tracing::info!("Reached etcd");
            }
            *warned = false;
            return;
        }
        let states = self.members.state();
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

impl Asking for EtcdUpstream {
    async fn question(&self, member: usize, patience: Duration) -> Result<(), UpstreamError> {
        Self::question(self, member, patience).await
    }

    async fn reach(&self, member: usize, patience: Duration) -> Result<(), UpstreamError> {
        Self::reach(self, member, patience).await
    }
}
