//! [`Rates`]: how fast the relay's counters grow from one answer to the next.
//!
//! Always holds: no rate is computed across a restart, where the counters start again. The number of kept rates is
//! bounded.

use std::collections::VecDeque;

use super::state::{Delivered, Relay};

/// Number of rates that are kept for the chart.
const MOST: usize = 120;

/// The last rates; see the module.
#[derive(Debug, Default)]
pub(super) struct Rates {
    last: Option<Sample>,
    past: VecDeque<Rate>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: f64,
    cpu_seconds: f64,
    delivered: Delivered,
}

/// Rates per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) responses: f64,
    pub(super) events: f64,
    pub(super) bytes: f64,
    /// CPU cores in use: 1 is one full core.
    pub(super) cpu: f64,
}

impl Rates {
    /// Adds an answer.
    pub(super) fn note(&mut self, relay: &Relay) {
        let (Some(at), Some(cpu_seconds), Some(delivered)) = (relay.at, relay.cpu_seconds, relay.delivered) else {
            *self = Self::default();
            return;
        };
        let now = Sample { at, cpu_seconds, delivered };
        match self.last.and_then(|then| now.since(&then)) {
            Some(rate) => {
                self.past.push_back(rate);
                if self.past.len() > MOST {
                    self.past.pop_front();
                }
            }
            // The first answer, or another process.
            None => self.past.clear(),
        }
        self.last = Some(now);
    }

    /// The newest rate.
    pub(super) fn now(&self) -> Option<Rate> {
        self.past.back().copied()
    }

    /// The newest events per second, at most `most`, in the order of time.
    pub(super) fn events(&self, most: usize) -> impl Iterator<Item = u64> {
        self.past.iter().skip(self.past.len().saturating_sub(most)).map(|rate| rate.events.round() as u64)
    }
}

impl Sample {
    fn since(&self, then: &Self) -> Option<Rate> {
        let seconds = self.at - then.at;
        let grown = |now: u64, then: u64| now.checked_sub(then).map(|grown| grown as f64 / seconds);
        if seconds <= 0.0 || self.cpu_seconds < then.cpu_seconds {
            return None;
        }
        Some(Rate {
            responses: grown(self.delivered.responses, then.delivered.responses)?,
            events: grown(self.delivered.events, then.delivered.events)?,
            bytes: grown(self.delivered.bytes, then.delivered.bytes)?,
            cpu: (self.cpu_seconds - then.cpu_seconds) / seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(at: f64, cpu: f64, events: u64) -> Relay {
        let delivered = Delivered { responses: events / 2, events, bytes: events * 100 };
        Relay { at: Some(at), cpu_seconds: Some(cpu), delivered: Some(delivered), ..Relay::default() }
    }

    #[test]
    fn counters_make_rates_and_a_new_process_begins_anew() {
        let mut rates = Rates::default();
        rates.note(&relay(10.0, 1.0, 1_000));
        assert_eq!(rates.now(), None);
        rates.note(&relay(12.0, 1.5, 5_000));
        assert_eq!(rates.now(), Some(Rate { responses: 1_000.0, events: 2_000.0, bytes: 200_000.0, cpu: 0.25 }));
        // The relay was restarted, and has already delivered more than before in a shorter time.
        rates.note(&relay(3.0, 0.1, 9_000));
        assert_eq!((rates.now(), rates.events(9).count()), (None, 0));
        rates.note(&Relay::default());
        assert!(rates.now().is_none(), "an older relay has no counters");
    }

    #[test]
    fn the_past_is_bounded() {
        let mut rates = Rates::default();
        for step in 0..MOST as u64 * 3 {
            rates.note(&relay(step as f64, 0.0, step * step));
        }
        assert_eq!(rates.events(usize::MAX).count(), MOST);
        let last: Vec<u64> = rates.events(2).collect();
        assert_eq!(last, [MOST as u64 * 6 - 5, MOST as u64 * 6 - 3]);
    }
}
