//! Tests of what the decoder makes of JSON, and of its errors. The texts come from an etcd 3.5.

use super::{super::routes, *};
use crate::pb::etcdserverpb::{
    Compare, PutRequest, RangeRequest, TxnRequest, WatchRequest, compare::TargetUnion, request_op::Request,
    watch_request::RequestUnion,
};

fn read<M: prost::Message + Default>(path: &str, text: &str) -> Result<M, String> {
    let schema = Schema::new(crate::pb::FILE_DESCRIPTOR_SET, routes::calls()).expect("a schema");
    let mut scanner = scan::Scanner::new();
    scanner.take(text.as_bytes()).map_err(|error| error.to_string())?;
    let message = schema.call(path).expect("a call").request;
    let bytes = decode(&schema, message, text.as_bytes(), &scanner.extents()).map_err(|error| error.to_string())?;
    Ok(M::decode(bytes.slice(5..)).expect("a message"))
}

fn range(text: &str) -> Result<RangeRequest, String> {
    read("/etcdserverpb.KV/Range", text)
}

#[test]
fn fields_are_known_by_both_names_and_numbers_in_both_forms() {
    let wanted = RangeRequest {
        key: "foo".into(),
        range_end: "fop".into(),
        limit: 7,
        revision: -1,
        sort_order: 2,
        sort_target: 3,
        serializable: true,
        max_mod_revision: i64::MAX,
        ..Default::default()
    };
    for text in [
        r#"{"key":"Zm9v","range_end":"Zm9w","limit":7,"revision":-1,"sort_order":2,"sort_target":"MOD",
            "serializable":true,"max_mod_revision":"9223372036854775807"}"#,
        r#" {"maxModRevision": 9223372036854775807, "unknown":{"a":[1,{}]}, "keys_only": null, "count_only": false,
            "rangeEnd":[102,111,112],"sortTarget":3,"sortOrder":"DESCEND","limit":" 7 ","revision":"-1",
            "serializable" : true , "key":"Zm\r\n9v"}"#,
        r#"{"key":"YQ==","key":"Zm9v","range_end":"YQ==","rangeEnd":"Zm9w","limit":"7","revision":-1,"sort_order":2,
            "sort_target":3,"serializable":true,"max_mod_revision":"9223372036854775807","min_mod_revision":"null"}"#,
    ] {
        assert_eq!(range(text).as_ref(), Ok(&wanted), "{text}");
    }
    assert_eq!(range("null"), Ok(RangeRequest::default()));
}

#[test]
fn what_is_wrong_is_said_as_etcd_says_it() {
    for (text, want) in [
        ("[1]", "json: cannot unmarshal array into Go value of type map[string]json.RawMessage"),
        (r#""x""#, "json: cannot unmarshal string into Go value of type map[string]json.RawMessage"),
        (r#"{"key":"Zm9"}"#, "illegal base64 data at input byte 0"),
        (r#"{"key":"Zg=v"}"#, "illegal base64 data at input byte 2"),
        (r#"{"key":"Zg==Zg=="}"#, "illegal base64 data at input byte 4"),
        (r#"{"key":"Zm\\n9v"}"#, "illegal base64 data at input byte 2"),
        (r#"{"key":"_-=="}"#, "illegal base64 data at input byte 0"),
        (r#"{"key":"="}"#, "illegal base64 data at input byte 0"),
        (r#"{"key":"Zm9vZg="}"#, "illegal base64 data at input byte 7"),
        (r#"{"key":5}"#, "json: cannot unmarshal number into Go value of type []uint8"),
        (r#"{"key":{}}"#, "json: cannot unmarshal object into Go value of type []uint8"),
        (r#"{"key":[1,2,300]}"#, "json: cannot unmarshal number 300 into Go value of type uint8"),
        (r#"{"key":["a"]}"#, "json: cannot unmarshal string into Go value of type uint8"),
        (r#"{"key":[null,[]]}"#, "json: cannot unmarshal array into Go value of type uint8"),
        (r#"{"limit":1.5}"#, "json: cannot unmarshal number 1.5 into Go value of type int64"),
        (
            r#"{"limit":9223372036854775808}"#,
            "json: cannot unmarshal number 9223372036854775808 into Go value of type int64",
        ),
        (r#"{"limit":"abc"}"#, "invalid character 'a' looking for beginning of value"),
        (r#"{"limit":""}"#, "unexpected end of JSON input"),
        (r#"{"limit":"1 2"}"#, "invalid character '2' after top-level value"),
        (r#"{"limit":true}"#, "json: cannot unmarshal bool into Go value of type int64"),
        (r#"{"serializable":"true"}"#, "json: cannot unmarshal string into Go value of type bool"),
        (r#"{"serializable":1}"#, "json: cannot unmarshal number into Go value of type bool"),
        (r#"{"sort_order":"FOO"}"#, r#"unknown value "\"FOO\"" for enum etcdserverpb.RangeRequest.SortOrder"#),
        (r#"{"sort_order":1.5}"#, "json: cannot unmarshal number 1.5 into Go value of type protoreflect.EnumNumber"),
        // The error in the field that was declared first is reported.
        (r#"{"limit":true,"key":5}"#, "json: cannot unmarshal number into Go value of type []uint8"),
    ] {
        assert_eq!(range(text), Err(want.to_owned()), "{text}");
    }
    let txn = |text| read::<TxnRequest>("/etcdserverpb.KV/Txn", text).expect_err("refused");
    assert_eq!(txn(r#"{"success":{}}"#), "json: cannot unmarshal object into Go value of type []json.RawMessage");
    assert_eq!(
        txn(r#"{"success":[1]}"#),
        "json: cannot unmarshal number into Go value of type map[string]json.RawMessage"
    );
}

#[test]
fn of_a_oneof_the_last_one_declared_counts() {
    let text = r#"{"compare":[{"value":"YmFy","version":"1","key":"Zm9v"}],
        "success":[{"requestPut":{"key":"YQ==","lease":"3"},"request_range":{"key":"Zm9v"}},{},null,
                   {"request_txn":{"failure":[{"request_delete_range":{"key":"Yg=="}}]}}]}"#;
    let txn: TxnRequest = read("/etcdserverpb.KV/Txn", text).expect("a transaction");
    let compare =
        Compare { key: "foo".into(), target_union: Some(TargetUnion::Value("bar".into())), ..Default::default() };
    assert_eq!(txn.compare, [compare]);
    let put = PutRequest { key: "a".into(), lease: 3, ..Default::default() };
    assert_eq!(txn.success[0].request, Some(Request::RequestPut(put)));
    assert_eq!((txn.success.len(), &txn.success[1].request, &txn.success[2].request), (4, &None, &None));
    let Some(Request::RequestTxn(inner)) = &txn.success[3].request else { panic!("{txn:?}") };
    assert!(matches!(&inner.failure[0].request, Some(Request::RequestDeleteRange(it)) if it.key == "b"));
}

#[test]
fn lists_and_defaults_of_a_oneof_are_there() {
    let text = r#"{"create_request":{"key":"YQ==","filters":["NODELETE",0,null],"watch_id":"7"}}"#;
    let request: WatchRequest = read("/etcdserverpb.Watch/Watch", text).expect("a request");
    let Some(RequestUnion::CreateRequest(create)) = request.request_union else { panic!("{request:?}") };
    assert_eq!((create.filters, create.watch_id), (vec![1, 0, 0], 7));
    let request: WatchRequest = read("/etcdserverpb.Watch/Watch", r#"{"progress_request":{}}"#).expect("a request");
    assert!(matches!(request.request_union, Some(RequestUnion::ProgressRequest(_))));
    let txn: TxnRequest = read("/etcdserverpb.KV/Txn", r#"{"compare":[{"version":0}]}"#).expect("a transaction");
    assert_eq!(txn.compare[0].target_union, Some(TargetUnion::Version(0)));
}

#[test]
fn text_is_read_as_go_reads_it() {
    use crate::pb::etcdserverpb::AuthRoleAddRequest;
    let name = |text: &str| read::<AuthRoleAddRequest>("/etcdserverpb.Auth/RoleAdd", text).map(|role| role.name);
    assert_eq!(name(r#"{"name":"\u00e9\ud83d\ude00\n\/\"\\"}"#).as_deref(), Ok("é😀\n/\"\\"));
    assert_eq!(name(r#"{"name":"\ud83d!\udc00\ud83d\u0061"}"#).as_deref(), Ok("\u{fffd}!\u{fffd}\u{fffd}a"));
    assert_eq!(name(r#"{"n\u0061me":"x"}"#).as_deref(), Ok("x"));
    assert_eq!(name(r#"{"name":5}"#), Err("json: cannot unmarshal number into Go value of type string".to_owned()));
    assert_eq!(unquote(b"\"a\xff\xe2\x82\"").as_ref(), "a\u{fffd}\u{fffd}\u{fffd}".as_bytes());
}

#[test]
fn a_deep_request_takes_no_recursion() {
    // On a stack that is too small for a recursion of this depth.
    let deep = 3_000;
    let text = format!("{}{}", r#"{"success":[{"request_txn":"#.repeat(deep), "{}") + &"}]}".repeat(deep);
    let read = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
        let schema = Schema::new(crate::pb::FILE_DESCRIPTOR_SET, routes::calls()).expect("a schema");
        let mut scanner = scan::Scanner::new();
        scanner.take(text.as_bytes()).expect("JSON");
        let message = schema.call("/etcdserverpb.KV/Txn").expect("a call").request;
        decode(&schema, message, text.as_bytes(), &scanner.extents()).expect("a transaction").len()
    });
    let len = read.expect("a thread").join().expect("no overflow");
    assert!(len > 2 * deep, "{len}");
}
