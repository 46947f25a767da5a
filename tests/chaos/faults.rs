//! [`Fault`]: a fault of the servers that can be started and ended.
//!
//! When faults happen, and what they cost, is in `schedule`. Always holds: after a fault has ended, all servers run and
//! reach each other.

use std::time::Duration;

use fastrand::Rng;

use crate::{
    scene::{ANY, TIER},
    support::{gate::Gate, peers},
    world::World,
};

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its kind.
    pub kind: Kind,
    /// The affected member, if the fault affects one.
    pub member: usize,
    /// The affected relay, if the fault affects one.
    pub relay: usize,
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `kill -9` of a member.
    Kill,
    /// SIGSTOP of a member.
    Freeze,
    /// All traffic between the relays and a member is dropped.
    BlackHole,
    /// The relays' requests to a member are dropped.
    Unheard,
    /// A member's answers to the relays are dropped.
    Unanswered,
    /// A member refuses connections of the relays.
    Refused,
    /// All connections between the relays and etcd break once.
    Reset,
    /// A member is cut off from the others.
    CutOff,
    /// A member's messages to the others are dropped.
    Mute,
    /// The others' messages to a member are dropped.
    Deaf,
    /// A member hears its leader but gets no entries.
    Starved,
    /// Two members cannot reach each other, but both reach the third.
    Parted,
    /// All traffic between the members is delayed.
    LatePeers,
    /// All traffic between the relays and etcd is delayed.
    LateLink,
    /// Two of three members are frozen.
    NoQuorum,
    /// A relay is cut off from etcd, and etcd is compacted meanwhile.
    Compaction,
    /// The cluster is restored from a backup.
    Restore,
    /// A relay is killed and started again.
    KillRelay,
    /// Both relays and the tier are restarted, one after the other.
    Rolling,
    /// The tier cannot reach the relay that it uses.
    TierCut,
    /// Many clients do not read.
    Crowd,
    /// Authentication is on for a while, and a user's permissions are granted and revoked.
    Users,
}

/// All kinds, with their frequencies.
pub const ALL: [Kind; 22] = [
    Kind::Kill,
    Kind::Freeze,
    Kind::BlackHole,
    Kind::Unheard,
    Kind::Unanswered,
    Kind::Refused,
    Kind::Reset,
    Kind::CutOff,
    Kind::Mute,
    Kind::Deaf,
    Kind::Starved,
    Kind::Parted,
    Kind::LatePeers,
    Kind::LateLink,
    Kind::NoQuorum,
    Kind::Compaction,
    Kind::Restore,
    Kind::KillRelay,
    Kind::Rolling,
    Kind::TierCut,
    Kind::Crowd,
    Kind::Users,
];

/// The delay of a distant etcd for a relay.
const LINK: Duration = Duration::from_millis(40);
/// The delay between members: less than half of what would cause an election.
const PEERS: Duration = Duration::from_millis(100);

impl Kind {
    /// The name in the table and for `--only`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::BlackHole => "black-hole",
            Self::Unheard => "unheard",
            Self::Unanswered => "unanswered",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::CutOff => "cut-off",
            Self::Mute => "mute",
            Self::Deaf => "deaf",
            Self::Starved => "starved",
            Self::Parted => "parted",
            Self::LatePeers => "late-peers",
            Self::LateLink => "late-link",
            Self::NoQuorum => "no-quorum",
            Self::Compaction => "compaction",
            Self::Restore => "restore",
            Self::KillRelay => "kill-relay",
            Self::Rolling => "rolling",
            Self::TierCut => "tier-cut",
            Self::Crowd => "crowd",
            Self::Users => "users",
        }
    }

    /// Whether the fault makes one member unusable while the others are healthy.
    pub fn hurts_a_member(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::Freeze
                | Self::BlackHole
                | Self::Unheard
                | Self::Unanswered
                | Self::Refused
                | Self::CutOff
                | Self::Mute
                | Self::Deaf
                | Self::Starved
        )
    }

    /// Whether it may happen during another fault and still leave etcd with a majority.
    pub fn comes_on_top(self) -> bool {
        matches!(self, Self::LateLink | Self::KillRelay | Self::Rolling | Self::TierCut | Self::Crowd | Self::Reset)
    }

    /// Whether it ends at once.
    fn is_over_at_once(self) -> bool {
        matches!(self, Self::Reset | Self::Restore | Self::KillRelay | Self::Rolling | Self::Users)
    }
}

impl Fault {
    /// A fault of this kind. The member is the one that relay A uses as often as any other.
    pub async fn draw(kind: Kind, dice: &mut Rng, world: &World) -> Self {
        let (used, any, relay) = (dice.bool(), dice.usize(..3), dice.usize(..TIER));
        let mut member = if used { world.preferred(0).await } else { any };
        // A leader does not receive entries from others.
        if kind == Kind::Starved && world.etcd.leader().await == member {
            member = (member + 1) % 3;
        }
        let relay = match kind {
            Kind::TierCut => world.preferred(TIER).await,
            Kind::KillRelay => any,
            _ => relay,
        };
        Self { kind, member, relay }
    }

    /// The relays whose outage is measured.
    pub fn counted(self) -> Vec<usize> {
        match self.kind {
            Kind::Compaction => (0..=TIER).filter(|place| *place != self.relay).collect(),
            // A relay that does not run answers nobody.
            Kind::KillRelay | Kind::Rolling => vec![ANY],
            _ => vec![0, 1, TIER],
        }
    }

    /// Its duration: long enough to show its cost if that is `judged`.
    pub fn lasts(self, dice: &mut Rng, judged: bool) -> Duration {
        match judged {
            true if self.kind.is_over_at_once() => Duration::from_secs(1),
            true => Duration::from_millis(dice.u64(3_000..6_500)),
            false if self.kind.is_over_at_once() => Duration::ZERO,
            false => Duration::from_millis(dice.u64(1_000..3_000)),
        }
    }

    /// Starts the fault.
    pub async fn begin(self, world: &mut World) {
        let member = self.member;
        match self.kind {
            Kind::Kill => world.etcd.kill_member(member),
            Kind::Freeze => world.etcd.pause_member(member),
            Kind::BlackHole => links(world, member).for_each(Gate::hold),
            Kind::Unheard => links(world, member).for_each(Gate::hold_requests),
            Kind::Unanswered => links(world, member).for_each(Gate::hold_answers),
            Kind::Refused => links(world, member).for_each(Gate::shut),
            Kind::Reset => world.gates.iter().flatten().for_each(Gate::cut),
            Kind::CutOff => world.etcd.between_peers(peers::Fault::CutOff(member)),
            Kind::Mute => world.etcd.between_peers(peers::Fault::Mute(member)),
            Kind::Deaf => world.etcd.between_peers(peers::Fault::Deaf(member)),
            Kind::Starved => world.etcd.between_peers(peers::Fault::Starved(member)),
            Kind::Parted => world.etcd.between_peers(peers::Fault::Parted(member, (member + 1) % 3)),
            Kind::LatePeers => world.etcd.between_peers(peers::Fault::Late(PEERS)),
            Kind::LateLink => world.gates.iter().flatten().for_each(|gate| gate.delay(LINK)),
            Kind::NoQuorum => {
                world.etcd.pause_member(member);
                world.etcd.pause_member((member + 1) % 3);
            }
            Kind::Compaction => world.gates[self.relay].iter().for_each(Gate::shut),
            Kind::Restore => world.restore().await,
            Kind::KillRelay => world.restart_relay(self.relay, true).await,
            Kind::Rolling => {
                for place in 0..=TIER {
                    world.restart_relay(place, false).await;
                    world.ready(place).await;
                }
            }
            Kind::TierCut => world.tier_gates[self.relay].hold(),
            Kind::Crowd => world.scene.crowd.store(true, std::sync::atomic::Ordering::Relaxed),
            Kind::Users => {
                world.users.enable(&world.scene).await;
                let gone = world.users.guest_comes_and_goes(&world.scene).await;
                println!("           the guest's rights were gone after {:.1} s", gone.as_secs_f64());
            }
        }
    }

    /// Ends the fault.
    pub async fn end(self, world: &mut World) {
        let member = self.member;
        match self.kind {
            Kind::Kill => world.etcd.start_member(member),
            Kind::Freeze => world.etcd.resume_member(member),
            Kind::BlackHole | Kind::Unheard | Kind::Unanswered | Kind::Refused => {
                links(world, member).for_each(Gate::open);
            }
            Kind::CutOff | Kind::Mute | Kind::Deaf | Kind::Starved | Kind::Parted | Kind::LatePeers => {
                world.etcd.between_peers(peers::Fault::None);
            }
            Kind::LateLink => world.gates.iter().flatten().for_each(|gate| gate.delay(Duration::ZERO)),
            Kind::NoQuorum => world.etcd.resume(),
            Kind::Compaction => {
                world.compact().await;
                world.gates[self.relay].iter().for_each(Gate::open);
            }
            Kind::TierCut => world.tier_gates[self.relay].open(),
            Kind::Crowd => world.scene.crowd.store(false, std::sync::atomic::Ordering::Relaxed),
            Kind::Users => world.users.disable().await,
            Kind::Reset | Kind::Restore | Kind::KillRelay | Kind::Rolling => {}
        }
    }
}

/// The gates between each relay and this member.
fn links(world: &World, member: usize) -> impl Iterator<Item = &Gate> {
    world.gates.iter().map(move |gates| &gates[member])
}
