//! [`Shedding`]: how many connections a relay asks to leave so that no relay has much more than its share.
//!
//! After a relay was restarted, the other relays have all of its clients, and the clients do not come back by
//! themselves. So a relay that has clearly more than the mean lets some go. The clients decide where they go: one that
//! chooses at random may come straight back, and one that knows a single address always does. So the relay checks the
//! effect. It goes on while the relay with the fewest connections gets more. Otherwise it rests, each time for longer,
//! unless another relay joins. This also covers a relay that looks healthy and accepts nobody.
//!
//! Relays compare themselves with the mean, not with the relay that has the fewest. A relay with few connections harms
//! nobody. To fill it up in a fleet of a hundred, whose clients choose at random, would take as many moves as there are
//! clients.
//!
//! Always holds: no client is asked to leave while the other relays are not known; in a second at most [`PART`] of the
//! connections are asked; and two relays do not send clients to and fro, since shedding begins at [`BEGIN`] and ends at
//! [`END`], and only a relay above the mean sheds.

use std::time::Duration;

/// Time between two checks.
pub const STEP: Duration = Duration::from_secs(1);
/// Shedding begins if the relay has this much more than the mean, as a fraction of the mean...
const BEGIN: f64 = 0.10;
/// ...and more than this many connections above the mean, for this long: relays that have just joined get clients by
/// themselves at first.
const FEW: f64 = 4.0;
const HOLD: Duration = Duration::from_secs(5);
/// Shedding ends when the relay has no more than this above the mean, or a single connection.
const END: f64 = 0.04;
/// The most connections that are asked to leave in a second, as a fraction of the relay's connections, and the number
/// for a relay that has few. With it two relays are even within some 100 s, even if every second client comes straight
/// back.
const PART: f64 = 0.02;
const LEAST_RATE: f64 = 2.0;
/// The excess above the mean is shed in no fewer than this many steps, since the numbers of other relays are some
/// seconds old.
const TAPER: f64 = 8.0;
/// After this time the relay checks the effect. If clients choose at random among all relays, the one with the fewest
/// connections has got its part of the clients that were asked, and at the very least a quarter of that.
const PATIENCE: Duration = Duration::from_secs(20);
const USEFUL: usize = 4;
/// How long the relay rests if shedding had no effect; doubled each time.
const REST: Duration = Duration::from_secs(300);
const LONGEST_REST: Duration = Duration::from_secs(3_600);

/// Decides how many connections to shed; see the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shedding {
    state: State,
    /// How often it has rested since the relay last had its share.
    rests: u32,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// The relay has no more than its share, or knows no other relay.
    #[default]
    Even,
    /// The relay has had more than its share since then.
    Above(Duration),
    Shedding(Try),
    /// Shedding had no effect, in a fleet of this many relays.
    Resting {
        until: Duration,
        relays: usize,
    },
}

/// One attempt to shed, and its effect.
#[derive(Clone, Copy, Debug)]
struct Try {
    since: Duration,
    relays: usize,
    /// The fewest connections of any relay when the attempt began.
    fewest: usize,
    asked: usize,
}

impl Shedding {
    /// How many of its `own` connections the relay asks to leave within the next [`STEP`]. `others` has the connections
    /// of each other relay that is ready; it is `None` if they are not known.
    pub fn look(&mut self, now: Duration, own: usize, others: Option<&[usize]>) -> usize {
        let others = others.unwrap_or_default();
        let Some(&fewest) = others.iter().min() else {
            if !matches!(self.state, State::Resting { .. }) {
                self.state = State::Even;
            }
            return 0;
        };
        let relays = others.len() + 1;
        let all = others.iter().fold(own, |all, other| all.saturating_add(*other));
        let mean = all as f64 / relays as f64;
        let above = own as f64 - mean;
        let (begins, goes_on) = (above > (BEGIN * mean).max(FEW), above > (END * mean).max(1.0));
        let begin = Try { since: now, relays, fewest, asked: 0 };
        self.state = match self.state {
            State::Resting { until, relays: before } if now < until && relays <= before => self.state,
            State::Even | State::Resting { .. } if begins => State::Above(now),
            State::Above(since) if begins && now.saturating_sub(since) >= HOLD => State::Shedding(begin),
            State::Above(_) if begins => self.state,
            State::Shedding(tried) if goes_on && relays != tried.relays => State::Shedding(begin),
            State::Shedding(tried) if goes_on && now.saturating_sub(tried.since) >= PATIENCE => {
                if fewest.saturating_sub(tried.fewest).saturating_mul(USEFUL * relays) >= tried.asked {
                    State::Shedding(begin)
                } else {
                    let rest = REST.saturating_mul(1 << self.rests.min(8)).min(LONGEST_REST);
                    self.rests += 1;
                    State::Resting { until: now + rest, relays }
                }
            }
            State::Shedding(_) if goes_on => self.state,
            State::Shedding(_) => {
                self.rests = 0;
                State::Even
            }
            State::Even | State::Above(_) | State::Resting { .. } => State::Even,
        };
        let State::Shedding(tried) = &mut self.state else { return 0 };
        let most = (PART * own as f64).max(LEAST_RATE);
        let count = most.min(above / TAPER).max(1.0) as usize;
        tried.asked += count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the decision for each second, with what `fleet` makes of it, and returns how many were asked in each.
    fn run(
        seconds: u64,
        own: &mut usize,
        others: &mut [usize],
        mut moved: impl FnMut(usize, &mut usize, &mut [usize]),
    ) -> Vec<usize> {
        let mut shedding = Shedding::default();
        let mut asked = Vec::new();
        for second in 0..seconds {
            let count = shedding.look(Duration::from_secs(second), *own, Some(others));
            moved(count, own, others);
            asked.push(count);
        }
        asked
    }

    #[test]
    fn a_relay_with_everybody_lets_half_of_them_go_at_a_bounded_rate() {
        let (mut own, mut others) = (2_000, [0]);
        let asked = run(120, &mut own, &mut others, |count, own, others| {
            // Every second client comes straight back.
            *own -= count / 2;
            others[0] += count / 2;
        });
        assert!(own.abs_diff(others[0]) <= 200, "{own} and {others:?}");
        assert!(asked.iter().all(|count| *count <= 40), "{asked:?}");
        assert_eq!(asked[..5], [0; 5], "at first it waits");
        assert_eq!(asked[110..], [0; 10], "it ends");
    }

    #[test]
    fn what_is_near_the_mean_is_left_alone() {
        let many = [&[0][..], &[1_010; 98]].concat();
        let fleets =
            [(1_080, &[920][..]), (24, &[18]), (1, &[0]), (1_000, &[1_000, 1_000, 900]), (0, &[5]), (1_010, &many)];
        for (own, others) in fleets {
            let mut shedding = Shedding::default();
            let asked: usize =
                (0..60).map(|second| shedding.look(Duration::from_secs(second), own, Some(others))).sum();
            assert_eq!(asked, 0, "{own}, {others:?}");
        }
    }

    #[test]
    fn relays_shed_together_to_one_that_has_come() {
        let (mut own, mut others) = (1_000, vec![0, 1_000, 1_000, 1_000]);
        let asked = run(110, &mut own, &mut others, |count, own, others| {
            // All four relays do the same, and a fifth of the clients that are asked go to the newcomer.
            let gone = count / 5;
            *own -= gone;
            others[1..].iter_mut().for_each(|other| *other -= gone);
            others[0] += 4 * gone;
        });
        assert!(others[0] >= 640, "of a mean of 800: {others:?}, asked {asked:?}");
        assert!(asked.iter().all(|count| *count <= 20), "{asked:?}");
    }

    #[test]
    fn clients_that_always_come_back_are_left_alone_for_longer_and_longer() {
        let mut shedding = Shedding::default();
        let asked: Vec<usize> =
            (0..4_000).map(|second| shedding.look(Duration::from_secs(second), 2_000, Some(&[0]))).collect();
        let bouts: Vec<usize> =
            asked.split(|count| *count == 0).filter(|bout| !bout.is_empty()).map(|bout| bout.iter().sum()).collect();
        assert!(bouts.len() == 4 && bouts.iter().all(|bout| *bout <= 800), "{bouts:?}");
        // Another relay joins, which is worth an attempt.
        let again: usize =
            (4_000..4_020).map(|second| shedding.look(Duration::from_secs(second), 2_000, Some(&[0, 0]))).sum();
        assert!(again > 0);
    }

    #[test]
    fn nothing_is_asked_of_anyone_while_the_others_are_not_seen() {
        let mut shedding = Shedding::default();
        let mut look = |second, others| shedding.look(Duration::from_secs(second), 2_000, others);
        assert_eq!((0..60).map(|second| look(second, None)).sum::<usize>(), 0);
        assert_eq!((60..120).map(|second| look(second, Some(&[]))).sum::<usize>(), 0, "there is no other relay");
        assert!((120..130).map(|second| look(second, Some(&[0]))).sum::<usize>() > 0);
        assert_eq!((130..135).map(|second| look(second, None)).sum::<usize>(), 0, "in the middle of an attempt");
        assert_eq!(
            (135..140).map(|second| look(second, Some(&[0]))).sum::<usize>(),
            0,
            "and it begins again with a check"
        );
    }

    #[test]
    fn two_relays_do_not_send_clients_to_and_fro() {
        let (mut relays, mut looks) = ([2_000, 0], [Shedding::default(), Shedding::default()]);
        // What each knows of the other is four seconds old, and who is asked goes to the other.
        let mut past = std::collections::VecDeque::from([relays; 4]);
        let mut asked = [0, 0];
        for second in 0..600 {
            past.push_back(relays);
            let seen = past.pop_front().expect("four");
            let now = Duration::from_secs(second);
            let counts = [0, 1].map(|at: usize| looks[at].look(now, relays[at], Some(&[seen[1 - at]])));
            for at in [0, 1] {
                relays[at] = relays[at] - counts[at] + counts[1 - at];
                asked[at] += counts[at];
            }
        }
        assert!(relays[0].abs_diff(relays[1]) <= 200, "{relays:?}");
        assert!(asked[0] <= 1_150 && asked[1] == 0, "{asked:?}");
    }
}
