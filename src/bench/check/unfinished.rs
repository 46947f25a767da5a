//! [`Unfinished`]: checks the ids of a stream of server-sent events, in which only the last event of a revision has
//! one.
//!
//! Each event is checked in `check`; the text is read in `watch`. Always holds: an event counts once an id says that
//! its revision is complete, because without that it comes again when the stream resumes.

use super::{Group, Scope, Seen, Told, Wrong};
use crate::bench::plan::Plan;

/// The events of a stream that came after its last id.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::bench) struct Unfinished {
    /// What the watch has received together with these events.
    ahead: Seen,
    group: Group,
    events: u64,
}

impl Unfinished {
    /// Nothing after what the watch has received.
    pub(in crate::bench) fn after(seen: &Seen) -> Self {
        Self { ahead: *seen, group: seen.group(), events: 0 }
    }

    /// Checks the next event.
    pub(in crate::bench) fn event(&mut self, plan: &Plan, scope: Scope, told: &Told) -> Result<(), Wrong> {
        if let Some((revision, _)) = self.group.newest
            && told.revision > revision
        {
            return Err(Wrong::NoId { revision: plan.base + i64::from(revision) });
        }
        self.ahead.take(plan, scope, &mut self.group, told)?;
        self.events += 1;
        Ok(())
    }

    /// Handles an id: all events up to that revision have come. Returns the number of events since the last id.
    pub(in crate::bench) fn id(&mut self, plan: &Plan, id: i64, seen: &mut Seen) -> Result<u64, Wrong> {
        let last = self.ahead.through(plan);
        if self.group.newest.is_some() && id != last {
            return Err(Wrong::Id { revision: last, id });
        }
        // The watch may have begun before the run's first revision.
        let through = plan.relative(id).unwrap_or(0);
        if through < self.ahead.last {
            return Err(Wrong::Disorder { last, revision: id });
        }
        let events = self.events;
        *seen = Seen { last: through, ..self.ahead };
        *self = Self::after(seen);
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::check::{Truth, Write};

    const BASE: i64 = 1000;

    fn plan() -> Plan {
        Plan::new(b"/test/".to_vec(), 4, 64, 2, BASE)
    }

    /// A step of a stream of server-sent events: a put, given as (revision, number), or an id.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Put(i64, u64),
        Id(i64),
    }

    /// What a stream with these steps has received, and the number of events that count.
    fn stream(plan: &Plan, steps: &[Step]) -> Result<(Seen, u64), Wrong> {
        let mut seen = Seen::after(plan, BASE);
        let (mut unfinished, mut events) = (Unfinished::after(&seen), 0);
        for step in steps {
            match *step {
                Step::Put(revision, number) => {
                    let told = Told::read(plan, &plan.key(number % plan.keys), &plan.value(number, 5), revision)?;
                    unfinished.event(plan, Scope::All, &told)?;
                }
                Step::Id(id) => events += unfinished.id(plan, id, &mut seen)?,
            }
        }
        Ok((seen, events))
    }

    #[test]
    fn a_revision_of_a_stream_counts_once_its_id_has_come() {
        use Step::{Id, Put};
        let plan = plan();
        let truth = Truth::new(&plan, vec![Write { revision: 1001, first: 0 }, Write { revision: 1003, first: 2 }]);
        let first = [Put(1001, 0), Put(1001, 1), Id(1001)];
        let missing = |last| Err(Wrong::Gap { missing: 2, expected: 4, last });
        for (more, events, result) in [
            (&[Id(1002), Put(1003, 2), Put(1003, 3), Id(1003), Id(1003), Id(1009)][..], 4, Ok(())),
            (&[Put(1003, 2), Put(1003, 3)], 2, missing(1001)),
            (&[Put(1003, 2)], 2, missing(1001)),
            // An id that comes alone says that there was nothing.
            (&[Id(1007)], 2, missing(1007)),
        ] {
            let (seen, counted) = stream(&plan, &[&first, more].concat()).expect("nothing is wrong yet");
            assert_eq!((counted, seen.conclude(&plan, &truth, Scope::All)), (events, result), "{more:?}");
        }
        let (seen, _) = stream(&plan, &[&first[..], &[Id(1002), Put(1003, 2)]].concat()).expect("nothing is wrong yet");
        assert_eq!(seen.through(&plan), 1002, "a stream resumes after its last id");
    }

    #[test]
    fn a_stream_that_contradicts_its_ids_is_found() {
        use Step::{Id, Put};
        let plan = plan();
        for (steps, wrong) in [
            (&[Put(1001, 0), Put(1001, 1), Id(1002)][..], Wrong::Id { revision: 1001, id: 1002 }),
            (&[Put(1002, 0), Put(1002, 1), Id(1001)], Wrong::Id { revision: 1002, id: 1001 }),
            (&[Put(1001, 0), Put(1001, 1), Put(1002, 2)], Wrong::NoId { revision: 1001 }),
            (&[Put(1001, 0), Id(1001), Put(1001, 1)], Wrong::Split { revision: 1001 }),
            (&[Put(1001, 0), Put(1001, 0)], Wrong::Duplicate { revision: 1001 }),
            (&[Put(1002, 0), Put(1001, 1)], Wrong::Disorder { last: 1002, revision: 1001 }),
            (&[Put(1002, 0), Id(1002), Put(1001, 1)], Wrong::Disorder { last: 1002, revision: 1001 }),
            (&[Put(1002, 0), Id(1002), Id(1001)], Wrong::Disorder { last: 1002, revision: 1001 }),
            (&[Id(1003), Put(1002, 0)], Wrong::Disorder { last: 1003, revision: 1002 }),
            (&[Id(1003), Put(1003, 0)], Wrong::Split { revision: 1003 }),
        ] {
            assert_eq!(stream(&plan, steps), Err(wrong), "{steps:?}");
        }
    }
}
