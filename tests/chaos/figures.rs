//! [`Figures`]: the cost of each fault, printed as a table at the end.
//!
//! There are no limits here. No measurement fails the test; the goals are printed below the table.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use crate::faults::Fault;

/// The cost of one fault. Durations are the longest time without a success, from the beginning of the fault until
/// everything has recovered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Puts directly to etcd.
    pub direct: Duration,
    /// Puts through a relay.
    pub put: Duration,
    /// Reads from a relay's memory.
    pub read: Duration,
    /// Reads that a relay forwards.
    pub forward: Duration,
    /// New watches.
    pub watch: Duration,
    /// Events on existing watches.
    pub event: Duration,
    /// Until each relay's metrics showed which member is unusable; `None` if they never did, or if none is.
    pub told: Option<Duration>,
    /// Until they showed that it has recovered.
    pub back: Option<Duration>,
    /// How long a relay was not ready during the fault.
    pub unready: Duration,
    /// Streams that a relay ended, or on which it canceled a watch.
    pub ended: usize,
    /// How long after its end all watchers had received everything.
    pub caught_up: Duration,
}

/// A column of the table: its title, and its part of the cost.
type Column = (&'static str, fn(&Cost) -> Duration);

/// All faults and what they cost.
#[derive(Debug, Default)]
pub struct Figures {
    list: Vec<String>,
    costs: BTreeMap<String, Vec<Cost>>,
}

impl Figures {
    /// Records the beginning of a fault.
    pub fn begins(&mut self, clock: Duration, name: &str, fault: Fault) {
        let (member, relay) = (fault.member, fault.relay);
        let line = format!("{:7.2} s: {name} (member {member}, relay {relay})", clock.as_secs_f64());
        println!("{line}");
        self.list.push(line);
    }

    /// Records the end of a fault.
    pub fn add(&mut self, name: &str, cost: Cost) {
        self.costs.entry(name.to_owned()).or_default().push(cost);
    }

    /// The faults in order.
    pub fn list(&self) -> String {
        self.list.join("\n")
    }

    /// The table: the median and the worst of each kind, in seconds.
    pub fn table(&self) -> String {
        let columns: [Column; 7] = [
            ("put direct", |cost| cost.direct),
            ("put", |cost| cost.put),
            ("read", |cost| cost.read),
            ("read fwd", |cost| cost.forward),
            ("new watch", |cost| cost.watch),
            ("silence", |cost| cost.event),
            ("caught up", |cost| cost.caught_up),
        ];
        let mut text = format!("{:<22} {:>3}", "fault", "n");
        for (title, _) in columns {
            let _to_a_string = write!(text, " {title:>11}");
        }
        let _to_a_string = writeln!(text, " {:>11} {:>11} {:>8} {:>6}", "told sick", "told well", "unready", "ended");
        for (name, costs) in &self.costs {
            let _to_a_string = write!(text, "{name:<22} {:>3}", costs.len());
            for (_, of) in columns {
                let _to_a_string = write!(text, " {:>11}", spread(costs.iter().map(of).collect()));
            }
            let told = |of: fn(&Cost) -> Option<Duration>| {
                let known: Vec<_> = costs.iter().filter_map(of).collect();
                let silent = costs.len() - known.len();
                match (known.is_empty(), silent) {
                    (true, _) => "-".to_owned(),
                    (false, 0) => spread(known),
                    (false, silent) => format!("{} -{silent}", spread(known)),
                }
            };
            let unready = costs.iter().map(|cost| cost.unready).max().unwrap_or_default().as_secs_f64();
            let ended: usize = costs.iter().map(|cost| cost.ended).sum();
            let (sick, well) = (told(|cost| cost.told), told(|cost| cost.back));
            let _to_a_string = writeln!(text, " {sick:>11} {well:>11} {unready:>8.1} {ended:>6}");
        }
        text
    }
}

/// The median and the worst.
fn spread(mut durations: Vec<Duration>) -> String {
    durations.sort_unstable();
    let at = |place: usize| durations.get(place).copied().unwrap_or_default().as_secs_f64();
    format!("{:.1} / {:.1}", at(durations.len().saturating_sub(1) / 2), at(durations.len().saturating_sub(1)))
}
