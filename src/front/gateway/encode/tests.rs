//! Tests of the encoder's JSON, however the messages arrive. The JSON comes from an etcd 3.5.

use prost::Message;

use super::{super::routes, *};
use crate::pb::{
    etcdserverpb::{
        AlarmMember, AlarmResponse, AuthUserListResponse, Member, MemberListResponse, RangeResponse, ResponseHeader,
        ResponseOp, TxnResponse, response_op::Response,
    },
    mvccpb::KeyValue,
};

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(crate::pb::FILE_DESCRIPTOR_SET, routes::calls()).expect("a schema"))
}

/// The JSON of a message that arrives in pieces of `step` bytes.
fn written(path: &str, bytes: &[u8], step: usize) -> Result<String, Malformed> {
    let schema = schema();
    let message = schema.call(path).expect("a call").response;
    let mut out = Vec::new();
    let mut encoder = Encoder::new(schema, message, bytes.len() as u64, &mut out);
    let mut input = Vec::new();
    for piece in bytes.chunks(step).chain([&[][..]]) {
        input.extend_from_slice(piece);
        let taken = encoder.feed(&input, &mut out)?;
        input.drain(..taken);
    }
    assert!(encoder.is_over() && input.is_empty(), "everything is written");
    Ok(String::from_utf8(out).expect("text"))
}

fn json(path: &str, message: &impl Message) -> String {
    let bytes = message.encode_to_vec();
    let whole = written(path, &bytes, bytes.len().max(1)).expect("a message");
    for step in 1..40 {
        assert_eq!(written(path, &bytes, step).as_ref(), Ok(&whole), "in pieces of {step}");
    }
    whole
}

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: u64::MAX, member_id: 1, revision: 7, raft_term: 2 })
}

const HEADER: &str = r#""header":{"cluster_id":"18446744073709551615","member_id":"1","revision":"7","raft_term":"2"}"#;

#[test]
fn key_values_are_in_base64_and_numbers_of_64_bits_are_text() {
    let kv = |value: &'static str| KeyValue {
        key: "foo".into(),
        mod_revision: 7,
        value: value.into(),
        ..Default::default()
    };
    let range = RangeResponse { header: header(), kvs: vec![kv("ba"), kv(""), kv("bars!")], more: true, count: 3 };
    assert_eq!(
        json("/etcdserverpb.KV/Range", &range),
        format!(
            r#"{{{HEADER},"kvs":[{{"key":"Zm9v","mod_revision":"7","value":"YmE="}},{{"key":"Zm9v","mod_revision":"7"}},{{"key":"Zm9v","mod_revision":"7","value":"YmFycyE="}}],"more":true,"count":"3"}}"#
        )
    );
}

#[test]
fn what_is_default_is_left_out_but_for_messages() {
    assert_eq!(json("/etcdserverpb.KV/Range", &RangeResponse::default()), "{}");
    let empty =
        RangeResponse { header: Some(ResponseHeader::default()), kvs: vec![KeyValue::default()], ..Default::default() };
    assert_eq!(json("/etcdserverpb.KV/Range", &empty), r#"{"header":{},"kvs":[{}]}"#);
    // Defaults that are still written: an empty key and a count of zero.
    assert_eq!(written("/etcdserverpb.KV/Range", &[0x12, 2, 0x0a, 0, 0x20, 0], 1).as_deref(), Ok(r#"{"kvs":[{}]}"#));
}

#[test]
fn messages_within_messages_names_and_texts() {
    let inner = TxnResponse { succeeded: true, ..Default::default() };
    let responses = [Some(Response::ResponseRange(RangeResponse::default())), Some(Response::ResponseTxn(inner)), None];
    let responses = responses.map(|response| ResponseOp { response }).into();
    let txn = TxnResponse { header: header(), succeeded: false, responses };
    assert_eq!(
        json("/etcdserverpb.KV/Txn", &txn),
        format!(r#"{{{HEADER},"responses":[{{"response_range":{{}}}},{{"response_txn":{{"succeeded":true}}}},{{}}]}}"#)
    );
    let member = Member { id: 5, name: "<é&>".into(), peer_ur_ls: vec!["a".into(), "".into()], ..Default::default() };
    let list = MemberListResponse { members: vec![member], ..Default::default() };
    assert_eq!(
        json("/etcdserverpb.Cluster/MemberList", &list),
        r#"{"members":[{"ID":"5","name":"\u003cé\u0026\u003e","peerURLs":["a",""]}]}"#
    );
    let users = AuthUserListResponse { users: vec!["root".into(), "\u{2028}".into()], ..Default::default() };
    assert_eq!(json("/etcdserverpb.Auth/UserList", &users), r#"{"users":["root","\u2028"]}"#);
}

#[test]
fn enumerations_are_named_where_they_have_a_name() {
    let alarms = [0, 2, 9].map(|alarm| AlarmMember { member_id: 1, alarm }).into();
    let response = AlarmResponse { header: None, alarms };
    assert_eq!(
        json("/etcdserverpb.Maintenance/Alarm", &response),
        r#"{"alarms":[{"memberID":"1"},{"memberID":"1","alarm":"CORRUPT"},{"memberID":"1","alarm":9}]}"#
    );
}

#[test]
fn unknown_fields_are_passed_over_and_nonsense_is_an_error() {
    // Field 99 in each wire type, around a count.
    let unknown: &[u8] =
        &[0x20, 3, 0x98, 0x06, 1, 0x99, 0x06, 1, 2, 3, 4, 5, 6, 7, 8, 0x9a, 0x06, 2, 1, 2, 0x9d, 0x06, 1, 2, 3, 4];
    for step in 1..unknown.len() {
        assert_eq!(written("/etcdserverpb.KV/Range", unknown, step).as_deref(), Ok(r#"{"count":"3"}"#));
    }
    for nonsense in [
        // Invalid input: a length beyond the end, a group, a number as bytes, fields out of order, a field twice, a
        // varint without an end.
        &[0x12, 9, 1][..],
        &[0x0b, 0x0c],
        &[0x22, 0],
        &[0x20, 1, 0x18, 1],
        &[0x20, 1, 0x20, 1],
        &[0x20, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        &[0x20],
    ] {
        assert_eq!(written("/etcdserverpb.KV/Range", nonsense, nonsense.len()), Err(Malformed), "{nonsense:?}");
    }
}
