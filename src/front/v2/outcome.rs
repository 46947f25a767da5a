//! The meaning of a transaction's answer: the event of a successful write, or the reason of the failure.
//!
//! Retries are in `keys`. Always holds: an error refers to one revision, that of the failed transaction.

use bytes::Bytes;

use super::{
    answer::{Action, Event, Node, Refusal},
    operation::{Condition, Operation, Plan},
    path::mark,
    time::Expiry,
    tree::index_of_mark,
};
use crate::{
    pb::{
        etcdserverpb::{RangeResponse, TxnResponse, response_op::Response as Op},
        mvccpb,
    },
    types::Revision,
};

/// The consequence of a transaction's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done(Box<Event>),
    Refused(Refusal),
    /// The node at the path needs another operation.
    Instead(Operation),
    /// The state has changed meanwhile; these directories have no mark now.
    Again(Vec<Bytes>),
}

/// Reads the answer. `before` is the earlier node of the path, for a directory without a mark.
pub(super) fn read(plan: &Plan<'_>, response: TxnResponse, before: Option<Node>) -> Outcome {
    let at = Revision::new(response.header.as_ref().map_or(0, |header| header.revision));
    if response.succeeded {
        Outcome::Done(Box::new(done(plan, response, at, before)))
    } else {
        failed(plan, &Why::of(plan, response), at)
    }
}

fn done(plan: &Plan<'_>, response: TxnResponse, at: Revision, before: Option<Node>) -> Event {
    let path = Bytes::copy_from_slice(plan.path);
    let mut replaced = None;
    for op in response.responses.into_iter().filter_map(|op| op.response) {
        // The write itself is the last operation. The marks of directories come before it and replaced nothing.
        match op {
            Op::ResponsePut(put) => replaced = put.prev_kv.or(replaced),
            Op::ResponseDeleteRange(delete) => replaced = delete.prev_kvs.into_iter().next().or(replaced),
            Op::ResponseRange(range) => replaced = range.kvs.into_iter().next().or(replaced),
            Op::ResponseTxn(_) => {}
        }
    }
    let prev = replaced.map(|kv| stored(&path, kv));
    let action = match plan.operation {
        Operation::Set { .. } => Action::Set,
        Operation::Create { .. } => Action::Create,
        Operation::Update | Operation::UpdateDirectory => Action::Update,
        Operation::CompareAndSwap(_) => Action::CompareAndSwap,
        Operation::Delete { .. } | Operation::DeleteEmpty | Operation::DeleteTree => Action::Delete,
        Operation::CompareAndDelete(_) => Action::CompareAndDelete,
    };
    let expiry = Expiry::of_lease(plan.lease);
    if action.removes() {
        let prev = prev.or(before).unwrap_or_else(|| Node::directory(path, at, at, None));
        return Event { action, node: prev.removed(at), prev: Some(prev) };
    }
    let is_dir = plan.operation.is_of_directory();
    let prev = if *plan.operation == Operation::UpdateDirectory { prev.or(before) } else { prev };
    let made_anew = is_dir && *plan.operation != Operation::UpdateDirectory;
    let created = prev.as_ref().filter(|_| !made_anew).map_or(at, |prev| prev.created);
    let node = if is_dir {
        Node::directory(path, at, created, expiry)
    } else {
        let kept = prev.as_ref().and_then(|prev| prev.value.clone()).filter(|_| plan.refresh);
        let value = kept.unwrap_or_else(|| plan.value.clone());
        Node { path, value: Some(value), dir: false, expiry, tells_ttl: true, modified: at, created }
    };
    Event { action, node, prev }
}

/// A key or a mark in etcd's answer.
fn stored(path: &Bytes, kv: mvccpb::KeyValue) -> Node {
    let (modified, created) = (Revision::new(kv.mod_revision), Revision::new(kv.create_revision));
    let expiry = Expiry::of_lease(kv.lease);
    if kv.key == mark(path) {
        Node::directory(path.clone(), index_of_mark(&kv.value, modified), created, expiry)
    } else {
        Node { path: path.clone(), value: Some(kv.value), dir: false, expiry, tells_ttl: true, modified, created }
    }
}

/// The reason of a failure.
struct Why {
    above: Vec<Above>,
    file: Option<mvccpb::KeyValue>,
    is_directory: bool,
    /// The directory contains something besides its mark.
    has_children: bool,
}

struct Above {
    path: Bytes,
    is_file: bool,
    is_directory: bool,
    is_marked: bool,
}

impl Why {
    fn of(plan: &Plan<'_>, response: TxnResponse) -> Self {
        let mut ranges = response.responses.into_iter().filter_map(|op| match op.response {
            Some(Op::ResponseRange(range)) => Some(range),
            _ => None,
        });
        let mut next = || ranges.next().map_or_else(Vec::new, |range: RangeResponse| range.kvs);
        let above = plan
            .above()
            .map(|path| {
                let (file, below) = (next(), next());
                Above {
                    is_file: !file.is_empty(),
                    is_directory: !below.is_empty(),
                    is_marked: below.first().is_some_and(|first| first.key == mark(path)),
                    path: Bytes::copy_from_slice(path),
                }
            })
            .collect();
        let file = next().into_iter().next();
        let below = next();
        let own_mark = mark(plan.path);
        let has_children = below.iter().any(|kv| kv.key != own_mark);
        Self { above, file, is_directory: !below.is_empty(), has_children }
    }
}

fn failed(plan: &Plan<'_>, why: &Why, at: Revision) -> Outcome {
    let refuse = |code: u32, cause: &[u8]| Outcome::Refused(Refusal::about(code, cause, at));
    let path = plan.path;
    if let Some(file) = why.above.iter().find(|above| above.is_file) {
        return refuse(104, &file.path);
    }
    let again =
        || Outcome::Again(why.above.iter().filter(|above| !above.is_marked).map(|above| above.path.clone()).collect());
    if why.is_directory {
        return match plan.operation {
            Operation::Create { .. } => refuse(105, path),
            Operation::Update if plan.value.is_empty() => Outcome::Instead(Operation::UpdateDirectory),
            Operation::Delete { recursive: true, .. } => Outcome::Instead(Operation::DeleteTree),
            Operation::Delete { dir: true, .. } | Operation::DeleteEmpty if why.has_children => refuse(108, path),
            Operation::Delete { dir: true, .. } => Outcome::Instead(Operation::DeleteEmpty),
            Operation::UpdateDirectory | Operation::DeleteTree | Operation::DeleteEmpty => again(),
            _ => refuse(102, path),
        };
    }
    if let Some(file) = &why.file {
        return match plan.operation {
            Operation::Create { .. } => refuse(105, path),
            Operation::CompareAndSwap(condition) | Operation::CompareAndDelete(condition) => {
                mismatch(condition, file).map_or_else(again, |cause| refuse(101, &cause))
            }
            Operation::DeleteEmpty | Operation::DeleteTree => {
                Outcome::Instead(Operation::Delete { dir: true, recursive: true })
            }
            Operation::UpdateDirectory => Outcome::Instead(Operation::Update),
            _ => again(),
        };
    }
    let needs_it = !plan.operation.makes() || plan.refresh && matches!(plan.operation, Operation::Set { .. });
    if needs_it {
        let missing = why.above.iter().find(|above| !above.is_directory);
        return refuse(100, missing.map_or(path, |above| &above.path));
    }
    again()
}

/// The value that does not match, in etcd's words; `None` if all match.
fn mismatch(condition: &Condition, file: &mvccpb::KeyValue) -> Option<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = Vec::new();
    if let Some(value) = condition.value.as_ref().filter(|value| **value != file.value) {
        parts.push([b"[", &value[..], b" != ", &file.value[..], b"]"].concat());
    }
    if condition.index > 0 && i64::try_from(condition.index) != Ok(file.mod_revision) {
        parts.push(format!("[{} != {}]", condition.index, file.mod_revision).into_bytes());
    }
    (!parts.is_empty()).then(|| parts.join(&b' '))
}
