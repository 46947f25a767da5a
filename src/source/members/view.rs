//! [`View`]: the state of all members at one moment, and how the judge's findings and the cluster's lists change it.
//!
//! Not here: who is notified, and who waits for what, see `members`. Always holds: a member keeps its place for the
//! life of the process, even if the cluster does not have it any more.

use std::time::SystemTime;

use metrics::{counter, gauge};
use serde::Serialize;
use tokio::time::{Duration, Instant};

use super::Health;
use crate::{
    hub::cut_error,
    source::Endpoint,
    telemetry::names::{self, Leave},
};

/// The most members in the life of a process: one for each address that the cluster ever names.
pub(super) const MOST: usize = 256;
/// How long feeds shun a member at first, and at most; doubled each time that it happens again soon after.
pub(super) const SHUNNED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

#[derive(Debug)]
pub(super) struct View {
    /// Each keeps its place, even when it is not listed any more.
    pub(super) members: Vec<Member>,
    /// The member that new calls go to.
    pub(super) preferred: usize,
    pub(super) quorum: Quorum,
    /// Since when it is in question whether the cluster can agree: a connection broke, or no member has answered for a
    /// moment, and none has answered since.
    pub(super) in_question: Option<Instant>,
}

/// Whether any member can answer for the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Quorum {
    /// Nobody has asked yet.
    Unknown,
    /// A member can.
    Held,
    /// No member can.
    Lost,
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) endpoint: Endpoint,
    /// Whether it belongs to the cluster, as far as the relay knows.
    pub(super) listed: bool,
    pub(super) health: Health,
    pub(super) since: SystemTime,
    /// Why it is not healthy.
    pub(super) why: Option<String>,
    /// Whether it responds at all, if only with what it has itself.
    pub(super) reached: bool,
    pub(super) shunned: Shunned,
    pub(super) led: Led,
}

/// The leader under which a member last answered a request that needs one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Led {
    /// The raft term; zero if it is not known.
    pub(super) term: u64,
    /// When that term was first seen, if there was an earlier one.
    pub(super) since: Option<Instant>,
}

/// How long feeds avoid a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shunned {
    /// Until when no feed's watch goes to it, if there is another member.
    pub(super) until: Option<Instant>,
    /// How long they avoid it the next time.
    pub(super) pause: Duration,
}

/// What the judge found out about a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It answered for the cluster.
    Answered,
    /// It has not answered, and another member did some time ago.
    Late,
    /// It failed, or did not answer in time.
    Failed {
        why: String,
        /// Whether it responds at all.
        reached: bool,
        leave: Leave,
    },
}

impl View {
    /// Whether no member can answer for the cluster, and this one does not respond at all while another one does.
    pub(super) fn is_alone_in_silence(&self, member: usize) -> bool {
        self.quorum == Quorum::Lost
            && !(self.members[member].listed && self.members[member].reached)
            && self.is_reached()
    }

    /// Notes that it is in question whether the cluster can agree. Returns true if that is new.
    pub(super) fn question(&mut self) -> bool {
        let new = self.quorum == Quorum::Held && self.in_question.is_none();
        if new {
            self.in_question = Some(Instant::now());
        }
        new
    }

    pub(super) fn listed(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().enumerate().filter(|(_, member)| member.listed)
    }

    /// A member that is not listed any more stays away.
    pub(super) fn health_of(&self, member: usize) -> Health {
        if self.members[member].listed { self.members[member].health } else { Health::Away }
    }

    /// Returns true if something changed.
    pub(super) fn list(&mut self, endpoints: &[Endpoint]) -> bool {
        let (mut changed, mut some) = (false, false);
        for endpoint in endpoints {
            let known = self.members.iter().position(|member| member.endpoint == *endpoint);
            let index = match known {
                Some(index) => index,
                None if self.members.len() < MOST => {
                    self.members.push(Member { listed: false, ..Member::new(endpoint.clone()) });
                    self.members.len() - 1
                }
                None => {
                    tracing::warn!(%endpoint, most = MOST, "An etcd member is not used because the relay has known too many; restart the relay to use it");
                    continue;
                }
            };
            some = true;
            if !std::mem::replace(&mut self.members[index].listed, true) {
                tracing::info!(%endpoint, "The cluster has another member");
                self.members[index] = Member::new(endpoint.clone());
                healthy_metric(index, Some(false));
                changed = true;
            }
        }
        if !some {
            return false;
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            if member.listed && !endpoints.contains(&member.endpoint) {
                tracing::info!(endpoint = %member.endpoint, "The cluster no longer has this member");
                member.listed = false;
                healthy_metric(index, None);
                changed = true;
            }
        }
        let rank = |(index, member): &(usize, &Member)| (member.health, *index != self.preferred, *index);
        self.preferred = self.listed().min_by_key(rank).map_or(self.preferred, |(index, _)| index);
        changed
    }

    /// Whether any member responds.
    pub(super) fn is_reached(&self) -> bool {
        self.listed().any(|(_, member)| member.reached)
    }

    pub(super) fn has_healthy(&self) -> bool {
        self.listed().any(|(_, member)| member.health == Health::Healthy)
    }

    /// Returns true if something changed.
    pub(super) fn note(&mut self, index: usize, finding: Finding, others_answer: bool) -> bool {
        let member = &mut self.members[index];
        if !member.listed {
            return false;
        }
        let endpoint = member.endpoint.clone();
        let (health, why, reached, leave) = match finding {
            Finding::Answered => (Health::Healthy, None, true, None),
            Finding::Late => {
                let late = "it has not answered requests that another member answers".to_owned();
                (Health::Suspect.max(member.health), Some(late), member.reached, Some(Leave::Late))
            }
            // In a server's words, which may be long.
            Finding::Failed { why, reached, leave } => (Health::Away, Some(cut_error(why)), reached, Some(leave)),
        };
        let before = std::mem::replace(&mut member.health, health);
        let changed = before != health || member.reached != reached;
        member.why = why;
        member.reached = reached;
        if before == health {
            return changed;
        }
        member.since = SystemTime::now();
        healthy_metric(index, Some(health == Health::Healthy));
        if let Some(leave) = leave
            && before <= Health::Unknown
        {
            counter!(names::MEMBER_LEFT, Leave::LABEL => leave.as_str()).increment(1);
        }
        match &member.why {
            // If no member answers, that is one fault and not one of each member.
            Some(why) if others_answer && before != Health::Away => {
                tracing::warn!(%endpoint, why, ?health, "An etcd member cannot be used, and other members serve");
            }
            Some(why) => tracing::debug!(%endpoint, why, ?health, "An etcd member cannot be used"),
            None if before >= Health::Suspect => tracing::info!(%endpoint, "An etcd member serves again"),
            None => tracing::debug!(%endpoint, "An etcd member serves"),
        }
        true
    }
}

impl Member {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            listed: true,
            health: Health::Unknown,
            since: SystemTime::now(),
            why: None,
            reached: false,
            shunned: Shunned { until: None, pause: SHUNNED.0 },
            led: Led { term: 0, since: None },
        }
    }
}

/// The label is the order in which the relay came to know the members, which no client can influence. A member that is
/// not listed has no series.
pub(in crate::source) fn healthy_metric(index: usize, healthy: Option<bool>) {
    let value = healthy.map_or(f64::NAN, |healthy| if healthy { 1.0 } else { 0.0 });
    gauge!(names::MEMBER_HEALTHY, names::MEMBER => (index + 1).to_string()).set(value);
}
