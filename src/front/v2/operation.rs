//! [`Operation`]: the meaning of a write, and its v3 transaction.
//!
//! Each operation is one transaction, whose compares check that nothing prevents it. So it never takes effect only in
//! part, whoever else writes. The answer to a failed transaction shows the reason (`outcome`). Always holds: each part
//! of a transaction has at most 128 operations, etcd's own limit.

use bytes::Bytes;

use super::{
    answer::Refusal,
    fields::Fields,
    path::{ancestors, kids, mark},
};
use crate::{
    pb::etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request as Op,
    },
    types::KeyRange,
};

/// Most components of a path that is written, since a transaction checks each of them twice.
pub(super) const MAX_DEPTH: usize = 60;

/// The values to compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Condition {
    /// Zero means none.
    pub(super) index: u64,
    pub(super) value: Option<Bytes>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Set {
        dir: bool,
    },
    Create {
        dir: bool,
    },
    Update,
    UpdateDirectory,
    CompareAndSwap(Condition),
    /// Deletes a file, whatever its flags are.
    Delete {
        dir: bool,
        recursive: bool,
    },
    DeleteEmpty,
    DeleteTree,
    CompareAndDelete(Condition),
}

impl Operation {
    /// The meaning of a PUT.
    pub(super) fn of_put(fields: &Fields) -> Self {
        let condition = Condition { index: fields.prev_index, value: fields.prev_value.clone() };
        let compares = condition != Condition::default();
        match fields.prev_exist {
            Some(true) if !compares => Self::Update,
            Some(false) => Self::Create { dir: fields.dir },
            _ if compares => Self::CompareAndSwap(condition),
            _ => Self::Set { dir: fields.dir },
        }
    }

    /// The meaning of a DELETE.
    pub(super) fn of_delete(fields: &Fields) -> Self {
        let condition = Condition { index: fields.prev_index, value: fields.prev_value.clone() };
        if condition == Condition::default() {
            Self::Delete { dir: fields.dir, recursive: fields.recursive }
        } else {
            Self::CompareAndDelete(condition)
        }
    }

    /// Whether it can create directories in its path.
    pub(super) fn makes(&self) -> bool {
        matches!(self, Self::Set { .. } | Self::Create { .. })
    }

    /// Whether it writes a directory.
    pub(super) fn is_of_directory(&self) -> bool {
        matches!(self, Self::Set { dir: true } | Self::Create { dir: true } | Self::UpdateDirectory)
    }

    /// Whether a key that it writes can have a TTL.
    pub(super) fn puts(&self) -> bool {
        self.makes() || matches!(self, Self::Update | Self::UpdateDirectory | Self::CompareAndSwap(_))
    }
}

/// The input for a transaction.
#[derive(Clone, Debug)]
pub(super) struct Plan<'a> {
    pub(super) path: &'a [u8],
    /// How many directories of the path, from the top, the writer may not read. They are left as they are.
    pub(super) unseen: usize,
    pub(super) operation: &'a Operation,
    pub(super) value: Bytes,
    pub(super) refresh: bool,
    /// Zero means none.
    pub(super) lease: i64,
    /// The directories in the path that have no mark.
    pub(super) unmarked: Vec<Bytes>,
}

/// Refuses a path that is too deep, before its directories are looked up.
///
/// # Errors
/// Returns error 210.
pub(super) fn check_depth(path: &[u8]) -> Result<(), Refusal> {
    match ancestors(path).nth(MAX_DEPTH - 1) {
        Some(_) => Err(Refusal::new(210, "etcd-relay: a path of more than 60 components cannot be written")),
        None => Ok(()),
    }
}

impl Plan<'_> {
    /// The transaction. The last operation of its success branch is the write itself, except for the end of a tree.
    pub(super) fn transaction(&self) -> Result<TxnRequest, Refusal> {
        check_depth(self.path)?;
        let key = Bytes::copy_from_slice(self.path);
        let own = KeyRange::single(key.clone());
        let below = kids(self.path);
        let mut compare = Vec::new();
        let mut success = Vec::new();
        let makes = self.operation.makes() && !self.refreshes_only();
        if makes {
            compare.extend(self.above().map(|above| absent(&KeyRange::single(Bytes::copy_from_slice(above)))));
            compare.push(absent(&below));
            for directory in &self.unmarked {
                let mark = mark(directory);
                compare.push(absent(&KeyRange::single(mark.clone())));
                success.push(put(mark, Bytes::new(), 0));
            }
        }
        if self.refreshes_only() {
            compare.extend([present(&own), absent(&below)]);
        }
        match self.operation {
            Operation::Set { dir: false } => success.push(self.put_value(key)),
            Operation::Set { dir: true } => {
                success.push(delete(&own, true));
                success.push(put(mark(self.path), Bytes::new(), self.lease));
            }
            Operation::Create { dir } => {
                compare.push(absent(&own));
                let key = if *dir { mark(self.path) } else { key };
                // A refresh that creates a key creates an empty one.
                success.push(put(key, if *dir { Bytes::new() } else { self.value.clone() }, self.lease));
            }
            Operation::Update => {
                compare.push(present(&own));
                success.push(self.put_value(key));
            }
            Operation::UpdateDirectory => {
                compare.extend([absent(&own), present(&below)]);
                success.push(put(mark(self.path), Bytes::new(), self.lease));
            }
            Operation::CompareAndSwap(condition) => {
                compare.extend(conditions(&own, condition));
                success.push(self.put_value(key));
            }
            Operation::Delete { .. } => {
                compare.push(present(&own));
                success.push(delete(&own, true));
            }
            Operation::DeleteEmpty => {
                let start = [self.path, b"/\0"].concat();
                let without_mark = KeyRange::from_wire(start.into(), below.to_wire().1).expect("`0` comes after `/`");
                let own_mark = KeyRange::single(mark(self.path));
                compare.extend([absent(&own), present(&own_mark), absent(&without_mark)]);
                success.push(delete(&own_mark, true));
            }
            Operation::DeleteTree => {
                compare.extend([absent(&own), present(&below)]);
                success.push(read(&KeyRange::single(mark(self.path)), 0, false));
                success.push(delete(&below, false));
            }
            Operation::CompareAndDelete(condition) => {
                compare.extend(conditions(&own, condition));
                success.push(delete(&own, true));
            }
        }
        Ok(TxnRequest { compare, success, failure: self.why() })
    }

    /// The directories of the path that are checked.
    pub(super) fn above(&self) -> impl Iterator<Item = &[u8]> {
        ancestors(self.path).skip(self.unseen)
    }

    /// A refresh of a key that must exist creates no directories.
    fn refreshes_only(&self) -> bool {
        self.refresh && matches!(self.operation, Operation::Set { .. })
    }

    /// The reads that show why nothing was written: each directory of the path as a key and as a directory, then the
    /// path itself.
    fn why(&self) -> Vec<RequestOp> {
        let mut reads = Vec::new();
        for above in self.above() {
            reads.push(read(&KeyRange::single(Bytes::copy_from_slice(above)), 0, true));
            reads.push(read(&kids(above), 1, true));
        }
        reads.push(read(&KeyRange::single(Bytes::copy_from_slice(self.path)), 0, false));
        reads.push(read(&kids(self.path), 2, true));
        reads
    }

    fn put_value(&self, key: Bytes) -> RequestOp {
        let request = PutRequest {
            key,
            value: if self.refresh { Bytes::new() } else { self.value.clone() },
            lease: self.lease,
            prev_kv: true,
            ignore_value: self.refresh,
            ..PutRequest::default()
        };
        RequestOp { request: Some(Op::RequestPut(request)) }
    }
}

/// What a POST knows about its directory's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnMark {
    /// Its revision.
    pub(super) at: i64,
    /// Its value is the directory's index, because an earlier POST has put it.
    pub(super) tells_index: bool,
}

/// The in-order keys of a directory from `from` on, for all names that can ever exist.
pub(super) fn names_from(directory: &[u8], from: i64) -> KeyRange {
    let name = |number: i64| [&mark(directory)[..], format!("{number:020}").as_bytes()].concat();
    let end = name(from.saturating_add(1_000_000_000));
    KeyRange::from_wire(name(from).into(), end.into()).expect("a later name is greater")
}

/// The transaction of a POST. It creates `path` in a directory that has no key of this name or a later one, and never
/// had one. It also puts the directory's mark again, so the mark is as new as the last name that was used, even if that
/// key no longer exists. The root has a mark only for that. `was` is the mark before, if there is one.
pub(super) fn in_order(
    plan: &Plan<'_>,
    directory: &[u8],
    number: i64,
    was: Option<&OwnMark>,
) -> Result<TxnRequest, Refusal> {
    let mut transaction = plan.transaction()?;
    transaction.compare.push(absent(&names_from(directory, number)));
    let own_mark = KeyRange::single(mark(directory));
    if let Some(was) = was.filter(|_| !plan.unmarked.iter().any(|path| path == directory)) {
        let older = TargetUnion::ModRevision(number);
        transaction.compare.push(comparing(&own_mark, CompareTarget::Mod, CompareResult::Less, older));
        let same = (CompareResult::Equal, TargetUnion::ModRevision(was.at));
        let there = (CompareResult::Greater, TargetUnion::ModRevision(0));
        let (result, union) = if was.tells_index { there } else { same };
        transaction.compare.push(comparing(&own_mark, CompareTarget::Mod, result, union));
        let value = if was.tells_index { Bytes::new() } else { Bytes::from(was.at.to_string()) };
        let key = mark(directory);
        let put = PutRequest { key, value, ignore_value: was.tells_index, ignore_lease: true, ..PutRequest::default() };
        transaction.success.insert(0, RequestOp { request: Some(Op::RequestPut(put)) });
    } else if directory == b"/" {
        transaction.compare.push(absent(&own_mark));
        transaction.success.insert(0, put(mark(directory), Bytes::new(), 0));
    }
    transaction.failure.push(read(&own_mark, 0, false));
    let newest = RangeRequest {
        sort_order: crate::pb::etcdserverpb::range_request::SortOrder::Descend.into(),
        ..range(&names_from(directory, number), 1, true)
    };
    transaction.failure.push(RequestOp { request: Some(Op::RequestRange(newest)) });
    Ok(transaction)
}

/// The transaction that reads a path and everything below it, up to `most` keys.
pub(super) fn reading(path: &[u8], most: usize) -> TxnRequest {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let own = KeyRange::single(Bytes::copy_from_slice(path));
    TxnRequest { success: vec![read(&own, 0, false), read(&kids(path), most, false)], ..TxnRequest::default() }
}

fn conditions(own: &KeyRange, condition: &Condition) -> Vec<Compare> {
    let mut compare = vec![present(own)];
    if condition.index > 0 {
        // No revision is too large for this type, so an index that does not fit matches no key. The compare requires an
        // absent key instead.
        match i64::try_from(condition.index) {
            Ok(index) => {
                compare.push(comparing(own, CompareTarget::Mod, CompareResult::Equal, TargetUnion::ModRevision(index)))
            }
            Err(_) => compare.push(absent(own)),
        }
    }
    if let Some(value) = &condition.value {
        compare.push(comparing(own, CompareTarget::Value, CompareResult::Equal, TargetUnion::Value(value.clone())));
    }
    compare
}

fn absent(range: &KeyRange) -> Compare {
    comparing(range, CompareTarget::Create, CompareResult::Equal, TargetUnion::CreateRevision(0))
}

fn present(range: &KeyRange) -> Compare {
    comparing(range, CompareTarget::Create, CompareResult::Greater, TargetUnion::CreateRevision(0))
}

pub(super) fn comparing(range: &KeyRange, target: CompareTarget, result: CompareResult, union: TargetUnion) -> Compare {
    let (key, range_end) = range.to_wire();
    Compare { result: result.into(), target: target.into(), key, range_end, target_union: Some(union) }
}

fn put(key: Bytes, value: Bytes, lease: i64) -> RequestOp {
    let request = PutRequest { key, value, lease, prev_kv: true, ..PutRequest::default() };
    RequestOp { request: Some(Op::RequestPut(request)) }
}

pub(super) fn delete(range: &KeyRange, prev_kv: bool) -> RequestOp {
    let (key, range_end) = range.to_wire();
    RequestOp { request: Some(Op::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv })) }
}

fn read(keys: &KeyRange, limit: i64, keys_only: bool) -> RequestOp {
    RequestOp { request: Some(Op::RequestRange(range(keys, limit, keys_only))) }
}

fn range(keys: &KeyRange, limit: i64, keys_only: bool) -> RangeRequest {
    let (key, range_end) = keys.to_wire();
    RangeRequest { key, range_end, limit, keys_only, ..RangeRequest::default() }
}
