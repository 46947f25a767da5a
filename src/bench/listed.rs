//! [`Listed`]: checks that the pages of a list have every key once, in order, all as of the first page's revision.
//!
//! Lists are made in `watch::joiner`; watches are checked in `check`. The keys exist before the run's first revision,
//! each with the put of its own number, and none is deleted. Always holds: a list needs a few bytes, however long it
//! is. Missing or misplaced keys are found at once. Whether the values are those of the revision is found at the end,
//! by the number and the sum of the values written since.

use thiserror::Error;

use super::{
    check::{Truth, mark},
    message::{self, Unreadable},
    plan::Plan,
};

/// An error in a list.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Wrong {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("the list is of revision {revision}, although {acknowledged} was acknowledged before the request")]
    Stale { revision: i64, acknowledged: i64 },
    #[error("key {key:?} came in place of key number {index}")]
    Key { key: String, index: u64 },
    #[error("a wrong value of {0:?}")]
    Value(String),
    #[error("key {key:?} has revision {revision}, but the list is of {listed}")]
    Later { key: String, revision: i64, listed: i64 },
    #[error("{keys} keys came with count {count} and more={more}, but there are {expected}")]
    Count { keys: u64, count: i64, more: bool, expected: u64 },
    #[error(
        "the list does not match its revision {revision}: {changed} keys had new values, which differs from what was \
         written until then"
    )]
    Mixed { revision: i64, changed: u32 },
    #[error("the list is incomplete: only {keys} of {expected} keys came")]
    Unfinished { keys: u64, expected: u64 },
}

/// The pages that have arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// The revision of the first page; zero before it.
    revision: i64,
    keys: u64,
    /// The number of keys that the run had written, and the sum of their puts.
    changed: u32,
    sum: u32,
    done: bool,
}

impl Listed {
    /// The revision of the list; zero before the first page.
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// The number of keys that have arrived.
    pub(super) fn keys(&self) -> u64 {
        self.keys
    }

    /// Whether the list is complete.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Checks a page. `acknowledged` is the newest revision that the writer knew when the list was requested.
    pub(super) fn page(&mut self, plan: &Plan, acknowledged: i64, bytes: &[u8]) -> Result<(), Wrong> {
        let head = message::range_response(bytes)?;
        if self.revision == 0 {
            if head.revision < acknowledged {
                return Err(Wrong::Stale { revision: head.revision, acknowledged });
            }
            self.revision = head.revision;
        }
        let before = self.keys;
        for kv in message::key_values(bytes) {
            let kv = kv?;
            let key = || String::from_utf8_lossy(kv.key).into_owned();
            if plan.index_of(kv.key) != Some(self.keys) {
                return Err(Wrong::Key { key: key(), index: self.keys });
            }
            if kv.mod_revision > self.revision {
                return Err(Wrong::Later { key: key(), revision: kv.mod_revision, listed: self.revision });
            }
            let number = plan.read_value(kv.value).map(|put| put.number);
            match (number, plan.relative(kv.mod_revision).filter(|relative| *relative > 0)) {
                (Some(number), Some(relative)) if number % plan.keys == self.keys => {
                    self.changed += 1;
                    self.sum = self.sum.wrapping_add(mark(relative, number));
                }
                (Some(number), None) if number == self.keys => {}
                _ => return Err(Wrong::Value(key())),
            }
            self.keys += 1;
        }
        // The count is that of the requested range: all keys that have not arrived before.
        let left = plan.keys - before;
        let progress = self.keys > before && self.keys < plan.keys;
        if head.count != i64::try_from(left).unwrap_or(i64::MAX)
            || head.more != (self.keys < plan.keys)
            || head.more && !progress
        {
            let (keys, count, more) = (self.keys, head.count, head.more);
            return Err(Wrong::Count { keys, count, more, expected: plan.keys });
        }
        self.done = !head.more;
        Ok(())
    }

    /// Checks the whole list, once it is known what was written.
    pub(super) fn conclude(&self, plan: &Plan, truth: &Truth) -> Result<(), Wrong> {
        if !self.done {
            return Err(Wrong::Unfinished { keys: self.keys, expected: plan.keys });
        }
        let expected = truth.state_at(plan.relative(self.revision).unwrap_or(0));
        if (self.changed, self.sum) != expected {
            return Err(Wrong::Mixed { revision: self.revision, changed: self.changed });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::{
        bench::check::Write,
        pb::{
            etcdserverpb::{RangeResponse, ResponseHeader},
            mvccpb,
        },
    };

    /// Keys 0 to 3 were put before revision 100.
    fn plan() -> Plan {
        Plan::new(b"/l/".to_vec(), 4, 64, 1, 100)
    }

    /// A key, the number of its put, and its revision.
    type Kv = (u64, u64, i64);
    /// Its revision, its keys, how many it counts, and whether it says that there are more.
    type Page<'a> = (i64, &'a [Kv], i64, bool);

    /// Encodes a page.
    fn page(plan: &Plan, (revision, keys, count, more): Page<'_>) -> Vec<u8> {
        let kv = |(key, number, mod_revision): &Kv| mvccpb::KeyValue {
            key: plan.key(*key).into(),
            value: plan.value(*number, 0).into(),
            mod_revision: *mod_revision,
            ..Default::default()
        };
        let header = Some(ResponseHeader { revision, ..Default::default() });
        RangeResponse { header, kvs: keys.iter().map(kv).collect(), more, count }.encode_to_vec()
    }

    /// The error in these pages. Key 1 was written at 101 and 103, key 2 at 102.
    fn judge(pages: &[Page<'_>]) -> Result<(), Wrong> {
        let plan = plan();
        let mut listed = Listed::default();
        for told in pages {
            listed.page(&plan, 101, &page(&plan, *told))?;
        }
        let writes = [(101, 5), (102, 6), (103, 9)].map(|(revision, first)| Write { revision, first });
        listed.conclude(&plan, &Truth::new(&plan, writes.to_vec()))
    }

    const AT_102: [Kv; 4] = [(0, 0, 97), (1, 5, 101), (2, 6, 102), (3, 3, 100)];

    #[test]
    fn a_whole_list_passes_in_one_page_or_in_many() {
        assert_eq!(judge(&[(102, &AT_102, 4, false)]), Ok(()));
        // A later page names the revision at its own time, and has the keys of the first one's revision.
        assert_eq!(judge(&[(102, &AT_102[..3], 4, true), (103, &AT_102[3..], 1, false)]), Ok(()));
    }

    #[test]
    fn what_is_missing_or_twice_is_found() {
        let without = [AT_102[0], AT_102[2], AT_102[3]];
        assert!(matches!(judge(&[(102, &without, 3, false)]), Err(Wrong::Key { index: 1, .. })));
        assert!(matches!(judge(&[(102, &AT_102[..3], 3, false)]), Err(Wrong::Count { keys: 3, .. })));
        assert!(matches!(judge(&[(102, &AT_102[..3], 4, false)]), Err(Wrong::Count { keys: 3, .. })));
        let twice = judge(&[(102, &AT_102[..3], 4, true), (103, &AT_102[2..], 2, false)]);
        assert!(matches!(twice, Err(Wrong::Key { index: 3, .. })), "{twice:?}");
        assert!(matches!(judge(&[(102, &[], 4, true)]), Err(Wrong::Count { keys: 0, .. })));
        assert_eq!(judge(&[(102, &AT_102[..3], 4, true)]), Err(Wrong::Unfinished { keys: 3, expected: 4 }));
        assert!(matches!(judge(&[(102, &AT_102, 5, false)]), Err(Wrong::Count { count: 5, .. })));
    }

    #[test]
    fn what_is_not_of_the_revision_is_found() {
        assert_eq!(judge(&[(100, &AT_102, 4, false)]), Err(Wrong::Stale { revision: 100, acknowledged: 101 }));
        let mut keys = AT_102;
        keys[1] = (1, 9, 103);
        assert!(matches!(judge(&[(102, &keys, 4, false)]), Err(Wrong::Later { revision: 103, .. })));
        keys[1] = (1, 1, 98);
        assert_eq!(judge(&[(102, &keys, 4, false)]), Err(Wrong::Mixed { revision: 102, changed: 1 }));
        assert_eq!(judge(&[(103, &AT_102, 4, false)]), Err(Wrong::Mixed { revision: 103, changed: 2 }));
        keys[1] = (1, 2, 101);
        assert!(matches!(judge(&[(102, &keys, 4, false)]), Err(Wrong::Value(_))));
        keys[1] = (1, 5, 98);
        assert!(
            matches!(judge(&[(102, &keys, 4, false)]), Err(Wrong::Value(_))),
            "a put that the run had not made \
            yet"
        );
    }
}
