//! [`Judge`]: sends all members the same request, regularly and at every doubt, and decides which of them can be used.
//!
//! The request is a linearizable read that counts one key. A member answers it only if it is in touch with the
//! cluster's leader and has applied what the cluster agreed on. A member that is frozen, cut off, without a leader or
//! permanently behind does not answer. One round of requests is in `survey`; what follows from the verdicts is in
//! `members`. Always holds: there is one survey at a time; the process is not ready while no member answers at all.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Members,
    survey::{Requests, Survey},
};
use crate::{
    hub::upstream::{Agreement, UpstreamError},
    source::EtcdUpstream,
    telemetry::{Hold, ReadyBoard},
};

/// Time between surveys while there is no doubt. A fault of a member that nobody uses stays unknown for this long. Each
/// survey costs one small linearizable read for each member.
const INTERVAL: Duration = Duration::from_secs(2);
/// The shortest time between surveys, however many doubts there are. It also applies while members respond without an
/// answer, so that calls go on as soon as one has it.
const PAUSE: Duration = Duration::from_millis(100);
/// Time between surveys while no member responds.
const ALONE: Duration = Duration::from_millis(200);
/// After this long without a leader on any member, streams that require one are ended. etcd ends its own streams when
/// it has found no leader three times in a row, a second apart by default, so most elections end none.
const LEADER_LOST: Duration = Duration::from_millis(2500);

/// Asks all members; see the module.
#[derive(Debug)]
pub struct Judge {
    members: Members,
    upstream: Arc<EtcdUpstream>,
    ready: ReadyBoard,
    /// When the members that answer lost their leader.
    leaderless: Option<Instant>,
}

impl Judge {
    /// A judge of the members of `upstream`. It keeps `ready` back while none answers.
    #[must_use]
    pub fn new(upstream: Arc<EtcdUpstream>, ready: ReadyBoard) -> Self {
        Self { members: upstream.members().clone(), upstream, ready, leaderless: None }
    }

    /// Runs forever; spawn it as a task.
    pub async fn run(mut self) {
        let mut hold = Some(self.ready.hold("etcd: not asked yet"));
        let mut warned = false;
        loop {
            let answered = self.survey().await;
            self.report(&mut hold, &mut warned);
            let late = match answered {
                true => INTERVAL,
                false if self.members.is_reached() => PAUSE,
                false => ALONE,
            };
            tokio::time::sleep(PAUSE).await;
            let jitter = 0.8 + 0.2 * fastrand::f64();
            // Both branches are cancel safe.
            tokio::select! {
                () = self.members.shared.doubts.notified() => {}
                () = tokio::time::sleep((late - PAUSE).mul_f64(jitter)) => {}
            }
        }
    }

    /// Asks all members. Returns false if none could answer.
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

    /// Updates readiness, and logs when all members went away and when one came back.
    fn report(&self, hold: &mut Option<Hold>, warned: &mut bool) {
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
            tracing::warn!(reason, "Cannot reach etcd, retrying");
        }
        match hold {
            Some(hold) => hold.explain(reason),
            None => *hold = Some(self.ready.hold(reason)),
        }
    }
}

impl Requests for EtcdUpstream {
    async fn question(&self, member: usize, patience: Duration) -> Result<(), UpstreamError> {
        Self::question(self, member, patience).await
    }

    async fn reach(&self, member: usize, patience: Duration) -> Result<(), UpstreamError> {
        Self::reach(self, member, patience).await
    }
}
