//! [`Status`]: the relay's status in one line, for the service manager.
//!
//! Not here: how the line is sent, see `service`. Always holds: the line is made from the feeds themselves, each locked
//! once, so a relay with a feed that is stuck makes no line.

use std::sync::Arc;

use crate::{
    front::listen::Connections,
    hub::{FeedState, Hub},
    telemetry::ReadyBoard,
};

/// The reason for not being ready while the relay stops.
pub(super) const STOPPING: &str = "stopping";

/// Most reasons in a line. A relay with many prefixes has as many reasons when it starts.
const REASONS: usize = 3;

/// See the module.
pub(super) struct Status {
    pub(super) hub: Arc<Hub>,
    pub(super) ready: ReadyBoard,
    pub(super) connections: Arc<Connections>,
}

impl Status {
    pub(super) fn line(&self) -> String {
        let feeds: Vec<_> = self.hub.feeds().iter().map(|feed| feed.stats().state).collect();
        let live = feeds.iter().filter(|state| **state == FeedState::Live).count();
        line(&self.ready.reasons(), (live, feeds.len()), self.connections.len())
    }
}

/// Only the line of the drain has the number of connections, because the manager has to handle each line that differs
/// from the one before.
fn line(reasons: &[String], (live, feeds): (usize, usize), connections: usize) -> String {
    if reasons.iter().any(|reason| reason == STOPPING) {
        return format!("Draining, connections left: {connections}");
    }
    let counts = format!("feeds live: {live} of {feeds}");
    if reasons.is_empty() {
        return format!("Ready, {counts}");
    }
    let more = reasons.len().saturating_sub(REASONS);
    let mut waiting = reasons[..reasons.len() - more].join("; ");
    if more > 0 {
        waiting.push_str(&format!("; and {more} more"));
    }
    format!("Waiting, {counts}: {waiting}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_waited_for_and_how_much_more_there_is() {
        let reasons = |number: usize| (0..number).map(|each| format!("feed {each}")).collect::<Vec<_>>();
        assert_eq!(line(&[], (2, 3), 4), "Ready, feeds live: 2 of 3");
        assert_eq!(line(&reasons(1), (0, 1), 0), "Waiting, feeds live: 0 of 1: feed 0");
        let many = line(&reasons(9), (0, 9), 0);
        assert!(many.ends_with(": feed 0; feed 1; feed 2; and 6 more"), "{many}");
        let ending = [reasons(1), vec![STOPPING.to_owned()]].concat();
        assert_eq!(line(&ending, (1, 1), 7), "Draining, connections left: 7");
    }
}
