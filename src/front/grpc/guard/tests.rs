//! Tests that each request that crashes a member is refused in all its forms, and that similar requests pass.

use bytes::Bytes;
use http::HeaderValue;
use prost::Message as _;
use tonic::Code;

use super::*;
use crate::pb::{
    authpb::Permission,
    etcdserverpb::{
        AlarmRequest, AuthRoleGrantPermissionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
        TxnRequest, request_op::Request,
    },
};

fn framed(message: &[u8]) -> Vec<u8> {
    [&[0], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

fn checked(path: &str, message: &[u8]) -> Result<(), Status> {
    check(path, &HeaderMap::new(), &framed(message))
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn sorted(target: i32) -> RangeRequest {
    RangeRequest { key: "k".into(), sort_target: target, ..Default::default() }
}

fn put(key: &'static str) -> RequestOp {
    op(Request::RequestPut(PutRequest { key: key.into(), ignore_value: true, ..Default::default() }))
}

fn delete(key: &'static str, end: &'static str) -> RequestOp {
    let request = DeleteRangeRequest { key: key.into(), range_end: end.into(), ..Default::default() };
    op(Request::RequestDeleteRange(request))
}

fn nested(success: Vec<RequestOp>) -> RequestOp {
    op(Request::RequestTxn(TxnRequest { success, ..Default::default() }))
}

fn txn(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> Result<(), Status> {
    let compare = vec![Compare { key: "k".into(), ..Default::default() }];
    checked(TXN, &TxnRequest { compare, success, failure }.encode_to_vec())
}

#[test]
fn unknown_sort_options_are_refused_wherever_they_are() {
    let bad = || op(Request::RequestRange(sorted(9)));
    for result in [
        checked(RANGE, &sorted(9).encode_to_vec()),
        checked(RANGE, &sorted(-1).encode_to_vec()),
        txn(vec![bad()], vec![]),
        txn(vec![], vec![put("a"), bad()]),
        txn(vec![nested(vec![nested(vec![bad()])])], vec![]),
    ] {
        assert_eq!(result.expect_err("refused").message(), BAD_SORT);
    }
    for known in 0..=4 {
        checked(RANGE, &sorted(known).encode_to_vec()).expect("known");
        txn(vec![op(Request::RequestRange(sorted(known)))], vec![]).expect("known");
    }
}

#[test]
fn a_key_that_is_not_there_is_named_first_as_etcd_does() {
    let request = RangeRequest { key: Bytes::new(), ..sorted(9) };
    for result in [
        checked(RANGE, &request.encode_to_vec()),
        // The position in the message does not matter.
        checked(RANGE, &[&sorted(9).encode_to_vec()[..], &[0x0a, 0]].concat()),
        txn(vec![op(Request::RequestRange(request))], vec![]),
    ] {
        assert_eq!(result.expect_err("refused").message(), NO_KEY);
    }
}

#[test]
fn what_stands_behind_the_first_message_hides_nothing() {
    let body = [framed(&sorted(9).encode_to_vec()), framed(&[])].concat();
    assert_eq!(check(RANGE, &HeaderMap::new(), &body).expect_err("refused").message(), BAD_SORT);
}

#[test]
fn compressed_requests_are_refused_by_name_also_behind_another_word() {
    for encodings in [&["gzip"][..], &["identity", "gzip"]] {
        let mut headers = HeaderMap::new();
        for encoding in encodings {
            headers.append("grpc-encoding", HeaderValue::from_static(encoding));
        }
        for path in [RANGE, TXN, ALARM] {
            let refused = check(path, &headers, &[]).expect_err("refused");
            assert_eq!(refused.code(), Code::Unimplemented);
            assert!(refused.message().contains("gzip"), "{refused}");
        }
    }
    let mut plain = HeaderMap::new();
    plain.append("grpc-encoding", HeaderValue::from_static("identity"));
    check(RANGE, &plain, &framed(&[])).expect("plain");
}

#[test]
fn a_put_that_keeps_what_was_deleted_before_it_is_refused() {
    let refused = |result: Result<(), Status>| assert_eq!(result.expect_err("refused").message(), DUPLICATE);
    refused(txn(vec![delete("a", "\0"), put("k")], vec![]));
    refused(txn(vec![], vec![delete("k", "\0"), put("k")]));
    refused(txn(vec![nested(vec![delete("a", "\0")]), put("k")], vec![]));
    refused(txn(vec![delete("\0", "\0"), nested(vec![nested(vec![put("k")])])], vec![]));
    refused(txn(vec![delete("z", "\0"), delete("b", "\0"), delete("y", "\0"), put("k")], vec![]));
    for passes in [
        txn(vec![put("k"), delete("a", "\0")], vec![]),
        txn(vec![delete("l", "\0"), put("k")], vec![]),
        txn(vec![delete("a", "\0")], vec![put("k")]),
        // etcd detects these itself.
        txn(vec![delete("a", "z"), put("k")], vec![]),
        txn(
            vec![
                delete("a", "\0"),
                op(Request::RequestPut(PutRequest { key: "k".into(), value: "v".into(), ..Default::default() })),
            ],
            vec![],
        ),
    ] {
        passes.expect("etcd can check it");
    }
}

#[test]
fn a_transaction_that_only_reads_is_told_from_one_that_may_write() {
    let get = || op(Request::RequestRange(sorted(0)));
    let writes = |success: Vec<RequestOp>, failure: Vec<RequestOp>| {
        may_write(&framed(&TxnRequest { success, failure, ..Default::default() }.encode_to_vec()))
    };
    assert!(!writes(vec![], vec![]) && !writes(vec![get(), get()], vec![get()]));
    assert!(writes(vec![get(), put("k")], vec![]) && writes(vec![], vec![get(), delete("k", "")]));
    assert!(writes(vec![nested(vec![put("k")])], vec![]));
    assert!(may_write(b"not a message") && may_write(&framed(&[0xff])), "what cannot be read may write");
}

#[test]
fn unknown_alarms_and_actions_are_refused() {
    let alarm = |action, alarm| checked(ALARM, &AlarmRequest { action, alarm, member_id: 1 }.encode_to_vec());
    for (action, kind) in [(0, 0), (1, 1), (2, 1), (1, 2), (2, 2)] {
        alarm(action, kind).expect("known");
    }
    for (action, kind) in [(9, 1), (-1, 0), (1, 9), (1, -1)] {
        assert_eq!(alarm(action, kind).expect_err("refused").code(), Code::InvalidArgument);
    }
}

#[test]
fn a_grant_of_nothing_is_refused() {
    let grant = |perm| checked(GRANT, &AuthRoleGrantPermissionRequest { name: "r".into(), perm }.encode_to_vec());
    assert_eq!(grant(None).expect_err("refused").message(), NO_PERMISSION);
    grant(Some(Permission::default())).expect("etcd can check it");
}

/// Forms that members accept and a strict parser refuses.
#[test]
fn no_way_to_write_it_passes() {
    let bad = |message: &[u8]| assert!(checked(RANGE, message).is_err(), "{message:?}");
    // A field number above 32 bits, which members truncate.
    let mut tag = Vec::new();
    prost::encoding::encode_varint(((1_u64 << 32) + 6) << 3, &mut tag);
    bad(&[&tag[..], &[9]].concat());
    // A varint of ten bytes whose last bits are dropped.
    bad(&[0x30, 0x89, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7e]);
    // After groups within groups, deeper than recursive parsers accept.
    bad(&[&[0x7b; 5000][..], &[0x7c; 5000], &[0x30, 9]].concat());
    // Given twice: a member ignores the first value, but refusing it does no harm.
    bad(&[0x30, 9, 0x30, 1]);
    // Only the low 32 bits count, and those of 2^32 mean KEY.
    checked(RANGE, &[0x30, 0x80, 0x80, 0x80, 0x80, 0x10]).expect("members know it");
}

#[test]
fn what_cannot_be_read_is_refused_and_nothing_panics() {
    for message in [&[0x30][..], &[0x0a, 5, 1], &[0x34], &[0x36], &[0], &[0x80; 11], &[0x7b, 0x08]] {
        assert_eq!(checked(RANGE, message).expect_err("refused").code(), Code::Internal, "{message:?}");
    }
    // Less than a message: members answer this with their own error.
    for body in [&[][..], &[0, 0], &[0, 0, 0, 0, 9, 1]] {
        check(TXN, &HeaderMap::new(), body).expect("forwarded");
    }
}

#[test]
fn transactions_within_each_other_are_read_without_recursion_and_bounded() {
    let deep = |levels: usize| {
        let mut message = sorted(9).encode_to_vec();
        let wrap = |tag: u8, message: Vec<u8>| {
            let mut wrapped = vec![tag];
            prost::encoding::encode_varint(message.len() as u64, &mut wrapped);
            [wrapped, message].concat()
        };
        // The success branch of a transaction with one operation, with a range innermost.
        message = wrap(0x12, wrap(0x0a, message));
        for _ in 0..levels {
            message = wrap(0x12, wrap(0x22, message));
        }
        message
    };
    assert_eq!(checked(TXN, &deep(500)).expect_err("refused").message(), BAD_SORT);
    let refused = checked(TXN, &deep(5_000)).expect_err("refused");
    assert!(refused.message().contains("nested transactions"), "{refused}");
    let long = TxnRequest { success: vec![put("k"); 20_000], ..Default::default() }.encode_to_vec();
    checked(TXN, &Bytes::from(long)).expect("etcd counts them");
}
