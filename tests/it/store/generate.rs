//! Random requests for few keys, so that they interact: every option, every error, nested transactions.
//!
//! Leaves out requests that crash etcd 3.5: an unknown sort target, and a transaction that puts a key and deletes it
//! with a `range_end` of "\\0". etcd does not notice that these are the same key.

use bytes::Bytes;
use etcd_relay::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest, compare::TargetUnion, request_op::Request,
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

/// Fewer than the number from which Go's sort is unstable.
const KEYS: [&[u8]; 10] = [b"a", b"a\0", b"aa", b"ab", b"b", b"ba", b"c", b"\0", b"\xff", b"\xff\xff"];
const VALUES: [&[u8]; 4] = [b"", b"1", b"2", b"long-value"];
/// Leases in requests; only some of them are granted.
const LEASES: std::ops::RangeInclusive<i64> = 1..=4;

/// One request.
#[derive(Clone, Debug)]
pub enum Op {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    TimeToLive(LeaseTimeToLiveRequest),
}

/// A request for a store that is at revision `current`.
pub fn op(rng: &mut StdRng, current: i64) -> Op {
    match rng.random_range(0..100) {
        0..30 => Op::Put(put(rng)),
        30..40 => Op::Delete(delete(rng, true)),
        40..65 => Op::Range(range(rng, current)),
        65..90 => {
            let puts = rng.random_bool(0.8);
            Op::Txn(txn(rng, current, Place { depth: 0, puts }))
        }
        // Physical compaction, because otherwise etcd shows compacted revisions for a while.
        90..92 => Op::Compact(CompactionRequest { revision: rng.random_range(-2..=current + 1), physical: true }),
        92..95 => Op::Grant(LeaseGrantRequest { id: rng.random_range(LEASES), ttl: lease_ttl(rng) }),
        95..97 => Op::Revoke(LeaseRevokeRequest { id: rng.random_range(LEASES) }),
        _ => Op::TimeToLive(LeaseTimeToLiveRequest { id: rng.random_range(LEASES), keys: rng.random() }),
    }
}

fn lease_ttl(rng: &mut StdRng) -> i64 {
    if rng.random_bool(0.1) { 9_000_000_001 } else { rng.random_range(100_000..200_000) }
}

fn key(rng: &mut StdRng) -> Bytes {
    if rng.random_bool(0.01) { Bytes::new() } else { Bytes::from_static(KEYS.choose(rng).expect("keys")) }
}

fn range_end(rng: &mut StdRng) -> Bytes {
    match rng.random_range(0..10) {
        0..4 => Bytes::new(),
        4..6 => Bytes::from_static(b"\0"),
        _ => key(rng),
    }
}

fn value(rng: &mut StdRng) -> Bytes {
    Bytes::from_static(VALUES.choose(rng).expect("values"))
}

fn put(rng: &mut StdRng) -> PutRequest {
    let ignore_value = rng.random_bool(0.15);
    let ignore_lease = rng.random_bool(0.15);
    PutRequest {
        key: key(rng),
        value: if ignore_value && rng.random_bool(0.8) { Bytes::new() } else { value(rng) },
        lease: if (ignore_lease && rng.random_bool(0.8)) || rng.random_bool(0.7) {
            0
        } else {
            rng.random_range(LEASES)
        },
        prev_kv: rng.random(),
        ignore_value,
        ignore_lease,
    }
}

/// `open_end`: whether it may delete all keys from a key on.
fn delete(rng: &mut StdRng, open_end: bool) -> DeleteRangeRequest {
    let range_end = match range_end(rng) {
        end if &end[..] == b"\0" && !open_end => Bytes::new(),
        end => end,
    };
    DeleteRangeRequest { key: key(rng), range_end, prev_kv: rng.random() }
}

fn range(rng: &mut StdRng, current: i64) -> RangeRequest {
    let bound = |rng: &mut StdRng| if rng.random_bool(0.85) { 0 } else { rng.random_range(-1..=current + 1) };
    RangeRequest {
        key: key(rng),
        range_end: range_end(rng),
        limit: if rng.random() { 0 } else { rng.random_range(-1..6) },
        revision: match rng.random_range(0..20) {
            0..14 => 0,
            14 => current + rng.random_range(1..3),
            _ => rng.random_range(-2..=current),
        },
        sort_order: if rng.random_bool(0.5) { 0 } else { rng.random_range(0..3) },
        sort_target: if rng.random_bool(0.5) { 0 } else { rng.random_range(0..5) },
        serializable: rng.random(),
        keys_only: rng.random_bool(0.2),
        count_only: rng.random_bool(0.1),
        min_mod_revision: bound(rng),
        max_mod_revision: bound(rng),
        min_create_revision: bound(rng),
        max_create_revision: bound(rng),
    }
}

/// The position of an operation in a transaction.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// Whether puts are allowed. If they are, no delete has an open end.
    puts: bool,
}

fn txn(rng: &mut StdRng, current: i64, place: Place) -> TxnRequest {
    let compares = rng.random_range(0..3);
    let ops = |rng: &mut StdRng| (0..rng.random_range(0..4)).map(|_| request_op(rng, current, place)).collect();
    TxnRequest { compare: (0..compares).map(|_| compare(rng, current)).collect(), success: ops(rng), failure: ops(rng) }
}

fn request_op(rng: &mut StdRng, current: i64, place: Place) -> RequestOp {
    let request = match rng.random_range(0..100) {
        0..45 if place.puts => Some(Request::RequestPut(put(rng))),
        0..65 => Some(Request::RequestDeleteRange(delete(rng, !place.puts))),
        65..85 => Some(Request::RequestRange(range(rng, current))),
        85..99 if place.depth < 3 => {
            Some(Request::RequestTxn(txn(rng, current, Place { depth: place.depth + 1, ..place })))
        }
        99 => None,
        _ => Some(Request::RequestRange(range(rng, current))),
    };
    RequestOp { request }
}

fn compare(rng: &mut StdRng, current: i64) -> Compare {
    let number = rng.random_range(0..=current.min(6));
    let union = match rng.random_range(0..6) {
        0 => Some(TargetUnion::Version(number)),
        1 => Some(TargetUnion::CreateRevision(rng.random_range(0..=current))),
        2 => Some(TargetUnion::ModRevision(rng.random_range(0..=current))),
        3 => Some(TargetUnion::Value(value(rng))),
        4 => Some(TargetUnion::Lease(number)),
        _ => None,
    };
    // Usually the target that belongs to the value.
    let target = match &union {
        Some(TargetUnion::Version(_)) => 0,
        Some(TargetUnion::CreateRevision(_)) => 1,
        Some(TargetUnion::ModRevision(_)) => 2,
        Some(TargetUnion::Value(_)) => 3,
        Some(TargetUnion::Lease(_)) => 4,
        None => 0,
    };
    Compare {
        result: rng.random_range(0..4),
        target: if rng.random_bool(0.9) { target } else { rng.random_range(0..6) },
        key: key(rng),
        target_union: union,
        range_end: if rng.random_bool(0.7) { Bytes::new() } else { range_end(rng) },
    }
}
