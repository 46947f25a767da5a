//! [`Load`]: what a relay reports about itself to the others, and [`Publishing`]: when it reports it.
//!
//! Each report is a write to etcd, so all relays of a fleet together write no more than [`ALL_WRITES`] a second, and
//! nothing while their numbers stay the same. Not here: the key, see `front::balance`.
//! Always holds: a reported number is right to 2 % after [`LEAST_PAUSE`] (longer in a fleet of more than thirty
//! relays), and exact after [`LONGEST`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Least time between two writes of one relay.
const LEAST_PAUSE: Duration = Duration::from_secs(3);
/// Writes a second of all relays together.
const ALL_WRITES: u32 = 10;
/// A change of at least this fraction of the reported number, and of at least this many connections, is reported soon.
const CHANGE: f64 = 0.02;
const LEAST_CHANGE: usize = 2;
/// After this time every change is reported.
const LONGEST: Duration = Duration::from_secs(30);

/// A relay's load, as the others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Connections that were not asked to leave.
    pub connections: usize,
    /// Whether clients may be sent to this relay.
    pub ready: bool,
}

/// Decides when a relay reports its load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publishing {
    told: Option<(Load, Duration)>,
}

impl Publishing {
    /// Whether `load` is to be reported `now`, in a fleet of this many relays. If so, it counts as reported.
    pub fn is_due(&mut self, now: Duration, load: Load, relays: usize) -> bool {
        if let Some((told, at)) = self.told {
            let pause = now.saturating_sub(at);
            let change = told.connections.abs_diff(load.connections);
            let large = change >= LEAST_CHANGE && change as f64 >= CHANGE * told.connections as f64;
            let relays = u32::try_from(relays).unwrap_or(u32::MAX);
            let wait = match (told.ready == load.ready, large) {
                (false, _) => Duration::ZERO,
                (true, true) => LEAST_PAUSE.max(Duration::from_secs(1) * relays / ALL_WRITES),
                (true, false) if change > 0 => LONGEST,
                (true, false) => return false,
            };
            if pause < wait {
                return false;
            }
        }
        self.told = Some((load, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(connections: impl Fn(u64) -> usize, relays: usize) -> Vec<u64> {
        let mut publishing = Publishing::default();
        let is_due = |second: &u64| {
            let load = Load { connections: connections(*second), ready: true };
            publishing.is_due(Duration::from_secs(*second), load, relays)
        };
        (0..120).filter(is_due).collect()
    }

    #[test]
    fn only_what_matters_is_written_and_never_often() {
        assert_eq!(written(|_| 1_000, 2), [0], "nothing changes");
        assert_eq!(
            written(|second| 1_000 + usize::from(second > 40), 2),
            [0, 41],
            "a small change, long after the last write"
        );
        assert_eq!(written(|second| 1_000 + usize::from(second > 10), 2), [0, 30], "a small change waits");
        assert_eq!(written(|second| 1_000 + usize::from(second > 10) * 20, 2), [0, 11], "a large one does not");
        assert_eq!(
            written(|second| 1_000 * (second as usize + 1), 2).len(),
            40,
            "a storm: one write every third second"
        );
        assert_eq!(
            written(|second| 1_000 * (second as usize + 1), 100).len(),
            12,
            "in a large fleet, one write every tenth second"
        );
    }

    #[test]
    fn that_it_is_not_ready_is_told_at_once() {
        let mut publishing = Publishing::default();
        let load = Load { connections: 5, ready: true };
        assert!(publishing.is_due(Duration::ZERO, load, 2));
        assert!(publishing.is_due(Duration::from_millis(1), Load { ready: false, ..load }, 2));
    }
}
