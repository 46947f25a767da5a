//! [`Position`]: the position of a watch, which is the revision that it needs next and the way in which it gets it.
//!
//! Not here: when a watch moves and why, see `watch_stream` and the code that reads for watches; the lines in which
//! watches wait, see `watches`. A position changes by a [`Transition`] or by a push ([`Pushable`]), and in no other
//! way. The table below lists the phases from which each transition is allowed, and the phase that follows.
//! Always holds: a position never falls; a transition that is not in the table changes nothing.

use thiserror::Error;

use crate::types::Revision;

/// How a watch gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Phase {
    /// The feed pushes them.
    Live,
    /// It begins at a future revision. From there on the feed pushes them.
    Ahead,
    /// It reads them from the history as the queue drains.
    Parked,
    /// It gets none until the feed has read its past. Then it reads them from the history.
    Behind,
    /// It gets none until its turn to be filled.
    Unfilled,
    /// It gets them from a temporary upstream watch.
    Filling,
    /// It was ended by a compaction. The id stays in use and blocks progress until the client cancels it, as in etcd.
    Compacted,
    /// It was ended by a fault of the relay. The id stays in use until the client cancels it.
    Failed,
}

impl Phase {
    /// Its name in `/debug/state`.
    pub(in crate::hub) const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ahead => "ahead",
            Self::Parked => "parked",
            Self::Behind => "behind",
            Self::Unfilled => "unfilled",
            Self::Filling => "filling",
            Self::Compacted => "compacted",
            Self::Failed => "failed",
        }
    }

    /// Whether the feed has something for the watch that has not been queued yet.
    pub(in crate::hub) const fn is_behind(self) -> bool {
        matches!(self, Self::Parked | Self::Behind | Self::Unfilled | Self::Filling)
    }
}

/// What happens to a watch. The most common case, that its feed pushes events to it, is not here: see [`Pushable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Transition {
    /// The revision that it begins at has arrived.
    Arrive,
    /// It was told that it has everything up to a revision.
    TellProgress,
    /// Its next events did not fit into the queue; they are read from the history later.
    Miss,
    /// The history has what it needs next.
    Park,
    /// It was given everything for it up to a revision of the past.
    Pass,
    /// It has everything that the feed has.
    CatchUp,
    /// The feed begins again, and the watch needs only future revisions.
    Outlast,
    /// The history does not reach back to what it needs, but it may soon: the feed reads its past.
    FallBehind,
    /// The history does not reach back to what it needs and never will: the watch waits for a fill, or for another one.
    AwaitFill,
    /// Its turn to be filled has come.
    BeginFill,
    /// What it needs was compacted.
    Compact,
    /// The relay has lost track of it.
    Fail,
}

/// The position of a watch; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Position {
    next: Revision,
    phase: Phase,
}

/// A transition that is not allowed. This is a fault of the relay. The watch is ended, since its next events might not
/// be the ones that it needs.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{transition:?} to revision {next} is impossible for a watch that is {:?} and needs revision {}", .from.phase, .from.next)]
pub(in crate::hub) struct Impossible {
    transition: Transition,
    from: Position,
    next: Revision,
}

/// The position of a live watch that wants some of the events: it proves that the feed may push them.
#[derive(Debug)]
pub(in crate::hub) struct Pushable<'a>(&'a mut Position);

impl Transition {
    /// The phase after this transition from `from`; `None` if it is not allowed.
    const fn leads(self, from: Phase) -> Option<Phase> {
        use Phase::{Ahead, Behind, Compacted, Failed, Filling, Live, Parked, Unfilled};
        match (self, from) {
            (Self::Arrive, Ahead) => Some(Live),
            (Self::TellProgress, Live) => Some(Live),
            (Self::Miss, Live) => Some(Parked),
            (Self::Park, Live | Behind | Filling) => Some(Parked),
            (Self::Pass, Parked | Filling) => Some(from),
            (Self::CatchUp, Parked) => Some(Live),
            (Self::Outlast, Live | Parked | Behind | Unfilled) => Some(Live),
            (Self::FallBehind, Live | Ahead | Parked | Unfilled) => Some(Behind),
            (Self::AwaitFill, Live | Parked | Behind | Filling) => Some(Unfilled),
            (Self::BeginFill, Unfilled) => Some(Filling),
            (Self::Compact, Live | Ahead | Parked | Behind | Unfilled | Filling) => Some(Compacted),
            (Self::Fail, Live | Ahead | Parked | Behind | Unfilled | Filling) => Some(Failed),
            _ => None,
        }
    }
}

impl Phase {
    /// Whether the watch has ended, though its id is still in use.
    pub(in crate::hub) const fn is_over(self) -> bool {
        matches!(self, Self::Compacted | Self::Failed)
    }
}

impl Position {
    /// The position of a new watch.
    pub(super) const fn live(next: Revision) -> Self {
        Self { next, phase: Phase::Live }
    }

    /// The position of a new watch that begins at a future revision.
    pub(super) const fn ahead(next: Revision) -> Self {
        Self { next, phase: Phase::Ahead }
    }

    /// The first revision that the watch may still be given: above its start, everything that it got, and the progress
    /// that it was told.
    pub(in crate::hub) const fn next(self) -> Revision {
        self.next
    }

    pub(in crate::hub) const fn phase(self) -> Phase {
        self.phase
    }

    /// The position after a transition that leaves the watch needing `next`.
    pub(super) fn after(self, transition: Transition, next: Revision) -> Result<Self, Impossible> {
        match transition.leads(self.phase) {
            Some(phase) if next >= self.next => Ok(Self { next, phase }),
            _ => Err(Impossible { transition, from: self, next }),
        }
    }

    /// Allows events up to a revision to be pushed to a watch that wants some of them.
    pub(super) fn pushable(&mut self, through: Revision) -> Option<Pushable<'_>> {
        (self.phase == Phase::Live && through >= self.next).then_some(Pushable(self))
    }
}

impl Pushable<'_> {
    pub(super) fn next(&self) -> Revision {
        self.0.next
    }

    /// The watch was given everything up to and including a revision.
    pub(super) fn push(self, through: Revision) {
        self.0.next = self.0.next.max(through.next());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 8] = [
        Phase::Live,
        Phase::Ahead,
        Phase::Parked,
        Phase::Behind,
        Phase::Unfilled,
        Phase::Filling,
        Phase::Compacted,
        Phase::Failed,
    ];

    /// Each transition, and the phase that it leads to from each of [`PHASES`]: the first letter of the phase, `F` for
    /// `Filling`, `E` (for "ended") for `Failed`.
    const TABLE: [(Transition, &str); 12] = [
        (Transition::Arrive, "-L------"),
        (Transition::TellProgress, "L-------"),
        (Transition::Miss, "P-------"),
        (Transition::Park, "P--P-P--"),
        (Transition::Pass, "--P--F--"),
        (Transition::CatchUp, "--L-----"),
        (Transition::Outlast, "L-LLL---"),
        (Transition::FallBehind, "BBB-B---"),
        (Transition::AwaitFill, "U-UU-U--"),
        (Transition::BeginFill, "----F---"),
        (Transition::Compact, "CCCCCC--"),
        (Transition::Fail, "EEEEEE--"),
    ];

    fn letter(phase: Phase) -> char {
        match phase {
            Phase::Live => 'L',
            Phase::Ahead => 'A',
            Phase::Parked => 'P',
            Phase::Behind => 'B',
            Phase::Unfilled => 'U',
            Phase::Filling => 'F',
            Phase::Compacted => 'C',
            Phase::Failed => 'E',
        }
    }

    fn at(revision: i64) -> Revision {
        Revision::new(revision)
    }

    #[test]
    fn each_transition_leads_where_the_table_says_and_nowhere_else() {
        for (transition, row) in TABLE {
            let led: String = PHASES
                .iter()
                .map(|phase| {
                    let after = Position { next: at(5), phase: *phase }.after(transition, at(7));
                    after.map_or('-', |after| {
                        assert_eq!(after.next(), at(7), "{transition:?} from {phase:?}");
                        letter(after.phase())
                    })
                })
                .collect();
            assert_eq!(led, row, "{transition:?}");
        }
    }

    #[test]
    fn no_transition_lets_a_position_fall() {
        for (transition, _) in TABLE {
            for phase in PHASES {
                let from = Position { next: at(5), phase };
                assert_eq!(from.after(transition, at(4)), Err(Impossible { transition, from, next: at(4) }));
                let stays = from.after(transition, at(5));
                assert!(
                    stays.is_err() || stays.is_ok_and(|after| after.next() == at(5)),
                    "{transition:?} from {phase:?}"
                );
            }
        }
    }

    #[test]
    fn a_watch_that_has_ended_stays_so() {
        for phase in PHASES.into_iter().filter(|phase| phase.is_over()) {
            for (transition, _) in TABLE {
                assert!(
                    Position { next: at(5), phase }.after(transition, at(7)).is_err(),
                    "{transition:?} from {phase:?}"
                );
            }
        }
    }

    #[test]
    fn only_a_live_watch_is_pushed_to_and_only_what_it_needs() {
        for phase in PHASES {
            let mut position = Position { next: at(5), phase };
            assert!(position.pushable(at(4)).is_none(), "it has that already");
            let Some(pushable) = position.pushable(at(6)) else {
                assert_ne!(phase, Phase::Live, "a watch that is ahead has to arrive first");
                continue;
            };
            assert_eq!((phase, pushable.next()), (Phase::Live, at(5)));
            pushable.push(at(6));
            assert_eq!(position, Position::live(at(7)));
        }
    }

    #[test]
    fn what_is_impossible_is_told_in_words() {
        let from = Position { next: at(5), phase: Phase::Filling };
        let error = from.after(Transition::CatchUp, at(9)).expect_err("a fill hands its watches to the history");
        assert_eq!(
            error.to_string(),
            "CatchUp to revision 9 is impossible for a watch that is Filling and needs revision 5"
        );
    }
}
