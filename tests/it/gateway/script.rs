//! The requests for etcd's gateway and the relay's: valid and invalid ones of each kind.

use http::Method;

use super::client::Ask;

/// The requests in order; each one changes the results of later ones.
pub(super) fn script() -> Vec<Ask> {
    let mut script: Vec<Ask> = Vec::new();
    let mut post = |path: &str, body: &str| script.push(Ask::post(path, body));
    for value in ["YmFy", "YmF6", ""] {
        post("/v3/kv/put", &format!(r#"{{"key":"Zm9v","value":"{value}","prev_kv":true}}"#));
    }
    post("/v3/kv/put", r#"{"key":"Zm9vMQ==","value":"PGE+JiI="}"#);
    post("/v3/kv/put", r#"{"key":"//79","value":"AAECAw=="}"#);
    reads(&mut post);
    bad_json(&mut post);
    writes(&mut post);
    leases(&mut post);
    others(&mut post);
    streams(&mut script);
    over_http(&mut script);
    script
}

fn reads(post: &mut impl FnMut(&str, &str)) {
    for body in [
        r#"{"key":"Zm9v"}"#,
        r#"{"key":"Zm9v","range_end":"Zm9w"}"#,
        r#"{"key":"Zm9v","rangeEnd":"Zm9w"}"#,
        r#"{"key":"AA==","range_end":"AA=="}"#,
        r#"{"key":"AA==","range_end":"AA==","limit":1}"#,
        r#"{"key":"AA==","range_end":"AA==","limit":"2","keys_only":true}"#,
        r#"{"key":"AA==","range_end":"AA==","countOnly":true}"#,
        r#"{"key":"AA==","range_end":"AA==","sort_order":"DESCEND","sort_target":"MOD"}"#,
        r#"{"key":"AA==","range_end":"AA==","sort_order":1,"sort_target":4}"#,
        r#"{"key":"AA==","range_end":"AA==","sortOrder":"ASCEND","sortTarget":"VERSION"}"#,
        r#"{"key":"AA==","range_end":"AA==","min_mod_revision":"4","max_create_revision":99}"#,
        r#"{"key":"Zm9v","revision":2}"#,
        r#"{"key":"Zm9v","revision":"3","serializable":true}"#,
        r#"{"key":"Zm9v","revision":999}"#,
        r#"{"key":"Zm9v","revision":-5}"#,
        r#"{"key":"bm9uZQ=="}"#,
        r#"{"key":"bm9uZQ==","serializable":true}"#,
        r#"{"key":""}"#,
        "{}",
        "",
        "null",
        " \n {\"key\" : \"Zm9v\" } \n ",
        r#"{"key":"Zm9v"} trailing"#,
        r#"{"key":"Zm9v"}{"key":"AA=="}"#,
        r#"{"key":"Zm9v","key":"Zm9vMQ=="}"#,
        r#"{"key":"Zm9v","range_end":null,"limit":null,"sort_order":null,"unknown":{"deep":[1,{"a":null}]}}"#,
        r#"{"Key":"Zm9v"}"#,
        r#"{"key":[102,111,111]}"#,
        r#"{"key":[]}"#,
        r#"{"key":"Zm9v\n"}"#,
        r#"{"k\u0065y":"Zm9v"}"#,
        r#"{"key":"Zm9v","limit":"null"}"#,
        r#"{"key":"Zm9v","limit":" 1 "}"#,
        r#"{"key":"Zm9v","limit":-1}"#,
        r#"{"key":"Zm9v","limit":0}"#,
        r#"{"key":"Zm9v","range_end":"Zm9v"}"#,
        r#"{"key":"Zm9v","range_end":"Zm8="}"#,
    ] {
        post("/v3/kv/range", body);
    }
    post("/v3beta/kv/range", r#"{"key":"Zm9v"}"#);
}

fn bad_json(post: &mut impl FnMut(&str, &str)) {
    for body in [
        "{",
        "}",
        "[",
        "[]",
        "[1]",
        "1",
        "-",
        "true",
        "tru",
        "trux",
        "nul",
        "nulx",
        "\"",
        "\"x\"",
        "x",
        "'",
        "{'a':1}",
        "{a:1}",
        "{\"a\"}",
        "{\"a\" 1}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":[1,]}",
        "{\"a\":[1 2]}",
        "{\"a\":01}",
        "{\"a\":1.}",
        "{\"a\":1e}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":-}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12g4\"}",
        "{\"a\":\"\t\"}",
        "{\"a\":\"b",
        "{\"a\":1}}",
        "é",
        "\u{1}",
        "{\"a\":NaN}",
        "{,}",
        "{]",
        "[}",
        "/**/{}",
        "\u{feff}{}",
    ] {
        post("/v3/kv/put", body);
    }
    for body in [
        r#"{"key":"Zm9"}"#,
        r#"{"key":"Z"}"#,
        r#"{"key":"===="}"#,
        r#"{"key":"Zg="}"#,
        r#"{"key":"Zg=v"}"#,
        r#"{"key":"Zg==Zg=="}"#,
        r#"{"key":"Zm9v Zm9v"}"#,
        r#"{"key":"_-=="}"#,
        r#"{"key":"Zm9v!"}"#,
        r#"{"key":"Zh=="}"#,
        r#"{"key":"Zm\r\n9v","serializable":"true"}"#,
        r#"{"key":5}"#,
        r#"{"key":true}"#,
        r#"{"key":{}}"#,
        r#"{"key":[256]}"#,
        r#"{"key":[-1]}"#,
        r#"{"key":[1.5]}"#,
        r#"{"key":["a"]}"#,
        r#"{"key":[true]}"#,
        r#"{"key":[[]]}"#,
        r#"{"key":[{}]}"#,
        r#"{"limit":"a"}"#,
        r#"{"limit":""}"#,
        r#"{"limit":"1 2"}"#,
        r#"{"limit":1.5}"#,
        r#"{"limit":1e3}"#,
        r#"{"limit":"1.0"}"#,
        r#"{"limit":true}"#,
        r#"{"limit":"true"}"#,
        r#"{"limit":[]}"#,
        r#"{"limit":{}}"#,
        r#"{"limit":9223372036854775808}"#,
        r#"{"limit":"-9223372036854775809"}"#,
        r#"{"limit":"\u0031"}"#,
        r#"{"limit":"0x1"}"#,
        r#"{"limit":"01"}"#,
        r#"{"serializable":1}"#,
        r#"{"serializable":"false"}"#,
        r#"{"serializable":[]}"#,
        r#"{"sort_order":"asc"}"#,
        r#"{"sort_order":""}"#,
        r#"{"sort_order":"<é\u00e9\n>"}"#,
        r#"{"sort_order":1.5}"#,
        r#"{"sort_order":true}"#,
        r#"{"sort_order":{}}"#,
        r#"{"sort_order":4294967296}"#,
        r#"{"sort_order":"1"}"#,
        r#"{"limit":true,"key":5,"sort_order":"FOO"}"#,
    ] {
        post("/v3/kv/range", body);
    }
}

fn writes(post: &mut impl FnMut(&str, &str)) {
    for body in [
        r#"{"value":"YQ=="}"#,
        r#"{"key":"a2V5"}"#,
        r#"{"key":"a2V5","value":"MQ==","ignore_value":true}"#,
        r#"{"key":"bmV3","ignoreValue":true}"#,
        r#"{"key":"a2V5","ignore_lease":true,"prevKv":true}"#,
        r#"{"key":"a2V5","lease":"99"}"#,
        r#"{"key":"a2V5","lease":99.5}"#,
    ] {
        post("/v3/kv/put", body);
    }
    for body in [
        r#"{"compare":[{"key":"Zm9v","target":"VERSION","result":"GREATER","version":"0"}],
            "success":[{"request_range":{"key":"Zm9v"}},{"requestPut":{"key":"dHhu","value":"MQ=="}}],
            "failure":[{"request_delete_range":{"key":"Zm9v"}}]}"#,
        r#"{"compare":[{"key":"Zm9v","target":3,"result":0,"value":"bm8="}],"failure":[{"request_range":{"key":"Zm9v"}}]}"#,
        r#"{"compare":[{"key":"Zm9v","version":"1","value":"YmFy"}],"success":[{"request_range":{"key":"Zm9v"}}]}"#,
        r#"{"compare":[{"key":"Zm9v","target":"LEASE"}],"success":[{"request_txn":{"success":[{"request_range":{"key":"Zm9v"}}]}}]}"#,
        r#"{"compare":[{"key":"Zm8=","range_end":"Zm9w","target":"MOD","mod_revision":1,"result":"GREATER"}]}"#,
        r#"{"success":[{"request_delete_range":{"key":"dHhu","prev_kv":true}},{"request_put":{"key":"dHhuMg=="}}]}"#,
        r#"{"success":[{"request_range":{"key":"Zm9v"},"request_put":{"key":"b25lb2Y="}}]}"#,
        r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#,
        r#"{"success":[{}]}"#,
        r#"{"success":[null]}"#,
        r#"{"success":{}}"#,
        r#"{"success":[1]}"#,
        r#"{"success":[{"request_put":[]}]}"#,
        r#"{"success":[{"request_put":{}}]}"#,
        r#"{"compare":[{"result":"SAME"}]}"#,
        r#"{"compare":[{}]}"#,
        r#"{"compare":"x"}"#,
        "{}",
    ] {
        post("/v3/kv/txn", body);
    }
    for body in [
        r#"{"key":"dHhu","range_end":"dHho","prev_kv":true}"#,
        r#"{"key":"dHhu","rangeEnd":"dHhv","prevKv":true}"#,
        r#"{"key":"bm9uZQ=="}"#,
        "{}",
    ] {
        post("/v3/kv/deleterange", body);
    }
    for body in [
        r#"{"revision":3}"#,
        r#"{"revision":"3"}"#,
        r#"{"revision":"999","physical":true}"#,
        "{}",
        r#"{"revision":"x"}"#,
    ] {
        post("/v3/kv/compaction", body);
    }
    post("/v3/kv/range", r#"{"key":"Zm9v","revision":2}"#);
    post("/v3/kv/range", r#"{"key":"Zm9v","revision":2,"serializable":true}"#);
}

fn leases(post: &mut impl FnMut(&str, &str)) {
    for (path, body) in [
        ("/v3/lease/grant", r#"{"TTL":"3600","ID":"77"}"#),
        ("/v3/lease/grant", r#"{"TTL":3600,"ID":77}"#),
        ("/v3/lease/grant", r#"{"TTL":"0"}"#),
        ("/v3/lease/grant", r#"{"TTL":"99999999999"}"#),
        ("/v3/lease/grant", r#"{"ttl":"60","ID":"78"}"#),
        ("/v3/lease/grant", "{}"),
        ("/v3/kv/put", r#"{"key":"bGVhc2U=","value":"MQ==","lease":"77"}"#),
        ("/v3/kv/range", r#"{"key":"bGVhc2U="}"#),
        ("/v3/lease/timetolive", r#"{"ID":"99"}"#),
        ("/v3/kv/lease/timetolive", r#"{"ID":99,"keys":true}"#),
        ("/v3/lease/leases", "{}"),
        ("/v3/kv/lease/leases", ""),
        ("/v3/lease/keepalive", r#"{"ID":"99"}"#),
        ("/v3/lease/keepalive", r#"{"ID":"77"}"#),
        ("/v3/lease/keepalive", r#"{"ID":77}{"ID":"99"} {"ID":"77"}"#),
        ("/v3/lease/keepalive", r#"{"ID":77} x"#),
        ("/v3/lease/keepalive", r#"{"ID":"x"}"#),
        ("/v3/lease/keepalive", "{"),
        ("/v3/lease/keepalive", ""),
        ("/v3/lease/revoke", r#"{"ID":"99"}"#),
        ("/v3/kv/lease/revoke", r#"{"ID":"77"}"#),
        ("/v3/lease/revoke", r#"{"ID":true}"#),
        ("/v3/kv/range", r#"{"key":"bGVhc2U="}"#),
        ("/v3/lease/grant", r#"{"TTL":"3600","ID":"80"}"#),
        ("/v3/lock/lock", r#"{"name":"bG9jaw==","lease":"80"}"#),
        ("/v3/lock/lock", r#"{"name":"bG9jaw==","lease":"81"}"#),
        ("/v3/lock/lock", r#"{"name":5}"#),
        ("/v3/lock/unlock", r#"{"key":"bG9jay81MA=="}"#),
        ("/v3/lock/unlock", "{}"),
        ("/v3/election/campaign", r#"{"name":"ZWxlY3Q=","lease":"80","value":"bWU="}"#),
        ("/v3/election/leader", r#"{"name":"ZWxlY3Q="}"#),
        ("/v3/election/leader", r#"{"name":"bm9uZQ=="}"#),
        (
            "/v3/election/proclaim",
            r#"{"leader":{"name":"ZWxlY3Q=","key":"bm8=","rev":"1","lease":"80"},"value":"eA=="}"#,
        ),
        ("/v3/election/proclaim", r#"{"value":"eA=="}"#),
        ("/v3/election/resign", r#"{"leader":{"name":"ZWxlY3Q=","key":"bm8=","rev":"1","lease":"80"}}"#),
        ("/v3/election/resign", "{}"),
    ] {
        post(path, body);
    }
}

fn others(post: &mut impl FnMut(&str, &str)) {
    for (path, body) in [
        ("/v3/maintenance/status", "{}"),
        ("/v3/maintenance/alarm", "{}"),
        ("/v3/maintenance/alarm", r#"{"action":"GET","alarm":"NOSPACE"}"#),
        ("/v3/maintenance/alarm", r#"{"action":"SHOUT"}"#),
        ("/v3/maintenance/alarm", r#"{"memberID":"-1"}"#),
        ("/v3/maintenance/alarm", r#"{"memberID":18446744073709551616}"#),
        ("/v3/maintenance/defragment", "{}"),
        ("/v3/maintenance/hash", "{}"),
        ("/v3/maintenance/hashkv", "{}"),
        ("/v3/maintenance/hashkv", r#"{"revision":"999"}"#),
        ("/v3/maintenance/transfer-leadership", r#"{"targetID":"5"}"#),
        ("/v3/maintenance/downgrade", r#"{"action":"VALIDATE","version":"3.4.0"}"#),
        ("/v3/maintenance/downgrade", r#"{"action":"CANCEL"}"#),
        ("/v3/maintenance/downgrade", r#"{"action":9}"#),
        ("/v3/cluster/member/remove", r#"{"ID":"5"}"#),
        ("/v3/cluster/member/promote", r#"{"ID":5}"#),
        ("/v3/cluster/member/add", r#"{"peerURLs":["no url"]}"#),
        ("/v3/cluster/member/add", r#"{"peerURLs":"x"}"#),
        ("/v3/cluster/member/add", r#"{"peerURLs":[5]}"#),
        ("/v3/cluster/member/update", r#"{"ID":"5","peerURLs":["http://127.0.0.1:1"]}"#),
        ("/v3/auth/status", "{}"),
        ("/v3/auth/enable", "{}"),
        ("/v3/auth/disable", ""),
        ("/v3/auth/authenticate", r#"{"name":"a","password":"b"}"#),
        ("/v3/auth/role/add", r#"{"name":"r<1>&\u2028é"}"#),
        ("/v3/auth/role/add", r#"{"name":"r<1>&\u2028é"}"#),
        ("/v3/auth/role/add", r#"{"name":""}"#),
        ("/v3/auth/role/add", r#"{"name":["r"]}"#),
        (
            "/v3/auth/role/grant",
            r#"{"name":"r<1>&\u2028é","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}"#,
        ),
        ("/v3/auth/role/grant", r#"{"name":"r<1>&\u2028é","perm":{"perm_type":"WRITE","key":"Yw=="}}"#),
        ("/v3/auth/role/grant", r#"{"name":"no","perm":{"permType":0,"key":"YQ=="}}"#),
        ("/v3/auth/role/grant", r#"{"name":"no","perm":{"permType":"ALL"}}"#),
        ("/v3/auth/role/get", r#"{"role":"r<1>&\u2028é"}"#),
        ("/v3/auth/role/get", r#"{"role":"no"}"#),
        ("/v3/auth/role/list", "{}"),
        ("/v3/auth/user/add", r#"{"name":"u","password":"p"}"#),
        ("/v3/auth/user/add", r#"{"name":"u","password":"p"}"#),
        ("/v3/auth/user/add", r#"{"name":"v","options":{"no_password":true}}"#),
        ("/v3/auth/user/add", r#"{"name":"w","options":{"noPassword":false}}"#),
        ("/v3/auth/user/add", r#"{"password":"p"}"#),
        ("/v3/auth/user/grant", r#"{"user":"u","role":"r<1>&\u2028é"}"#),
        ("/v3/auth/user/grant", r#"{"user":"u","role":"no"}"#),
        ("/v3/auth/user/get", r#"{"name":"u"}"#),
        ("/v3/auth/user/list", ""),
        ("/v3/auth/user/changepw", r#"{"name":"u","password":"q"}"#),
        ("/v3/auth/user/changepw", r#"{"name":"no","password":"q"}"#),
        ("/v3/auth/user/revoke", r#"{"name":"u","role":"r<1>&\u2028é"}"#),
        ("/v3/auth/user/revoke", r#"{"name":"u","role":"no"}"#),
        ("/v3/auth/role/revoke", r#"{"role":"r<1>&\u2028é","key":"YQ==","range_end":"Yg=="}"#),
        ("/v3/auth/role/revoke", r#"{"role":"r<1>&\u2028é","key":"YQ=="}"#),
        ("/v3/auth/role/delete", r#"{"role":"r<1>&\u2028é"}"#),
        ("/v3/auth/user/delete", r#"{"name":"u"}"#),
        ("/v3/auth/user/delete", r#"{"name":"u"}"#),
    ] {
        post(path, body);
    }
}

fn streams(script: &mut Vec<Ask>) {
    for (lines, body) in [
        (1, r#"{"create_request":{"key":"Zm9v"}}"#),
        (1, r#"{"createRequest":{"key":"Zm9v","watchId":"7","progressNotify":true}}"#),
        (2, r#"{"create_request":{"key":"AA==","range_end":"AA==","start_revision":"4"}}"#),
        (
            2,
            r#"{"create_request":{"key":"AA==","range_end":"AA==","start_revision":4,"prev_kv":true,"filters":["NOPUT"]}}"#,
        ),
        (
            2,
            r#"{"create_request":{"key":"AA==","range_end":"AA==","start_revision":"4","filters":["NODELETE",1],"fragment":true}}"#,
        ),
        (2, r#"{"create_request":{"key":"Zm9v","start_revision":"1"}}"#),
        (
            3,
            r#"{"create_request":{"key":"Zm9v","watch_id":"7"}} {"create_request":{"key":"Zm9v","watch_id":7}} {"cancel_request":{"watch_id":7}}"#,
        ),
        (2, r#"{"create_request":{"key":"Zm9v"}}{"cancel_request":{"watch_id":"5"}}{"create_request":{"key":"Zm9v"}}"#),
        (1, r#"{"create_request":{"key":"Zm9w","range_end":"Zm9v"}}"#),
        (1, r#"{"create_request":{"key":"Zm9v"}} {bad"#),
        (1, r#"{"create_request":{}}"#),
    ] {
        script.push(Ask::post("/v3/watch", body).lines(lines));
    }
    for body in [
        "x",
        r#"{"create_request":[]}"#,
        r#"{"create_request":{"key":"Zm9v","filters":["NOPUT","FOO"]}}"#,
        r#"{"create_request":{"key":"Zm9v","filters":"NOPUT"}}"#,
        r#"{"create_request":{"key":"Zm9"}}"#,
        r#"{"create_request":{"key":"Zm9v","start_revision":"x"}}"#,
        r#"{"create_request":"#,
    ] {
        script.push(Ask::post("/v3/watch", body));
    }
    let observe = |body| Ask::post("/v3/election/observe", body);
    script.push(observe(r#"{"name":"ZWxlY3Q="}"#).lines(1));
    script.push(observe("["));
    script.push(observe(r#"{"name":"bm9uZQ=="}"#).with("grpc-timeout", "200m"));
    script.push(Ask::post("/v3/watch", r#"{"create_request":{"key":"Zm9v"}}"#).with("grpc-timeout", "300m"));
    script.push(Ask::post("/v3/maintenance/snapshot", "{x"));
}

fn over_http(script: &mut Vec<Ask>) {
    let range = || Ask::post("/v3/kv/range", r#"{"key":"Zm9v"}"#);
    let at = |path: &str| Ask { path: path.to_owned(), ..range() };
    for path in [
        "/v3/",
        "/v3/kv",
        "/v3/kv/",
        "/v3/kv/range/",
        "/v3/kv/range/x",
        "/v3/kv/nope",
        "/v3/kv/range:x",
        "/v3/kv/:x",
        "//v3/kv/range",
        "//v3//kv/range?a=b",
        "/./v3/kv/range",
        "/x/../v3/kv/range",
        "/v3/KV/range",
        "/v3/kv/%72ange",
        "/v3/kv/range?a=b",
        "/v3/kv/put/..%2frange",
        "/v3beta/kv/nope",
        "/v3/lease/leases/",
        "/v3/auth",
        "/v3/maintenance",
    ] {
        script.push(at(path));
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
        script.push(Ask { method: method.clone(), ..range() });
        script.push(Ask { method, ..at("/v3/kv/nope") });
    }
    for (name, value) in [
        ("content-type", "text/plain"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-encoding", "gzip"),
        ("accept", "text/html"),
        ("accept-encoding", "gzip"),
        ("grpc-timeout", "5S"),
        ("grpc-timeout", "0S"),
        ("grpc-timeout", "-1S"),
        ("grpc-timeout", "1n"),
        ("grpc-timeout", "3x"),
        ("grpc-timeout", "x"),
        ("grpc-timeout", "S"),
        ("grpc-timeout", "1.5S"),
        ("grpc-metadata-hasleader", "true"),
        ("grpc-metadata-some-bin", "AAA="),
        ("grpc-metadata-text", "a\tb"),
        ("grpc-metadata-a!b", "x"),
        ("grpc-timeout", "99999999H"),
        ("authorization", "none"),
    ] {
        script.push(range().with(name, value));
    }
    for (name, value) in [("grpc-timeout", "-1S"), ("grpc-metadata-text", "a\tb")] {
        script.push(Ask::post("/v3/kv/range", "x").with(name, value));
        script.push(Ask::post("/v3/watch", "x").with(name, value));
        script.push(Ask::post("/v3/lease/keepalive", "x").with(name, value));
        script.push(Ask::post("/v3/election/observe", "x").with(name, value));
    }
    let form = |method: &str| {
        range().with("content-type", "application/x-www-form-urlencoded").with("x-http-method-override", method)
    };
    script.extend([form("get"), form("post"), range().with("x-http-method-override", "get")]);
    let value = "AAAA".repeat(600 << 10);
    script.push(Ask::post("/v3/kv/put", &format!(r#"{{"key":"bGFyZ2U=","value":"{value}"}}"#)));
    let value = "AAAA".repeat(100 << 10);
    script.push(Ask::post("/v3/kv/put", &format!(r#"{{"key":"bGFyZ2U=","value":"{value}"}}"#)));
    script.push(Ask::post("/v3/kv/range", r#"{"key":"bGFyZ2U="}"#));
    let deep = |open: &str| format!("{{\"x\":{}", open.repeat(10_001));
    script.push(Ask::post("/v3/kv/txn", &deep("[")));
    script.push(Ask::post("/v3/kv/txn", &deep("{\"x\":")));
}
