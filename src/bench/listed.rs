//! [`Listed`]: the judge of a list: whether its pages have every key once, in order, all as of the revision that the first one named.
//!
//! Not here: who lists, see `watch::joiner`; watches, see `check`. The keys are there before the run's first revision, each with the put
//! of its own number, and none is deleted. Always holds: a list takes a few bytes however long it is: what is missing or out of place
//! shows at once, and whether the values are those of the revision at the end, by number and sum of those that were written since.

use thiserror::Error;

use super::{
    check::{Truth, mark},
    message::{self, Unreadable},
    plan::Plan,
};

/// What was wrong with a list.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Wrong {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("it is of revision {revision}, although {acknowledged} was acknowledged before it was asked for")]
    Stale { revision: i64, acknowledged: i64 },
    #[error("key {key:?} came where that of number {index} was to come")]
    Key { key: String, index: u64 },
    #[error("a wrong value of {0:?}")]
    Value(String),
    #[error("key {key:?} is of revision {revision}, the list of {listed}")]
    Later { key: String, revision: i64, listed: i64 },
    #[error("{keys} keys came and {count} were counted, with more to come: {more}; there are {expected}")]
    Count { keys: u64, count: i64, more: bool, expected: u64 },
    #[error(
        "it is not as of its revision {revision}: {changed} keys had new values, which is not what was written until then"
    )]
    Mixed { revision: i64, changed: u32 },
    #[error("it ended nowhere: {keys} of {expected} keys came, and then nothing")]
    Unfinished { keys: u64, expected: u64 },
}

/// The pages that have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listed {
    /// That of the first page; zero before it.
    revision: i64,
    keys: u64,
    /// Of these, the ones that the run had written, and the sum of their puts.
    changed: u32,
    sum: u32,
    done: bool,
}

impl Listed {
    /// The revision of the list; zero as long as nothing has come.
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// How many keys have come.
    pub(super) fn keys(&self) -> u64 {
        self.keys
    }

    /// Whether that was all.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Judges a page. `acknowledged` is the newest revision of which the writer knew when the list was asked for.
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
        // The count is of the range that was asked for: all that had not come before.
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

    /// Judges the whole, once it is known what was written.
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

    /// As it comes.
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

    /// Key 1 was written at 101 and 103, key 2 at 102. What is wrong with these pages?
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
        // A later page names the revision of its time, and has the keys of the first one's.
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
        assert!(matches!(judge(&[(102, &keys, 4, false)]), Err(Wrong::Value(_))), "a put of the run before its time");
    }
}
