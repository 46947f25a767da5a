//! Checks that a watch received each write once, in order, in whole revisions, and with the right value.
//!
//! Deliveries arrive through `watch`. The ids of server-sent events are checked in `unfinished`. Always holds: a watch
//! needs 16 bytes, however long it lives, since there may be ten million of them. Wrong order, duplicates and split
//! revisions are found at once; gaps are found at the end, by the number and the sum of the expected events.

mod unfinished;

use thiserror::Error;

pub(super) use self::unfinished::Unfinished;
use super::{
    http::HttpError,
    link::LinkError,
    listed,
    message::{self, Unreadable},
    plan::{Plan, Put},
    wire::WireError,
};

/// An error in a delivery.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Wrong {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("revision {revision} came twice")]
    Duplicate { revision: i64 },
    #[error("revision {revision} came in more than one response")]
    Split { revision: i64 },
    #[error("revision {revision} came after {last}")]
    Disorder { last: i64, revision: i64 },
    #[error("{missing} of {expected} events never came; the last one was of revision {last}")]
    Gap { missing: u64, expected: u64, last: i64 },
    #[error("{count} events came but {expected} were written, or their revisions differ from those of the writes")]
    Unwritten { count: u64, expected: u64 },
    #[error("a wrong value of {key:?} at revision {revision}")]
    Value { key: String, revision: i64 },
    #[error("unrequested key {key:?} at revision {revision}")]
    Key { key: String, revision: i64 },
    #[error("a deletion of {key:?} at revision {revision}, although it was not deleted")]
    Deletion { key: String, revision: i64 },
    #[error("an event of revision {revision} has the id {id}")]
    Id { revision: i64, id: i64 },
    #[error("revision {revision} ended without an id")]
    NoId { revision: i64 },
    #[error("a text that is not as docs/http-api.md describes: {0}")]
    Text(String),
    #[error("a response for the unknown watch {0}")]
    UnknownWatch(i64),
    #[error("canceled (compact revision {compact_revision}): {reason:?}")]
    Canceled { compact_revision: i64, reason: String },
    #[error("the stream ended: {0}")]
    Ended(String),
    #[error("the connection ended: {0}")]
    Lost(String),
    #[error("a wrong list: {0}")]
    Listed(#[from] listed::Wrong),
}

impl Wrong {
    pub(super) fn deletion(key: &[u8], revision: i64) -> Self {
        Self::Deletion { key: String::from_utf8_lossy(key).into_owned(), revision }
    }

    fn key(key: &[u8], revision: i64) -> Self {
        Self::Key { key: String::from_utf8_lossy(key).into_owned(), revision }
    }
}

impl From<LinkError> for Wrong {
    fn from(error: LinkError) -> Self {
        Self::Lost(match &error {
            LinkError::Connect { source, .. } | LinkError::Io(source) => format!("{error}: {source}"),
            LinkError::Closed | LinkError::Wire(_) => error.to_string(),
        })
    }
}

impl From<HttpError> for Wrong {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Io(error) => LinkError::Io(error).into(),
            HttpError::Breach(what) => Self::Lost(what),
        }
    }
}

impl From<WireError> for Wrong {
    fn from(error: WireError) -> Self {
        LinkError::from(error).into()
    }
}

/// The range of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All keys of the run.
    All,
    /// The key of this number.
    Key(u64),
}

/// What one watch has received. Revisions count from the run's first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The watch begins after this revision.
    start: u32,
    last: u32,
    count: u32,
    sum: u32,
}

/// Events that come together: those of a response, or those of a stream up to an id.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// The last revision before them.
    before: u32,
    /// The revision and the number of the last of them.
    newest: Option<(u32, u64)>,
}

/// An event with a key and a value of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Counted from the run's first.
    pub(super) revision: u32,
    /// The number of its key.
    index: u64,
    pub(super) put: Put,
}

/// A transaction that etcd has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) revision: i64,
    /// The number of its first put.
    pub(super) first: u64,
}

/// Everything that was written.
#[derive(Debug)]
pub(super) struct Truth {
    all: Line,
    by_key: Vec<Line>,
    /// The state of the keys: for each revision, the number and the sum of the newest puts of all keys up to it.
    state: Line,
}

/// Revisions in order, each with the number and the sum of all puts up to it.
#[derive(Debug, Default)]
struct Line(Vec<(u32, u32, u32)>);

impl Seen {
    /// A watch that begins after this revision.
    pub(super) fn after(plan: &Plan, revision: i64) -> Self {
        let start = plan.relative(revision).unwrap_or(0);
        Self { start, last: start, count: 0, sum: 0 }
    }

    /// The revision after which a new watch must continue.
    pub(super) fn through(&self, plan: &Plan) -> i64 {
        plan.base + i64::from(self.last)
    }

    /// Checks a response with events. Calls the function with the number of each put and its sending time. Returns the
    /// number of events.
    pub(super) fn response(
        &mut self,
        plan: &Plan,
        scope: Scope,
        bytes: &[u8],
        mut event: impl FnMut(u64, u64),
    ) -> Result<u64, Wrong> {
        let mut group = self.group();
        let mut events = 0;
        for read in message::events(bytes) {
            let (is_put, kv) = read?;
            if !is_put {
                return Err(Wrong::deletion(kv.key, kv.mod_revision));
            }
            let told = Told::read(plan, kv.key, kv.value, kv.mod_revision)?;
            self.take(plan, scope, &mut group, &told)?;
            events += 1;
            event(told.put.number, told.put.sent);
        }
        Ok(events)
    }

    fn group(&self) -> Group {
        Group { before: self.last, newest: None }
    }

    /// Checks the next event of a group.
    fn take(&mut self, plan: &Plan, scope: Scope, group: &mut Group, told: &Told) -> Result<(), Wrong> {
        let Told { revision: relative, index, put } = *told;
        let revision = plan.base + i64::from(relative);
        if scope != Scope::All && scope != Scope::Key(index) {
            return Err(Wrong::key(&plan.key(index), revision));
        }
        if group.newest.is_none() && relative == group.before {
            let split = plan.puts_per_write > 1;
            return Err(if split { Wrong::Split { revision } } else { Wrong::Duplicate { revision } });
        }
        match group.newest {
            Some((same, number)) if relative == same && put.number <= number => {
                return Err(Wrong::Duplicate { revision });
            }
            _ if relative < self.last => {
                return Err(Wrong::Disorder { last: self.through(plan), revision });
            }
            _ => {}
        }
        group.newest = Some((relative, put.number));
        self.last = relative;
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(mark(relative, put.number));
        Ok(())
    }

    /// The number of events that should have come in the end.
    pub(super) fn expected(&self, truth: &Truth, scope: Scope) -> u64 {
        u64::from(truth.after(scope, self.start).0)
    }

    /// Checks the whole watch once nothing more comes.
    pub(super) fn conclude(&self, plan: &Plan, truth: &Truth, scope: Scope) -> Result<(), Wrong> {
        let (expected, sum) = truth.after(scope, self.start);
        if self.count < expected {
            let last = self.through(plan);
            return Err(Wrong::Gap { missing: u64::from(expected - self.count), expected: u64::from(expected), last });
        }
        if (self.count, self.sum) != (expected, sum) {
            return Err(Wrong::Unwritten { count: u64::from(self.count), expected: u64::from(expected) });
        }
        Ok(())
    }
}

impl Told {
    /// Reads a put.
    pub(super) fn read(plan: &Plan, key: &[u8], value: &[u8], revision: i64) -> Result<Self, Wrong> {
        let index = plan.index_of(key).ok_or_else(|| Wrong::key(key, revision))?;
        let put = plan.read_value(value).filter(|put| put.number % plan.keys == index);
        match (put, plan.relative(revision)) {
            (Some(put), Some(revision)) => Ok(Self { revision, index, put }),
            _ => Err(Wrong::Value { key: String::from_utf8_lossy(key).into_owned(), revision }),
        }
    }
}

impl Truth {
    pub(super) fn new(plan: &Plan, mut writes: Vec<Write>) -> Self {
        writes.sort_unstable_by_key(|write| write.revision);
        let mut truth = Self { all: Line::default(), by_key: Vec::new(), state: Line::default() };
        truth.by_key.resize_with(usize::try_from(plan.keys).unwrap_or(0), Line::default);
        for write in writes {
            let Some(revision) = plan.relative(write.revision) else { continue };
            for number in write.first..write.first + plan.puts_per_write {
                truth.all.push(revision, number);
                let line = &mut truth.by_key[(number % plan.keys) as usize];
                truth.state.replace(revision, line.newest(), number);
                line.push(revision, number);
            }
        }
        truth
    }

    /// The number and the sum of the puts after this revision.
    fn after(&self, scope: Scope, revision: u32) -> (u32, u32) {
        match scope {
            Scope::All => self.all.after(revision),
            Scope::Key(index) => self.by_key[index as usize].after(revision),
        }
    }

    /// The number of keys that the run had written at this revision, and the sum of their newest puts.
    pub(super) fn state_at(&self, revision: u32) -> (u32, u32) {
        self.state.until(revision)
    }
}

impl Line {
    fn push(&mut self, revision: u32, number: u64) {
        let (_, count, sum) = self.0.last().copied().unwrap_or_default();
        self.0.push((revision, count + 1, sum.wrapping_add(mark(revision, number))));
    }

    /// Adds a put, and removes the one with the mark `replaced`.
    fn replace(&mut self, revision: u32, replaced: Option<u32>, number: u64) {
        let (_, count, sum) = self.0.last().copied().unwrap_or_default();
        let sum = sum.wrapping_sub(replaced.unwrap_or(0)).wrapping_add(mark(revision, number));
        self.0.push((revision, count + u32::from(replaced.is_none()), sum));
    }

    /// The mark of the last put.
    fn newest(&self) -> Option<u32> {
        let (last, before) = self.0.split_last()?;
        Some(last.2.wrapping_sub(before.last().map_or(0, |before| before.2)))
    }

    fn after(&self, revision: u32) -> (u32, u32) {
        let (_, count, sum) = self.0.last().copied().unwrap_or_default();
        let (count_until, sum_until) = self.until(revision);
        (count - count_until, sum.wrapping_sub(sum_until))
    }

    fn until(&self, revision: u32) -> (u32, u32) {
        let until = self.0.partition_point(|(at, ..)| *at <= revision);
        let (_, count, sum) = until.checked_sub(1).map(|last| self.0[last]).unwrap_or_default();
        (count, sum)
    }
}

/// A number that is unlikely to be the same for other puts and revisions.
pub(super) fn mark(revision: u32, number: u64) -> u32 {
    let mixed = (number << 32 ^ number ^ u64::from(revision).rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb::{etcdserverpb::WatchResponse, mvccpb};

    const BASE: i64 = 1000;

    fn plan(puts_per_write: u64) -> Plan {
        Plan::new(b"/test/".to_vec(), 4, 64, puts_per_write, BASE)
    }

    /// A response with these puts, given as (revision, number).
    fn response(plan: &Plan, puts: &[(i64, u64)]) -> Vec<u8> {
        let event = |(mod_revision, number): &(i64, u64)| {
            let kv = mvccpb::KeyValue {
                key: plan.key(number % plan.keys).into(),
                value: plan.value(*number, 5).into(),
                mod_revision: *mod_revision,
                ..Default::default()
            };
            mvccpb::Event { kv: Some(kv), ..Default::default() }
        };
        WatchResponse { events: puts.iter().map(event).collect(), ..Default::default() }.encode_to_vec()
    }

    /// The error in these responses, given what was written.
    fn judge(plan: &Plan, scope: Scope, written: &[(i64, u64)], responses: &[&[(i64, u64)]]) -> Result<(), Wrong> {
        let mut seen = Seen::after(plan, BASE);
        for puts in responses {
            seen.response(plan, scope, &response(plan, puts), |_, sent| assert_eq!(sent, 5))?;
        }
        let writes = written.iter().map(|(revision, first)| Write { revision: *revision, first: *first }).collect();
        seen.conclude(plan, &Truth::new(plan, writes), scope)
    }

    #[test]
    fn what_is_right_passes() {
        let single = plan(1);
        let written = [(1001, 0), (1004, 2), (1003, 1), (1009, 4)];
        let sent: &[&[(i64, u64)]] = &[&[(1001, 0)], &[(1003, 1), (1004, 2)], &[(1009, 4)]];
        assert_eq!(judge(&single, Scope::All, &written, sent), Ok(()));
        assert_eq!(judge(&single, Scope::Key(0), &written, &[&[(1001, 0), (1009, 4)]]), Ok(()));
        let sent: &[&[(i64, u64)]] = &[&[(1001, 0), (1001, 1), (1003, 2), (1003, 3)]];
        assert_eq!(judge(&plan(2), Scope::All, &[(1001, 0), (1003, 2)], sent), Ok(()));
    }

    #[test]
    fn a_gap_is_found() {
        let gap = |last| Err(Wrong::Gap { missing: 1, expected: 3, last });
        let written = [(1001, 0), (1002, 1), (1003, 2)];
        assert_eq!(judge(&plan(1), Scope::All, &written, &[&[(1001, 0)], &[(1003, 2)]]), gap(1003));
        assert_eq!(judge(&plan(1), Scope::All, &written, &[&[(1001, 0), (1002, 1)]]), gap(1002));
        let half = judge(&plan(2), Scope::All, &[(1001, 0)], &[&[(1001, 0)]]);
        assert_eq!(half, Err(Wrong::Gap { missing: 1, expected: 2, last: 1001 }));
    }

    #[test]
    fn a_duplicate_is_found() {
        let duplicate = Err(Wrong::Duplicate { revision: 1001 });
        assert_eq!(judge(&plan(1), Scope::All, &[(1001, 0)], &[&[(1001, 0)], &[(1001, 0)]]), duplicate);
        assert_eq!(judge(&plan(1), Scope::All, &[(1001, 0)], &[&[(1001, 0), (1001, 0)]]), duplicate);
    }

    #[test]
    fn a_split_revision_is_found() {
        let split = judge(&plan(2), Scope::All, &[(1001, 0)], &[&[(1001, 0)], &[(1001, 1)]]);
        assert_eq!(split, Err(Wrong::Split { revision: 1001 }));
    }

    #[test]
    fn disorder_is_found() {
        let written = [(1001, 0), (1002, 1)];
        let disorder = Err(Wrong::Disorder { last: 1002, revision: 1001 });
        assert_eq!(judge(&plan(1), Scope::All, &written, &[&[(1002, 1)], &[(1001, 0)]]), disorder);
        assert_eq!(judge(&plan(1), Scope::All, &written, &[&[(1002, 1), (1001, 0)]]), disorder);
        // Events from before the watch are out of order too.
        let early = judge(&plan(1), Scope::All, &[], &[&[(999, 0)]]);
        assert!(matches!(early, Err(Wrong::Value { revision: 999, .. })), "{early:?}");
    }

    #[test]
    fn wrong_revisions_values_and_keys_are_found() {
        let plan = plan(1);
        let shifted = judge(&plan, Scope::All, &[(1001, 0)], &[&[(1002, 0)]]);
        assert_eq!(shifted, Err(Wrong::Unwritten { count: 1, expected: 1 }));
        let other = judge(&plan, Scope::Key(1), &[(1001, 0)], &[&[(1001, 0)]]);
        assert!(matches!(other, Err(Wrong::Key { revision: 1001, .. })), "{other:?}");
        let kv = |key: Vec<u8>, value: Vec<u8>| {
            Some(mvccpb::KeyValue { key: key.into(), value: value.into(), mod_revision: 1001, ..Default::default() })
        };
        let judged = |event: mvccpb::Event| {
            let bytes = WatchResponse { events: vec![event], ..Default::default() }.encode_to_vec();
            Seen::after(&plan, BASE).response(&plan, Scope::All, &bytes, |_, _| {})
        };
        let mut value = plan.value(0, 5);
        *value.last_mut().expect("not empty") ^= 1;
        let event = |kv| mvccpb::Event { kv, ..Default::default() };
        assert!(matches!(judged(event(kv(plan.key(0), value))), Err(Wrong::Value { .. })));
        assert!(matches!(judged(event(kv(plan.key(1), plan.value(0, 5)))), Err(Wrong::Value { .. })));
        assert!(matches!(judged(event(kv(b"/other".to_vec(), plan.value(0, 5)))), Err(Wrong::Key { .. })));
        let deletion = mvccpb::Event { r#type: 1, kv: kv(plan.key(0), Vec::new()), prev_kv: None };
        assert!(matches!(judged(deletion), Err(Wrong::Deletion { .. })));
    }

    #[test]
    fn a_watch_expects_what_was_written_after_its_start() {
        let plan = plan(1);
        let truth = Truth::new(&plan, (0..8).map(|n| Write { revision: 1001 + n as i64, first: n }).collect());
        for (start, all, key) in [(BASE, 8, 2), (1001, 7, 1), (1007, 1, 0), (1008, 0, 0)] {
            let seen = Seen::after(&plan, start);
            assert_eq!(seen.expected(&truth, Scope::All), all, "after {start}");
            assert_eq!(seen.expected(&truth, Scope::Key(0)), key, "after {start}");
        }
    }
}
