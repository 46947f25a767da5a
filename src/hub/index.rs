//! [`Index`]: finds the subscriptions that an event concerns.
//!
//! Not here: a subscription's position or queue, see `outbox`. Used by `feed` under its lock. Subscriptions with the
//! same range and options form a group, so that a payload is made once for all of them. Always holds: a lookup costs
//! one hash for exact keys and O(log n + matches) for ranges, however many others there are. A subscription costs eight
//! bytes here, and its key is kept once for all that share it. The members of a group can be copied in a moment, for a
//! publication that is pushed after the lock was released.

use bytes::Bytes;
use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::{chunks::Chunks, interval::IntervalTree, slack::Slack};
use crate::types::{EventKind, KeyRange};

/// Which events of its range a subscription wants, and in which form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WatchOptions {
    /// Filter NOPUT: leaves puts out.
    pub no_put: bool,
    /// Filter NODELETE: leaves deletes out.
    pub no_delete: bool,
    /// Events include the previous key-value.
    pub prev_kv: bool,
}

impl WatchOptions {
    /// Whether an event of this kind is wanted.
    #[must_use]
    pub fn wants(&self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.no_put,
            EventKind::Delete => !self.no_delete,
        }
    }
}

/// A group's position in the index.
pub(super) type GroupId = u32;

/// One subscription in a group: the outbox's slot in the feed, and the watch's slot in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) outbox: u32,
    pub(super) watch: u32,
}

/// The subscriptions of a group.
pub(super) type Members = Chunks<Member, 1024>;

/// Subscriptions that get the same bytes.
#[derive(Debug)]
pub(super) struct Group {
    /// Unlike its id, this is never given to another group.
    pub(super) serial: u64,
    pub(super) range: KeyRange,
    pub(super) options: WatchOptions,
    pub(super) members: Members,
}

type GroupIds = SmallVec<[GroupId; 2]>;

/// Subscriptions by key and range; see the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    groups: Slab<Group>,
    slack: Slack,
    exact: HashMap<Bytes, GroupIds>,
    ranges: IntervalTree<GroupIds>,
    subscriptions: usize,
    next_serial: u64,
}

impl Index {
    /// Adds a subscription. Returns its group and its position in the group, which [`Index::remove`] needs.
    pub(super) fn insert(&mut self, range: &KeyRange, options: WatchOptions, member: Member) -> (GroupId, u32) {
        let ids = if range.is_single() {
            if !self.exact.contains_key(range.start()) {
                // A copy, so that the key does not keep the buffer of its request in memory.
                self.exact.insert(Bytes::copy_from_slice(range.start()), GroupIds::new());
            }
            self.exact.entry(range.start().clone()).or_default()
        } else {
            self.ranges.entry(range)
        };
        let found = ids.iter().copied().find(|id| self.groups[*id as usize].options == options);
        let id = found.unwrap_or_else(|| {
            // A copy, for the same reason.
            let group =
                Group { serial: self.next_serial, range: range.detached(), options, members: Members::default() };
            self.next_serial += 1;
            let id = self.groups.insert(group) as GroupId;
            ids.push(id);
            id
        });
        let members = &mut self.groups[id as usize].members;
        members.push(member);
        self.subscriptions += 1;
        (id, members.len() as u32 - 1)
    }

    /// Removes a subscription. Returns the one that took its position, if any; its owner must be told.
    pub(super) fn remove(&mut self, id: GroupId, position: u32) -> Option<Member> {
        let group = &mut self.groups[id as usize];
        let removed = group.members.swap_remove(position as usize);
        debug_assert!(removed.is_some(), "a subscription is removed once");
        self.subscriptions -= 1;
        let moved = group.members.get(position as usize).copied();
        if group.members.is_empty() {
            let group = self.groups.remove(id as usize);
            self.slack.removed(&mut self.groups);
            if group.range.is_single() {
                if let Some(ids) = self.exact.get_mut(group.range.start()) {
                    ids.retain(|other| *other != id);
                    if ids.is_empty() {
                        self.exact.remove(group.range.start());
                        // Returns the memory that a burst of keys took.
                        if self.exact.capacity() > 64 && self.exact.len() < self.exact.capacity() / 8 {
                            self.exact.shrink_to(2 * self.exact.len());
                        }
                    }
                }
            } else {
                let ids = self.ranges.entry(&group.range);
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.ranges.remove(&group.range);
                }
            }
        }
        moved
    }

    /// Calls `found` with each group whose range contains `key`.
    pub(super) fn matches(&self, key: &[u8], mut found: impl FnMut(GroupId)) {
        if let Some(ids) = self.exact.get(key) {
            ids.iter().copied().for_each(&mut found);
        }
        self.ranges.stab(key, &mut |ids| ids.iter().copied().for_each(&mut found));
    }

    /// A group by its id.
    pub(super) fn group(&self, id: GroupId) -> &Group {
        &self.groups[id as usize]
    }

    /// Number of subscriptions.
    pub(super) fn len(&self) -> usize {
        self.subscriptions
    }

    /// Whether there is no subscription.
    pub(super) fn is_empty(&self) -> bool {
        self.subscriptions == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_many_subscriptions_goes_back_though_one_stays() {
        let mut index = Index::default();
        let key = |number: usize| KeyRange::from_wire(format!("{number:06}").into(), Bytes::new()).expect("a key");
        let prefix = |number: usize| KeyRange::from_wire(format!("{number:06}").into(), "~".into()).expect("a range");
        let member = Member { outbox: 0, watch: 0 };
        let many: Vec<_> = (0..20_000)
            .map(|number| {
                let range = if number % 2 == 0 { key(number) } else { prefix(number) };
                index.insert(&range, WatchOptions::default(), member)
            })
            .collect();
        let (groups, exact) = (index.groups.capacity(), index.exact.capacity());
        for (id, position) in &many[2..] {
            index.remove(*id, *position);
        }
        assert_eq!(index.len(), 2);
        assert!(index.groups.capacity() < groups / 100, "{} of {groups}", index.groups.capacity());
        assert!(index.exact.capacity() < exact / 100, "{} of {exact}", index.exact.capacity());
        let mut found = 0;
        index.matches(b"000000", |_| found += 1);
        index.matches(b"000001", |_| found += 1);
        assert_eq!(found, 2);
    }
}
