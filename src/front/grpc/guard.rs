//! Refuses requests that would crash the etcd member that receives them, or all members, in some cases again at each
//! restart.
//!
//! Other requests that etcd refuses are left to etcd and its own errors. Called for unary calls to [`answers_for`]
//! before they are forwarded. A request is parsed as etcd's members parse it: they accept numbers and lengths that a
//! strict parser refuses. Parsing needs no recursion and no copy. A request that cannot be parsed is refused, since a
//! member might accept it.
//!
//! | request | effect on etcd | tried with |
//! |---|---|---|
//! | `Range` with an unknown `sort_target`, alone or within `Txn` | the member crashes; within a `Txn` that etcd treats
//! as a write, all members crash at each start | 3.4.23, 3.5.16, 3.5.35 |
//! | `Txn` that deletes all keys from a key on (`range_end` is `"\0"`), and then puts one of these keys with
//! `ignore_value` or `ignore_lease` | all members crash at each start | the same, 3.6.16 |
//! | `Alarm` that activates an unknown alarm | all members crash at each start | 3.5.16, 3.5.35 |
//! | `Alarm` with an unknown action | the member crashes | all |
//! | `RoleGrantPermission` without a permission | all members crash at each start | 3.4.23 |
//!
//! Always holds: a request that passes is forwarded byte for byte.

use http::HeaderMap;
use tonic::Status;

use super::{pieces::PREFIX, reply::refuse_compressed};

pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
const GRANT: &str = "/etcdserverpb.Auth/RoleGrantPermission";

/// Most bytes of a request that is checked before it is forwarded: twenty times etcd's default limit, for clusters with
/// a larger `--max-request-bytes`. The limit on all unanswered requests of a connection (`http2::Limits::unanswered`)
/// bounds the memory for many of them.
pub(super) const MAX_REQUEST: usize = 32 << 20;

/// Most nested transactions. etcd allows at most `--max-txn-ops`, 128 by default, but parses any number before it
/// counts them.
const MAX_DEPTH: usize = 1_000;

/// etcd's error for unknown sort options, in the releases that check them.
const BAD_SORT: &str = "etcdserver: invalid sort option";
/// etcd's error for a request without a key.
const NO_KEY: &str = "etcdserver: key is not provided";
/// etcd's error for a grant without a permission, since 3.5.
const NO_PERMISSION: &str = "etcdserver: permission not given";
/// etcd's error for overlapping operations, which it does not detect in this case.
const DUPLICATE: &str = "etcdserver: duplicate key given in txn request";

/// Whether calls to this path are checked, in addition to those that the relay answers.
pub(super) fn answers_for(path: &str) -> bool {
    [TXN, ALARM, GRANT].contains(&path)
}

/// Checks the body of a call to `path`. A compressed body is refused, as gRPC prescribes for servers without a
/// decompressor.
///
/// # Errors
/// Returns the status of the refusal.
pub(super) fn check(path: &str, headers: &HeaderMap, body: &[u8]) -> Result<(), Status> {
    refuse_compressed(headers, "Range, Txn, Alarm and RoleGrantPermission requests")?;
    // A member reads only the first message. Without a complete one it reads nothing.
    let Some(message) = first_message(body) else { return Ok(()) };
    match path {
        RANGE => range(message),
        TXN => txn(message),
        ALARM => alarm(message),
        GRANT => grant(message),
        _ => Ok(()),
    }
}

/// Whether a `Txn` can change anything, in one of its branches.
pub(super) fn may_write(body: &[u8]) -> bool {
    let Some(message) = first_message(body) else { return true };
    let reads = |operation: &[u8]| Fields(operation).all(|field| matches!(field, Ok((1, Value::Bytes(_)))));
    !Fields(message).all(|field| match field {
        Ok((2 | 3, Value::Bytes(operation))) => reads(operation),
        Ok(_) => true,
        Err(_) => false,
    })
}

fn first_message(body: &[u8]) -> Option<&[u8]> {
    let (prefix, rest) = body.split_at_checked(PREFIX)?;
    let len = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
    rest.get(..len)
}

/// Whether etcd knows these sort options.
pub(super) fn sorts(order: i32, target: i32) -> bool {
    (0..=2).contains(&order) && (0..=4).contains(&target)
}

/// The error for a `Range` with unknown sort options. etcd checks the key first.
pub(super) fn bad_sort(key: &[u8]) -> Status {
    Status::invalid_argument(if key.is_empty() { NO_KEY } else { BAD_SORT })
}

fn range(message: &[u8]) -> Result<(), Status> {
    let (mut key, mut known) = (&[][..], true);
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => key = bytes,
            (5, Value::Int(order)) => known &= sorts(order as i32, 0),
            (6, Value::Int(target)) => known &= sorts(0, target as i32),
            _ => {}
        }
    }
    if known { Ok(()) } else { Err(bad_sort(key)) }
}

fn alarm(message: &[u8]) -> Result<(), Status> {
    for field in Fields(message) {
        if let (1 | 3, Value::Int(value)) = field?
            && !(0..=2).contains(&(value as i32))
        {
            return Err(Status::invalid_argument("etcd-relay: etcd does not know this alarm or action"));
        }
    }
    Ok(())
}

fn grant(message: &[u8]) -> Result<(), Status> {
    for field in Fields(message) {
        if let (2, Value::Bytes(_)) = field? {
            return Ok(());
        }
    }
    Err(Status::invalid_argument(NO_PERMISSION))
}

/// A part of a transaction that is still to be read.
enum Part<'a> {
    /// The operations and comparisons of a transaction, and the branch of the outermost transaction that contains them.
    Txn(Fields<'a>, Option<Branch>),
    Operation(Fields<'a>, Branch),
}

/// One of the two lists of the outermost transaction. Only one of them is executed.
#[derive(Clone, Copy)]
enum Branch {
    Success,
    Failure,
}

fn txn(message: &[u8]) -> Result<(), Status> {
    let mut parts = vec![Part::Txn(Fields(message), None)];
    // For each branch, the lowest key from which on everything has been deleted.
    let mut deleted: [Option<&[u8]>; 2] = [None, None];
    while let Some(part) = parts.last_mut() {
        let (fields, branch) = match part {
            Part::Txn(fields, branch) => (fields, *branch),
            Part::Operation(fields, branch) => (fields, Some(*branch)),
        };
        let Some(field) = fields.next() else {
            parts.pop();
            continue;
        };
        let (number, Value::Bytes(inner)) = field? else { continue };
        let operation = matches!(part, Part::Operation(..));
        match (operation, number) {
            (false, 2) => parts.push(Part::Operation(Fields(inner), branch.unwrap_or(Branch::Success))),
            (false, 3) => parts.push(Part::Operation(Fields(inner), branch.unwrap_or(Branch::Failure))),
            (true, 1) => range(inner)?,
            (true, 2) => {
                let put = Put::read(inner)?;
                if let Some(branch) = branch
                    && put.needs_another
                    && deleted[branch as usize].is_some_and(|from| put.key >= from)
                {
                    return Err(Status::invalid_argument(DUPLICATE));
                }
            }
            (true, 3) => {
                if let (Some(branch), Some(from)) = (branch, deleted_from(inner)?) {
                    let lowest = &mut deleted[branch as usize];
                    *lowest = Some(lowest.map_or(from, |lowest| lowest.min(from)));
                }
            }
            (true, 4) => parts.push(Part::Txn(Fields(inner), branch)),
            _ => {}
        }
        // Each level has an operation and a transaction.
        if parts.len() > 2 * MAX_DEPTH {
            let text = format!("etcd-relay: more than {MAX_DEPTH} nested transactions");
            return Err(Status::invalid_argument(text));
        }
    }
    Ok(())
}

/// The parts of a put that the guard needs.
#[derive(Default)]
struct Put<'a> {
    key: &'a [u8],
    /// The put fails if there is no value or lease to keep.
    needs_another: bool,
}

impl<'a> Put<'a> {
    fn read(message: &'a [u8]) -> Result<Self, Status> {
        let mut put = Self::default();
        for field in Fields(message) {
            match field? {
                (1, Value::Bytes(key)) => put.key = key,
                (5 | 6, Value::Int(ignore)) => put.needs_another |= ignore != 0,
                _ => {}
            }
        }
        Ok(put)
    }
}

/// The key from which on everything is deleted, if the message does that.
fn deleted_from(message: &[u8]) -> Result<Option<&[u8]>, Status> {
    let (mut key, mut all) = (&[][..], false);
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => key = bytes,
            (2, Value::Bytes(end)) => all = end == [0],
            _ => {}
        }
    }
    Ok(all.then_some(key))
}

/// Iterates over the fields of a message: number and value.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Int(u64),
    Bytes(&'a [u8]),
    /// A wire type that no message of etcd uses.
    Other,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(i32, Value<'a>), Status>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| Status::internal("grpc: error unmarshalling request: the message is malformed")))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(i32, Value<'a>)> {
        let tag = self.varint()?;
        // Members truncate the number to 32 bits, so they take a larger one for another field.
        let number = (tag >> 3) as i32;
        if number <= 0 {
            return None;
        }
        let value = match tag & 7 {
            0 => Value::Int(self.varint()?),
            1 => self.skip(8)?,
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.0.split_off(..len)?)
            }
            3 => self.group()?,
            5 => self.skip(4)?,
            _ => return None,
        };
        Some((number, value))
    }

    /// A group, with the groups in it. Groups are obsolete, and members skip them as unknown fields.
    fn group(&mut self) -> Option<Value<'a>> {
        let mut depth = 1usize;
        while depth > 0 {
            match self.varint()? & 7 {
                0 => drop(self.varint()?),
                1 => {
                    self.skip(8)?;
                }
                2 => {
                    let len = usize::try_from(self.varint()?).ok()?;
                    self.0.split_off(..len)?;
                }
                3 => depth += 1,
                4 => depth -= 1,
                5 => {
                    self.skip(4)?;
                }
                _ => return None,
            }
        }
        Some(Value::Other)
    }

    fn skip(&mut self, len: usize) -> Option<Value<'a>> {
        self.0.split_off(..len)?;
        Some(Value::Other)
    }

    /// A varint of up to ten bytes. Like members, it drops what does not fit into 64 bits.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.0.split_off_first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
